"""Correlations, covariances and gradient variances against laws whose answers are known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lib import claims, randomness
from lib.contest import gradient_variance, mechanism
from lib.contest.gradient_variance import gradients
from lib.matrix_gaussian.laws import Factorised, RowColumn
from lib.matrix_gaussian.pseudo_data import PseudoData
from lib.matrix_gaussian.training import Schedule

SEED, CPU = 990, torch.device("cpu")
R, C = mechanism.ROWS, mechanism.COLUMNS


def normal(name, *shape):
    return randomness.normal(SEED, torch.tensor([0]), name, 0, shape, torch.float64)[0]


def layer(count, *, pseudo_inputs=None):
    """One run of a layer with pseudo-data, in float64, its deviations between e^-4 and e^1."""
    p = {
        "mean": normal("mean", R, C),
        "log_row": torch.linspace(-4, 1, R).double(),
        "log_column": 0.5 * normal("column", C),
        "pseudo_inputs": normal("inputs", count, R) if pseudo_inputs is None else pseudo_inputs,
        "pseudo_outputs": normal("outputs", count, C),
        "log_noise": torch.tensor([-2.0, -3.0]).double(),
    }
    return {name: value[None] for name, value in p.items()}


# ------------------------------------------------------------------------------------------------ correlations (P3-C7)


def test_row_correlation_finds_that_of_a_kronecker_gaussian():
    rows, scales, draws = 4, torch.tensor([0.01, 1.0, 50.0]).double(), 10_000
    half = torch.linalg.cholesky(0.9 * torch.eye(rows).double() + 0.5)  # correlation 0.5 / 1.4
    half = half * torch.tensor([0.1, 1.0, 3.0, 20.0]).double()[:, None]
    mean = 100 * normal("means", rows, 3)
    found = mechanism.row_correlation(mean + half @ normal("draws", draws, rows, 3) * scales)
    expected = torch.full((rows, rows), 0.5 / 1.4).double().fill_diagonal_(1)
    torch.testing.assert_close(found, expected, rtol=0, atol=4 / math.sqrt(3 * draws))


def test_row_correlation_does_not_see_the_columns_units():
    weights, scales = normal("draws", 50, 4, 3), torch.tensor([0.01, 1.0, 50.0]).double()
    torch.testing.assert_close(
        mechanism.row_correlation(weights * scales + 7), mechanism.row_correlation(weights), rtol=0, atol=1e-9
    )


def test_off_diagonal_is_the_root_mean_square_beside_the_diagonal():
    one = torch.tensor([[1.0, 0.3, -0.4], [0.3, 1.0, 0.0], [-0.4, 0.0, 1.0]])
    found = mechanism.off_diagonal(torch.stack([one, torch.eye(3)]))
    torch.testing.assert_close(found, torch.tensor([math.sqrt(0.25 / 3), 0.0]).double())


def test_the_rank_falls_by_the_number_of_pseudo_data_that_differ():
    for count in (1, 5, 10):
        assert mechanism.rank(PseudoData(count), layer(count)) == [R - count]
    two, every = normal("two", 2, R), torch.eye(R).double()
    twice = layer(4, pseudo_inputs=torch.cat([two, two]))
    assert mechanism.rank(PseudoData(4), twice) == [R - 2]
    assert mechanism.rank(PseudoData(R), layer(R, pseudo_inputs=every)) == [0]


def test_weights_drawn_without_noise_obey_the_pseudo_data_and_with_it_do_not():
    law, p, draws = PseudoData(5), layer(5), 40
    weight = normal("weights", draws, R, C)
    inputs, outputs = law.still(p)
    still = mechanism.drawn(law, p, weight)
    torch.testing.assert_close(inputs @ still, outputs.expand(draws, -1, -1), rtol=0, atol=1e-4)
    noisy = mechanism.drawn(law, p, weight, normal("pseudo", draws, 5, R + C))
    assert float((inputs @ noisy - outputs).abs().mean()) > 0.02


def test_the_drawn_weights_have_the_correlation_of_the_derived_row_covariance():
    law, p, draws = PseudoData(10), layer(10), 5_000
    covariance = law.row_covariance(p)[0]
    sd = covariance.diagonal().sqrt()
    found = mechanism.row_correlation(mechanism.drawn(law, p, normal("many", draws, R, C)))
    torch.testing.assert_close(found, covariance / sd / sd[:, None], rtol=0, atol=4.5 / math.sqrt(C * draws))


@pytest.fixture(scope="module")
def correlation():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mechanism, "SHORT", Schedule(100, 20, 0.01, 0.9))  # a fifth: the tests ask for no level
        return mechanism.measure_correlation(draws=1_000, seeds=2, seed=SEED, device=CPU)


def test_the_ledger_finds_every_measurement_and_refuses_only_their_sizes(correlation):
    verdict = claims.judge("P3-C7", "quick", correlation.measurements)
    assert [finding.verdict for finding in verdict.findings] == [claims.UNRESOLVED] * 3
    assert all("where the rule asks for" in finding.reason for finding in verdict.findings)
    sizes = {m.name: (m.n, m.seeds) for m in correlation.measurements}
    assert sizes == {"correlation_without": (1_000, 2), "correlation_with": (1_000, 2), "rank_error": (2, 2)}


def test_without_pseudo_data_the_largest_correlation_is_that_of_noise(correlation):
    (found,) = (m for m in correlation.measurements if m.name == "correlation_without")
    # the largest of 190 normal numbers: about 2.9 standard deviations
    assert 2 < found.value * math.sqrt(1_000 * C) < 4.5
    assert float(np.abs(correlation.panels["no pseudo-data"] - np.eye(R)).max()) < 4.5 / math.sqrt(1_000 * C)


def test_pseudo_data_correlate_and_their_noise_blurs_it(correlation):
    values = {(m.name, m.cell): m.value for m in correlation.measurements}
    assert values["rank_error", "5"] == values["rank_error", "10"] == 0
    for cell in ("5", "10"):
        panel = torch.from_numpy(correlation.panels[f"{cell} pseudo-data"])
        np.testing.assert_allclose(panel.diagonal(), 1, rtol=1e-5)
        alike = float(mechanism.off_diagonal(panel))  # of the first seed
        assert values["correlation_with", cell] == pytest.approx(alike, rel=0.2)
        blurred, low, high = correlation.blurred[f"{cell} pseudo-data"]
        assert 0 < blurred < values["correlation_with", cell]
        assert low < blurred < high
        assert correlation.untrained[f"{cell} pseudo-data"] == pytest.approx(
            values["correlation_with", cell], rel=0.2
        )


# ------------------------------------------------------------------------------------------------- the process (P3-C12)

POINTS, SEEDS = 20, 4


def kernels():
    for run in range(SEEDS):
        _, a, p = mechanism.line(POINTS, SEED, run)
        yield (a * torch.exp(2 * p["log_row"])) @ a.T


def process(draws, at_once=2_000):
    found = mechanism.measure_process(
        draws=draws, points=POINTS, seeds=SEEDS, seed=SEED, device=CPU, at_once=at_once
    )
    return found, {m.name: m for m in found.measurements}


@pytest.mark.parametrize(("draws", "at_once"), [(200, 2_000), (3_200, 2_000), (3_201, 1_600)])
def test_the_covariance_error_is_the_one_of_so_many_draws(draws, at_once):
    """Of n c draws with known mean, E‖Ĉ - K‖² = (tr²K + ‖K‖²) / (n c); a norm's mean is a little below that root."""
    ratios = [float((k.trace() / k.norm()) ** 2) for k in kernels()]
    expected = np.sqrt((np.mean(ratios) + 1) / (draws * mechanism.PROCESS_COLUMNS))
    found = process(draws, at_once)[1]["covariance_error"]
    assert 0.35 < found.value / expected < 1.4
    assert (found.n, found.seeds) == (draws, SEEDS)


