"""A cost as an overhead and a power of the size, value = a + b x^c, fitted to a handful of sizes, with the exponent's interval.

A pure power would take the overhead of small sizes for a small exponent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

LEAST = 5  # sizes of a fit: three numbers, and two more to tell how well they hold


@dataclass(frozen=True, eq=False)
class Law:
    """value = overhead + b x^exponent, with Student's 95 % interval of the exponent.

    Inside, x and value are counted in units of ``at_x`` and ``unit``, which makes b = exp(``log_b``); ``covariance`` is that of
    overhead, log b and exponent, times Student's quantile squared.
    """

    overhead: float
    exponent: float
    low: float
    high: float
    log_b: float
    at_x: float
    unit: float
    covariance: Float[np.ndarray, "3 3"]

    def at(self, x: float | int) -> tuple[float, float, float]:
        """The value at x, and the ends of its interval: the delta method, on the value's logarithm."""
        away = math.log(x / self.at_x)
        grown = math.exp(min(self.log_b + self.exponent * away, 600.0))
        whole = self.overhead / self.unit + grown
        slope = np.array([1.0, grown, grown * away]) / whole
        half = math.sqrt(max(float(slope @ self.covariance @ slope), 0.0))
        return (
            whole * self.unit,
            whole * self.unit * math.exp(-half),
            whole * self.unit * math.exp(min(half, 80.0)),
        )

    def reaches(self, value: float | int) -> float:
        """The x at which the law comes to ``value``; infinite where it does not rise."""
        rest = (value - self.overhead) / self.unit
        if self.exponent <= 0 or rest <= 0:
            return math.inf
        power = (math.log(rest) - self.log_b) / self.exponent
        return self.at_x * math.exp(power) if power < 600 else math.inf


def law(
    sizes: Sequence[float | int] | np.ndarray, values: Sequence[float | int] | np.ndarray, level: float = 0.95
) -> Law:
    """Least squares on logarithms of value = overhead + b x^exponent with an overhead that is not negative.

    Student's intervals from the linearised fit, three degrees of freedom fewer than there are sizes; they hold what they say where
    the logarithms scatter evenly about such a curve. Raises ValueError for fewer than five sizes, two alike, or numbers that
    are not above zero.
    """
    x, y = np.asarray(sizes, np.float64), np.asarray(values, np.float64)
    if len(x) != len(y) or len(x) < LEAST or len(np.unique(x)) < len(x):
        raise ValueError(
            f"{len(x)} sizes and {len(y)} values: a curve of three numbers with its interval needs {LEAST} different sizes or more."
        )
    if not (np.isfinite([x, y]).all() and (x > 0).all() and (y > 0).all()):
        raise ValueError(
            "sizes and values must be finite and above zero: they are fitted by their logarithms."
        )
    from scipy.optimize import least_squares
    from scipy.stats import t

    at_x, unit = float(np.exp(np.log(x).mean())), float(np.exp(np.log(y).mean()))
    away, goal = np.log(x / at_x), np.log(y / unit)
    ceiling = float(np.exp(goal.min()))

    def off(found: np.ndarray) -> np.ndarray:
        return np.log(found[0] + np.exp(found[1] + found[2] * away)) - goal

    def slopes(found: np.ndarray) -> np.ndarray:
        grown = np.exp(found[1] + found[2] * away)
        return np.stack([np.ones_like(away), grown, grown * away], 1) / (found[0] + grown)[:, None]

    bounds = ([0.0, -30.0, -1.0], [2 * ceiling, 30.0, 6.0])
    # The best of a coarse grid, where b is what the largest size asks for; near it the fit has one minimum.
    starts = [
        np.array([share * ceiling, math.log(math.exp(goal[-1]) - share * ceiling) - c * away[-1], c])
        for share in (0.0, 0.3, 0.7, 0.95)
        for c in (0.1, 0.3, 0.6, 1.0, 1.5, 2.0, 3.0)
    ]
    start = np.clip(min(starts, key=lambda found: float(np.square(off(found)).sum())), *bounds)
    best = least_squares(off, start, slopes, bounds=bounds, xtol=1e-12, ftol=1e-12)
    reach = t.ppf((1 + level) / 2, len(x) - 3) * math.sqrt(2 * best.cost / (len(x) - 3))
    free = [0, 1, 2] if best.x[0] > 1e-6 * ceiling else [1, 2]  # an overhead of nought stands on its bound
    covariance, tangent = np.zeros((3, 3)), slopes(best.x)[:, free]
    covariance[np.ix_(free, free)] = reach**2 * np.linalg.pinv(tangent.T @ tangent)
    exponent, half = float(best.x[2]), math.sqrt(covariance[2, 2])
    return Law(
        float(best.x[0]) * unit if 0 in free else 0.0,
        exponent,
        exponent - half,
        exponent + half,
        float(best.x[1]),
        at_x,
        unit,
        covariance,
    )
