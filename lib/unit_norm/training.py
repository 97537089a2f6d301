"""Hundreds of trainings in one pass: every stream and rate and start of one method, as one stack.

A stream's examples, their order and its initial weights are functions of (seed, stream) alone; its runs differ in rates and
starts. On a CPU a few runs at a time go through a whole epoch on one thread, so that their weights stay in its cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lib.device import worker_pool
from lib.population import losses
from lib.randomness import permutation
from lib.unit_norm.network import Network, Pass, evaluate
from lib.unit_norm.schedules import Constant, Schedule
from lib.unit_norm.steps import STEPS

CHUNK = 1 << 23  # bytes of weights and gradients that a CPU's thread works on at a time


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs (N, k) and classes (N,) that all streams share; ``rows`` (S, n) are those that each stream has, in its order."""

    inputs: Float[Tensor, "N k"]
    targets: Int64[Tensor, " N"]
    rows: Int64[Tensor, "S n"]

    def gather(self, streams: slice, chosen: Int64[Tensor, "S B"]) -> tuple[Tensor, Tensor]:
        """Inputs (S, B, k) and classes (S, B) at the positions ``chosen`` of each stream's rows."""
        rows = self.rows[streams].gather(1, chosen)
        x = torch.index_select(self.inputs, 0, rows.flatten()).unflatten(0, rows.shape)
        return x, self.targets[rows]

    def everything(self) -> tuple[Tensor, Tensor]:
        """All examples of each stream: inputs (S, n, k), classes (S, n); one table where the streams have the same."""
        if bool((self.rows == self.rows[0]).all()):
            x, y = self.inputs[self.rows[0]], self.targets[self.rows[0]]
            return x.expand(len(self.rows), -1, -1), y.expand(len(self.rows), -1)
        return self.inputs[self.rows], self.targets[self.rows]


@dataclass(frozen=True, eq=False)
class Trained:
    """What S streams of R runs became, and their way there.

    ``costs`` (E, S, R): mean training loss over each epoch, every batch before its step. ``errors`` and ``losses`` of every
    watched set: (E, S, R), after each epoch. ``effective`` (E, S, R, L): mean over the filters of each layer of their rate
    over their squared length, after each epoch. ``rates`` (E, S, R): the filters' rate in each epoch.
    """

    net: Network
    weights: list[Float[Tensor, "S R _ _"]]
    means: list[Float[Tensor, "S R _"]]
    variances: list[Float[Tensor, "S R _"]]
    costs: Float[Tensor, "E S R"]
    rates: Float[Tensor, "E S R"]
    effective: Float[Tensor, "E S R L"]
    errors: dict[str, Float[Tensor, "E S R"]] = field(default_factory=dict)
    losses: dict[str, Float[Tensor, "E S R"]] = field(default_factory=dict)


def train(
    net: Network,
    method: str,
    examples: Examples,
    rates: Float[Tensor, "S R"],
    *,
    seed: int,
    streams: Int64[Tensor, " S"],
    epochs: int,
    batch: int = 100,
    classifier_rates: Float[Tensor, "S R"] | None = None,
    schedule: Schedule | None = None,
    start: Sequence[Float[Tensor, "S _ _ _"]] | None = None,
    watch: Mapping[str, Examples] | None = None,
) -> Trained:
    """Train every run of every stream by ``method`` (a name in ``lib.unit_norm.steps.STEPS``), the classifier by plain SGD.

    ``rates`` (S, R) for the filters and, unless ``classifier_rates`` says otherwise, for the classifier. ``start``: weights
    (S, R or 1, n, k), by default the protocol's. An epoch drops the examples that fill no batch. A run whose loss is no longer
    finite stays in the stack and shows as such; it disturbs nobody. Raises ValueError for an unknown method or too few examples.
    """
    if method not in STEPS:
        raise ValueError(f"method {method!r} is not known: use one of {', '.join(STEPS)}.")
    n = examples.rows.shape[1]
    if n < batch:
        raise ValueError(f"{n} examples fill no batch of {batch}: take smaller batches or more examples.")
    if epochs < 1 or (net.norm and batch < 2):
        raise ValueError(
            f"{epochs} epochs of batches of {batch}: train for at least one epoch, and where a norm takes the batch's "
            "statistics, with at least two examples in it."
        )
    schedule = schedule or Constant()
    device, dtype = examples.inputs.device, examples.inputs.dtype
    size, runs = rates.shape
    rates = rates.to(device, dtype)
    rest = rates if classifier_rates is None else classifier_rates.to(device, dtype)
    start = net.initial(seed, streams.to(device), dtype) if start is None else start
    state = _State(
        [weight.expand(size, runs, *weight.shape[2:]).contiguous().clone() for weight in start],
        [examples.inputs.new_zeros(size, runs, width) for width in net.widths[1:-1]],
        [examples.inputs.new_ones(size, runs, width) for width in net.widths[1:-1]],
    )
    if method in ("unit norm", "normalise after the step"):
        for weight in state.weights[:-1]:
            weight.div_(torch.linalg.vector_norm(weight, dim=3, keepdim=True))
    steps, watch = n // batch, watch or {}
    chunks = _chunks(net, size, runs, dtype, device)
    whole = {name: some.everything() for name, some in watch.items()}
    job = _Job(net, method, examples, state, seed, streams.to(device), batch, steps, whole)

    costs, rates_of, effective = [], [], []
    watched = {name: ([], []) for name in watch}
    with worker_pool(device) as (_, each):
        for epoch in range(epochs):
            done = list(each(lambda part, epoch=epoch, a=rates, b=rest: job.epoch(part, epoch, a, b), chunks))
            cost = rates.new_empty(size, runs)
            seen = {
                name: (torch.empty_like(cost), torch.empty_like(cost, dtype=torch.float64)) for name in watch
            }
            for (s, r), (values, found) in zip(chunks, done, strict=True):
                cost[s, r] = values
                for name, (loss, error) in found.items():
                    seen[name][0][s, r], seen[name][1][s, r] = loss, error
            costs.append(cost)
            rates_of.append(rates)
            effective.append(_effective(rates, state.weights[:-1]))
            for name, both in seen.items():
                for series, value in zip(watched[name], both, strict=True):
                    series.append(value)
            factor = schedule.factor(epoch, costs)
            rates, rest = rates * factor, rest * factor

    return Trained(
        net,
        state.weights,
        state.means,
        state.variances,
        torch.stack(costs),
        torch.stack(rates_of),
        torch.stack(effective),
        {name: torch.stack(errors) for name, (_, errors) in watched.items()},
        {name: torch.stack(series) for name, (series, _) in watched.items()},
    )