def test_neighbours_is_the_mean_correlation_next_to_each_other():
    place = torch.arange(6).double()
    sd = torch.tensor([1.0, 5.0, 0.1, 2.0, 30.0, 1.0]).double()
    covariance = (-0.7) ** (place - place[:, None]).abs() * sd * sd[:, None]
    assert mechanism.neighbours(covariance) == pytest.approx(-0.7, rel=1e-12)


def test_one_weight_matrix_correlates_neighbours_and_noise_of_their_own_does_not():
    draws = 2_001  # the last piece, of one draw, is not what is shown
    found, m = process(draws, at_once=1_000)
    expected = np.mean([mechanism.neighbours(k) for k in kernels()])
    assert m["neighbours_joint"].value == pytest.approx(expected, abs=1e-3)
    numbers = draws * mechanism.PROCESS_COLUMNS * (POINTS - 1)
    assert 0 < m["neighbours_independent"].value < 4 / math.sqrt(numbers)
    assert found.joint.shape == found.independent.shape == (mechanism.SHOWN, POINTS)
    steps = [np.abs(np.diff(draws, axis=1)).mean() for draws in (found.joint, found.independent)]
    assert steps[1] > 5 * steps[0]


# ------------------------------------------------------------------------------------------ gradient variances (P3-C11)

