"""Free energies and errors of data sets: against quadrature, closed forms and planted violations."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from lib import randomness
from lib.free_energy import evidence, truths
from lib.free_energy.targets import target
from lib.free_energy.truths import T1
from lib.growth import data_sets
from lib.growth.data_sets import Evidence

CPU = torch.device("cpu")
SIZES, SETS = (10, 30), 3


@pytest.fixture(scope="module")
def learnt():
    return data_sets.learn(
        T1, (1, 1, 1), SIZES, sets=SETS, copies=6, particles=300, seed=2, stream=0, device=CPU, draws=5
    )


def test_smaller_data_sets_are_the_beginnings_of_larger_ones():
    found = data_sets.problems(T1, (4, 7), 3, seed=1)
    small, large = found[:3], found[3:]
    assert len(found) == 6
    assert torch.equal(small.inputs[:, :4], large.inputs[:, :4])
    assert torch.equal(small.targets[:, :4], large.targets[:, :4])
    assert (small.weights[:, 4:] == 0).all()
    assert (found.weights.sum(1) == torch.tensor([4.0] * 3 + [7.0] * 3)).all()


def test_columns_of_temperatures_follow_the_problems():
    t = data_sets._half_and_whole((10, 30), 2, 3)
    expected = [1 / math.log(10)] * 2 + [1 / math.log(30)] * 2
    np.testing.assert_allclose(t[0], expected * 3)
    assert (t[1] == 1).all()


class TestLearn:
    def test_free_energies_against_quadrature(self, learnt):
        small = data_sets.small_free_energy(T1, SIZES, SETS, seed=2)
        for i, n in enumerate(SIZES):  # and that one by one, without the padding of shorter sets
            problem = truths.data(T1, n, SETS, 2)
            answer = evidence.one_unit_free_energy(
                target(problem, (1, 1, 1)), torch.ones(SETS, 1, dtype=torch.float64)
            )
            torch.testing.assert_close(small[i], answer, rtol=0, atol=1e-3)
        error = learnt.free_energy - small
        assert learnt.free_energy.shape == (6, 2, SETS)
        # Student's t with five degrees of freedom: six problems exceed 9 once in 600 tests
        assert (error.mean(0).abs() < 9 * error.std(0) / math.sqrt(6)).all()
        assert float(error.std(0).max()) < 0.3

    def test_energies_at_the_temperature_of_wbic(self, learnt):
        """The mean energy is the slope of the free energy, here from quadrature at two near temperatures."""
        for i, n in enumerate(SIZES):
            known, t = target(truths.data(T1, n, SETS, 2), (1, 1, 1)), 1 / math.log(n)
            ends = [
                evidence.one_unit_free_energy(known, torch.full((SETS, 1), s * t, dtype=torch.float64))
                for s in (0.98, 1.02)
            ]
            slope = (ends[1] - ends[0]) / (0.04 * t)
            error = learnt.half[:, i] - slope
            assert (error.mean(0).abs() < 9 * error.std(0) / math.sqrt(6)).all()

    def test_records(self, learnt):
        assert (learnt.widths, learnt.sizes, learnt.particles) == ((1, 1, 1), SIZES, 300)
        assert learnt.draws.shape == (2 * SETS, 5, 4)
        assert learnt.error.shape == (2, SETS)
        assert (learnt.error > 0).all()
        # n (G_n - S) is n times what one set's particles lose: larger sets lose about as much altogether
        assert 0.02 < float(learnt.error.mean()) < 5

    def test_errors_are_those_of_the_kept_particles(self, monkeypatch):
        """One problem's particles are all copies' together, in the order of the problems."""
        seen, runs = [], []
        honest, sample = data_sets.generalisation, data_sets.sample
        monkeypatch.setattr(
            data_sets, "sample", lambda *of, **more: runs.append(sample(*of, **more)) or runs[0]
        )
        monkeypatch.setattr(data_sets, "generalisation", lambda *of: seen.append(of) or honest(*of))
        found = data_sets.learn(
            T1, (1, 2, 1), (8, 16), sets=2, copies=3, particles=40, seed=2, stream=1, device=CPU, draws=3
        )
        ((_, widths, problems, particles),) = seen
        assert (widths, particles.shape) == ((1, 2, 1), (4, 120, 4))
        for problem in range(4):
            copies = [runs[0].particles[1][4 * copy + problem] for copy in range(3)]
            assert torch.equal(particles[problem], torch.cat(copies))
        error = honest(T1, (1, 2, 1), problems, particles).view(2, 2)
        torch.testing.assert_close(found.error, error * torch.tensor([[8.0], [16.0]], dtype=torch.float64))


def predictive(problem, r, hidden, x):
    """Mean and variance at x of the network with these hidden parameters, by NumPy."""

    def features(at):
        w, b = hidden[: len(hidden) // 2], hidden[len(hidden) // 2 :]
        return np.concatenate([np.maximum(at * w + b, 0), np.ones((len(at), 1))], 1)

    count = problem.weights[r] > 0
    phi, y = features(problem.inputs[r, count].numpy()), problem.targets[r, count, 0].numpy()
    covariance = np.linalg.inv(np.eye(phi.shape[1]) + phi.T @ phi)
    mean, new = covariance @ phi.T @ y, features(x)
    return new @ mean, 1 + ((new @ covariance) * new).sum(1)


class TestGeneralisation:
    X = truths.grid(data_sets.TEST_POINTS).numpy()
    PROBLEM = data_sets.problems(T1, (6, 9), 6, seed=3)  # twelve: more than are worked on at a time

    def hidden(self, particles):
        return randomness.normal(3, torch.arange(12), "hidden", 0, (particles, 4), torch.float64)

    def test_one_particle_in_closed_form(self):
        hidden = self.hidden(1)
        found = data_sets.generalisation(T1, (1, 2, 1), self.PROBLEM, hidden)
        truth = T1(torch.as_tensor(self.X)[None])[0, :, 0].numpy()
        for r in range(12):
            mean, variance = predictive(self.PROBLEM, r, hidden[r, 0].numpy(), self.X)
            loss = 0.5 * (np.log(variance) + (1 + (truth - mean) ** 2) / variance - 1)
            assert float(found[r]) == pytest.approx(loss.mean(), rel=1e-9)

    def test_a_mixture_by_brute_force(self):
        hidden = self.hidden(3)
        found = data_sets.generalisation(T1, (1, 2, 1), self.PROBLEM[:2], hidden[:2])
        truth = T1(torch.as_tensor(self.X)[None])[0, :, 0].numpy()
        noise = np.linspace(-9, 9, 1_801)[:, None]
        weight = stats.norm.pdf(noise) / stats.norm.pdf(noise).sum()
        for r in range(2):
            density = 0
            for p in range(3):
                mean, variance = predictive(self.PROBLEM, r, hidden[r, p].numpy(), self.X)
                density = density + stats.norm.pdf(truth + noise, mean, np.sqrt(variance)) / 3
            loss = (weight * (stats.norm.logpdf(noise) - np.log(density))).sum(0).mean()
            assert float(found[r]) == pytest.approx(loss, rel=1e-4)


def test_whole_draws_add_output_layers_given_the_rest():
    problem = data_sets.problems(T1, (20,), 2, seed=4)
    hidden = torch.tensor([[0.8, -1.1, 0.1, 0.4], [1.0, 0.5, 0.2, -0.9]], dtype=torch.float64)
    particles = hidden[:, None].expand(-1, 8_000, -1).contiguous()
    particles[:, -1] += 1  # the last particle is another
    found = data_sets.whole_draws(problem, (1, 2, 1), particles, 8_000, seed=1)
    assert found.shape == (2, 8_000, 7)
    assert torch.equal(found[..., :4], particles)
    few = data_sets.whole_draws(problem, (1, 2, 1), particles, 3, seed=1)
    assert torch.equal(few[..., :4], particles[:, [0, 3_999, 7_999]])
    for r in range(2):
        x, y = problem.inputs[r].numpy(), problem.targets[r, :, 0].numpy()
        w, b = hidden[r, :2].numpy(), hidden[r, 2:].numpy()
        phi = np.concatenate([np.maximum(x * w + b, 0), np.ones((20, 1))], 1)
        covariance = np.linalg.inv(np.eye(3) + phi.T @ phi)
        output = found[r, :-1, 4:].numpy()
        z = (output.mean(0) - covariance @ phi.T @ y) / np.sqrt(covariance.diagonal() / 8_000)
        assert abs(z).max() < 4.5  # 4e-5 for both problems
        np.testing.assert_allclose(np.cov(output.T), covariance, atol=0.06 * covariance.max())


def fake(widths, free_energy, error, sizes=(100, 300)):
    """Evidence with these numbers; ``free_energy`` (copies, sizes, B)."""
    nothing = torch.zeros(1, 1, 1, dtype=torch.float64)
    return Evidence(T1, widths, sizes, 64, free_energy, error, free_energy, nothing)


def noise(*shape):
    return randomness.normal(6, torch.arange(1), "fake", 0, shape, torch.float64)[0]


class TestEmbedding:
    SMALL = 5 + noise(2, 40)

    def test_is_the_largest_excess_with_three_standard_errors(self):
        free = self.SMALL + torch.tensor([-0.3, 0.1, 0.2])[:, None, None] + 0.4 * math.log(4)
        free[:, 1, 7] += 0.35
        found = data_sets.embedding(fake((1, 2, 1), free, self.SMALL), self.SMALL, small_error=0.05)
        assert found.value == pytest.approx(-0.6 * math.log(4) + 0.35, abs=1e-6)
        half = 3 * math.sqrt(0.07 / 3 + 0.05**2)
        assert found.high - found.value == pytest.approx(half, rel=1e-5)
        assert found.value - found.low == pytest.approx(half, rel=1e-5)
        assert (found.name, found.cell, found.n, found.seeds) == ("embedding_excess", "T1: 1-2-1", 80, 3)

    def test_the_cost_goes_with_the_redundant_units(self):
        free = self.SMALL.expand(2, -1, -1)
        for width in (2, 4, 9):
            found = data_sets.embedding(fake((1, width, 1), free, self.SMALL), self.SMALL)
            assert found.value == pytest.approx(-(width - 1) * math.log(4))

    def test_a_planted_violation_in_one_data_set_is_above_any_tolerance(self):
        free = self.SMALL + 0.05 * noise(3, 2, 40)
        assert data_sets.embedding(fake((1, 2, 1), free, self.SMALL), self.SMALL).high < 0.2
        free[:, 0, 11] += math.log(4) + 0.6
        assert data_sets.embedding(fake((1, 2, 1), free, self.SMALL), self.SMALL).low > 0.2


class TestGeneralisationErrors:
    def test_ratios_and_paired_growth(self):
        base = 1.5 + 0.2 * noise(2, 50)
        wide = base + torch.tensor([[0.3], [0.6]]) + 1e-3 * noise(2, 50).flip(1)
        one, other = fake((1, 1, 1), base[None], base), fake((1, 4, 1), base[None], wide)
        found = {(m.name, m.cell): m for m in data_sets.generalisation_errors([one, other])}
        assert len(found) == 6
        for i, n in enumerate((100, 300)):
            for widths, errors in (("1-1-1", base), ("1-4-1", wide)):
                ratio = found["error_ratio", f"T1: {widths}, n = {n}"]
                assert ratio.value == pytest.approx(float(errors[i].mean()) / 2)
                half = stats.t.ppf(0.975, 49) * float(errors[i].std()) / math.sqrt(50) / 2
                assert ratio.high - ratio.low == pytest.approx(2 * half)
                assert ratio.n == 50
            growth = found["size_growth", f"T1: 1-4-1, n = {n}"]
            assert growth.value == pytest.approx((0.3, 0.6)[i] / 4.5, abs=1e-4)
            assert growth.high - growth.low < 1e-3  # pairs: the data sets' own spread cancels


class TestIdentity:
    def test_both_sides_agree(self):
        found = data_sets.identity(T1, 10, 60, 1, CPU)
        error = (found.high - found.low) / 4
        assert abs(found.value) < 4 * error
        assert error < 0.12
        assert (found.name, found.cell, found.n) == ("identity_gap", "n = 10", 60)

    def test_a_wrong_loss_or_a_wrong_rise_is_seen(self, monkeypatch):
        """The left side by a tenth of a nat; the right side by new examples with half the noise."""
        honest = data_sets.identity(T1, 10, 60, 1, CPU)
        with monkeypatch.context() as patch:
            loss = data_sets.generalisation
            patch.setattr(data_sets, "generalisation", lambda *of: loss(*of) + 0.1)
            assert data_sets.identity(T1, 10, 60, 1, CPU).value == pytest.approx(honest.value + 1)
        normal = randomness.normal

        def half(seed, members, purpose, *of):
            return (0.5 if purpose == "new noise" else 1.0) * normal(seed, members, purpose, *of)

        monkeypatch.setattr(data_sets.randomness, "normal", half)
        assert data_sets.identity(T1, 10, 60, 1, CPU).high < -0.2


def test_the_table_shows_each_size():
    base = 1.5 + 0.2 * noise(2, 50)
    one = fake((1, 4, 1), base.expand(2, -1, -1) + 3, base)
    rows = data_sets.table([one], base + 2.5)
    assert [row[:2] for row in rows] == [("1-4-1", 100), ("1-4-1", 300)]
    for row, values in zip(rows, base, strict=True):
        assert row[2].startswith(f"{float(values.mean()) + 3:.2f} (")
        assert row[3] == "0.50 (0.50 to 0.50)"
        assert row[4].startswith(f"{float(values.mean()):.2f} (")
