"""Variational networks trained side by side: every split, seed and subset of the data is one run of a stack.

Runs share nothing but the arithmetic: a run's weights, order of data and noise are functions of (seed, member, purpose, step), so
that it does not depend on its neighbours, and runs with different numbers of examples stand in one stack, counted in updates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from lib import randomness
from lib.device import one_thread
from lib.matrix_gaussian.graph import captured
from lib.matrix_gaussian.network import Network, prepared
from lib.posteriors.descent import Stream, refuse_diverged

HELD = 1 << 22  # numbers of inputs gathered at a time


@dataclass(frozen=True, eq=False)
class Examples:
    """R training sets in units in which they are learned.

    Attributes:
        inputs: (R or 1, N, d); 1 where all runs read the same set.
        targets: (R or 1, N, k) numbers, or (R or 1, N) classes.
        counts: how many of the N rows each run really has, (R,).
        unit: the targets' standard deviations in their own unit, (R, k): what a raw prior of the noise must know.
    """

    inputs: Float[Tensor, "S N d"]
    targets: Shaped[Tensor, "S N ..."]
    counts: Int64[Tensor, " R"]
    unit: Float[Tensor, "R k"]

    def __post_init__(self) -> None:
        if not bool(self.inputs.isfinite().all()) or not bool(self.targets.isfinite().all()):
            raise ValueError(
                "the training data hold a number that is not finite: clean or leave out those rows."
            )
        sets, runs = len(self.inputs), len(self.counts)
        if sets not in (1, runs) or len(self.targets) != sets:
            raise ValueError(
                f"{sets} sets of inputs and {len(self.targets)} of targets for {runs} runs: give one for all, or one for each."
            )
        if int(self.counts.max()) > self.inputs.shape[1] or int(self.counts.min()) < 1:
            raise ValueError(f"counts must lie between 1 and the {self.inputs.shape[1]} rows there are.")


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    updates, batch: minibatch steps, and examples in each.
    rate: Adam's, constant (the authors').
    average: β3 of the bias-corrected exponential average of all parameters, which predictions use (the authors' 0.999).
    looks: updates after which the average is kept too.
    """

    updates: int
    batch: int
    rate: float = 1e-3
    average: float = 0.999
    looks: Sequence[int] = field(default=())

    def __post_init__(self) -> None:
        if self.updates < 1 or self.batch < 1 or not all(0 < look <= self.updates for look in self.looks):
            raise ValueError(
                f"{self.updates} updates of {self.batch} examples with looks at {tuple(self.looks)}: all must be positive, "
                "and no look may lie behind the last update."
            )


@dataclass(frozen=True, eq=False)
class Fit:
    """R trained networks: their averaged parameters (R, D), those at each look, and the last thousand batches' mean loss."""

    network: Network
    flat: Float[Tensor, "R D"]
    looks: dict[int, Float[Tensor, "R D"]]
    loss: Float[Tensor, " R"]
    members: Int64[Tensor, " R"]
    unit: Float[Tensor, "R k"]

    def at(self, look: int) -> Fit:
        """The fit as it stood after so many updates."""
        return Fit(self.network, self.looks[look], {}, self.loss, self.members, self.unit)

    def select(self, runs: Tensor | slice) -> Fit:
        """Some of the runs."""
        looks = {k: flat[runs] for k, flat in self.looks.items()}
        return Fit(self.network, self.flat[runs], looks, self.loss[runs], self.members[runs], self.unit[runs])


def fit(
    network: Network,
    examples: Examples,
    schedule: Schedule,
    *,
    seed: int,
    members: Int64[Tensor, " R"] | None = None,
    start: Float[Tensor, "R D"] | None = None,
    rates: Float[Tensor, "R 1"] | None = None,
) -> Fit:
    """Train R runs.

    ``members``: by default 0, 1, ...; runs of the same number read the same examples in the same order and meet the same noise.
    ``start``: initial parameters; ``rates``: factors of the schedule's rate, run by run. Raises Diverged with the runs that are not
    finite at the end.
    """
    device = examples.inputs.device
    members = torch.arange(len(examples.counts)) if members is None else members
    members, unit = members.to(device), examples.unit
    streamed, of_run = members.unique(return_inverse=True)
    flat = (network.start(members, unit, seed) if start is None else start.clone()).contiguous()
    bound, terms = network.bind(flat), network.terms(examples.counts, unit)
    shapes = {
        (i, name): shape
        for i, law in enumerate(network.laws)
        for name, shape in law.noise_shapes(schedule.batch, *network.sizes(i)).items()
    }
    streams = {
        (i, name): Stream(randomness.normal, seed, streamed, f"noise/{i}/{name}", flat.dtype)
        for i, name in shapes
    }
    shared = not torch.equal(streamed, members)  # or in another order
    adam = Adam(flat, schedule, rates)

    def advance(x: Tensor, y: Tensor, factors: Tensor, noise: dict[tuple[int, str], Tensor]) -> Tensor:
        values, gradient = network.slope(bound, x, y, noise, terms)
        adam.step(gradient, factors)
        bound.clip()
        adam.follow()
        return values

    looks, last = {}, max(1, min(1_000, schedule.updates))
    loss = torch.zeros(len(members), dtype=flat.dtype, device=device)
    step_of = captured(advance, [flat, *adam.memory]) if device.type == "cuda" else advance
    # Stacks of small networks: operations too short for two threads.
    small = device.type == "cpu" and network.size * len(members) < 1 << 18
    with one_thread() if small else nullcontext():
        for step, (x, y) in enumerate(batches(examples, schedule, members, seed)):
            noise = {key: stream(step, shapes[key]) for key, stream in streams.items()}
            if shared:
                noise = {key: numbers[of_run] for key, numbers in noise.items()}
            values = step_of(x, y, adam.factors(step), noise)
            if step >= schedule.updates - last:
                loss += values / last
            if step + 1 in schedule.looks:
                looks[step + 1] = adam.averaged(step)
    refuse_diverged([flat], members, loss)
    return Fit(network, adam.averaged(schedule.updates - 1), looks, loss, members, unit)


