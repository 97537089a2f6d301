"""HMC on networks: the recipe's posterior, its gradients, a conjugate case, and chains that have not met."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lib import population, randomness
from lib.population import Recipe
from lib.posteriors import hmc, target
from lib.posteriors.hmc import Hmc

NET = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4)).double()
N = 24


def numbers(purpose, *shape, members=1):
    return randomness.normal(6, torch.arange(members), purpose, 0, shape, torch.float64)


def data(loss="cross_entropy"):
    x = numbers("x", N, 3)[0]
    y = (x @ numbers("w", 3, 4)[0]).argmax(1)
    if loss != "cross_entropy":
        y = nn.functional.one_hot(y, 4).double()
    return x, y


def test_the_categorical_likelihood_is_torch_s():
    outputs = numbers("outputs", 7, 4, members=5).requires_grad_()
    labels = torch.tensor([0, 3, 1, 1, 2, 0, 3])
    expected = -nn.functional.cross_entropy(
        outputs.flatten(0, 1), labels.repeat(5), reduction="none"
    ).unflatten(0, (5, 7))
    (slope,) = torch.autograd.grad(expected.sum(), outputs)
    found, gradient = target.categorical(outputs.detach(), labels)
    torch.testing.assert_close(found, expected.sum(1).detach())
    torch.testing.assert_close(gradient, slope)


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy", "mse"])
def test_the_target_is_what_the_recipe_descends(loss):
    """Differences are those of -n (mean loss + wd/2 |θ|²), gradients its gradients; a chain of layers or not."""
    x, y = data(loss)
    recipe = Recipe(lr=0.1, batch_size=8, epochs=1, loss=loss, weight_decay=0.02)
    positions = numbers("positions", 44, members=6).requires_grad_()
    params = target.unravel(positions, NET)
    outputs = target.outputs_of(NET, positions, x)
    values = torch.stack([population.training.losses.per_example(loss, one, y) for one in outputs])
    energy = N * (values.mean(1) + 0.01 * sum(p.flatten(1).square().sum(1) for p in params.values()))
    (slope,) = torch.autograd.grad(-energy.sum(), positions)
    wrapped = nn.Sequential(NET[0], nn.LeakyReLU(0.0), NET[2])
    for net in (NET, wrapped):
        found, gradient = target.of_recipe(net, x, y, recipe)(positions.detach())
        torch.testing.assert_close(found - found[0], (energy[0] - energy).detach(), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(gradient, slope, rtol=1e-10, atol=1e-10)


def conjugate():
    """A linear model with mean square loss: its posterior is normal, with this mean and covariance."""
    net = nn.Sequential(nn.Linear(2, 1, bias=False)).double()
    x = numbers("x", N, 2)[0]
    y = x @ numbers("w", 2, 1)[0] + numbers("noise", N, 1)[0]
    recipe = Recipe(lr=0.1, batch_size=8, epochs=1, loss="mse", weight_decay=0.05)
    precision = 2 * x.T @ x + N * 0.05 * torch.eye(2, dtype=x.dtype)
    return (
        net,
        x,
        y,
        recipe,
        torch.linalg.solve(precision, 2 * x.T @ y).flatten(),
        torch.linalg.inv(precision),
    )


def test_a_conjugate_posterior_is_found():
    net, x, y, recipe, mean, covariance = conjugate()
    start = population.initial(net, 60, seed=4)
    options = Hmc(leapfrog=6, warmup=80, draws=100, step_size=0.1)
    fitted = hmc.fit(net, x, y, recipe, options, members=60, seed=1, start=start)
    drawn = hmc.draw(fitted, 50, seed=0)
    flat = target.ravel(drawn.params)
    scale, error = covariance.diag().sqrt(), 5 / 1_500**0.5  # half of the 3,000 draws count
    assert ((flat.mean(0) - mean) / scale).abs().max() < error
    assert ((flat.T.cov() - covariance) / (scale[:, None] * scale)).abs().max() < 1.5 * error
    assert (drawn.runs, drawn.draws) == (60, 50)
    record = fitted.record
    assert record["R-hat of the log-likelihood"] < 1.05
    assert record["R-hat of the worst logit"] < 1.05
    assert 0.6 < record["acceptance"] < 0.95


def test_the_draws_are_the_kept_positions_evenly_spaced():
    net, x, y, recipe, _, _ = conjugate()
    start = population.initial(net, 2, seed=4)
    options = Hmc(leapfrog=4, warmup=10, draws=12, step_size=0.1)
    fitted = hmc.fit(net, x, y, recipe, options, members=2, seed=1, start=start)
    drawn = hmc.draw(fitted, 4, seed=0)
    assert torch.equal(target.ravel(drawn.of(1)), fitted.positions[1, [2, 5, 8, 11]])
    with pytest.raises(ValueError, match="13 samples of chains that kept 12"):
        hmc.draw(fitted, 13, seed=0)


def test_chains_that_have_not_met_are_seen():
    """A step so small that every chain stays where it began: accepted always, and never anywhere else."""
    x, y = data()
    recipe = Recipe(lr=0.1, batch_size=8, epochs=1, weight_decay=0.02)
    start = population.initial(NET, 6, seed=4)
    options = Hmc(leapfrog=2, warmup=0, draws=20, step_size=1e-4)
    record = hmc.fit(NET, x, y, recipe, options, members=6, seed=1, start=start).record
    assert record["acceptance"] > 0.99
    assert record["R-hat of the log-likelihood"] > 1.5
    assert record["R-hat of the worst logit"] > 1.5


def test_refusals_say_what_to_do():
    x, y = data()
    recipe = Recipe(lr=0.1, batch_size=8, epochs=1, weight_decay=0.02)
    start = population.initial(NET, 20, seed=4)
    with pytest.raises(ValueError, match="HMC starts from trained networks"):
        hmc.fit(NET, x, y, recipe, members=20, seed=1)
    with pytest.raises(ValueError, match="give it a decay"):
        hmc.fit(NET, x, y, replace(recipe, weight_decay=0), members=20, seed=1, start=start)
    options = Hmc(leapfrog=3, warmup=0, draws=20, step_size=50.0)
    with pytest.raises(hmc.StuckChains, match="shorten the trajectory"):
        hmc.fit(NET, x, y, recipe, options, members=20, seed=1, start=start)
