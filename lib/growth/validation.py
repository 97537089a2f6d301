"""The instruments on problems with known answers: bias and coverage over many data sets (P2-C11)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lib import randomness
from lib.claims import Measurement
from lib.free_energy import coefficients, evidence, truths
from lib.free_energy.regression import Regression
from lib.free_energy.targets import target
from lib.free_energy.truths import T1, Truth
from lib.growth.sound import interval, sounded
from lib.parallel import side_by_side
from lib.smc import Run, Settings, bracket, estimates, islands, sample

PLAIN = Settings(redraws=0, rescales=0, ess=0.8, stretch=1.6)  # for models without ReLU units
LINEAR = replace(
    PLAIN, ess=0.7, hmc=2, jitter=0.5, acceptance=0.8
)  # two transitions: one keeps too much of the energy
WHOLE = Settings(dead=True, hmc=2, ess=0.8, stretch=1.6)  # for all parameters of a network
EXAMPLES = 100  # of every data set here


@dataclass(frozen=True)
class Validation:
    """Estimates of one problem with a known answer, less the answer.

    Attributes:
        cell: its name.
        errors: by estimator, of the mean over copies, (B,).
        covered: whether the copies' 95 % interval holds the answer, (B,).
        wbic: WBIC minus F_n, (B,), and the exact WBIC minus F_n where that is known.
    """

    cell: str
    errors: dict[str, Float[np.ndarray, " B"]]
    covered: np.ndarray
    wbic: Float[np.ndarray, " B"]
    exact_wbic: Float[np.ndarray, " B"] | None = None


def linear_problems(sets: int, seed: int, parameters: int = 10, examples: int = EXAMPLES) -> Regression:
    """Linear regressions with standard normal inputs, unit noise and weights drawn from the prior N(0, 1)."""
    members = torch.arange(sets)

    def normal(purpose: str, *shape: int) -> Tensor:
        return randomness.normal(seed, members, purpose, 0, shape, torch.float64)

    inputs, noise = normal("linear inputs", examples, parameters), normal("linear noise", examples, 1)
    targets = inputs @ normal("linear weights", parameters, 1) + noise
    weights = torch.ones(sets, examples, dtype=torch.float64)
    return Regression(inputs, targets, weights, 0.5 * noise.square().sum((1, 2)))


def compress(problem: Regression) -> Regression:
    """A linear regression with one output as one of as many points as parameters, with the same energy for all weights.

    With X'QX = LL' the energy is half the squared distance of L'w from L^-1 X'Qy, plus a constant.
    """
    weighted = problem.inputs * problem.weights[..., None]
    factor = torch.linalg.cholesky(weighted.mT @ problem.inputs)
    targets = torch.linalg.solve_triangular(factor, weighted.mT @ problem.targets, upper=False)
    left_over = 0.5 * (problem.power - targets.square().sum((1, 2)))
    ones = torch.ones_like(targets[..., 0])
    return Regression(factor.mT.contiguous(), targets, ones, problem.truth - left_over)


def _tested(cell: str, run: Run, answer: Tensor, copies: int, exact_wbic: Tensor | None = None) -> Validation:
    def per_copy(values: Tensor) -> Tensor:
        return values.view(copies, -1).cpu()

    answer = answer.cpu()
    estimators = {
        "SMC": sounded(run)[-1],
        "thermodynamic integration": estimates.thermodynamic_integration(run),
        "stepping stone": estimates.stepping_stone(run),
    }
    errors = {name: (per_copy(values).mean(0) - answer).numpy() for name, values in estimators.items()}
    smc = per_copy(sounded(run)[-1])
    covered = np.array(
        [low <= a <= high for (_, low, high), a in zip(map(interval, smc.T.numpy()), answer, strict=True)]
    )
    wbic = (per_copy(run.energy[0]).mean(0) - answer).numpy()
    known = None if exact_wbic is None else (exact_wbic.cpu() - answer).numpy()
    return Validation(cell, errors, covered, wbic, known)


def _climb(
    problem: Regression, widths, copies: int, particles: int, seed: int, stream: int, settings: Settings, **of
) -> Run:
    count = len(problem)
    return sample(
        target(problem[islands(count, copies)], widths, **of),
        [estimates.wbic_temperature(EXAMPLES), 1.0],
        particles=particles,
        seed=seed,
        settings=settings,
        members=1_000_000 * stream + torch.arange(copies * count),
    )


def linear(*, sets: int, copies: int, particles: int, seed: int, device: torch.device) -> Validation:
    """Linear regression of ten parameters, in the space of all of them, against the closed form."""
    problem = linear_problems(sets, seed)
    small = compress(problem).to(device)
    run = _climb(
        small,
        (10, 1),
        copies,
        particles,
        seed,
        50,
        LINEAR,
        collapsed=False,
        bias=False,
    )
    half = torch.full((sets,), estimates.wbic_temperature(EXAMPLES), dtype=torch.float64)
    return _tested(
        "linear", run, evidence.linear(problem), copies, evidence.linear_energy(problem, 1.0, half)
    )


def one_unit(
    *, sets: int, copies: int, particles: int, seed: int, device: torch.device, whole: bool = False
) -> Validation:
    """The 1-1-1 network on data of T1 against quadrature; ``whole`` keeps its output layer in the sampler's space."""
    problem = truths.data(T1, EXAMPLES, sets, seed).to(device)
    known = target(problem, (1, 1, 1))
    answer = evidence.one_unit_free_energy(known, torch.ones(sets, 1, dtype=torch.float64, device=device))
    settings, stream = (WHOLE, 52) if whole else (Settings(ess=0.8, stretch=1.6), 51)
    run = _climb(problem, (1, 1, 1), copies, particles, seed, stream, settings, collapsed=not whole)
    return _tested("1-1-1, whole network" if whole else "1-1-1", run, answer, copies)


