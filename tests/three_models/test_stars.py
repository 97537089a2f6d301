"""Stars, chains and truncated weights on populations whose answers are known: copies of one network with their units shuffled."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lib.intervals import jackknife
from lib.matching import match
from lib.params import Params, member, select
from lib.symmetry import inverse, permute, random_permutations
from lib.three_models import chains, large_weights, stars, widths
from lib.three_models.problem import Problem, problem_of, recipe, snapshots, trained

MEMBERS = 5


@pytest.fixture(scope="module")
def problem() -> Problem:
    return problem_of("digits", 16)


@pytest.fixture(scope="module")
def copies(problem: Problem) -> Params:
    """One network five times, its units in five orders."""
    one = member(trained(problem, recipe(2), range(1), 7), 0)
    perms = random_permutations(problem.symmetries, torch.Generator().manual_seed(3), MEMBERS)
    return permute(one, problem.symmetries, perms)


@pytest.fixture(scope="module")
def strangers(problem: Problem) -> Params:
    return trained(problem, recipe(2), range(MEMBERS), 11)


@pytest.mark.parametrize("matching", stars.MATCHINGS)
def test_in_every_star_shuffled_copies_are_one_network(problem, copies, matching) -> None:
    perms = stars.table(problem, copies, matching)
    there = stars.in_stars(problem, copies, perms, 5)
    off = ~np.isnan(there.loss)
    assert off.sum() == MEMBERS * MEMBERS * (MEMBERS - 1)
    assert there.loss[off].max() < 1e-6
    assert there.error[off].max() < 1e-12
    assert (
        stars.between_pairs(problem, copies, None, 5).loss[0, 1] > 0.05
    )  # the hill that matching takes away


def test_a_star_holds_each_network_in_the_order_of_its_centre(problem, strangers) -> None:
    perms = stars.table(problem, strangers, stars.WEIGHTS)
    everyone = stars.stars(problem, strangers, perms)
    for c, b in ((0, 3), (4, 1), (2, 2)):
        alone = match(member(strangers, c), member(strangers, b), problem.symmetries).params
        for name, tensor in alone.items():
            assert torch.equal(everyone[name][c * MEMBERS + b], tensor)


def test_direct_and_indirect_means_read_the_right_entries() -> None:
    values = np.full((4, 4, 4), np.nan)
    for c in range(4):
        for a in range(4):
            for b in range(4):
                if a != b:
                    values[c, a, b] = 1.0 if c in (a, b) else 10.0
    everyone = np.arange(4)
    assert stars.of_pairs(stars.direct(values), everyone) == 1.0
    assert stars.through_third(values, everyone) == 10.0
    assert stars.through_third(values, np.array([0, 2, 3])) == 10.0


def test_a_pair_of_the_table_is_undone_by_the_pair_turned_round(problem, strangers) -> None:
    table = stars.table(problem, strangers, stars.WEIGHTS)
    back = inverse(problem.symmetries, [group[1, 2] for group in table])
    assert all(torch.equal(group[2, 1], undone) for group, undone in zip(table, back, strict=True))


def test_chains_compose_and_two_cycles_close(problem, strangers) -> None:
    found = chains.chains(problem, strangers, 5, seed=1)
    levels = chains.levels(found, "loss")
    assert abs(levels["2-cycle"][0]) < 1e-6
    assert levels["1"][0] < levels["2"][0]
    table = stars.table(problem, strangers, stars.WEIGHTS)
    by_hand = permute(
        permute(member(strangers, 3), problem.symmetries, [g[1, 3] for g in table]),
        problem.symmetries,
        [g[0, 1] for g in table],
    )
    ways = torch.tensor([[0, 1, 3]])
    at_once = permute(select(strangers, ways[:, -1]), problem.symmetries, chains.along(problem, table, ways))
    assert all(torch.equal(at_once[name][0], tensor) for name, tensor in by_hand.items())


@pytest.mark.parametrize(("composed", "closed"), [(2, False), (3, False), (3, True), (4, True)])
def test_ways_pass_through_distinct_networks(composed: int, closed: bool) -> None:
    way = chains.ways(6, composed, closed=closed, seed=5)
    inner = [row[:-1] if closed else row for row in way.tolist()]
    assert all(len(set(row)) == len(row) for row in inner)
    assert bool((way[:, 0] == way[:, -1]).all()) == closed
    assert not torch.equal(way, chains.ways(6, composed, closed=closed, seed=6)) or composed == 2


def test_truncated_weights_keep_the_share_that_is_asked_for() -> None:
    params = {"0.weight": torch.arange(1.0, 21).view(1, 4, 5), "0.bias": torch.ones(1, 4)}
    large, small = (large_weights.kept_weights(params, 0.3, side) for side in (True, False))
    assert sorted(large["0.weight"][large["0.weight"] != 0].tolist()) == [15, 16, 17, 18, 19, 20]
    assert sorted(small["0.weight"][small["0.weight"] != 0].tolist()) == [1, 2, 3, 4, 5, 6]
    assert torch.equal(large["0.bias"], params["0.bias"])


def test_widths_measures_carry_every_cell_and_names(problem) -> None:
    nets = widths.networks("digits", (8, 16), 4, 1, seed=5, device=torch.device("cpu"))
    found = [
        widths._width(
            "digits",
            width,
            {
                m: widths._barriers("digits", width, nets[width], m, 3, 5, torch.device("cpu"))
                for m in stars.MATCHINGS
            },
        )
        for width in nets
    ]
    assert [m.cell for m in widths.measure_one_permutation(found) if m.name == "aligned_ratio"] == [
        f"width {w}, {m}" for w in (8, 16) for m in stars.MATCHINGS
    ]
    assert [m.cell for m in widths.measure_slopes(found)] == list(stars.MATCHINGS)
    assert {m.name for m in widths.measure_control(found)} == {"barrier_ratio", "ratio_slope"}
    assert all(m.low <= m.value <= m.high and m.n == 4 for m in widths.measure_third(found))
    assert not torch.equal(nets[8]["4.bias"][0], nets[16]["4.bias"][0])  # other members


def test_snapshots_end_where_the_training_ends(problem) -> None:
    kept = snapshots(problem, range(2), (1, 3), "standard", 5)
    whole = trained(problem, recipe(3), range(2), 5)
    assert all(torch.equal(kept[-1][name], tensor) for name, tensor in whole.items())
    assert not torch.equal(kept[0]["0.weight"], kept[1]["0.weight"])


def test_an_unknown_network_is_named() -> None:
    with pytest.raises(ValueError, match="no network 'lenet'"):
        problem_of("mnist5k/lenet", 4)


def test_the_jackknife_covers_pairs_that_share_networks() -> None:
    """Pairs with effects of both networks: the mean's interval holds the truth about as often as it says."""
    generator, inside = np.random.default_rng(4), 0
    for _ in range(200):
        effect = generator.normal(size=10)
        noise = np.triu(generator.normal(size=(10, 10)), 1)
        values = effect[:, None] + effect + noise + noise.T
        np.fill_diagonal(values, np.nan)
        _, low, high = jackknife(lambda g, v=values: np.array([stars.of_pairs(v, g[0])]), [10])
        inside += low[0] <= 0 <= high[0]
    assert 0.90 <= inside / 200 <= 1.0


def test_the_jackknife_adds_the_variances_of_independent_groups_and_refuses_too_few() -> None:
    a, b = np.arange(5.0), np.arange(8.0)
    value, low, high = jackknife(lambda g: np.array([a[g[0]].mean() - b[g[1]].mean()]), [5, 8])
    half = 2.7764451 * np.sqrt(a.var(ddof=1) / 5 + b.var(ddof=1) / 8)
    assert value[0] == pytest.approx(-1.5)
    assert high[0] - value[0] == pytest.approx(half) == value[0] - low[0]
    with pytest.raises(ValueError, match="at least three"):
        jackknife(lambda g: np.array([0.0]), [2])
