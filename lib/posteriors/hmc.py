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
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn

from lib import randomness
from lib.device import one_thread
from lib.diagnostics import convergence
from lib.params import Params
from lib.population import Recipe
from lib.population.initialise import member_ids
from lib.posteriors.draws import Draws
from lib.posteriors.moves import Move
from lib.posteriors.target import Target, of_recipe, outputs_of, prior_precision, trained, unravel


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


def noises(
    seed: int, start: Float[Tensor, "C D"], moves: int = 0, members: Int64[Tensor, " C"] | None = None
) -> Iterator[Noise]:
    """The noise of transition 0, 1, 2, ... of C chains; chain i's depends on (seed, i, transition) alone."""
    chains = torch.arange(len(start), device=start.device) if members is None else members
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
    members: Int64[Tensor, " C"] | None = None,
) -> Samples:
    """``draws`` positions of each of C chains after ``warmup`` transitions that tune the shared step size.

    After each transition every one of the extra exact ``moves`` is proposed once. ``members`` number the chains.

    The tuning (Robbins & Monro on the log step size, gain 0.5 (t + 1)^-0.4) stops with the warm-up, so that the
    kept draws come from one fixed kernel. Raises StuckChains when a tenth of the chains accept less than 1 in 100.
    """
    state, kernel = init(target, start), Kernel(step_size, leapfrog, jitter)
    noise = noises(seed, start, len(moves), members)
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


@dataclass(frozen=True)
class Hmc:
    """How many transitions, how long each is, and what the warm-up aims at."""

    leapfrog: int = 25
    warmup: int = 30  # from trained networks: the step size alone is sought
    draws: int = 100  # as many as a method of the chapter gives
    acceptance: float = (
        0.75  # between the 0.65 that is best in high dimension (Neal 2011, section 5.4.3) and caution
    )
    step_size: float = 0.01  # where the warm-up begins


CANDIDATES = (Hmc(acceptance=0.65), Hmc(), Hmc(acceptance=0.85), Hmc(acceptance=0.95))
PROBES = 20  # training examples at whose logits the chains are compared


@dataclass(frozen=True)
class Fit:
    """The kept positions of R chains in order, (R, K, D)."""

    net: nn.Module
    positions: Float[Tensor, "R K D"]
    record: dict[str, float | int]


def fit(
    net: nn.Module,
    inputs: Shaped[Tensor, "n ..."],
    targets: Shaped[Tensor, "n ..."],
    recipe: Recipe,
    options: Hmc | None = None,
    *,
    members: int | range | Tensor,
    seed: int,
    device: str | torch.device = "cpu",
    start: Params | None = None,
) -> Fit:
    """One chain a member on the posterior that the recipe means, from the trained networks ``start`` (R, ...).

    Every gradient reads all n examples. The record says whether the chains have met: R-hat and effective sample size of
    the log-likelihood and, the worst among them, of the likeliest class's logit over the mean logit at twenty training examples.
    Chains share the step size, so that a chain depends on which others run. Raises ValueError and StuckChains.
    """
    options, members = options or Hmc(), member_ids(members).to(device)
    begin = trained(net, start, len(members), "HMC").to(device)
    inputs, targets = inputs.to(device), targets.to(device)
    found = sample(
        of_recipe(net, inputs, targets, recipe),
        begin,
        warmup=options.warmup,
        draws=options.draws,
        leapfrog=options.leapfrog,
        step_size=options.step_size,
        acceptance=options.acceptance,
        seed=seed,
        members=members,
    )
    record = {
        "transitions": options.warmup + options.draws,
        "leapfrog": options.leapfrog,
        "acceptance": float(found.acceptance.mean()),
        "step size": found.step_size,
        "divergences": int(found.diverged.sum()),
    }
    if len(members) > 1:
        record |= _meeting(net, found, inputs[:PROBES], prior_precision(recipe, len(inputs)))
    return Fit(net, found.positions.transpose(0, 1).contiguous(), record)


def draw(fit: Fit, draws: int, *, seed: int) -> Draws:
    """``draws`` of each chain's positions, evenly spaced (``seed`` decides nothing); refuses more than there are."""
    chosen = fit.positions[:, thin(fit.positions.shape[1], draws).to(fit.positions.device)]
    return Draws(unravel(chosen.flatten(0, 1), fit.net), len(chosen), draws)


def thin(kept: int, draws: int) -> Int64[Tensor, " draws"]:
    """``draws`` indices among ``kept``, evenly spaced, the last one included."""
    if not 1 <= draws <= kept:
        raise ValueError(f"{draws} samples of chains that kept {kept}: keep more, or draw fewer.")
    return (torch.arange(1, draws + 1) * kept) // draws - 1


def _meeting(net: nn.Module, found: Samples, probes: Tensor, precision: float) -> dict[str, float]:
    """R-hat and effective sample size of what does not depend on how units are named."""
    likelihood = found.log_density + 0.5 * precision * found.positions.square().sum(-1)
    logits = outputs_of(net, found.positions.flatten(0, 1), probes.to(found.positions.dtype)).double()
    if logits.shape[2] > 1:  # a shift of all logits is no difference
        top = logits.mean(0).argmax(-1)[None, :, None].expand(len(logits), -1, 1)
        logits = logits.gather(2, top) - logits.mean(2, keepdim=True)
    margins = logits.squeeze(2).unflatten(0, found.positions.shape[:2])
    first = convergence("log-likelihood", likelihood.double().cpu().numpy())
    others = [convergence("logit", margin.cpu().numpy()) for margin in margins.unbind(2)]
    return {
        "R-hat of the log-likelihood": first.rhat,
        "ESS of the log-likelihood": first.ess,
        "R-hat of the worst logit": max(one.rhat for one in others),
        "ESS of the worst logit": min(one.ess for one in others),
    }
