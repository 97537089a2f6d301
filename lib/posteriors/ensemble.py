"""Deep ensembles: the samples of an approximation are networks trained independently of each other.

Lakshminarayanan, Pritzel & Blundell (2017), *Simple and scalable predictive uncertainty estimation using deep
ensembles*, without adversarial examples. It is the sampler of the reference posterior itself: an ensemble's distance
to that reference is a check of calibration, not a finding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from lib.params import Params, select
from lib.population import Population, Recipe, train
from lib.population.initialise import member_ids
from lib.posteriors.descent import Diverged
from lib.posteriors.draws import Draws


@dataclass(frozen=True)
class Ensemble:
    """How many networks make one approximation. 10: the usual size, and the paper's number of modes."""

    networks: int = 10

    def __post_init__(self) -> None:
        if self.networks < 1:
            raise ValueError(f"an ensemble of {self.networks} networks: it needs one at least.")


CANDIDATES = (Ensemble(),)  # nothing to tune: the recipe is the networks' own


@dataclass(frozen=True)
class Fit:
    """``runs`` ensembles of ``networks`` networks each, one ensemble after the other."""

    population: Population
    runs: int
    networks: int
    record: dict


def fit(
    net: nn.Module,
    inputs: Shaped[Tensor, "N ..."],
    targets: Shaped[Tensor, "N ..."],
    recipe: Recipe,
    options: Ensemble | None = None,
    *,
    members: int | range | Tensor,
    seed: int,
    device: str | torch.device = "cpu",
    start: Params | None = None,
) -> Fit:
    """Train ``options.networks`` networks for each of R runs: run i has the members i * networks + (0, 1, ...).

    ``start``: initial weights (R * networks, ...). Raises Diverged with the members that diverged.
    """
    options = options or Ensemble()
    runs = member_ids(members)
    ids = (runs[:, None] * options.networks + torch.arange(options.networks, device=runs.device)).flatten()
    population = train(net, inputs, targets, recipe, members=ids, seed=seed, device=device, start=start)
    refuse_diverged(population)
    record = {"networks": options.networks, "loss": population.loss.tolist()}
    return Fit(population, len(runs), options.networks, record)


def draw(fit: Fit, draws: int, *, seed: int = 0) -> Draws:
    """The first ``draws`` networks of every ensemble; ``seed`` is not needed, since nothing is random any more.

    Raises ValueError for more than were trained.
    """
    if not 1 <= draws <= fit.networks:
        raise ValueError(
            f"{draws} samples of ensembles of {fit.networks} networks: train as many as you need, Ensemble({draws})."
        )
    first = torch.arange(fit.runs)[:, None] * fit.networks + torch.arange(draws)
    chosen = first.flatten().to(fit.population.members.device)
    return Draws(select(fit.population.params, chosen), fit.runs, draws)


def draw_from(population: Population, draws: int) -> Draws:
    """Ensembles out of a pool of independent networks: every ``draws`` members, in order, are one approximation.

    Members left over at the end are not used. Raises Diverged for a pool with diverged members, and ValueError for
    one of fewer members than that.
    """
    refuse_diverged(population)
    runs = len(population) // draws if draws > 0 else 0
    if runs == 0:
        raise ValueError(
            f"{len(population)} networks do not make an ensemble of {draws}: train more networks."
        )
    return Draws(select(population.params, slice(0, runs * draws)), runs, draws)


def refuse_diverged(population: Population) -> None:
    """Raise Diverged where a member diverged: its weights are those before the fault, not a sample."""
    lost = population.members[~population.finite].tolist()
    if lost:
        named = ", ".join(map(str, lost[:8])) + (", ..." if len(lost) > 8 else "")
        raise Diverged(
            f"{len(lost)} of {len(population)} networks diverged (member {named}): keep the others with "
            "population.where(population.finite), or lower the learning rate."
        )
