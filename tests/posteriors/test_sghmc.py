"""SGHMC where its stationary law is known in closed form: quadratic energies, exact gradients, every step size."""

from dataclasses import replace

import pytest
import torch
from scipy import stats
from torch import nn

from lib import population, randomness
from lib.population import Recipe
from lib.posteriors import sghmc
from lib.posteriors.hmc import thin
from lib.posteriors.sghmc import Cyclical, Sghmc
from lib.posteriors.target import ravel

LINE = nn.Sequential(nn.Linear(1, 1, bias=False))
N = 20


def conjugate(step, friction=0.2):
    """One slope, mean square loss: the recipe whose η λ is ``step``, the data, and the posterior's mean and precision."""
    x = randomness.normal(7, torch.arange(1), "x", 0, (N, 1))[0]
    y = 1.5 * x + randomness.normal(7, torch.arange(1), "y", 0, (N, 1))[0]
    decay = 0.1
    precision = float(2 * (x**2).sum() + N * decay)  # of exp(-n (mean loss + decay/2 w²))
    recipe = Recipe(lr=step * N / precision, batch_size=N, epochs=1, loss="mse", weight_decay=decay)
    return recipe, x, y, float(2 * (x * y).sum() / precision), precision


def chains(step, options, members=1_500):
    recipe, x, y, mean, precision = conjugate(step)
    fitted = sghmc.fit(LINE, x, y, recipe, options, members=members, seed=3)
    return fitted, fitted.snapshots.squeeze(-1), mean, precision


@pytest.mark.parametrize(
    ("step", "friction", "temperature"), [(0.05, 0.3, 1), (1.0, 0.2, 1), (2.0, 0.5, 0.3)]
)
def test_mean_variance_and_kinetic_temperature_on_a_conjugate_posterior(step, friction, temperature):
    options = Sghmc(friction=friction, temperature=temperature, burn_in=80, epochs=160, keep=8)
    fitted, drawn, mean, precision = chains(step, options)
    variance = temperature / precision / (1 - step / (4 - 2 * friction))
    independent = 1_500 * 4  # of 12,000 that are ten steps apart
    assert abs(float(drawn.mean()) - mean) < 5 * (variance / independent) ** 0.5
    assert abs(float(drawn.var()) / variance - 1) < 5 * (2 / independent) ** 0.5
    kinetic = temperature / (1 - friction / 2 - step / 4)
    assert abs(float(fitted.temperature.mean()) / kinetic - 1) < 5 * (2 / independent) ** 0.5


def test_at_temperature_0_it_is_sgd_with_momentum_to_the_bit():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    inputs = randomness.normal(3, torch.arange(1), "inputs", 0, (40, 3))[0]
    targets = (inputs.sum(1) > 0).long()
    recipe = Recipe(lr=0.05, batch_size=8, epochs=6, weight_decay=1e-3)
    options = Sghmc(friction=0.1, temperature=0, burn_in=0, epochs=6, keep=2)
    found = sghmc.fit(net, inputs, targets, recipe, options, members=3, seed=5).snapshots
    for k, epochs in enumerate((3, 6)):
        trained = population.train(
            net, inputs, targets, replace(recipe, momentum=0.9, epochs=epochs), members=3, seed=5
        )
        assert torch.equal(found[:, k], ravel(trained.params))


def test_the_noise_is_normal_and_a_function_of_member_and_step():
    drawn = sghmc.noise(1, torch.arange(50), 3, 2_001)
    assert drawn.shape == (50, 2_001)
    flat = drawn.flatten().double().numpy()
    assert abs(flat.mean()) < 5 / len(flat) ** 0.5
    assert abs(flat.var() - 1) < 5 * (2 / len(flat)) ** 0.5
    assert stats.kstest(flat, "norm").pvalue > 1e-3
    assert abs(stats.kurtosis(flat)) < 5 * (24 / len(flat)) ** 0.5 + 0.005
    pairs = drawn[:, :2_000].unflatten(1, (1_000, 2))  # the two of one word
    assert abs(float((pairs[..., 0] * pairs[..., 1]).mean())) < 5 / 50_000**0.5
    assert torch.equal(sghmc.noise(1, torch.tensor([7]), 3, 2_001)[0], drawn[7])
    assert not torch.equal(sghmc.noise(1, torch.arange(50), 4, 2_001), drawn)


def test_cycles_keep_the_temperature_while_the_rate_falls():
    schedule = Cyclical(cycles=4, explore=0.5)
    assert [schedule.factor(epoch, 40) for epoch in (0, 5, 10, 15)] == pytest.approx([1, 0.5, 1, 0.5])
    options = Sghmc(
        friction=0.2, burn_in=300, epochs=1_200, keep=60, schedule=Cyclical(cycles=4, explore=0.0)
    )
    fitted, drawn, mean, precision = chains(0.3, options, members=100)
    assert abs(float(drawn.mean()) - mean) < 0.1 / precision**0.5
    assert 0.9 < float(drawn.var()) * precision < 1.1
    assert 1.05 < float(fitted.temperature.mean()) < 1.25  # 1 / (1 - α/2 - step/4), averaged over the cycle


def test_cycles_explore_without_noise():
    options = Sghmc(burn_in=0, epochs=40, keep=8, schedule=Cyclical(cycles=2, explore=0.5))
    noisy, kept = sghmc._calendar(options, 1)
    assert noisy == ([False] * 10 + [True] * 10) * 2
    assert all(noisy[step] for step in kept)
    assert len(kept) == 8


def test_a_step_that_is_too_large_is_seen():
    with pytest.raises(ValueError, match="kinetic temperature more than ten times off the wanted 1"):
        chains(3.55, Sghmc(friction=0.2, burn_in=100, epochs=150, keep=20), members=20)
    with pytest.raises(ValueError, match=r"the snapshots of 20 of 20 runs .* lower SGHMC's rate"):
        chains(50.0, Sghmc(friction=0.2, burn_in=0, epochs=60, keep=20), members=20)


def test_noisy_batches_heat_the_chains_and_it_is_measured():
    recipe, x, y, _, _ = conjugate(0.3)
    options = Sghmc(friction=0.5, burn_in=40, epochs=80, keep=20)
    cool, hot = (
        sghmc.fit(LINE, x, y, replace(recipe, batch_size=size), options, members=100, seed=3).record[
            "kinetic temperature"
        ]
        for size in (N, 5)
    )
    assert hot > 1.5 * cool


def test_refusals_say_what_to_do():
    recipe, x, y, _, _ = conjugate(0.3)
    with pytest.raises(ValueError, match="give SGHMC more epochs"):
        sghmc.fit(LINE, x, y, recipe, Sghmc(burn_in=20, epochs=60), members=2, seed=0)
    with pytest.raises(ValueError, match="a variance needs two"):
        sghmc.fit(LINE, x, y, recipe, Sghmc(keep=1), members=2, seed=0)
    with pytest.raises(ValueError, match="give it a decay"):
        sghmc.fit(LINE, x, y, replace(recipe, weight_decay=0), Sghmc(keep=9), members=2, seed=0)
    fitted = sghmc.fit(LINE, x, y, recipe, Sghmc(keep=9), members=2, seed=0)
    assert sghmc.draw(fitted, 3, seed=0).params["0.weight"].flatten().tolist() == (
        fitted.snapshots[:, [2, 5, 8], 0].flatten().tolist()
    )
    with pytest.raises(ValueError, match="10 samples of chains that kept 9"):
        sghmc.draw(fitted, 10, seed=0)
    assert thin(100, 100).tolist() == list(range(100))
