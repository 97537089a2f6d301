"""From scores to the measurements of claims P3-C2 to C6 and X-G1: everything paired over splits, and the baseline favoured.

A method with variants (the factorised Gaussian: two starting widths, two learning rates) stands with the best of them, chosen by its mean
test score for each set, size and metric: an advantage that the matrix Gaussian does not get.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from lib import intervals
from lib.claims import Measurement
from lib.contest import published
from lib.contest.methods import DIAGONAL, FACTORISED, VMG, Scores

Values = Float[np.ndarray, " splits"]


@dataclass(frozen=True, eq=False)
class Contest:
    """One data set: the scores of every method, (splits * sizes) runs each, the variants of a method in a list."""

    name: str
    splits: int
    sizes: tuple[int, ...]
    main: int
    updates: int
    scores: dict[str, list[Scores]]

    def at(self, values: Float[Tensor, " R"], size: int | None = None) -> Values:
        """The runs of one size (by default the main one), split by split."""
        return values.view(self.splits, -1)[:, self._column(values, size)].numpy().astype(np.float64)

    def _column(self, values: Tensor, size: int | None) -> int:
        """Methods that ran at the main size alone have one column."""
        return 0 if len(values) == self.splits else self.sizes.index(size or self.main)

    def rmse(self, method: str, size: int | None = None) -> Values:
        """Test RMSE of a method, its best variant."""
        return self.best(method, lambda s: s.rmse, size, sign=1)

    def log_likelihood(self, method: str, size: int | None = None) -> Values:
        """Test log-likelihood (the authors' plug-in form) of a method, its best variant."""
        return self.best(method, lambda s: s.log_likelihood, size, sign=-1)

    def best(
        self, method: str, read: Callable[[Scores], Tensor], size: int | None = None, *, sign: int = 1
    ) -> Values:
        """Of the variants, the one whose mean over splits is lowest (sign 1) or highest (sign -1)."""
        each = [self.at(read(scores), size) for scores in self.scores[method]]
        return min(each, key=lambda values: sign * float(values.mean()))

    @property
    def looks(self) -> tuple[int, ...]:
        """The updates at which test RMSE was looked at."""
        return tuple(self.scores[VMG][0].early)

    def early(self, method: str, updates: int) -> Values:
        """Test RMSE after so many updates, the variant that is best then."""
        return self.best(method, lambda s: s.early[updates])


def equal_terms(contests: Sequence[Contest]) -> list[Measurement]:
    """P3-C3: gain of the matrix Gaussian over the factorised one in RMSE, relative, and in log-likelihood."""
    found = []
    for c in contests:
        found.append(_measured("rmse_gain", c, relative_gain(c.rmse(FACTORISED), c.rmse(VMG))))
        found.append(_measured("ll_gain", c, c.log_likelihood(VMG) - c.log_likelihood(FACTORISED)))
    return found


def early(contests: Sequence[Contest]) -> list[Measurement]:
    """P3-C4: the relative gain in RMSE at a quarter of the updates."""
    return [
        _measured(
            "early_gain", c, relative_gain(c.early(FACTORISED, c.updates // 4), c.early(VMG, c.updates // 4))
        )
        for c in contests
    ]


def diagonal(contests: Sequence[Contest], parameter_ratio: float) -> list[Measurement]:
    """P3-C5: the diagonal matrix Gaussian against the factorised one that starts as wide and learns as fast."""
    found = [Measurement("parameter_ratio", "785 x 150", *[parameter_ratio] * 3, n=1, seeds=1)]
    for c in contests:
        (ours,), same = c.scores[DIAGONAL], c.scores[FACTORISED][0]
        ratio = c.at(ours.rmse) / c.at(same.rmse) - 1
        found.append(_measured("rmse_difference", c, ratio))
        found.append(_measured("ll_difference", c, c.at(ours.log_likelihood) - c.at(same.log_likelihood)))
    return found


def little_data(contests: Sequence[Contest]) -> list[Measurement]:
    """X-G1: slopes in log n of both gains, a line a split."""
    found = []
    for c in contests:
        for name, gains in (("rmse_slope", rmse_gains(c)), ("ll_slope", ll_gains(c))):
            found.append(_measured(name, c, slopes(c.sizes, gains)))
    return found


def rmse_gains(c: Contest) -> Float[np.ndarray, "sizes splits"]:
    """Relative gains in RMSE over the factorised Gaussian, size by size."""
    return np.stack([relative_gain(c.rmse(FACTORISED, n), c.rmse(VMG, n)) for n in c.sizes])


def ll_gains(c: Contest) -> Float[np.ndarray, "sizes splits"]:
    """Gains in log-likelihood, size by size."""
    return np.stack([c.log_likelihood(VMG, n) - c.log_likelihood(FACTORISED, n) for n in c.sizes])


def slopes(sizes: Sequence[int], gains: Float[np.ndarray, "sizes splits"]) -> Values:
    """Least-squares slope in log n of every split."""
    x = np.log(np.array(sizes, dtype=np.float64))
    x -= x.mean()
    return (x @ gains) / (x @ x)


def relative_gain(baseline: Values, ours: Values) -> Values:
    """1 - ours / baseline."""
    return 1 - ours / baseline


def against_the_table(contests: Sequence[Contest]) -> list[Measurement]:
    """P3-C2: ours over the recalled VMG figure, and the published VI, PBP and dropout minus ours, positive where ours is better."""
    found = []
    for c in contests:
        mean, low, high = intervals.student(c.rmse(VMG))
        row = published.RMSE[c.name]
        table, error = row.figure("vmg", c.splits)
        half = math.hypot(high - mean, 1.96 * error) + published.ROUNDING
        found.append(
            Measurement(
                "rmse_to_table", c.name, mean / table, (mean - half) / table, (mean + half) / table,
                n=c.splits, seeds=c.splits,
            )
        )  # fmt: skip
        ll = intervals.student(c.log_likelihood(VMG))
        for method in ("vi", "pbp", "dropout"):
            table = row.figure(method, c.splits)
            found.append(_against(f"rmse_gain_{method}", c, table, (mean, low, high), sign=-1, unit=table[0]))
            other = published.LOG_LIKELIHOOD[c.name].figure(method, c.splits)
            found.append(_against(f"ll_gain_{method}", c, other, ll, sign=1, unit=1.0))
    return found


def naval(raw: Contest, standardised: Contest) -> list[Measurement]:
    """P3-C6: log-likelihood on naval with the prior of the noise in raw and in standardised units."""
    return [
        _measured("ll_raw", raw, raw.log_likelihood(VMG), cell="raw"),
        _measured("ll_standardised", standardised, standardised.log_likelihood(VMG), cell="standardised"),
    ]


def cap(rows: int, prior: tuple[float, float] = (6.0, 6.0)) -> float:
    """The highest log-likelihood that a Gamma prior of the precision allows, whatever the fit (derived in the notes).

    With perfect predictions q(τ) is Gamma(a0 + N/2, b0); an exact fit of every test row then has ½ (ψ(a) - ln b - ln 2π).
    """
    from scipy.special import digamma

    shape, rate = prior
    return 0.5 * float(digamma(shape + rows / 2) - math.log(rate) - math.log(2 * math.pi))


def _against(
    name: str,
    c: Contest,
    table: published.Figure,
    ours: tuple[float, float, float],
    *,
    sign: int,
    unit: float,
) -> Measurement:
    mean, _, high = ours
    half = math.hypot(high - mean, 1.96 * (table[1] or 0.0)) + published.ROUNDING
    gain = sign * (mean - table[0])
    return Measurement(
        name, c.name, gain / unit, (gain - half) / unit, (gain + half) / unit, n=c.splits, seeds=c.splits
    )


def _measured(name: str, c: Contest, values: Values, cell: str | None = None) -> Measurement:
    return Measurement(name, cell or c.name, *intervals.student(values), n=len(values), seeds=len(values))


def said(values: Values, form: str = ".3g") -> str:
    """A mean with its interval, as a page has it."""
    return "{0:{3}} ({1:{3}} to {2:{3}})".format(*intervals.student(values), form)


def table(c: Contest, methods: Sequence[str]) -> list[tuple[str, ...]]:
    """For a page: method, RMSE, log-likelihood (plug-in and Student's t) and calibration error with intervals, best variants."""
    rows = []
    for method in methods:
        columns = (
            c.rmse(method),
            c.log_likelihood(method),
            c.best(method, lambda s: s.student, sign=-1),
            c.best(method, lambda s: s.calibration),
        )
        rows.append(("VMG" if method == VMG else method, *map(said, columns)))
    return rows


def size_table(contests: Sequence[Contest]) -> list[tuple[str, ...]]:
    """For a page: set, training rows, and RMSE, log-likelihood and calibration error of the matrix Gaussian and the factorised one."""
    rows = []
    for c in contests:
        for n in c.sizes:
            columns = [read(method, n) for read in (c.rmse, c.log_likelihood) for method in (VMG, FACTORISED)]
            columns += [c.best(method, lambda s: s.calibration, n) for method in (VMG, FACTORISED)]
            rows.append((c.name, str(n), *map(said, columns)))
    return rows


def published_table(
    table: Mapping[str, published.Row], contests: Sequence[Contest], read: Callable[[Contest, str], Values]
) -> list[tuple[str, ...]]:
    """For a page: the published figures of every set, mean ± standard error, and ours where it was run."""
    ours = {c.name: read(c, VMG) for c in contests}
    rows = []
    for name, row in table.items():
        splits = 5 if name == "protein" else 20
        figures = [row.figure(method, splits) for method in published.LABELS]
        cells = [f"{mean:.2f}" + (f" ± {error:.2f}" if error is not None else "") for mean, error in figures]
        mine = "not run"
        if name in ours:
            mine = f"{ours[name].mean():.3g} ± {ours[name].std(ddof=1) / math.sqrt(len(ours[name])):.2g}"
        rows.append((name, *cells, mine))
    return rows
