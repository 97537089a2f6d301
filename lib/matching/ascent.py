"""Weight matching of one network at a time, for wide layers: solve little, and only where something changed.

Coordinate ascent solves an assignment problem a group again and again, though between two solves little has changed. Here a
group waits until a neighbour has changed; its worths are then updated by the units that moved alone, a product as thin as they
are few; and a step is judged in float64 by the rows that it moves. It ends where no group can be bettered alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lib.matching.assignment import Solver
from lib.matching.units import compared, owned
from lib.symmetry import Symmetries
from lib.symmetry.structure import Place

ROUNDING = 1e-12  # of the product of the two norms: what a step must gain to be made


@dataclass(frozen=True, eq=False)
class Seat:
    """One place of a group: the tensor's entries as a matrix (size, n), and where the units of other groups lie in it.

    ``columns`` holds for each other group on the same tensor a table (its size, k): the columns of each of its units.
    """

    place: Place
    group: int
    columns: dict[int, Int64[Tensor, "_ _"]]


def seats(symmetries: Symmetries) -> list[list[Seat]] | None:
    """For each group its seats; None where units are no plain rows and columns (blocks, or a layer that feeds itself)."""
    if any(group.inside is not None for group in symmetries.permutations):
        return None
    names, owners = set(compared(symmetries)), {}
    for g, group in enumerate(symmetries.permutations):
        for place in group.places:
            if place.name in names:
                owners.setdefault(place.name, []).append((g, place))
    found: list[list[Seat]] = [[] for _ in symmetries.permutations]
    for name, here in owners.items():
        if len({g for g, _ in here}) < len(here) or any(place.rows is not None for _, place in here):
            return None
        for g, place in here:
            tables = {h: _columns(symmetries.shapes[name], place, other) for h, other in here if h != g}
            found[g].append(Seat(place, g, {h: table for h, table in tables.items() if table.numel()}))
    return found


def _columns(shape: torch.Size, place: Place, other: Place) -> Tensor:
    """(other's size, k): the columns of the matrix at ``place`` that hold each unit of ``other``."""
    one = Place(place.name, place.axis, place.index[:1])
    unit = torch.full((shape[other.axis],), -1)
    unit[other.index.flatten()] = torch.arange(other.size).repeat_interleave(other.index.shape[1])
    lie = [1] * len(shape)
    lie[other.axis] = -1
    holder = owned(unit.view(lie).expand(shape)[None], one)[0, 0]
    return holder.argsort(stable=True)[(holder < 0).sum() :].view(other.size, -1)


class Ascent:
    """A network on its way to the order of a reference; ``up`` goes as far as it can.

    ``gained``: by how much the inner product with the reference has grown since the start, float64.
    """

    def __init__(
        self,
        reference: Mapping[str, Tensor],
        other: Mapping[str, Tensor],
        groups: list[list[Seat]],
        solver: Solver,
    ) -> None:
        self.groups, self.solver, self.solves, self.gained = groups, solver, 0, 0.0
        self.reference, self.other = reference, other
        device = next(iter(other.values())).device
        self.perms = [torch.arange(seats[0].place.size, device=device) for seats in groups]
        self.theirs = [[owned(other[s.place.name][None], s.place)[0] for s in seats] for seats in groups]
        self.ours = [[owned(reference[s.place.name][None], s.place)[0] for s in seats] for seats in groups]
        self.columns = [
            [{h: table.to(device) for h, table in s.columns.items()} for s in seats] for seats in groups
        ]
        self.worths: list[list[Tensor | None]] = [[None] * len(seats) for seats in groups]

    @cached_property
    def tolerance(self) -> float:
        """What a step must gain; most networks of a joint alignment stand best, and never ask."""
        squares = (inner({name: x[name] for name in self.other}, x) for x in (self.reference, self.other))
        return ROUNDING * math.prod(square**0.5 for square in squares)

    def up(self, rounds: int | None = None) -> list[float]:
        """Until no group can be bettered alone, or so many rounds; returns what was gained after each round over the groups."""
        waiting, history = set(self.everyone), []
        while waiting and (rounds is None or len(history) < rounds):
            for g in sorted(waiting):
                if self.solve(g):
                    waiting |= self.neighbours(g)
                waiting.discard(g)
            history.append(self.gained)
        return history

    @property
    def everyone(self) -> range:
        """All groups."""
        return range(len(self.groups))

    def neighbours(self, g: int) -> set[int]:
        """Groups that share a tensor with ``g``."""
        return {h for seat in self.groups[g] for h in seat.columns}

    def from_input(self) -> None:
        """A way to start: each group once, in list order, by those weights alone whose other axis is settled.

        In the first round a layer's outgoing weights end at units that are still in any order: noise, which leads some
        networks into poor optima.
        """
        for g in self.everyone:
            settled = [k for k, seat in enumerate(self.groups[g]) if all(h < g for h in seat.columns)]
            if settled:
                self.solve(g, settled)

    def solve(self, g: int, of: list[int] | None = None) -> bool:
        """The best order of group ``g`` (by some of its seats), all others held; False where it is the present one."""
        worth = self.worth(g, range(len(self.groups[g])) if of is None else of)
        self.solves += 1
        place_of = self.solver(worth[None])[0]  # for each of theirs
        return self.make(g, place_of.argsort(), of)

    def worth(self, g: int, which: list[int] | range) -> Float[Tensor, "size size"]:
        """What unit j of theirs is worth at place i, at [j, i], summed over some of the seats."""
        total = None
        for k in which:
            if self.worths[g][k] is None:
                theirs = self.theirs[g][k]
                self.worths[g][k] = theirs @ self.ours[g][k].to(theirs.dtype).mT
            total = self.worths[g][k] if total is None else total + self.worths[g][k]
        assert total is not None, "every group has a place that is compared"
        return total

    def make(self, g: int, step: Int64[Tensor, " size"], of: list[int] | None = None) -> bool:
        """Take the step if it gains (by some of the seats), by float64 products of the rows that move."""
        rows = (step != torch.arange(len(step), device=step.device)).nonzero().flatten()
        if len(rows) == 0:
            return False
        gains = [
            _dot(ours[rows], theirs[step[rows]]) - _dot(ours[rows], theirs[rows])
            for ours, theirs in zip(self.ours[g], self.theirs[g], strict=True)
        ]
        if sum(gains if of is None else [gains[k] for k in of]) <= self.tolerance:
            return False
        self.gained += sum(gains)
        self.perms[g] = self.perms[g][step]
        for k, seat in enumerate(self.groups[g]):
            self.theirs[g][k][rows] = self.theirs[g][k][step[rows]]
            if self.worths[g][k] is not None:
                self.worths[g][k][rows] = self.worths[g][k][step[rows]]
            for h in seat.columns:
                self.follow(h, seat.place.name, g, rows, step)
        return True

    def follow(self, h: int, name: str, g: int, rows: Tensor, step: Tensor) -> None:
        """A neighbour's matrix after units ``rows`` of group ``g`` have moved along its columns."""
        k = next(k for k, seat in enumerate(self.groups[h]) if seat.place.name == name)
        table, theirs = self.columns[h][k][g], self.theirs[h][k]
        to, source = table[rows].flatten(), table[step[rows]].flatten()
        before, after = theirs[:, to], theirs[:, source]
        worth = self.worths[h][k]
        if worth is not None and 2 * len(to) < theirs.shape[1]:
            self.worths[h][k] = worth.addmm_(after - before, self.ours[h][k][:, to].to(theirs.dtype).mT)
        else:
            self.worths[h][k] = None
        theirs[:, to] = after


def inner(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The sum of the tensors' inner products, float64, over the names of ``one``."""
    return sum(_dot(tensor, other[name]) for name, tensor in one.items())


def _dot(a: Tensor, b: Tensor) -> float:
    return float(a.double().flatten() @ b.double().flatten())
