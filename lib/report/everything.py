"""All steps one after the other: what can be measured is, and what cannot is named with the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from lib.report import assess, data_source, fitting, outputs
from lib.report.advice import Advice, advise
from lib.report.checkpoints import Models
from lib.report.data_source import DataProblem, Halves, Source
from lib.report.plan import Plan, matching, plan
from lib.report.sentences import say
from lib.report.verdicts import OPEN, doubtful, mergeable
from lib.symmetry import Symmetries, UnattainedInfimum

T = TypeVar("T")
NEEDS = {part: ("plan", "predictions") for part in ("halves", "barriers", "merging", "ensemble")}
NEEDS["data"] = ("plan",)
AFFORDED = 60.0  # seconds of matching, where there are no data to plan by


UNDECIDED = "Whether they can be merged is unresolved, since a comparison with these single networks means nothing: see the first step."


@dataclass(frozen=True, eq=False)
class Report:
    """Everything that was measured; None where it was not, for the reason in ``problems`` (part -> sentence)."""

    models: Models
    halves: Halves | None = None
    plan: Plan | None = None
    structure: assess.Structure | None = None
    mass: assess.Mass | None = None
    alignment: assess.Alignment | None = None
    barriers: assess.Barriers | None = None
    merging: assess.Merging | None = None
    ensemble: assess.Ensemble | None = None
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def advice(self) -> tuple[Advice, ...]:
        return advise(
            self.models, self.mass, self.alignment, self.barriers, self.merging, self.ensemble, self.problems
        )

    @property
    def empty(self) -> bool:
        """Whether nothing could be measured but the files."""
        found = (self.mass, self.alignment, self.barriers, self.merging, self.ensemble)
        return (self.structure is None or self.structure.diagnosis is None) and not any(found)

    def why_not(self, name: str) -> str:
        """The reason why a part was not measured: its own, or that of a step it needs; "" where none is known."""
        needed = NEEDS.get(name, ()) if getattr(self, name, None) is None else ()
        return next((self.problems[each] for each in (name, *needed) if each in self.problems), "")

    @property
    def verdict(self) -> str:
        """Whether the networks can be merged, in a few words; "" where it was not measured, and open where a comparison with single
        networks means nothing, since they (or some of them) are no better than a constant answer."""
        if self.merging is None:
            return ""
        return OPEN if doubtful(self.merging, self.ensemble) else mergeable(self.merging)

    def words(self, name: str) -> tuple[str, ...]:
        """What is said of a part that was measured; merging begins with the report's own verdict."""
        said = say(getattr(self, name))
        return (self.headline, *said[1:]) if name == "merging" else said

    @property
    def headline(self) -> str:
        """The verdict as a sentence; "" where there is none."""
        if self.merging is None:
            return ""
        return say(self.merging)[0] if self.verdict == mergeable(self.merging) else UNDECIDED


