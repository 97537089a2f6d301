"""Every claim of the ledger: complete, well formed, and judged rightly on made-up measurements of all four kinds."""

from __future__ import annotations

import dataclasses
import math
import re
from functools import cache

import pytest

from lib import claims
from lib.claims import CONFIRMED, NOT_CONFIRMED, OUT_OF_REACH, UNRESOLVED, Measurement
from lib.ledger import LEDGER as PATH
from lib.ledger import LedgerError, parse_claim
from lib.rules import PROFILES, Every, conditions, judge

LEDGER = claims.ledger()
PLANNED = (
    {f"P1-C{i}" for i in range(1, 14)}
    | {f"P2-C{i}" for i in range(1, 15)}
    | {f"P3-C{i}" for i in range(1, 13)}
    | {f"P4-C{i}" for i in range(1, 11)}
    | {f"P4-X{i}" for i in range(1, 5)}
    | {f"P5-C{i}" for i in range(1, 12)}
    | {"P1-C5b", "P5-C3b", "P5-X1", "X-F1", "X-G1", "X-U1", "X-M1"}
)
EVERY_CLAIM = pytest.mark.parametrize("claim_id", LEDGER)


# ------------------------------------------------------------------------------------- making measurements up


def interval(region, kind):
    """An interval inside the region, outside it, or across its border."""
    step = 1e-3 * max(abs(end) for end in region.ends) or 1e-3
    first, last = region.ends[0], region.ends[-1]
    if kind == UNRESOLVED:
        return first - step, first + step
    if region.kind == "inside":
        middle = (first + last) / 2
        return (middle, middle) if kind == CONFIRMED else (last + step, last + 2 * step)
    up = (region.kind == "above") == (kind == CONFIRMED)
    return (first + step, first + 2 * step) if up else (first - 2 * step, first - step)


def made_up(asked, profile, kinds, n=None, seeds=None):
    """Measurements of one name, cell by cell of the kinds given (the last one repeated), for its first condition."""
    measure = asked[0].measure
    sizes = [condition.sizes[profile] for condition in asked]
    names = next((size.names for size in sizes if size.names), ())
    count = max(*(size.cells for size in sizes), *(c.at_least or 1 for c in asked), 1)
    names = names or tuple(f"cell {i}" for i in range(count))
    cells = []
    for i, name in enumerate(names):
        condition, kind = kinds[min(i, len(kinds) - 1)]
        low, high = interval(condition.region, kind)
        enough = (max(size.n for size in sizes), max(size.seeds for size in sizes))
        cells.append(
            Measurement(
                measure,
                name,
                (low + high) / 2,
                low,
                high,
                enough[0] if n is None else n,
                enough[1] if seeds is None else seeds,
            )
        )
    return cells


def verdicts_of(asked, profile, cells):
    return {judge(condition, profile, cells)[0] for condition in asked}


def cells_for(asked, profile, kind):
    """Cells that bring every condition on one measure to the same verdict: searched among simple patterns."""
    kinds = [(condition, k) for condition in asked for k in (CONFIRMED, UNRESOLVED, NOT_CONFIRMED)]
    patterns = [[a] for a in kinds] + [[a, b] for a in kinds for b in kinds]
    for pattern in patterns:
        cells = made_up(asked, profile, pattern)
        if verdicts_of(asked, profile, cells) == {kind}:
            return cells
    raise AssertionError(f"no measurements bring {asked} to {kind}: its conditions contradict each other")


def by_measure(claim_id, profile):
    asked = {}
    for condition in conditions(LEDGER[claim_id].rule, profile):
        asked.setdefault(condition.measure, []).append(condition)
    return asked


@cache
def measurements_for(claim_id, profile, kind):
    return [
        cell for asked in by_measure(claim_id, profile).values() for cell in cells_for(asked, profile, kind)
    ]


# ------------------------------------------------------------------------------------- the four verdicts, claim by claim

KINDS = (CONFIRMED, NOT_CONFIRMED, UNRESOLVED)
SPOILS = (
    {"value": math.nan},
    {"low": math.nan},
    {"low": 1.0, "high": 0.0},
    {"low": -math.inf, "high": math.inf},
    {"n": 0},
    {"seeds": 0},
)


