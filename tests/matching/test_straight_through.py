"""Straight-through estimation: never above weight matching at the midpoint, below it where gradients help."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from lib.data import Dataset, load
from lib.matching import match
from lib.matching.straight_through import StraightThrough, straight_through
from lib.networks import perceptron
from lib.params import Params, member
from lib.population import Recipe, train
from lib.symmetry import Symmetries, find_symmetries, permute

OPTIONS = {"steps": 40, "rate": 0.03, "batch": 128}


@cache
def setting() -> tuple[nn.Module, Symmetries, Params, Dataset]:
    """Four trained networks, narrow enough that weight matching leaves a barrier."""
    digits = load("digits", "train", flat=True)
    net = perceptron((64, 16, 16, 10))
    recipe = Recipe(lr=0.1, batch_size=64, epochs=8, momentum=0.9)
    params = train(net, digits.inputs, digits.targets, recipe, members=4, seed=0).params
    return net, find_symmetries(net, digits.inputs[:2]), params, digits


def estimated(other: int, **options: float) -> StraightThrough:
    net, symmetries, params, digits = setting()
    first, second = member(params, 0), member(params, other)
    return straight_through(
        net, first, second, symmetries, digits.inputs, digits.targets, **OPTIONS | options
    )


def midpoint_loss(moved: Params) -> float:
    net, _, params, digits = setting()
    middle = {key: (params[key][0] + tensor) / 2 for key, tensor in moved.items()}
    return F.cross_entropy(functional_call(net, middle, (digits.inputs,)), digits.targets).item()


def test_it_starts_at_weight_matching_and_keeps_the_best() -> None:
    _, symmetries, params, _ = setting()
    for other in (1, 2, 3):
        found = estimated(other)
        plain = match(member(params, 0), member(params, other), symmetries)
        assert found.losses.shape == (41,)
        assert found.losses[0].item() == pytest.approx(midpoint_loss(plain.params), rel=1e-5)
        assert found.losses.min().item() == pytest.approx(midpoint_loss(found.params), rel=1e-5)
        assert found.losses.min() < found.losses[-1]  # the best is not the last one here
        again = permute(member(params, other), symmetries, found.perms)
        assert all(torch.equal(again[key], tensor) for key, tensor in found.params.items())


def test_gradients_help_where_weight_matching_leaves_a_barrier() -> None:
    losses = estimated(2).losses
    assert losses[0] > 0.5
    assert losses.min() < 0.4 * losses[0]
    assert len(losses.unique()) > 5


def test_seeds_decide_and_nothing_is_changed() -> None:
    net, _, params, _ = setting()
    before = {key: tensor.clone() for key, tensor in params.items()}
    net.train()
    one, same, other = estimated(2, seed=1), estimated(2, seed=1), estimated(2, seed=2)
    assert net.training
    assert torch.equal(one.losses, same.losses)
    assert not torch.equal(one.losses, other.losses)
    assert all(torch.equal(before[key], tensor) for key, tensor in params.items())


def test_minibatches_take_each_example_once_a_pass() -> None:
    from lib.matching.straight_through import _minibatch

    rows = torch.cat([_minibatch(10, 3, 0, step) for step in range(3)])
    assert len(rows.unique()) == len(rows) == 9
    assert not torch.equal(rows, torch.cat([_minibatch(10, 3, 0, step) for step in range(3, 6)]))
    assert torch.equal(_minibatch(10, 50, 0, 7).sort().values, torch.arange(10))


def test_without_steps_it_is_weight_matching() -> None:
    _, symmetries, params, _ = setting()
    plain = match(member(params, 0), member(params, 1), symmetries)
    found = estimated(1, steps=0)
    assert all(torch.equal(a, b) for a, b in zip(found.perms, plain.perms, strict=True))
    assert len(found.losses) == 1


def test_norms_meet_in_the_middle_with_their_statistics() -> None:
    digits = setting()[3]
    net = perceptron((64, 8, 10), norm=nn.BatchNorm1d)
    symmetries = find_symmetries(net, digits.inputs[:2])
    recipe = Recipe(lr=0.1, batch_size=64, epochs=3)
    params = train(net, digits.inputs, digits.targets, recipe, members=2, seed=3).params
    found = straight_through(
        net, member(params, 0), member(params, 1), symmetries, digits.inputs, digits.targets, steps=5
    )
    middle = {key: (params[key][0] + tensor) / 2 for key, tensor in found.params.items()}
    loss = F.cross_entropy(functional_call(net.eval(), middle, (digits.inputs,)), digits.targets)
    assert loss.item() == pytest.approx(found.losses.min().item(), rel=1e-5)


def test_misuse_is_refused() -> None:
    net, symmetries, params, digits = setting()
    data = digits.inputs, digits.targets
    with pytest.raises(ValueError, match="give single networks"):
        straight_through(net, member(params, 0), params, symmetries, *data)
    broken = member(params, 0)
    broken["0.bias"] = broken["0.bias"] + torch.nan
    with pytest.raises(ValueError, match="the first network has weights that are not finite"):
        straight_through(net, broken, member(params, 1), symmetries, *data)
    with pytest.raises(ValueError, match="the second network has weights that are not finite"):
        straight_through(net, member(params, 1), broken, symmetries, *data)
    with pytest.raises(ValueError, match="loss at the midpoint is not finite"):
        straight_through(net, *(member(params, i) for i in (0, 1)), symmetries, data[0] / 0, data[1])
