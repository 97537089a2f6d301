"""What a classifier's probabilities are worth: errors, calibration, diversity, and detection of foreign inputs.

Everything takes leading axes (runs, networks) and returns them: probabilities (..., N, K), labels (N,). Detection
compares two sets of confidences, of inputs like the training data (``inside``) and of foreign ones (``outside``); the
**positive class is the foreign one**, and an input is called foreign when its confidence is low.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

BINS = 15  # of the calibration errors, as in the paper's library
TOLERANCE = 1e-3  # by which probabilities may miss the sum 1: half precision does, logits do not


def accuracy(probabilities: Float[Tensor, "*runs N K"], labels: Int[Tensor, " N"]) -> Float[Tensor, "*runs"]:
    """Share of the examples whose most probable class is the label."""
    check_probabilities(probabilities, labels)
    return (probabilities.argmax(-1) == labels).to(probabilities.dtype).mean(-1)


def nll(probabilities: Float[Tensor, "*runs N K"], labels: Int[Tensor, " N"]) -> Float[Tensor, "*runs"]:
    """Mean negative log probability of the label, in nats; a probability of 0 counts as the smallest normal number."""
    check_probabilities(probabilities, labels)
    tiny = torch.finfo(probabilities.dtype).tiny
    return -_of_label(probabilities, labels).clamp_min(tiny).log().mean(-1)


def brier(probabilities: Float[Tensor, "*runs N K"], labels: Int[Tensor, " N"]) -> Float[Tensor, "*runs"]:
    """Squared distance of the probabilities from the label's unit vector, mean over examples: from 0 to 2.

    The sum over classes, as Brier (1950) and the paper have it, not their mean.
    """
    check_probabilities(probabilities, labels)
    hit = _of_label(probabilities, labels)
    return ((probabilities**2).sum(-1) - hit**2 + (1 - hit) ** 2).mean(-1)


def ece(
    probabilities: Float[Tensor, "*runs N K"], labels: Int[Tensor, " N"], bins: int = BINS
) -> Float[Tensor, "*runs"]:
    """Expected calibration error of the most probable class (Guo et al. 2017): equal-width bins ((b - 1) / B, b / B].

    The mean over bins, weighted by their examples, of |accuracy - mean confidence|.
    """
    confidences, gaps = _gaps(probabilities, labels)
    edges = torch.linspace(0, 1, bins + 1, dtype=confidences.dtype, device=confidences.device)
    place = torch.bucketize(confidences, edges[1:-1].contiguous())
    each = [torch.where(place == b, gaps, 0).sum(-1).abs() for b in range(bins)]
    return torch.stack(each).sum(0) / gaps.shape[-1]


def adaptive_ece(
    probabilities: Float[Tensor, "*runs N K"], labels: Int[Tensor, " N"], bins: int = BINS
) -> Float[Tensor, "*runs"]:
    """As `ece`, with bins of equally many examples (Nixon et al. 2019); equal confidences stay in the examples' order."""
    confidences, gaps = _gaps(probabilities, labels)
    order = confidences.sort(dim=-1, stable=True).indices
    each = [part.sum(-1).abs() for part in gaps.gather(-1, order).tensor_split(bins, dim=-1)]
    return torch.stack(each).sum(0) / gaps.shape[-1]


def entropy(probabilities: Float[Tensor, "*any K"]) -> Float[Tensor, "*any"]:
    """Shannon's entropy of each distribution, in nats."""
    check_probabilities(probabilities)
    return torch.special.entr(probabilities).sum(-1)


def mutual_information(probabilities: Float[Tensor, "*runs S N K"]) -> Float[Tensor, "*runs N"]:
    """Mutual information of the label and the member of an ensemble, H(mean p) - mean H(p), in nats, per input.

    Summed as mean_s sum_k m h(p_s / m - 1) with h(d) = (1 + d) log(1 + d) - d and m the ensemble's mean: no term is
    negative, so members that are nearly equal lose no digits, as they do in the difference of entropies. Raises
    ValueError for a single member, which has nothing to differ from.
    """
    check_probabilities(probabilities)
    if probabilities.shape[-3] < 2:
        raise ValueError("mutual information needs at least two members: one has nothing to differ from.")
    mean = probabilities.mean(-3, keepdim=True).clamp_min(torch.finfo(probabilities.dtype).tiny)
    excess = (probabilities - mean) / mean
    return (mean * (torch.special.xlog1py(1 + excess, excess) - excess)).sum(-1).mean(-2)


