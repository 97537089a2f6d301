"""Scores of a segmentation from its confusion matrix, and the weights of rare classes.

A confusion matrix counts pixels of a whole split: row c, column p holds those of class c that were called p. Pixels with
another label (void) are left out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor


class Scores(NamedTuple):
    """Shares in [0, 1]; each is 0/0, a NaN, where no pixel counts."""

    mean_iou: float
    class_accuracy: float
    global_accuracy: float


def class_weights(labels: Int64[Tensor, "N H W"], classes: int) -> Float32[Tensor, " classes"]:
    """Median-frequency balancing: median(f) / f_c, where f_c is the share of class c in all pixels of the images with it.

    All pixels: void ones too. A class that no image has weighs nothing, and the median leaves it out.
    Source: Eigen & Fergus (arXiv 1411.4734), as SegNet uses it. Raises ValueError where no pixel has a class.
    """
    counts = torch.stack([(labels == c).flatten(1).sum(1) for c in range(classes)], 1)  # (N, classes)
    pixels = labels[0].numel() * (counts > 0).sum(0)
    found = pixels > 0
    if not found.any():
        raise ValueError(f"no pixel has a class from 0 to {classes - 1}: there is nothing to balance.")
    frequency = counts.sum(0).double()[found] / pixels[found]
    weights = torch.zeros(classes, dtype=torch.float64, device=labels.device)
    weights[found] = frequency.quantile(0.5) / frequency
    return weights.float()


def confusion(
    labels: Int64[Tensor, "*pixels"], predictions: Int64[Tensor, "*pixels"], classes: int
) -> Int64[Tensor, "classes classes"]:
    """The confusion matrix of pixels; predictions lie in 0 to ``classes`` - 1, labels outside of it are left out."""
    counted = (labels >= 0) & (labels < classes)
    pairs = labels[counted] * classes + predictions[counted]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def scores(matrix: Int64[Tensor, "K K"]) -> Scores:
    """Mean intersection over union, class-average accuracy and global accuracy.

    The mean of the intersections over unions leaves out classes that neither labels nor predictions have, that of the
    accuracies those that no label has: nothing can be right or wrong about them.
    """
    matrix = matrix.double()
    right, labelled = matrix.diagonal(), matrix.sum(1)
    return Scores(
        float(overlap(matrix).nanmean()),
        float((right / labelled).nanmean()),
        float(right.sum() / labelled.sum()),
    )


def overlap(matrix: Int64[Tensor, "K K"] | Float64[Tensor, "K K"]) -> Float[Tensor, " K"]:
    """Intersection over union of every class, NaN for one that neither labels nor predictions have."""
    right = matrix.diagonal().double()
    return right / (matrix.sum(0) + matrix.sum(1) - right)
