"""Evidence without sampling: the closed form of linear regression, and quadrature for the network with one hidden unit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lib.free_energy import ridge
from lib.free_energy.regression import Regression
from lib.free_energy.targets import CollapsedHinges


def linear_moments(problem: Regression, scale: float = 1.0) -> ridge.Moments:
    """Moments of the inputs themselves, the prior N(0, scale²) on every weight folded in."""
    inputs = scale * problem.inputs
    weighted = inputs * problem.weights[..., None]
    gram = (weighted.mT @ inputs).permute(1, 2, 0)
    cross = (weighted.mT @ problem.targets).permute(1, 2, 0)
    return ridge.Moments(gram.contiguous(), cross.contiguous(), problem.power)


def linear(problem: Regression, scale: float = 1.0, t: float = 1.0) -> Float[Tensor, " R"]:
    """F_n - n S_n of linear regression without a constant, in closed form, at temperature ``t``."""
    at = torch.as_tensor(t, dtype=torch.float64, device=problem.inputs.device)
    return -ridge.log_evidence(linear_moments(problem, scale), at) - t * problem.truth


def linear_energy(problem: Regression, scale: float, t: Tensor) -> Float[Tensor, " R"]:
    """The mean energy at temperature ``t`` (R,): at t = 1 / log n it is WBIC itself, without sampling error."""
    moments = linear_moments(problem, scale)
    return ridge.energy(moments, ridge.posterior(moments, t)) - problem.truth


@dataclass(frozen=True)
class Nodes:
    """Positions of a quadrature rule for each of R problems and the logarithms of their weights.

    position (R, Q, 2), log_weight (R, Q); the weights are those of the prior.
    """

    position: Float[Tensor, "R Q 2"]
    log_weight: Float[Tensor, "R Q"]

    def log_sum(self, log_values: Float[Tensor, "R Q"]) -> Float[Tensor, " R"]:
        """log of the prior mean of exp(values)."""
        return (log_values + self.log_weight).logsumexp(1)

    def mean(self, log_values: Float[Tensor, "R Q"], of: Float[Tensor, "R Q"]) -> Float[Tensor, " R"]:
        """The mean of ``of`` under weights proportional to the prior times exp(values)."""
        return (torch.softmax(log_values + self.log_weight, 1) * of).sum(1)


RADII = 14  # nodes of the logarithm of the radius, from e^-4.5 to e^1.9; more change less than 1e-3 nats
CELLS = 20  # of the circle that are split at each refinement
PARTS = 8  # that each of them is split into


def one_unit(
    target: CollapsedHinges,
    t: Float[Tensor, "R 1"],
    angles: int = 128,
    refinements: int = 3,
    radii: int = RADII,
) -> Nodes:
    """Nodes for the integral over the two hidden parameters of a 1-1-1 network, its output layer integrated out exactly.

    Polar coordinates: the angle of (weight, bias) places the kink, the radius only scales the unit. The trapezoid rule
    in the logarithm of the radius converges fast; the circle is refined where the posterior at temperature ``t`` lies.
    """
    if target.layers.widths != (1, 1):
        raise ValueError(
            f"the quadrature is for 1-1-1 networks, not for hidden layers {target.layers.widths[1:]}."
        )
    device = t.device
    logarithm = torch.linspace(-4.5, 1.9, radii, dtype=torch.float64, device=device)
    radius = logarithm.exp()
    radial = 2 * logarithm - 0.5 * radius.square()  # rho² exp(-rho²/2) d log rho
    radial = radial - radial.logsumexp(0)

    def nodes(angle: Tensor) -> Nodes:
        gaps = angle.diff(dim=1, append=angle[:, :1] + 2 * math.pi)
        weight = 0.5 * (gaps + gaps.roll(1, dims=1)) / (2 * math.pi)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        position = (direction[:, :, None] * radius[:, None]).flatten(1, 2)
        return Nodes(position, (weight.log()[:, :, None] + radial).flatten(1))

    start = (torch.arange(angles, dtype=torch.float64, device=device) + 0.5) * (2 * math.pi / angles)
    angle = start.expand(target.problems, -1)
    inner = torch.arange(1, PARTS, dtype=torch.float64, device=device) / PARTS
    for _ in range(refinements):
        here = nodes(angle)
        log_values = target.log_likelihood(target.statistics(here.position), t)
        mass = torch.softmax(log_values + here.log_weight, 1).unflatten(1, (-1, radii)).sum(2)
        gaps = angle.diff(dim=1, append=angle[:, :1] + 2 * math.pi)
        cell = (mass + mass.roll(-1, dims=1)).topk(min(CELLS, mass.shape[1]), dim=1).indices
        added = angle.gather(1, cell)[..., None] + gaps.gather(1, cell)[..., None] * inner
        angle = torch.cat([angle, added.flatten(1)], dim=1).sort(dim=1).values
    return nodes(angle)


def one_unit_free_energy(
    target: CollapsedHinges,
    t: Float[Tensor, "R 1"],
    angles: int = 128,
    refinements: int = 3,
    radii: int = RADII,
) -> Float[Tensor, " R"]:
    """F_n - n S_n (or F0) of the 1-1-1 network at temperature ``t``, exact to about 2e-3 nats up to n = 1,000."""
    nodes = one_unit(target, t, angles, refinements, radii)
    return -nodes.log_sum(target.log_likelihood(target.statistics(nodes.position), t))
