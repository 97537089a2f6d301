"""Excesses over an exact evidence: against brute-force Gaussians, divergences from the posterior, and naive draws."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from lib import randomness
from lib.contest import bound
from lib.free_energy.truths import T1
from lib.growth.data_sets import small_free_energy
from lib.matrix_gaussian.laws import Factorised, RowColumn
from lib.matrix_gaussian.pseudo_data import PseudoData

SEED = 990
SETS = 4
R = bound.INPUTS + 1


@pytest.fixture(scope="module")
def problem():
    return bound.problems(SETS, SEED)


@pytest.fixture(scope="module")
def result():
    return bound.run(SETS, SEED)


def some_parameters(problem, law):
    """Means near nothing and logarithms of deviations near -1, no two alike."""
    size = problem.network(law).size
    flat = 0.3 * randomness.normal(SEED, torch.arange(SETS), "parameters", 0, (size,), torch.float64)
    for name, x in problem.network(law).parameters(flat)[0].items():
        if name.startswith("log"):
            x -= 1
    return flat


def posterior(problem, data_set, column):
    a, y = problem.inputs[data_set], problem.targets[data_set, :, column]
    precision = torch.eye(R).double() + problem.precision * a.mT @ a
    return MultivariateNormal(
        torch.linalg.solve(precision, problem.precision * a.mT @ y), precision_matrix=precision
    )


def test_the_evidence_is_that_of_the_targets_joint_normal_law(problem):
    for b, found in enumerate(bound.log_evidence(problem)):
        a, y = problem.inputs[b], problem.targets[b]
        covariance = a @ a.mT + torch.eye(len(a)).double() / problem.precision
        expected = MultivariateNormal(torch.zeros(len(a)).double(), covariance).log_prob(y.mT).sum()
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("law", [RowColumn(), Factorised()])
def test_a_valid_law_falls_short_by_its_divergence_from_the_posterior(problem, law):
    flat = some_parameters(problem, law)
    found = bound.excess(problem, law, flat, seed=SEED, draws=2)
    assert (found.error == 0).all()
    (p,) = problem.network(law).parameters(flat)
    sd = (
        p["log_sd"].exp() if "log_sd" in p else p["log_row"].exp()[..., None] * p["log_column"].exp()[:, None]
    )
    for b in range(SETS):
        apart = sum(
            kl_divergence(
                MultivariateNormal(p["mean"][b, :, j], scale_tril=sd[b, :, j].diag()),
                posterior(problem, b, j),
            )
            for j in range(bound.OUTPUTS)
        )
        torch.testing.assert_close(found.value[b], -apart, rtol=1e-8, atol=1e-8)


def test_the_least_gap_is_that_of_the_posterior_without_its_correlations(problem):
    for b, found in enumerate(bound.least_gap(problem)):
        exact = [posterior(problem, b, j) for j in range(bound.OUTPUTS)]
        independent = [
            MultivariateNormal(q.mean, precision_matrix=q.precision_matrix.diag().diag()) for q in exact
        ]
        expected = sum(kl_divergence(q, p) for q, p in zip(independent, exact, strict=True))
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_valid_laws_reach_their_least_gap_and_never_the_evidence(result):
    assert result.least.max() < -0.05
    for found in result.proper.values():
        assert (found.value < 0).all()
        torch.testing.assert_close(found.value, result.least, rtol=0, atol=2e-3)


def test_the_papers_objective_exceeds_the_evidence_and_more_so_with_more_pseudo_data(result):
    one, two, five = (result.paper[m] for m in bound.COUNTS)
    assert (one.value > 1).all()
    assert (two.value > one.value + 1).all()
    assert (five.value > two.value + 3).all()
    for found in (one, two, five):
        assert found.error.max() < 0.1
        assert (found.value < result.highest).all()  # no more than the likelihood of one weight matrix


def noiseless(problem, law, flat):
    """The objective without the pseudo-data's noise, the likelihood's mean from a W of given mean and deviation."""
    (p,), m, sides = problem.network(law).parameters(flat), law.count, []
    for side in (1.0, -1.0):
        noise = {
            "output": torch.full_like(problem.targets, side),
            "pseudo": torch.zeros(SETS, m, R + bound.OUTPUTS),
        }
        sides.append(problem.log_likelihood(law.forward(p, problem.inputs, noise)[0]))
    charge = problem.network(law).divergence(
        flat, problem.network(law).prior(torch.ones(SETS, bound.OUTPUTS))
    )
    return 0.5 * sum(sides), charge


@pytest.mark.parametrize("m", [1, 2, 4, 5, 7])
def test_rows_fixed_by_hand_cost_nothing_and_the_others_what_independent_ones_do(problem, m):
    """Likelihood and divergence together: max over W of ln p(y|W) - ½|free rows|², less ½ c Σ ln Λ_ii over free rows."""
    law, c = PseudoData(m), bound.OUTPUTS
    likelihood, charge = noiseless(problem, law, bound.by_hand(problem, law))
    a, y, root = problem.inputs, problem.targets, math.sqrt(problem.precision)
    ridge = (
        torch.eye(R)[m:].double().expand(SETS, -1, -1)
    )  # least squares with the free rows' prior as further targets
    best = torch.linalg.lstsq(
        torch.cat([root * a, ridge], 1), torch.cat([root * y, y.new_zeros(SETS, ridge.shape[1], c)], 1)
    ).solution
    free = 0.5 * best[:, m:].square().sum((1, 2))
    free += 0.5 * c * (1 + problem.precision * a.square().sum(1)).log()[:, m:].sum(1)
    torch.testing.assert_close(
        likelihood - charge, problem.log_likelihood(a @ best) - free, rtol=0, atol=2e-3
    )  # jitter
    if m >= R:
        assert (charge == 0).all()
        certificate = likelihood - bound.log_evidence(problem)
        torch.testing.assert_close(certificate, bound.ceiling(problem), rtol=0, atol=2e-3)
        assert (certificate > 0).all()


@pytest.mark.parametrize("m", [2, 5])
def test_the_mean_over_noise_is_that_of_naive_draws_of_the_weights(problem, m):
    law, draws = PseudoData(m, noise=0.02), 4_000
    flat = bound.by_hand(problem, law) + 0.05 * some_parameters(problem, law)
    flat.clamp_(min=-3.9)
    found = bound.excess(problem, law, flat, seed=SEED, draws=2_000)
    network = problem.network(law)
    (p,) = network.parameters(flat)
    noise = {
        name: randomness.normal(SEED, torch.arange(SETS), f"naive {name}", 0, (draws, *size), torch.float64)
        for name, size in law.weight_noise_shapes(R, bound.OUTPUTS).items()
    }
    weights = law.weights({name: x[:, None] for name, x in p.items()}, noise)
    outputs = (problem.inputs[:, None] @ weights).flatten(0, 1)
    values = problem.log_likelihood(outputs).view(SETS, draws)
    charge = network.divergence(flat, network.prior(torch.ones(SETS, bound.OUTPUTS)))
    expected = values.mean(1) - charge - bound.log_evidence(problem)
    error = (values.var(1) / draws + found.error.square()).sqrt()
    assert ((found.value - expected).abs() < 4 * error).all()
    assert found.error.max() < 0.5


def test_data_sets_and_answers_do_not_depend_on_their_neighbours(problem):
    few = bound.problems(2, SEED)
    assert torch.equal(few.targets, problem.targets[:2])
    law = PseudoData(2)
    alone, among = (
        bound.excess(each, law, bound.optimised(each, law, seed=SEED, steps=5), seed=SEED, draws=16)
        for each in (few, problem)
    )
    torch.testing.assert_close(alone.value, among.value[:2])
    assert (bound.problems(2, SEED + 1).targets != few.targets).all()


def test_measurements_are_means_over_data_sets_in_the_ledgers_cells(result):
    found = {(m.name, m.cell): m for m in bound.measure(result)}
    cells = ["pseudo-data, m = 1", "pseudo-data, m = 2", "pseudo-data, m = 5"]
    assert [cell for name, cell in found if name == "excess"] == cells
    assert [cell for name, cell in found if name == "excess_proper"] == list(bound.PROPER)
    one = found["excess", cells[0]]
    assert one.value == pytest.approx(float(result.paper[1].value.mean()))
    assert (one.n, one.seeds) == (SETS, 1)
    assert all(m.low > 0 for (name, _), m in found.items() if name == "excess")
    assert all(m.high < 0 for (name, _), m in found.items() if name == "excess_proper")
    rows = bound.table(result)
    assert len(rows) == 7
    assert rows[0][1].startswith(f"{float(result.proper['diagonal matrix Gaussian'].value.mean()):.2f} (")


def test_a_matrix_gaussian_pays_no_less_than_the_family_that_contains_it():
    small, wide = bound.prices(
        T1, [(1, 1, 1), (1, 2, 1)], 50, sets=3, copies=1, particles=64, seed=7, device=torch.device("cpu")
    )
    # one unit: every table of deviations has rank one, and the families are the same
    assert (small.matrix - small.mean_field).abs().max() < 0.05
    assert (wide.matrix > wide.mean_field - 0.2).all()
    assert (torch.stack([small.mean_field, wide.mean_field]) > 0).all()
    rows = bound.price_table(
        [small, replace(wide, matrix=wide.matrix.index_fill(0, torch.tensor([0]), math.nan))]
    )
    assert [row[:2] for row in rows] == [("1-1-1", 50), ("1-2-1", 50)]
    assert not any("nan" in cell for row in rows for cell in row[2:])


def test_prices_are_what_lies_between_each_fit_and_the_exact_free_energy(monkeypatch):
    """The fit made up, mean-field 1 and matrix 2 nats above nothing; the exact free energy by quadrature for one unit only."""

    def made(target, starts, *, seed):
        level = torch.zeros(target.problems, dtype=torch.float64)
        return SimpleNamespace(
            free_energy=level + 2, record={"mean_field": SimpleNamespace(free_energy=level + 1)}
        )

    monkeypatch.setattr(bound, "fit_matrix_gaussian", made)
    of = {"sets": 2, "copies": 1, "particles": 32, "seed": 7, "device": torch.device("cpu")}
    (one,) = bound.prices(T1, [(1, 1, 1)], 30, **of)
    exact = small_free_energy(T1, (30,), 2, 7)[0]
    torch.testing.assert_close(one.mean_field, 1 - exact)
    torch.testing.assert_close(one.matrix, 2 - exact)
    assert bound.price_table([one])[0][4] == "1.00 (1.00 to 1.00)"
