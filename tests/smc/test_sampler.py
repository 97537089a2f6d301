"""Tempered SMC against evidences in closed form: bias and errors over many data sets, ladders, resumption, refusals."""

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from lib import randomness
from lib.free_energy import evidence, truths
from lib.free_energy.features import Layers
from lib.free_energy.regression import Regression
from lib.free_energy.targets import target
from lib.free_energy.truths import T1
from lib.smc import AllDead, Run, Settings, Stage, islands, sample, sampler
from lib.smc import stage as moving
from lib.smc.moves import State

PLAIN = Settings(redraws=0, rescales=0, ess=0.7, hmc=2, leapfrog=4)
ASKED = [0.1, 1.0]


def linear_problems(sets, parameters=3, examples=15, seed=3):
    """Linear regressions whose weights come from the prior."""
    members = torch.arange(sets)

    def normal(purpose, *shape):
        return randomness.normal(seed, members, purpose, 0, shape, torch.float64)

    x, noise = normal("x", examples, parameters), normal("noise", examples, 1)
    y = x @ normal("w", parameters, 1) + noise
    ones = torch.ones(sets, examples, dtype=torch.float64)
    return Regression(x, y, ones, 0.5 * noise.square().sum((1, 2)))


def linear_target(problem):
    return target(problem, (problem.inputs.shape[2], 1), collapsed=False, bias=False)


def exact(problem, t):
    """The free energy from the inverse and the determinant of the marginal law of the targets, not from `ridge`."""
    found = []
    for x, y, truth in zip(problem.inputs, problem.targets[..., 0], problem.truth, strict=True):
        covariance = torch.eye(len(y), dtype=torch.float64) / t + x @ x.T
        log_density = -0.5 * (y @ torch.linalg.inv(covariance) @ y + torch.logdet(t * covariance))
        found.append(-(log_density + t * truth))
    return torch.stack(found)


PROBLEM = linear_problems(40)


@pytest.fixture(scope="module")
def climbed():
    return sample(
        linear_target(PROBLEM), ASKED, particles=250, seed=1, settings=PLAIN, keep=[0, 1], chunk=250
    )


