"""Weight matching of many networks at once by coordinate ascent, for any symmetries, units inside exchangeable blocks too.

Units inside exchangeable blocks (grouped convolutions) are a wreath product: what it is worth to put block j where the
reference has block i depends on how the units inside are then ordered, so these are matched first, for every such pair.

Where a layer both reads and writes the same units (weights on a residual stream), the assignment is that of the objective's
linear part, taken only where it gains.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from lib.matching.ascent import ROUNDING
from lib.matching.assignment import Solver
from lib.matching.units import compared, owned
from lib.params import Params
from lib.symmetry import Symmetries, compose, identity
from lib.symmetry.act import move_units, precise

Step = dict[int, Tensor]  # of some groups, how their units change places: (P, size)


@dataclass(frozen=True, eq=False)
class State:
    """Where the ascent stands: weights (P, ...) in float64, the element that leads there, the objective (P,)."""

    weights: Params
    perms: tuple[Int64[Tensor, "P _"], ...]
    value: Float64[Tensor, " P"]


class Climb:
    """Networks (P, ...) on their way to the order of one reference."""

    def __init__(
        self,
        reference: Mapping[str, Tensor],
        others: Mapping[str, Tensor],
        symmetries: Symmetries,
        solver: Solver,
    ) -> None:
        self.symmetries, self.solver = symmetries, solver
        self.count = [0]  # of solved problems; a copy of this climb counts on
        self.names = compared(symmetries)
        self.others = {name: precise(others[name]) for name in self.names}
        device = self.others[self.names[0]].device
        self.reference = {name: precise(reference[name]).to(device)[None] for name in self.names}
        self.places = [
            [place for place in group.places if place.name in self.reference]
            for group in symmetries.permutations
        ]
        norms = [sum(t.flatten(1).square().sum(1) for t in x.values()) for x in (self.others, self.reference)]
        self.tolerance = ROUNDING * (norms[0] * norms[1]).sqrt()

    def start(self) -> State:
        return State(self.others, self.element({}), self.objective(self.others))

    def objective(self, weights: Params) -> Tensor:
        """(P,): the inner product with the reference."""
        total = torch.zeros_like(self.tolerance)
        for name in self.names:
            total += weights[name].flatten(1) @ self.reference[name].flatten()
        return total

    def up(self, state: State, groups: list[int]) -> tuple[State, list[Tensor]]:
        """Sweep over the groups until none changes any network; the objective before and after each sweep."""
        history = [state.value]
        while True:
            for g in groups:
                state = self.better(state, self.best_step(state, g))
            history.append(state.value)
            if torch.equal(history[-1], history[-2]):
                return state, history

    def from_input(self, groups: list[int]) -> Step:
        """A way to start: each group once, in list order, by those weights alone whose other axis is settled.

        In the first sweep a layer's outgoing weights end at units that are still in any order: noise, which leads some
        networks into poor optima.
        """
        state = self.start()
        for k, g in enumerate(groups):
            later = [place.name for h in self.with_all_inside(groups[k + 1 :]) for place in self.places[h]]
            mine = {(place.name, place.axis) for place in self.places[g]}
            twice = [name for name, axis in mine if axis and (name, 0) in mine]
            view = copy(self)
            view.names = [name for name in self.names if name not in {*later, *twice}]
            here = replace(state, value=view.objective(state.weights))
            state = view.better(here, view.best_step(here, g))
        return dict(enumerate(state.perms))

    def better(self, state: State, step: Step) -> State:
        """The state with the step made in those networks where it gains more than rounding."""
        weights = self.moved(state.weights, step)
        value = self.objective(weights)
        gains = value > state.value + self.tolerance
        if not bool(gains.any()):
            return state
        element = self.element(
            {g: _choose(gains, perm, torch.arange(perm.shape[1])) for g, perm in step.items()}
        )
        return State(
            {name: _choose(gains, weights[name], tensor) for name, tensor in state.weights.items()},
            compose(self.symmetries, state.perms, element),
            _choose(gains, value, state.value),
        )

    def best_step(self, state: State, g: int) -> Step:
        """The best order of the units of group ``g``, all groups outside it held; the groups inside it are set too."""
        inside = [i for block in self.symmetries.inner(g) for i in block]
        if not inside:
            return {g: self.solved(self.worth(state.weights, g, pairs=True))}
        members, size = len(state.value), self.symmetries.permutations[g].size
        unit = torch.arange(size, device=state.value.device)
        worth, turned = state.value.new_empty(members, size, size), []
        for s in range(size):  # every pair (i, j): block j = i + s stands at place i, at its best inside
            turn = (unit + s) % size
            step = {g: turn.expand(members, -1)}
            weights = self.moved(state.weights, step)
            here = State(weights, self.element(step), self.objective(weights))
            turned.append(self.up(here, inside)[0])
            worth[:, unit, turn] = self.worth(turned[s].weights, g, pairs=False)
        order = self.solved(worth)
        shift = ((order - unit) % size).gather(1, order.argsort(1))  # (P, size): by which a block was turned
        step = {g: order}
        for b, inner in enumerate(self.symmetries.inner(g)):
            for i in self.with_all_inside(inner):
                orders = torch.stack([state.perms[i] for state in turned])  # (shifts, P, units)
                chosen = shift[None, :, b, None].expand(1, -1, orders.shape[2])
                step[i] = orders.gather(0, chosen)[0]
        return step

    def solved(self, worth: Tensor) -> Tensor:
        self.count[0] += len(worth)
        return self.solver(worth)

    def moved(self, weights: Params, step: Step) -> Params:
        """The weights with a step made in all networks, inner groups first."""
        weights = dict(weights)
        for g in sorted(step):
            for place in self.places[g]:
                weights[place.name] = move_units(weights[place.name], place, step[g])
        return weights

    def element(self, step: Step) -> tuple[Tensor, ...]:
        """A step as a group element, (P, size) a group."""
        size, device = len(self.tolerance), self.tolerance.device
        return tuple(
            step.get(g, nothing.to(device).expand(size, -1))
            for g, nothing in enumerate(identity(self.symmetries))
        )

    def with_all_inside(self, groups: list[int]) -> list[int]:
        """These groups and all groups inside them, at any depth."""
        deeper = [i for g in groups for block in self.symmetries.inner(g) for i in block]
        return groups + (self.with_all_inside(deeper) if deeper else [])

    def worth(self, weights: Params, g: int, pairs: bool) -> Tensor:
        """Inner products of the reference's unit i with unit j, (P, size, size); or only with what stands at i, (P, size)."""
        size = self.symmetries.permutations[g].size
        total = self.tolerance.new_zeros(len(self.tolerance), size, *[size] * pairs)
        for place in self.places[g]:
            if place.name not in self.names:
                continue
            ours = owned(self.reference[place.name], place)
            theirs = owned(weights[place.name], place)
            total = total + (ours @ theirs.mT if pairs else (ours * theirs).sum(2))
        return total


def _choose(which: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Member by member a (P, ...) where ``which`` (P,), else b."""
    return torch.where(which.view(-1, *[1] * (a.ndim - 1)), a, b.to(a.device))
