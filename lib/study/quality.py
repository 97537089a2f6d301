"""How well approximate posteriors predict: scores on the test set, detection of data from elsewhere, diversity (P1-C7)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from lib import intervals, metrics
from lib.claims import Measurement
from lib.posteriors.draws import Draws
from lib.study.approximations import each_run
from lib.study.problem import Problem
from lib.table import Table

Scores = dict[str, Float[Tensor, " _"]]


def scores(problem: Problem, draws: Draws) -> Scores:
    """Every score of each approximation, (R,) each: of the averaged predictive on the test set, and of its diversity.

    Detection scores carry the name of the set from outside; ``IDMI`` and ``OODMI`` are the mean mutual information
    between prediction and sample, in nats.
    """
    inside = [_summary(p) for p in each_run(problem, draws, problem.test.inputs)]
    probabilities, information = (torch.stack(part) for part in zip(*inside, strict=True))
    targets = problem.test.targets
    found = {
        "accuracy": metrics.accuracy(probabilities, targets),
        "NLL": metrics.nll(probabilities, targets),
        "Brier": metrics.brier(probabilities, targets),
        "ECE": metrics.ece(probabilities, targets),
        "adaptive ECE": metrics.adaptive_ece(probabilities, targets),
        "IDMI": information,
    }
    known = metrics.confidence(probabilities)
    for name, inputs in problem.outside.items():
        elsewhere = [_summary(p) for p in each_run(problem, draws, inputs)]
        strange, information = (torch.stack(part) for part in zip(*elsewhere, strict=True))
        confidence = metrics.confidence(strange)
        found |= {
            f"AUPR, {name}": metrics.aupr(known, confidence),
            f"AUROC, {name}": metrics.auroc(known, confidence),
            f"FPR95, {name}": metrics.fpr95(known, confidence),
            f"OODMI, {name}": information,
        }
    return found


def _summary(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """The averaged predictive (N, K) of S samples, and their mean mutual information (): of one network, zero."""
    if len(probabilities) == 1:
        return probabilities[0], probabilities.new_zeros(())
    return probabilities.mean(0), metrics.mutual_information(probabilities).mean()


def paired_gain(one: Scores, many: Scores, name: str, together: int) -> Float[Tensor, " repetitions"]:
    """A score of ``together`` runs taken together minus the mean score of those runs one by one, by repetition."""
    return many[name] - one_by_one(one, many, name, together)


def one_by_one(one: Scores, many: Scores, name: str, together: int) -> Float[Tensor, " repetitions"]:
    """The mean score of the single runs behind each of the ``many``."""
    return one[name][: len(many[name]) * together].view(-1, together).mean(1)


def measure(
    one: Mapping[str, Scores], many: Mapping[str, Scores], *, together: int, test_size: int
) -> list[Measurement]:
    """``brier_gain`` and ``accuracy_gain`` of P1-C7 (times 100, positive = better) for each method; n = test examples."""
    found = []
    for method in one:
        for measure, score, sign in (("brier_gain", "Brier", -100), ("accuracy_gain", "accuracy", 100)):
            gain = sign * paired_gain(one[method], many[method], score, together).double().cpu().numpy()
            found.append(Measurement(measure, method, *intervals.student(gain), n=test_size, seeds=len(gain)))
    return found


def dumbbells(
    one: Mapping[str, Scores], many: Mapping[str, Scores], name: str, together: int
) -> list[tuple[str, tuple[float, float, float], tuple[float, float, float]]]:
    """For a figure: a score (times 100) of one run and of several together, with 95 % intervals over repetitions."""
    rows = []
    for method in one:
        single = one_by_one(one[method], many[method], name, together)
        rows.append(
            (
                method,
                *(intervals.student(100 * v.double().cpu().numpy()) for v in (single, many[method][name])),
            )
        )
    return rows


def table(everyone: Mapping[str, Scores], outside: str) -> Table:
    """Mean scores over the repetitions, times 100, one row an approximation; detection of one set from outside."""
    names = ("accuracy", "ECE", "adaptive ECE", "Brier", "NLL", "IDMI")
    names += tuple(f"{score}, {outside}" for score in ("AUPR", "FPR95", "AUROC", "OODMI"))
    rows = [
        (who, *(f"{100 * float(scores[name].mean()):.1f}" for name in names))
        for who, scores in everyone.items()
    ]
    columns = ("Approximation", *(name.removesuffix(f", {outside}") for name in names))
    return Table(
        columns, rows, f"Scores x 100, mean over repetitions; detection of {outside} against the test set"
    )
