"""From the ledger of a trace to permutation groups and scale freedoms.

Two units can be exchanged when they sit in the same seats: same tensors, same axes, as many positions, same pixels.
Partitions that must be respected (grouped convolution, GroupNorm) tie units to *blocks*. Units and blocks form a graph;
its connected components that look alike are exchanged as wholes, and within one component, once the blocks that have
no equal there are held fixed, the same question is asked again: symmetric groups inside symmetric groups, which is a
wreath product. Where partitions cross (no block has no equal), all blocks stay and only units within a cell move:
sound, though not complete.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lib.symmetry.ledger import FROZEN, Ledger, Partition
from lib.symmetry.structure import PermutationGroup, Place, ScaleFreedom

Block = tuple[int, int]  # family, number
Key = tuple[str, int]  # tensor, axis


@dataclass(eq=False)
class _Unit:
    """One class of labels. ``seats`` per tensor axis: (offset, position), and the block that positions are local to."""

    seats: dict[Key, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    local: dict[Key, Block] = field(default_factory=dict)
    blocks: set[Block] = field(default_factory=set)


@dataclass(eq=False)
class _Item:
    """A unit, or a component whose blocks hold its units together; ``likeness`` is equal for what can be exchanged."""

    likeness: int
    order: list[int]
    blocks: frozenset[Block] = frozenset()
    groups: list[_Group] = field(default_factory=list)


@dataclass(eq=False)
class _Group:
    items: list[_Item]


class _Finder:
    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.rows = {seat.family: seat.rows for seat in ledger.seats if seat.family is not None}
        self._interned: dict[Hashable, int] = {}
        self.units = _units(ledger)

    def groups(self) -> tuple[PermutationGroup, ...]:
        """All groups, an inner one before the group that contains it."""
        members: dict[Block, set[int]] = defaultdict(set)
        held: set[Block] = set()
        for f, family in enumerate(self.ledger.families):
            for b, block in enumerate(family):
                units = {self.ledger.units.find(label) for label in block.tolist()}
                members[f, b] = units - {FROZEN}
                if FROZEN in units:
                    held.add((f, b))
        for block, units in members.items():
            for unit in units:
                self.units[unit].blocks.add(block)
        colours = {}
        for u, unit in self.units.items():
            seats = tuple((key, tuple(offset for offset, _ in spots)) for key, spots in unit.seats.items())
            colours[u] = self.intern(("unit", seats, tuple(sorted(unit.blocks & held))))
        free = {block: units for block, units in members.items() if block not in held}
        _, _, found = self.arrange(set(self.units), free, colours)
        found.sort(key=lambda group: min(u for item in group.items for u in item.order))
        out: list[PermutationGroup] = []
        for group in found:
            self.emit(group, out, frozenset())
        return tuple(out)

    def intern(self, thing: Hashable) -> int:
        return self._interned.setdefault(thing, len(self._interned))

    def arrange(
        self, units: set[int], members: dict[Block, set[int]], colours: dict[int, int]
    ) -> tuple[int, list[int], list[_Group]]:
        """Likeness, canonical order of the units, and groups of a part of the graph."""
        items = [
            self.component(part, blocks, members, colours)
            if blocks
            else _Item(self.intern(("one", colours[part[0]])), part)
            for part, blocks in self.components(units, members)
        ]
        alike: dict[int, list[_Item]] = defaultdict(list)
        for item in sorted(items, key=lambda item: (item.likeness, self.columns(item.order), item.order)):
            alike[item.likeness].append(item)
        order, groups = [], []
        for same in alike.values():
            order += [u for item in same for u in item.order]
            groups += [_Group(same)] if len(same) > 1 else same[0].groups
        return self.intern(("all", tuple((like, len(same)) for like, same in alike.items()))), order, groups

    def component(
        self, part: list[int], blocks: set[Block], members: dict[Block, set[int]], colours: dict[int, int]
    ) -> _Item:
        """Hold fixed the blocks that have no equal in the component (else all of them), and arrange the rest."""
        count: dict[int, int] = defaultdict(int)
        for family, _ in blocks:
            count[family] += 1
        single = {block for block in blocks if count[block[0]] == 1}
        tags = {block: block[:1] for block in single} or {block: block for block in blocks}
        inner = {
            u: self.intern(
                ("in", colours[u], tuple(sorted(tags[b] for b in self.units[u].blocks & tags.keys())))
            )
            for u in part
        }
        rest = {block: members[block] for block in blocks - tags.keys()}
        likeness, order, groups = self.arrange(set(part), rest, inner)
        fixed = tuple(sorted(tags.values()))
        local = self.columns(order, blocks) if single else ()
        return _Item(self.intern(("part", fixed, likeness, local)), order, frozenset(blocks), groups)

    def columns(self, order: list[int], blocks: set[Block] | None = None) -> tuple:
        """Where the units sit within (these) blocks: blocks are exchanged only if laid out alike."""
        return tuple(
            tuple(self.units[u].seats[key])
            for u in order
            for key, block in self.units[u].local.items()
            if blocks is None or block in blocks
        )

    def components(
        self, units: set[int], members: dict[Block, set[int]]
    ) -> list[tuple[list[int], set[Block]]]:
        """Connected components, each as its units and its blocks."""
        joined = Partition()
        number = {u: i for i, u in enumerate(sorted(units))}
        joined.parent.extend(range(len(number)))
        for held in members.values():
            first, *others = [number[u] for u in held]
            for other in others:
                joined.join(first, other)
        parts: dict[int, tuple[list[int], set[Block]]] = defaultdict(lambda: ([], set()))
        for u, i in number.items():
            parts[joined.find(i)][0].append(u)
        for block, held in members.items():
            parts[joined.find(number[next(iter(held))])][1].add(block)
        return list(parts.values())

    def emit(self, group: _Group, out: list[PermutationGroup], moved: frozenset[Block]) -> None:
        """Append the groups inside, then ``group`` itself, with every place its items own."""
        inner: list[tuple[int, int]] = []
        for b, item in enumerate(group.items):
            for part in item.groups:
                self.emit(part, out, moved)
                inner.append((len(out) - 1, b))
        for i, b in inner:
            out[i] = PermutationGroup(out[i].size, out[i].places, out[i].layer, (len(out), b))
        first = group.items[0]
        places = []
        for key in dict.fromkeys(key for u in first.order for key in self.units[u].seats):
            block = next((self.units[u].local[key] for u in first.order if key in self.units[u].local), None)
            if block in first.blocks:
                continue  # these columns move with the rows of their block
            index = [
                [position for u in item.order for _, position in self.units[u].seats.get(key, ())]
                for item in group.items
            ]
            rows = None if block is None else self.rows[block[0]][block[1]]
            places.append(Place(*key, torch.tensor(index), rows))
        layer = layer_of(self.ledger, min(u for item in group.items for u in item.order))
        out.append(PermutationGroup(len(group.items), tuple(places), layer))


def permutation_groups(ledger: Ledger) -> tuple[PermutationGroup, ...]:
    """The permutation groups that the ledger of a trace allows (P5, section 1.2)."""
    return _Finder(ledger).groups()


def _units(ledger: Ledger) -> dict[int, _Unit]:
    units: dict[int, _Unit] = defaultdict(_Unit)
    for seat in ledger.seats:
        key = (seat.name, seat.axis)
        columns = zip(seat.labels.tolist(), seat.offsets.tolist(), seat.positions.tolist(), strict=True)
        blocks = seat.blocks.tolist() if seat.blocks is not None else None
        for i, (label, offset, position) in enumerate(columns):
            root = ledger.units.find(label)
            if root == FROZEN:
                continue
            units[root].seats[key].append((offset, position))
            if blocks is not None:
                units[root].local[key] = (seat.family, blocks[i])
    for unit in units.values():
        for spots in unit.seats.values():
            spots.sort()
    return units


def scale_freedoms(ledger: Ledger) -> tuple[ScaleFreedom, ...]:
    """The scale freedoms that the ledger allows: labels whose common factor cancels (P1, section 1; P4, section 1.2).

    A factor that nothing reads (a dead end) is left out.
    """
    exponents: dict[int, dict[tuple, float]] = defaultdict(lambda: defaultdict(float))
    roles: dict[int, set[str]] = defaultdict(set)
    rows: dict[tuple[int, ...] | None, Tensor | None] = {}
    for factor in ledger.factors:
        block = None if factor.rows is None else tuple(factor.rows.tolist())
        rows[block] = factor.rows
        for label, position in zip(factor.labels.tolist(), factor.positions.tolist(), strict=True):
            root = ledger.scales.find(label)
            exponents[root][factor.name, factor.axis, block, position] += factor.exponent
            roles[root].add(factor.role)
    inexact: set[int] = set()
    for labels, eps in ledger.normalised:
        for label in labels.tolist():
            root = ledger.scales.find(label)
            roles[root].add("statistic")
            if eps > 0:
                inexact.add(root)

    alike: dict[tuple, list[dict[tuple, list[int]]]] = defaultdict(list)
    first: dict[tuple, int] = {}
    for root in sorted(exponents):
        if root == FROZEN or not roles[root] & {"column", "statistic"}:
            continue
        owned: dict[tuple, list[int]] = defaultdict(list)
        for (name, axis, block, position), exponent in exponents[root].items():
            if exponent:
                owned[name, axis, block, exponent].append(position)
        if owned:
            signature = tuple((key, len(positions)) for key, positions in owned.items())
            likeness = (signature, _kind(roles[root]), root not in inexact)
            alike[likeness].append(owned)
            first.setdefault(likeness, root)
    return tuple(
        ScaleFreedom(
            len(units),
            kind,
            exact,
            tuple(
                Place(
                    name,
                    axis,
                    torch.tensor([unit[name, axis, block, exponent] for unit in units]),
                    rows[block],
                    exponent,
                )
                for (name, axis, block, exponent), _ in signature
            ),
            layer_of(ledger, first[signature, kind, exact]),
        )
        for (signature, kind, exact), units in alike.items()
    )


def _kind(roles: set[str]) -> str:
    if "column" not in roles:
        return "normalised"
    return "homogeneous" if "row" in roles else "affine"


def layer_of(ledger: Ledger, label: int) -> str:
    """The layer that made ``label``."""
    return ledger.births[bisect_right(ledger.births, label, key=lambda birth: birth[0]) - 1][1]