@dataclass(frozen=True)
class _State:
    weights: list[Tensor]
    means: list[Tensor]
    variances: list[Tensor]

    def part(self, s: slice, r: slice) -> _State:
        return _State(
            *([tensor[s, r] for tensor in kind] for kind in (self.weights, self.means, self.variances))
        )


@dataclass(frozen=True)
class _Job:
    net: Network
    method: str
    examples: Examples
    state: _State
    seed: int
    streams: Tensor
    batch: int
    steps: int
    watch: Mapping[str, tuple[Tensor, Tensor]]

    def epoch(
        self, part: tuple[slice, slice], epoch: int, rates: Tensor, rest: Tensor
    ) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """One epoch of a chunk, in place: mean cost of each run, and loss and error on every watched set."""
        s, r = part
        mine = self.state.part(s, r)
        work = Pass(self.net, mine.weights, mine.means, mine.variances, self.batch)
        order = permutation(self.seed, self.streams[s], "order", epoch, self.examples.rows.shape[1])
        columns = [
            rate[s, r].reshape(-1, 1).repeat_interleave(n, 0)
            for rate, (n, _) in zip([rates] * (len(mine.weights) - 1) + [rest], self.net.shapes, strict=True)
        ]
        rows = [weight.flatten(0, 2) for weight in mine.weights]
        of_rows = [gradient.flatten(0, 2) for gradient in work.gradients]
        kinds = [STEPS[self.method]] * (len(rows) - 1) + [STEPS["SGD"]]
        total = rates.new_zeros(work.stack)
        for chosen in order.split(self.batch, 1)[: self.steps]:
            x, y = self.examples.gather(s, chosen)
            logits = work.forward(x, train=True)
            target = y[:, None].expand(-1, work.runs, -1).reshape(work.stack, self.batch)
            total += losses.per_example("cross_entropy", logits, target, axis=1).mean(1)
            slope = losses.derivative("cross_entropy", logits, target, torch.empty_like(logits), axis=1)
            work.backward(slope.div_(self.batch))
            for step, w, g, rate in zip(kinds, rows, of_rows, columns, strict=True):
                step(w, g, rate)
        found = {
            name: evaluate(self.net, mine.weights, mine.means, mine.variances, x[s], y[s])
            for name, (x, y) in self.watch.items()
        }
        return (total / self.steps).view(work.streams, work.runs), found


def _effective(rates: Tensor, filters: list[Tensor]) -> Tensor:
    """Mean over the filters of rate / ‖w‖², (S, R, layers)."""
    inverse = [1 / weight.square().sum(3) for weight in filters]
    return torch.stack([rates * each.mean(2) for each in inverse], 2)


def _chunks(
    net: Network, size: int, runs: int, dtype: torch.dtype, device: torch.device
) -> list[tuple[slice, slice]]:
    """The stack in parts: on a CPU a few runs of one stream, or a few whole streams, for every thread; elsewhere all."""
    if device.type != "cpu":
        return [(slice(0, size), slice(0, runs))]
    fit = max(1, CHUNK // (2 * net.numbers * dtype.itemsize))
    streams = _shares(size, min(max(1, fit // runs), -(-size // torch.get_num_threads())))
    return [(s, r) for s in streams for r in _shares(runs, fit)]


def _shares(total: int, most: int) -> list[slice]:
    """Nearly equal slices of at most ``most``."""
    parts = -(-total // most)
    edges = [i * total // parts for i in range(parts + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]
