"""One training step of filters, in place: what each method does with a gradient.

A *filter* is a row. Every function takes rows ``w`` (N, k), their gradients ``g`` (N, k) and a rate, a number or one a row,
(N, 1); networks in a stack are more rows, so that one call steps hundreds of them, each by a rate of its own. With r = ‖w‖²
and s = ⟨g, w⟩ of a row::

    euclidean           w ← w - η g                              stochastic gradient descent
    unit_norm           w ← (w - η (g - s w)) / ‖·‖              Badrinarayanan et al. 2015: project, step, retract
    normalise_after     w ← (w - η g) / ‖·‖                      Huang et al. 2017 (projection based weight normalisation)
    scaled_metric       w ← w - η r g                            the metric tr(Zᵀ diag(W Wᵀ)⁻¹ Y) of arXiv 1511.01754
    without_radial      w ← w - η (g - s w / r)                  Heo et al. 2021 (SGDP), without momentum: norms stay free

Where a norm follows and its epsilon is 0, a gradient is tangent already (s = 0), and the middle three move the direction
w / ‖w‖ alike (P4-X1). Without a norm, ``chained_rates`` gives the scaled metric that is equivariant at every depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import wraps

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Rate = float | int | Tensor
Step = Callable[[Tensor, Tensor, Rate], None]

CACHE = 1 << 21  # bytes of rows and gradients that a CPU's thread works on at a time


def _blockwise(step: Step) -> Step:
    """The step on rows in blocks that fit a CPU's cache; a run that diverges is no news to NumPy, as it is none to torch."""

    @wraps(step)
    def on_blocks(w: Tensor, g: Tensor, rate: Rate) -> None:
        with np.errstate(all="ignore"):
            for block in _blocks(w, g, rate):
                step(*block)

    return on_blocks


def euclidean(w: Float[Tensor, "N k"], g: Float[Tensor, "N k"], rate: Rate) -> None:
    """w ← w - η g."""
    if isinstance(rate, Tensor):
        w.addcmul_(g, rate, value=-1)
    else:
        w.add_(g, alpha=-rate)


@_blockwise
def unit_norm(w: Float[Tensor, "N k"], g: Float[Tensor, "N k"], rate: Rate) -> None:
    """W ← R_W(-η P_W(G)), for rows of any length but zero: their tangent part is taken, and they end at length one.

    By NumPy the length of w - η (g - s w / r) follows from r, s and ‖g‖² by Pythagoras, so that two passes over the rows
    do. A third divides by the length itself where the step's radial part is so long that rounding would spoil the difference.
    """
    if not _by_numpy(w):
        without_radial(w, g, rate)
        _to_unit(w)
        return
    r, s, q, rate = _inner(w, w), _inner(w, g), _inner(g, g), _vector(rate)
    tilt = s / r
    square = r + rate**2 * abs(q - s * tilt)
    shrink = square**-0.5
    _combine(w, (1 + rate * tilt) * shrink, g, rate * shrink)
    if (rate**2 * (s * tilt) > 4 * square).any():
        _to_unit(w)


@_blockwise
def normalise_after(w: Float[Tensor, "N k"], g: Float[Tensor, "N k"], rate: Rate) -> None:
    """The Euclidean step, and then every row divided by its length."""
    euclidean(w, g, rate)
    _to_unit(w)


@_blockwise
def scaled_metric(w: Float[Tensor, "N k"], g: Float[Tensor, "N k"], rate: Rate) -> None:
    """w ← w - η ‖w‖² g: the Euclidean step for rows of length one, and its image under any other scaling."""
    w.addcmul_(g, _column(_vector(rate) * _inner(w, w)), value=-1)


@_blockwise
def without_radial(w: Float[Tensor, "N k"], g: Float[Tensor, "N k"], rate: Rate) -> None:
    """The Euclidean step without its part along w; the length still grows, by Pythagoras."""
    tilt = _inner(w, g) / _inner(w, w)
    w.mul_(_column(1 + _vector(rate) * tilt))
    euclidean(w, g, rate)


