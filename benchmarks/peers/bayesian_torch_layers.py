"""bayesian-torch's factorised layers: one draw of the weights a batch, or Flipout, with the KL they return.

Its KL is a *mean* over weights where a divergence is their sum; that changes the number and not the work. Its
package lies in a folder of its own, without what it requires: the layers import nothing but torch, and so run on
the book's own build of it.

python -m benchmarks.peers.bayesian_torch_layers CLASS LAYER
"""

from __future__ import annotations

import sys

import torch

from benchmarks.matrix_gaussian import BAYESIAN_TORCH, LAYERS, SIZE, THREADS, batch, rounds_of
from benchmarks.work import serve

sys.path.insert(0, str(BAYESIAN_TORCH))
import bayesian_torch.layers


def steps(kind: str, name: str) -> None:
    module, (x, y) = getattr(bayesian_torch.layers, kind)(*LAYERS[name]), batch(name)

    def step() -> None:
        module.zero_grad()
        out, kl = module(x)
        ((out - y).square().mean() + kl / SIZE).backward()

    serve(lambda: rounds_of(step, name))


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    steps(*sys.argv[1:])
