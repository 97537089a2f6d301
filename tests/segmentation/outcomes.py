"""Outcomes made by hand, whose scores are known."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lib.segmentation.experiment import Segmentations
from lib.segmentation.training import METHODS, SGD, UNIT, Outcome, Plan


def made(right: float, diverged: bool = False, val: float | None = None) -> Outcome:
    """Two classes of 1000 pixels each, a share of which is named right: overlap right / (2 - right)."""

    def matrix(share):
        n = round(1000 * share)
        return torch.tensor([[n, 1000 - n], [1000 - n, n]])

    shown = torch.zeros(1, 4, 4, dtype=torch.uint8)
    return Outcome(
        torch.zeros(1), torch.tensor(diverged), matrix(right if val is None else val), matrix(right), shown
    )


def found_of(
    sgd: Sequence[list[Outcome]], unit: Sequence[list[Outcome]], plan: Plan | None = None
) -> Segmentations:
    """One list of outcomes a rate."""
    plan = plan or Plan((0.1, 1.0), 3, 1, 1)
    of = {SGD: sgd, UNIT: unit}
    return Segmentations(
        plan, ("a", "b"), {(m, r): each for m in METHODS for r, each in zip(plan.rates, of[m], strict=True)}
    )
