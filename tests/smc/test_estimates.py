"""Estimates from a tempered run, on runs written down from closed forms and on one that was made."""

import math

import numpy as np
import pytest
import torch

from lib.free_energy import evidence, ridge, truths
from lib.free_energy.regression import Regression
from lib.free_energy.targets import target
from lib.smc import estimates
from lib.smc.run import Run, Settings, Stage
from lib.smc.sampler import sample


def linear_problem(sets=3, n=40, width=5, seed=0):
    rng = np.random.default_rng(seed)
    x, noise = rng.normal(size=(sets, n, width)), rng.normal(size=(sets, n, 1))
    y = x @ rng.normal(size=(sets, width, 1)) + noise
    parts = (x, y, np.ones((sets, n)), 0.5 * (noise**2).sum((1, 2)))
    return Regression(*map(torch.from_numpy, parts))


def closed_run(problem, steps, last=1.0):
    """The run that a sampler without any error would leave, on a geometric ladder above the prior."""
    ladder = [0.0, *np.geomspace(1e-6, last, steps)]
    moments = evidence.linear_moments(problem)
    stages, before = [], None
    for t in ladder:
        at = torch.full((len(problem),), t, dtype=torch.float64)
        known = ridge.posterior(moments, at)
        energy = ridge.energy(moments, known) - problem.truth
        log_z = -evidence.linear(problem, t=t)
        gain = log_z - before if before is not None else torch.zeros_like(log_z)
        stages.append(Stage(at, gain, gain, energy, ridge.energy_variance(moments, known)))
        before = log_z
    end = stages[-1]
    known = target(problem, (5, 1), collapsed=False)
    return Run(end.t[None], before[None], end.mean[None], {}, tuple(stages), {}, known)


