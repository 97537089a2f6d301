"""Ensembles are ordinary members of a population, in runs; a diverged one is refused by its number."""

import pytest
import torch
from torch import nn

from lib import randomness
from lib.networks import perceptron
from lib.population import Recipe, train
from lib.posteriors import ensemble
from lib.posteriors.descent import Diverged
from lib.posteriors.ensemble import Ensemble

RECIPE = Recipe(lr=0.1, batch_size=8, epochs=2, weight_decay=1e-3)


def data(n=24):
    inputs = randomness.normal(1, torch.arange(1), "inputs", 0, (n, 3))[0]
    return inputs, (inputs.sum(1) > 0).long()


def test_a_run_is_a_block_of_members_of_the_population():
    net = perceptron([3, 4, 2])
    fitted = ensemble.fit(net, *data(), RECIPE, Ensemble(3), members=range(2, 4), seed=5)
    pool = train(net, *data(), RECIPE, members=range(6, 12), seed=5)
    drawn = ensemble.draw(fitted, 3)
    assert (drawn.runs, drawn.draws) == (2, 3)
    for name, tensor in pool.params.items():
        assert torch.equal(drawn.params[name], tensor)
        assert torch.equal(ensemble.draw(fitted, 2).of(1)[name], tensor[3:5])
    assert fitted.record["networks"] == 3
    assert len(fitted.record["loss"]) == 6


def test_a_pool_is_cut_into_ensembles():
    net = perceptron([3, 4, 2])
    pool = train(net, *data(), RECIPE, members=7, seed=5)
    drawn = ensemble.draw_from(pool, 3)
    assert (drawn.runs, drawn.draws) == (2, 3)
    assert torch.equal(drawn.of(1)["0.bias"], pool.params["0.bias"][3:6])
    for draws in (8, 0):
        with pytest.raises(ValueError, match=f"7 networks do not make an ensemble of {draws}"):
            ensemble.draw_from(pool, draws)


def test_diverged_members_are_refused_by_name():
    net, (inputs, targets) = nn.Sequential(nn.Linear(3, 1)), data()
    targets = targets.float()
    recipe = Recipe(lr=0.1, batch_size=8, epochs=2, loss="mse")
    start = {"0.weight": torch.zeros(4, 1, 3), "0.bias": torch.zeros(4, 1)}
    start["0.weight"][2] = 1e30  # its squared error overflows
    pool = train(net, inputs, targets, recipe, members=4, seed=0, start=start)
    with pytest.raises(Diverged, match=r"1 of 4 networks diverged \(member 2\)"):
        ensemble.draw_from(pool, 2)
    with pytest.raises(Diverged, match=r"member 12\)"):
        ensemble.fit(net, inputs, targets, recipe, Ensemble(2), members=range(5, 7), seed=0, start=start)
    assert ensemble.draw_from(pool.where(pool.finite), 3).runs == 1


def test_more_networks_than_trained_are_refused():
    fitted = ensemble.fit(perceptron([3, 4, 2]), *data(), RECIPE, Ensemble(2), members=1, seed=5)
    with pytest.raises(ValueError, match=r"3 samples of ensembles of 2 networks.*Ensemble\(3\)"):
        ensemble.draw(fitted, 3)
    with pytest.raises(ValueError, match="needs one at least"):
        Ensemble(0)