class Adam:
    """Adam (Kingma & Ba 2015, algorithm 1) on one flat tensor, in place, and the average that follows it."""

    def __init__(self, flat: Tensor, schedule: Schedule, rates: Tensor | None = None):
        self.flat, self.schedule, self.rates = flat, schedule, rates
        self.memory = [torch.zeros_like(flat) for _ in range(3)]  # two moments and the average

    def factors(self, step: int) -> Tensor:
        """The corrections of bias at a step: of the rate, and of the second moment's root."""
        rate = self.schedule.rate / (1 - 0.9 ** (step + 1))
        return torch.tensor([rate, math.sqrt(1 - 0.999 ** (step + 1))], device=self.flat.device)

    def step(self, gradient: Tensor, factors: Tensor) -> None:
        first, second, _ = self.memory
        first.lerp_(gradient, 0.1)
        second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        scale = second.sqrt().div_(factors[1]).add_(1e-8)
        torch.div(first, scale, out=scale).mul_(factors[0])
        self.flat.sub_(scale if self.rates is None else scale.mul_(self.rates))

    def follow(self) -> None:
        self.memory[2].lerp_(self.flat, 1 - self.schedule.average)

    def averaged(self, step: int) -> Tensor:
        """The average of all steps so far, each later one weighing more."""
        return self.memory[2] / (1 - self.schedule.average ** (step + 1))


def batches(
    examples: Examples, schedule: Schedule, members: Int64[Tensor, " R"], seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs (R, B, r), prepared, and targets of one update after the other.

    Every run goes through its own rows in an order of its own, epoch after epoch; rows that fill no batch wait for the next.
    """
    inputs, targets = prepared(examples.inputs), examples.targets
    runs, batch = len(members), schedule.batch
    few = members[examples.counts < batch].tolist()
    if few:
        raise ValueError(f"runs {few[:8]} have fewer examples than a batch of {batch}: take smaller batches.")
    together = max(1, min(1_024, HELD // (runs * batch * inputs.shape[-1])))
    row = torch.arange(len(inputs), device=inputs.device)[:, None]
    row = row.expand(runs, 1) if len(inputs) == runs else row[:1].expand(runs, 1)
    for first in range(0, schedule.updates, together):
        steps = range(first, min(schedule.updates, first + together))
        chosen = orders(examples.counts, batch, members, seed, steps)  # (R, steps * B)
        x = inputs[row, chosen].unflatten(1, (len(steps), batch)).transpose(0, 1).contiguous()
        y = targets[row, chosen].unflatten(1, (len(steps), batch)).transpose(0, 1).contiguous()
        yield from zip(x, y, strict=True)


def orders(
    counts: Int64[Tensor, " R"], batch: int, members: Int64[Tensor, " R"], seed: int, steps: range
) -> Int64[Tensor, "R rows"]:
    """The rows that each run reads in some consecutive updates, batch after batch."""
    found = torch.empty(len(members), len(steps) * batch, dtype=torch.int64, device=members.device)
    for n in counts.unique().tolist():
        group = counts == n
        whole = n // batch
        epochs = range(steps.start // whole, (steps.stop - 1) // whole + 1)
        rows = [
            randomness.permutation(seed, members[group], "order", epoch, n)[:, : whole * batch]
            for epoch in epochs
        ]
        begin = (steps.start - epochs.start * whole) * batch
        found[group] = torch.cat(rows, dim=1)[:, begin : begin + found.shape[1]]
    return found
