"""Exact evidence against normal densities, derivatives, and a plain sum over a fine grid of hidden weights."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm

from lib.free_energy import evidence, truths
from lib.free_energy.regression import Regression, join
from lib.free_energy.targets import target


def linear_problem(seed=0, sets=3, n=8, width=4, outputs=1, sigma=1.0):
    """Noisy linear data whose true energy is known, one problem padded by points of weight zero."""
    rng = np.random.default_rng(seed)

    def part(sets, n):
        x, noise = rng.normal(size=(sets, n, width)), rng.normal(size=(sets, n, outputs))
        y = x @ rng.normal(size=(sets, width, outputs)) + sigma * noise
        q = np.full((sets, n), sigma**-2)
        return Regression(*map(torch.from_numpy, (x, y, q, 0.5 * (noise**2).sum((1, 2)))))

    return join([part(sets, n), part(1, n - 3)])


class TestLinear:
    @pytest.mark.parametrize("scale", [1.0, 0.3, 5.0])
    @pytest.mark.parametrize("t", [0.02, 1.0, 20.0])
    @pytest.mark.parametrize(("outputs", "sigma"), [(1, 1.0), (2, 0.4)])
    def test_free_energy_is_a_normal_density_over_the_truths(self, scale, t, outputs, sigma):
        problem = linear_problem(outputs=outputs, sigma=sigma)
        found = evidence.linear(problem, scale, t)
        for r, n in enumerate((8, 8, 8, 5)):
            x, y = problem.inputs[r, :n].numpy(), problem.targets[r, :n].numpy()
            noise = sigma**2 / t
            density = multivariate_normal(np.zeros(n), noise * np.eye(n) + scale**2 * x @ x.T)
            own = density.logpdf(y.T).sum() + 0.5 * outputs * n * math.log(2 * math.pi * noise)
            assert found[r].item() == pytest.approx(-own - t * problem.truth[r].item(), rel=1e-9, abs=1e-9)

    def test_at_temperature_one_it_is_f_minus_n_s(self):
        """F_n - n S_n in its own words: the marginal density of the targets against the noise's."""
        problem = linear_problem(sigma=0.7)
        for r, n in enumerate((8, 8, 8, 5)):
            x, y = problem.inputs[r, :n].numpy(), problem.targets[r, :n, 0].numpy()
            f_n = -multivariate_normal(np.zeros(n), 0.49 * np.eye(n) + x @ x.T).logpdf(y)
            # the noise's own density: n/2 log(2 pi sigma²) plus its energy
            n_s_n = -n * norm(0, 0.7).logpdf(0) + problem.truth[r].item()
            assert evidence.linear(problem)[r].item() == pytest.approx(f_n - n_s_n)

    def test_energy_is_the_slope(self):
        problem, h = linear_problem(outputs=2), 1e-6
        for t in (0.1, 1 / math.log(8), 5.0):
            up, down = (evidence.linear(problem, 2.0, t + s) for s in (h, -h))
            found = evidence.linear_energy(problem, 2.0, torch.full((4,), t, dtype=torch.float64))
            torch.testing.assert_close(found, (up - down) / (2 * h), rtol=1e-6, atol=1e-6)

    def test_each_problem_has_its_own_temperature(self):
        problem = linear_problem()
        t = torch.tensor([0.1, 1.0, 3.0, 10.0], dtype=torch.float64)
        together = evidence.linear_energy(problem, 1.0, t)
        for r in range(4):
            alone = evidence.linear_energy(problem[r : r + 1], 1.0, t[r : r + 1])
            torch.testing.assert_close(together[r : r + 1], alone)

    def test_coefficient_is_half_the_parameters(self):
        x = torch.from_numpy(np.random.default_rng(1).normal(size=(1, 50, 4)))
        problem = Regression(
            x, x @ torch.ones(1, 4, 1).double(), torch.full((1, 50), 0.02).double(), torch.zeros(1).double()
        )
        slope = evidence.linear(problem, t=1e8) - evidence.linear(problem, t=1e7)
        assert slope.item() / math.log(10) == pytest.approx(2, abs=1e-6)

    def test_is_the_whole_networks_evidence(self):
        """A collapsed linear network of one hidden unit per input, its hidden weights the identity."""
        problem = linear_problem()
        known = target(problem, (4, 4, 1), bias=False, activation="linear", weight_scale=0.8)
        position = torch.eye(4, dtype=torch.float64).flatten().expand(4, 1, -1)
        t = torch.full((4, 1), 0.7, dtype=torch.float64)
        found = known.log_likelihood(known.statistics(position), t)[:, 0]
        torch.testing.assert_close(-found, evidence.linear(problem, 0.8, 0.7))


