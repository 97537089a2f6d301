"""The verdicts as pages: the table on the front page and the scoreboard, from the ledger and the result files alone.

A verdict is always a symbol and a word, never a colour. A claim without a result is in plain sight as not yet measured;
a full run made with other code is stamped stale; a verdict that today's ledger would not give is marked as such.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from lib.claims import CONFIRMED, OUT_OF_REACH, VERDICTS
from lib.ledger import CHAPTERS, Claim, ledger
from lib.results import (
    NOT_MEASURED,
    NOT_PUBLISHED,
    STALE,
    SYMBOLS,
    cell,
    digest_now,
    full_cell,
    judged_again,
    load,
    stale,
)
from lib.rules import PROFILES
from lib.table import Table, markdown

OURS = "The book's own questions"
RULE_CHANGED = "judged under an earlier rule: run it again"


class Board:
    """The ledger with every result file there is, read once."""

    def __init__(self, root: Path | None = None) -> None:
        self.claims = dict(sorted(ledger().items(), key=lambda item: _order(item[1])))
        chapters = dict.fromkeys(claim.chapter for claim in self.claims.values())
        self.results = {(c, p): load(c, p, root) for c in chapters for p in PROFILES}
        self.now = {c: digest_now(c, "full", root) for c in chapters if self.results[c, "full"]}
        self.again = {key: judged_again(result) for key, result in self.results.items() if result}

    def entry(self, claim: Claim, profile: str) -> dict | None:
        """What one profile's run recorded about a claim, None where nothing did."""
        result = self.results[claim.chapter, profile]
        found = (entry for entry in (result or {"claims": ()})["claims"] if entry["id"] == claim.id)
        return next(found, None)

    def cell(self, claim: Claim, profile: str) -> str:
        """A claim's verdict in one profile as a short text, with stamps where it is stale or its rule has changed."""
        entry = self.entry(claim, profile)
        if profile == "quick" or entry is None:
            text = cell(entry)
        else:
            text = full_cell(self.results[claim.chapter, "full"], claim.id, self.now[claim.chapter])
        return f"{text} ({RULE_CHANGED})" if entry is not None and self.outdated(claim, profile) else text

    def outdated(self, claim: Claim, profile: str) -> bool:
        """Whether today's ledger gives another verdict on the recorded measurements than the run gave."""
        entry, again = self.entry(claim, profile), self.again[claim.chapter, profile]
        return entry is not None and again[claim.id].verdict != entry["verdict"]

    def word(self, claim: Claim, profile: str) -> str:
        """A claim's verdict in one profile as symbol and word alone, stamped where its cell is."""
        entry = self.entry(claim, profile)
        if entry is None:
            return NOT_MEASURED
        old = profile == "full" and stale(self.results[claim.chapter, profile], self.now[claim.chapter])
        stamp = " (STALE)" if old else " (earlier rule)" if self.outdated(claim, profile) else ""
        return f"{SYMBOLS[entry['verdict']]} {entry['verdict']}{stamp}"

    def counts(self, claims: Sequence[Claim], profile: str) -> Counter:
        """How many of some claims have which verdict in one profile."""
        entries = (self.entry(claim, profile) for claim in claims)
        return Counter(NOT_MEASURED if entry is None else entry["verdict"] for entry in entries)


def verdicts_markdown(root: Path | None = None) -> str:
    """The front page's tables: how many claims came out how, and, folded away, every claim measured so far with its verdicts."""
    board = Board(root)
    measured = [c for c in board.claims.values() if any(board.entry(c, p) for p in PROFILES)]
    rows = [
        (f"{claim.id} {claim.statement}", *(board.word(claim, p) for p in PROFILES)) for claim in measured
    ]
    text = _in_all(board)
    if not rows:
        return text + "\n"
    run = [
        p for p in PROFILES if any(profile == p and result for (_, profile), result in board.results.items())
    ]
    counts = _counts(board, _parts(board), run)
    every = Table(("Claim", "Quick", "Full (GPU)"), rows).markdown()
    return f"{text}\n\n{counts}\n\n:::::{{dropdown}} Every claim and its verdict\n{every}\n:::::\n"


def _in_all(board: Board) -> str:
    """How many claims there are, and of them judged in each profile, out of its reach, or not measured."""
    claims, told = list(board.claims.values()), []
    for profile, none in zip(PROFILES, (NOT_MEASURED, NOT_PUBLISHED), strict=True):
        found = board.counts(claims, profile)
        if found[NOT_MEASURED] == len(claims):
            told.append(f"*{profile.capitalize()}*: {none}.")
            continue
        rest = {"out of reach": found[OUT_OF_REACH], NOT_MEASURED: found[NOT_MEASURED]}
        parts = [
            f"{len(claims) - sum(rest.values())} judged",
            *(f"{n} {word}" for word, n in rest.items() if n),
        ]
        told.append(f"*{profile.capitalize()}*: {', '.join(parts)}.")
    return f"{len(claims)} claims in the ledger. {' '.join(told)}"


