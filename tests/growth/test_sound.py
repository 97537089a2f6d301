"""A run whose particles no longer move yields unresolved, never a number that looks fine."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lib import claims, intervals
from lib.free_energy.targets import target
from lib.free_energy.truths import T1, population
from lib.growth import curves
from lib.growth.curves import Learner
from lib.growth.sound import interval, sounded
from lib.smc import Settings, sample

STUCK = Settings(redraws=0, rescales=0, step=1e6)  # every trajectory ends far away and is refused


def climb(settings: Settings):
    problem = population(T1, 16)[torch.zeros(2, dtype=torch.int64)]
    return sample(target(problem, (1, 1, 1)), [10.0, 100.0], particles=200, seed=3, settings=settings)


def test_a_run_that_moves_is_sound_and_one_that_is_stuck_is_not():
    moving, stuck = climb(Settings()), climb(STUCK)
    assert moving.sound.all()
    assert moving.distinct.min() > 0.9
    assert torch.equal(sounded(moving), moving.free_energy)
    assert torch.isfinite(stuck.free_energy).all()  # it looks fine
    assert not stuck.sound.any()
    assert sounded(stuck).isnan().all()


def test_particles_that_repeat_each_other_are_not_sound(monkeypatch):
    from lib.smc import moves

    monkeypatch.setattr(
        moves, "systematic", lambda weights, shift: torch.zeros(weights.shape, dtype=torch.int64)
    )
    run = climb(Settings(hmc=0, redraws=0, rescales=1))
    assert run.distinct.max() < 0.9


def test_one_number_that_is_not_finite_silences_the_interval():
    values = np.array([1.0, 2.0, 4.0])
    assert interval(values) == intervals.student(values)
    assert all(map(math.isnan, interval([1.0, math.nan, 2.0])))
    assert all(map(math.isnan, interval([1.0, math.inf])))


def test_a_stuck_climb_leaves_the_claim_unresolved(monkeypatch):
    monkeypatch.setattr(curves, "Settings", lambda: STUCK)
    learner = Learner(T1, (1, 2, 1))
    sizes = [10.0, 1e2, 1e3]
    stuck = curves.climb(
        learner, sizes, points=16, particles=1_000, copies=3, seed=1, stream=0, device=torch.device("cpu")
    )
    found = curves.upper_bound([stuck] * 5)
    assert math.isnan(found[0].value)
    verdict = claims.judge("P2-C1", "quick", [f for f in found[:1]])
    assert verdict.verdict == claims.UNRESOLVED


@pytest.mark.parametrize("decades", [1, 2])
def test_tables_of_a_stuck_climb_can_still_be_drawn(decades):
    n = torch.logspace(1, 6, 11, dtype=torch.float64)
    energy = torch.full((11, 3), math.nan, dtype=torch.float64)
    curve = curves.Curve(Learner(T1, (1, 2, 1)), 1_000, n, energy, energy, {}, 5)
    assert "nan" in curves.slope_table([curve])[0][2]
    assert np.isnan(curve.slopes(decades)).all()
