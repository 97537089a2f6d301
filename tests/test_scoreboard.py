"""The scoreboard shows every claim, measured or not, from ledger and result files alone, as Markdown that parses."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
from markdown_it import MarkdownIt

from lib import claims, results, scoreboard
from lib.claims import Measurement
from lib.ledger import parse_claim
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
    front = scoreboard.verdicts_markdown(tmp_path)
    assert (
        front
        == f"{len(LEDGER)} claims in the ledger. *Quick*: not yet measured. *Full*: GPU run not yet published.\n"
    )


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
    counted, front = tables(scoreboard.verdicts_markdown(tmp_path))
    assert counted[1][:2] == ["✓ confirmed", "1"]  # no full run, so that there is nothing behind a stroke
    assert counted[-1][:2] == ["… not yet measured", "13"]
    assert front[1] == [f"P1-C1 {LEDGER['P1-C1'].statement}", "✓ confirmed", "not yet measured"]
    assert f"*Quick*: 1 judged, {len(LEDGER) - 1} not yet measured." in scoreboard.verdicts_markdown(tmp_path)


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
    admitted = sum("quick" in claim.out_of_reach for claim in LEDGER.values())
    assert text.count("May be out of reach in quick") == admitted > 0


@pytest.mark.parametrize(
    "text", ["a | b", "d*/2 * h*", "<b>[x](y) #1 $5 `c` {name}`x` a_b_ ~~c~~ \\", "two\nlines"]
)
def test_no_text_of_the_ledger_is_taken_for_markup(text):
    (table,) = tables(Table(("title", "text"), [("row", text)]).markdown())
    assert table[1] == ["row", " ".join(text.split())]


# ------------------------------------------------------------------- sections, and what changed since the full runs


@pytest.fixture
def made_up(monkeypatch):
    """P1-C1 and P1-C2 of one chapter, P2-C1 of another, and questions of the book's own in both and in a third."""
    owners = {"P1-C1": "two-neurons", "P1-C2": "two-neurons", "P2-C1": "free-energy", "X-A1": "free-energy",
              "X-C1": "one-population", "X-C2": "one-population", "P1-X1": "two-neurons"}  # fmt: skip
    made = {}
    for name, chapter in owners.items():
        plain = {
            "source": "s",
            "figure": "none available",
            "mark": "none",
            "metric": "m",
            "unit": "",
            "pilot": False,
        }
        rule = {"measure": "gap", "above": 0.0, "chance": 0.5 if name == "P1-C2" else 0.025}
        scope = {"quick": "small", "full": "large"}
        about = {
            "id": name,
            "chapter": chapter,
            "statement": f"Statement {name}.",
            "measures": {"gap": "the gap"},
        }
        made[name] = parse_claim(plain | about | {"rule": rule, "scope": scope})
    for where in ("lib.scoreboard.ledger", "lib.results.ledger", "lib.claims._ledger"):
        monkeypatch.setattr(where, lambda: made)
    monkeypatch.setattr(scoreboard, "digest_now", lambda *_: "abc")
    return made


def run(root, ledger, profile, chapter, date="2026-11-20", **values):
    """Save a chapter's run with one number a claim (``P1_C1=1.0``), dated."""
    verdicts = []
    for name, value in values.items():
        found = Measurement("gap", "c", value, value - 0.1, value + 0.1, 5, 5)
        verdicts.append(claims.judge(name.replace("_", "-"), profile, [found], ledger=ledger))
    file = results.save(chapter, profile, 0, verdicts, root=root, digest="abc")
    document = json.loads(file.read_text(encoding="utf-8"))
    document["provenance"]["date"] = f"{date}T10:00:00+00:00"
    file.write_text(json.dumps(document), encoding="utf-8")


def part(text, title):
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def test_questions_of_the_books_own_have_a_section_whatever_their_chapter(tmp_path, made_up):
    text = scoreboard.scoreboard_markdown(tmp_path)
    assert re.findall(r"^## (.*)$", text, flags=re.MULTILINE) == [
        "What changed since the last published full run",
        "Paper 1: Symmetry-aware posteriors",
        "Paper 2: Free energy of deep ReLU networks",
        "The book's own questions",
    ]
    ours = re.findall(r"^\*\*(\S+)\*\*", part(text, "The book's own questions"), flags=re.MULTILINE)
    assert ours == ["P1-X1", "X-A1", "X-C1", "X-C2"]
    (counts,) = tables(text)
    assert counts[0] == ["Verdict", "P1", "P2", "The book's own questions", "All"]
    assert counts[-1][1:] == ["2/2", "1/1", "4/4", "7/7"]


