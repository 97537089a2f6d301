"""Thousands of independent networks at once: initialise, train, predict, evaluate.

Every random draw is a counter-based function of (seed, member, purpose, step), so a member is the same network in any
population.  Perceptrons take the hand-written passes of ``lib.population.dense``, small convolutional networks those of
``lib.population.convolution``; any other module takes ``lib.population.vmapped``, where every member has running
statistics of its own: they are among its parameters from the first step to the last.

On a CPU the members are trained in chunks that fit the cache, one thread a chunk.  Chunks and threads change no bit of the
result of hand-written passes; for other modules, members agree across populations up to rounding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lib.device import one_thread, worker_pool
from lib.params import Params, population_size, select
from lib.population import archive, losses, stacked
from lib.population.convolution import Convolution
from lib.population.dense import Dense
from lib.population.initialise import initial, member_ids
from lib.population.members import Population
from lib.population.recipe import Recipe
from lib.population.vmapped import Vmapped, running
from lib.randomness import permutation

if TYPE_CHECKING:
    from lib.population.fused import Fused

CACHE = 4 << 20  # bytes that the members of a chunk touch in one step, on a CPU
MEMORY = 2 << 30  # the same, on an accelerator


def train(
    net: nn.Module,
    inputs: Shaped[Tensor, "N ..."],
    targets: Shaped[Tensor, "N ..."],
    recipe: Recipe,
    *,
    members: int | range | Tensor,
    seed: int,
    device: str | torch.device = "cpu",
    start: Params | None = None,
    masks: Params | None = None,
    progress: bool = False,
    checkpoint: str | Path | None = None,
    every: float | int = 60,
    fast: bool = True,
) -> Population:
    """Train every member by ``recipe`` on the same examples, each in its own random order.

    ``start`` gives initial parameters (P, ...) in place of ``initial``; running statistics that it leaves out begin as in
    ``net``.  ``masks`` holds boolean tensors (P, ...) of some parameters: where False, a weight begins at zero and stays there,
    with neither gradient nor momentum.  With ``checkpoint``, the state is written to that file (atomically) after an epoch whenever ``every`` seconds have passed, and a run that finds such a file goes on
    from it, with the same bits on one CPU as a run that was never stopped; the file is removed at the end.
    ``fast=False`` takes the generic path for a perceptron too.  Raises UnsupportedTraining with the layer's name.
    """
    fused = _fused(net, inputs, targets, recipe, seed, device) if fast and masks is None else None
    simple = fast and fused is None  # the fused form works on parameters as they are named
    run, slots, place, state = _begin(
        net, inputs, targets, recipe, members, seed, device, start, simple, masks
    )
    run, model, device = replace(run, fused=fused), run.model, torch.device(device)
    print_of_run = archive.fingerprint(
        recipe.to_dict(), seed, slots, [*state.packed, *state.living], inputs, targets
    )
    epochs_done = archive.restore(checkpoint, print_of_run, state.tensors()) if checkpoint else 0

    with worker_pool(device, not isinstance(model, Vmapped)) as (workers, each):
        chunks = _chunks(len(slots), run.bytes_per_member, run.lanes, device, workers)
        parts = [state.part(chunk) for chunk in chunks]
        ids_of = [slots[chunk].to(device) for chunk in chunks]
        bar = _bar(progress, (recipe.epochs - epochs_done) * len(chunks))
        saved = time.monotonic()
        for epoch in range(epochs_done, recipe.epochs):
            for _ in each(lambda job, epoch=epoch: run.epoch(*job, epoch), zip(parts, ids_of, strict=True)):
                bar.update()
            if checkpoint and time.monotonic() - saved >= every:
                archive.store(checkpoint, print_of_run, epoch + 1, state.tensors())
                saved = time.monotonic()
        bar.close()
    if checkpoint:
        Path(checkpoint).unlink(missing_ok=True)
    here = place.to(device)
    return Population(
        model.unpack([tensor[here] for tensor in state.packed]),
        member_ids(members).to(device),
        seed,
        recipe,
        state.loss[here],
        state.diverged_at[here],
    )


@dataclass(frozen=True)
class Moment:
    """A population after one step of its training: the step's number from 0, its rate, and the tensors as they stand."""

    step: int
    rate: float | int
    model: Dense | Convolution | Vmapped
    packed: list[Tensor]
    place: Tensor

    @property
    def params(self) -> Params:
        """A copy of the members' parameters (P, ...), running statistics among them, after this step."""
        return self.model.unpack([tensor[self.place] for tensor in self.packed])