@EVERY_CLAIM
def test_satisfying_refuting_and_straddling_measurements_get_their_verdict_and_sentence(claim_id):
    for profile in PROFILES:
        for kind in KINDS:
            verdict = claims.judge(claim_id, profile, measurements_for(claim_id, profile, kind))
            assert verdict.verdict == kind
            assert verdict.interval[0] <= verdict.value <= verdict.interval[1]
            assert verdict.sentence.startswith(f"{claim_id} is **{kind}** in the {profile} profile: ")
            for part in (f"{verdict.value:.3g}", "n = ", "seed", LEDGER[claim_id].scope[profile]):
                assert part in verdict.sentence
            assert ("Reason: " in verdict.sentence) == (kind != CONFIRMED)
            inexact = LEDGER[claim_id].chance(profile) > 0
            assert ("not a size" in verdict.sentence) == (profile == "quick" and inexact)


@EVERY_CLAIM
def test_nothing_measured_is_out_of_reach_only_where_the_ledger_said_so(claim_id):
    for profile in PROFILES:
        admitted = LEDGER[claim_id].out_of_reach.get(profile)
        verdict = claims.judge(claim_id, profile, [])
        assert verdict.verdict == (OUT_OF_REACH if admitted else UNRESOLVED)
        assert verdict.note == admitted if admitted else "not measured" in verdict.note
        assert verdict.note in verdict.sentence
        assert math.isnan(verdict.value)


@EVERY_CLAIM
def test_ill_or_small_measurements_are_never_confirmed_nor_refuted(claim_id):
    for profile in PROFILES:
        for kind in (CONFIRMED, NOT_CONFIRMED):
            good = measurements_for(claim_id, profile, kind)
            for spoil in SPOILS:
                spoilt = [dataclasses.replace(m, **spoil) for m in good]
                assert claims.judge(claim_id, profile, spoilt).verdict == UNRESOLVED, spoil


@EVERY_CLAIM
def test_every_conjunct_counts(claim_id):
    """Of a rule 'all of these', each part alone can refuse the confirmation, by its number and by its absence."""
    rule = LEDGER[claim_id].rule
    parts = rule.parts if isinstance(rule, Every) else (rule,)
    for profile in PROFILES:
        good = measurements_for(claim_id, profile, CONFIRMED)
        for names in filter(None, ({c.measure for c in conditions(part, profile)} for part in parts)):
            without = [m for m in good if m.name not in names]
            assert claims.judge(claim_id, profile, without).verdict != CONFIRMED
            bad = [m for m in measurements_for(claim_id, profile, NOT_CONFIRMED) if m.name in names]
            assert claims.judge(claim_id, profile, without + bad).verdict == NOT_CONFIRMED


# ------------------------------------------------------------------------------------- the ledger itself


def test_every_claim_of_the_notes_stands_in_the_ledger():
    assert set(LEDGER) == PLANNED


def test_each_claim_has_its_owner_and_the_two_neuron_chapter_its_three():
    owned = {claim_id for claim_id, claim in LEDGER.items() if claim.chapter == "two-neurons"}
    assert owned == {"P1-C1", "P1-C2", "P1-C4"}
    for claim_id, claim in LEDGER.items():
        if claim_id.startswith("P"):
            assert claim.paper == int(claim_id[1])
    assert {claim_id for claim_id, claim in LEDGER.items() if claim.ours} == {
        claim_id for claim_id in PLANNED if "X" in claim_id
    }


def test_out_of_reach_is_admitted_only_where_the_plan_allows_it():
    admitted = {(claim_id, p) for claim_id, claim in LEDGER.items() for p in claim.out_of_reach}
    assert admitted == {(claim_id, "quick") for claim_id in ("P2-C13", "P3-C2", "P3-C6", "P4-C9")}


def test_no_number_stands_as_the_papers_where_the_notes_give_none():
    for claim in LEDGER.values():
        assert (claim.mark == "none") == (claim.figure == "none available")
    papers_without_numbers = [c for c in LEDGER.values() if c.paper in (2, 4) and c.mark == "verified"]
    assert not [c.id for c in papers_without_numbers if re.search(r"\d\.\d", c.figure)]
    recalled = {"P3-C2", "P3-C6", "P3-C8"}  # the matrix-Gaussian paper's own columns were not seen again
    assert all(LEDGER[claim_id].mark == "recalled" for claim_id in recalled)


