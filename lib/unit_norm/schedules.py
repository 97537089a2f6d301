"""How a learning rate changes from epoch to epoch, for every run of a stack by its own training cost.

The protocol's two (notes, section 1.6, as the authors' descendant code has them), and none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Constant:
    """The rate stays as it is."""

    def factor(self, epoch: int, costs: list[Float[Tensor, "S R"]]) -> float:
        return 1.0


@dataclass(frozen=True)
class ExponentialDecay:
    """Multiply by ``rate`` after every epoch."""

    rate: float = 0.95

    def factor(self, epoch: int, costs: list[Float[Tensor, "S R"]]) -> float:
        return self.rate


@dataclass(frozen=True)
class BoldDriver:
    """From the second epoch on: multiply by ``down`` where the mean training cost rose or is no number, else by ``up``."""

    up: float = 1.1
    down: float = 0.5

    def factor(self, epoch: int, costs: list[Float[Tensor, "S R"]]) -> Float[Tensor, "S R"] | float:
        """``costs``: the mean training cost of every epoch so far, each (S, R); ``epoch`` counts from 0."""
        if epoch == 0:
            return 1.0
        rose = ~(costs[-1] <= costs[-2])
        return torch.full_like(costs[-1], self.up).masked_fill_(rose, self.down)


Schedule = Constant | ExponentialDecay | BoldDriver
