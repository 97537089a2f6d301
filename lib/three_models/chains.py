"""Permutations composed on the way from one network to another, and around closed cycles (P5-C10)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lib.intervals import jackknife
from lib.params import Params, select
from lib.randomness import permutation
from lib.rules import Measurement
from lib.symmetry import compose, permute
from lib.three_models.problem import Problem
from lib.three_models.stars import WEIGHTS, Barriers, Table, barriers, table

LONGEST = 3  # permutations in a chain; a cycle may have one more


def along(problem: Problem, perms: Table, way: Int64[Tensor, "K length"]) -> tuple[Int64[Tensor, "K _"], ...]:
    """The permutations that bring the last network of each way into the order of its first, by way of those between."""
    found = tuple(group[way[:, 0], way[:, 0]] for group in perms)  # nothing moves
    for step in range(way.shape[1] - 1, 0, -1):
        found = compose(problem.symmetries, found, [group[way[:, step - 1], way[:, step]] for group in perms])
    return found


def ways(members: int, composed: int, *, closed: bool, seed: int) -> Int64[Tensor, "K length"]:
    """For every pair of networks (every network, if closed) and each third one a way of ``composed`` permutations.

    Those between are distinct, the first of them taken in turn and the others drawn.
    """
    between = composed - 1
    found = []
    ends = [(a, a) for a in range(members)] if closed else torch.combinations(torch.arange(members)).tolist()
    for k, (a, b) in enumerate(ends):
        others = torch.tensor([c for c in range(members) if c not in (a, b)])
        for i in range(len(others) if between else 1):
            rolled = others.roll(-i)
            if between > 1:
                drawn = permutation(
                    seed, torch.tensor([k]), f"chains/{composed}/{closed}", i, len(others) - 1
                )[0]
                rolled = torch.cat([rolled[:1], rolled[1:][drawn]])
            found.append([a, *rolled[:between].tolist(), b])
    return torch.tensor(found)


def chains(
    problem: Problem, params: Params, alphas: int, *, seed: int
) -> dict[str, tuple[Int64[Tensor, "K length"], Barriers]]:
    """Barriers of chains of 1, 2 and 3 permutations ("1", "2", "3"), and of closed ones ("2-cycle", "3-cycle", "4-cycle")."""
    perms = table(problem, params, WEIGHTS)
    members, found = len(perms[0]), {}
    kinds = [(str(k), k, False) for k in range(1, LONGEST + 1)]
    kinds += [(f"{k}-cycle", k, True) for k in range(2, LONGEST + 2)]
    for name, composed, closed in kinds:
        way = ways(members, composed, closed=closed, seed=seed)
        moved = permute(select(params, way[:, -1]), problem.symmetries, along(problem, perms, way))
        both = {key: torch.cat([params[key], moved[key]]) for key in params}
        pairs = torch.stack([way[:, 0], members + torch.arange(len(way))], 1)
        found[name] = way, barriers(problem, both, pairs, alphas)
    return found


def mean(way: Int64[Tensor, "K length"], values: Float[np.ndarray, " K"], some: np.ndarray) -> float:
    """Over the ways that pass through some networks alone."""
    inside = np.isin(way.numpy(), some).all(1)
    return float(values[inside].mean())


def levels(
    found: Mapping[str, tuple[Tensor, Barriers]], what: str = "error"
) -> dict[str, tuple[float, float, float]]:
    """Mean barrier of each kind of way, with its interval over networks."""
    names = list(found)
    members = 1 + max(int(way.max()) for way, _ in found.values())

    def all_means(groups: list[np.ndarray]) -> np.ndarray:
        return np.array([mean(found[n][0], getattr(found[n][1], what), groups[0]) for n in names])

    intervals = np.stack(jackknife(all_means, [members]), 1)
    return {name: tuple(float(x) for x in row) for name, row in zip(names, intervals, strict=True)}


def measure_chains(found: Mapping[str, tuple[Tensor, Barriers]]) -> list[Measurement]:
    """P5-C10: what one more permutation adds, and the 2-cycle."""
    members = 1 + max(int(way.max()) for way, _ in found.values())

    def three(groups: list[np.ndarray]) -> np.ndarray:
        level = [mean(way, b.error, groups[0]) for way, b in (found[k] for k in ("1", "2", "3", "2-cycle"))]
        return np.array([level[1] - level[0], level[2] - level[1], level[3]])

    rows = np.stack(jackknife(three, [members]), 1)
    names = [("rise", "one to two"), ("rise", "two to three"), ("two_cycle", "2-cycle")]
    return [
        Measurement(name, cell, *row, n=members, seeds=members)
        for (name, cell), row in zip(names, rows, strict=True)
    ]
