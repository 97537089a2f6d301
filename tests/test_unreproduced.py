"""The page of what was not reproduced: every claim in its group, with its number, its reason, and what would settle it."""

from __future__ import annotations

import dataclasses
import re

import pytest

from lib import claims, results, scoreboard, unreproduced
from lib.claims import Measurement
from lib.ledger import parse_claim

CHAPTER = "two-neurons"
BASE = {
    "chapter": CHAPTER, "statement": "It | holds.", "source": "Table 3", "figure": "about *0.3*", "mark": "recalled", "metric": "m",
    "unit": "nats", "pilot": False, "why": "Because of a margin.", "scope": {"quick": "Digits, ten.", "full": "MNIST, all."},
    "measures": {"gap": "the gap"}, "rule": {"measure": "gap", "above": 1.0, "n": {"quick": 10, "full": 500}},
}  # fmt: skip


def claim(name, **other):
    return parse_claim(BASE | {"id": name} | other)


@pytest.fixture
def ledger(monkeypatch):
    """A made-up ledger: P1-C1 to P1-C7 and a question of the book's own, all of one chapter."""
    entries = [claim(f"P1-C{i}") for i in range(1, 7)]
    changed = ["2026-11-22: before the first run, the cells were named."]
    entries.append(
        claim("P1-C7", out_of_reach={"quick": "It needs a GPU."}, changed=changed, article=["A1.1"])
    )
    entries.append(claim("X-C1"))
    made_up = {entry.id: entry for entry in entries}
    for name in ("lib.scoreboard.ledger", "lib.results.ledger", "lib.claims._ledger"):
        monkeypatch.setattr(name, lambda: made_up)
    monkeypatch.setattr(scoreboard, "digest_now", lambda *_: "abc")
    return made_up


def publish(root, ledger, profile, **measured):
    """Save a run: for each claim (C1 as ``C1=``), the value with its interval, or None where nothing was measured."""
    names = {"X" if name == "X" else name: f"P1-{name}" for name in measured} | {"X": "X-C1"}
    verdicts = []
    for name, found in measured.items():
        n = 1_000
        if found is not None and len(found) == 4:
            *found, n = found
        cells = [] if found is None else [Measurement("gap", "width 8", *found, n, 3)]
        verdicts.append(claims.judge(names[name], profile, cells, ledger=ledger))
    results.save(CHAPTER, profile, 0, verdicts, root=root, digest="abc")


def section(text, title):
    return text.split(f"## {title}")[1].split("\n## ")[0]


def cards(text):
    """Every claim's card under its id."""
    found = re.split(r"^\*\*(\S+)\*\* ", text, flags=re.MULTILINE)[1:]
    return dict(zip(found[::2], found[1::2], strict=True))


ABOVE, BELOW, ACROSS = (2.0, 1.5, 2.5), (0.5, 0.2, 0.8), (1.2, 0.6, 1.8)


def test_without_results_every_claim_of_a_paper_is_listed_as_not_measured(tmp_path, ledger):
    text = unreproduced.unreproduced_markdown(tmp_path)
    assert "7 of the 7 claims about the papers stand on this page" in text
    assert "GPU run not yet published" in text
    assert set(cards(section(text, "Not yet measured (7)"))) == set(ledger) - {"X-C1"}
    assert "It needs a GPU" in cards(text)["P1-C7"]


def test_each_claim_stands_in_the_group_of_its_verdict(tmp_path, ledger):
    publish(tmp_path, ledger, "quick", C1=ABOVE, C2=BELOW, C3=ACROSS, C4=BELOW, C5=ABOVE, C7=None, X=BELOW)
    publish(tmp_path, ledger, "full", C1=ABOVE, C4=ACROSS, C5=BELOW)
    text = unreproduced.unreproduced_markdown(tmp_path)
    assert set(cards(section(text, "Not confirmed (1)"))) == {"P1-C2"}
    assert set(cards(section(text, "Unresolved (2)"))) == {"P1-C3", "P1-C4"}  # C4 by its full run
    assert set(cards(section(text, "Confirmed in one profile alone (1)"))) == {"P1-C5"}
    assert set(cards(section(text, "Out of reach here (1)"))) == {"P1-C7"}
    assert set(cards(section(text, "Not yet measured (1)"))) == {"P1-C6"}
    assert "6 of the 7 claims" in text
    assert "X-C1" not in text
    assert "GPU run not yet published: what follows" not in text


def test_with_everything_confirmed_nothing_stands_there(tmp_path, ledger):
    everything = dict.fromkeys([f"C{i}" for i in range(1, 8)], ABOVE)
    publish(tmp_path, ledger, "quick", **everything)
    text = unreproduced.unreproduced_markdown(tmp_path)
    assert text.startswith("0 of the 7 claims")
    assert "##" not in text


def test_a_claim_that_is_not_confirmed_shows_paper_number_rule_and_reason(tmp_path, ledger):
    publish(tmp_path, ledger, "quick", C2=BELOW)
    card = cards(unreproduced.unreproduced_markdown(tmp_path))["P1-C2"]
    assert card.startswith("It \\| holds.")
    assert "- Paper (Table 3): about \\*0.3\\* \\[recalled\\]. Chapter: two-neurons." in card
    assert "- Quick: ✗ not confirmed. Scope: Digits, ten." in card
    assert "the gap (`gap`) = 0.5 (0.2 to 0.8) nats, n = 1,000, 3 seeds: above 1: no." in card
    assert "- Full (GPU): GPU run not yet published." in card
    assert "Other data in the two profiles: quick, digits; full, MNIST." in card
    assert (
        "No larger run of the same kind. The full run, on its own scope (MNIST, all): `gap` above 1 (n ≥ 500)."
        in card
    )
    assert "Why this rule: Because of a margin." in card


