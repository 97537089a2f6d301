"""Joint alignment: the objective is what it says, never falls, and every method gives the same functions in one order."""

from __future__ import annotations

import itertools
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

from lib.matching import Aligned, match, match_many, objective, pairwise
from lib.matching.joint import METHODS
from lib.networks import perceptron
from lib.params import Params, member, select
from lib.symmetry import Symmetries, compose, find_symmetries, inverse, permute, random_permutations


def convolutional() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(5 * 4, 7), nn.ReLU(), nn.Linear(7, 3)),
    )


FOUND = {
    "one hidden layer": (lambda: perceptron((6, 9, 3)), (6,)),
    "a wide layer": (lambda: perceptron((6, 64, 9, 3)), (6,)),
    "convolutions": (convolutional, (1, 6, 6)),
    "residual net": (handmade.Residual, (4,)),
    "two grouped convolutions": (handmade.TwoGrouped, (1, 12)),
}
CHAINS = list(FOUND)[:3]
CASES = [
    (method, name)
    for method, name in itertools.product(METHODS, FOUND)
    if (method, name) != ("frank_wolfe", "two grouped convolutions")
]


def members(name: str) -> int:
    return 3 if name == "two grouped convolutions" else 5


@cache
def setting(name: str) -> tuple[nn.Module, Symmetries, Params]:
    """The network, its symmetries, and a population of five or three, float64, which no test changes."""
    build, shape = FOUND[name]
    net = build().double()
    example = torch.randn(2, *shape, generator=generator(1), dtype=torch.float64)
    return net, find_symmetries(net, example), handmade.population(net, members(name), seed=2)


