"""The methods: what each is, where its variants start, how fast they go, and what is predicted from them."""

import math
from dataclasses import replace

import pytest
import torch

from lib import randomness
from lib import regression_metrics as metrics
from lib.contest import methods
from lib.contest.methods import (
    COLD,
    DIAGONAL,
    DROPOUT,
    ENSEMBLE,
    FACTORISED,
    FASTER,
    NARROW,
    NETWORKS,
    POINT,
    VMG,
    Plan,
    at_main,
    first_networks,
    network,
    predict,
    score,
    train,
)
from lib.contest.problems import stack
from lib.data import Dataset
from lib.matrix_gaussian.laws import Factorised, Point, RowColumn
from lib.matrix_gaussian.prediction import noise_precision, of_mean, sampled
from lib.matrix_gaussian.pseudo_data import PseudoData
from lib.matrix_gaussian.training import Schedule

SEED, METHODS = 991, (VMG, FACTORISED, DIAGONAL, COLD, DROPOUT, ENSEMBLE, POINT)
each_method = pytest.mark.parametrize("name", METHODS)


def normal(purpose, *shape):
    return randomness.normal(SEED, torch.arange(1), purpose, 0, shape, torch.float64)[0]


def problem(scale="raw", times=1.0, sizes=(8,), splits=2, rows=12, outputs=1):
    made = []
    for split in range(splits):
        x, y = normal(f"x/{split}", rows + 5, 2), normal(f"y/{split}", rows + 5, outputs)
        y = times * (10 * y + 50 + 20 * x[:, :1])
        train_rows, test_rows = (
            Dataset(x[part], y[part], "made", "", "") for part in (slice(rows), slice(rows, None))
        )
        made.append((train_rows, test_rows))
    return stack("made", 4, made, sizes, prior_scale=scale)


def plan(updates=4, batch=4, rate=0.01, looks=(), draws=3, average=0.9):
    return Plan(Schedule(updates, batch, rate, average, looks), draws, pseudo=2, seed=SEED)


# -------------------------------------------------------------------------------------------------- what a method is


@each_method
def test_networks_are_what_the_methods_say(name):
    p, how = problem("standardised", outputs=2), plan()
    found = network(name, p, how)
    assert found.widths == (2, 4, 2)
    hidden, last = found.laws
    wanted = {
        VMG: PseudoData(2, 0.005),
        FACTORISED: Factorised(0.0),
        COLD: Factorised(-3.0),
        DIAGONAL: RowColumn(),
        DROPOUT: Point(0.05),
        ENSEMBLE: Point(),
        POINT: Point(),
    }[name]
    assert last == wanted
    assert hidden == (Point() if name == DROPOUT else wanted)
    assert found.likelihood.prior_scale == "standardised"
    assert found.likelihood.prior == (6.0, 6.0)
    points = name in (DROPOUT, ENSEMBLE, POINT)
    assert found.hyper_priors is not points
    assert found.charge == (0.0 if points else 0.1 if name == COLD else 1.0)


def test_variants_start_where_they_should():
    """Standard deviations at 1 or at exp(-3), the bias rows narrow, every mean the same: across variants, methods and sizes."""
    p, how = problem(), plan(updates=1, rate=1e-9)
    means = []
    for name, log_sds in ((FACTORISED, (0.0, -3.0, 0.0, -3.0)), (COLD, (-3.0, -3.0)), (DIAGONAL, (0.0,))):
        found = train(name, p, how)
        assert len(found.flat) == 4 * len(log_sds)
        for v, log_sd in enumerate(log_sds):
            own = found.select(slice(4 * v, 4 * v + 4))
            for layer in own.network.parameters(own.flat):
                means.append(layer["mean"])
                logs = layer["log_row" if name == DIAGONAL else "log_sd"]
                torch.testing.assert_close(logs[:, -1], torch.full_like(logs[:, -1], -4.0))
                assert (logs[:, :-1] - log_sd).abs().max() < 0.06
    for name in (VMG, DROPOUT, POINT):
        found = train(name, p, how)
        means += [layer["mean"][:4] for layer in found.network.parameters(found.flat)]
    for first, second in zip(means[::2], means[1::2], strict=True):
        torch.testing.assert_close(first, means[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(second, means[1], rtol=0, atol=1e-6)
    assert (means[0][0] - means[0][1]).abs().max() < 1e-6  # sizes of a split start alike
    assert (means[0][0] - means[0][2]).abs().max() > 0.1  # and splits do not


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        (FACTORISED, (1, 1, FASTER, FASTER)),
        (COLD, (1, FASTER)),
        (DROPOUT, (1, FASTER)),
        (POINT, (1, FASTER)),
        (ENSEMBLE, (1, FASTER)),
        (VMG, (1,)),
        (DIAGONAL, (1,)),
    ],
)
def test_variants_go_as_fast_as_they_should(name, rates):
    """Adam's first step is its rate, in every parameter whose gradient is not tiny."""
    p, rate = problem(), 1e-3
    still, moved = (train(name, p, plan(updates=1, rate=r)) for r in (1e-12, rate))
    runs = 4 * (NETWORKS if name == ENSEMBLE else 1)
    steps = (moved.flat - still.flat).abs().amax(1).view(len(rates), runs)
    wanted = torch.tensor(rates, dtype=torch.float32)[:, None].expand(-1, runs) * rate
    torch.testing.assert_close(steps, wanted, rtol=0.02, atol=0)