class TestThermodynamicIntegration:
    def test_is_the_closed_form(self):
        problem = linear_problem()
        found = estimates.thermodynamic_integration(closed_run(problem, 40))
        torch.testing.assert_close(found, evidence.linear(problem), rtol=0, atol=1e-2)

    def test_error_falls_with_the_fourth_power_of_the_step(self):
        """The trapezoid rule alone would gain a factor four where the step halves."""
        problem = linear_problem()
        exact = evidence.linear(problem)

        def error(steps):
            return (
                (estimates.thermodynamic_integration(closed_run(problem, steps)) - exact).abs().max().item()
            )

        coarse, fine, finest = error(81), error(161), error(321)
        assert 11 < coarse / fine < 21
        assert 11 < fine / finest < 21

    @pytest.mark.parametrize("last", [1e-3, 30.0])
    def test_goes_to_the_last_temperature(self, last):
        problem = linear_problem()
        run = closed_run(problem, 80, last)
        found = estimates.thermodynamic_integration(run)
        torch.testing.assert_close(found, evidence.linear(problem, t=last), rtol=0, atol=2e-3)
        torch.testing.assert_close(found, run.free_energy[0], rtol=0, atol=2e-3)

    def test_problems_have_ladders_of_their_own(self):
        problem = linear_problem(2)
        one, two = closed_run(problem[:1], 60), closed_run(problem[1:], 60, 0.1)
        stages = tuple(
            Stage(*(torch.cat(pair) for pair in zip(vars(a).values(), vars(b).values(), strict=True)))
            for a, b in zip(one.stages, two.stages, strict=True)
        )
        both = Run(one.t, one.log_evidence, one.energy, {}, stages, {}, one.target)
        found = estimates.thermodynamic_integration(both)
        each = [estimates.thermodynamic_integration(run) for run in (one, two)]
        torch.testing.assert_close(found, torch.cat(each))

    def test_energies_that_start_below_zero(self):
        """A constant taken off the energy moves the free energy by t times it, and the scale of the ladder is found still."""
        problem = linear_problem()
        run = closed_run(problem, 60)
        off = 1.5 * run.stages[0].mean
        stages = tuple(Stage(s.t, s.up, s.down, s.mean - off, s.variance) for s in run.stages)
        changed = Run(run.t, run.log_evidence, run.energy, {}, stages, {}, run.target)
        assert bool((stages[0].mean < 0).all())
        found = estimates.thermodynamic_integration(changed)
        torch.testing.assert_close(found, evidence.linear(problem) - off, rtol=0, atol=5e-3)

    def test_constant_and_negative_energies(self):
        """E may start below zero, the truth's own energy subtracted; a constant one integrates to t E."""
        t = torch.tensor([0.0, 1e-4, 1e-2, 0.3, 1.0], dtype=torch.float64)
        for value in (-3.0, 2.0):
            mean, zero = torch.tensor([value], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
            stages = tuple(Stage(x[None], zero, zero, mean, zero) for x in t)
            run = Run(
                zero[None], zero[None], zero[None], {}, stages, {}, closed_run(linear_problem(1), 2).target
            )
            fine = estimates.thermodynamic_integration(run).item()
            assert fine == pytest.approx(value, abs=0.2 * abs(value))
            assert fine * value > 0


class TestSteppingStone:
    def test_is_minus_the_sum_of_the_gains(self):
        problem = linear_problem()
        run = closed_run(problem, 30)
        found = estimates.stepping_stone(run)
        first = run.stages[0].down + evidence.linear(problem, t=0.0)
        torch.testing.assert_close(found, evidence.linear(problem) + first, rtol=1e-9, atol=1e-8)
        torch.testing.assert_close(found, run.free_energy[0])
        assert bool((found > 0).all())

    def test_reads_the_downward_increments_only(self):
        problem = linear_problem()
        run = closed_run(problem, 5)
        other = tuple(Stage(s.t, s.up + 7, s.down + 1, s.mean, s.variance) for s in run.stages)
        changed = Run(run.t, run.log_evidence, run.energy, {}, other, {}, run.target)
        gap = estimates.stepping_stone(changed) - estimates.stepping_stone(run)
        torch.testing.assert_close(gap, torch.full_like(gap, -len(run.stages)))


def test_all_estimates_of_a_run_that_was_made_agree_with_the_closed_form():
    problem = linear_problem(2, n=20)
    settings = Settings(redraws=0, rescales=0, hmc=3, ess=0.8, stretch=1.6)
    known = target(problem[torch.arange(2).repeat(6)], (5, 1), collapsed=False, bias=False)
    run = sample(known, [1.0], particles=400, seed=3, settings=settings)
    exact = evidence.linear(problem)
    for found in (
        estimates.thermodynamic_integration(run),
        estimates.stepping_stone(run),
        run.free_energy[0],
    ):
        copies = found.view(6, 2)
        error = copies.std(0) / 6**0.5
        assert bool(((copies.mean(0) - exact).abs() < 4 * error + 0.05).all())
        assert error.max() < 0.2


class TestWbic:
    def test_temperature(self):
        assert estimates.wbic_temperature(100) == pytest.approx(1 / math.log(100))
        n = torch.tensor([3, 10, 1000])
        expected = [1 / math.log(k) for k in (3, 10, 1000)]
        assert estimates.wbic_temperature(n).tolist() == pytest.approx(expected)
        assert estimates.wbic_temperature(n).dtype == torch.float64
        assert estimates.wbic_temperature(3) < 1

    @pytest.mark.parametrize("n", [2, 1, 0])
    def test_too_few_examples_are_refused(self, n):
        sentence = rf"n = {n}: WBIC's temperature 1 / log n lies below one only from n = 3 on"
        with pytest.raises(ValueError, match=sentence):
            estimates.wbic_temperature(n)
        with pytest.raises(ValueError, match=sentence):
            estimates.wbic_temperature(torch.tensor([100, n, 5]))

    def test_energy_there_approximates_the_free_energy(self):
        """Of a regular model, to leading order: the gap is of order one where both are of order log n."""
        problem = linear_problem(8, n=2000, width=5)
        t = torch.full((8,), estimates.wbic_temperature(2000), dtype=torch.float64)
        wbic = evidence.linear_energy(problem, 1.0, t)
        exact = evidence.linear(problem)
        assert (wbic - exact).abs().mean() < 2 * math.log(2000) ** 0.5
        assert exact.mean() > 10


class TestTwoTemperatures:
    def test_is_exact_where_the_energy_is_lambda_over_t(self):
        t = (torch.tensor([0.1, 0.2]), torch.tensor([0.3, 0.5]))
        energy = tuple(7 + torch.tensor([1.5, 4.0]) / x for x in t)
        torch.testing.assert_close(estimates.two_temperature(energy, t), torch.tensor([1.5, 4.0]))
        assert estimates.two_temperature((torch.tensor(5.0), torch.tensor(4.0)), (0.5, 1.0)).item() == 1

    def test_of_a_regular_model_it_is_half_the_parameters(self):
        problem = linear_problem(4, n=20_000, width=5)
        t = tuple(torch.full((4,), x / math.log(20_000), dtype=torch.float64) for x in (1.0, 1.5))
        energy = tuple(evidence.linear_energy(problem, 3.0, x) for x in t)
        found = estimates.two_temperature(energy, t)
        torch.testing.assert_close(found, torch.full_like(found, 2.5), rtol=0, atol=0.01)


def test_slope_is_the_coefficient_of_a_line_in_log_t():
    t = torch.tensor([[1.0, 2.0], [10.0, 5.0], [1e4, 6.0]], dtype=torch.float64)
    found = estimates.slope(3 + torch.tensor([1.5, 0.5]) * t.log(), t)
    torch.testing.assert_close(found, torch.tensor([[1.5, 0.5]] * 2, dtype=torch.float64))


def test_population_slope_of_a_run_is_its_last_energy_times_t():
    """The two ways to read a local slope off a curve of exact values agree where the curve is straight."""
    problem = truths.population(truths.T1, 2000)
    known, t = target(problem, (1, 1, 1)), torch.tensor([[3e3], [3.3e3]], dtype=torch.float64)
    nodes = evidence.one_unit(known, t[1:])
    statistics = known.statistics(nodes.position)
    values = [known.log_likelihood(statistics, x[None]) for x in t]
    free = torch.stack([-nodes.log_sum(v) for v in values])
    energy = torch.stack(
        [nodes.mean(v, known.energy(statistics, x[None])) for v, x in zip(values, t, strict=True)]
    )
    between = (t * energy).mean(0)
    torch.testing.assert_close(estimates.slope(free, t)[0], between, rtol=1e-3, atol=0)
