"""How much independent networks differ as functions: mutual information of every pair, in and out of distribution.

For two networks with probabilities p and q on one input the mutual information of label and network is the
Jensen-Shannon divergence H((p + q) / 2) - (H(p) + H(q)) / 2 in nats, from 0 (the same function) to log 2. Its
distribution over pairs is Figure 3 of the first paper and claim P1-C11.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lib import blocks, randomness
from lib.claims import Measurement
from lib.metrics import check_probabilities

ROWS, COLUMNS = 16, 128  # of a block of pairs on a CPU
DEVICE_ROWS, DEVICE_COLUMNS = 128, 1024  # on an accelerator
SLAB = 2048  # probabilities of a network taken at a time: those of COLUMNS networks then stay in the cache
TILE, DEVICE_TILE = 1 << 18, 1 << 27  # mixtures held at a time: 1 MB of the cache; 512 MB of an accelerator
SMALL = (
    1e-4  # nats; entropies in float32 miss by up to about 1e-7, so a pair below this is taken again exactly
)
TOGETHER = 16  # pairs that are taken exactly at a time


def pairwise_mutual_information(probabilities: Float[Tensor, "P N K"]) -> Float[Tensor, "P P"]:
    """Mutual information of every pair of P networks on the same N inputs, mean over inputs, in nats, float64.

    A difference of entropies costs one logarithm a pair, input and class, in the type of the probabilities. Where it
    comes out below ``SMALL`` it has lost digits, and the pair is computed again as in `paired_mutual_information`. The
    diagonal is 0. Raises ValueError for a single network and for what is no probability.
    """
    check_probabilities(probabilities)
    count, inputs, _ = probabilities.shape
    if count < 2:
        raise ValueError("there is one network: mutual information needs a pair.")
    device, kind = probabilities.device, torch.promote_types(probabilities.dtype, torch.float32)
    tall, wide = (ROWS, COLUMNS) if device.type == "cpu" else (DEVICE_ROWS, DEVICE_COLUMNS)
    half = (probabilities.flatten(1).to(kind) / 2).clamp_min_(torch.finfo(kind).tiny)
    own = torch.cat([torch.special.entr(2 * row.double()).sum(1) / 2 for row in half.split(tall)])
    found = torch.zeros(count, count, dtype=torch.float64, device=device)

    def fill(block: tuple[slice, slice]) -> None:
        rows, columns = block
        mixed = _entropy_of_mixtures(half[rows], half[columns])
        found[rows, columns] = (mixed - own[rows, None] - own[columns]) / inputs

    blocks.each(
        fill,
        [
            (slice(top, min(top + tall, count)), slice(left, min(left + wide, count)))
            for top in range(0, count, tall)
            for left in range(top, count, wide)
        ],
        device,
    )
    pairs = torch.triu_indices(count, count, 1, device=device)
    first, second = pairs[:, found[pairs[0], pairs[1]] < SMALL]
    found[first, second] = _exact(probabilities, probabilities, first, second)
    upper = found.triu(1)
    return upper + upper.T


def paired_mutual_information(p: Float[Tensor, "P N K"], q: Float[Tensor, "P N K"]) -> Float[Tensor, " P"]:
    """Mutual information of network i of p and network i of q, mean over inputs, in nats, float64.

    With u = (p - q) / (p + q) the divergence is sum (p + q) ((1 + u) log(1 + u) + (1 - u) log(1 - u)) / 4: no entropies
    are subtracted, so a copy that differs in the seventh digit comes out at 10⁻¹⁵ and not at their rounding, 10⁻⁷.
    """
    check_probabilities(p)
    check_probabilities(q)
    every = torch.arange(len(p), device=p.device)
    return _exact(p, q.to(p.device), every, every)


def _exact(p: Tensor, q: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """As `paired_mutual_information`, for network first[i] of p and second[i] of q."""

    def work(some: tuple[Tensor, Tensor]) -> Tensor:
        one, other = p[some[0]].double(), q[some[1]].double()
        total = one + other
        edge = 1 - torch.finfo(torch.float64).eps  # keeps 0 log 0 finite
        u = ((one - other) / total.clamp_min(torch.finfo(torch.float64).tiny)).clamp_(-edge, edge)
        terms = total * ((1 + u) * torch.log1p(u) + (1 - u) * torch.log1p(-u))
        return terms.sum((1, 2)) / (4 * p.shape[1])

    return torch.cat(
        blocks.each(work, zip(first.split(TOGETHER), second.split(TOGETHER), strict=True), p.device)
    )


def _entropy_of_mixtures(a: Tensor, b: Tensor) -> Tensor:
    """-sum m log m over inputs and classes for the mixtures m = a_i + b_j of each pair, in float64."""
    tile = TILE if a.device.type == "cpu" else DEVICE_TILE
    total = torch.zeros(len(a), len(b), dtype=torch.float64, device=a.device)
    rows = min(len(a), max(1, tile // (len(b) * min(SLAB, a.shape[1]))))
    buffers = torch.empty(2, rows * len(b) * min(SLAB, a.shape[1]), dtype=a.dtype, device=a.device)
    for start in range(0, a.shape[1], SLAB):
        one, other = a[:, None, start : start + SLAB], b[:, start : start + SLAB].contiguous()
        for top in range(0, len(a), rows):
            shape = (len(one[top : top + rows]), *other.shape)
            mixture, log = (buffer[: shape[0] * other.numel()].view(shape) for buffer in buffers)
            torch.log(torch.add(one[top : top + rows], other, out=mixture), out=log)
            total[top : top + rows] -= log.mul_(mixture).sum(-1)
    return total


@dataclass(frozen=True)
class Pairs:
    """Mutual information of all pairs on inputs from inside and outside the distribution, and the numerical floor.

    ``floor`` is the largest mutual information of a network and its permuted copy, which are the same function; at
    least that of two networks whose probabilities differ by one rounding.
    """

    inside: Float[Tensor, "P P"]
    outside: Float[Tensor, "P P"]
    floor: float

    def values(self) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
        """The P (P - 1) / 2 pairs as two vectors, for a figure."""
        first, second = torch.triu_indices(*self.inside.shape, 1, device=self.inside.device)
        return self.inside[first, second], self.outside[first, second]


def compare(
    inside: Float[Tensor, "P N K"], outside: Float[Tensor, "P M K"], permuted: Float[Tensor, "Q N K"]
) -> Pairs:
    """All pairs of P networks; ``permuted`` are the probabilities ``inside`` of permuted copies of the first Q."""
    rounding = torch.finfo(inside.dtype).eps ** 2 / 8
    copies = paired_mutual_information(inside[: len(permuted)], permuted)
    return Pairs(
        pairwise_mutual_information(inside),
        pairwise_mutual_information(outside),
        max(copies.max().item(), rounding),
    )


def measure(
    inside: Float[Tensor, "P N K"],
    outside: Float[Tensor, "P M K"],
    permuted: Float[Tensor, "Q N K"],
    *,
    groups: int = 3,
    resamples: int = 500,
    seed: int,
) -> list[Measurement]:
    """The four measurements of claim P1-C11 from probabilities; see `compare` and `measure_pairs`."""
    return measure_pairs(compare(inside, outside, permuted), groups=groups, resamples=resamples, seed=seed)


def measure_pairs(pairs: Pairs, *, groups: int = 3, resamples: int = 500, seed: int) -> list[Measurement]:
    """The four measurements of claim P1-C11.

    ``variation_ratio``, ``correlation``: all networks, with 95 % percentile intervals over resampled **networks**, since
    pairs share them; a pair counts as often as both its networks were drawn, and a network is no pair with its own double.
    ``smallest_share``, ``smallest_over_floor``: in each of ``groups`` disjoint groups of networks; the value is the
    groups' median and the interval runs from their smallest to their largest, n = networks of a group.
    Raises ValueError for fewer than two groups, or groups of fewer than three networks.
    """
    count = len(pairs.inside)
    size = count // groups if groups > 0 else 0
    if groups < 2 or size < 3:
        raise ValueError(
            f"{count} networks in {groups} groups: at least two groups of three networks are needed."
        )
    value, low, high = _over_networks(pairs, resamples, seed)
    found = [
        Measurement(name, "all pairs", v, min(v, least), max(v, most), n=count, seeds=1)
        for name, v, least, most in zip(("variation_ratio", "correlation"), value, low, high, strict=True)
    ]
    parts = [
        Pairs(*(m[part, part] for m in (pairs.inside, pairs.outside)), pairs.floor).values()[0].cpu().numpy()
        for part in (slice(g * size, (g + 1) * size) for g in range(groups))
    ]
    for name, each in (
        ("smallest_share", [part.min() / np.median(part) for part in parts]),
        ("smallest_over_floor", [part.min() / pairs.floor for part in parts]),
    ):
        ends = (np.median(each), min(each), max(each))
        found.append(Measurement(name, "all pairs", *ends, n=size, seeds=groups))
    return found


def spearman(x: Float[np.ndarray, " k"], y: Float[np.ndarray, " k"]) -> float:
    """Spearman's rank correlation with mean ranks for ties; not a number where either is constant."""
    both = torch.from_numpy(np.stack([x, y]).astype(np.float64))
    weights = torch.ones(both.shape[1], dtype=torch.float64)
    return _correlation(*(_ranks(_places(values), weights) for values in both), weights).item()