def test_runs_of_a_split_share_their_numbers_and_networks_do_not(monkeypatch):
    given, right = {}, methods.fit

    def fit(net, examples, schedule, **rest):
        given.update(rest, examples=examples)
        return right(net, examples, schedule, **rest)

    monkeypatch.setattr(methods, "fit", fit)
    p = problem()
    train(FACTORISED, p, plan())
    assert given["members"].tolist() == [0, 0, 1, 1] * 4
    assert given["seed"] == SEED
    assert torch.equal(given["examples"].inputs, torch.cat([p.train.inputs] * 4))
    assert torch.equal(given["examples"].counts, torch.cat([p.train.counts] * 4))
    train(ENSEMBLE, p, plan())
    one = [m + (j << 32) for j in range(NETWORKS) for m in (0, 0, 1, 1)]
    assert given["members"].tolist() == one * 2
    assert torch.equal(given["examples"].targets, torch.cat([p.train.targets] * NETWORKS * 2))
    train(VMG, p, plan())
    assert given["rates"] is None


# ------------------------------------------------------------------------------------------------------------ ensembles


def test_the_first_network_of_an_ensemble_is_the_method_one_network():
    p, how = problem(), plan(updates=6, looks=(3,))
    whole, alone = train(ENSEMBLE, p, how), train(POINT, p, how)
    first = first_networks(whole, 4)
    torch.testing.assert_close(first.flat, alone.flat, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first.looks[3], alone.looks[3], rtol=1e-5, atol=1e-6)
    assert first.members.tolist() == alone.members.tolist()
    others = whole.flat.view(2, NETWORKS, 4, -1)
    assert (others[:, 1:] - others[:, :1]).abs().amax(-1).min() > 0.01


def test_an_ensembles_networks_are_its_samples():
    p, how = problem(), plan(updates=6, draws=3)
    whole = train(ENSEMBLE, p, how)
    f, shape, rate = predict(ENSEMBLE, whole, p, how, p.inputs)
    assert f.shape == (2, 4, NETWORKS, 5, 1)
    outputs = of_mean(whole, p.inputs.repeat(2 * NETWORKS, 1, 1)).view(2, NETWORKS, 4, 5, 1)
    wanted = outputs.transpose(1, 2) * p.train.unit[:, None, None] + p.shift[:, None, None]
    torch.testing.assert_close(f, wanted)
    for found, each in zip((shape, rate), noise_precision(whole), strict=True):
        torch.testing.assert_close(found, each.view(2, NETWORKS, 4, 1).mean(1))
    alone, *noise = predict(POINT, first_networks(whole, 4), p, how, p.inputs)
    torch.testing.assert_close(alone[:, :, 0], f[:, :, 0])
    torch.testing.assert_close(noise[0], noise_precision(whole)[0].view(2, NETWORKS, 4, 1)[:, 0])


# ---------------------------------------------------------------------------------------------------------- predictions


@each_method
def test_predictions_have_their_places(name):
    """Variants before runs before samples; a run's prediction does not depend on which others stand beside it."""
    p, how = problem(outputs=2), plan(updates=2)
    trained = train(name, p, how)
    variants = len(methods.VARIANTS.get(name, (1,)))
    samples = {ENSEMBLE: NETWORKS, POINT: 1}.get(name, 3)
    f, shape, rate = predict(name, trained, p, how, p.inputs)
    assert f.shape == (variants, 4, samples, 5, 2)
    assert shape.shape == rate.shape == (variants, 4, 2)
    for run in range(4):
        place = torch.arange(samples if name == ENSEMBLE else 1) + (variants - 1) * (
            samples if name == ENSEMBLE else 1
        )
        own = sampled(
            trained.select(4 * place + run), p.inputs[run : run + 1], samples // len(place), seed=SEED
        )
        own = own.flatten(0, 1) * p.train.unit[run] + p.shift[run]
        torch.testing.assert_close(own, f[-1, run], rtol=1e-4, atol=1e-3)