Update = Callable[[list[Tensor], list[Tensor], Tensor, int, float], None]


def walk(
    net: nn.Module,
    inputs: Shaped[Tensor, "N ..."],
    targets: Shaped[Tensor, "N ..."],
    recipe: Recipe,
    *,
    members: int | range | Tensor,
    seed: int,
    device: str | torch.device = "cpu",
    start: Params | None = None,
    update: Update | None = None,
) -> Iterator[Moment]:
    """The same training, one step at a time: yields a ``Moment`` after every step, for those who watch or sample.

    ``update(weights, gradients, ids, step, rate)`` replaces the recipe's rule: it changes the list of packed tensors
    ``weights`` (C, ...) in place, given the gradients of the batch's mean loss (without decay) and the member in each row.
    All members walk together on one thread; a member that diverges shows in its weights, and stops nobody.
    """
    run, slots, place, state = _begin(net, inputs, targets, recipe, members, seed, device, start, True)
    ids, here = slots.to(device), place.to(device)
    for epoch in range(recipe.epochs):
        steps = run.walk(state, ids, epoch, False, update)
        while True:
            with one_thread():  # not across a yield: between two steps the caller has its threads back
                done = next(steps, None)
            if done is None:
                break
            rate = recipe.rate(done[0], run.steps)
            yield Moment(done[0], rate, run.model, state.packed, here)


def _begin(
    net: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    recipe: Recipe,
    members: int | range | Tensor,
    seed: int,
    device: str | torch.device,
    start: Params | None,
    fast: bool,
    masks: Params | None = None,
) -> tuple[_Run, Tensor, Tensor, _State]:
    """A run before its first step: the run, the member in each slot, the slot of each member, and the state."""
    device, ids = torch.device(device), member_ids(members).cpu()
    if len(torch.unique(ids)) != len(ids):
        raise ValueError("member ids must be distinct: a member occurs once in a population.")
    n = len(inputs)
    if len(targets) != n:
        raise ValueError(f"{n} inputs and {len(targets)} targets: there must be one target for each input.")
    model = Dense.recognise(net, recipe.loss) if fast else None
    model = model or (Convolution.recognise(net, recipe.loss, tuple(inputs.shape[1:])) if fast else None)
    steps = recipe.steps_per_epoch(n)
    sizes = {min(recipe.batch_size, n), n - (steps - 1) * recipe.batch_size if not recipe.drop_last else n}
    model = model or Vmapped(net, recipe.loss, seed, inputs[: min(sizes)], device)
    targets = losses.as_targets(recipe.loss, targets, model.outputs, model.dtype).to(device)
    lanes = model.lanes(sizes & set(range(recipe.batch_size + 1)))
    slots, place = arrange(ids, lanes)

    filled = torch.zeros(len(slots), dtype=torch.int64).index_copy(0, place, torch.arange(len(ids)))

    def in_slots(params: Params) -> Params:
        return {name: t.detach()[filled.to(t.device)].to(device) for name, t in params.items()}

    own = initial(net, slots.to(device), seed) if start is None else in_slots(start)
    packed = model.pack(own)
    trained = len(model.names) if isinstance(model, Vmapped) else len(packed)
    living: list[Tensor] = []
    if masks is not None:
        if unknown := masks.keys() - own.keys():
            raise ValueError(f"a mask is given for {min(unknown)!r}, which is no parameter of the network.")
        kept = {name: mask.to(t.dtype) for name, mask in in_slots(masks).items() for t in [own[name]]}
        whole = {name: kept.get(name, torch.ones_like(t)) for name, t in own.items()}
        living = model.pack(whole)[:trained]
        packed = [*(t * mask for t, mask in zip(packed, living, strict=False)), *packed[trained:]]
    weights, statistics = packed[:trained], packed[trained:]
    state = _State(
        weights,
        statistics,
        recipe.moments(weights),
        torch.full((len(slots),), torch.nan, dtype=model.dtype, device=device),
        torch.full((len(slots),), -1, device=device),
        living,
    )
    run = _Run(model, recipe, seed, model.table(inputs.to(device)), targets, steps, lanes)
    return run, slots, place, state


