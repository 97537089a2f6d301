"""Symmetry as data: where the units of a network appear in its tensors, and how they may be permuted or rescaled.

A *group* or a *freedom* is a list of *places*: along one axis of one tensor, unit ``u`` owns the positions
``index[u]``. Everything else (acting, counting, canonical forms, the minimum mass, matching) follows from these lists.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["homogeneous", "normalised", "affine"]


@dataclass(frozen=True, eq=False)
class Place:
    """Along ``axis`` of the single-network tensor ``name``, unit ``u`` owns the positions ``index[u]``.

    ``index`` is (size, block), int64, all positions distinct. ``rows`` (r,) limits the place to these positions of
    axis 0 (``axis`` is 1 then): the input channels that one block of a grouped convolution reads. ``exponent`` is for
    scale freedoms: the owned entries are multiplied by exp(exponent · log_scale[u]); permutations ignore it.
    """

    name: str
    axis: int
    index: Tensor = field(repr=False)
    rows: Tensor | None = field(default=None, repr=False)
    exponent: float = 0.0

    def __post_init__(self) -> None:
        for label, tensor, ndim in (("index", self.index, 2), ("rows", self.rows, 1)):
            if tensor is None:
                continue
            if tensor.ndim != ndim or tensor.dtype != torch.int64 or tensor.device.type != "cpu":
                raise ValueError(
                    f"place on {self.name!r}: {label} must be an int64 tensor with {ndim} axes on the CPU, "
                    f"not {tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}."
                )
            if tensor.numel() != tensor.unique().numel():
                raise ValueError(f"place on {self.name!r}: {label} names a position twice.")
        if self.rows is not None and self.axis != 1:
            raise ValueError(
                f"place on {self.name!r}: rows need axis 1 (input channels), not axis {self.axis}."
            )

    @property
    def size(self) -> int:
        """Number of units."""
        return self.index.shape[0]


@dataclass(frozen=True, eq=False)
class PermutationGroup:
    """The symmetric group on ``size`` units, each a block of positions at every place.

    ``layer`` names the layer whose outputs the units are (for messages and tables). ``inside=(g, b)``: these units live
    inside block ``b`` of group ``g``, which stands later in the list: a wreath product, as grouped convolutions and
    GroupNorm give. All blocks of ``g`` then hold the same groups in the same order, laid out alike.
    """

    size: int
    places: tuple[Place, ...]
    layer: str
    inside: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        _check_sizes(self, "permutation group")


@dataclass(frozen=True, eq=False)
class ScaleFreedom:
    """One positive factor a unit that leaves the function unchanged; factors act through the places' exponents.

    ``kind``: *homogeneous* (incoming rows and bias +1, outgoing columns −1), *normalised* (what a norm reads: incoming
    rows and bias +1, running_mean +1, running_var +2), *affine* (a norm's weight and bias +1, the columns that read
    them −1). ``exact`` is False where the function is unchanged only as the norm's epsilon goes to zero.
    """

    size: int
    kind: Kind
    exact: bool
    places: tuple[Place, ...]
    layer: str

    def __post_init__(self) -> None:
        if self.kind not in ("homogeneous", "normalised", "affine"):
            raise ValueError(f"scale freedom of {self.layer!r}: unknown kind {self.kind!r}.")
        _check_sizes(self, "scale freedom")


@dataclass(frozen=True)
class Verification:
    """What a random group element did to the function, on a float64 copy with every epsilon set to 0.

    Errors are the largest change of an output relative to the largest output. ``epsilon_effect`` is the same error of
    the scales with the network's own epsilons (0 where all freedoms are exact).
    """

    permutation_error: float
    scale_error: float
    epsilon_effect: float


@dataclass(frozen=True, eq=False)
class Symmetries:
    """The permutation groups and scale freedoms of one architecture.

    Groups act in list order, a group inside another before the one that contains it. ``shapes`` are those of one
    network's tensors: from them a single network and a population (one more leading axis) are told apart.
    """

    permutations: tuple[PermutationGroup, ...]
    scales: tuple[ScaleFreedom, ...]
    shapes: dict[str, torch.Size] = field(repr=False)
    verification: Verification | None = None

    def __post_init__(self) -> None:
        for owner in (*self.permutations, *self.scales):
            for place in owner.places:
                _check_inside(place, owner.layer, self.shapes)
        for i, group in enumerate(self.permutations):
            if group.inside is None:
                continue
            g, b = group.inside
            if not (i < g < len(self.permutations) and 0 <= b < self.permutations[g].size):
                raise ValueError(
                    f"the permutation group {i} of {group.layer!r} claims to live inside block {b} of group {g}: "
                    "that group must stand later in the list and have such a block."
                )
        for g in range(len(self.permutations)):
            sizes = [[self.permutations[i].size for i in inner] for inner in self.inner(g)]
            if any(block != sizes[0] for block in sizes):
                raise ValueError(
                    f"the blocks of group {g} ({self.permutations[g].layer!r}) hold groups of sizes {sizes}: "
                    "blocks that are exchanged must hold the same groups."
                )

    def inner(self, g: int) -> list[list[int]]:
        """For each block of group ``g``, the groups directly inside it, in list order (empty lists if none)."""
        blocks: list[list[int]] = [[] for _ in range(self.permutations[g].size)]
        for i, group in enumerate(self.permutations):
            if group.inside is not None and group.inside[0] == g:
                blocks[group.inside[1]].append(i)
        return blocks

    def __str__(self) -> str:
        lines = [
            f"{math.prod(math.factorial(group.size) for group in self.permutations):,} permutations, "
            f"{sum(freedom.size for freedom in self.scales)} scales"
            if sum(group.size for group in self.permutations) < 200
            else f"{len(self.permutations)} permutation groups, {sum(f.size for f in self.scales)} scales"
        ]
        for group in self.permutations:
            where = (
                "" if group.inside is None else f", inside block {group.inside[1]} of group {group.inside[0]}"
            )
            lines.append(f"  permute {group.size} units of {group.layer}{where}")
        for freedom in self.scales:
            exact = "" if freedom.exact else ", exact as epsilon goes to 0"
            lines.append(f"  rescale {freedom.size} units of {freedom.layer} ({freedom.kind}{exact})")
        return "\n".join(lines)


def _check_sizes(owner: PermutationGroup | ScaleFreedom, what: str) -> None:
    for place in owner.places:
        if place.size != owner.size:
            raise ValueError(
                f"{what} of {owner.layer!r} has {owner.size} units, but its place on {place.name!r} has {place.size}."
            )


def _check_inside(place: Place, layer: str, shapes: dict[str, torch.Size]) -> None:
    if place.name not in shapes:
        raise ValueError(
            f"the units of {layer!r} claim a place on {place.name!r}, which is no tensor of the network."
        )
    shape = shapes[place.name]
    for axis, positions in ((place.axis, place.index), (0, place.rows)):
        if positions is None or positions.numel() == 0:
            continue
        if axis >= len(shape) or positions.min() < 0 or positions.max() >= shape[axis]:
            raise ValueError(
                f"the units of {layer!r} claim positions along axis {axis} of {place.name!r} that lie outside "
                f"its shape {tuple(shape)}."
            )
