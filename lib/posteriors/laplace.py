r"""The Laplace approximation: a Gaussian whose precision is the curvature at a trained network (MacKay 1992).

$$ \theta \sim N\big(\theta_{MAP},\; H^{-1}\big), \qquad H = G + \tau I $$

with G the generalised Gauss-Newton matrix of n (mean loss) and τ the precision of the prior. The recipe means τ = n wd;
tuning takes for each run the τ of largest evidence, as Daxberger et al. (2021, *Laplace Redux*) do after training,

$$ \log Z(\tau) = -n\, \text{loss}(\theta_{MAP}) - \tfrac{\tau}{2} \|\theta_{MAP}\|^2
   + \tfrac{D}{2} \log \tau - \tfrac12 \log\det(G + \tau I). $$

A draw is a set of weights, as in the paper, and the network is run with them: the linearised prediction, which suits
this Gaussian better, is a function and no network, and so has no symmetries to remove. With structure "last_layer" the
other layers stay at the MAP, and only the last one's parameters count as D.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from lib import randomness
from lib.params import Params
from lib.population import Recipe, evaluate
from lib.population.initialise import member_ids
from lib.posteriors import curvature
from lib.posteriors.draws import Draws
from lib.posteriors.target import prior_precision, refuse_lost, trained, unravel

STRUCTURES = ("auto", "full", "diagonal", "last_layer")
LARGEST = 2_000  # parameters whose full Hessian is factorised
STEPS = [i / 50 - 1 for i in range(101)]  # from the decade below to the decade above
DECADES = 6  # how far from n wd the prior precision of largest evidence is looked for


@dataclass(frozen=True)
class Laplace:
    """Which part of the curvature is kept, and the prior's precision in units of the recipe's n wd."""

    structure: str = (
        "auto"  # full up to 2,000 parameters, else the last layer up to as many, else the diagonal
    )
    precision: float | int | None = None  # None: that of largest evidence, each run its own

    def __post_init__(self) -> None:
        if self.structure not in STRUCTURES:
            raise ValueError(f"structure {self.structure!r} is not known: use {', '.join(STRUCTURES)}.")
        if self.precision is not None and not self.precision > 0:
            raise ValueError(f"a prior precision of {self.precision} times n wd: it must be above 0.")


CANDIDATES = (Laplace(),)  # the one option is tuned by each run's own evidence, not by validation data


@dataclass(frozen=True)
class Fit:
    """R Gaussians: means (R, D), and for the parameters from ``begin`` on the Cholesky factors of the precisions
    (R, d, d), or its diagonal's square roots (R, d); the prior precisions (R,) and log evidences (R,)."""

    net: nn.Module
    members: Int64[Tensor, " R"]
    mean: Float[Tensor, "R D"]
    begin: int
    factor: Float[Tensor, "R ..."]
    precision: Float[Tensor, " R"]
    evidence: Float[Tensor, " R"]
    record: dict[str, float | str]


def fit(
    net: nn.Module,
    inputs: Shaped[Tensor, "n ..."],
    targets: Shaped[Tensor, "n ..."],
    recipe: Recipe,
    options: Laplace | None = None,
    *,
    members: int | range | Tensor,
    seed: int,
    device: str | torch.device = "cpu",
    start: Params | None = None,
) -> Fit:
    """The curvature at the trained networks ``start`` (R, ...), the prior precision, and the factors for drawing.

    ``seed`` decides nothing here. Raises ValueError without ``start``, for a full Hessian that is too large and for one
    that is not positive definite.
    """
    options, members = options or Laplace(), member_ids(members).to(device)
    mean = trained(net, start, len(members), "Laplace").to(device)
    inputs, targets = inputs.to(device), targets.to(device)
    structure, begin = _choose(net, options.structure)
    loss = len(inputs) * evaluate(net, unravel(mean, net), inputs, targets, recipe.loss)["loss"]
    free = mean[:, begin:]
    energy = _Energy(loss, free.square().sum(1), free.shape[1])
    unit = prior_precision(recipe, len(inputs))
    fixed = loss.new_full(loss.shape, unit * (options.precision or 0))  # 0: to be tuned
    if structure == "diagonal":
        g = curvature.diagonal(net, mean, inputs, recipe.loss)
        precision = fixed
        if options.precision is None:
            precision = _best(lambda tau: (g + tau[:, None]).log().sum(1), energy, unit, fixed)
        factor = (g + precision[:, None]).sqrt()
        logdet = 2 * factor.log().sum(1)
    else:
        precision, logdet, factor = _factorise(net, mean, inputs, recipe.loss, begin, energy, unit, fixed)
    refuse_lost(logdet, "the curvatures", "train the networks for longer, or drop these")
    evidence = energy(precision, logdet)
    record = {
        "structure": structure,
        "parameters": free.shape[1],
        "prior precision over n wd (median)": float(precision.median() / unit),
        "log evidence (mean)": float(evidence.mean()),
    }
    return Fit(net, members, mean, begin, factor, precision, evidence, record)


def draw(fit: Fit, draws: int, *, seed: int) -> Draws:
    """``draws`` parameter samples of each run: θ_MAP + L⁻ᵀ z, with L Lᵀ the precision."""
    runs, size = len(fit.mean), fit.mean.shape[1] - fit.begin
    z = randomness.normal(seed, fit.members, "laplace", 0, (draws, size), fit.mean.dtype)
    if fit.factor.ndim == 2:
        z = z / fit.factor[:, None]
    else:
        z = torch.linalg.solve_triangular(fit.factor.mT, z.mT, upper=True).mT
    positions = fit.mean[:, None].repeat(1, draws, 1)
    positions[..., fit.begin :] += z
    return Draws(unravel(positions.flatten(0, 1), fit.net), runs, draws)


