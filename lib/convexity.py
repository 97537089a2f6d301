"""Is the minimum mass one convex problem with one solution? Four solvers, many starts, and the curvature (P1-C4).

The mass of a network over its log-scales u is m(u) = Σ_k c_k exp(2 a_k · u) (lib.symmetry.LogScaleObjective).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lib import randomness
from lib.claims import Measurement
from lib.data import load
from lib.networks import perceptron
from lib.params import Params, member, population_size
from lib.population import Recipe, initial, train
from lib.symmetry import LogScaleObjective, Symmetries, find_symmetries, log_scale_objective, min_mass

CLARABEL = {
    "tol_gap_abs": 1e-11,
    "tol_gap_rel": 1e-11,
    "tol_feas": 1e-11,
}  # its default 1e-8 would be the spread

Solver = Callable[[LogScaleObjective, np.ndarray], np.ndarray]


DIGITS = Recipe(lr=0.1, batch_size=64, epochs=20)


def digit_inputs() -> Float[Tensor, "n 64"]:
    """scikit-learn's training digits, as vectors in [0, 1]."""
    return load("digits", "train", flat=True).inputs


def trained_digits(networks: int, *, seed: int, device: torch.device | str = "cpu") -> Params:
    """A population of 64-16-10 ReLU networks trained on digits; those that diverged are left out."""
    digits = load("digits", "train", flat=True)
    net = perceptron((64, 16, 10))
    population = train(net, digits.inputs, digits.targets, DIGITS, members=networks, seed=seed, device=device)
    return population.where(population.finite).params


def untrained(widths: Sequence[int], networks: int, *, seed: int) -> Params:
    """Perceptrons as PyTorch initialises them, in float64."""
    return dict(initial(perceptron(widths).double(), networks, seed))


def symmetries_of(widths: Sequence[int]) -> Symmetries:
    """The symmetries of a ReLU perceptron of these widths."""
    return find_symmetries(perceptron(widths), torch.zeros(2, widths[0]))


def midpoint_violations(
    objective: LogScaleObjective, u: Float[Tensor, "pairs n"], v: Float[Tensor, "pairs n"]
) -> int:
    """How many pairs violate m((u + v) / 2) <= (m(u) + m(v)) / 2, with 1e-12 relative for rounding."""
    return int((objective((u + v) / 2) > (objective(u) + objective(v)) / 2 * (1 + 1e-12)).sum())


def curvature(objective: LogScaleObjective, u: Float[Tensor, "*K n"]) -> Float[Tensor, "*K"]:
    """Smallest eigenvalue of the Hessian at u over its largest."""
    values = torch.linalg.eigvalsh(objective.hessian(u))
    return values[..., 0] / values[..., -1]


