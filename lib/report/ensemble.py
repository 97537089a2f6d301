"""How differently the networks decide, and what they are worth together: diversity, likelihood, calibration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from lib import metrics
from lib.connectivity.mixtures import best_temperature
from lib.device import one_thread
from lib.diversity import pairwise_mutual_information
from lib.report.checkpoints import Models
from lib.report.data_source import Halves
from lib.report.finding import Finding
from lib.report.intervals import (
    Interval,
    difference,
    over_examples,
    over_networks,
    over_pairs,
    relative,
    resampled,
    share,
)
from lib.report.outputs import Predictions, constant_error, losses, wrong
from lib.report.outputs import predictions as predict
from lib.table import Table

SINGLE, ENSEMBLE, SCALED, SINGLE_SCALED = (
    "mean single network",
    "ensemble",
    "ensemble, temperature fitted",
    "mean single network, temperature fitted",
)


COLDEST, HOTTEST = (
    0.01,
    100.0,
)  # fitted temperatures beyond run to the end of the search: too few errors, or no knowledge


@dataclass(frozen=True, eq=False, repr=False)
class Ensemble(Finding):
    """n networks alone and together, on the scoring half.

    scores       measure -> network(s) -> value; singles over networks, the ensemble over examples
    alone        error of each network (a share; in regression the mean squared error), (n,)
    level        their mean, over examples
    diversity    measure -> mean over pairs; empty for one network
    gain         by how much the ensemble's error is below the mean network's, example by example; None for one network
    chance       error of who always says the commonest class (the mean target) of these examples
    temperature  of the mean single network and of the ensemble, fitted on the calibration half; empty in regression, and where the
                 examples determine none
    cooling      by how much that temperature lowers the negative log-likelihood (of the ensemble, of a single network's mean), over
                 examples; None where there is none
    """

    task: str
    names: tuple[str, ...]
    scores: Mapping[str, Mapping[str, Interval]]
    alone: Float64[Tensor, " n"]
    level: Interval
    diversity: Mapping[str, Interval]
    gain: Interval | None
    chance: float
    temperature: Mapping[str, float]
    cooling: Interval | None
    examples: int

    def table(self) -> Table:
        """A row for the mean single network, the ensemble, and both with a fitted temperature."""
        who = list(dict.fromkeys(name for each in self.scores.values() for name in each))
        rows = [
            (
                name,
                *(
                    _said(measure, each[name]) if name in each else ""
                    for measure, each in self.scores.items()
                ),
            )
            for name in who
        ]
        return Table(("", *self.scores), rows, f"Scores on {self.examples:,} examples")

    def singles(self) -> Table:
        """A row a network."""
        points = self.task == "classification"
        rows = [
            (name, f"{100 * e:.2f} %" if points else f"{e:.4g}")
            for name, e in zip(self.names, self.alone.tolist(), strict=True)
        ]
        return Table(("network", "error" if points else "mean squared error"), rows, "Each network alone")

    def diversity_table(self) -> Table:
        """A row a measure of how much pairs differ."""
        rows = [(name, each.text(".4g"), each.over) for name, each in self.diversity.items()]
        return Table(("difference of two networks", "mean over pairs", "interval over"), rows, "Diversity")


def ensemble(
    models: Models, data: Halves, *, predictions: Predictions | None = None, seed: int = 0
) -> Ensemble:
    """Scores of each network and of their mean prediction, on the scoring half; temperatures from the other half.

    ``predictions``: of ``outputs.predictions``, if they are known. ``seed``: of the resampling.
    """
    put = predict(models, data) if predictions is None else predictions
    with one_thread():
        if data.task == "regression":
            return _regression(models, data, put.scoring.double())
        return _classification(models, data, put.scoring, put.calibration, seed)


def _classification(models: Models, data: Halves, own: Tensor, held: Tensor, seed: int) -> Ensemble:
    labels, n = data.scoring.targets, len(models)
    chances = own.double().softmax(-1)
    together = chances.mean(0)
    heat = best_temperature(held.mT.contiguous(), data.calibration.targets)
    log = held.double().softmax(-1).mean(0).clamp_min(1e-300).log()
    heat_together = best_temperature(log.T[None].contiguous(), data.calibration.targets)[0]
    scaled = (own.double() / heat[:, None, None]).softmax(-1)
    cooled = (together.clamp_min(1e-300).log() / heat_together).softmax(-1)
    alone = wrong(own, labels)
    scores: dict[str, dict[str, Interval]] = {"error": {SINGLE: over_networks(alone.mean(1)).within(0, 1)}}
    if n > 1:
        scores["error"][ENSEMBLE] = share(wrong(together, labels))
    for name, measure in (("NLL (nats)", metrics.nll), ("Brier score", metrics.brier), ("ECE", metrics.ece)):
        scores[name] = {
            SINGLE: over_networks(measure(chances, labels)).within(0),
            SINGLE_SCALED: over_networks(measure(scaled, labels)).within(0),
        }
        for who, each in ((ENSEMBLE, together), (SCALED, cooled)) if n > 1 else ():
            if measure is metrics.ece:
                scores[name][who] = _calibration(each, labels, seed)
            else:  # a mean over examples
                scores[name][who] = over_examples(_each(measure, each, labels), seed=seed)
    diversity, gain = {}, None
    if n > 1:
        pairs = torch.combinations(torch.arange(n))
        diversity = _diversity(own.argmax(-1), chances, pairs, n)
        gain = difference(alone.mean(0) - wrong(together, labels))
    heats = {SINGLE: float(heat.mean()), **({ENSEMBLE: float(heat_together)} if n > 1 else {})}
    if not all(COLDEST < float(each) < HOTTEST for each in (*heat, heat_together)):
        heats, scores = (
            {},
            {
                name: {who: x for who, x in each.items() if who not in (SCALED, SINGLE_SCALED)}
                for name, each in scores.items()
            },
        )
    chance = constant_error(labels)
    before, after = ([together], [cooled]) if n > 1 else (chances, scaled)
    saved = sum(
        _each(metrics.nll, a, labels) - _each(metrics.nll, b, labels)
        for a, b in zip(before, after, strict=True)
    )
    return Ensemble(
        data.task,
        models.names,
        scores,
        alone.mean(1),
        share(alone.mean(0)),
        diversity,
        gain,
        chance,
        heats,
        over_examples(saved, seed=seed) if heats else None,
        len(labels),
    )


def _diversity(
    classes: Int64[Tensor, "n N"], chances: Float64[Tensor, "n N K"], pairs: Int64[Tensor, "pairs 2"], n: int
) -> dict[str, Interval]:
    first, second = pairs.T
    differ = (classes[first] != classes[second]).double().mean(1)
    shared = pairwise_mutual_information(chances)[first, second]
    return {
        "disagreement (share of examples)": over_pairs(differ, pairs, n).within(0, 1),
        "mutual information (nats)": over_pairs(shared, pairs, n).within(0),
    }


def _each(
    measure: Callable[..., Tensor], chances: Float64[Tensor, "N K"], labels: Int64[Tensor, " N"]
) -> Float64[Tensor, " N"]:
    """Every example's negative log probability, or its squared distance from the label's unit vector."""
    right = chances.gather(1, labels[:, None])[:, 0]
    if measure is metrics.nll:
        return -right.clamp_min(torch.finfo(chances.dtype).tiny).log()
    return chances.square().sum(1) - right.square() + (1 - right).square()


def _calibration(chances: Float64[Tensor, "N K"], labels: Int64[Tensor, " N"], seed: int) -> Interval:
    """The expected calibration error, resampled over examples by each one's part in its bin."""
    confidence, classes = chances.max(-1)
    edges = torch.linspace(0, 1, metrics.BINS + 1, dtype=chances.dtype)
    place = torch.bucketize(confidence, edges[1:-1].contiguous())
    parts = torch.zeros(len(labels), metrics.BINS, dtype=torch.float64)
    parts[torch.arange(len(labels)), place] = (classes == labels).double() - confidence
    table = parts.numpy()
    return resampled(lambda rows: float(np.abs(table[rows].sum(0)).sum() / len(table)), len(table), seed=seed)


def _regression(models: Models, data: Halves, own: Float64[Tensor, "n N out"]) -> Ensemble:
    targets, n = data.scoring.targets, len(models)
    alone = losses("regression", own, targets)
    scores = {"mean squared error": {SINGLE: over_networks(alone.mean(1)).within(0)}}
    diversity, gain = {}, None
    if n > 1:
        together = losses("regression", own.mean(0), targets)
        scores["mean squared error"][ENSEMBLE] = over_examples(together)
        pairs = torch.combinations(torch.arange(n))
        first, second = pairs.T
        apart = (own[first] - own[second]).square().sum(-1).mean(1).sqrt()
        diversity = {"root mean squared difference": over_pairs(apart, pairs, n).within(0)}
        gain = relative(together, alone.mean(0)).negative
    spread = targets.double().view(len(targets), -1)
    chance = float((spread - spread.mean(0)).square().sum(1).mean())
    return Ensemble(
        data.task,
        models.names,
        scores,
        alone.mean(1),
        over_examples(alone.mean(0)),
        diversity,
        gain,
        chance,
        {},
        None,
        len(targets),
    )


def _said(measure: str, each: Interval) -> str:
    return (
        f"{each.text('.2f', 100)} %"
        if measure == "error"
        else each.text(".4f" if measure != "mean squared error" else ".4g")
    )