@dataclass(frozen=True)
class _Energy:
    """The log evidence of R runs as a function of τ and log det(G + τ I)."""

    loss: Tensor
    norm: Tensor
    size: int

    def __call__(self, tau: Tensor, logdet: Tensor) -> Tensor:
        return -self.loss - 0.5 * tau * self.norm + 0.5 * self.size * tau.log() - 0.5 * logdet

    def of(self, run: slice) -> _Energy:
        return _Energy(self.loss[run], self.norm[run], self.size)


def _choose(net: nn.Module, structure: str) -> tuple[str, int]:
    """The structure that "auto" means for this network, and the first parameter that it covers."""
    size, last = sum(p.numel() for p in net.parameters()), curvature.last_layer(net)
    if structure == "auto":
        structure = "full" if size <= LARGEST else "last_layer" if size - last <= LARGEST else "diagonal"
    begin = last if structure == "last_layer" else 0
    if structure != "diagonal" and size - begin > LARGEST:
        raise ValueError(
            f"a Hessian of {size - begin} parameters is not factorised here (at most {LARGEST}): "
            "choose structure='diagonal' or 'last_layer'."
        )
    return structure, begin


def _factorise(
    net: nn.Module,
    mean: Tensor,
    inputs: Tensor,
    loss: str,
    begin: int,
    energy: _Energy,
    unit: float,
    fixed: Tensor,
) -> tuple[Tensor, ...]:
    """Precision, log determinant and Cholesky factor of every run, a few runs at a time: one factor each is kept."""
    size = mean.shape[1] - begin
    precision, logdet, factor = fixed.clone(), torch.empty_like(fixed), mean.new_empty(len(mean), size, size)
    block = max(1, curvature.NUMBERS // size**2)
    for first in range(0, len(mean), block):
        part = slice(first, first + block)
        g, here, tau = (
            curvature.full(net, mean[part], inputs, loss, begin=begin),
            energy.of(part),
            fixed[part],
        )
        if not bool(tau[0]):
            tau = _best(lambda tau, g=g: _logdet(_cholesky(g, tau)), here, unit, tau)
        factor[part] = _cholesky(g, tau)
        precision[part], logdet[part] = tau, _logdet(factor[part])
    return precision, logdet, factor


def _best(
    logdet: Callable[[Tensor], Tensor], energy: _Energy, unit: float, like: Tensor
) -> Float[Tensor, " R"]:
    """Of each run the τ of largest evidence: over decades round ``unit``, then between the best one's neighbours.

    The decades grow as long as the best one of any run is the first or the last. Between decades only log det is
    interpolated (by the parabola in log τ through three of them); the rest of the evidence is known.
    """

    def at(decade: float | int) -> Tensor:
        return torch.full_like(like, unit * 10.0**decade)

    found = {d: logdet(at(d)) for d in (0, 1, 2)}
    while True:
        low, high = min(found), max(found)
        values = torch.stack([energy(at(d), found[d]) for d in range(low, high + 1)], dim=1)
        refuse_lost(values, "the log evidences", "train the networks for longer, or drop these")
        top = values.argmax(1)
        beyond = [low - 1] * bool((top == 0).any()) + [high + 1] * bool((top == high - low).any())
        if not beyond or max(map(abs, beyond)) > DECADES:
            break
        found |= {d: logdet(at(d)) for d in beyond}
    middle = top.clamp(1, high - low - 1)
    table = torch.stack([found[d] for d in range(low, high + 1)], dim=1)
    left, here, right = (table.gather(1, (middle + d)[:, None]).squeeze(1) for d in (-1, 0, 1))

    def between(x: float) -> tuple[Tensor, Tensor]:
        tau = unit * torch.pow(10.0, (low + middle + x).to(like.dtype))
        curve = here + x * (right - left) / 2 + x**2 * (left - 2 * here + right) / 2
        return tau, energy(tau, curve)

    taus, evidence = (torch.stack(list(v), dim=1) for v in zip(*map(between, STEPS), strict=True))
    return taus.gather(1, evidence.argmax(1)[:, None]).squeeze(1)


def _logdet(factor: Float[Tensor, "R d d"]) -> Float[Tensor, " R"]:
    return 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)


def _cholesky(g: Float[Tensor, "R d d"], tau: Float[Tensor, " R"]) -> Float[Tensor, "R d d"]:
    """The lower factors of G + τ I; where that fails, of G + τ I and a jitter as large as G's own rounding, in float64."""
    h = g.clone()
    h.diagonal(dim1=1, dim2=2).add_(tau[:, None])
    factor, failed = torch.linalg.cholesky_ex(h)
    for run in failed.nonzero().flatten().tolist():
        exact = g[run].double()
        exact.diagonal().add_(
            float(tau[run]) + torch.finfo(g.dtype).eps * float(exact.diagonal().sum().abs())
        )
        again, wrong = torch.linalg.cholesky_ex(exact)
        if bool(wrong):
            raise ValueError(
                f"the Hessian of a run is not positive definite at prior precision {float(tau[run]):.3g}: raise the "
                "precision, or choose structure='diagonal'."
            )
        factor[run] = again.to(factor.dtype)
    return factor
