"""The excess mass against closed forms, the flow that should remove it, and the regression on planted laws."""

import numpy as np
import pytest
import torch

from lib import excess_mass
from lib.excess_mass import Setting, Sweep
from lib.networks import perceptron
from lib.population import Recipe, initial, train
from lib.symmetry import find_symmetries, min_mass, rescale

NET = perceptron((5, 4, 3))
SYMMETRIES = find_symmetries(NET, torch.zeros(2, 5))


def problem(net=NET, n=24):
    generator = torch.Generator().manual_seed(0)
    dtype = next(net.parameters()).dtype
    return torch.randn(n, 5, generator=generator, dtype=dtype), torch.arange(n) % 3


def sides(params, biases):
    """Squared incoming and outgoing norms of the hidden units, (P, H) each, and the output bias's own mass."""
    incoming = params["0.weight"].square().sum(2) + (params["0.bias"].square() if biases else 0)
    return incoming.double(), params["2.weight"].square().sum(1).double()


@pytest.mark.parametrize("biases", [False, True])
def test_excess_is_the_closed_form_of_one_hidden_layer(biases):
    params = initial(NET, 6, 1)
    incoming, outgoing = sides(params, biases)
    rest = params["2.bias"].double().square().sum(1) if biases else 0
    now = (incoming + outgoing).sum(1) + rest
    smallest = 2 * (incoming * outgoing).sqrt().sum(1) + rest
    found = excess_mass.masses(params, SYMMETRIES, biases)
    torch.testing.assert_close(found.mass, now, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.minimum, smallest, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        excess_mass.excess(params, SYMMETRIES, biases), 100 * (now / smallest - 1), rtol=1e-4, atol=1e-6
    )
    assert not found.dead.any()


def test_excess_of_a_known_scale():
    balanced = min_mass(initial(perceptron((5, 4, 3)).double(), 2, 1), SYMMETRIES).params
    scale = torch.tensor([0.0, 0.1, 0.5])
    for u in scale:
        moved = rescale(balanced, SYMMETRIES, (u.expand(4),))
        expected = 100 * (torch.cosh(2 * u.double()) - 1)  # both sides equal: (e^2u + e^-2u) / 2
        torch.testing.assert_close(excess_mass.excess(moved, SYMMETRIES), expected.expand(2), atol=1e-9, rtol=1e-9)  # fmt: skip


def test_dead_units_are_counted_and_what_is_not_finite_stays_visible():
    params = initial(NET, 3, 1)
    params["2.weight"][1, :, :2] = 0.0
    params["0.weight"][2, 0, 0] = torch.nan
    found = excess_mass.masses(params, SYMMETRIES)
    assert found.dead.tolist()[:2] == [0, 2]
    assert torch.isfinite(found.excess).tolist() == [True, True, False]
    with pytest.raises(ValueError, match="1 of the 3 networks of 'a recipe' have no finite excess"):
        excess_mass.measure({"a recipe": found.excess}, resamples=10, seed=0)


def test_measurements_are_those_that_the_ledger_judges():
    values = torch.cat([torch.full((9,), 0.05), torch.linspace(1, 9, 491)]).double()
    found = excess_mass.measure({"a": values, "b": values[9:]}, resamples=200, seed=0)
    assert [(m.name, m.cell) for m in found] == [
        ("excess_median", "a"), ("excess_share", "a"), ("excess_median", "b"), ("excess_share", "b"),
    ]  # fmt: skip
    assert found[0].value == pytest.approx(float(values.quantile(0.5)))
    assert found[0].low < found[0].value < found[0].high
    assert found[1].value == pytest.approx(491 / 500)
    assert (found[0].n, found[0].seeds) == (500, 500)
    assert found[3].value == found[3].high == 1.0
    assert found[3].low == pytest.approx(0.025 ** (1 / 491), rel=1e-6)  # Clopper and Pearson, all of n


def test_the_medians_interval_covers_the_median():
    generator = torch.Generator().manual_seed(3)
    samples = torch.randn(100, 60, generator=generator, dtype=torch.float64).exp()
    found = excess_mass.measure({str(i): sample for i, sample in enumerate(samples)}, resamples=100, seed=1)
    covered = [m.low <= 1.0 <= m.high for m in found if m.name == "excess_median"]
    assert 0.90 <= np.mean(covered) <= 0.99