def by_grid(problem, t, step=0.02, reach=6.5):
    """F of a 1-1-1 network by midpoints over (weight, bias), and its mean energy: normal densities of all targets at each."""
    axis = np.arange(-reach, reach, step) + step / 2
    weight, bias = (a.ravel() for a in np.meshgrid(axis, axis))
    log_prior = norm.logpdf(weight) + norm.logpdf(bias) + 2 * math.log(step)
    found = []
    for r, at in enumerate(t):
        counts = problem.weights[r] > 0
        x, y, q = (
            v[r][counts].numpy() for v in (problem.inputs[..., 0], problem.targets[..., 0], problem.weights)
        )
        unit = np.maximum(weight[:, None] * x + bias[:, None], 0)
        # the two output parameters integrated by hand: the covariance I + t Phi Phi^T by its 2 x 2 complement
        a, b, d = 1 + at * (unit**2) @ q, at * unit @ q, 1 + at * q.sum()
        u, v = at * unit @ (q * y), at * (q * y).sum()
        determinant = a * d - b * b
        fit = (d * u * u - 2 * b * u * v + a * v * v) / determinant
        log_value = 0.5 * (fit - np.log(determinant) - at * (q * y * y).sum()) + at * problem.truth[r].item()
        found.append(-np.logaddexp.reduce(log_value + log_prior))
    return np.array(found)


