"""From outcomes to the measurement of claim P4-C9 and the rows of its table; scores in points (per cent)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from lib import intervals
from lib.claims import Measurement
from lib.segmentation.experiment import Segmentations
from lib.segmentation.training import METHODS, SGD, UNIT

CELL = "SegNet"
SCORES = ("mean_iou", "class_accuracy", "global_accuracy")


def overlap_gain(found: Segmentations) -> list[Measurement]:
    """P4-C9: mean intersection over union on the test images, unit norm minus SGD, in points, paired by training.

    Each method stands with the rate whose mean over trainings is best on the validation images, not on the test images: the
    better of several test scores flatters. A pair shares its start and its order. Student's interval of the mean difference.
    """
    gains = found.values(UNIT, found.best(UNIT)) - found.values(SGD, found.best(SGD))
    return [intervals.measured("overlap_gain", CELL, gains)]


def overlap_by_rate(found: Segmentations, split: str = "test") -> dict[str, Float[np.ndarray, "3 rates"]]:
    """Mean intersection over union of every method at every rate of the plan: means, lower and upper ends of 95 % intervals."""
    return {
        method: np.array(
            [intervals.student(found.values(method, rate, split)) for rate in found.plan.rates]
        ).T
        for method in METHODS
    }


def rows(found: Segmentations) -> list[tuple[str, ...]]:
    """For a page: method, its rate, and on the test images mean intersection over union, class-average and global accuracy."""
    table = []
    for method in METHODS:
        rate = found.best(method)
        cells = [intervals.student(found.values(method, rate, "test", score)) for score in SCORES]
        table.append((method, f"{rate:g}", *("{:.1f} ({:.1f} to {:.1f})".format(*cell) for cell in cells)))
    return table


def at_the_edge(found: Segmentations) -> dict[str, bool]:
    """Whether a method's rate is the least or greatest of the plan: a better one may then lie beyond."""
    ends = (min(found.plan.rates), max(found.plan.rates))
    return {method: found.best(method) in ends for method in METHODS}


def diverged(found: Segmentations) -> dict[str, int]:
    """How many trainings of each method diverged, at all rates together."""
    return {
        method: sum(bool(each.diverged) for rate in found.plan.rates for each in found.outcomes[method, rate])
        for method in METHODS
    }
