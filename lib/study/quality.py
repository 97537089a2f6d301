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

Scores = dict[str, Float[Tensor, " R"]]
PERCENT = ("accuracy", "ECE", "adaptive ECE", "Brier", "AUPR", "AUROC", "FPR95")  # shown times 100


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
    """The averaged predictive (N, K) of S samples, and their mean mutual information ()."""
    return probabilities.mean(0), metrics.mutual_information(probabilities).mean()


def paired_gain(one: Scores, many: Scores, name: str, together: int) -> Float[Tensor, " repetitions"]:
    """A score of ``together`` runs taken together minus the mean score of those runs one by one, by repetition."""
    single = one[name][: len(many[name]) * together].view(-1, together).mean(1)
    return many[name] - single


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
