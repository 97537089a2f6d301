"""The 10,000 toy networks of the two-neuron chapter, all of the published recipe: seconds in total.

python -m benchmarks.toy_population [ROUNDS]
"""

from __future__ import annotations

import sys
import time

from benchmarks.work import report


def main(rounds: int = 5) -> None:
    import torch
    from torch import nn

    from lib.population import Recipe, train
    from lib.randomness import normal

    targets = torch.arange(400) // 200
    inputs = normal(0, torch.arange(400), "toy blobs", 0, (2,)) + 4.0 * targets[:, None] - 2
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    recipe = Recipe(lr=2, batch_size=10, epochs=10, loss="binary_cross_entropy")
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        train(net, inputs, targets, recipe, members=10_000, seed=0)
        seconds.append(time.perf_counter() - start)
    report(
        "train 10,000 nets 2-2-1",
        "lib.population",
        "s",
        seconds[1:],
        first=round(seconds[0], 3),
        reach="<= 10",
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
