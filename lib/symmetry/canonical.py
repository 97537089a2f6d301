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
    Blocks of a grouped convolution are sorted by their first unit (or whole norm) after the units inside; units inside
    whose first weight depends on the order of the blocks around them are sorted by incoming times outgoing norm.

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
    for g, rule in _plan(symmetries, order, scale):
        key, descending = _key(moved, symmetries, g, rule)
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


def _key(params: Params, symmetries: Symmetries, g: int, rule: str) -> tuple[Tensor, bool]:
    """What group ``g`` is sorted by, (P, size), and whether descending."""
    group = symmetries.permutations[g]
    if rule == "output":
        place = _reader(group, symmetries)
        row = 0 if place.rows is None else int(place.rows[0])
        return _first(params[place.name][:, row], place), False
    place = _writer(group, symmetries)
    if rule == "first_weight":
        return _first(params[place.name], place), True
    norms = _norms(params[place.name], place)
    if rule == "both_norms":
        readers = [p for p in group.places if p.axis == 1 and is_counted(p.name, biases=False)]
        norms = norms * sum(_norms(params[p.name], p).square() for p in readers).sqrt()
    return norms, True


def _plan(symmetries: Symmetries, order: Order, scale: Scale) -> list[tuple[int, str]]:
    """The groups in the order in which they can be sorted, each with its rule.

    Inner groups come before outer ones, and each group after those that permute the other axis of the tensor that its
    key is read from. Where that would be the group itself or one around it, the order of the outer blocks is not yet
    known, and the units are sorted by a key that needs no order: incoming times outgoing norm.
    """
    if order is None:
        return []
    if order not in ("first_weight", "norm", "output"):
        raise ValueError(f"unknown order {order!r}: choose 'first_weight', 'norm', 'output' or None.")
    groups = symmetries.permutations
    rules, before = {}, {}
    for g, group in enumerate(groups):
        before[g] = {i for block in symmetries.inner(g) for i in block}
        rules[g] = "both_norms" if scale == "unit_norm" else "norm"
        if order == "norm":
            continue
        key = _reader(group, symmetries) if order == "output" else _writer(group, symmetries)
        around, inside = {g: -1}, group.inside
        while inside is not None:
            around[inside[0]] = inside[1]
            inside = groups[inside[0]].inside
        moving = {
            h: [p for p in groups[h].places if _permutes_columns_of(p, key)] for h in range(len(groups))
        }
        if any(not _carries(p, key, around[h]) for h in around for p in moving[h]):
            rules[g] = "both_norms"
            continue
        rules[g] = order
        before[g] |= {h for h in moving if moving[h] and h not in around}
    return [(g, rules[g]) for g in _sorted(before, symmetries)]


def _permutes_columns_of(place: Place, key: Place) -> bool:
    """Whether a place exchanges entries along the axis on which the first entry of ``key``'s units is read."""
    if place.name != key.name or place.axis == key.axis:
        return False
    mine, theirs = (key.index, place.rows) if place.axis == 1 else (key.rows, place.index)
    return mine is None or theirs is None or bool(torch.isin(theirs, mine).any())


def _carries(place: Place, key: Place, block: int) -> bool:
    """Whether a group around the units moves all that the key reads along with them, as their own block."""
    return block >= 0 and key.rows is not None and bool(torch.isin(key.rows, place.index[block]).all())


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
