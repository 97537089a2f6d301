"""From measurements to verdicts, and from verdicts to sentences.

``judge`` applies a claim's rule (``lib.rules``, written in the ledger before the run) to what a chapter measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from lib import rules
from lib.ledger import CHAPTERS, Claim, LedgerError, ledger, setting
from lib.rules import CONFIRMED, NOT_CONFIRMED, PROFILES, UNRESOLVED, Finding, Measurement

__all__ = [
    "CHAPTERS",
    "CONFIRMED",
    "NOT_CONFIRMED",
    "OUT_OF_REACH",
    "PROFILES",
    "UNRESOLVED",
    "VERDICTS",
    "Claim",
    "Finding",
    "LedgerError",
    "Measurement",
    "Verdict",
    "judge",
    "ledger",
    "number",
    "setting",
]

OUT_OF_REACH = "out of reach here"
VERDICTS = (CONFIRMED, NOT_CONFIRMED, UNRESOLVED, OUT_OF_REACH)
_SHOWS = {"quick": "A quick run can show a sign and an order, not a size.", "full": ""}
_EXACT = "An exact check: size plays no part in it."


@dataclass(frozen=True)
class Verdict:
    """What one run of one profile says about one claim.

    ``value`` and ``interval`` are the headline condition's number in its deciding cell (for *all cells*: the least
    favourable one); ``label`` says what it is and ``shows`` what the profile can and cannot show; ``findings`` holds
    every condition, ``measurements`` what they were judged on.
    """

    id: str
    verdict: str
    value: float
    interval: tuple[float, float]
    unit: str
    scope: str
    note: str
    profile: str = ""
    label: str = ""
    shows: str = ""
    findings: tuple[Finding, ...] = ()
    measurements: tuple[Measurement, ...] = ()

    @property
    def headline(self) -> Finding | None:
        """The finding whose number stands on the page: the first condition that came out as the claim did."""
        return next((f for f in self.findings if f.verdict == self.verdict), None) or next(
            iter(self.findings), None
        )

    @property
    def sentence(self) -> str:
        """One plain English passage: claim, verdict, number, interval, sizes, scope, and what the profile can show."""
        text = f"{self.id} is **{self.verdict}** in the {self.profile} profile"
        if self.verdict == OUT_OF_REACH:
            return f"{text}: {self.note}"
        head = self.headline
        if head is not None and math.isfinite(self.value):
            text += f": {self.label} is {number(self.value, self.interval, self.unit)}"
            if head.cells > 1:
                text += f" in the deciding one of {head.cells} cells, {head.cell}"
            text += f" (n = {head.n:,}, {head.seeds} seed{'s' if head.seeds != 1 else ''})"
        text += "."
        if self.verdict != CONFIRMED:
            text += f" Reason: {self.note}."
        return " ".join(part for part in (text, f"Scope: {self.scope}", self.shows) if part)


def judge(
    claim_id: str,
    profile: str,
    measurements: Iterable[Measurement] = (),
    ledger: Mapping[str, Claim] | None = None,
) -> Verdict:
    """The verdict of one profile's measurements on one claim, by the ledger's rule.

    Measurements of other names than the rule's are ignored. With none at all, the claim is out of reach where its
    ledger entry admitted that beforehand, and unresolved elsewhere. Raises KeyError for an unknown claim or profile.
    """
    claims = _ledger() if ledger is None else ledger
    if claim_id not in claims:
        raise KeyError(f"the ledger has no claim '{claim_id}'.")
    if profile not in PROFILES:
        raise KeyError(f"there is no profile '{profile}': the profiles are {' and '.join(PROFILES)}.")
    claim = claims[claim_id]
    asked = {condition.measure for condition in rules.conditions(claim.rule, profile)}
    mine = tuple(m for m in measurements if m.name in asked)
    fixed = {"unit": claim.unit, "scope": claim.scope[profile], "profile": profile}
    if not mine and profile in claim.out_of_reach:
        reason = claim.out_of_reach[profile]
        return Verdict(claim_id, OUT_OF_REACH, math.nan, (math.nan, math.nan), note=reason, **fixed)
    verdict, findings = rules.judge(claim.rule, profile, mine)
    judged = Verdict(
        claim_id,
        verdict,
        math.nan,
        (math.nan, math.nan),
        note="; ".join(_because(verdict, findings)),
        shows=_EXACT if claim.chance(profile) == 0 else _SHOWS[profile],
        findings=findings,
        measurements=mine,
        **fixed,
    )
    head = judged.headline
    label = claim.measures[head.condition.measure]
    return replace(judged, value=head.value, interval=(head.low, head.high), label=label)


_ledger = ledger  # `judge` has an argument of that name


def _because(verdict: str, findings: tuple[Finding, ...]) -> list[str]:
    """Why the verdict is what it is: the conditions that decided, those against it first."""
    deciding = [f for f in findings if f.verdict == verdict] or list(findings)
    others = [f for f in findings if f.verdict != verdict and f not in deciding and f.verdict != CONFIRMED]
    return [f"{f.condition.measure} {f.reason}" for f in (*deciding, *others)]


def number(value: float | None, interval: tuple[float | None, float | None] | list, unit: str = "") -> str:
    """A number with its interval in three figures: ``0.512 (0.47 to 0.55) nats``; a dash where there is none.

    A value that is nothing beside its interval is 0, and not the rounding that is left of it.
    """
    if value is None or not math.isfinite(value):
        return "–"
    low, high = interval
    widest = max((abs(end) for end in (low, high) if end is not None and math.isfinite(end)), default=0.0)
    text = f"{value if abs(value) >= 1e-9 * widest else 0.0:.3g}"
    if any(end is not None and end != value and not math.isnan(end) for end in (low, high)):
        text += f" ({_end(low, '-∞')} to {_end(high, '∞')})"
    return f"{text} {unit}".strip()


def _end(x: float | None, infinite: str) -> str:
    return f"{x:.3g}" if x is not None and math.isfinite(x) else infinite
