"""The margins, and the rules that turn intervals into words. Nothing else in the report decides anything."""

from __future__ import annotations

from lib.report.barriers import Barriers
from lib.report.ensemble import Ensemble
from lib.report.intervals import Interval
from lib.report.merging import SINGLE, SINGLE_ANEW, Merging

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
RUINED = 0.9  # of the error of a constant answer
FEW = 30  # scoring examples with which a squared error's interval does not hold what it promises

YES, NO, OPEN = "can be merged", "cannot be merged", "unresolved"


def shifted(found: Merging) -> bool:
    """Whether reading statistics anew helps even single networks: then these examples are not what they were trained on."""
    if SINGLE_ANEW not in found.error:
        return False
    stale, anew = (float(found.error[name].mean()) for name in (SINGLE, SINGLE_ANEW))
    return stale - anew > (COLLAPSE if found.task == "classification" else COLLAPSE * stale)


def doubtful(merging: Merging | None, ensemble: Ensemble | None) -> bool:
    """Whether nothing follows from a comparison with single networks, because of what they, or the examples, are."""
    return (ensemble is not None and (guesses(ensemble) or bool(spoilt(ensemble)))) or (
        merging is not None and shifted(merging)
    )


def within(gap: Interval, margin: float) -> str:
    """YES where the whole interval lies at or below the margin, NO where it lies above, OPEN where it straddles it."""
    if not gap.known:
        return OPEN
    return YES if gap.high <= margin else NO if gap.low > margin else OPEN


def mergeable(found: Merging, name: str = "") -> str:
    """Whether a mean (the chosen one) errs no more than the mean single network does, but for the margin."""
    if found.task == "regression" and len(found.error[found.chosen]) < FEW:
        return OPEN
    verdict = within(found.gap(name), margin(found))
    return (
        OPEN if verdict == NO and not found.method else verdict
    )  # units that were not matched might have been


def margin(found: Merging) -> float:
    """By how much a mean may err more: a point, or, where one class is rare, a tenth of what always naming the other costs."""
    most = MARGIN[found.task]
    return min(most, found.chance / 10) if found.task == "classification" and found.chance > 0 else most


def guesses(found: Ensemble) -> bool:
    """Whether the mean single network is not clearly better than always giving the same answer."""
    return found.chance > 0 and (found.level.high if found.level.known else found.level.value) >= found.chance


def spoilt(found: Ensemble) -> tuple[str, ...]:
    """The networks that are no better than always giving the same answer, where most others are far better."""
    if float(found.alone.median()) > found.chance / 2:
        return ()
    return tuple(
        n
        for n, error in zip(found.names, found.alone.tolist(), strict=True)
        if error >= RUINED * found.chance
    )


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
