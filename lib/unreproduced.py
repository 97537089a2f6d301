"""What could not be reproduced, and why: a page from the ledger and the result files alone.

A claim of a paper stands here unless every profile that was run confirms it: under *not confirmed*, *unresolved* or *out of
reach* by the larger of its runs, under *in one profile alone* where the other one confirms it, or as not measured at all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from lib.chapter import ROOT, chapters
from lib.claims import CONFIRMED, NOT_CONFIRMED, OUT_OF_REACH, UNRESOLVED, Verdict, number
from lib.ledger import Claim
from lib.results import NOT_MEASURED, NOT_PUBLISHED
from lib.rules import PROFILES, Finding, conditions, describe
from lib.scoreboard import Board
from lib.table import Table, markdown

MIXED = "confirmed in one profile, not in the other"
GROUPS = {
    NOT_CONFIRMED: "The measurement lies on the other side of the border that the rule had named. More of the same would not "
    "change that. It speaks of the scope that is printed with it, and says nothing against the paper's own setting where that is another.",
    UNRESOLVED: "The interval lies across the border, or too little was measured for the rule to speak. It is neither evidence for the "
    "claim nor against it. What would settle it stands with each claim.",
    OUT_OF_REACH: "The ledger admitted before the run that this profile cannot measure the claim, and gave the reason. Nothing was "
    "measured, and nothing follows.",
    MIXED: "The two profiles have other sizes, and mostly other data: one of them confirms the claim, the other does not.",
    NOT_MEASURED: "No run has recorded anything about these claims yet.",
}
TITLES = {
    NOT_CONFIRMED: "Not confirmed",
    UNRESOLVED: "Unresolved",
    OUT_OF_REACH: "Out of reach here",
    MIXED: "Confirmed in one profile alone",
    NOT_MEASURED: "Not yet measured",
}
# How scopes name their data; the longer name first, since it holds the shorter.
DATA = ("MNIST-5k", "Fashion-MNIST", "KMNIST", "notMNIST", "MNIST", "CIFAR-10", "CamVid", "UCI", "Wine", "breast cancer",
        "Concrete", "energy", "kin8nm", "Naval", "Diabetes", "cubic toy", "two-blob toy", "digits")  # fmt: skip


ON_THE_BORDER = 1_000  # an interval so many times wider than what is left to the border


def unreproduced_markdown(root: Path | None = None) -> str:
    """The page's groups: a table of all claims in them, then each claim with what was measured and what would settle it."""
    board = Board(root)
    stated = [claim for claim in board.claims.values() if not claim.ours]
    groups = {name: [claim for claim in stated if group(board, claim) == name] for name in GROUPS}
    listed = sum(map(len, groups.values()))
    own = [claim for claims in groups.values() for claim in claims if claim.stated]
    blocks = [
        f"{listed} of the {len(stated)} claims about the papers stand on this page: {len(own)} sentences of the papers themselves, and "
        f"{listed - len(own)} of this book's about them (a control, a derivation, a comparison)."
    ]
    if not any(profile == "full" and result for (_, profile), result in board.results.items()):
        blocks[0] += (
            f" {NOT_PUBLISHED}: what follows rests on quick runs, whose data are mostly not the papers'."
        )
    if listed:
        rows = [_row(board, claim) for claims in groups.values() for claim in claims]
        blocks.append(
            Table(("Claim", "Whose", "Quick", "Full (GPU)", "Data in quick", "Data in full"), rows).markdown()
        )
    homes = {chapter.name: f"/chapters/{chapter.path.stem}" for chapter in chapters(root or ROOT)}
    for name, claims in groups.items():
        if claims:
            blocks += [f"## {TITLES[name]} ({len(claims)})", GROUPS[name]]
            blocks += [_card(board, claim, homes) for claim in claims]
    return "\n\n".join(blocks) + "\n"


