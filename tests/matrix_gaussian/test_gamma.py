"""Gamma precisions: moments by quadrature, the divergence by torch's own, the slope by difference quotients."""

import numpy as np
import pytest
import torch
from scipy import stats

from lib import randomness
from lib.matrix_gaussian import gamma
from lib.matrix_gaussian.gamma import Gammas

SHAPES, RATES = (0.3, 1.0, 6.0, 5_000.0), (0.02, 0.5, 6.0, 4_000.0)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def every_pair():
    """Every shape with every rate, in two rows."""
    shape, rate = (
        x.flatten().view(2, -1) for x in torch.meshgrid(double(*SHAPES), double(*RATES), indexing="ij")
    )
    return Gammas(shape.log(), rate.log())


def normal(purpose, *shape):
    return randomness.normal(991, torch.arange(1), purpose, 0, shape, torch.float64)[0]


def test_shape_and_rate_are_what_their_logarithms_say():
    q = every_pair()
    torch.testing.assert_close(q.shape.flatten()[::4], double(*SHAPES), rtol=1e-13, atol=0)
    torch.testing.assert_close(q.rate[1, 4:], double(*RATES), rtol=1e-13, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rate", [RATES[0], RATES[2]])
def test_moments_are_the_distributions(shape, rate):
    """E τ and E ln τ against an integral over ln τ, in which the density is smooth."""
    q, law = Gammas(double(shape).log(), double(rate).log()), stats.gamma(shape, scale=1 / rate)
    low, high = np.log(law.ppf(1e-30)), np.log(law.isf(1e-17))
    points, weights = np.polynomial.legendre.leggauss(400)
    log = low + (points + 1) * (high - low) / 2
    weight = weights * (high - low) / 2 * np.exp(law.logpdf(np.exp(log)) + log)
    assert float(q.mean) == pytest.approx(float(weight @ np.exp(log)), rel=1e-9)
    assert float(q.mean_log) == pytest.approx(float(weight @ log), rel=1e-7, abs=1e-7)


def test_the_divergence_is_torchs():
    q = every_pair()
    for a, b in ((1.0, 0.5), (6.0, 6.0), (6.0, 6e-6), (0.2, 30.0)):
        prior = torch.distributions.Gamma(double(a), double(b))
        wanted = torch.distributions.kl_divergence(torch.distributions.Gamma(q.shape, q.rate), prior)
        found = gamma.kl(q, torch.full_like(q.log_shape, a), torch.full_like(q.log_shape, b))
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
        assert (found >= 0).all()


def test_a_law_does_not_diverge_from_itself():
    q = every_pair()
    torch.testing.assert_close(gamma.kl(q, q.shape, q.rate), torch.zeros(2, 8).double(), rtol=0, atol=1e-9)


def test_the_slope_is_a_difference_quotient():
    """Of weight · KL plus a loss that is neither linear in E τ nor in E ln τ, each entry by itself."""
    runs, count, step = 3, 5, 1e-6
    start = torch.cat([normal("shape", runs, count), normal("rate", runs, count)], dim=1)
    shape, rate = normal("a0", runs, count).exp(), normal("b0", runs, count).exp()
    weight, scale = double(0.02, 0.5, 3.0)[:, None], normal("scale", runs, count)

    def objective(flat):
        q = Gammas(*flat.chunk(2, dim=-1))
        loss = (scale * q.mean.sin() + q.mean_log.square()).sum(-1)
        return loss + (weight * gamma.kl(q, shape, rate)).sum(-1)

    q = Gammas(*start.chunk(2, dim=-1))
    kept = [x.clone() for x in (q.mean, scale * q.mean.cos(), 2 * q.mean_log)]
    given = [x.clone() for x in kept]
    found = gamma.slope(q, *given, weight, shape, rate)
    for before, after in zip(kept, given, strict=True):
        assert torch.equal(before, after)  # what the caller gave is still his
    for i in range(2 * count):
        along = torch.zeros(2 * count).double()
        along[i] = step
        wanted = (objective(start + along) - objective(start - along)) / (2 * step)
        torch.testing.assert_close(found[:, i], wanted, rtol=1e-6, atol=1e-7)


def test_the_slope_vanishes_at_the_conjugate_posterior():
    """n normal targets with half squares h each: the best q(τ) is Gamma(a0 + n/2, b0 + n h), whatever the prior."""
    n, half = 40.0, double(0.7, 0.01, 30.0)
    shape, rate = double(6.0, 1.0, 0.5), double(6.0, 0.5, 2.0)
    q = Gammas((shape + n / 2).log(), (rate + n * half).log())
    found = gamma.slope(q, q.mean, half, torch.full_like(half, -0.5), double(1 / n), shape, rate)
    torch.testing.assert_close(found, torch.zeros(6).double(), rtol=0, atol=1e-9)


def test_the_priors_are_the_authors():
    assert gamma.PRECISION_OF_WEIGHTS == (1.0, 0.5)
    assert gamma.PRECISION_OF_NOISE == (6.0, 6.0)