def report(
    models: Models,
    source: Source | DataProblem | None = None,
    *,
    examples: int | None = None,
    input_shape: tuple[int, ...] | None = None,
    seed: int = 0,
    tell: Callable[[str], None] = lambda line: None,
) -> Report:
    """The whole report on ``models``; ``tell`` hears what is being done.

    ``source``: examples, or the problem that kept them from being read, or None for what needs no data. ``examples``: how many are
    used (as many as a few minutes allow by default). ``input_shape`` of one input, where no data say it.
    """
    problems: dict[str, str] = {}
    n = len(models)
    source = source.taken_by(models.net) if isinstance(source, Source) else source
    example, problem = _example(models, source, input_shape)
    if problem:
        problems["data"] = problem

    def part(name: str, step: Callable[[], T]) -> T | None:
        tell(name)
        try:
            return step()
        except (ValueError, RuntimeError, UnattainedInfimum) as why:
            problems[name] = str(why)
        except Exception as why:  # whatever a user's own forward may raise: said under its name
            problems[name] = f"{type(why).__name__}: {why}"
        return None

    structure = None
    if example is None:
        problems["symmetries"] = problems.get("data", "no example input is known.")
    else:
        structure = part("symmetries", lambda: assess.structure(models.net, example))
    symmetries = structure.symmetries if structure else None
    chosen, halves = None, None
    if isinstance(source, Source) and "data" not in problems:
        chosen = part("plan", lambda: plan(models.net, n, example, len(source), symmetries, examples))
        halves = part("data", lambda: _halves(models, source, chosen, seed)) if chosen else None
    if halves is None and symmetries is not None:
        chosen = _without_data(n, symmetries)
    mass = part("mass", lambda: assess.mass(models, symmetries)) if symmetries else None
    even = models if mass is None else mass.balanced
    alignment = None
    if symmetries and n > 1:
        alignment = part(
            "alignment", lambda: assess.align(even, symmetries, chosen.pairs(n), joint=chosen.joint)
        )
    barriers = merging = ensemble = None
    if halves is not None:
        put = part("predictions", lambda: outputs.predictions(models, halves))
        if put is not None and n > 1:
            second = None
            if alignment is not None and chosen.activations and symmetries.permutations:
                held = halves.calibration.inputs[: chosen.calibration]
                second = part(
                    "activations", lambda: assess.align(even, symmetries, alignment.pairs, inputs=held)
                )
            barriers = part(
                "barriers", lambda: _barriers(models, halves, symmetries, alignment, second, chosen)
            )
            merging = part("merging", lambda: _merging(models, halves, symmetries, alignment, chosen, put))
        if put is not None:
            ensemble = part("ensemble", lambda: assess.ensemble(models, halves, predictions=put, seed=seed))
    return Report(models, halves, chosen, structure, mass, alignment, barriers, merging, ensemble, problems)


def _example(
    models: Models, source: Source | DataProblem | None, shape: tuple[int, ...] | None
) -> tuple[Tensor | None, str]:
    """Two inputs that the network takes, of the data if they fit, and what is wrong with the data."""
    device = next(iter(models.params.values())).device
    problem = (
        "" if isinstance(source, Source) else str(source) if source is not None else "no data were given."
    )
    if isinstance(source, Source):
        example = None
        try:
            example = source.example
            fitting.check(models.net, models.params, Halves(source.task, *[_two(source, example)] * 2))
            return example.to(device), ""
        except DataProblem as why:
            problem = str(why)
            if example is not None and fitting.accepts(models.net, example.to(device)):
                return example.to(device), problem
    try:
        return fitting.example_for(models.net, shape, device), problem
    except DataProblem as why:
        return None, f"{problem} {why}"


def _two(source: Source, example: Tensor) -> data_source.Examples:
    """The first inputs, with all targets that occur."""
    targets = source.targets
    ends = torch.stack([targets.min(), targets.max()]) if source.task == "classification" else targets[:2]
    return data_source.Examples(example, ends)


def _halves(models: Models, source: Source, chosen: Plan, seed: int) -> Halves:
    halves = data_source.draw(source, chosen.examples, seed=seed)
    fitting.check(models.net, models.params, halves)
    return halves


def _without_data(n: int, symmetries: Symmetries) -> Plan:
    seconds = matching(symmetries)
    return Plan(0, every=n * (n - 1) / 2 * seconds < AFFORDED, joint=False, parted=0)


def _barriers(
    models: Models,
    halves: Halves,
    symmetries: Symmetries | None,
    alignment: assess.Alignment | None,
    second: assess.Alignment | None,
    chosen: Plan,
) -> assess.Barriers:
    return assess.barriers(
        models, halves, symmetries, alignment, points=chosen.points, pairs=chosen.pairs(len(models)),
        calibration=chosen.calibration, parted=chosen.parted, activations=second,
    )  # fmt: skip


def _merging(
    models: Models,
    halves: Halves,
    symmetries: Symmetries | None,
    alignment: assess.Alignment | None,
    chosen: Plan,
    put: outputs.Predictions,
) -> assess.Merging:
    return assess.merging(
        models, halves, symmetries, alignment, predictions=put, calibration=chosen.calibration
    )
