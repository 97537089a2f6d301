r"""Laws of a layer's weights, each with its forward and backward pass by hand, for R layers at once.

A layer's input ``a`` (R, N, r) already holds the bias: $a = [x, 1] / \sqrt{r}$, so that W is r x c with r inputs, the bias
included. What a law knows: which parameters it has and where they start, the pre-activations $B = aW$ of a batch under the
local reparametrisation (Kingma, Salimans & Welling 2015, eq. 6), their derivatives, a draw of W itself, its mean, and the two numbers from
which the divergence from a Gaussian prior follows,

$$ \mathrm{KL} = \tfrac12 \big( \rho\, E\|W\|^2 - \ln\det\Sigma - rc - rc \ln \rho \big), \qquad \rho = \text{the prior's precision}. $$

Standard deviations are kept as logarithms. Noise is passed in: every number standard normal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lib import randomness

Parameters = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]
BIAS_LOG_SD = -4.0  # of the bias row at the start (the authors' code)
SPREAD = 0.01  # of log standard deviations about their start (the authors' code)


@runtime_checkable
class Law(Protocol):
    """What the stacked training and the layers ask of a law. r: inputs with the bias; c: outputs."""

    def shapes(self, r: int, c: int) -> Shapes: ...

    def noise_shapes(self, batch: int, r: int, c: int) -> Shapes: ...

    def weight_noise_shapes(self, r: int, c: int) -> Shapes: ...

    def start(self, r: int, c: int, members: Tensor, seed: int, purpose: str) -> Parameters: ...

    def forward(self, p: Parameters, a: Tensor, noise: Parameters) -> tuple[Tensor, tuple]: ...

    def backward(
        self, p: Parameters, tape: tuple, g: Tensor, inputs: bool
    ) -> tuple[Parameters, Tensor | None]: ...

    def weights(self, p: Parameters, noise: Parameters) -> Tensor: ...

    def mean_weights(self, p: Parameters) -> Tensor: ...

    def squares(self, p: Parameters) -> Tensor: ...

    def log_det(self, p: Parameters) -> Tensor: ...

    def add_pull(self, p: Parameters, factor: Tensor, gradients: Parameters) -> Tensor: ...

    def log_det_slope(self, r: int, c: int) -> dict[str, float]: ...


def sd(p: Parameters, name: str) -> Tensor:
    """exp of a logarithm, or what the caller has put into ``p`` as its exponential already."""
    known = p.get(name + ".sd")
    return p[name].exp() if known is None else known


def variance(p: Parameters, name: str) -> Tensor:
    """The square of ``sd``, likewise."""
    known = p.get(name + ".variance")
    return torch.exp(2 * p[name]) if known is None else known


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b; for stacks of matrices without the detours of broadcasting, which cost small ones more than the product."""
    return torch.bmm(a, b) if a.dim() == 3 == b.dim() and a.size(0) == b.size(0) else a @ b


def pull(law: Law, p: Parameters, precision: Tensor | float) -> Parameters:
    """The gradient of ½ (precision · E‖W‖² - ln det Σ) in every parameter that it depends on."""
    r, c = p["mean"].shape[-2:]
    slopes = law.log_det_slope(r, c)
    found = {name: torch.full_like(p[name], -0.5 * slopes.get(name, 0.0)) for name in ("mean", *slopes)}
    law.add_pull(p, torch.as_tensor(precision, dtype=p["mean"].dtype, device=p["mean"].device), found)
    return found


def start_mean(
    r: int, c: int, members: Int64[Tensor, " R"], seed: int, purpose: str
) -> Float[Tensor, "R r c"]:
    """Means at the start: standard deviation sqrt(4 / (inputs + outputs)) without the bias, whose row is 0."""
    mean = randomness.normal(seed, members, f"{purpose}/mean", 0, (r, c))
    mean *= math.sqrt(4 / (r - 1 + c))
    mean[:, -1] = 0
    return mean


def start_log_sd(
    size: tuple[int, ...], members: Int64[Tensor, " R"], seed: int, purpose: str, centre: float = 0.0
) -> Float[Tensor, "R ..."]:
    """Logarithms of standard deviations at the start, close to ``centre``."""
    return randomness.normal(seed, members, purpose, 0, size) * SPREAD + centre


