"""How near the weights of an approximation are to the reference: MMD² before and after symmetries are removed.

Everything is seen by the same kernels: their bandwidths follow the paper's rule applied to two halves of the reference.
Values are scaled so that the split-half floor is 0 and initial weights are 1 (claims P1-C8, P1-C9).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lib import intervals, mmd
from lib.claims import Measurement
from lib.matching import canonical_by_matching
from lib.params import Params, member, population_size, select
from lib.posteriors.draws import Draws
from lib.posteriors.target import ravel
from lib.symmetry import Symmetries, canonicalize
from lib.table import Table

ORDERS = {"first_weight": "first-weight sort", "norm": "norm sort", "matching": "matching", None: "kept"}
MOST_GROUPS = 20  # of held-out networks: 1,000 of them at fifty a group
Interval = tuple[float, float, float]  # value, low, high

SCALES = {"unit_norm": "unit norm", "min_mass": "minimum mass", None: "kept"}


@dataclass(frozen=True)
class Removal:
    """How symmetries are removed: scales first, then permutations; None keeps them."""

    order: str | None
    scale: str | None

    def __str__(self) -> str:
        if self == RAW:
            return "raw"
        return (
            f"{ORDERS[self.order]}, {SCALES[self.scale]}"
            if self.order
            else f"scales removed ({SCALES[self.scale]})"
        )


RAW = Removal(None, None)
PAPERS = Removal("first_weight", "unit_norm")  # the defaults of the authors' code
REMOVALS = tuple(
    Removal(o, s) for o in ("first_weight", "norm", "matching") for s in ("unit_norm", "min_mass")
)


def remove(params: Params, symmetries: Symmetries, removal: Removal, anchor: Params) -> Params:
    """The population with symmetries removed; ``anchor`` is the one network to which matching aligns the units."""
    if removal.order == "matching":
        return canonical_by_matching(params, symmetries, anchor, removal.scale)
    return canonicalize(params, symmetries, removal.scale, removal.order)


@dataclass(frozen=True)
class Yardstick:
    """A reference posterior under one removal, with its floor and ceiling."""

    removal: Removal
    symmetries: Symmetries
    anchor: Params
    reference: mmd.Reference
    scale: mmd.Scale

    def rows(self, params: Params) -> Float[Tensor, "S D"]:
        """Networks as points, symmetries removed."""
        return ravel(remove(params, self.symmetries, self.removal, self.anchor)).float()

    def distance(self, params: Params) -> float:
        """Scaled MMD² of S samples to the reference: 0 at the split-half floor, 1 at initial weights."""
        return float(self.distances(Draws(params, 1, population_size(params)))[0])

    def distances(self, draws: Draws, every: int = 1) -> Float[Tensor, " R"]:
        """Scaled MMD² of approximations 0, every, 2 every, ..., in float64 on the CPU."""
        rows = torch.arange(draws.runs * draws.draws, device=next(iter(draws.params.values())).device)
        chosen = rows.view(draws.runs, draws.draws)[::every].flatten()
        points = self.rows(select(draws.params, chosen)).unflatten(0, (-1, draws.draws))
        return self.scale.scaled(self.reference.mmd2(points).mean(-1)).double().cpu()


def yardstick(
    reference: Params, initial: Params, symmetries: Symmetries, removal: Removal, *, seed: int
) -> Yardstick:
    """The yardstick of a reference population, and of initial weights, under one removal."""
    anchor = member(reference, 0)
    points, start = (
        ravel(remove(params, symmetries, removal, anchor)).float() for params in (reference, initial)
    )
    half = len(points) // 2
    kernels = mmd.bandwidths(points[:half], points[half:])
    judge = mmd.Reference(points, kernels)
    return Yardstick(removal, symmetries, anchor, judge, judge.scale(start, seed=seed))


Distances = Mapping[str, Float[Tensor, " _"]]


def measure_gain(one: Distances, many: Distances, n: int) -> list[Measurement]:
    """``mmd_gain`` of P1-C8: one mode minus multi mode, repetition by repetition; n = reference networks."""
    return [
        Measurement(
            "mmd_gain", method, *intervals.student((one[method] - many[method]).numpy()), n, len(many[method])
        )
        for method in many
        if method != "SGHMC"  # the paper takes its chain once only
    ]


def measure_ensemble(raw: Yardstick, held_out: Params, samples: int) -> list[Measurement]:
    """``ensemble_floor`` of P1-C8: groups of independent networks held out of the reference; n = all of them.

    The floor itself is where the scale has its zero. Raises ValueError for fewer than two whole groups.
    """
    groups = population_size(held_out) // samples
    found = [
        raw.distance({name: t[g * samples : (g + 1) * samples] for name, t in held_out.items()})
        for g in range(min(groups, MOST_GROUPS))
    ]
    size = {"n": len(found) * samples, "seeds": len(found)}
    return [Measurement("ensemble_floor", "deep ensemble", *intervals.student(np.array(found)), **size)]


def measure_change(before: Distances, after: Mapping[Removal, Distances], n: int) -> list[Measurement]:
    """``ns_change`` of P1-C9 for each method and removal, with simultaneous intervals over the cells (Bonferroni)."""
    cells = len(before) * len(after)
    return [
        Measurement(
            "ns_change",
            f"{method}: {removal}",
            *intervals.student((distances[method] - before[method]).numpy(), level=1 - 0.05 / cells),
            n=n,
            seeds=len(before[method]),
        )
        for method in before
        for removal, distances in after.items()
    ]


def dumbbells(one: Distances, many: Distances) -> list[tuple[str, Interval, Interval]]:
    """For a figure: each method's mean and 95 % interval over repetitions, one mode and multi mode."""
    return [(m, intervals.student(one[m].numpy()), intervals.student(many[m].numpy())) for m in one]


def direction_table(changes: list[Measurement], margin: float = 0.01) -> Table:
    """For each removal, for how many methods the MMD² rises or falls by more than the ledger's margin."""
    found: dict[str, list[int]] = {}
    for m in changes:
        row = found.setdefault(m.cell.partition(": ")[2], [0, 0, 0])
        row[0 if m.low > margin else 1 if m.high < -margin else 2] += 1
    return Table(
        ("Removal", "rises", "falls", "unclear"),
        [(removal, *row) for removal, row in found.items()],
        "Number of methods whose MMD² moves, by simultaneous intervals",
    )


def change_table(
    one: Distances,
    many: Distances,
    after: Mapping[Removal, Distances],
    after_many: Mapping[Removal, Distances],
) -> Table:
    """Mean scaled MMD² raw and after each removal, one run and ten runs of every method."""
    columns = {RAW: (one, many)} | {removal: (d, after_many.get(removal)) for removal, d in after.items()}
    rows = [
        (
            f"{method}, {name}",
            *(
                f"{float(pair[i][method].mean()):.2f}" if pair[i] and method in pair[i] else "–"
                for pair in columns.values()
            ),
        )
        for method in one
        for i, name in enumerate(("one run", "ten runs"))
    ]
    return Table(("MMD²", *map(str, columns)), rows, "Scaled MMD² before and after removing symmetries")
