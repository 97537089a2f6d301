"""The scoreboard shows every claim, measured or not, from ledger and result files alone, as Markdown that parses."""

from __future__ import annotations

import dataclasses
import re

import pytest
from markdown_it import MarkdownIt

from lib import claims, results, scoreboard
from lib.claims import Measurement
from lib.table import Table

LEDGER = claims.ledger()


def tables(text):
    """Every pipe table of a page, as lists of rows of what a reader sees (the fences around them opened)."""
    opened = re.sub(r"^````.*$", "", text, flags=re.MULTILINE)
    found, row = [], None
    tokens = MarkdownIt("commonmark").enable("table").parse(opened)
    for token, inside in zip(tokens, [*tokens[1:], None], strict=True):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            row = []
            found[-1].append(row)
        elif token.type in ("td_open", "th_open"):
            assert all(child.type in ("text", "text_special") for child in inside.children), inside.content
            row.append("".join(child.content for child in inside.children))
    return found


def cards(root):
    """What the scoreboard shows of each claim: statement, then the lines on paper, quick and full, markup undone."""
    text = scoreboard.scoreboard_markdown(root)
    pattern = r"^\*\*(\S+)\*\* (.*)\n\n- Paper: (.*)\n- Quick: (.*)\n- Full \(GPU\): (.*)$"
    found = re.findall(pattern, text, flags=re.MULTILINE)
    return {name: [re.sub(r"\\(\W|_)", r"\1", part) for part in parts] for name, *parts in found}


def publish(root, profile, value=0.0, digest="abc"):
    cells = [
        Measurement(measure, c, x, x, x, 20, 3)
        for measure, x in (("invariance", value), ("broken_scaling", 1.0))
        for c in sizes(measure).names
    ]
    cells.append(Measurement("invariance_float32", "trained", 1e-6, 1e-7, 1e-6, 20, 3))
    verdict = claims.judge("P1-C1", profile, cells)
    return results.save("two-neurons", profile, 0, [verdict], root=root, digest=digest)


def sizes(measure):
    parts = LEDGER["P1-C1"].rule.parts
    return next(part.sizes["quick"] for part in parts if part.measure == measure)


def test_with_no_results_every_claim_is_in_plain_sight_as_not_yet_measured(tmp_path):
    shown = cards(tmp_path)
    assert set(shown) == set(LEDGER)
    for claim_id, claim in LEDGER.items():
        figure = claim.figure if claim.mark == "none" else f"{claim.figure} [{claim.mark}]"
        assert shown[claim_id] == [claim.statement, figure, "not yet measured.", "not yet measured."]
    text = scoreboard.scoreboard_markdown(tmp_path)
    (counts,) = tables(text)
    assert counts[-1][-1] == f"{len(LEDGER)}/{len(LEDGER)}"
    assert {cell for row in counts[1:-1] for cell in row[1:]} == {"0/0"}
    assert text.count("no claim has been judged yet") == 2
    assert "72 of the 72 claims" in scoreboard.verdicts_markdown(tmp_path)


def test_claims_stand_in_the_order_of_their_numbers(tmp_path):
    first = list(cards(tmp_path))
    assert first[:7] == ["P1-C1", "P1-C2", "P1-C3", "P1-C4", "P1-C5", "P1-C5b", "P1-C6"]


def test_verdicts_are_symbol_and_word_and_counted_with_what_chance_would_give(tmp_path):
    publish(tmp_path, "quick")
    text = scoreboard.scoreboard_markdown(tmp_path)
    quick = cards(tmp_path)["P1-C1"][2]
    assert quick.startswith(
        "✓ confirmed: largest relative change of the outputs, float64 = 0. Scope: Six small networks"
    )
    (counts,) = tables(text)
    assert counts[1][:2] == ["✓ confirmed", "1/0"]
    assert counts[-1][:2] == ["… not yet measured", "13/14"]
    assert "1 of 1 judged claims are confirmed" in text
    assert "chance alone would confirm at most 0 on average" in text
    (front,) = tables(scoreboard.verdicts_markdown(tmp_path))
    assert front[1] == [f"P1-C1 {LEDGER['P1-C1'].statement}", "✓ confirmed", "not yet measured"]
    assert "71 of the 72 claims" in scoreboard.verdicts_markdown(tmp_path)


def test_a_stale_full_run_is_stamped_and_a_fresh_one_is_not(tmp_path, monkeypatch):
    publish(tmp_path, "full", value=1.0)
    monkeypatch.setattr(scoreboard, "digest_now", lambda *_: "abc")
    assert cards(tmp_path)["P1-C1"][3].startswith(
        "✗ not confirmed: largest relative change of the outputs, float64 = 1. Reason: invariance below 1e-09"
    )
    monkeypatch.setattr(scoreboard, "digest_now", lambda *_: "new")
    assert "STALE" in cards(tmp_path)["P1-C1"][3]
    assert "STALE" in scoreboard.verdicts_markdown(tmp_path)


def test_a_verdict_that_todays_rule_would_not_give_is_marked(tmp_path, monkeypatch):
    publish(tmp_path, "quick", value=0.5e-9)
    rule = LEDGER["P1-C1"].rule
    region = dataclasses.replace(rule.parts[0].region, ends=(1e-12,))
    parts = (dataclasses.replace(rule.parts[0], region=region), *rule.parts[1:])
    stricter = LEDGER | {
        "P1-C1": dataclasses.replace(LEDGER["P1-C1"], rule=dataclasses.replace(rule, parts=parts))
    }
    assert "earlier rule" not in scoreboard.scoreboard_markdown(tmp_path)
    monkeypatch.setattr("lib.claims._ledger", lambda: stricter)
    assert "judged under an earlier rule" in cards(tmp_path)["P1-C1"][2]
    assert "earlier rule" in scoreboard.verdicts_markdown(tmp_path)


def test_each_claim_unfolds_into_its_rule_and_scope(tmp_path):
    text = scoreboard.scoreboard_markdown(tmp_path)
    for claim_id, claim in LEDGER.items():
        assert text.count(f"````{{dropdown}} {claim_id}: rule, sizes, scope\n") == 1
        assert claim.describe("quick") in text
    assert text.count("May be out of reach in quick") == 4


@pytest.mark.parametrize(
    "text", ["a | b", "d*/2 * h*", "<b>[x](y) #1 $5 `c` {name}`x` a_b_ ~~c~~ \\", "two\nlines"]
)
def test_no_text_of_the_ledger_is_taken_for_markup(text):
    (table,) = tables(Table(("title", "text"), [("row", text)]).markdown())
    assert table[1] == ["row", " ".join(text.split())]
