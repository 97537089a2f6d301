r"""What a regression's predictive mixtures are worth: error, likelihood, spread and calibration.

S networks are drawn from a posterior; their outputs ``f`` (*runs, S, N, k) are the centres of a mixture with equal weights. The
noise of each output has a precision τ with the posterior Gamma(a, b), ``shape`` a and ``rate`` b (*runs, k), in the targets'
units. Targets ``y`` are (N, k), or (*runs, N, k) where every run has its own. Everything returns the leading axes.

Two of the densities here differ: ``log_likelihood`` puts τ's expectations into the Gaussian, as the authors' code does
(Louizos & Welling 2016); ``student_log_likelihood`` integrates τ out. ``pit`` and ``coverage`` use Gaussians of precision a/b.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

LEVELS = tuple(i / 10 for i in range(1, 10))  # nominal coverages of the calibration error


def rmse(f: Float[Tensor, "*runs S N k"], y: Float[Tensor, "*own N k"]) -> Float[Tensor, "*runs"]:
    """sqrt(mean (mean_s f_s - y)²), over examples and outputs: of the mean of the samples."""
    _check(f, y)
    return (f.mean(-3) - y).square().mean((-1, -2)).sqrt()


def log_likelihood(
    f: Float[Tensor, "*runs S N k"],
    y: Float[Tensor, "*own N k"],
    shape: Float[Tensor, "*runs k"],
    rate: Float[Tensor, "*runs k"],
) -> Float[Tensor, "*runs"]:
    """mean_n ln mean_s exp Σ_k E_τ ln N(y; f_s, 1/τ), in nats: with E τ = a/b in the square and E ln τ in the constant.

    The authors' form. By Jensen's inequality it lies below ``student_log_likelihood``: by about 1 / 4a an
    output where targets scatter as τ says.
    """
    _check(f, y, shape, rate)
    constant = 0.5 * (shape.double().digamma() - rate.double().log() - math.log(2 * math.pi)).sum(-1)
    squares = (y[..., None, :, :] - f).square().mul_((shape / rate)[..., None, None, :])
    return _mixed(squares.sum(-1).mul_(-0.5), constant)


def student_log_likelihood(
    f: Float[Tensor, "*runs S N k"],
    y: Float[Tensor, "*own N k"],
    shape: Float[Tensor, "*runs k"],
    rate: Float[Tensor, "*runs k"],
) -> Float[Tensor, "*runs"]:
    """mean_n ln mean_s Π_k t(y; f_s), in nats: Student's t with 2a degrees of freedom, centre f_s and scale sqrt(b/a).

    That is ∫ N(y; f_s, 1/τ) Gamma(τ; a, b) dτ, exact for one example; the noise of different examples shares no τ here.
    """
    _check(f, y, shape, rate)
    a, b = shape.double(), rate.double()  # float32 would lose all digits of the difference at a ~ 10⁴
    constant = (torch.lgamma(a + 0.5) - torch.lgamma(a) - 0.5 * (2 * math.pi * b).log()).sum(-1)
    squares = (y[..., None, :, :] - f).square().div_(2 * rate[..., None, None, :])
    return _mixed(squares.log1p_().mul_(-(shape + 0.5)[..., None, None, :]).sum(-1), constant)


def predictive_sd(
    f: Float[Tensor, "*runs S N k"], shape: Float[Tensor, "*runs k"], rate: Float[Tensor, "*runs k"]
) -> Float[Tensor, "*runs N k"]:
    """sqrt(Var_s f_s + b/a): the standard deviation of the mixture of Gaussians of precision E τ = a/b, as in ``pit``.

    The variance over samples divides by S, as a mixture's does. E[1/τ] = b / (a - 1) would be infinite for a <= 1, where networks
    that interpolate their data end.
    """
    _check(f, None, shape, rate)
    return (f.var(-3, correction=0) + (rate / shape)[..., None, :]).sqrt()


def pit(
    f: Float[Tensor, "*runs S N k"],
    y: Float[Tensor, "*own N k"],
    shape: Float[Tensor, "*runs k"],
    rate: Float[Tensor, "*runs k"],
) -> Float[Tensor, "*runs N k"]:
    """mean_s Φ((y - f_s) sqrt(a/b)): each target's place in its predictive mixture's distribution function.

    Uniform on [0, 1] where the predictive distributions are the true ones (Dawid 1984).
    """
    _check(f, y, shape, rate)
    return torch.special.ndtr((y[..., None, :, :] - f) * (shape / rate).sqrt()[..., None, None, :]).mean(-3)


def coverage(
    f: Float[Tensor, "*runs S N k"],
    y: Float[Tensor, "*own N k"],
    shape: Float[Tensor, "*runs k"],
    rate: Float[Tensor, "*runs k"],
    level: float | int,
) -> Float[Tensor, "*runs"]:
    """Share of the targets inside the central interval of probability ``level``: of those with |2 pit - 1| <= level."""
    return _covered(pit(f, y, shape, rate), level)


def calibration_error(
    pit: Float[Tensor, "*runs N k"], levels: Sequence[float | int] = LEVELS
) -> Float[Tensor, "*runs"]:
    """mean over levels of |coverage(level) - level|, from the targets' places in their predictive distributions.

    With N independent targets of a calibrated model it is about 1 / 3 sqrt(N), not 0.
    """
    if not len(levels):
        raise ValueError(
            "no levels: a calibration error is a mean over nominal coverages, so give it one at least."
        )
    return torch.stack([(_covered(pit, level) - level).abs() for level in levels]).mean(0)


def _covered(pit: Tensor, level: float | int) -> Tensor:
    if not 0 < level < 1:
        raise ValueError(f"level = {level}: the nominal coverage of an interval must lie between 0 and 1.")
    if not pit.shape[-2:].numel():
        raise ValueError(f"there are no examples: places of shape {tuple(pit.shape)}.")
    if not torch.isfinite(pit).all():
        raise ValueError("places in a predictive distribution are no numbers: drop the runs that diverged.")
    return ((2 * pit - 1).abs() <= level).to(pit.dtype).mean((-1, -2))


def _mixed(logs: Float[Tensor, "*runs S N"], constant: Float[Tensor, "*runs"]) -> Tensor:
    """mean_n ln mean_s exp(logs) + constant, in the precision of ``logs``."""
    mean = (logs.logsumexp(-2) - math.log(logs.shape[-2])).mean(-1)
    return mean + constant.to(mean.dtype)


def _check(f: Tensor, y: Tensor | None, shape: Tensor | None = None, rate: Tensor | None = None) -> None:
    if not f.shape[-3:].numel():
        raise ValueError(f"there is nothing to measure: sampled outputs of shape {tuple(f.shape)}.")
    if y is not None and y.shape[:-2] not in ((), f.shape[:-3]):
        raise ValueError(
            f"targets of shape {tuple(y.shape)} for sampled outputs {tuple(f.shape)}: give (N, k), the same for all runs, "
            "or the runs' leading axes too."
        )
    for name, values in (("sampled outputs", f), ("targets", y)):
        if values is not None and not torch.isfinite(values).all():
            wrong = int((~torch.isfinite(values)).sum())
            raise ValueError(
                f"{wrong} of {values.numel()} {name} are not finite: drop the runs that diverged."
            )
    for name, values in (("shape", shape), ("rate", rate)):
        if values is not None and not ((values > 0) & torch.isfinite(values)).all():
            raise ValueError(
                f"the noise precision's Gamma has a {name} that is no positive number: give it in the targets' units, and "
                "drop the runs that diverged."
            )
