"""Weight matching: planted permutations are found, the best of all is found, and nothing ever gets worse."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent / "symmetry"))  # the hand-made networks
import handmade

from lib.matching import canonical_by_matching, match
from lib.networks import optumnist, perceptron
from lib.params import member
from lib.symmetry import (
    canonicalize,
    find_symmetries,
    permute,
    random_log_scales,
    random_permutations,
    rescale,
)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distance(a: dict, b: dict) -> float:
    assert a.keys() == b.keys()
    return max(((a[k] - b[k]).abs().max() / b[k].abs().max().clamp(min=1e-300)).item() for k in a)


class Norms(nn.Module):
    """Grouped convolution and GroupNorm between convolutions: units inside blocks, with biases and norm parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(1, 6, 3), nn.GroupNorm(3, 6)
        self.conv2, self.head = nn.Conv2d(6, 4, 3), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv2(self.norm(self.conv1(x)).relu()).relu()
        return self.head(x.mean((2, 3)))


FOUND = {
    "two hidden layers": (lambda: perceptron((8, 12, 10, 4)), (8,)),
    "OptuMNIST, two groups": (optumnist, (1, 28, 28)),
    "residual net": (handmade.Residual, (4,)),
    "two grouped convolutions": (handmade.TwoGrouped, (1, 12)),
    "blocks in blocks": (handmade.TiedBlocks, (3, 8, 8)),
    "group norm": (Norms, (1, 8, 8)),
    "a layer that feeds itself": (handmade.Loop, (4,)),
}


def setting(name: str, members: int) -> tuple:
    build, shape = FOUND[name]
    net = build().double()
    example = torch.randn(4, *shape, generator=generator(1), dtype=torch.float64)
    return net, find_symmetries(net, example[:2]), handmade.population(net, members, seed=2), example


@pytest.mark.parametrize("name", FOUND)
def test_planted_permutations_are_found_exactly(name: str) -> None:
    _, symmetries, params, _ = setting(name, 1)
    reference = member(params, 0)
    copies = permute(reference, symmetries, random_permutations(symmetries, generator(3), 20))
    found = match(reference, copies, symmetries)
    assert distance(copies, {k: v[None] for k, v in reference.items()}) > 0.1
    for name_, tensor in found.params.items():
        assert torch.equal(tensor, reference[name_].expand_as(tensor)), name_
    again = permute(copies, symmetries, found.perms)
    assert all(torch.equal(again[k], found.params[k]) for k in again)


@pytest.mark.parametrize("name", [name for name in FOUND if name != "blocks in blocks"])
def test_the_objective_never_falls_and_the_function_stays(name: str) -> None:
    net, symmetries, params, inputs = setting(name, 13)
    reference, others = member(params, 0), {k: v[1:] for k, v in params.items()}
    found = match(reference, others, symmetries)
    assert found.objective.shape == (found.sweeps + 1, 12)
    assert (found.objective.diff(dim=0) >= 0).all()
    assert (found.objective[-1] > found.objective[0]).sum() >= 10
    assert torch.equal(found.objective[-1], found.objective[-2])
    for row, x in ((0, others), (-1, found.params)):
        products = sum((x[k] * reference[k]).flatten(1).sum(1) for k in x)
        assert torch.allclose(found.objective[row], products, rtol=1e-12, atol=1e-12)
    before, after = handmade.outputs(net, others, inputs), handmade.outputs(net, found.params, inputs)
    assert (before - after).abs().max() < 1e-10 * before.abs().max()
    again = match(reference, found.params, symmetries)
    assert (again.objective[-1] - found.objective[-1]).abs().max() < 1e-9 * found.objective[-1].abs().max()


@pytest.mark.parametrize("build", ["mlp", "blocks", "three levels"])
def test_it_equals_the_best_of_all_permutations(build: str) -> None:
    if build == "mlp":  # one hidden layer: 5! orders
        net, symmetries = handmade.mlp(3, 5, 2)
        params = handmade.population(net, 5, seed=4)
    elif build == "blocks":  # a wreath product whose inner groups share no weight: (2!)^6 · 3! orders
        symmetries = handmade.nested(1, 3, 2)
        params = {k: torch.randn(12, 6, generator=generator(5)).double() for k in "xy"}
    else:  # (2!)^8 · (2!)^2 · 2! orders
        symmetries = handmade.nested(2, 2, 2)
        params = {k: torch.randn(5, 8, generator=generator(6)).double() for k in "xy"}
    orders = [list(itertools.permutations(range(g.size))) for g in symmetries.permutations]
    every = [torch.tensor(column) for column in zip(*itertools.product(*orders), strict=True)]
    reference = member(params, 0)
    found = match(reference, params, symmetries)
    for i in range(len(found.objective[0])):
        copies = permute(member(params, i), symmetries, every)
        best = sum((copies[k] * reference[k]).flatten(1).sum(1) for k in copies).max()
        assert abs(found.objective[-1, i] - best) < 1e-10


