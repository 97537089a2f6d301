"""Joint alignment of n networks by Frank-Wolfe: ascent in doubly stochastic matrices, all networks and layers at once.

C2M3 (Crisostomi et al., *Cycle-consistent multi-model merging*, 2024): each network p gets for each group one matrix D_p in
the Birkhoff polytope, which takes its units to a common order. The objective is that of ``lib.matching.joint``,
Σ_{p<q} ⟨U_p, U_q⟩, where U_p is network p with its units mixed by the D_p. A step goes from all D towards the permutations
that the gradient likes best, one assignment problem a group and network; at the end each D is rounded to the nearest
permutation, which may cost some of the objective. Of two networks the first stays as it is: both at once would chase each other.

Along a step every tensor is a polynomial of degree 2 in its length γ (at most two of its axes are mixed), U₀ + γ U₁ + γ² U₂,
and the objective one of degree 4: its maximum is found exactly, and the objective never falls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from lib.device import one_thread
from lib.matching.assignment import assign
from lib.matching.units import compared, owned, refuse_broken
from lib.params import Params
from lib.randomness import permutation
from lib.symmetry import Symmetries, members_of, permute
from lib.symmetry.act import move_units, precise
from lib.symmetry.structure import Place

GAIN, PATIENCE = 1e-6, 5  # stop after so many steps in a row that gain less, relative to the objective
STIR = 0.1  # the share of a random permutation in the start "uniform"

Owners = dict[str, list[tuple[int, Place]]]  # of each compared tensor the places on it, with their groups
Mixing = list[Float64[Tensor, "n _ _"]]  # one doubly stochastic matrix a group and network


@dataclass(frozen=True, eq=False)
class FrankWolfe:
    """n networks in one order: params (n, ...) = permute(params, symmetries, perms), the same n functions.

    ``objective`` (1 + steps,) float64: that of the doubly stochastic matrices, at the start and after each step. ``hard``: that
    of the networks as they are returned, after rounding.
    """

    params: Params
    perms: tuple[Int64[Tensor, "n _"], ...]
    objective: Float64[Tensor, " steps"]
    hard: float

    @property
    def steps(self) -> int:
        """How many steps were made."""
        return len(self.objective) - 1


def frank_wolfe(
    params: Mapping[str, Tensor],
    symmetries: Symmetries,
    *,
    iterations: int = 200,
    start: str = "identity",
    seed: int = 0,
) -> FrankWolfe:
    """Bring the networks of a population (n, ...) into one order of their units.

    From the orders that they have (``start`` "identity"), or "uniform": each unit spread over all places, with a tenth of a
    random permutation, drawn by ``seed``, since the centre itself is a saddle. Sums are float64.

    Raises ValueError for fewer than two networks, weights that are not finite, another ``start``, units inside exchangeable
    blocks, and tensors of which more than two axes are permuted.
    """
    members = members_of(params, symmetries)
    if members is None or members < 2:
        raise ValueError("joint alignment needs at least two networks: give a population (n, ...).")
    if start not in ("identity", "uniform"):
        raise ValueError(f"there is no start {start!r}: choose 'identity' or 'uniform'.")
    refuse_broken(params, compared(symmetries))
    owners = _owners(symmetries)
    plain = {name: precise(params[name]) for name in owners}
    device = next(iter(plain.values())).device
    with one_thread():
        mixing = _start(symmetries, members, start, seed, device)
        history = _climb(plain, owners, mixing, iterations)
        perms = tuple(assign(matrix).to(params[next(iter(owners))].device) for matrix in mixing)
        aligned = permute(params, symmetries, perms)
        rounded = {name: precise(aligned[name]) for name in owners}
    objective = torch.tensor(history, dtype=torch.float64)
    return FrankWolfe(aligned, perms, objective, _product(rounded, rounded))


def mix_units(
    tensor: Float[Tensor, "P ..."], place: Place, mixing: Float[Tensor, "_ size size"]
) -> Float[Tensor, "P ..."]:
    """Unit u of the result is Σ_v mixing[u, v] times unit v, at ``place``: ``move_units`` where the matrix is a permutation's."""
    if place.rows is not None:
        rows = place.rows.to(tensor.device)
        whole = Place(place.name, place.axis, place.index)
        return tensor.index_copy(1, rows, mix_units(tensor[:, rows], whole, mixing))
    index = place.index.flatten().to(tensor.device)
    mixed = tensor.movedim(place.axis + 1, 1).clone()
    mixed[:, index] = (mixing @ owned(tensor, place)).reshape(len(mixed), len(index), *mixed.shape[2:])
    return mixed.movedim(1, place.axis + 1)


