"""Stacks of layers against torch's own modules, their gradients against autograd, moments against sums."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from lib.free_energy.features import Layers, moments_on_points, onto, through
from lib.free_energy.regression import Regression

STACKS = {
    "one unit": Layers((1, 1)),
    "no hidden layer": Layers((3, 2)),
    "depth 3": Layers((2, 4, 3, 2)),
    "width 1 chain": Layers((1, 1, 1, 1)),
    "linear without biases": Layers((3, 2, 3), bias=False, activation="linear"),
    "ReLU without biases": Layers((2, 3, 1), bias=False),
    "linear with biases": Layers((2, 3, 1), activation="linear"),
}


def random(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def net_of(layers, last):
    modules = []
    for below, above in zip(layers.widths, layers.widths[1:], strict=False):
        modules.append(nn.Linear(below, above, bias=layers.bias, dtype=torch.float64))
        modules.append(nn.ReLU() if layers.activation == "relu" else nn.Identity())
    return nn.Sequential(*modules if last else modules[:-1])


def by_torch(layers, position, inputs, last):
    """The outputs (R, P, units, N), one network at a time, its parameters filled in the order of state_dict()."""
    net = net_of(layers, last)
    shapes = {name: p.shape for name, p in net.state_dict().items()}

    def one(row, points):
        sizes = [shape.numel() for shape in shapes.values()]
        parts = zip(shapes, row.split(sizes), strict=True)
        return functional_call(net, {name: part.view(shapes[name]) for name, part in parts}, points).mT

    return torch.stack(
        [
            torch.stack([one(row, points) for row in rows])
            for rows, points in zip(position, inputs, strict=True)
        ]
    )


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("particles", [1, 5])
@pytest.mark.parametrize("name", STACKS)
def test_values_and_gradients_are_torchs(name, particles, last):
    layers = STACKS[name]
    position = random(3, particles, layers.dimension).requires_grad_()
    inputs = random(3, 8, layers.widths[0], seed=1)
    values = layers.forward(position.detach(), inputs, last)
    expected = by_torch(layers, position, inputs, last)
    assert [v.shape[2] for v in values] == list(layers.widths)
    assert torch.equal(values[0], inputs.mT[:, None])
    torch.testing.assert_close(values[-1], expected.detach(), rtol=1e-12, atol=1e-12)

    slope = random(*expected.shape, seed=2)
    (gradient,) = torch.autograd.grad((expected * slope).sum(), position)
    before = slope.clone()
    found = layers.backward(position.detach(), values, slope, last)
    torch.testing.assert_close(found, gradient, rtol=1e-12, atol=1e-12)
    assert torch.equal(slope, before)


def test_hidden_values_are_those_of_every_layer():
    layers = STACKS["depth 3"]
    position, inputs = random(2, 3, layers.dimension), random(2, 6, 2, seed=1)
    values = layers.forward(position, inputs, last=False)
    for depth in (1, 2):
        part = Layers(layers.widths[: depth + 1])
        torch.testing.assert_close(
            values[depth], by_torch(part, position[..., : part.dimension], inputs, last=True)
        )


@pytest.mark.parametrize("name", STACKS)
def test_a_position_is_split_into_views(name):
    layers = STACKS[name]
    assert layers.dimension == sum(p.numel() for p in net_of(layers, True).parameters())
    position = torch.zeros(2, layers.dimension)
    for i, (weight, bias) in enumerate(layers.split(position)):
        assert weight.shape == (2, layers.widths[i + 1], layers.widths[i])
        weight.fill_(1.0)
        assert (bias is None) is not layers.bias
        if bias is not None:
            assert bias.shape == (2, layers.widths[i + 1])
            bias.fill_(1.0)
    assert bool((position == 1).all())


@pytest.mark.parametrize("shared", [1, 4])
def test_products_share_what_all_networks_share(shared):
    weight, values, slope = (
        random(2, 4, 3, 5),
        random(2, shared, 5, 7, seed=1),
        random(2, 4, 3, 7, seed=2),
    )
    wide = values.expand(2, 4, 5, 7).numpy()
    np.testing.assert_allclose(through(weight, values), np.einsum("rpab,rpbn->rpan", weight.numpy(), wide))
    np.testing.assert_allclose(onto(slope, values), np.einsum("rpan,rpbn->rpab", slope.numpy(), wide))
    turned = weight.mT.contiguous().mT  # strided oddly
    torch.testing.assert_close(through(turned, values), through(weight, values))


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("particles", [1, 4])
def test_moments_are_weighted_sums_over_points(particles, outputs):
    features, q = random(2, particles, 3, 6), random(2, 6, seed=1).abs()
    problem = Regression(random(2, 6, 2, seed=2), random(2, 6, outputs, seed=3), q, torch.zeros(2).double())
    gram, cross = moments_on_points(features, problem)
    f, q, y = features.numpy(), q.numpy(), problem.targets.numpy()
    np.testing.assert_allclose(gram, np.einsum("rpin,rpjn,rn->ijrp", f, f, q), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(cross, np.einsum("rpin,rno,rn->iorp", f, y, q), rtol=1e-12, atol=1e-12)
    assert gram.is_contiguous()
    assert cross.is_contiguous()


def test_a_unit_at_zero_passes_no_gradient():
    layers = Layers((1, 1))
    position, inputs = torch.zeros(1, 1, 2).double(), torch.ones(1, 3, 1).double()
    values = layers.forward(position, inputs, last=True)
    assert not layers.backward(position, values, torch.ones(1, 1, 1, 3).double(), last=True).any()
    found = layers.backward(position, values, torch.ones(1, 1, 1, 3).double(), last=False)
    assert found.tolist() == [[[3, 3]]]


def test_refusals():
    with pytest.raises(ValueError, match=r"the widths are \(1, 0, 1\): every layer needs at least one unit"):
        Layers((1, 0, 1))
    with pytest.raises(ValueError, match="the activation is 'tanh': choose one of relu, linear"):
        Layers((1, 2, 1), activation="tanh")
