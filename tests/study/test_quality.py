"""Scores of approximations whose predictions are known, and the pairing of one run with ten."""

import pytest
import torch

from lib import intervals, metrics
from lib.params import select
from lib.population import initial, predict
from lib.posteriors.draws import Draws
from lib.study import problem as problems
from lib.study import quality


@pytest.fixture(scope="module")
def study():
    p = problems.digits()
    return p, Draws(initial(p.net, 60, 5), 6, 10)


def test_scores_are_those_of_the_averaged_predictive(study):
    p, draws = study
    found = quality.scores(p, draws)
    probabilities = predict(p.net, draws.of(4), p.test.inputs).softmax(-1)
    assert float(found["Brier"][4]) == pytest.approx(
        float(metrics.brier(probabilities.mean(0), p.test.targets)), rel=1e-5
    )
    assert float(found["IDMI"][4]) == pytest.approx(
        float(metrics.mutual_information(probabilities).mean()), rel=1e-4
    )
    strange = predict(p.net, draws.of(4), p.outside["digits 8 and 9"]).softmax(-1).mean(0)
    expected = metrics.aupr(metrics.confidence(probabilities.mean(0)), metrics.confidence(strange))
    assert float(found["AUPR, digits 8 and 9"][4]) == pytest.approx(float(expected), rel=1e-5)


def test_samples_that_agree_have_no_mutual_information(study):
    p, draws = study
    same = Draws(select(draws.params, torch.zeros(20, dtype=torch.int64)), 2, 10)
    found = quality.scores(p, same)
    assert float(found["IDMI"].abs().max()) < 1e-6


def test_gains_are_paired_by_repetition_and_signed():
    one = {"SWAG": {"Brier": torch.arange(6.0) / 10, "accuracy": torch.full((6,), 0.5)}}
    many = {"SWAG": {"Brier": torch.tensor([0.0, 0.2]), "accuracy": torch.tensor([0.6, 0.7])}}
    brier, accuracy = quality.measure(one, many, together=3, test_size=500)
    assert (brier.name, accuracy.name) == ("brier_gain", "accuracy_gain")
    assert brier.value == pytest.approx(100 * ((0.1 - 0.0) + (0.4 - 0.2)) / 2)
    assert accuracy.value == pytest.approx(15)
    assert (brier.low, brier.high) == pytest.approx(intervals.student([10, 20])[1:])
    assert (brier.n, brier.seeds) == (500, 2)
