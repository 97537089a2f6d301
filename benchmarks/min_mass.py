"""The minimum mass of 1,000 networks 64-16-10: ours, all at once, against CVXPY, one by one.

Run: python -m benchmarks.min_mass. Prints one JSON object a line. CVXPY gets three formulations (see ``prepared``)
and is compiled once; only its solves are timed, on a sample.
"""

from __future__ import annotations

import itertools
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable

import cvxpy as cp
import numpy as np
import torch
from torch import nn

from lib.params import Params, member
from lib.symmetry import Symmetries, find_symmetries, log_scale_objective, min_mass

NETWORKS, SAMPLE, GAP = 1000, 20, 1e-10


def networks(widths: tuple[int, ...], members: int) -> tuple[Params, Symmetries]:
    """A population with PyTorch's default initial distribution, and its symmetries."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    net = nn.Sequential(*layers[:-1])
    symmetries = find_symmetries(net, torch.zeros(2, widths[0]))
    generator = torch.Generator().manual_seed(0)
    params = {}
    for name, shape in symmetries.shapes.items():
        bound = symmetries.shapes[name.replace("bias", "weight")][1] ** -0.5
        params[name] = (2 * torch.rand(members, *shape, generator=generator) - 1) * bound
    return params, symmetries


def prepared(form: str, coefficients: np.ndarray, exponents: np.ndarray) -> Callable[[np.ndarray], float]:
    """A compiled (DPP) CVXPY problem over the scales: call it with a network's coefficients, get its minimum mass.

    "sum_exp" is the authors' (weighted exponentials of log-scales), "log_sum_exp" its better scaled logarithm, and
    "inverse" the second-order cone program that one hidden layer allows: in · x + out / x for each unit.
    """
    terms, n = exponents.shape
    u, x = cp.Variable(n), cp.Variable(n, pos=True)
    logs, weights = cp.Parameter(terms), cp.Parameter(terms, nonneg=True)
    powers = 2 * exponents @ u
    if form == "inverse":
        growing = exponents.sum(1) > 0
        scale_of = np.abs(exponents).argmax(1)
        parts = [x[scale_of[growing]], cp.inv_pos(x[scale_of[~growing]])]
        objective = weights[np.where(growing)[0]] @ parts[0] + weights[np.where(~growing)[0]] @ parts[1]
    elif form == "log_sum_exp":
        objective = cp.log_sum_exp(logs + powers)
    else:
        objective = cp.sum(cp.multiply(weights, cp.exp(powers)))
    problem = cp.Problem(cp.Minimize(objective))
    settings = {"solver": cp.CLARABEL, "tol_gap_abs": GAP, "tol_gap_rel": GAP, "tol_feas": GAP}

    def solve(coefficients: np.ndarray) -> float:
        logs.value, weights.value = np.log(coefficients), coefficients
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "may be inaccurate": the error is measured and printed
            value = problem.solve(**settings)
        return float(np.exp(value)) if form == "log_sum_exp" else float(value)

    solve(coefficients)  # compiles
    return solve


def measure(widths: tuple[int, ...]) -> None:
    work = f"min_mass of {NETWORKS} networks {'-'.join(map(str, widths))}"
    params, symmetries = networks(widths, NETWORKS)
    min_mass(params, symmetries, tolerance=GAP)  # warm
    times = []
    for _ in range(15):
        start = time.perf_counter()
        result = min_mass(params, symmetries, tolerance=GAP)
        times.append(time.perf_counter() - start)
    ours = statistics.median(times)
    gap, sweeps = result.gap.max().item(), result.sweeps.max().item()
    assert gap < GAP, f"the largest certified gap is {gap}"
    report(work, "ours", times, NETWORKS, largest_gap=gap, sweeps=sweeps, threads=torch.get_num_threads())
    objectives = [log_scale_objective(member(params, i), symmetries) for i in range(SAMPLE)]
    each = {}
    for form in ("sum_exp", "log_sum_exp", *(["inverse"] if len(widths) == 3 else [])):
        solve = prepared(form, objectives[0].coefficients.numpy(), objectives[0].exponents.numpy())
        times, errors = [], []
        for i, objective in enumerate(objectives):
            start = time.perf_counter()
            value = solve(objective.coefficients.numpy())
            times.append(time.perf_counter() - start)
            errors.append(abs(value / result.mass[i].item() - 1))
        each[form] = times
        report(work, f"cvxpy {cp.__version__} clarabel, {form}", times, 1, largest_error=max(errors))
    ratios = {form: statistics.median(times) * NETWORKS / ours for form, times in each.items()}
    line = {
        "work": work,
        "who": "ratio of medians a network, cvxpy over ours",
        "least_ratio": round(min(ratios.values())),
    }
    print(json.dumps({**line, **{form: round(ratio) for form, ratio in ratios.items()}}))


def report(work: str, who: str, times: list[float], count: int, **extra: float) -> None:
    median = statistics.median(times)
    line = {
        "work": work,
        "who": who,
        "median_s": median,
        "min_s": min(times),
        "max_s": max(times),
        "runs": len(times),
    }
    print(
        json.dumps({**line, "networks_a_run": count, "median_us_a_network": 1e6 * median / count, **extra}),
        flush=True,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)  # as Clarabel: one core each
    print(
        json.dumps(
            {"machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__}
        )
    )
    measure((64, 16, 10))
    measure((20, 16, 12, 5))
