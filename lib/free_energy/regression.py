"""Regression problems as free energies know them: points, targets, a weight a point, and what the truth leaves over."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Regression:
    """R regression problems of N points each, with the energy $E(w) = \\tfrac12 \\sum_i q_i \\|y_i - f(x_i; w)\\|^2 / \\sigma^2$.

    A *data set* has weights of one (zero pads a shorter one), so that E is the n L_n(w) of n examples up to a constant; a
    *population* has weights that add up to one and targets without noise, so that E is K(w) and the temperature plays n.

    Attributes:
        inputs: (R, N, M).
        targets: (R, N, o).
        weights: q / sigma², (R, N), not negative.
        truth: the energy of the true network, (R,): subtracted, it turns F_n into F_n - n S_n.
    """

    inputs: Float[Tensor, "R N M"]
    targets: Float[Tensor, "R N o"]
    weights: Float[Tensor, "R N"]
    truth: Float[Tensor, " R"]

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, chosen: slice | Tensor) -> Regression:
        """The problems at ``chosen``, some of them perhaps several times."""
        return Regression(
            *(tensor[chosen] for tensor in (self.inputs, self.targets, self.weights, self.truth))
        )

    def to(self, device: torch.device | str) -> Regression:
        """The same problems on another device."""
        return Regression(*(x.to(device) for x in (self.inputs, self.targets, self.weights, self.truth)))

    @property
    def power(self) -> Float[Tensor, " R"]:
        """Sum of the weighted squared targets."""
        return (self.weights * self.targets.square().sum(-1)).sum(1)


def join(problems: list[Regression]) -> Regression:
    """Problems one after the other, shorter ones padded by points of weight zero."""
    longest = max(problem.inputs.shape[1] for problem in problems)

    def padded(tensor: Tensor) -> Tensor:
        missing = longest - tensor.shape[1]
        # a copy of the last point keeps sorted inputs sorted
        return torch.cat([tensor, tensor[:, -1:].expand(-1, missing, *tensor.shape[2:])], dim=1)

    def unweighted(tensor: Tensor) -> Tensor:
        return torch.nn.functional.pad(tensor, (0, longest - tensor.shape[1]))

    return Regression(
        torch.cat([padded(problem.inputs) for problem in problems]),
        torch.cat([padded(problem.targets) for problem in problems]),
        torch.cat([unweighted(problem.weights) for problem in problems]),
        torch.cat([problem.truth for problem in problems]),
    )
