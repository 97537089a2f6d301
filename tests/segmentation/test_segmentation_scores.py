"""Scores and weights of classes on cases counted by hand, and against torchmetrics."""

import math

import pytest
import torch

from lib.segmentation.scores import Scores, class_weights, confusion, overlap, scores
from lib.torchvision_guard import import_torchvision

LABELS = torch.tensor([[[0, 0, 1, 1], [0, 2, 1, 11]]])
CALLED = torch.tensor([[[0, 1, 1, 1], [0, 2, 0, 2]]])


def test_a_confusion_matrix_by_hand():
    """The last pixel is void: what it was called does not count."""
    assert confusion(LABELS, CALLED, 3).tolist() == [[2, 1, 0], [1, 2, 0], [0, 0, 1]]


def test_scores_by_hand():
    matrix = confusion(LABELS, CALLED, 3)
    assert overlap(matrix).tolist() == pytest.approx([2 / 4, 2 / 4, 1])
    assert scores(matrix) == pytest.approx(Scores(2 / 3, (2 / 3 + 2 / 3 + 1) / 3, 5 / 7))


def test_a_class_that_nobody_has_is_left_out():
    wider = confusion(LABELS, CALLED, 5)
    assert scores(wider) == pytest.approx(scores(confusion(LABELS, CALLED, 3)))
    assert overlap(wider).isnan().tolist() == [False] * 3 + [True] * 2


def test_a_class_that_only_predictions_have_counts_against_the_overlap():
    """It has no accuracy, since no pixel of it could be right."""
    found = scores(confusion(torch.tensor([0, 0, 1]), torch.tensor([0, 2, 1]), 4))
    assert found == pytest.approx(Scores((1 / 2 + 1 + 0) / 3, (1 / 2 + 1) / 2, 2 / 3))


def test_right_everywhere_and_nowhere():
    labels = torch.arange(11).repeat(7)
    assert scores(confusion(labels, labels, 11)) == Scores(1.0, 1.0, 1.0)
    assert scores(confusion(labels, (labels + 1) % 11, 11)) == Scores(0.0, 0.0, 0.0)
    assert all(math.isnan(score) for score in scores(torch.zeros(3, 3, dtype=torch.int64)))


def test_scores_are_torchmetrics():
    import_torchvision()  # torchmetrics imports it
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

    generator = torch.Generator().manual_seed(991)
    labels = torch.randint(12, (4, 20, 30), generator=generator)
    chance = torch.rand(labels.shape, generator=generator) < 0.6
    called = torch.where(chance & (labels < 11), labels, torch.randint(11, labels.shape, generator=generator))
    options = {"num_classes": 11, "ignore_index": 11}
    found = scores(confusion(labels, called, 11))
    assert found.mean_iou == pytest.approx(float(multiclass_jaccard_index(called, labels, **options)))
    assert found.class_accuracy == pytest.approx(float(multiclass_accuracy(called, labels, **options)))
    assert found.global_accuracy == pytest.approx(
        float(multiclass_accuracy(called, labels, average="micro", **options))
    )


# ------------------------------------------------------------------------------------------------------------ weights


def test_weights_by_hand():
    """Class 0: 5 of 12 pixels, class 1: 3 of 12, class 2: 1 of 6, in the images that have it; void counts as a pixel."""
    labels = torch.tensor([[[0, 0, 0], [1, 2, 11]], [[0, 0, 1], [1, 11, 11]], [[11] * 3] * 2])
    wanted = [(3 / 12) / (5 / 12), 1.0, (3 / 12) / (1 / 6)]
    torch.testing.assert_close(class_weights(labels, 3), torch.tensor(wanted))


def test_equal_classes_weigh_one_and_absent_ones_nothing():
    labels = torch.tensor([[[0, 1, 3, 4]]])
    assert class_weights(labels, 6).tolist() == [1, 1, 0, 1, 1, 0]


def test_without_classes_there_is_nothing_to_balance():
    with pytest.raises(ValueError, match="no pixel has a class from 0 to 10"):
        class_weights(torch.full((2, 3, 3), 11), 11)
