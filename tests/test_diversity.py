"""Mutual information of pairs and the measurements of P1-C11, on cases whose answer is known."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.stats import spearmanr

from lib import diversity, metrics
from lib.diversity import Pairs

pytestmark = pytest.mark.usefixtures("two_threads")  # blocks are shared among torch's threads


def probabilities(count=40, inputs=60, classes=5, seed=1, spread=4.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(count, inputs, classes, generator=generator, dtype=dtype)).softmax(-1)


def nearly(p, change, seed=2):
    """The same networks with logits that differ by noise of the given size."""
    generator = torch.Generator().manual_seed(seed)
    return (p.log() + change * torch.randn(p.shape, generator=generator, dtype=p.dtype)).softmax(-1)


def of(measurements, name):
    (found,) = [m for m in measurements if m.name == name]
    return found


class TestPairwise:
    def test_is_the_ensembles_of_two(self):
        p = probabilities(dtype=torch.float64)
        found = diversity.pairwise_mutual_information(p)
        for i, j in ((0, 1), (3, 39), (20, 17)):
            assert found[i, j].item() == pytest.approx(
                metrics.mutual_information(p[[i, j]]).mean().item(), rel=1e-10
            )
        assert torch.equal(found, found.T)
        assert not found.diagonal().any()

    def test_certain_networks_give_log_two_times_the_share_of_disagreements(self):
        """All pairs at once against Hamming's distance, exact for probabilities 0 and 1."""
        answers = torch.randint(3, (35, 50), generator=torch.Generator().manual_seed(4))
        p = torch.nn.functional.one_hot(answers, 3).float()
        found = diversity.pairwise_mutual_information(p)
        expected = math.log(2) * cdist(answers, answers, "hamming")
        np.testing.assert_allclose(found, expected, atol=2e-7)

    @pytest.mark.parametrize("e", [1e-5, 0.01, 0.3])
    def test_two_opposite_doubts(self, e):
        """Probabilities 1/2 ± e: log 2 minus the entropy of 1/2 + e, which is 2 e² + 4 e⁴ / 3 + ..."""
        p = torch.tensor([[[0.5 + e, 0.5 - e]], [[0.5 - e, 0.5 + e]]], dtype=torch.float64)
        expected = sum((0.5 + s * e) * math.log1p(2 * s * e) for s in (1, -1))
        expected = 2 * e * e if e < 1e-3 else expected
        found = diversity.pairwise_mutual_information(p)[0, 1].item()
        assert found == pytest.approx(expected, rel=1e-8, abs=0)

    def test_float32_keeps_six_digits_of_a_nat(self):
        p = probabilities(spread=6.0)
        exact = diversity.pairwise_mutual_information(p.double())
        torch.testing.assert_close(diversity.pairwise_mutual_information(p), exact, rtol=0, atol=3e-7)

    def test_blocks_change_nothing(self, monkeypatch):
        p = probabilities()
        whole = diversity.pairwise_mutual_information(p)
        for name, value in {"ROWS": 7, "COLUMNS": 9, "SLAB": 64, "TILE": 1000, "TOGETHER": 3}.items():
            monkeypatch.setattr(diversity, name, value)
        torch.testing.assert_close(diversity.pairwise_mutual_information(p), whole, rtol=0, atol=3e-7)

    def test_nearly_equal_networks_keep_their_digits(self):
        """Differences of entropies in float32 would be noise of 10⁻⁷ here; the truth is 10⁻⁹."""
        one = probabilities(count=1, inputs=200)
        p = torch.cat([one, nearly(one, 1e-4), nearly(one, 1e-4, seed=5)])
        exact = torch.stack([metrics.mutual_information(p.double()[[0, j]]).mean() for j in (1, 2)])
        assert (exact < 1e-8).all()
        torch.testing.assert_close(diversity.pairwise_mutual_information(p)[0, 1:], exact, rtol=1e-5, atol=0)

    def test_refusals(self):
        with pytest.raises(ValueError, match="needs a pair"):
            diversity.pairwise_mutual_information(probabilities(count=1))
        with pytest.raises(ValueError, match="softmax"):
            diversity.pairwise_mutual_information(probabilities().log())


