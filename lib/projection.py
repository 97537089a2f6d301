"""A posterior of many dimensions seen in two: principal components of whole networks, or of their units.

Two principal components of a thousand networks show a few percent of their variance, little more than they would if the
weights were independent; ``Plane.chance`` says so beside every picture (Horn 1965, parallel analysis). Seen unit by unit
the same weights have few dimensions, and symmetry becomes visible: where training alone decides which unit comes first,
all positions of a layer have one and the same cloud (Laurent et al. 2024, corollary of Proposition 1), which a canonical
form takes apart. ``explained_by_position`` is how far.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from lib.params import Params, population_size
from lib.randomness import permutation
from lib.symmetry import Symmetries


@dataclass(frozen=True, eq=False)
class Plane:
    """The first k principal components of n points.

    mean    (D,) of the points
    axes    (k, D) orthonormal rows; the entry of largest size of each is positive, so that the picture is not mirrored
    shares  (k,) of the points' variance along each axis
    chance  (k,) the same for these points with every coordinate shuffled by itself: what independent weights would show
    """

    mean: Float64[Tensor, " D"]
    axes: Float64[Tensor, "k D"]
    shares: Float64[Tensor, " k"]
    chance: Float64[Tensor, " k"]

    def at(self, points: Float[Tensor, "*n D"]) -> Float64[Tensor, "*n k"]:
        """Coordinates of points in the plane."""
        return (points.double() - self.mean) @ self.axes.T

    def shares_of(self, points: Float[Tensor, "n D"]) -> Float64[Tensor, " k"]:
        """The share of these points' own variance that lies along each axis."""
        return self.at(points).var(0, correction=0) / points.double().var(0, correction=0).sum()


def plane(points: Float[Tensor, "n D"], components: int = 2, *, seed: int = 0) -> Plane:
    """The principal plane of points; ``seed`` shuffles the coordinates of ``Plane.chance``.

    Raises:
        ValueError: points that are not finite, all in one place, or not more than the components.
    """
    n, d = points.shape
    if not points.isfinite().all():
        lost = int((~points.isfinite().all(1)).sum())
        raise ValueError(f"{lost} of {n} points are not finite: leave the diverged networks out, and say so.")
    if components >= min(n, d + 1):
        raise ValueError(f"{n} points of {d} coordinates have no {components} principal components.")
    points = points.double()
    mean = points.mean(0)
    axes, shares = _principal(points - mean, components)
    columns = torch.arange(d, device=points.device)
    shuffled = points.gather(0, permutation(seed, columns, "plane, shuffled", 0, n).T)
    _, chance = _principal(shuffled - mean, components)
    return Plane(mean, axes, shares, chance)


def _principal(centred: Tensor, components: int) -> tuple[Tensor, Tensor]:
    """The first axes (k, D) of centred points (n, D), and their shares of the variance, by the smaller Gram matrix."""
    n, d = centred.shape
    values, vectors = torch.linalg.eigh(centred @ centred.T if n < d else centred.T @ centred)
    total = values.clamp(min=0).sum()
    if not total > 0:
        raise ValueError(f"all {n} points are the same: they span no plane.")
    first = vectors.flip(1)[:, :components]
    axes = torch.nn.functional.normalize(centred.T @ first if n < d else first, dim=0).T
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    return axes * largest.sign(), values.flip(0)[:components].clamp(min=0) / total


def network_points(params: Mapping[str, Tensor]) -> Float64[Tensor, "P D"]:
    """Each network of a population (P, ...) as one point: all its floating tensors end to end."""
    return torch.cat([t.double().flatten(1) for t in params.values() if t.is_floating_point()], dim=1)


def unit_points(
    params: Mapping[str, Tensor], symmetries: Symmetries, group: int = 0
) -> Float64[Tensor, "P H F"]:
    """Each unit of a permutation group as one point: everything that the group's places own of it, in float64.

    For a layer between two linear ones these are its incoming weights, its bias and its outgoing weights.
    """
    parts = []
    for place in symmetries.permutations[group].places:
        tensor = params[place.name].double()
        if place.rows is not None:
            tensor = tensor[:, place.rows.to(tensor.device)]
        owned = tensor.movedim(place.axis + 1, 1)[:, place.index.flatten().to(tensor.device)]
        parts.append(owned.reshape(len(tensor), place.size, -1))
    return torch.cat(parts, dim=2)


def explained_by_position(units: Float64[Tensor, "P H F"]) -> float:
    """The share of the units' variance that their position in the layer explains, in [0, 1] up to noise.

    Kelley's ε² of a one-way analysis of variance: 0 on average where all positions have one distribution, as in networks
    trained independently; 1 where every network has the same unit at the same position.

    Raises:
        ValueError: fewer than two networks or two units.
    """
    networks, positions, _ = units.shape
    if networks < 2 or positions < 2:
        raise ValueError(
            f"{networks} networks with {positions} units: positions are compared over at least two of both."
        )
    total = (units - units.mean((0, 1))).square().sum()
    within = (units - units.mean(0)).square().sum()
    n = networks * positions
    return float(1 - within / (n - positions) * (n - 1) / total)


def project(on: Plane, points: Mapping[str, Float[Tensor, "_ D"]]) -> list[tuple[np.ndarray, str]]:
    """Points of several populations in one plane, as ``plots.scatter_panels`` takes them: ((n, 2), title) each."""
    return [(on.at(each)[:, :2].cpu().numpy(), title) for title, each in points.items()]


def timed(clean: Callable[[Params], Params], params: Params) -> tuple[Params, float]:
    """A canonicalised population, and the seconds that it took per 1,000 networks."""
    began = time.perf_counter()
    cleaned = clean(params)
    for tensor in list(cleaned.values())[:1]:
        tensor.flatten()[:1].cpu()  # an accelerator works on while the clock is read; this waits for it
    return cleaned, (time.perf_counter() - began) * 1000 / population_size(params)
