"""Linear assignment: which of their units stands at each of our places, so that the sum of worths is largest.

Two solvers under one roof. ``assign``, the default, solves one problem after the other on the CPU, exactly: SciPy's shortest
augmenting paths, for large problems after an *opening* auction, whose prices bring most rows beside the column that they will
get, so that the paths are short. ``auction`` (Bertsekas 1988, with scaled steps) works on all problems of a batch and on any
device; its sum falls short of the best by at most ``SHORT`` of the spread of worths. Permutations of two solvers may differ where
worths tie: compare sums, never permutations.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

Solver = Callable[[Tensor], Tensor]
LARGE = 700  # units from which an opening pays
BIDS, STEP, FEW = (
    60,
    0.002,
    0.02,
)  # the opening: rounds at most, step over the spread, share of rows left to SciPy
SHORT = 1e-9
SCALING = 5.0  # by which the auction's step shrinks from round to round


def assign(worth: Float[Tensor, "P size size"]) -> Int64[Tensor, "P size"]:
    """For each of P problems the permutation p that maximises the sum over i of worth[i, p[i]], exactly."""
    from scipy.optimize import linear_sum_assignment

    perms = []
    for one in worth.cpu().numpy():
        one = one if len(one) < LARGE else one - _opening(one)
        perms.append(linear_sum_assignment(one - one.max(1, keepdims=True), maximize=True)[1])
    return torch.from_numpy(np.stack(perms)).long().to(worth.device)


def _opening(worth: Float[np.ndarray, "size size"]) -> Float[np.ndarray, " size"]:
    """Prices of the columns after some rounds of bidding: rows without a column bid for the one they gain most by."""
    size = len(worth)
    step = STEP * float(worth.max() - worth.min())
    prices, owner, column = np.zeros_like(worth[0]), np.full(size, -1), np.full(size, -1)
    for _ in range(BIDS):
        free = np.flatnonzero(column < 0)
        if len(free) <= FEW * size:
            break
        gains, row = worth[free] - prices, np.arange(len(free))
        best = gains.argmax(1)
        first, gains[row, best] = gains[row, best], -np.inf
        bid = prices[best] + first - gains.max(1) + step
        order = bid.argsort(kind="stable")
        highest, winner = np.full(size, -np.inf, worth.dtype), np.full(size, -1)
        highest[best[order]], winner[best[order]] = bid[order], free[order]  # the last, highest bid stays
        sold = np.flatnonzero(winner >= 0)
        before = owner[sold]
        column[before[before >= 0]] = -1
        owner[sold], column[winner[sold]], prices[sold] = winner[sold], sold, highest[sold]
    return prices


def auction(worth: Float[Tensor, "P size size"]) -> Int64[Tensor, "P size"]:
    """The same by auction alone, all problems at once on the tensor's device.

    A bid raises the column's price until another column would be as good, and by a step besides; steps shrink from a quarter of
    the spread of worths to ``SHORT`` / size of it, each round starting from the last one's prices.
    """
    problems, size, _ = worth.shape
    if size == 1:
        return torch.zeros(problems, 1, dtype=torch.int64, device=worth.device)
    worth = worth.double()
    spread = (worth.amax((1, 2)) - worth.amin((1, 2))).clamp(min=torch.finfo(torch.float64).tiny)
    worth = (worth - worth.amax((1, 2), keepdim=True)) / spread[:, None, None]
    prices = worth.new_zeros(problems, size)
    step, last = 0.25, SHORT / size
    while True:
        column = _until_sold(worth, prices, step)
        if step <= last:
            return column
        step = max(step / SCALING, last)


def _until_sold(worth: Tensor, prices: Tensor, step: float) -> Tensor:
    """Bidding until every row has a column, (P, size); prices rise in place."""
    problems, size, _ = worth.shape
    column = torch.full((problems, size), -1, device=worth.device)
    owner = column.clone()
    while len(free := (column < 0).nonzero()):
        p, row = free.unbind(1)
        gains, columns = (worth[p, row] - prices[p]).topk(2, dim=1)
        best = columns[:, 0]
        bid = prices[p, best] + gains[:, 0] - gains[:, 1] + step
        place = p * size + best
        highest = prices.new_full((problems * size,), -torch.inf).scatter_reduce(0, place, bid, "amax")
        wins = bid == highest[place]
        winner = torch.full((problems * size,), -1, device=worth.device)
        winner = winner.scatter_reduce(0, place[wins], row[wins], "amax")  # of equal bids, one
        sold = (winner >= 0).nonzero().flatten()
        p, best, row = sold // size, sold % size, winner[sold]
        before = owner[p, best]
        left = before >= 0
        column[p[left], before[left]] = -1
        column[p, row], owner[p, best] = best, row
        prices[p, best] = highest[sold]
    return column


SOLVERS: dict[str, Solver] = {"scipy": assign, "auction": auction}


def solver(name: str) -> Solver:
    """The solver of this name, "scipy" or "auction"; raises ValueError for another."""
    if name not in SOLVERS:
        raise ValueError(
            f"there is no assignment solver called {name!r}: choose one of {', '.join(SOLVERS)}."
        )
    return SOLVERS[name]
