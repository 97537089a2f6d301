"""All networks in the order of each: what every claim about two or three networks reads.

``Table`` holds for each group (n, n, size) permutations: the one at [c, b] brings network b into the order of network c. The *star*
of c is the population in which all networks stand in c's order. In it, the line between a and b is direct where c is one of
them, and indirect, through a third network, where it is not (Sharma et al. 2024; notes, section 1.4).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lib.connectivity import lines
from lib.matching import match, match_activations_pairs
from lib.parallel import side_by_side
from lib.params import Params, select
from lib.symmetry import Symmetries, identity, inverse, permute, random_permutations
from lib.three_models.problem import Problem

WEIGHTS, ACTIVATIONS = "weight matching", "activation matching"
MATCHINGS = (WEIGHTS, ACTIVATIONS)
MATCHED = 2_000  # training images on which activations are compared
Table = tuple[Int64[Tensor, "n n _"], ...]


def table(
    problem: Problem, params: Params, matching: str, pairs: Int64[Tensor, "K 2"] | None = None
) -> Table:
    """Each pair matched one way, the way back being its inverse; of all pairs, or of those that are listed.

    Activation matching: Pearson correlation after the nonlinearity, on the training images.
    """
    members = len(next(iter(params.values())))
    pairs = torch.combinations(torch.arange(members)) if pairs is None else pairs
    first, second = pairs.unbind(1)
    if matching == WEIGHTS:
        perms = _by_weights(problem, params, pairs)
    else:
        perms = match_activations_pairs(
            problem.net, params, pairs, problem.symmetries, problem.learn.inputs[:MATCHED]
        ).perms
    there = tuple(perm.cpu() for perm in perms)
    found = [unit.expand(members, members, -1).clone() for unit in identity(problem.symmetries)]
    for group, forth, back in zip(found, there, inverse(problem.symmetries, there), strict=True):
        group[first, second], group[second, first] = forth, back
    return tuple(found)


def _by_weights(
    problem: Problem, params: Params, pairs: Int64[Tensor, "K 2"]
) -> tuple[Int64[Tensor, "K _"], ...]:
    """On a machine with an accelerator all its processors match: assignment problems are theirs."""
    first, second = pairs.unbind(1)
    if next(iter(params.values())).device.type == "cpu":
        return match(select(params, first), select(params, second), problem.symmetries).perms
    here, cpu = {name: tensor.cpu() for name, tensor in params.items()}, torch.device("cpu")
    pieces = [
        lambda rows=rows: _matched(problem.symmetries, select(here, rows[:, 0]), select(here, rows[:, 1]))
        for rows in pairs.split(-(-len(pairs) // (os.cpu_count() or 1)))
    ]
    return tuple(torch.cat(group) for group in zip(*side_by_side(pieces, cpu), strict=True))


def _matched(symmetries: Symmetries, first: Params, second: Params) -> tuple[Int64[Tensor, "K _"], ...]:
    return match(first, second, symmetries).perms


def stars(problem: Problem, params: Params, perms: Table) -> Params:
    """All networks in the order of each: a population (n · n, ...), network b in the order of c at c · n + b."""
    members = len(perms[0])
    everyone = {name: tensor.repeat(members, *[1] * (tensor.ndim - 1)) for name, tensor in params.items()}
    return permute(everyone, problem.symmetries, [perm.flatten(0, 1) for perm in perms])


@dataclass(frozen=True, eq=False)
class Barriers:
    """Loss and error barriers of one kind of lines: (n, n) for pairs, (n, n, n) for pairs in the star of each, [c, a, b].

    ``calibrated``: of the loss at each network's best softmax temperature, at the midpoint, if asked. Symmetric in a and b; no
    number where a is b.
    """

    loss: Float[np.ndarray, "*axes"]
    error: Float[np.ndarray, "*axes"]
    calibrated: Float[np.ndarray, "*axes"]


def barriers(
    problem: Problem, params: Params, pairs: Int64[Tensor, "K 2"], alphas: int, calibrate: bool = False
) -> Barriers:
    """Test barriers of the lines between pairs of a population, (K,) each."""
    test = problem.test
    found = lines(problem.net, params, pairs, test.inputs, test.targets, alphas)
    values = [found.barrier("loss"), found.barrier("error"), torch.full_like(found.loss[:, 0], torch.nan)]
    if calibrate:
        same = (
            test.inputs,
            test.targets,
        )  # one number a network; on training images it would be 0, since all of them are right
        middle = lines(problem.net, params, pairs, test.inputs, test.targets, 3, calibrate=same)
        values[2] = middle.barrier("calibrated")
    return Barriers(*(value.numpy() for value in values))


def in_stars(
    problem: Problem, params: Params, perms: Table, alphas: int, calibrate: bool = False
) -> Barriers:
    """The barrier between each a and b in the star of each c, (n, n, n)."""
    members = len(perms[0])
    a, b = torch.triu_indices(members, members, 1)
    c = torch.arange(members)[:, None] * members
    pairs = torch.stack([(c + a).flatten(), (c + b).flatten()], 1)
    flat = barriers(problem, stars(problem, params, perms), pairs, alphas, calibrate)
    every = torch.stack([a, b], 1)
    return Barriers(*(_spread(values, members, every, members) for values in vars(flat).values()))


def between_pairs(
    problem: Problem,
    params: Params,
    perms: Table | None,
    alphas: int,
    calibrate: bool = False,
    pairs: Int64[Tensor, "K 2"] | None = None,
) -> Barriers:
    """The barrier between each a and b as they are, or with b in the order that ``perms`` gives it for a; (n, n).

    No number for pairs that are not among the ``pairs``.
    """
    members = len(next(iter(params.values())))
    pairs = torch.combinations(torch.arange(members)) if pairs is None else pairs
    if perms is None:
        flat = barriers(problem, params, pairs, alphas, calibrate)
    else:
        ends = permute(
            select(params, pairs[:, 1]), problem.symmetries, [p[pairs[:, 0], pairs[:, 1]] for p in perms]
        )
        both = {name: torch.cat([params[name], ends[name]]) for name in params}
        moved = torch.stack([pairs[:, 0], members + torch.arange(len(pairs))], 1)
        flat = barriers(problem, both, moved, alphas, calibrate)
    return Barriers(*(_spread(values, members, pairs) for values in vars(flat).values()))


def random_table(problem: Problem, members: int, seed: int) -> Table:
    """The control: for every pair a permutation drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    drawn = random_permutations(problem.symmetries, generator, members * members)
    return tuple(perm.view(members, members, -1) for perm in drawn)


