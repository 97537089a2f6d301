"""Modes of a cloud of points in the plane: the highest-density region, its area and its connected pieces.

A cloud is first divided by its own median radius, so that areas of differently scaled clouds compare; its
density is a histogram smoothed by a Gaussian of fixed width; the highest-density region at mass ``q`` is the
smallest set of cells that holds the share ``q`` of the points (Hyndman 1996). Its connected pieces are the modes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage

from lib import intervals
from lib.claims import Measurement

LIMIT = 3.0  # half-width of the grid, in median radii; what lies outside is counted, not drawn
CELLS = 150  # cells a side: one is 0.04 median radii wide
WIDTH = 2.0  # standard deviation of the smoothing, in cells
SMALLEST = 0.01  # a piece with less than this share of the points is noise, not a mode


@dataclass(frozen=True)
class Region:
    """A highest-density region on the grid.

    Attributes:
        area: in squared median radii.
        pieces: label of each cell, 0 outside the region, 1..count inside.
        count: number of modes.
        outside: share of the points beyond the grid.
        radius: the median radius by which the cloud was divided, in the units of the points.
    """

    area: float
    pieces: Int[np.ndarray, "cells cells"]
    count: int
    outside: float
    radius: float


def median_radius(points: Float[np.ndarray, "n 2"]) -> float:
    """Median distance from the origin; raises ValueError for a cloud without finite extent."""
    radius = float(np.median(np.hypot(*points.T)))
    if not np.isfinite(radius) or radius == 0.0:
        raise ValueError(
            f"the cloud's median radius is {radius}: it has no finite extent; drop diverged members first."
        )
    return radius


def density(points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "cells cells"]:
    """Smoothed share of the points in each cell of the grid, for points in median radii; sums to at most 1."""
    x, y = np.floor((points + LIMIT) * (CELLS / (2 * LIMIT))).astype(np.int64).T
    within = (x >= 0) & (x < CELLS) & (y >= 0) & (y < CELLS)
    counts = np.bincount((CELLS * x + y)[within], minlength=CELLS**2).reshape(CELLS, CELLS)
    return ndimage.gaussian_filter(counts / len(points), WIDTH, mode="constant")


def highest_density(share: Float[np.ndarray, "cells cells"], mass: float) -> Bool[np.ndarray, "cells cells"]:
    """The smallest set of cells whose shares sum to ``mass`` of the grid's total."""
    falling = np.sort(share[share > 0])[::-1]
    held = np.cumsum(falling)
    return share >= falling[np.searchsorted(held, mass * held[-1])]


def region(points: Float[np.ndarray, "n 2"], mass: float = 0.8) -> Region:
    """The highest-density region of a cloud at ``mass``, cut into its connected pieces (modes)."""
    radius = median_radius(points)
    scaled = points / radius
    share = density(scaled)
    inside = highest_density(share, mass)
    labels, count = ndimage.label(inside, structure=np.ones((3, 3)))
    weight = ndimage.sum_labels(share, labels, np.arange(1, count + 1)) if count else np.zeros(0)
    kept = np.flatnonzero(weight >= SMALLEST * share.sum()) + 1
    relabel = np.zeros(count + 1, dtype=np.int64)
    relabel[kept] = np.arange(1, len(kept) + 1)
    return Region(
        area=float(inside.sum()) * (2 * LIMIT / CELLS) ** 2,
        pieces=relabel[labels],
        count=len(kept),
        outside=float(np.mean((np.abs(scaled) > LIMIT) @ (True, True))),
        radius=radius,
    )


def mirrored(pieces: Int[np.ndarray, "cells cells"]) -> list[int]:
    """For each mode the mode (1..count) that its mirror image in the diagonal covers most, 0 where it meets none.

    The mirror image exchanges the two coordinates: it is what exchanging the two hidden units does to their
    output weights. A mode that is its own mirror image straddles the diagonal.
    """
    images = []
    for label in range(1, int(pieces.max()) + 1):
        met = np.bincount(pieces[(pieces == label).T], minlength=1)
        met[0] = 0
        images.append(int(met.argmax()) if met.any() else 0)
    return images


def orbits(pieces: Int[np.ndarray, "cells cells"]) -> int:
    """Number of modes left when mirror images count once: pairs once, self-mirrored modes once."""
    images = mirrored(pieces)
    return len({frozenset((label, image or label)) for label, image in enumerate(images, start=1)})


@dataclass(frozen=True)
class Clouds:
    """The output weights of the same networks in the four pictures, each (n, 2)."""

    raw: Float[np.ndarray, "n 2"]
    scaling_removed: Float[np.ndarray, "n 2"]
    permutation_removed: Float[np.ndarray, "n 2"]
    both_removed: Float[np.ndarray, "n 2"]


def measure(clouds: Clouds, cell: str, *, resamples: int, seed: int, mass: float = 0.8) -> list[Measurement]:
    """The three measurements of claim P1-C2 in one cell, with 95 % bootstrap intervals over networks.

    `mode_orbits`: modes with both symmetries removed, minus orbits under the mirror of the modes before sorting.
    `area_halved`: area with both removed / with scaling removed. `area_after_scaling`: area with scaling removed /
    raw, each in its own median radius, because the norm to which incoming weights are scaled is arbitrary.
    """

    def statistic(chosen: Int[np.ndarray, " n"]) -> Float[np.ndarray, " k"]:
        raw, scaled, both = (
            region(cloud[chosen], mass) for cloud in (clouds.raw, clouds.scaling_removed, clouds.both_removed)
        )
        return np.array([both.count - orbits(scaled.pieces), both.area / scaled.area, scaled.area / raw.area])

    n = len(clouds.raw)
    numbers = zip(*intervals.bootstrap(statistic, n, resamples=resamples, seed=seed), strict=True)
    names = ("mode_orbits", "area_halved", "area_after_scaling")
    return [
        Measurement(name, cell, float(value), float(low), float(high), n=n, seeds=1)
        for name, (value, low, high) in zip(names, numbers, strict=True)
    ]
