"""Bands on the toy: their two summaries by hand, and what they are made of."""

import numpy as np
import pytest
import torch

from lib import claims, intervals
from lib.contest import toy
from lib.contest.methods import FACTORISED, POINT, VMG, Plan, predict, train
from lib.contest.problems import cubic
from lib.contest.toy import FAR, GRID, Bands, bands, widest
from lib.matrix_gaussian.prediction import of_mean
from lib.matrix_gaussian.training import Schedule

SEED = 991
X = torch.linspace(-FAR, FAR, GRID, dtype=torch.float64)


def made(inside, outside, runs=10, spread=0.0):
    """Bands as wide as said on the data's range and beyond it, around the truth."""
    around = 1 + spread * torch.linspace(-1, 1, runs).double()[:, None]
    sd = torch.where(X.abs() <= 4, float(inside), outside * around)
    return Bands(X, (X**3).expand(runs, -1), sd.expand(runs, -1))


def test_the_ratio_is_the_ends_over_the_mean_of_the_datas_range():
    x = torch.tensor([-6.0, -5.0, -4.0, 0.0, 4.0, 5.0, 6.0])
    sd = torch.tensor([[10.0, 99.0, 1.0, 2.0, 6.0, 99.0, 14.0], [1.0, 5.0, 1.0, 1.0, 1.0, 5.0, 1.0]])
    found = Bands(x, torch.zeros(2, 7), sd).ratio
    torch.testing.assert_close(found, torch.tensor([12.0 / 3.0, 1.0]))


def test_coverage_is_the_share_of_the_grid_where_the_truth_is_inside():
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0])
    mean = torch.tensor(
        [[-8.0, -1.0, 0.0, 4.0], [-4.0, 2.0, 3.1, -2.1]]
    )  # off by 0 0 0 3, and by 4 3 3.1 3.1
    found = Bands(x, mean, torch.ones(2, 4))
    assert found.coverage().tolist() == [1.0, 0.25]
    assert found.coverage(1.0).tolist() == [0.75, 0.0]
    assert found.coverage(4.0).tolist() == [1.0, 1.0]


def test_the_widest_variant_is_the_one_whose_spread_grows_most():
    variants = [made(10, 15), made(1, 3), made(2, 4)]
    assert widest(variants) is variants[1]


@pytest.mark.parametrize(
    ("ours", "theirs", "spread", "wanted"),
    [
        (3.0, 2.0, 0.0, claims.CONFIRMED),
        (1.2, 1.0, 0.0, claims.NOT_CONFIRMED),
        (3.0, 4.0, 0.0, claims.NOT_CONFIRMED),
        (3.0, 2.9, 1.0, claims.UNRESOLVED),
    ],
)
def test_verdicts(ours, theirs, spread, wanted):
    """Against the factorised variant that is widest: the other one, three times as narrow, does not help."""
    found = toy.measure(
        {VMG: [made(1, ours, spread=spread)], FACTORISED: [made(1, theirs / 3), made(1, theirs)]}
    )
    assert {(m.name, m.cell, m.n, m.seeds) for m in found} == {
        (name, "cubic toy", 10, 10) for name in ("spread_ratio", "spread_to_factorised")
    }
    assert [m.value for m in found] == pytest.approx([ours, ours / theirs])
    assert claims.judge("P3-C9", "quick", found).verdict == wanted


def test_ratios_are_paired():
    ours, theirs = made(1, 3, spread=0.5), made(1, 2, spread=0.5)
    _, m = toy.measure({VMG: [ours], FACTORISED: [theirs]})
    assert (m.low, m.high) == pytest.approx((1.5, 1.5))


def test_rows_for_the_page():
    ((name, ratio, coverage),) = toy.rows({FACTORISED: [made(1, 2), made(1, 3, spread=0.1)]})
    assert name == FACTORISED
    values = 3 * (1 + 0.1 * np.linspace(-1, 1, 10))
    assert ratio == "{:.2f} ({:.2f} to {:.2f})".format(*intervals.student(values))
    assert coverage == "1.00 (1.00 to 1.00)"


def small(name, draws=4, runs=2):
    problem = cubic(runs, (20,), SEED, tests=5)
    plan = Plan(Schedule(3, 5), draws, pseudo=2, seed=SEED)
    return train(name, problem, plan), problem, plan


def test_a_points_bands_are_its_function_and_its_noise():
    trained, problem, plan = small(POINT)
    found = bands(POINT, trained, problem, plan)
    assert len(found) == 2  # variants
    x = (X[None, :, None].float() - problem.centre[:, None]) / problem.scale[:, None]
    outputs = of_mean(trained, x.repeat(2, 1, 1)).view(2, 2, GRID)
    q = trained.network.noise_precisions(trained.flat).mean.view(2, 2)
    for v, each in enumerate(found):
        torch.testing.assert_close(each.x, X)
        torch.testing.assert_close(
            each.mean, outputs[v] * problem.train.unit + problem.shift, rtol=1e-4, atol=1e-3
        )
        sd = (problem.train.unit / q[v, :, None].sqrt()).expand(-1, GRID)
        torch.testing.assert_close(each.sd, sd)


def test_bands_are_the_samples_mean_and_spread_with_the_noise():
    trained, problem, plan = small(FACTORISED, draws=6)
    x = (X[None, :, None].float() - problem.centre[:, None]) / problem.scale[:, None]
    f, shape, rate = predict(FACTORISED, trained, problem, plan, x)
    for v, each in enumerate(bands(FACTORISED, trained, problem, plan)):
        torch.testing.assert_close(each.mean, f[v].mean(1)[..., 0])
        variance = (f[v] - f[v].mean(1, keepdim=True)).square().mean(1)[..., 0] + rate[v] / shape[v]
        torch.testing.assert_close(each.sd.square(), variance, rtol=1e-4, atol=1e-4)


def test_the_full_profile_asks_for_fifty_trainings():
    for runs, wanted in ((50, claims.CONFIRMED), (10, claims.UNRESOLVED)):
        found = toy.measure({VMG: [made(1, 3, runs)], FACTORISED: [made(1, 2, runs)]})
        assert claims.judge("P3-C9", "full", found).verdict == wanted
