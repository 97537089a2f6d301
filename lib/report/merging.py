"""Can these networks be averaged? All in one order of units, their mean, and its score beside theirs and their ensemble's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from lib.params import Params
from lib.report.checkpoints import Models
from lib.report.data_source import Halves
from lib.report.finding import Finding
from lib.report.intervals import Interval, difference, over_examples, relative, share
from lib.report.outputs import (
    Predictions,
    average,
    constant_error,
    losses,
    norms,
    one_by_one,
    outputs,
    recalibrated,
    wrong,
)
from lib.report.outputs import predictions as predict
from lib.report.structure import Alignment
from lib.symmetry import Symmetries
from lib.table import Table

SINGLE, BEST, MEAN, MERGED, ENSEMBLE = (
    "mean single network",
    "best single network",
    "plain mean",
    "merged mean",
    "ensemble",
)
STALE = ", statistics not read anew"
SINGLE_ANEW = f"{SINGLE}, statistics read anew"


@dataclass(frozen=True, eq=False, repr=False)
class Merging(Finding):
    """Of each candidate every example's loss and error (0 or 1; in regression the squared error), (N,) float64.

    candidates  "mean single network" (each example's mean over networks), "best single network" (the least loss on the calibration
                half), "plain mean", "merged mean" (the mean in one order), "ensemble" (the mean of what they put out)
    chosen      of "plain mean" and "merged mean" the one with less loss on the calibration half: the one that the verdict is about
    merged      that network, with statistics read anew where it has BatchNorm
    method      how the networks were brought into one order; "" where there are no symmetries
    chance      error of who always names the commonest class of these examples; in regression 0
    """

    task: str
    names: tuple[str, ...]
    best: str
    loss: Mapping[str, Float64[Tensor, " N"]]
    error: Mapping[str, Float64[Tensor, " N"]]
    chosen: str
    merged: Params = field(repr=False)
    method: str
    calibration: int
    chance: float

    def score(self, name: str) -> Interval:
        """A candidate's error, over examples: a share, or in regression the mean squared error."""
        return share(self.error[name]) if self.task == "classification" else over_examples(self.error[name])

    def cost(self, name: str) -> Interval:
        """A candidate's loss, over examples."""
        return over_examples(self.loss[name])

    def gap(self, name: str = "", than: str = SINGLE) -> Interval:
        """How much greater the error of ``name`` (the chosen mean) is, example by example.

        Classification: in shares, 0.01 is a point. Regression: relative to the mean squared error of ``than``.
        """
        here, there = self.error[name or self.chosen], self.error[than]
        if self.task == "classification":
            return difference(here - there)
        return relative(here, there)

    def table(self) -> Table:
        """A row a candidate."""
        points = self.task == "classification"
        unit = "error (%)" if points else "mean squared error"
        rows = [
            (
                name,
                self.cost(name).text(),
                self.score(name).text(".2f", 100) if points else self.score(name).text(".4g"),
            )
            for name in self.error
        ]
        n = len(next(iter(self.error.values())))
        return Table(
            ("network", "loss", unit), rows, f"Scores on {n:,} examples, 95 % intervals over examples"
        )

    def save(self, path: str | Path) -> Path:
        """Write the chosen mean as safetensors, to be loaded into the builder's network."""
        from safetensors.torch import save_file

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.cpu().clone().contiguous() for name, tensor in self.merged.items()}, path)
        return path


def merging(
    models: Models,
    data: Halves,
    symmetries: Symmetries | None = None,
    alignment: Alignment | None = None,
    *,
    predictions: Predictions | None = None,
    calibration: int = 512,
) -> Merging:
    """The means of all n networks, plain and in the order of ``alignment.together``, on the scoring half.

    ``predictions``: of ``outputs.predictions``, if they are known. Statistics come from the first ``calibration`` examples of the
    other half. Raises ValueError for a single network.
    """
    n, task, test = len(models), data.task, data.scoring
    if n < 2:
        raise ValueError("merging needs two networks at least: there is one.")
    put_out = predict(models, data) if predictions is None else predictions
    own, half = put_out.scoring, data.calibration
    statistics = data.calibration.inputs[:calibration]
    # Choices are made on the calibration half: the scores of the other are then no winner's.
    best = int(losses(task, put_out.calibration, half.targets).mean(1).argmin())
    put, means = {BEST: own[best]}, {}
    orders = {MEAN: one_by_one(models.params)}
    if symmetries is not None and alignment is not None:
        orders[MERGED] = (alignment.aligned(symmetries, i) for i in range(n))
    for name, members in orders.items():
        means[name] = average(members)
        if norms(models.net):
            put[name + STALE] = outputs(models.net, means[name], test.inputs)
            means[name] = recalibrated(models.net, means[name], statistics)
        put[name] = outputs(models.net, means[name], test.inputs)
    held = {name: outputs(models.net, mean, half.inputs) for name, mean in means.items()}
    chosen = min(held, key=lambda name: float(losses(task, held[name], half.targets).mean()))
    loss = {SINGLE: losses(task, own, test.targets).mean(0)}
    error = {SINGLE: _error(task, own, test.targets).mean(0)}
    if norms(models.net):  # if this helps, the examples are not what the networks were trained on
        anew = everyones_anew(models, test.inputs, statistics)
        loss[SINGLE_ANEW] = losses(task, anew, test.targets).mean(0)
        error[SINGLE_ANEW] = _error(task, anew, test.targets).mean(0)
    for name, each in put.items():
        loss[name], error[name] = losses(task, each, test.targets), _error(task, each, test.targets)
    loss[ENSEMBLE], error[ENSEMBLE] = _ensemble(task, own, test.targets)
    method = alignment.method if MERGED in means else ""
    chance = constant_error(test.targets) if task == "classification" else 0.0
    return Merging(
        task,
        models.names,
        models.names[best],
        loss,
        error,
        chosen,
        means[chosen],
        method,
        len(statistics),
        chance,
    )


def everyones_anew(
    models: Models, inputs: Shaped[Tensor, "N ..."], statistics: Shaped[Tensor, "M ..."]
) -> Float[Tensor, "n N out"]:
    """What every network puts out with BatchNorm's statistics read anew from other examples."""
    return torch.stack(
        [
            outputs(models.net, recalibrated(models.net, each, statistics), inputs)
            for each in one_by_one(models.params)
        ]
    )


def _error(task: str, put: Tensor, targets: Tensor) -> Tensor:
    return losses(task, put, targets) if task == "regression" else wrong(put, targets)


def _ensemble(task: str, own: Float[Tensor, "n N out"], targets: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and error of the mean of probabilities (regression: of predictions)."""
    if task == "regression":
        loss = losses(task, own.double().mean(0), targets)
        return loss, loss
    chances = own.double().softmax(-1).mean(0).clamp_min(1e-300).log()
    return losses(task, chances, targets), wrong(chances, targets)
