"""All regressions at tiny sizes: every method has its scores, with and without parts kept, and each problem its own plan."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lib import randomness
from lib.contest import methods, problems, regression
from lib.contest.methods import COLD, DIAGONAL, DROPOUT, ENSEMBLE, FACTORISED, POINT, VARIANTS, VMG
from lib.contest.regression import METHODS, Piece, compare, naval, plan
from lib.data import Dataset
from lib.kept import Kept
from lib.profile import QUICK

SEED, CPU = 991, torch.device("cpu")
SIZES = replace(
    QUICK.matrix_gaussian,
    splits=2,
    cubic_splits=2,
    cubic_sizes=(10, 20),
    updates=20,
    draws=3,
    subsets=(20,),
)


@pytest.fixture(autouse=True)
def _one_process(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 1)


def stacked(name, splits, sizes=(), scale=1.0, **of):
    """A small set instead of one that must be downloaded."""
    parts = []
    for split in range(splits):
        x, y = (
            randomness.normal(SEED, torch.tensor([split]), f"{name}/{which}", 0, (32, k), torch.float64)[0]
            for which, k in (("x", 3), ("y", 1))
        )
        rows = [Dataset(x[part], scale * y[part], name, "", "") for part in (slice(26), slice(26, 32))]
        parts.append((rows[0], rows[1]))
    return problems.stack(name, 5, parts, sizes, **of)


@pytest.fixture(scope="module")
def found():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.cpu_count", lambda: 1)
        return compare(("cubic toy",), SIZES, SEED, CPU)


def same(one, other):
    """Whether two contests have the same scores to the last bit."""
    for name in one:
        assert list(one[name].scores) == list(other[name].scores)
        for method, variants in one[name].scores.items():
            for mine, theirs in zip(variants, other[name].scores[method], strict=True):
                for field, value in vars(mine).items():
                    if field == "early":
                        assert list(value) == list(theirs.early)
                        assert all(torch.equal(value[k], theirs.early[k]) for k in value)
                    else:
                        assert torch.equal(value, getattr(theirs, field)), (name, method, field)
    return True


def test_every_method_has_its_scores(found):
    contests, _ = found
    c = contests["cubic toy"]
    assert (c.name, c.splits, c.sizes, c.main, c.updates) == ("cubic toy", 2, (10, 20), 10, 20)
    assert set(c.scores) == set(METHODS) == {VMG, FACTORISED, DIAGONAL, COLD, DROPOUT, ENSEMBLE, POINT}
    for method, variants in c.scores.items():
        assert len(variants) == len(VARIANTS.get(method, (1,)))
        runs = 4 if method in (VMG, FACTORISED) else 2  # the others are trained at the main size alone
        for scores in variants:
            for values in (scores.rmse, scores.log_likelihood, scores.student, scores.calibration):
                assert values.shape == (runs,)
                assert values.isfinite().all()
            assert list(scores.early) == [2, 5, 10, 20]
            assert all(values.shape == (2,) for values in scores.early.values())
    assert c.looks == (2, 5, 10, 20)
    assert c.early(VMG, 5).shape == c.rmse(DROPOUT).shape == (2,)
    assert not torch.equal(c.scores[VMG][0].rmse, c.scores[FACTORISED][0].rmse)


def test_one_network_is_an_ensembles_first(found):
    contests, _ = found
    p = problems.cubic(2, (10, 20), SEED).of_size(10)
    how = plan(problems.cubic(2, (10, 20), SEED), SIZES, SEED)
    alone = methods.score(POINT, methods.train(POINT, p, how), p, how)
    for mine, theirs in zip(alone, contests["cubic toy"].scores[POINT], strict=True):
        torch.testing.assert_close(mine.rmse, theirs.rmse, rtol=1e-4, atol=1e-4)


def test_the_toys_bands(found):
    _, bands = found
    assert set(bands) == {VMG, FACTORISED, DROPOUT, ENSEMBLE}
    for method, variants in bands.items():
        assert len(variants) == len(VARIANTS.get(method, (1,)))
        for each in variants:
            assert each.mean.shape == each.sd.shape == (2, 121)  # the main size alone
            assert (each.sd > 0).all()


def test_kept_pieces_are_the_same_and_are_not_trained_again(found, tmp_path, monkeypatch):
    trained, right = [], regression.train
    monkeypatch.setattr(regression, "train", lambda name, *rest: trained.append(name) or right(name, *rest))
    for times in (6, 0):
        trained.clear()
        contests, bands = compare(("cubic toy",), SIZES, SEED, CPU, tmp_path)
        assert len(trained) == times
        assert same(contests, found[0])
        for method, variants in bands.items():
            for mine, theirs in zip(variants, found[1][method], strict=True):
                assert all(
                    torch.equal(a, b) for a, b in zip(vars(mine).values(), vars(theirs).values(), strict=True)
                )
    assert len(list(tmp_path.iterdir())) == 6
    (tmp_path / "cubic-toy-dropout.pt").write_bytes(b"")
    assert same(compare(("cubic toy",), SIZES, SEED, CPU, tmp_path)[0], found[0])
    assert trained == [DROPOUT]


def test_several_problems_and_some_methods(monkeypatch):
    """Each problem's scores are its own, whatever stands beside it."""
    monkeypatch.setattr(regression, "uci", lambda name, splits, sizes: stacked(name, splits, sizes))
    sizes = replace(SIZES, updates=8, with_subsets=("yacht",))
    contests, bands = compare(("wine", "yacht"), sizes, SEED, CPU, methods=(DIAGONAL, VMG))
    assert bands == {}
    assert list(contests) == ["wine", "yacht"]
    assert (contests["wine"].sizes, contests["yacht"].sizes) == ((26,), (20, 26))
    assert list(contests["yacht"].scores) == [DIAGONAL, VMG]
    assert contests["yacht"].main == 26
    assert contests["yacht"].rmse(VMG, 20).shape == (2,)
    alone, _ = compare(("yacht",), sizes, SEED, CPU, methods=(DIAGONAL, VMG))
    assert same(alone, {"yacht": contests["yacht"]})
    assert not np.array_equal(contests["wine"].rmse(DIAGONAL), contests["yacht"].rmse(DIAGONAL))


