"""VGG-16 and ResNet-20: their layers, their initial weights, and the symmetries that are found in them."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn
from torch.func import functional_call

from lib.convnets import Average, ChannelNorm, initial_kaiming, resnet20, vgg16
from lib.matching import match
from lib.params import Params, member
from lib.population import predict
from lib.symmetry import Symmetries, find_symmetries, permute, random_permutations

WIDTH = 3
VGG_GROUPS = [1, 1, 2, 2, 4, 4, 4, 8, 8, 8, 8, 8, 8]
SIDES = {vgg16: 16, resnet20: 8}
NETWORKS = {
    "VGG-16, layer": (vgg16, "layer"),
    "VGG-16, batch": (vgg16, "batch"),
    "VGG-16, none": (vgg16, None),
    "ResNet-20, layer": (resnet20, "layer"),
    "ResNet-20, batch": (resnet20, "batch"),
}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(build, count: int = 8) -> torch.Tensor:
    side = SIDES[build]
    return torch.randn(count, 3, side, side, generator=generator(1), dtype=torch.float64)


@cache
def setting(name: str) -> tuple[nn.Module, Symmetries, torch.Tensor]:
    build, norm = NETWORKS[name]
    net = build(WIDTH, norm).double().eval()
    return net, find_symmetries(net, images(build, 2)), images(build)


def moved_away(params: Params) -> Params:
    """Everything that starts at 0 or 1 (biases, norms, running statistics) at random numbers instead."""
    draw = generator(2)
    found = {}
    for name, tensor in params.items():
        noise = torch.rand(tensor.shape, generator=draw, dtype=torch.float64)
        plain = tensor.ndim > 2 or not tensor.is_floating_point()
        found[name] = tensor if plain else tensor + (noise if name.endswith("var") else noise - 0.5)
    return found


def change(net: nn.Module, params: Params, other: Params, inputs: torch.Tensor) -> float:
    """The largest change of an output, in units of the largest output."""
    with torch.no_grad():
        before, after = (functional_call(net, p, (inputs,)) for p in (params, other))
    return float((before - after).abs().max() / before.abs().max())


@pytest.mark.parametrize("norm", ["layer", "batch", None])
def test_a_vgg_has_one_group_a_convolution(norm):
    net = vgg16(WIDTH, norm)
    found = find_symmetries(net, torch.zeros(2, 3, 32, 32))
    assert [g.size for g in found.permutations] == [WIDTH * share for share in VGG_GROUPS]
    assert all(g.inside is None for g in found.permutations)
    convolutions = [name for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d)]
    rows = [
        [p.name for p in g.places if p.name.endswith("weight") and p.axis == 0] for g in found.permutations
    ]
    assert [names[0] for names in rows] == [f"{name}.weight" for name in convolutions]
    assert {len(names) for names in rows} == {1 if norm is None else 2}  # its filters, and its norm's scales


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_a_resnet_has_one_group_a_stream_and_one_inside_each_block(norm):
    found = find_symmetries(resnet20(WIDTH, norm), torch.zeros(2, 3, 32, 32))
    filters = [
        {p.name for p in g.places if p.axis == 0 and len(found.shapes[p.name]) == 4}
        for g in found.permutations
    ]
    streams = [
        (WIDTH, {"0.weight", "3.conv2.weight", "4.conv2.weight", "5.conv2.weight"}),
        (2 * WIDTH, {"6.shortcut.0.weight", *(f"{i}.conv2.weight" for i in (6, 7, 8))}),
        (4 * WIDTH, {"9.shortcut.0.weight", *(f"{i}.conv2.weight" for i in (9, 10, 11))}),
    ]
    inner = [(WIDTH << stage, {f"{3 + 3 * stage + i}.conv1.weight"}) for stage in range(3) for i in range(3)]
    sizes = [g.size for g in found.permutations]
    assert sorted(zip(sizes, map(sorted, filters), strict=True)) == sorted(
        (size, sorted(names)) for size, names in [*streams, *inner]
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_random_permutation_leaves_the_outputs(name, dtype, tolerance):
    net, symmetries, inputs = setting(name)
    params = member(moved_away(initial_kaiming(net, 1, seed=3)), 0)
    net, inputs = deepcopy(net).to(dtype), inputs.to(dtype)
    params = {k: v.to(dtype) if v.is_floating_point() else v for k, v in params.items()}
    for seed in range(3):
        other = permute(params, symmetries, random_permutations(symmetries, generator(seed)))
        assert max((params[k] - other[k]).abs().max() for k in params) > 0.1
        assert change(net, params, other, inputs) <= tolerance


@pytest.mark.parametrize("name", NETWORKS)
def test_a_specification_without_one_of_its_places_changes_the_outputs(name):
    """Every place of every group is needed, the norms' among them."""
    net, symmetries, inputs = setting(name)
    params = member(moved_away(initial_kaiming(net, 1, seed=3)), 0)
    tried = set()
    for g in (0, 5, 11):
        group = symmetries.permutations[g]
        swap = [torch.arange(each.size) for each in symmetries.permutations]
        swap[g] = swap[g].roll(1)
        assert change(net, params, permute(params, symmetries, swap), inputs) <= 1e-12
        for left_out in group.places:
            places = tuple(place for place in group.places if place is not left_out)
            groups = list(symmetries.permutations)
            groups[g] = replace(group, places=places)
            wrong = replace(symmetries, permutations=tuple(groups))
            assert change(net, params, permute(params, wrong, swap), inputs) > 1e-5, left_out.name
            tried.add(left_out.name.rpartition(".")[2])
    statistics = {"running_mean", "running_var"} if NETWORKS[name][1] == "batch" else set()
    assert tried >= {"weight", "bias", *statistics}


