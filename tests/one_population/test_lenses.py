"""The lenses of chapter 7 on planted populations: copies, quadratic energies, laws that are known."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from lib import profile
from lib.matrix_gaussian.laws import RowColumn
from lib.matrix_gaussian.likelihoods import Categorical
from lib.matrix_gaussian.network import Network
from lib.matrix_gaussian.prediction import of_mean
from lib.matrix_gaussian.training import Fit
from lib.one_population import energy, figures, gaussians, paths, starts, together, twin_measures
from lib.one_population import problem as one
from lib.one_population.energy import Heat
from lib.params import member, select
from lib.plots import show
from lib.population import initial, predict
from lib.symmetry import permute, random_permutations
from lib.unit_norm import UnitNormSGD

CPU = torch.device("cpu")
WIDTH = 6


@pytest.fixture(scope="module")
def problem():
    return one.problem_of("digits", WIDTH, 120, 150, CPU)


@pytest.fixture(scope="module")
def plain(problem):
    return one.population(problem, range(12), 1)


@pytest.fixture(scope="module")
def copies(problem, plain):
    """Eight random orders of one network."""
    first = select(plain, torch.zeros(8, dtype=torch.int64))
    return permute(first, problem.symmetries, random_permutations(problem.symmetries, torch.Generator().manual_seed(0), members=8))  # fmt: skip


@pytest.fixture(scope="module")
def sizes():
    return replace(
        profile.get("quick").one_population, learn=120, widths=(WIDTH,), members=12, epochs=150, groups=3, paired=5,
        draws=4, twin_groups=3, heated=3, heat_warmup=4, heat_draws=6, heat_leapfrog=2, local_members=4, local_moved=3,
        local_warmup=4, local_draws=20, local_leapfrog=2, looks=(2, 4), bound_draws=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(sizes):
    return together.train(sizes, WIDTH, seed=1, device=CPU)


@pytest.fixture(scope="module")
def lenses(sizes, trained):
    return together.look(sizes, trained, seed=1, device=CPU)


# ------------------------------------------------------------------------------------------------ the population


def test_no_view_changes_a_prediction_and_only_alignment_of_copies_finds_them_equal(problem, plain, copies):
    x = problem.test.inputs[:50]
    for params in (plain, copies):
        wanted = predict(problem.net, params, x)
        for seen in one.views(problem, params).values():
            torch.testing.assert_close(predict(problem.net, seen, x), wanted, rtol=1e-3, atol=1e-4)
    seen = one.views(problem, copies)
    assert one.spread(seen[one.RAW]) > 1
    assert one.spread(seen[one.ALIGNED]) < 1e-8 * one.spread(seen[one.RAW])
    assert one.spread(seen[one.SORTED]) < 1e-8 * one.spread(seen[one.RAW])
    with pytest.raises(ValueError, match="no view 'upside down'"):
        one.seen(problem, plain, "upside down")


def test_spread_is_the_mean_over_pairs(problem, plain):
    points = one.flat(plain).double()
    pairs = torch.combinations(torch.arange(len(points)))
    wanted = (points[pairs[:, 0]] - points[pairs[:, 1]]).square().sum(1).mean()
    assert one.spread(plain) == pytest.approx(float(wanted), rel=1e-6)


def test_twins_have_unit_filters_and_take_the_steps_of_the_optimiser(problem):
    """One network and a few steps, against torch's interface to the same manifold."""
    short = replace(problem, recipe=replace(problem.recipe, epochs=1))
    found = member(one.twins(short, range(3, 5), 7), 0)
    assert torch.allclose(found[one.FILTERS].norm(dim=1), torch.ones(WIDTH), atol=1e-5)
    net = nn.Sequential(nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10))
    net.load_state_dict(member(initial(problem.net, range(3, 4), 7), 0))
    filters, rest = net[0].weight, [net[0].bias, net[2].weight, net[2].bias]
    optimiser = UnitNormSGD(
        [
            {"params": [filters]},
            {"params": rest, "unit_norm": False, "weight_decay": short.recipe.weight_decay},
        ],
        lr=short.recipe.lr,
    )
    from lib.randomness import permutation

    order = permutation(7, torch.tensor([3]), "order", 0, len(short.learn))[0]
    for rows in order.split(short.recipe.batch_size):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(short.learn.inputs[rows]), short.learn.targets[rows]).backward()
        optimiser.step()
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)


