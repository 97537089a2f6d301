"""Pruning: the right weights go, in exact numbers; masks move with units; what is dead stays dead in training."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from lib import pruning
from lib.convnets import initial_kaiming, resnet20, vgg16
from lib.networks import perceptron
from lib.params import Params, select
from lib.population import Cosine, Recipe, initial, train, walk
from lib.symmetry import find_symmetries, permute, random_permutations

NET = perceptron((6, 8, 7, 3))
NAMES = ["0.weight", "2.weight"]
SIZES = {"0.weight": 48, "2.weight": 56}
RECIPE = Recipe(lr=0.1, batch_size=10, epochs=3, momentum=0.9, weight_decay=1e-2, schedule=Cosine(), warmup=1)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def population(members: int = 3) -> Params:
    return initial(NET, members, seed=1)


def examples(count: int = 35) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(count, 6, generator=generator(2)), torch.arange(count) % 3


def levels(params: Params, rates) -> list[pruning.Masks]:
    masks = [pruning.full(params, NAMES)]
    for rate in rates:
        masks.append(pruning.prune(params, masks[-1], rate))
    return masks


def living(masks: pruning.Masks) -> list[int]:
    return sum(mask.flatten(1).sum(1) for mask in masks.values()).tolist()


def same(a: Params, b: Params) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_every_layer_but_the_head_is_pruned():
    assert pruning.prunable(NET) == NAMES
    assert len(pruning.prunable(vgg16(2, "batch"))) == 13
    names = pruning.prunable(resnet20(2))
    assert len(names) == 21  # 19 convolutions of size 3, two shortcuts
    assert "14.weight" not in names
    assert {"0.weight", "3.conv1.weight", "6.shortcut.0.weight"} <= set(names)
    assert not any("norm" in name or name.endswith("bias") for name in names)
    with pytest.raises(ValueError, match="no hidden layer"):
        pruning.prunable(perceptron((4, 3)))


def test_the_smallest_of_the_living_weights_go_from_each_network_in_exact_numbers():
    params = population()
    masks = levels(params, [0.2] * 12)
    count = 104
    for before, after in pairwise(masks):
        gone = count // 5  # a fifth, rounded down
        count -= gone
        assert living(after) == [count] * 3
        for i in range(3):
            sizes = torch.cat([params[name][i].abs()[before[name][i]] for name in NAMES]).sort().values
            died = torch.cat([params[name][i].abs()[before[name][i] & ~after[name][i]] for name in NAMES])
            assert torch.equal(died.sort().values, sizes[:gone])
    shares = masks[3]["0.weight"].flatten(1).sum(1) / 48, masks[3]["2.weight"].flatten(1).sum(1) / 56
    assert not torch.equal(*shares)  # one threshold for a network, not one for a layer


def test_masks_are_nested_and_stay_so_with_other_weights():
    masks = levels(population(), [0.3, 0.3])
    other = pruning.prune(initial(NET, 3, seed=5), masks[-1], 0.3)
    for inner, outer in ((masks[2], masks[1]), (other, masks[2])):
        assert all((inner[name] <= outer[name]).all() for name in NAMES)
        assert max(living(inner)) < min(living(outer))


def test_the_number_that_goes_is_exact_where_single_precision_is_not():
    count = (1 << 24) + 3
    masks = {"a": torch.ones(1, count, dtype=torch.bool)}
    found = pruning.prune({"a": torch.zeros(1, count)}, masks, 0.5)
    assert int(found["a"].sum()) == count - count // 2


def test_of_equal_weights_the_first_go_first():
    equal = {name: torch.ones_like(tensor) for name, tensor in population().items()}
    masks = pruning.prune(equal, pruning.full(equal, NAMES), 0.5)
    assert (masks["0.weight"].flatten(1).sum(1) == 0).all()
    assert torch.equal(masks["2.weight"][0].flatten(), torch.arange(56) >= 4)
    zeros = pruning.apply(
        population(), masks
    )  # dead weights are zero, and never pruned again in place of living ones
    again = pruning.prune(zeros, masks, 0.5)
    assert living(again) == [26] * 3
    assert all((again[name] <= masks[name]).all() for name in NAMES)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_an_impossible_rate_is_refused(rate):
    params = population()
    with pytest.raises(ValueError, match="must lie in"):
        pruning.prune(params, pruning.full(params, NAMES), rate)
    assert same(pruning.prune(params, pruning.full(params, NAMES), 0.0), pruning.full(params, NAMES))


def test_a_mask_puts_dead_weights_at_zero_and_nothing_else():
    params = population()
    mask = levels(params, [0.6])[-1]
    found = pruning.apply(params, mask)
    for name, tensor in params.items():
        expected = torch.where(mask[name], tensor, 0.0) if name in mask else tensor
        assert torch.equal(found[name], expected)
    uneven = {name: m.clone() for name, m in mask.items()}
    uneven["0.weight"][1] = False
    share = (42 - mask["0.weight"][1].sum()).item() / 104  # 104 - 62 live
    assert pruning.density(uneven).tolist() == [42 / 104, share, 42 / 104]
    half = round(share * 104) // 2  # of each network's own number
    assert living(pruning.prune(params, uneven, 0.5)) == [21, round(share * 104) - half, 21]


@pytest.mark.parametrize("each", [None, 3])
def test_masks_move_with_their_networks(each):
    params, symmetries = population(), find_symmetries(NET, torch.zeros(2, 6))
    masks = levels(params, [0.5, 0.2])[-1]
    perms = random_permutations(symmetries, generator(3), each)
    moved, moved_masks = permute(params, symmetries, perms), pruning.permute_masks(masks, symmetries, perms)
    assert not same(moved_masks, masks)
    assert all(mask.dtype == torch.bool for mask in moved_masks.values())
    assert same(pruning.apply(moved, moved_masks), permute(pruning.apply(params, masks), symmetries, perms))
    again = pruning.permute_masks(pruning.prune(params, masks), symmetries, perms)
    assert same(pruning.prune(moved, moved_masks), again)


def test_masks_of_a_residual_network_move_along_its_streams():
    net = resnet20(2, "batch")
    params, symmetries = initial_kaiming(net, 2, seed=4), find_symmetries(net, torch.zeros(2, 3, 8, 8))
    masks = pruning.prune(params, pruning.full(params, pruning.prunable(net)), 0.7)
    perms = random_permutations(symmetries, generator(4), 2)
    whole = permute(pruning.apply(params, masks), symmetries, perms)
    moved = pruning.permute_masks(masks, symmetries, perms)
    assert same(pruning.apply(permute(params, symmetries, perms), moved), whole)
    assert list(moved) == pruning.prunable(net)


def test_random_masks_have_as_many_living_weights_in_each_tensor():
    masks = levels(population(), [0.6])[-1]
    found = pruning.random_like(masks, seed=1)
    for name in NAMES:
        assert torch.equal(found[name].flatten(1).sum(1), masks[name].flatten(1).sum(1))
        assert not torch.equal(found[name], masks[name])
        assert not torch.equal(found[name][0], found[name][1])
    assert same(found, pruning.random_like(masks, seed=1))
    assert not same(found, pruning.random_like(masks, seed=2))
    assert not same(found, pruning.random_like(masks, seed=1, purpose="another"))
    assert same(select(found, slice(2)), pruning.random_like(select(masks, slice(2)), seed=1))


def test_living_weights_of_random_masks_lie_anywhere():
    masks = {"a": torch.arange(20).expand(2000, 20) < 5}
    share = pruning.random_like(masks, seed=1)["a"].double().mean(0)
    assert (share - 0.25).abs().max() < 5 * (0.25 * 0.75 / 2000) ** 0.5


@pytest.mark.parametrize("fast", [True, False])
def test_dead_weights_stay_exactly_at_zero_in_training(fast):
    inputs, targets = examples()
    start = population()
    masks = levels(start, [0.7])[-1]
    found = train(NET, inputs, targets, RECIPE, members=3, seed=6, start=start, masks=masks, fast=fast).params
    for name in NAMES:
        assert (found[name][~masks[name]] == 0).all()
        assert (found[name][masks[name]] != start[name][masks[name]]).float().mean() > 0.9
    masked = pruning.apply(start, masks)
    assert same(
        found,
        train(NET, inputs, targets, RECIPE, members=3, seed=6, start=masked, masks=masks, fast=fast).params,
    )


def test_under_masks_that_spare_everything_training_is_the_ordinary_one():
    inputs, targets = examples()
    start = population()
    masks = pruning.full(start, NAMES)
    how = {"members": 3, "seed": 6, "start": start}
    masked = train(NET, inputs, targets, RECIPE, masks=masks, **how).params
    assert same(masked, train(NET, inputs, targets, RECIPE, **how).params)
    *_, last = walk(NET, inputs, targets, RECIPE, **how)
    assert same(masked, last.params)


def test_training_under_a_mask_is_torch_s_own_with_the_weights_masked():
    """In float64: the loss of the masked weights by autograd, and torch.optim.SGD, over the same batches."""
    net = perceptron((6, 8, 7, 3)).double()
    inputs, targets = examples()
    inputs, recipe = (
        inputs.double(),
        replace(RECIPE, batch_size=35),
    )  # one batch, whose order is of no account
    start = initial(net, 1, seed=1)
    masks = levels(start, [0.6])[-1]
    found = train(net, inputs, targets, recipe, members=1, seed=6, start=start, masks=masks).params
    own = {name: tensor[0].clone().requires_grad_() for name, tensor in pruning.apply(start, masks).items()}
    optimiser = torch.optim.SGD(own.values(), lr=1.0, momentum=0.9, weight_decay=1e-2)
    for step in range(3):
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate(step, 1)
        optimiser.zero_grad()
        masked = {name: tensor * masks[name][0] if name in masks else tensor for name, tensor in own.items()}
        F.cross_entropy(functional_call(net, masked, (inputs,)), targets).backward()
        optimiser.step()
    for name, tensor in own.items():
        assert torch.allclose(found[name][0], tensor.detach(), rtol=1e-10, atol=1e-12), name


def test_a_network_trains_alike_beside_others_with_other_masks():
    inputs, targets = examples()
    start = population()
    masks = levels(start, [0.7])[-1]
    together = train(NET, inputs, targets, RECIPE, members=3, seed=6, start=start, masks=masks).params
    one = slice(1, 2)
    alone = train(
        NET,
        inputs,
        targets,
        RECIPE,
        members=range(1, 2),
        seed=6,
        start=select(start, one),
        masks=select(masks, one),
    ).params
    assert same(alone, select(together, one))


def test_permuted_networks_train_under_permuted_masks_to_permuted_networks():
    net = perceptron((6, 8, 7, 3)).double()
    inputs, targets = examples()
    start, symmetries = initial(net, 3, seed=1), find_symmetries(net, torch.zeros(2, 6))
    masks, perms = levels(start, [0.6])[-1], random_permutations(symmetries, generator(7), 3)
    how = {"members": 3, "seed": 6}
    plain = train(net, inputs.double(), targets, RECIPE, start=start, masks=masks, **how).params
    moved = train(
        net,
        inputs.double(),
        targets,
        RECIPE,
        start=permute(start, symmetries, perms),
        masks=pruning.permute_masks(masks, symmetries, perms),
        **how,
    ).params
    for name, tensor in permute(plain, symmetries, perms).items():
        assert torch.allclose(moved[name], tensor, rtol=1e-9, atol=1e-12), name


def test_a_convolutional_network_with_running_statistics_trains_under_a_mask():
    net = vgg16(2, "batch", classes=3, channels=1)
    inputs, targets = torch.randn(20, 1, 16, 16, generator=generator(8)), torch.arange(20) % 3
    start = initial_kaiming(net, 1, seed=9)
    masks = pruning.prune(start, pruning.full(start, pruning.prunable(net)), 0.8)
    found = train(
        net, inputs, targets, replace(RECIPE, epochs=1), members=1, seed=6, start=start, masks=masks
    ).params
    assert all((found[name][~mask] == 0).all() for name, mask in masks.items())
    assert float(pruning.density(masks)) == pytest.approx(0.2, abs=1e-3)
    assert (found["1.running_mean"] != 0).all()
