"""The margins, and the rules that turn intervals into words. Nothing else in the report decides anything."""

from __future__ import annotations

from lib.report.barriers import Barriers
from lib.report.intervals import Interval
from lib.report.merging import Merging

MARGIN = {
    "classification": 0.01,
    "regression": 0.05,
}  # a point of error; 5 % of the mean single network's squared error
FLAT = {"classification": 0.02, "regression": 0.05}  # nats; of the ends' mean loss: a barrier below is none
COLLAPSE = (
    0.05  # share of wrong classes by which a mean's error falls when BatchNorm statistics are read anew
)
ALIKE = 0.005  # disagreement below which an ensemble is one network many times
IMBALANCE = 5.0  # percent of excess mass worth a word
MISCALIBRATED = 0.05  # expected calibration error
FEW = 30  # scoring examples with which a squared error's interval does not hold what it promises

YES, NO, OPEN = "can be merged", "cannot be merged", "unresolved"


def within(gap: Interval, margin: float) -> str:
    """YES where the whole interval lies at or below the margin, NO where it lies above, OPEN where it straddles it."""
    if not gap.known:
        return OPEN
    return YES if gap.high <= margin else NO if gap.low > margin else OPEN


def mergeable(found: Merging, name: str = "") -> str:
    """Whether a mean (the chosen one) errs no more than the mean single network does, but for the margin."""
    if found.task == "regression" and len(found.error[found.chosen]) < FEW:
        return OPEN
    return within(found.gap(name), MARGIN[found.task])


def flat(found: Barriers) -> float:
    """The loss barrier up to which two networks count as joined."""
    ends = next(iter(found.kinds.values())).loss[:, [0, -1]]
    return FLAT[found.task] * (float(ends.mean()) if found.task == "regression" else 1)


def gains(gain: Interval | None) -> str:
    """Whether an ensemble is better than its mean member: "better", "no better" or OPEN."""
    if gain is None or not gain.known:
        return OPEN
    return "better" if gain.low > 0 else "no better" if gain.high <= 0 else OPEN


def compared(gap: Interval, task: str) -> str:
    """A gap in words, to go before the name of the other: "0.31 points (-0.10 to 0.72) more than"."""
    unit = "points" if task == "classification" else "% of the squared error"
    less = gap.value < 0
    if less:
        gap = gap.negative
    value, _, ends = gap.text(".2f", 100).partition(" ")
    return f"{value} {unit} {ends + ' ' if ends else ''}{'less' if less else 'more'} than"
