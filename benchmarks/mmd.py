"""MMD² with twenty kernels: seconds and memory, ours and the peers', in turns.

python -m benchmarks.mmd [ROUNDS]
"""

from __future__ import annotations

import resource
import statistics
import sys
import time

import numpy as np
import torch

from benchmarks.work import report, serve, take_turns
from lib import mmd

NETWORKS, PARAMETERS = 1000, 355  # a side; OptuMNIST-v1
LARGE = 8192  # a side, of the largest comparison


def samples(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, count, PARAMETERS, generator=generator)
    return x, 1.1 * y


def ours(x: torch.Tensor, y: torch.Tensor, widths: mmd.Bandwidths) -> torch.Tensor:
    return mmd.mmd2(x, y, widths)


def scipy_cdist(x: torch.Tensor, y: torch.Tensor, widths: mmd.Bandwidths) -> torch.Tensor:
    """As mmdagg's NumPy version: distances of all pairs of the two samples together, then a matrix for each kernel."""
    from scipy.spatial.distance import cdist

    m, n = len(x), len(y)
    both = np.concatenate([x, y])
    found = []
    for norm, power, values in (
        ("cityblock", 1, widths.laplace),
        ("euclidean", 2, widths.gaussian),
    ):
        distances = cdist(both, both, norm)
        for width in values.tolist():
            kernel = np.exp(-((distances / width) ** power))
            np.fill_diagonal(kernel, 0)
            own = kernel[:m, :m].sum() / (m * (m - 1)) + kernel[m:, m:].sum() / (n * (n - 1))
            found.append(own - 2 * kernel[:m, m:].mean())
    return torch.tensor(found)


def torch_cdist(x: torch.Tensor, y: torch.Tensor, widths: mmd.Bandwidths) -> torch.Tensor:
    """torch.cdist by direct differences, as ours; all pairs at once."""
    m, n = len(x), len(y)
    parts = []
    for a, b in ((x, x), (y, y), (x, y)):
        one = torch.cdist(a, b, p=1.0)
        two = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
        kernels = [(-one / w).exp().sum(dtype=torch.float64) for w in widths.laplace]
        kernels += [(-((two / w) ** 2)).exp().sum(dtype=torch.float64) for w in widths.gaussian]
        parts.append(torch.stack(kernels))
    return (parts[0] - m) / (m * (m - 1)) + (parts[1] - n) / (n * (n - 1)) - 2 * parts[2] / (m * n)


PEERS = {"lib.mmd": ours, "NumPy, scipy.spatial cdist": scipy_cdist, "torch.cdist": torch_cdist}


def main(rounds: int = 5) -> None:
    few = samples(60)
    widths = mmd.bandwidths(*few)
    for peer in (scipy_cdist, torch_cdist):
        torch.testing.assert_close(peer(*few, widths), ours(*few, widths), rtol=0, atol=1e-5)

    work = f"MMD² {NETWORKS} x {NETWORKS}, {PARAMETERS} parameters, 20 kernels"
    commands = {who: [sys.executable, "-m", "benchmarks.mmd", "serve", who] for who in PEERS}
    seconds = take_turns(commands, rounds)
    for who, values in seconds.items():
        report(work, who, "s", values, **({"reach": "<= 5"} if who == "lib.mmd" else {}))
    for who in list(PEERS)[1:]:
        theirs, mine = seconds[who], seconds["lib.mmd"]
        if not isinstance(theirs, str) and not isinstance(mine, str):
            ratios = [a / b for a, b in zip(theirs, mine, strict=True)]
            middle = round(statistics.median(theirs) / statistics.median(mine), 3)
            report(work, f"{who} / lib.mmd", "ratio", ratios, of_medians=middle)

    x, y = samples(LARGE)
    widths, start = mmd.bandwidths(x, y), time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mmd.mmd2(x, y, widths)
    spent = time.perf_counter() - start
    kilobytes = 1 if sys.platform != "darwin" else 1024
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / kilobytes / 1024
    report(
        f"MMD² {LARGE} x {LARGE}", "lib.mmd", "s", [spent], memory_growth_mib=round(grown), reach="<= 1024"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        given = samples(NETWORKS)
        chosen, grid = PEERS[sys.argv[2]], mmd.bandwidths(*given)
        serve(lambda: chosen(*given, grid))
    else:
        main(*map(int, sys.argv[1:]))
