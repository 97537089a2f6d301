"""Rank correlations over approximations: planted ones are found, and the power that is quoted is the power there is."""

import numpy as np
import pytest
import torch

from lib.study import relation
from lib.study.relation import Point


def planted(k, rho, seed, sets=2):
    """k approximations whose distance and AUPR have rank correlation about rho in each of the sets."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=k)
    y = rho * x[:, None] + np.sqrt(1 - rho**2) * generator.normal(size=(k, sets))
    return [
        Point(
            f"method {i}, {'one' if i % 2 else 'ten'}",
            {"MMD": x[i], "NS": -x[i]},
            {s: {f"set {j}": y[i, j] for j in range(sets)} for s in relation.DETECTION},
            5,
        )
        for i in range(k)
    ]


def test_a_planted_correlation_is_found_with_its_sign():
    found = {m.cell: m for m in relation.measure(planted(60, 0.9, 0), resamples=200, seed=0)}
    assert set(found) == {"MMD and AUPR", "MMD and FPR95", "NS and AUPR", "NS and FPR95"}
    assert found["MMD and AUPR"].low > 0.7
    assert found["NS and AUPR"].value == pytest.approx(-found["MMD and AUPR"].value)
    assert (found["NS and FPR95"].n, found["NS and FPR95"].seeds) == (120, 5)


def test_sets_that_differ_in_level_do_not_hide_the_correlation():
    points = planted(40, 0.95, 1)
    for point in points:
        point.detection["AUPR"]["set 1"] += 100
    found = {m.cell: m for m in relation.measure(points, resamples=100, seed=0)}
    assert found["MMD and AUPR"].value > 0.85


def test_the_interval_holds_zero_as_often_as_it_should():
    """Distances and scores drawn each for itself: the four cells of a measurement are four tries."""
    held = []
    for seed in range(25):
        x, y = np.random.default_rng(seed).normal(size=(2, 2, 15))
        points = [
            Point(
                f"method {i}",
                dict(zip(("MMD", "NS"), x[:, i], strict=True)),
                {s: {"set": value} for s, value in zip(relation.DETECTION, y[:, i], strict=True)},
                5,
            )
            for i in range(15)
        ]
        held += [m.low <= 0 <= m.high for m in relation.measure(points, resamples=200, seed=seed)]
    assert len(held) == 100
    assert sum(held) >= 85  # a percentile bootstrap of fifteen points is a little short of 95


def test_the_quoted_width_is_that_of_a_correlation_of_zero():
    generator = np.random.default_rng(0)
    ranks = [np.corrcoef(generator.permutation(20), generator.permutation(20))[0, 1] for _ in range(4_000)]
    low, high = np.quantile(ranks, [0.025, 0.975])
    assert high - low == pytest.approx(relation.width(20), rel=0.05)
    assert relation.width(relation.needed(0.4)) < 0.8 <= relation.width(relation.needed(0.4) - 1)


def test_points_average_repetitions_and_runs():
    scores = {"SWAG, one": {f"{s}, far": torch.tensor([0.2, 0.4]) for s in relation.DETECTION}}
    near = {"SWAG, one": torch.tensor([1.0, 3.0])}
    (point,) = relation.points(near, near, scores, ["far"])
    assert point.distance == {"MMD": 2.0, "NS": 2.0}
    assert point.detection["AUPR"]["far"] == pytest.approx(0.3)
    ((groups, title),) = relation.panels([point])
    assert title == "far"
    np.testing.assert_allclose(groups["one run"], [[2.0, 0.3]])


def test_each_set_counts_alike_whatever_its_scale():
    points = planted(40, 0.95, 2)
    for point in points:
        point.detection["AUPR"]["set 1"] *= -1000
    found = {m.cell: m for m in relation.measure(points, resamples=50, seed=0)}
    assert abs(found["MMD and AUPR"].value) < 0.15
