"""The lowest finite score wins, the first of equals; what fails loses and is named."""

import math

import pytest

from lib.posteriors import dropout, mean_field
from lib.posteriors.dropout import Dropout
from lib.posteriors.tuning import NothingChosen, choose


def test_the_lowest_score_wins_and_the_first_of_equals():
    assert choose([3, 1, 2], float).option == 1
    assert choose([-2, 2, -1, 1], lambda x: x * x).option == -1


def test_what_is_not_finite_loses_and_is_reported():
    tuned = choose(["nan", "3", "inf", "-inf", "1"], float, runs=5)
    assert tuned.option == "1"
    assert sorted(tuned.refusals) == [0, 2, 3]
    assert tuned.record() == {
        "candidates": ["nan", "3", "inf", "-inf", "1"],
        "scores": [None, 3.0, None, None, 1.0],
        "chosen": 4,
        "failed": 3,
        "refusals": {"0": "its score is nan.", "2": "its score is inf.", "3": "its score is -inf."},
        "runs": 5,
        "fits": 25,
    }


def test_a_candidate_that_is_refused_loses_with_its_sentence():
    def score(p):
        if p == 0.2:
            raise ValueError("3 of 5 runs diverged.")
        return p

    tuned = choose([0.2, 0.5], score)
    assert (tuned.option, tuned.refusals) == (0.5, {0: "ValueError: 3 of 5 runs diverged."})
    assert math.isnan(tuned.scores[0])


def test_other_faults_are_not_swallowed():
    with pytest.raises(KeyError):
        choose([1, 2], {1: 0.5}.__getitem__)


@pytest.mark.parametrize("candidates", [[], [math.nan, math.inf]])
def test_nothing_to_choose_is_refused(candidates):
    with pytest.raises(NothingChosen, match=f"none of {len(candidates)} candidates has a finite score"):
        choose(candidates, float)


def test_the_record_of_a_dataclass_is_plain():
    tuned = choose(dropout.CANDIDATES, lambda option: abs(option.p - 0.2))
    assert tuned.option == Dropout(0.2)
    assert tuned.record()["candidates"][tuned.record()["chosen"]] == {"p": 0.2, "channels": False}
    plain = choose(mean_field.CANDIDATES, lambda option: option.temperature).record()["candidates"][0]
    assert all(value is None or isinstance(value, int | float | str) for value in plain.values())