def test_groups_are_disjoint_and_refused_where_too_small(plain):
    groups = one.in_groups(plain, 5)
    assert [len(g["0.bias"]) for g in groups] == [2] * 5
    assert torch.equal(torch.cat([g["0.bias"] for g in groups]), plain["0.bias"][:10])
    with pytest.raises(ValueError, match="12 networks make no 7 groups of two"):
        one.in_groups(plain, 7)


# ------------------------------------------------------------------------------------------------------ the energy


def test_the_energy_is_loss_and_decay_with_its_own_gradient(problem, plain):
    points = one.flat(plain)[:3].double()
    found = energy.energy_of(problem, 3)
    value, slope = found.gradient(points[:, None], torch.full((3, 1), 0.5, dtype=torch.float64))
    leaf = points.clone().requires_grad_()
    start, losses = 0, []
    for w in leaf:
        hidden = (
            problem.learn.inputs.double() @ w[: 64 * WIDTH].view(WIDTH, 64).T + w[64 * WIDTH : 65 * WIDTH]
        ).relu()
        out = hidden @ w[65 * WIDTH : 75 * WIDTH].view(10, WIDTH).T + w[75 * WIDTH :]
        loss = nn.functional.cross_entropy(out, problem.learn.targets, reduction="sum")
        losses.append(loss + 0.5 * 120 * problem.recipe.weight_decay * w.square().sum())
    whole = torch.stack(losses)
    whole.sum().backward()
    torch.testing.assert_close(slope[:, 0], -0.5 * leaf.grad)
    shift = found.statistics(points[:, None])[:, 0] - whole.detach()
    torch.testing.assert_close(shift, shift[:1].expand(3))  # the prior's constant
    torch.testing.assert_close(value[:, 0], -0.5 * found.statistics(points[:, None])[:, 0])
    assert start == 0


def test_the_heat_of_a_quadratic_is_half_its_dimension(monkeypatch, problem):
    stiffness = torch.logspace(-1, 1, 30, dtype=torch.float64)

    def density(x):
        return -0.5 * (stiffness * x.square()).sum(1), -stiffness * x

    monkeypatch.setattr(energy, "energy_of", lambda problem, networks: SimpleNamespace(density=density))
    monkeypatch.setattr(
        energy, "diagonal", lambda net, points, inputs, loss: stiffness.expand(len(points), -1)
    )
    points = torch.zeros(24, 30, dtype=torch.float64)
    found = energy.heat(problem, points, warmup=60, draws=150, leapfrog=10, seed=3)
    error = found.values.std(ddof=1) / len(found.values) ** 0.5
    assert abs(found.values.mean() - 15) < 4 * error
    assert error < 0.4
    assert found.arrived


def test_chains_on_their_way_are_noticed_and_measure_nothing():
    rising = Heat(np.array([1.0, 2.0, 3.0]), drift=0.2, acceptance=0.8)
    assert not rising.arrived
    pairs = paths.Pairs(*(np.ones((4, 4)),) * 3)
    (measured,) = paths.measure_rise("width 6", pairs, rising, one.ALIGNED)
    assert np.isnan(measured.value)
    (measured,) = paths.measure_rise("width 6", pairs, replace(rising, drift=0.01), one.ALIGNED)
    assert measured.value == pytest.approx(0.5)
    assert measured.name == "aligned_rise"
    assert (measured.n, measured.seeds) == (4, 3)


