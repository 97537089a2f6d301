"""The three training losses: per example, and their derivative with respect to the network's outputs.

Outputs carry their numbers (logits, predictions) on one axis, by default the last.  The dense kernels put the batch last
instead, so that sums over a few classes run over long contiguous rows: ``axis`` says where the numbers are.
Targets are class indices without that axis (cross-entropy), or have the outputs' own shape.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def per_example(loss: str, outputs: Tensor, targets: Tensor, axis: int = -1) -> Tensor:
    """The loss of each example (the axis of the outputs' numbers is gone), as in torch.nn.functional."""
    if loss == "cross_entropy":
        return -F.log_softmax(outputs, axis).gather(axis, targets.unsqueeze(axis)).squeeze(axis)
    if loss == "binary_cross_entropy":
        return (F.softplus(outputs) - outputs * targets).mean(axis)
    return (outputs - targets).square().mean(axis)


def derivative(loss: str, outputs: Tensor, targets: Tensor, out: Tensor, axis: int = -1) -> Tensor:
    """d per_example / d outputs, written into ``out``."""
    if loss == "cross_entropy":  # softmax minus the one-hot target
        torch.softmax(outputs, axis, out=out)
        index = targets.unsqueeze(axis)
        return out.scatter_add_(axis, index, out.new_full((), -1.0).expand_as(index))
    if loss == "binary_cross_entropy":
        torch.sigmoid(outputs, out=out).sub_(targets)
        return out.div_(outputs.shape[axis])
    return torch.sub(outputs, targets, out=out).mul_(2 / outputs.shape[axis])


def as_targets(loss: str, targets: Tensor, outputs: int, dtype: torch.dtype) -> Tensor:
    """Targets in the form the loss reads: int64 (N,) classes, or (N, outputs) numbers of the network's dtype."""
    if loss == "cross_entropy":
        if targets.ndim != 1 or targets.is_floating_point():
            raise ValueError(
                f"cross_entropy reads class indices of shape (N,), not {tuple(targets.shape)} {targets.dtype}."
            )
        if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < outputs:
            raise ValueError(f"the network has {outputs} outputs: class indices must lie in [0, {outputs}).")
        return targets.long()
    if (
        targets.shape not in ((len(targets),), (len(targets), outputs))
        or targets.numel() != len(targets) * outputs
    ):
        raise ValueError(
            f"{loss} reads one target per output, shape (N, {outputs}), not {tuple(targets.shape)}."
        )
    return targets.to(dtype).reshape(len(targets), outputs)
