"""The first paper's toy: two blobs, a network of two hidden units, thousands of its solutions, and its posterior.

Recipe of Figure 1 (authors' code): 2-2-1 with ReLU and biases, PyTorch's initial weights, binary cross-entropy, SGD at
rate 2 without momentum or decay, batches of 10, 10 epochs; networks whose mean loss over the last epoch is above a
filter are dropped (theirs: 0.01); incoming weights are scaled to norm 3, units sorted by their output weight.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib import randomness
from lib.data import two_blobs
from lib.modes import Clouds
from lib.networks import perceptron
from lib.population import Population, Recipe, train
from lib.posteriors import hmc
from lib.posteriors.moves import flip_unit
from lib.posteriors.target import log_posterior, outputs_of, unravel
from lib.symmetry import Symmetries, canonicalize, find_symmetries

RECIPE = Recipe(lr=2.0, batch_size=10, epochs=10, loss="binary_cross_entropy")
NORM = 3.0  # of the incoming weights, once scaling is removed; the authors' choice "to improve visuals"
FILTERS = (0.01, 0.05)  # the authors' loss filter, and one that keeps nearly all


def network() -> nn.Sequential:
    """Linear(2, 2), ReLU, Linear(2, 1): nine parameters."""
    return perceptron((2, 2, 1))


def symmetries() -> Symmetries:
    """Of `network`: one group of two units, two scale freedoms."""
    return find_symmetries(network(), torch.zeros(2, 2))


def solutions(
    draw: int, networks: int, *, seed: int, device: torch.device | str = "cpu", **options
) -> Population:
    """``networks`` independent solutions by the recipe on one draw of the data; ``options`` go to `train`."""
    inputs, labels = two_blobs(draw)
    targets = labels.float()
    return train(network(), inputs, targets, RECIPE, members=networks, seed=seed, device=device, **options)


def kept(population: Population, loss_filter: float) -> Population:
    """The members that never diverged and whose mean loss over the last epoch is at most ``loss_filter``."""
    return population.where(population.finite & (population.loss <= loss_filter))


def output_weights(params: Mapping[str, Tensor]) -> Float[np.ndarray, "n 2"]:
    """The plane of the pictures: the two output weights of each network."""
    return params["2.weight"].squeeze(1).double().cpu().numpy()


def clouds(params: Mapping[str, Tensor], group: Symmetries) -> Clouds:
    """The same networks in the four pictures: raw, scaling removed, permutation removed, both removed."""

    def picture(scale: str | None, order: str | None) -> Float[np.ndarray, "n 2"]:
        return output_weights(canonicalize(params, group, scale, order, norm=NORM))

    return Clouds(
        raw=output_weights(params),
        scaling_removed=picture("unit_norm", None),
        permutation_removed=picture(None, "output"),
        both_removed=picture("unit_norm", "output"),
    )


def sign_shares(points: Float[np.ndarray, "n 2"]) -> dict[str, float]:
    """Share of the networks in each sign pattern of the two output weights."""
    first, second = points[:, 0] > 0, points[:, 1] > 0
    patterns = {
        "+ +": first & second,
        "+ −": first & ~second,
        "− +": ~first & second,
        "− −": ~first & ~second,
    }
    return {name: float(mask.mean()) for name, mask in patterns.items()}


def posterior(
    draw: int,
    *,
    sigma: float,
    chains: int,
    warmup: int,
    draws: int,
    leapfrog: int,
    seed: int,
    flips: bool = True,
    device: torch.device | str = "cpu",
) -> hmc.Samples:
    """HMC draws from p(θ | data) with prior N(0, sigma²), every chain started from its own draw of N(0, 0.3²).

    ``flips`` adds the exact move that turns a unit round (lib.posteriors.moves.flip_unit) after every transition.
    """
    inputs, labels = (tensor.to(device) for tensor in two_blobs(draw))
    net = network()
    target = log_posterior(net, inputs, labels.to(inputs.dtype), sigma=sigma)
    start = 0.3 * randomness.normal(seed, torch.arange(chains, device=device), "hmc start", 0, (9,))
    moves = (flip_unit(net, inputs),) if flips else ()
    return hmc.sample(target, start, warmup=warmup, draws=draws, leapfrog=leapfrog, moves=moves, seed=seed)


PROBES = ((0.0, 0.0), (2.0, -2.0), (-2.0, 2.0), (1.0, 1.0), (-1.0, -1.0), (5.0, 5.0), (-5.0, -5.0))


def invariants(samples: hmc.Samples) -> dict[str, Float[np.ndarray, "draws C"]]:
    """Scalars that permuting and rescaling units leave as they are: these decide whether the chains have met.

    The log-likelihood's partner is the log posterior's density, which the prior makes scale-dependent but not
    permutation-dependent; path weights a_i |w_i| enter through their sum and product; predictions as logits at seven
    points (as probabilities they would tie at 1, and R-hat goes by ranks).
    """
    params = unravel(samples.positions.double(), network())
    incoming = params["0.weight"].norm(dim=-1)  # (draws, C, 2)
    path = params["2.weight"].squeeze(-2) * incoming
    scalars = {
        "log density": samples.log_density,
        "sum of path weights": path.sum(-1),
        "product of path weights": path.prod(-1),
    }
    points = torch.tensor(PROBES, dtype=samples.positions.dtype, device=samples.positions.device)
    logits = outputs_of(network(), samples.positions.flatten(0, 1), points).squeeze(-1)
    logits = logits.unflatten(0, samples.positions.shape[:2])
    for i, (x1, x2) in enumerate(PROBES):
        scalars[f"logit at ({x1:g}, {x2:g})"] = logits[..., i]
    return {name: values.double().cpu().numpy() for name, values in scalars.items()}


def raw_weights(samples: hmc.Samples) -> dict[str, Float[np.ndarray, "draws C"]]:
    """The two output weights, which a swap of the units exchanges: no chain's labels need agree with another's."""
    weights = unravel(samples.positions.double(), network())["2.weight"].squeeze(-2).cpu().numpy()
    return {"first output weight": weights[..., 0], "second output weight": weights[..., 1]}


def as_population(samples: hmc.Samples, every: int = 1) -> dict[str, Tensor]:
    """Every ``every``-th draw of all chains as one population (P, ...)."""
    return unravel(samples.positions[::every].flatten(0, 1), network())
