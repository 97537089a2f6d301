"""The group acts: functions stay, laws hold exactly (wreath products included), misuse is refused by name."""

from __future__ import annotations

import math

import handmade
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.params import member
from lib.symmetry.act import (
    compose,
    count_permutations,
    identity,
    inverse,
    members_of,
    permute,
    random_log_scales,
    random_permutations,
    rescale,
)

NAMES = list(handmade.BUILDERS)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def moved(a: dict, b: dict) -> bool:
    return not same(a, b)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("name", NAMES)
def test_permuting_units_leaves_the_function_and_moves_the_weights(name: str) -> None:
    net, symmetries = handmade.BUILDERS[name]()
    params, inputs = handmade.population(net, 5, seed=1), handmade.example(name, 20, seed=2)
    permuted = permute(params, symmetries, random_permutations(symmetries, generator(3), 5))
    assert moved(params, permuted)
    assert relative(handmade.outputs(net, permuted, inputs), handmade.outputs(net, params, inputs)) < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_rescaling_units_leaves_the_function_and_moves_the_weights(name: str) -> None:
    net, symmetries = handmade.BUILDERS[name]()
    params, inputs = handmade.population(net, 5, seed=1), handmade.example(name, 20, seed=2)
    rescaled = rescale(params, symmetries, random_log_scales(symmetries, generator(4), 5))
    assert moved(params, rescaled)
    assert relative(handmade.outputs(net, rescaled, inputs), handmade.outputs(net, params, inputs)) < 1e-11


@pytest.mark.parametrize("activation", [torch.nn.Tanh, torch.nn.SiLU])
def test_other_activations_keep_the_permutations_and_break_the_scales(activation: type) -> None:
    net, symmetries = handmade.mlp(6, 5, 4, 3, activation=activation)
    params, inputs = handmade.population(net, 5, seed=1), handmade.example("mlp", 20, seed=2)
    before = handmade.outputs(net, params, inputs)
    permuted = permute(params, symmetries, random_permutations(symmetries, generator(3), 5))
    rescaled = rescale(params, symmetries, random_log_scales(symmetries, generator(3), 5))
    assert relative(handmade.outputs(net, permuted, inputs), before) < 1e-12
    assert relative(handmade.outputs(net, rescaled, inputs), before) > 1e-3


def test_an_epsilon_above_zero_makes_a_normalised_scale_inexact() -> None:
    net, symmetries = handmade.batch_norm(eps=1e-2)
    params, inputs = handmade.population(net, 5, seed=1), handmade.example("batch_norm", 20, seed=2)
    shrink = (torch.full((6,), -4.0, dtype=torch.float64), torch.zeros(6, dtype=torch.float64))
    before = handmade.outputs(net, params, inputs)
    assert relative(handmade.outputs(net, rescale(params, symmetries, shrink), inputs), before) > 1e-3
    exact = (torch.zeros(6, dtype=torch.float64), shrink[0])
    assert relative(handmade.outputs(net, rescale(params, symmetries, exact), inputs), before) < 1e-12


def test_the_gather_convention() -> None:
    _, symmetries = handmade.mlp(2, 3, 1, bias=False)
    params = {
        "0.weight": torch.tensor([[0.0, 1], [2, 3], [4, 5]]),
        "2.weight": torch.tensor([[10.0, 11, 12]]),
    }
    permuted = permute(params, symmetries, [torch.tensor([2, 0, 1])])
    assert permuted["0.weight"].tolist() == [[4, 5], [0, 1], [2, 3]]
    assert permuted["2.weight"].tolist() == [[12, 10, 11]]
    scaled = rescale(params, symmetries, [torch.tensor([math.log(2), 0, math.log(4)], dtype=torch.float64)])
    assert scaled["0.weight"].tolist() == [[0, 2], [2, 3], [16, 20]]
    assert scaled["2.weight"].tolist() == [[5, 11, 3]]


