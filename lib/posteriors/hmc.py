r"""Hamiltonian Monte Carlo, many chains at once, with the Metropolis correction.

$$ H(\theta, p) = -\log \pi(\theta) + \tfrac12 \|p\|^2, \qquad a = \min\{1, \exp(H(\theta, p) - H(\theta', p'))\} $$

where $(\theta', p')$ is reached by ``leapfrog`` steps (Duane et al. 1987; Neal 2011, *MCMC using Hamiltonian
dynamics*, section 3). Each chain's step size carries a log-normal jitter drawn independently of its state, which
keeps the kernel reversible and lets it cross scales that differ along the orbit of a rescaled unit. Chains never
depend on each other after warm-up; during warm-up they share one step size, tuned to the wanted acceptance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib import randomness
from lib.device import one_thread
from lib.posteriors.moves import Move
from lib.posteriors.target import Target


@dataclass(frozen=True)
class State:
    """C chains at one moment: positions (C, D), their log densities (C,) and gradients (C, D)."""

    position: Float[Tensor, "C D"]
    log_density: Float[Tensor, " C"]
    gradient: Float[Tensor, "C D"]


@dataclass(frozen=True)
class Kernel:
    """How a transition moves: step size, leapfrog steps, spread of the step size's jitter (natural log)."""

    step_size: float
    leapfrog: int
    jitter: float = 0.3


@dataclass(frozen=True)
class Noise:
    """The random numbers of one transition: normal momenta (C, D) and jitter (C,), uniform chance (C,), and two
    uniform numbers for each extra move (C, moves, 2)."""

    momentum: Float[Tensor, "C D"]
    jitter: Float[Tensor, " C"]
    chance: Float[Tensor, " C"]
    jumps: Float[Tensor, "C moves 2"]


BLOCK = 64  # transitions whose noise is drawn in one call


def noises(seed: int, start: Float[Tensor, "C D"], moves: int = 0) -> Iterator[Noise]:
    """The noise of transition 0, 1, 2, ... of C chains; chain i's depends on (seed, i, transition) alone."""
    chains = torch.arange(len(start), device=start.device)
    dimension, dtype = start.shape[1], start.dtype
    for block in count():
        normal = randomness.normal(seed, chains, "hmc momentum", block, (BLOCK, dimension + 1), dtype)
        uniform = randomness.uniform(seed, chains, "hmc acceptance", block, (BLOCK, 1 + 2 * moves), dtype)
        for t in range(BLOCK):
            jumps = uniform[:, t, 1:].unflatten(1, (moves, 2))
            yield Noise(normal[:, t, 1:], normal[:, t, 0], uniform[:, t, 0], jumps)


@dataclass(frozen=True)
class Samples:
    """Draws kept after warm-up.

    Attributes:
        positions: (draws, C, D).
        log_density: (draws, C).
        acceptance: mean acceptance probability of each chain, (C,).
        jumps: share of the extra moves that each chain took, (C,); 0 without moves.
        step_size: the tuned step size.
        diverged: transitions whose energy rose by more than 1,000, per chain, (C,).
    """

    positions: Float[Tensor, "draws C D"]
    log_density: Float[Tensor, "draws C"]
    acceptance: Float[Tensor, " C"]
    jumps: Float[Tensor, " C"]
    step_size: float
    diverged: Tensor


class StuckChains(RuntimeError):
    """No chain moves: the sample would be its own starting point."""


def init(target: Target, position: Float[Tensor, "C D"]) -> State:
    """State of C chains that start at ``position``; raises ValueError where the density is zero or not finite."""
    log_density, gradient = target(position)
    if not torch.isfinite(log_density).all():
        lost = int((~torch.isfinite(log_density)).sum())
        raise ValueError(
            f"{lost} of {len(position)} chains start where the log density is not finite: start elsewhere."
        )
    return State(position, log_density, gradient)


