"""Findings in plain words: one function, ``say``, for everything that the report measures. Every number is the run's."""

from __future__ import annotations

from functools import singledispatch

from lib.report.barriers import AGAIN, BY_ACTIVATIONS, MATCHED, ORDER, PLAIN, Barriers
from lib.report.checkpoints import Models
from lib.report.data_source import Halves
from lib.report.ensemble import ENSEMBLE, SINGLE, Ensemble
from lib.report.intervals import Interval
from lib.report.merging import MEAN, MERGED, STALE, Merging
from lib.report.merging import SINGLE as ONE
from lib.report.plan import Plan
from lib.report.structure import Alignment, Mass, Structure
from lib.report.verdicts import FEW, NO, OPEN, YES, compared, flat, gains, margin, mergeable, within

RELATED = 0.7  # of the mean norm: independent trainings lie 1 to 1.4 apart
NONE = "With fewer than four networks there is no interval over networks."


@singledispatch
def say(found: object) -> tuple[str, ...]:
    """What was found, one plain sentence each, without markup."""
    raise TypeError(
        f"the report has no words for a {type(found).__name__}: hand it what a verb of lib.report.assess returned."
    )


@say.register(Models)
def _(found: Models) -> tuple[str, ...]:
    total = len(found) + len(found.refused)
    words = [
        f"{len(found)} of {total} file{'s were' if total != 1 else ' was'} read: networks of class {type(found.net).__name__} with "
        f"{found.weights:,} numbers each."
    ]
    words += [f"Refused: {each}" for each in found.refused]
    words += [f"{note}." for note in found.notes]
    if found.passed:
        words.append(f"Left alone, as they are no checkpoints by their names: {', '.join(found.passed)}.")
    if len(found) == 1:
        words.append("One network has no pair: distances, barriers, merging and an ensemble need two.")
    return tuple(words)


@say.register(Halves)
def _(found: Halves) -> tuple[str, ...]:
    a, b = len(found.calibration), len(found.scoring)
    rest = f"the other {found.left_out:,} were left out" if found.left_out else "none was left out"
    return (
        f"{a + b:,} examples were used, drawn by a seed; {rest}.",
        f"{a:,} of them serve for what must not be read off the scores (statistics of BatchNorm, temperatures, choices of a network or a mean, "
        f"where there are any); all scores are those of the other {b:,}.",
        *found.notes,
    )


@say.register(Plan)
def _(found: Plan) -> tuple[str, ...]:
    pairs = (
        "all pairs of networks"
        if found.every
        else "each network with the first, since all pairs would take too long"
    )
    return (f"Lines join {pairs}; each is measured at {found.points} points, its two ends among them.",)


@say.register(Structure)
def _(found: Structure) -> tuple[str, ...]:
    if found.diagnosis is None:
        return (
            f"The symmetries of {found.network} could not be found: {found.why_not}",
            "What needs none of them is reported all the same: lines and the mean of the networks as they are, and the ensemble.",
        )
    star = "* unchanged only"  # a footnote of the diagnosis' own table
    words = [
        w.replace(star, "Some scales leave the function unchanged only").replace(
            "network's own", "first network's own"
        )
        for w in found.diagnosis.summary()
    ]
    return (*words, *found.diagnosis.remedies)


@say.register(Mass)
def _(found: Mass) -> tuple[str, ...]:
    if not found.kinds:
        return ("No scale of these networks has a least mass: there is nothing to balance.",)
    each = found.mean_excess
    least, most = float(found.excess.min()), float(found.excess.max())
    words = [
        f"The sum of squared weights lies {each.text('.3g')} % above the least that rescaling without a change of the function reaches, as a mean over "
        f"{_over(each)}; from {least:.3g} % to {most:.3g} %."
    ]
    words.append(f"The scales used are {' and '.join(found.kinds)}.")
    if found.left_out:
        words.append(
            f"Left out are {' and '.join(found.left_out)} scales, along which the mass falls for ever (the norm behind them forgets it)."
        )
    return tuple(words)


