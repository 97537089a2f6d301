"""The validation of the instruments, itself validated: made-up answers, exact reductions, and small runs of each case."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from lib import randomness
from lib.free_energy import coefficients, evidence
from lib.free_energy.regression import Regression
from lib.free_energy.targets import target
from lib.growth import validation
from lib.growth.validation import RankCase, Validation
from lib.smc import Run, Stage

CPU = torch.device("cpu")


@pytest.mark.parametrize(("hits", "of"), [(0, 20), (17, 20), (20, 20), (50, 50)])
def test_a_share_has_the_interval_of_clopper_and_pearson(hits, of):
    found = validation.share(np.arange(of) < hits)
    low = stats.beta.ppf(0.025, hits, of - hits + 1) if hits else 0.0
    high = stats.beta.ppf(0.975, hits + 1, of - hits) if hits < of else 1.0
    assert found == pytest.approx((hits / of, low, high))


class TestLinearProblems:
    def test_have_weights_of_the_prior_and_unit_noise(self):
        found = validation.linear_problems(400, seed=1, parameters=5, examples=20)
        assert found.inputs.shape == (400, 20, 5)
        z = (2 * found.truth - 20) / math.sqrt(40)  # twice the truth's energy is chi-squared
        assert stats.kstest(2 * found.truth.numpy(), stats.chi2(20).cdf).pvalue > 1e-4
        assert abs(float(z.mean())) < 0.2
        square = found.targets.square().mean()  # five weights and the noise
        assert float(square) == pytest.approx(6, abs=1.2)
        rest = found.targets - found.inputs @ torch.linalg.lstsq(found.inputs, found.targets).solution
        assert stats.kstest(rest.square().sum((1, 2)).numpy(), stats.chi2(15).cdf).pvalue > 1e-4

    def test_compressing_keeps_the_energy_of_all_weights(self):
        full = validation.linear_problems(3, seed=1, parameters=4)
        weights = torch.rand(3, 100, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        full = Regression(full.inputs, full.targets, weights, full.truth)
        small = validation.compress(full)
        assert small.inputs.shape == (3, 4, 4)
        position = randomness.normal(1, torch.arange(3), "w", 0, (50, 4), torch.float64)
        energies = []
        for problem in (full, small):
            known = target(problem, (4, 1), collapsed=False, bias=False)
            energies.append(known.statistics(position))
        torch.testing.assert_close(energies[0], energies[1], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(evidence.linear(full), evidence.linear(small))


def constant_run(energy, stages=2_000, wbic=None):
    """A run through temperatures where every energy is the same: all estimates of the free energy are that energy."""
    n, nothing = len(energy), torch.zeros(len(energy), dtype=torch.float64)
    t = torch.linspace(0, 1, stages + 1, dtype=torch.float64)
    steps = t.diff(prepend=t[:1])
    found = tuple(
        Stage(at.expand(n), -step * energy, -step * energy, energy, nothing)
        for at, step in zip(t, steps, strict=True)
    )
    asked = torch.tensor([[0.2], [1.0]], dtype=torch.float64).expand(-1, n)
    energies = torch.stack([energy if wbic is None else wbic, energy])
    known = target(validation.linear_problems(n, 1, 2, 5), (2, 1), collapsed=False, bias=False)
    return Run(asked, -asked * energy, energies, {}, found, {}, known)


class TestTested:
    """Three copies of two problems, whose free energies are 1, 2, 3 and 4, 6, 11."""

    ENERGY = torch.tensor([1.0, 4.0, 2.0, 6.0, 3.0, 11.0], dtype=torch.float64)

    def test_errors_are_of_the_mean_over_copies(self):
        answer = torch.tensor([1.5, 8.0], dtype=torch.float64)
        wbic, exact = self.ENERGY + 0.7, torch.tensor([2.0, 7.5], dtype=torch.float64)
        found = validation._tested("made up", constant_run(self.ENERGY, wbic=wbic), answer, 3, exact)
        assert list(found.errors) == ["SMC", "thermodynamic integration", "stepping stone"]
        for name, errors in found.errors.items():
            np.testing.assert_allclose(errors, [0.5, -1], atol=2e-3 if "integration" in name else 1e-9)
        np.testing.assert_allclose(found.wbic, [0.5 + 0.7, -1 + 0.7])
        np.testing.assert_allclose(found.exact_wbic, [0.5, -0.5])

    def test_a_problem_is_covered_where_students_interval_holds_the_answer(self):
        half = stats.t.ppf(0.975, 2) * np.array([1.0, math.sqrt(13)]) / math.sqrt(3)
        for inside, expected in ((0.99, True), (1.01, False)):
            for sign in (-1, 1):
                answer = torch.as_tensor(np.array([2.0, 7.0]) + sign * inside * half)
                found = validation._tested("made up", constant_run(self.ENERGY, 2), answer, 3)
                assert found.covered.tolist() == [expected, expected]
                assert found.exact_wbic is None


class TestCases:
    def test_linear(self):
        found = validation.linear(sets=8, copies=3, particles=500, seed=1, device=CPU)
        assert found.cell == "linear"
        for errors in found.errors.values():
            assert errors.shape == (8,)
            assert abs(errors.mean()) < 0.25  # ten dimensions and few particles: the bias is up to 0.1
            assert errors.std() < 0.4
        assert found.covered.mean() > 0.5
        rest = found.wbic - found.exact_wbic
        assert abs(rest.mean()) < 5 * rest.std(ddof=1) / math.sqrt(8) + 0.1
        assert abs(rest).max() < 1.5

    @pytest.mark.parametrize(("whole", "cell"), [(False, "1-1-1"), (True, "1-1-1, whole network")])
    def test_one_unit(self, whole, cell):
        found = validation.one_unit(sets=5, copies=3, particles=250, seed=1, device=CPU, whole=whole)
        assert found.cell == cell
        for errors in found.errors.values():
            assert abs(errors).max() < 0.4
        assert found.exact_wbic is None
        assert found.covered.shape == (5,)

    def test_reduced_rank(self):
        found = validation.reduced_rank(3, copies=3, particles=60, seed=1, device=CPU)
        assert found.known == coefficients.Rlct(13.5, 1)
        assert found.slopes.shape == (3,)
        assert found.slopes.mean() == pytest.approx(13.5, rel=0.08)  # d / 2 would be 18

    def test_gaps(self):
        found = validation.gaps(sets=6, particles=200, seed=1, device=CPU)
        assert found.shape == (6,)
        assert abs(found.mean()) < 0.2

    def test_data_of_prior_teachers_are_given_with_the_parameters_that_made_them(self, monkeypatch):
        """The bracket starts at the teacher's hidden parameters; with them the residuals are the noise."""
        seen = []
        monkeypatch.setattr(
            validation,
            "bracket",
            lambda run, exact, **of: seen.append((run, exact)) or SimpleNamespace(gap=exact[:, 0]),
        )
        climbs = []
        honest = validation._climb
        monkeypatch.setattr(
            validation, "_climb", lambda problem, *of: climbs.append(problem) or honest(problem, *of)
        )
        validation.gaps(sets=4, particles=4, seed=3, device=CPU)
        ((_, exact),), (problem,) = seen, climbs
        whole = randomness.normal(3, torch.arange(4), "teachers", 0, (7,), torch.float64)
        assert torch.equal(exact, whole[:, :4])
        known = target(problem, (1, 2, 1), collapsed=False)
        energy = known.statistics(whole[:, None])[:, 0]
        torch.testing.assert_close(energy, torch.zeros_like(energy), rtol=0, atol=1e-9)

    def test_the_population_of_a_map_of_rank_three(self):
        found = validation.rank_problem(1)
        moments = (found.inputs * found.weights[..., None]).mT @ found.inputs
        torch.testing.assert_close(moments[0], torch.eye(6, dtype=torch.float64))
        matrix = torch.linalg.solve(found.inputs[0], found.targets[0])
        singular = torch.linalg.svdvals(matrix)
        expected = torch.tensor([1.0] * 3 + [0.0] * 3, dtype=torch.float64)
        torch.testing.assert_close(singular, expected, rtol=0, atol=1e-12)


