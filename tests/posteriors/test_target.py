"""The hand-written gradients against autograd, and the layout of positions."""

import pytest
import torch
from torch import nn

from lib import randomness
from lib.posteriors import target

NETS = {
    "two neurons": (nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)), 1),
    "two hidden layers": (
        nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1)),
        1,
    ),
    "no biases": (nn.Sequential(nn.Linear(3, 5, bias=False), nn.ReLU(), nn.Linear(5, 1, bias=False)), 1),
}


def positions_of(net, chains=7):
    size = sum(p.numel() for p in net.parameters())
    return randomness.normal(3, torch.arange(chains), "test", 0, (size,), torch.float64)


def data_of(net, n=11):
    inputs = randomness.normal(4, torch.arange(1), "inputs", 0, (n, net[0].in_features), torch.float64)[0]
    return inputs, (inputs.sum(1) > 0).double()


@pytest.mark.parametrize("name", NETS)
def test_gradient_is_the_derivative_of_the_value(name):
    net, _ = NETS[name]
    positions = positions_of(net).requires_grad_()
    inputs, labels = data_of(net)
    outputs = target.outputs_of(net, positions, inputs)
    value = -nn.functional.binary_cross_entropy_with_logits(
        outputs.squeeze(-1), labels.expand(len(positions), -1), reduction="none"
    ).sum(1)
    prior = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), 1.7)
    value = value + prior.log_prob(positions).sum(1)
    (gradient,) = torch.autograd.grad(value.sum(), positions)

    found, slope = target.log_posterior(net, inputs, labels, sigma=1.7)(positions.detach())

    torch.testing.assert_close(found, value.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slope, gradient, rtol=1e-12, atol=1e-12)


def test_other_networks_go_through_autograd_and_agree():
    plain = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1))
    wrapped = nn.Sequential(nn.Linear(3, 5), nn.LeakyReLU(0.0), nn.Linear(5, 1))
    inputs, labels = data_of(plain)
    one, two = (
        target.log_posterior(net, inputs, labels, sigma=2.0)(positions_of(plain)) for net in (plain, wrapped)
    )
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_gaussian_likelihood_is_the_normal_density():
    outputs = randomness.normal(1, torch.arange(4), "outputs", 0, (6, 2), torch.float64)
    targets = randomness.normal(1, torch.arange(1), "targets", 0, (6, 2), torch.float64)[0]
    value, slope = target.gaussian(outputs, targets)
    expected = torch.distributions.Normal(outputs, torch.ones_like(outputs)).log_prob(targets).sum((1, 2))
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(slope, targets - outputs)


def test_ravel_and_unravel_are_inverse():
    net, _ = NETS["two hidden layers"]
    positions = positions_of(net)
    params = target.unravel(positions, net)
    assert {name: tuple(t.shape[1:]) for name, t in params.items()} == {
        n: tuple(p.shape) for n, p in net.named_parameters()
    }
    assert torch.equal(target.ravel(params), positions)


def test_wrong_sizes_are_refused_by_name():
    net, _ = NETS["two neurons"]
    with pytest.raises(ValueError, match="10 coordinates, but the network has 9 parameters"):
        target.unravel(torch.zeros(3, 10), net)
    with pytest.raises(ValueError, match="sigma is 0"):
        target.log_posterior(net, *data_of(net), sigma=0.0)
