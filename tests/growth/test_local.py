"""What the claim on the local coefficient is judged on, from made-up estimates; and one estimate for good."""

from __future__ import annotations

import math

import pytest
import torch

from lib import claims
from lib.free_energy.truths import T1, T2
from lib.growth import local
from lib.local_coefficient import Estimate


def made(values, reasons=None) -> Estimate:
    value = torch.as_tensor(values, dtype=torch.float64)
    sets = len(value)
    zero, chains = torch.zeros(sets, dtype=torch.float64), torch.full((sets, 4), 0.8, dtype=torch.float64)
    trace = torch.zeros(20, sets, 4, dtype=torch.float64)
    return Estimate(value, zero, chains, chains, trace, 0.1, zero + 1, zero + 100, zero, zero, reasons or {})


def spread(centre, sets=50, width=0.02):
    return centre + width * torch.randn(sets, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_good_estimates_confirm():
    found = local.measure([local.Local(T1, {"HMC": made(spread(1.5)), "SGLD": made(spread(1.8))})])
    by_name = {m.name: m for m in found}
    assert by_name["hmc_error"].value == pytest.approx(0.0, abs=0.01)
    assert by_name["half_d_ratio"].value == pytest.approx(1.5 / 6.5, abs=0.01)
    assert by_name["sgld_error"].value == pytest.approx(0.2, abs=0.01)
    assert by_name["hmc_coverage"].value == 1.0
    assert claims.judge("P2-C12", "quick", found).verdict == claims.CONFIRMED


@pytest.mark.parametrize(
    ("hmc", "sgld", "verdict"),
    [
        (spread(2.2), spread(1.5), claims.NOT_CONFIRMED),
        (spread(1.5), spread(4.0), claims.NOT_CONFIRMED),
        (spread(1.5, width=1.0), spread(1.5), claims.NOT_CONFIRMED),  # right in the mean, but not each
    ],
)
def test_bad_estimates_do_not(hmc, sgld, verdict):
    found = local.measure([local.Local(T1, {"HMC": made(hmc), "SGLD": made(sgld)})])
    assert claims.judge("P2-C12", "quick", found).verdict == verdict


def test_refused_data_sets_count_as_missed():
    values = spread(1.5)
    values[:20] = math.nan
    refused = {r: "refused" for r in range(20)}
    found = local.measure([local.Local(T1, {"HMC": made(values, refused), "SGLD": made(spread(1.5))})])
    by_name = {m.name: m for m in found}
    assert by_name["hmc_coverage"].value == pytest.approx(0.6)
    assert by_name["hmc_error"].n == 30
    assert claims.judge("P2-C12", "quick", found).verdict == claims.UNRESOLVED


def test_learners_have_three_redundant_units():
    assert local.learner_of(T1) == (1, 4, 1)
    assert local.learner_of(T2) == (2, 5, 1)


def test_where_few_are_left_the_table_shows_all_and_says_so():
    nothing = made([math.nan] * 5, {r: "refused" for r in range(5)})
    rows = local.table([local.Local(T1, {"HMC": nothing, "SGLD": made(spread(1.5))})])
    assert rows[0][2:4] == ("refused: 0.00 (0.00 to 0.00)", "5 of 5")
    assert rows[1][3] == "0 of 50"
    assert not rows[1][2].startswith("refused")
