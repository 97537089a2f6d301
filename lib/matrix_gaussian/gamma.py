r"""Gamma distributions of precisions: what training by gradient needs of them, by formula.

Shape a and rate b, $E\tau = a/b$, $E \ln \tau = \psi(a) - \ln b$; both are kept as logarithms.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

PRECISION_OF_WEIGHTS = (1.0, 0.5)  # shape and rate of τ_r and τ_c (the authors' code)
PRECISION_OF_NOISE = (6.0, 6.0)  # of the likelihood's τ (the authors' code; Hernandez-Lobato & Adams 2015)


@dataclass(frozen=True)
class Gammas:
    """Independent Gamma laws: logarithms of shapes and of rates, (*R, G)."""

    log_shape: Float[Tensor, "*R G"]
    log_rate: Float[Tensor, "*R G"]

    @property
    def shape(self) -> Tensor:
        return self.log_shape.exp()

    @property
    def rate(self) -> Tensor:
        return self.log_rate.exp()

    @property
    def mean(self) -> Tensor:
        """E τ."""
        return (self.log_shape - self.log_rate).exp()

    @property
    def mean_log(self) -> Tensor:
        """E ln τ."""
        return torch.digamma(self.shape) - self.log_rate


def kl(q: Gammas, shape: Tensor, rate: Tensor) -> Float[Tensor, "*R G"]:
    r"""KL(q || Gamma(a0, b0)) of each: (a - a0)ψ(a) - lnΓ(a) + lnΓ(a0) + a0 ln(b/b0) + a (b0 - b)/b, in nats."""
    a = q.shape
    return (
        (a - shape) * torch.digamma(a)
        - torch.lgamma(a)
        + torch.lgamma(shape)
        + shape * (q.log_rate - rate.log())
        + q.mean * rate
        - a
    )


def slope(
    q: Gammas, mean: Tensor, of_mean: Tensor, of_mean_log: Tensor, weight: Tensor, shape: Tensor, rate: Tensor
) -> Float[Tensor, "*R twoG"]:
    """The gradient in (log shapes, log rates) of weight · KL and a loss whose gradients in E τ and E ln τ are given.

    ``mean``: E τ, which the caller has.
    """
    a = q.shape
    pulled = torch.addcmul(of_mean, weight, rate).mul_(mean)
    of_log = torch.addcmul(of_mean_log, weight, a - shape).mul_(torch.special.polygamma(1, a)).sub_(weight)
    of_rate = torch.addcmul(-of_mean_log, weight, shape).sub_(pulled)
    return torch.cat([of_log.mul_(a).add_(pulled), of_rate], dim=-1)
