"""SWAG on planted snapshots, whose Gaussian is known, and on a walk that is taken by hand beside it."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lib import population, randomness
from lib.params import select
from lib.population import Recipe
from lib.posteriors import swag
from lib.posteriors.target import ravel

NET = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
RECIPE = Recipe(lr=0.05, batch_size=8, epochs=3, weight_decay=1e-3)


def data(n=40):
    inputs = randomness.normal(3, torch.arange(1), "inputs", 0, (n, 3))[0]
    return inputs, (inputs.sum(1) > 0).long()


def planted(snapshots=7, runs=2):
    """Snapshots of a network of two parameters and a bias, with variances of very different size."""
    net = nn.Linear(2, 1).double()
    drawn = randomness.normal(5, torch.arange(snapshots), "snapshots", 0, (runs, 3), torch.float64)
    drawn[..., 1] += 0.8 * drawn[..., 0]
    return net, drawn * torch.tensor([0.05, 1.0, 6.0], dtype=torch.float64) + torch.arange(3.0)


def test_the_moments_are_those_of_the_snapshots():
    net, snapshots = planted()
    fitted = swag.moments(net, snapshots, rank=7)
    torch.testing.assert_close(fitted.mean, snapshots.mean(0))
    torch.testing.assert_close(fitted.variance, snapshots.var(0, correction=0))
    for run in range(2):
        deviations = fitted.deviations[run]
        torch.testing.assert_close(deviations.T @ deviations / 6, snapshots[:, run].T.cov())
    assert torch.equal(swag.moments(net, snapshots, rank=3).deviations, fitted.deviations[:, -3:])


@pytest.mark.parametrize("rank", [3, 7])
def test_the_draws_have_half_of_either_covariance(rank):
    net, snapshots = planted()
    fitted = swag.moments(net, snapshots, rank=rank)
    number = 40_000
    drawn = ravel(swag.draw(fitted, number, seed=1).params).unflatten(0, (2, number))
    for run in range(2):
        deviations = fitted.deviations[run]
        expected = fitted.variance[run].diag() / 2 + deviations.T @ deviations / (2 * (rank - 1))
        scale = expected.diag().sqrt()
        error = 5 / number**0.5  # five standard errors, in units of the standard deviations
        assert ((drawn[run].mean(0) - fitted.mean[run]) / scale).abs().max() < error
        gap = (drawn[run].T.cov() - expected) / (scale[:, None] * scale)
        assert gap.abs().max() < 1.5 * error


def test_the_walk_keeps_the_end_of_every_second_epoch():
    inputs, targets = data()
    start = population.train(NET, inputs, targets, RECIPE, members=3, seed=2).params
    options = swag.Swag(rate=2, epochs=6, every=2, rank=3)
    fitted = swag.fit(NET, inputs, targets, RECIPE, options, members=3, seed=9, start=start)
    ends = [
        population.train(
            NET, inputs, targets, replace(RECIPE, lr=0.1, epochs=epochs), members=3, seed=9, start=start
        ).params
        for epochs in (2, 4, 6)
    ]
    by_hand = swag.moments(NET, torch.stack([ravel(params) for params in ends]), rank=3)
    for name in ("mean", "variance", "deviations"):
        assert torch.equal(getattr(fitted, name), getattr(by_hand, name))
    assert fitted.record["snapshots"] == 3


def test_a_run_does_not_depend_on_its_neighbours():
    inputs, targets = data()
    start = population.train(NET, inputs, targets, RECIPE, members=5, seed=2).params
    few, many = (
        swag.draw(
            swag.fit(
                NET,
                inputs,
                targets,
                RECIPE,
                swag.Swag(epochs=4),
                members=members,
                seed=9,
                start=select(start, torch.tensor(list(members))),
            ),
            6,
            seed=4,
        )
        for members in (range(3, 4), range(5))
    )
    for name, tensor in few.of(0).items():
        torch.testing.assert_close(tensor, many.of(3)[name], rtol=1e-5, atol=1e-6)


def test_refusals_say_what_to_do():
    inputs, targets = data()
    net, snapshots = planted()
    with pytest.raises(ValueError, match="1 snapshots and a rank of 20: a variance needs two"):
        swag.moments(net, snapshots[:1])
    with pytest.raises(ValueError, match="SWAG starts from trained networks"):
        swag.fit(NET, inputs, targets, RECIPE, members=3, seed=0)
    start = population.initial(NET, 3, seed=0)
    with pytest.raises(ValueError, match="walk for longer"):
        swag.fit(NET, inputs, targets, RECIPE, swag.Swag(epochs=1, every=2), members=3, seed=0, start=start)
    with pytest.raises(ValueError, match=r"of 3 of 3 runs \(0, 1, 2\) are not finite: lower SWAG's"):
        swag.fit(
            nn.Sequential(nn.Linear(3, 1)),
            inputs,
            targets.float(),
            replace(RECIPE, loss="mse"),
            swag.Swag(rate=1e4),
            members=3,
            seed=0,
            start=population.initial(nn.Sequential(nn.Linear(3, 1)), 3, seed=0),
        )
    with pytest.raises(ValueError, match="start from 4 networks of 26 parameters, and start holds 3 of 26"):
        swag.fit(NET, inputs, targets, RECIPE, members=4, seed=0, start=start)
    start["0.weight"][1, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"SWAG cannot start: the parameters of 1 of 3 runs \(1\)"):
        swag.fit(NET, inputs, targets, RECIPE, members=3, seed=0, start=start)
