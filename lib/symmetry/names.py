"""Names of the entries of a tensor: whose unit's signal an entry is (label), and which pixel of it (offset).

An operation that only moves data acts on names as it acts on data, so reshapes need no rules of their own: after
``flatten``, the block of columns that a channel owns is read off the names.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

_SHIFT = 32  # name = label << 32 | offset


def name_of(label: int) -> int:
    """The name of the first entry under ``label``."""
    return label << _SHIFT


def label_of(names: Tensor) -> Tensor:
    """The labels alone."""
    return names >> _SHIFT


def fresh(shape: torch.Size, axis: int, labels: Tensor) -> Tensor:
    """Names of a tensor whose units lie along ``axis`` and whose other axes (the batch apart) are pixels."""
    axis = axis % len(shape)
    pixels = [1 if d in (0, axis) else size for d, size in enumerate(shape)]
    offsets = torch.arange(math.prod(pixels)).view(pixels)
    return (_lie_along(labels, axis, len(shape)) + offsets).expand(shape)


def relabel(names: Tensor, axis: int, labels: Tensor) -> Tensor:
    """The same offsets under new labels along ``axis``."""
    return _lie_along(labels, axis, names.ndim) + (names & ((1 << _SHIFT) - 1))


def compact(*names: Tensor) -> list[Tensor]:
    """The labels of tensors of one shape, with every axis along which none of them varies cut to length 1."""
    thin = list(names)
    for axis in range(thin[0].ndim):
        if all(t.stride(axis) == 0 for t in thin):
            thin = [t.narrow(axis, 0, min(1, t.shape[axis])) for t in thin]
    thin = [label_of(t) for t in thin]
    for axis in range(thin[0].ndim):
        if all(bool((t == t.narrow(axis, 0, min(1, t.shape[axis]))).all()) for t in thin):
            thin = [t.narrow(axis, 0, min(1, t.shape[axis])) for t in thin]
    return thin


def present(names: Tensor) -> Tensor:
    """The labels that occur."""
    return compact(names)[0].unique()


def unit_axes(names: Tensor) -> list[int]:
    """The axes along which the units lie: usually one, none where all entries are one unit's."""
    return [d for d, size in enumerate(compact(names)[0].shape) if size > 1]


def along(names: Tensor, axis: int) -> tuple[Tensor, Tensor] | None:
    """Labels and offsets along ``axis``; None where the labels vary along another axis."""
    axis = axis % names.ndim
    if any(d != axis for d in unit_axes(names)):
        return None
    first = names.movedim(axis, -1)
    while first.ndim > 1:
        first = first[0]
    return label_of(first), first & ((1 << _SHIFT) - 1)


def move(operation: str, names: Tensor, args: tuple, kwargs: dict) -> Tensor | tuple[Tensor, ...]:
    """Names after an operation that moves data: the operation itself, done to the names."""
    return names if operation in _UNCHANGED.split() else MOVES[operation](names, *args[1:], **kwargs)


def _lie_along(labels: Tensor, axis: int, ndim: int) -> Tensor:
    axis = axis % ndim
    return (labels << _SHIFT).view([-1 if d == axis else 1 for d in range(ndim)])


_UNCHANGED = """contiguous clone detach data to float double half type cpu cuda requires_grad alias positive
    type_as"""
_AS_ON_DATA = """reshape flatten unflatten permute transpose t movedim moveaxis swapaxes swapdims squeeze unsqueeze
    expand repeat tile roll flip chunk split tensor_split unbind narrow select broadcast_to repeat_interleave"""
MOVES: dict[str, Callable] = {
    **{name: getattr(torch.Tensor, name) for name in _AS_ON_DATA.split()},
    **dict.fromkeys(_UNCHANGED.split(), lambda names, *_, **__: names),
    "view": torch.Tensor.reshape,
    "getitem": torch.Tensor.__getitem__,
    "T": lambda names: names.T,
    "mT": lambda names: names.mT,
    "channel_shuffle": torch.channel_shuffle,
}
