"""Group elements act on weights: permute units, rescale units, compose and invert.

An element of the permutation group is a tuple with one int64 tensor a group, in the list order of
``symmetries.permutations``; an element of the scaling group is a tuple with one tensor of log-scales a freedom. Both
may be one element, ``(size,)``, or one a member, ``(P, size)``. Every function takes a single network or a population
(told apart by ``symmetries.shapes``); elements ``(P, size)`` applied to one network give the population of its images.

Gather convention: with ``p`` a permutation, ``new[index[u]] = old[index[p[u]]]`` at every place of the group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from lib.params import Params
from lib.symmetry.structure import Place, Symmetries


def permute(params: Mapping[str, Tensor], symmetries: Symmetries, perms: Sequence[Tensor]) -> Params:
    """The network with its units permuted: the same function, other weights (Laurent et al. 2024, T_p).

    ``params`` single network or population; ``perms`` one (size,) or (P, size) int64 tensor a group. Groups act in list
    order. Returns new tensors. Raises ValueError where a permutation or a tensor does not fit.
    """
    members = members_of(params, symmetries)
    sizes = [group.size for group in symmetries.permutations]
    labels = [f"group {i} ({group.layer!r})" for i, group in enumerate(symmetries.permutations)]
    _check_elements(perms, sizes, labels, "permutation")
    for perm, size, label in zip(perms, sizes, labels, strict=True):
        _check_permutation(perm, size, label)
    batch, moved = _batched(params, members, perms, labels)
    for group, perm in zip(symmetries.permutations, perms, strict=True):
        for place in group.places:
            moved[place.name] = move_units(moved[place.name], place, torch.atleast_2d(perm))
    return _unbatched(moved, batch)


def rescale(params: Mapping[str, Tensor], symmetries: Symmetries, log_scales: Sequence[Tensor]) -> Params:
    """The network with its units rescaled: the same function, other weights (Laurent et al. 2024, T_s).

    Each place is multiplied by exp(exponent · log_scale[u]); ``log_scales`` holds one (size,) or (P, size) floating
    tensor a freedom. Freedoms that are not exact leave the function unchanged only as the norm's epsilon goes to zero.
    Keeps each tensor's dtype. Raises ValueError where a log-scale is not finite or a tensor does not fit.
    """
    members = members_of(params, symmetries)
    labels = [f"freedom {i} ({freedom.layer!r})" for i, freedom in enumerate(symmetries.scales)]
    _check_elements(log_scales, [freedom.size for freedom in symmetries.scales], labels, "log-scale")
    for label, log_scale in zip(labels, log_scales, strict=True):
        if not torch.isfinite(log_scale).all():
            raise ValueError(
                f"{label}: a log-scale is NaN or infinite; a scale must be a positive finite number."
            )
    batch, scaled = _batched(params, members, log_scales, labels)
    for freedom, log_scale in zip(symmetries.scales, log_scales, strict=True):
        for place in freedom.places:
            scaled[place.name] = scale_units(scaled[place.name], place, torch.atleast_2d(log_scale))
    return _unbatched(scaled, batch)


def identity(symmetries: Symmetries) -> tuple[Int64[Tensor, " _"], ...]:
    """The permutation that moves nothing."""
    return tuple(torch.arange(group.size) for group in symmetries.permutations)


def random_permutations(
    symmetries: Symmetries, generator: torch.Generator, members: int | None = None
) -> tuple[Int64[Tensor, "*P _"], ...]:
    """A uniformly random group element, or one for each of ``members`` networks, on the generator's device."""
    lead = () if members is None else (members,)
    device = generator.device
    return tuple(
        torch.rand(*lead, group.size, generator=generator, dtype=torch.float64, device=device).argsort(-1)
        for group in symmetries.permutations
    )


def random_log_scales(
    symmetries: Symmetries, generator: torch.Generator, members: int | None = None, spread: float = 1.0
) -> tuple[Float64[Tensor, "*P _"], ...]:
    """Independent log-scales from N(0, spread²), float64: one element, or one for each of ``members`` networks."""
    lead = () if members is None else (members,)
    device = generator.device
    return tuple(
        spread * torch.randn(*lead, freedom.size, generator=generator, dtype=torch.float64, device=device)
        for freedom in symmetries.scales
    )


