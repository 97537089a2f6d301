r"""One hidden ReLU layer on one input, by moments of intervals instead of sums over points.

A hidden unit $(wx + b)_+$ is a line on a half-line of inputs, so the product of two units is a parabola on the intersection
of two half-lines. Tables of cumulated $q, qx, qx^2$ and $qy, qxy$ over the sorted points give every second moment that
`lib.free_energy.ridge` needs by two look-ups, whatever the number of points: the cost is that of the units alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lib.free_energy.regression import Regression
from lib.free_energy.ridge import Moments


@dataclass(frozen=True)
class Tables:
    """Sorted points of R problems and cumulated sums over them.

    Attributes:
        points: (R, N) in rising order.
        origin: a number below all points; inputs are counted from it, so that every sum over weights and inputs rises.
        sums: cumulated q, qx, qx², qy, qxy with a leading zero, 5 x (R (N + 1),), the problems end to end.
        power: the weighted sum of squared targets, (R, 1).
    """

    points: Float[Tensor, "R N"]
    origin: float
    sums: Float[Tensor, "5 rows"]
    power: Float[Tensor, "R 1"]


def tables(problem: Regression) -> Tables:
    """The tables of a problem with one input and one output; raises ValueError for any other."""
    if problem.inputs.shape[2] != 1 or problem.targets.shape[2] != 1:
        raise ValueError(
            f"hinges take one input and one output, not {problem.inputs.shape[2]} and {problem.targets.shape[2]}: "
            "use the targets that visit every point."
        )
    points, order = problem.inputs[..., 0].sort(dim=1)
    q, y = problem.weights.gather(1, order), problem.targets[..., 0].gather(1, order)
    origin = float(points.min())
    x = points - origin
    sums = torch.stack([q, q * x, q * x * x, q * y, q * y * x]).cumsum(-1)
    sums = torch.nn.functional.pad(sums, (1, 0)).flatten(1)
    return Tables(points.contiguous(), origin, sums, problem.power[:, None])


@dataclass(frozen=True)
class Hinges:
    """Moments of H units and a constant at one set of hidden weights, and what their gradient needs.

    ``pair_by_weight`` (k, k, R, P) is the derivative of the gram's entry (i, j) in the weight of unit i alone,
    ``pair_by_bias`` that in its bias; ``cross_by_weight``, ``cross_by_bias`` (k, R, P) likewise. k = H + 1; inputs are counted
    from ``origin``.
    """

    moments: Moments
    origin: float
    pair_by_weight: Float[Tensor, "k k R P"]
    pair_by_bias: Float[Tensor, "k k R P"]
    cross_by_weight: Float[Tensor, "k R P"]
    cross_by_bias: Float[Tensor, "k R P"]

    def pull(self, gram: Tensor, cross: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives in the units' weights and biases (H, R, P) from those in the gram and in the cross moments."""
        hidden = slice(0, len(gram) - 1)
        weight = 2 * (gram[hidden] * self.pair_by_weight[hidden]).sum(1)
        bias = 2 * (gram[hidden] * self.pair_by_bias[hidden]).sum(1)
        weight += cross[hidden, 0] * self.cross_by_weight[hidden]
        bias += cross[hidden, 0] * self.cross_by_bias[hidden]
        return weight + self.origin * bias, bias


def active(
    tables: Tables, weight: Float[Tensor, "H R P"], bias: Float[Tensor, "H R P"]
) -> tuple[Int64[Tensor, "H R P"], Int64[Tensor, "H R P"]]:
    """First and one past the last point at which each unit is positive; equal where it is dead on all points."""
    hidden, problems, particles = weight.shape
    weight = weight + 0.0  # a weight of -0.0 would put its infinite kink on the wrong side
    kinks = (-bias / weight).transpose(0, 1).reshape(problems, -1).contiguous()
    rank = torch.searchsorted(tables.points, kinks).unflatten(1, (hidden, particles)).transpose(0, 1)
    rising = weight >= 0
    return torch.where(rising, rank, 0), torch.where(rising, tables.points.shape[1], rank)


def hinges(tables: Tables, weight: Float[Tensor, "H R P"], bias: Float[Tensor, "H R P"]) -> Hinges:
    """The moments of H hidden units and a constant for P networks in each of R problems."""
    problems, particles = weight.shape[1:]
    points = tables.points.shape[1]
    first, end = active(tables, weight, bias)
    bias = bias + tables.origin * weight
    # the constant is a unit that never dies
    one = weight.new_ones(1, problems, particles)
    weight, bias = torch.cat([weight, 0 * one]), torch.cat([bias, one])
    first, end = torch.cat([first, 0 * first[:1]]), torch.cat([end, points + 0 * end[:1]])
    start = torch.arange(problems, device=weight.device)[:, None] * (points + 1)
    low = tables.sums.index_select(1, (first + start).flatten()).view(5, *weight.shape)
    high = tables.sums.index_select(1, (end + start).flatten()).view(5, *weight.shape)

    def shared(sort: int) -> Tensor:
        """The sum over the points where both of two units are positive: sums rise, so the intersection is a min and a max."""
        low_of_both = torch.maximum(low[sort, :, None], low[sort, None])
        return torch.minimum(high[sort, :, None], high[sort, None]).sub_(low_of_both).clamp_min_(0)

    m0, m1, m2 = map(shared, range(3))
    by_weight = (weight * m2).add_(bias * m1)
    by_bias = m1.mul_(weight).add_(m0.mul_(bias))
    c0, c1 = high[3:] - low[3:]
    gram = (weight[:, None] * by_weight).add_(bias[:, None] * by_bias)
    cross = (weight * c1 + bias * c0)[:, None]
    return Hinges(Moments(gram, cross, tables.power), tables.origin, by_weight, by_bias, c1, c0)
