"""The chains of a local coefficient: HMC, MALA and SGLD on the density around one point, all data sets at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lib import randomness
from lib.free_energy.regression import Regression
from lib.free_energy.targets import Target, Whole, gradient_in_chunks

METHODS = ("hmc", "mala", "sgld")
CHECKS = (
    20  # states of an SGLD chain at which MALA's acceptance is computed: its mean is then known to about 0.02
)
BLOCK = 64  # transitions whose noise is drawn in one call


@dataclass(frozen=True)
class Options:
    """How the chains run; the defaults are the chapter's quick settings for T1, learner 1-4-1, n = 10,000.

    Attributes:
        method: "hmc", "mala" or "sgld".
        chains: a data set; four are the fewest that R-hat is usually asked of.
        warmup: transitions that are thrown away. HMC and MALA tune their step in them; SGLD has the first half of them made
            by MALA, which tunes the step, and the rest with the step that it keeps.
        draws, thin: kept states, and transitions from one to the next.
        leapfrog: steps of a trajectory (HMC).
        step: where the tuning of h begins, or h itself if ``adapt`` is False.
        adapt: whether the step is tuned in the warm-up, to the wanted ``acceptance``.
        jitter: standard deviation of the log-normal factor of each HMC step, against trajectories that close.
        gamma: the strength of the spring to w*. It must be weak beside the stiffness β n h_i of the directions that count,
            whose share of λ falls from 1/2 to 1/2 β n h_i / (β n h_i + γ), and strong enough to keep chains near w*.
        batch: examples of SGLD's minibatch, drawn with replacement, own ones a chain and step; None for all of them.
    """

    method: str = "hmc"
    chains: int = 4
    warmup: int = 100
    draws: int = 300
    thin: int = 1
    leapfrog: int = 8
    step: float = 0.01
    adapt: bool = True
    acceptance: float = 0.8
    jitter: float = 0.3
    gamma: float = 1.0
    batch: int | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"the method is {self.method!r}: choose one of {', '.join(METHODS)}.")
        if self.chains < 2 or self.draws < 20:
            raise ValueError(
                f"{self.chains} chains of {self.draws} draws cannot be judged: take two chains of twenty draws at least."
            )
        if min(self.warmup, self.gamma) < 0 or min(self.step, self.thin, self.leapfrog) <= 0:
            raise ValueError(
                f"warmup = {self.warmup} and gamma = {self.gamma} must not be negative; step = {self.step}, thin = {self.thin} "
                f"and leapfrog = {self.leapfrog} must be positive: correct the one that is not."
            )
        if self.batch is not None and (self.batch < 1 or self.method != "sgld"):
            raise ValueError(
                f"a minibatch of {self.batch} for {self.method}: only SGLD takes minibatches, of one example or more; "
                "leave batch out."
            )


HMC = Options()
MALA = Options(method="mala", leapfrog=1, jitter=0.0, acceptance=0.6, warmup=500, draws=500, thin=4)
SGLD = Options(
    method="sgld", leapfrog=1, jitter=0.0, acceptance=0.9, warmup=600, draws=200, thin=5, batch=100
)


@dataclass(frozen=True)
class State:
    """Positions (R, P, D), the log density up to a constant (R, P), its gradient, and n L_n (R, P)."""

    position: Tensor
    log_density: Tensor
    gradient: Tensor
    energy: Tensor

    def accept(self, new: State, taken: Tensor) -> State:
        fields = ((getattr(new, name), getattr(self, name)) for name in vars(self))
        return State(*(torch.where(taken[..., None] if a.ndim == 3 else taken, a, b) for a, b in fields))


@dataclass(frozen=True)
class Local:
    """The localised, tempered density about w* (R, 1, D), with the numbers (R P,) of its chains in every draw."""

    target: Target
    centre: Float[Tensor, "R 1 D"]
    t: Float[Tensor, "R 1"]
    options: Options
    numbers: Int64[Tensor, " chains"]

    def at(self, position: Float[Tensor, "R P D"]) -> State:
        value, slope = gradient_in_chunks(self.target, position, self.t)
        away, gamma = position - self.centre, self.options.gamma
        density = value - 0.5 * gamma * away.square().sum(-1)
        return State(position, density, slope - gamma * away, -value / self.t)

    def start(self) -> State:
        return self.at(self.centre.expand(-1, self.options.chains, -1).contiguous())

    def noise(self, purpose: str, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Momentum (R, P, D), a normal and a uniform number (R, P) of transition 0, 1, 2, ..."""
        shape = (len(self.centre), self.options.chains)
        for block in count():  # 24 random bits a number are plenty, and half the work of 53
            normal = randomness.normal(
                seed, self.numbers, f"{purpose} momentum", block, (BLOCK, self.centre.shape[2] + 1)
            )
            uniform = randomness.uniform(seed, self.numbers, f"{purpose} chance", block, (BLOCK,))
            normal = normal.to(self.t.dtype).transpose(0, 1).unflatten(1, shape)
            uniform = uniform.to(self.t.dtype).T.unflatten(1, shape)
            yield from zip(normal[..., 1:].contiguous(), normal[..., 0], uniform, strict=True)

    def propose(self, state: State, step: Tensor, momentum: Tensor, leapfrog: int) -> tuple[State, Tensor]:
        """The end of a trajectory, and the probability with which it is accepted, 0 where it is not finite."""
        before, new, step = state.log_density - 0.5 * momentum.square().sum(-1), state, step[..., None]
        momentum = momentum + 0.5 * step * state.gradient
        for i in range(leapfrog):
            new = self.at(new.position + step * momentum)
            momentum = momentum + (step if i + 1 < leapfrog else 0.5 * step) * new.gradient
        rise = new.log_density - 0.5 * momentum.square().sum(-1) - before
        return new, torch.exp(rise.clamp_max(0.0)).nan_to_num(0.0)

    def transition(
        self, state: State, log_step: Tensor, noise: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[State, Tensor]:
        momentum, normal, chance = noise
        step = torch.exp(log_step + self.options.jitter * normal)
        leapfrog = self.options.leapfrog if self.options.method == "hmc" else 1
        new, probability = self.propose(state, step, momentum, leapfrog)
        return state.accept(new, chance < probability), probability


def localise(target: Target, point: Tensor, beta: float, options: Options, members: Tensor | None) -> Local:
    members = torch.arange(target.problems) if members is None else members
    chains = torch.arange(options.chains, device=point.device)
    numbers = (members.to(point.device)[:, None] << 32 | chains).flatten()
    centre = point.expand(target.problems, point.shape[-1])[:, None]
    local = Local(target, centre, centre.new_full((target.problems, 1), beta), options, numbers)
    if not bool(torch.isfinite(local.start().energy).all()):
        raise ValueError("the energy at w* is not finite: choose another point.")
    return local


def tuned(local: Local, state: State, noise: Iterator, transitions: int) -> tuple[State, Tensor]:
    """Each chain's log step by Robbins & Monro; the mean over the second half is what stays."""
    options = local.options
    log_step = torch.full_like(state.energy, math.log(options.step))
    seen = []
    for i in range(transitions):
        state, probability = local.transition(state, log_step, next(noise))
        if options.adapt:
            pull = probability - options.acceptance
            if 4 * i < transitions:  # upwards as fast as downwards, while the step may be far off
                pull = torch.where(pull > 0, pull / (1 - options.acceptance), pull)
            log_step = log_step + (i + 1) ** -0.5 * pull
        seen.append(log_step)
    return state, torch.stack(seen[transitions // 2 :]).mean(0) if seen else log_step


def metropolis(local: Local, problem: Regression | None, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """HMC and MALA: the trace, each chain's mean acceptance, its step, and no heat."""
    options, noise, state = local.options, local.noise("local", seed), local.start()
    baseline, trace, total = state.energy, [], torch.zeros_like(state.energy)
    state, log_step = tuned(local, state, noise, options.warmup)
    for i in range(options.draws * options.thin):
        state, probability = local.transition(state, log_step, next(noise))
        total += probability
        if (i + 1) % options.thin == 0:
            trace.append(state.energy - baseline)
    return (
        torch.stack(trace),
        total / (options.draws * options.thin),
        log_step.exp(),
        torch.zeros_like(total[:, 0]),
    )


def langevin(local: Local, problem: Regression | None, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """SGLD: the trace, what MALA would accept of its steps at `CHECKS` states, its step, and its minibatches' heat."""
    options, noise, state = local.options, local.noise("local", seed), local.start()
    baseline, trace, accepted, heat = state.energy, [], [], torch.zeros_like(state.energy)
    rows = None if options.batch is None else _rows(problem)
    tuning = options.warmup // 2 if options.adapt else 0
    state, log_step = tuned(local, state, noise, tuning)
    step, position = log_step.exp(), state.position
    away = local.noise("local check", seed)
    for i in range(tuning - options.warmup, options.draws * options.thin):
        check = i >= 0 and i // options.thin * CHECKS // options.draws >= len(accepted)
        now = local.at(position) if rows is None or check else None
        if i >= 0 and i % options.thin == 0:
            energy = (
                local.target.energy(local.target.statistics(position), local.t) if now is None else now.energy
            )
            trace.append(energy - baseline)
        slope = (
            now.gradient if rows is None else _on_minibatch(local, rows, position, seed, i + options.warmup)
        )
        if check:
            accepted.append(local.propose(now, step, next(away)[0], 1)[1])
            heat += (slope - now.gradient).square().sum(-1) * step.square() / 8
        position = position + 0.5 * (step * step)[..., None] * slope + step[..., None] * next(noise)[0]
    mean = torch.stack(accepted).mean(0)
    return torch.stack(trace), mean, step, (heat / len(accepted)).mean(1)


def _rows(problem: Regression) -> Float[Tensor, "rows columns"]:
    """All examples of all data sets, one a row: inputs, targets, weight, so that an example is one place in memory."""
    return torch.cat([problem.inputs, problem.targets, problem.weights[..., None]], dim=2).flatten(0, 1)


def _on_minibatch(
    local: Local, rows: Tensor, position: Float[Tensor, "R P D"], seed: int, i: int
) -> Float[Tensor, "R P D"]:
    """The localised density's gradient with the sum over examples estimated by a minibatch, each chain's own."""
    sets, chains, batch = *position.shape[:2], local.options.batch
    size, widths = len(rows) // sets, local.target.layers.widths
    chosen = randomness.integers(seed, local.numbers, "local minibatch", i, size, (batch,)).view(sets, -1)
    chosen += size * torch.arange(sets, device=chosen.device)[:, None]
    examples = rows.index_select(0, chosen.flatten()).view(sets * chains, batch, -1)
    inputs, targets, weights = examples.split([widths[0], widths[-1], 1], dim=2)
    small = Regression(
        inputs.contiguous(), targets.contiguous(), weights[..., 0], rows.new_zeros(len(examples))
    )
    target = Whole(small, local.target.layers, local.target.scale)
    t = local.t.repeat_interleave(chains, 0) * (size / batch)
    slope = target.gradient(position.flatten(0, 1)[:, None], t)[1].view_as(position)
    return slope - local.options.gamma * (position - local.centre)
