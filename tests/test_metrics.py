"""Metrics against scikit-learn and torchmetrics, on answers known by hand, and on what they must refuse."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from sklearn import metrics as sk

from lib import metrics
from lib.torchvision_guard import import_torchvision

RUNS, N, K = 3, 400, 6


def probabilities(runs=RUNS, n=N, classes=K, seed=1, spread=2.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(runs, n, classes, generator=generator, dtype=dtype)).softmax(-1)


def labels_of(p, seed=2):
    """Labels that are right more often than by chance."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(p.shape[1:], generator=generator)
    return (p[0].log() - 1.5 * (-noise.log()).log()).argmax(-1)


@pytest.fixture(scope="module")
def case():
    p = probabilities()
    return p, labels_of(p)


def scores(n=157, m=83, runs=RUNS, levels=None, seed=3):
    """Confidences of inside and outside inputs; ``levels`` rounds them, so that ties abound."""
    generator = torch.Generator().manual_seed(seed)
    inside = torch.rand(runs, n, generator=generator, dtype=torch.float64) ** 0.5
    outside = torch.rand(runs, m, generator=generator, dtype=torch.float64)
    return tuple((levels * s).round() / levels if levels else s for s in (inside, outside))


class TestAgainstLibraries:
    def test_accuracy_nll_and_brier_are_scikit_learns(self, case):
        p, labels = case
        names = list(range(K))
        for name, theirs in {
            "accuracy": lambda q: sk.accuracy_score(labels, q.argmax(1)),
            "nll": lambda q: sk.log_loss(labels, q, labels=names),
            "brier": lambda q: sk.brier_score_loss(labels, q, labels=names),
        }.items():
            ours = getattr(metrics, name)(p, labels)
            assert ours.shape == (RUNS,)
            np.testing.assert_allclose(ours, [theirs(q.numpy()) for q in p], rtol=1e-12)

    @pytest.mark.parametrize("bins", [5, 15])
    def test_ece_is_torchmetrics(self, case, bins):
        import_torchvision()  # torchmetrics imports it
        from torchmetrics.functional.classification import multiclass_calibration_error

        p, labels = case
        theirs = [multiclass_calibration_error(q, labels, K, n_bins=bins, norm="l1") for q in p]
        np.testing.assert_allclose(metrics.ece(p, labels, bins), theirs, rtol=1e-5)  # theirs is float32

    @pytest.mark.parametrize("n", [400, 401, 7])
    def test_adaptive_ece_is_the_plain_one(self, n):
        p = probabilities(n=n)
        labels = labels_of(p)
        for q, ours in zip(p, metrics.adaptive_ece(p, labels), strict=True):
            order = np.argsort(q.amax(1).numpy(), kind="stable")
            hits, confidences = (q.argmax(1) == labels).numpy()[order], q.amax(1).numpy()[order]
            parts = zip(np.array_split(hits, 15), np.array_split(confidences, 15), strict=True)
            plain = sum(len(h) / n * abs(h.mean() - c.mean()) for h, c in parts if len(h))
            assert ours.item() == pytest.approx(plain, rel=1e-12)

    @pytest.mark.parametrize("levels", [None, 7, 1], ids=["no ties", "many ties", "two values"])
    def test_detection_is_scikit_learns_ties_included(self, levels):
        inside, outside = scores(levels=levels)
        ours = [getattr(metrics, name)(inside, outside) for name in ("auroc", "aupr", "fpr95")]
        for run in range(RUNS):
            foreign = np.r_[np.zeros(inside.shape[1]), np.ones(outside.shape[1])]
            score = -np.r_[inside[run], outside[run]]
            false, true, _ = sk.roc_curve(foreign, score, drop_intermediate=False)
            theirs = (
                sk.roc_auc_score(foreign, score),
                sk.average_precision_score(foreign, score),
                false[true >= 0.95].min(),
            )
            np.testing.assert_allclose([metric[run] for metric in ours], theirs, rtol=1e-12)

    def test_entropy_is_scipys(self, case):
        from scipy.stats import entropy

        np.testing.assert_allclose(metrics.entropy(case[0]), entropy(case[0].numpy(), axis=-1), rtol=1e-12)


