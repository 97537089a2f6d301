"""Rules of the layers that own parameters: dense and convolutional layers, and norms.

A rule gets the trace, the result (shapes only) and the operation's own arguments. It returns the names of the result
and writes seats (where a unit's position is), factors (what rescaling a unit multiplies), and unions into the ledger.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lib.symmetry.ledger import Seat
from lib.symmetry.names import fresh, present, relabel
from lib.symmetry.trace import Trace, Weight

# --- layers that write new units ---------------------------------------------------------------------------------


def _linear(run: Trace, out: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return _dense(run, out, input, weight, bias, -1, 0, 1)


def _matmul(run: Trace, out: Tensor, input: Tensor, other: Tensor) -> Tensor:
    if run.is_signal(other):
        run.refuse("it multiplies by a matrix of activations (attention, or a network that makes weights).")
    if other.ndim != 2:
        run.refuse(f"it multiplies by a tensor with {other.ndim} axes; a matrix is understood.")
    return _dense(run, out, input, other, None, -1, 1, 0)


def _addmm(run: Trace, out: Tensor, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta=1, alpha=1) -> Tensor:
    if beta != 1 or run.is_signal(input):
        run.refuse("it is an addmm whose first term is no plain bias.")
    return _dense(run, out, mat1, mat2, input, -1, 1, 0)


def _dense(
    run: Trace,
    out: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    axis: int,
    row_axis: int,
    column_axis: int,
    groups: int = 1,
) -> Tensor:
    """out[.. o ..] = Σ_i weight[o, i] · input[.. i ..] + bias[o] along ``axis``; axes of ``weight`` as it is given."""
    matrix = run.weight(weight)
    if matrix is None:
        run.refuse("its weight is a constant, not a parameter.")
    axes = run.axes(matrix)
    labels, offsets = run.along(input, axis, "mixes")
    written = run.ledger.new(out.shape[axis], run.layer)
    rows, columns = axes[row_axis], axes[column_axis]
    run.seat(matrix, rows, written)
    run.factor(matrix, rows, written, +1, "row")
    if groups == 1:
        run.seat(matrix, columns, labels, offsets)
        run.factor(matrix, columns, labels, -1, "column")
    else:
        _read_in_blocks(run, matrix, labels, offsets, written, groups)
    if bias is not None:
        shift = run.weight(bias)
        if shift is None:
            run.freeze_units(written)
            run.freeze_scales(written)
        else:
            run.axes(shift)
            run.seat(shift, 0, written)
            run.factor(shift, 0, written, +1, "row")
    return fresh(out.shape, axis, written)


def _read_in_blocks(
    run: Trace, matrix: Weight, labels: Tensor, offsets: Tensor, written: Tensor, groups: int
) -> None:
    """Block b of the rows reads block b of the input channels only, so blocks move as wholes."""
    read, write = labels.view(groups, -1), written.view(groups, -1)
    rows = torch.arange(len(written)).view(groups, -1)
    if read.shape[1] == 1 and write.shape[1] == 1:  # depthwise: the same unit goes on
        run.ledger.units.join_all(written, labels)
    else:
        run.ledger.families.append([torch.cat(pair) for pair in zip(read, write, strict=True)])
    if read.shape[1] == 1:  # one column: what scales the input scales the whole row
        run.factor(matrix, 0, labels.repeat_interleave(write.shape[1]), -1, "column")
        return
    local, block = torch.arange(len(labels)) % read.shape[1], torch.arange(len(labels)) // read.shape[1]
    family = len(run.ledger.families) - 1
    run.ledger.seats.append(Seat(matrix.name, 1, labels, local, offsets, family, block, rows))
    for b in range(groups):
        run.factor(matrix, 1, read[b], -1, "column", rows[b])


def _conv(run: Trace, out: Tensor, input: Tensor, weight: Tensor, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Tensor:  # fmt: skip
    return _dense(run, out, input, weight, bias, -(weight.ndim - 1), 0, 1, groups)


def _conv_transpose(run: Trace, out: Tensor, input: Tensor, weight: Tensor, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1) -> Tensor:  # fmt: skip
    if groups != 1:
        run.refuse("a transposed convolution in groups is not treated.")
    return _dense(run, out, input, weight, bias, -(weight.ndim - 1), 1, 0)


# --- norms -------------------------------------------------------------------------------------------------------


def _batch_norm(run: Trace, out: Tensor, input: Tensor, running_mean=None, running_var=None, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5) -> Tensor:  # fmt: skip
    labels, offsets = run.along(input, 1, "normalises")
    for statistic, exponent in ((running_mean, +1), (running_var, +2)):
        if statistic is not None:
            known = run.weight(statistic)
            if known is None:
                run.refuse("its running statistics are no registered buffers.")
            run.seat(known, 0, labels, offsets)
            run.factor(known, 0, labels, exponent, "statistic")
    run.ledger.normalised.append((labels, eps))
    return relabel(run.names(input), 1, _affine(run, weight, bias, 0, labels, offsets))


def _instance_norm(run: Trace, out: Tensor, input: Tensor, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, momentum=0.1, eps=1e-5) -> Tensor:  # fmt: skip
    return _batch_norm(run, out, input, running_mean, running_var, weight, bias, eps=eps)


def _group_norm(run: Trace, out: Tensor, input: Tensor, num_groups: int, weight=None, bias=None, eps=1e-5) -> Tensor:  # fmt: skip
    labels, offsets = run.along(input, 1, "normalises")
    _normalise_blocks(run, labels.view(num_groups, -1), eps)
    return relabel(run.names(input), 1, _affine(run, weight, bias, 0, labels, offsets))


def _layer_norm(run: Trace, out: Tensor, input: Tensor, normalized_shape, weight=None, bias=None, eps=1e-5) -> Tensor:  # fmt: skip
    axes, first = run.unit_axes(input), input.ndim - len(normalized_shape)
    if len(axes) == 1 and axes[0] >= first:
        labels, offsets = run.along(input, axes[0], "normalises")
        _normalise_blocks(run, labels[None], eps)
        written = _affine(run, weight, bias, axes[0] - first, labels, offsets)
        return relabel(run.names(input), axes[0], written)
    if any(axis >= first for axis in axes):
        run.refuse("it normalises over units that lie on several axes (a reshape before it?).")
    labels = present(run.names(input))  # each unit by itself: the affine part is shared by all units
    run.ledger.normalised.append((labels, eps))
    for shared in (weight, bias):
        if shared is not None:
            run.weight(shared)
    axis = axes[0] if axes else 0
    along_axis, _ = run.along(input, axis, "normalises")
    written = same_units(run, along_axis)
    run.freeze_scales(written)
    return relabel(run.names(input), axis, written)


def _rms_norm(run: Trace, out: Tensor, input: Tensor, normalized_shape, weight=None, eps=None) -> Tensor:
    eps = torch.finfo(torch.float32).eps if eps is None else eps
    return _layer_norm(run, out, input, normalized_shape, weight, None, eps)


def _normalise_blocks(run: Trace, blocks: Tensor, eps: float) -> None:
    """Statistics shared within each row of ``blocks``: these units are rescaled together, and stay together."""
    if blocks.shape[1] > 1:
        run.ledger.families.append(list(blocks))
    run.ledger.scales.join_all(blocks.flatten(), blocks[:, :1].expand_as(blocks).flatten())
    run.ledger.normalised.append((blocks.flatten(), eps))


def _affine(run: Trace, weight, bias, axis: int, labels: Tensor, offsets: Tensor) -> Tensor:
    """New labels after a norm: the same units, and a scale of their own where the norm has weight and bias."""
    written = same_units(run, labels)
    if weight is None:
        run.freeze_scales(written)
    for parameter in (weight, bias):
        if parameter is None:
            continue
        known = run.weight(parameter)
        if known is None:
            run.freeze_units(written)
            run.freeze_scales(written)
            continue
        run.axes(known)
        run.seat(known, axis, labels, offsets)
        if known.buffer:
            run.freeze_scales(written)
        else:
            run.factor(known, axis, written, +1, "affine")
    return written


def same_units(run: Trace, labels: Tensor) -> Tensor:
    """New labels of the same units, with scales of their own."""
    written = run.ledger.new(len(labels), run.layer)
    run.ledger.units.join_all(written, labels)
    return written


LAYER_RULES: dict[str, Callable] = {
    **{f"conv{d}d": _conv for d in (1, 2, 3)},
    **{f"conv_transpose{d}d": _conv_transpose for d in (1, 2, 3)},
    **dict.fromkeys(("matmul", "mm"), _matmul),
    "linear": _linear,
    "addmm": _addmm,
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
}
