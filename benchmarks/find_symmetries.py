"""Time find_symmetries on torchvision's ResNet-18, verification included: ``python -m benchmarks.find_symmetries``.

One JSON line a measurement. The reference is a specification written by hand (no program to time), so there is no
peer; the figure to reach is 5 s on two cores.
"""

from __future__ import annotations

import json
import statistics
import time

import torch
from torch import nn

from lib.symmetry.find import find_symmetries
from lib.torchvision_guard import import_torchvision

RUNS = 5


def measure(net: nn.Module, example: torch.Tensor, work: str) -> dict[str, object]:
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        found = find_symmetries(net, example)
        seconds.append(time.perf_counter() - start)
    assert len(found.permutations) == 12
    return {
        "work": work,
        "who": "lib.symmetry.find_symmetries",
        "median_s": round(statistics.median(seconds), 3),
        "min_s": round(min(seconds), 3),
        "runs": RUNS,
    }


def main() -> None:
    torch.set_num_threads(2)
    net = import_torchvision().models.resnet18()
    start = time.perf_counter()
    find_symmetries(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)), torch.zeros(1, 2))
    first = round(time.perf_counter() - start, 3)
    work = "first call in a process, MLP 2-2-1 (what PyTorch imports on the way)"
    print(
        json.dumps(
            {
                "work": work,
                "who": "lib.symmetry.find_symmetries",
                "median_s": first,
                "min_s": first,
                "runs": 1,
            }
        )
    )
    for size in (64, 224):
        work = f"find_symmetries with verification, ResNet-18, example 1x3x{size}x{size}"
        print(json.dumps(measure(net, torch.zeros(1, 3, size, size), work)))


if __name__ == "__main__":
    main()