@dataclass(frozen=True)
class Point:
    """One weight matrix, no distribution; ``drop``: the chance that an input (never the bias) is switched off."""

    drop: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.drop < 1:
            raise ValueError(f"drop = {self.drop}: the chance to drop an input must lie in [0, 1).")

    def shapes(self, r: int, c: int) -> Shapes:
        return {"mean": (r, c)}

    def noise_shapes(self, batch: int, r: int, c: int) -> Shapes:
        return {"mask": (batch, r - 1)} if self.drop else {}

    def weight_noise_shapes(self, r: int, c: int) -> Shapes:
        return {"mask": (r - 1,)} if self.drop else {}

    def start(self, r: int, c: int, members: Tensor, seed: int, purpose: str) -> Parameters:
        return {"mean": start_mean(r, c, members, seed, purpose)}

    def mask(self, noise: Tensor) -> Tensor:
        """0 with probability ``drop``, else 1 / (1 - drop), from standard normal numbers; the bias is never dropped."""
        kept = (
            noise > math.sqrt(2) * torch.erfinv(torch.tensor(2 * self.drop - 1, dtype=torch.float64)).item()
        )
        return torch.nn.functional.pad(kept.to(noise.dtype) / (1 - self.drop), (0, 1), value=1.0)

    def forward(self, p: Parameters, a: Tensor, noise: Parameters) -> tuple[Tensor, tuple]:
        mask = self.mask(noise["mask"]) if self.drop else None
        a = a if mask is None else a * mask
        return product(a, p["mean"]), (a, mask)

    def backward(
        self, p: Parameters, tape: tuple, g: Tensor, inputs: bool
    ) -> tuple[Parameters, Tensor | None]:
        a, mask = tape
        below = product(g, p["mean"].mT) if inputs else None
        if below is not None and mask is not None:
            below *= mask
        return {"mean": product(a.mT, g)}, below

    def weights(self, p: Parameters, noise: Parameters) -> Tensor:
        return self.mask(noise["mask"])[..., None] * p["mean"] if self.drop else p["mean"]

    def mean_weights(self, p: Parameters) -> Tensor:
        return p["mean"]

    def squares(self, p: Parameters) -> Tensor:
        return p["mean"].square().sum((-1, -2))

    def log_det(self, p: Parameters) -> Tensor:
        """A point has no volume: the term is left out, and what is minimised is minus the log posterior."""
        return torch.zeros_like(p["mean"][..., 0, 0])

    def add_pull(self, p: Parameters, factor: Tensor, gradients: Parameters) -> Tensor:
        return _pull_mean(p, factor, gradients)

    def log_det_slope(self, r: int, c: int) -> dict[str, float]:
        return {}


@dataclass(frozen=True)
class Factorised:
    """Every weight its own Gaussian; ``log_sd``: where their standard deviations start (0: at the prior's)."""

    log_sd: float = 0.0

    def shapes(self, r: int, c: int) -> Shapes:
        return {"mean": (r, c), "log_sd": (r, c)}

    def noise_shapes(self, batch: int, r: int, c: int) -> Shapes:
        return {"output": (batch, c)}

    def weight_noise_shapes(self, r: int, c: int) -> Shapes:
        return {"weight": (r, c)}

    def start(self, r: int, c: int, members: Tensor, seed: int, purpose: str) -> Parameters:
        log_sd = start_log_sd((r, c), members, seed, f"{purpose}/log_sd", self.log_sd)
        log_sd[:, -1] = BIAS_LOG_SD
        return {"mean": start_mean(r, c, members, seed, purpose), "log_sd": log_sd}

    def forward(self, p: Parameters, a: Tensor, noise: Parameters) -> tuple[Tensor, tuple]:
        spread, squared = variance(p, "log_sd"), a.square()
        deviation = product(squared, spread).clamp_min_(torch.finfo(a.dtype).tiny).sqrt_()
        out = torch.addcmul(product(a, p["mean"]), deviation, noise["output"])
        return out, (a, squared, spread, noise["output"] / deviation)

    def backward(
        self, p: Parameters, tape: tuple, g: Tensor, inputs: bool
    ) -> tuple[Parameters, Tensor | None]:
        a, squared, spread, ratio = tape
        d = g * ratio  # twice the gradient of the variance
        found = {"mean": product(a.mT, g), "log_sd": product(squared.mT, d).mul_(spread)}
        below = product(g, p["mean"].mT).addcmul_(a, product(d, spread.mT)) if inputs else None
        return found, below

    def weights(self, p: Parameters, noise: Parameters) -> Tensor:
        return torch.addcmul(p["mean"], sd(p, "log_sd"), noise["weight"])

    def mean_weights(self, p: Parameters) -> Tensor:
        return p["mean"]

    def squares(self, p: Parameters) -> Tensor:
        return (p["mean"].square() + variance(p, "log_sd")).sum((-1, -2))

    def log_det(self, p: Parameters) -> Tensor:
        return 2 * p["log_sd"].sum((-1, -2))

    def add_pull(self, p: Parameters, factor: Tensor, gradients: Parameters) -> Tensor:
        spread = variance(p, "log_sd")
        gradients["log_sd"].addcmul_(spread, factor[..., None, None])
        return _pull_mean(p, factor, gradients).add_(spread.sum((-1, -2)))

    def log_det_slope(self, r: int, c: int) -> dict[str, float]:
        return {"log_sd": 2.0}


