"""Problems as stacks, methods that differ in one thing only, and runs that take up where they stopped."""

import math
from dataclasses import replace

import pytest
import torch

from lib import profile
from lib.contest import methods, problems, regression
from lib.contest.kept import Kept
from lib.contest.methods import ENSEMBLE, FACTORISED, NETWORKS, POINT, VARIANTS, VMG, Plan
from lib.contest.problems import cubic, cubic_rows, diabetes, stack
from lib.data import Dataset
from lib.matrix_gaussian.training import Schedule

SIZES = replace(
    profile.QUICK.matrix_gaussian, splits=2, cubic_splits=2, updates=8, draws=3, subsets=(20,), cubic_sizes=(20, 30)
)  # fmt: skip
PLAN = Plan(Schedule(8, 10, 0.005, 0.9, (4, 8)), 3, seed=3)
CPU = torch.device("cpu")


def rows(n, constant=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    x[:, 2] = 4.0  # a column that does not vary, as naval's
    y = torch.ones(n, 1, dtype=torch.float64) if constant else x[:, :1] * 50 + 7
    return Dataset(x, y, "made up", "train", "here")


def test_subsets_nest_and_stand_on_their_own_rows():
    problem = stack("made up", 5, [(rows(40), rows(10, seed=1)), (rows(40, seed=2), rows(10, seed=1))], (10,))
    assert problem.sizes == (10, 40)
    assert problem.main == 40
    small, x = problem.runs(10), problem.train.inputs
    raw = [
        x[run, :10].double() * problem.scale[run] + problem.centre[run]
        for run in (small[0], problem.runs(40)[0])
    ]
    torch.testing.assert_close(raw[0], raw[1], rtol=0, atol=1e-5)
    assert x[small[0], :10, :2].mean(0).abs().max() < 1e-5
    assert (x[small, 10:] == 0).all()  # room, never read
    assert (x[..., 2] == 0).all()
    back = problem.inputs[0].double() * problem.scale[0] + problem.centre[0]
    torch.testing.assert_close(back, rows(10, seed=1).inputs, rtol=0, atol=1e-4)


def test_a_target_that_does_not_vary_is_refused():
    with pytest.raises(ValueError, match="a target that must vary"):
        stack("made up", 5, [(rows(40, constant=True), rows(10))])


def test_the_cubic_toy_is_a_cubic():
    few, many = (cubic_rows(5, 0, n, "train") for n in (20, 4_000))
    torch.testing.assert_close(few.inputs, many.inputs[:20])
    noise = many.targets - many.inputs**3
    assert noise.std().item() == pytest.approx(3.0, rel=0.05)
    assert many.inputs.abs().max() <= 4
    problem = cubic(3, (20, 40), 5)
    assert problem.main == 20
    assert problem.members.tolist() == [0, 0, 1, 1, 2, 2]


def test_diabetes_has_all_of_its_rows():
    problem = diabetes(1, (20,), 4)
    assert problem.sizes == (20, 354)
    assert problem.prior_scale == "standardised"
    assert problem.of_size(354).train.inputs.shape[:2] == (1, 354)


def test_variants_start_and_step_as_they_say(monkeypatch):
    seen = {}

    def fit(net, examples, schedule, **options):
        seen.update(options, net=net)
        raise KeyError("enough")

    monkeypatch.setattr(methods, "fit", fit)
    problem = cubic(2, (20, 30), 3)
    with pytest.raises(KeyError, match="enough"):
        methods.train(FACTORISED, problem, PLAN)
    deviations = seen["net"].parameters(seen["start"])[0]["log_sd"].unflatten(0, (4, 4))
    for (log_sd, rate), own, steps in zip(
        VARIANTS[FACTORISED], deviations, seen["rates"].view(4, 4), strict=True
    ):
        assert own[:, 0].mean().item() == pytest.approx(log_sd, abs=0.01)
        assert (steps == rate).all()


def test_an_ensemble_begins_with_the_network_that_stands_alone():
    problem = cubic(2, (20,), 3)
    together, alone = (methods.train(name, problem, PLAN) for name in (ENSEMBLE, POINT))
    first = methods.first_networks(together, 2)
    torch.testing.assert_close(first.flat, alone.flat, rtol=1e-4, atol=1e-5)
    assert len(together.flat) == len(VARIANTS[ENSEMBLE]) * NETWORKS * 2
    f, shape, _ = methods.predict(ENSEMBLE, together, problem, PLAN, problem.inputs)
    assert f.shape[:4] == (2, 2, NETWORKS, 100)
    assert shape.shape == (2, 2, 1)


def test_predictions_are_in_the_targets_unit():
    problem = cubic(2, (20,), 3)
    trained = methods.train(VMG, problem, PLAN)
    f, _, _ = methods.predict(VMG, trained, problem, PLAN, problem.inputs)
    shifted = replace(problem, shift=problem.shift + 100)
    moved, _, _ = methods.predict(VMG, trained, shifted, PLAN, problem.inputs)
    torch.testing.assert_close(moved, f + 100)


def test_scores_on_the_way_are_those_of_the_main_size():
    problem = cubic(2, (20, 30), 3)
    (scores,) = methods.score(VMG, methods.train(VMG, problem, PLAN), problem, PLAN)
    assert scores.rmse.shape == (4,)
    assert scores.early[4].shape == (2,)
    few = replace(PLAN, draws=methods.EARLY_DRAWS)
    assert math.isfinite(float(scores.log_likelihood.sum())), few


def in_this_process(pieces, device):
    return [piece() for piece in pieces]


def test_a_run_takes_up_what_it_finished(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(regression, "side_by_side", in_this_process)
    names, chosen = ("cubic toy",), (VMG, ENSEMBLE)
    first, bands = regression.compare(names, SIZES, 3, CPU, tmp_path, chosen)
    assert set(first["cubic toy"].scores) == {VMG, ENSEMBLE, POINT}
    assert bands[VMG][0].sd.shape == (2, 121)

    monkeypatch.setattr(regression, "train", lambda *_: pytest.fail("it trained again"))
    again, _ = regression.compare(names, SIZES, 3, CPU, tmp_path, chosen)
    for method in (VMG, ENSEMBLE, POINT):
        for old, new in zip(
            first["cubic toy"].scores[method], again["cubic toy"].scores[method], strict=True
        ):
            torch.testing.assert_close(vars(old), vars(new))

    monkeypatch.undo()
    monkeypatch.setattr(regression, "side_by_side", in_this_process)
    next(tmp_path.glob("*ensemble*")).write_bytes(b"cut")
    third, _ = regression.compare(names, SIZES, 3, CPU, tmp_path, chosen)
    assert "damaged" in capsys.readouterr().out
    torch.testing.assert_close(
        third["cubic toy"].scores[POINT][0].rmse, first["cubic toy"].scores[POINT][0].rmse
    )


def test_without_a_folder_nothing_is_kept():
    made = []
    for _ in range(2):
        Kept(None).part("x", lambda: made.append(1) or {})
    assert len(made) == 2


def test_batches_grow_with_the_set():
    problem = replace(cubic(2, (20,), 3), main=5_000, sizes=(5_000,))
    assert regression.plan(problem, SIZES, 0).schedule.batch == 50
    assert regression.plan(cubic(2, (20,), 3), SIZES, 0).schedule.batch == 10


def test_problems_go_by_their_names():
    assert problems.cubic(1, (20,), 0).name == regression.problem("cubic toy", SIZES, 0).name
    assert regression.problem("diabetes", SIZES, 1).sizes == (20, 354)