class TestMeasure:
    ERRORS = np.linspace(-0.1, 0.3, 60)

    def found(self):
        root = math.sqrt(math.log(100))
        wbic = root * np.concatenate([np.full(45, 0.5), np.full(15, -2.5)])
        covered = np.arange(60) < 54
        named = {"SMC": self.ERRORS, "stepping stone": -self.ERRORS}
        cases = [
            Validation(cell, named, covered, wbic) for cell in ("linear", "1-1-1", "1-1-1, whole network")
        ]
        ranks = [
            RankCase(hidden, coefficients.rlct_reduced_rank(6, hidden, 6, 3), np.array(slopes), 500)
            for hidden, slopes in ((3, [13.5, 13.77]), (4, [15.0, 13.5]))
        ]
        found = validation.measure(cases, ranks, np.array([0.1, 0.2, 0.0, 0.1]))
        names = [(m.name, m.cell) for m in found]
        assert len(set(names)) == len(names)
        return dict(zip(names, found, strict=True))

    def test_known_values(self):
        found = self.found()
        bias = found["evidence_bias", "1-1-1, SMC"]
        half = stats.t.ppf(0.975, 59) * self.ERRORS.std(ddof=1) / math.sqrt(60)
        assert (bias.value, bias.low, bias.high) == pytest.approx((0.1, 0.1 - half, 0.1 + half))
        assert bias.n == 60
        assert found["evidence_bias", "linear, stepping stone"].value == pytest.approx(-0.1)
        assert found["evidence_coverage", "linear, SMC"].value == pytest.approx(0.9)
        assert found["wbic_bias", "linear"].value == pytest.approx(0.75 * 0.5 - 0.25 * 2.5)
        assert found["wbic_coverage", "1-1-1"].value == pytest.approx(0.75)
        assert found["rank_error", "H = 3"].value == pytest.approx(0.01)
        assert found["rank_error_double", "H = 4"].value == pytest.approx(-0.05)
        assert (found["rank_error", "H = 3"].n, found["rank_error", "H = 3"].seeds) == (500, 2)
        gap = found["bidirectional_gap", "1-2-1"]
        assert (gap.value, gap.n) == (pytest.approx(0.1), 4)

    def test_wbic_is_measured_where_the_ledger_asks_for_it(self):
        asked = {cell for name, cell in self.found() if name.startswith("wbic")}
        assert asked == {"linear", "1-1-1"}
        assert len(self.found()) == 3 * 3 + 4 + 2 + 1


