"""Percentile bootstrap intervals over independent units (networks, seeds, splits)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

Statistic = Callable[[Int[np.ndarray, " n"]], Float[np.ndarray, " k"]]


def bootstrap(
    statistic: Statistic, n: int, *, resamples: int, seed: int, level: float = 0.95
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """Value and interval of k statistics of n independent units, all of them from the same resamples.

    Args:
        statistic: maps n indices (drawn with replacement) to k numbers.
        n: how many units there are.
        resamples: how often they are drawn anew.
        seed: of the resampling.
        level: of the interval, between the (1 - level) / 2 and (1 + level) / 2 points of the resampled values.

    Returns:
        value (on the units as they are), low and high, each (k,).
    """
    if n < 2:
        raise ValueError(f"there are {n} units: an interval needs at least two.")
    generator = np.random.Generator(np.random.Philox(key=seed))
    value = statistic(np.arange(n))
    drawn = np.stack([statistic(generator.integers(n, size=n)) for _ in range(resamples)])
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return value, low, high
