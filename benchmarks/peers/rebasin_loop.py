"""Weight matching as the PyTorch port of Git Re-Basin does it, written anew from its loop: a specification by hand, float32 on
torch's threads, groups in random order, every matrix of worths and every permuted tensor made afresh, SciPy's solver."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

Specification = Mapping[str, tuple[str | None, ...]]  # for each tensor the group on each of its axes


def of_perceptron(layers: list[str]) -> Specification:
    """Linear layers one after the other."""
    found: dict[str, tuple[str | None, ...]] = {}
    for i, name in enumerate(layers):
        before, after = (f"P{i - 1}" if i else None), (f"P{i}" if i < len(layers) - 1 else None)
        found |= {f"{name}.weight": (after, before), f"{name}.bias": (after,)}
    return found


def of_resnet20(names: list[str]) -> Specification:
    """`lib.convnets.resnet20`: three streams, and an inner group a block."""
    found: dict[str, tuple[str | None, ...]] = {
        "0.weight": ("S0", None, None, None),
        "1.weight": ("S0",),
        "1.bias": ("S0",),
    }
    for block in range(3, 12):
        stage, inner = (block - 3) // 3, f"I{block}"
        here, before = f"S{stage}", f"S{stage - 1}" if block in (6, 9) else f"S{stage}"
        found |= {
            f"{block}.conv1.weight": (inner, before, None, None),
            f"{block}.conv2.weight": (here, inner, None, None),
        }
        found |= {f"{block}.norm1.{part}": (inner,) for part in ("weight", "bias")}
        found |= {f"{block}.norm2.{part}": (here,) for part in ("weight", "bias")}
        if block in (6, 9):
            found |= {f"{block}.shortcut.0.weight": (here, before, None, None)}
            found |= {f"{block}.shortcut.1.{part}": (here,) for part in ("weight", "bias")}
    head = next(name for name in names if name.endswith("weight") and name not in found)
    return found | {head: (None, "S2"), head.replace("weight", "bias"): (None,)}


def match(
    spec: Specification, a: Mapping[str, Tensor], b: Mapping[str, Tensor], seed: int = 0, sweeps: int = 100
) -> dict[str, Tensor]:
    """The permutation of each group that brings b near to a."""
    places: dict[str, list[tuple[str, int]]] = {}
    for name, axes in spec.items():
        for axis, group in enumerate(axes):
            if group is not None:
                places.setdefault(group, []).append((name, axis))
    sizes = {group: a[where[0][0]].shape[where[0][1]] for group, where in places.items()}
    perms = {group: torch.arange(size) for group, size in sizes.items()}
    order, names = torch.Generator().manual_seed(seed), list(places)
    for _ in range(sweeps):
        progress = False
        for k in torch.randperm(len(names), generator=order).tolist():
            group, size = names[k], sizes[names[k]]
            worth = torch.zeros(size, size)
            for name, axis in places[group]:
                theirs = permuted(spec, perms, name, b[name], skip=axis)
                worth += (
                    a[name].movedim(axis, 0).reshape(size, -1) @ theirs.movedim(axis, 0).reshape(size, -1).T
                )
            new = torch.from_numpy(linear_sum_assignment(worth.numpy(), maximize=True)[1])
            values = [
                torch.einsum("ij,ij->i", worth, torch.eye(size)[perm]).sum() for perm in (perms[group], new)
            ]
            progress = progress or bool(values[1] > values[0] + 1e-12)
            perms[group] = new
        if not progress:
            break
    return perms


def permuted(
    spec: Specification, perms: Mapping[str, Tensor], name: str, tensor: Tensor, skip: int | None = None
) -> Tensor:
    """One tensor with all its axes in order, but one."""
    for axis, group in enumerate(spec[name]):
        if axis != skip and group is not None:
            tensor = torch.index_select(tensor, axis, perms[group])
    return tensor


def objective(
    spec: Specification, perms: Mapping[str, Tensor], a: Mapping[str, Tensor], b: Mapping[str, Tensor]
) -> float:
    """The inner product of a and the permuted b, float64."""
    return sum(float((a[n].double() * permuted(spec, perms, n, b[n]).double()).sum()) for n in spec)
