"""What trained networks say about new inputs: sampled functions, the function of the mean, and the noise of the targets.

A draw is one weight matrix a layer for all inputs, so that a sampled function is a function. The authors' code draws every example's
pre-activations independently: each prediction has the same law, functions do not (P3-C12).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from lib import randomness
from lib.matrix_gaussian.network import prepared
from lib.matrix_gaussian.training import Fit

HELD = 1 << 22  # numbers of one layer held at a time


def sampled(
    fit: Fit, inputs: Float[Tensor, "S N d"], draws: int, *, seed: int, first: int = 0
) -> Float[Tensor, "R draws N k"]:
    """Outputs of ``draws`` sampled networks of every run, in the units of training; ``inputs`` (R or 1, N, d).

    Draw k is a function of (seed, member, first + k), however many are drawn at a time.
    """
    widest = max(fit.network.widths[1:]) * max(inputs.shape[1], max(fit.network.widths) + 1)
    together = max(1, HELD // (len(fit.flat) * widest))
    parts = [range(k, min(k + together, first + draws)) for k in range(first, first + draws, together)]
    return torch.cat([_drawn(fit, inputs, part, seed) for part in parts], dim=1)


def _drawn(fit: Fit, inputs: Tensor, which: range, seed: int) -> Float[Tensor, "R draws N k"]:
    members, of_run = fit.members.unique(return_inverse=True)
    h = inputs[:, None]
    for i, (law, p) in enumerate(zip(fit.network.laws, fit.network.parameters(fit.flat), strict=True)):
        noise = {}
        for name, shape in law.weight_noise_shapes(*fit.network.sizes(i)).items():
            purpose = f"draw/{i}/{name}"
            each = [randomness.normal(seed, members, purpose, k, shape, fit.flat.dtype) for k in which]
            noise[name] = torch.stack(each, dim=1)[of_run]
        weights = law.weights({name: value[:, None] for name, value in p.items()}, noise)
        h = prepared(h if i == 0 else h.relu()) @ weights
    return h.expand(len(fit.flat), len(which), -1, -1)


def of_mean(fit: Fit, inputs: Float[Tensor, "S N d"]) -> Float[Tensor, "R N k"]:
    """Outputs of the network of mean weights (the paper's prediction in one pass), in the units of training."""
    h = inputs
    for i, (law, p) in enumerate(zip(fit.network.laws, fit.network.parameters(fit.flat), strict=True)):
        h = prepared(h if i == 0 else h.relu()) @ law.mean_weights(p)
    return h


def noise_precision(fit: Fit) -> tuple[Float[Tensor, "R k"], Float[Tensor, "R k"]]:
    """Shape and rate of q(τ), the precision of the targets' noise, in the targets' own units."""
    q = fit.network.noise_precisions(fit.flat)
    return q.shape, q.rate * fit.unit.square()