def test_a_section_counts_its_verdicts_and_what_chance_would_confirm(tmp_path, made_up):
    run(tmp_path, made_up, "quick", "two-neurons", P1_C1=1.0, P1_C2=-1.0)
    run(tmp_path, made_up, "quick", "one-population", X_C1=0.05)
    text = scoreboard.scoreboard_markdown(tmp_path)
    first = part(text, "Paper 1: Symmetry-aware posteriors")
    assert "*Quick*: 1 confirmed, 1 not confirmed; chance alone would confirm at most 0.53." in first
    assert "*Full*: GPU run not yet published." in first
    assert "*Quick*: not yet measured." in part(text, "Paper 2: Free energy of deep ReLU networks")
    assert "*Quick*: 1 unresolved, 3 not yet measured; chance" in part(text, "The book's own questions")


def test_without_a_full_run_nothing_is_compared(tmp_path, made_up):
    run(tmp_path, made_up, "quick", "two-neurons", P1_C1=1.0)
    changed = part(scoreboard.scoreboard_markdown(tmp_path), "What changed since the last published full run")
    assert changed.strip().startswith("GPU run not yet published")
    assert "|" not in changed


def test_a_full_run_is_compared_with_quick_ledger_and_code(tmp_path, made_up, monkeypatch):
    run(tmp_path, made_up, "quick", "two-neurons", P1_C1=1.0, P1_C2=-1.0)
    run(tmp_path, made_up, "full", "two-neurons", P1_C1=-1.0, P1_C2=-1.0)
    run(tmp_path, made_up, "full", "free-energy", date="2026-11-25", P2_C1=1.0)
    title = "What changed since the last published full run"
    changed = part(scoreboard.scoreboard_markdown(tmp_path), title)
    runs, differ = tables(changed)
    assert [row[:2] for row in runs[1:]] == [
        ["two-neurons", "2026-11-20"],
        ["free-energy", "2026-11-25"],
        ["one-population", "GPU run not yet published"],
    ]
    assert [row[3] for row in runs[1:]] == ["as it stands now", "as it stands now", ""]
    assert differ[1:] == [["P1-C1 Statement P1-C1.", "✓ confirmed", "✗ not confirmed"]]
    assert "In the ledger, and not in their chapter's full run: P1-X1, X-A1." in changed

    monkeypatch.setattr(
        scoreboard, "digest_now", lambda chapter, *_: "new" if chapter == "free-energy" else "abc"
    )
    runs, _ = tables(part(scoreboard.scoreboard_markdown(tmp_path), title))
    assert [row[3] for row in runs[1:]] == ["as it stands now", results.STALE, ""]


def test_changes_of_the_ledger_count_from_the_day_of_the_full_run(tmp_path, made_up):
    lines = ("2026-11-19: before it.", "2026-11-20: the same day, a margin named.", "without a date")
    made_up["P1-C1"] = dataclasses.replace(made_up["P1-C1"], changed=lines)
    made_up["P2-C1"] = dataclasses.replace(
        made_up["P2-C1"], changed=("2026-11-26: no full run of its chapter.",)
    )
    run(tmp_path, made_up, "full", "two-neurons", P1_C1=1.0, P1_C2=1.0, P1_X1=1.0)
    changed = part(scoreboard.scoreboard_markdown(tmp_path), "What changed since the last published full run")
    assert re.findall(r"^- (.*)$", changed, flags=re.MULTILINE) == [f"P1-C1: {line}" for line in lines[1:]]
    made_up["P1-C1"] = dataclasses.replace(made_up["P1-C1"], changed=lines[:1])
    changed = part(scoreboard.scoreboard_markdown(tmp_path), "What changed since the last published full run")
    assert "The ledger has not changed since" in changed
    assert "No claim that both profiles have measured has different verdicts" in changed


def test_claims_that_left_the_ledger_and_rules_that_would_judge_otherwise_are_named(tmp_path, made_up):
    run(tmp_path, made_up, "full", "two-neurons", P1_C1=1.0, P1_C2=1.0, P1_X1=1.0)
    del made_up["P1-C2"]
    rule = dataclasses.replace(
        made_up["P1-C1"].rule, region=dataclasses.replace(made_up["P1-C1"].rule.region, ends=(5.0,))
    )
    made_up["P1-C1"] = dataclasses.replace(made_up["P1-C1"], rule=rule)
    changed = part(scoreboard.scoreboard_markdown(tmp_path), "What changed since the last published full run")
    assert "In a full run, and no longer in the ledger: P1-C2." in changed
    assert "Today's rules would give another verdict on what the full run measured: P1-C1." in changed
