r"""Tempered sequential Monte Carlo: from the prior to the posterior, with the evidence of every temperature on the way.

R problems with P particles each go together from $t = 0$ through rising temperatures $\pi_t \propto \pi_0\, \ell_t$
(Del Moral, Doucet & Jasra 2006; Neal 2001). At each stage, for every problem on its own,

1. the next temperature is the one at which the incremental weights $\ell_{t'}/\ell_t$ keep a given effective sample size,
2. $\log Z_{t'} = \log Z_t + \log \frac1P \sum_p \ell_{t'}(\theta_p) / \ell_t(\theta_p)$, in float64,
3. systematic resampling, then moves that leave $\pi_{t'}$ unchanged (`lib.smc.moves`).

Problems never see each other, so that copies of one problem (`islands`) are independent runs whose spread is the error bar.
Random numbers are functions of (seed, problem's number, purpose, stage).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lib import randomness
from lib.device import one_thread
from lib.free_energy.targets import Target
from lib.smc import moves
from lib.smc.moves import State
from lib.smc.run import Run, Settings, Stage
from lib.smc.stage import move


class AllDead(RuntimeError):
    """No particle of a problem has any weight left."""


def relative_ess(log_weights: Float[Tensor, "R P"]) -> Float[Tensor, " R"]:
    """(sum w)² / (P sum w²), between 1/P and 1; 0 where every weight is 0."""
    top = log_weights.amax(1, keepdim=True)
    weights = torch.exp(log_weights - top)
    return (weights.sum(1).square() / (weights.square().sum(1) * weights.shape[1])).nan_to_num(0.0)


def next_temperature(
    target: Target, statistics: object, state: State, t: Tensor, limit: Tensor, ess: float
) -> Float[Tensor, "R 1"]:
    """The highest temperature up to ``limit`` (R, 1) that keeps the effective sample size of every problem."""

    def keeps(candidate: Tensor) -> Tensor:
        increments = target.log_likelihood(statistics, candidate) - state.log_likelihood
        return (relative_ess(increments) >= ess)[:, None]

    reachable = keeps(limit)
    low = torch.where(t > 0, t, limit * 1e-15)
    high = torch.where(t > 0, torch.minimum(limit, 16 * t), limit)
    if not reachable.all():
        for _ in range(8 if bool((t > 0).all()) else 24):
            middle = (low * high).sqrt()
            good = keeps(middle)
            low, high = torch.where(good, middle, low), torch.where(good, high, middle)
    # a step below any use would never end; 1 % more is always made
    return torch.where(reachable, limit, torch.maximum(low, torch.minimum(limit, 1.01 * t)))


class _Climb:
    """The state of a run between two stages."""

    def __init__(self, target: Target, asked: Tensor, particles: int, seed: int, members: Tensor) -> None:
        draw = randomness.normal(seed, members, "smc prior", 0, (particles, len(target.scale)), torch.float64)
        self.position = draw * target.scale
        self.t = torch.zeros(len(members), 1, dtype=torch.float64, device=draw.device)
        self.log_evidence = torch.zeros_like(self.t[:, 0])
        self.reached = torch.zeros(len(members), dtype=torch.int64, device=draw.device)
        self.results = torch.full((2, *asked.shape), math.nan, dtype=torch.float64, device=draw.device)
        self.log_step = torch.zeros_like(self.t)
        self.stiffness = torch.zeros_like(self.t)
        self.stage = 0
        self.stages: list[Stage] = []
        self.particles: dict[int, Tensor] = {}
        self.acceptance: dict[str, Tensor] = {}

    def state(self) -> dict:
        return vars(self) | {"stages": [vars(stage) for stage in self.stages]}

    def restore(self, saved: dict) -> None:
        vars(self).update(saved | {"stages": [Stage(**stage) for stage in saved["stages"]]})


@one_thread()
def sample(
    target: Target,
    temperatures: Sequence[float] | Float[Tensor, "C R"],
    *,
    particles: int,
    seed: int,
    settings: Settings | None = None,
    members: Int64[Tensor, " R"] | None = None,
    keep: Sequence[int] = (),
    chunk: int | None = None,
    file: Path | None = None,
    progress: bool = False,
) -> Run:
    """Climb to the last of the rising ``temperatures``, stopping at each (the same for all problems, or (C, R)).

    ``members`` number the problems in the random numbers; ``keep`` lists which temperatures' particles are returned;
    ``chunk`` is the number of particles moved at a time (memory; the numbers do not depend on it beyond rounding).
    With ``file`` the run is saved between stages at most once in twenty seconds, and goes on from there if it is called
    again. Raises ValueError for temperatures that do not rise and AllDead where no particle is left.
    """
    settings = settings or Settings()
    asked = _asked(temperatures, target)
    if particles < 2:
        raise ValueError(f"{particles} particles cannot be resampled: take hundreds.")
    members = torch.arange(target.problems) if members is None else members
    members = members.to(asked.device)
    climb = _Climb(target, asked, particles, seed, members)
    climb.log_step += math.log(settings.step)
    statistics = target.statistics(climb.position)
    state = State(climb.position, target.log_likelihood(statistics, climb.t))
    zero = torch.zeros_like(climb.log_evidence)
    climb.stages.append(Stage(zero, zero, zero, *_energy(target, statistics, climb.t)))
    climb.stiffness = climb.stages[0].mean[:, None].clamp_min(0)
    if not bool(torch.isfinite(climb.stages[0].mean).all()):
        raise ValueError(
            "some draws of the prior have an energy that is not a finite number: look for targets or inputs that are not."
        )
    # what the run depends on, and the prior's mean energies, which no two problems share
    mark = repr(
        (
            seed,
            particles,
            settings,
            asked.tolist(),
            members.tolist(),
            sorted(keep),
            climb.stages[0].mean.tolist(),
        )
    )
    if file is not None and file.exists():
        saved = torch.load(file, map_location=asked.device, weights_only=True)
        if saved.pop("mark") != mark:
            raise ValueError(
                f"{file.name} holds another run (another problem, other sizes, seed or settings): remove it or name another file."
            )
        climb.restore(saved)
        statistics = target.statistics(climb.position)
        state = State(climb.position, target.log_likelihood(statistics, climb.t))
    last_save, bar = time.monotonic(), _bar(progress)
    while bool((climb.reached < len(asked)).any()):
        limit = asked.gather(0, climb.reached.clamp_max(len(asked) - 1)[None])[0][:, None]
        scale = 1 / climb.stiffness.clamp_min(1e-9)
        near = torch.minimum(limit, (climb.t + scale) * settings.stretch - scale)
        t = next_temperature(target, statistics, state, climb.t, near, settings.ess)
        increments = target.log_likelihood(statistics, t) - state.log_likelihood
        up = increments.logsumexp(1) - math.log(particles)
        _refuse_death(up, climb.t, t, particles)
        climb.stage += 1
        shift = randomness.uniform(seed, members, "smc resampling", climb.stage, (1,), torch.float64)[:, 0]
        index = moves.systematic(increments, shift)
        position = state.position.gather(1, index[..., None].expand_as(state.position))
        value = (state.log_likelihood + increments).gather(1, index)
        if not settings.whiten:  # the posterior narrows like the root of its precision, of order 1 + t E_0
            narrower = (1 + climb.t * climb.stiffness) / (1 + t * climb.stiffness)
            climb.log_step = climb.log_step + 0.5 * narrower.log()
        before, climb.t = climb.t, t
        state, climb.log_step, climb.acceptance = move(
            State(position, value), target, t, climb.log_step, settings, seed, members, climb.stage, chunk
        )

        statistics = target.statistics(state.position)
        mean, variance = _energy(target, statistics, t)
        back = target.log_likelihood(statistics, before) - state.log_likelihood
        down = math.log(particles) - back.logsumexp(1)
        climb.log_evidence = climb.log_evidence + up
        climb.position = state.position
        climb.stages.append(Stage(t[:, 0], up, down, mean, variance))
        arrived = (t == limit)[:, 0] & (climb.reached < len(asked))
        for c in climb.reached[arrived].unique().tolist():
            here = arrived & (climb.reached == c)
            climb.results[0, c, here] = climb.log_evidence[here]
            climb.results[1, c, here] = mean[here]
            if c in keep:
                kept = climb.particles.setdefault(c, torch.empty_like(state.position))
                kept[here] = state.position[here]
        climb.reached = climb.reached + arrived
        bar(climb.t, asked)
        if file is not None and time.monotonic() - last_save > 20:
            _write(file, climb.state() | {"mark": mark})
            last_save = time.monotonic()
    if file is not None:
        _write(file, climb.state() | {"mark": mark})
    return Run(
        asked,
        *climb.results,
        climb.particles,
        tuple(climb.stages),
        climb.acceptance,
        target,
        _distinct(climb.position),
    )


def _asked(temperatures: Sequence[float] | Tensor, target: Target) -> Float[Tensor, "C R"]:
    """The asked temperatures, one column a problem; refuses those that do not rise from above zero."""
    asked = torch.as_tensor(temperatures, dtype=torch.float64, device=target.scale.device)
    if asked.ndim == 1:
        asked = asked[:, None].expand(-1, target.problems).contiguous()
    rises = asked.diff(dim=0, prepend=torch.zeros_like(asked[:1])) > 0
    if asked.shape[1] != target.problems or not bool(rises.all()):
        raise ValueError(
            "the temperatures must rise from above zero, with one column a problem: "
            f"{tuple(asked.shape)} were given for {target.problems} problems."
        )
    return asked


def _energy(target: Target, statistics: object, t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the energy, with what is integrated out: the free energy's first and minus its second derivative."""
    energy = target.energy(statistics, t)
    return energy.mean(1), energy.var(1) + target.spread(statistics, t).mean(1)


