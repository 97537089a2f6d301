r"""The Bayes generalisation error $G_n - S$: how much the predictive density loses against the true one on a new point.

$$ G_n - S = E_{x, y}\left[\log q(y|x) - \log \tfrac1P \sum_p p(y | x, \theta_p)\right] $$

with particles that are draws of the posterior. The expectation over y is taken by Gauss-Hermite quadrature around the true
value, that over x by the points given: no noise but that of the particles.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lib.free_energy import ridge

NODES = 16  # exact for polynomials of degree 31 times the normal density; more changed nothing in the fourth digit


def noise_nodes(like: Tensor) -> tuple[Float[Tensor, " nodes"], Float[Tensor, " nodes"]]:
    """Nodes and weights (they add up to one) of the standard normal distribution."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    return like.new_tensor(nodes), like.new_tensor(weights / weights.sum())


def predictive_error(
    mean: Float[Tensor, "R P N"],
    variance: Float[Tensor, "R P N"],
    truth: Float[Tensor, " N"],
    log_weight: Float[Tensor, "R P"] | None = None,
) -> Float[Tensor, " R"]:
    """G_n - S for predictive densities that are mixtures of N(mean, variance) over P particles; the noise has variance one.

    ``truth`` holds the true values at N equally likely inputs; ``log_weight`` the particles' log weights, whose exponentials
    add up to one for each problem, equal by default.
    """
    nodes, weights = noise_nodes(mean)
    if log_weight is None:
        log_weight = mean.new_full(mean.shape[:2], -math.log(mean.shape[1]))
    spread = -0.5 * (2 * math.pi * variance).log() + log_weight[..., None]
    total = mean.new_zeros(len(mean))
    for node, weight in zip(nodes, weights, strict=True):
        density = spread - 0.5 * (truth + node - mean).square() / variance
        true = -0.5 * (math.log(2 * math.pi) + node.square())
        total += weight * (true - density.logsumexp(1)).mean(1)
    return total


def collapsed_predictive(
    moments: ridge.Moments,
    features: Float[Tensor, "R P k N"],
    t: Float[Tensor, "R 1"],
) -> tuple[Float[Tensor, "R P N"], Float[Tensor, "R P N"]]:
    """Mean and variance of y at N points for each particle, its output layer integrated out (unit noise, one output)."""
    known = ridge.posterior(moments, t)
    mean = torch.einsum("krp,rpkn->rpn", known.mean[:, 0], features)
    whitened = torch.einsum("jkrp,rpkn->rpjn", known.whitener, features)
    return mean, 1 + whitened.square().sum(2)
