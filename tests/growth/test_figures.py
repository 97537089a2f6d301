"""The chapter's pictures: the numbers in them, and words beside each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from lib.free_energy.truths import T1
from lib.growth import figures
from lib.growth.curves import Curve, Learner


def curve(width: int, slope: float) -> Curve:
    n = torch.logspace(1, 6, 11, dtype=torch.float64)
    energy = slope * n.log()[:, None] + torch.tensor([[0.0, 0.1, -0.1]], dtype=torch.float64)
    return Curve(Learner(T1, (1, width, 1)), 1_000, n, energy, torch.full_like(energy, slope), {}, 12)


def test_the_mass_of_the_cross_is_that_of_a_product_of_normal_numbers():
    width = np.array([1e-3, 0.1, 0.4])
    expected = [
        2
        * integrate.quad(
            lambda a, w=w: (2 * stats.norm.cdf(w / a) - 1) * stats.norm.pdf(a), 0, np.inf, limit=500
        )[0]
        for w in width
    ]
    np.testing.assert_allclose(figures._mass_of_product(width), expected, rtol=1e-3)


def test_slopes_stand_at_the_middle_of_their_decade():
    x, mean, low, high = figures.slope_series([curve(2, 1.7)], 3)["1-2-1"]
    np.testing.assert_allclose(x, [10**3.5, 10**4.5, 10**5.5])
    np.testing.assert_allclose(mean, 1.7)
    assert (low <= mean + 1e-9).all()
    assert (high >= mean - 1e-9).all()


@pytest.mark.parametrize(
    "draw",
    [
        figures.volumes,
        figures.proof,
        lambda: figures.free_energies([curve(1, 1.5), curve(4, 1.9)], curve(1, 1.5), curve(4, 1.9)),
        lambda: figures.headroom(
            [curve(2, 1.6)], {"T1: 1-2-1": 1.5 * torch.logspace(1, 6, 11, dtype=torch.float64).log()}
        ),
    ],
)
def test_every_picture_can_be_drawn_and_has_words(draw):
    shown = draw()
    html = shown._repr_html_()
    assert "<svg" in html
    assert len(shown.alt) > 60