LAWS = {"factorised": Factorised(), "diagonal matrix Gaussian": RowColumn()}


def small(law, r, c, log_sd=-1.0):
    """Parameters of one layer, no two alike."""
    shapes = law.shapes(r, c)
    return {n: normal(n, *shape) * 0.5 + log_sd * n.startswith("log") for n, shape in shapes.items()}


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("name", LAWS)
def test_each_gradient_is_the_one_of_autograd(name, local):
    law, draws, batch, r, c, classes = LAWS[name], 3, 5, 4, 6, 3
    p = {n: v.requires_grad_() for n, v in small(law, r, c).items()}
    a, readout = normal("a", batch, r), normal("readout", c + 1, classes)
    y = torch.tensor([0, 1, 2, 2, 1])
    with torch.no_grad():
        found = gradients(law, p, readout, a, y, draws=draws, seed=SEED, run=1, local=local)

    shape = (batch, c) if local else (r, c)
    purpose = f"gradient/{local}/{'output' if local else 'weight'}"
    noise = randomness.normal(SEED, torch.tensor([1]), purpose, 0, (draws, *shape))[0].double()
    for numbers, one in zip(noise, found, strict=True):
        sd = p["log_sd"].exp() if "log_sd" in p else p["log_row"].exp()[:, None] * p["log_column"].exp()
        if local:
            z = a @ p["mean"] + (a.square() @ sd.square()).sqrt() * numbers
        else:
            z = a @ (p["mean"] + sd * numbers)
        logits = torch.cat([z.relu(), torch.ones(batch, 1)], 1) / math.sqrt(c + 1) @ readout
        loss = torch.nn.functional.cross_entropy(logits, y)
        expected = torch.autograd.grad(loss, list(p.values()))
        torch.testing.assert_close(one, torch.cat([g.flatten() for g in expected]), rtol=1e-10, atol=1e-12)


def test_one_weight_and_equal_examples_have_the_batch_as_their_ratio():
    """With little noise σ a gradient moves by H a² σ ε: ε is one number a draw, or the mean of N, so that the ratio is N."""
    batch, draws, sd = 20, 8_000, 1e-3
    p = {"mean": torch.ones(1, 1).double(), "log_sd": torch.full((1, 1), math.log(sd)).double()}
    readout, a = torch.tensor([[1.5, -1.0], [0.2, 0.0]]).double(), torch.full((batch, 1), 0.8).double()
    y = torch.arange(batch) % 2
    both = [
        gradients(Factorised(), p, readout, a, y, draws=draws, seed=SEED, run=0, local=local)[:, 0].var()
        for local in (False, True)
    ]
    # ½ for prepared's 1 / √2, once in the outputs and once in the slope; P(1 - P) is the slope of the softmax
    gap = 2.5
    odds = torch.sigmoid(torch.tensor((0.8 * gap + 0.2) / math.sqrt(2))).item()
    moved = odds * (1 - odds) * gap**2 / 2 * 0.8**2 * sd
    error = 4 * math.sqrt(2 / draws)
    assert both[0].item() == pytest.approx(moved**2, rel=error)
    assert both[1].item() == pytest.approx(moved**2 / batch, rel=error)