class TestPaired:
    def test_a_copy_is_at_the_level_of_rounding(self):
        p = probabilities(inputs=500)
        assert not diversity.paired_mutual_information(p, p).any()
        copies = diversity.paired_mutual_information(p, nearly(p, 1e-7))
        assert (copies > 0).all()
        assert copies.max() < 1e-13

    def test_the_floor_is_that_of_one_rounding_at_least(self):
        p = probabilities()
        eps = torch.finfo(torch.float32).eps
        assert diversity.compare(p, p, p[:10]).floor == eps**2 / 8
        rounded = torch.stack([p[0], p[0] * (1 + eps)]).double()
        one_rounding = diversity.paired_mutual_information(rounded[:1], rounded[1:]).item()
        assert one_rounding == pytest.approx(eps**2 / 8, rel=0.5, abs=0)

    def test_the_floor_is_the_worst_copys(self):
        p = probabilities()
        copies = nearly(p, 1e-6)[:10]
        copies[3] = nearly(p, 1e-4)[3]
        worst = diversity.paired_mutual_information(p[3:4], copies[3:4]).item()
        assert diversity.compare(p, p, copies).floor == worst


class TestSpearman:
    def test_is_scipys_ties_included(self):
        generator = np.random.Generator(np.random.Philox(key=3))
        x, y = generator.normal(size=(2, 50))
        for decimals in (8, 0):
            a, b = x.round(decimals), (x + y).round(decimals)
            assert diversity.spearman(a, b) == pytest.approx(spearmanr(a, b).statistic, rel=1e-12)
        assert math.isnan(diversity.spearman(x, np.ones(50)))

    def test_weights_are_multiplicities(self):
        generator = np.random.Generator(np.random.Philox(key=3))
        x = generator.normal(size=30).round(1)
        times = generator.integers(1, 4, size=30)
        weights = torch.from_numpy(times).double()
        ours = diversity._ranks(diversity._places(torch.from_numpy(x)), weights)
        from scipy.stats import rankdata

        theirs = rankdata(np.repeat(x, times))[np.r_[0, times.cumsum()[:-1]]]
        np.testing.assert_allclose(ours - ours[0], theirs - theirs[0], atol=1e-12)


def planted(count, seed, *, node=0.6, shared=0.0, variation=(0.02, 0.1)):
    """Mutual information 1 + v (network i + network j + noise of the pair): Gaussian, so everything is known.

    ``node`` is the share of the variance from each network and ``shared`` the correlation of its two effects, so that
    the pairs' correlation is 2 node shared, coefficients of variation are ``variation``.
    """
    generator = torch.Generator().manual_seed(seed)
    effects = torch.randn(2, count, generator=generator, dtype=torch.float64)
    effects[1] = shared * effects[0] + (1 - shared**2) ** 0.5 * effects[1]
    noise = torch.randn(2, count, count, generator=generator, dtype=torch.float64).triu(1)
    noise = noise + noise.mT
    pairs = node**0.5 * (effects[:, :, None] + effects[:, None]) + (1 - 2 * node) ** 0.5 * noise
    pairs = (1 + torch.tensor(variation, dtype=torch.float64)[:, None, None] * pairs).abs()
    return Pairs(*(m - m.diag().diag() for m in pairs), floor=1e-6)