def arrange(members: Int64[Tensor, " P"], lanes: int) -> tuple[Int64[Tensor, " S"], Int64[Tensor, " P"]]:
    """Slots for members such that slot ≡ member modulo ``lanes``, whole rows of lanes: (member in each slot, slot of each).

    Slots that no member needs train a member of the right residue, and nobody looks.
    """
    lane = members % lanes
    rank = torch.zeros_like(members)
    order = torch.argsort(lane, stable=True)
    sorted_lane = lane[order]
    first = torch.searchsorted(sorted_lane, sorted_lane)
    rank[order] = torch.arange(len(members)) - first
    place = rank * lanes + lane
    slots = torch.arange((int(rank.max()) + 1) * lanes)
    slots[place] = members
    return slots, place


@dataclass
class _State:
    weights: list[Tensor]
    statistics: list[Tensor]  # running ones, that a step moves as it reads the batch: no gradient, no moments
    moments: list[list[Tensor]]
    loss: Tensor
    diverged_at: Tensor
    living: list[
        Tensor
    ]  # one or nought a weight, where masks are given: nothing else of a network depends on it

    @property
    def packed(self) -> list[Tensor]:
        """All that makes the members' networks, as the model packs it."""
        return [*self.weights, *self.statistics]

    def _each(self, change: Callable[[Tensor], Tensor]) -> _State:
        weights, statistics, *moments = (
            [change(tensor) for tensor in tensors]
            for tensors in (self.weights, self.statistics, *self.moments)
        )
        living = [change(tensor) for tensor in self.living]
        return _State(weights, statistics, moments, change(self.loss), change(self.diverged_at), living)

    def part(self, chunk: slice | Tensor) -> _State:
        """Views of the members of a chunk, so that training them trains these; copies where rows are listed."""
        return self._each(lambda tensor: tensor[chunk])

    def copy(self) -> _State:
        return self._each(torch.clone)

    def tensors(self) -> dict[str, Tensor]:
        named = {f"weights/{i}": tensor for i, tensor in enumerate(self.weights)}
        named |= {f"statistics/{i}": tensor for i, tensor in enumerate(self.statistics)}
        for k, moment in enumerate(self.moments):
            named |= {f"moments/{k}/{i}": tensor for i, tensor in enumerate(moment)}
        return named | {"loss": self.loss, "diverged_at": self.diverged_at}

    def finite(self) -> Tensor:
        """Which members have finite weights and running statistics."""
        return torch.stack([t.isfinite().reshape(len(t), -1).all(dim=1) for t in self.packed]).all(dim=0)

    def put_back(self, which: Tensor, earlier: _State) -> None:
        """Give the members ``which`` their earlier weights, and the running statistics that belong to them."""
        for tensor, old in zip(self.packed, earlier.packed, strict=True):
            tensor.copy_(torch.where(which.view(-1, *[1] * (tensor.ndim - 1)), old, tensor))


