"""HMC on targets whose posterior is known, judged by bias and coverage over many data sets; planted faults refused."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from lib import randomness
from lib.diagnostics import converged, convergence
from lib.posteriors import hmc, target
from lib.posteriors.moves import flip_unit


def normal_target(covariance):
    precision = torch.linalg.inv(covariance)
    return lambda q: (-0.5 * torch.einsum("ci,ij,cj->c", q, precision, q), -q @ precision)


def start(chains, dimension, spread=1.0):
    return spread * randomness.normal(11, torch.arange(chains), "start", 0, (dimension,), torch.float64)


def test_moments_of_a_correlated_gaussian():
    covariance = torch.tensor([[1.0, 0.8], [0.8, 2.0]], dtype=torch.float64)
    drawn = hmc.sample(normal_target(covariance), start(200, 2), warmup=150, draws=120, leapfrog=6, seed=1)
    flat = drawn.positions.flatten(0, 1)
    error = 5 / math.sqrt(4_000)  # at least 4,000 effective draws
    assert flat.mean(0).abs().max() < error * math.sqrt(2)
    torch.testing.assert_close(flat.T.cov(), covariance, rtol=0.0, atol=2 * error)
    assert 0.6 < float(drawn.acceptance.mean()) < 0.9


def test_linear_regression_posterior_over_many_data_sets():
    """200 data sets at once, one chain each: bias, coverage and ranks (simulation-based calibration) of the slope."""
    sets, n, sigma = 200, 12, 1.5
    members = torch.arange(sets)
    x = randomness.normal(21, torch.arange(1), "x", 0, (n, 2), torch.float64)[0]
    truth = sigma * randomness.normal(21, members, "truth", 0, (2,), torch.float64)
    y = truth @ x.T + randomness.normal(21, members, "noise", 0, (n,), torch.float64)

    def log_density(q):
        residual = y - q @ x.T
        return -0.5 * (residual**2).sum(1) - 0.5 * (q**2).sum(1) / sigma**2, residual @ x - q / sigma**2

    precision = x.T @ x + torch.eye(2, dtype=torch.float64) / sigma**2
    mean, covariance = torch.linalg.solve(precision, x.T @ y.T).T, torch.linalg.inv(precision)
    drawn = hmc.sample(log_density, start(sets, 2), warmup=100, draws=400, leapfrog=5, seed=2).positions

    z = (drawn.mean(0) - mean) / covariance.diagonal().sqrt()
    assert z.mean(0).abs().max() < 0.05  # bias, in posterior standard deviations
    ratio = drawn.var(0) / covariance.diagonal()
    assert (ratio.mean(0) - 1).abs().max() < 0.05
    low, high = drawn.quantile(0.05, 0), drawn.quantile(0.95, 0)
    coverage = ((truth > low) & (truth < high)).double().mean(0)
    assert ((coverage - 0.9).abs() < 4 * math.sqrt(0.09 / sets)).all()
    ranks = (drawn < truth).double().mean(0)
    for parameter in range(2):
        assert stats.kstest(ranks[:, parameter].numpy(), "uniform").pvalue > 1e-3


def test_without_the_metropolis_step_the_same_test_fails(monkeypatch):
    """The checks above can fail: accepting everything at a coarse step biases the variance."""
    monkeypatch.setattr(hmc, "_accept", lambda old, new, accepted: new)
    normal = normal_target(torch.eye(2, dtype=torch.float64))
    drawn = hmc.sample(normal, start(200, 2), warmup=0, draws=100, leapfrog=3, step_size=1.7, jitter=0.0)
    assert abs(float(drawn.positions.var()) - 1) > 0.3


def test_a_chain_does_not_depend_on_its_neighbours():
    few, many = (
        hmc.sample(
            normal_target(torch.eye(3, dtype=torch.float64)),
            start(c, 3),
            warmup=0,
            draws=20,
            leapfrog=4,
            seed=5,
        )
        for c in (3, 9)
    )
    assert torch.equal(few.positions, many.positions[:, :3])


def test_a_stuck_sampler_is_refused():
    narrow = normal_target(1e-12 * torch.eye(2, dtype=torch.float64))
    with pytest.raises(hmc.StuckChains, match="step size"):
        hmc.sample(narrow, start(20, 2, spread=1e-6), warmup=0, draws=50, leapfrog=3, step_size=1.0)
    with pytest.raises(ValueError, match="not finite"):
        hmc.init(lambda q: (torch.full((len(q),), math.nan), q), torch.zeros(2, 2))


def test_chains_in_two_modes_are_refused_by_the_diagnostics():
    draws = np.random.Generator(np.random.Philox(key=1)).normal(size=(400, 8))
    good, evidence = converged({"met": draws}, rhat_max=1.01, ess_min=400)
    assert good
    assert evidence[0].ess > 2_000
    apart = draws + 3 * (np.arange(8) % 2)
    assert not converged({"met": draws, "apart": apart}, rhat_max=1.01, ess_min=400)[0]
    assert convergence("apart", apart).rhat > 1.5
    with pytest.raises(ValueError, match="not finite"):
        convergence("hole", np.where(draws > 3, np.nan, draws))
    with pytest.raises(ValueError, match="two chains"):
        convergence("one chain", draws[:, :1])


NET = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
INPUTS = randomness.normal(31, torch.arange(1), "inputs", 0, (40, 2), torch.float64)[0]


def test_the_flip_is_an_involution_that_keeps_volume():
    move = flip_unit(NET, INPUTS)
    q = start(6, 9)
    number = torch.tensor([0.1, 0.2, 0.4, 0.6, 0.8, 0.99], dtype=torch.float64)
    once = move(q, number)
    assert (once != q).any(1).all()
    torch.testing.assert_close(move(once, number), q, rtol=0.0, atol=1e-12)
    for i in range(6):
        jacobian = torch.func.jacrev(lambda p, i=i: move(p[None], number[i : i + 1])[0])(q[i])
        assert abs(abs(float(torch.linalg.det(jacobian))) - 1) < 1e-10


def test_the_flip_leaves_the_posterior_as_it_is():
    """With and without the move the same posterior (few data, so that plain HMC mixes too)."""
    labels = (INPUTS[:, 0] > 0).double()
    posterior = target.log_posterior(NET, INPUTS[:8], labels[:8], sigma=1.0)
    probe = torch.eye(2, dtype=torch.float64)

    def predictions(moves):
        drawn = hmc.sample(posterior, start(60, 9), warmup=100, draws=200, leapfrog=6, moves=moves, seed=7)
        p = torch.sigmoid(target.outputs_of(NET, drawn.positions.flatten(0, 1), probe)).squeeze(-1)
        return p.unflatten(0, (200, 60)), drawn

    plain, _ = predictions(())
    moved, drawn = predictions((flip_unit(NET, INPUTS[:8]),))
    assert float(drawn.jumps.mean()) > 0.01
    for k in range(2):
        evidence = [convergence("p", p[..., k].numpy()) for p in (plain, moved)]
        error = max(
            float(p[..., k].std()) / math.sqrt(e.ess) for p, e in zip((plain, moved), evidence, strict=True)
        )
        assert abs(float(plain[..., k].mean() - moved[..., k].mean())) < 4 * math.sqrt(2) * error


def test_flip_refuses_other_networks():
    with pytest.raises(ValueError, match="Linear, ReLU, Linear"):
        flip_unit(nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)), INPUTS)
