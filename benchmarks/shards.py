"""512 networks 64-16-8 in eight shards on Dask: two workers of one thread against one of them, in turns.

python -m benchmarks.shards [ROUNDS]
"""

from __future__ import annotations

import statistics
import sys
import time

from benchmarks.work import report

MEMBERS, SHARD, EPOCHS = 512, 64, 110  # about 20 s on one worker of a quiet machine
WORK = f"train {MEMBERS} nets 64-16-8, {SHARD} a shard"


def main(rounds: int = 3, epochs: int = EPOCHS) -> None:
    import torch
    from dask.distributed import Client, LocalCluster
    from joblib import parallel_config
    from sklearn.datasets import load_digits
    from torch import nn

    from lib.population import Recipe, train_sharded

    pixels, classes = load_digits(return_X_y=True)
    inputs, targets = (
        torch.tensor(pixels[classes < 8][:800] / 16).float(),
        torch.tensor(classes[classes < 8][:800]),
    )
    net = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 8))

    def run(workers: list[str], epochs: int) -> float:
        recipe = Recipe(lr=0.1, batch_size=32, epochs=epochs, weight_decay=2e-4)
        start = time.perf_counter()
        with parallel_config(backend="dask", workers=workers):
            train_sharded(net, inputs, targets, recipe, members=MEMBERS, seed=0, shard=SHARD)
        return time.perf_counter() - start

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        both = sorted(client.scheduler_info()["workers"])
        sets = {"two Dask workers": both, "one Dask worker": both[:1]}
        for worker in both:
            run([worker], 1)  # each imports torch, and is warm
        seconds = {who: [] for who in sets}
        for _ in range(rounds):
            for who, workers in sets.items():
                seconds[who].append(run(workers, epochs))
        overhead = [run(both, 0) for _ in range(rounds)]

    for who, values in seconds.items():
        report(WORK, who, "s", values)
    report(WORK, "two workers, no epoch", "s", overhead)
    two, one = seconds.values()
    ratios = [a / b for a, b in zip(one, two, strict=True)]
    of_medians = round(statistics.median(one) / statistics.median(two), 3)
    report(WORK, "one worker / two workers", "ratio", ratios, of_medians=of_medians, reach=">= 1.7")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
