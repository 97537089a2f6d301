"""One-dimensional convolutional networks with and without skip connections, their output layer integrated out (P2-C13)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from lib.free_energy import ridge
from lib.free_energy.features import moments_on_points, through
from lib.free_energy.regression import Regression
from lib.free_energy.targets import OutputIntegrated

KERNEL = 3


@dataclass(frozen=True)
class Convolutions:
    """A convolution with ReLU from one channel to C, ``redundant`` further ones from C to C, and a mean over positions.

    With ``skip`` a further layer adds its ReLU to what it reads, h + (W * h + b)_+; without, it replaces it. A position holds
    weight then bias of each layer, (..., D).
    """

    channels: int
    redundant: int
    skip: bool

    @property
    def dimension(self) -> int:
        first = self.channels * (KERNEL + 1)
        return first + self.redundant * self.channels * (self.channels * KERNEL + 1)

    def features(
        self, position: Float[Tensor, "R P D"], inputs: Float[Tensor, "N L"]
    ) -> Float[Tensor, "R P C N"]:
        """The mean activation of each channel of the last layer on N signals of length L, for R x P networks."""
        c, start = self.channels, 0
        signal = inputs.expand(
            len(position), 1, 1, *inputs.shape
        )  # (R, P, channels, N, L), at first shared by all
        for layer in range(1 + self.redundant):
            below = c if layer else 1
            end = start + c * below * KERNEL
            weight = position[..., start:end].unflatten(-1, (c, below * KERNEL))
            bias = position[..., end : end + c]
            start = end + c
            windows = pad(signal, (KERNEL // 2, KERNEL // 2)).unfold(-1, KERNEL, 1)  # (..., N, L, kernel)
            columns = windows.movedim(-1, 3).flatten(2, 3).flatten(3)  # (R, P, channels * kernel, N * L)
            found = (through(weight, columns) + bias[..., None]).clamp_min(0).unflatten(-1, inputs.shape)
            signal = signal + found if self.skip and layer else found
        return signal.mean(-1)


@dataclass(frozen=True)
class CollapsedConvolutions(OutputIntegrated):
    """The verbs of `lib.free_energy.targets.Target`; gradients by automatic differentiation."""

    problem: Regression
    layers: Convolutions
    scale: Float[Tensor, " D"]

    @property
    def problems(self) -> int:
        return len(self.problem)

    @property
    def truth(self) -> Float[Tensor, "R 1"]:
        return self.problem.truth[:, None]

    @property
    def footprint(self) -> int:
        return self.layers.channels * self.problem.inputs[0].numel() * (1 + self.layers.redundant)

    def _features(self, position: Tensor) -> Tensor:
        hidden = self.layers.features(
            position, self.problem.inputs[0]
        )  # copies of one problem share their inputs
        return torch.cat([hidden, torch.ones_like(hidden[:, :, :1])], 2)

    def _moments(self, features: Tensor) -> ridge.Moments:
        gram, cross = moments_on_points(features, self.problem)
        return ridge.Moments(gram, cross, self.problem.power[:, None])

    def statistics(self, position: Float[Tensor, "R P D"]) -> ridge.Moments:
        return self._moments(self._features(position))

    def gradient(self, position: Float[Tensor, "R P D"], t: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = position.detach().requires_grad_()
            features = self._features(leaf)
        moments = self._moments(features.detach())
        known = ridge.posterior(moments, t)
        by_gram, by_cross = ridge.slopes(moments, t, known)
        slope = 2 * by_gram.permute(2, 3, 0, 1) @ features.detach()
        slope += by_cross.permute(2, 3, 0, 1) @ self.problem.targets.mT[:, None]
        (found,) = torch.autograd.grad(features, leaf, slope * self.problem.weights[:, None, None])
        return ridge.value(moments, t, known) + t * self.truth, found

    def dead(self, position: Float[Tensor, "R P D"]) -> Bool[Tensor, "R P C"]:
        return (self._features(position)[:, :, :-1] <= 0).all(-1)
