"""The same trainings with and without unit norm, symmetry taken out of both: distance of the populations, barriers, orbits and mass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from lib.excess_mass import excess
from lib.intervals import jackknife, student
from lib.mmd import Reference, bandwidths
from lib.one_population.paths import Pairs
from lib.one_population.problem import ALIGNED, FILTERS, VIEWS, Problem, flat, seen
from lib.params import Params, population_size
from lib.population import evaluate, initial
from lib.rules import Measurement
from lib.symmetry import canonicalize
from lib.three_models.stars import of_pairs


def distances(
    problem: Problem, plain: Params, twin: Params, groups: int, seed: int
) -> dict[str, Float[np.ndarray, " groups"]]:
    """MMD² of plain from unit-norm networks, view by view, on the scale where two halves of the plain ones are 0 and initial weights
    are 1. Each group of plain networks is compared with another group of twins, since twins share initial weights and batches; filters of
    both are at unit norm first, the output layer compensating, so that their length is no difference."""
    count = population_size(plain)
    first = initial(problem.net, torch.arange(count, 2 * count, device=plain[FILTERS].device), seed)
    parts = [plain, twin, first]
    found: dict[str, list[float]] = {view: [] for view in VIEWS}
    for view in VIEWS:
        together = {name: torch.cat([part[name] for part in parts]) for name in plain}
        at_unit = canonicalize(together, problem.symmetries, "unit_norm", None)
        points = flat(seen(problem, at_unit, view, "unit_norm"))
        x, y, start = (part.split(count // groups)[:groups] for part in points.split(count))
        for k in range(groups):
            other = y[(k + 1) % groups]
            reference = Reference(x[k], bandwidths(x[k], other))
            scale = reference.scale(start[k], seed=seed)
            found[view].append(float(scale.scaled(reference.mmd2(other).mean())))
    return {view: np.array(values) for view, values in found.items()}


def measure_apart(cell: str, found: Mapping[str, Float[np.ndarray, " groups"]], n: int) -> list[Measurement]:
    """X-C9: the scaled MMD² in the aligned view; Student's t over groups."""
    values = found[ALIGNED]
    return [Measurement("aligned_distance", cell, *student(values), n=n, seeds=len(values))]


def measure_barriers(cell: str, plain: Pairs, twin: Pairs) -> list[Measurement]:
    """X-C10: mean aligned barrier of the test loss, unit-norm over plain networks, both aligned among equally many. The jackknife
    leaves out a network together with its twin, since they share initial directions and batches."""
    n = len(plain.loss)
    if len(twin.loss) != n:
        raise ValueError(
            f"{len(twin.loss)} twins stand beside {n} networks: their barriers are compared twin by twin, so pass equally many."
        )

    def ratio(groups: list[np.ndarray]) -> np.ndarray:
        return np.array([of_pairs(twin.loss, groups[0]) / of_pairs(plain.loss, groups[0])])

    value, low, high = (float(x[0]) for x in jackknife(ratio, [n]))
    return [Measurement("barrier_ratio", cell, value, low, high, n=n, seeds=n)]


@dataclass(frozen=True)
class Summary:
    """One population in numbers: mean test accuracy and test loss, training loss, and median excess mass in per cent."""

    accuracy: float
    loss: float
    training_loss: float
    excess: float


def summary(problem: Problem, params: Params) -> Summary:
    """What a population is like as trained."""
    test, learn = (
        evaluate(problem.net, params, part.inputs, part.targets) for part in (problem.test, problem.learn)
    )
    return Summary(
        float(test["accuracy"].double().mean()),
        float(test["loss"].double().mean()),
        float(learn["loss"].double().mean()),
        float(excess(params, problem.symmetries).median()),
    )
