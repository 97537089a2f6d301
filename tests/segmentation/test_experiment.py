"""The experiment: every method at every rate, finished trainings kept; and what is measured, from made-up outcomes."""

import numpy as np
import pytest
import torch
from coloured import CLASSES, scenes
from outcomes import found_of, made

from lib import claims, intervals
from lib.segmentation import measures
from lib.segmentation.experiment import trainings
from lib.segmentation.training import METHODS, SGD, UNIT, Plan, Trainer

SEED = 991
PLAN = Plan((0.3, 0.1), 2, 1, 5, levels=1, channels=3, kernel=3, frames=(1,))


@pytest.fixture
def runs(monkeypatch):
    """The trainings that are really made."""
    made, right = [], Trainer.run

    def run(self, method, rate, k):
        made.append((method, rate, k))
        return right(self, method, rate, k)

    monkeypatch.setattr(Trainer, "run", run)
    return made


def test_every_training_is_made_once_and_kept(runs, tmp_path):
    given = {"device": "cpu", "folder": tmp_path, "scenes": scenes()}
    found = trainings(PLAN, SEED, **given)
    assert sorted(runs) == sorted((m, r, k) for m in METHODS for r in PLAN.rates for k in range(2))
    assert len(list(tmp_path.iterdir())) == 8
    runs.clear()
    again = trainings(PLAN, SEED, **given)
    assert runs == []
    for key, outcomes in found.outcomes.items():
        for one, other in zip(outcomes, again.outcomes[key], strict=True):
            assert all(torch.equal(vars(one)[name], vars(other)[name]) for name in vars(one))
    (tmp_path / "segnet-unit-norm-0.1-1.pt").unlink()  # cut before the last
    trainings(PLAN, SEED, **given)
    assert runs == [(UNIT, 0.1, 1)]


def test_outcomes_stand_under_their_own_method_rate_and_number():
    found = trainings(PLAN, SEED, device="cpu", scenes=scenes())
    trainer = Trainer(scenes(), PLAN, SEED)
    for method, rate, k in ((UNIT, 0.1, 0), (SGD, 0.3, 1)):
        alone = trainer.run(method, rate, k)
        kept = found.outcomes[method, rate][k]
        torch.testing.assert_close(kept.losses, alone.losses)
        assert torch.equal(kept.test, alone.test)
        assert found.values(method, rate)[k] == pytest.approx(100 * alone.scores("test").mean_iou)
    assert found.classes == CLASSES


# ----------------------------------------------------------------------------------------------------------- measures


def overlap(right):
    return 100 * np.array(right) / (2 - np.array(right))


A, B, C = [0.7, 0.72, 0.74], [0.8, 0.83, 0.82], [0.6, 0.6, 0.6]


def test_the_gain_is_paired_by_training():
    found = found_of([[*map(made, C)], [*map(made, A)]], [[*map(made, B)], [*map(made, C)]])
    (gain,) = measures.overlap_gain(found)
    wanted = intervals.student(overlap(B) - overlap(A))
    assert (gain.value, gain.low, gain.high) == pytest.approx(wanted)
    assert (gain.name, gain.n, gain.seeds) == ("overlap_gain", 3, 3)
    assert (found.best(SGD), found.best(UNIT)) == (1.0, 0.1)


def test_the_rate_is_chosen_on_the_validation_images():
    """Unit norm's better rate on the test images is the worse one on the validation images."""
    unit = [[made(b, val=0.5) for b in B], [made(a, val=0.6) for a in A]]
    found = found_of([[*map(made, A)], [*map(made, C)]], unit)
    assert found.best(UNIT) == 1.0
    (gain,) = measures.overlap_gain(found)
    assert gain.value == pytest.approx(0)


def test_a_diverged_training_counts_as_nought():
    """One of three at the better rate: its mean then falls below the other's."""
    broken = [made(0.9), made(0.9), made(0.9, diverged=True)]
    found = found_of([[*map(made, A)], broken], [[*map(made, C)], [*map(made, A)]])
    assert found.values(SGD, 1.0).tolist() == pytest.approx([*overlap([0.9, 0.9]), 0])
    assert found.best(SGD) == 0.1
    assert measures.diverged(found) == {SGD: 1, UNIT: 0}
    np.testing.assert_allclose(
        measures.overlap_by_rate(found)[SGD][:, 1], intervals.student([*overlap([0.9, 0.9]), 0])
    )


@pytest.mark.parametrize(
    ("unit", "wanted"),
    [
        ([0.7, 0.72, 0.74], claims.CONFIRMED),
        ([0.6, 0.62, 0.64], claims.NOT_CONFIRMED),
        ([0.8, 0.72, 0.64], claims.UNRESOLVED),
    ],
)
def test_the_ledger_judges_the_gain(unit, wanted):
    both = [[*map(made, A)]] * 2
    gain = measures.overlap_gain(found_of(both, [[*map(made, unit)], [*map(made, C)]]))
    assert claims.judge("P4-C9", "full", gain).verdict == wanted


def test_rows_for_the_page():
    """Right is 0.8 on average: that is the accuracy of both classes, and of all pixels."""
    table = measures.rows(found_of([[*map(made, A)], [*map(made, C)]], [[*map(made, C)], [made(0.8)] * 3]))
    assert [row[:2] for row in table] == [(SGD, "0.1"), (UNIT, "1")]
    assert table[1][2:] == ("66.7 (66.7 to 66.7)", "80.0 (80.0 to 80.0)", "80.0 (80.0 to 80.0)")


def test_a_rate_at_the_edge_says_so():
    plan = Plan((0.1, 1.0, 10.0), 3, 1, 1)
    low, high = [*map(made, C)], [*map(made, B)]
    found = found_of([low, high, low], [low, low, high], plan)
    assert measures.at_the_edge(found) == {SGD: False, UNIT: True}
    assert measures.at_the_edge(found_of([high, low, low], [low, high, low], plan)) == {
        SGD: True,
        UNIT: False,
    }