def test_all_are_run_at_the_profiles_sizes(monkeypatch):
    """Pieces run in another order than they come back."""
    calls, nothing = {}, np.zeros(2)

    def note(name, result):
        def run(*of, **more):
            key = name + " whole" * more.get("whole", False) + "".join(map(str, of))
            calls[key] = more
            return result(key)

        return run

    for name in ("linear", "one_unit"):
        monkeypatch.setattr(validation, name, note(name, lambda key: Validation(key, {}, nothing, nothing)))
    case = coefficients.Rlct(1.0, 1)
    monkeypatch.setattr(
        validation, "reduced_rank", note("rank", lambda key: RankCase(int(key[-1]), case, nothing, 1))
    )
    monkeypatch.setattr(validation, "gaps", note("gaps", lambda key: nothing + 9))
    sizes = SimpleNamespace(
        known_sets=5, known_copies=2, known_particles=11, linear_particles=12, copies=3,
        ranks=(3, 4), rank_particles=13, gap_sets=6, gap_particles=14,
    )  # fmt: skip
    monkeypatch.setattr(validation, "side_by_side", lambda pieces, device: [piece() for piece in pieces])
    cases, ranks, gap = validation.run_all(sizes, 7, CPU)
    assert [one.cell for one in cases] == ["linear", "one_unit", "one_unit whole"]
    assert [one.hidden for one in ranks] == [3, 4]
    assert gap.tolist() == [9, 9]
    common = {"seed": 7, "device": CPU}
    many = {"sets": 5, "copies": 2} | common
    assert calls == {
        "linear": {"particles": 12} | many,
        "one_unit": {"particles": 11} | many,
        "one_unit whole": {"particles": 11, "whole": True} | many,
        "rank3": {"copies": 3, "particles": 13} | common,
        "rank4": {"copies": 3, "particles": 13} | common,
        "gaps": {"sets": 6, "particles": 14} | common,
    }
