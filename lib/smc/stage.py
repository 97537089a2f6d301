"""One stage's moves of all particles at one temperature, with their random numbers and the steering of the step sizes."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from lib import randomness
from lib.free_energy.targets import Target, chunk_size
from lib.smc import moves
from lib.smc.moves import State
from lib.smc.run import Settings
from lib.smc.units import Units, units_of


def move(
    state: State,
    target: Target,
    t: Float[Tensor, "R 1"],
    log_step: Float[Tensor, "R 1"],
    settings: Settings,
    seed: int,
    members: Tensor,
    stage: int,
    chunk: int | None = None,
) -> tuple[State, Float[Tensor, "R 1"], dict[str, Tensor]]:
    """One stage's moves of all particles, ``chunk`` at a time; the new state, the steered step sizes, and the acceptances."""
    particles = state.log_likelihood.shape[1]
    chunk = chunk or chunk_size(target, t.device)
    noise = _Noise(seed, members, stage, state.position.shape)
    network = settings.redraws or settings.rescales or settings.dead
    units = units_of(target.layers, target.collapsed).to(t.device) if network else None
    factor = moves.spread(state.position, target.scale) if settings.whiten else None
    parts, records = [], []
    for start in range(0, particles, chunk):
        part = slice(start, min(start + chunk, particles))
        piece = State(state.position[:, part], state.log_likelihood[:, part])
        piece, record = _moves_of(piece, target, t, log_step.exp(), settings, noise, units, part, factor)
        parts.append(piece)
        records.append({name: p.sum(1) for name, p in record.items()})
    acceptance = {name: sum(record[name] for record in records) / particles for name in records[0]}
    if settings.hmc:
        log_step = log_step + (acceptance["hmc"][:, None] - settings.acceptance)
    joined = State(torch.cat([p.position for p in parts], 1), torch.cat([p.log_likelihood for p in parts], 1))
    return joined, log_step, acceptance


def _moves_of(
    state: State,
    target: Target,
    t: Tensor,
    step: Tensor,
    settings: Settings,
    noise: _Noise,
    units: Units | None,
    part: slice,
    factor: Tensor | None,
) -> tuple[State, dict[str, Tensor]]:
    record: dict[str, list[Tensor]] = {}
    for i in range(settings.redraws):
        choice, chance = noise.uniform("redraw", i, part)
        state, p = moves.redraw(state, target, t, units, noise.normal("redraw", i, part), choice, chance)
        record.setdefault("redraw", []).append(p)
    for i in range(settings.rescales):
        choice, chance = noise.uniform("rescale", i, part)
        state, p = moves.rescale(state, target, t, units, choice, noise.scalar("rescale", i, part), chance)
        record.setdefault("rescale", []).append(p)
    if settings.dead:
        state, _ = moves.refresh_dead(state, target, units, noise.normal("refresh", 0, part))
        state, _ = moves.permute(state, units, noise.uniform("exchange", 0, part)[0])
    for i in range(settings.hmc):
        sizes = step * moves.step_factors(settings.jitter, noise.scalar("hmc", i, part))
        chance, momentum = noise.uniform("hmc", i, part)[1], noise.normal("hmc", i, part)
        state, p = moves.hmc(state, target, t, sizes, settings.leapfrog, momentum, chance, factor)
        record.setdefault("hmc", []).append(p)
    return state, {name: torch.stack(ps).mean(0) for name, ps in record.items()}


@dataclass
class _Noise:
    """The random numbers of one stage, each array drawn once for all particles and handed out in parts."""

    seed: int
    members: Tensor
    stage: int
    shape: torch.Size
    drawn: dict[tuple[str, int, str], Tensor] = field(default_factory=dict)

    def _of(self, kind: str, purpose: str, i: int, part: slice) -> Tensor:
        key = (purpose, i, kind)
        if key not in self.drawn:
            particles, dimension = self.shape[1:]
            name, step = f"smc {purpose} {kind}", 64 * self.stage + i
            if kind == "uniform":
                shape, draw = (particles, 2), randomness.uniform
            else:
                shape, draw = (particles, dimension) if kind == "normal" else (particles,), randomness.normal
            # 24 random bits a number are plenty for momenta and proposals, and half the work of 53
            self.drawn[key] = draw(self.seed, self.members, name, step, shape).double()
        return self.drawn[key][:, part]

    def normal(self, purpose: str, i: int, part: slice) -> Float[Tensor, "R P D"]:
        return self._of("normal", purpose, i, part)

    def scalar(self, purpose: str, i: int, part: slice) -> Float[Tensor, "R P"]:
        return self._of("scalar", purpose, i, part)

    def uniform(self, purpose: str, i: int, part: slice) -> tuple[Tensor, Tensor]:
        return self._of("uniform", purpose, i, part).unbind(-1)
