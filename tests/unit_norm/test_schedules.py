"""Schedules with answers known by hand."""

from __future__ import annotations

import torch

from lib.unit_norm import BoldDriver, Constant, ExponentialDecay
from lib.unit_norm.schedules import Schedule

NAN, INF = float("nan"), float("inf")


def rates(schedule: Schedule, costs: list[list[float]]) -> list[list[float]]:
    """The rates of a stream's runs after each epoch, from 1, told the costs one epoch at a time."""
    rate, seen, found = torch.ones(1, len(costs[0]), dtype=torch.float64), [], []
    for epoch, cost in enumerate(costs):
        seen.append(torch.tensor([cost], dtype=torch.float64))
        rate = rate * schedule.factor(epoch, seen)
        found.append([round(value, 12) for value in rate[0].tolist()])
    return found


def test_a_constant_rate_stays():
    assert rates(Constant(), [[1, NAN], [2, 1], [0, INF]]) == [[1, 1]] * 3


def test_exponential_decay_falls_after_every_epoch_whatever_the_costs():
    assert rates(ExponentialDecay(), [[1, NAN], [2, 1], [0, 3]]) == [[0.95] * 2, [0.9025] * 2, [0.857375] * 2]
    assert rates(ExponentialDecay(0.5), [[1], [2]]) == [[0.5], [0.25]]


def test_the_bold_driver_halves_each_run_whose_cost_rose_and_hastens_the_rest_from_the_second_epoch_on():
    costs = [[1.0, 1.0, 1.0], [0.9, 1.1, 1.0], [0.8, 1.0, 1.0], [0.9, 0.9, 0.5]]
    right = [[1, 1, 1], [1.1, 0.5, 1.1], [1.21, 0.55, 1.21], [0.605, 0.605, 1.331]]
    assert rates(BoldDriver(), costs) == right


def test_the_bold_driver_halves_where_a_cost_is_no_number():
    costs = [[1.0, NAN, INF, INF, 1.0], [NAN, 1.0, 1.0, INF, INF], [NAN, 0.5, 2.0, NAN, 1.0]]
    right = [[1, 1, 1, 1, 1], [0.5, 0.5, 1.1, 1.1, 0.5], [0.25, 0.55, 0.55, 0.55, 0.55]]
    assert rates(BoldDriver(), costs) == right


def test_the_bold_drivers_own_factors():
    assert rates(BoldDriver(up=2.0, down=0.25), [[1, 1], [0.5, 2]]) == [[1, 1], [2, 0.25]]


def test_factors_have_the_costs_shape_and_dtype():
    costs = [torch.rand(2, 3) for _ in range(2)]
    factor = BoldDriver().factor(1, costs)
    assert factor.shape == (2, 3)
    assert factor.dtype == torch.float32
