"""Joint alignment by Frank-Wolfe: the objective never falls, its slope is the gradient, planted orders are found."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent / "symmetry"))  # the hand-made networks
import handmade

from lib.matching.frank_wolfe import (
    _best_step,
    _gradient,
    _mixed,
    _owners,
    _product,
    frank_wolfe,
    mix_units,
)
from lib.matching.joint import match_many, objective
from lib.networks import optumnist
from lib.params import member, select
from lib.symmetry import Place, Symmetries, find_symmetries, identity, permute, random_permutations
from lib.symmetry.act import move_units


class Convolutions(nn.Sequential):
    """Blocks of columns where the last layer reads flattened channels; a norm with running statistics."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(36, 6), nn.Tanh(), nn.Linear(6, 3)),
        )


def convolutions() -> tuple[nn.Module, Symmetries]:
    net = Convolutions().double()
    return net, find_symmetries(net, torch.zeros(2, 1, 7, 7, dtype=torch.float64))


BUILDERS = {
    "two hidden layers": lambda: handmade.mlp(8, 12, 10, 4),
    "residual": handmade.residual,
    "a layer that feeds itself": handmade.loop,
    "convolutions": convolutions,
}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def doubly_stochastic(members: int, size: int, seed: int) -> torch.Tensor:
    orders = torch.rand(5, members, size, generator=generator(seed)).argsort(-1)
    shares = torch.rand(5, 1, 1, 1, generator=generator(seed + 1), dtype=torch.float64).softmax(0)
    return (shares * torch.eye(size, dtype=torch.float64)[orders]).sum(0)


@pytest.mark.parametrize("start", ["identity", "uniform"])
@pytest.mark.parametrize("name", BUILDERS)
def test_the_objective_never_falls_and_the_functions_stay(name: str, start: str) -> None:
    _, symmetries = BUILDERS[name]()
    params = handmade.population(BUILDERS[name]()[0], 4, seed=1)
    found = frank_wolfe(params, symmetries, start=start)
    assert (found.objective.diff() > 0).all()
    assert 2 <= found.steps <= 200
    if start == "identity":
        assert found.objective[0].item() == pytest.approx(objective(params, symmetries), rel=1e-12)
    assert found.hard == pytest.approx(objective(found.params, symmetries), rel=1e-12)
    assert found.hard > objective(params, symmetries)
    again = permute(params, symmetries, found.perms)  # which refuses what is no permutation
    assert all(torch.equal(again[key], tensor) for key, tensor in found.params.items())
    assert [tuple(perm.shape) for perm in found.perms] == [(4, g.size) for g in symmetries.permutations]


@pytest.mark.parametrize("name", ["two hidden layers", "convolutions"])
def test_where_rounding_changes_nothing_both_objectives_agree(name: str) -> None:
    net, symmetries = BUILDERS[name]()
    found = frank_wolfe(handmade.population(net, 5, seed=2), symmetries)
    assert found.hard == pytest.approx(found.objective[-1].item(), rel=1e-9)


@pytest.mark.parametrize("start", ["identity", "uniform"])
@pytest.mark.parametrize("members", [2, 3])
def test_planted_permutations_are_found_exactly(members: int, start: str) -> None:
    net, symmetries = handmade.mlp(8, 12, 10, 4)
    reference = member(handmade.population(net, 1, seed=3), 0)
    copies = permute(reference, symmetries, random_permutations(symmetries, generator(4), members))
    found = frank_wolfe(copies, symmetries, start=start)
    for key, tensor in found.params.items():
        assert torch.equal(tensor, tensor[:1].expand_as(tensor)), key
    pairs = members * (members - 1) / 2
    total = pairs * sum(float(tensor.square().sum()) for tensor in reference.values())
    assert found.hard == pytest.approx(total, rel=1e-12)
    if members == 2:
        assert all((perm[0] == torch.arange(perm.shape[1])).all() for perm in found.perms)


def test_mixing_by_permutations_moves_units_and_mixing_is_linear() -> None:
    tensor = torch.randn(3, 8, 12, 2, generator=generator(5), dtype=torch.float64)
    blocks = torch.randperm(12, generator=generator(6))[:8].view(4, 2)
    rows = Place("x", 0, torch.tensor([[2], [0], [7], [5]]))
    for place in (rows, Place("x", 1, blocks), Place("x", 1, blocks, torch.tensor([1, 6]))):
        perm = torch.rand(3, 4, generator=generator(7)).argsort(-1)
        hard = torch.eye(4, dtype=torch.float64)[perm]
        assert torch.equal(mix_units(tensor, place, hard), move_units(tensor, place, perm))
        other = doubly_stochastic(3, 4, 8)
        both = mix_units(tensor, place, 0.3 * hard + 0.7 * other)
        parts = 0.3 * mix_units(tensor, place, hard) + 0.7 * mix_units(tensor, place, other)
        assert (both - parts).abs().max() < 1e-12