class TestOneUnit:
    T = torch.ones(4, 1, dtype=torch.float64)

    @pytest.fixture
    def problem(self):
        parts = [truths.data(truth, n, 1, seed=3) for truth in (truths.T0, truths.T1) for n in (12, 60)]
        return join(parts)

    def test_is_a_sum_over_a_fine_grid(self, problem):
        t = [1.0, 0.4, 1.0, 3.0]
        column = torch.tensor(t, dtype=torch.float64)[:, None]
        found = evidence.one_unit_free_energy(target(problem, (1, 1, 1)), column)
        np.testing.assert_allclose(found, by_grid(problem, t), atol=2e-3)

    def test_population_is_a_sum_over_a_fine_grid(self):
        problem = join([truths.population(truths.T1, 80)] * 2)
        column = torch.tensor([[10.0], [1000.0]], dtype=torch.float64)
        found = evidence.one_unit_free_energy(target(problem, (1, 1, 1)), column)
        np.testing.assert_allclose(found, by_grid(problem, [10.0, 1000.0], step=0.03), atol=2e-3)

    def test_one_point_is_a_normal_mixture(self):
        """With one example the targets' law given the unit's angle and radius is normal: a double integral by hand."""
        x = torch.tensor([[[0.5]]], dtype=torch.float64)
        problem = Regression(x, 0 * x + 1.3, 0 * x[..., 0] + 1, torch.zeros(1).double())
        found = evidence.one_unit_free_energy(target(problem, (1, 1, 1)), self.T[:1])
        before = np.linspace(-12, 12, 200_001)  # w/2 + b is N(0, 5/4)
        variance = 2 + np.maximum(before, 0) ** 2
        density = norm.pdf(1.3, 0, np.sqrt(variance)) * norm.pdf(before, 0, math.sqrt(1.25))
        value = (density * (before[1] - before[0])).sum() * math.sqrt(2 * math.pi)
        assert found.item() == pytest.approx(-math.log(value), abs=1e-3)

    def test_more_nodes_change_little(self, problem):
        known = target(problem, (1, 1, 1))
        found = evidence.one_unit_free_energy(known, self.T)
        finer = evidence.one_unit_free_energy(known, self.T, angles=512, refinements=5, radii=40)
        torch.testing.assert_close(found, finer, rtol=0, atol=2e-3)

    def test_many_examples_keep_the_stated_error(self):
        problem = truths.data(truths.T1, 1000, 4, seed=8)
        known = target(problem, (1, 1, 1))
        found = evidence.one_unit_free_energy(known, self.T)
        finer = evidence.one_unit_free_energy(known, self.T, angles=1024, refinements=6, radii=40)
        torch.testing.assert_close(found, finer, rtol=0, atol=2e-3)

    def test_refinement_is_needed_and_goes_where_the_posterior_is(self):
        problem = truths.population(truths.T1, 5000)
        known, t = target(problem, (1, 1, 1)), torch.tensor([[1e5]], dtype=torch.float64)
        finest = evidence.one_unit_free_energy(known, t, angles=4096, refinements=4, radii=60)
        errors = [
            abs(evidence.one_unit_free_energy(known, t, angles=64, refinements=k) - finest).item()
            for k in (0, 3)
        ]
        assert errors[0] > 0.05 > 5 * errors[1]
        nodes = evidence.one_unit(known, t)
        kink = -nodes.position[..., 1] / nodes.position[..., 0]
        near = ((kink - 0.1).abs() < 0.1) & (nodes.position[..., 0] > 0)
        assert near.double().mean() > 0.3

    def test_cells_on_both_sides_of_the_heaviest_angle_are_split(self, monkeypatch):
        monkeypatch.setattr(evidence, "CELLS", 2)
        problem = truths.population(truths.T1, 5000)
        known, t = target(problem, (1, 1, 1)), torch.tensor([[1e5]], dtype=torch.float64)
        coarse, fine = (evidence.one_unit(known, t, angles=32, refinements=k) for k in (0, 1))

        def angles(nodes):
            rays = nodes.position[0, :: evidence.RADII]
            return torch.atan2(rays[:, 1], rays[:, 0])

        values = known.log_likelihood(known.statistics(coarse.position), t) + coarse.log_weight
        heaviest = int(values.softmax(1).view(32, -1).sum(1).argmax())
        gap = 2 * math.pi / 32
        distance = (angles(fine) - angles(coarse)[heaviest] + math.pi) % (2 * math.pi) / gap - 16
        assert len(distance) == 32 + 2 * (evidence.PARTS - 1)
        for side in (-1, 1):
            assert ((side * distance > 1e-6) & (side * distance < 1 - 1e-6)).sum() == evidence.PARTS - 1

    def test_several_problems_equal_one_by_one(self, problem):
        t = torch.tensor([[1.0], [0.5], [2.0], [1.0]], dtype=torch.float64)
        together = evidence.one_unit_free_energy(target(problem, (1, 1, 1)), t)
        for r in range(4):
            alone = evidence.one_unit_free_energy(target(problem[r : r + 1], (1, 1, 1)), t[r : r + 1])
            torch.testing.assert_close(together[r : r + 1], alone)

    def test_nodes_integrate_the_prior(self, problem):
        known = target(problem, (1, 1, 1))
        nodes = evidence.one_unit(known, self.T)
        zero = torch.zeros_like(nodes.log_weight)
        torch.testing.assert_close(nodes.log_sum(zero), zero[:, 0], rtol=0, atol=1e-12)
        weight, bias = nodes.position.unbind(-1)
        # the standard normal's moments; the smallest refined cells of the circle limit the trapezoid rule
        for value, expected in (
            (weight, 0),
            (weight * bias, 0),
            (weight**2, 1),
            (bias**2, 1),
            (weight**4, 3),
        ):
            torch.testing.assert_close(nodes.mean(zero, value), zero[:, 0] + expected, rtol=0, atol=5e-3)
        torch.testing.assert_close(
            nodes.mean(zero, (weight > bias.abs()).double()), zero[:, 0] + 0.25, rtol=0, atol=0.02
        )

    def test_mean_energy_is_the_slope(self, problem):
        """Of one and the same nodes."""
        known, h = target(problem, (1, 1, 1)), 1e-5
        nodes = evidence.one_unit(known, self.T)
        statistics = known.statistics(nodes.position)
        up, down = (nodes.log_sum(known.log_likelihood(statistics, self.T + s)) for s in (h, -h))
        energy = nodes.mean(known.log_likelihood(statistics, self.T), known.energy(statistics, self.T))
        torch.testing.assert_close(energy, -(up - down) / (2 * h), rtol=1e-6, atol=1e-7)

    def test_a_small_coarse_rule_still_works(self, problem):
        """Fewer angles than cells that a refinement would split."""
        known = target(problem, (1, 1, 1))
        found = evidence.one_unit_free_energy(known, self.T, angles=8, refinements=1, radii=10)
        torch.testing.assert_close(found, evidence.one_unit_free_energy(known, self.T), rtol=0, atol=0.1)
        assert evidence.one_unit(known, self.T, 8, 1, 10).position.shape == (4, 8 * 8 * 10, 2)

    def test_more_units_are_refused(self, problem):
        with pytest.raises(ValueError, match=r"for 1-1-1 networks, not for hidden layers \(3,\)"):
            evidence.one_unit(target(problem, (1, 3, 1)), self.T)


def test_the_coefficient_of_one_kink_is_three_halves():
    problem = truths.population(truths.T1, 100_000)
    known = target(problem, (1, 1, 1))
    values = [
        evidence.one_unit_free_energy(known, torch.tensor([[t]], dtype=torch.float64), refinements=5)
        for t in (1e5, 1e6)
    ]
    assert (values[1] - values[0]).item() / math.log(10) == pytest.approx(1.5, abs=0.05)
