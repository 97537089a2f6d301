"""Highest-density regions and modes of clouds whose answer is known."""

import numpy as np
import pytest
from scipy import stats

from lib import intervals, modes


def generator(key=5):
    return np.random.Generator(np.random.Philox(key=key))


def blobs(centres, n=4_000, spread=0.25, key=5):
    g = generator(key)
    return np.concatenate([g.normal(centre, spread, (n, 2)) for centre in centres])


def test_area_of_a_ring_of_gaussians_is_the_closed_form():
    """The 80 % region of one Gaussian of variance s² has area -2π s² ln 0.2; smoothing adds its own variance."""
    errors = []
    for key in range(8):
        points = blobs([(2, 0), (-2, 0), (0, 2), (0, -2)], key=key)
        found = modes.region(points)
        smoothing = modes.WIDTH * 2 * modes.LIMIT / modes.CELLS
        variance = (0.25 / found.radius) ** 2 + smoothing**2
        errors.append(found.area / (4 * -2 * np.pi * variance * np.log(0.2)) - 1)
        assert found.count == 4
    assert abs(np.mean(errors)) < 0.05
    assert np.std(errors) < 0.05


def test_mirror_images_are_paired_and_straddling_modes_are_their_own():
    found = modes.region(blobs([(2, -2), (-2, 2), (2, 2), (-2, -2)]))
    images = modes.mirrored(found.pieces)
    assert found.count == 4
    assert sorted(label == image for label, image in enumerate(images, start=1)) == [False, False, True, True]
    assert modes.orbits(found.pieces) == 3


def test_a_mode_without_mirror_image_is_an_orbit_of_its_own():
    found = modes.region(blobs([(2, -1), (1, 2.5)]))
    assert modes.mirrored(found.pieces) == [0, 0]
    assert modes.orbits(found.pieces) == 2


def test_scaling_a_cloud_changes_nothing():
    points = blobs([(1, 2), (-3, 1)])
    one, two = modes.region(points), modes.region(100 * points)
    assert one.area == pytest.approx(two.area)
    assert two.radius == pytest.approx(100 * one.radius)


def test_a_cloud_without_extent_is_refused():
    with pytest.raises(ValueError, match="diverged"):
        modes.region(np.full((10, 2), np.nan))


def planted(key, halved=True):
    points = blobs([(2, -2), (-2, 2), (2, 2), (-2, -2)], n=1_000, spread=0.5, key=key)
    sorted_points = np.sort(points, axis=1) if halved else points
    return modes.Clouds(points, points, sorted_points, sorted_points)


def test_measurements_of_a_cloud_that_is_exactly_halved():
    found = {m.name: m for m in modes.measure(planted(1), "planted", resamples=40, seed=0)}
    assert found["mode_orbits"].value == 0
    assert 0.4 < found["area_halved"].low < found["area_halved"].high < 0.6
    assert found["area_after_scaling"].value == 1
    assert found["area_halved"].n == 4_000


def test_measurements_see_a_removal_that_removes_nothing():
    found = {m.name: m for m in modes.measure(planted(1, halved=False), "planted", resamples=40, seed=0)}
    assert found["mode_orbits"].low >= 1
    assert found["area_halved"].value == 1


def test_bootstrap_covers_the_mean_as_often_as_it_says():
    covered = 0
    for key in range(200):
        x = generator(key).normal(size=60)
        _, low, high = intervals.bootstrap(
            lambda i, x=x: np.array([x[i].mean()]), 60, resamples=200, seed=key
        )
        covered += bool(low[0] <= 0 <= high[0])
    assert stats.binomtest(covered, 200, 0.95).pvalue > 1e-3


def test_bootstrap_needs_two_units():
    with pytest.raises(ValueError, match="at least two"):
        intervals.bootstrap(lambda i: np.zeros(1), 1, resamples=10, seed=0)
