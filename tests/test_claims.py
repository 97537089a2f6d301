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
    | {f"X-C{i}" for i in range(1, 13)}
    | {"P1-C5b", "P5-C3b", "P5-X1", "X-F1", "X-F2", "X-G1", "X-U1", "X-M1"}
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


# ------------------------------------------------------------------------------------- by hand: chapter 1, and directions


def rows(measure, values, n, seeds=1, spread=0.0):
    """Measurements of one name in numbered cells, or in the named cells of a dict."""
    named = values if isinstance(values, dict) else {f"cell {i}": x for i, x in enumerate(values)}
    return [Measurement(measure, c, x, x - spread, x + spread, n, seeds) for c, x in named.items()]


def symmetry_run(change=3e-15, broken=0.4, seeds=3):
    names = ["two-neuron ReLU", "digits ReLU MLP", "grouped convolution", "batch norm, eps 0"]
    names += ["tanh (permutation only)", "SiLU (permutation only)"]
    run = rows("invariance", dict.fromkeys(names, 1e-15) | {"grouped convolution": change}, 20, seeds)
    return run + rows("broken_scaling", {"tanh": broken, "SiLU": 0.7}, 20, seeds)


def toy_run(halved=0.5, extra_modes=0.0, scaled=0.8, n=5_000, spread=0.03):
    run = rows("area_halved", [halved] * 6, n, spread=spread)
    run += rows("mode_orbits", [extra_modes] * 6, n)
    return run + rows("area_after_scaling", [scaled] * 6, n, spread=spread)


def mass_run(spread=1e-12, violations=0, smallest=1e-3, dead=1e-17):
    run = rows("optimum_spread", [spread], 60) + rows("convexity_violations", [violations], 10_000)
    return run + rows("smallest_eigenvalue", [smallest], 10) + rows("boundary", [dead], 10)


@pytest.mark.parametrize(
    ("claim_id", "run", "expected"),
    [
        ("P1-C1", symmetry_run(), CONFIRMED),
        ("P1-C1", symmetry_run(change=1e-6), NOT_CONFIRMED),
        ("P1-C1", symmetry_run(broken=1e-12), NOT_CONFIRMED),  # a control that does not break
        ("P1-C1", symmetry_run(seeds=1), UNRESOLVED),
        ("P1-C2", toy_run(), CONFIRMED),
        ("P1-C2", toy_run(halved=0.9), NOT_CONFIRMED),
        ("P1-C2", toy_run(extra_modes=1.0), NOT_CONFIRMED),
        ("P1-C2", toy_run(scaled=1.1), NOT_CONFIRMED),
        ("P1-C2", toy_run(scaled=0.99), UNRESOLVED),
        ("P1-C2", toy_run(spread=0.3), UNRESOLVED),
        ("P1-C2", toy_run(n=1_900), UNRESOLVED),
        ("P1-C4", mass_run(), CONFIRMED),
        ("P1-C4", mass_run(spread=1e-6), NOT_CONFIRMED),
        ("P1-C4", mass_run(violations=1), NOT_CONFIRMED),
        ("P1-C4", mass_run(smallest=1e-14), NOT_CONFIRMED),
        ("P1-C4", mass_run(dead=1e-2), NOT_CONFIRMED),  # a check that cannot see the non-strict case
    ],
)
def test_the_rules_of_chapter_one_on_measurements_written_by_hand(claim_id, run, expected):
    assert claims.judge(claim_id, "quick", run).verdict == expected


def test_in_full_the_symmetry_claim_asks_for_trained_networks_in_float32_too():
    trained = rows("invariance_float32", {"digits ReLU MLP": 2e-6}, 20, 3)
    assert claims.judge("P1-C1", "full", symmetry_run()).verdict == UNRESOLVED
    assert claims.judge("P1-C1", "full", symmetry_run() + trained).verdict == CONFIRMED


def test_four_cells_of_five_decide_the_toy_and_small_cells_do_not_count():
    small = [dataclasses.replace(m, n=50) if m.cell in ("cell 0", "cell 1") else m for m in toy_run()]
    assert claims.judge("P1-C2", "quick", small).verdict == CONFIRMED
    one_off = [dataclasses.replace(m, value=2, low=2, high=2) if m.cell == "cell 0" else m for m in toy_run()]
    assert claims.judge("P1-C2", "quick", one_off).verdict == CONFIRMED
    two_off = [
        dataclasses.replace(m, value=2, low=2, high=2) if m.cell in ("cell 0", "cell 1") else m
        for m in toy_run()
    ]
    assert claims.judge("P1-C2", "quick", two_off).verdict == NOT_CONFIRMED


def test_a_measure_points_the_way_its_name_says():
    """Gains are asked to be above, gaps of what must agree below and of the controls above, differences about zero."""
    for claim in LEDGER.values():
        for condition in conditions(claim.rule, "full"):
            kind, name = condition.region.kind, condition.measure
            if name.endswith("_gain") or "_gain_" in name:
                assert kind == "above", (claim.id, name)
            if name.endswith(("_coverage", "_worsening", "_need", "_loss")):
                assert kind == "above", (claim.id, name)
            if name in {"invariant_gap", "method_gap", "chained_gap", "plain_gap", "decay_gap_unit"}:
                assert kind == "below", (claim.id, name)
            if name in {"sgd_gap", "own_norm_gap", "affine_gap", "decay_gap_sgd"}:
                assert kind == "above", (claim.id, name)
            if name.endswith(("_difference", "_bias")) and name != "matching_difference":
                assert kind == "inside", (claim.id, name)


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


def test_the_number_on_the_page_is_that_of_the_condition_that_decided():
    """P1-C2's first condition holds, its last does not: the sentence shows the last one's number."""
    sizes = {"n": 5_000, "seeds": 1}
    found = [
        Measurement(name, f"cell {i}", value, value, value, **sizes)
        for i in range(6)
        for name, value in (("area_halved", 0.5), ("mode_orbits", 0.0), ("area_after_scaling", 1.3))
    ]
    verdict = claims.judge("P1-C2", "quick", found)
    assert verdict.verdict == "not confirmed"
    assert verdict.value == 1.3
    assert "scaling removed" in verdict.label
    assert claims.judge("P1-C2", "quick", found[:0]).headline is not None


@pytest.mark.parametrize(
    ("value", "interval", "text"),
    [
        (-3.55e-16, (-2.54, 2.54), "0 (-2.54 to 2.54)"),
        (8.09e-16, (6.0e-16, 8.09e-16), "8.09e-16 (6e-16 to 8.09e-16)"),
        (1e-16, (None, None), "1e-16"),
    ],
)
def test_what_is_nothing_beside_its_interval_is_nought(value, interval, text):
    assert claims.number(value, interval) == text
