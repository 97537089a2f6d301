"""Intervals of a report: a number, its ends, and over what it was taken. Few units give a number without ends, and the page says so."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lib.intervals import bootstrap, jackknife, student

NETWORKS = 4  # with fewer a spread over networks says next to nothing
RESAMPLES = 500


@dataclass(frozen=True)
class Interval:
    """A value, the ends of its 95 % interval (NaN where there is none), and what it was taken over: "17 networks"."""

    value: float
    low: float = math.nan
    high: float = math.nan
    over: str = ""

    def within(self, least: float | int = -math.inf, most: float | int = math.inf) -> Interval:
        """The same with its ends inside the range that the number has."""
        return (
            replace(self, low=max(float(least), self.low), high=min(float(most), self.high))
            if self.known
            else self
        )

    @property
    def negative(self) -> Interval:
        """Of the number with the other sign."""
        return Interval(-self.value, -self.high, -self.low, self.over)

    @property
    def known(self) -> bool:
        """Whether it has ends."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def text(self, form: str = ".3f", scale: float | int = 1) -> str:
        """In words: "0.12 (0.10 to 0.14)", or the value alone."""
        value, low, high = (format(scale * x + 0.0, form) for x in (self.value, self.low, self.high))
        return f"{value} ({low} to {high})" if self.known else value


def over_pairs(values: Float[Tensor, " K"], pairs: Int64[Tensor, "K 2"], n: int) -> Interval:
    """The mean over pairs of n networks: jackknifed over networks, or, if all pairs share one, Student's over the others."""
    values = values.double().cpu()
    star = bool((pairs[:, 0] == pairs[0, 0]).all())
    if n < NETWORKS or not bool(values.isfinite().all()):
        return Interval(float(values.mean()), over=f"{n} networks")
    if star:
        return Interval(*student(values.numpy()), over=f"{n - 1} networks, given the first")
    table = torch.full((n, n), math.nan, dtype=torch.float64)
    table[pairs[:, 0], pairs[:, 1]] = values

    def mean(units: list[np.ndarray]) -> np.ndarray:
        (rows,) = units
        return np.nanmean(table.numpy()[np.ix_(rows, rows)], keepdims=True)[0]

    (value,), (low,), (high,) = jackknife(mean, [n])
    return Interval(float(value), float(low), float(high), f"{n} networks")


def over_networks(values: Float[Tensor, " n"]) -> Interval:
    """The mean over independent networks, Student's."""
    values = values.double().cpu()
    if len(values) < NETWORKS or not bool(values.isfinite().all()):
        return Interval(float(values.mean()), over=_count(len(values), "network"))
    return Interval(*student(values.numpy()), over=_count(len(values), "network"))


def over_examples(values: Float[Tensor, " N"], *, seed: int = 0) -> Interval:
    """The mean over examples, bootstrapped."""
    sample = values.double().cpu().numpy()
    return resampled(lambda rows: float(sample[rows].mean()), len(sample), seed=seed)


def relative(values: Float[Tensor, " N"], of: Float[Tensor, " N"], *, seed: int = 0) -> Interval:
    """By what share the mean of ``values`` over examples exceeds that of ``of``, both means resampled together."""
    here, there = (x.double().cpu().numpy() for x in (values, of))
    least = np.finfo(np.float64).tiny
    return resampled(
        lambda rows: float(here[rows].mean() / max(there[rows].mean(), least) - 1), len(here), seed=seed
    )


def resampled(statistic: Callable[[np.ndarray], float], n: int, *, seed: int = 0) -> Interval:
    """Any statistic of n examples, which maps their indices (drawn with replacement) to a number: percentile bootstrap.

    A statistic that resampling shifts (a calibration error grows) keeps its value inside: the nearer end is moved to it.
    """
    (value,), (low,), (high,) = bootstrap(
        lambda rows: np.array([statistic(rows)]), n, resamples=RESAMPLES, seed=seed
    )
    return Interval(float(value), float(min(low, value)), float(max(high, value)), _count(n, "example"))


def share(values: Float[Tensor, " N"]) -> Interval:
    """The mean of values within [0, 1] over examples, such as a share of errors.

    Normal, with two examples added at each end of the range (Agresti & Coull 1998): few examples that all agree must not pretend
    to know.
    """
    return _padded(values, [0.0, 0.0, 1.0, 1.0], 0.0)


def difference(values: Float[Tensor, " N"]) -> Interval:
    """The mean over examples of the difference of two shares, within [-1, 1]; as ``share``, with one example added at each end
    (Agresti & Min 2005, for matched pairs)."""
    return _padded(values, [-1.0, 1.0], -1.0)


def _padded(values: Tensor, ends: list[float], least: float) -> Interval:
    sample = values.double().cpu()
    more = torch.cat([sample, torch.tensor(ends, dtype=torch.float64)])
    centre, half = float(more.mean()), 1.96 * float(more.std(correction=0)) / len(more) ** 0.5
    value = float(sample.mean())
    low, high = max(least, min(centre - half, value)), min(1.0, max(centre + half, value))
    return Interval(value, low, high, _count(len(sample), "example"))


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"
