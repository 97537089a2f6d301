"""What removing symmetries can change, and what it cannot (claim P1-C13).

The Monte Carlo predictive of a sample of networks is the same before and after: each network keeps its function. A
Gaussian fitted to their weights is another matter. Its mean averages weights, and units in any order average to nothing;
once the units are matched, the mean and the draws are networks again.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from lib import randomness
from lib.claims import Measurement
from lib.device import one_thread
from lib.intervals import student
from lib.matching import canonical_by_matching
from lib.params import Params, member, population_size
from lib.population import Population, evaluate, predict
from lib.symmetry import Symmetries, canonicalize
from lib.symmetry.canonical import Scale

FITS = ("raw", "sorted by first weight", "sorted by norm", "matched")


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A Gaussian over weights: ``mean`` and ``std`` as networks, and ``deviations`` (P, D) of the sample, or None.

    The covariance is shrinkage * diag(std²) + (1 - shrinkage) * deviationsᵀ deviations / (P - 1); D weights in the order
    of ``mean``'s tensors.
    """

    mean: Params
    std: Params
    deviations: Tensor | None = None
    shrinkage: float | int = 1


def fit(params: Params, shrinkage: float | int = 1) -> Gaussian:
    """Mean and covariance of a population (P, ...), in float64.

    ``shrinkage`` 1 (the default) leaves the coordinates independent; 0 takes the sample covariance, of rank P - 1, and
    what lies between shrinks it towards its diagonal. Buffers of integers keep the first network's values.
    Raises ValueError for a single network, and for weights that are not finite.
    """
    size = population_size(params)
    if size < 2:
        raise ValueError(f"a variance cannot be fitted to {size} network: give a population of two at least.")
    if not 0 <= shrinkage <= 1:
        raise ValueError(
            f"shrinkage {shrinkage}: it lies between 0 (sample covariance) and 1 (its diagonal)."
        )
    exact = {name: tensor.double() for name, tensor in params.items() if tensor.is_floating_point()}
    broken = [name for name, tensor in exact.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise ValueError(
            f"the tensor {broken[0]!r} is not finite in every network: leave diverged networks out of the fit."
        )
    mean = {name: exact[name].mean(0) if name in exact else params[name][0] for name in params}
    std = {name: tensor.std(0) for name, tensor in exact.items()}
    if shrinkage == 1:
        return Gaussian(mean, std)
    deviations = torch.cat([(exact[name] - mean[name]).flatten(1) for name in exact], dim=1)
    return Gaussian(mean, std, deviations, shrinkage)


def draw(
    gaussian: Gaussian, draws: int, *, seed: int, first: int = 0, dtype: torch.dtype = torch.float32
) -> Params:
    """``draws`` networks from the Gaussian, as a population (draws, ...): draws number ``first`` and following of a seed."""
    device = next(iter(gaussian.mean.values())).device
    ids = torch.arange(first, first + draws, device=device)
    common = None
    if gaussian.deviations is not None:
        rank = len(gaussian.deviations)
        z = randomness.normal(seed, ids, "gaussian fit, common", 0, (rank,), torch.float64)
        common = z @ gaussian.deviations * math.sqrt((1 - gaussian.shrinkage) / (rank - 1))
    found, at = {}, 0
    for name, mean in gaussian.mean.items():
        if name not in gaussian.std:
            found[name] = mean.expand(draws, *mean.shape).clone()
            continue
        shape = tuple(mean.shape)
        z = randomness.normal(seed, ids, f"gaussian fit/{name}", 0, shape, torch.float64)
        values = mean + math.sqrt(gaussian.shrinkage) * gaussian.std[name] * z
        if common is not None:
            values = values + common[:, at : at + mean.numel()].view(draws, *shape)
        at += mean.numel()
        found[name] = values.to(dtype)
    return found


def accuracies(
    net: nn.Module,
    groups: Sequence[Population | Params],
    symmetries: Symmetries,
    inputs: Shaped[Tensor, "N ..."],
    labels: Int64[Tensor, " N"],
    *,
    draws: int,
    seed: int,
    scale: Scale = "min_mass",
    shrinkage: float | int = 1,
) -> dict[str, Float[np.ndarray, " groups"]]:
    """Mean test accuracy, in %, of draws from one Gaussian a group; and of its networks themselves.

    "raw": fitted to the networks as trained; "sorted by first weight" (the authors' sort) and "sorted by norm": to their
    canonical forms; "matched": to those of ``scale`` matched to the group's first network; "members": the networks,
    without any fit. Raises ValueError for a group of one network, or with networks that diverged.
    """
    found = {name: [] for name in (*FITS, "members")}
    for i, group in enumerate(groups):
        params = _converged(group, i)
        forms = {
            "raw": params,
            "sorted by first weight": canonicalize(params, symmetries, scale, "first_weight"),
            "sorted by norm": canonicalize(params, symmetries, scale, "norm"),
            "matched": canonical_by_matching(params, symmetries, member(params, 0), scale),
        }
        networks = {"members": params}
        for name, form in forms.items():  # the same normal numbers for all of them
            networks[name] = draw(fit(form, shrinkage), draws, seed=seed, first=i * draws)
        for name, population in networks.items():
            right = evaluate(net, population, inputs, labels)["accuracy"]
            found[name].append(100 * float(right.double().mean()))
    return {name: np.array(values) for name, values in found.items()}


def predictive_changes(
    net: nn.Module,
    groups: Sequence[Population | Params],
    symmetries: Symmetries,
    inputs: Shaped[Tensor, "N ..."],
    *,
    scales: Sequence[Scale] = ("unit_norm", "min_mass"),
) -> Float[np.ndarray, " groups"]:
    """Largest relative change of a group's Monte Carlo predictive (N, classes) by canonicalising its networks, in float64.

    Largest over inputs, classes, ``scales`` and the three canonicalisations: sorted by first weight, by norm, matched to
    the group's first network.
    """
    net, inputs, found = _double(net), inputs.double(), []
    for i, group in enumerate(groups):
        params = {
            name: t.double() if t.is_floating_point() else t for name, t in _converged(group, i).items()
        }
        before = predict(net, params, inputs).softmax(-1).mean(0)
        changes = []
        for scale in scales:
            forms = [canonicalize(params, symmetries, scale, order) for order in ("first_weight", "norm")]
            forms.append(canonical_by_matching(params, symmetries, member(params, 0), scale))
            for form in forms:
                after = predict(net, form, inputs).softmax(-1).mean(0)
                changes.append(float(((after - before).abs() / before.clamp(min=1e-300)).max()))
        found.append(max(changes))
    return np.array(found)


def measure(
    net: nn.Module,
    groups: Sequence[Population | Params],
    symmetries: Symmetries,
    inputs: Shaped[Tensor, "N ..."],
    labels: Int64[Tensor, " N"],
    *,
    draws: int,
    seed: int,
    probes: int = 200,
) -> tuple[list[Measurement], dict[str, Float[np.ndarray, " groups"]]]:
    """`fit_gain` and `predictive_change` over disjoint groups of independent networks, and the accuracies for a table.

    The gain is that of the matched over the raw fit, independent coordinates, minimum mass, in points, with Student's t
    interval of 95 % over groups. The change's value and upper end are the largest over groups, its lower end the
    smallest, on the first ``probes`` inputs. n = networks in the smallest group, seeds = groups.
    """
    if len(groups) < 2:
        raise ValueError(f"there are {len(groups)} groups: an interval over groups needs at least two.")
    with one_thread():
        table = accuracies(net, groups, symmetries, inputs, labels, draws=draws, seed=seed)
        changes = predictive_changes(net, groups, symmetries, inputs[:probes])
    sizes = {"n": min(population_size(_params(group)) for group in groups), "seeds": len(groups)}
    gain = student(table["matched"] - table["raw"])
    return [
        Measurement("fit_gain", "matched minus raw", *gain, **sizes),
        Measurement("predictive_change", "largest", changes.max(), changes.min(), changes.max(), **sizes),
    ], table


def _params(group: Population | Params) -> Params:
    return group.params if isinstance(group, Population) else group


def _converged(group: Population | Params, i: int) -> Params:
    """The group's parameters, of two networks at least, none of which has diverged."""
    params = _params(group)
    size = population_size(params)
    if size < 2:
        raise ValueError(
            f"group {i} has {size} network: a variance needs two at least, and the claim asks for 100."
        )
    fine = torch.stack([t.flatten(1).isfinite().all(1) for t in params.values()]).all(0)
    if isinstance(group, Population):
        fine = fine & group.finite
    if not bool(fine.all()):
        lost = (~fine).nonzero().flatten().tolist()
        raise ValueError(
            f"group {i} holds diverged networks, at {lost}: leave them out, and report how many there were."
        )
    return params


def _double(net: nn.Module) -> nn.Module:
    return copy.deepcopy(net).double()