def scoreboard_markdown(root: Path | None = None) -> str:
    """The scoreboard: counts, what chance alone would confirm, what changed since the full runs, and every claim: figure,
    verdicts, rule and scope, the papers' statements first and the book's own questions after them."""
    board = Board(root)
    parts = _parts(board)
    blocks = [
        _counts(board, parts),
        *(_chance(board, profile) for profile in PROFILES),
        "## What changed since the last published full run",
        *_changes(board),
    ]
    for title, claims in parts.items():
        blocks += [f"## {title}", _summary(board, claims), *(_card(board, claim) for claim in claims)]
    return "\n\n".join(blocks) + "\n"


def _parts(board: Board) -> dict[str, list[Claim]]:
    """Section titles and their claims: what each paper states, then the book's own questions, of whatever chapter."""
    claims = board.claims.values()
    numbers = sorted({claim.paper for claim in claims if not claim.ours})
    parts = {_title(n): [c for c in claims if c.paper == n and not c.ours] for n in numbers}
    ours = [claim for claim in claims if claim.ours]
    return parts | ({OURS: ours} if ours else {})


def _counts(board: Board, parts: Mapping[str, list[Claim]], profiles: Sequence[str] = PROFILES) -> str:
    """How many claims have which verdict, a column a paper, quick/full (or the profile that there is) in each cell."""
    columns = {
        title if title == OURS else title.replace("Paper ", "P").split(":")[0]: c
        for title, c in parts.items()
    }
    columns["All"] = list(board.claims.values())
    counts = {title: [board.counts(claims, p) for p in profiles] for title, claims in columns.items()}
    rows = [
        (
            f"{SYMBOLS.get(name, '…')} {name}",
            *("/".join(str(count[name]) for count in pair) for pair in counts.values()),
        )
        for name in (*VERDICTS, NOT_MEASURED)
    ]
    return f"Claims by paper, {'/'.join(profiles)}:\n\n{Table(('Verdict', *columns), rows).markdown()}"


def _judged(board: Board, claims: Iterable[Claim], profile: str) -> list[Claim]:
    """The claims on which measurements were judged in one profile."""
    entries = ((claim, board.entry(claim, profile)) for claim in claims)
    return [claim for claim, entry in entries if entry is not None and entry["verdict"] != OUT_OF_REACH]


def _summary(board: Board, claims: Sequence[Claim]) -> str:
    """A section's counts in both profiles, and what chance alone would have confirmed of them."""
    sentences = []
    for profile in PROFILES:
        judged, counts = _judged(board, claims, profile), board.counts(claims, profile)
        if counts[NOT_MEASURED] == len(claims):
            text = NOT_PUBLISHED if profile == "full" else NOT_MEASURED
            sentences.append(f"*{profile.capitalize()}*: {text}.")
            continue
        found = ", ".join(f"{counts[name]} {name}" for name in (*VERDICTS, NOT_MEASURED) if counts[name])
        chance = sum(claim.chance(profile) for claim in judged)
        sentences.append(
            f"*{profile.capitalize()}*: {found}; chance alone would confirm at most {chance:.2g}."
        )
    return " ".join(sentences)


def _chance(board: Board, profile: str) -> str:
    """How many confirmations chance alone would give, beside how many there are."""
    judged = _judged(board, board.claims.values(), profile)
    if not judged:
        return f"**{profile.capitalize()}**: no claim has been judged yet."
    confirmed = board.counts(judged, profile)[CONFIRMED]
    expected = sum(claim.chance(profile) for claim in judged)
    exact = sum(claim.chance(profile) == 0 for claim in judged)
    pilots = sum(claim.pilot for claim in judged)
    return (
        f"**{profile.capitalize()}**: {confirmed} of {len(judged)} judged claims are confirmed. Were there no effect behind any "
        f"of them, chance alone would confirm at most {expected:.2g} on average. Exact checks, which chance does not pass: "
        f"{exact}. Rules that a pilot has shaped: {pilots}."
    )


# ------------------------------------------------------------------------------- against the published full runs


def _changes(board: Board) -> list[str]:
    """What this code, this ledger and this quick run say beside the published full runs."""
    published = {c: result for (c, p), result in board.results.items() if p == "full" and result}
    if not published:
        return [f"{NOT_PUBLISHED}: no chapter has a full run yet, so that there is nothing to compare with."]
    rows = [
        (
            chapter,
            NOT_PUBLISHED if result is None else result["provenance"]["date"][:10],
            "" if result is None else result["provenance"]["device_name"],
            "" if result is None else STALE if stale(result, board.now[chapter]) else "as it stands now",
        )
        for chapter in dict.fromkeys(claim.chapter for claim in board.claims.values())
        for result in (board.results[chapter, "full"],)
    ]
    return [
        Table(("Chapter", "Full run", "On", "Code and sizes"), rows).markdown(),
        _differ(board, published),
        *_since(board, published),
    ]