def test_the_rules_say_something_and_say_why():
    for claim in LEDGER.values():
        assert claim.statement.endswith(".")
        assert claim.metric.endswith(".")
        assert claim.why
        assert all(re.fullmatch(r"A[1-5]\.\d", sentence) for sentence in claim.article)
        assert all(re.match(r"20\d\d-\d\d-\d\d: .+", change) for change in claim.changed)
        used = {c.measure for p in PROFILES for c in conditions(claim.rule, p)}
        assert set(claim.measures) == used
        assert all(0 <= claim.chance(profile) <= 0.05 for profile in PROFILES)


def test_wherever_pairs_or_triples_share_networks_at_least_ten_networks_are_asked():
    for claim in (claim for claim in LEDGER.values() if claim.paper == 5):
        for profile in PROFILES:
            for condition in conditions(claim.rule, profile):
                assert condition.sizes[profile].n >= 10


def test_the_settings_of_the_two_neuron_chapter_are_fixed_beforehand():
    assert claims.setting("two-neurons", "prior_sigma") > 0
    assert 1 < claims.setting("two-neurons", "rhat_max") < 1.1
    assert claims.setting("two-neurons", "ess_min") >= 100
    with pytest.raises(
        KeyError, match=r"no setting two-neurons\.temperature; it has two-neurons\.prior_sigma"
    ):
        claims.setting("two-neurons", "temperature")


def test_unknown_claims_and_profiles_are_refused_by_name():
    with pytest.raises(KeyError, match="no claim 'P9-C1'"):
        claims.judge("P9-C1", "quick")
    with pytest.raises(KeyError, match="no profile 'large'"):
        claims.judge("P1-C1", "large")


def test_measurements_of_other_names_are_ignored_and_a_ledger_can_be_given():
    other = Measurement("something else", "a", 1.0, 1.0, 1.0, 99, 99)
    good = measurements_for("P1-C1", "quick", CONFIRMED)
    assert claims.judge("P1-C1", "quick", [*good, other]) == claims.judge("P1-C1", "quick", good)
    changed = {"P1-C1": dataclasses.replace(LEDGER["P1-C1"], rule=LEDGER["P1-C2"].rule)}
    changed["P1-C1"] = dataclasses.replace(changed["P1-C1"], measures=LEDGER["P1-C2"].measures)
    assert claims.judge("P1-C1", "quick", good, ledger=changed).verdict == UNRESOLVED


ENTRY = {
    "id": "P1-C1",
    "chapter": "two-neurons",
    "statement": "It holds.",
    "source": "Figure 1",
    "figure": "1",
    "mark": "verified",
    "metric": "A number.",
    "unit": "",
    "pilot": False,
    "scope": {"quick": "Small.", "full": "Large."},
    "measures": {"x": "a number"},
    "rule": {"measure": "x", "above": 0.0},
}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"id": "C1"}, "the id is none of"),
        ({"chapter": "three-neurons"}, "chapter 'three-neurons' is none of"),
        ({"mark": "guessed"}, "mark 'guessed' is none of"),
        ({"mark": "none"}, "only 'none available'"),
        ({"scope": {"quick": "Small."}}, "'scope' says"),
        ({"measures": {}}, r"does not describe \['x'\]"),
        ({"p_value": 0.05}, r"unknown keys \['p_value'\]"),
        ({"out_of_reach": {"quick": ""}}, "'out_of_reach' gives a reason"),
        ({"rule": {"measure": "x", "above": 0.0, "profiles": ["full"]}}, "asks for nothing in profile quick"),
    ],
)
def test_a_malformed_entry_is_refused_with_a_sentence(change, sentence):
    assert parse_claim(ENTRY).statement == "It holds."
    with pytest.raises(LedgerError, match=sentence):
        parse_claim({**ENTRY, **change})


def test_a_claim_that_stands_twice_or_is_malformed_is_named(tmp_path):
    text = 'id = "P1-C1"\nchapter = "nowhere"\n'
    (tmp_path / "one.toml").write_text(f"[[claim]]\n{text}")
    with pytest.raises(LedgerError, match="claim P1-C1: "):
        claims.ledger(tmp_path / "one.toml")
    source = PATH.read_text(encoding="utf-8")
    entry = source[source.index("[[claim]]") : source.index("[[claim]]", source.index("[[claim]]") + 9)]
    (tmp_path / "two.toml").write_text(entry + entry, encoding="utf-8")
    with pytest.raises(LedgerError, match="P1-C1 stands twice"):
        claims.ledger(tmp_path / "two.toml")