class TestEvidence:
    def test_over_many_data_sets(self, climbed):
        """Forty data sets of their own: the mean error is within four of its standard errors, at either temperature."""
        for c, t in enumerate(ASKED):
            error = (climbed.free_energy[c] - exact(PROBLEM, t)).numpy()
            assert abs(error.mean()) < 4 * error.std(ddof=1) / math.sqrt(len(error)) + error.var()
            assert error.std() < 0.25  # so that the line above says something

    def test_errors_are_those_that_independent_copies_show(self):
        """Copies of each of 12 problems: the mean's deviation from the answer in its standard errors is Student's t."""
        problem, copies = linear_problems(12, seed=4), 8
        run = sample(
            linear_target(problem[islands(12, copies)]), [1.0], particles=150, seed=2, settings=PLAIN
        )
        free = run.free_energy[-1].view(copies, 12)
        z = (free.mean(0) - exact(problem, 1.0)) / (free.std(0) / math.sqrt(copies))
        assert z.abs().max() < 6.4  # with 7 degrees of freedom: beyond it once in 230 such tests of twelve
        assert z.square().mean() < 4  # its mean is 7 / 5, its standard deviation about 0.9

    def test_the_evidence_itself_has_no_bias(self):
        """E exp(log Z) = Z: the mean ratio of 600 runs of thirty particles, where log Z is off by far more."""
        problem = linear_problems(1, parameters=2, examples=6, seed=9)
        settings = Settings(redraws=0, rescales=0, ess=0.5, hmc=2, leapfrog=4)
        run = sample(
            linear_target(problem[torch.zeros(600, dtype=torch.int64)]),
            [1.0],
            particles=30,
            seed=3,
            settings=settings,
        )
        ratio = torch.exp(run.log_evidence[-1] + exact(problem, 1.0)).numpy()
        error = ratio.std(ddof=1) / math.sqrt(len(ratio))
        assert abs(ratio.mean() - 1) < 4 * error
        assert error < 0.02
        assert (
            np.log(ratio).mean() < -3 * error
        )  # the test can tell: the mean logarithm is off by half its variance

    def test_energies_and_the_slope(self, climbed):
        for c, t in enumerate(ASKED):
            half = torch.full((len(PROBLEM),), t, dtype=torch.float64)
            error = (climbed.energy[c] - evidence.linear_energy(PROBLEM, 1.0, half)).numpy()
            assert abs(error.mean()) < 4 * error.std(ddof=1) / math.sqrt(len(error))
            assert error.std() < 0.8
        assert torch.equal(climbed.free_energy, -climbed.log_evidence)
        assert torch.equal(climbed.slope, climbed.t * climbed.energy)

    def test_kept_particles_are_posterior_draws(self, climbed):
        assert sorted(climbed.particles) == [0, 1]
        for c, t in enumerate(ASKED):
            x, y = PROBLEM.inputs, PROBLEM.targets
            precision = t * x.mT @ x + torch.eye(3, dtype=torch.float64)
            mean = torch.linalg.solve(precision, t * x.mT @ y)[..., 0]
            spread = torch.linalg.inv(precision).diagonal(dim1=1, dim2=2).sqrt()
            z = (climbed.particles[c] - mean[:, None]) / spread[:, None]
            assert abs(float(z.mean())) < 0.05
            assert float(z.square().mean()) == pytest.approx(1, abs=0.08)

    def test_without_moves_the_same_checks_fail(self):
        idle = Settings(redraws=0, rescales=0, ess=0.7, hmc=0)
        run = sample(linear_target(PROBLEM), ASKED, particles=250, seed=1, settings=idle)
        error = (run.free_energy[1] - exact(PROBLEM, 1.0)).numpy()
        assert error.std() > 0.5 or abs(error.mean()) > 0.5
        assert run.acceptance == {}

    @pytest.mark.parametrize("collapsed", [True, False])
    def test_a_network_with_all_its_moves(self, collapsed):
        """1-1-1 on six data sets against quadrature."""
        problem = truths.data(T1, 30, 6, 5)
        settings = Settings(dead=not collapsed, hmc=1 + (not collapsed))
        known = target(problem, (1, 1, 1), collapsed=collapsed)
        run = sample(known, [1.0], particles=400, seed=2, settings=settings)
        answer = evidence.one_unit_free_energy(
            target(problem, (1, 1, 1)), torch.ones(6, 1, dtype=torch.float64)
        )
        error = (run.free_energy[-1] - answer).numpy()
        assert abs(error.mean()) < 4 * error.std(ddof=1) / math.sqrt(6) + 0.02
        assert error.std() < 0.25
        assert sorted(run.acceptance) == ["hmc", "redraw", "rescale"]
        for values in run.acceptance.values():
            assert values.shape == (6,)
            assert ((values > 0.02) & (values < 1)).all()

    def test_steps_are_steered_to_the_asked_acceptance(self, climbed):
        assert float(climbed.acceptance["hmc"].mean()) == pytest.approx(PLAIN.acceptance, abs=0.1)


