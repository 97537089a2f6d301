"""Is the minimum mass one convex problem with one solution? Four solvers, many starts, and the curvature (P1-C4).

The mass of a network over its log-scales u is m(u) = Σ_k c_k exp(2 a_k · u) (lib.symmetry.LogScaleObjective).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lib import randomness
from lib.claims import Measurement
from lib.params import Params, member, population_size
from lib.symmetry import LogScaleObjective, Symmetries, log_scale_objective, min_mass

Solver = Callable[[LogScaleObjective, np.ndarray], np.ndarray]


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
    options = {"maxiter": 10_000, "maxfun": 100_000, "ftol": 0.0, "gtol": 1e-12, "maxcor": 30}
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
    cvxpy.Problem(cvxpy.Minimize(mass)).solve(solver="CLARABEL")
    return start + u.value


SOLVERS: dict[str, Solver] = {"L-BFGS": lbfgs, "Newton": newton, "CVXPY": cone_program}


def minima(
    params: Params, symmetries: Symmetries, starts: Float[Tensor, "S n"], solvers: Mapping[str, Solver]
) -> dict[str, Float[np.ndarray, " S"]]:
    """The minimum mass of one network from every start by each solver, all evaluated by the same objective."""
    objective = log_scale_objective(params, symmetries)
    copies = {name: tensor.expand(len(starts), *tensor.shape) for name, tensor in params.items()}
    found = {"coordinate descent": min_mass(copies, symmetries, start=objective.split(starts)).mass.numpy()}
    for name, solve in solvers.items():
        ends = np.stack([solve(objective, start) for start in starts.numpy()])
        found[name] = objective(torch.from_numpy(ends)).numpy()
    return found


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
    size = sum(objectives[0].sizes)
    each = torch.arange(networks)
    violations, shares = 0, -(-pairs // networks)
    ends = randomness.normal(seed, each, "midpoint ends", 0, (2, shares, size), torch.float64)
    points = randomness.normal(seed, each, "starts", 0, (starts, size), torch.float64)

    spreads, eigenvalues, boundary, runs = [], [], [], 0
    for i, (one, objective) in enumerate(zip(chosen, objectives, strict=True)):
        violations += midpoint_violations(objective, *ends[i])
        found = np.concatenate(
            list(minima(one, symmetries, points[i], SOLVERS if i < solved else {}).values())
        )
        spreads.append((found.max() - found.min()) / found.min())
        runs += len(found)
        eigenvalues.append(float(curvature(objective, torch.cat(min_mass(one, symmetries).log_scales))))
        dead = log_scale_objective(without_unit(one, symmetries), symmetries)
        boundary.append(abs(float(curvature(dead, torch.zeros(size, dtype=torch.float64)))))

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
