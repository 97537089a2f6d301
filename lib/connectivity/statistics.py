"""Activation statistics of networks between networks, and how they are mended.

Halfway between two networks the units of a layer vary less than at either end, layer after layer (variance collapse). BatchNorm's
running statistics can be read anew from data; without it, REPAIR (Jordan et al. 2023) sets each hidden unit's mean and standard
deviation, before its nonlinearity, to the mixture of the ends', and folds the correction into weights and biases.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from itertools import pairwise

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd

from lib.connectivity.mixtures import mixed
from lib.params import Params, population_size, select
from lib.population.initialise import NORMS

MEMBERS = 64  # networks in one pass
DEAD = 1e-10  # a unit's variance, over its mean square, below which it is left as it is
Rule = Callable[
    [str, nn.Module, Tensor, Tensor], Tensor | None
]  # name, layer, input, output -> another output


def recalibrate(net: nn.Module, params: Mapping[str, Tensor], inputs: Shaped[Tensor, "N ..."]) -> Params:
    """A population whose BatchNorm layers hold the means and variances of ``inputs``, each layer after those before it."""
    norms = [layer for layer in net.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    if not norms:
        raise ValueError(
            "the network has no BatchNorm with running statistics, so there is nothing to recalibrate: see repair."
        )

    def one(own: Params, _: Params) -> Params:
        found: Params = {}

        def rule(name: str, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor | None:
            if layer not in norms:
                return None
            mean, var = _moments(x)
            found[f"{name}.running_mean"], found[f"{name}.running_var"] = mean, var
            prefix = f"{name}." if name else ""
            return F.batch_norm(
                x, mean, var, own.get(f"{prefix}weight"), own.get(f"{prefix}bias"), False, 0.0, layer.eps
            )

        _run(net, own, inputs, rule)
        return found

    return dict(params) | _each(one, params, {})


def repair(
    net: nn.Module,
    ends: Mapping[str, Tensor],
    index: Int64[Tensor, "K m"],
    weights: Float[Tensor, "K R m"],
    inputs: Shaped[Tensor, "N ..."],
) -> Params:
    """Mixtures of ``ends`` (as in ``scores``), a population (K · R, ...), with the statistics of their ends' mixture on ``inputs``.

    Networks with BatchNorm are recalibrated, which comes to the same. Others are corrected where a layer with weight and bias,
    or the norm behind it, puts out hidden units; the output layer is left alone. Dead units stay as they are, and so do mixtures
    that are one end. Raises ValueError for a layer that is called twice, or whose units do not lie along axis 1.
    """
    between = mixed(ends, index, weights)
    whole = (weights == 1).any(2).flatten()

    def kept(mended: Params) -> Params:
        return {
            name: torch.where(whole.view(-1, *[1] * (t.ndim - 1)), between[name], t)
            for name, t in mended.items()
        }

    if any(isinstance(layer, _BatchNorm) and layer.track_running_stats for layer in net.modules()):
        return kept(recalibrate(net, between, inputs))
    first = select(dict(ends), slice(0, 1))
    places = _units(net, {name: t[0] for name, t in first.items()}, inputs[:2])

    def measure(own: Params, _: Params) -> Params:
        found: Params = {}

        def rule(name: str, layer: nn.Module, x: Tensor, y: Tensor) -> None:
            if name in places:
                mean, var = _moments(y)
                found[f"{name}.mean"], found[f"{name}.std"] = mean, var.sqrt()

        _run(net, own, inputs, rule)
        return found

    goals = mixed(_each(measure, ends, {}), index, weights)

    def correct(own: Params, goal: Params) -> Params:
        found: Params = {}

        def rule(name: str, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor | None:
            if name not in places:
                return None
            mean, var = _moments(y)
            alive = var > DEAD * (var + mean.square())
            scale = torch.where(alive, goal[f"{name}.std"] * var.clamp(min=1e-30).rsqrt(), 1.0)
            shift = torch.where(alive, goal[f"{name}.mean"] - mean * scale, 0.0)
            prefix = f"{name}." if name else ""
            weight, bias = own[f"{prefix}weight"], own[f"{prefix}bias"]
            found[f"{prefix}weight"] = weight * _along(layer, scale, weight.ndim)
            found[f"{prefix}bias"] = bias * scale + shift
            around = (1, -1, *[1] * (y.ndim - 2))
            return y * scale.view(around) + shift.view(around)

        _run(net, own, inputs, rule)
        return found

    return kept(between | _each(correct, between, goals))


def _along(layer: nn.Module, scale: Float[Tensor, " units"], axes: int) -> Float[Tensor, "*broadcast"]:
    """A factor a unit as a factor of the layer's weight, which has so many axes: the units lie along the first, but for transposed
    convolutions, whose weight is (inputs, units of a group, ...), the inputs of one group after those of another."""
    if not isinstance(layer, _ConvTransposeNd):
        return scale.view(-1, *[1] * (axes - 1))
    inputs = layer.in_channels // layer.groups
    return scale.view(layer.groups, -1).repeat_interleave(inputs, 0)[..., *[None] * (axes - 2)]


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel (axis 1) over examples and positions."""
    axes = (0, *range(2, x.ndim))
    return x.mean(axes), x.var(axes, correction=0)


