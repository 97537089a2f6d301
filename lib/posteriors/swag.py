r"""SWAG: a Gaussian around the mean of stochastic gradient descent's iterates (Maddox et al. 2019).

Trained networks go on with a constant learning rate, and T snapshots θ_1, ..., θ_T are taken on the way. With their mean
θ̄, their variances σ² (each parameter's own) and the deviations D = (θ_t - θ̄) of the last K snapshots as columns,

$$ \theta = \bar\theta + \tfrac{1}{\sqrt 2}\, \sigma \odot z_1 + \tfrac{1}{\sqrt{2 (K - 1)}}\, D z_2,
   \qquad z_1 \sim N(0, I_D),\; z_2 \sim N(0, I_K) $$

(algorithm 1 and equation 1), so that the covariance is ½ diag(σ²) + ½ D Dᵀ / (K - 1). Their deviations are taken from
the running mean, for want of the final one; here all snapshots are at hand. The first factor is the standard
deviation: public re-implementations have multiplied by the variance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from lib import randomness
from lib.params import Params
from lib.population import Constant, Recipe, walk
from lib.population.initialise import member_ids
from lib.posteriors.draws import Draws
from lib.posteriors.target import ravel, refuse_lost, trained, unravel


@dataclass(frozen=True)
class Swag:
    """How long the walk is, how fast, and how many deviations are kept."""

    rate: float | int = (
        1  # of the recipe's first learning rate: the walk explores what training has gone through
    )
    epochs: int = 40  # as many as the training had, and more than twice the rank
    rank: int = 20  # the authors' own (their section 4)
    every: int = 1  # epochs from snapshot to snapshot, as the authors


CANDIDATES = (Swag(), Swag(rate=2), Swag(rate=4))


@dataclass(frozen=True)
class Fit:
    """R Gaussians: means and variances (R, D), and the last K deviations from the mean (R, K, D)."""

    net: nn.Module
    members: Int64[Tensor, " R"]
    mean: Float[Tensor, "R D"]
    variance: Float[Tensor, "R D"]
    deviations: Float[Tensor, "R K D"]
    record: dict[str, float | int]


def fit(
    net: nn.Module,
    inputs: Shaped[Tensor, "n ..."],
    targets: Shaped[Tensor, "n ..."],
    recipe: Recipe,
    options: Swag | None = None,
    *,
    members: int | range | Tensor,
    seed: int,
    device: str | torch.device = "cpu",
    start: Params | None = None,
) -> Fit:
    """Walk on from the trained networks ``start`` (R, ...) and keep the moments of the snapshots.

    The recipe's batches, decay and momentum stay; its rate and schedule give way to the constant ``options.rate`` times its rate.
    Raises ValueError without ``start``, for fewer than two snapshots, and for runs that the rate drives to infinity.
    """
    options, members = options or Swag(), member_ids(members)
    trained(net, start, len(members), "SWAG")
    going_on = replace(
        recipe,
        lr=options.rate * recipe.lr,
        epochs=options.epochs,
        schedule=Constant(),
        warmup=0,
        optimiser="sgd",
    )
    stride = options.every * going_on.steps_per_epoch(len(inputs))
    snapshots = []
    for moment in walk(
        net, inputs, targets, going_on, members=members, seed=seed, device=device, start=start
    ):
        if (moment.step + 1) % stride == 0:
            now = moment.params
            snapshots.append(ravel({name: now[name] for name, _ in net.named_parameters()}))
    if not snapshots:
        raise ValueError(
            f"{options.epochs} epochs hold no snapshot every {options.every} epochs: walk for longer."
        )
    fitted = moments(net, torch.stack(snapshots), rank=options.rank, members=members.to(device))
    return replace(fitted, record=fitted.record | {"epochs": options.epochs, "lr": going_on.lr})


def moments(
    net: nn.Module,
    snapshots: Float[Tensor, "T R D"],
    *,
    rank: int = 20,
    members: Int64[Tensor, " R"] | None = None,
) -> Fit:
    """Mean, variances and last deviations of T snapshots of R runs; raises ValueError for one, or where not finite."""
    if len(snapshots) < 2 or rank < 2:
        raise ValueError(
            f"{len(snapshots)} snapshots and a rank of {rank}: a variance needs two of each. Take more snapshots."
        )
    refuse_lost(snapshots.transpose(0, 1), "the snapshots", "lower SWAG's learning rate")
    mean = snapshots.mean(0)
    deviations = snapshots - mean
    variance = deviations.square().mean(0)
    deviations = deviations[-rank:].transpose(0, 1).contiguous()
    record = {
        "snapshots": len(snapshots),
        "rank": deviations.shape[1],
        "standard deviation (root mean square)": float(variance.mean().sqrt()),
    }
    if members is None:
        members = torch.arange(len(mean), device=mean.device)
    return Fit(net, members, mean, variance, deviations, record)


def draw(fit: Fit, draws: int, *, seed: int) -> Draws:
    """``draws`` parameter samples of each run's Gaussian."""
    (runs, rank, size), dtype = fit.deviations.shape, fit.mean.dtype
    diagonal = randomness.normal(seed, fit.members, "swag diagonal", 0, (draws, size), dtype)
    low_rank = randomness.normal(seed, fit.members, "swag low rank", 0, (draws, rank), dtype)
    positions = diagonal.mul_(torch.sqrt(fit.variance / 2)[:, None]).add_(fit.mean[:, None])
    positions.baddbmm_(low_rank, fit.deviations, alpha=1 / math.sqrt(2 * (rank - 1)))
    return Draws(unravel(positions.flatten(0, 1), fit.net), runs, draws)
