"""Does nearness to the posterior go with the detection of foreign data? Rank correlations over approximations (P1-C10)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from lib import intervals
from lib.claims import Measurement
from lib.diversity import spearman
from lib.study.quality import Scores

DETECTION = ("AUPR", "FPR95")


@dataclass(frozen=True)
class Point:
    """One approximation, averaged over repetitions: its two distances and its detection scores, one a foreign set."""

    name: str
    distance: dict[str, float]  # "MMD", "NS"
    detection: dict[str, dict[str, float]]  # score -> foreign set -> value
    seeds: int


def points(
    near: Mapping[str, Tensor], ns: Mapping[str, Tensor], scores: Mapping[str, Scores], outside: list[str]
) -> list[Point]:
    """One point an approximation: distances (repetitions,) before and after removal, and scores (R,) of all its runs."""
    return [
        Point(
            name,
            {"MMD": float(near[name].mean()), "NS": float(ns[name].mean())},
            {s: {o: float(scores[name][f"{s}, {o}"].mean()) for o in outside} for s in DETECTION},
            len(near[name]),
        )
        for name in near
    ]


def measure(found: list[Point], *, resamples: int, seed: int) -> list[Measurement]:
    """``correlation`` of P1-C10, cells {MMD, NS} x {AUPR, FPR95}: Spearman within each foreign set, mean over the sets.

    Approximations are resampled, each with its points in all sets; a resample of equal values counts as zero.
    """
    sets = list(next(iter(found[0].detection.values())))
    measured = []
    for distance in ("MMD", "NS"):
        x = np.array([point.distance[distance] for point in found])
        for score in DETECTION:
            y = np.array([[point.detection[score][name] for name in sets] for point in found])
            value, low, high = intervals.bootstrap(
                lambda rows, x=x, y=y: _mean_correlation(x[rows], y[rows]),
                len(x),
                resamples=resamples,
                seed=seed,
            )
            ends = (
                float(value[0]),
                min(float(low[0]), float(value[0])),
                max(float(high[0]), float(value[0])),
            )
            size = {"n": y.size, "seeds": min(point.seeds for point in found)}
            measured.append(Measurement("correlation", f"{distance} and {score}", *ends, **size))
    return measured


def _mean_correlation(
    x: Float[np.ndarray, " k"], y: Float[np.ndarray, "k sets"]
) -> Float[np.ndarray, " one"]:
    each = [spearman(x, column) for column in y.T]
    return np.array([np.mean(np.nan_to_num(each))])


def panels(found: list[Point], score: str = "AUPR") -> list[tuple[dict[str, Float[np.ndarray, "k 2"]], str]]:
    """For a figure: MMD and a detection score, one panel a foreign set, one run and ten runs apart."""
    sets = list(found[0].detection[score])
    kinds = sorted({point.name.rpartition(", ")[2] for point in found})
    return [
        (
            {
                f"{kind} run" if kind == "one" else f"{kind} runs": np.array(
                    [
                        (p.distance["MMD"], p.detection[score][name])
                        for p in found
                        if p.name.endswith(f", {kind}")
                    ]
                )
                for kind in kinds
            },
            name,
        )
        for name in sets
    ]


def width(k: int) -> float:
    """Width of a 95 % interval of a rank correlation near zero over k points: 2 tanh(1.96 √1.06 / √(k - 3)).

    By Fisher's transform with the variance of Fieller, Hartley and Pearson (1957).
    """
    return 2 * math.tanh(1.96 * math.sqrt(1.06 / (k - 3)))


def needed(margin: float) -> int:
    """How many points a correlation of exactly zero needs, so that its typical interval lies within ± margin."""
    return next(k for k in range(4, 10_000) if width(k) < 2 * margin)
