"""Networks between networks: weighted means of weights, by the thousand, and what they score.

Lines, triangles and simplices are all made of mixtures of a few networks: in group k, mixture r is
Σ_m weights[k, r, m] · network[index[k, m]]. The first layer of a perceptron or a convolutional network is affine in its weights, so its
outputs are computed once for each network and mixed; the layers behind it are mixed themselves, a few groups at a time, by
matrix products, and evaluated as one population.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor, nn

from lib.device import worker_pool
from lib.params import Params, population_size
from lib.population import predict, stacked

CACHE = 8 << 20  # bytes of weights and activations of a block of mixtures, on a CPU
MEMORY = 4 << 30  # the same, on an accelerator
HALVINGS = 18  # of the range of temperatures, which begins at seven decades: to 1e-4 of itself


@dataclass(frozen=True, eq=False)
class Scores:
    """Of mixtures (K, R): mean cross-entropy, share of wrong classes, and the cross-entropy at each one's best temperature, if asked."""

    loss: Float64[Tensor, "K R"]
    error: Float64[Tensor, "K R"]
    calibrated: Float64[Tensor, "K R"] | None = None


def scores(
    net: nn.Module,
    params: Mapping[str, Tensor],
    index: Int64[Tensor, "K m"],
    weights: Float[Tensor, "K R m"],
    inputs: Shaped[Tensor, "N ..."],
    targets: Int64[Tensor, " N"],
    *,
    calibrate: tuple[Tensor, Tensor] | None = None,
) -> Scores:
    """Every mixture in evaluation mode on the same N examples; BatchNorm's running statistics are mixed like weights.

    ``calibrate``: examples (inputs, targets), the same or others, on which each mixture's softmax temperature is found; its loss is
    then read on the N examples. Raises ValueError for indices or weights that do not fit, and for weights of networks that are not finite.
    """
    _check(params, index, weights)
    device = next(iter(params.values())).device
    floating = [tensor for tensor in params.values() if tensor.is_floating_point()]
    given, inputs, targets = inputs, inputs.to(device, floating[0].dtype), targets.to(device)
    examples = [inputs]
    aims = None if calibrate is None else calibrate[1].to(device)
    if calibrate is not None and calibrate[0] is not given:
        examples.append(calibrate[0].to(device, floating[0].dtype))
    mixers = [_mixer(net, params, x) for x in examples]
    index, weights = index.to(device), weights.to(device, torch.float64)
    block = max(1, _block(net, params, sum(map(len, examples)), inputs, device) // weights.shape[1])

    def piece(rows: Tensor) -> tuple[Tensor, ...]:
        some = index[rows], weights[rows].to(floating[0].dtype)
        outputs = [mix(*some) for mix in mixers]
        wrong = (outputs[0].argmax(-1) != targets).double().mean(1)
        logits = [
            y.mT.contiguous() for y in outputs
        ]  # classes first: a softmax then runs along rows of examples
        found = (_cross_entropy(logits[0], targets), wrong)
        if aims is None:
            return found
        temperature = best_temperature(logits[-1], aims)
        return (*found, _cross_entropy(logits[0] / temperature[:, None, None].to(logits[0].dtype), targets))

    with torch.no_grad(), worker_pool(device, stacked.supports(net)) as (_, each):
        blocks = list(each(piece, torch.arange(len(index), device=device).split(block)))
    columns = (torch.cat(column).view(weights.shape[:2]) for column in zip(*blocks, strict=True))
    return Scores(*columns)


def mixed(
    params: Mapping[str, Tensor], index: Int64[Tensor, "K m"], weights: Float[Tensor, "K R m"]
) -> Params:
    """The mixtures as a population (K · R, ...); whole numbers (a count of batches) are those of a group's first network."""
    found = {}
    for name, tensor in params.items():
        if tensor.is_floating_point():
            flat = tensor.flatten(1)[index]  # (K, m, n)
            found[name] = (weights.to(tensor.dtype) @ flat).view(-1, *tensor.shape[1:])
        else:
            found[name] = tensor[index[:, 0]].repeat_interleave(weights.shape[1], 0)
    return found


def best_temperature(
    logits: Float[Tensor, "K classes N"], targets: Int64[Tensor, " N"]
) -> Float64[Tensor, " K"]:
    """The temperature of each mixture's softmax with the least cross-entropy: convex in 1/T, by bisection of its slope."""
    right = _right(logits, targets).mean(1)

    def slope(sharpness: Tensor) -> Tensor:  # of the loss, by 1/T
        soft = (sharpness[:, None, None] * logits).softmax(1)
        return soft.mul_(logits).sum(1).mean(1) - right

    low, high = (torch.full_like(right, 10.0**k) for k in (-4, 3))
    for _ in range(HALVINGS):
        middle = (low * high).sqrt()
        rising = slope(middle) > 0
        low, high = torch.where(rising, low, middle), torch.where(rising, middle, high)
    return (low * high).rsqrt().double()


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return -_right(logits.log_softmax(1), targets).double().mean(1)


def _right(values: Tensor, targets: Tensor) -> Tensor:
    """(K, N): of values (K, classes, N) those of the right classes."""
    return values.gather(1, targets.expand(len(values), 1, -1))[:, 0]


def _mixer(net: nn.Module, params: Mapping[str, Tensor], inputs: Tensor):
    """A function from some groups' index and weights to the logits (K · R, N, classes) of their mixtures."""
    chain = stacked.layers(net) if stacked.supports(net) else []
    kinds = [type(layer) for _, layer in chain]
    first = next((i for i, kind in enumerate(kinds) if kind in (nn.Linear, nn.Conv2d)), None)
    if first is None or any(stacked.own_of(params, name) for name, _ in chain[:first]):
        return lambda index, weights: predict(net, mixed(params, index, weights), inputs)
    x = inputs[None]
    for name, layer in chain[: first + 1]:
        x = stacked.apply(layer, stacked.own_of(params, name), x)
    rest, x = chain[first + 1 :], x.contiguous()  # as it is read block by block
    behind = {key: params[key] for name, _ in rest for key in _names(params, name)}

    def mix(index: Tensor, weights: Tensor) -> Tensor:
        own = mixed({"first": x, **behind}, index, weights)
        y = own.pop("first")
        for name, layer in rest:
            y = stacked.apply(layer, stacked.own_of(own, name), y)
        return y

    return mix


def _names(params: Mapping[str, Tensor], layer: str) -> list[str]:
    return [key for key in params if key.rpartition(".")[0] == layer]


def _block(
    net: nn.Module, params: Mapping[str, Tensor], examples: int, inputs: Tensor, device: torch.device
) -> int:
    """How many mixtures at a time."""
    own = sum(tensor[0].numel() for tensor in params.values())
    numbers = stacked.numbers(net, inputs) if stacked.supports(net) else inputs[0].numel() * 8
    size = inputs.element_size() * (own + 2 * examples * numbers)
    return max(1, (CACHE if device.type == "cpu" else MEMORY) // size)


def _check(params: Mapping[str, Tensor], index: Tensor, weights: Tensor) -> None:
    members = population_size(dict(params))
    fits = (
        index.ndim == 2
        and weights.ndim == 3
        and len(index) == len(weights)
        and index.shape[1] == weights.shape[2]
    )
    if not fits or not weights.numel():
        raise ValueError(
            f"index {tuple(index.shape)} and weights {tuple(weights.shape)}: give (K, m) and (K, R, m), at least one mixture."
        )
    strange = index[(index < 0) | (index >= members)]
    if len(strange):
        raise ValueError(f"a mixture names network {int(strange[0])}, but there are {members}, from 0 on.")
    if not bool(weights.isfinite().all()):
        raise ValueError("a mixture has a weight that is not finite.")
    for name, tensor in params.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            broken = (~tensor.isfinite()).flatten(1).any(1).nonzero()[0].item()
            raise ValueError(
                f"network {broken} has weights that are not finite ({name!r}): leave diverged networks out."
            )