def test_an_unresolved_claim_says_how_much_narrower_its_interval_would_have_to_be(tmp_path, ledger):
    publish(tmp_path, ledger, "quick", C3=ACROSS)
    card = cards(unreproduced.unreproduced_markdown(tmp_path))["P1-C3"]
    assert "an interval 3 times narrower" in card  # 0.6 from the value to the end, 0.2 to the border
    assert "about 9 times as many independent units" in card


def test_a_value_on_its_border_is_settled_by_no_size(tmp_path, ledger):
    publish(tmp_path, ledger, "quick", C3=(1.0, 0.5, 1.5))
    assert "lies on its border as nearly as can be told" in unreproduced.unreproduced_markdown(tmp_path)


def test_too_few_are_told_the_least_size_and_not_a_narrower_interval(tmp_path, ledger):
    publish(tmp_path, ledger, "quick", C3=(*ACROSS, 4))
    card = cards(unreproduced.unreproduced_markdown(tmp_path))["P1-C3"]
    assert "n = 4 where the rule asks for 10" in card
    assert "It needs `gap` above 1 (n ≥ 10)." in card
    assert "narrower" not in card


def test_an_interval_without_an_end_asks_for_no_factor(tmp_path, ledger):
    publish(tmp_path, ledger, "quick", C3=(2.0, float("-inf"), 3.0))
    card = cards(unreproduced.unreproduced_markdown(tmp_path))["P1-C3"]
    assert "narrower" not in card
    assert "2 (-∞ to 3)" in card


def test_what_is_out_of_reach_gives_the_ledgers_reason_changes_and_article(tmp_path, ledger):
    publish(tmp_path, ledger, "quick", C7=None)
    card = cards(unreproduced.unreproduced_markdown(tmp_path))["P1-C7"]
    assert "– out of reach here, as the ledger said beforehand: It needs a GPU." in card
    assert "Changed: 2026-11-22: before the first run, the cells were named." in card
    assert "A popular article says it too: sentence A1.1" in card
    publish(tmp_path, ledger, "full", C7=ACROSS)
    assert "Unresolved (1)" in unreproduced.unreproduced_markdown(tmp_path)


def test_a_stale_full_run_and_an_earlier_rule_are_stamped(tmp_path, ledger, monkeypatch):
    publish(tmp_path, ledger, "full", C2=BELOW)
    monkeypatch.setattr(scoreboard, "digest_now", lambda *_: "other")
    assert "✗ not confirmed (STALE)" in cards(unreproduced.unreproduced_markdown(tmp_path))["P1-C2"]
    monkeypatch.setattr(scoreboard, "digest_now", lambda *_: "abc")
    milder = ledger | {"P1-C2": claim("P1-C2", rule=BASE["rule"] | {"above": 0.1})}
    monkeypatch.setattr("lib.claims._ledger", lambda: milder)
    card = cards(unreproduced.unreproduced_markdown(tmp_path))["P1-C2"]
    assert "✗ not confirmed (earlier rule)" in card
    assert "As it was judged then: gap above 1: no." in card


@pytest.mark.parametrize(
    ("scope", "names"),
    [("MNIST-5k, dense.", ("MNIST-5k",)), ("MNIST and Fashion-MNIST", ("Fashion-MNIST", "MNIST")), ("Digits 0 to 7", ("digits",)),
     ("The free energy of T1.", ()), ("CIFAR-10 VGG-16", ("CIFAR-10",)), ("Concrete, energy and kin8nm (UCI)", ("UCI", "Concrete", "energy", "kin8nm"))],
)  # fmt: skip
def test_data_are_named_by_their_whole_names(scope, names):
    assert unreproduced.data_named(scope) == names


def test_the_books_own_ledger_and_links_fit_the_page(tmp_path):
    (tmp_path / "chapters").mkdir()
    (tmp_path / "chapters" / "01-two-neurons.ipynb").write_text("{}")
    text = unreproduced.unreproduced_markdown(tmp_path)
    stated = [entry for entry in claims.ledger().values() if not entry.ours]
    assert set(cards(text)) == {entry.id for entry in stated}
    assert "{doc}`two-neurons </chapters/01-two-neurons>`" in text
    assert text.count("```{dropdown}") == len(stated)


def test_a_group_without_a_verdict_is_none(tmp_path, ledger):
    publish(tmp_path, ledger, "quick", C1=ABOVE)
    board = scoreboard.Board(tmp_path)
    assert unreproduced.group(board, ledger["P1-C1"]) is None
    assert unreproduced.group(board, dataclasses.replace(ledger["P1-C1"], id="P1-C9")) == results.NOT_MEASURED


def test_whose_a_sentence_is_stands_beside_it(tmp_path, ledger):
    ledger["P1-C2"] = claim("P1-C2", source="Derived in the notes")
    ledger["P1-C3"] = claim("P1-C3", source="Ours: a control")
    text = unreproduced.unreproduced_markdown(tmp_path)
    assert "5 sentences of the papers themselves, and 2 of this book's" in text
    lines = [line for line in text.splitlines() if line.startswith("| P1-")]
    assert ["ours" in line for line in lines] == [False, True, True, False, False, False, False]
    assert "The book’s sentence about the paper (Ours: a control)" in text