class TestLadder:
    def test_rises_from_the_prior_and_stops_where_asked(self, climbed):
        t = torch.stack([stage.t for stage in climbed.stages])
        assert (t[0] == 0).all()
        assert (t.diff(dim=0) >= 0).all()
        assert (t.diff(dim=0) > 0).any(1).all()
        for c, asked in enumerate(ASKED):
            assert (climbed.t[c] == asked).all()
            assert (t == asked).any(0).all()
        assert (t[-1] == 1).all()

    def test_increments_add_up(self, climbed):
        total = torch.stack([stage.up for stage in climbed.stages]).sum(0)
        torch.testing.assert_close(climbed.log_evidence[-1], total)
        t, mean = (torch.stack([getattr(stage, name) for stage in climbed.stages]) for name in ("t", "mean"))
        arrival = (t == 1).double().argmax(0)  # where a problem stays until all others have arrived
        assert torch.equal(climbed.energy[-1], mean.gather(0, arrival[None])[0])
        assert len(arrival.unique()) > 1

    def test_energies_of_the_prior(self, climbed):
        """E_0 is half of sum y² + |x|² over the examples, less the truth's."""
        first = climbed.stages[0]
        x, y = PROBLEM.inputs, PROBLEM.targets
        mean = 0.5 * (x.square().sum((1, 2)) + y.square().sum((1, 2))) - PROBLEM.truth
        z = (first.mean - mean) / (first.variance / 250).sqrt()
        assert z.abs().max() < 5
        assert float(z.square().mean()) == pytest.approx(1, abs=1)

    def test_down_is_the_same_increment_from_above(self, climbed):
        up, down = (
            torch.stack([getattr(stage, name) for stage in climbed.stages]).sum(0) for name in ("up", "down")
        )
        error = (-down - exact(PROBLEM, 1.0)).numpy()
        assert abs(error.mean()) < 4 * error.std(ddof=1) / math.sqrt(len(error)) + error.var()
        assert error.std() < 0.4
        assert not torch.allclose(up, down, atol=1e-3)

    def test_ends_of_its_own_for_every_problem(self):
        asked = torch.tensor([[0.01, 0.3, 0.2], [0.05, 2.0, 1.0]], dtype=torch.float64)
        problem = linear_problems(3, seed=8)
        copies = 6
        run = sample(
            linear_target(problem[islands(3, copies)]),
            asked.repeat(1, copies),
            particles=300,
            seed=1,
            settings=PLAIN,
            keep=[1],
        )
        for r in range(3):
            for c in range(2):
                t = float(asked[c, r])
                free = run.free_energy[c].view(copies, 3)[:, r].numpy()
                error = free.std(ddof=1) / math.sqrt(copies)
                assert abs(free.mean() - float(exact(problem[r : r + 1], t))) < 7 * error + 0.01
                half = torch.tensor([t], dtype=torch.float64)
                energy = run.energy[c].view(copies, 3)[:, r].mean()
                expected = float(evidence.linear_energy(problem[r : r + 1], 1.0, half))
                assert float(energy) == pytest.approx(expected, abs=0.6)
        t = torch.stack([stage.t for stage in run.stages])
        assert torch.equal(t.amax(0), asked[1].repeat(copies))
        # a problem that has arrived waits: its increments are nothing
        waiting = torch.stack([stage.up for stage in run.stages])[1:][t.diff(dim=0) == 0]
        assert len(waiting)
        assert waiting.abs().max() < 1e-12

    def test_neighbours_lie_no_further_apart_than_the_stretch(self):
        settings = Settings(redraws=0, rescales=0, ess=0.3, stretch=1.3)
        run = sample(linear_target(PROBLEM[:5]), [1.0], particles=100, seed=1, settings=settings)
        t = torch.stack([stage.t for stage in run.stages]) + 1 / run.stages[0].mean
        ratios = t[1:] / t[:-1]
        assert float(ratios.max()) == pytest.approx(1.3, rel=1e-9)
        free = sample(
            linear_target(PROBLEM[:5]),
            [1.0],
            particles=100,
            seed=1,
            settings=Settings(redraws=0, rescales=0, ess=0.3),
        )
        assert len(free.stages) < len(run.stages)

    def test_relative_effective_sample_size(self):
        one, none = [0.0, -math.inf, -math.inf, -math.inf], [-math.inf] * 4
        rows = torch.tensor([[700.0] * 4, one, none, [0.0, 0.0, -math.inf, -math.inf]], dtype=torch.float64)
        assert sampler.relative_ess(rows).tolist() == [1, 0.25, 0, 0.5]

    @pytest.mark.parametrize("start", [0.0, 0.02])
    def test_the_next_temperature_is_the_highest_that_keeps_the_sample(self, start):
        energies = 1e3 * randomness.uniform(1, torch.arange(2), "energies", 0, (500,), torch.float64)
        energies[1] *= 0.01
        known = linear_target(PROBLEM[:2])
        t, limit = torch.full((2, 1), start, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64)
        state = State(energies[..., None], -t * energies)
        found = sampler.next_temperature(known, energies, state, t, limit, 0.6)

        def ess(t_new):
            return sampler.relative_ess(-(t_new - t) * energies)

        assert (ess(found) >= 0.6).all()
        assert (found > t).all()
        assert (ess(1.03 * found)[:1] < 0.6).all()
        near = torch.full_like(limit, start + 1e-6)  # a limit that is within reach is taken exactly
        assert torch.equal(sampler.next_temperature(known, energies, state, t, near, 0.6), near)

    def test_a_step_is_never_too_small_to_end(self):
        """Energies so far apart that no step keeps the sample: one percent more is made all the same."""
        energies = torch.tensor([[0.0, 1e9]], dtype=torch.float64)
        known, t = linear_target(PROBLEM[:1]), torch.full((1, 1), 0.5, dtype=torch.float64)
        state = State(energies[..., None], -t * energies)
        found = sampler.next_temperature(known, energies, state, t, torch.ones_like(t), 0.9)
        assert found.item() == pytest.approx(0.505, rel=1e-3)