def _over_networks(pairs: Pairs, resamples: int, seed: int) -> tuple[list[float], list[float], list[float]]:
    """Ratio of the coefficients of variation and rank correlation, with their intervals over networks."""
    count, device = len(pairs.inside), pairs.inside.device
    inside, outside = pairs.values()
    order = inside.argsort()  # so that one of the two rankings walks through memory in order
    first, second = torch.triu_indices(count, count, 1, device=device)[:, order]
    values = torch.stack([inside[order], outside[order]])
    places = [_places(part) for part in values]

    def statistic(times: Tensor) -> Tensor:
        weights = times[first] * times[second]
        drawn = weights.nonzero().squeeze(1)
        weights, each = weights[drawn], values[:, drawn]
        inside, outside = (_variation(part, weights) for part in each)
        ranks = (_ranks((place[drawn], distinct), weights) for place, distinct in places)
        return torch.stack([outside / inside, _correlation(*ranks, weights)])

    members = torch.arange(resamples, device=device)
    drawn = randomness.integers(seed, members, "diversity/networks", 0, count, (count,))
    every = torch.ones(count, dtype=torch.float64, device=device)
    times = [every, *(row.bincount(minlength=count).double() for row in drawn)]
    value, *again = torch.stack(blocks.each(statistic, times, device)).cpu()
    levels = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = torch.quantile(torch.stack(again), levels, dim=0)
    return value.tolist(), low.tolist(), high.tolist()


def _variation(values: Tensor, weights: Tensor) -> Tensor:
    """Coefficient of variation."""
    mean = weights @ values / weights.sum()
    return (weights @ (values - mean) ** 2 / weights.sum()).sqrt() / mean


def _places(values: Tensor) -> tuple[Tensor, int]:
    """The place of each value among the distinct ones, and how many these are."""
    distinct, place = values.unique(return_inverse=True)
    return place, len(distinct)


def _ranks(places: tuple[Tensor, int], weights: Tensor) -> Tensor:
    """Mean ranks, up to a constant, of values of which the i-th occurs weights[i] times."""
    place, distinct = places
    held = torch.zeros(distinct, dtype=weights.dtype, device=weights.device).index_add_(0, place, weights)
    return (held.cumsum(0) - held / 2)[place]


def _correlation(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    x, y = (v - weights @ v / weights.sum() for v in (x, y))
    return weights @ (x * y) / ((weights @ (x * x)) * (weights @ (y * y))).sqrt()