@dataclass(frozen=True)
class _Run:
    model: Dense | Convolution | Vmapped
    recipe: Recipe
    seed: int
    table: Tensor
    targets: Tensor
    steps: int
    lanes: int
    fused: Fused | None = None

    @property
    def bytes_per_member(self) -> int:
        return (
            self.fused.bytes_per_member if self.fused else self.model.bytes_per_member(self.recipe.batch_size)
        )

    def walk(
        self, state: _State, members: Tensor, epoch: int, want_losses: bool, update: Update | None = None
    ) -> Iterator[tuple[int, Tensor | None]]:
        """The steps of one epoch, in place: yields each step's number and its losses (C, B) before the step."""
        batch = self.recipe.batch_size
        order = permutation(self.seed, members, "order", epoch, len(self.table))
        steps = {}
        for k, rows in enumerate(order.split(batch, dim=1)[: self.steps]):
            size, number = rows.shape[1], epoch * self.steps + k
            if size not in steps:
                steps[size] = self.model.step(state.packed, size)
            gradients, values = steps[size].gradients(
                self.table, self.targets, rows, want_losses, members, number
            )
            if state.living:
                torch._foreach_mul_(gradients, state.living)
            rate = self.recipe.rate(number, self.steps)
            if update is None:
                self.recipe.update(state.weights, gradients, state.moments, number, rate)
            else:
                update(state.weights, gradients, members, number, rate)
            yield number, values

    def epoch(self, state: _State, members: Tensor, epoch: int) -> None:
        """One epoch of a chunk; members that diverge in it are found at its end, and traced by walking it again."""
        last = epoch == self.recipe.epochs - 1
        before, total, seen = state.copy(), 0.0, 0
        if self.fused:
            total, seen = self.fused.epoch(state.weights, members, epoch)
        else:
            for _, values in self.walk(state, members, epoch, want_losses=last):
                if last:
                    total, seen = total + values.sum(dim=1), seen + values.shape[1]
        finite = state.finite()
        if last:
            state.loss.copy_(total / seen)
            finite &= state.loss.isfinite()
        lost = ~finite & (state.diverged_at < 0)
        if bool(
            (finite & (state.diverged_at < 0)).all()
        ):  # the one synchronisation of an epoch on an accelerator
            return
        if bool(lost.any()):
            if self.fused:
                self.trace_few(before, state, members, epoch, lost)
            else:
                self.trace(before, state, members, epoch, lost)
        frozen = state.diverged_at >= 0
        state.put_back(frozen, before)
        state.loss.masked_fill_(frozen, torch.nan)

    def trace_few(self, before: _State, state: _State, members: Tensor, epoch: int, lost: Tensor) -> None:
        """``trace`` for members whose neighbours are too many for the ordinary path: copies of the lost alone walk again."""
        few = max(1, MEMORY // self.model.bytes_per_member(self.recipe.batch_size))
        for rows in lost.nonzero().flatten().split(few):
            old, new = before.part(rows), state.part(rows)
            self.trace(old, new, members[rows], epoch, lost[rows])
            state.diverged_at[rows] = new.diverged_at
            for tensor, last in zip(before.packed, old.packed, strict=True):
                tensor[rows] = last

    def trace(self, before: _State, state: _State, members: Tensor, epoch: int, lost: Tensor) -> None:
        """Find the steps at which the members ``lost`` diverged; ``before`` gets their last finite state."""
        replay = before.copy()
        previous = replay.copy()
        for step, values in self.walk(replay, members, epoch, want_losses=True):
            now = lost & ~(replay.finite() & values.sum(dim=1).isfinite())
            state.diverged_at.masked_fill_(now, step)
            before.put_back(now, previous)
            lost, previous = lost & ~now, replay.copy()
        state.diverged_at.masked_fill_(lost, step)  # none, unless a device rounds otherwise the second time


def _chunks(slots: int, size: int, lanes: int, device: torch.device, workers: int) -> list[slice]:
    """Equal shares of the slots, whole rows of lanes each, that fit the cache and keep every worker busy."""
    rows = slots // lanes
    fit = max(1, (CACHE if device.type == "cpu" else MEMORY) // (size * lanes))
    number = min(rows, workers * -(-rows // (fit * workers)))
    edges = [lanes * (i * rows // number) for i in range(number + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]


def _fused(
    net: nn.Module, inputs: Tensor, targets: Tensor, recipe: Recipe, seed: int, device: str | torch.device
) -> Fused | None:
    """The run in one kernel, where network, recipe, data and a CUDA card allow it."""
    if torch.device(device).type != "cuda":
        return None
    from lib.population.fused import fit

    return fit(net, inputs.to(device), targets.to(device), recipe, seed)


class _NoBar:
    def update(self) -> None: ...

    def close(self) -> None: ...


def _bar(show: bool, total: int):
    if not show:
        return _NoBar()
    from tqdm.auto import tqdm

    return tqdm(total=total, desc="training", unit="chunk-epoch", smoothing=0)


def predict(net: nn.Module, params: Params, inputs: Shaped[Tensor, "N ..."]) -> Float[Tensor, "P N out"]:
    """Outputs of every member on the same inputs, in evaluation mode (no dropout, running statistics where kept)."""
    size = population_size(params)
    if absent := [name for name in running(net) if name not in params]:
        raise ValueError(
            f"the parameters hold no {absent[0]}, and a BatchNorm predicts by each member's own running statistics: pass "
            "all that train returned, or build the network with track_running_stats=False."
        )
    first = next(iter(params.values()))
    inputs = inputs.to(first.device, next(t.dtype for t in params.values() if t.is_floating_point()))
    if stacked.supports(net):
        return _predict_stacked(net, params, inputs)
    was_training = net.training
    net.eval()
    try:
        one = vmap(lambda member: functional_call(net, member, (inputs,)))
        rows = max(1, (MEMORY >> 4) // max(1, 4 * inputs.numel()))
        with torch.no_grad():
            parts = [one(select(params, slice(i, i + rows))) for i in range(0, size, rows)]
    finally:
        net.train(was_training)
    return torch.cat(parts)


def _predict_stacked(net: nn.Module, params: Params, inputs: Tensor) -> Tensor:
    """The same by batched products, in blocks of members, and of examples where one member's are too many already.

    Examples stay together where a norm reads its statistics off them.
    """
    fit = (CACHE << 2 if inputs.device.type == "cpu" else MEMORY >> 3) // inputs.element_size()
    fit = max(1, fit // stacked.numbers(net, inputs))
    whole = any(stacked.by_batch(layer) for _, layer in stacked.layers(net))
    size, rows = population_size(params), len(inputs) if whole else min(len(inputs), fit)
    members = max(1, fit // max(1, rows))
    with torch.no_grad():
        blocks = (select(params, slice(i, i + members)) for i in range(0, size, members))
        parts = [
            torch.cat(
                [stacked.forward(net, block, some, own=False) for some in inputs.split(max(1, rows))], 1
            )
            for block in blocks
        ]
    return torch.cat(parts)


def evaluate(
    net: nn.Module,
    params: Params,
    inputs: Shaped[Tensor, "N ..."],
    targets: Shaped[Tensor, "N ..."],
    loss: str = "cross_entropy",
) -> dict[str, Float[Tensor, " P"]]:
    """Mean loss of every member and, for the two classification losses, its accuracy."""
    outputs = predict(net, params, inputs)
    targets = losses.as_targets(loss, targets, outputs.shape[-1], outputs.dtype).to(outputs.device)
    everyone = targets.expand(len(outputs), *targets.shape)
    result = {"loss": losses.per_example(loss, outputs, everyone).mean(dim=1)}
    if loss == "cross_entropy":
        result["accuracy"] = (outputs.argmax(dim=-1) == targets).to(outputs.dtype).mean(dim=1)
    elif loss == "binary_cross_entropy":
        result["accuracy"] = ((outputs > 0) == (targets > 0.5)).to(outputs.dtype).mean(dim=(1, 2))
    return result
