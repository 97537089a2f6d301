"""What trained networks say about new inputs: sampled functions, the function of the mean, and the noise of the targets.

A draw is one weight matrix a layer for all inputs, so that a sampled function is a function. The authors' code draws every example's
pre-activations independently: each prediction has the same law, functions do not (P3-C12).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from lib import randomness
from lib.matrix_gaussian.network import prepared
from lib.matrix_gaussian.training import Fit


def sampled(
    fit: Fit, inputs: Float[Tensor, "S N d"], draws: int, *, seed: int, first: int = 0
) -> Float[Tensor, "R draws N k"]:
    """Outputs of ``draws`` sampled networks of every run, in the units of training; ``inputs`` (R or 1, N, d)."""
    layers = fit.network.parameters(fit.flat)
    members, of_run = fit.members.unique(return_inverse=True)
    h = inputs[:, None]
    for i, (law, p) in enumerate(zip(fit.network.laws, layers, strict=True)):
        shapes = law.weight_noise_shapes(*fit.network.sizes(i))
        noise = {
            name: randomness.normal(
                seed, members, f"draw/{i}/{name}", first, (draws, *shape), fit.flat.dtype
            )[of_run]
            for name, shape in shapes.items()
        }
        weights = law.weights({name: value[:, None] for name, value in p.items()}, noise)
        h = prepared(h if i == 0 else h.relu()) @ weights
    return h.expand(-1, draws, -1, -1)


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