@dataclass(frozen=True)
class RankCase:
    """Reduced-rank regression of rank 3 with 6 inputs, 6 outputs and H hidden units: measured slopes (J,) and lambda."""

    hidden: int
    known: coefficients.Rlct
    slopes: Float[np.ndarray, " J"]
    particles: int


RANK, SIDE = 3, 6


def rank_problem(seed: int) -> Regression:
    """The population of a linear map of rank 3 between six inputs with unit covariance and six outputs, singular values 1.

    Six points on the axes have the second moments of standard normal inputs, and a linear model sees no more of them.
    """
    draw = randomness.normal(seed, torch.arange(2), "reduced rank", 0, (SIDE, RANK), torch.float64)
    left, right = (torch.linalg.qr(matrix).Q for matrix in draw)
    inputs = math.sqrt(SIDE) * torch.eye(SIDE, dtype=torch.float64)[None]
    return Regression(
        inputs,
        inputs @ right @ left.T,
        torch.full((1, SIDE), 1 / SIDE, dtype=torch.float64),
        torch.zeros(1, dtype=torch.float64),
    )


def reduced_rank(hidden: int, *, copies: int, particles: int, seed: int, device: torch.device) -> RankCase:
    """The last decade's slope of F0, n from 1e5 to 1e6."""
    problem = rank_problem(seed)[torch.zeros(copies, dtype=torch.int64)].to(device)
    run = sample(
        target(problem, (SIDE, hidden, SIDE), bias=False, activation="linear"),
        [1e5, 1e6],
        particles=particles,
        seed=seed,
        settings=replace(PLAIN, ess=0.6, stretch=math.inf, hmc=2, leapfrog=6),
        members=1_000_000 * (60 + hidden) + torch.arange(copies),
    )
    slopes = estimates.slope(sounded(run), run.t)[0].cpu().numpy()
    return RankCase(hidden, coefficients.rlct_reduced_rank(SIDE, hidden, SIDE, RANK), slopes, particles)


def gaps(
    *, sets: int, particles: int, seed: int, device: torch.device, width: int = 2
) -> Float[np.ndarray, " sets"]:
    """Bidirectional gaps for data drawn from the learner's own prior, 1-2-1 networks."""
    widths = (1, width, 1)
    parameters = coefficients.parameter_count(widths)
    teachers = randomness.normal(seed, torch.arange(sets), "teachers", 0, (parameters,), torch.float64)
    from lib.free_energy.regression import join

    made = [
        truths.data(Truth("prior", widths, tuple(teacher.tolist())), EXAMPLES, sets, seed)[i : i + 1]
        for i, teacher in enumerate(teachers)
    ]
    run = _climb(join(made).to(device), widths, 1, particles, seed, 53, Settings())
    hidden = teachers[:, : 2 * width].to(device)
    return bracket(run, hidden, particles=particles, seed=seed + 1).gap.cpu().numpy()


# ----------------------------------------------------------------------------------------- what the rules are judged on


def measure(
    validations: Sequence[Validation], ranks: Sequence[RankCase], gap: Float[np.ndarray, " sets"]
) -> list[Measurement]:
    """P2-C11: biases, coverages, reduced-rank coefficients, WBIC and the bidirectional gap."""
    found = []
    for one in validations:
        size = {"n": len(one.covered), "seeds": 1}
        for name, errors in one.errors.items():
            found.append(Measurement("evidence_bias", f"{one.cell}, {name}", *interval(errors), **size))
        found.append(Measurement("evidence_coverage", f"{one.cell}, SMC", *share(one.covered), **size))
        if one.cell in ("linear", "1-1-1"):
            root = math.sqrt(math.log(EXAMPLES))
            found.append(Measurement("wbic_bias", one.cell, *interval(one.wbic / root), **size))
            found.append(Measurement("wbic_coverage", one.cell, *share(abs(one.wbic) < 2 * root), **size))
    for case in ranks:
        error = case.slopes / case.known.value - 1
        name = "rank_error" if case.known.multiplicity == 1 else "rank_error_double"
        found.append(
            Measurement(name, f"H = {case.hidden}", *interval(error), n=case.particles, seeds=len(error))
        )
    found.append(Measurement("bidirectional_gap", "1-2-1", *interval(gap), n=len(gap), seeds=1))
    return found


def share(hits: np.ndarray) -> tuple[float, float, float]:
    """A share with its Clopper-Pearson 95 % interval."""
    from scipy.stats import binomtest

    test = binomtest(int(hits.sum()), len(hits)).proportion_ci(0.95)
    return float(hits.mean()), float(test.low), float(test.high)


def run_all(
    sizes, seed: int, device: torch.device
) -> tuple[list[Validation], list[RankCase], Float[np.ndarray, " sets"]]:
    """Every validation at the profile's sizes, side by side."""
    common = {"seed": seed, "device": device}
    many = {"sets": sizes.known_sets, "copies": sizes.known_copies, **common}
    pieces = [
        lambda: gaps(sets=sizes.gap_sets, particles=sizes.gap_particles, **common),
        *(
            lambda hidden=hidden: reduced_rank(
                hidden, copies=sizes.copies, particles=sizes.rank_particles, **common
            )
            for hidden in sizes.ranks
        ),
        lambda: one_unit(particles=sizes.known_particles, **many),
        lambda: linear(particles=sizes.linear_particles, **many),
        lambda: one_unit(particles=sizes.known_particles, whole=True, **many),
    ]
    gap, *ranks, collapsed, linear_case, whole = side_by_side(pieces, device)
    return [linear_case, collapsed, whole], ranks, gap
