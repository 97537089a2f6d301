"""Moves that leave a tempered target unchanged, for P particles in each of R problems at once.

A move takes a `State`, the target, the temperature and its random numbers, and returns the new state with the
acceptance probabilities (R, P). All but HMC use what is known of a network beforehand: that a unit can be rescaled, that the
outgoing weights of a dead unit do not matter, that units can be exchanged, and that a unit may be drawn afresh.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lib.free_energy.targets import Target
from lib.smc.units import Units


@dataclass(frozen=True)
class State:
    """Positions (R, P, D) and the log-likelihood log ell_t of each (R, P)."""

    position: Float[Tensor, "R P D"]
    log_likelihood: Float[Tensor, "R P"]

    def accept(self, new: State, chance: Float[Tensor, "R P"], probability: Float[Tensor, "R P"]) -> State:
        """``new`` where a uniform number falls below its acceptance probability, else this state."""
        taken = chance < probability  # False where the probability is not a number
        return State(
            torch.where(taken[..., None], new.position, self.position),
            torch.where(taken, new.log_likelihood, self.log_likelihood),
        )


def at(position: Float[Tensor, "R P D"], target: Target, t: Float[Tensor, "R 1"]) -> State:
    """The state of particles at these positions."""
    return State(position, target.log_likelihood(target.statistics(position), t))


def _probability(log_ratio: Tensor) -> Tensor:
    return torch.exp(log_ratio.clamp_max(0.0)).nan_to_num(0.0)


def hmc(
    state: State,
    target: Target,
    t: Float[Tensor, "R 1"],
    step: Float[Tensor, "R P"],
    leapfrog: int,
    momentum: Float[Tensor, "R P D"],
    chance: Float[Tensor, "R P"],
    factor: Float[Tensor, "R D D"] | None = None,
) -> tuple[State, Tensor]:
    """One transition of Hamiltonian Monte Carlo in units of the prior's scale, ``step`` long for each particle.

    ``factor`` L makes LL' the inverse mass: in coordinates L^-1 z a posterior with that covariance is round.
    """
    scale, step = target.scale, step[..., None]

    def velocity(momentum: Tensor) -> Tensor:
        return momentum if factor is None else momentum @ factor.mT

    def force(slope: Tensor, z: Tensor) -> Tensor:
        pull = slope * scale - z
        return pull if factor is None else pull @ factor

    z = state.position / scale
    before = state.log_likelihood - 0.5 * (z.square() + momentum.square()).sum(-1)
    _, slope = target.gradient(state.position, t)
    momentum = momentum + 0.5 * step * force(slope, z)
    for i in range(leapfrog):
        z = z + step * velocity(momentum)
        value, slope = target.gradient(z * scale, t)
        momentum = momentum + (step if i + 1 < leapfrog else 0.5 * step) * force(slope, z)
    after = value - 0.5 * (z.square() + momentum.square()).sum(-1)
    probability = _probability(after - before)
    return state.accept(State(z * scale, value), chance, probability), probability


def spread(position: Float[Tensor, "R P D"], scale: Float[Tensor, " D"]) -> Float[Tensor, "R D D"]:
    """The lower Cholesky factor of each problem's covariance over its particles, in units of the prior's scale.

    A thousandth of the mean variance and a trace of the prior's are added on the diagonal: resampled particles may repeat each
    other, and copies of one draw have no spread at all.
    """
    z = position / scale
    z = z - z.mean(1, keepdim=True)
    covariance = z.mT @ z / z.shape[1]
    mean = covariance.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None]
    floor = (1e-3 * mean + 1e-8) * torch.eye(z.shape[2], dtype=z.dtype, device=z.device)
    return torch.linalg.cholesky(covariance + floor)


def redraw(
    state: State,
    target: Target,
    t: Float[Tensor, "R 1"],
    units: Units,
    fresh: Float[Tensor, "R P D"],
    choice: Float[Tensor, "R P"],
    chance: Float[Tensor, "R P"],
) -> tuple[State, Tensor]:
    """Draw the incoming weights and bias of one random unit from the prior; ``fresh`` is a draw of all of them."""
    places = units.incoming[units.pick(choice)]
    proposal = state.position.scatter(-1, places, (fresh * target.scale).gather(-1, places))
    new = at(proposal, target, t)
    probability = _probability(new.log_likelihood - state.log_likelihood)
    return state.accept(new, chance, probability), probability


SPREAD = 1.0  # standard deviation of the logarithm of the factor that a unit is rescaled by


def rescale(
    state: State,
    target: Target,
    t: Float[Tensor, "R 1"],
    units: Units,
    choice: Float[Tensor, "R P"],
    normal: Float[Tensor, "R P"],
    chance: Float[Tensor, "R P"],
) -> tuple[State, Tensor]:
    """Multiply what goes into one random unit by c = exp(normal) and divide what leaves it.

    The map's Jacobian is c to the number of incoming minus that of outgoing parameters. The likelihood of a network with
    positively homogeneous units does not change; where the outgoing weights are integrated out it does.
    """
    unit, log_c = units.pick(choice), SPREAD * normal
    exponent = units.exponents[unit]
    proposal = state.position * torch.exp(exponent * log_c[..., None])
    prior = 0.5 * ((state.position / target.scale).square() - (proposal / target.scale).square()).sum(-1)
    log_ratio = prior + exponent.sum(-1) * log_c
    if units.collapsed:
        new = at(proposal, target, t)
        log_ratio = log_ratio + new.log_likelihood - state.log_likelihood
    else:
        new = State(proposal, state.log_likelihood)
    probability = _probability(log_ratio)
    return state.accept(new, chance, probability), probability


def refresh_dead(
    state: State, target: Target, units: Units, fresh: Float[Tensor, "R P D"]
) -> tuple[State, Tensor]:
    """Draw the outgoing weights of every dead unit from the prior: they do not enter the likelihood (a Gibbs move)."""
    dead = target.dead(state.position).to(fresh.dtype)
    free = (dead @ units.outgoing.to(fresh)) > 0
    position = torch.where(free, fresh * target.scale, state.position)
    return State(position, state.log_likelihood), torch.ones_like(state.log_likelihood)


def permute(state: State, units: Units, choice: Float[Tensor, "R P"]) -> tuple[State, Tensor]:
    """Exchange two random units of one layer, with all that enters and leaves them: always accepted."""
    pairs = units.exchanges
    if not len(pairs):
        return state, torch.zeros_like(state.log_likelihood)
    table = pairs[(choice * len(pairs)).long().clamp_max(len(pairs) - 1)]
    return State(state.position.gather(-1, table), state.log_likelihood), torch.ones_like(
        state.log_likelihood
    )


def systematic(
    log_weights: Float[Tensor, "R P"], shift: Float[Tensor, " R"], count: int | None = None
) -> Int64[Tensor, "R count"]:
    """Indices of systematic resampling: equally spaced points on the cumulated weights, shifted by one uniform number a row."""
    edges = torch.softmax(log_weights, dim=1).cumsum(1)
    edges = edges / edges[:, -1:]
    count = count or edges.shape[1]
    points = (torch.arange(count, device=edges.device) + shift[:, None]) / count
    return torch.searchsorted(edges, points).clamp_max(edges.shape[1] - 1)


def step_factors(jitter: float, normal: Float[Tensor, "R P"]) -> Tensor:
    """Log-normal factors of the step size, drawn independently of the state, so that the kernel stays reversible."""
    return torch.exp(jitter * normal - 0.5 * math.pow(jitter, 2))
