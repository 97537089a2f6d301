r"""The output layer integrated out: for fixed features a network is a linear model, whose evidence is known.

With features $\phi$ (the last hidden layer and a constant), output weights $v \sim N(0, I)$ and energy
$E = \tfrac12 \sum_i q_i \|y_i - v^\top \phi_i\|^2$, the moments $A = \sum q\, \phi\phi^\top$, $r = \sum q\, \phi y^\top$ and
$s = \sum q \|y\|^2$ say all, and at temperature $t$

$$ \begin{aligned}
   \log \int N(v; 0, I)\, e^{-tE} dv &= \sum_o \tfrac12 \bigl[ t^2 r_o^\top M^{-1} r_o - \log|M| \bigr] - \tfrac12 t s, \\
   M &= I + tA .
   \end{aligned} $$

(Bayesian linear regression; Bishop 2006, section 3.5.) Everything is batched over trailing axes, one entry a network: the
matrices are tiny, and their elements lie far apart so that each operation runs along the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Second moments of k features and o targets: gram (k, k, *batch), cross (k, o, *batch), power (*batch or less)."""

    gram: Float[Tensor, "k k *batch"]
    cross: Float[Tensor, "k o *batch"]
    power: Float[Tensor, ...]


@dataclass(frozen=True)
class Posterior:
    """The output weights given the features: mean (k, o, *batch), the inverse of the lower Cholesky factor of the
    precision M (k, k, *batch), and its log determinant (*batch)."""

    mean: Float[Tensor, "k o *batch"]
    whitener: Float[Tensor, "k k *batch"]
    log_determinant: Float[Tensor, "*batch"]

    @property
    def covariance(self) -> Float[Tensor, "k k *batch"]:
        """The inverse of M."""
        total = torch.zeros_like(self.whitener)
        for row in range(len(total)):  # row j of the whitener ends at column j
            block = self.whitener[row, : row + 1]
            total[: row + 1, : row + 1] += block[:, None] * block[None, :]
        return total


def cholesky(matrix: Float[Tensor, "k k *batch"]) -> Float[Tensor, "k k *batch"]:
    """The lower Cholesky factor, column by column; not a number where a matrix is not positive definite."""
    factor = torch.zeros_like(matrix)
    for j in range(len(matrix)):
        column = matrix[j:, j]
        if j:
            column = column - (factor[j:, :j] * factor[j, :j]).sum(1)
        factor[j:, j] = column * column[:1].rsqrt()
    return factor


def _precision(moments: Moments, t: Tensor) -> Tensor:
    matrix = t * moments.gram
    matrix.diagonal(dim1=0, dim2=1).add_(1.0)
    return matrix


def _forward(factor: Tensor, right: Tensor) -> Tensor:
    """L^-1 right, row by row."""
    solved = torch.empty_like(right)
    for j in range(len(factor)):
        row = right[j]
        if j:
            row = row - (factor[j, :j, None] * solved[:j]).sum(0)
        solved[j] = row / factor[j, j]
    return solved


def log_evidence(moments: Moments, t: Float[Tensor, ...]) -> Float[Tensor, "*batch"]:
    """The formula above, without the truth's own energy; ``t`` broadcasts against the batch."""
    factor = cholesky(_precision(moments, t))
    solved = _forward(factor, moments.cross)
    outputs = moments.cross.shape[1]
    log_determinant = factor.diagonal(dim1=0, dim2=1).log().sum(-1)
    return 0.5 * t * t * solved.square().sum((0, 1)) - outputs * log_determinant - 0.5 * t * moments.power


def posterior(moments: Moments, t: Float[Tensor, ...]) -> Posterior:
    """Mean and precision of the output weights at temperature ``t``."""
    factor = cholesky(_precision(moments, t))
    whitener = torch.zeros_like(factor)
    for j in range(len(factor)):
        whitener[j, j] = 1 / factor[j, j]
        if j:
            whitener[j, :j] = -(factor[j, :j, None] * whitener[:j, :j]).sum(0) * whitener[j, j]
    solved = t * (whitener[:, :, None] * moments.cross[None]).sum(1)
    mean = (whitener[:, :, None] * solved[:, None]).sum(0)
    return Posterior(mean, whitener, 2 * factor.diagonal(dim1=0, dim2=1).log().sum(-1))


def value(moments: Moments, t: Tensor, known: Posterior) -> Float[Tensor, "*batch"]:
    """`log_evidence`, where the posterior is already at hand."""
    outputs = moments.cross.shape[1]
    fit = t * (known.mean * moments.cross).sum((0, 1))
    return 0.5 * (fit - outputs * known.log_determinant - t * moments.power)


def energy(moments: Moments, known: Posterior) -> Float[Tensor, "*batch"]:
    """The mean energy E under the posterior of the output weights, which is minus the evidence's slope in the temperature."""
    outputs = moments.cross.shape[1]
    misfit = (known.mean * ((moments.gram[:, :, None] * known.mean[None]).sum(1) - 2 * moments.cross)).sum(
        (0, 1)
    )
    spread = (known.covariance * moments.gram).sum((0, 1))
    return 0.5 * (moments.power + misfit + outputs * spread)


def energy_variance(moments: Moments, known: Posterior) -> Float[Tensor, "*batch"]:
    """The variance of E under the posterior of the output weights: ½ tr((A M^-1)²) an output, and the mean's own share."""
    outputs = moments.cross.shape[1]
    product = (moments.gram[:, :, None] * known.covariance[None]).sum(1)
    pull = (moments.gram[:, :, None] * known.mean[None]).sum(1) - moments.cross
    whitened = (known.whitener[:, :, None] * pull[None]).sum(1)
    return 0.5 * outputs * (product * product.transpose(0, 1)).sum((0, 1)) + whitened.square().sum((0, 1))


def slopes(moments: Moments, t: Tensor, known: Posterior) -> tuple[Tensor, Tensor]:
    """Derivatives of the log evidence in the gram (symmetric, as if its entries were free) and in the cross moments."""
    outputs = moments.cross.shape[1]
    square = (known.mean[:, None] * known.mean[None]).sum(2)
    return -0.5 * t * (outputs * known.covariance + square), t * known.mean