def test_the_slope_in_a_deviation_has_its_two_variances():
    """With a readout so small that the loss is linear, slopes g_n: σ² (Σ a_n g_n)² drawn by weight, σ² Σ (a_n g_n)² locally."""
    batch, draws, sd, small_readout = 12, 8_000, 0.05, 1e-6
    p = {"mean": torch.ones(1, 1).double(), "log_sd": torch.full((1, 1), math.log(sd)).double()}
    readout = small_readout * torch.tensor([[1.0, -1.0], [0.0, 0.0]]).double()
    a, y = torch.linspace(0.5, 2, batch).double()[:, None], torch.arange(batch) % 3 // 2
    slopes = (0.5 - (y == 0).double()) * 2 * small_readout / math.sqrt(2) / batch
    products = a[:, 0] * slopes
    error = 4 * math.sqrt(2 / draws)
    for local, expected in ((False, products.sum() ** 2), (True, products.square().sum())):
        found = gradients(Factorised(), p, readout, a, y, draws=draws, seed=SEED, run=0, local=local)
        assert found[:, 1].var().item() == pytest.approx(sd**2 * expected.item(), rel=error)


@pytest.mark.parametrize("name", LAWS)
def test_both_ways_have_the_same_mean_gradient(name):
    law, draws, batch, r, c = LAWS[name], 4_000, 8, 4, 3
    p, a, readout = small(law, r, c, -2.0), normal("a", batch, r), normal("readout", c + 1, 3)
    y = torch.arange(batch) % 3
    first, second = (
        gradients(law, p, readout, a, y, draws=draws, seed=SEED, run=0, local=local)
        for local in (False, True)
    )
    error = ((first.var(0) + second.var(0)) / draws).sqrt()
    assert float(((first.mean(0) - second.mean(0)) / error).abs().max()) < 4.5


def stub(monkeypatch, change):
    """Measure with gradients of known variances: 3 times as wide by weight, then what ``change`` makes of them."""

    def known(law, p, readout, x, y, *, draws, seed, run, local):
        g = normal("stub", draws, sum(value.numel() for value in p.values())) * (1 if local else 3)
        change(g, local)
        return g

    monkeypatch.setattr(gradient_variance, "SHORT", Schedule(1, gradient_variance.BATCH))
    monkeypatch.setattr(gradient_variance, "gradients", known)
    return gradient_variance.measure_gradients(draws=5, seeds=2, seed=SEED, device=CPU, hidden=2)


def test_what_never_moves_is_left_out_and_what_is_still_locally_counts_as_infinite(monkeypatch):
    def change(g, local):
        g[:, 0] = 0
        if local:
            g[:, 1] = 0

    found = stub(monkeypatch, change)
    assert len(found.ratios["factorised"]) == 2 * (65 * 2 * 2 - 1)
    assert int(np.isinf(found.ratios["factorised"]).sum()) == 2
    assert [m.value for m in found.measurements] == pytest.approx([9, 9], rel=1e-12)
    assert found.apart["factorised"]["log_sd"] == pytest.approx([9, 9], rel=1e-12)


def test_gradients_that_are_no_numbers_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="finite"):
        stub(monkeypatch, lambda g, local: g[:, 3].fill_(math.nan))


def test_gradients_are_measured_where_pixels_are_not_black(monkeypatch):
    monkeypatch.setattr(gradient_variance, "SHORT", Schedule(30, gradient_variance.BATCH, 0.01, 0.9))
    found = gradient_variance.measure_gradients(draws=40, seeds=2, seed=SEED, device=CPU, hidden=6)
    verdict = claims.judge("P3-C11", "quick", found.measurements)
    assert "where the rule asks for" in verdict.findings[0].reason
    assert [(m.cell, m.n, m.seeds) for m in found.measurements] == [(name, 40, 2) for name in LAWS]
    seen = int((gradient_variance.load("digits").train[: gradient_variance.BATCH] > 0).any(0).sum()) + 1
    assert seen < 65
    assert len(found.ratios["factorised"]) == 2 * (seen * 6 * 2)
    assert len(found.ratios["diagonal matrix Gaussian"]) == 2 * (seen * 6 + seen + 6)
    assert {name: set(kinds) for name, kinds in found.apart.items()} == {
        "factorised": {"mean", "log_sd"},
        "diagonal matrix Gaussian": {"mean", "log_row", "log_column"},
    }
    means = found.ratios["diagonal matrix Gaussian"][: seen * 6]  # of the first seed
    assert found.apart["diagonal matrix Gaussian"]["mean"][0] == pytest.approx(np.median(means), rel=1e-12)
