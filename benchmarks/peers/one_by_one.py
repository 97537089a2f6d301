"""The trainings of the stack one by one, on plain modules: all images as one tensor, an index a batch, our UnitNormSGD.

Without a DataLoader, and asked for no loss. A few of the runs are trained, of every stream and of rates apart.

python -m benchmarks.peers.one_by_one WAY
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.unit_norm import BATCH, EPOCHS, NET, RATES, SAMPLE, STREAMS, WAYS, images
from benchmarks.work import serve
from lib.parallel import side_by_side
from lib.unit_norm import Examples, UnitNormSGD


def trained(
    examples: Examples, rate: float, orders: Iterable[Tensor], start: Sequence[Tensor] | None = None
) -> nn.Sequential:
    """One run: an epoch for each order of the images; without ``start`` from torch's own initial weights, normalised."""
    net, x, y = NET.module().to(examples.inputs.dtype), examples.inputs, examples.targets
    *filters, classifier = net.parameters()
    if start is not None:
        with torch.no_grad():
            for parameter, value in zip(net.parameters(), start, strict=True):
                parameter.copy_(value)
    groups = [{"params": filters}, {"params": [classifier], "unit_norm": False}]
    optimiser = UnitNormSGD(groups, rate, foreach=True)
    for order in orders:
        for chosen in order.split(BATCH):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[chosen]), y[chosen]).backward()
            optimiser.step()
    return net


def some(first: int, last: int) -> None:
    """The runs ``first`` to ``last`` of those that are timed."""
    examples = images()
    count = len(examples.targets)
    for run in range(first, last):
        generator = torch.Generator().manual_seed(run % STREAMS)
        orders = (torch.randperm(count, generator=generator) for _ in range(EPOCHS))
        trained(examples, float(RATES[run * len(RATES) // SAMPLE]), orders)


def in_two_processes() -> None:
    half = SAMPLE // 2
    side_by_side([partial(some, 0, half), partial(some, half, SAMPLE)], torch.device("cpu"))


if __name__ == "__main__":
    way = sys.argv[1]
    torch.set_num_threads(2 if way == WAYS[0] else 1)
    serve(in_two_processes if way == WAYS[2] else partial(some, 0, SAMPLE))
