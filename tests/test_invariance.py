"""The measurement of exactness, and that it sees a wrong action."""

import pytest
import torch

from lib import invariance
from lib.networks import optumnist, perceptron
from lib.symmetry import find_symmetries


def test_measurements_are_those_that_the_ledger_judges():
    found = invariance.measure(7, elements=2, seeds=2)
    exact = {m.cell: m for m in found if m.name == "invariance"}
    broken = {m.cell: m for m in found if m.name == "broken_scaling"}
    assert set(broken) == {"tanh", "SiLU"}
    assert len(exact) == 6
    assert all(m.n == 4 and m.seeds == 2 for m in found)
    assert max(m.high for m in exact.values()) < 1e-9
    assert min(m.low for m in broken.values()) > 1e-3
    assert all(m.value == m.high for m in exact.values())
    assert all(m.value == m.low for m in broken.values())


def test_a_permutation_that_forgets_a_bias_is_seen():
    net = perceptron((4, 3, 2)).double()
    params = invariance.weights(net, 1)
    order = torch.tensor([1, 2, 0])
    wrong = params | {"0.weight": params["0.weight"][order], "2.weight": params["2.weight"][:, order]}
    inputs = torch.eye(4, dtype=torch.float64)
    change = invariance.relative_change(net, params, {k: v[None] for k, v in wrong.items()}, inputs)
    assert float(change) > 1e-2


def test_trained_networks_in_float32():
    params = {
        name: tensor[None].float() for name, tensor in invariance.weights(perceptron((4, 3, 2)), 1).items()
    }
    (found,) = invariance.measure_trained({"x": params}, {"x": torch.eye(4)}, elements=5, seed=0)
    assert found.name == "invariance_float32"
    assert 0 < found.value < 1e-4
    assert found.n == 5


@pytest.mark.parametrize("seed", [1, 2])
def test_exhibits_have_their_own_weights_and_running_statistics(seed):
    net = perceptron((4, 3, 2), norm=torch.nn.BatchNorm1d, eps=0.0)
    params = invariance.weights(net, seed)
    assert (params["1.running_var"] > 0.4).all()
    assert not torch.equal(params["1.running_mean"], invariance.weights(net, seed + 1)["1.running_mean"])


def test_optumnist_has_355_parameters_and_its_group():
    net = optumnist()
    assert sum(p.numel() for p in net.parameters()) == 355
    assert net(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert [group.size for group in find_symmetries(net, torch.zeros(2, 1, 28, 28)).permutations].count(
        5
    ) == 2


def test_a_network_needs_two_widths():
    with pytest.raises(ValueError, match="input and an output"):
        perceptron((3,))
