"""Convexity, curvature and four solvers on networks whose minimum mass is known."""

import numpy as np
import pytest
import torch

from lib import convexity, randomness
from lib.params import member
from lib.symmetry import log_scale_objective

WIDTHS = (5, 4, 3)
PARAMS = convexity.untrained(WIDTHS, 3, seed=5)
SYMMETRIES = convexity.symmetries_of(WIDTHS)


def closed_form(i):
    """2 Σ √(in · out): one hidden layer."""
    one = member(PARAMS, i)
    return float(2 * (one["0.weight"].square().sum(1) * one["2.weight"].square().sum(0)).sqrt().sum())


def starts(n=4):
    return randomness.normal(1, torch.arange(3), "starts", 0, (n, 4), torch.float64)


@pytest.mark.parametrize("name", convexity.SOLVERS)
def test_every_solver_reaches_the_closed_form(name):
    objective = log_scale_objective(member(PARAMS, 0), SYMMETRIES)
    found = convexity.solved_by(convexity.SOLVERS[name], objective, starts()[0])
    np.testing.assert_allclose(found, closed_form(0), rtol=1e-9)


def test_coordinate_descent_reaches_it_from_every_start():
    found = convexity.descended(PARAMS, SYMMETRIES, starts())
    np.testing.assert_allclose(found, [[closed_form(i)] * 4 for i in range(3)], rtol=1e-12)


def test_midpoints_of_a_concave_function_are_violations():
    objective = log_scale_objective(member(PARAMS, 0), SYMMETRIES)
    u, v = starts(200)[:2]
    assert convexity.midpoint_violations(objective, u, v) == 0
    concave = type(objective)(-objective.coefficients, objective.exponents, objective.sizes)
    assert convexity.midpoint_violations(concave, u, v) == 200


def test_curvature_is_positive_and_a_dead_unit_takes_it_away():
    found = {
        m.name: m
        for m in convexity.measure_all({"x": (WIDTHS, PARAMS)}, pairs=30, starts=4, solved=1, seed=0)
    }
    assert found["convexity_violations"].value == 0
    assert found["convexity_violations"].n == 30
    assert found["optimum_spread"].n == 3 * 4 + 3 * 4
    assert found["optimum_spread"].high < 1e-8
    assert found["smallest_eigenvalue"].low > 1e-3
    assert found["boundary"].high < 1e-12


def test_a_solver_that_stops_early_spreads_the_minimum(monkeypatch):
    monkeypatch.setitem(convexity.SOLVERS, "Newton", lambda objective, start: start)
    found = {
        m.name: m for m in convexity.measure(PARAMS, SYMMETRIES, "x", pairs=3, starts=4, solved=1, seed=0)
    }
    assert found["optimum_spread"].high > 1e-3