def confidence(probabilities: Float[Tensor, "*runs N K"]) -> Float[Tensor, "*runs N"]:
    """Probability of the most probable class, the score by which foreign inputs are detected."""
    check_probabilities(probabilities)
    return probabilities.amax(-1)


def auroc(inside: Float[Tensor, "*runs n"], outside: Float[Tensor, "*runs m"]) -> Float[Tensor, "*runs"]:
    """Area under the ROC curve: probability that a foreign input has the lower confidence; a tie counts half.

    The same whichever class is called positive.
    """
    _check_scores(inside, outside)
    inside = inside.sort().values
    outside = outside.contiguous()
    n = inside.shape[-1]
    above = n - torch.searchsorted(inside, outside, right=True)
    not_below = n - torch.searchsorted(inside, outside)
    return ((above + not_below).to(torch.float64).mean(-1) / (2 * n)).to(inside.dtype)


def aupr(inside: Float[Tensor, "*runs n"], outside: Float[Tensor, "*runs m"]) -> Float[Tensor, "*runs"]:
    """Average precision with foreign inputs as the positive class (without interpolation, ties taken together).

    For each foreign input the share of foreign ones among all inputs at most as confident; the mean of these. Chance is
    m / (n + m): values compare only where the two sets keep their sizes.
    """
    _check_scores(inside, outside)
    outside = outside.sort().values
    true = torch.searchsorted(outside, outside, right=True)
    false = torch.searchsorted(inside.sort().values, outside, right=True)
    return (true.to(torch.float64) / (true + false)).mean(-1).to(inside.dtype)


def fpr95(inside: Float[Tensor, "*runs n"], outside: Float[Tensor, "*runs m"]) -> Float[Tensor, "*runs"]:
    """Share of the inputs like the training data that are called foreign when at least 95 % of the foreign ones are.

    Foreign inputs are the positive class here too; much of the literature on detection calls the others positive, which
    gives another number. The threshold is the lowest confidence at which 95 % are reached, ties included.
    """
    _check_scores(inside, outside)
    needed = math.ceil(0.95 * outside.shape[-1] - 1e-9)
    threshold = outside.sort().values[..., needed - 1, None]
    return (inside <= threshold).to(inside.dtype).mean(-1)


def _of_label(probabilities: Tensor, labels: Tensor) -> Tensor:
    chosen = labels.to(probabilities.device, torch.int64).expand(probabilities.shape[:-1])
    return probabilities.gather(-1, chosen[..., None]).squeeze(-1)


def _gaps(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Confidence of each example's most probable class, and (1 where it is the label, else 0) minus it."""
    check_probabilities(probabilities, labels)
    confidences, classes = probabilities.max(-1)
    return confidences, (classes == labels.to(classes.device)).to(confidences.dtype) - confidences


def check_probabilities(probabilities: Tensor, labels: Tensor | None = None) -> None:
    if not probabilities.numel():
        raise ValueError(f"there are no examples: probabilities of shape {tuple(probabilities.shape)}.")
    total = probabilities.sum(-1)
    summing = (total - 1).abs() <= TOLERANCE  # false for what is no number
    wrong = ~summing | (probabilities < 0).any(-1)
    if wrong.any():
        first = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"{int(wrong.sum())} of {wrong.numel()} rows are no probabilities: the first, at {first}, sums to "
            f"{total[tuple(first)].item():.4g} with least entry {probabilities[tuple(first)].min().item():.4g}. "
            "Take the softmax of logits, and drop diverged members."
        )
    if labels is not None:
        least, greatest, classes = int(labels.min()), int(labels.max()), probabilities.shape[-1]
        if least < 0 or greatest >= classes:
            raise ValueError(
                f"labels run from {least} to {greatest}, but the probabilities have {classes} classes, 0 to {classes - 1}."
            )


def _check_scores(inside: Tensor, outside: Tensor) -> None:
    for name, scores in (("inputs like the training data", inside), ("foreign inputs", outside)):
        if not scores.shape[-1]:
            raise ValueError(f"the set of {name} is empty: detection compares two sets, so give it some.")
        if not torch.isfinite(scores).all():
            raise ValueError(f"the confidences of the {name} are not all finite: drop diverged members.")
