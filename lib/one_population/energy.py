r"""The posterior's energy around trained classifiers: its heat, local coefficients and curvature.

$$ U(w) = n L_n(w) + \tfrac{n\,\mathrm{wd}}{2} \|w\|^2, \qquad p(w \mid \text{data}) \propto e^{-U(w)} . $$

The *heat* is E[U(w) - U(w*)] at temperature 1, by chains from a minimum w*: so high above it the posterior's own draws lie. The
*local coefficient* is that of ``lib.local_coefficient``, with U / n in the place of the loss, so that w* is a minimum of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import spearmanr
from torch import Tensor

from lib import randomness
from lib.device import no_denormals
from lib.free_energy.features import Layers
from lib.intervals import bootstrap, student
from lib.local_chains import Options
from lib.local_coefficient import descend, estimate
from lib.one_population.problem import Problem
from lib.params import Params
from lib.posteriors import hmc
from lib.posteriors import target as posterior
from lib.posteriors.curvature import diagonal
from lib.posteriors.target import ravel, unravel
from lib.rules import Measurement
from lib.symmetry import permute, random_permutations

DRIFT = 0.05  # of the heat
CACHE = 3 << 17  # activations of a block of networks: 1.5 MB


@dataclass(frozen=True, eq=False)
class Energy:
    """-t U as the log density that local chains ask for; R *problems* are R networks, whose chains stand side by side."""

    problem: Problem
    problems: int
    layers: Layers
    scale: Float[Tensor, " D"]
    collapsed: ClassVar[bool] = False

    @property
    def footprint(self) -> int:
        return self.problem.examples * sum(self.layers.widths[1:])

    def gradient(self, position: Float[Tensor, "R P D"], t: Float[Tensor, "R 1"]) -> tuple[Tensor, Tensor]:
        value, slope = self.density(position.flatten(0, 1))
        return t * value.view(position.shape[:2]), t[..., None] * slope.view_as(position)

    def statistics(self, position: Float[Tensor, "R P D"]) -> Float[Tensor, "R P"]:
        return -self.density(position.flatten(0, 1))[0].view(position.shape[:2])

    def log_likelihood(self, statistics: Tensor, t: Tensor) -> Float[Tensor, "R P"]:
        return -t * statistics

    def energy(self, statistics: Tensor, t: Tensor) -> Float[Tensor, "R P"]:
        return statistics

    def spread(self, statistics: Tensor, t: Tensor) -> Float[Tensor, "R P"]:
        return torch.zeros_like(statistics)

    def dead(self, position: Float[Tensor, "R P D"]) -> Tensor:
        raise NotImplementedError("dead units are asked for by samplers of the free energy only.")

    def density(self, flat: Float[Tensor, "C D"]) -> tuple[Tensor, Tensor]:
        """-U and its gradient at C networks; on a CPU a few at a time, whose activations stay in its cache."""
        learn = self.problem.learn
        target = posterior.log_posterior(
            self.problem.net,
            learn.inputs.to(flat.dtype),
            learn.targets,
            sigma=self.problem.precision**-0.5,
            log_likelihood=posterior.categorical,
        )
        if flat.device.type != "cpu":
            return target(flat)
        found = [target(block) for block in flat.split(max(1, CACHE // self.footprint))]
        return torch.cat([value for value, _ in found]), torch.cat([slope for _, slope in found])


def energy_of(problem: Problem, networks: int) -> Energy:
    """The energy for the chains of so many networks."""
    widths = (problem.learn.inputs.shape[1], problem.width, 10)
    layers = Layers(widths)
    scale = torch.full((layers.dimension,), problem.precision**-0.5, dtype=torch.float64)
    return Energy(problem, networks, layers, scale)


def minima(problem: Problem, params: Params, steps: int) -> Float[Tensor, "R D"]:
    """The minima of U to which trained networks descend (Adam on all examples, its rate falling to zero)."""
    points = ravel(params)
    return descend(energy_of(problem, len(points)), points, steps, rate=0.01)


@dataclass(frozen=True, eq=False)
class Heat:
    """E[U - U(w*)] in nats by the chain of each of R networks, and the ``drift``: the mean over all chains in the second half of the
    draws minus that in the first, relative to the whole. Where it exceeds ``DRIFT`` the chains are still on their way."""

    values: Float[np.ndarray, " R"]
    drift: float
    acceptance: float

    @property
    def arrived(self) -> bool:
        """Whether the chains may speak."""
        return abs(self.drift) <= DRIFT


@no_denormals()
def heat(
    problem: Problem,
    points: Float[Tensor, "R D"],
    *,
    warmup: int,
    draws: int,
    leapfrog: int,
    seed: int,
) -> Heat:
    """One chain from each minimum, begun at a draw of the independent Gaussian of its curvature: the whole heat is then nearly there."""
    energy = energy_of(problem, 1)
    learn = problem.learn
    curvature = diagonal(problem.net, points, learn.inputs, "cross_entropy") + problem.precision
    ids = torch.arange(len(points), device=points.device)
    away = randomness.normal(seed, ids, "heat start", 0, (points.shape[1],), points.dtype)
    found = hmc.sample(
        energy.density,
        points + away / curvature.sqrt(),
        warmup=warmup,
        draws=draws,
        leapfrog=leapfrog,
        step_size=0.02,
        seed=seed,
    )
    lowest = -energy.density(points)[0]
    above = (-found.log_density - lowest).double().cpu().numpy()
    first, second = (half.mean() for half in np.array_split(above, 2))
    return Heat(above.mean(0), float((second - first) / above.mean()), float(found.acceptance.mean()))


def sharpness(problem: Problem, points: Float[Tensor, "R D"]) -> Float[Tensor, " R"]:
    """Trace of the Gauss-Newton curvature of the mean loss at each network: large where the minimum is narrow."""
    learn = problem.learn
    return diagonal(problem.net, points, learn.inputs, "cross_entropy").sum(1) / problem.examples


@dataclass(frozen=True, eq=False)
class Local:
    """Of R minima: local coefficient, NaN where its chains are refused, its standard error, and the trace of the curvature."""

    value: Float[np.ndarray, " R"]
    error: Float[np.ndarray, " R"]
    sharpness: Float[np.ndarray, " R"]

    @property
    def sound(self) -> Bool[np.ndarray, " R"]:
        """Which chains may speak."""
        return np.isfinite(self.value)


@no_denormals()
def local(
    problem: Problem, points: Float[Tensor, "R D"], options: Options, seed: int, first: int = 0
) -> Local:
    """Coefficient and sharpness at each minimum; ``first`` numbers the networks in the random numbers."""
    members = torch.arange(first, first + len(points))
    found = estimate(
        energy_of(problem, len(points)), points, problem.examples, seed=seed, options=options, members=members
    )
    numbers = (found.value, found.standard_error, sharpness(problem, points))
    return Local(*(x.double().cpu().numpy() for x in numbers))


def permuted(problem: Problem, points: Float[Tensor, "R D"], seed: int) -> Float[Tensor, "R D"]:
    """The same functions with their units in random orders."""
    params = unravel(points, problem.net)
    perms = random_permutations(problem.symmetries, torch.Generator().manual_seed(seed), members=len(points))
    return ravel(permute(params, problem.symmetries, perms))


# ------------------------------------------------------------------------------------------------------- measurements


def measure_flatness(cell: str, found: Local, *, resamples: int, seed: int) -> list[Measurement]:
    """X-C5: Spearman's correlation, over networks, of the local coefficient with the curvature's trace; bootstrap over networks."""
    value, sharp = found.value[found.sound], found.sharpness[found.sound]
    if len(value) < 3:
        return [_silent("flatness_correlation", cell, len(value))]

    def statistic(rows: np.ndarray) -> np.ndarray:
        return np.array([spearmanr(value[rows], sharp[rows]).statistic])

    (middle,), (low,), (high,) = bootstrap(statistic, len(value), resamples=resamples, seed=seed)
    return [Measurement("flatness_correlation", cell, middle, low, high, n=len(value), seeds=len(value))]


def measure_alignment(cell: str, found: Local, moved: Local) -> list[Measurement]:
    """X-C6: the coefficient of permuted copies, by other noise, over that of the networks, minus 1; Student's t over networks."""
    few = len(moved.value)
    both = found.sound[:few] & moved.sound
    if both.sum() < 2:
        return [_silent("relative_change", cell, int(both.sum()))]
    change = (moved.value[both] - found.value[:few][both]) / found.value[:few][both].mean()
    return [Measurement("relative_change", cell, *student(change), n=int(both.sum()), seeds=int(both.sum()))]


def _silent(name: str, cell: str, n: int) -> Measurement:
    """Where too few chains may speak."""
    return Measurement(name, cell, None, None, None, n=n, seeds=n)
