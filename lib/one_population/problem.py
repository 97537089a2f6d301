"""The population that every lens looks at, its twin with filters of unit norm, and three views of either.

A view removes symmetry, never a function: "raw" is what training left, "sorted" the canonical form of chapter 1 (units in the order
of their incoming norms), "aligned" the joint order of all networks (chapter 6); both at the minimum of the mass, or at unit norm.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib import randomness
from lib.data import Dataset, load
from lib.matching import match_many
from lib.networks import perceptron
from lib.params import Params, population_size, select
from lib.population import Recipe, initial, train, walk
from lib.posteriors.target import ravel
from lib.symmetry import Symmetries, canonicalize, find_symmetries
from lib.symmetry.canonical import Scale
from lib.unit_norm import manifold
from lib.unit_norm.steps import unit_norm

VIEWS = ("raw", "sorted", "aligned")
RAW, SORTED, ALIGNED = VIEWS
FILTERS = "0.weight"  # of one hidden layer


@dataclass(frozen=True, eq=False)
class Problem:
    """A network of one hidden layer, what it learns from, and how."""

    name: str
    width: int
    net: nn.Sequential
    symmetries: Symmetries
    recipe: Recipe
    learn: Dataset
    test: Dataset

    @property
    def examples(self) -> int:
        """n, the number of training examples."""
        return len(self.learn)

    @property
    def precision(self) -> float:
        """n wd, the precision of the Gaussian prior that the weight decay means."""
        return self.examples * float(self.recipe.weight_decay)


def problem_of(images: str, width: int, learn: int | None, epochs: int, device: torch.device) -> Problem:
    """``images`` is "digits" (all of them, shuffled; the first ``learn`` to learn from, the rest to test) or "mnist".

    The prior's standard deviation is 2 for every weight, whatever the number of examples.
    """
    if images == "digits":
        whole = load("digits", flat=True)
        order = randomness.permutation(0, torch.zeros(1, dtype=torch.int64), "one population", 0, len(whole))[
            0
        ]
        parts = [_rows(whole, order[:learn]), _rows(whole, order[learn:])]
    else:
        parts = [load(images, part, flat=True) for part in ("train", "test")]
        parts[0] = _rows(parts[0], torch.arange(len(parts[0]) if learn is None else learn))
    learn_set, test_set = (
        replace(part, inputs=part.inputs.to(device), targets=part.targets.to(device)) for part in parts
    )
    net = perceptron((learn_set.inputs.shape[1], width, 10))
    recipe = Recipe(lr=0.1, batch_size=32, epochs=epochs, weight_decay=0.25 / len(learn_set))
    symmetries = find_symmetries(net, learn_set.inputs[:2].cpu())
    return Problem(images, width, net, symmetries, recipe, learn_set, test_set)


def population(problem: Problem, members: range, seed: int) -> Params:
    """Independently trained networks. Raises RuntimeError where one diverges."""
    learn = problem.learn
    found = train(
        problem.net,
        learn.inputs,
        learn.targets,
        problem.recipe,
        members=members,
        seed=seed,
        device=learn.inputs.device,
    )
    if not bool(found.finite.all()):
        raise RuntimeError("a network diverged in training: lower the rate of the recipe.")
    return found.params


def twins(problem: Problem, members: range, seed: int) -> Params:
    """The same trainings (initial directions, batches, rates) with filters of unit norm (chapter 5), which have no decay."""
    learn, recipe = problem.learn, problem.recipe
    start = initial(problem.net, torch.tensor(members, device=learn.inputs.device), seed)
    start[FILTERS] = manifold.normalise(start[FILTERS], lead=2)

    def step(
        weights: list[Tensor], gradients: list[Tensor], ids: Tensor, number: int, rate: float | int
    ) -> None:
        (hidden, out), (slope, slope_out) = weights, gradients
        filters = hidden[..., :-1].flatten(0, 1).contiguous()
        unit_norm(filters, slope[..., :-1].flatten(0, 1).contiguous(), rate)
        hidden[..., :-1] = filters.view_as(hidden[..., :-1])
        hidden[..., -1].mul_(1 - rate * recipe.weight_decay).sub_(slope[..., -1], alpha=rate)
        out.mul_(1 - rate * recipe.weight_decay).sub_(slope_out, alpha=rate)

    walked = walk(
        problem.net,
        learn.inputs,
        learn.targets,
        recipe,
        members=members,
        seed=seed,
        device=learn.inputs.device,
        start=start,
        update=step,
    )
    (last,) = deque(walked, maxlen=1)
    found = last.params
    if not all(bool(tensor.isfinite().all()) for tensor in found.values()):
        raise RuntimeError("a network with unit-norm filters diverged: lower the rate of the recipe.")
    return found


def views(problem: Problem, params: Params, scale: Scale = "min_mass") -> dict[str, Params]:
    """The three views of a population, each of the same functions."""
    return {view: seen(problem, params, view, scale) for view in VIEWS}


def seen(problem: Problem, params: Params, view: str, scale: Scale = "min_mass") -> Params:
    """One view; joint alignment starts from the first network."""
    if view == RAW:
        return params
    if view == SORTED:
        return canonicalize(params, problem.symmetries, scale, "norm")
    if view != ALIGNED:
        raise ValueError(f"there is no view {view!r}: choose one of {', '.join(VIEWS)}.")
    scaled = canonicalize(params, problem.symmetries, scale, None)
    return match_many(scaled, problem.symmetries, "joint", reference=0).params


def spread(params: Params) -> float:
    """Mean squared distance of two different networks of a population, over all pairs."""
    flat = ravel(params).double()
    return float(2 * flat.var(0).sum())


def in_groups(params: Params, groups: int) -> list[Params]:
    """Disjoint groups of equal size, in the networks' order; raises ValueError where a group would have fewer than two."""
    size = population_size(params) // groups
    if size < 2:
        raise ValueError(f"{population_size(params)} networks make no {groups} groups of two: train more.")
    return [select(params, slice(k * size, (k + 1) * size)) for k in range(groups)]


def flat(params: Params) -> Float[Tensor, "P D"]:
    """A population as points, in the order of the network's tensors."""
    return ravel(params)


def _rows(data: Dataset, rows: Tensor) -> Dataset:
    return replace(data, inputs=data.inputs[rows], targets=data.targets[rows])
