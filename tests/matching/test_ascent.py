"""Matching of wide networks, and what any matching of two networks must keep to: its exact properties."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent / "symmetry"))  # the hand-made networks
import handmade

from lib.matching import match, weights
from lib.matching.ascent import Ascent, seats
from lib.matching.assignment import assign
from lib.matching.units import owned
from lib.networks import perceptron
from lib.params import Params, member, select
from lib.symmetry import Symmetries, compose, find_symmetries, inverse, permute, random_permutations
from lib.symmetry.act import move_units


class Beside(nn.Module):
    """Two layers whose units lie side by side along one axis of the next layer's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 5), nn.Linear(4, 50)
        self.both, self.head = nn.Linear(55, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.left(x).relu(), self.right(x).relu()], 1)
        return self.head(self.both(x).relu())


def convolutional() -> nn.Module:
    """Narrow; each channel of the second convolution owns nine columns of the layer behind Flatten."""
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(8 * 9, 10), nn.ReLU(), nn.Linear(10, 3)),
    )


FOUND = {
    "three wide layers": (lambda: perceptron((12, 64, 64, 64, 4)), (12,)),
    "a wide and a narrow layer": (lambda: perceptron((12, 64, 9, 4)), (12,)),
    "convolutions": (convolutional, (1, 7, 7)),
    "side by side": (Beside, (4,)),
    "residual net": (handmade.Residual, (4,)),
    "two grouped convolutions": (handmade.TwoGrouped, (1, 12)),
}
EVERY = list(FOUND)
PLAIN = [name for name in FOUND if name != "two grouped convolutions"]  # units are plain rows and columns
CHAINS = PLAIN[:3]  # each layer's incoming weights come from layers before it