def test_problems_by_name(monkeypatch):
    asked = []
    for name in ("cubic", "diabetes", "uci"):
        monkeypatch.setattr(
            regression, name, lambda *given, name=name: asked.append((name, given)) or stacked("made", 2)
        )
    sizes = replace(SIZES, splits=20, cubic_splits=7, with_subsets=("diabetes", "yacht"))
    for name in ("cubic toy", "diabetes", "yacht", "protein"):
        regression.problem(name, sizes, SEED)
    assert asked == [
        ("cubic", (7, (10, 20), SEED)),
        ("diabetes", (20, (20,), SEED)),
        ("uci", ("yacht", 20, (20,))),
        ("uci", ("protein", 5, ())),  # five splits are published
    ]


def test_a_plan_is_the_profiles():
    sizes = replace(SIZES, updates=80, batch=6, rate=0.003, average=0.95, draws=9, pseudo=4, noise=0.01)
    found = plan(stacked("made", 2, (10,)), sizes, SEED)
    s = found.schedule
    assert (s.updates, s.batch, s.rate, s.average, s.looks) == (80, 6, 0.003, 0.95, (10, 20, 40, 80))
    assert (found.draws, found.pseudo, found.noise, found.seed) == (9, 4, 0.01, SEED)
    few = plan(stacked("made", 2, (4,)), sizes, SEED)
    assert few.schedule.batch == 4  # no more than the fewest rows
    many = plan(replace(stacked("made", 2), main=2_600, sizes=(2_600,)), sizes, SEED)
    assert many.schedule.batch == 26  # a hundredth


def test_naval_is_judged_under_both_priors(monkeypatch, tmp_path):
    """Targets as small as naval's: with the prior in their own unit the noise cannot be learned."""
    monkeypatch.setattr(regression, "uci", lambda name, splits, sizes: stacked(name, splits, sizes, 1e-3))
    sizes = replace(SIZES, updates=24, rate=0.2)
    raw, standardised = naval(sizes, SEED, CPU, tmp_path)
    assert (raw.name, standardised.name, raw.updates) == ("naval", "naval", 24)
    assert raw.log_likelihood(VMG).shape == (2,)
    assert (standardised.log_likelihood(VMG) - raw.log_likelihood(VMG)).min() > 1
    again = naval(sizes, SEED, CPU, tmp_path)
    for one, other in zip((raw, standardised), again, strict=True):
        assert same({"naval": one}, {"naval": other})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["naval-raw.pt", "naval-standardised.pt"]


def test_pieces_survive_being_flat(found):
    """Scores, bands and an ensemble's networks alone, with the looks under their numbers."""
    contests, bands = found
    scores = contests["cubic toy"].scores
    piece = Piece(scores[FACTORISED], bands[FACTORISED], scores[POINT])
    flat = regression._flat(piece)
    assert {"scores/3/rmse", "scores/0/early/20", "bands/2/sd", "alone/1/early/5"} <= set(flat)
    back = regression._deep(flat)
    assert same({"c": replace(contests["cubic toy"], scores={"x": back.scores, "y": back.alone})},
                {"c": replace(contests["cubic toy"], scores={"x": piece.scores, "y": piece.alone})})  # fmt: skip
    assert [torch.equal(a.sd, b.sd) for a, b in zip(back.bands, piece.bands, strict=True)] == [True] * 4


def test_an_ensembles_piece_has_its_networks_alone_and_no_other():
    few = replace(SIZES, updates=8)
    made = [regression.piece("cubic toy", m, few, SEED, CPU, Kept(None)) for m in (ENSEMBLE, COLD)]
    assert [len(piece.alone) for piece in made] == [2, 0]
    assert [len(piece.bands) for piece in made] == [2, 0]


def test_diabetes_is_compared_at_all_rows_and_kept(tmp_path, monkeypatch):
    """The set itself, subsets of 20 rows for two methods; read back, nothing trains."""
    sizes = replace(SIZES, updates=8, draws=2, with_subsets=("diabetes",))
    contests, bands = compare(("diabetes",), sizes, SEED, CPU, tmp_path)
    c = contests["diabetes"]
    assert (c.splits, c.sizes, c.main, c.looks) == (2, (20, 354), 354, (1, 2, 4, 8))
    assert set(c.scores) == set(METHODS)
    assert bands == {}
    for method, variants in c.scores.items():
        for scores in variants:
            assert scores.rmse.shape == (4 if method in (VMG, FACTORISED) else 2,)
            assert scores.rmse.isfinite().all()
            assert scores.log_likelihood.isfinite().all()
            assert {values.shape for values in scores.early.values()} == {(2,)}

    def train(*given):
        raise AssertionError("a finished piece was trained again")

    monkeypatch.setattr(regression, "train", train)
    assert same(compare(("diabetes",), sizes, SEED, CPU, tmp_path)[0], contests)