def lbfgs(objective: LogScaleObjective, start: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """SciPy's L-BFGS from ``start``, to the end of what float64 can see."""
    from scipy.optimize import minimize

    value, gradient, _ = _functions(objective)
    options = {"maxiter": 10_000, "maxfun": 100_000, "ftol": 1e-14, "gtol": 1e-10, "maxcor": 20}
    return minimize(value, start, jac=gradient, method="L-BFGS-B", options=options).x


def newton(objective: LogScaleObjective, start: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """SciPy's trust-region Newton with the exact Hessian from ``start``."""
    from scipy.optimize import minimize

    value, gradient, hessian = _functions(objective)
    options = {"gtol": 1e-11, "maxiter": 1_000}
    return minimize(value, start, jac=gradient, hess=hessian, method="trust-exact", options=options).x


def cone_program(objective: LogScaleObjective, start: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """CVXPY with Clarabel, an interior-point method; it takes no start, so the network itself is moved there first."""
    import cvxpy

    exponents = 2 * objective.exponents.numpy()
    moved = objective.coefficients.numpy() * np.exp(exponents @ start)
    u = cvxpy.Variable(exponents.shape[1])
    mass = cvxpy.sum(cvxpy.exp(exponents @ u + np.log(moved / moved.sum())))
    with warnings.catch_warnings():
        # Clarabel says so where it stops short of 1e-10; the mass at its answer, found here, is what judges it.
        warnings.filterwarnings("ignore", message="Solution may be inaccurate")
        cvxpy.Problem(cvxpy.Minimize(mass)).solve(solver="CLARABEL", **CLARABEL)
    return start + u.value


SOLVERS: dict[str, Solver] = {"L-BFGS": lbfgs, "Newton": newton, "CVXPY": cone_program}


def descended(
    params: Params, symmetries: Symmetries, starts: Float[Tensor, "P S n"]
) -> Float[np.ndarray, "P S"]:
    """The minimum mass of every network of a population from each of its own S starts, by coordinate descent."""
    each = starts.shape[1]
    copies = {name: tensor.repeat_interleave(each, 0) for name, tensor in params.items()}
    sizes = [freedom.size for freedom in symmetries.scales]
    found = min_mass(copies, symmetries, start=starts.flatten(0, 1).split(sizes, dim=1))
    return found.mass.unflatten(0, starts.shape[:2]).cpu().numpy()


def solved_by(
    solver: Solver, objective: LogScaleObjective, starts: Float[Tensor, "S n"]
) -> Float[np.ndarray, " S"]:
    """The minimum mass of one network from each start by a general solver, evaluated by the same objective."""
    ends = np.stack([solver(objective, start) for start in starts.numpy()])
    return objective(torch.from_numpy(ends)).numpy()


def measure(
    params: Params, symmetries: Symmetries, cell: str, *, pairs: int, starts: int, solved: int, seed: int
) -> list[Measurement]:
    """The four measurements of claim P1-C4 on a population (P, ...) in float64.

    Coordinate descent runs from ``starts`` points of every network's orbit, the other solvers from the same points
    of the first ``solved`` networks; ``pairs`` midpoint inequalities are shared out among the networks.
    """
    networks = population_size(params)
    chosen = [member(params, i) for i in range(networks)]
    objectives = [log_scale_objective(one, symmetries) for one in chosen]
    size, shares = sum(objectives[0].sizes), -(-pairs // networks)
    each = torch.arange(networks)
    ends = randomness.normal(seed, each, "midpoint ends", 0, (2, shares, size), torch.float64)
    points = randomness.normal(seed, each, "starts", 0, (starts, size), torch.float64)

    violations = sum(midpoint_violations(objectives[i], *ends[i]) for i in range(networks))
    found = [[row] for row in descended(params, symmetries, points)]
    for i in range(min(solved, networks)):
        found[i] += [solved_by(solver, objectives[i], points[i]) for solver in SOLVERS.values()]
    masses = [np.concatenate(rows) for rows in found]
    spreads = [float((row.max() - row.min()) / row.min()) for row in masses]
    runs = sum(len(row) for row in masses)

    optimum = torch.cat(min_mass(params, symmetries).log_scales, dim=1)
    eigenvalues = [float(curvature(objectives[i], optimum[i])) for i in range(networks)]
    zero = torch.zeros(size, dtype=torch.float64)
    lame = [log_scale_objective(without_unit(one, symmetries), symmetries) for one in chosen]
    boundary = [abs(float(curvature(objective, zero))) for objective in lame]

    def summary(name: str, values: list[float], n: int, worst: Callable) -> Measurement:
        return Measurement(
            name, cell, float(worst(values)), float(min(values)), float(max(values)), n=n, seeds=networks
        )

    return [
        Measurement(
            "convexity_violations",
            cell,
            violations,
            violations,
            violations,
            n=networks * shares,
            seeds=networks,
        ),
        summary("optimum_spread", spreads, runs, max),
        summary("smallest_eigenvalue", eigenvalues, networks, min),
        summary("boundary", boundary, networks, max),
    ]


def measure_all(orbits: Mapping[str, tuple[Sequence[int], Params]], **sizes: int) -> list[Measurement]:
    """`measure` for several kinds of perceptron: cell -> (widths, population), taken to float64 on the CPU."""
    found = []
    for cell, (widths, params) in orbits.items():
        doubles = {name: tensor.double().cpu() for name, tensor in params.items()}
        found += measure(doubles, symmetries_of(widths), cell, **sizes)
    return found


def without_unit(params: Params, symmetries: Symmetries) -> Params:
    """A copy of one network whose first unit of the first freedom has lost all its weights: a dead unit."""
    dead = {name: tensor.clone() for name, tensor in params.items()}
    for place in symmetries.scales[0].places:
        dead[place.name].index_fill_(place.axis, place.index[0], 0.0)
    return dead


def _functions(objective: LogScaleObjective):
    """Value, gradient and Hessian in NumPy, relative to the mass at u = 0."""
    exponents = 2 * objective.exponents.numpy()
    coefficients = objective.coefficients.numpy() / float(objective.coefficients.sum())

    def terms(u: np.ndarray) -> np.ndarray:
        return coefficients * np.exp(exponents @ u)

    return (
        lambda u: terms(u).sum(),
        lambda u: exponents.T @ terms(u),
        lambda u: (exponents.T * terms(u)) @ exponents,
    )
