"""geoopt's Riemannian optimisers: the filters before a norm as ManifoldParameter on Sphere, whose last axis is a row.

python -m benchmarks.peers.geoopt_sphere step|optimiser WHO
"""

from __future__ import annotations

import sys
import warnings

import torch
from torch import nn

from benchmarks.unit_norm import GEOOPT_ADAM, RATE, THREADS, before_norms, problem, serve_steps

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # its import calls torch.jit.script
    import geoopt


def optimiser(who: str, net: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of a network whose filters, normalised, are replaced by points of the manifold."""
    for layer in before_norms(net):
        rows = nn.functional.normalize(layer.weight.detach())
        layer.weight = geoopt.ManifoldParameter(rows, manifold=geoopt.Sphere())
    kind = geoopt.optim.RiemannianAdam if who == GEOOPT_ADAM else geoopt.optim.RiemannianSGD
    return kind(net.parameters(), lr=RATE)


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    part, who = sys.argv[1:]
    net, x, y = problem()
    serve_steps(part, net, x, y, optimiser(who, net))
