"""Which filters may be held at unit length for nothing, and the two parameter groups that tell an optimiser.

A scale freedom gives each of its units one positive factor that leaves the function unchanged. That factor can be spent
once: on making one filter (one row of one weight, flattened) as long as 1. A weight may be constrained where every row has
a factor of its own which no other weight has used. Before a norm with statistics for each filter this is the symmetry of
Badrinarayanan, Mishra & Cipolla 2015 (arXiv 1511.01029); without a norm, of their longer paper (arXiv 1511.01754).
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.params import Params
from lib.symmetry import Place, Symmetries, find_symmetries, members_of, rescale
from lib.symmetry.act import precise, scale_units
from lib.symmetry.scale_graph import is_counted
from lib.symmetry.verify import TOLERANCE, Norms, Trial, distance

WHY = {
    "no freedom": "no positive factor of each filter leaves the function unchanged",
    "homogeneous": "no norm reads the filters; homogeneous=True constrains them where maps such as ReLU let factors pass",
    "frozen": "a parameter that must follow the filters' lengths is frozen",
    "shared": "all filters of a layer or group have one factor in common, not one each",
    "one entry": "a filter with one entry is +1 or -1 at unit length, and could not move",
    "spent": "another weight writes the same units and has already used their factors",
    "cycle": "the filters read what their own lengths would rescale",
    "transposed": "the filters lie along another axis than the first",
}


class UnitNormWarning(UserWarning):
    """Something that unit-norm filters make void, or a symmetry that they leave."""


@dataclass(frozen=True)
class Constraints:
    """``tensors``: weights whose filters may all have unit length at once, in an order in which one can set them.

    ``left``: every other weight with two axes or more, and a key of ``WHY``. ``freedoms``: positions in
    ``symmetries.scales`` of those that the tensors use up.
    """

    tensors: tuple[str, ...]
    left: dict[str, str]
    freedoms: frozenset[int]


def unit_norm_parameters(
    net: nn.Module,
    example: Tensor | tuple[Tensor, ...],
    *,
    filters_lr: float | None = None,
    rest_lr: float | None = None,
    homogeneous: bool = False,
) -> list[dict]:
    """Two parameter groups for a torch optimiser: filters to be held at unit length, and everything else.

    Each group holds ``params`` as (name, parameter) pairs, the flag ``unit_norm``, and ``lr`` where a rate is given. The
    network is not changed: normalising is the optimiser's part. ``example`` as in ``find_symmetries``.

    ``homogeneous=False`` takes only filters that a norm reads: making them unit changes nothing (up to the norm's epsilon)
    and leaves no parameter with more work than before. ``True`` adds filters before ReLU and its like. The set of functions
    stays the same (but for filters that are zero), yet biases and the next layer must then carry the lengths, and an
    optimiser that merely normalises changes the function: start from ``with_unit_filters``. Hence the choice of default.

    Warns (UnitNormWarning) of biases that a norm cancels, of learned scales and shifts that bring a symmetry back, and of
    weights before a norm that must stay free. Raises ValueError where nothing can be constrained, UnsupportedNetwork where
    the symmetries cannot be found, as for a parameter that two layers share.
    """
    symmetries = find_symmetries(net, example)
    parameters = dict(net.named_parameters())
    frozen = [name for name, parameter in parameters.items() if not parameter.requires_grad]
    found = constraints(symmetries, homogeneous=homogeneous, frozen=frozen)
    if not found.tensors:
        reasons = "; ".join(
            f"{listing(name for name in found.left if found.left[name] == why)}: {WHY[why]}"
            for why in dict.fromkeys(found.left.values())
        )
        raise ValueError(
            f"no weight of {type(net).__name__} can be held at unit norm without losing functions: "
            f"{reasons or 'it has no weight with filters'}. Train it with a plain optimiser, or put a BatchNorm after "
            "the layers in question."
        )
    for sentence in (*_void(void_biases(net, example, symmetries)), *_affine(symmetries), *_free(found)):
        warnings.warn(UnitNormWarning(sentence), stacklevel=2)
    rates = {True: filters_lr, False: rest_lr}
    return [
        {
            "params": [pair for pair in parameters.items() if (pair[0] in found.tensors) == unit],
            "unit_norm": unit,
            **({} if rate is None else {"lr": rate}),
        }
        for unit, rate in rates.items()
    ]


def constrainable(symmetries: Symmetries, *, homogeneous: bool = False) -> tuple[str, ...]:
    """Names of the weights whose filters may all be held at unit length; ``homogeneous`` as in ``unit_norm_parameters``."""
    return constraints(symmetries, homogeneous=homogeneous).tensors


def constraints(
    symmetries: Symmetries, *, homogeneous: bool = False, frozen: Collection[str] = ()
) -> Constraints:
    """Which weights may be constrained together, and why the others may not. ``frozen``: tensors that cannot follow.

    From the input on, each weight takes the factors of its rows if they are still free. Its rows' lengths depend on the
    factors of what it reads, so no factor may, through these, depend on itself: a stream fixes its first writer only.
    """
    scales = symmetries.scales
    allowed = {"normalised", "homogeneous"} if homogeneous else {"normalised"}
    weights = [n for n, shape in symmetries.shapes.items() if len(shape) > 1 and is_counted(n, biases=False)]
    reads = {
        name: {f for f, s in enumerate(scales) for p in s.places if p.name == name and p.exponent < 0}
        for name in weights
    }
    needs: dict[int, set[int]] = {}
    taken: dict[str, Collection[int]] = {}
    left: dict[str, str] = {}
    for name in sorted(weights, key=lambda name: max(reads[name], default=-1)):
        rows = _rows(symmetries, name)
        kinds = {scales[f].kind for f in rows}
        if sum(place.index.numel() for place in rows.values()) < symmetries.shapes[name][0]:
            left[name] = "transposed" if _has_other_rows(symmetries, name) else "no freedom"
        elif not kinds <= allowed:
            left[name] = "homogeneous" if kinds <= {"normalised", "homogeneous"} else "no freedom"
        elif any(place.name in frozen for f in rows for place in scales[f].places):
            left[name] = "frozen"
        elif any(place.index.shape[1] > 1 for place in rows.values()):
            left[name] = "shared"
        elif symmetries.shapes[name][1:].numel() == 1:
            left[name] = "one entry"
        elif rows.keys() & needs.keys():
            left[name] = "spent"
        elif _order(needs | dict.fromkeys(rows, reads[name])) is None:
            left[name] = "cycle"
        else:
            needs |= dict.fromkeys(rows, reads[name])
            taken[name] = rows
    order = _order(needs) or []
    tensors = sorted(taken, key=lambda name: min(map(order.index, taken[name])))
    return Constraints(tuple(tensors), {n: left[n] for n in weights if n in left}, frozenset(needs))


def with_unit_filters(params: Mapping[str, Tensor], symmetries: Symmetries, tensors: Iterable[str]) -> Params:
    """The same function with filters of unit length at ``tensors``, the factors passed on to what follows them.

    A single network or a population. ``tensors`` in the order of ``constrainable``. Before a norm the function is the same
    up to the norm's epsilon. A filter that is zero stays zero. Raises ValueError for a tensor without a factor for each row.
    """
    return rescale(params, symmetries, unit_log_scales(params, symmetries, tensors))


def unit_log_scales(
    params: Mapping[str, Tensor], symmetries: Symmetries, tensors: Iterable[str]
) -> tuple[Tensor, ...]:
    """The log-scales of ``with_unit_filters``: one (size,) tensor a freedom, (P, size) for a population; float64."""
    lead = members_of(params, symmetries) is not None
    scaled = {name: tensor if lead else tensor[None] for name, tensor in params.items()}
    population = len(next(iter(scaled.values())))
    log_scales = [torch.zeros(population, s.size, dtype=torch.float64) for s in symmetries.scales]
    for name in tensors:
        rows = _rows(symmetries, name)
        narrow = len(symmetries.shapes.get(name, ())) < 2
        if narrow or not rows or any(place.index.shape[1] > 1 for place in rows.values()):
            raise ValueError(
                f"the rows of {name!r} have no factor each that leaves the function unchanged: choose among "
                "constrainable(symmetries, homogeneous=True)."
            )
        lengths = precise(scaled[name]).flatten(2).norm(dim=2).cpu()
        for f, place in rows.items():
            own = lengths[:, place.index[:, 0]]
            log_scales[f] = torch.where(own > 0, -own.log(), 0.0)
            for follower in symmetries.scales[f].places:
                scaled[follower.name] = scale_units(precise(scaled[follower.name]), follower, log_scales[f])
    return tuple(log_scales if lead else [u[0] for u in log_scales])


def void_biases(
    net: nn.Module, example: Tensor | tuple[Tensor, ...], symmetries: Symmetries
) -> tuple[str, ...]:
    """Biases that a norm's mean takes out again in training, so that their gradient is zero: tried, not guessed.

    Tried on a float64 copy with random parameters and eight random inputs, each norm with the statistics of its batch. A
    ReLU between bias and norm keeps the bias alive, and so does a norm over several units.
    """
    own = {name for name, _ in net.named_parameters()}
    names = {p.name for s in symmetries.scales if s.kind == "normalised" for p in s.places if p.exponent > 0}
    biases = [n for n, shape in symmetries.shapes.items() if n in names & own and len(shape) == 1]
    if not biases:
        return ()
    inputs = example if isinstance(example, tuple) else (example,)
    trial = Trial(net, tuple(x[:1].expand(8, *x.shape[1:]) if x.ndim > 1 else x for x in inputs))
    generator = torch.Generator().manual_seed(0)
    reference = trial.run(trial.params, _BatchStatistics(1e-5))

    def void(names: list[str]) -> bool:
        shifted = dict(trial.params)
        for name in names:
            noise = torch.randn(shifted[name].shape, dtype=torch.float64, generator=generator)
            shifted[name] = shifted[name] + noise
        return distance(trial.run(shifted, _BatchStatistics(1e-5)), reference) < TOLERANCE

    return tuple(biases) if void(biases) else tuple(name for name in biases if void([name]))


def void_weight_decay(group: Mapping[str, object]) -> str | None:
    """The sentence to warn with where a unit-norm group has weight decay, None where it has none.

    Decay pulls along the filter, and the constraint takes that out again. Without the constraint decay before a norm does
    not limit the function either, it sets the effective rate lr/|w|² (van Laarhoven 2017, arXiv 1706.05350).
    """
    if not group.get("unit_norm") or not group.get("weight_decay"):
        return None
    return (
        f"weight_decay={group['weight_decay']} has no effect on filters of unit norm: it only shortens them, and they are "
        "normalised again. Set weight_decay=0 in this group; a falling learning rate does what decay did before a norm."
    )


def listing(names: Iterable[str], most: int = 3) -> str:
    """'a', 'b', 'c' and 4 more."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


class _BatchStatistics(Norms):
    """Batch- and InstanceNorm take the statistics of what they see, as in training."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        switch = {F.batch_norm: "training", F.instance_norm: "use_input_stats"}.get(func)
        if switch is not None:
            call = inspect.signature(func).bind(*args, **(kwargs or {}))
            call.arguments |= {"running_mean": None, "running_var": None, switch: True}
            args, kwargs = call.args, call.kwargs
        return super().__torch_function__(func, types, args, kwargs)


def _rows(symmetries: Symmetries, name: str) -> dict[int, Place]:
    """Freedom -> its place on the rows of the weight; the units of a freedom own all the same tensors."""
    return {
        f: place
        for f, freedom in enumerate(symmetries.scales)
        for place in freedom.places
        if place.name == name and place.axis == 0 and place.exponent > 0
    }


def _has_other_rows(symmetries: Symmetries, name: str) -> bool:
    places = [p for s in symmetries.scales for p in s.places if p.name == name]
    return any(p.axis == 1 and p.exponent > 0 for p in places)


def _order(needs: Mapping[int, set[int]]) -> list[int] | None:
    """Each after all that it needs; None where something needs itself."""
    try:
        return list(TopologicalSorter(needs).static_order())
    except CycleError:
        return None


def _void(biases: tuple[str, ...]) -> list[str]:
    return [
        f"the bias {listing(biases)} stands before a norm that subtracts the mean: its gradient is zero in training. "
        "Build the layer with bias=False."
    ] * bool(biases)


def _affine(symmetries: Symmetries) -> list[str]:
    layers = dict.fromkeys(s.layer for s in symmetries.scales if s.kind == "affine")
    return [
        f"the learned scale and shift of {listing(layers)} can be traded against the next layer's weights: a symmetry that "
        "unit filters leave, and on which the step still depends. Set affine=False, or know it."
    ] * bool(layers)


def _free(found: Constraints) -> list[str]:
    ways = {
        "shared": "Give them a norm with statistics for each filter (BatchNorm, InstanceNorm) to constrain them too.",
        "spent": "Only one writer of the units may be constrained: leave them to a plain step.",
    }
    named = {why: [name for name in found.left if found.left[name] == why] for why in ways}
    return [
        f"the filters of {listing(names)} stay free: {WHY[why]}. {ways[why]}"
        for why, names in named.items()
        if names
    ]
