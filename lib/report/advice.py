"""What to do next: sentences chosen by explicit rules from the numbers, each with the number that led to it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lib.report.barriers import Barriers
from lib.report.checkpoints import Models
from lib.report.ensemble import ENSEMBLE, SINGLE, Ensemble
from lib.report.intervals import NETWORKS
from lib.report.merging import BEST, MEAN, SINGLE_ANEW, STALE, Merging
from lib.report.merging import ENSEMBLE as TOGETHER
from lib.report.merging import SINGLE as ONE
from lib.report.structure import Alignment, Mass
from lib.report.verdicts import (
    ALIKE,
    COLLAPSE,
    FEW,
    IMBALANCE,
    MISCALIBRATED,
    NO,
    YES,
    compared,
    doubtful,
    flat,
    gains,
    guesses,
    margin,
    mergeable,
    shifted,
    spoilt,
    within,
)
from lib.table import Table

SAME, APART = 1e-4, 1e-2  # of the mean norm: two networks that are one, and two that differ


@dataclass(frozen=True)
class Advice:
    """One step: ``action`` in a word or two, ``reason`` a sentence with the number behind it."""

    action: str
    reason: str

    def __str__(self) -> str:
        return f"{self.action}: {self.reason}"


def advise(
    models: Models,
    mass: Mass | None = None,
    alignment: Alignment | None = None,
    barriers: Barriers | None = None,
    merging: Merging | None = None,
    ensemble: Ensemble | None = None,
    problems: Mapping[str, str] | None = None,
) -> tuple[Advice, ...]:
    """All steps that the rules call for, from whatever was measured; never empty."""
    found = list(_of_worthless(ensemble)) if ensemble is not None else []
    if merging is not None and shifted(merging):
        before, after = (_error_of(merging, name) for name in (ONE, SINGLE_ANEW))
        found.append(
            Advice(
                "Check preprocessing",
                f"reading BatchNorm's statistics anew brings even a single network from {before} to {after}: these examples are not what the networks "
                "were trained on, and what a mean gains by new statistics is that.",
            )
        )
    found += _of_files(models, alignment)
    if problems and "data" in problems:
        action = "Give data" if problems["data"].startswith("no data") else "Mend the data"
        found.append(Advice(action, f"no score could be measured: {problems['data']}"))
    sound = not doubtful(merging, ensemble)
    if merging is not None and sound:
        found += _of_merging(merging, barriers)
    if ensemble is not None and sound:
        found += _of_ensemble(ensemble, merging)
    if mass is not None and mass.kinds and mass.mean_excess.value > IMBALANCE:
        found.append(
            Advice(
                "Take scales out before weights are compared",
                f"the mass lies {mass.mean_excess.value:.3g} % above its minimum (more than {IMBALANCE:g} %), so that norms and "
                "weight decay say little: lib.symmetry.canonicalize, or min_mass(...).params, keeps the function.",
            )
        )
    if len(models) < NETWORKS:
        found.append(
            Advice("Add networks", f"{len(models)} of them {'is' if len(models) == 1 else 'are'} too few: pairs need two, intervals over networks {NETWORKS}.")
        )  # fmt: skip
    return tuple(Advice(each.action, _sentence(each.reason)) for each in found) or (
        Advice("Nothing", "No rule of this report calls for a step."),
    )


def _sentence(reason: str) -> str:
    return reason[:1].upper() + reason[1:]


def table(steps: Sequence[Advice]) -> Table:
    """A row a step."""
    return Table(("step", "because"), [(each.action, each.reason) for each in steps], "What to do next")


def _of_files(models: Models, alignment: Alignment | None) -> Iterator[Advice]:
    if models.refused:
        names = ", ".join(each.name for each in models.refused)
        yield Advice(
            "Look at the refused files",
            f"{len(models.refused)} were left out ({names}), each for a reason of its own.",
        )
    twins = sum("holds the same weights as" in note for note in models.notes)
    if twins:
        yield Advice(
            "Take duplicates out", f"{twins} file{'s hold' if twins > 1 else ' holds'} weights that another has, which narrows every interval over networks."
        )  # fmt: skip
    if alignment is not None:
        copies = (alignment.after < SAME) & (alignment.before > APART)
        if hidden := int(copies.sum()):
            yield Advice(
                "Count permuted copies once",
                f"in {hidden} pair{'s' if hidden > 1 else ''} matching brings the distance from {float(alignment.before[copies].mean()):.3f} to "
                f"less than {SAME:g}: one network in two orders of its units.",
            )


def _of_merging(found: Merging, barriers: Barriers | None) -> Iterator[Advice]:
    verdict, gap = mergeable(found), found.gap()
    n, more = len(found.names), f"{compared(gap, found.task)} a single network"
    if verdict == YES and mergeable(found, MEAN) == YES:
        yield Advice(
            "Average them as they are",
            f"their plain mean errs {compared(found.gap(MEAN), found.task)} a single network, and {compared(found.gap(MEAN, BEST), found.task)} "
            f"{found.best}, the best by the calibration half; no alignment is needed. --merged FILE saves the {found.chosen}.",
        )
    elif verdict == YES:
        yield Advice(
            "Merge after alignment",
            f"in one order of units their mean errs {more}, as they are {compared(found.gap(MEAN), found.task)} one: --merged FILE saves "
            f"it, one network in place of {n}. It errs {compared(found.gap(than=BEST), found.task)} {found.best}, the best by the calibration half.",
        )
    elif verdict == NO:
        yield Advice("Do not average them", f"the {found.chosen} errs {more}.")
        if barriers is not None and (hill := barriers.barrier(barriers.best)).value > flat(barriers):
            yield Advice(
                "Re-train from the same start",
                f"the loss barrier is {hill.text()} even where it is least ({barriers.best}). Copies of one network that has been trained for a "
                "while, and then trained apart, often stay in one valley (Frankle et al. 2020).",
            )
    elif not found.method and within(gap, margin(found)) == NO:
        yield Advice(
            "Match their units first",
            f"the plain mean errs {more}, and the report could not match units (see Symmetries): with a builder that the tracer follows it may be "
            "another matter.",
        )
    else:
        yield Advice("Collect more examples", _how_many(found))
    stale = f"{found.chosen}{STALE}"
    if stale in found.error:
        fall = float(found.error[stale].mean() - found.error[found.chosen].mean())
        if fall > (
            COLLAPSE if found.task == "classification" else COLLAPSE * float(found.error[stale].mean())
        ):
            before, after = (_error_of(found, name) for name in (stale, found.chosen))
            yield Advice(
                "Recalibrate BatchNorm wherever you average by hand",
                f"statistics read anew bring the error of the {found.chosen} from {before} to {after}. The network that --merged saves has them.",
            )


def _error_of(found: Merging, name: str) -> str:
    form, scale, unit = (".2f", 100, " %") if found.task == "classification" else (".4g", 1, "")
    return found.score(name).text(form, scale) + unit


def _how_many(found: Merging) -> str:
    """Half the interval shrinks with the root of the number of examples."""
    gap, most, n = found.gap(), margin(found), len(next(iter(found.error.values())))
    if found.task == "regression" and n < FEW:
        return f"{n:,} scoring examples are too few for a verdict on squared errors: {FEW} are the least."
    half, room = (gap.high - gap.low) / 2, abs(gap.value - most)
    text = f"{n:,} examples leave it open: the {found.chosen} errs {compared(gap, found.task)} a single network, astride the margin of {100 * most:.2g}"
    if room <= half / 10:
        return f"{text}, and so near it that no affordable number would decide."
    return f"{text}; about {math.ceil(n * (half / room) ** 2):,} in the scoring half would decide it at this difference, of your data (--examples) or new ones."


def _of_worthless(found: Ensemble) -> Iterator[Advice]:
    """Networks that know nothing come before everything else: they spoil all comparisons."""
    scale, form, unit = (100, ".2f", " %") if found.task == "classification" else (1, ".4g", "")
    if guesses(found):
        yield Advice(
            "Check labels and preprocessing",
            f"a single network errs {found.level.text(form, scale)}{unit}, and to answer the same every time would err "
            f"{scale * found.chance:{form}}{unit}: nothing that is measured on these examples means much.",
        )
    elif names := spoilt(found):
        errors = dict(zip(found.names, found.alone.tolist(), strict=True))
        told = ", ".join(f"{name} ({scale * errors[name]:{form}}{unit})" for name in names)
        yield Advice(
            "Leave them out, and run again",
            f"next to nothing is known by {told}, which {'err' if len(names) > 1 else 'errs'} about as much as a constant answer ({scale * found.chance:{form}}{unit}), the median of "
            f"all {scale * float(found.alone.median()):{form}}{unit}: such networks spoil every mean on this page.",
        )


def _of_ensemble(found: Ensemble, merging: Merging | None) -> Iterator[Advice]:
    unit = "points" if found.task == "classification" else "% of the squared error"
    differ = next(iter(found.diversity.values()), None)
    if (
        found.task == "classification"
        and differ is not None
        and differ.value <= min(ALIKE, found.level.value / 10)
    ):
        yield Advice(
            "Keep one of them", f"two networks disagree on {100 * differ.value:.2g} % of the examples: together they are hardly more than one."
        )  # fmt: skip
    elif gains(found.gain) == "better":
        merged = merging is not None and mergeable(merging) == YES
        action = "Keep the ensemble where the cost allows" if merged else "Keep them as an ensemble"
        less = f"together they err {found.gain.text('.2f', 100)} {unit} less than one of them on average, at {len(found.names)} times its cost"
        gain = merging.gap(BEST, than=TOGETHER) if merging is not None else None
        if gain is not None and gains(gain) != "better":
            action = "Weigh the ensemble against the best of them"
            less += f"; but {merging.best} alone, the best by the calibration half, errs {compared(gain, found.task)} the ensemble"
        yield Advice(action, f"{less}.")
    ece = found.scores.get("ECE", {})
    who = ENSEMBLE if ENSEMBLE in ece else SINGLE
    if who in ece and ece[who].value > MISCALIBRATED and gains(found.cooling) == "better":
        yield Advice(
            "Fit a temperature",
            f"the {who}'s calibration error is {ece[who].text('.3f')}, and its best temperature, {found.temperature[who]:.3g}, takes "
            f"{found.cooling.text('.3f')} nats off its negative log-likelihood.",
        )
