"""Any network with matrix Gaussian layers in place of its linear ones: ``bayesianize(net)``.

Exactly ``nn.Linear`` (and ``nn.Conv2d``) are replaced. A subclass is left as it is, because its owner may know
it by its weights: nn.MultiheadAttention multiplies by ``out_proj.weight`` itself and would never call a layer
put in its place.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

from torch import nn

from lib.matrix_gaussian.convolution import MatrixGaussianConv2d
from lib.matrix_gaussian.laws import Law
from lib.matrix_gaussian.layer import MatrixGaussianLayer, MatrixGaussianLinear

MEANS = ("fresh", "keep")
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
Choice = Law | Callable[[str, nn.Module], Law | None]


class LeftAsItWas(UserWarning):
    """A layer that could not be replaced."""


def bayesianize(
    net: nn.Module,
    law: Choice | None = None,
    *,
    hyper_priors: bool = False,
    local: bool = True,
    seed: int = 0,
    convolutions: bool = False,
    means: str = "fresh",
) -> nn.Module:
    """A copy of ``net`` in which each nn.Linear (with ``convolutions`` each nn.Conv2d) has a law.

    Args:
        law: for all layers (None: ``layer.default_law``), or a function of a layer's name and the layer; where it gives None
            that layer stays. A layer's noise is named after it, and a module that stands in two places stays one.
        means: "fresh", the law's start; "keep", posterior means at the layer's weights (times √r, because inputs are scaled),
            so that in evaluation the copy computes what ``net`` did; pseudo-outputs are set to agree. Standard deviations
            start at the law's in both.

    Warns LeftAsItWas, naming the layers that cannot be replaced and why. Raises ValueError where nothing could
    be replaced, and where a layer shares a weight with another module or has hooks, which replacing would lose.
    """
    if means not in MEANS:
        raise ValueError(f"means = {means!r}: choose one of {', '.join(MEANS)}.")
    copied = copy.deepcopy(net)
    kinds = (nn.Linear, nn.Conv2d) if convolutions else (nn.Linear,)
    replaced: dict[nn.Module, MatrixGaussianLayer] = {}
    left = []
    for name, layer in copied.named_modules():
        if not isinstance(layer, kinds):
            continue
        own = law(name, layer) if _is_choice(law) else law
        if own is None and law is not None:
            continue
        if reason := why_not(layer):
            left.append(f"{name or 'the module itself'} ({reason})")
            continue
        refuse_to_lose(copied, name, layer)
        options = {
            "law": own,
            "hyper_priors": hyper_priors,
            "local": local,
            "seed": seed,
            "purpose": name or "layer",
        }
        replaced[layer] = new = counterpart(layer, options)
        if means == "keep":
            new.set_mean(layer.weight, layer.bias)
        new.train(layer.training)
    if left:
        warnings.warn(
            f"left as they were, without a law: {'; '.join(left)}. A function for law that gives None for them "
            "says that this is meant.",
            LeftAsItWas,
            stacklevel=2,
        )
    if not replaced:
        raise ValueError(
            f"{type(net).__name__} has no layer to replace: it needs an nn.Linear"
            f"{' or nn.Conv2d' if convolutions else ''} for which the law is not None"
            f"{'' if convolutions else ', or convolutions=True'}."
        )
    if copied in replaced:
        return replaced[copied]
    for module in copied.modules():
        for name, child in module._modules.items():
            if child in replaced:
                module._modules[name] = replaced[child]
    _leave_fast_paths(copied)
    return copied


def counterpart(layer: nn.Module, options: dict) -> MatrixGaussianLayer:
    """The layer with a law, on the same device and in the same precision."""
    common = {"bias": layer.bias is not None, "device": layer.weight.device, "dtype": layer.weight.dtype}
    if isinstance(layer, nn.Linear):
        return MatrixGaussianLinear(layer.in_features, layer.out_features, **common, **options)
    return MatrixGaussianConv2d(
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
        padding_mode=layer.padding_mode, **common, **options,
    )  # fmt: skip


def why_not(layer: nn.Module) -> str | None:
    """Why a linear layer or convolution has no counterpart here, or None."""
    if type(layer) not in (nn.Linear, nn.Conv2d):
        return f"a {type(layer).__name__}, whose owner may read its weights past its forward"
    if isinstance(layer, nn.Conv2d) and layer.groups != 1:
        return f"a convolution of {layer.groups} groups"
    return None


def refuse_to_lose(net: nn.Module, name: str, layer: nn.Module) -> None:
    """Raises ValueError for hooks and for weights that another module has too."""
    if any(getattr(layer, hooks) for hooks in HOOKS):
        raise ValueError(
            f"layer {name!r} has hooks (old weight norm and pruning are such), which a new layer would lose: "
            "remove them, or give a function for law that is None there."
        )
    mine = {id(parameter) for parameter in layer.parameters()}
    for other, module in net.named_modules():
        if module is not layer and any(id(p) in mine for p in module.parameters(recurse=False)):
            raise ValueError(
                f"layer {name!r} shares a weight with {other!r}, and a new layer would untie them: give a "
                "function for law that is None there."
            )


def _is_choice(law: Choice | None) -> bool:
    return callable(law)  # a law is a plain dataclass, which is not


def _leave_fast_paths(net: nn.Module) -> None:
    """Transformers in evaluation read their layers' weights and skip their forward: these flags forbid it."""
    for module in net.modules():
        if any(isinstance(child, MatrixGaussianLayer) for child in module.modules()):
            if isinstance(module, nn.TransformerEncoderLayer):
                module.activation_relu_or_gelu = 0
            elif isinstance(module, nn.TransformerEncoder):
                module.use_nested_tensor = False
