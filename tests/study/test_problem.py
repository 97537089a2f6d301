"""The study's problems: no example in two places, nothing from elsewhere in training, cells that share networks."""

from dataclasses import replace

import pytest
import torch

from lib.claims import ledger, setting
from lib.networks import optumnist
from lib.params import select
from lib.population import initial, predict, train
from lib.profile import get
from lib.rules import conditions
from lib.study import problem as problems
from lib.study.distance import MOST_GROUPS
from lib.study.problem import Examples


def rows(inputs):
    return {tuple(row.tolist()) for row in inputs.flatten(1)}


def test_the_digits_are_cut_into_disjoint_parts():
    p = problems.digits()
    parts = [rows(part.inputs) for part in (p.train, p.validation, p.test)]
    assert [len(part) for part in (p.train, p.validation, p.test)] == [800, 143, 500]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 1443
    assert set(p.train.targets.tolist()) == set(range(8))


def test_no_network_sees_what_is_outside():
    p = problems.digits()
    assert not rows(p.outside["digits 8 and 9"]) & rows(p.train.inputs)
    torch.testing.assert_close(p.outside["inverted images"], 1 - p.test.inputs)


def test_the_first_pixel_is_one_that_speaks():
    inputs = problems.digits().train.inputs
    variances = inputs.var(0)
    assert torch.equal(variances.argsort(descending=True, stable=True), torch.arange(64))
    assert variances[0] > 0.1
    assert variances[-1] == 0  # the corner, which the usual order puts first


def test_a_cell_of_the_mass_claim_is_the_pool_where_the_recipe_is():
    p = problems.digits()
    small = replace(p.recipe, epochs=1)
    p = replace(p, recipe=small)
    pool = train(p.net, p.train.inputs, p.train.targets, small, members=4, seed=3)
    cells = problems.mass_populations(p, pool, 3, 3, "cpu", recipes={"quiet": small})
    for name, tensor in cells["quiet"][1].items():
        assert torch.equal(tensor, pool.params[name][:3])


def test_permuted_copies_are_the_same_functions():
    p = problems.digits()
    net = p.net
    params = {name: t for name, t in initial(net, 5, 0).items()}
    moved = problems.permuted_copies(p, params, 1)
    x = p.test.inputs[:20]
    before, after = (predict(net, q, x) for q in (params, moved))
    torch.testing.assert_close(before, after, rtol=1e-5, atol=1e-6)
    assert not torch.equal(select(moved, slice(1))["0.weight"], select(params, slice(1))["0.weight"])


def test_the_stepped_recipe_halves_the_rate_twice():
    recipe = problems.stepped(problems.digits())
    rates = [recipe.rate(epoch * 25, 25) for epoch in (9, 10, 20, 39)]
    assert rates == [0.1, 0.05, 0.025, 0.025]


@pytest.mark.parametrize("net", ["digits", "convolution"])
def test_the_first_group_is_that_of_the_first_layer(net):
    p = problems.digits()
    if net == "convolution":
        images = Examples(torch.zeros(4, 1, 28, 28), torch.zeros(4, dtype=torch.int64))
        p = replace(p, net=optumnist(), train=images)
    group = p.symmetries.permutations[problems.first_group(p)]
    assert group.size == (16 if net == "digits" else 2)


def test_networks_that_never_learned_are_found():
    p = problems.digits()
    params = initial(p.net, 3, 0)
    one_class = {name: torch.zeros_like(tensor) for name, tensor in params.items()}
    share = float((p.validation.targets == 0).float().mean())
    assert not problems.learned(p, one_class, share + 0.01).any()
    assert problems.learned(p, one_class, share - 0.01).all()


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_the_sizes_meet_what_the_ledger_asks(profile):
    """Every n and number of seeds that the rules of this chapter ask for can be reached by the profile's sizes."""
    sizes, samples = get(profile).posteriors, setting("posteriors", "samples")
    held_out = sizes.networks - sizes.reference
    groups = min(held_out // samples, MOST_GROUPS)
    has = {
        "imbalance_independent": (sizes.networks, sizes.networks),
        "imbalance_chain": (sizes.repetitions * 10 * samples, sizes.repetitions * 10),
        "imbalance_swag": (sizes.repetitions * 10 * samples, sizes.repetitions * 10),
        "excess_median": (sizes.recipe_networks, sizes.recipe_networks),
        "excess_share": (sizes.recipe_networks, sizes.recipe_networks),
        "noise_elasticity": (24 if profile == "quick" else 66, sizes.sweep_networks),
        "brier_gain": (500, sizes.repetitions),
        "accuracy_gain": (500, sizes.repetitions),
        "mmd_gain": (sizes.reference, sizes.repetitions),
        "ensemble_floor": (groups * samples, groups),
        "ns_change": (sizes.reference, sizes.repetitions),
        "late_over_early": (3 * sizes.event_networks, 3),
        "after_over_before": (3 * sizes.event_networks, 3),
        "variation_ratio": (3 * sizes.diversity_networks, 1),
        "smallest_share": (sizes.diversity_networks, 3),
        "fit_gain": (sizes.fit_networks, 5),
    }
    asked = {
        c.measure: c
        for claim in ledger().values()
        if claim.chapter == "posteriors"
        for c in conditions(claim.rule, profile)
    }
    assert set(has) <= set(asked)
    for measure, (n, seeds) in has.items():
        assert n >= asked[measure].sizes[profile].n, measure
        assert seeds >= asked[measure].sizes[profile].seeds, measure
    assert sizes.repetitions * 10 + sizes.chains <= held_out
    assert max(3 * sizes.diversity_networks, 5 * sizes.fit_networks) <= sizes.networks
    assert sizes.recipe_networks <= sizes.networks
