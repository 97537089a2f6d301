r"""The bidirectional check: log Z bracketed from below and from above (Grosse, Ghahramani & Adams 2015).

Where a data set was drawn from the model itself, the parameters that made it are one exact draw of its posterior. Annealed
from there down to the prior, weights $\prod \ell_{t_{k-1}} / \ell_{t_k}$ have mean 1/Z, so that minus the logarithm of
their mean exceeds log Z in expectation, while a climb from the prior falls short of it. A small gap certifies both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lib.device import one_thread
from lib.smc.moves import State, at
from lib.smc.run import Run, Settings
from lib.smc.stage import move


@dataclass(frozen=True)
class Bracket:
    """Stochastic bounds of log Z for R problems, each (R,): ``low`` from the climb, ``high`` from the descent."""

    low: Float[Tensor, " R"]
    high: Float[Tensor, " R"]

    @property
    def gap(self) -> Float[Tensor, " R"]:
        """``high`` minus ``low``: nearly always positive, small where both are right."""
        return self.high - self.low


@one_thread()
def bracket(
    run: Run,
    exact: Float[Tensor, "R D"],
    *,
    particles: int,
    seed: int,
    members: Int64[Tensor, " R"] | None = None,
    settings: Settings | None = None,
) -> Bracket:
    """Bracket the evidence of a finished ``run`` by annealing ``particles`` copies of one exact posterior draw back down.

    The ladder is the run's own, so that the two directions are each other's mirror.
    """
    settings = settings or Settings()
    target, device = run.target, run.target.scale.device
    members = (torch.arange(target.problems) if members is None else members).to(device)
    ladder = [stage.t[:, None] for stage in run.stages]
    position = exact[:, None].expand(-1, particles, -1).contiguous()
    state = at(position, target, ladder[-1])
    log_weight = torch.zeros_like(state.log_likelihood)
    # steps found on the way up are not known here: start at the size that the posterior's width asks for
    stiffness = run.stages[0].mean[:, None].clamp_min(0)
    log_step = math.log(settings.step) - 0.5 * (1 + ladder[-1] * stiffness).log()
    for k in range(len(ladder) - 1, 0, -1):
        for repeat in range(FIRST if k == len(ladder) - 1 else 1):
            stage = 1_000_000 + 1_000 * repeat + k
            state, log_step, _ = move(state, target, ladder[k], log_step, settings, seed, members, stage)
        lower = target.log_likelihood(target.statistics(state.position), ladder[k - 1])
        log_weight = log_weight + lower - state.log_likelihood
        before = (1 + ladder[k] * stiffness).log()
        log_step = log_step + 0.5 * (before - (1 + ladder[k - 1] * stiffness).log())
        state = State(state.position, lower)
    high = math.log(particles) - log_weight.logsumexp(1)
    return Bracket(run.log_evidence[-1], high)


FIRST = (
    10  # stages of moves at the posterior, so that the copies of the one exact draw part before they descend
)
