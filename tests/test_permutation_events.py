"""Permutation events: planted paths give planted counts, the orders are those of the canonical form, faults are refused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from lib.networks import optumnist, perceptron
from lib.permutation_events import SORTS, Events, count, drops, key, measure, order, record, sorted_groups
from lib.population import MultiStep, Recipe, initial, walk
from lib.rules import UNRESOLVED, Condition, Region, Sizes, examine
from lib.symmetry import canonical_form, find_symmetries

ORDERS = {"first weight": "first_weight", "norm": "norm"}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_planted_changes_are_counted() -> None:
    path = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 3], [1, 0, 2, 3], [1, 2, 3, 0], [1, 2, 3, 0]])
    changes, kendall = count(path)
    assert changes.tolist() == [0, 2, 3, 0]
    assert kendall.tolist() == [3, 3, 2, 0, 0]


def test_kendall_distances_agree_with_scipy() -> None:
    path = torch.rand(600, 7, generator=generator(1)).argsort(-1)
    _, kendall = count(torch.stack([path, path.flip(0)], dim=1))
    for t in (0, 3, 255, 256, 598):
        tau = kendalltau(path[t].argsort().numpy(), path[-1].argsort().numpy()).statistic
        assert abs(int(kendall[t, 0]) - 21 * (1 - tau) / 2) < 1e-9
    assert kendall[-1].tolist() == [0, 0]


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize(
    ("net", "shape", "groups"),
    [
        (perceptron((5, 7, 3)), (5,), {0: 7}),
        (perceptron((5, 7, 6, 3)), (5,), {0: 7}),
        (optumnist(), (1, 28, 28), {0: 5, 1: 5, 2: 2}),
    ],
)
def test_the_orders_are_those_of_the_canonical_form(net, shape, groups, sort) -> None:
    symmetries = find_symmetries(net, torch.zeros(2, *shape))
    found = sorted_groups(symmetries)
    assert {g: place.size for g, place in found.items()} == groups
    params = initial(net, 30, 1)
    form = canonical_form(params, symmetries, None, ORDERS[sort])
    for g, place in found.items():
        assert torch.equal(order(key(params, place, sort)).long(), form.perms[g])


def problem(recipe: Recipe) -> tuple:
    inputs = torch.randn(40, 5, generator=generator(2))
    return perceptron((5, 6, 3)), inputs, (inputs[:, :3].argmax(1)), recipe


RECIPE = Recipe(lr=0.5, batch_size=10, epochs=6, schedule=MultiStep((2, 4), 0.5))


def test_a_record_is_what_the_canonical_form_says_after_every_step() -> None:
    net, inputs, targets, recipe = problem(RECIPE)
    symmetries = find_symmetries(net, inputs[:2])
    events = record(net, inputs, targets, recipe, members=range(3, 7), seed=4)
    assert (events.units, events.steps_per_epoch, events.seed) == (6, 4, 4)
    assert drops(events) == [8, 16]
    steps = [initial(net, range(3, 7), 4)]
    steps += [m.params for m in walk(net, inputs, targets, recipe, members=range(3, 7), seed=4)]
    for sort in SORTS:
        orders = [canonical_form(p, symmetries, None, ORDERS[sort]).perms[0] for p in steps]
        changes = torch.stack([(a != b).sum(1) for a, b in zip(orders[1:], orders, strict=False)])
        assert torch.equal(events.changes[sort].long(), changes)
        assert changes.sum() > 0
        assert events.kendall[sort].shape == (24, 4)
        assert (events.kendall[sort][-1] == 0).all()
        assert events.kendall[sort][0].sum() > 0


def test_the_first_weight_may_be_another() -> None:
    net, inputs, targets, recipe = problem(RECIPE)
    inputs[:, 0] = 0  # a corner pixel: nothing but decay moves its weight
    blank = record(net, inputs, targets, recipe, members=8, seed=1)
    assert (blank.changes["first weight"] == 0).all()
    seen = record(net, inputs, targets, recipe, members=8, seed=1, first=1)
    assert seen.changes["first weight"].sum() > 0
    assert torch.equal(seen.changes["norm"], blank.changes["norm"])


def planted(seed: int, networks: int = 20, early: int = 4, late: int = 1) -> Events:
    """40 steps, 5 an epoch, rate halved at steps 15 and 25; each network changes a little more than the one before."""
    rate = torch.ones(40, dtype=torch.float64)
    rate[15:], rate[25:] = 0.5, 0.25
    changes = torch.zeros(40, networks, dtype=torch.int16)
    changes[:10] = early
    changes[30:] = late
    changes[10:15], changes[20:25] = 6, 2  # the epochs before the steps of the schedule
    changes[15:20], changes[25:30] = 3, 1  # the epochs after them
    changes = changes * (1 + torch.arange(networks, dtype=torch.int16) % 3)
    path = {sort: changes.clone() for sort in SORTS}
    return Events(path, path, rate, 5, 16, seed)


def test_planted_ratios_are_measured() -> None:
    found = measure([planted(s) for s in range(3)], resamples=200, seed=1)
    assert [(m.name, m.cell) for m in found] == [
        (name, sort) for name in ("late_over_early", "after_over_before") for sort in SORTS
    ]
    for m in found:
        assert m.value == pytest.approx({"late_over_early": 0.25, "after_over_before": 0.5}[m.name])
        assert m.low == pytest.approx(m.value)  # every network has the same ratio
        assert m.high == pytest.approx(m.value)
        assert (m.n, m.seeds) == (60, 3)


def test_ratios_are_of_totals_with_an_interval_over_networks() -> None:
    events = planted(0)
    unequal = events.changes["norm"].clone()
    unequal[30:, :10] = 0
    mixed = replace(events, changes=events.changes | {"norm": unequal})
    found = {(m.name, m.cell): m for m in measure([mixed, planted(1)], resamples=500, seed=2)}
    late = found["late_over_early", "norm"]
    networks = np.concatenate([unequal[30:].sum(0), planted(1).changes["norm"][30:].sum(0)])
    assert late.value == pytest.approx(networks.sum() / (4 * 10 * (1 + np.arange(20) % 3).sum() * 2))
    assert 0.1 < late.low < late.value < late.high < 0.25
    assert found["late_over_early", "first weight"].high == pytest.approx(0.25)


def test_coverage_over_networks() -> None:
    generator = np.random.default_rng(5)
    covered, base = 0, planted(0, networks=60)
    for i in range(100):
        late = torch.from_numpy(generator.poisson(0.3, size=(10, 60))).to(torch.int16)
        changes = base.changes["norm"].clone()
        changes[:10] = torch.from_numpy(generator.poisson(2.0, size=(10, 60)))
        changes[30:] = late
        events = replace(base, changes=dict.fromkeys(SORTS, changes))
        m = measure([events], resamples=100, seed=i)[1]
        covered += m.low <= 0.15 <= m.high
    assert covered >= 86


def test_nothing_below_the_line_leaves_the_question_open() -> None:
    still = planted(0)
    still.changes["first weight"].zero_()
    few = planted(1)
    few.changes["norm"][:10] = 0
    few.changes["norm"][3, 0] = 1  # one network of forty: a resample may well miss it
    few = replace(few, changes={sort: few.changes["norm"] for sort in SORTS})
    for events, cell in ((still, "first weight"), (few, "norm")):
        m = next(m for m in measure([events], resamples=200, seed=1) if m.cell == cell)
        assert math.isnan(m.low)
        rule = Condition(m.name, Region("below", (0.2,)), {"quick": Sizes()})
        assert examine(rule, "quick", [m]).verdict == UNRESOLVED


def test_misuse_is_refused() -> None:
    net, inputs, targets, _ = problem(RECIPE)
    wild = replace(RECIPE, lr=1e30)
    with pytest.raises(ValueError, match=r"members \[0, 1\] diverged"):
        record(net, inputs, targets, wild, members=2, seed=1)
    steady = planted(0)
    steady.rate[:] = 1
    with pytest.raises(ValueError, match="changes 0 times in 40 steps"):
        measure([steady], resamples=10, seed=1)
    close = planted(0)
    close.rate[18:] = 0.1
    with pytest.raises(ValueError, match="at least one epoch apart"):
        drops(close)
    with pytest.raises(ValueError, match="the same seed"):
        measure([planted(1), planted(1)], resamples=10, seed=1)
    with pytest.raises(ValueError, match="different schedules"):
        measure([planted(1), replace(planted(2), rate=2 * planted(2).rate)], resamples=10, seed=1)
    with pytest.raises(ValueError, match="there are no events"):
        measure([], resamples=10, seed=1)
    with pytest.raises(ValueError, match="no sort by 'bias'"):
        key(initial(net, 2, 1), sorted_groups(find_symmetries(net, inputs[:2]))[0], "bias")