@say.register(Alignment)
def _(found: Alignment) -> tuple[str, ...]:
    before, after = found.mean_before, found.mean_after
    words = [
        f"Two networks{' at their least mass' if found.models.balanced else ''} are {before.text()} of their mean norm apart (1.414 for "
        f"unrelated directions), and {after.text()} once their units are matched by {found.by}."
    ]
    if before.value < RELATED:
        words.append(
            f"That is less than {RELATED}: they seem to share a start or a training, so that intervals over networks speak of networks like these "
            "alone, and not of new trainings."
        )
    if not after.known:
        words.append(NONE)
    return tuple(words)


@say.register(Barriers)
def _(found: Barriers) -> tuple[str, ...]:
    plain, best = found.barrier(PLAIN), found.barrier(found.best)
    words = [
        f"On {len(found.pairs)} line{_s(len(found.pairs))} between {len(found.names)} networks ({found.examples:,} examples), the "
        f"loss rises {plain.text()} above its ends where the networks stay {PLAIN}."
    ]
    if found.best != PLAIN:
        most = flat(found)
        kind = {
            YES: "which counts as no barrier",
            NO: "which is a barrier",
            OPEN: "and whether that is a barrier is open",
        }[within(best, most)]
        words.append(
            f"The least barrier is that of networks {found.best}: it rises {best.text()}, {kind} (the margin is {most:.3g} in loss)."
        )
    if found.norms:
        kind = next(each for each in (MATCHED, BY_ACTIVATIONS, PLAIN) if each in found.kinds)
        stale, fresh, less = found.barrier(kind), found.barrier(kind + AGAIN), found.mended(kind)
        cause = "no difference of the two is resolved"
        if less.known and less.low > 0:
            cause = f"the difference, {less.text()}, is variance collapse: the statistics, not the weights"
        elif less.known and less.high < 0:
            cause = "no variance collapse is seen here, and reading anew costs what few examples cost"
        words.append(
            f"BatchNorm, on lines between networks {kind}: with running statistics mixed like weights the barrier is {stale.text()}, with "
            f"statistics read anew from {found.calibration:,} examples {fresh.text()}; {cause}."
        )
    if found.parts is not None and float(found.parts.plain.mean()) > 0:
        parts = ", ".join(f"{name} {found.part(part).text()}" for name, part in found.parts.parts.items())
        n = len(found.parts.plain)
        words.append(
            f"Of {found.part(found.parts.plain).text()} on the first {n} pair{_s(n)}, taken apart in the order {ORDER}: {parts}"
            f"{_given(found.part(found.parts.plain))}."
        )
    if found.why_whole:
        words.append(f"The barrier could not be taken apart: {found.why_whole}")
    if not {MATCHED, BY_ACTIVATIONS} & set(found.kinds):
        words.append("Units could not be matched.")
    words.append(_spread(plain))
    if not found.every:
        words.append(f"Only pairs with {found.names[0]} were measured.")
    return tuple(words)