def test_the_grids_vary_noise_and_decay_independently():
    for grid in (excess_mass.QUICK, excess_mass.FULL, excess_mass.FULL_OPTUMNIST):
        logs = np.log([[s.noise, s.decay, s.steps, s.lr, s.batch] for s in grid])
        with_decay = [logs[:, i] for i in (0, 2, 3, 4) if np.ptp(logs[:, i]) > 0]
        assert max(abs(np.corrcoef(logs[:, 1], other)[0, 1]) for other in with_decay) < 1e-12
        assert len(set(grid)) == len(grid)
    assert len(excess_mass.QUICK) >= 12
    assert len(excess_mass.FULL) >= 36
    assert len(excess_mass.FULL_OPTUMNIST) >= 12
    setting = Setting(lr=0.5, batch=8, weight_decay=2e-4, steps=2_000)
    assert setting.noise == 0.0625
    assert setting.decay == pytest.approx(0.4)
    noisy, quiet = excess_mass.without_noise(excess_mass.QUICK, 800)
    assert noisy in excess_mass.QUICK
    assert noisy.noise == max(s.noise for s in excess_mass.QUICK)
    assert (quiet.lr, quiet.steps, quiet.decay, quiet.batch) == (noisy.lr, noisy.steps, noisy.decay, 800)


@pytest.mark.usefixtures("two_threads")
def test_each_setting_trains_as_its_own_recipe():
    inputs, targets = problem()
    settings = [Setting(0.1, 4, 0.1, 6), Setting(0.5, 4, 0.0, 12), Setting(0.2, 24, 0.01, 3), Setting(0.3, 4, 0.0, 12)]  # fmt: skip
    params = excess_mass.train_settings(NET, inputs, targets, settings, networks=3, seed=5)
    for s, (setting, epochs) in enumerate(zip(settings, (1, 2, 3, 2), strict=True)):
        members = range(3 * s, 3 * s + 3)
        recipe = Recipe(setting.lr, setting.batch, epochs, weight_decay=setting.weight_decay)
        alone = train(NET, inputs, targets, recipe, members=members, seed=5).params
        for name, tensor in alone.items():
            torch.testing.assert_close(params[name][3 * s : 3 * s + 3], tensor, rtol=1e-4, atol=1e-6)
    one = excess_mass.train_settings(NET, inputs, targets, settings[:1], networks=3, seed=5)
    assert all(torch.equal(one[name], params[name][:3]) for name in one)


@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_flow_keeps_the_imbalance_and_decay_shrinks_it(decay):
    """Known answer: (out - in)(t) = (out - in)(0) exp(-2 wd t), bias² counted in `in`, up to an error of first order."""
    net = perceptron((5, 4, 3)).double()
    inputs, targets = problem(net)
    errors = []
    for steps in (100, 200):
        setting = Setting(4.0 / steps, len(inputs), decay, steps)
        before = initial(net, 2, 7)
        after = excess_mass.train_settings(net, inputs, targets, [setting], networks=2, seed=7)
        (i0, o0), (i1, o1) = sides(before, True), sides(after, True)
        errors.append(float(((o1 - i1) - (o0 - i0) * np.exp(-2 * decay * 4.0)).abs().max()))
        moved = (i1 - i0).abs().max()
    assert errors[1] < 0.02 * float(moved)  # the sides themselves have moved fifty times as far
    assert errors[1] / errors[0] == pytest.approx(0.5, abs=0.05)


def planted(settings, noise, decay, *, constant=0.0, networks=0.0, misfit=0.0, k=10, seed=0):
    """A sweep whose median excess is a power law; network noise within settings, misfit between them."""
    rng = np.random.default_rng(seed)
    law = [constant + noise * np.log(s.noise) + decay * np.log(s.decay) for s in settings]
    logs = np.array(law) + misfit * rng.normal(size=len(settings))
    values = np.exp(logs[:, None] + networks * rng.normal(size=(len(settings), k)))
    return Sweep(tuple(settings), torch.from_numpy(values), torch.ones(len(settings), k))


