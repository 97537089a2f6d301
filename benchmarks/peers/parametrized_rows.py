"""Rows that are computed from free parameters at each forward pass, with plain SGD: weight_norm, and geotorch's sphere.

weight_norm's rows have a length of their own each, and so are not of unit norm: the nearest that torch has. geotorch's
are, by the exponential map from a fixed point (its default) or by division (``embedded``).

python -m benchmarks.peers.parametrized_rows step WHO
"""

from __future__ import annotations

import sys

import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from benchmarks.unit_norm import (
    EMBEDDED,
    GEOTORCH,
    OPTIMISERS,
    SGD,
    THREADS,
    WEIGHT_NORM,
    before_norms,
    problem,
    serve_steps,
)


def parametrize(who: str, layer: nn.Linear) -> None:
    if who == WEIGHT_NORM:
        weight_norm(layer)
        return
    sys.path.insert(0, str(GEOTORCH))
    import geotorch

    geotorch.sphere(layer, "weight", embedded=who == EMBEDDED)


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    part, who = sys.argv[1:]
    net, x, y = problem()
    for layer in before_norms(net):
        parametrize(who, layer)
    serve_steps(part, net, x, y, OPTIMISERS[SGD](net, x))
