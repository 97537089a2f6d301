"""Rules of verdict: small total functions from measurements to confirmed, not confirmed or unresolved.

A rule is data (a table of ``data/claims.toml``). Its atoms are conditions: the interval of a named measurement must lie
in a region of the number line. An interval inside the region confirms, one wholly outside refutes, anything else leaves
the question unresolved; so does whatever may not speak (missing, not a number, inverted, too small). Cells and
conditions are then combined in Kleene's three-valued logic, where *all* is the smallest of the verdicts in the order
not confirmed < unresolved < confirmed, *any* the largest, and *at least k of the cells* the k-th largest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import SupportsFloat, SupportsIndex

CONFIRMED, NOT_CONFIRMED, UNRESOLVED = "confirmed", "not confirmed", "unresolved"
PROFILES = ("quick", "full")
_RANK = {NOT_CONFIRMED: 0, UNRESOLVED: 1, CONFIRMED: 2}
_ONE_SIDE = 0.025  # a 95 % interval lies wholly on the wrong side with this probability


@dataclass(frozen=True)
class Measurement:
    """One measured number with its interval, in one cell (a network, a data draw, a width ...).

    ``n`` counts what the number rests on (networks, pairs, data sets: the ledger's metric says which), ``seeds`` the
    independent repetitions. Numbers of any kind are stored as Python's own; ``None`` counts as not a number.
    """

    name: str
    cell: str
    value: SupportsFloat | None
    low: SupportsFloat | None
    high: SupportsFloat | None
    n: SupportsIndex
    seeds: SupportsIndex

    def __post_init__(self) -> None:
        for field in ("value", "low", "high"):
            number = getattr(self, field)
            object.__setattr__(self, field, math.nan if number is None else float(number))
        for field in ("n", "seeds"):
            object.__setattr__(self, field, int(getattr(self, field)))


@dataclass(frozen=True)
class Region:
    """A half line or a closed interval of the number line: above(t), below(t), inside(a, b)."""

    kind: str
    ends: tuple[float, ...]

    def contains(self, x: float) -> bool:
        """Whether one number lies in the region (the end of a half line does not)."""
        if self.kind == "above":
            return x > self.ends[0]
        if self.kind == "below":
            return x < self.ends[0]
        return self.ends[0] <= x <= self.ends[1]

    def judge(self, low: float, high: float) -> str:
        """Confirmed when [low, high] lies in the region, not confirmed when they are disjoint, else unresolved."""
        if self.contains(low) and self.contains(high):
            return CONFIRMED
        left = self.kind != "below" and high <= self.ends[0] and not self.contains(high)
        right = self.kind != "above" and low >= self.ends[-1] and not self.contains(low)
        return NOT_CONFIRMED if left or right else UNRESOLVED

    def slack(self, low: float, high: float) -> float:
        """Distance of the worse end of [low, high] from the region's border, positive inside."""
        return {
            "above": lambda: low - self.ends[0],
            "below": lambda: self.ends[0] - high,
            "inside": lambda: min(low - self.ends[0], self.ends[-1] - high),
        }[self.kind]()

    def __str__(self) -> str:
        if self.kind == "inside":
            return f"inside [{self.ends[0]:g}, {self.ends[1]:g}]"
        return f"{self.kind} {self.ends[0]:g}"


@dataclass(frozen=True)
class Sizes:
    """The least sizes at which a condition may speak in one profile."""

    cells: int = 1
    names: tuple[str, ...] = ()
    counting: int | None = None
    n: int = 1
    seeds: int = 1


@dataclass(frozen=True)
class Condition:
    """``measure`` lies in ``region`` in enough cells; ``sizes`` holds the profiles in which this is asked."""

    measure: str
    region: Region
    sizes: Mapping[str, Sizes]
    share: float = 1.0
    at_least: int | None = None
    chance: float = _ONE_SIDE

    def needed(self, cells: int) -> int:
        """How many of ``cells`` must be confirmed (more than there are, where the rule counts absolutely)."""
        return self.at_least if self.at_least is not None else math.ceil(self.share * cells - 1e-9)


@dataclass(frozen=True)
class Every:
    """All parts must be confirmed."""

    parts: tuple[Rule, ...]


@dataclass(frozen=True)
class Either:
    """One confirmed part is enough."""

    parts: tuple[Rule, ...]


Rule = Condition | Every | Either


@dataclass(frozen=True)
class Finding:
    """What one condition says: its verdict, the deciding cell's number, how many cells agreed, and why."""

    condition: Condition
    verdict: str
    reason: str
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    cell: str = ""
    cells: int = 0
    n: int = 0
    seeds: int = 0


def _unfit(m: Measurement) -> str:
    """Why a measurement cannot be judged whatever its size, or an empty string."""
    if not math.isfinite(m.value):
        return "its value is not a finite number"
    if math.isnan(m.low) or math.isnan(m.high):
        return "its interval is not a number"
    if m.low > m.high:
        return f"its interval is inverted ({m.low:.3g} to {m.high:.3g})"
    rounding = 1e-9 * max(abs(m.value), 1e-300)
    if not m.low - rounding <= m.value <= m.high + rounding:
        return f"its interval ({m.low:.3g} to {m.high:.3g}) does not hold its value {m.value:.3g}"
    return ""


def _too_small(m: Measurement, sizes: Sizes) -> str:
    if m.n < sizes.n:
        return f"n = {m.n:,} where the rule asks for {sizes.n:,}"
    if m.seeds < sizes.seeds:
        return f"{m.seeds} seeds where the rule asks for {sizes.seeds}"
    return ""


def examine(condition: Condition, profile: str, measurements: Sequence[Measurement]) -> Finding:
    """Judge one condition in one profile, from whatever was measured. Never raises, and never confirms by absence."""
    sizes = condition.sizes[profile]
    mine = [m for m in measurements if m.name == condition.measure]
    names = [m.cell for m in mine]
    if not mine:
        return Finding(condition, UNRESOLVED, "not measured")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        return Finding(condition, UNRESOLVED, f"cell '{twice[0]}' was measured twice")
    missing = [name for name in sizes.names if name not in names]
    if missing:
        return Finding(condition, UNRESOLVED, f"cell '{missing[0]}' was not measured", cells=len(mine))
    if len(mine) < sizes.cells:
        return Finding(condition, UNRESOLVED, f"{len(mine)} of {sizes.cells} cells measured", cells=len(mine))

    left_out = 0
    if sizes.counting is not None:
        large = [m for m in mine if not _too_small(m, sizes)]
        left_out = len(mine) - len(large)
        if len(large) < sizes.counting:
            why = f"{len(large)} cells are large enough where the rule asks for {sizes.counting}"
            return Finding(condition, UNRESOLVED, why, cells=len(mine))
        mine = large

    judged = []  # (rank of the verdict, slack, reason, measurement): sorted, the best cell first
    for m in mine:
        problem = _unfit(m) or _too_small(m, sizes)
        verdict = UNRESOLVED if problem else condition.region.judge(m.low, m.high)
        slack = -math.inf if problem else condition.region.slack(m.low, m.high)
        judged.append((_RANK[verdict], slack, problem, m))
    judged.sort(key=lambda entry: entry[:2], reverse=True)

    needed = condition.needed(len(judged))
    confirmed = sum(rank == _RANK[CONFIRMED] for rank, *_ in judged)
    if needed > len(judged):
        why = f"{len(judged)} cells counted where the rule asks for {needed}"
        return Finding(condition, UNRESOLVED, why, cells=len(judged))
    rank, _, problem, m = judged[needed - 1]  # the k-th best cell decides
    verdict = next(name for name, r in _RANK.items() if r == rank)
    if problem:
        why = f"cell '{m.cell}': {problem}"
    elif len(judged) == 1:
        why = f"{condition.region}: {_SAYS[verdict]}"
    else:
        why = f"{condition.region} in {confirmed} of {len(judged)} cells, {needed} needed: {_SAYS[verdict]}"
    if left_out:
        why += f" ({left_out} too small to count)"
    return Finding(condition, verdict, why, m.value, m.low, m.high, m.cell, len(judged), m.n, m.seeds)


_SAYS = {CONFIRMED: "yes", NOT_CONFIRMED: "no", UNRESOLVED: "the interval straddles the border"}


def conditions(rule: Rule, profile: str) -> Iterable[Condition]:
    """The conditions that a rule asks for in one profile, in the ledger's order."""
    if isinstance(rule, Condition):
        if profile in rule.sizes:
            yield rule
    else:
        for part in rule.parts:
            yield from conditions(part, profile)


def judge(rule: Rule, profile: str, measurements: Sequence[Measurement]) -> tuple[str, tuple[Finding, ...]]:
    """Verdict of a rule in one profile and the findings of its conditions, in the ledger's order."""
    if isinstance(rule, Condition):
        finding = examine(rule, profile, measurements)
        return finding.verdict, (finding,)
    parts = [judge(part, profile, measurements) for part in rule.parts if _asked(part, profile)]
    findings = tuple(finding for _, found in parts for finding in found)
    choose = min if isinstance(rule, Every) else max
    return choose((verdict for verdict, _ in parts), key=_RANK.__getitem__, default=UNRESOLVED), findings


def chance(rule: Rule, profile: str) -> float:
    """Upper bound on the probability that a rule confirms although there is no effect.

    Holds for cells and conditions however dependent: Markov's inequality for k of N cells (at most N c / k), the smallest
    for *all*, the sum for *any*.
    """
    if isinstance(rule, Condition):
        if rule.at_least is None:
            return min(1.0, rule.chance / rule.share)
        return min(1.0, rule.chance * max(rule.sizes[profile].cells, rule.at_least) / rule.at_least)
    parts = [chance(part, profile) for part in rule.parts if _asked(part, profile)]
    return min(parts, default=0.0) if isinstance(rule, Every) else min(1.0, sum(parts))


def describe(rule: Rule, profile: str) -> str:
    """A rule as one plain English phrase."""
    if isinstance(rule, Condition):
        sizes = rule.sizes[profile]
        text = f"`{rule.measure}` {rule.region}"
        if rule.at_least is not None:
            text += f" in at least {rule.at_least} cells"
        elif rule.share < 1:
            text += f" in at least {100 * rule.share:g} % of the cells"
        elif sizes.cells > 1:
            text += " in all cells"
        least = [f"{sizes.cells} cells measured"] if sizes.cells > 1 else []
        least += [f"{sizes.counting} cells large enough"] if sizes.counting else []
        least += [f"n ≥ {sizes.n:,}"] if sizes.n > 1 else []
        least += [f"seeds ≥ {sizes.seeds}"] if sizes.seeds > 1 else []
        return text + (f" ({', '.join(least)})" if least else "")
    joint = " and " if isinstance(rule, Every) else " or "
    parts = [describe(part, profile) for part in rule.parts if _asked(part, profile)]
    return joint.join(f"({p})" if " or " in p and joint == " and " else p for p in parts)


def _asked(rule: Rule, profile: str) -> bool:
    return any(True for _ in conditions(rule, profile))