@dataclass(frozen=True)
class RowColumn:
    """A matrix Gaussian with diagonal covariances U = diag(s²) of rows and V = diag(t²) of columns: Var W_ij = s_i² t_j².

    No two weights are correlated; it is the factorised Gaussian whose standard deviations have rank one (the k-tied Normal
    with k = 1, Swiatkowski et al. 2020). (s, t) and (as, t/a) are the same law.
    """

    def shapes(self, r: int, c: int) -> Shapes:
        return {"mean": (r, c), "log_row": (r,), "log_column": (c,)}

    def noise_shapes(self, batch: int, r: int, c: int) -> Shapes:
        return {"output": (batch, c)}

    def weight_noise_shapes(self, r: int, c: int) -> Shapes:
        return {"weight": (r, c)}

    def start(self, r: int, c: int, members: Tensor, seed: int, purpose: str) -> Parameters:
        log_row = start_log_sd((r,), members, seed, f"{purpose}/log_row")
        log_row[:, -1] = BIAS_LOG_SD
        return {
            "mean": start_mean(r, c, members, seed, purpose),
            "log_row": log_row,
            "log_column": start_log_sd((c,), members, seed, f"{purpose}/log_column"),
        }

    def forward(self, p: Parameters, a: Tensor, noise: Parameters) -> tuple[Tensor, tuple]:
        u, t = variance(p, "log_row")[..., None], sd(p, "log_column")[..., None, :]
        squared = a.square()
        deviation = product(squared, u).clamp_min_(torch.finfo(a.dtype).tiny).sqrt_()  # (R, N, 1)
        scaled = noise["output"] * t
        return torch.addcmul(product(a, p["mean"]), deviation, scaled), (a, squared, u, deviation, scaled)

    def backward(
        self, p: Parameters, tape: tuple, g: Tensor, inputs: bool
    ) -> tuple[Parameters, Tensor | None]:
        a, squared, u, deviation, scaled = tape
        noisy = g * scaled
        d = noisy.sum(-1, keepdim=True).div_(
            deviation
        )  # twice the gradient of the variance's factor (R, N, 1)
        found = {
            "mean": product(a.mT, g),
            "log_row": product(squared.mT, d).mul_(u)[..., 0],
            "log_column": product(deviation.mT, noisy)[..., 0, :],
        }
        below = product(g, p["mean"].mT).addcmul_(a, d * u.mT) if inputs else None
        return found, below

    def weights(self, p: Parameters, noise: Parameters) -> Tensor:
        spread = sd(p, "log_row")[..., :, None] * sd(p, "log_column")[..., None, :]
        return torch.addcmul(p["mean"], spread, noise["weight"])

    def mean_weights(self, p: Parameters) -> Tensor:
        return p["mean"]

    def squares(self, p: Parameters) -> Tensor:
        rows, columns = (variance(p, name).sum(-1) for name in ("log_row", "log_column"))
        return p["mean"].square().sum((-1, -2)) + rows * columns

    def log_det(self, p: Parameters) -> Tensor:
        r, c = p["mean"].shape[-2:]
        return 2 * (c * p["log_row"].sum(-1) + r * p["log_column"].sum(-1))

    def add_pull(self, p: Parameters, factor: Tensor, gradients: Parameters) -> Tensor:
        u, v, factor = variance(p, "log_row"), variance(p, "log_column"), factor[..., None]
        rows, columns = u.sum(-1, keepdim=True), v.sum(-1, keepdim=True)
        gradients["log_row"].addcmul_(u, factor * columns)
        gradients["log_column"].addcmul_(v, factor * rows)
        return _pull_mean(p, factor[..., 0], gradients).add_((rows * columns)[..., 0])

    def log_det_slope(self, r: int, c: int) -> dict[str, float]:
        return {"log_row": 2.0 * c, "log_column": 2.0 * r}


def _pull_mean(p: Parameters, factor: Tensor, gradients: Parameters) -> Tensor:
    """Add factor · M to the means' gradient; returns ‖M‖²."""
    gradients["mean"].addcmul_(p["mean"], factor[..., None, None])
    return torch.linalg.vecdot(*[p["mean"].flatten(-2)] * 2)
