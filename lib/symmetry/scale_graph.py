"""The squared weights of a network as a flow between its scalable units.

A weight that unit ``i``'s scale multiplies and unit ``j``'s scale divides is an edge j → i; inputs, outputs and
unscaled axes are one *ground* node. Under log-scales u the edge's squared weight is s · exp(2(u_i − u_j)), with u = 0
on the ground. Minimising their sum is the balancing of a matrix (Osborne 1960): at the optimum every unit's incoming
and outgoing flows are equal.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

import torch
from torch import Tensor

from lib.symmetry.act import precise
from lib.symmetry.structure import Place, Symmetries

GROUND = -1


@dataclass(frozen=True, eq=False)
class ScaleGraph:
    """``blocks[tail, head]`` (P, tail size, head size), float64: sums of squared weights between two freedoms.

    Keys are positions in ``symmetries.scales``, or GROUND (one node). ``sizes`` holds the freedoms that take part.
    """

    sizes: dict[int, int]
    blocks: dict[tuple[int, int], Tensor]

    def inflow(self, head: int, values: Mapping[int, Tensor]) -> Tensor:
        """(P, head size): Σ over tails of blockᵀ · values[tail]."""
        parts = [_product(values[t], b) for (t, h), b in self.blocks.items() if h == head]
        return sum(parts[1:], parts[0])

    def outflow(self, tail: int, values: Mapping[int, Tensor]) -> Tensor:
        """(P, tail size): Σ over heads of block · values[head]."""
        parts = [_product(values[h], b.mT) for (t, h), b in self.blocks.items() if t == tail]
        return sum(parts[1:], parts[0])

    def total(self, scales: Mapping[int, Tensor] | None = None) -> Tensor:
        """(P,): the sum of all edges, under scales exp(2u) where they are given."""
        scales = self.ones() if scales is None else scales
        parts = [
            (self.outflow(t, scales) / scales[t]).sum(1)
            for t in (*self.sizes, GROUND)
            if any(t == tail for tail, _ in self.blocks)
        ]
        return sum(parts[1:], parts[0])

    def ones(self) -> dict[int, Tensor]:
        """(P, size) of ones for each freedom and the ground: the scales exp(2u) at u = 0."""
        block = next(iter(self.blocks.values()))
        return {f: block.new_ones(len(block), n) for f, n in {**self.sizes, GROUND: 1}.items()}

    def order(self) -> list[int] | None:
        """Freedoms from the input on, each after all that flow into it; None where the flow has a cycle."""
        feeds: dict[int, set[int]] = {f: set() for f in self.sizes}
        for tail, head in self.blocks:
            if GROUND not in (tail, head):
                feeds[head].add(tail)
        try:
            return list(TopologicalSorter(feeds).static_order())
        except CycleError:
            return None

    def without(self, dead: Mapping[int, Tensor]) -> ScaleGraph:
        """The graph with every edge at a dead unit removed; ``dead[f]`` (P, size), boolean."""
        keep = self.ones() | {f: (~mask).to(torch.float64) for f, mask in dead.items()}
        blocks = {(t, h): b * keep[t][:, :, None] * keep[h][:, None, :] for (t, h), b in self.blocks.items()}
        return ScaleGraph(self.sizes, blocks)


def _product(vector: Tensor, block: Tensor) -> Tensor:
    """(P, a), (P, a, b) -> (P, b): many small matrices multiply faster entry by entry than as a batch of products."""
    if block[0].numel() <= 1024:
        return (vector[:, :, None] * block).sum(1)
    return torch.bmm(vector[:, None], block)[:, 0]


def is_counted(name: str, biases: bool) -> bool:
    """Whether the tensor belongs to the mass: every ``weight`` of a layer or norm, its ``bias`` only on request."""
    return name.rpartition(".")[2] in (("weight", "bias") if biases else ("weight",))


def chosen_freedoms(symmetries: Symmetries, freedoms: str | Sequence[str] | None) -> list[int]:
    """Positions in the list of the freedoms of these kinds (all where None)."""
    kinds = ("homogeneous", "normalised", "affine")
    wanted = kinds if freedoms is None else (freedoms,) if isinstance(freedoms, str) else tuple(freedoms)
    for kind in wanted:
        if kind not in kinds:
            raise ValueError(f"unknown kind of freedom {kind!r}: choose among {', '.join(kinds)}.")
    return [f for f, freedom in enumerate(symmetries.scales) if freedom.kind in wanted]


def scale_graph(
    params: Mapping[str, Tensor], symmetries: Symmetries, freedoms: Collection[int], biases: bool
) -> ScaleGraph:
    """The graph of a population (leading axis P everywhere) under the chosen freedoms (positions in the list).

    Raises ValueError where one weight is multiplied, or divided, by several units: then it is no edge.
    """
    starts, sizes, total = {}, {}, 0
    for f in freedoms:
        starts[f], sizes[f] = total, symmetries.scales[f].size
        total += sizes[f]
    owner = torch.tensor(
        [f for f in freedoms for _ in range(sizes[f])] + [GROUND]
    )  # the last node is the ground
    unit = torch.tensor([u for f in freedoms for u in range(sizes[f])] + [0])
    blocks: dict[tuple[int, int], Tensor] = {}
    for name, shape in symmetries.shapes.items():
        if not is_counted(name, biases):
            continue
        rows, columns = (*shape, 1, 1)[:2]
        ends = {sign: torch.full((rows, columns), total) for sign in (1.0, -1.0)}
        for f in freedoms:
            for place in symmetries.scales[f].places:
                if place.name == name and place.exponent:
                    _claim(ends, place, starts[f], total, symmetries.scales[f].layer)
        squares = precise(params[name]).square()
        squares = squares.reshape(len(squares), rows, columns, -1).sum(-1)
        head, tail = ends[1.0], ends[-1.0]
        for axis in (0, 1):  # sum at once along an axis that no unit divides up
            if all((end == end.narrow(axis, 0, 1)).all() for end in (head, tail)):
                squares = squares.sum(axis + 1, keepdim=True)
                head, tail = head.narrow(axis, 0, 1), tail.narrow(axis, 0, 1)
        _add(blocks, squares.flatten(1), tail.flatten(), head.flatten(), owner, unit, {**sizes, GROUND: 1})
    for f in freedoms:
        if (f, f) in blocks:  # an edge from a unit to itself never changes: it belongs to the ground
            own = blocks[f, f].diagonal(dim1=1, dim2=2)
            blocks[GROUND, GROUND] = blocks.get((GROUND, GROUND), 0) + own.sum(1)[:, None, None]
            own.zero_()
    return ScaleGraph(sizes, blocks)


def _claim(ends: dict[float, Tensor], place: Place, start: int, ground: int, layer: str) -> None:
    if place.exponent not in ends:
        raise ValueError(
            f"the units of {layer!r} scale {place.name!r} with exponent {place.exponent}: the mass is solved for "
            "exponents of +1 and -1."
        )
    end = ends[place.exponent]
    nodes = (start + torch.arange(place.size)).repeat_interleave(place.index.shape[1])
    rows = torch.arange(end.shape[0]) if place.rows is None else place.rows
    region = (place.index.flatten(),) if place.axis == 0 else (rows[:, None], place.index.flatten())
    if (end[region] != ground).any():
        raise ValueError(
            f"a weight of {place.name!r} is scaled by the units of {layer!r} and by others in the same direction: the "
            "mass is solved where each weight is multiplied by at most one unit and divided by at most one."
        )
    end[region] = nodes[:, None] if place.axis == 0 else nodes


def _add(
    blocks: dict[tuple[int, int], Tensor],
    squares: Tensor,
    tail: Tensor,
    head: Tensor,
    owner: Tensor,
    unit: Tensor,
    sizes: dict[int, int],
) -> None:
    """Add squared weights (P, n), running from nodes ``tail`` (n,) to ``head`` (n,), to the blocks they belong to."""
    pairs = torch.stack([owner[tail], owner[head]])
    for t, h in torch.unique(pairs, dim=1).T.tolist():
        here = (pairs[0] == t) & (pairs[1] == h)
        slot = unit[tail[here]] * sizes[h] + unit[head[here]]
        if (t, h) not in blocks:
            blocks[t, h] = squares.new_zeros(len(squares), sizes[t], sizes[h])
        chosen = squares if here.all() else squares[:, here.to(squares.device)]
        blocks[t, h].flatten(1).index_add_(1, slot.to(squares.device), chosen)