@pytest.mark.parametrize("name", BUILDERS)
def test_the_gradient_is_the_slope_of_the_objective(name: str) -> None:
    net, symmetries = BUILDERS[name]()
    owners = _owners(symmetries)
    params = handmade.population(net, 3, seed=9)
    plain = {key: params[key] for key in owners}
    mixing = [doubly_stochastic(3, g.size, 10 + g.size) for g in symmetries.permutations]
    aims = [doubly_stochastic(3, g.size, 50 + g.size) for g in symmetries.permutations]

    def at(step: float) -> float:
        mixed = _mixed(plain, owners, [m + step * (a - m) for m, a in zip(mixing, aims, strict=True)])
        return _product(mixed, mixed)

    gradient = _gradient(plain, owners, mixing, _mixed(plain, owners, mixing))
    slope = sum(float((g * (a - m)).sum()) for g, a, m in zip(gradient, aims, mixing, strict=True))
    assert slope == pytest.approx((at(1e-4) - at(-1e-4)) / 2e-4, rel=1e-5)


def test_the_step_is_the_best_of_a_fine_grid() -> None:
    for seed in range(20):
        terms = torch.randn(3, 4, 6, generator=generator(seed), dtype=torch.float64)
        here, slope, bend = ({"x": term} for term in terms)
        step = _best_step(here, slope, bend)

        def at(g: float, t=terms) -> float:
            mixed = {"x": t[0] + g * t[1] + g * g * t[2]}
            return _product(mixed, mixed)

        assert 0 <= step <= 1
        assert at(step) >= max(at(g / 500) for g in range(501)) - 1e-12


def test_it_is_a_peer_of_joint_alignment() -> None:
    net, symmetries = handmade.mlp(8, 12, 10, 4)
    params = handmade.population(net, 5, seed=11)
    reference = match_many(params, symmetries, "reference").objective[-1].item()
    assert frank_wolfe(params, symmetries).hard > reference
    asked = match_many(params, symmetries, "frank_wolfe")
    assert asked.objective[-1].item() == pytest.approx(frank_wolfe(params, symmetries).hard, rel=1e-12)


def test_statistics_move_along_and_decide_nothing() -> None:
    net, symmetries = convolutions()
    params = handmade.population(net, 3, seed=12)
    loud = params | {"1.running_var": params["1.running_var"] * 1e6}
    a, b = (frank_wolfe(x, symmetries) for x in (params, loud))
    assert all(torch.equal(x, y) for x, y in zip(a.perms, b.perms, strict=True))
    group = next(i for i, g in enumerate(symmetries.permutations) if g.size == 5)
    assert torch.equal(b.params["1.running_var"], loud["1.running_var"].gather(1, b.perms[group]))


def test_seeds_and_the_number_of_steps() -> None:
    net, symmetries = handmade.mlp(8, 12, 10, 4)
    params = handmade.population(net, 4, seed=13)
    one, same, other = (frank_wolfe(params, symmetries, start="uniform", seed=s) for s in (1, 1, 2))
    assert torch.equal(one.objective, same.objective)
    assert one.objective[0] != other.objective[0]
    assert frank_wolfe(params, symmetries, iterations=3).steps == 3
    still = frank_wolfe(params, symmetries, iterations=0)
    assert all((p == i).all() for p, i in zip(still.perms, identity(symmetries), strict=True))
    two = frank_wolfe(select(params, slice(0, 2)), symmetries, start="uniform", iterations=0)
    assert all(torch.equal(p[0], i) for p, i in zip(two.perms, identity(symmetries), strict=True))
    assert not any(torch.equal(p[1], i) for p, i in zip(two.perms, identity(symmetries), strict=True))


def test_five_small_gains_in_a_row_end_it() -> None:
    net, symmetries = handmade.loop()
    found = frank_wolfe(handmade.population(net, 4, seed=3), symmetries)
    gains = found.objective.diff() / found.objective[:-1].abs()
    assert (gains[-5:] < 1e-6).all()
    assert gains[-6] >= 1e-6
    assert found.steps < 200


def test_misuse_is_refused() -> None:
    net, symmetries = handmade.mlp(8, 12, 10, 4)
    params = handmade.population(net, 3, seed=14)
    for few in (member(params, 0), select(params, slice(0, 1))):
        with pytest.raises(ValueError, match="at least two networks"):
            frank_wolfe(few, symmetries)
    with pytest.raises(ValueError, match="no start 'random'"):
        frank_wolfe(params, symmetries, start="random")
    params["2.weight"][1, 0, 0] = torch.inf
    with pytest.raises(ValueError, match="network 1 has weights that are not finite"):
        frank_wolfe(params, symmetries)
    grouped = optumnist()
    found = find_symmetries(grouped, torch.zeros(2, 1, 28, 28))
    with pytest.raises(ValueError, match="live inside exchangeable blocks"):
        frank_wolfe(handmade.population(grouped, 2, 1), found)