def _each(one: Callable[[Params, Params], Params], params: Mapping[str, Tensor], goals: Params) -> Params:
    """A pass for every member, a block at a time; what each pass returns, stacked."""
    blocks = []
    with torch.no_grad():
        for start in range(0, population_size(dict(params)), MEMBERS):
            rows = slice(start, start + MEMBERS)
            blocks.append(vmap(one)(select(dict(params), rows), select(goals, rows)))
    return {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}


def _run(net: nn.Module, own: Params, inputs: Tensor, rule: Rule) -> None:
    """One pass in evaluation mode; ``rule`` sees each layer without children, and may replace its output."""
    floating = next(t for t in own.values() if t.is_floating_point())
    with _watched(net, rule) as watched:
        functional_call(watched, own, (inputs.to(floating.device, floating.dtype),))


@contextmanager
def _watched(net: nn.Module, rule: Rule):
    watched = copy.deepcopy(net).eval()
    twins = dict(zip(watched.modules(), net.modules(), strict=True))
    for name, layer in watched.named_modules():
        if not list(layer.children()):
            layer.register_forward_hook(lambda this, args, y, name=name: rule(name, twins[this], args[0], y))
    yield watched


def _units(net: nn.Module, own: Params, inputs: Tensor) -> set[str]:
    """Names of the layers whose outputs are hidden units as their nonlinearity meets them: the norm, where one follows."""
    calls: list[tuple[str, nn.Module]] = []

    def rule(name: str, layer: nn.Module, x: Tensor, y: Tensor) -> None:
        if not list(layer.parameters(recurse=False)):
            return
        if any(name == known for known, _ in calls) or y.ndim == 3:
            why = "has its units along the last of three axes" if y.ndim == 3 else "is called twice"
            raise ValueError(
                f"the layer {name!r} {why}: statistics are mended where a layer is called once, units along axis 1."
            )
        calls.append((name, layer))

    with torch.no_grad():
        _run(net, own, inputs, rule)
    found = set()
    for (name, layer), (_, after) in pairwise(calls):
        both = dict(layer.named_parameters(recurse=False)).keys() >= {"weight", "bias"}
        if both and (_is_norm(layer) or not _is_norm(after)):
            found.add(name)
    return found


def _is_norm(layer: nn.Module) -> bool:
    """Whether it normalises: a factor and a term a channel, or one of torch's own."""
    own = dict(layer.named_parameters(recurse=False))
    return isinstance(layer, NORMS) or (own.keys() >= {"weight", "bias"} and own["weight"].ndim == 1)