def _differ(board: Board, published: Mapping[str, dict]) -> str:
    """The claims on which quick and full disagree."""
    rows = []
    for claim in board.claims.values():
        quick, full = (board.entry(claim, profile) for profile in PROFILES)
        if quick and full and quick["verdict"] != full["verdict"]:
            rows.append((f"{claim.id} {claim.statement}", *(board.word(claim, p) for p in PROFILES)))
    if not rows:
        return "No claim that both profiles have measured has different verdicts in them."
    return f"Verdicts that differ between quick and full:\n\n{Table(('Claim', 'Quick', 'Full (GPU)'), rows).markdown()}"


def _since(board: Board, published: Mapping[str, dict]) -> Iterator[str]:
    """What the ledger and today's rules say that the full runs did not know, a paragraph each, where there is any."""
    mine = [claim for claim in board.claims.values() if claim.chapter in published]
    added = [claim.id for claim in mine if board.entry(claim, "full") is None]
    gone = [e["id"] for result in published.values() for e in result["claims"] if e["id"] not in board.claims]
    other = [claim.id for claim in mine if board.outdated(claim, "full")]
    lines = [
        f"- {claim.id}: {markdown(change)}"
        for claim in mine
        for change in claim.changed
        if _day(change) >= published[claim.chapter]["provenance"]["date"][:10]
    ]
    if added:
        yield f"In the ledger, and not in their chapter's full run: {', '.join(added)}."
    if gone:
        yield f"In a full run, and no longer in the ledger: {', '.join(gone)}."
    if other:
        yield f"Today's rules would give another verdict on what the full run measured: {', '.join(other)}."
    if lines:
        yield "Changes that the ledger dates to the day of the full run or later:\n\n" + "\n".join(lines)
    if not (added or gone or other or lines):
        yield "The ledger has not changed since for the chapters that have a full run."


def _day(change: str) -> str:
    """The date that a line of ``changed`` begins with; one without a date counts as new."""
    found = re.search(r"\d{4}-\d{2}-\d{2}", change)
    return found[0] if found else "9999"


# ----------------------------------------------------------------------------------------------------------- a claim


def _card(board: Board, claim: Claim) -> str:
    """A claim in plain sight: statement, the paper's figure, both profiles with their scope; the rest folded away."""
    lines = [f"- Paper: {markdown(_figure(claim))}"]
    for profile, title in (("quick", "Quick"), ("full", "Full (GPU)")):
        entry = board.entry(claim, profile)
        text = f"- {title}: {markdown(board.cell(claim, profile))}."
        if entry is not None:
            reason = "" if entry["verdict"] == CONFIRMED else f" Reason: {markdown(entry['note'])}."
            text += f"{reason} Scope: {markdown(entry['scope'])}"
        lines.append(text)
    return "\n".join((f"**{claim.id}** {markdown(claim.statement)}", "", *lines, "", _details(claim)))


def _details(claim: Claim) -> str:
    """Everything that decides about a claim, folded away under its id."""
    names = {part for profile in PROFILES for part in claim.measures if part in claim.describe(profile)}
    lines = [
        f"Source: {markdown(claim.source)}{'; the book’s own question' if claim.ours else ''}",
        f"Owner chapter: {claim.chapter}",
        f"Measured: {markdown(claim.metric)}",
        *(f"`{name}`: {markdown(label)}" for name, label in claim.measures.items() if name in names),
        *(f"Confirmed in {p} if {claim.describe(p)}" for p in PROFILES if p not in claim.out_of_reach),
        *(
            f"May be out of reach in {p}: {markdown(reason)}; if measured, confirmed if {claim.describe(p)}"
            for p, reason in claim.out_of_reach.items()
        ),
        f"Why this rule: {markdown(claim.why)}" if claim.why else "",
        "A pilot in the notes shaped this rule; seeds differ from the pilot's" if claim.pilot else "",
        *(f"Changed: {markdown(change)}" for change in claim.changed),
        *(f"Scope of {p}: {markdown(claim.scope[p])}" for p in PROFILES),
        f"Sentences of the popular article: {', '.join(claim.article)}" if claim.article else "",
    ]
    body = "\n".join(f"- {line}" for line in lines if line)
    return f"````{{dropdown}} {claim.id}: rule, sizes, scope\n{body}\n````"


def _figure(claim: Claim) -> str:
    return claim.figure if claim.mark == "none" else f"{claim.figure} [{claim.mark}]"


def _order(claim: Claim) -> tuple:
    """Papers in order, in each its claims by number, then the book's own."""
    letter, number, suffix = re.fullmatch(r".*-([A-Z])(\d+)(b?)", claim.id).groups()
    return claim.ours, claim.paper or 9, letter, int(number), suffix


def _title(number: int) -> str:
    name = next(title for paper, title in CHAPTERS.values() if paper == number)
    return f"Paper {number}: {name}" if number else name
