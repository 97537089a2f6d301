"""The local coefficient at the point where the proof puts the network (P2-C12)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from lib import intervals
from lib.claims import Measurement
from lib.free_energy import coefficients, truths
from lib.free_energy.targets import target
from lib.free_energy.truths import Truth
from lib.growth.curves import shape
from lib.growth.validation import share
from lib.local_chains import HMC, SGLD, Options
from lib.local_coefficient import Estimate, descend, estimate, planted
from lib.parallel import side_by_side

EXAMPLES = (
    10_000  # β n = 1,086: the directions that count are stiff beside the spring that keeps the chains near
)
REDUNDANT = 3
MINIBATCHED = 10  # data sets that SGLD on minibatches is shown on: every step gathers its own examples


SAMPLERS = {
    "HMC": HMC,
    "SGLD": replace(SGLD, batch=None),  # all examples, as in the tests of the field's package
    "SGLD, minibatches": SGLD,  # its usual way; shown, not judged
}


@dataclass(frozen=True)
class Local:
    """Estimates of one truth's learner on B data sets, by sampler, at the data's own minimum beside the planted point."""

    truth: Truth
    estimates: dict[str, Estimate]

    @property
    def widths(self) -> tuple[int, ...]:
        return learner_of(self.truth)


def learner_of(truth: Truth) -> tuple[int, ...]:
    """The truth's widths with three redundant units."""
    return (truth.widths[0], truth.widths[1] + REDUNDANT, truth.widths[-1])


def look(truth: Truth, sets: int, seed: int, device: torch.device) -> Local:
    """Every sampler's estimates."""
    data = truths.data(truth, EXAMPLES, sets, seed).to(device)
    whole = target(data, learner_of(truth), collapsed=False)
    point = descend(whole, planted(truth, learner_of(truth)[1]).to(device))

    def piece(options: Options):
        if options.batch is None:
            return lambda: estimate(whole, point, EXAMPLES, seed=seed, options=options)
        few = data[:MINIBATCHED]
        some = target(few, learner_of(truth), collapsed=False)
        return lambda: estimate(some, point[:MINIBATCHED], EXAMPLES, seed=seed, options=options, problem=few)

    order = list(SAMPLERS)[::-1]
    found = dict(zip(order, side_by_side([piece(SAMPLERS[name]) for name in order], device), strict=True))
    return Local(truth, {name: found[name] for name in SAMPLERS})


def measure(found: Sequence[Local]) -> list[Measurement]:
    """P2-C12: relative errors of both, HMC's share of data sets within 15 %, and its ratio to d/2. Refused data sets count
    as missed in the share and are left out of the means."""
    measured = []
    for one in found:
        known = coefficients.sharp_bound(one.truth.widths)
        half = coefficients.parameter_count(one.widths) / 2
        cell = f"{one.truth.name}: {shape(one.widths)}"
        hmc, sgld = (one.estimates[name].value.cpu().numpy() for name in ("HMC", "SGLD"))
        for name, values in (
            ("hmc_error", hmc / known - 1),
            ("half_d_ratio", hmc / half),
            ("sgld_error", sgld / known - 1),
        ):
            sound = values[np.isfinite(values)]
            interval = intervals.student(sound) if len(sound) > 1 else (np.nan,) * 3
            measured.append(Measurement(name, cell, *interval, n=len(sound), seeds=1))
        inside = np.nan_to_num(abs(hmc / known - 1), nan=np.inf) < 0.15
        measured.append(Measurement("hmc_coverage", cell, *share(inside), n=len(inside), seeds=1))
    return measured


FEWEST = 5  # data sets left, below which the mean of all is shown, and said to be: who is refused depends on the estimate


def table(found: Sequence[Local]) -> list[tuple]:
    """For a table: learner, sampler, mean with interval, refused, acceptance, R-hat, what minibatch noise adds."""
    rows = []
    for one in found:
        for name, e in one.estimates.items():
            sound = e.value[e.value.isfinite()].cpu().numpy()
            few = len(sound) < FEWEST
            text = "{:.2f} ({:.2f} to {:.2f})".format(
                *intervals.student(e.unchecked.cpu().numpy() if few else sound)
            )
            rows.append(
                (shape(one.widths), name, f"refused: {text}" if few else text, f"{len(e.reasons)} of {len(e.value)}",
                 f"{float(e.acceptance.mean()):.2f}", f"{float(e.rhat.max()):.2f}", f"{float(e.heat.mean()):.2f}")
            )  # fmt: skip
    return rows
