"""Canonical forms: the same function, one form for every symmetric copy, and fixed points of themselves."""

from __future__ import annotations

import handmade
import pytest
import torch

from lib.params import member
from lib.symmetry.act import permute, random_log_scales, random_permutations, rescale
from lib.symmetry.canonical import canonical_form, canonicalize
from lib.symmetry.find import find_symmetries
from lib.symmetry.mass import UnattainedInfimum, mass, min_mass
from lib.symmetry.structure import PermutationGroup, Place, Symmetries

NAMES = list(handmade.BUILDERS)
PAIRS = [
    *(("unit_norm", order) for order in ("first_weight", "norm", "output", None)),
    ("min_mass", "norm"),
    ("min_mass", None),
    (None, "first_weight"),
    (None, "norm"),
]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distance(a: dict, b: dict) -> float:
    """Largest difference, relative to the largest entry of its tensor."""
    assert a.keys() == b.keys()
    return max(((a[k] - b[k]).abs().max() / b[k].abs().max().clamp(min=1e-300)).item() for k in a)


def setting(name: str, scale: str | None) -> tuple:
    net, symmetries = handmade.BUILDERS[name]()
    freedoms = ("homogeneous", "affine") if (name, scale) == ("batch_norm", "min_mass") else None
    return net, symmetries, handmade.population(net, 12, seed=1), freedoms


@pytest.mark.parametrize(("scale", "order"), PAIRS)
@pytest.mark.parametrize("name", NAMES)
def test_the_form_keeps_the_function_and_itself_and_forgets_the_copy(name, scale, order) -> None:
    net, symmetries, params, freedoms = setting(name, scale)
    form = canonicalize(params, symmetries, scale, order, freedoms=freedoms)
    inputs = handmade.example(name, 8, seed=2)
    before, after = handmade.outputs(net, params, inputs), handmade.outputs(net, form, inputs)
    assert (before - after).abs().max() < 1e-9 * before.abs().max()
    assert distance(canonicalize(form, symmetries, scale, order, freedoms=freedoms), form) < 1e-10
    copy = params
    if scale is not None:
        shifts = list(random_log_scales(symmetries, generator(3), 12))
        if freedoms is not None:
            shifts[0].zero_()  # the normalised scales are not removed here
        copy = rescale(copy, symmetries, shifts)
    if order is not None:
        copy = permute(copy, symmetries, random_permutations(symmetries, generator(4), 12))
    assert distance(canonicalize(copy, symmetries, scale, order, freedoms=freedoms), form) < 1e-9
    assert distance(form, params) > 1e-3


@pytest.mark.parametrize("order", ["first_weight", "norm", "output"])
def test_blocks_within_blocks_as_they_are_found(order: str) -> None:
    net = handmade.TiedBlocks().double()
    symmetries = find_symmetries(net, torch.randn(2, 3, 8, 8, generator=generator(1), dtype=torch.float64))
    assert sum(group.inside is not None for group in symmetries.permutations) > 5
    params = handmade.population(net, 6, seed=2)
    copy = permute(params, symmetries, random_permutations(symmetries, generator(4), 6))
    copy = rescale(copy, symmetries, random_log_scales(symmetries, generator(3), 6))
    form = canonicalize(params, symmetries, "unit_norm", order)
    assert distance(canonicalize(copy, symmetries, "unit_norm", order), form) < 1e-9
    assert distance(canonicalize(form, symmetries, "unit_norm", order), form) < 1e-10


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_step_leaves_the_copies_apart(name: str) -> None:
    _, symmetries, params, _ = setting(name, "unit_norm")
    copy = permute(params, symmetries, random_permutations(symmetries, generator(4), 12))
    copy = rescale(copy, symmetries, random_log_scales(symmetries, generator(3), 12))
    for scale, order in (("unit_norm", None), (None, "first_weight")):
        a, b = (canonicalize(x, symmetries, scale, order) for x in (params, copy))
        assert distance(a, b) > 1e-3


def test_unit_norm_reaches_every_layer_but_the_last() -> None:
    net, symmetries = handmade.mlp(6, 5, 4, 3)
    params = handmade.population(net, 20, seed=5)
    form = canonicalize(params, symmetries, "unit_norm", None)
    assert (form["0.weight"].norm(dim=2) - 1).abs().max() < 1e-12
    assert (form["2.weight"].norm(dim=2) - 1).abs().max() < 1e-12
    assert (form["4.weight"].norm(dim=2) - 1).abs().min() > 1e-6
    assert torch.equal(form["4.bias"], params["4.bias"])
    ratio = form["0.bias"] / params["0.bias"]
    assert (ratio * params["0.weight"].norm(dim=2) - 1).abs().max() < 1e-12
    three = canonicalize(params, symmetries, "unit_norm", None, norm=3.0)
    assert (three["0.weight"].norm(dim=2) - 3).abs().max() < 1e-12


def test_min_mass_reaches_the_minimum() -> None:
    net, symmetries = handmade.mlp(6, 5, 4, 3)
    params = handmade.population(net, 20, seed=5)
    form = canonicalize(params, symmetries, "min_mass", "norm")
    assert (mass(form, symmetries) / min_mass(params, symmetries).mass - 1).abs().max() < 1e-11


