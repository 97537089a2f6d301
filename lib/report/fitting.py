"""Do the network and the examples fit each other? And what does a network take, where no examples say it."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call

from lib.params import member
from lib.report.data_source import DataProblem, Halves


def check(net: nn.Module, params: Mapping[str, Tensor], data: Halves) -> int:
    """How many numbers the networks put out for an example of ``data``.

    Raises DataProblem, with both shapes, where network and data do not fit: inputs, outputs, or labels; and for a network that
    draws random numbers in evaluation mode.
    """
    shape = tuple(data.example.shape[1:])
    one, x = member(params, 0), data.example.to(next(iter(params.values())).device)
    try:
        with torch.no_grad():
            found, again = (functional_call(net.eval(), one, (x,), tie_weights=False) for _ in range(2))
    except Exception as error:
        text = " ".join(str(error).split())
        way = (
            f"; {first_layer(net)}. Give inputs of its shape"
            if re.search(r"shape|size|dimension|channels", text)
            else f" ({str(x.dtype)[6:]} numbers, one tensor), and for another reason than their shape"
        )
        if x.is_floating_point() and any(isinstance(layer, nn.Embedding) for layer in net.modules()):
            way = "; it has an embedding, which takes whole numbers: give inputs of an integer type"
        raise DataProblem(
            f"the network refuses inputs of shape {shape}{way}. ({type(error).__name__}: {text:.160})"
        ) from None
    if isinstance(found, Tensor) and found.ndim == 1 and data.task == "regression":
        found, again = found[:, None], again[:, None]
    if not isinstance(found, Tensor) or found.ndim != 2:
        kind = (
            f"a tensor of shape {tuple(found.shape)}"
            if isinstance(found, Tensor)
            else f"a {type(found).__name__}"
        )
        raise DataProblem(
            f"the network returns {kind} for {len(data.example)} inputs: the report reads one tensor (examples, outputs). Wrap it."
        )
    if not torch.equal(found.nan_to_num(), again.nan_to_num()):
        raise DataProblem(
            "the network answers the same inputs differently each time, in evaluation mode: it draws random numbers there. Switch them "
            "off (dropout as a function needs training=self.training), or no score could be measured twice."
        )
    targets, width = torch.cat([data.calibration.targets, data.scoring.targets]), found.shape[1]
    if data.task == "classification":
        low, high = int(targets.min()), int(targets.max())
        if width == 1 and (low, high) == (0, 1):
            raise DataProblem(
                "labels are 0 and 1, and the network has one output: the report reads a logit a class. Let the builder wrap it, "
                "so that it returns torch.cat([torch.zeros_like(z), z], 1) of that output z."
            )
        if low < 0 or high >= width:
            raise DataProblem(
                f"labels run from {low} to {high}, but the network has {width} outputs, for labels 0 to {width - 1}: number the "
                "classes as in training."
            )
        if (
            width > 1
            and bool((found >= 0).all())
            and torch.allclose(found.sum(1), torch.ones_like(found[:, 0]), atol=1e-4)
        ):
            raise DataProblem(
                "the network puts out probabilities (each example's sum to 1), and the report reads logits: build it without its "
                "last softmax, which holds no weights."
            )
    elif targets[0].numel() != width:
        raise DataProblem(
            f"there are {targets[0].numel()} targets an example, but the network has {width} outputs."
        )
    return width


def first_layer(net: nn.Module) -> str:
    """What the first layer with weights takes, in words."""
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Linear):
            return f"its first layer, {name!r} (Linear), takes {layer.in_features} features on the last axis"
        if isinstance(layer, nn.modules.conv._ConvNd):
            return f"its first layer, {name!r} ({type(layer).__name__}), takes {layer.in_channels} channels on the first axis"
    return "none of its layers says what it takes"


def accepts(net: nn.Module, x: Shaped[Tensor, "k ..."]) -> bool:
    """Whether these inputs pass through the network."""
    try:
        with torch.no_grad():
            net.eval()(x)
    except Exception:  # whatever a network makes of inputs that are not its own
        return False
    return True


def example_for(
    net: nn.Module, shape: tuple[int, ...] | None = None, device: torch.device | None = None
) -> Float[Tensor, "2 ..."]:
    """Two random inputs that the network takes, where no data say which: by ``shape``, or guessed from its first layer.

    Raises DataProblem where no guess passes through.
    """
    generator = torch.Generator().manual_seed(0)
    for guess in [shape] if shape else _guesses(net):
        x = torch.randn(2, *guess, generator=generator).to(device)
        if accepts(net, x):
            return x
    raise DataProblem(
        f"No input passes through the network: {first_layer(net)}. Name the shape of one input, say --input-shape 3,32,32."
    )


def _guesses(net: nn.Module) -> list[tuple[int, ...]]:
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            return [(layer.in_features,)]
        if isinstance(layer, nn.modules.conv._ConvNd):
            axes = len(layer.kernel_size)
            return [(layer.in_channels, *[size] * axes) for size in (32, 28, 64, 224)]
    return []
