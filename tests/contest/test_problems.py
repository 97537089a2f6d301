"""Problems as stacks: every run knows its own training rows alone, and a set's subsets lie in each other."""

import pytest
import torch

from lib import data, randomness
from lib.contest import problems
from lib.contest.problems import Problem, cubic, cubic_rows, diabetes, stack
from lib.data import Dataset
from lib.matrix_gaussian.training import Examples

SEED = 991


def normal(purpose, *shape):
    return randomness.normal(SEED, torch.arange(1), purpose, 0, shape, torch.float64)[0]


def part(split, rows, name="train", outputs=1, columns=3):
    x, y = (normal(f"{name}/{split}/{which}", rows, k) for which, k in (("x", columns), ("y", outputs)))
    return Dataset(x * 7 + 100, y * 3 - 40, "made", name, "made here")


def parts(splits=2, rows=12, tests=5, **of):
    return [(part(s, rows, **of), part(s, tests, "test", **of)) for s in range(splits)]


def test_the_runs_are_splits_times_sizes():
    p = stack("made", 50, parts(), sizes=(8, 4))
    assert (p.splits, p.sizes, p.main, p.hidden, p.name) == (2, (4, 8, 12), 12, 50, "made")
    assert p.train.counts.tolist() == [4, 8, 12] * 2
    assert p.members.tolist() == [0, 0, 0, 1, 1, 1]
    assert p.runs(8).tolist() == [1, 4]
    assert p.train.inputs.shape == (6, 12, 3)
    assert p.inputs.shape == (6, 5, 3)
    assert stack("made", 50, parts(), sizes=(4,), main=4).main == 4
    assert stack("made", 50, parts(), sizes=(12,)).sizes == (12,)
    assert stack("made", 50, parts()).prior_scale == "raw"


def own_units(p, run):
    """A run's training rows back in the set's own units."""
    n = int(p.train.counts[run])
    x = p.train.inputs[run, :n].double() * p.scale[run] + p.centre[run]
    return x, p.train.targets[run, :n].double() * p.train.unit[run] + p.shift[run]


def test_subsets_nest_and_are_the_first_rows():
    made = parts(outputs=2)
    p = stack("made", 50, made, sizes=(4, 8))
    for split, (train, _) in enumerate(made):
        for k, size in enumerate(p.sizes):
            x, y = own_units(p, 3 * split + k)
            torch.testing.assert_close(x, train.inputs[:size], rtol=1e-6, atol=1e-4)
            torch.testing.assert_close(y, train.targets[:size], rtol=1e-6, atol=1e-4)