def test_chains_with_permuted_noise_make_permuted_draws(problem, plain):
    """Why alignment cannot change a local coefficient: energy and spring are the same, gradients permute along."""
    from lib.local_chains import Options, localise

    points = one.flat(plain)[:2].double()
    moved = energy.permuted(problem, points, 5)
    assert not torch.equal(moved, points)
    options = Options(chains=2, step=0.01, leapfrog=3)
    momentum = torch.randn(
        2, 2, points.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    also = energy.permuted(problem, momentum.transpose(0, 1).flatten(0, 1)[[0, 1]], 5)
    assert also.shape == points.shape
    target = energy.energy_of(problem, 2)
    ends = []
    for at, push in ((points, momentum[:, :1].expand(-1, 2, -1)), (moved, energy.permuted(problem, momentum[:, 0], 5)[:, None].expand(-1, 2, -1))):  # fmt: skip
        local = localise(target, at, 0.2, options, None)
        noise = (push, torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64))
        state, probability = local.transition(
            local.start(), torch.full((2, 2), -5.0, dtype=torch.float64), noise
        )
        ends.append((state.energy, probability, energy.permuted(problem, state.position[:, 0], 5)))
    torch.testing.assert_close(ends[0][0], ends[1][0])
    torch.testing.assert_close(ends[0][1], ends[1][1])


def test_flatness_and_alignment_are_measured_on_sound_chains_alone():
    value = np.array([1.0, 2.0, np.nan, 4.0, 5.0, 6.0])
    local = energy.Local(value, np.ones(6), np.array([1.0, 2.0, 99.0, 4.0, 5.0, 6.0]))
    (flat,) = energy.measure_flatness("w", local, resamples=200, seed=0)
    assert (flat.value, flat.n) == (pytest.approx(1.0), 5)
    moved = energy.Local(np.array([1.1, np.nan, 3.0, 4.1]), np.ones(4), np.ones(4))
    (change,) = energy.measure_alignment("w", local, moved)
    assert change.n == 2
    assert change.value == pytest.approx(0.1 / 2.5)
    lost = replace(local, value=np.full(6, np.nan))
    (flat,), (change,) = (
        energy.measure_flatness("w", lost, resamples=200, seed=0),
        energy.measure_alignment("w", lost, moved),
    )
    assert np.isnan([flat.value, change.value]).all()
    assert (flat.n, change.n) == (0, 0)


# ------------------------------------------------------------------------------------------------- lines and pairs


def test_the_decay_lies_below_the_straight_line_by_its_formula(problem, plain):
    which = torch.tensor([[0, 1], [2, 5]])
    alphas = torch.linspace(0, 1, 5, dtype=torch.float64)
    points = one.flat(plain).double()
    a, b = points[which[:, 0]], points[which[:, 1]]
    on = (1 - alphas)[None, :, None] * a[:, None] + alphas[None, :, None] * b[:, None]
    energy_on = 0.5 * problem.precision * on.square().sum(-1)
    wanted = energy_on - ((1 - alphas) * energy_on[:, :1] + alphas * energy_on[:, -1:])
    found = paths.decay_excess(problem, plain, which, alphas)
    torch.testing.assert_close(found, wanted)
    assert float(found.max()) <= 0


def test_copies_have_walls_as_they_are_and_none_once_aligned(problem, copies):
    raw = paths.pairs(problem, copies, 5)
    aligned = paths.pairs(problem, one.seen(problem, copies, one.ALIGNED), 5)
    assert np.nanmean(raw.loss) > 0.05
    assert np.nanmax(aligned.loss) < 1e-4
    assert np.nanmax(np.abs(aligned.energy)) < 1e-2
    np.testing.assert_allclose(raw.energy, raw.energy.T)
    assert np.isnan(np.diag(raw.error)).all()
    distance = paths.function_distance(problem, copies)
    assert np.nanmax(distance) < 1e-9


def test_rank_correlation_reads_each_pair_once():
    first = np.array([[np.nan, 1, 2], [1, np.nan, 3], [2, 3, np.nan]])
    assert paths.rank_correlation(first, 10 * first, np.arange(3)) == pytest.approx(1)
    assert paths.rank_correlation(first, -first, np.arange(3)) == pytest.approx(-1)


# --------------------------------------------------------------------------------------------- Gaussians and starts