class TestMeasure:
    def test_from_probabilities_with_a_planted_ratio(self):
        """Certain networks with known disagreements: every number follows from Hamming's distances."""
        generator = torch.Generator().manual_seed(4)
        base = torch.randint(3, (1, 300), generator=generator)
        rates = torch.linspace(0.05, 0.8, 30)[:, None]
        answers = [
            torch.where(
                torch.rand(30, 300, generator=generator) < rate,
                torch.randint(3, (30, 300), generator=generator),
                base,
            )
            for rate in (torch.full((30, 1), 0.9), rates)
        ]
        p = [torch.nn.functional.one_hot(a, 3).float() for a in answers]
        found = diversity.measure(*p, nearly(p[0].clamp_min(1e-6), 1e-4)[:5], resamples=50, seed=1)
        above = np.triu_indices(30, 1)
        inside, outside = (math.log(2) * cdist(a, a, "hamming")[above] for a in answers)
        ratio = (outside.std() / outside.mean()) / (inside.std() / inside.mean())
        assert of(found, "variation_ratio").value == pytest.approx(ratio, rel=1e-5)
        assert of(found, "correlation").value == pytest.approx(spearmanr(inside, outside).statistic, abs=1e-2)
        shares = []
        for g in range(3):
            part = (
                math.log(2)
                * cdist(*[answers[0][10 * g : 10 * g + 10]] * 2, "hamming")[np.triu_indices(10, 1)]
            )
            shares.append(part.min() / np.median(part))
        share = of(found, "smallest_share")
        assert [share.low, share.value, share.high] == pytest.approx(sorted(shares), rel=1e-5)
        assert {m.name: (m.n, m.seeds) for m in found} == {
            "variation_ratio": (30, 1),
            "correlation": (30, 1),
            "smallest_share": (10, 3),
            "smallest_over_floor": (10, 3),
        }
        assert all(m.low <= m.value <= m.high for m in found)

    def test_a_collapsed_pair_is_seen(self):
        """Two networks that are permuted copies of each other: their pair is at the floor."""
        p = probabilities(count=30, inputs=100)
        twins = torch.cat([p[:29], nearly(p[:1], 1e-7, seed=9)]).roll(15, 0)  # both in the middle group
        found = diversity.measure(twins, p, nearly(twins, 1e-7)[:10], resamples=20, seed=1)
        assert of(found, "smallest_over_floor").low < 2
        assert of(found, "smallest_share").low < 1e-9
        assert of(found, "smallest_over_floor").value > 1e6

    @pytest.mark.parametrize("shared", [0.0, 0.7])
    def test_planted_ratio_and_correlation(self, shared):
        """Spearman of two Gaussians of correlation r is (6/π) arcsin(r/2)."""
        found = diversity.measure_pairs(planted(600, 5, node=0.2, shared=shared), resamples=20, seed=1)
        assert of(found, "variation_ratio").value == pytest.approx(5, rel=0.05)
        truth = 6 / math.pi * math.asin(2 * 0.2 * shared / 2)
        assert of(found, "correlation").value == pytest.approx(truth, abs=0.05)

    def test_a_resample_is_the_sub_matrix_of_the_drawn_networks(self):
        """One resample by hand: all pairs of the drawn networks, without those of a network and its double."""
        pairs = planted(20, 3)
        _, low, high = diversity._over_networks(pairs, 1, 7)
        drawn = diversity.randomness.integers(7, torch.arange(1), "diversity/networks", 0, 20, (20,))[0]
        i, j = np.triu_indices(20, 1)
        i, j = drawn[i], drawn[j]
        i, j = i[i != j], j[drawn[np.triu_indices(20, 1)[0]] != drawn[np.triu_indices(20, 1)[1]]]
        inside, outside = pairs.inside[i, j].numpy(), pairs.outside[i, j].numpy()
        ratio = (outside.std() / outside.mean()) / (inside.std() / inside.mean())
        assert low == high
        assert low == pytest.approx([ratio, spearmanr(inside, outside).statistic], rel=1e-9)

    def test_intervals_of_networks_cover_where_those_of_pairs_would_not(self):
        """40 draws of 40 networks: the truth lies in about 95 % of the intervals, which are as wide as networks ask."""
        truth = 6 / math.pi * math.asin(2 * 0.45 * 0.5 / 2)
        hits, widths = 0, []
        for seed in range(40):
            found = of(
                diversity.measure_pairs(
                    planted(40, 100 + seed, node=0.45, shared=0.5), resamples=60, seed=seed
                ),
                "correlation",
            )
            hits += found.low <= truth <= found.high
            widths.append(found.high - found.low)
        assert hits >= 32  # 95 % would give fewer in one of 20,000 cases
        of_pairs = 2 * 1.96 * (1 - truth**2) / math.sqrt(40 * 39 / 2)
        assert np.mean(widths) > 2 * of_pairs

    def test_too_few_groups_or_networks(self):
        with pytest.raises(ValueError, match="two groups of three"):
            diversity.measure_pairs(planted(8, 1), resamples=5, seed=1)
        with pytest.raises(ValueError, match="two groups of three"):
            diversity.measure_pairs(planted(30, 1), groups=1, resamples=5, seed=1)
