"""Intervals over independent units (networks, seeds, splits): bootstrap, jackknife, and Student's t for a few repetitions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

from lib.rules import Measurement

Statistic = Callable[[Int[np.ndarray, " n"]], Float[np.ndarray, " k"]]
Grouped = Callable[[Sequence[Int[np.ndarray, " n"]]], Float[np.ndarray, " k"]]


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


def jackknife(
    statistic: Grouped, sizes: Sequence[int], *, level: float = 0.95
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """Value and interval of k statistics of units that share in pairs or triples: each unit left out once, with all its pairs.

    Bootstrapped units would be paired with themselves; left out, they are not (Efron & Stein 1981: of pairs and triples the
    jackknife's variance is at worst too large). Student's t, by the smallest group.

    Args:
        statistic: maps one array of distinct indices a group to k numbers.
        sizes: how many units each group has; groups are independent (networks of different widths).
        level: of the interval.

    Returns:
        value, low and high, each (k,).
    """
    if min(sizes) < 3:
        raise ValueError(f"a group has {min(sizes)} units: the jackknife needs at least three.")
    from scipy.stats import t

    whole = [np.arange(n) for n in sizes]
    value = np.asarray(statistic(whole), dtype=np.float64)
    variance = np.zeros_like(value)
    for g, n in enumerate(sizes):
        without = [statistic([*whole[:g], np.delete(whole[g], i), *whole[g + 1 :]]) for i in range(n)]
        variance += (n - 1) * np.var(np.asarray(without, dtype=np.float64), axis=0)
    half = t.ppf((1 + level) / 2, min(sizes) - 1) * np.sqrt(variance)
    return value, value - half, value + half


def student(
    values: Sequence[float | int] | Float[np.ndarray, " seeds"], *, level: float = 0.95
) -> tuple[float, float, float]:
    """Mean of a few independent repetitions and Student's t interval of it: (mean, low, high).

    For repetitions too few to resample; it takes their mean for normal. Raises ValueError for fewer than two, or for
    values that are not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"{values!r:.60}: an interval needs at least two repetitions, all of them finite.")
    from scipy.stats import t

    mean = float(values.mean())
    half = float(t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return mean, mean - half, mean + half


def measured(
    name: str, cell: str, values: Sequence[float | int] | Float[np.ndarray, " seeds"]
) -> Measurement:
    """The measurement of a few repetitions: their mean with ``student``'s interval, n and seeds their number."""
    return Measurement(name, cell, *student(values), n=len(values), seeds=len(values))
