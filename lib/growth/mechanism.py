"""What the posterior does with units it has no use for: dead units counted, their outgoing weights, and how the rest narrows (P2-C9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lib import randomness
from lib.claims import Measurement
from lib.device import one_thread
from lib.free_energy import ridge
from lib.free_energy.features import Layers
from lib.free_energy.generalisation import collapsed_predictive
from lib.free_energy.regression import Regression
from lib.free_energy.targets import Collapsed, target
from lib.growth.curves import Curve, problem_of, redundant, shape
from lib.growth.sound import interval

PROBES = (
    -1.0,
    0.1,
    1.0,
)  # inputs whose predicted values are watched: the level, the kink, the far end of the slope
OUTPUT_DRAWS = 32  # of the output layer a particle


@dataclass(frozen=True)
class Units:
    """One learner's units at several n, one row a copy of the run.

    Attributes:
        curve, n: (C,) the sizes looked at.
        dead, always_on, kinked: share of all hidden units that are dead on the support, positive on all of it, or have
            their kink inside, (C, J). Learners with one hidden layer.
        spread: posterior standard deviation of the function at the probes, (C, J, probes).
        outgoing: Kolmogorov distance of dead units' outgoing weights from the prior at the largest n, (J,).
        draws: how many outgoing weights that rests on, the fewest in a copy.
    """

    curve: Curve
    n: Float[Tensor, " C"]
    dead: Float[Tensor, "C J"]
    always_on: Float[Tensor, "C J"]
    spread: Float[Tensor, "C J probes"]
    outgoing: Float[np.ndarray, " J"]
    draws: int

    @property
    def kinked(self) -> Float[Tensor, "C J"]:
        return 1 - self.dead - self.always_on

    @property
    def dead_share(self) -> Float[Tensor, "C J"]:
        """Dead units as a share of the redundant ones."""
        learner = self.curve.learner
        return self.dead * sum(learner.widths[1:-1]) / redundant(learner)


@one_thread()
def look(curve: Curve, points: int, seed: int) -> Units:
    """Count the units of the particles that ``curve`` kept."""
    learner = curve.learner
    sizes = sorted(curve.kept)
    problem = problem_of(learner, points)
    copies = next(iter(curve.kept.values())).shape[0]
    device = next(iter(curve.kept.values())).device
    known = target(problem[torch.zeros(copies, dtype=torch.int64)].to(device), learner.widths)
    rows = [_at(known, curve.kept[n], n) for n in sizes]
    dead, always_on, spread = (torch.stack(column).cpu() for column in zip(*rows, strict=True))
    distance, draws = _outgoing(known, curve.kept[sizes[-1]], sizes[-1], seed)
    return Units(curve, torch.tensor(sizes), dead, always_on, spread, distance, draws)


def _at(known, position: Tensor, n: float) -> tuple[Tensor, Tensor, Tensor]:
    dead = known.dead(position).double().mean((1, 2))
    # a unit is always on where the unit of opposite sign is dead; deeper layers' inputs are not negated by that
    first = _negated(known.layers, position)
    always = (
        known.dead(first).double()[..., : known.layers.widths[1]].mean((1, 2))
        if first is not None
        else torch.nan * dead
    )
    t = position.new_full((len(position), 1), n)
    probes = position.new_tensor(PROBES)[None, :, None].expand(len(position), -1, -1)
    nothing = torch.zeros_like(probes[..., 0])
    layers = known.layers
    on_probes = Collapsed(Regression(probes, nothing[..., None], nothing, nothing[:, 0]), layers, known.scale, position.new_ones(layers.widths[-1] + 1, 1))  # fmt: skip
    mean, variance = collapsed_predictive(known.statistics(position), on_probes.features(position), t)
    return dead, always, (mean.var(1) + (variance - 1).mean(1)).sqrt()


def _negated(layers: Layers, position: Tensor) -> Tensor | None:
    return -position if len(layers.widths) == 2 else None


def _outgoing(known, position: Tensor, n: float, seed: int) -> tuple[Float[np.ndarray, " J"], int]:
    """Distance between the dead units' outgoing weights, drawn given the hidden ones, and the standard normal law."""
    from scipy.stats import kstest

    moments = known.statistics(position)
    last = known.layers.widths[-1]
    posterior = ridge.posterior(moments, position.new_full((len(position), 1), n))
    dead = known.dead(position)[..., -last:]
    members = torch.arange(len(position), device=position.device)
    shape_of_one = (position.shape[1], OUTPUT_DRAWS, last + 1)
    noise = randomness.normal(seed, members, "outgoing", 0, shape_of_one).double()
    weights = (
        torch.einsum("jkrp,rpdj->rpdk", posterior.whitener, noise)
        + posterior.mean[:, 0].permute(1, 2, 0)[:, :, None]
    )
    chosen = [
        w[:, :, :last].transpose(1, 2)[d].flatten().cpu().numpy() for w, d in zip(weights, dead, strict=True)
    ]
    return np.array([kstest(some, "norm").statistic for some in chosen]), min(map(len, chosen))


def measure(found: Sequence[Units], least: float) -> list[Measurement]:
    """P2-C9, from n = ``least`` on: growth of the dead share, its smallest step, the outgoing weights' law, and the exponent of
    the live directions (n from 1,000 on)."""
    measured = []
    for one in found:
        cell, particles = one.curve.learner.name, one.curve.particles
        share = one.dead_share[one.n >= 0.99 * least].numpy()
        steps = np.diff(share, axis=0)
        smallest = steps[steps.mean(1).argmin()]
        late = one.n >= 990
        x = one.n[late].log().numpy()
        x = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
        exponent = np.einsum("c,cjp->j", x, one.spread[late].log().numpy()) / len(PROBES)
        for name, values, n in (
            ("dead_share_growth", share[-1] - share[0], particles),
            ("dead_share_step", smallest, particles),
            ("outgoing_distance", one.outgoing, one.draws),
            ("live_exponent", exponent, particles),
        ):
            measured.append(Measurement(name, cell, *interval(values), n=n, seeds=share.shape[1]))
    return measured


def shares(one: Units) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For a figure: mean shares of dead, always-on and kinked units against n, one hidden layer."""
    return {
        f"{name}, {shape(one.curve.learner.widths)}": (one.n.numpy(), values.mean(1).numpy())
        for name, values in (("dead", one.dead), ("always on", one.always_on), ("kink inside", one.kinked))
    }
