"""Rules are total, obey three-valued logic, and never confirm what was not measured."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.ledger import LedgerError, parse_rule
from lib.rules import CONFIRMED, NOT_CONFIRMED, UNRESOLVED, Measurement, Region, chance, describe, judge

VERDICTS = {CONFIRMED, NOT_CONFIRMED, UNRESOLVED}
BOTH = {"measure": "x", "above": 0.0}


def cell(low, high, name="a", measure="x", n=100, seeds=10, value=None):
    finite = [end for end in (low, high) if math.isfinite(end)] or [0.0]
    return Measurement(
        measure, name, sum(finite) / len(finite) if value is None else value, low, high, n, seeds
    )


def verdict(table, measurements, profile="quick"):
    return judge(parse_rule(table), profile, measurements)[0]


@pytest.mark.parametrize(
    ("region", "low", "high", "expected"),
    [
        ({"above": 1.0}, 1.1, 2.0, CONFIRMED),
        ({"above": 1.0}, 1.0, 2.0, UNRESOLVED),  # the end itself is not above
        ({"above": 1.0}, 0.0, 1.0, NOT_CONFIRMED),
        ({"above": 1.0}, 0.5, 1.5, UNRESOLVED),
        ({"above": 1.0}, 1.5, math.inf, CONFIRMED),
        ({"above": 1.0}, -math.inf, math.inf, UNRESOLVED),
        ({"below": 1.0}, -1.0, 0.9, CONFIRMED),
        ({"below": 1.0}, 1.0, 1.0, NOT_CONFIRMED),
        ({"below": 1.0}, -math.inf, 0.9, CONFIRMED),
        ({"below": 1.0}, 0.9, 1.0, UNRESOLVED),
        ({"inside": [-1.0, 1.0]}, -1.0, 1.0, CONFIRMED),
        ({"inside": [-1.0, 1.0]}, -1.1, 1.0, UNRESOLVED),
        ({"inside": [-1.0, 1.0]}, -5.0, 5.0, UNRESOLVED),  # a wide interval is no equivalence
        ({"inside": [-1.0, 1.0]}, 1.0, 2.0, UNRESOLVED),
        ({"inside": [-1.0, 1.0]}, 1.1, 2.0, NOT_CONFIRMED),
        ({"inside": [-1.0, 1.0]}, -3.0, -1.1, NOT_CONFIRMED),
    ],
)
def test_an_interval_inside_the_region_confirms_and_one_outside_refutes(region, low, high, expected):
    assert verdict({"measure": "x", **region}, [cell(low, high)]) == expected


@pytest.mark.parametrize(
    ("measurement", "reason"),
    [
        (cell(1, 2, value=math.nan), "not a finite number"),
        (cell(1, 2, value=math.inf), "not a finite number"),
        (Measurement("x", "a", None, 1.0, 2.0, 9, 9), "not a finite number"),
        (cell(math.nan, 2, value=1.5), "interval is not a number"),
        (cell(2, 1), "inverted"),
        (cell(1, 2, value=3.0), "does not hold its value"),
        (cell(1, 2, n=9), "n = 9"),
        (cell(1, 2, seeds=2), "2 seeds"),
    ],
)
def test_an_unfit_measurement_is_unresolved_and_says_why(measurement, reason):
    table = {"measure": "x", "above": 0.0, "n": 10, "seeds": 3}
    assert verdict(table, [cell(1, 2)]) == CONFIRMED
    found, findings = judge(parse_rule(table), "quick", [measurement])
    assert found == UNRESOLVED
    assert reason in findings[0].reason


def test_nothing_measured_too_few_cells_and_cells_measured_twice_are_unresolved():
    assert verdict(BOTH, []) == UNRESOLVED
    assert verdict(BOTH, [cell(1, 2, measure="y")]) == UNRESOLVED
    assert verdict({**BOTH, "cells": 2}, [cell(1, 2)]) == UNRESOLVED
    assert verdict({**BOTH, "cells": ["a", "b"]}, [cell(1, 2), cell(1, 2, "c")]) == UNRESOLVED
    assert verdict(BOTH, [cell(1, 2), cell(3, 4)]) == UNRESOLVED
    assert verdict({**BOTH, "cells": ["a", "b"]}, [cell(1, 2), cell(1, 2, "b")]) == CONFIRMED


def test_small_cells_are_left_out_only_where_the_rule_says_so_and_enough_remain():
    large = [cell(1, 2, str(i)) for i in range(4)]
    small = [cell(-2, -1, "small", n=1), cell(-2, -1, "few seeds", seeds=1)]
    table = {**BOTH, "cells": 6, "n": 10, "seeds": 2}
    assert verdict(table, large + small) == UNRESOLVED
    assert verdict({**table, "counting": 4}, large + small) == CONFIRMED
    assert verdict({**table, "counting": 5}, large + small) == UNRESOLVED


def test_every_measured_cell_counts_not_only_the_named_ones():
    cells = [cell(1, 2, "a"), cell(-2, -1, "an extra cell")]
    assert verdict({**BOTH, "cells": ["a"]}, cells) == NOT_CONFIRMED


@given(
    kinds=st.lists(st.sampled_from([(1, 2), (-2, -1), (-1, 1)]), min_size=1, max_size=7),
    over=st.one_of(
        st.just("all"),
        st.builds(lambda k: {"at_least": k}, st.integers(1, 7)),
        st.builds(lambda s: {"share": s}, st.sampled_from([0.2, 0.5, 0.8, 1.0])),
    ),
)
def test_counting_cells_is_strong_kleene_logic(kinds, over):
    """Unresolved exactly where some ways of resolving the unresolved cells would confirm and others would not."""
    n = len(kinds)
    if over == "all":
        needed = n
    elif "share" in over:
        needed = next(k for k in range(n + 1) if k + 1e-9 >= over["share"] * n)
    else:
        needed = over["at_least"]
    unresolved = kinds.count((-1, 1))
    outcomes = {kinds.count((1, 2)) + extra >= needed for extra in range(unresolved + 1)}
    expected = UNRESOLVED if len(outcomes) == 2 else CONFIRMED if outcomes == {True} else NOT_CONFIRMED
    found = verdict({**BOTH, "over": over}, [cell(*kind, str(i)) for i, kind in enumerate(kinds)])
    assert found == (UNRESOLVED if needed > n else expected)


def test_all_and_any_are_the_smallest_and_the_largest_verdict():
    intervals = {CONFIRMED: (1, 2), NOT_CONFIRMED: (-2, -1), UNRESOLVED: (-1, 1)}
    order = [NOT_CONFIRMED, UNRESOLVED, CONFIRMED]
    for left, right in itertools.product(order, repeat=2):
        cells = [cell(*intervals[left], measure="x"), cell(*intervals[right], measure="y")]
        parts = [{"measure": "x", "above": 0.0}, {"measure": "y", "above": 0.0}]
        assert verdict({"all": parts}, cells) == min(left, right, key=order.index)
        assert verdict({"any": parts}, cells) == max(left, right, key=order.index)


numbers = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True))
measurements = st.lists(
    st.builds(
        Measurement,
        name=st.sampled_from(["x", "y"]),
        cell=st.sampled_from(["a", "b", "c"]),
        value=numbers,
        low=numbers,
        high=numbers,
        n=st.integers(-1, 30),
        seeds=st.integers(-1, 5),
    ),
    max_size=8,
)
TABLE = {
    "all": [
        {"measure": "x", "inside": [-1, 1], "over": {"share": 0.6}, "cells": 2, "counting": 1, "n": 5},
        {"any": [{"measure": "y", "above": 0.0, "over": {"at_least": 2}}, {"measure": "x", "below": 9.0}]},
    ]
}


@given(measurements, st.sampled_from(["quick", "full"]))
def test_a_rule_is_total(found, profile):
    assert verdict(TABLE, found, profile) in VERDICTS


@given(
    st.floats(-5, 5),
    st.floats(0, 5),
    st.floats(0, 5),
    st.sampled_from([Region("above", (0.0,)), Region("below", (1.0,)), Region("inside", (-1.0, 1.0))]),
)
def test_a_wider_interval_never_decides_what_a_narrow_one_left_open_nor_turns_a_verdict(
    low, width, more, region
):
    narrow, wide = region.judge(low, low + width), region.judge(low - more, low + width + more)
    assert wide in {narrow, UNRESOLVED}


def test_sizes_and_conditions_may_differ_between_profiles():
    table = {
        "all": [
            {"measure": "x", "above": 0.0, "n": {"quick": 10, "full": 1000}},
            {"measure": "y", "above": 0.0, "profiles": ["full"]},
        ]
    }
    assert verdict(table, [cell(1, 2)], "quick") == CONFIRMED
    assert verdict(table, [cell(1, 2)], "full") == UNRESOLVED
    assert verdict(table, [cell(1, 2, n=1000), cell(1, 2, measure="y")], "full") == CONFIRMED
    assert "`y`" not in describe(parse_rule(table), "quick")
    assert "n ≥ 1,000" in describe(parse_rule(table), "full")


def test_the_deciding_cell_is_the_least_favourable_of_those_needed():
    cells = [cell(k, k + 0.5, str(k)) for k in range(1, 6)]
    for over, decides in (("all", "1"), ({"at_least": 2}, "4"), ({"share": 0.6}, "3")):
        _, (finding,) = judge(parse_rule({**BOTH, "over": over}), "quick", cells)
        assert finding.cell == decides


def test_chance_bounds_dependent_cells_and_combines():
    assert chance(parse_rule(BOTH), "quick") == 0.025
    assert chance(parse_rule({**BOTH, "over": {"share": 0.5}}), "quick") == 0.05
    assert chance(parse_rule({**BOTH, "over": {"at_least": 1}, "cells": 24}), "quick") == pytest.approx(0.6)
    guard, exact = {**BOTH, "chance": 1}, {**BOTH, "chance": 0}
    assert chance(parse_rule({"all": [BOTH, guard]}), "quick") == 0.025
    assert chance(parse_rule({"all": [BOTH, exact]}), "quick") == 0
    assert chance(parse_rule({"any": [BOTH, BOTH]}), "quick") == 0.05


@pytest.mark.parametrize(
    "table",
    [
        {"measure": "x"},
        {"above": 1.0},
        {"measure": "x", "above": 1.0, "below": 2.0},
        {"measure": "x", "inside": [1.0, 1.0]},
        {"measure": "x", "inside": [1.0, 2.0, 3.0]},
        {"measure": "x", "above": 1.0, "p_value": 0.05},
        {"measure": "x", "above": 1.0, "over": "most"},
        {"measure": "x", "above": 1.0, "over": {"share": 1.5}},
        {"measure": "x", "above": 1.0, "over": {"at_least": 0}},
        {"measure": "x", "above": 1.0, "profiles": ["huge"]},
        {"measure": "x", "above": 1.0, "n": {"quick": 3}},
        {"measure": "x", "above": 1.0, "chance": 2},
        {"all": []},
        {"all": [BOTH], "any": [BOTH]},
    ],
)
def test_a_table_that_is_no_rule_is_refused_with_a_sentence(table):
    with pytest.raises(LedgerError, match=r"\w+ .*: |'"):
        parse_rule(table)


def test_the_sizes_beside_a_number_are_those_of_its_own_cell():
    cells = [
        cell(3, 4, "large", n=1000, seeds=50),
        cell(1, 2, "deciding", n=20, seeds=10),
        cell(5, 6, "small", n=5, seeds=3),
    ]
    _, (finding,) = judge(parse_rule(BOTH), "quick", cells)
    assert (finding.cell, finding.n, finding.seeds) == ("deciding", 20, 10)
