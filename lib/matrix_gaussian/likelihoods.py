r"""What a network's outputs say about targets: a Gaussian whose precision is itself uncertain, or classes.

Regression (Louizos & Welling 2016, read in the authors' code): $y \sim N(f, 1/\tau)$ with $\tau \sim \mathrm{Gamma}(6, 6)$ for each
output and q(τ) a Gamma too, so that

$$ E \ln p(y \mid f) = \tfrac12 E \ln \tau - \tfrac12 \ln 2\pi - \tfrac12 E\tau\, (y - f)^2 . $$

The prior speaks of precisions in some unit. The authors' is the target's own unit (``prior_scale="raw"``), so that the likelihood
depends on whether lengths are in metres or millimetres; Hernandez-Lobato and Adams' is the training targets' standard
deviation (``"standardised"``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from lib.matrix_gaussian.gamma import PRECISION_OF_NOISE
from lib.population.losses import derivative, per_example

SCALES = ("raw", "standardised")


@dataclass(frozen=True)
class Gaussian:
    """A normal target with a Gamma precision for each output.

    Attributes:
        prior: shape and rate.
        prior_scale: the unit in which the prior speaks, "raw" or "standardised".
    """

    prior: tuple[float, float] = PRECISION_OF_NOISE
    prior_scale: str = "raw"

    def __post_init__(self) -> None:
        if self.prior_scale not in SCALES:
            raise ValueError(f"prior_scale = {self.prior_scale!r}: choose one of {', '.join(SCALES)}.")
        if not min(self.prior) > 0:
            raise ValueError(f"a Gamma prior with shape and rate {self.prior}: both must be positive.")

    def precisions(self, outputs: int) -> int:
        """How many Gamma precisions it learns."""
        return outputs

    def slope(
        self,
        outputs: Float[Tensor, "R B k"],
        targets: Float[Tensor, "R B k"],
        mean: Float[Tensor, "R k"],
        mean_log: Float[Tensor, "R k"],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Each run's mean loss, and its gradients in the outputs, in E τ and in E ln τ."""
        miss = outputs - targets
        half = 0.5 * miss.square().mean(-2)  # (R, k)
        value = (mean * half - 0.5 * mean_log).sum(-1) + 0.5 * math.log(2 * math.pi) * outputs.shape[-1]
        of_outputs = miss.mul_(mean[..., None, :] / outputs.shape[-2])
        return value, of_outputs, half, torch.full_like(half, -0.5)


@dataclass(frozen=True)
class Categorical:
    """Classes, by the softmax of the outputs."""

    def precisions(self, outputs: int) -> int:
        return 0

    def slope(
        self, outputs: Float[Tensor, "R B k"], targets: Shaped[Tensor, "R B"], mean: Tensor, mean_log: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Each run's mean loss and its gradient in the outputs; there is no precision."""
        value = per_example("cross_entropy", outputs, targets).mean(-1)
        of_outputs = derivative("cross_entropy", outputs, targets, out=torch.empty_like(outputs))
        return value, of_outputs.div_(outputs.shape[-2]), mean, mean_log


Likelihood = Gaussian | Categorical


def average(probabilities: Float[Tensor, "*R S N k"]) -> Float[Tensor, "*R N k"]:
    """The mean of the sampled networks' probabilities: the predictive distribution."""
    return probabilities.mean(-3)


def votes(probabilities: Float[Tensor, "*R S N k"]) -> Float[Tensor, "*R N k"]:
    """The share of sampled networks that name each class, as the authors' code predicts: no distribution of the label."""
    k = probabilities.shape[-1]
    return torch.nn.functional.one_hot(probabilities.argmax(-1), k).to(probabilities.dtype).mean(-3)
