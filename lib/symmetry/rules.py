"""Rules of the operations between the layers, and the table of all rules, by the operations' plain names.

Elementwise maps, sums and products, pooling and padding, reductions, and everything that only moves data. An operation
without a rule is refused, so the table at the end is the list of what is understood.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.symmetry.layer_rules import LAYER_RULES, same_units
from lib.symmetry.ledger import ZERO
from lib.symmetry.names import (
    MOVES,
    along,
    compact,
    fresh,
    label_of,
    move,
    name_of,
    present,
    relabel,
    unit_axes,
)
from lib.symmetry.trace import Trace

# --- elementwise -------------------------------------------------------------------------------------------------


def _homogeneous(run: Trace, out: Tensor, input: Tensor, *_, **__) -> Tensor:
    return run.names(input)


def _pointwise(run: Trace, out: Tensor, input: Tensor, *others, **__) -> Tensor:
    """Any other elementwise map: units may be permuted, not rescaled."""
    tensors = [x for x in (input, *others) if isinstance(x, Tensor)]
    if len(tensors) == 2:
        return _binary(run, out, *tensors, mix="other")
    if len(tensors) != 1 or not run.is_signal(input):
        run.refuse("it combines tensors in a way that is not known.")
    return _pin_scales(run, run.names(input))


def _pin_scales(run: Trace, names: Tensor) -> Tensor:
    run.freeze_scales(present(names))
    return torch.where(label_of(names) == ZERO, names - name_of(ZERO), names) if run.padded else names


def _clamp(run: Trace, out: Tensor, input: Tensor, min=None, max=None) -> Tensor:
    relu = (min, max) in ((0, None), (None, 0))
    return run.names(input) if relu else _pointwise(run, out, input, min, max)


def _leaky_relu(run: Trace, out: Tensor, input: Tensor, *_, training: bool = False, **__) -> Tensor:
    if training:
        run.refuse("it draws random slopes in evaluation mode.")
    return run.names(input)


def _prelu(run: Trace, out: Tensor, input: Tensor, weight: Tensor) -> Tensor:
    slope = run.weight(weight)
    if weight.numel() > 1:
        labels, offsets = run.along(input, 1, "has slopes along")
        if slope is None:
            run.freeze_units(labels)
        else:
            run.axes(slope)
            run.seat(slope, 0, labels, offsets)
    return run.names(input)


def _dropout(run: Trace, out: Tensor, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:  # fmt: skip
    if training and p > 0:
        run.refuse("dropout that stays on in evaluation mode.")
    return run.names(input)


def _add(run: Trace, out: Tensor, input, other, **_) -> Tensor:
    return _binary(run, out, input, other, mix="sum")


def _mul(run: Trace, out: Tensor, input, other, **_) -> Tensor:
    return _binary(run, out, input, other, mix="product")


def _div(run: Trace, out: Tensor, input, other, **kwargs) -> Tensor:
    plain = run.is_signal(input) and kwargs.get("rounding_mode") is None
    return _binary(run, out, input, other, mix="quotient" if plain else "other")


def _binary(run: Trace, out: Tensor, a, b, mix: str) -> Tensor:
    """a ∘ b elementwise. Position by position the units are one; a sum also makes their scales one."""
    if not run.is_signal(a):
        a, b = b, a
    if not run.is_signal(b):
        return _with_constant(run, out, a, b, mix)
    if out.shape not in (a.shape, b.shape):
        run.refuse(
            "it combines every unit of one tensor with every unit of another (an outer sum or product)."
        )
    whole, other = (a, b) if a.shape == out.shape else (b, a)
    names, others = (run.names(x).broadcast_to(out.shape) for x in (whole, other))
    if mix == "quotient" and whole is b:
        mix = "other"
    left, right = (x.flatten() for x in torch.broadcast_tensors(*compact(names, others)))
    pairs = torch.stack((left, right))[:, (left != ZERO) & (right != ZERO)].unique(dim=1)
    lone = (
        other.shape != out.shape and run.ledger.units.frozen(present(others)) and _uniform(run, whole, other)
    )
    if not lone:
        run.ledger.units.join_all(*pairs)
    if mix == "sum":
        run.ledger.scales.join_all(*pairs)
        names = torch.where(label_of(names) == ZERO, others, names) if run.padded else names
    elif mix == "other" or not run.ledger.scales.frozen(pairs[1]):
        if mix == "product" and other.shape == out.shape and run.ledger.scales.frozen(pairs[0]):
            return others
        run.freeze_scales(pairs.flatten())
    return names


def _uniform(run: Trace, whole: Tensor, other: Tensor) -> bool:
    """Is ``other`` one number for all units of ``whole``?"""
    lead = whole.ndim - other.ndim
    return all(axis < lead or other.shape[axis - lead] == 1 for axis in run.unit_axes(whole))


def _with_constant(run: Trace, out: Tensor, signal: Tensor, other, mix: str) -> Tensor:
    """An activation with a number, a constant tensor or a parameter (a learned scale or shift of each unit)."""
    names = run.names(signal).broadcast_to(out.shape)
    known = run.weight(other) if isinstance(other, Tensor) else None
    axes = unit_axes(names)
    lead = out.ndim - other.ndim if isinstance(other, Tensor) else 0
    own = [d for d in axes if isinstance(other, Tensor) and d >= lead and other.shape[d - lead] > 1]
    if not own or known is None:
        labels = present(names)
        if own:
            run.freeze_units(labels)
        return names if mix in ("product", "quotient") else _pin_scales(run, names)
    if len(axes) > 1:
        run.refuse(
            f"the parameter {known.name!r} meets units that lie on several axes (a reshape before it?)."
        )
    labels, offsets = along(names, own[0])
    axis = run.axes(known)[own[0] - lead]
    run.seat(known, axis, labels, offsets)
    if mix == "product" and not known.buffer:
        written = same_units(run, labels)
        run.factor(known, axis, labels, -1, "column")
        run.factor(known, axis, written, +1, "row")
        return relabel(names, own[0], written)
    if mix == "sum":
        run.factor(known, axis, labels, +1, "row")
    elif mix == "other" or not known.buffer:
        run.freeze_scales(labels)
    return names


def _softmax(run: Trace, out: Tensor, input: Tensor, dim: int | None = None, **__) -> Tensor:
    axes = run.unit_axes(input)
    if axes and dim is None:
        run.refuse("a softmax that does not say its axis.")
    if axes and dim % input.ndim in axes:
        run.ledger.families.append([run.along(input, dim, "normalises")[0]])
    return _pin_scales(run, run.names(input))


def _glu(run: Trace, out: Tensor, input: Tensor, dim: int = -1) -> Tensor:
    left, right = run.names(input).chunk(2, dim)
    pairs = torch.stack([x.flatten() for x in torch.broadcast_tensors(*compact(left, right))]).unique(dim=1)
    run.ledger.units.join_all(*pairs)
    run.freeze_scales(pairs.flatten())
    return left


# --- pixels ------------------------------------------------------------------------------------------------------


def _pool(axes: int) -> Callable[..., Tensor]:
    def pool(run: Trace, out: Tensor, input: Tensor, *_, **kwargs) -> Tensor:
        if not isinstance(out, Tensor):
            run.refuse("pooling that returns its indices.")
        labels, _ = run.along(input, -(axes + 1), "does not pool within")
        return fresh(out.shape, -(axes + 1), labels)

    return pool


def _resize(run: Trace, out: Tensor, input: Tensor, *_, **__) -> Tensor:
    return _pool(input.ndim - 2)(run, out, input)


def _pad(run: Trace, out: Tensor, input: Tensor, pad: Sequence[int], mode: str = "constant", value=None) -> Tensor:  # fmt: skip
    names, axes = run.names(input), run.unit_axes(input)
    touched = [input.ndim - 1 - i // 2 for i, width in enumerate(pad) if width]
    if not set(touched) & {1, *axes} or out.shape == input.shape:
        axis = axes[0] if axes else min(1, input.ndim - 1)
        labels, _ = run.along(input, axis, "pads")
        if value and mode == "constant":
            run.freeze_scales(labels)
        return fresh(out.shape, axis, labels)
    if mode != "constant" or value:
        run.refuse("it pads the axis of the units with something else than zeros.")
    run.padded = True
    return F.pad(names, list(pad), value=name_of(ZERO))


def _reduce(run: Trace, out: Tensor, input: Tensor, dim=None, keepdim: bool = False, **_) -> Tensor:
    """A sum, mean or extreme over pixels, or over whole sets of units (the result then belongs to no unit)."""
    if not isinstance(out, Tensor):
        run.refuse("a reduction that returns indices.")
    dims = range(input.ndim) if dim is None or dim == () else (dim,) if isinstance(dim, int) else dim
    dims = [d % input.ndim for d in dims]
    names, axes = run.names(input), run.unit_axes(input)
    if not set(axes) & set(dims):
        return names.amin(dims, keepdim)
    if not set(axes) <= set(dims):
        return _reduce_blocks(run, out, input, dims, keepdim, axes)
    labels = present(names)
    run.ledger.families.append([labels])
    run.freeze_scales(labels)
    return torch.zeros((), dtype=torch.int64).expand(out.shape)


def _reduce_blocks(
    run: Trace, out: Tensor, input: Tensor, dims: list[int], keepdim: bool, axes: list[int]
) -> Tensor:
    """Maxout and its like: units are reduced in blocks, and each block is one unit afterwards."""
    kept = [axis for axis in axes if axis not in dims]
    if len(kept) != 1 or len(axes) != 2:
        run.refuse("it reduces units that lie on more than two axes.")
    (labels,) = compact(run.names(input))
    blocks = labels.movedim(kept[0], 0).reshape(labels.shape[kept[0]], -1)
    written = run.ledger.new(len(blocks), run.layer)
    run.ledger.families.append(
        [torch.cat((block, unit[None])) for block, unit in zip(blocks, written, strict=True)]
    )
    run.ledger.scales.join_all(blocks.flatten(), written.repeat_interleave(blocks.shape[1]))
    axis = kept[0] if keepdim else kept[0] - sum(d < kept[0] for d in dims)
    return fresh(out.shape, axis, written)


# --- moving data -------------------------------------------------------------------------------------------------


def _cat(run: Trace, out: Tensor, tensors, dim: int = 0, **kwargs) -> Tensor:
    return torch.cat([_names_or_frozen(run, x) for x in tensors], kwargs.get("axis", dim))


def _stack(run: Trace, out: Tensor, tensors, dim: int = 0) -> Tensor:
    return torch.stack([_names_or_frozen(run, x) for x in tensors], dim)


def _names_or_frozen(run: Trace, x: Tensor) -> Tensor:
    if run.is_signal(x):
        return run.names(x)
    if run.weight(x) is not None:
        run.refuse("it concatenates a parameter with activations.")
    return torch.zeros(x.shape, dtype=torch.int64)


def _move(name: str) -> Callable:
    def rule(run: Trace, out, *args, **kwargs):
        if any(isinstance(x, Tensor) for x in args[1:]) and name not in ("type_as", "to"):
            run.refuse(f"{name!r} takes its positions from a tensor.")
        try:
            return move(name, run.names(args[0]), args, kwargs)
        except (RuntimeError, TypeError, ValueError, IndexError):
            run.refuse(f"{name!r} moves the units in a way that is not known.")

    return rule


_HOMOGENEOUS = "relu neg negative abs identity"
_POINTWISE = """tanh sigmoid gelu silu mish elu selu celu softplus softsign hardswish hardsigmoid hardtanh relu6 logsigmoid
    tanhshrink softshrink hardshrink threshold exp expm1 log log1p sqrt rsqrt square pow sin cos tan erf erfc sign
    reciprocal round floor ceil atan sinh cosh arctan logit gt lt ge le eq ne isnan isfinite logical_not"""
_DROPOUT = "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout feature_dropout"
_POOL = "max_pool{}d avg_pool{}d adaptive_avg_pool{}d adaptive_max_pool{}d"

RULES: dict[str, Callable] = {
    **LAYER_RULES,
    **{name: _move(name) for name in MOVES},
    **dict.fromkeys(_HOMOGENEOUS.split(), _homogeneous),
    **dict.fromkeys(_POINTWISE.split(), _pointwise),
    **dict.fromkeys(_DROPOUT.split(), _dropout),
    **{name.format(d): _pool(d) for name in _POOL.split() for d in (1, 2, 3)},
    **dict.fromkeys(("clamp", "clip", "clamp_min"), _clamp),
    **dict.fromkeys(("leaky_relu", "rrelu"), _leaky_relu),
    **dict.fromkeys(("add", "sub", "subtract", "maximum", "minimum"), _add),
    **dict.fromkeys(("mul", "multiply"), _mul),
    **dict.fromkeys(("div", "divide", "true_divide"), _div),
    **dict.fromkeys(("softmax", "log_softmax", "softmin"), _softmax),
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    **dict.fromkeys(("interpolate", "upsample"), _resize),
    **dict.fromkeys(("mean", "sum", "amax", "amin"), _reduce),
    "prelu": _prelu,
    "pad": _pad,
    "glu": _glu,
    "stack": _stack,
}