def compose(
    symmetries: Symmetries, first: Sequence[Tensor], second: Sequence[Tensor]
) -> tuple[Int64[Tensor, "*P _"], ...]:
    """The element that acts as ``first``, then ``second``: permute by it equals permute by the one, then the other.

    Plain groups compose as p[q]. Where groups live inside the blocks of another (wreath product), ``second`` meets the
    blocks where ``first`` has left them: its inner elements are carried back along the blocks before they compose.
    """
    _check_all(symmetries, first, second)
    combined, later = list(first), list(second)
    for g in reversed(range(len(combined))):
        later = _carry(symmetries, later, g, first[g].argsort(-1))
        outer, inner = torch.broadcast_tensors(first[g], later[g])
        combined[g] = outer.gather(-1, inner)
    return tuple(combined)


def inverse(symmetries: Symmetries, perms: Sequence[Tensor]) -> tuple[Int64[Tensor, "*P _"], ...]:
    """The element that undoes ``perms``, wreath products included."""
    _check_all(symmetries, perms)
    undone = list(perms)
    for g in reversed(range(len(undone))):
        undone = _carry(symmetries, undone, g, undone[g])
        undone[g] = undone[g].argsort(-1)
    return tuple(undone)


def count_permutations(symmetries: Symmetries) -> int:
    """Exact order of the permutation group, ∏ size!, as a Python int of any length."""
    return math.prod(math.factorial(group.size) for group in symmetries.permutations)


def members_of(params: Mapping[str, Tensor], symmetries: Symmetries) -> int | None:
    """P for a population of the network that ``symmetries`` describes, None for a single network.

    Raises ValueError, naming the tensor, where a tensor is missing, unknown or of another shape.
    """
    missing, unknown = symmetries.shapes.keys() - params.keys(), params.keys() - symmetries.shapes.keys()
    if missing:
        raise ValueError(
            f"params lack the tensor {min(missing)!r}: these symmetries belong to a network that has it."
        )
    if unknown:
        raise ValueError(
            f"params hold the tensor {min(unknown)!r}, which the network of these symmetries does not have."
        )
    members: int | None = None
    for i, (name, shape) in enumerate(symmetries.shapes.items()):
        found = params[name].shape
        here = found[0] if len(found) == len(shape) + 1 else None
        if (found if here is None else found[1:]) != shape or (i and here != members):
            wanted = tuple(shape) if not i or members is None else (members, *shape)
            raise ValueError(
                f"the tensor {name!r} has shape {tuple(found)}: the network of these symmetries has {wanted}"
                + (
                    ", or a population's leading axis before it."
                    if not i
                    else ", like the tensors before it."
                )
            )
        members = here
    return members


