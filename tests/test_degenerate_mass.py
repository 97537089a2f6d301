"""Weights before a norm shrink without a change of the function, until epsilon is felt: known answers and planted faults."""

import dataclasses

import pytest
import torch
from torch import nn

from lib import degenerate_mass as degenerate
from lib.invariance import relative_change, weights
from lib.networks import perceptron
from lib.population import evaluate
from lib.symmetry import UnattainedInfimum, find_symmetries, min_mass


@pytest.fixture(scope="module")
def random_curves():
    return degenerate.curves(3, seeds=3)


def test_measurements_are_those_that_the_ledger_judges(random_curves):
    found = {(m.name, m.cell): m for m in degenerate.measure(random_curves)}
    names = ("mass_ratio", "mass_increases", "output_change", "output_change_epsilon")
    assert set(found) == {(name, cell) for name in names for cell in ("dense", "convolution")}
    assert all(m.seeds == 3 for m in found.values())
    assert all(m.low <= m.value <= m.high for m in found.values())
    for cell in ("dense", "convolution"):
        assert found["mass_ratio", cell].value == pytest.approx(1e-12, rel=1e-9)
        assert found["mass_increases", cell].high == 0
        assert found["output_change", cell].high < 1e-12
        assert found["output_change_epsilon", cell].value == found["output_change_epsilon", cell].low > 1e-3


def test_networks_differ_and_curves_start_at_the_network_itself(random_curves):
    for curve in random_curves:
        assert curve.mass.shape == curve.change.shape == curve.change_epsilon.shape == (3, 13)
        assert len(curve.mass[:, 0].unique()) == 3
        assert float(curve.change_epsilon[:, 0].max()) < 1e-12  # scale 1
        assert (curve.change_epsilon[:, 1:].diff(dim=1)[:, :3] > 0).all()  # and ever worse
        torch.testing.assert_close(curve.mass, curve.mass[:, :1] * curve.scales**2)


def test_mass_before_norm_holds_the_weights_that_a_norm_reads_and_no_others():
    for cell, names in (("dense", ("1.weight", "4.weight")), ("convolution", ("0.weight", "3.weight"))):
        net = degenerate.networks(8, 10)[cell]
        params = weights(net, 1)
        symmetries = find_symmetries(net, torch.zeros(2, 1, 8, 8, dtype=torch.float64))
        expected = sum(params[name].square().sum() for name in names)
        assert float(degenerate.mass_before_norm(params, symmetries)) == pytest.approx(float(expected))


def test_what_epsilon_does_is_the_norms_own_formula():
    """y = (w x - mean) / √(var + ε): at scale s the centred input is divided by √(s² var + ε) and multiplied by s."""
    variance, eps = 0.25, 1e-5
    net = nn.Sequential(nn.Linear(3, 2, bias=False), nn.BatchNorm1d(2, eps=eps), nn.Linear(2, 2, bias=False))
    net = net.double()
    params = weights(net, 1) | {
        "1.running_var": torch.full((2,), variance, dtype=torch.float64),
        "1.bias": torch.zeros(2, dtype=torch.float64),
    }
    inputs = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    symmetries = find_symmetries(net, inputs[:2])
    moved = degenerate.shrink(params, symmetries, degenerate.SCALES)
    s = degenerate.SCALES
    kept = s * ((variance + eps) / (s**2 * variance + eps)) ** 0.5
    torch.testing.assert_close(relative_change(net, params, moved, inputs), 1 - kept, rtol=1e-9, atol=1e-12)


def test_a_scaling_that_forgets_the_running_variance_is_seen():
    net = degenerate.networks(8, 10)["dense"]
    params = weights(net, 1)
    inputs = torch.randn(9, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moved = degenerate.shrink(params, find_symmetries(net, inputs[:2]), degenerate.SCALES[-1:])
    wrong = moved | {name: params[name][None] for name in params if name.endswith("running_var")}
    assert float(relative_change(net, params, moved, inputs)) < 1e-12
    assert float(relative_change(net, params, wrong, inputs)) > 1e-2


def test_a_mass_that_rises_or_rests_is_counted(random_curves):
    masses = random_curves[0].mass.clone()
    masses[1, 4] = masses[1, 3]
    masses[2, 4:6] = 2 * masses[2, 3]
    found = degenerate.measure([dataclasses.replace(random_curves[0], mass=masses)])
    increases = next(m for m in found if m.name == "mass_increases")
    assert (increases.low, increases.value, increases.high) == (0, 2, 2)


def test_no_minimum_mass_exists_and_the_other_freedoms_have_one():
    net = degenerate.networks(8, 10)["dense"]
    params = weights(net, 1)
    symmetries = find_symmetries(net, torch.zeros(2, 1, 8, 8, dtype=torch.float64))
    with pytest.raises(UnattainedInfimum, match="infimum is not attained"):
        min_mass(params, symmetries)
    assert bool(min_mass(params, symmetries, freedoms="affine").attained)
    plain = perceptron((64, 16, 10)).double()
    free = find_symmetries(plain, torch.zeros(2, 64, dtype=torch.float64))
    assert bool(min_mass(weights(plain, 1), free).attained)


def digits_like(n=96):
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(n) % 3
    inputs = 0.3 * torch.randn(n, 1, 6, 6, generator=generator, dtype=torch.float64)
    inputs[torch.arange(n), 0, targets, :] += 1.0
    return inputs, targets


@pytest.mark.parametrize("cell", ["dense", "convolution"])
def test_training_learns_and_repeats_itself(cell):
    inputs, targets = digits_like()
    net = degenerate.networks(6, 3, 1e-5)[cell]
    params = degenerate.trained(net, inputs, targets, seed=1, epochs=6, batch=16)
    one = {name: tensor[None] for name, tensor in params.items()}
    assert float(evaluate(net, one, inputs, targets)["accuracy"]) > 0.9
    again = degenerate.trained(degenerate.networks(6, 3, 1e-5)[cell], inputs, targets, seed=1, epochs=6, batch=16)  # fmt: skip
    assert all(torch.equal(again[name], tensor) for name, tensor in params.items())
    other = degenerate.trained(net, inputs, targets, seed=2, epochs=6, batch=16)
    assert any(not torch.equal(other[name], tensor) for name, tensor in params.items())


def test_trained_networks_are_as_degenerate_as_random_ones():
    inputs, targets = digits_like()
    found = degenerate.measure(degenerate.curves(1, seeds=2, inputs=inputs, targets=targets, epochs=2))
    worst = {(m.name, m.cell): m.value for m in found}
    for cell in ("dense", "convolution"):
        assert worst["mass_ratio", cell] == pytest.approx(1e-12, rel=1e-9)
        assert worst["output_change", cell] < 1e-9
        assert worst["output_change_epsilon", cell] > 1e-3


def test_a_training_that_diverges_is_refused():
    inputs, targets = digits_like(16)
    net = degenerate.networks(6, 3, 1e-5)["dense"]
    with pytest.raises(ValueError, match="diverged at learning rate"):
        degenerate.trained(net, inputs * torch.inf, targets, seed=1, epochs=1)