def group(board: Board, claim: Claim) -> str | None:
    """The group that a claim belongs to; None where every profile that was run confirms it."""
    entries = [board.entry(claim, profile) for profile in PROFILES]
    verdicts = [entry["verdict"] for entry in entries if entry is not None]
    if not verdicts:
        return NOT_MEASURED
    if all(verdict == CONFIRMED for verdict in verdicts):
        return None
    return MIXED if CONFIRMED in verdicts else verdicts[-1]  # the full run's, where there is one


def data_named(scope: str) -> tuple[str, ...]:
    """The data sets that a scope names, in a fixed order; () where it names none."""
    found, scope = [], scope.replace("free energy", "")
    for name in DATA:
        scope, count = re.subn(rf"(?<![\w-]){re.escape(name)}(?![\w-])", "", scope, flags=re.IGNORECASE)
        found += [name] if count else []
    return tuple(found)


def _row(board: Board, claim: Claim) -> tuple[str, ...]:
    words = (board.word(claim, profile) for profile in PROFILES)
    return (
        f"{claim.id} {claim.statement}",
        _whose(claim),
        *words,
        *(_data(claim.scope[profile]) for profile in PROFILES),
    )


def _whose(claim: Claim) -> str:
    return "the paper’s" if claim.stated else "ours"


def _data(scope: str) -> str:
    return "not run" if scope.startswith("Not run") else ", ".join(data_named(scope)) or "no set by name"


def _card(board: Board, claim: Claim, homes: Mapping[str, str]) -> str:
    """Everything about one claim: what the paper says, what was measured, by which rule, and what would settle it."""
    home = homes.get(claim.chapter)
    chapter = f"{{doc}}`{claim.chapter} <{home}>`" if home else claim.chapter
    figure = claim.figure if claim.mark == "none" else f"{claim.figure} [{claim.mark}]"
    title = "Paper" if claim.stated else "The book’s sentence about the paper"
    lines = [f"- {title} ({markdown(claim.source)}): {markdown(figure)}. Chapter: {chapter}."]
    for profile in PROFILES:
        lines += _measured(board, claim, profile)
    quick, full = (_data(claim.scope[profile]) for profile in PROFILES)
    if quick != full:
        lines.append(
            f"- Other data in the two profiles: quick, {quick}; full, {full}. The verdict of one need not be the other's."
        )
    if wanting := " ".join(_settles(board, claim)):
        lines.append(f"- What would settle it: {wanting}")
    if claim.article:
        lines.append(f"- A popular article says it too: sentence {', '.join(claim.article)} of the ledger.")
    return "\n".join((f"**{claim.id}** {markdown(claim.statement)}", "", *lines, "", _reasons(claim)))


def _reasons(claim: Claim) -> str:
    """The rule in both profiles and the ledger's reasons for it, folded away."""
    lines = [f"Confirmed in {profile} if {claim.describe(profile)}" for profile in PROFILES]
    lines += [f"May be out of reach in {p}: {markdown(reason)}" for p, reason in claim.out_of_reach.items()]
    lines += [f"Why this rule: {markdown(claim.why)}"] if claim.why else []
    lines += [f"Changed: {markdown(change)}" for change in claim.changed]
    body = "\n".join(f"- {line}" for line in lines)
    return f"````{{dropdown}} {claim.id}: the rule, and the ledger’s reasons\n{body}\n````"


def _measured(board: Board, claim: Claim, profile: str) -> Iterator[str]:
    """What one profile says: its verdict, then every condition that did not come out as the rule asks."""
    title = {"quick": "Quick", "full": "Full (GPU)"}[profile]
    entry = board.entry(claim, profile)
    if entry is None:
        published = profile == "quick" or board.results[claim.chapter, "full"] is not None
        yield f"- {title}: {NOT_MEASURED if published else NOT_PUBLISHED}."
        return
    word = board.word(claim, profile)
    if entry["verdict"] == OUT_OF_REACH:
        yield f"- {title}: {markdown(word)}, as the ledger said beforehand: {markdown(entry['note'])}."
        return
    yield f"- {title}: {markdown(word)}. Scope: {markdown(entry['scope'])}"
    verdict = board.again[claim.chapter, profile][claim.id]
    if board.outdated(claim, profile):
        yield f"  - As it was judged then: {markdown(entry['note'])}."
    for finding in _failing(verdict):
        yield f"  - {_finding(claim, finding, claim.unit if finding is verdict.headline else '')}"


