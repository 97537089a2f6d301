"""The first paper's toy: its recipe, its four pictures, its posterior's invariants."""

import numpy as np
import torch

from lib import two_neurons
from lib.symmetry import permute, rescale

POPULATION = two_neurons.solutions(700, 300, seed=701)
GROUP = two_neurons.symmetries()


def test_the_recipe_solves_the_toy():
    kept = two_neurons.kept(POPULATION, 0.05)
    assert len(kept) > 0.9 * 300
    assert float(kept.loss.max()) <= 0.05
    assert len(two_neurons.kept(POPULATION, 0.0)) == 0


def test_the_pictures_do_not_depend_on_the_point_of_the_orbit():
    params = {name: tensor.double() for name, tensor in POPULATION.params.items()}
    moved = permute(
        rescale(params, GROUP, (torch.tensor([1.0, -0.7], dtype=torch.float64),)),
        GROUP,
        (torch.tensor([1, 0]),),
    )
    here, there = two_neurons.clouds(params, GROUP), two_neurons.clouds(moved, GROUP)
    np.testing.assert_allclose(here.both_removed, there.both_removed, rtol=1e-9)
    np.testing.assert_allclose(here.scaling_removed, there.scaling_removed[:, ::-1], rtol=1e-9)
    assert (np.diff(here.permutation_removed, axis=1) >= 0).all()
    assert not np.allclose(here.raw, there.raw)


def test_scaling_removed_means_incoming_norm_three():
    weights = POPULATION.params["0.weight"].double().norm(dim=2).numpy()
    expected = two_neurons.output_weights(POPULATION.params) * weights / 3
    np.testing.assert_allclose(
        two_neurons.clouds(POPULATION.params, GROUP).scaling_removed, expected, rtol=1e-5, atol=1e-6
    )


def test_sign_shares_sum_to_one():
    shares = two_neurons.sign_shares(np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, 1.0]]))
    assert shares == {"+ +": 0.25, "+ −": 0.25, "− +": 0.5, "− −": 0.0}


def test_invariants_are_invariant_and_raw_weights_are_not():
    drawn = two_neurons.posterior(700, sigma=2.0, chains=4, warmup=20, draws=10, leapfrog=5, seed=702)
    positions = drawn.positions
    swapped = positions[..., [2, 3, 0, 1, 5, 4, 7, 6, 8]]
    twin = type(drawn)(**{**vars(drawn), "positions": swapped})
    for name, values in two_neurons.invariants(drawn).items():
        np.testing.assert_allclose(
            values, two_neurons.invariants(twin)[name], rtol=1e-5, atol=1e-6, err_msg=name
        )
    raw, other = two_neurons.raw_weights(drawn), two_neurons.raw_weights(twin)
    np.testing.assert_array_equal(raw["first output weight"], other["second output weight"])
    assert two_neurons.as_population(drawn, every=5)["0.weight"].shape == (8, 2, 2)
