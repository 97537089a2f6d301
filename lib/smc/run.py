"""How a tempered run is set up, and what is left of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib.free_energy.targets import Target


@dataclass(frozen=True)
class Settings:
    """How a run climbs and moves.

    Attributes:
        ess: relative effective sample size that a step in temperature keeps.
        stretch: largest ratio of neighbouring temperatures, both counted from minus the prior's scale 1 / E_0; for
            thermodynamic integration, which needs a smooth ladder and not only enough weight.
        hmc, leapfrog: transitions of Hamiltonian Monte Carlo a stage, and their length.
        whiten: whether transitions know the particles' covariance: for posteriors of one piece, and far more particles than
            the dimension's square, since a shape that is learned from the particles themselves biases the evidence.
        redraws, rescales: of the network moves, each with one random unit a particle; 0 for models without units.
        dead: whether dead units' outgoing weights are refreshed and units exchanged (whole networks).
        acceptance: what the step size of a problem is steered to, between stages.
        jitter: standard deviation of the log-normal factor of each particle's step size.
        step: first step size, in units of the prior's scale.
    """

    ess: float = 0.6
    stretch: float = math.inf
    hmc: int = 1
    leapfrog: int = 4
    whiten: bool = False
    redraws: int = 2
    rescales: int = 1
    dead: bool = False
    acceptance: float = 0.7
    jitter: float = 0.7
    step: float = 0.5


@dataclass(frozen=True)
class Stage:
    """What one temperature showed, one number a problem (R,): the temperature, the log increment of the evidence seen from
    below (particles of the stage before) and from above (particles after the moves), the mean and variance of the energy."""

    t: Float[Tensor, " R"]
    up: Float[Tensor, " R"]
    down: Float[Tensor, " R"]
    mean: Float[Tensor, " R"]
    variance: Float[Tensor, " R"]


@dataclass(frozen=True)
class Run:
    """A finished climb of R problems through C asked temperatures.

    Attributes:
        t: the asked temperatures, (C, R).
        log_evidence: log Z_t - log Z_0 relative to the truth, so that minus it is F_n - n S_n or F0(n), (C, R).
        energy: mean energy at each, (C, R): the slope of the free energy in t.
        particles: positions at each asked temperature that was to be kept, {index: (R, P, D)}.
        stages: every temperature on the way, the prior first.
        acceptance: mean acceptance probability of each kind of move at the last stage, by name (R,).
        target: what was sampled.
        distinct: share of particles at the end that repeat no other one, (R,); None where nobody looked.
    """

    t: Float[Tensor, "C R"]
    log_evidence: Float[Tensor, "C R"]
    energy: Float[Tensor, "C R"]
    particles: dict[int, Tensor]
    stages: tuple[Stage, ...]
    acceptance: dict[str, Tensor]
    target: Target
    distinct: Float[Tensor, " R"] | None = None

    @property
    def sound(self) -> Bool[Tensor, " R"]:
        """Whether each problem's particles still moved at the end: HMC accepts one in ten, and half of them are distinct.

        What does not move only repeats its ancestors, and its evidence is a number that looks fine.
        """
        everyone = torch.ones_like(self.log_evidence[0])
        distinct = everyone if self.distinct is None else self.distinct
        return (distinct > 0.5) & (self.acceptance.get("hmc", everyone) > 0.1)

    @property
    def free_energy(self) -> Float[Tensor, "C R"]:
        """Minus the log evidence."""
        return -self.log_evidence

    @property
    def slope(self) -> Float[Tensor, "C R"]:
        """The local slope of the free energy in log t, t E_t: the coefficient that a straight line through here would have."""
        return self.t * self.energy
