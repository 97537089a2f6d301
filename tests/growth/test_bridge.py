"""The bridge's bookkeeping on made-up gaps, and one small bridge that is built for good."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lib import claims
from lib.free_energy.truths import T1
from lib.growth import bridge
from lib.growth.bridge import FAMILIES, Bridge


def made(width: int, gap: float, noise: float = 0.1, sets: int = 25, slope: float = 1.5) -> Bridge:
    generator = torch.Generator().manual_seed(width)
    sizes = (100, 1_000)
    level = torch.tensor([slope * math.log(n) for n in sizes], dtype=torch.float64)[:, None]
    exact = level + noise * torch.randn(2, sets, generator=generator, dtype=torch.float64)
    gaps = {
        name: gap + noise * torch.randn(2, sets, generator=generator, dtype=torch.float64)
        for name in FAMILIES
    }
    return Bridge((1, width, 1), sizes, exact, gaps, dict.fromkeys(FAMILIES, 0))


@pytest.mark.parametrize(
    ("growth", "verdict"),
    [(3.0, claims.CONFIRMED), (0.2, claims.NOT_CONFIRMED), (1.0, claims.UNRESOLVED)],
)
def test_the_growth_of_the_gap_decides(growth, verdict):
    found = bridge.measure(made(1, 0.5), made(4, 0.5 + growth))
    assert [m.cell for m in found] == list(FAMILIES)
    assert all(m.value == pytest.approx(growth, abs=0.1) for m in found)
    assert claims.judge("X-F1", "quick", found).verdict == verdict


def test_refused_fits_are_left_out_and_too_few_left_cannot_speak():
    wide = made(4, 5.0)
    wide.gaps["Laplace"][-1, :10] = math.nan
    found = {m.cell: m for m in bridge.measure(made(1, 0.5), wide)}
    assert found["Laplace"].n == 15
    assert found["mean-field"].n == 25
    assert claims.judge("X-F1", "quick", found.values()).verdict == claims.UNRESOLVED


def test_growth_with_n_is_a_slope_in_the_logarithm():
    found = bridge.growth_with_n(made(2, 1.0, noise=0.0, slope=1.7))
    assert found["exact"][0] == pytest.approx(1.7)
    assert found["mean-field"][0] == pytest.approx(0.0)


def test_tables_and_series_hold_every_learner():
    bridges = [made(1, 0.5), made(2, 1.0), made(4, 2.0)]
    assert [row[:2] for row in bridge.table(bridges)][:2] == [("1-1-1", 100), ("1-1-1", 1_000)]
    series = bridge.gap_series(bridges)
    widths, mean, low, high = series["full Gaussian"]
    np.testing.assert_array_equal(widths, [1, 2, 4])
    assert (low < mean).all()
    assert (mean < high).all()
    assert mean[2] == pytest.approx(2.0, abs=0.1)


def test_a_small_bridge_brackets_the_exact_free_energy():
    (found,) = bridge.build_all(
        T1, [(1, 1, 1)], (50,), torch.device("cpu"), sets=4, copies=2, particles=64, seed=7
    )
    assert found.refused == dict.fromkeys(FAMILIES, 0)
    assert (found.gaps["mean-field"] > found.gaps["full Gaussian"]).all()
    assert (found.gaps["full Gaussian"] > -0.1).all()  # a bound, up to sampling error
