"""What a trace writes down: which labels are one unit, which share a scale, and where in the parameters they sit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

FROZEN, ZERO = 0, 1  # labels: what may not move (inputs, outputs); entries that padding has set to zero


class Partition:
    """A union-find over labels; the root of a class is its smallest label."""

    def __init__(self) -> None:
        self.parent: list[int] = []

    def find(self, label: int) -> int:
        parent = self.parent
        while parent[label] != label:
            parent[label] = label = parent[parent[label]]
        return label

    def join(self, a: int, b: int) -> None:
        a, b = self.find(a), self.find(b)
        self.parent[max(a, b)] = min(a, b)

    def join_all(self, labels: Tensor, others: Tensor) -> None:
        for a, b in zip(labels.tolist(), others.tolist(), strict=True):
            self.join(a, b)

    def frozen(self, labels: Tensor) -> bool:
        return all(self.find(label) == FROZEN for label in labels.tolist())


@dataclass(frozen=True, eq=False)
class Seat:
    """Along ``axis`` of ``name``, position ``positions[i]`` belongs to the unit of ``labels[i]``, pixel ``offsets[i]``.

    ``family``: the positions are local to a block of this family (input channels of a grouped convolution); that of
    ``labels[i]`` is ``blocks[i]``, and it reads the rows ``rows[blocks[i]]``.
    """

    name: str
    axis: int
    labels: Tensor
    positions: Tensor
    offsets: Tensor
    family: int | None = None
    blocks: Tensor | None = None
    rows: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Factor:
    """Multiplying the signal ``labels[i]`` by s multiplies position ``positions[i]`` of ``name`` by s**exponent.

    ``role``: what the parameter does to the signal: a layer's *row* or a norm's *affine* part writes it, a *column*
    reads it, a *statistic* describes it.
    """

    name: str
    axis: int
    labels: Tensor
    positions: Tensor
    exponent: int
    role: Literal["row", "column", "affine", "statistic"]
    rows: Tensor | None = None


@dataclass(eq=False)
class Ledger:
    """All that a trace has found out. ``families``: partitions that permutations must respect, as blocks of labels."""

    units: Partition = field(default_factory=Partition)
    scales: Partition = field(default_factory=Partition)
    births: list[tuple[int, str]] = field(default_factory=list)  # first label, layer
    seats: list[Seat] = field(default_factory=list)
    factors: list[Factor] = field(default_factory=list)
    families: list[list[Tensor]] = field(default_factory=list)
    normalised: list[tuple[Tensor, float]] = field(default_factory=list)  # labels, epsilon

    def new(self, count: int, layer: str) -> Tensor:
        """Fresh labels, each a unit and a scale of its own."""
        start = len(self.units.parent)
        self.births.append((start, layer))
        for partition in (self.units, self.scales):
            partition.parent.extend(range(start, start + count))
        return torch.arange(start, start + count)
