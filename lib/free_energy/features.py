"""Hidden layers of any depth and input, for P networks in each of R problems: values on the points, and gradients.

The general path beside ``lib.free_energy.hinges``: it visits every point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from lib.free_energy.regression import Regression

ACTIVATIONS = ("relu", "linear")


@dataclass(frozen=True)
class Layers:
    """The shape of a stack of layers: widths from the input on, whether units have biases, and their activation.

    A position holds weight then bias of each layer in turn, as ``state_dict()`` does, (..., D).
    """

    widths: tuple[int, ...]
    bias: bool = True
    activation: str = "relu"

    def __post_init__(self) -> None:
        if min(self.widths) < 1:
            raise ValueError(f"the widths are {self.widths}: every layer needs at least one unit.")
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"the activation is {self.activation!r}: choose one of {', '.join(ACTIVATIONS)}."
            )

    @property
    def dimension(self) -> int:
        """Parameters in all."""
        return sum(above * (below + self.bias) for below, above in pairwise(self.widths))

    def split(self, position: Float[Tensor, "*batch D"]) -> list[tuple[Tensor, Tensor | None]]:
        """Weight (*batch, out, in) and bias (*batch, out) of each layer, as views."""
        layers, start = [], 0
        for below, above in pairwise(self.widths):
            weight = position[..., start : start + above * below].unflatten(-1, (above, below))
            start += above * below
            bias = position[..., start : start + above] if self.bias else None
            start += above * self.bias
            layers.append((weight, bias))
        return layers

    def act(self, before: Tensor) -> Tensor:
        return before.clamp_min(0) if self.activation == "relu" else before

    def forward(
        self, position: Float[Tensor, "R P D"], inputs: Float[Tensor, "R N M"], last: bool
    ) -> list[Tensor]:
        """The inputs (R, 1, M, N) and every layer's values (R, P, units, N); ``last`` says whether the last layer's activation is applied too."""
        values = [inputs.mT[:, None]]
        layers = self.split(position)
        for i, (weight, bias) in enumerate(layers):
            before = through(weight, values[-1])
            if bias is not None:
                before = before.add_(bias[..., None])
            values.append(self.act(before) if last or i + 1 < len(layers) else before)
        return values

    def backward(
        self, position: Tensor, values: Sequence[Tensor], slope: Float[Tensor, "R P units N"], last: bool
    ) -> Float[Tensor, "R P D"]:
        """The gradient in the parameters from that in the last layer's values."""
        layers, found = self.split(position), torch.empty_like(position)
        for i in reversed(range(len(layers))):
            if self.activation == "relu" and (last or i + 1 < len(layers)):
                slope = torch.ops.aten.threshold_backward(slope, values[i + 1], 0)
            weight, bias = self.split(found)[i]
            weight.copy_(onto(slope, values[i]))
            if bias is not None:
                bias.copy_(slope.sum(-1))
            if i:
                slope = through(layers[i][0].mT, slope)
        return found


def through(weight: Float[Tensor, "R P a b"], values: Float[Tensor, "R Q b N"]) -> Float[Tensor, "R P a N"]:
    """The matrix product, with one product a problem where all its networks share the values (Q = 1)."""
    if values.shape[1] == 1:
        product = weight.flatten(1, 2).contiguous() @ values[:, 0]
        return product.unflatten(1, weight.shape[1:3])
    weight_of_all = weight.flatten(0, 1).contiguous()  # torch.bmm visits oddly strided matrices one by one
    return torch.bmm(weight_of_all, values.flatten(0, 1)).unflatten(0, weight.shape[:2])


def onto(slope: Float[Tensor, "R P a N"], values: Float[Tensor, "R Q b N"]) -> Float[Tensor, "R P a b"]:
    """slope @ values.mT, likewise."""
    if values.shape[1] == 1:
        product = slope.flatten(1, 2) @ values[:, 0].mT
        return product.unflatten(1, slope.shape[1:3])
    return torch.bmm(slope.flatten(0, 1), values.flatten(0, 1).mT).unflatten(0, slope.shape[:2])


def moments_on_points(
    features: Float[Tensor, "R P k N"], problem: Regression
) -> tuple[Float[Tensor, "k k R P"], Float[Tensor, "k o R P"]]:
    """Weighted second moments of the features, and of features with targets, the batch behind."""
    weighted = features * problem.weights[:, None, None]
    gram = onto(weighted, features)
    cross = onto(weighted, problem.targets.mT[:, None])
    return gram.permute(2, 3, 0, 1).contiguous(), cross.permute(2, 3, 0, 1).contiguous()
