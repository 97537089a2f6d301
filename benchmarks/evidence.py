"""Free energies: seconds and accuracy, against exact answers and a hand-written peer.

python -m benchmarks.evidence [ROUNDS]
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from dataclasses import replace

import torch

from benchmarks.peers import numpy_smc
from benchmarks.work import report, serve, take_turns
from lib.free_energy import evidence
from lib.free_energy.targets import target
from lib.free_energy.truths import T1
from lib.growth import curves, validation
from lib.parallel import side_by_side
from lib.smc import sample

CPU = torch.device("cpu")
SMALL = curves.Learner(T1, T1.widths)
WHITE = replace(validation.LINEAR, whiten=True, leapfrog=3, jitter=0.2, acceptance=0.95)
DATA_SETS, PARTICLES = 200, 8_000  # of linear regression, at once


def climb(seed: int = 0) -> list[float]:
    """F0 of 1-1-1 by four copies of a thousand particles, at n = 10, ..., 1e6."""
    found = curves.climb(
        SMALL, numpy_smc.SIZES, points=64, particles=1_000, copies=4, seed=seed, stream=0, device=CPU
    )
    return found.free_energy.mean(1).tolist()


def worst_slope(found: list[float], exact: list[float]) -> float:
    """Largest error of a decade's slope."""
    errors = [
        (b - a - d + c) / math.log(10) for a, b, c, d in zip(found, found[1:], exact, exact[1:], strict=False)
    ]
    return max(map(abs, errors))


def linear() -> tuple[float, float]:
    """Seconds, and the largest error in nats, of the log evidences of linear regressions with ten parameters."""
    problem = validation.linear_problems(DATA_SETS, seed=1)
    small = validation.compress(problem)
    start = time.perf_counter()

    def part(rows: slice):
        known = target(small[rows], (10, 1), collapsed=False, bias=False)
        members = torch.arange(DATA_SETS)[rows]
        return lambda: sample(known, [1.0], particles=PARTICLES, seed=1, settings=WHITE, members=members)

    runs = side_by_side([part(slice(a, a + 10)) for a in range(0, DATA_SETS, 10)], CPU)
    spent = time.perf_counter() - start
    error = torch.cat([run.free_energy[-1] for run in runs]) - evidence.linear(problem)
    return spent, float(error.abs().max())


def main(rounds: int = 5) -> None:
    exact = curves.exact(SMALL, numpy_smc.SIZES, 64, CPU).tolist()
    work = "F0(n) of 1-1-1 to n = 1e6, one thread"
    commands = {
        "lib.smc, 4 x 1,000 particles": [sys.executable, "-m", "benchmarks.evidence", "serve"],
        "NumPy by hand, 800 particles": [sys.executable, "-m", "benchmarks.peers.numpy_smc"],
    }
    seconds = take_turns(commands, rounds)
    answers = (climb, numpy_smc.run)
    for (who, values), answer in zip(seconds.items(), answers, strict=True):
        wrong = [round(worst_slope(answer(seed), exact), 3) for seed in (1, 2, 3)]
        report(
            work,
            who,
            "s",
            values,
            slope_errors=wrong,
            **({"reach": "<= 6 s, <= 0.05"} if answer is climb else {}),
        )
    mine, theirs = seconds.values()
    ratios = [b / a for a, b in zip(mine, theirs, strict=True)]
    report(
        work,
        "NumPy / lib.smc",
        "ratio",
        ratios,
        of_medians=round(statistics.median(theirs) / statistics.median(mine), 2),
    )

    spent, error = linear()
    report(
        f"log evidence of {DATA_SETS} linear regressions, 10 parameters, {PARTICLES:,} particles", "lib.smc", "s", [spent],
        largest_error_nats=round(error, 3), reach="<= 20 s, <= 0.1",
    )  # fmt: skip
    for hidden in (3, 4, 5, 6):
        start = time.perf_counter()
        case = validation.reduced_rank(hidden, copies=4, particles=500, seed=1, device=CPU)
        relative = case.slopes / case.known.value - 1
        report(
            f"lambda of reduced-rank regression, H = {hidden}: {case.known.value:g}", "lib.smc", "s",
            [time.perf_counter() - start], relative_errors=[round(float(e), 4) for e in relative],
            reach="<= 5 %" if case.known.multiplicity == 1 else "<= 10 %",
        )  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        torch.set_num_threads(1)
        serve(climb)
    else:
        main(*map(int, sys.argv[1:]))
