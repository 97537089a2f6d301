"""One representative for each orbit: scales removed first, then permutations (Laurent et al. 2024, the authors' code)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Literal

import torch
from torch import Tensor

from lib.params import Params
from lib.symmetry.act import members_of, move_units, precise, rescale, scale_units
from lib.symmetry.mass import min_mass
from lib.symmetry.scale_graph import chosen_freedoms, is_counted
from lib.symmetry.structure import PermutationGroup, Place, ScaleFreedom, Symmetries

Scale = Literal["unit_norm", "min_mass"] | None
Order = Literal["first_weight", "norm", "output"] | None


@dataclass(frozen=True, eq=False)
class Canonical:
    """A canonical form and how it was reached: params = permute(rescale(x, log_scales), perms), up to rounding.

    ``log_scales`` one (*P, size) float64 tensor a freedom, ``perms`` one (*P, size) int64 tensor a group. ``dead`` one
    (*P, size) mask a freedom: units left at their own scale, for want of a nonzero weight to measure it by.
    """

    params: Params
    log_scales: tuple[Tensor, ...]
    perms: tuple[Tensor, ...]
    dead: tuple[Tensor, ...]


def canonicalize(
    params: Mapping[str, Tensor],
    symmetries: Symmetries,
    scale: Scale = "unit_norm",
    order: Order = "first_weight",
    *,
    freedoms: str | Sequence[str] | None = None,
    norm: float = 1.0,
) -> Params:
    """The representative of each network's orbit: the same function, and the same weights for every symmetric copy.

    ``scale`` None keeps the scales; "unit_norm" gives each unit, from the input on, incoming weights (bias excluded) of
    L2 norm ``norm``, so that the last layer absorbs the rest; "min_mass" takes the minimum of the mass. Then ``order``
    sorts the units: "first_weight" by their first incoming weight, descending; "norm" by incoming norm, descending
    (times the outgoing norm after "unit_norm", where the first is the same for all); "output" by their first outgoing
    weight, ascending; None keeps the order. Keys are read after the groups that they depend on have been sorted. Where
    several layers write (read) the same units, as on a residual stream, the first writer (the last reader) is meant.
    Blocks of a grouped convolution are sorted by their first unit (or whole norm) after the units inside.

    Single networks and populations; computed in float64, returned in the tensors' own dtypes. ``freedoms`` restricts
    the kinds of scales; those before a BatchNorm keep the function only up to its epsilon, and have no minimum mass
    (UnattainedInfimum). Dead units keep their scale; ties keep their order; see ``canonical_form`` for which.
    """
    return canonical_form(params, symmetries, scale, order, freedoms=freedoms, norm=norm).params


def canonical_form(
    params: Mapping[str, Tensor],
    symmetries: Symmetries,
    scale: Scale = "unit_norm",
    order: Order = "first_weight",
    *,
    freedoms: str | Sequence[str] | None = None,
    norm: float = 1.0,
) -> Canonical:
    """As ``canonicalize``, with the group element used and the units that could not be scaled."""
    members = members_of(params, symmetries)
    exact = {
        name: precise(tensor) if tensor.is_floating_point() else tensor for name, tensor in params.items()
    }
    if members is None:
        exact = {name: tensor[None] for name, tensor in exact.items()}
    if scale == "unit_norm":
        log_scales, dead = _unit_norm(exact, symmetries, chosen_freedoms(symmetries, freedoms), norm)
    elif scale == "min_mass":
        result = min_mass(exact, symmetries, freedoms=freedoms, tolerance=1e-24)  # u itself to about 1e-12
        log_scales, dead = result.log_scales, result.dead
    elif scale is None:
        log_scales, dead = _nothing(exact, symmetries)
    else:
        raise ValueError(f"unknown scale {scale!r}: choose 'unit_norm', 'min_mass' or None.")
    moved = rescale(exact, symmetries, log_scales)
    perms = list(_same_order(exact, symmetries))
    for g in _sequence(symmetries, order):
        key, descending = _key(moved, symmetries, g, order, scale)
        perms[g] = key.argsort(dim=-1, descending=descending, stable=True)
        for place in symmetries.permutations[g].places:
            moved[place.name] = move_units(moved[place.name], place, perms[g])
    if members is None:
        moved = {name: tensor[0] for name, tensor in moved.items()}
        log_scales, perms, dead = ([tensor[0] for tensor in part] for part in (log_scales, perms, dead))
    kept = {name: moved[name].to(dtype=tensor.dtype).to(tensor.device) for name, tensor in params.items()}
    return Canonical(kept, tuple(log_scales), tuple(perms), tuple(dead))


def _unit_norm(
    params: Params, symmetries: Symmetries, chosen: list[int], norm: float
) -> tuple[list[Tensor], list[Tensor]]:
    """Log-scales that give each unit incoming weights of the given norm, freedom after freedom from the input."""
    log_scales, dead = _nothing(params, symmetries)
    scaled = dict(params)
    writers = {f: _writer(symmetries.scales[f], symmetries) for f in chosen}
    before = {
        f: {
            g
            for g in chosen
            if g != f and any(p.name == writers[f].name for p in _negative(symmetries.scales[g]))
        }
        for f in chosen
    }
    for f in _sorted(before, symmetries):
        norms = _norms(scaled[writers[f].name], writers[f])
        usable = torch.isfinite(norms) & (norms > 0)
        dead[f] = norms == 0
        log_scales[f] = torch.where(usable, (norm / norms).log(), 0.0)
        for place in symmetries.scales[f].places:
            scaled[place.name] = scale_units(scaled[place.name], place, log_scales[f])
    return log_scales, dead


def _key(params: Params, symmetries: Symmetries, g: int, order: Order, scale: Scale) -> tuple[Tensor, bool]:
    """What group ``g`` is sorted by, (P, size), and whether descending."""
    group = symmetries.permutations[g]
    if order == "output":
        place = _reader(group, symmetries)
        row = 0 if place.rows is None else int(place.rows[0])
        return _first(params[place.name][:, row], place), False
    place = _writer(group, symmetries)
    if order == "first_weight":
        return _first(params[place.name], place), True
    norms = _norms(params[place.name], place)
    if scale == "unit_norm":
        readers = [p for p in group.places if p.axis == 1 and is_counted(p.name, biases=False)]
        norms = norms * torch.stack([_norms(params[p.name], p).square() for p in readers]).sum(0).sqrt()
    return norms, True


def _sequence(symmetries: Symmetries, order: Order) -> list[int]:
    """The groups in the order in which they can be sorted: each after those that change its key, inner before outer.

    A key on some tensor changes with the groups along that tensor's other axis; not with the groups around it, which
    carry the units and their keys along together.
    """
    if order is None:
        return []
    if order not in ("first_weight", "norm", "output"):
        raise ValueError(f"unknown order {order!r}: choose 'first_weight', 'norm', 'output' or None.")
    groups = symmetries.permutations
    before: dict[int, set[int]] = {}
    for g, group in enumerate(groups):
        place = _reader(group, symmetries) if order == "output" else _writer(group, symmetries)
        other = 1 - place.axis
        around, i = {g}, g
        while groups[i].inside is not None:
            i = groups[i].inside[0]
            around.add(i)
        before[g] = {
            h
            for h in range(len(groups))
            if h not in around and any(p.name == place.name and p.axis == other for p in groups[h].places)
        }
        before[g] |= {i for block in symmetries.inner(g) for i in block}
    return _sorted(before, symmetries)


def _sorted(before: dict[int, set[int]], symmetries: Symmetries) -> list[int]:
    try:
        return list(TopologicalSorter(before).static_order())
    except CycleError as error:
        raise ValueError(
            f"no canonical form: the layers that write (or read) these units first depend on one another in a circle, "
            f"positions {error.args[1]} of {len(before)}. Canonicalise with scale=None or order=None."
        ) from None


def _writer(owner: PermutationGroup | ScaleFreedom, symmetries: Symmetries) -> Place:
    """The place on the weight that writes the units first: a layer's rows before a norm's vector."""
    rows = [p for p in owner.places if p.axis == 0 and p.exponent >= 0 and is_counted(p.name, biases=False)]
    if not rows:
        raise ValueError(
            f"the units of {owner.layer!r} have no incoming weight to be measured by; keep them with None."
        )
    return next((p for p in rows if len(symmetries.shapes[p.name]) > 1), rows[0])


def _reader(group: PermutationGroup, symmetries: Symmetries) -> Place:
    """The place on the weight that reads the units last."""
    columns = [p for p in group.places if p.axis == 1 and is_counted(p.name, biases=False)]
    if not columns:
        raise ValueError(
            f"the units of {group.layer!r} have no outgoing weight to be sorted by; use another order."
        )
    return columns[-1]


def _negative(freedom: ScaleFreedom) -> list[Place]:
    return [place for place in freedom.places if place.exponent < 0]


def _norms(tensor: Tensor, place: Place) -> Tensor:
    """(P, size): L2 norm of what each unit owns of ``tensor`` (P, ...)."""
    if place.rows is not None:
        tensor = tensor[:, place.rows.to(tensor.device)]
    squares = tensor.movedim(place.axis + 1, 1).square()
    squares = squares.reshape(*squares.shape[:2], -1).sum(2)  # (P, positions)
    return squares[:, place.index.to(tensor.device)].sum(2).sqrt()


def _first(tensor: Tensor, place: Place) -> Tensor:
    """(P, size): the first entry of each unit's first position along axis 1 of (P, positions, ...)."""
    values = tensor[:, place.index[:, 0].to(tensor.device)]
    return values.reshape(*values.shape[:2], -1)[:, :, 0]


def _nothing(params: Params, symmetries: Symmetries) -> tuple[list[Tensor], list[Tensor]]:
    """Log-scales 0 and no unit dead, (P, size) a freedom."""
    any_tensor = next(iter(params.values()))
    zeros = [
        torch.zeros(len(any_tensor), freedom.size, dtype=torch.float64, device=any_tensor.device)
        for freedom in symmetries.scales
    ]
    return zeros, [zero.bool() for zero in zeros]


def _same_order(params: Params, symmetries: Symmetries) -> list[Tensor]:
    any_tensor = next(iter(params.values()))
    return [
        torch.arange(group.size, device=any_tensor.device).repeat(len(any_tensor), 1)
        for group in symmetries.permutations
    ]