@pytest.mark.parametrize("name", NAMES)
def test_group_laws_on_networks(name: str) -> None:
    net, symmetries = handmade.BUILDERS[name]()
    params = handmade.population(net, 4, seed=1)
    a, b, c = (random_permutations(symmetries, generator(seed), 4) for seed in (5, 6, 7))
    assert same(
        permute(params, symmetries, compose(symmetries, a, b)),
        permute(permute(params, symmetries, a), symmetries, b),
    )
    assert same(permute(permute(params, symmetries, a), symmetries, inverse(symmetries, a)), params)
    assert same(permute(params, symmetries, identity(symmetries)), params)
    left = compose(symmetries, compose(symmetries, a, b), c)
    right = compose(symmetries, a, compose(symmetries, b, c))
    assert all(torch.equal(x, y) for x, y in zip(left, right, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    blocks=st.integers(1, 4), parts=st.integers(1, 3), size=st.integers(1, 4), seed=st.integers(0, 2**31),
    members=st.sampled_from([(None, None), (None, 3), (3, None), (3, 3)]),
)  # fmt: skip
def test_wreath_products_of_any_depth_compose_and_invert(blocks, parts, size, seed, members) -> None:
    symmetries = handmade.nested(blocks, parts, size)
    n = blocks * parts * size
    params = {"x": torch.arange(3 * n).view(3, n), "y": torch.arange(3 * n).view(3, n)}
    draws = generator(seed)
    a, b = (random_permutations(symmetries, draws, m) for m in members)
    once = permute(permute(params, symmetries, a), symmetries, b)
    assert same(permute(params, symmetries, compose(symmetries, a, b)), once)
    for element in (a, b):
        back = compose(symmetries, element, inverse(symmetries, element))
        assert all((p == torch.arange(p.shape[-1])).all() for p in back)
        assert same(
            permute(permute(params, symmetries, inverse(symmetries, element)), symmetries, element), params
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_member_is_treated_as_a_single_network_is(name: str) -> None:
    net, symmetries = handmade.BUILDERS[name]()
    params = handmade.population(net, 4, seed=1)
    perms = random_permutations(symmetries, generator(3), 4)
    scales = random_log_scales(symmetries, generator(4), 4)
    permuted, rescaled = permute(params, symmetries, perms), rescale(params, symmetries, scales)
    for i in range(4):
        single = member(params, i)
        assert same(permute(single, symmetries, [p[i] for p in perms]), member(permuted, i))
        assert same(rescale(single, symmetries, [s[i] for s in scales]), member(rescaled, i))
        shared = permute(params, symmetries, [p[i] for p in perms])
        assert same(member(shared, i), member(permuted, i))


def test_many_elements_on_one_network_give_the_population_of_its_images() -> None:
    net, symmetries = handmade.optumnist()
    single = member(handmade.population(net, 1, seed=1), 0)
    perms = random_permutations(symmetries, generator(3), 7)
    images = permute(single, symmetries, perms)
    assert members_of(images, symmetries) == 7
    assert same(member(images, 6), permute(single, symmetries, [p[6] for p in perms]))


def test_results_own_their_memory_and_keep_their_dtype() -> None:
    net, symmetries = handmade.mlp(6, 5, 4, 3)
    params = {name: tensor.float() for name, tensor in handmade.population(net, 3, seed=1).items()}
    before = {name: tensor.clone() for name, tensor in params.items()}
    for image in (
        permute(params, symmetries, identity(symmetries)),
        rescale(params, symmetries, random_log_scales(symmetries, generator(1))),
    ):
        for tensor in image.values():
            assert tensor.dtype == torch.float32
            tensor.zero_()
    assert same(params, before)


def test_elements_are_uniform_and_repeatable() -> None:
    _, symmetries = handmade.mlp(2, 3, 1)
    perms = random_permutations(symmetries, generator(0), 60_000)[0]
    codes = perms @ torch.tensor([9, 3, 1])
    counts = torch.unique(codes, return_counts=True)[1].double()
    assert len(counts) == 6
    assert ((counts - 10_000).square() / 10_000).sum() < 25  # χ² with 5 degrees of freedom: p ≈ 1e-4
    again = random_permutations(symmetries, generator(0), 60_000)[0]
    assert torch.equal(perms, again)
    scales = random_log_scales(symmetries, generator(0), 60_000, spread=2.0)[0]
    assert abs(scales.std().item() - 2) < 0.02


def test_the_group_is_counted_exactly() -> None:
    assert count_permutations(handmade.optumnist()[1]) == 172_800
    assert count_permutations(handmade.mlp(2, 2, 1)[1]) == 2
    assert count_permutations(handmade.mlp(3, 500, 400, 1)[1]) == math.factorial(500) * math.factorial(400)
    assert count_permutations(handmade.two_grouped()[1]) == 2 * (6 * 24) ** 2


def test_gradients_flow_through_the_action() -> None:
    net, symmetries = handmade.optumnist()
    params = {name: tensor.requires_grad_() for name, tensor in handmade.population(net, 3, seed=1).items()}
    image = rescale(
        permute(params, symmetries, random_permutations(symmetries, generator(1), 3)),
        symmetries,
        random_log_scales(symmetries, generator(2), 3, spread=0.0),
    )
    sum(tensor.sum() for tensor in image.values()).backward()
    assert all(torch.equal(tensor.grad, torch.ones_like(tensor)) for tensor in params.values())


def test_misuse_is_refused_by_name() -> None:
    net, symmetries = handmade.mlp(6, 5, 4, 3)
    params = handmade.population(net, 3, seed=1)
    good = list(identity(symmetries))
    scales = [torch.zeros(5), torch.zeros(4)]
    with pytest.raises(ValueError, match=r"1 permutations for 2"):
        permute(params, symmetries, good[:1])
    with pytest.raises(ValueError, match=r"group 1 \('2'\) has 4 units, .* shape \(5,\)"):
        permute(params, symmetries, [good[0], good[0]])
    with pytest.raises(ValueError, match=r"group 0 .*: not a permutation"):
        permute(params, symmetries, [torch.tensor([0, 1, 2, 3, 3]), good[1]])
    with pytest.raises(ValueError, match="int64"):
        permute(params, symmetries, [good[0].float(), good[1]])
    with pytest.raises(ValueError, match="elements for 2 members, but 3"):
        permute(params, symmetries, [good[0].expand(2, 5), good[1]])
    with pytest.raises(ValueError, match=r"'2.bias'"):
        permute({name: tensor for name, tensor in params.items() if name != "2.bias"}, symmetries, good)
    with pytest.raises(ValueError, match=r"'4.bias' has shape \(3, 2\)"):
        permute({**params, "4.bias": torch.zeros(3, 2)}, symmetries, good)
    with pytest.raises(ValueError, match=r"'4.bias' has shape \(2, 3\)"):
        permute({**params, "4.bias": torch.zeros(2, 3)}, symmetries, good)
    with pytest.raises(ValueError, match=r"'extra'"):
        permute({**params, "extra": torch.zeros(3)}, symmetries, good)
    with pytest.raises(ValueError, match=r"freedom 1 \('2'\): a log-scale is NaN"):
        rescale(params, symmetries, [scales[0], torch.tensor([0, math.nan, 0, 0])])
    with pytest.raises(ValueError, match=r"freedom 1 .* shape \(5,\)"):
        rescale(params, symmetries, [scales[0], scales[0]])
    with pytest.raises(ValueError, match="not a permutation"):
        compose(symmetries, good, [good[0], torch.tensor([0, 0, 1, 2])])