class TestIndependence:
    def test_a_problem_does_not_see_its_neighbours(self, climbed):
        """The same bits alone as in a batch, if the chunks are the same (they follow from the number of problems)."""
        for r in (0, 17, 39):
            alone = sample(
                linear_target(PROBLEM[r : r + 1]),
                ASKED,
                particles=250,
                seed=1,
                settings=PLAIN,
                members=torch.tensor([r]),
                keep=[1],
                chunk=250,
            )
            assert torch.equal(alone.log_evidence[:, 0], climbed.log_evidence[:, r])
            assert torch.equal(alone.particles[1][0], climbed.particles[1][r])

    def test_chunks_change_nothing_but_rounding(self, climbed):
        for chunk in (None, 60):
            again = sample(
                linear_target(PROBLEM), ASKED, particles=250, seed=1, settings=PLAIN, keep=[1], chunk=chunk
            )
            torch.testing.assert_close(again.log_evidence, climbed.log_evidence, rtol=0, atol=1e-9)
            torch.testing.assert_close(again.particles[1], climbed.particles[1], rtol=0, atol=1e-7)

    def test_members_and_seeds_make_the_numbers(self):
        one = PROBLEM[torch.zeros(3, dtype=torch.int64)]

        def run(seed, *members):
            settings = Settings(redraws=0, rescales=0)
            found = sample(
                linear_target(one),
                [1.0],
                particles=60,
                seed=seed,
                settings=settings,
                members=torch.tensor(members),
            )
            return found.log_evidence[-1]

        first = run(1, 0, 1, 2)
        assert len(first.unique()) == 3
        torch.testing.assert_close(run(1, 2, 0, 7)[:2], first[[2, 0]], rtol=0, atol=1e-9)
        assert not torch.isclose(run(2, 0, 1, 2), first, atol=1e-6).any()

    def test_islands_list_copy_after_copy(self):
        assert islands(3, 2).tolist() == [0, 1, 2, 0, 1, 2]
        problem = PROBLEM[islands(3, 2)]
        assert torch.equal(problem.truth.view(2, 3)[1], PROBLEM.truth[:3])