def _failing(verdict: Verdict) -> list[Finding]:
    return [finding for finding in verdict.findings if finding.verdict != CONFIRMED]


def _finding(claim: Claim, finding: Finding, unit: str) -> str:
    """A condition in words: its number with interval and sizes, the region asked for, and why it failed."""
    name = finding.condition.measure
    text = f"{markdown(claim.measures[name])} (`{name}`)"
    if math.isfinite(finding.value):
        text += f" = {markdown(number(finding.value, (finding.low, finding.high), unit))}"
        if finding.cells > 1:
            text += f" in the deciding one of {finding.cells} cells, {markdown(finding.cell)}"
        text += f", n = {finding.n:,}, {finding.seeds} seed{'s' if finding.seeds != 1 else ''}"
    return f"{text}: {markdown(finding.reason)}."


# ---------------------------------------------------------------------------------------------- what would settle it


def _settles(board: Board, claim: Claim) -> Iterator[str]:
    """What a run would need for another, or for any, verdict: the sizes of the rule, or a narrower interval."""
    profile = next((p for p in reversed(PROFILES) if board.entry(claim, p)), "quick")
    entry = board.entry(claim, profile)
    if entry is not None and entry["verdict"] == UNRESOLVED:
        for finding in _failing(board.again[claim.chapter, profile][claim.id]):
            yield _narrower(finding) or f"It needs {describe(finding.condition, profile)}."
    if entry is not None and entry["verdict"] == NOT_CONFIRMED:
        yield "No larger run of the same kind."
    if board.entry(claim, "full") is None:
        if reason := claim.out_of_reach.get("full"):
            yield f"The full profile may not reach it either: {markdown(reason)}."
        failing = _failing(board.again[claim.chapter, profile][claim.id]) if entry is not None else []
        wanted = {finding.condition.measure for finding in failing}
        asked = [c for c in conditions(claim.rule, "full") if c.measure in wanted or not wanted]
        sizes = "; ".join(describe(condition, "full") for condition in asked)
        scope = markdown(claim.scope["full"].rstrip("."))
        yield f"The full run, on its own scope ({scope})" + (f": {sizes}." if asked else ".")
    elif entry["verdict"] == OUT_OF_REACH:
        yield "Another profile than the two there are."


def _narrower(finding: Finding) -> str:
    """How much narrower an interval would have to be to lie on one side of its border; "" where width is not what is wanting."""
    name, value = finding.condition.measure, finding.value
    bounded = all(map(math.isfinite, (value, finding.low, finding.high)))
    crossed = [end for end in finding.condition.region.ends if bounded and finding.low <= end <= finding.high]
    if finding.verdict != UNRESOLVED or not crossed or "the rule asks for" in finding.reason:
        return ""
    ratios = [_reach(finding, end) / abs(value - end) if value != end else math.inf for end in crossed]
    if max(ratios) > ON_THE_BORDER:
        return f"`{name}` lies on its border as nearly as can be told, where no size settles it."
    return (
        f"`{name}` would have to keep its value, and have an interval {_plain(max(ratios))} times narrower in the deciding cell, to lie on "
        f"one side of its border: about {_plain(max(ratios) ** 2)} times as many independent units, if intervals shrink with their root."
    )


def _reach(finding: Finding, end: float) -> float:
    """How far the interval extends from its value towards a border."""
    return finding.value - finding.low if end < finding.value else finding.high - finding.value


def _plain(x: float) -> str:
    """Two figures without an exponent."""
    return f"{float(f'{x:.2g}'):,g}"
