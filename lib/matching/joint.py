"""Joint alignment of n networks: one order of units for all of them.

All good objectives are the same one: with U_p the permuted network p, the sum over pairs of ⟨U_p, U_q⟩ is largest where the
sum of squared distances is smallest, n Σ_p |U_p - mean|², and equals (|Σ_p U_p|² - Σ_p |U_p|²) / 2. Methods under this roof:

- ``joint`` (ours): start from the best reference, then bring one network after the other nearer to the sum of the others, a group
  at a time. Each step solves its group exactly, so that the objective never falls below the best reference's.
- ``reference``: each network matched to one of them, the best choice of all n by the objective (or the one that is named).
- ``merge_many`` (Ainsworth, Hayase & Srinivasa 2023, algorithm 3): from the orders as they are, a random network is matched to the
  mean of the others, until none moves.
- ``frank_wolfe`` (C2M3, Crisostomi et al. 2024): ascent in doubly stochastic matrices, all layers at once, then rounded.

Every one gives each network a permutation of its own, so that cycles close exactly.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from lib.device import one_thread
from lib.matching.ascent import seats
from lib.matching.assignment import Solver, solver
from lib.matching.units import compared, refuse_broken
from lib.matching.weights import match, toward, wide_enough
from lib.params import Params, member, population_size, select, stack
from lib.randomness import permutation
from lib.symmetry import Symmetries, compose, identity, inverse, members_of, permute

METHODS = ("joint", "reference", "merge_many", "frank_wolfe")
Perms = tuple[Int64[Tensor, "n _"], ...]


@dataclass(frozen=True, eq=False)
class Aligned:
    """n networks in one order: params (n, ...) = permute(models, symmetries, perms), the same n functions.

    ``objective`` (1 + sweeps,) float64: Σ_{p<q} ⟨U_p, U_q⟩ at the start and after each sweep over the networks. ``solves`` counts
    assignment problems (0 where a method does not say), ``seconds`` time.
    """

    params: Params
    perms: Perms
    objective: Float64[Tensor, " sweeps"]
    solves: int
    seconds: float


def match_many(
    models: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]],
    symmetries: Symmetries,
    method: str = "joint",
    *,
    reference: int | None = None,
    start: Perms | None = None,
    restarts: int = 0,
    seed: int = 0,
    assignment: str = "scipy",
) -> Aligned:
    """n networks of one architecture, a population (n, ...) or a list of single ones, brought into one order of their units.

    ``reference`` names the network that "reference" and the start of "joint" use, in place of the best of all; "joint" can
    also be given permutations to ``start`` from, of which the objective never falls short. "joint" with
    ``restarts`` = k climbs from the k next best references too, and keeps the best. ``seed`` orders the visits of "merge_many".

    Raises ValueError for fewer than two networks, networks of another architecture, weights that are not finite, or a method,
    reference or solver that is not known.
    """
    if method not in METHODS:
        raise ValueError(f"there is no method {method!r}: choose one of {', '.join(METHODS)}.")
    if restarts < 0:
        raise ValueError(f"{restarts} restarts: their number is 0 or more.")
    if not isinstance(models, Mapping):
        for model in models:
            if model.keys() == symmetries.shapes.keys():  # other names are what stack refuses
                members_of(model, symmetries)
        models = stack(list(models))
    models = dict(models)
    members = members_of(models, symmetries)
    if members is None or members < 2:
        raise ValueError(
            "joint alignment needs at least two networks: give a population, or a list of networks."
        )
    if reference is not None and not 0 <= reference < members:
        raise ValueError(f"there is no network {reference}: references are numbered 0 to {members - 1}.")
    names, chosen, started = compared(symmetries), solver(assignment), time.perf_counter()
    refuse_broken(models, names)
    if method == "frank_wolfe":
        from lib.matching.frank_wolfe import frank_wolfe

        perms, history, solves = frank_wolfe(models, symmetries).perms, [], 0
    elif method == "merge_many":
        with one_thread():
            start = tuple(unit.expand(members, -1) for unit in identity(symmetries))
            perms, history, solves = _ascend(models, symmetries, start, chosen, seed=seed)
    else:
        stars, solves = [(0.0, start)], 0
        if start is None:
            stars, solves = _stars(models, symmetries, reference, assignment)
        stars.sort(key=lambda star: -star[0])
        if method == "reference":
            perms, history = stars[0][1], []
        else:
            with one_thread():
                climbs = [
                    _ascend(models, symmetries, star, chosen, rounds=1) for _, star in stars[: 1 + restarts]
                ]
            perms, history, _ = max(climbs, key=lambda climb: climb[1][-1])
            solves += sum(count for _, _, count in climbs)
    aligned = permute(models, symmetries, perms)
    if not history:
        history = [objective(models, symmetries), objective(aligned, symmetries)]
    seconds = time.perf_counter() - started
    return Aligned(aligned, perms, torch.tensor(history, dtype=torch.float64), solves, seconds)


def objective(params: Mapping[str, Tensor], symmetries: Symmetries) -> float:
    """Σ_{p<q} ⟨U_p, U_q⟩ of n networks (n, ...), float64."""
    total = 0.0
    for name in compared(symmetries):
        tensor = params[name].double().flatten(1)
        total += float(tensor.sum(0).square().sum() - tensor.square().sum()) / 2
    return total


def pairwise(
    models: Mapping[str, Tensor], symmetries: Symmetries, *, assignment: str = "scipy"
) -> tuple[tuple[Int64[Tensor, "n n _"], ...], int]:
    """For each pair (a, b) the permutation that brings network b into the order of a, each group (n, n, size); and the solves.

    Half of the pairs are matched, the others are inverses: without ties both ways give the same.
    """
    members = members_of(models, symmetries)
    if members is None or members < 2:
        raise ValueError("pairs need at least two networks: give a population.")
    first, second = torch.triu_indices(members, members, 1)
    found = match(select(models, first), select(models, second), symmetries, assignment=assignment)
    table = [unit.expand(members, members, -1).clone() for unit in identity(symmetries)]
    back = inverse(symmetries, found.perms)
    for group, there, here in zip(table, found.perms, back, strict=True):
        group[first, second], group[second, first] = there.cpu(), here.cpu()
    return tuple(table), found.solves


def _stars(
    models: Params, symmetries: Symmetries, reference: int | None, assignment: str
) -> tuple[list[tuple[float, Perms]], int]:
    """For the named reference, or for each, the objective and the permutations that bring all networks to it."""
    members, device = len(next(iter(models.values()))), next(iter(models.values())).device
    if reference is not None:
        found = match(member(models, reference), models, symmetries, assignment=assignment)
        return [(objective(found.params, symmetries), found.perms)], found.solves
    table, solves = pairwise(models, symmetries, assignment=assignment)
    stars = []
    for r in range(members):
        perms = tuple(group[r].to(device) for group in table)
        stars.append((objective(permute(models, symmetries, perms), symmetries), perms))
    return stars, solves


Climbed = tuple[Perms, list[float], int]  # permutations, objective after each sweep, problems solved


def _ascend(
    models: Params,
    symmetries: Symmetries,
    start: Perms,
    chosen: Solver,
    *,
    rounds: int | None = None,
    seed: int | None = None,
) -> Climbed:
    """Networks in turn (with ``seed`` in random order), each towards the sum of all others, until a sweep moves none."""
    names, plain = compared(symmetries), seats(symmetries)
    here, perms = permute(models, symmetries, start), [perm.clone() for perm in start]
    total = {name: here[name].double().sum(0) for name in names}
    history, solves, members = [objective(here, symmetries)], 0, torch.arange(population_size(here))
    moving = True
    while moving:
        moving, sweep = False, torch.tensor([len(history)])
        order = members if seed is None else permutation(seed, sweep, "matching/visits", 0, len(members))[0]
        for p in order.tolist():
            own = member(here, p)
            others = {name: total[name] - own[name] for name in names}
            mine = {name: wide_enough(own[name]) for name in names}
            step, count = toward(others, mine, symmetries, plain, chosen, rounds)
            solves += count
            if step is None:
                continue
            moving = True
            moved = permute(own, symmetries, step)
            for name in moved:
                here[name][p] = moved[name]
            total |= {name: others[name] + moved[name] for name in names}
            for perm, both in zip(perms, compose(symmetries, [perm[p] for perm in perms], step), strict=True):
                perm[p] = both
        history.append(objective(here, symmetries))
    return tuple(perms), history, solves
