"""The yardstick on populations whose distance is known: itself, initial weights, and itself in another order."""

import pytest
import torch

from lib import intervals, randomness
from lib.networks import perceptron
from lib.population import predict
from lib.posteriors.draws import Draws
from lib.study import distance
from lib.study.distance import RAW, REMOVALS, Removal, yardstick
from lib.symmetry import find_symmetries, permute, random_permutations

NET = perceptron((4, 5, 3))
SYMMETRIES = find_symmetries(NET, torch.zeros(2, 4))


def networks(members, purpose, spread=1.0, shift=0.0):
    """Networks with independent normal weights: exchangeable in their units."""
    ids = torch.arange(members)
    return {
        name: shift + spread * randomness.normal(0, ids, f"{purpose}/{name}", 0, tuple(shape))
        for name, shape in SYMMETRIES.shapes.items()
    }


REFERENCE, UNTRAINED = networks(200, "reference"), networks(50, "untrained", spread=0.2)


@pytest.mark.parametrize("removal", [RAW, *REMOVALS], ids=str)
def test_a_held_out_population_is_at_zero_and_initial_weights_at_one(removal):
    rod = yardstick(REFERENCE, UNTRAINED, SYMMETRIES, removal, seed=0)
    again = [rod.distance(networks(50, f"again {k}")) for k in range(12)]
    mean, low, high = intervals.student(again, level=0.999)
    assert low <= 0 <= high
    assert abs(mean) < 0.1
    assert rod.distance(networks(50, "other", spread=0.2)) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("removal", REMOVALS, ids=str)
def test_removal_keeps_every_function(removal):
    moved = distance.remove(REFERENCE, SYMMETRIES, removal, {n: t[0] for n, t in REFERENCE.items()})
    x = randomness.normal(0, torch.arange(7), "inputs", 0, (4,))
    torch.testing.assert_close(predict(NET, moved, x), predict(NET, REFERENCE, x), rtol=1e-3, atol=1e-4)


def test_one_order_of_the_units_is_far_raw_and_near_once_the_order_is_removed():
    """Units that differ, always in one place, against the same units in random places: the same functions."""
    loudness = torch.arange(1.0, 6.0)[:, None]
    in_place, elsewhere = (
        {**p, "0.weight": 0.2 * p["0.weight"] + loudness} for p in (networks(100, "a"), networks(200, "b"))
    )
    mixed = permute(
        elsewhere, SYMMETRIES, random_permutations(SYMMETRIES, torch.Generator().manual_seed(0), 200)
    )
    raw = yardstick(mixed, UNTRAINED, SYMMETRIES, RAW, seed=0).distance(in_place)
    sort = yardstick(mixed, UNTRAINED, SYMMETRIES, Removal("norm", None), seed=0).distance(in_place)
    assert raw > 0.1
    assert abs(sort) < 0.05


def test_the_gain_is_paired_and_leaves_the_chain_out():
    one = {m: torch.tensor([0.5, 0.7, 0.9]).double() for m in ("SWAG", "SGHMC")}
    many = {m: torch.tensor([0.1, 0.3, 0.5]).double() for m in ("SWAG", "SGHMC")}
    (gain,) = distance.measure_gain(one, many, 500)
    assert (gain.name, gain.cell, gain.n, gain.seeds) == ("mmd_gain", "SWAG", 500, 3)
    assert gain.low == pytest.approx(0.4)
    assert gain.value == pytest.approx(0.4)  # the same in every repetition: an interval without width


def test_intervals_of_the_change_are_simultaneous():
    before = {
        "SWAG": torch.tensor([0.5, 0.6, 0.8]).double(),
        "Laplace": torch.tensor([0.2, 0.3, 0.1]).double(),
    }
    after = {r: {m: d + 0.1 * d**2 for m, d in before.items()} for r in REMOVALS}
    found = distance.measure_change(before, after, 500)
    assert len(found) == 12
    expected = intervals.student(0.1 * before["SWAG"].numpy() ** 2, level=1 - 0.05 / 12)
    assert (found[0].value, found[0].low, found[0].high) == pytest.approx(expected)
    assert {m.cell for m in found} == {f"{m}: {r}" for m in before for r in REMOVALS}


def test_held_out_groups_are_the_ensembles():
    rod = yardstick(REFERENCE, UNTRAINED, SYMMETRIES, RAW, seed=0)
    (found,) = distance.measure_ensemble(rod, networks(130, "held out"), samples=40)
    assert (found.n, found.seeds) == (120, 3)
    with pytest.raises(ValueError, match="two repetitions"):
        distance.measure_ensemble(rod, networks(50, "held out"), samples=40)


def test_every_first_run_of_ten_is_one_mode():
    rod = yardstick(REFERENCE, UNTRAINED, SYMMETRIES, RAW, seed=0)
    draws = Draws(networks(120, "draws"), 6, 20)
    every_third = rod.distances(draws, every=3)
    assert every_third.tolist() == [rod.distance(draws.of(0)), rod.distance(draws.of(3))]
