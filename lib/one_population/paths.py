"""All pairs of one population: the rise of test loss and of the posterior's energy on their lines, and how they differ as functions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import spearmanr
from torch import Tensor

from lib.connectivity import lines
from lib.diversity import pairwise_mutual_information
from lib.intervals import jackknife
from lib.one_population.energy import Heat
from lib.one_population.problem import Problem, flat
from lib.params import Params, population_size
from lib.population import predict
from lib.rules import Measurement
from lib.three_models.stars import of_pairs

Table = Float[np.ndarray, "n n"]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Of n networks in one view, each (n, n), symmetric, NaN on the diagonal: barriers of the test loss (nats) and the test error,
    and of the posterior's energy (nats), each above the straight line between the ends."""

    loss: Table
    error: Table
    energy: Table


def pairs(problem: Problem, params: Params, alphas: int) -> Pairs:
    """The lines of all pairs at ``alphas`` points."""
    n = population_size(params)
    which = torch.combinations(torch.arange(n))
    learn, test = problem.learn, problem.test
    seen = lines(problem.net, params, which, test.inputs, test.targets, alphas)
    trained = lines(problem.net, params, which, learn.inputs, learn.targets, alphas)
    rise = problem.examples * trained.excess("loss") + decay_excess(problem, params, which, trained.alphas)
    return Pairs(*(_table(n, which, v) for v in (seen.barrier("loss"), seen.barrier("error"), rise.amax(1))))


def decay_excess(
    problem: Problem, params: Params, which: Tensor, alphas: Float[Tensor, " A"]
) -> Float[Tensor, "K A"]:
    """What the weight decay adds to the energy above the straight line: -α (1 - α) n wd |a - b|² / 2, never above zero."""
    points = flat(params).double()
    apart = (points[which[:, 0]] - points[which[:, 1]]).square().sum(1).cpu()
    return -0.5 * problem.precision * apart[:, None] * alphas * (1 - alphas)


def function_distance(problem: Problem, params: Params) -> Table:
    """Mutual information of each pair's predictions on the test set, in nats; it is the same in every view."""
    probabilities = predict(problem.net, params, problem.test.inputs).softmax(-1)
    found = pairwise_mutual_information(probabilities).cpu().numpy()
    np.fill_diagonal(found, np.nan)
    return found


def _table(n: int, which: Tensor, values: Tensor) -> Table:
    found = np.full((n, n), np.nan)
    first, second = which.T.cpu().numpy()
    found[first, second] = found[second, first] = values.cpu().numpy()
    return found


# ------------------------------------------------------------------------------------------------------- measurements


def rank_correlation(first: Table, second: Table, some: np.ndarray) -> float:
    """Spearman's, over all pairs of some networks."""
    rows, columns = (some[i] for i in np.triu_indices(len(some), 1))
    return float(spearmanr(first[rows, columns], second[rows, columns]).statistic)


def measure_rise(cell: str, found: Pairs, heat: Heat, view: str) -> list[Measurement]:
    """X-C1 (aligned) and X-C2 (raw): mean rise of the energy on the line of two networks over the posterior's heat; not a number
    where the chains of the heat have not arrived."""
    heats = heat.values if heat.arrived else np.full_like(heat.values, np.nan)
    return [
        _measured(
            f"{view}_rise",
            cell,
            lambda g: of_pairs(found.energy, g[0]) / heats[g[1]].mean(),
            [len(found.energy), len(heats)],
        )
    ]


def measure_distance(cell: str, aligned: Pairs, distance: Table) -> list[Measurement]:
    """X-C11: rank correlation, over pairs, of the aligned barrier with the distance of the two functions."""
    return [
        _measured(
            "distance_correlation",
            cell,
            lambda g: rank_correlation(aligned.loss, distance, g[0]),
            [len(distance)],
        )
    ]


def measure_density(cell: str, aligned: Pairs) -> list[Measurement]:
    """X-C12: rank correlation, over pairs, of the barrier in test loss with the rise of the posterior's energy."""
    return [
        _measured(
            "density_correlation",
            cell,
            lambda g: rank_correlation(aligned.loss, aligned.energy, g[0]),
            [len(aligned.loss)],
        )
    ]


def level(values: Table) -> tuple[float, float, float]:
    """The mean over pairs with its interval over networks."""
    found = jackknife(lambda g: np.array([of_pairs(values, g[0])]), [len(values)])
    return tuple(float(x[0]) for x in found)


def _measured(name: str, cell: str, statistic, sizes: list[int]) -> Measurement:
    value, low, high = (float(x[0]) for x in jackknife(lambda g: np.array([statistic(g)]), sizes))
    return Measurement(name, cell, value, low, high, n=sizes[0], seeds=min(sizes))