@cache
def setting(name: str) -> tuple[nn.Module, Symmetries, Params]:
    """The network, its symmetries, and a population of seven, float64, which no test changes."""
    build, shape = FOUND[name]
    net = build().double()
    example = torch.randn(2, *shape, generator=generator(1), dtype=torch.float64)
    return net, find_symmetries(net, example), handmade.population(net, 7, seed=2)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def product(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    """(P,): the inner products of networks (P, ...), float64; none of these networks has buffers."""
    return sum((a[name].double() * b[name].double()).flatten(1).sum(1) for name in a)


def alone(params: Params) -> Params:
    """A single network as a population of one."""
    return {name: tensor[None] for name, tensor in params.items()}


def same(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_names_say_what_is_wide() -> None:
    for name in FOUND:
        largest = max(group.size for group in setting(name)[1].permutations)
        assert (largest >= weights.WIDE) == ("wide" in name or name == "side by side")


@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CHAINS)
def test_planted_permutations_are_found_exactly(name: str, dtype: torch.dtype, noise: float) -> None:
    _, symmetries, params = setting(name)
    reference = {k: tensor[0].to(dtype) for k, tensor in params.items()}
    planted = random_permutations(symmetries, generator(3), 5)
    copies = permute(reference, symmetries, planted)
    noisy = {
        k: t * (1 + noise * torch.randn(t.shape, generator=generator(4))).to(dtype) for k, t in copies.items()
    }
    found = match(reference, noisy, symmetries)
    assert same(found.perms, inverse(symmetries, planted))
    assert all(tensor.dtype == dtype for tensor in found.params.values())
    if not noise:
        assert all(torch.equal(found.params[k], reference[k].expand_as(found.params[k])) for k in reference)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", EVERY)
def test_the_objective_is_the_inner_product_and_never_falls(name: str, dtype: torch.dtype) -> None:
    net, symmetries, params = setting(name)
    params = {k: tensor.to(dtype) for k, tensor in params.items()}
    reference, others = member(params, 0), select(params, slice(1, None))
    found = match(reference, others, symmetries)
    assert found.objective.shape == (1 + found.sweeps, 6)
    assert found.objective.dtype == torch.float64
    assert (found.objective.diff(dim=0) >= 0).all()
    assert (found.objective[-1] > found.objective[0]).all()
    sizes = product(alone(reference), alone(reference)) + product(others, others)
    for row, x in ((0, others), (-1, found.params)):
        assert torch.allclose(found.objective[row], product(alone(reference), x), rtol=1e-12, atol=1e-12)
        gap = {k: reference[k].double() - x[k].double() for k in x}
        assert torch.allclose(product(gap, gap), sizes - 2 * found.objective[row], rtol=1e-12)
    again = permute(others, symmetries, found.perms)
    assert all(torch.equal(again[k], found.params[k]) for k in again)
    if dtype == torch.float64:
        inputs = torch.randn(3, *FOUND[name][1], generator=generator(5), dtype=dtype)
        before, after = (handmade.outputs(net, x, inputs) for x in (others, found.params))
        assert (before - after).abs().max() < 1e-12 * before.abs().max()


@pytest.mark.parametrize(("dtype", "rest"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("name", PLAIN)
def test_no_group_can_be_bettered_alone(name: str, dtype: torch.dtype, rest: float) -> None:
    _, symmetries, params = setting(name)
    params = {k: tensor.to(dtype) for k, tensor in params.items()}
    found = match(member(params, 0), select(params, slice(1, None)), symmetries)
    for i, group in enumerate(symmetries.permutations):
        for p in range(6):
            worth = torch.zeros(group.size, group.size, dtype=torch.float64)
            for place in group.places:
                ours, theirs = (
                    x[place.name].double().movedim(place.axis, 0)[place.index].flatten(1)
                    for x in (member(params, 0), member(found.params, p))
                )
                worth += ours @ theirs.mT
            rows, columns = linear_sum_assignment(worth.numpy(), maximize=True)
            gain = worth[rows, columns].sum() - worth.trace()
            assert gain <= rest * worth.abs().sum(), f"network {p}, group {i}"


@pytest.mark.parametrize("name", CHAINS)
def test_the_other_way_round_gives_the_inverse(name: str) -> None:
    _, symmetries, params = setting(name)
    first, second = select(params, slice(0, 3)), select(params, slice(3, 6))
    there, back = match(first, second, symmetries), match(second, first, symmetries)
    assert same(inverse(symmetries, there.perms), back.perms)
    assert torch.allclose(there.objective[-1], back.objective[-1], rtol=1e-12)


@pytest.mark.parametrize("name", CHAINS)
def test_a_relabelled_reference_relabels_the_outcome(name: str) -> None:
    _, symmetries, params = setting(name)
    reference, others = member(params, 0), select(params, slice(1, None))
    label = random_permutations(symmetries, generator(6))
    found = match(reference, others, symmetries)
    relabelled = match(permute(reference, symmetries, label), others, symmetries)
    assert same(relabelled.perms, compose(symmetries, found.perms, label))


@pytest.mark.parametrize("name", EVERY)
def test_references_of_their_own_equal_one_by_one(name: str) -> None:
    _, symmetries, params = setting(name)
    references, others = select(params, slice(0, 3)), select(params, slice(3, 6))
    together = match(references, others, symmetries)
    solves = 0
    for i in range(3):
        single = match(member(references, i), member(others, i), symmetries)
        assert same(single.perms, tuple(perm[i] for perm in together.perms))
        assert torch.equal(single.objective, together.objective[: 1 + single.sweeps, i])
        assert (together.objective[1 + single.sweeps :, i] == single.objective[-1]).all()
        assert all(torch.equal(together.params[k][i], single.params[k]) for k in single.params)
        solves += single.solves
    assert together.solves == solves


@pytest.mark.parametrize("name", ["three wide layers", "side by side", "convolutions"])
def test_a_network_does_not_depend_on_its_neighbours(name: str) -> None:
    _, symmetries, params = setting(name)
    together = match(member(params, 0), params, symmetries)
    assert all((perm[0] == torch.arange(perm.shape[1])).all() for perm in together.perms)
    for i in (1, 6):
        single = match(member(params, 0), member(params, i), symmetries)
        assert same(single.perms, tuple(perm[i] for perm in together.perms))
        assert torch.equal(single.objective, together.objective[: 1 + single.sweeps, i])


@pytest.mark.parametrize("side", ["the reference", "a network"])
@pytest.mark.parametrize("name", ["three wide layers", "convolutions"])
def test_the_cosine_forgets_the_scale_of_a_layer(name: str, side: str) -> None:
    _, symmetries, params = setting(name)
    reference, other = member(params, 0), member(params, 1)
    layer = symmetries.permutations[1].places[0].name
    scaled = reference if side == "the reference" else other
    loud = scaled | {layer: scaled[layer] * 1024}
    pair = (loud, other) if side == "the reference" else (reference, loud)
    before, after = (match(*x, symmetries, kernel="cosine") for x in ((reference, other), pair))
    assert same(before.perms, after.perms)
    assert torch.equal(before.objective, after.objective)
    aims, mine = ({k: t / t.norm() for k, t in x.items()} for x in (reference, before.params))
    assert torch.allclose(before.objective[-1], product(alone(aims), alone(mine))[0], rtol=1e-12)
    before, after = (match(*x, symmetries) for x in ((reference, other), pair))
    assert not same(before.perms, after.perms)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float32,
    ],
)
@pytest.mark.parametrize("name", ["a wide and a narrow layer", "convolutions"])
def test_the_cosine_of_a_layer_of_zeros_counts_nothing(name: str, dtype: torch.dtype) -> None:
    _, symmetries, params = setting(name)
    params = {k: torch.zeros_like(t) if k == "0.bias" else t for k, t in params.items()}
    params = {k: t.to(dtype) for k, t in params.items()}
    found = match(member(params, 0), params, symmetries, kernel="cosine")
    assert found.objective[-1, 0].item() == pytest.approx(len(params) - 1, rel=1e-6)


@pytest.mark.parametrize("name", PLAIN)
def test_columns_are_where_the_units_of_other_groups_lie(name: str) -> None:
    _, symmetries, params = setting(name)
    found = seats(symmetries)
    random = random_permutations(symmetries, generator(7))
    widest = 0
    for g, seat in ((g, seat) for g, group in enumerate(found) for seat in group):
        tensor = params[seat.place.name]
        before = owned(tensor, seat.place)
        for h, other in enumerate(symmetries.permutations):
            moved = tensor
            for place in other.places:
                if place.name == seat.place.name and h != g:
                    moved = move_units(moved, place, random[h][None])
            after = owned(moved, seat.place)
            assert (h in seat.columns) != torch.equal(before, after)
            if h in seat.columns:
                table, expected = seat.columns[h], before.clone()
                assert table.shape[0] == other.size
                expected[:, :, table.flatten()] = before[:, :, table[random[h]].flatten()]
                assert torch.equal(after, expected)
                widest = max(widest, table.shape[1])
    assert sum(len(group) for group in found) == sum(len(group.places) for group in symmetries.permutations)
    assert widest == (9 if name == "convolutions" else 1)


@pytest.mark.parametrize("build", [handmade.optumnist, handmade.two_grouped, handmade.loop])
def test_blocks_and_layers_that_feed_themselves_have_no_seats(build) -> None:
    assert seats(build()[1]) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", PLAIN)
def test_what_is_kept_up_to_date_is_what_it_would_be_anew(name: str, dtype: torch.dtype) -> None:
    _, symmetries, params = setting(name)
    params = {k: tensor.to(dtype) for k, tensor in params.items()}
    reference, other, solved = member(params, 0), member(params, 1), []
    ascent = Ascent(reference, other, seats(symmetries), lambda worth: solved.append(1) or assign(worth))
    ascent.from_input()
    history = ascent.up()
    here = permute(other, symmetries, ascent.perms)
    kept = 0
    for g, group in enumerate(ascent.groups):
        for k, seat in enumerate(group):
            theirs = owned(here[seat.place.name][None], seat.place)[0]
            assert torch.equal(ascent.theirs[g][k], theirs)
            if ascent.worths[g][k] is not None:
                anew = theirs.double() @ owned(reference[seat.place.name][None], seat.place)[0].double().mT
                error = (ascent.worths[g][k] - anew).abs().max() / anew.abs().max()
                assert error < 100 * torch.finfo(dtype).eps
                kept += 1
    assert kept > 0
    assert ascent.solves == len(solved)
    start, end = (product(alone(reference), alone(each)).item() for each in (other, here))
    assert start + history[-1] == pytest.approx(end, rel=1e-12)
    assert Ascent(reference, here, seats(symmetries), assign).up() == [0.0]


@pytest.mark.parametrize("name", PLAIN)
def test_both_ways_to_climb_lead_to_one_place(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, symmetries, params = setting(name)
    found = []
    for wide in (1, 10**9):
        monkeypatch.setattr(weights, "WIDE", wide)
        found.append(match(member(params, 0), params, symmetries))
    assert same(found[0].perms, found[1].perms)
    assert torch.allclose(found[0].objective[-1], found[1].objective[-1], rtol=1e-12)
    assert found[0].solves < found[1].solves


@pytest.mark.parametrize("name", ["three wide layers", "convolutions"])
def test_the_solver_does_not_matter(name: str) -> None:
    _, symmetries, params = setting(name)
    pair = select(params, slice(0, 2))
    one, other = (match(member(params, 6), pair, symmetries, assignment=x) for x in ("scipy", "auction"))
    assert same(one.perms, other.perms)