def test_a_network_does_not_depend_on_its_neighbours() -> None:
    _, symmetries, params, _ = setting("OptuMNIST, two groups", 8)
    reference = member(params, 0)
    together = match(reference, params, symmetries)
    for i in (0, 3, 7):
        alone = match(reference, member(params, i), symmetries)
        assert alone.objective.ndim == 1
        assert all(torch.equal(a, b[i]) for a, b in zip(alone.perms, together.perms, strict=True))
    assert all((perm[0] == torch.arange(perm.shape[1])).all() for perm in together.perms)


def test_statistics_move_along_and_decide_nothing() -> None:
    net, symmetries = handmade.batch_norm()
    params = handmade.population(net, 5, seed=7)
    loud = params | {"1.running_var": params["1.running_var"] * 1e6}
    a, b = (match(member(params, 0), x, symmetries) for x in (params, loud))
    assert torch.equal(a.perms[0], b.perms[0])
    moved = loud["1.running_var"].gather(1, b.perms[0])
    assert torch.equal(b.params["1.running_var"], moved)


@pytest.mark.parametrize("scale", ["unit_norm", "min_mass"])
def test_the_canonical_form_forgets_scales_and_order(scale: str) -> None:
    net, symmetries, params, inputs = setting("two hidden layers", 1)
    reference = member(params, 0)
    copies = rescale(reference, symmetries, random_log_scales(symmetries, generator(8), 10))
    copies = permute(copies, symmetries, random_permutations(symmetries, generator(9), 10))
    form = canonical_by_matching(copies, symmetries, reference, scale)
    aim = canonicalize(reference, symmetries, scale, None)
    assert distance(form, {k: v.expand_as(form[k]) for k, v in aim.items()}) < 1e-9
    before, after = handmade.outputs(net, copies, inputs), handmade.outputs(net, form, inputs)
    assert (before - after).abs().max() < 1e-9 * before.abs().max()


def test_types_stay_and_equal_units_stay() -> None:
    net = perceptron((4, 6, 3))
    symmetries = find_symmetries(net, torch.zeros(2, 4))
    params = {k: v.float() for k, v in handmade.population(net, 3, seed=10).items()}
    found = match(member(params, 1), params, symmetries)
    assert all(v.dtype == torch.float32 for v in found.params.values())
    assert found.objective.dtype == torch.float64
    flat = {k: torch.ones_like(v) for k, v in params.items()}
    still = match(member(params, 1), flat, symmetries)
    assert (still.perms[0] == torch.arange(6)).all()
    assert still.sweeps == 2


def test_misuse_is_refused() -> None:
    _, symmetries, params, _ = setting("two hidden layers", 3)
    with pytest.raises(ValueError, match="3 references for 2 networks"):
        match(params, {k: v[:2] for k, v in params.items()}, symmetries)
    with pytest.raises(ValueError, match="3 references for a single network"):
        match(params, member(params, 0), symmetries)
    with pytest.raises(ValueError, match=r"'activations' is not known here.*match_activations"):
        match(member(params, 0), params, symmetries, by="activations")
    with pytest.raises(ValueError, match="no kernel 'correlation': choose 'product' or 'cosine'"):
        match(member(params, 0), params, symmetries, kernel="correlation")
    with pytest.raises(
        ValueError, match="no assignment solver called 'greedy': choose one of scipy, auction"
    ):
        match(member(params, 0), params, symmetries, assignment="greedy")
    broken = {k: v.clone() for k, v in params.items()}
    broken["2.weight"][1, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="network 1 has weights that are not finite"):
        match(member(params, 0), broken, symmetries)
    with pytest.raises(ValueError, match="the reference has weights"):
        match(member(broken, 1), params, symmetries)
    with pytest.raises(ValueError, match="lack the tensor"):
        match({}, params, symmetries)