STEPS: dict[str, Step] = {
    "SGD": euclidean,
    "unit norm": unit_norm,
    "normalise after the step": normalise_after,
    "scaled metric": scaled_metric,
    "SGD without radial part": without_radial,
}


def chained_rates(weights: Sequence[Float[Tensor, "_ _"]], pool: int = 1) -> list[Float[Tensor, "_ _"]]:
    """For a ReLU network without norms or biases: the factor of every weight's rate, equivariant at every depth.

    ``weights`` are the filters of each layer and, last, the classifier (classes, k); ``pool`` neighbouring units share a
    maximum after each layer, and with it a factor. With c_0 = 1, layer l has r_l = Σ_j W_l² c_{l-1} of each row, averaged
    over a pool; its weights step by η r_l / c_{l-1}, and c_l = r_l of the pooled units; the classifier by η / c_L. Rescaling
    unit i by a takes r_i to a² r_i, hence every step to the same rescaling of itself (derived in the notes, section 1.5).
    """
    *filters, classifier = weights
    incoming = classifier.new_ones(filters[0].shape[1] if filters else classifier.shape[1])
    factors = []
    for weight in filters:
        row = (weight.square() * incoming).sum(1)
        pooled = row.unflatten(0, (-1, pool)).mean(1)
        factors.append(pooled.repeat_interleave(pool)[:, None] / incoming)
        incoming = pooled
    return [*factors, (1 / incoming).expand_as(classifier)]


def own_rates(weights: Sequence[Float[Tensor, "_ _"]]) -> list[Float[Tensor, "_ _"]]:
    """The simpler rule, each matrix by its own norms: rows of the filters, columns of the classifier (inverted metric).

    Equivariant for one hidden layer only (arXiv 1511.01754 as its descendant has it; notes, section 1.5).
    """
    *filters, classifier = weights
    factors = [weight.square().sum(1, keepdim=True).expand_as(weight) for weight in filters]
    return [*factors, classifier.square().sum(0, keepdim=True).expand_as(classifier)]


# Numbers of rows are vectors (N,). On one thread of a CPU they are NumPy's, whose product of rows (BLAS) needs no table of their
# entries' products, and whose small operations cost a fifth of torch's; several threads gain more by sharing torch's.
Vector = Tensor | np.ndarray


def _inner(first: Tensor, second: Tensor) -> Vector:
    if _by_numpy(first):
        return np.vecdot(first.detach().numpy(), second.detach().numpy())
    if first is second:
        return torch.linalg.vector_norm(first, dim=1).square()
    return (first * second).sum(1)


def _vector(rate: Rate) -> Vector | float | int:
    if not isinstance(rate, Tensor):
        return rate
    return rate[:, 0].numpy() if _by_numpy(rate) else rate[:, 0]


def _column(vector: Vector) -> Tensor:
    return (torch.from_numpy(vector) if isinstance(vector, np.ndarray) else vector)[:, None]


def _combine(w: Tensor, a: Vector, g: Tensor, b: Vector) -> None:
    """w ← a w - b g, row by row."""
    w.mul_(_column(a)).addcmul_(g, _column(b), value=-1)


def _to_unit(w: Tensor) -> None:
    """Every row divided by its length."""
    w.mul_(_column(_inner(w, w) ** -0.5))


def _by_numpy(tensor: Tensor) -> bool:
    plain = tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64)
    return plain and torch.get_num_threads() == 1


def _blocks(w: Tensor, g: Tensor, rate: Rate) -> Iterator[tuple[Tensor, Tensor, Rate]]:
    """The rows in blocks that fit the cache on a CPU; all at once elsewhere."""
    rows = len(w)
    if w.device.type == "cpu":
        fit = CACHE * torch.get_num_threads() // (2 * w.element_size() * max(1, w.shape[1]))
        rows = max(1, fit)
    if rows >= len(w):
        yield w, g, rate
        return
    rates = rate.split(rows) if isinstance(rate, Tensor) else [rate] * -(-len(w) // rows)
    yield from zip(w.split(rows), g.split(rows), rates, strict=True)
