"""Losses with their slopes: against torch's distributions and autograd, and what the samples of a posterior say together."""

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from lib import randomness
from lib.matrix_gaussian.likelihoods import Categorical, Gaussian, average, votes

R, B, K = 3, 5, 2


def normal(purpose, *shape):
    return randomness.normal(991, torch.arange(1), purpose, 0, shape, torch.float64)[0]


def test_the_gaussian_loss_is_the_expected_negative_log_density():
    """The mean over draws of τ from its Gamma, by a fine grid of its quantiles."""
    from scipy import stats

    shape, rate = 3.0, 2.0
    points, weights = np.polynomial.legendre.leggauss(200)
    log = -9 + (points + 1) * 6.5  # from -9 to 4: all but 1e-10 of the law's mass
    law = stats.gamma(shape, scale=1 / rate)
    weights = torch.tensor(weights * 6.5 * np.exp(law.logpdf(np.exp(log)) + log))
    tau = torch.tensor(np.exp(log))
    f, y = normal("f", 1, B, 1), normal("y", 1, B, 1)
    each = -Normal(f, tau.rsqrt()).log_prob(y)[0]  # (B, points)
    mean = torch.full((1, 1), shape / rate).double()
    mean_log = torch.digamma(torch.full((1, 1), shape).double()) - np.log(rate)
    value, *_ = Gaussian().slope(f.clone(), y, mean, mean_log)
    assert float(value) == pytest.approx(float((each @ weights).mean()), rel=1e-8)


def test_the_gaussian_slope_is_autograds():
    leaves = [normal("f", R, B, K), normal("tau", R, K).exp(), normal("log", R, K)]
    y = normal("y", R, B, K)
    given = [x.clone().requires_grad_() for x in leaves]
    f, mean, mean_log = given
    square = (y - f).pow(2).mean(1)
    value = (0.5 * mean * square - 0.5 * mean_log + 0.5 * np.log(2 * np.pi)).sum(1)  # over outputs
    wanted = torch.autograd.grad(value.sum(), given)
    found = Gaussian().slope(*leaves[:1], y, *leaves[1:])
    torch.testing.assert_close(found[0], value.detach())
    for slope, right in zip(found[1:], wanted, strict=True):
        torch.testing.assert_close(slope, right)
    assert Gaussian().precisions(K) == K


def test_the_categorical_slope_is_autograds():
    outputs, classes = normal("f", R, B, 4), torch.tensor([[0, 1, 2, 3, 3], [1, 1, 1, 1, 1], [2, 0, 2, 0, 3]])
    leaf, none = outputs.clone().requires_grad_(), torch.empty(R, 0).double()
    value = torch.stack([torch.nn.functional.cross_entropy(f, c) for f, c in zip(leaf, classes, strict=True)])
    (wanted,) = torch.autograd.grad(value.sum(), leaf)
    found, slope, of_mean, of_log = Categorical().slope(outputs, classes, none, none)
    torch.testing.assert_close(found, value.detach())
    torch.testing.assert_close(slope, wanted)
    assert of_mean.shape == of_log.shape == (R, 0)
    assert Categorical().precisions(10) == 0


def test_refusals():
    with pytest.raises(ValueError, match="prior_scale = 'metres': choose one of raw, standardised"):
        Gaussian(prior_scale="metres")
    for prior in ((0.0, 1.0), (1.0, -1.0)):
        with pytest.raises(ValueError, match="both must be positive"):
            Gaussian(prior=prior)
    assert Gaussian().prior == (6.0, 6.0)
    assert Gaussian().prior_scale == "raw"


def test_samples_together():
    """Two networks of three are sure of class 0 by a little, one of class 1 by far: the average says 1, the votes 0."""
    probabilities = torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.05, 0.95]])[
        None, :, None
    ].double()  # (1, 3, 1, 2)
    torch.testing.assert_close(average(probabilities), torch.tensor([[[1.25 / 3, 1.75 / 3]]]).double())
    torch.testing.assert_close(votes(probabilities), torch.tensor([[[2 / 3, 1 / 3]]]).double())
    many = torch.softmax(normal("many", 2, 7, B, 3), -1)
    torch.testing.assert_close(average(many).sum(-1), torch.ones(2, B).double())
    torch.testing.assert_close(votes(many).sum(-1), torch.ones(2, B).double())
    torch.testing.assert_close(votes(many)[1, 2, 0], (many[1, :, 2].argmax(-1) == 0).double().mean())