class TestNoise:
    """The random numbers of a stage."""

    def of(self, stage=1):
        return moving._Noise(1, torch.arange(2), stage, torch.Size((2, 5, 3)))

    def test_parts_are_cut_from_one_array(self):
        whole, parts = self.of(), self.of()
        for draw in ("normal", "scalar"):
            everything = getattr(whole, draw)("hmc", 0, slice(0, 5))
            pieces = [getattr(parts, draw)("hmc", 0, part) for part in (slice(0, 2), slice(2, 5))]
            assert torch.equal(torch.cat(pieces, 1), everything)
        choice, chance = whole.uniform("hmc", 0, slice(0, 5))
        assert choice.shape == chance.shape == (2, 5)
        assert not torch.isclose(choice, chance).any()

    def test_no_two_purposes_repeats_or_stages_share_any(self):
        found = [
            self.of(stage).normal(purpose, i, slice(0, 5)).flatten()
            for stage in (1, 2)
            for purpose in ("hmc", "redraw", "refresh")
            for i in (0, 1)
        ]
        assert len(torch.cat(found).unique()) == len(found) * 30


class TestStage:
    def test_no_random_number_is_used_twice_in_a_run(self, monkeypatch):
        drawn, honest = [], randomness.uniform

        def note(seed, members, purpose, step, *of):
            drawn.append((purpose, step))
            return honest(seed, members, purpose, step, *of)

        monkeypatch.setattr(randomness, "uniform", note)  # which normal numbers are made of too
        known = target(truths.data(T1, 20, 2, 5), (1, 2, 1), collapsed=False)
        settings = Settings(dead=True, hmc=2, redraws=3, rescales=2)
        run = sample(known, ASKED, particles=40, seed=1, settings=settings)
        drawn = [one for one in drawn if one[0].startswith("smc")]
        assert len(set(drawn)) == len(drawn)
        steps = len(run.stages) - 1
        assert len([one for one in drawn if one[0] == "smc resampling"]) == steps
        assert len(drawn) == 1 + steps * (1 + 2 * 3 + 2 * 2 + 2 + 3 * 2)

    def test_every_move_is_made_as_often_as_asked(self, monkeypatch):
        calls = []
        for name in ("redraw", "rescale", "refresh_dead", "permute", "hmc"):
            honest = getattr(moving.moves, name)
            monkeypatch.setattr(
                moving.moves, name, lambda *of, name=name, honest=honest: calls.append(name) or honest(*of)
            )
        known = target(truths.data(T1, 20, 2, 5), (1, 2, 1), collapsed=False)
        for dead in (False, True):
            calls.clear()
            settings = Settings(dead=dead, hmc=2, redraws=3, rescales=4)
            run = sample(known, [1e-3], particles=40, seed=1, settings=settings, chunk=40)
            stages = len(run.stages) - 1
            expected = {"redraw": 3, "rescale": 4, "hmc": 2} | (
                {"refresh_dead": 1, "permute": 1} if dead else {}
            )
            assert {name: calls.count(name) for name in calls} == {n: k * stages for n, k in expected.items()}

    def test_with_the_covariance_of_the_particles(self):
        settings = Settings(redraws=0, rescales=0, ess=0.7, hmc=2, leapfrog=3, jitter=0.2, whiten=True)
        runs = [
            sample(linear_target(PROBLEM), [1.0], particles=250, seed=1, settings=settings, chunk=chunk)
            for chunk in (250, 70)
        ]
        error = (runs[0].free_energy[0] - exact(PROBLEM, 1.0)).numpy()
        assert abs(error.mean()) < 4 * error.std(ddof=1) / math.sqrt(len(error)) + error.var()
        assert error.std() < 0.25
        torch.testing.assert_close(runs[0].log_evidence, runs[1].log_evidence, rtol=0, atol=1e-9)