@say.register(Merging)
def _(found: Merging) -> tuple[str, ...]:
    gap, points = found.gap(), found.task == "classification"
    size = f"{100 * margin(found):.2g} {'point' if margin(found) == 0.01 else 'points'}"
    if not points:
        size = f"{100 * margin(found):.0f} % of the squared error"
    how = f" in one order of units ({found.method})" if found.chosen == MERGED else " as they are"
    said = f"the mean of all {len(found.names)} networks{how} errs {compared(gap, found.task)} the mean single network"
    unmatched = not found.method and within(gap, margin(found)) == NO
    few = not points and len(found.error[found.chosen]) < FEW
    why = f"and the margin of {size} lies inside that interval"
    if few:
        why = f"and {FEW} scoring examples are the least for a verdict"
    if unmatched:
        why = f"beyond the margin of {size}, but their units could not be matched"
    verdict = {
        YES: f"They can be merged: {said}, within the margin of {size}.",
        NO: f"They cannot be merged: {said}, beyond the margin of {size}.",
        OPEN: f"Whether they can be merged is unresolved: {said}, {why}.",
    }[mergeable(found)]
    words = [verdict]
    for name, order in ((MEAN, "as they are"), (MERGED, "in one order of units")):
        if name in found.error and name != found.chosen:
            words.append(
                f"Averaged {order}, they err {compared(found.gap(name), found.task)} the mean single network."
            )
    if found.chosen + STALE in found.error:
        words.append(
            f"That mean's BatchNorm statistics were read anew from {found.calibration:,} examples; without that its error is "
            f"{_error(found, found.chosen + STALE)} instead of {_error(found, found.chosen)}."
        )
    if found.method:
        words.append("Which of the two means the verdict is about was chosen on the calibration half.")
    words.append(
        f"The mean single network errs {_error(found, ONE)}; the best by the calibration half ({found.best}) "
        f"{_error(found, 'best single network')}, the ensemble {_error(found, 'ensemble')}."
    )
    words.append("Intervals of this part are over examples, for these networks.")
    return tuple(words)


@say.register(Ensemble)
def _(found: Ensemble) -> tuple[str, ...]:
    measure = next(iter(found.scores))
    scores = found.scores[measure]
    points = found.task == "classification"
    single = scores[SINGLE].text(".2f", 100) + " %" if points else scores[SINGLE].text(".4g")
    words = [
        f"A single network's {measure} is {single}, on these examples (interval over {_over(scores[SINGLE])})."
    ]
    if found.gain is not None:
        together = scores[ENSEMBLE].text(".2f", 100) + " %" if points else scores[ENSEMBLE].text(".4g")
        verdict = {
            "better": "it is better",
            "no better": "it is no better",
            OPEN: "which of the two is better is open",
        }
        more = compared(found.gain.negative, found.task)
        words.append(
            f"Together their {measure} is {together}, {more} one of them: {verdict[gains(found.gain)]}."
        )
    words += [f"Two networks differ: {name} {each.text('.4g')}." for name, each in found.diversity.items()]
    if points and not found.temperature:
        words.append(
            "No temperature could be fitted: the search ran to its end, as it does with too few errors."
        )
    elif points:
        ece, nll = found.scores["ECE"], found.scores["NLL (nats)"]
        who = ENSEMBLE if ENSEMBLE in ece else SINGLE
        words.append(
            f"Calibration of the {who}: ECE {ece[who].text('.4f')} (few examples bias it upwards), NLL {nll[who].text('.4f')} nats; its "
            f"best temperature on the calibration half is {found.temperature[who]:.3g}, which is {_sure(found.temperature[who])}."
        )
    guess = f"{100 * found.chance:.2f} %" if points else f"{found.chance:.4g}"
    who = "the commonest class" if points else "the mean target"
    words.append(f"To answer {who} every time would err {guess} on these examples.")
    if found.diversity:
        words.append(_spread(next(iter(found.diversity.values()))))
    return tuple(words)


def _given(found: Interval) -> str:
    return f" (intervals over {found.over})" if found.known else ""


def _sure(temperature: float) -> str:
    return "above 1: too sure of itself" if temperature > 1 else "not above 1: not too sure of itself"


def _error(found: Merging, name: str) -> str:
    return (
        f"{found.score(name).text('.2f', 100)} %"
        if found.task == "classification"
        else found.score(name).text(".4g")
    )


def _over(found: Interval) -> str:
    return found.over if found.known else f"{found.over}, too few for an interval"


def _spread(found: Interval) -> str:
    return f"Intervals over pairs are over {found.over}." if found.known else NONE


def _s(n: int) -> str:
    return "" if n == 1 else "s"