def test_a_points_prediction_is_its_network_in_the_targets_unit():
    p, how = problem(), plan(updates=2)
    trained = train(POINT, p, how)
    f, shape, rate = predict(POINT, trained, p, how, p.inputs)
    wanted = (
        of_mean(trained, p.inputs.repeat(2, 1, 1)).view(2, 4, 5, 1) * p.train.unit[:, None] + p.shift[:, None]
    )
    torch.testing.assert_close(f[:, :, 0], wanted)
    q = trained.network.noise_precisions(trained.flat)
    torch.testing.assert_close(rate / shape, (p.train.unit.square() / q.mean.view(2, 4, 1)))


@pytest.mark.parametrize("name", [DIAGONAL, POINT])
def test_the_unit_of_the_targets_matters_to_a_raw_prior_alone(name):
    """Targets a thousand times as large: the same standardised training, predictions a thousand times as large."""
    how = plan(updates=8, rate=0.05)
    for scale in ("standardised", "raw"):
        small, large = problem(scale), problem(scale, times=1_000.0)
        one, two = train(name, small, how), train(name, large, how)
        if scale == "raw":
            assert (one.flat - two.flat).abs().max() > 0.1
            continue
        torch.testing.assert_close(two.flat, one.flat, rtol=1e-4, atol=1e-4)
        (f, a, b), (g, c, d) = (predict(name, *of, how, small.inputs) for of in ((one, small), (two, large)))
        torch.testing.assert_close(g, 1_000 * f, rtol=1e-3, atol=1e-1)
        torch.testing.assert_close(d / c, 1e6 * b / a, rtol=1e-3, atol=0)


# --------------------------------------------------------------------------------------------------------------- scores


@each_method
def test_scores_are_the_metrics_of_the_predictions(name):
    p, how = problem(outputs=2), plan(updates=4, looks=(2, 4))
    trained = train(name, p, how)
    found = score(name, trained, p, how)
    f, shape, rate = predict(name, trained, p, how, p.inputs)
    assert len(found) == len(f)
    for v, scores in enumerate(found):
        for run in range(4):
            of = (f[v, run], p.targets[run], shape[v, run], rate[v, run])
            for name_, wanted in {
                "rmse": metrics.rmse(*of[:2]),
                "log_likelihood": metrics.log_likelihood(*of),
                "student": metrics.student_log_likelihood(*of),
                "calibration": metrics.calibration_error(metrics.pit(*of)),
            }.items():
                torch.testing.assert_close(getattr(scores, name_)[run], wanted, rtol=1e-4, atol=1e-6)
        assert list(scores.early) == [2, 4]
        last = p.runs(12)  # the main size; three draws at every look, as at the end
        torch.testing.assert_close(scores.early[4], scores.rmse[last], rtol=1e-4, atol=1e-5)
        assert (scores.early[2] - scores.early[4]).abs().min() > 0


def test_early_looks_take_fewer_draws(monkeypatch):
    p, how = problem(), plan(updates=2, looks=(2,), draws=30)
    trained, drawn = train(DIAGONAL, p, how), []
    right = methods.sampled

    def sampled(fit, inputs, draws, **rest):
        drawn.append(draws)
        return right(fit, inputs, draws, **rest)

    monkeypatch.setattr(methods, "sampled", sampled)
    score(DIAGONAL, trained, p, how)
    assert drawn == [30, 20]


def test_the_main_size_alone():
    p = problem(sizes=(4, 8))
    trained = train(FACTORISED, p, plan(updates=1, looks=(1,)))
    small, main = at_main(trained, replace(p, main=8))
    assert main.sizes == (8,)
    wanted = [6 * v + run for v in range(4) for run in (1, 4)]
    assert torch.equal(small.flat, trained.flat[wanted])
    assert torch.equal(small.looks[1], trained.looks[1][wanted])


def test_run_trains_and_scores_each():
    p, how = problem(), plan(updates=2)
    found = methods.run((DIAGONAL, POINT), p, how)
    assert list(found) == [DIAGONAL, POINT]
    assert [len(scores) for scores in found.values()] == [1, 2]
    assert torch.equal(found[POINT][0].rmse, score(POINT, train(POINT, p, how), p, how)[0].rmse)


def test_the_constants_are_those_of_the_page():
    assert (NARROW, FASTER, NETWORKS, methods.DROP, methods.CHARGE) == (-3.0, 5.0, 5, 0.05, 0.1)
    assert math.exp(NARROW) == pytest.approx(0.05, abs=1e-3)