class TestFiles:
    @pytest.fixture(autouse=True)
    def hasty(self, monkeypatch):
        """A clock on which a minute passes between two looks, so that every stage is saved."""
        ticks = iter(range(0, 10**7, 60))
        monkeypatch.setattr(sampler, "time", SimpleNamespace(monotonic=lambda: next(ticks)))

    @staticmethod
    def run(file, seed=1, particles=80, **more):
        problem = truths.data(T1, 20, 3, 5)
        known = target(problem, (1, 2, 1))
        more = {"settings": Settings(ess=0.95)} | more
        return sample(known, ASKED, particles=particles, seed=seed, keep=[0, 1], file=file, **more)

    @pytest.mark.parametrize("stage", [2, 5])
    def test_an_interrupted_run_goes_on(self, monkeypatch, tmp_path, stage):
        whole, file = self.run(None), tmp_path / "deep" / "run.pt"
        honest, seen = sampler.move, []

        def interrupted(*of):
            seen.append(of)
            if len(seen) == stage:
                raise KeyboardInterrupt
            return honest(*of)

        monkeypatch.setattr(sampler, "move", interrupted)
        with pytest.raises(KeyboardInterrupt):
            self.run(file)
        assert file.exists()
        assert not list(file.parent.glob("*.part"))
        monkeypatch.setattr(sampler, "move", lambda *of: seen.append(of) or honest(*of))
        again = self.run(file)
        assert len(seen) == len(whole.stages)  # the prior's stage has no moves; one stage was begun twice
        assert len(again.stages) == len(whole.stages)
        torch.testing.assert_close(again.log_evidence, whole.log_evidence, rtol=0, atol=1e-9)
        torch.testing.assert_close(again.energy, whole.energy, rtol=0, atol=1e-7)
        for c in (0, 1):
            torch.testing.assert_close(again.particles[c], whole.particles[c], rtol=0, atol=1e-7)
        for one, other in zip(again.stages, whole.stages, strict=True):
            torch.testing.assert_close(vars(one), vars(other), rtol=0, atol=1e-7)

    def test_a_finished_run_is_read_not_made(self, monkeypatch, tmp_path):
        first = self.run(tmp_path / "run.pt")
        monkeypatch.setattr(sampler, "move", None)
        again = self.run(tmp_path / "run.pt")
        assert torch.equal(again.log_evidence, first.log_evidence)
        assert torch.equal(again.particles[1], first.particles[1])

    def test_the_file_of_another_run_is_refused(self, tmp_path):
        file = tmp_path / "run.pt"
        self.run(file)
        for other in ({"seed": 2}, {"particles": 90}, {"settings": Settings(ess=0.7)}):
            with pytest.raises(ValueError, match=r"run.pt holds another run .* remove it or name another"):
                self.run(file, **other)

    def test_a_long_run_is_not_saved_at_every_stage(self, monkeypatch, tmp_path):
        written = []
        honest = sampler._write
        monkeypatch.setattr(sampler, "_write", lambda *of: written.append(of) or honest(*of))
        monkeypatch.setattr(sampler, "time", SimpleNamespace(monotonic=lambda: 0.0))
        self.run(tmp_path / "run.pt")
        assert len(written) == 1  # at the end


