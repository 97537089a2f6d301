"""Layers of a whole population at once, differentiable: batched matrix products over members, and no grouped convolution.

torch.func.vmap turns a convolution of P stacked networks into one with P times as many groups, for which neither CPUs
nor accelerators have a fast kernel.  Here each member's patches meet its own weights in one batched product; and a batch
that all members share meets all their weights in one ordinary product or convolution.

Activations carry the axes (members, batch, ...).  An axis of length 1 in place of the members means: the same for all.
Everything is in evaluation mode, and made of plain operations: autograd and torch.func go through it.  A BatchNorm that
keeps no running statistics normalises by the batch in that mode too: its batches are not to be split (``by_batch``).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from lib.population.vmapped import UnsupportedTraining

ELEMENTWISE = {
    nn.ReLU: F.relu,
    nn.Tanh: torch.tanh,
    nn.SiLU: F.silu,
    nn.Sigmoid: torch.sigmoid,
    nn.Identity: lambda x: x,
    nn.Dropout: lambda x: x,
}
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def linear(
    x: Float[Tensor, "Q B k"], weight: Float[Tensor, "P n k"], bias: Float[Tensor, "P n"] | None = None
) -> Float[Tensor, "P B n"]:
    """x Wᵀ + b for every member, each on its own batch (Q = P) or all on one (Q = 1)."""
    members, n, _ = weight.shape
    if len(x) == 1:
        both = F.linear(x[0], weight.flatten(0, 1), None if bias is None else bias.flatten())
        return both.unflatten(1, (members, n)).movedim(1, 0)
    return x @ weight.mT if bias is None else torch.baddbmm(bias[:, None], x, weight.mT)


def conv2d(
    x: Float[Tensor, "Q B c h w"],
    weight: Float[Tensor, "P o k i j"],
    bias: Float[Tensor, "P o"] | None,
    layer: nn.Conv2d,
) -> Float[Tensor, "P B o y x"]:
    """The convolution ``layer``, zero-padded, with every member's own weights; x as in ``linear``."""
    (members, out), groups = weight.shape[:2], layer.groups
    x = F.pad(x, padding(layer))
    if len(x) == 1:  # one ordinary convolution with everybody's channels, group by group
        everybody = weight.unflatten(1, (groups, -1)).transpose(0, 1).flatten(0, 2)
        y = F.conv2d(x[0], everybody, None, layer.stride, 0, layer.dilation, groups)
        y = y.unflatten(1, (groups, members, out // groups)).movedim(2, 0).flatten(2, 3)
    else:
        area = (
            (size - stretch * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, stretch in zip(
                x.shape[-2:], weight.shape[-2:], layer.stride, layer.dilation, strict=True
            )
        )
        patches = F.unfold(x.flatten(0, 1), layer.kernel_size, layer.dilation, 0, layer.stride)
        patches = patches.view(*x.shape[:2], groups, -1, patches.shape[-1])
        y = weight.view(members, 1, groups, out // groups, -1) @ patches
        y = y.flatten(2, 3).unflatten(-1, tuple(area))
    return y if bias is None else y + bias[:, None, :, None, None]


def batch_norm(
    x: Float[Tensor, "Q B c *size"],
    own: Mapping[str, Tensor],
    layer: nn.BatchNorm1d | nn.BatchNorm2d,
) -> Float[Tensor, "P B c *size"]:
    """Each member's channels normalised by its running statistics, or by those of its batch where none are kept."""
    layer._check_input_dim(x[0])
    if by_batch(layer):
        if x[0].numel() == layer.num_features:
            raise ValueError(
                f"a {type(layer).__name__} without running statistics normalises by the batch, and one example gives it "
                "one number a channel: give it more examples, or keep running statistics."
            )
        var, mean = torch.var_mean(x, (1, *range(3, x.ndim)), correction=0)
    else:
        mean, var = own["running_mean"], own["running_var"]
    scale = torch.rsqrt(var + layer.eps)
    scale = scale * own["weight"] if "weight" in own else scale
    shift = own["bias"] - mean * scale if "bias" in own else -mean * scale
    channels = (slice(None), None, slice(None), *[None] * (x.ndim - 3))
    return torch.addcmul(shift[channels], x, scale[channels])


def by_batch(layer: nn.Module) -> bool:
    """Whether an example's outputs depend on the other examples, in evaluation mode too."""
    return isinstance(layer, NORMS) and layer.running_mean is None


def padding(layer: nn.Conv2d) -> tuple[int, int, int, int]:
    """Zeros left, right, above and below, in the order of torch.nn.functional.pad."""
    if layer.padding == "valid":
        return (0, 0, 0, 0)
    if layer.padding == "same":
        (high, wide) = (d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
        return (wide // 2, wide - wide // 2, high // 2, high - high // 2)
    high, wide = layer.padding
    return (wide, wide, high, high)


def apply(
    layer: nn.Module, own: Mapping[str, Tensor], x: Shaped[Tensor, "Q B ..."]
) -> Shaped[Tensor, "P B ..."]:
    """One layer in evaluation mode; ``own`` holds the stacked tensors of that layer under their own names.

    Raises UnsupportedTraining for a layer that ``refusal`` names.
    """
    kind = type(layer)
    if (reason := refusal(layer, norms=True)) is not None:
        raise UnsupportedTraining(reason)
    if kind is nn.Linear:
        return linear(x, own["weight"], own.get("bias"))
    if kind is nn.Conv2d:
        return conv2d(x, own["weight"], own.get("bias"), layer)
    if kind in NORMS:
        return batch_norm(x, own, layer)
    if kind in POOLS:
        return layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    return x.flatten(2) if kind is nn.Flatten else ELEMENTWISE[kind](x)


def refusal(layer: nn.Module, name: str = "", norms: bool = False) -> str | None:
    """Why this layer has no stacked form, as a sentence, or None if it has.

    BatchNorms have one for those who ask for ``norms``; to others, each tensor of a layer is a trained one, and a layer
    with weights is linear in its inputs.
    """
    kind = type(layer)
    what = f"layer {name!r} is a {kind.__name__}" if name else f"a {kind.__name__}"
    if kind is nn.Conv2d and layer.padding_mode != "zeros":
        return f"{what} with padding_mode {layer.padding_mode!r}: stacked convolutions pad with zeros only."
    if kind is nn.MaxPool2d and layer.return_indices:
        return f"{what} that returns indices: stacked layers return activations only."
    if kind is nn.Flatten and (layer.start_dim, layer.end_dim) != (1, -1):
        return f"{what} from axis {layer.start_dim} to {layer.end_dim}: stacked layers flatten all but the batch."
    known = (*ELEMENTWISE, *POOLS, *(NORMS if norms else ()), nn.Linear, nn.Conv2d, nn.Flatten)
    if kind in known:
        return None
    return f"{what}, which has no stacked form: use one of {', '.join(k.__name__ for k in known)}."


def layers(net: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """The layers of a Sequential, in order, with the names that their parameters start with; inner ones unrolled."""
    if type(net) is not nn.Sequential:
        return [(prefix, net)]
    inside = [layers(child, f"{prefix}.{name}" if prefix else name) for name, child in net.named_children()]
    return [layer for child in inside for layer in child]


def supports(net: nn.Module) -> bool:
    """Whether ``forward`` takes ``net``: a Sequential, with parameters, of layers that ``apply`` takes."""
    return (
        type(net) is nn.Sequential
        and any(True for _ in net.parameters())
        and all(refusal(layer, name, norms=True) is None for name, layer in layers(net))
    )


def forward(
    net: nn.Module,
    params: Mapping[str, Tensor],
    x: Shaped[Tensor, "N ..."],
    own: bool | None = None,
) -> Shaped[Tensor, "P B ..."]:
    """Outputs of every member in evaluation mode: of one batch for all, x (B, ...), or of a batch for each, (P, B, ...).

    Which of the two x is follows from its shape; ``own`` says it where a network that flattens leaves that open.
    Raises UnsupportedTraining with the layer's name.
    """
    if type(net) is not nn.Sequential:
        raise UnsupportedTraining(
            f"a {type(net).__name__} is no nn.Sequential, whose layers could be stacked."
        )
    chain = layers(net)
    for name, layer in chain:
        if (reason := refusal(layer, name, norms=True)) is not None:
            raise UnsupportedTraining(reason)
    if own is None:
        own = _has_members(chain, params, x)
    x = x if own else x[None]
    for name, layer in chain:
        x = apply(layer, own_of(params, name), x)
    return x


def own_of(params: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of the layer ``name``, under their own names."""
    return {key[len(name) + 1 :]: tensor for key, tensor in params.items() if key.rpartition(".")[0] == name}


def _has_members(chain: list[tuple[str, nn.Module]], params: Mapping[str, Tensor], x: Tensor) -> bool:
    kinds = [type(layer) for _, layer in chain]
    first = next((i for i, kind in enumerate(kinds) if kind in (nn.Linear, nn.Conv2d)), None)
    if first is None:
        raise UnsupportedTraining("the network has neither a Linear nor a Conv2d layer: nothing to stack.")
    images = kinds[first] is nn.Conv2d or any(kind in (*POOLS, nn.BatchNorm2d) for kind in kinds[:first])
    if images or nn.Flatten not in kinds[:first]:
        return x.ndim == (5 if images else 3)
    shared = x[0].numel() == chain[first][1].in_features
    each = x.ndim > 2 and x[0, 0].numel() == chain[first][1].in_features
    if shared and each and len(x) == len(next(iter(params.values()))):
        raise ValueError(
            f"inputs {tuple(x.shape)} may be {len(x)} examples for all members or one for each: say own=False or True."
        )
    return not shared


def numbers(net: nn.Module, x: Shaped[Tensor, "B ..."]) -> int:
    """How many numbers one member holds at most at a time for one example of a shared batch: in, patches and out."""
    most, shared = 0, True
    at = torch.empty(1, 2, *x.shape[1:], device="meta")  # two examples: a norm by the batch takes no fewer
    for _, layer in layers(net):
        own = {name: tensor.to("meta", at.dtype)[None] for name, tensor in layer.state_dict().items()}
        before, at = at, apply(layer, own, at)
        unfolds = type(layer) is nn.Conv2d and not shared
        patches = layer.groups * layer.weight[0].numel() * at[0, 0, 0].numel() if unfolds else 0
        most, shared = max(most, (before.numel() + at.numel()) // 2 + patches), shared and not own
    return most
