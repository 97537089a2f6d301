"""MMD² against a double loop, closed forms of Gaussians, its expectation, and the rule of the bandwidths."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from lib import mmd
from lib.mmd import Bandwidths, Reference

pytestmark = pytest.mark.usefixtures("two_threads")  # blocks are shared among torch's threads


def normal(*shape, seed=1, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def widths(*values):
    b = torch.tensor(values, dtype=torch.float64)
    return Bandwidths(b, b)


def naive(x, y, bandwidths):
    """The definition, pair by pair, in Python's own numbers."""

    def kernels(a, b):
        one, two = sum(abs(s - t) for s, t in zip(a, b, strict=True)), math.dist(a, b)
        laplace = [math.exp(-one / w) for w in bandwidths.laplace.tolist()]
        return np.array(laplace + [math.exp(-((two / w) ** 2)) for w in bandwidths.gaussian.tolist()])

    x, y = x.tolist(), y.tolist()
    own = [
        sum(kernels(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j)
        / (len(s) * (len(s) - 1))
        for s in (x, y)
    ]
    return own[0] + own[1] - 2 * sum(kernels(a, b) for a in x for b in y) / (len(x) * len(y))


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks and tiles that do not divide the sizes, so that every border is crossed."""
    for name, value in {"ROWS": 5, "COLUMNS": 3, "TILE": 11}.items():
        monkeypatch.setattr(mmd, name, value)


class TestExactness:
    def test_is_the_double_loop(self):
        x, y = normal(9, 5), 1.5 * normal(7, 5, seed=2) + 0.3
        bandwidths = mmd.bandwidths(x, y)
        expected = naive(x, y, bandwidths)
        np.testing.assert_allclose(mmd.mmd2(x, y), expected, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(mmd.mmd2(x.float(), y.float(), bandwidths), expected, atol=1e-6)

    @pytest.mark.usefixtures("small_blocks")
    def test_is_the_double_loop_whatever_the_blocks(self):
        x, y = normal(10, 5), 1.5 * normal(7, 5, seed=2) + 0.3
        bandwidths = mmd.bandwidths(x, y)
        np.testing.assert_allclose(mmd.mmd2(x, y), naive(x, y, bandwidths), rtol=1e-12, atol=1e-14)

    @pytest.mark.usefixtures("small_blocks")
    def test_distances_are_scipys(self):
        x, y = normal(10, 6), normal(9, 6, seed=2)
        one, two = mmd.distances(x, y)
        np.testing.assert_allclose(one, cdist(x, y, "cityblock"), rtol=1e-13)
        np.testing.assert_allclose(two, cdist(x, y, "euclidean"), rtol=1e-13)

    def test_near_samples_far_from_zero_keep_their_digits(self):
        """Networks of one mode: their differences are 10⁻³ of their norm, where |x|² - 2 x·y + |y|² fails in float32."""
        x, y = (10 + 1e-2 * normal(40, 300, seed=s) for s in (1, 2))
        x, y = x.float(), y.float()
        _, exact = mmd.distances(x.double(), y.double())
        _, ours = mmd.distances(x, y)
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=0)
        formula = torch.cdist(x, y, compute_mode="use_mm_for_euclid_dist").double()
        assert ((formula - exact).abs() / exact).max() > 1e-2

    def test_threads_change_nothing(self):
        x, y = normal(150, 20, dtype=torch.float32), normal(90, 20, seed=2, dtype=torch.float32)
        before = torch.get_num_threads()
        results = []
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                results.append(mmd.mmd2(x, y))
                assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2])


class TestKnownAnswers:
    D, SHIFT, SPREADS = 3, 0.8, (1.0, 1.6)

    def gaussian_mmd2(self, width):
        """MMD² of N(0, s² I) and N(δ, t² I): E k of two draws is (1 + 2v/b²)^(-D/2) exp(-|δ|² / (b² + 2v))."""

        def mean_kernel(variance, distance2):
            b2 = width**2
            return (1 + 2 * variance / b2) ** (-self.D / 2) * math.exp(-distance2 / (b2 + 2 * variance))

        s2, t2 = (s * s for s in self.SPREADS)
        return (
            mean_kernel(2 * s2, 0) + mean_kernel(2 * t2, 0) - 2 * mean_kernel(s2 + t2, self.D * self.SHIFT**2)
        )

    def draws(self, repeats, n, same=False):
        x, y = normal(repeats, n, self.D), normal(repeats, n + 5, self.D, seed=2)
        return x, y if same else self.SHIFT + self.SPREADS[1] * y

    def test_mean_over_draws_is_the_closed_form_of_two_gaussians(self):
        values = (0.7, 2.0, 6.0)
        x, y = self.draws(200, 25)
        found = torch.stack([mmd.mmd2(a, b, widths(*values)) for a, b in zip(x, y, strict=True)])[:, 3:]
        error = found.std(0) / len(found) ** 0.5
        expected = torch.tensor([self.gaussian_mmd2(b) for b in values], dtype=torch.float64)
        assert ((found.mean(0) - expected).abs() < 3.5 * error).all()
        assert (error < 0.05 * expected).all()  # the test can tell

    def test_unbiased_mean_over_draws_of_one_law_is_zero(self):
        """The biased V-statistic would be off by about 2 / n, many of these errors."""
        x, y = self.draws(250, 20, same=True)
        found = torch.stack([mmd.mmd2(a, b, widths(1.0, 3.0)) for a, b in zip(x, y, strict=True)])
        error = found.std(0) / len(found) ** 0.5
        assert (found.mean(0).abs() < 3.5 * error).all()
        assert (error < 0.01).all()

    def test_a_sample_and_itself(self):
        """S_xy then holds the diagonal: the statistic is -2/m + 2 S_xx (1/(m (m-1)) - 1/m²)."""
        x = normal(30, 4)
        found = mmd.mmd2(x, x, widths(2.0))
        within = Reference(x, widths(2.0)).within
        m = len(x)
        torch.testing.assert_close(found, -2 / m + 2 * within * (1 - (m - 1) / m))

    def test_far_clusters_reach_two_kernel_means(self):
        x, y = torch.zeros(3, 2, dtype=torch.float64), torch.full((4, 2), 1e6, dtype=torch.float64)
        assert mmd.mmd2(x, y, widths(1.0)).tolist() == [2, 2]


class TestReference:
    def test_equals_mmd2_for_each_run(self):
        x, y = normal(40, 6), 1.2 * normal(2, 3, 15, 6, seed=2)
        bandwidths = mmd.bandwidths(x, y.flatten(0, 2))
        found = Reference(x, bandwidths).mmd2(y)
        assert found.shape == (2, 3, 20)
        each = torch.stack([mmd.mmd2(x, run, bandwidths) for run in y.flatten(0, 1)])
        torch.testing.assert_close(found.flatten(0, 1), each)

    def test_its_own_part_is_computed_once(self, monkeypatch):
        x, y = normal(40, 6), normal(15, 6, seed=2)
        reference = Reference(x, mmd.bandwidths(x, y))
        pairs = []
        norms = mmd._norms
        monkeypatch.setattr(mmd, "_norms", lambda a, b: pairs.append(len(a) * len(b)) or norms(a, b))
        reference.mmd2(y)
        assert sum(pairs) == 40 * 15 + 15 * 15


class TestBandwidths:
    def test_grid_of_the_cross_distances(self):
        x, y = normal(20, 8), normal(30, 8, seed=2)
        found = mmd.bandwidths(x, y, first=12)
        for ours, norm in ((found.laplace, "cityblock"), (found.gaussian, "euclidean")):
            d = cdist(x[:12], y[:12], norm)
            np.testing.assert_allclose(ours, np.geomspace(d.min() / 2, 2 * d.max(), 10), rtol=1e-12)

    def test_small_distances_take_the_quantile_or_a_tenth(self):
        x, y = 0.05 * normal(20, 1), 0.05 * normal(30, 1, seed=2)
        assert mmd.bandwidths(x, y).gaussian[[0, -1]].tolist() == pytest.approx([0.05, 0.6])
        x = torch.cat([normal(20, 1), y[:1]])  # one distance is 0, the quantile is above a tenth
        x[:20] += 5
        d = np.sort(cdist(x, y).ravel())
        quantile = d[int(0.05 * d.size)]
        assert quantile > 0.1 > d[0]
        assert mmd.bandwidths(x, y).gaussian[0].item() == pytest.approx(quantile / 2)


class TestScale:
    def test_halves_are_mmd2_of_the_halves(self, monkeypatch):
        monkeypatch.setattr(mmd, "ROWS", 5)
        x, initial = normal(17, 4), 3 * normal(9, 4, seed=2)
        bandwidths = mmd.bandwidths(x, initial)
        scale = mmd.floor_and_ceiling(x, initial, bandwidths, splits=6, seed=3)
        order = mmd.randomness.permutation(3, torch.arange(6), "mmd/halves", 0, 17)
        each = torch.stack([mmd.mmd2(x[o[:8]], x[o[8:]], bandwidths) for o in order])
        torch.testing.assert_close(scale.floors, each, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(scale.ceiling, mmd.mmd2(x, initial, bandwidths))
        assert len(set(scale.floors[:, 0].tolist())) == 6

    def test_floor_is_zero_and_initial_weights_are_one(self):
        x, initial = normal(60, 4), 3 * normal(60, 4, seed=2)
        scale = mmd.floor_and_ceiling(x, initial, mmd.bandwidths(x, initial), splits=50, seed=3)
        assert abs(scale.floor) < 4 * scale.spread / 50**0.5
        assert scale.scaled(scale.floor) == 0
        assert scale.scaled(scale.top) == 1
        assert scale.scaled(scale.ceiling.mean()).item() == pytest.approx(1)
        assert scale.top > 10 * scale.spread

    def test_a_ceiling_at_the_floor_is_refused(self):
        with pytest.raises(ValueError, match="not above the floor"):
            mmd.scaled(0.5, 0.1, 0.1)


class TestRefusals:
    def test_what_has_no_mmd(self):
        x = normal(5, 3)
        with pytest.raises(ValueError, match="needs two on each side"):
            mmd.mmd2(x, x[:1], widths(1.0))
        with pytest.raises(ValueError, match="3 parameters, the other 2"):
            Reference(x, widths(1.0)).mmd2(x[:, :2])
        broken = x.clone()
        broken[[1, 3], 0] = torch.nan
        with pytest.raises(ValueError, match="2 of 5 networks are not finite"):
            mmd.mmd2(x, broken)
        with pytest.raises(ValueError, match="halves need 4 samples"):
            mmd.floor_and_ceiling(x[:3], x, widths(1.0), seed=1)
        with pytest.raises(ValueError, match="positive"):
            widths(1.0, 0.0)


def test_memory_does_not_grow_with_the_number_of_pairs(monkeypatch):
    """What a block holds, pairs and differences, is bounded: under 50 MB for each of two threads at any m and n."""
    held = []
    norms = mmd._norms

    def record(a, b):
        held.append((len(a) * len(b), a.element_size()))
        return norms(a, b)

    monkeypatch.setattr(mmd, "_norms", record)
    mmd.mmd2(normal(700, 3, dtype=torch.float32), normal(1500, 3, dtype=torch.float32), widths(1.0))
    assert max(pairs for pairs, _ in held) <= mmd.ROWS * mmd.COLUMNS
    assert 4 * (4 * mmd.ROWS * mmd.COLUMNS + mmd.TILE) < 50e6