def precise(tensor: Tensor) -> Tensor:
    """Float64, on the tensor's device where that has float64 (Apple's GPU has not)."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def _check_elements(elements: Sequence[Tensor], sizes: list[int], labels: list[str], what: str) -> None:
    if len(elements) != len(sizes):
        raise ValueError(
            f"{len(elements)} {what}s for {len(sizes)} ({', '.join(labels)}): give one tensor for each."
        )
    for element, size, label in zip(elements, sizes, labels, strict=True):
        if element.ndim not in (1, 2) or element.shape[-1] != size:
            raise ValueError(
                f"{label} has {size} units, but its {what} has shape {tuple(element.shape)}: "
                f"give ({size},), or (P, {size}) for one a member."
            )


def _check_permutation(perm: Tensor, size: int, label: str) -> None:
    if perm.dtype != torch.int64:
        raise ValueError(f"{label}: a permutation is an int64 tensor, not {perm.dtype}.")
    if not (perm.sort(-1).values == torch.arange(size, device=perm.device)).all():
        raise ValueError(f"{label}: not a permutation; each of 0 … {size - 1} must appear exactly once.")


def _check_all(symmetries: Symmetries, *elements: Sequence[Tensor]) -> None:
    sizes = [group.size for group in symmetries.permutations]
    labels = [f"group {i} ({group.layer!r})" for i, group in enumerate(symmetries.permutations)]
    for element in elements:
        _check_elements(element, sizes, labels, "permutation")
        for perm, size, label in zip(element, sizes, labels, strict=True):
            _check_permutation(perm, size, label)


def _batched(
    params: Mapping[str, Tensor], members: int | None, elements: Sequence[Tensor], labels: list[str]
) -> tuple[int | None, Params]:
    """P of the result (None for a single network) and fresh tensors with a leading axis P (1 for a single network)."""
    batch = members
    for element, label in zip(elements, labels, strict=True):
        if element.ndim == 1:
            continue
        if batch is not None and element.shape[0] != batch:
            raise ValueError(
                f"{label}: elements for {element.shape[0]} members, but {batch} elsewhere; the numbers must agree."
            )
        batch = element.shape[0]
    if members is not None:
        return batch, {name: tensor.clone() for name, tensor in params.items()}
    return batch, {name: tensor.expand(batch or 1, *tensor.shape).clone() for name, tensor in params.items()}


def _unbatched(params: Params, batch: int | None) -> Params:
    return params if batch is not None else {name: tensor[0] for name, tensor in params.items()}


def move_units(tensor: Tensor, place: Place, perm: Tensor) -> Tensor:
    """Positions of ``place`` along its axis, in the order of ``perm``: tensor (P, ...), perm (1 or P, size)."""
    if place.rows is not None:
        rows = place.rows.to(tensor.device)
        whole = Place(place.name, place.axis, place.index)
        return tensor.index_copy(1, rows, move_units(tensor[:, rows], whole, perm))
    index, perm = place.index.to(tensor.device), perm.to(tensor.device)
    axis = place.axis + 1
    source = torch.arange(tensor.shape[axis], device=tensor.device).repeat(len(perm), 1)
    source[:, index.flatten()] = index[perm].flatten(1)
    if len(perm) == 1:
        return tensor.index_select(axis, source[0])
    if axis == 1:
        return tensor[torch.arange(len(perm), device=tensor.device)[:, None], source]
    return tensor.gather(axis, _along(source, axis, tensor.ndim).expand_as(tensor))


def scale_units(tensor: Tensor, place: Place, log_scale: Tensor) -> Tensor:
    """Positions of ``place`` times exp(exponent · log_scale[unit]): tensor (P, ...), log_scale (1 or P, size)."""
    if place.exponent == 0:
        return tensor
    if place.rows is not None:
        rows = place.rows.to(tensor.device)
        whole = Place(place.name, place.axis, place.index, exponent=place.exponent)
        return tensor.index_copy(1, rows, scale_units(tensor[:, rows], whole, log_scale))
    axis, log_scale = place.axis + 1, precise(log_scale)
    factor = log_scale.new_ones(len(log_scale), tensor.shape[axis])
    entries = (place.exponent * log_scale).exp().repeat_interleave(place.index.shape[1], dim=1)
    factor[:, place.index.flatten().to(factor.device)] = entries
    return tensor * _along(factor.to(tensor.dtype).to(tensor.device), axis, tensor.ndim)


def _along(vector: Tensor, axis: int, ndim: int) -> Tensor:
    """(P, n) -> (P, 1, …, n, …, 1), with n at ``axis``."""
    return vector.reshape(len(vector), *(1,) * (axis - 1), -1, *(1,) * (ndim - axis - 1))


def _carry(symmetries: Symmetries, elements: Sequence[Tensor], g: int, order: Tensor) -> list[Tensor]:
    """Everything inside group ``g``, carried between its blocks: block b takes the elements of block order[b]."""
    carried = list(elements)
    blocks = [_inside(symmetries, inner) for inner in symmetries.inner(g)]
    for slot in zip(*blocks, strict=True):
        stacked = torch.stack(torch.broadcast_tensors(*(elements[i] for i in slot)), -2)  # (*P, blocks, size)
        lead = torch.broadcast_shapes(stacked.shape[:-2], order.shape[:-1])
        size = stacked.shape[-1]
        source = order[..., None].expand(*lead, len(slot), size)
        taken = stacked.expand(*lead, len(slot), size).gather(-2, source)
        for block, i in enumerate(slot):
            carried[i] = taken[..., block, :]
    return carried


def _inside(symmetries: Symmetries, groups: list[int]) -> list[int]:
    """These groups and all groups inside them, block by block, at any depth."""
    found = []
    for i in groups:
        found.append(i)
        for inner in symmetries.inner(i):
            found += _inside(symmetries, inner)
    return found