def test_a_gaussian_of_near_copies_is_as_good_as_they_are_once_aligned(problem, copies):
    noisy = {
        n: t + 0.01 * torch.randn(t.shape, generator=torch.Generator().manual_seed(1))
        for n, t in copies.items()
    }
    found = gaussians.losses(problem, one.views(problem, noisy), 2, 16, 3)
    best = found[gaussians.ENSEMBLE].mean()
    assert found[gaussians.gaussian_name(one.ALIGNED)].mean() == pytest.approx(best, rel=0.02)
    assert found[gaussians.matrix_name(one.ALIGNED)].mean() == pytest.approx(best, rel=0.02)
    assert found[gaussians.gaussian_name(one.RAW)].mean() > 1.2 * best


def test_matrix_draws_have_the_layers_mean_and_variance(problem, plain):
    drawn = gaussians.matrix_draws(plain, 4_000, 1)
    assert list(drawn) == list(plain)
    for name in ("2.weight", "2.bias"):
        error = plain[name].std(0).mean() / 4_000**0.5
        torch.testing.assert_close(drawn[name].mean(0), plain[name].mean(0), rtol=0, atol=6 * float(error))


def test_share_lost_is_nought_for_the_ensemble_and_one_for_a_network():
    losses = {
        gaussians.SINGLE: np.array([0.3, 0.4]),
        gaussians.ENSEMBLE: np.array([0.2, 0.2]),
        "x": np.array([0.2, 0.4]),
    }
    np.testing.assert_allclose(gaussians.share_lost(losses, "x"), [0, 1])


def test_a_start_at_a_network_computes_that_network(problem, plain):
    network = Network.of(RowColumn(), (64, WIDTH, 10), Categorical(), hyper_priors=False)
    group = select(plain, slice(0, 4))
    flat = starts._at(network, [starts._mean(select(plain, slice(2, 3)))], [group])
    fit = Fit(network, flat, {}, torch.zeros(1), torch.arange(1), torch.ones(1, 1))
    x = problem.test.inputs[:20]
    torch.testing.assert_close(
        of_mean(fit, x[None])[0], predict(problem.net, plain, x)[2], rtol=1e-4, atol=1e-4
    )


# ------------------------------------------------------------------------------------------------------- the twins


def test_the_distance_is_nought_for_networks_of_one_law_and_one_for_initial_weights(problem):
    many = initial(problem.net, range(90), 4)
    trained = one.population(problem, range(60), 4)
    first, second = select(trained, slice(0, 30)), select(trained, slice(30, 60))
    same = twin_measures.distances(problem, first, second, 2, 4)
    assert abs(same[one.ALIGNED].mean()) < 0.1
    far = twin_measures.distances(problem, first, select(many, slice(60, 90)), 2, 4)
    assert far[one.ALIGNED].mean() == pytest.approx(1, abs=0.15)


def test_networks_and_twins_are_aligned_among_all_members(sizes, trained, lenses):
    few = slice(0, sizes.paired)
    kinds = (
        (lenses.pairs[one.ALIGNED], trained.seen[one.RAW], "min_mass"),
        (lenses.unit_pairs, trained.twins, "unit_norm"),
    )
    for found, params, scale in kinds:
        among_all = select(one.seen(trained.problem, params, one.ALIGNED, scale), few)
        among_few = one.seen(trained.problem, select(params, few), one.ALIGNED, scale)
        all_, few_ = (paths.pairs(trained.problem, each, sizes.alphas) for each in (among_all, among_few))
        np.testing.assert_allclose(found.loss, all_.loss, rtol=1e-3, atol=1e-5)
        assert np.nanmax(np.abs(few_.loss - all_.loss)) > 0.01  # it makes a difference here


def test_a_network_and_its_twin_are_left_out_together():
    rng = np.random.default_rng(0)
    loss = rng.random((6, 6))
    plain = paths.Pairs(*(loss + loss.T + np.diag(np.full(6, np.nan)),) * 3)
    (found,) = twin_measures.measure_barriers("w", plain, replace(plain, loss=3 * plain.loss))
    assert (found.value, found.low, found.high) == pytest.approx((3, 3, 3))  # whichever networks are there
    assert (found.n, found.seeds) == (6, 6)
    fewer = paths.Pairs(*(plain.loss[:5, :5],) * 3)
    with pytest.raises(ValueError, match="5 twins stand beside 6 networks"):
        twin_measures.measure_barriers("w", plain, fewer)