@cache
def aligned(name: str, method: str = "joint") -> Aligned:
    """The population of ``setting``, aligned once for all tests."""
    _, symmetries, params = setting(name)
    return match_many(params, symmetries, method)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def product(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """The inner product of two networks, float64; none of these networks has buffers."""
    return sum(float((a[name].double() * b[name].double()).sum()) for name in a)


def over_pairs(params: Params) -> float:
    networks = [member(params, p) for p in range(len(next(iter(params.values()))))]
    return sum(product(one, other) for one, other in itertools.combinations(networks, 2))


def same(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def of(perms: tuple[Tensor, ...], *index: int) -> tuple[Tensor, ...]:
    return tuple(perm[index] for perm in perms)


@pytest.mark.parametrize(("method", "name"), CASES)
def test_all_methods_give_the_same_functions_in_one_order(method: str, name: str) -> None:
    net, symmetries, params = setting(name)
    found = aligned(name, method)
    for perm, group in zip(found.perms, symmetries.permutations, strict=True):
        assert torch.equal(perm.sort(1).values, torch.arange(group.size).expand(members(name), -1))
    again = permute(params, symmetries, found.perms)
    assert all(torch.equal(again[k], found.params[k]) for k in params)
    inputs = torch.randn(3, *FOUND[name][1], generator=generator(3), dtype=torch.float64)
    before, after = (handmade.outputs(net, x, inputs) for x in (params, found.params))
    assert (before - after).abs().max() < 1e-12 * before.abs().max()
    assert found.objective[-1].item() == pytest.approx(over_pairs(found.params), rel=1e-12)
    assert found.objective[-1].item() == objective(found.params, symmetries)
    assert found.objective[-1] > over_pairs(params)
    if method != "joint":  # which starts elsewhere
        assert found.objective[0].item() == pytest.approx(over_pairs(params), rel=1e-12)


@pytest.mark.parametrize("name", FOUND)
def test_the_objective_is_that_of_the_squared_distances(name: str) -> None:
    symmetries, found, n = setting(name)[1], aligned(name).params, members(name)
    gaps = [{k: t[p] - t[q] for k, t in found.items()} for p, q in itertools.combinations(range(n), 2)]
    distances = sum(product(gap, gap) for gap in gaps)
    spread = {k: t - t.mean(0) for k, t in found.items()}
    assert distances == pytest.approx(n * product(spread, spread), rel=1e-12)
    norms = (n - 1) * product(found, found)
    assert distances == pytest.approx(norms - 2 * objective(found, symmetries), rel=1e-12)


@pytest.mark.parametrize("name", FOUND)
def test_joint_climbs_from_the_best_reference(name: str) -> None:
    _, symmetries, params = setting(name)
    references = range(members(name))
    stars = [match_many(params, symmetries, "reference", reference=r).objective[-1] for r in references]
    best = aligned(name, "reference").objective[-1]
    assert best.item() == pytest.approx(max(stars).item(), rel=1e-12)
    found = aligned(name)
    assert found.objective[0].item() == pytest.approx(best.item(), rel=1e-12)
    assert (found.objective.diff() >= 0).all()
    assert found.objective[-1] > best
    worst = min(references, key=lambda r: stars[r])
    named = match_many(params, symmetries, reference=worst)
    assert named.objective[0].item() == pytest.approx(stars[worst].item(), rel=1e-12)


@pytest.mark.parametrize("method", ["joint", "merge_many"])
@pytest.mark.parametrize("name", FOUND)
def test_at_the_end_no_network_can_be_bettered_alone(name: str, method: str) -> None:
    symmetries, found = setting(name)[1], aligned(name, method)
    assert (found.objective.diff() >= 0).all()
    for p, group in itertools.product(range(members(name)), symmetries.permutations):
        worth = torch.zeros(group.size, group.size, dtype=torch.float64)
        for place in group.places:
            rows = slice(None) if place.rows is None else place.rows
            mine = found.params[place.name][p]
            rest = found.params[place.name].sum(0) - mine
            ours, theirs = (x[rows].movedim(place.axis, 0)[place.index].flatten(1) for x in (rest, mine))
            worth += ours @ theirs.mT
        if any(inner.inside is not None for inner in symmetries.permutations) and group.inside is None:
            continue  # a block's worth depends on what stands inside it
        best = worth[linear_sum_assignment(worth.numpy(), maximize=True)].sum()
        assert best - worth.trace() <= 1e-11 * worth.abs().sum()


@pytest.mark.parametrize("method", ["joint", "reference"])
@pytest.mark.parametrize("name", FOUND)
def test_copies_of_one_network_become_one(name: str, method: str) -> None:
    _, symmetries, params = setting(name)
    planted = random_permutations(symmetries, generator(4), 4)
    found = match_many(permute(member(params, 0), symmetries, planted), symmetries, method)
    assert all(torch.equal(t, t[:1].expand_as(t)) for t in found.params.values())


@pytest.mark.parametrize("method", ["joint", "reference"])
@pytest.mark.parametrize("name", CHAINS)
def test_relabelled_networks_end_in_the_same_order(name: str, method: str) -> None:
    _, symmetries, params = setting(name)
    labels = random_permutations(symmetries, generator(5), 5)
    found, again = aligned(name, method), match_many(permute(params, symmetries, labels), symmetries, method)
    common = compose(symmetries, inverse(symmetries, again.perms), inverse(symmetries, labels))
    common = compose(
        symmetries, common, found.perms
    )  # from the one order to the other, the same for all networks
    assert all(torch.equal(perm, perm[:1].expand_as(perm)) for perm in common)
    assert again.objective[-1].item() == pytest.approx(found.objective[-1].item(), rel=1e-12)


@pytest.mark.parametrize("name", FOUND)
def test_cycles_close(name: str) -> None:
    _, symmetries, params = setting(name)
    perms, everyone = aligned(name).perms, range(members(name))
    into = {
        (a, b): compose(symmetries, of(perms, b), inverse(symmetries, of(perms, a)))
        for a, b in itertools.product(everyone, repeat=2)
    }
    for a, b, c in itertools.permutations(everyone, 3):
        assert same(compose(symmetries, into[b, c], into[a, b]), into[a, c])
    table, _ = pairwise(params, symmetries)
    open_cycles = sum(
        not same(compose(symmetries, of(table, b, c), of(table, a, b)), of(table, a, c))
        for a, b, c in itertools.combinations(everyone, 3)
    )
    assert open_cycles > 0  # pairs that are matched each for itself do not close


@pytest.mark.parametrize("name", FOUND)
def test_the_table_of_pairs_holds_each_way_the_inverse_of_the_other(name: str) -> None:
    _, symmetries, params = setting(name)
    table, solves = pairwise(params, symmetries)
    everyone = range(members(name))
    counted = 0
    for a, b in itertools.product(everyone, repeat=2):
        assert same(of(table, a, b), inverse(symmetries, of(table, b, a)))
        if a == b:
            assert all(torch.equal(perm, torch.arange(len(perm))) for perm in of(table, a, a))
        elif a < b or name in CHAINS:
            single = match(member(params, a), member(params, b), symmetries)
            assert same(single.perms, of(table, a, b))
            counted += single.solves if a < b else 0
    assert counted == solves


@pytest.mark.parametrize("name", FOUND)
def test_two_networks_are_a_pair(name: str) -> None:
    _, symmetries, params = setting(name)
    pair = select(params, slice(0, 2))
    one = match(member(params, 0), member(params, 1), symmetries)
    for method in ("joint", "reference"):
        both = match_many(pair, symmetries, method)
        assert both.objective[-1].item() == pytest.approx(one.objective[-1].item(), rel=1e-12)
    if name == "one hidden layer":  # one assignment problem: every ascent ends at the best
        both = match_many(pair, symmetries, "merge_many")
        assert both.objective[-1].item() == pytest.approx(one.objective[-1].item(), rel=1e-12)


def test_three_small_networks_against_all_orders() -> None:
    net = perceptron((3, 4, 2)).double()
    symmetries = find_symmetries(net, torch.zeros(2, 3, dtype=torch.float64))
    orders = torch.tensor(list(itertools.permutations(range(4))))
    second, third = orders.repeat_interleave(24, 0), orders.repeat(24, 1)
    reached = 0
    for seed in range(10):
        params = handmade.population(net, 3, seed=seed)
        a, (b, c) = (
            member(params, 0),
            (permute(member(params, i), symmetries, [x]) for i, x in ((1, second), (2, third))),
        )
        every = sum((a[k] * (b[k] + c[k]) + b[k] * c[k]).flatten(1).sum(1) for k in a)
        found = match_many(params, symmetries, restarts=2).objective[-1]
        assert found <= every.max() + 1e-12
        reached += bool(found >= every.max() - 1e-12)
    assert reached >= 7


def test_restarts_never_make_it_worse() -> None:
    _, symmetries, _ = setting("one hidden layer")
    gained = 0
    for seed in range(3):
        params = handmade.population(setting("one hidden layer")[0], 5, seed=seed)
        ends = torch.stack([match_many(params, symmetries, restarts=k).objective[-1] for k in (0, 1, 4)])
        assert (ends.diff() >= 0).all()
        gained += bool(ends[-1] > ends[0] + 1e-6)
    assert gained > 0


@pytest.mark.parametrize("name", ["a wide layer", "two grouped convolutions"])
def test_joint_goes_on_from_a_start(name: str) -> None:
    _, symmetries, params = setting(name)
    start = random_permutations(symmetries, generator(6), members(name))
    found = match_many(params, symmetries, start=start)
    begun = over_pairs(permute(params, symmetries, start))
    assert found.objective[0].item() == pytest.approx(begun, rel=1e-12)
    assert (found.objective.diff() >= 0).all()
    assert found.objective[-1] > begun
    still = match_many(params, symmetries, start=found.perms)
    assert same(still.perms, found.perms)
    assert len(still.objective) == 2


def test_merge_many_depends_on_its_seed_alone() -> None:
    _, symmetries, params = setting("convolutions")
    runs = []
    for seed, elsewhere in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(elsewhere)
        state = torch.get_rng_state()
        runs.append(match_many(params, symmetries, "merge_many", seed=seed))
        assert torch.equal(torch.get_rng_state(), state)
    assert same(runs[0].perms, runs[1].perms)
    assert torch.equal(runs[0].objective, runs[1].objective)
    assert not same(runs[0].perms, runs[2].perms)


@pytest.mark.parametrize("method", METHODS)
def test_a_list_of_networks_is_a_population(method: str) -> None:
    _, symmetries, params = setting("convolutions")
    one = aligned("convolutions", method)
    other = match_many([member(params, i) for i in range(5)], symmetries, method)
    assert same(one.perms, other.perms)
    assert torch.equal(one.objective, other.objective)


@pytest.mark.parametrize("method", METHODS[:3])
def test_the_solver_does_not_matter(method: str) -> None:
    _, symmetries, params = setting("one hidden layer")
    one, other = (
        aligned("one hidden layer", method),
        match_many(params, symmetries, method, assignment="auction"),
    )
    assert same(one.perms, other.perms)
    assert one.solves == other.solves


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_every_precision_is_taken(method: str, dtype: torch.dtype) -> None:
    _, symmetries, params = setting("a wide layer")
    short = {k: t.to(dtype) for k, t in params.items()}
    found = match_many(short, symmetries, method)
    assert all(t.dtype == dtype for t in found.params.values())
    assert found.objective.dtype == torch.float64
    assert (found.objective.diff() >= 0).all()
    assert found.objective[-1].item() == pytest.approx(over_pairs(found.params), rel=1e-9)
    wide = aligned("a wide layer", method).objective[-1].item()
    assert found.objective[-1].item() == pytest.approx(wide, rel=0.05)


@pytest.mark.parametrize(
    "method",
    METHODS,
)
def test_networks_without_units_stay(method: str) -> None:
    net = perceptron((4, 3)).double()
    params = handmade.population(net, 3, seed=1)
    found = match_many(params, find_symmetries(net, torch.zeros(2, 4, dtype=torch.float64)), method)
    assert found.perms == ()
    assert all(torch.equal(found.params[k], params[k]) for k in params)
    assert found.objective[-1].item() == pytest.approx(over_pairs(params), rel=1e-12)


def test_a_list_of_other_shapes_is_refused() -> None:
    _, symmetries, params = setting("convolutions")
    first = member(params, 0)
    with pytest.raises(ValueError, match=r"2\.weight"):
        match_many([first, first | {"2.weight": first["2.weight"][:-1]}], symmetries)


def test_misuse_is_refused() -> None:
    _, symmetries, params = setting("convolutions")
    first = member(params, 0)
    for too_few in (first, [first], select(params, slice(0, 1))):
        with pytest.raises(ValueError, match="joint alignment needs at least two networks"):
            match_many(too_few, symmetries)
    with pytest.raises(ValueError, match="pairs need at least two networks"):
        pairwise(first, symmetries)
    with pytest.raises(ValueError, match="no method 'greedy': choose one of joint, reference"):
        match_many(params, symmetries, "greedy")
    with pytest.raises(ValueError, match="no assignment solver called 'greedy'"):
        match_many(params, symmetries, assignment="greedy")
    for missing in (-1, 5):
        with pytest.raises(ValueError, match=f"no network {missing}: references are numbered 0 to 4"):
            match_many(params, symmetries, reference=missing)
    broken = params | {"2.weight": params["2.weight"].clone()}
    broken["2.weight"][3, 0, 0, 0, 0] = torch.nan
    for method in METHODS:
        with pytest.raises(ValueError, match=r"network 3 has weights that are not finite \('2.weight'\)"):
            match_many(broken, symmetries, method)
    with pytest.raises(ValueError, match=r"the tensor '2\.weight' has shape"):
        match_many(params | {"2.weight": params["2.weight"][:, :-1]}, symmetries)
    with pytest.raises(ValueError, match=r"params lack the tensor '2\.bias'"):
        match_many({k: t for k, t in params.items() if k != "2.bias"}, symmetries)
    with pytest.raises(ValueError, match="network 1 has other parameter names"):
        match_many([first, {}], symmetries)
    _, blocks, inside = setting("two grouped convolutions")
    with pytest.raises(ValueError, match="exchangeable blocks, which Frank-Wolfe does not order"):
        match_many(inside, blocks, "frank_wolfe")