def test_a_planted_power_law_comes_back():
    a = planted(excess_mass.QUICK, 0.7, -0.3)
    b = planted(excess_mass.FULL_OPTUMNIST, 0.7, -0.3, constant=4.0)
    fit = excess_mass.regress([a, b])
    np.testing.assert_allclose(fit.value, [0.7, -0.3], atol=1e-12)
    assert fit.explained == pytest.approx(1)
    assert fit.settings == 36
    assert abs(fit.correlation[0, 1]) < 1e-12
    several = excess_mass.regress([a], ("lr", "batch", "decay", "steps"))
    np.testing.assert_allclose(several.value, [0.7, -0.7, -0.3, 0.0], atol=1e-12)


def test_intervals_are_those_of_the_textbook_formula():
    from scipy.stats import t

    parts = [planted(grid, 0.5, -0.2, networks=0.3, misfit=0.4, seed=i) for i, grid in enumerate((excess_mass.QUICK, excess_mass.FULL_OPTUMNIST))]  # fmt: skip
    settings = [s for part in parts for s in part.settings]
    x = np.array([[np.log(s.noise), np.log(s.decay), i < 24, i >= 24] for i, s in enumerate(settings)], float)
    y = np.log(np.concatenate([part.median for part in parts]))
    bread = np.linalg.inv(x.T @ x)
    residual = y - x @ (bread @ x.T @ y)
    leverage = np.diag(x @ bread @ x.T)
    hc3 = bread @ (x.T * (residual / (1 - leverage)) ** 2) @ x @ bread
    fit = excess_mass.regress(parts)
    np.testing.assert_allclose(fit.high - fit.value, t.ppf(0.975, 32) * np.sqrt(np.diag(hc3))[:2])


@pytest.mark.parametrize(("networks", "misfit"), [(0.5, 0.0), (0.3, 0.6)])
def test_intervals_cover_the_planted_elasticities(networks, misfit):
    hits = []
    for seed in range(150):
        fit = excess_mass.regress(
            [planted(excess_mass.QUICK, 1.0, -0.3, networks=networks, misfit=misfit, seed=seed)]
        )
        hits.append((fit.low <= [1.0, -0.3]) & (fit.high >= [1.0, -0.3]))
    assert (np.mean(hits, axis=0) > 0.9).all()
    assert (np.mean(hits, axis=0) < 0.99).all()


def test_what_cannot_be_regressed_is_refused():
    good = planted(excess_mass.QUICK, 1.0, -0.3)
    quiet = Setting(0.1, 8, 0.0, 500)
    with pytest.raises(ValueError, match="decay is zero"):
        excess_mass.regress([Sweep((quiet,), torch.ones(1, 3).double(), torch.ones(1, 3))])
    with pytest.raises(ValueError, match="apart"):
        excess_mass.regress([good], ("lr", "batch", "noise"))
    with pytest.raises(ValueError, match="apart"):
        excess_mass.regress([good.at(excess_mass.QUICK[:2])])
    good.excess[3, 0] = torch.nan
    with pytest.raises(ValueError, match=r"1 of the 10 networks at lr 0.1, batch 8, .* diverged"):
        excess_mass.regress([good])


def test_a_sweep_from_training_to_measurements():
    inputs, targets = problem()
    grid = excess_mass.factorial((0.05, 0.2), (2, 8), (0.1, 1.0), (12,))
    noisy, quiet = excess_mass.without_noise(grid, len(inputs))
    swept = excess_mass.sweep(NET, inputs, targets, (*grid, quiet), networks=5, seed=2)
    assert swept.excess.shape == (9, 5)
    assert ((swept.accuracy > 0) & (swept.accuracy <= 1)).all()
    found, fit = excess_mass.measure_sweep(
        [swept.at(grid)], swept.at((noisy,)), swept.at((quiet,)), resamples=100, seed=0
    )
    assert [m.name for m in found] == ["noise_elasticity", "decay_elasticity", "full_batch_ratio"]
    assert [(m.n, m.seeds) for m in found] == [(8, 5), (8, 5), (5, 5)]
    assert found[0].value == fit.value[0]
    expected = swept.at((quiet,)).median[0] / swept.at((noisy,)).median[0]
    assert found[2].value == pytest.approx(expected)
    assert found[2].low <= expected <= found[2].high