# ------------------------------------------------------------------------------------------------------ the picture


def hills_drawn(monkeypatch, rise: float, drift: float):
    """The shown figure of raw lines that rise so high (others by 300 nats) over a heat of 600, and its left axes."""
    drawn = []
    monkeypatch.setattr(figures, "show", lambda fig, *words: drawn.append(fig) or show(fig, *words))
    table = np.ones((4, 4))
    found = {v: paths.Pairs(table, table, (rise if v == one.RAW else 300.0) * table) for v in one.VIEWS}
    shown = figures.hills(found, Heat(np.array([590.0, 600, 610]), drift, acceptance=0.8))
    return shown, drawn[0].axes[0]


@pytest.mark.parametrize("drift", [0.0, 0.5])
@pytest.mark.parametrize("rise", [400.0, 720.0, 60_000.0])
def test_every_hill_is_in_the_picture(monkeypatch, rise, drift):
    _, axes = hills_drawn(monkeypatch, rise, drift)
    left, right = axes.get_xlim()
    reach = [x for line in axes.lines for x in line.get_xdata()]
    assert left == 0
    assert max(reach) >= (rise if drift else rise / 600)
    assert left <= min(reach) <= max(reach) <= right


def test_a_heat_that_has_not_arrived_is_compared_with_nothing(monkeypatch):
    for drift, compared in ((0.0, True), (0.5, False)):
        shown, axes = hills_drawn(monkeypatch, 720.0, drift)
        written = [text.get_text() for text in axes.texts] + [axes.get_xlabel()]
        assert ("the heat" in written) == compared
        assert ("over the heat" in axes.get_xlabel()) == compared
        assert ("1.20 (" in shown.alt) == compared
        assert ("of the heat" in shown.alt) == compared
        assert ("720.00 (720.00 to 720.00) nats of energy" in shown.alt) != compared
        assert ("the posterior's own draws stand higher" in shown.caption) == compared
        assert ("have not arrived" in shown.caption) != compared


# ------------------------------------------------------------------------------------------------ all of it, tiny


def test_every_question_is_measured_and_every_picture_says_what_it_shows(lenses):
    cell, group = lenses.cell, lenses.group
    arrived = replace(lenses.heat, drift=0.0)
    measured = [
        *paths.measure_rise(cell, lenses.pairs[one.ALIGNED], arrived, one.ALIGNED),
        *gaussians.measure_gaussian(cell, lenses.losses, group),
        *gaussians.measure_one_run(cell, lenses.losses, group),
        *gaussians.measure_matrix(cell, lenses.losses, group),
        *starts.measure_starts(cell, lenses.begun, group),
        *twin_measures.measure_apart(cell, lenses.apart, 4),
        *twin_measures.measure_barriers(cell, lenses.pairs[one.ALIGNED], lenses.unit_pairs),
        *paths.measure_distance(cell, lenses.pairs[one.ALIGNED], lenses.distance),
        *paths.measure_density(cell, lenses.pairs[one.ALIGNED]),
    ]
    assert {m.cell.split(",")[0] for m in measured} == {f"width {WIDTH}"}
    assert all(m.low <= m.value <= m.high for m in measured)
    local = energy.Local(np.array([5.0, 6.0, 7.0, np.nan]), np.ones(4), np.arange(4.0))
    shown = [
        figures.hills(lenses.pairs, arrived), figures.predictions(lenses.losses), figures.coefficients(local, local),
        figures.bounds(lenses.begun), figures.twins(lenses), figures.against(lenses.pairs[one.ALIGNED], lenses.distance),
    ]  # fmt: skip
    assert all(len(each.alt) > 80 for each in shown)
    refused = replace(local, value=np.full(4, np.nan))  # the run goes on, and the page says so
    assert "of 0 networks, against" in figures.coefficients(refused, refused).alt
    assert len(figures.table_rows([lenses])) == 2
    assert set(figures.numbers([lenses])[cell]) >= {"heat", "test loss", "refused chains"}
