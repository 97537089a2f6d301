"""Mutual information of all pairs of networks: seconds, ours and the peers', in turns.

python -m benchmarks.mutual_information [ROUNDS]
"""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np
import torch

from benchmarks.work import report, serve, take_turns
from lib.diversity import pairwise_mutual_information

INPUTS, CLASSES = 1000, 10
COMPARED, ALL = 150, 1000  # networks: of the comparison, where peers are slow, and of the figure to reach


def probabilities(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (4 * torch.randn(count, INPUTS, CLASSES, generator=generator)).softmax(-1)


def numpy_rows(p: torch.Tensor) -> torch.Tensor:
    """Difference of entropies, one network against all later ones at a time, in the given type."""
    values = p.numpy()
    own = -(values * np.log(values)).sum(2)
    found = np.zeros((len(values), len(values)))
    for i in range(len(values) - 1):
        mixture = (values[i] + values[i + 1 :]) / 2
        entropy = -(mixture * np.log(mixture)).sum(2)
        found[i, i + 1 :] = (entropy - (own[i] + own[i + 1 :]) / 2).mean(1)
    return torch.from_numpy(found + found.T)


def scipy_jensenshannon(p: torch.Tensor) -> torch.Tensor:
    """SciPy's own Jensen-Shannon distance, squared, one network against all later ones at a time."""
    from scipy.spatial.distance import jensenshannon

    values = p.numpy()
    found = np.zeros((len(values), len(values)))
    for i in range(len(values) - 1):
        found[i, i + 1 :] = (jensenshannon(values[i], values[i + 1 :], axis=-1) ** 2).mean(1)
    return torch.from_numpy(found + found.T)


PEERS = {
    "lib.diversity": pairwise_mutual_information,
    "NumPy, entropies by rows": numpy_rows,
    "scipy jensenshannon": scipy_jensenshannon,
}


def main(rounds: int = 5) -> None:
    few = probabilities(8)
    for peer in (numpy_rows, scipy_jensenshannon):
        torch.testing.assert_close(peer(few), pairwise_mutual_information(few), rtol=1e-4, atol=1e-6)

    work = f"mutual information of all pairs of {COMPARED} nets, {INPUTS} inputs, {CLASSES} classes"
    commands = {who: [sys.executable, "-m", "benchmarks.mutual_information", "serve", who] for who in PEERS}
    seconds = take_turns(commands, rounds)
    for who, values in seconds.items():
        report(work, who, "s", values)
    for who in list(PEERS)[1:]:
        theirs, mine = seconds[who], seconds["lib.diversity"]
        if not isinstance(theirs, str) and not isinstance(mine, str):
            ratios = [a / b for a, b in zip(theirs, mine, strict=True)]
            middle = round(statistics.median(theirs) / statistics.median(mine), 3)
            report(work, f"{who} / lib.diversity", "ratio", ratios, of_medians=middle)

    p, spent = probabilities(ALL), []
    for _ in range(3):
        start = time.perf_counter()
        pairwise_mutual_information(p)
        spent.append(time.perf_counter() - start)
    report(work.replace(str(COMPARED), str(ALL)), "lib.diversity", "s", spent, reach="<= 10")


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        given, chosen = probabilities(COMPARED), PEERS[sys.argv[2]]
        serve(lambda: chosen(given))
    else:
        main(*map(int, sys.argv[1:]))
