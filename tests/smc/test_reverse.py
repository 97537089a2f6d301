"""The bidirectional check brackets evidences that are known, and opens for a sampler that does not move."""

import math
from dataclasses import replace
from functools import lru_cache

import pytest
import torch

from lib import randomness
from lib.free_energy import evidence
from lib.free_energy.features import Layers
from lib.free_energy.regression import Regression
from lib.free_energy.targets import target
from lib.smc import Settings, bracket, reverse, sample
from lib.smc.moves import at
from lib.smc.reverse import Bracket

SETS, EXAMPLES = 20, 20
PLAIN = Settings(redraws=0, rescales=0, ess=0.9, hmc=3, leapfrog=4)


def normal(purpose, *shape):
    return randomness.normal(7, torch.arange(SETS), purpose, 0, shape, torch.float64)


def problem_of(x, values):
    noise = normal("noise", EXAMPLES, 1)
    ones = torch.ones(SETS, EXAMPLES, dtype=torch.float64)
    return Regression(x, values + noise, ones, 0.5 * noise.square().sum((1, 2)))


def linear_case():
    """Weights from the prior, the data set they made, and its evidence."""
    x, w = normal("x", EXAMPLES, 3), normal("w", 3, 1)
    problem = problem_of(x, x @ w)
    return target(problem, (3, 1), collapsed=False, bias=False), w[..., 0], -evidence.linear(problem)


def network_case():
    """A 1-1-1 teacher from the prior; the learner's output layer is integrated out."""
    x, theta = (
        2 * randomness.uniform(7, torch.arange(SETS), "x", 0, (EXAMPLES, 1), torch.float64) - 1,
        normal("w", 4),
    )
    problem = problem_of(x, Layers((1, 1, 1)).forward(theta[:, None], x, last=False)[-1][:, 0].mT)
    known = target(problem, (1, 1, 1))
    log_z = -evidence.one_unit_free_energy(known, torch.ones(SETS, 1, dtype=torch.float64))
    return known, theta[:, :2].contiguous(), log_z


CASES = {"linear": (linear_case(), PLAIN), "1-1-1": (network_case(), Settings(ess=0.7))}


@lru_cache
def both_ways(name, settings, particles=120):
    (known, exact, log_z), _ = CASES[name]
    run = sample(known, [1.0], particles=particles, seed=1, settings=settings)
    return run, bracket(run, exact, particles=particles, seed=2, settings=settings), log_z


@pytest.mark.parametrize("name", CASES)
def test_the_evidence_lies_between_bounds_that_nearly_meet(name):
    run, found, log_z = both_ways(name, CASES[name][1])
    assert torch.equal(found.low, run.log_evidence[-1])
    assert torch.equal(found.gap, found.high - found.low)
    for side, sign in ((found.low, -1), (found.high, 1)):
        error = sign * (side - log_z)  # its mean is not below zero
        assert float(error.mean()) > -3 * float(error.std()) / math.sqrt(SETS)
        assert float(error.mean()) < 0.2
        assert float(error.std()) < 0.5
    assert abs(float(found.gap.mean())) < 0.2


@pytest.mark.parametrize("name", CASES)
def test_the_bound_from_above_is_one_over_an_unbiased_mean(name):
    """E exp(log Z - high) = 1, whatever the moves, for the start is an exact draw."""
    _, found, log_z = both_ways(name, CASES[name][1])
    ratio = torch.exp(log_z - found.high)
    assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / math.sqrt(SETS)


@pytest.mark.parametrize("name", CASES)
def test_without_moves_the_gap_opens(name):
    _, good, _ = both_ways(name, CASES[name][1])
    _, found, log_z = both_ways(name, replace(CASES[name][1], hmc=0, redraws=0, rescales=0))
    assert float(found.gap.mean()) > 0.25
    assert float(found.gap.mean()) > 5 * abs(float(good.gap.mean()))
    assert (
        float((found.high - log_z).mean()) > 0.3
    )  # copies of one draw never part: the weights are one number


def test_a_start_that_is_no_posterior_draw_is_seen():
    """Weights five standard deviations of the prior off: their likelihood is far too small, and the bounds cross."""
    (known, exact, _), settings = CASES["linear"]
    run = sample(known, [1.0], particles=60, seed=1, settings=settings)
    idle = replace(settings, hmc=0)
    honest = bracket(run, exact, particles=60, seed=2, settings=idle)
    wrong = bracket(run, exact + 5.0, particles=60, seed=2, settings=idle)
    assert float((honest.high - wrong.high).mean()) > 10


def test_the_ladder_ends_where_each_problem_ends():
    """Two problems with other last temperatures: each bracket is that of its own."""
    (known, exact, _), settings = CASES["linear"]
    some = target(known.problem[:4], (3, 1), collapsed=False, bias=False)
    ends = torch.tensor([[0.5, 1.0, 2.0, 4.0]], dtype=torch.float64)
    run = sample(some, ends, particles=200, seed=1, settings=settings)
    idle = replace(settings, hmc=0)
    found = bracket(run, exact[:4], particles=200, seed=2, settings=idle)
    # without moves the weights telescope: high is the log-likelihood of the draw itself
    expected = some.log_likelihood(some.statistics(exact[:4, None]), ends.T)[:, 0]
    torch.testing.assert_close(found.high, expected)
    torch.testing.assert_close(found.low, run.log_evidence[-1])


def test_members_and_seeds_make_the_numbers():
    (known, exact, _), settings = CASES["linear"]
    some = target(known.problem[torch.zeros(2, dtype=torch.int64)], (3, 1), collapsed=False, bias=False)
    run = sample(some, [0.1], particles=20, seed=1, settings=settings, members=torch.tensor([0, 0]))

    def high(seed, *members):
        start = exact[torch.zeros(2, dtype=torch.int64)]
        return bracket(
            run, start, particles=20, seed=seed, settings=settings, members=torch.tensor(members)
        ).high

    first = high(1, 0, 1)
    assert first[0] != first[1]
    torch.testing.assert_close(high(1, 1, 0), first.flip(0))
    assert not torch.isclose(high(2, 0, 1), first).any()


def test_the_descent_goes_down_the_runs_own_ladder(monkeypatch):
    """Moves at every temperature but the prior's, ten times at the posterior's; states and step sizes fit them."""
    (known, exact, _), settings = CASES["linear"]
    run = sample(known, [0.1, 1.0], particles=50, seed=1, settings=settings)
    seen = []

    def shift(state, target, t, log_step, *of):
        expected = target.log_likelihood(target.statistics(state.position), t)
        torch.testing.assert_close(state.log_likelihood, expected, rtol=1e-9, atol=1e-9)
        width = 0.5 * (1 + t * run.stages[0].mean[:, None]).log()
        torch.testing.assert_close(log_step, math.log(settings.step) - width)
        seen.append(t[:, 0])
        return (
            at(state.position + 0.1, target, t),
            log_step,
            {},
        )  # the truth's energy is 0 at every temperature

    monkeypatch.setattr(reverse, "move", shift)
    found = bracket(run, exact, particles=4, seed=2, settings=settings)
    ladder = [stage.t for stage in run.stages[:0:-1]]
    expected = [ladder[0]] * reverse.FIRST + ladder[1:]
    assert torch.equal(torch.stack(seen), torch.stack(expected))
    assert reverse.FIRST == 10
    assert torch.equal(found.low, run.log_evidence[1])


def test_the_gap_is_a_difference():
    low, high = torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([1.5, 1.0], dtype=torch.float64)
    assert Bracket(low, high).gap.tolist() == [0.5, -1]