def test_each_order_sorts_by_what_it_says() -> None:
    net, symmetries = handmade.mlp(6, 5, 4, 3)
    params = handmade.population(net, 20, seed=6)
    first = canonicalize(params, symmetries, None, "first_weight")
    for name in ("0.weight", "2.weight"):
        assert (first[name][:, :, 0].diff(dim=1) <= 0).all()
    norms = canonicalize(params, symmetries, "min_mass", "norm")
    for name in ("0.weight", "2.weight"):
        assert (norms[name].norm(dim=2).diff(dim=1) <= 0).all()
    outgoing = canonicalize(params, symmetries, "unit_norm", "norm")
    assert (outgoing["4.weight"].norm(dim=1).diff(dim=1) <= 0).all()
    output = canonicalize(params, symmetries, None, "output")
    for name in ("2.weight", "4.weight"):
        assert (output[name][:, 0].diff(dim=1) >= 0).all()


def test_blocks_are_sorted_after_the_units_inside() -> None:
    net, symmetries = handmade.optumnist()
    params = handmade.population(net, 20, seed=7)
    form = canonicalize(params, symmetries, "unit_norm", "first_weight")
    assert (form["conv1.weight"][:, :, 0, 0, 0].diff(dim=1) <= 0).all()
    assert (form["conv2.weight"][:, :, 0, 0, 0].view(20, 2, 5).diff(dim=2) <= 0).all()
    assert (form["fc1.weight"][:, :, 0].diff(dim=1) <= 0).all()


def test_all_copies_of_one_small_network_have_one_form() -> None:
    net, symmetries = handmade.optumnist()
    single = member(handmade.population(net, 1, seed=8), 0)
    copies = permute(single, symmetries, random_permutations(symmetries, generator(9), 2000))
    raw = copies["fc1.weight"].flatten(1).unique(dim=0)
    assert len(raw) > 1900
    assert (
        len(canonicalize(copies, symmetries, None, "first_weight")["fc1.weight"].flatten(1).unique(dim=0))
        == 1
    )


@pytest.mark.parametrize("scale", ["unit_norm", "min_mass", None])
def test_the_reported_element_reaches_the_form(scale: str | None) -> None:
    net, symmetries = handmade.two_grouped()
    params = handmade.population(net, 6, seed=10)
    form = canonical_form(params, symmetries, scale, "norm")
    again = permute(rescale(params, symmetries, form.log_scales), symmetries, form.perms)
    assert distance(again, form.params) < 1e-14
    assert not any(mask.any() for mask in form.dead)
    single = canonical_form(member(params, 4), symmetries, scale, "norm")
    assert distance(single.params, member(form.params, 4)) < 1e-13
    assert torch.equal(single.perms[0], form.perms[0][4])


@pytest.mark.parametrize("scale", ["unit_norm", "min_mass"])
def test_dead_units_are_left_alone_and_reported(scale: str) -> None:
    net, symmetries = handmade.mlp(6, 5, 4, 3)
    params = handmade.population(net, 4, seed=11)
    params["0.weight"][1, 2] = 0
    params["0.weight"][2, 0, 0] = torch.nan
    form = canonical_form(params, symmetries, scale, None)
    assert form.dead[0].nonzero().tolist() == [[1, 2]]
    assert not form.dead[1].any()
    assert form.log_scales[0][1, 2] == 0
    assert form.params["0.bias"][1, 2] == params["0.bias"][1, 2]
    others = torch.tensor([0, 1, 3])
    assert all(torch.isfinite(tensor[others]).all() for tensor in form.params.values())
    inputs = handmade.example("mlp", 8, seed=2)
    before, after = (handmade.outputs(net, x, inputs)[others] for x in (params, form.params))
    assert (before - after).abs().max() < 1e-9 * before.abs().max()
    canonicalize(params, symmetries, scale, "first_weight")


def test_ties_keep_their_order_and_the_dtype_stays() -> None:
    net, symmetries = handmade.mlp(2, 3, 1)
    params = {name: tensor.float() for name, tensor in handmade.population(net, 2, seed=12).items()}
    params["0.weight"][:, :, 0] = 1.0
    form = canonical_form(params, symmetries, None, "first_weight")
    assert (form.perms[0] == torch.arange(3)).all()
    assert all(tensor.dtype == torch.float32 for tensor in form.params.values())
    same = canonicalize(params, symmetries, None, None)
    assert all(torch.equal(same[name], params[name]) for name in params)


def test_misuse_is_refused() -> None:
    net, symmetries = handmade.batch_norm()
    params = handmade.population(net, 3, seed=13)
    with pytest.raises(UnattainedInfimum):
        canonicalize(params, symmetries, "min_mass")
    readers = {f"{i}.weight": torch.Size([2, 2]) for i in range(2)}
    circle = [
        PermutationGroup(
            2,
            (Place(f"{i}.weight", 0, handmade.units(2)), Place(f"{1 - i}.weight", 1, handmade.units(2))),
            str(i),
        )
        for i in range(2)
    ]
    weights = {name: torch.ones(shape) for name, shape in readers.items()}
    with pytest.raises(ValueError, match="in a circle"):
        canonicalize(weights, Symmetries(tuple(circle), (), readers), None)