class TestKnownAnswers:
    def test_perfect_and_hopeless_predictions(self):
        labels = torch.tensor([0, 1, 2])
        right, wrong = torch.eye(3), torch.eye(3).roll(1, 1)
        both = torch.stack([right, wrong])
        assert metrics.accuracy(both, labels).tolist() == [1, 0]
        assert metrics.brier(both, labels).tolist() == [0, 2]
        assert metrics.ece(both, labels).tolist() == [0, 1]
        assert metrics.adaptive_ece(both, labels).tolist() == [0, 1]
        nll = metrics.nll(both, labels)
        assert nll[0] == 0
        assert nll[1].item() == pytest.approx(-math.log(torch.finfo(torch.float32).tiny))

    def test_uniform_predictions(self):
        p, labels = torch.full((10, 4), 0.25, dtype=torch.float64), torch.arange(10) % 4
        assert metrics.nll(p, labels).item() == pytest.approx(math.log(4))
        assert metrics.brier(p, labels).item() == pytest.approx(0.75)
        assert metrics.entropy(p)[3].item() == pytest.approx(math.log(4))

    def test_a_certain_answer_shares_the_last_bin(self):
        """Confidences 0.95 (right) and exactly 1 (wrong) lie in one bin: |1 - 0.95 + 0 - 1| / 2."""
        p = torch.tensor([[0.95, 0.05], [1.0, 0.0]], dtype=torch.float64)
        assert metrics.ece(p, torch.tensor([0, 1])).item() == pytest.approx(0.475)

    def test_a_planted_miscalibration_is_found(self):
        """Two levels of confidence, 0.6 and 0.9, right in half and in all of the cases."""
        p = torch.tensor([[0.6, 0.4]] * 40 + [[0.9, 0.1]] * 60, dtype=torch.float64)
        labels = torch.tensor([0, 1] * 20 + [0] * 60)
        assert metrics.ece(p, labels).item() == pytest.approx(0.4 * 0.1 + 0.6 * 0.1)

    def test_mutual_information_of_certain_members_that_disagree_is_log_two(self):
        p = torch.eye(2)[:, None]  # two members, one input, opposite answers
        assert metrics.mutual_information(p).item() == pytest.approx(math.log(2))
        assert metrics.mutual_information(p[[0, 0]]).item() == pytest.approx(0, abs=1e-37)

    def test_mutual_information_is_the_difference_of_entropies(self):
        p = probabilities(runs=8).unflatten(0, (2, 4))
        plain = metrics.entropy(p.mean(1)) - metrics.entropy(p).mean(1)
        torch.testing.assert_close(metrics.mutual_information(p), plain, rtol=1e-10, atol=1e-12)

    def test_mutual_information_of_nearly_equal_members_keeps_its_digits(self):
        """Probabilities 1/2 ± e: the information is 2 e² + O(e⁴), far below the rounding of an entropy."""
        for dtype, e, digits in ((torch.float64, 1e-7, 1e-6), (torch.float32, 2.0**-10, 1e-3)):
            p = torch.tensor([[[0.5 + e, 0.5 - e]], [[0.5 - e, 0.5 + e]]], dtype=dtype)
            assert metrics.mutual_information(p).item() == pytest.approx(2 * e * e, rel=digits, abs=0)

    def test_mutual_information_forgives_a_rounded_mean(self):
        """Five members that differ by 10⁻⁷, against fifty decimal digits: their mean is rounded, the result is not."""
        noise = torch.randn(5, 3, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
        p = (torch.tensor([0.3, 0.1, 0.6]).log() + 1e-7 * noise).softmax(-1)
        with localcontext(prec=50):
            members = [[Decimal(x) for x in row] for row in p.tolist()]
            means = [sum(column) / 5 for column in zip(*members, strict=True)]
            terms = [
                x * (x / m).ln() - x + m for row in members for x, m in zip(row, means, strict=True)
            ]  # - x + m: the rows' sums are rounded too
            expected = float(sum(terms) / 5)
        assert metrics.mutual_information(p[:, None]).item() == pytest.approx(expected, rel=1e-6, abs=0)

    def test_detection_of_separated_sets(self):
        inside, outside = torch.tensor([0.8, 0.9]), torch.tensor([0.1, 0.2, 0.3])
        values = [metric(inside, outside).item() for metric in (metrics.auroc, metrics.aupr, metrics.fpr95)]
        assert values == [1, 1, 0]
        assert metrics.auroc(outside, inside).item() == 0
        assert metrics.fpr95(outside, inside).item() == 1

    def test_the_foreign_class_is_the_positive_one(self):
        """One foreign input below nine of ten others: precision 1/2 where it is found."""
        inside, outside = torch.linspace(0.1, 1, 10), torch.tensor([0.15])
        assert metrics.aupr(inside, outside).item() == pytest.approx(0.5)
        assert metrics.fpr95(inside, outside).item() == pytest.approx(0.1)
        assert metrics.auroc(inside, outside).item() == pytest.approx(0.9)

    @pytest.mark.parametrize(("outside", "needed"), [(20, 19), (21, 20), (100, 95), (1, 1)])
    def test_ninety_five_per_cent_of_the_foreign_inputs_are_called_so(self, outside, needed):
        foreign = torch.arange(outside, dtype=torch.float64)
        inside = (
            torch.arange(outside, dtype=torch.float64) + 0.5
        )  # `needed` - 1 of them lie below the threshold
        assert metrics.fpr95(inside, foreign).item() == pytest.approx((needed - 1) / outside)

    def test_auroc_counts_pairs(self):
        inside, outside = scores(levels=5)
        pairs = (inside[:, :, None] > outside[:, None]).double() + 0.5 * (
            inside[:, :, None] == outside[:, None]
        )
        torch.testing.assert_close(metrics.auroc(inside, outside), pairs.mean((1, 2)))
        ranks = rankdata(np.r_[inside[0], outside[0]])[: inside.shape[1]].sum()
        n, m = inside.shape[1], outside.shape[1]
        assert metrics.auroc(inside, outside)[0].item() == pytest.approx((ranks - n * (n + 1) / 2) / (n * m))


class TestShapesAndTypes:
    def test_leading_axes_are_kept(self):
        p = probabilities(runs=6)
        labels = labels_of(p)
        for metric in (metrics.accuracy, metrics.nll, metrics.brier, metrics.ece, metrics.adaptive_ece):
            whole = metric(p.unflatten(0, (2, 3)), labels)
            assert whole.shape == (2, 3)
            torch.testing.assert_close(whole.flatten(), torch.stack([metric(q, labels) for q in p]))
        for metric in (metrics.auroc, metrics.aupr, metrics.fpr95):
            inside, outside = scores(runs=6, levels=9)
            whole = metric(inside.unflatten(0, (2, 3)), outside.unflatten(0, (2, 3)))
            torch.testing.assert_close(
                whole.flatten(), torch.stack([metric(*pair) for pair in zip(inside, outside, strict=True)])
            )
        assert metrics.confidence(p).shape == (6, N)

    def test_float32_agrees_with_float64(self, case):
        p, labels = case
        for metric in (metrics.accuracy, metrics.nll, metrics.brier, metrics.ece, metrics.adaptive_ece):
            single = metric(p.float(), labels)
            assert single.dtype == torch.float32
            torch.testing.assert_close(single.double(), metric(p, labels), rtol=1e-4, atol=1e-6)


class TestRefusals:
    def test_logits(self, case):
        with pytest.raises(ValueError, match="softmax"):
            metrics.brier(case[0].log(), case[1])

    @pytest.mark.parametrize("bad", [float("nan"), -0.1, float("inf")])
    def test_what_is_no_probability(self, case, bad):
        p = case[0].clone()
        p[1, 7, 2] = bad
        with pytest.raises(ValueError, match=r"1 of 1200 rows are no probabilities: the first, at \[1, 7\]"):
            metrics.accuracy(p, case[1])

    def test_a_negative_entry_in_a_row_that_sums_to_one(self, case):
        p = case[0].clone()
        p[1, 7] = torch.tensor([-0.1, 1.1, 0, 0, 0, 0])
        with pytest.raises(ValueError, match=r"least entry -0\.1"):
            metrics.accuracy(p, case[1])

    @pytest.mark.parametrize("bad", [-1, K])
    def test_labels_of_other_classes(self, case, bad):
        labels = case[1].clone()
        labels[5] = bad
        with pytest.raises(ValueError, match="6 classes, 0 to 5"):
            metrics.nll(case[0], labels)

    def test_no_examples(self):
        with pytest.raises(ValueError, match="no examples"):
            metrics.accuracy(torch.ones(2, 0, 3), torch.ones(0, dtype=torch.long))

    @pytest.mark.parametrize("metric", [metrics.auroc, metrics.aupr, metrics.fpr95])
    def test_an_empty_or_broken_set_of_foreign_inputs(self, metric):
        inside, empty = torch.rand(2, 5), torch.rand(2, 0)
        with pytest.raises(ValueError, match="foreign inputs is empty"):
            metric(inside, empty)
        with pytest.raises(ValueError, match="training data is empty"):
            metric(empty, inside)
        with pytest.raises(ValueError, match="not all finite"):
            metric(inside, torch.full((2, 4), float("nan")))

    def test_a_single_member(self, case):
        with pytest.raises(ValueError, match="at least two members"):
            metrics.mutual_information(case[0][:1])