def of_pairs(values: Float[np.ndarray, "*axes"], some: Sequence[int] | np.ndarray) -> float:
    """Mean over all pairs of some networks."""
    return float(np.nanmean(values[np.ix_(some, some)]))


def direct(values: Float[np.ndarray, "n n n"]) -> Float[np.ndarray, "*axes"]:
    """The direct barrier of each pair: in the star of one of the two."""
    rows = np.arange(len(values))
    return np.triu(values[rows, rows]) + np.triu(values[rows, rows], 1).T


def through_third(values: Float[np.ndarray, "n n n"], some: Sequence[int] | np.ndarray) -> float:
    """Mean over all pairs of some networks and all thirds among them."""
    inner = values[np.ix_(some, some, some)].copy()
    here = np.arange(len(some))
    inner[here, here], inner[here, :, here] = np.nan, np.nan
    return float(np.nanmean(inner))


def _spread(values: np.ndarray, members: int, pairs: Tensor, thirds: int | None = None) -> np.ndarray:
    """From the list of pairs (for each third) to symmetric tables without a diagonal."""
    a, b = pairs.numpy().T
    table = np.full((thirds or 1, members, members), np.nan)
    table[:, a, b] = table[:, b, a] = values.reshape(thirds or 1, -1)
    return table if thirds else table[0]
