"""How the kernels grow: what ``python -m benchmarks.growth`` measured into ``data/growth.toml``, and the laws fitted to it.

A growth is an overhead and a power of the size, fitted to all sizes. Beyond the largest size the law is drawn on, but where the
work splits: more of it is then more pieces of the largest size.
"""

from __future__ import annotations

import math
import statistics
import tomllib
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np

from lib.chapter import ROOT
from lib.power_law import LEAST, Law, law

GROWTH = Path("data/growth.toml")
SEEN = 8 << 20  # bytes: what a peak grows by less is the allocator's doing, not the work's
VAGUE = 1.0  # half an interval of an exponent, from which nothing is said of larger sizes


class CostsError(ValueError):
    """The file of growths is not one."""


@dataclass(frozen=True)
class Series:
    """One kernel at rising sizes, as ``benchmarks.growth`` measured it (its ``Series`` explains the words).

    ``seconds`` and ``cpu``: wall and processor seconds, a tuple a size with one number a round; ``base`` and ``peak``: bytes
    that the process held before the work and at most during it; ``others``: cores that other programs used meanwhile.
    """

    kernel: str
    variable: str
    sizes: tuple[int, ...]
    fixed: str
    splits: bool
    how: str
    chapters: tuple[str, ...]
    date: str
    others: float | int
    base: tuple[int, ...]
    peak: tuple[int, ...]
    seconds: tuple[tuple[float | int, ...], ...]
    cpu: tuple[tuple[float | int, ...], ...]

    def __post_init__(self) -> None:
        lengths = {len(x) for x in (self.sizes, self.base, self.peak, self.seconds, self.cpu)}
        if len(lengths) != 1 or len(self.sizes) < LEAST or list(self.sizes) != sorted(set(self.sizes)):
            raise CostsError(f"{self.name}: it needs {LEAST} rising sizes or more, each with its numbers.")
        rounds = {len(each) for each in (*self.seconds, *self.cpu)}
        if len(rounds) != 1 or not min(rounds) or not all(x > 0 for each in self.cpu for x in each):
            raise CostsError(f"{self.name}: every size needs as many times as the others, all above zero.")

    @property
    def name(self) -> str:
        """Such as ``population.train, networks``."""
        return f"{self.kernel}, {self.variable}"

    @cached_property
    def core_seconds(self) -> np.ndarray:
        """The median of the rounds at each size: processor seconds of one thread."""
        return np.median(np.asarray(self.cpu, np.float64), axis=1)

    @property
    def waited(self) -> float:
        """Wall over processor seconds, the median of all: 1 where nobody else wanted the core."""
        pairs = zip(self.seconds, self.cpu, strict=True)
        return statistics.median(wall / cpu for each in pairs for wall, cpu in zip(*each, strict=True))

    @cached_property
    def law(self) -> Law:
        """How the core-seconds grow."""
        return law(self.sizes, self.core_seconds)

    def core_seconds_at(self, times: float | int) -> tuple[float, float, float]:
        """Of ``times`` the largest size, with the ends of the interval: by the law, and beyond it piece by piece where the work splits."""
        pieces = max(float(times), 1.0) if self.splits else 1.0
        value, low, high = self.law.at(times / pieces * self.sizes[-1])
        return pieces * value, pieces * low, pieces * high

    @property
    def last_step(self) -> float:
        """The exponent between the two largest sizes alone: above the law's, the growth is still getting steeper."""
        (a, b), (s, t) = self.sizes[-2:], self.core_seconds[-2:]
        return math.log(t / s) / math.log(b / a)

    @cached_property
    def memory_law(self) -> Law | None:
        """How the peak grows, the bare process as its overhead; None where it is not recorded, or hardly grows."""
        return law(self.sizes, self.peak) if min(self.peak) and self.peak[-1] - self.peak[0] >= SEEN else None

    @property
    def vague(self) -> bool:
        """Whether the peaks' exponent is too uncertain to say anything of larger sizes."""
        found = self.memory_law
        return found is not None and (found.high - found.low) / 2 > VAGUE

    def memory_at(self, times: float | int) -> float | None:
        """Peak bytes of one worker that does all of the largest size ``times`` over; None where nothing was recorded, or can be said."""
        if not self.peak[-1] or (self.vague and times > 1):
            return None
        alone = self.memory_law is None or times == 1
        return float(self.peak[-1]) if alone else self.memory_law.at(times * self.sizes[-1])[0]


@dataclass(frozen=True)
class Growth:
    """All series, and the machine on which they were measured; ``memory`` in bytes, 0 where it is not known."""

    machine: str
    cores: int
    memory: int
    threads: int
    system: str
    python: str
    torch: str
    rounds: int
    series: tuple[Series, ...]

    @property
    def dates(self) -> str:
        """The day, or the first and the last."""
        days = sorted({series.date[:10] for series in self.series})
        return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"

    def of_chapter(self, chapter: str) -> Series | None:
        """The series of the kernel in which a chapter spends its time, against its numbers of networks, chains or the like."""
        return next((series for series in self.series if chapter in series.chapters), None)


def read(root: Path | None = None) -> Growth | None:
    """What ``data/growth.toml`` holds; None where there is no such file. Raises CostsError for one that is broken."""
    file = (root or ROOT) / GROWTH
    if not file.exists():
        return None
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
        told = {f.name: document[f.name] for f in fields(Growth) if f.name != "series"}
        keys = [f.name for f in fields(Series)]
        series = tuple(Series(**{key: _tuples(table[key]) for key in keys}) for table in document["series"])
        return Growth(**told, series=series)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError, CostsError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise CostsError(
            f"{GROWTH.as_posix()} cannot be read ({reason}): delete it and run `python -m benchmarks.growth`."
        ) from None


def _tuples(x):
    return tuple(map(_tuples, x)) if isinstance(x, list) else x
