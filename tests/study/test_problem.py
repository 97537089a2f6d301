"""The study's problems: no example in two places, nothing from elsewhere in training, cells that share networks."""

from dataclasses import replace

import torch

from lib.params import select
from lib.population import initial, predict, train
from lib.study import problem as problems


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