@dataclass(frozen=True)
class Planted:
    """A target whose likelihood is none, lost for all particles or for one, from a temperature on."""

    kind: str
    end: float = 0.3
    layers: ClassVar[Layers] = Layers((1, 1), bias=False)
    scale: ClassVar[Tensor] = torch.ones(1, dtype=torch.float64)
    problems: ClassVar[int] = 2
    collapsed: ClassVar[bool] = False
    footprint: ClassVar[int] = 1

    def statistics(self, position: Tensor) -> Tensor:
        return position[..., 0].square()

    def log_likelihood(self, statistics: Tensor, t: Tensor) -> Tensor:
        value = -t * statistics
        lost = torch.zeros_like(value, dtype=torch.bool)
        lost[1, 0 if self.kind == "one" else slice(None)] = True
        return torch.where(lost & (t > self.end), -math.inf, value)

    def energy(self, statistics: Tensor, t: Tensor) -> Tensor:
        return statistics

    def spread(self, statistics: Tensor, t: Tensor) -> Tensor:
        return torch.zeros_like(statistics)

    def dead(self, position: Tensor) -> Tensor:
        return torch.zeros(*position.shape[:2], 0, dtype=torch.bool)

    def gradient(self, position: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.log_likelihood(self.statistics(position), t), -2 * t[..., None] * position


class TestDeath:
    SETTINGS = Settings(redraws=0, rescales=0)

    def test_all_dead_is_refused_with_the_temperature(self):
        with pytest.raises(
            AllDead, match=r"all 50 particles of problem 1 .* from temperature 0\.(29|3)\d* to 0\.30"
        ):
            sample(Planted("all"), [1.0], particles=50, seed=1, settings=self.SETTINGS)

    def test_one_dead_particle_is_replaced_by_others(self):
        """The first particle of problem 1 has no likelihood beyond 0.3: the evidence loses what it weighed."""
        run = sample(Planted("one"), [0.3, 0.301], particles=50, seed=1, settings=self.SETTINGS, keep=[1])
        assert run.log_evidence.isfinite().all()
        assert run.particles[1].isfinite().all()
        rise = run.log_evidence[1] - run.log_evidence[0]
        assert abs(float(rise[0])) < 0.01
        assert float(rise[1]) == pytest.approx(math.log(49 / 50), abs=0.01)

    def test_resampling_never_takes_what_has_no_weight(self):
        weights = torch.full((1, 40), -math.inf, dtype=torch.float64)
        weights[0, [3, 30]] = 0.0
        for shift in (1e-12, 0.5, 1 - 1e-12):
            index = sampler.moves.systematic(weights, torch.tensor([shift], dtype=torch.float64))
            assert set(index.flatten().tolist()) == {3, 30}


class TestRefusals:
    @pytest.mark.parametrize("temperatures", [[0.0, 1.0], [1.0, 1.0], [1.0, 0.5], [-1.0]])
    def test_temperatures_that_do_not_rise(self, temperatures):
        with pytest.raises(ValueError, match=r"must rise from above zero.*were given for 2 problems"):
            sample(linear_target(PROBLEM[:2]), temperatures, particles=10, seed=1, settings=PLAIN)

    def test_columns_for_other_problems(self):
        asked = torch.ones(1, 3, dtype=torch.float64)
        with pytest.raises(ValueError, match=r"one column a problem: \(1, 3\) were given for 2 problems"):
            sample(linear_target(PROBLEM[:2]), asked, particles=10, seed=1, settings=PLAIN)

    def test_a_single_particle(self):
        with pytest.raises(ValueError, match="1 particles cannot be resampled"):
            sample(linear_target(PROBLEM[:2]), [1.0], particles=1, seed=1, settings=PLAIN)

    @pytest.mark.parametrize("scales", [(0.0, 1.0), (1.0, 0.0)])
    def test_a_prior_of_zero_variance(self, scales):
        with pytest.raises(ValueError, match="prior of zero variance leaves nothing to integrate over"):
            target(PROBLEM, (3, 1, 1), weight_scale=scales[0], bias_scale=scales[1])

    def test_network_moves_in_a_model_without_units(self):
        with pytest.raises(ValueError, match="switch these moves off"):
            sample(linear_target(PROBLEM[:2]), [1.0], particles=10, seed=1)


@pytest.mark.filterwarnings("ignore::tqdm.TqdmWarning")
def test_a_bar_shows_the_temperature(capsys):
    quiet = sample(linear_target(PROBLEM[:2]), ASKED, particles=50, seed=1, settings=PLAIN)
    assert capsys.readouterr().err == ""
    loud = sample(linear_target(PROBLEM[:2]), ASKED, particles=50, seed=1, settings=PLAIN, progress=True)
    shown = capsys.readouterr().err
    assert "temperature" in shown
    assert "t = 1" in shown
    assert "100%" in shown
    assert torch.equal(quiet.log_evidence, loud.log_evidence)


def test_records_say_what_they_hold():
    zero = torch.zeros(2, dtype=torch.float64)
    with pytest.raises(Exception, match="Type-check"):
        Stage(zero, zero, zero, zero[:1], zero)
    assert Run.free_energy.__doc__