def update(
    state: State, target: Target, kernel: Kernel, noise: Noise
) -> tuple[State, Float[Tensor, " C"], Bool[Tensor, " C"]]:
    """One transition of every chain: the new state, the acceptance probabilities and which chains diverged."""
    momentum = noise.momentum
    epsilon = kernel.step_size * torch.exp(kernel.jitter * noise.jitter)[:, None]
    energy = 0.5 * (momentum**2).sum(1) - state.log_density
    position, log_density, gradient = state.position, state.log_density, state.gradient
    momentum = momentum + 0.5 * epsilon * gradient
    for i in range(kernel.leapfrog):
        position = position + epsilon * momentum
        log_density, gradient = target(position)
        momentum = momentum + (epsilon if i + 1 < kernel.leapfrog else 0.5 * epsilon) * gradient
    rise = 0.5 * (momentum**2).sum(1) - log_density - energy
    rise = torch.where(torch.isfinite(rise), rise, torch.full_like(rise, math.inf))
    probability = torch.exp(-rise.clamp_min(0.0))

    new = State(position, log_density, gradient)
    return _accept(state, new, noise.chance < probability), probability, rise > 1000.0


def jump(
    state: State, target: Target, move: Move, numbers: Float[Tensor, "C 2"]
) -> tuple[State, Bool[Tensor, " C"]]:
    """Propose one exact move to every chain; the new state and which chains took it."""
    number, chance = numbers.unbind(1)
    position = move(state.position, number)
    log_density, gradient = target(position)
    accepted = (
        torch.log(chance) < log_density - state.log_density
    )  # False where the proposal's density is NaN
    return _accept(state, State(position, log_density, gradient), accepted), accepted


def _accept(old: State, new: State, accepted: Tensor) -> State:
    return State(
        torch.where(accepted[:, None], new.position, old.position),
        torch.where(accepted, new.log_density, old.log_density),
        torch.where(accepted[:, None], new.gradient, old.gradient),
    )


@one_thread()
def sample(
    target: Target,
    start: Float[Tensor, "C D"],
    *,
    warmup: int,
    draws: int,
    leapfrog: int = 10,
    step_size: float = 0.1,
    acceptance: float = 0.75,
    jitter: float = 0.3,
    moves: Sequence[Move] = (),
    seed: int = 0,
) -> Samples:
    """``draws`` positions of each of C chains after ``warmup`` transitions that tune the shared step size.

    After each transition every one of the extra exact ``moves`` is proposed once.

    The tuning (Robbins & Monro on the log step size, gain 0.5 (t + 1)^-0.4) stops with the warm-up, so that the
    kept draws come from one fixed kernel. Raises StuckChains when a tenth of the chains accept less than 1 in 100.
    """
    state, kernel = init(target, start), Kernel(step_size, leapfrog, jitter)
    noise = noises(seed, start, len(moves))
    log_step = math.log(step_size)
    for t in range(warmup):
        drawn = next(noise)
        state, probability, _ = update(state, target, kernel, drawn)
        for i, move in enumerate(moves):
            state, _ = jump(state, target, move, drawn.jumps[:, i])
        log_step += 0.5 * (t + 1) ** -0.4 * (float(probability.mean()) - acceptance)
        # Wide jitter at first: a chain that starts on a cliff needs steps far smaller than its neighbours'.
        kernel = replace(
            kernel, step_size=math.exp(log_step), jitter=max(jitter, 1.0) if 2 * t < warmup else jitter
        )

    positions, log_density = start.new_empty(draws, *start.shape), start.new_empty(draws, len(start))
    total, jumps, diverged = start.new_zeros(3, len(start))
    for t in range(draws):
        drawn = next(noise)
        state, probability, lost = update(state, target, kernel, drawn)
        for i, move in enumerate(moves):
            state, taken = jump(state, target, move, drawn.jumps[:, i])
            jumps += taken / (draws * len(moves))
        positions[t], log_density[t] = state.position, state.log_density
        total += probability
        diverged += lost
    mean = total / draws
    if (mean < 0.01).double().mean() > 0.1:
        raise StuckChains(
            f"more than a tenth of the {len(start)} chains accept fewer than 1 in 100 moves at step size "
            f"{kernel.step_size:.3g}: lengthen the warm-up, shorten the trajectory, or start nearer to the posterior."
        )
    return Samples(positions, log_density, mean, jumps, kernel.step_size, diverged)
