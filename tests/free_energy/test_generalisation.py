"""The Bayes generalisation error against integrals by SciPy and dense Bayesian linear regression."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from lib.free_energy import evidence, ridge, truths
from lib.free_energy.generalisation import collapsed_predictive, noise_nodes, predictive_error
from lib.free_energy.regression import Regression, join
from lib.free_energy.targets import target


def random(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def brute(mean, variance, truth, weight):
    """E over x and y of log q - log p, one problem, by adaptive quadrature over y."""
    losses = []
    for n, true in enumerate(truth):

        def integrand(y, n=n, true=true):
            p = (weight * norm.pdf(y, mean[:, n], np.sqrt(variance[:, n]))).sum()
            return norm.pdf(y, true) * (norm.logpdf(y, true) - math.log(p))

        losses.append(quad(integrand, true - 8, true + 8, epsabs=1e-9, limit=200)[0])
    return np.mean(losses)


class TestPredictiveError:
    @pytest.mark.parametrize("particles", [1, 7])
    def test_is_an_integral_over_y(self, particles):
        mean, truth = 0.5 * random(2, particles, 4), 0.3 * random(4, seed=1)
        variance = 1 + 0.5 * random(2, particles, 4, seed=2).square()
        found = predictive_error(mean, variance, truth)
        equal = np.full(particles, 1 / particles)
        expected = [brute(mean[r].numpy(), variance[r].numpy(), truth.numpy(), equal) for r in range(2)]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)

    def test_weights_of_particles(self):
        mean, truth = 0.5 * random(2, 5, 4), 0.3 * random(4, seed=1)
        variance = 1 + 0.5 * random(2, 5, 4, seed=2).square()
        log_weight = random(2, 5, seed=3).log_softmax(1)
        found = predictive_error(mean, variance, truth, log_weight)
        expected = [
            brute(*(x[r].numpy() for x in (mean, variance)), truth.numpy(), log_weight[r].exp().numpy())
            for r in range(2)
        ]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
        equal = torch.full((2, 5), -math.log(5), dtype=torch.float64)
        default = predictive_error(mean, variance, truth)
        torch.testing.assert_close(predictive_error(mean, variance, truth, equal), default)

    def test_a_weight_of_zero_removes_a_particle(self):
        mean, truth = random(1, 3, 4), random(4, seed=1)
        one = torch.ones_like(mean)
        log_weight = torch.tensor([[math.log(0.5), math.log(0.5), -math.inf]], dtype=torch.float64)
        found = predictive_error(mean, one, truth, log_weight)
        torch.testing.assert_close(found, predictive_error(mean[:, :2], one[:, :2], truth))

    def test_of_the_truth_is_zero(self):
        truth = random(6)
        mean = truth.expand(3, 5, 6)
        found = predictive_error(mean, torch.ones_like(mean), truth)
        torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-13)

    @pytest.mark.parametrize(("shift", "variance"), [(0.7, 1.0), (0.0, 1.8), (-0.4, 0.6)])
    def test_of_one_normal_law_is_its_divergence(self, shift, variance):
        truth = random(6)
        mean = (truth + shift).expand(2, 4, 6)
        found = predictive_error(mean, torch.full_like(mean, variance), truth)
        divergence = 0.5 * (math.log(variance) + (1 + shift**2) / variance - 1)
        torch.testing.assert_close(found, torch.full_like(found, divergence))

    def test_is_never_negative_and_averages_over_inputs(self):
        mean, truth = random(4, 6, 10), random(10, seed=1)
        one = torch.ones_like(mean)
        found = predictive_error(mean, one, truth)
        each = torch.stack([predictive_error(mean[..., [n]], one[..., [n]], truth[[n]]) for n in range(10)])
        assert bool((each > 0).all())
        torch.testing.assert_close(found, each.mean(0))


def test_nodes_are_those_of_the_standard_normal():
    nodes, weights = noise_nodes(torch.zeros(1, dtype=torch.float64))
    assert weights.sum().item() == pytest.approx(1)
    for k, moment in (
        (1, 0),
        (2, 1),
        (3, 0),
        (4, 3),
        (8, 105),
        (16, 2027025),
        (30, math.prod(range(1, 30, 2))),
    ):
        assert (weights * nodes**k).sum().item() == pytest.approx(moment, rel=1e-9, abs=1e-9)
    assert noise_nodes(torch.zeros(1, dtype=torch.float32))[0].dtype == torch.float32


class TestCollapsedPredictive:
    def test_is_dense_bayesian_linear_regression(self):
        """The new target given the old ones, by conditioning their joint normal law."""
        part = [truths.data(truths.T1, n, 2, seed=n) for n in (6, 9)]
        problem = join(part)
        known = target(problem, (1, 3, 1), bias_scale=1.5, weight_scale=0.8)
        position = random(4, 5, 6) * known.scale
        x = random(4, 7, 1, seed=4)
        there = target(
            Regression(x, 0 * x, 0 * x[..., 0], torch.zeros(4).double()),
            (1, 3, 1),
            bias_scale=1.5,
            weight_scale=0.8,
        )
        t = torch.tensor([[1.0], [1.0], [0.5], [2.0]], dtype=torch.float64)
        mean, variance = collapsed_predictive(known.statistics(position), there.features(position), t)
        old, new = known.features(position).numpy(), there.features(position).numpy()
        for r, n in enumerate((6, 6, 9, 9)):
            y = problem.targets[r, :n, 0].numpy()
            for p in range(5):
                a, b = old[r, p][:, :n], new[r, p]
                gain = b.T @ a @ np.linalg.inv(a.T @ a + np.eye(n) / t[r].item())
                np.testing.assert_allclose(mean[r, p], gain @ y, rtol=1e-9, atol=1e-9)
                expected = 1 + np.diag(b.T @ b - gain @ a.T @ b)
                np.testing.assert_allclose(variance[r, p], expected, rtol=1e-9, atol=1e-9)

    def test_predictive_density_is_a_ratio_of_evidences(self):
        """p(y | x, data) = Z with the new example over Z without it."""
        x, y, one = random(1, 8, 3), random(1, 8, 1, seed=1), torch.ones(1, 8, dtype=torch.float64)
        zero = torch.zeros(1, dtype=torch.float64)
        full = Regression(x, y, one, zero)
        less = Regression(x[:, :7], y[:, :7], one[:, :7], zero)
        t = torch.ones(1, 1, dtype=torch.float64)
        m = evidence.linear_moments(less)
        m = ridge.Moments(m.gram[..., None], m.cross[..., None], m.power[:, None])
        mean, variance = collapsed_predictive(m, x[:, None, 7:].mT, t)
        found = norm.logpdf(y[0, 7, 0], mean.item(), math.sqrt(variance.item()))
        expected = evidence.linear(less) - evidence.linear(full) - 0.5 * math.log(2 * math.pi)
        assert found == pytest.approx(expected.item())

    def test_without_data_it_is_the_prior_predictive(self):
        features = random(1, 2, 3, 4)
        zero = torch.zeros(3, 3, 1, 2, dtype=torch.float64)
        m = ridge.Moments(zero, zero[:, :1], zero[0, 0])
        mean, variance = collapsed_predictive(m, features, torch.ones(1, 1, dtype=torch.float64))
        assert not mean.any()
        torch.testing.assert_close(variance, 1 + features.square().sum(2))


def test_error_is_the_expected_rise_of_the_free_energy():
    """G_n - S = E[F_{n+1}] - F_n - S over one more example, for the 1-1-1 network on fixed nodes: exact to rounding."""
    less = truths.data(truths.T1, 15, 3, seed=21)
    one = torch.ones(3, 1, dtype=torch.float64)
    known = target(less, (1, 1, 1))
    nodes = evidence.one_unit(known, one, angles=32, refinements=1, radii=10)
    statistics = known.statistics(nodes.position)
    log_weight = (known.log_likelihood(statistics, one) + nodes.log_weight).log_softmax(1)
    x = truths.grid(4)
    true = truths.T1(x[None])[0, :, 0]
    unit = (nodes.position[..., :1] * x[:, 0] + nodes.position[..., 1:]).clamp_min(0)
    features = torch.stack([unit, torch.ones_like(unit)], 2)
    found = predictive_error(*collapsed_predictive(statistics, features, one), true, log_weight)

    before = nodes.log_sum(known.log_likelihood(statistics, one))
    rise = torch.zeros_like(before)
    for value, expected in zip(x, true, strict=True):
        for noise, weight in zip(*noise_nodes(x), strict=True):
            new = torch.stack([value[0], expected + noise]).expand(3, 2)
            more = Regression(
                torch.cat([less.inputs, new[:, None, :1]], 1),
                torch.cat([less.targets, new[:, None, 1:]], 1),
                torch.ones(3, 16, dtype=torch.float64),
                less.truth + 0.5 * noise**2,
            )
            longer = target(more, (1, 1, 1))
            after = nodes.log_sum(longer.log_likelihood(longer.statistics(nodes.position), one))
            rise += weight * (before - after) / len(x)
    torch.testing.assert_close(found, rise, rtol=1e-9, atol=1e-10)
    assert bool((found > 0).all())
