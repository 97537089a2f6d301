"""The truths that the chapter learns, and the problems made of them: data sets with noise, and whole populations.

Truths of the notes: T0 constant, T1 one kink (1-1-1), T2 2-2-1, T3 2-2-2-1. All are minimal: every kink lies inside the
support, no two units are parallel, no output weight is zero. Inputs are uniform on [-1, 1]^M, noise has variance one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lib import randomness
from lib.free_energy.features import Layers
from lib.free_energy.regression import Regression


@dataclass(frozen=True)
class Truth:
    """A ReLU network that generates data: its name, its widths and its parameters in the order of a position (D,)."""

    name: str
    widths: tuple[int, ...]
    parameters: tuple[float, ...]

    def __call__(self, inputs: Float[Tensor, "R N M"]) -> Float[Tensor, "R N o"]:
        layers = Layers(self.widths)
        position = inputs.new_tensor(self.parameters).expand(len(inputs), 1, -1)
        return layers.forward(position, inputs, last=False)[-1][:, 0].mT


T0 = Truth("T0", (1, 1, 1), (0.0, -1.0, 0.0, 0.5))  # its unit is dead: the constant 0.5
T1 = Truth("T1", (1, 1, 1), (1.0, -0.1, 1.5, -0.3))  # 1.5 (x - 0.1)_+ - 0.3
T2 = Truth("T2", (2, 2, 1), (1.0, 0.5, -0.6, 1.0, 0.1, 0.2, 1.5, -1.2, 0.2))
T3 = Truth(
    "T3",
    (2, 2, 2, 1),
    (1.0, 0.5, -0.6, 1.0, 0.1, 0.2, 1.2, -0.9, -0.8, 1.1, -0.2, -0.1, 1.5, -1.4, 0.1),
)


def grid(points: int, inputs: int = 1) -> Float[Tensor, "N M"]:
    """Midpoints of about ``points`` equal cells of [-1, 1]^M, equally many on each axis: the population's inputs."""
    each = round(points ** (1 / inputs))
    axis = (2 * torch.arange(each, dtype=torch.float64) + 1) / each - 1
    return torch.cartesian_prod(*[axis] * inputs).view(-1, inputs)


REACH = 7.5  # of the grid that stands for normal inputs; beyond it lies 1e-13 of their mass


def population(truth: Truth, points: int, gaussian: bool = False) -> Regression:
    """K(w) of a truth, one problem: inputs uniform on a grid of ``points``, or normal ones (a grid weighted by the density)."""
    inputs = grid(points, truth.widths[0])
    weights = torch.full((len(inputs),), 1 / len(inputs), dtype=torch.float64)
    if gaussian:
        inputs = REACH * inputs
        weights = torch.exp(-0.5 * inputs.square().sum(1))
        weights /= weights.sum()
    inputs = inputs[None]
    return Regression(inputs, truth(inputs), weights[None], torch.zeros(1, dtype=torch.float64))


def data(truth: Truth, size: int, sets: int, seed: int, sigma: float = 1.0) -> Regression:
    """``sets`` data sets of n = ``size`` examples; those of a smaller n are the first examples of a larger one's.

    Raises ValueError for n < 1.
    """
    if size < 1:
        raise ValueError(f"n = {size}: a data set has at least one example.")
    members = torch.arange(sets)
    width, outputs = truth.widths[0], truth.widths[-1]
    inputs = 2 * randomness.uniform(seed, members, "inputs", 0, (size, width), torch.float64) - 1
    noise = randomness.normal(seed, members, "noise", 0, (size, outputs), torch.float64)
    targets = truth(inputs) + sigma * noise
    weights = torch.full((sets, size), sigma**-2, dtype=torch.float64)
    return Regression(inputs, targets, weights, 0.5 * noise.square().sum((1, 2)))


def entropy(outputs: int = 1, sigma: float = 1.0) -> float:
    """S, the entropy of the noise in nats."""
    return 0.5 * outputs * math.log(2 * math.pi * math.e * sigma**2)