def test_every_run_is_standardised_on_its_own_rows():
    made = parts(outputs=2)
    p = stack("made", 50, made, sizes=(4, 8))
    for run in range(6):
        train, n = made[run // 3][0], int(p.train.counts[run])
        for values, mean, sd in (
            (train.inputs, p.centre[run], p.scale[run]),
            (train.targets, p.shift[run], p.train.unit[run]),
        ):
            torch.testing.assert_close(mean, values[:n].mean(0).float())
            torch.testing.assert_close(sd, values[:n].std(0, correction=0).float())
        for values in (p.train.inputs[run, :n], p.train.targets[run, :n]):
            torch.testing.assert_close(values.mean(0), torch.zeros(values.shape[1]), rtol=0, atol=1e-5)
            torch.testing.assert_close(
                values.std(0, correction=0), torch.ones(values.shape[1]), rtol=1e-5, atol=0
            )


def test_rows_that_a_run_does_not_have_leave_it_alone():
    """Others' splits, later rows and test rows: a run's training set and units are the same whatever they are."""
    made, other = parts(), parts()
    p = stack("made", 50, made, sizes=(4,))
    (train, test), _ = other
    train.inputs[4:] *= 9
    train.targets[4:] -= 500
    test.inputs[:] = -3
    test.targets[:] = 1e6
    other[1] = (part(7, 12), part(7, 5, "test"))
    q = stack("made", 50, other, sizes=(4,))
    assert torch.equal(p.train.inputs[0], q.train.inputs[0])
    assert torch.equal(p.train.targets[0], q.train.targets[0])
    for name in ("shift", "centre", "scale"):
        assert torch.equal(getattr(p, name)[0], getattr(q, name)[0])
    assert torch.equal(p.train.unit[0], q.train.unit[0])


def test_test_rows_keep_their_unit_and_are_read_in_each_runs_own():
    made = parts(outputs=2)
    p = stack("made", 50, made, sizes=(4,))
    for run in range(4):
        test = made[run // 2][1]
        torch.testing.assert_close(p.targets[run], test.targets.float())
        back = p.inputs[run].double() * p.scale[run] + p.centre[run]
        torch.testing.assert_close(back, test.inputs, rtol=1e-6, atol=1e-4)


def test_a_column_that_never_varies_is_centred_and_no_more():
    """As naval has two."""
    made = parts()
    for train, test in made:
        train.inputs[:, 1] = 288.15
        test.inputs[:, 1] = 288.15
    p = stack("made", 50, made, sizes=(4,))
    assert (p.scale[:, 1] == 1).all()
    assert p.train.inputs[..., 1].abs().max() == p.inputs[..., 1].abs().max() == 0
    assert p.train.inputs.isfinite().all()


def test_a_target_that_does_not_vary_is_refused_where_it_does_not():
    made = parts()
    made[1][0].targets[:4] = 5.0  # the rest of them varies
    stack("made", 50, made)
    with pytest.raises(
        ValueError, match="made, split 1: 4 of 4 training rows asked for, and a target that must vary"
    ):
        stack("made", 50, made, sizes=(4,))


def test_sizes_that_a_set_lacks_are_refused():
    with pytest.raises(ValueError, match="12 of 13 training rows asked for"):
        stack("made", 50, parts(), sizes=(13,))


def test_one_size_of_a_problem():
    p = stack("made", 50, parts(), sizes=(4, 8), prior_scale="standardised")
    q = p.of_size(8)
    assert (q.sizes, q.main, q.splits, q.prior_scale) == ((8,), 8, 2, "standardised")
    assert q.train.counts.tolist() == [8, 8]
    assert q.train.inputs.shape == (2, 8, 3)
    for k, run in enumerate((1, 4)):
        assert torch.equal(q.train.inputs[k], p.train.inputs[run, :8])
        assert torch.equal(q.train.targets[k], p.train.targets[run, :8])
        assert torch.equal(q.train.unit[k], p.train.unit[run])
        for name in problems.COLUMNS:
            assert torch.equal(getattr(q, name)[k], getattr(p, name)[run])
    assert q.members.tolist() == [0, 1]


def test_on_another_device_all_of_it():
    p = stack("made", 50, parts()).to(torch.device("cpu"))
    assert isinstance(p, Problem)
    assert isinstance(p.train, Examples)
    assert p.train.counts.tolist() == [12, 12]


# ------------------------------------------------------------------------------------------------------------ the sets


def test_cubic_targets_are_cubes_and_noise():
    rows = cubic_rows(SEED, 3, 4_000, "train")
    x, noise = rows.inputs, rows.targets - rows.inputs**3
    assert x.dtype == torch.float64
    assert -4 <= x.min() < -3.98
    assert 3.98 < x.max() <= 4
    assert float(x.square().mean()) == pytest.approx(16 / 3, rel=0.05)
    assert float(noise.mean()) == pytest.approx(0, abs=0.2)
    assert float(noise.std()) == pytest.approx(3, rel=0.05)
    assert float(noise.pow(4).mean() / noise.square().mean() ** 2) == pytest.approx(3, rel=0.2)
    assert abs(float((noise * x).mean())) < 0.4


def test_cubic_rows_of_fewer_come_first_and_none_comes_twice():
    many, few = cubic_rows(SEED, 3, 50, "train"), cubic_rows(SEED, 3, 20, "train")
    assert torch.equal(many.inputs[:20], few.inputs)
    assert torch.equal(many.targets[:20], few.targets)
    drawn = [
        cubic_rows(seed, i, 50, name)
        for seed in (SEED, SEED + 1)
        for i in (0, 1)
        for name in ("train", "test")
    ]
    every = torch.cat([rows.inputs for rows in drawn])
    assert len(every.unique()) == len(every)  # splits, seeds and parts do not share a point


def test_the_cubic_problem():
    p = cubic(3, (20, 40), SEED, tests=30)
    assert (p.name, p.hidden, p.sizes, p.main, p.prior_scale) == ("cubic toy", 100, (20, 40), 20, "raw")
    assert p.inputs.shape == (6, 30, 1)
    x, y = own_units(p, 4)  # split 2, twenty rows
    rows, test = cubic_rows(SEED, 2, 20, "train"), cubic_rows(SEED, 2, 30, "test")
    torch.testing.assert_close(x, rows.inputs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(y, rows.targets, rtol=1e-5, atol=1e-4)
    for run in (4, 5):
        torch.testing.assert_close(p.targets[run], test.targets.float())


def test_diabetes_splits_are_draws_of_the_seed(monkeypatch):
    asked = []

    def load(name, split, *, draw):
        asked.append((name, split, draw))
        return part(draw, 30 if split == "train" else 6, split)

    monkeypatch.setattr(data, "load", load)
    p = diabetes(2, (20,), 7)
    assert asked == [("diabetes", s, d) for d in (700, 701) for s in ("train", "test")]
    assert (p.hidden, p.sizes, p.main, p.prior_scale) == (50, (20, 30), 30, "standardised")


def test_the_real_diabetes_has_its_rows():
    p = diabetes(1, (), SEED)
    assert (p.train.inputs.shape, p.inputs.shape, p.targets.shape) == ((1, 354, 10), (1, 88, 10), (1, 88, 1))
    assert float(p.train.unit) == pytest.approx(77, rel=0.1)


def test_uci_sets_have_their_published_splits(monkeypatch):
    asked = []

    def uci(name, index):
        asked.append((name, index))
        return part(index, 9), part(index, 3, "test")

    monkeypatch.setattr(data, "uci", uci)
    assert problems.uci("yacht", 3, (5,)).sizes == (5, 9)
    assert problems.uci("yacht", 1).hidden == 50
    assert problems.uci("protein", 1).hidden == 100
    assert asked[:3] == [("yacht", 0), ("yacht", 1), ("yacht", 2)]
    assert problems.uci("naval", 1).prior_scale == "raw"