def _owners(symmetries: Symmetries) -> Owners:
    owners: Owners = {name: [] for name in compared(symmetries)}
    for g, group in enumerate(symmetries.permutations):
        if group.inside is not None:
            raise ValueError(
                f"the units of {group.layer!r} live inside exchangeable blocks, which Frank-Wolfe does not order: use 'joint'."
            )
        for place in group.places:
            if place.name in owners:
                owners[place.name].append((g, place))
    for name, places in owners.items():
        if len({place.axis for _, place in places}) > 2:
            raise ValueError(
                f"more than two axes of {name!r} are permuted, which Frank-Wolfe does not treat: use 'joint'."
            )
    return owners


def _start(symmetries: Symmetries, members: int, start: str, seed: int, device: torch.device) -> Mixing:
    mixing = []
    for g, group in enumerate(symmetries.permutations):
        unit = torch.eye(group.size, dtype=torch.float64)
        if start == "identity":
            mixing.append(unit.expand(members, -1, -1).to(device))
            continue
        drawn = permutation(seed, torch.arange(members), "matching/start", g, group.size)
        spread = (1 - STIR) / group.size + STIR * unit[drawn]
        if members == 2:
            spread[0] = unit
        mixing.append(spread.to(device))
    return mixing


def _climb(plain: Params, owners: Owners, mixing: Mixing, iterations: int) -> list[float]:
    """Step until steps gain nothing; ``mixing`` is changed in place. The objective at the start and after each step."""
    here = _mixed(plain, owners, mixing)
    history, small, members = [_product(here, here)], 0, len(next(iter(here.values())))
    while small < PATIENCE and len(history) <= iterations:
        aims = [assign(gradient) for gradient in _gradient(plain, owners, mixing, here)]
        for perm in aims if members == 2 else []:
            perm[0] = torch.arange(perm.shape[1])  # the first stays
        vertex = [
            torch.zeros_like(d).scatter_(2, p[..., None], 1.0) for d, p in zip(mixing, aims, strict=True)
        ]
        middle = _mixed(plain, owners, [(d + v) / 2 for d, v in zip(mixing, vertex, strict=True)])
        there = _moved(plain, owners, aims)
        # three points give the polynomial U₀ + γ U₁ + γ² U₂ of each tensor
        slope = {name: 4 * middle[name] - 3 * here[name] - there[name] for name in here}
        bend = {name: 2 * (here[name] + there[name] - 2 * middle[name]) for name in here}
        step = _best_step(here, slope, bend)
        new = {name: here[name] + step * slope[name] + step**2 * bend[name] for name in here}
        value = _product(new, new)
        if value <= history[-1]:
            break
        here = new
        for g, aim in enumerate(vertex):
            mixing[g] = mixing[g] + step * (aim - mixing[g])
        history.append(value)
        small = small + 1 if value - history[-2] < GAIN * abs(history[-2]) else 0
    return history


def _mixed(plain: Params, owners: Owners, mixing: Mixing, but: Place | None = None) -> Params:
    """Each network's tensors with the units mixed at all places, or all but one."""
    mixed = dict(plain)
    for name, places in owners.items():
        for g, place in places:
            if place is not but:
                mixed[name] = mix_units(mixed[name], place, mixing[g])
    return mixed


def _moved(plain: Params, owners: Owners, perms: list[Int64[Tensor, "n _"]]) -> Params:
    moved = dict(plain)
    for name, places in owners.items():
        for g, place in places:
            moved[name] = move_units(moved[name], place, perms[g])
    return moved


def _gradient(plain: Params, owners: Owners, mixing: Mixing, here: Params) -> Mixing:
    """Of the objective by each matrix: at [p, u, v] what unit v of network p is worth at place u, beside all other networks."""
    gradient = [torch.zeros_like(matrix) for matrix in mixing]
    for name, places in owners.items():
        others = here[name].sum(0) - here[name]
        for g, place in places:
            rest = _mixed({name: plain[name]}, {name: places}, mixing, but=place)[name]
            gradient[g] += owned(others, place) @ owned(rest, place).mT
    return gradient


def _best_step(here: Params, slope: Params, bend: Params) -> float:
    """The γ in [0, 1] at which the objective of here + γ slope + γ² bend is largest."""
    terms = (here, slope, bend)
    coefficients = np.zeros(5)
    for i, one in enumerate(terms):
        for j, other in enumerate(terms):
            coefficients[i + j] += _product(one, other)
    polynomial = np.polynomial.Polynomial(coefficients)
    turns = polynomial.deriv().roots()
    inside = turns.real[(np.abs(turns.imag) < 1e-9) & (turns.real > 0) & (turns.real < 1)]
    return float(max([1.0, 0.0, *inside], key=polynomial))


def _product(one: Params, other: Params) -> float:
    """Half the sum over pairs p ≠ q of ⟨one_p, other_q⟩: with itself the joint objective."""
    total = 0.0
    for name in one:
        a, b = one[name], other[name]
        total += float((a.sum(0) * b.sum(0)).sum() - (a * b).sum()) / 2
    return total