def _distinct(position: Float[Tensor, "R P D"]) -> Float[Tensor, " R"]:
    """The share of particles that differ from all others, read off their first coordinate."""
    first = position[..., 0].sort(dim=1).values
    return (first.diff(dim=1) != 0).double().mean(1)


def _refuse_death(up: Tensor, before: Tensor, t: Tensor, particles: int) -> None:
    lost = (~up.isfinite()).nonzero().flatten().tolist()
    if lost:
        r = lost[0]
        raise AllDead(
            f"all {particles} particles of problem {r} have weight zero on the way from temperature {float(before[r]):.3g} to "
            f"{float(t[r]):.3g}: raise the number of particles or `ess`, or widen the prior."
        )


def _bar(progress: bool):
    """A progress bar over the logarithm of the slowest problem's temperature, or nothing."""
    if not progress:
        return lambda t, asked: None
    from tqdm.auto import tqdm

    bar = tqdm(total=100, unit="%", desc="temperature")
    first: list[float] = []

    def show(t: Tensor, asked: Tensor) -> None:
        now, end = math.log(float(t.min())), math.log(float(asked[-1].max()))
        first.append(now)
        done = 100.0 if end <= first[0] else 100 * (now - first[0]) / (end - first[0])
        bar.update(max(0.0, done - bar.n))
        bar.set_postfix_str(f"t = {math.exp(now):.3g}")
        if now == end:
            bar.close()

    return show


def _write(file: Path, state: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".part")
    torch.save(state, temporary)
    os.replace(temporary, file)


def islands(problems: int, copies: int) -> Int64[Tensor, " _"]:
    """Indices that list every problem ``copies`` times, copy after copy: reshape a result (..., R) to (..., copies, problems)."""
    return torch.arange(problems).repeat(copies)
