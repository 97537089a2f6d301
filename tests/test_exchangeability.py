"""Exchangeable neurons: the chance distance is exact, the estimate unbiased, the intervals cover, faults are refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from lib.exchangeability import (
    LEADERS,
    averaged,
    by_chance,
    imbalance,
    leaders,
    leading_unit,
    measure,
    pooled,
    tally,
)
from lib.posteriors.draws import Draws


def distance(counts: np.ndarray) -> float:
    return float(np.abs(counts / counts.sum() - 1 / len(counts)).sum() / 2)


@pytest.mark.parametrize(("draws", "units"), [(1, 4), (4, 3), (6, 3), (5, 2), (3, 5)])
def test_the_chance_distance_is_the_mean_over_all_outcomes(draws: int, units: int) -> None:
    every = itertools.product(range(units), repeat=draws)
    exact = np.mean([distance(np.bincount(outcome, minlength=units)) for outcome in every])
    assert abs(by_chance(draws, units) - exact) < 1e-12


def test_the_chance_distance_of_many_draws_is_the_normal_one() -> None:
    n, units = 1_000_000, 16
    deviation = np.sqrt(2 / np.pi * (1 / units) * (1 - 1 / units) / n)
    assert abs(by_chance(n, units) / (units / 2 * deviation) - 1) < 1e-3
    assert by_chance(7, 1) == 0


def test_the_imbalance_of_uniform_draws_is_zero_on_average_and_of_one_leader_its_most() -> None:
    generator = np.random.default_rng(1)
    for draws, units in ((100, 16), (1000, 2), (7, 5)):
        found = imbalance(generator.multinomial(draws, np.full(units, 1 / units), size=4000))
        assert abs(found.mean()) < 4 * found.std() / np.sqrt(4000)
    one = np.zeros(16, dtype=int)
    one[3] = 100
    assert abs(imbalance(one) - (15 / 16 - by_chance(100, 16))) < 1e-12


def planted(units: int, distance: float) -> np.ndarray:
    """Probabilities at this total variation distance from uniform."""
    p = np.full(units, 1 / units)
    p[: units // 2] += 2 * distance / units
    p[units // 2 :] -= 2 * distance / units
    return p


@pytest.mark.parametrize(("units", "true"), [(16, 0.0), (16, 0.05), (16, 0.3), (2, 0.1)])
def test_the_interval_of_independent_networks_covers(units: int, true: float) -> None:
    generator = np.random.default_rng(2)
    p = planted(units, true)
    expected = imbalance(generator.multinomial(1000, p, size=20_000)).mean()
    sets = generator.multinomial(1000, p, size=250)
    found = np.array([pooled(counts, resamples=200, seed=i) for i, counts in enumerate(sets)])
    value, low, high = found.T
    assert ((low <= value) & (value <= high)).all()
    assert abs((value - expected).mean()) < 4 * value.std() / np.sqrt(250)
    assert 0.90 <= ((low <= expected) & (expected <= high)).mean() <= 0.995


def test_the_plain_percentile_interval_would_not_cover() -> None:
    """Why the replicates are recentred: around uniform draws the plain ones lie too high."""
    generator = np.random.default_rng(3)
    missed = 0
    for counts in generator.multinomial(1000, np.full(16, 1 / 16), size=100):
        drawn = imbalance(generator.multinomial(1000, counts / 1000, size=200))
        missed += not np.quantile(drawn, 0.025) <= 0 <= np.quantile(drawn, 0.975)
    assert missed > 20


@pytest.mark.parametrize(("runs", "spread"), [(10, 0.1), (10, 1e6), (50, 5.0)])
def test_the_interval_of_chains_covers(runs: int, spread: float) -> None:
    generator = np.random.default_rng(4)

    def chains(number: int) -> np.ndarray:
        leads = generator.dirichlet(np.full(16, spread), size=number)
        return generator.multinomial(100, leads)

    expected = imbalance(chains(20_000)).mean()
    found = np.array([averaged(chains(runs), resamples=200, seed=i) for i in range(250)])
    covered = ((found[:, 1] <= expected) & (expected <= found[:, 2])).mean()
    assert 0.91 <= covered <= 0.985


def test_the_leader_is_found() -> None:
    weights = torch.zeros(3, 4, 2, 3)
    weights[0, 2, 1, 1] = 1.0  # the largest entry
    weights[0, 1] = 0.9  # the largest norm
    weights[1, 3, 0, 0] = -5.0  # a large negative weight is no large weight, though its norm is
    weights[1, 0, 1, 2] = 0.1
    weights[2] = 1.0  # equals: the first
    params = {"conv.weight": weights, "conv.bias": 100 * torch.randn(3, 4)}
    assert leading_unit(params, "conv.weight", "largest weight").tolist() == [2, 0, 0]
    assert leading_unit(params, "conv.weight", "largest norm").tolist() == [1, 3, 0]


def test_counts_are_kept_run_by_run() -> None:
    assert tally(np.array([[0, 0, 2], [1, 1, 1]]), 3).tolist() == [[2, 0, 1], [0, 3, 0]]
    assert tally(np.array([2, 2, 0]), 4).tolist() == [1, 0, 2, 0]
    with pytest.raises(ValueError, match="unit 3 leads, but the layer has 3 units"):
        tally(np.array([3]), 3)


def test_independent_networks_are_told_from_chains() -> None:
    generator = torch.Generator().manual_seed(5)
    independent = {"0.weight": torch.randn(1000, 16, 20, generator=generator)}
    start = torch.randn(12, 1, 16, 20, generator=generator)
    walk = (start + 0.05 * torch.randn(12, 50, 16, 20, generator=generator)).flatten(0, 1)
    chain = Draws({"0.weight": walk}, 12, 50)
    found = measure(independent, chain, chain, "0.weight", resamples=400, seed=6)
    assert {(m.name, m.cell) for m in found} == {
        (f"imbalance_{name}", cell) for name in ("independent", "chain", "swag") for cell in LEADERS
    }
    for m in found:
        if m.name == "imbalance_independent":
            assert (m.n, m.seeds) == (1000, 1000)
            assert -0.06 < m.low <= m.value <= m.high < 0.06
        else:
            assert (m.n, m.seeds) == (600, 12)
            assert m.low > 0.2
    counts = leaders(independent, chain, chain, "0.weight", "largest norm")
    assert counts["independent"].sum() == 1000
    assert counts["chain"].shape == (12, 16)
    assert (counts["chain"].sum(1) == 50).all()


def test_misuse_is_refused() -> None:
    weights = torch.randn(3, 4, 2)
    with pytest.raises(ValueError, match="no leader by 'largest bias'"):
        leading_unit({"w": weights}, "w", "largest bias")
    weights[1, 0, 0] = torch.inf
    with pytest.raises(ValueError, match="network 1 has weights in 'w' that are not finite"):
        leading_unit({"w": weights}, "w", "largest norm")
    with pytest.raises(ValueError, match="1 runs: an interval needs at least two"):
        averaged(np.array([[3, 4]]), resamples=10, seed=0)
    with pytest.raises(ValueError, match="1 networks: an interval needs at least two"):
        pooled(np.array([1, 0]), resamples=10, seed=0)
    with pytest.raises(ValueError, match="0 draws among 4 units"):
        by_chance(0, 4)