@pytest.mark.parametrize("name", [name for name in NETWORKS if name.startswith("VGG")])
def test_planted_permutations_of_a_vgg_are_found_exactly(name):
    net, symmetries, _ = setting(name)
    reference = member(moved_away(initial_kaiming(net, 1, seed=4)), 0)
    copies = permute(reference, symmetries, random_permutations(symmetries, generator(5), 4))
    found = match(reference, copies, symmetries).params
    assert all(torch.equal(tensor, reference[k].expand_as(tensor)) for k, tensor in found.items())


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_a_planted_permutation_of_a_resnet_reaches_the_greatest_objective(norm):
    """Which is the squared norm of all parameters; equal orders are not asked for, where units could tie."""
    net, symmetries, _ = setting(f"ResNet-20, {norm}")
    reference = member(moved_away(initial_kaiming(net, 1, seed=4)), 0)
    copies = permute(reference, symmetries, random_permutations(symmetries, generator(5), 4))
    found = match(reference, copies, symmetries)
    greatest = sum(reference[name].square().sum() for name, _ in net.named_parameters())
    assert (found.objective[0] < 0.9 * greatest).all()
    assert torch.allclose(found.objective[-1], greatest.expand(4), rtol=1e-12)


def test_a_channel_norm_normalises_the_channels_of_each_position():
    x = torch.randn(2, 5, 3, 4, generator=generator(6), dtype=torch.float64)
    norm = ChannelNorm(5).double()
    scale, shift = torch.arange(1.0, 6.0).double(), torch.arange(5.0).double()
    norm.load_state_dict({"weight": scale, "bias": shift})
    var, mean = torch.var_mean(x, 1, correction=0, keepdim=True)
    expected = (x - mean) / (var + norm.eps).sqrt() * scale[:, None, None] + shift[:, None, None]
    assert torch.allclose(norm(x), expected, rtol=1e-12, atol=1e-12)
    over_positions = nn.functional.group_norm(x, 1, scale, shift)
    assert (norm(x) - over_positions).abs().max() > 0.1


def test_the_average_is_that_of_positions_and_every_population_is_evaluated_without_a_warning():
    x = torch.randn(2, 5, 3, 4, generator=generator(6), dtype=torch.float64)
    assert torch.allclose(Average()(x), nn.AdaptiveAvgPool2d(1)(x), rtol=1e-12)
    for build, norm in NETWORKS.values():
        net = build(2, norm)
        predict(net, initial_kaiming(net, 2, seed=7), torch.zeros(1, 3, 32, 32))


def test_sizes_are_those_of_the_literature():
    convolutions = [layer for layer in vgg16(64) if isinstance(layer, nn.Conv2d)]
    assert sum(p.numel() for layer in convolutions for p in layer.parameters()) == 14_714_688
    assert sum(p.numel() for p in resnet20(16, "batch").parameters()) == 272_474
    for build in (vgg16, resnet20):
        net = build(2, classes=7, channels=1)
        assert net(torch.zeros(3, 1, 32, 32)).shape == (3, 7)
        averaged = net[:-3](torch.zeros(1, 1, 32, 32))
        assert averaged.shape[1:] == ((16, 2, 2) if build is vgg16 else (8, 8, 8))


def test_an_unknown_norm_is_refused():
    for build in (vgg16, resnet20):
        with pytest.raises(
            ValueError, match="there is no norm 'group' here: choose one of 'layer', 'batch', None"
        ):
            build(2, "group")


def test_initial_weights_have_the_variance_of_kaiming():
    net = resnet20(16, "batch")
    params = initial_kaiming(net, 4, seed=7)
    assert list(params) == list(net.state_dict())
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            weight = params[f"{name}.weight"]
            assert weight.shape == (4, *layer.weight.shape)
            fan_in, n = layer.weight[0].numel(), weight.numel()
            assert abs(weight.std() * (fan_in / 2) ** 0.5 - 1) < 4 / (2 * n) ** 0.5
            assert abs(weight.mean() * (fan_in / 2) ** 0.5) < 4 / n**0.5
        elif isinstance(layer, nn.BatchNorm2d):
            for ending, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
                assert (params[f"{name}.{ending}"] == value).all()
    assert (params["14.bias"] == 0).all()
    assert not torch.equal(params["3.conv1.weight"], params["3.conv2.weight"])
    kurtosis = (params["3.conv1.weight"] / params["3.conv1.weight"].std()).pow(4).mean()
    assert abs(kurtosis - 3) < 0.3  # normal; 1.8 if uniform


def test_a_network_starts_alike_in_every_population():
    net = vgg16(2)
    many, other = initial_kaiming(net, 5, seed=8), initial_kaiming(net, 5, seed=9)
    alone = initial_kaiming(net, range(3, 4), seed=8)
    assert all(torch.equal(alone[name][0], many[name][3]) for name in many)
    for name in ("0.weight", "3.weight"):
        assert not torch.equal(many[name][3], many[name][4])
        assert not torch.equal(many[name], other[name])
