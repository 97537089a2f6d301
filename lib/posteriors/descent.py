"""Stochastic descent on any differentiable loss of stacked parameters, in the population's own data order.

Dropout and the factorised Gaussian change the loss, not the training: batches, learning rate and update are those of
``lib.population``, so that with no noise at all their members are the members of an ordinary population.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from lib.device import one_thread
from lib.population import stacked
from lib.population.losses import per_example
from lib.population.recipe import Recipe
from lib.population.vmapped import UnsupportedTraining
from lib.randomness import permutation

BLOCK = 1 << 14  # numbers of one member drawn in one call, where a step needs fewer
Loss = Callable[[list[Tensor], Tensor, Tensor, int], Tensor]
Slope = Callable[[list[Tensor], Tensor, Tensor, int], tuple[Tensor, list[Tensor]]]


class Diverged(ValueError):
    """Runs of a method whose parameters or loss are no longer finite."""


def descend(
    slope: Slope,
    weights: list[Tensor],
    inputs: Shaped[Tensor, "N ..."],
    targets: Shaped[Tensor, "N ..."],
    recipe: Recipe,
    *,
    members: Int64[Tensor, " R"],
    seed: int,
) -> Float[Tensor, " R"]:
    """Change ``weights`` (R, ...) in place by ``recipe``; returns each run's mean loss over the last epoch.

    ``slope(weights, x, y, step)`` gives each run's loss (R,) on its own batch x (R, B, ...), y (R, B, ...), and the
    gradients, both without the recipe's decay, which the update adds. Raises Diverged with the runs that are not finite
    at the end.
    """
    n, moments = len(inputs), recipe.moments(weights)
    steps, seen = recipe.steps_per_epoch(n), 0
    total = torch.zeros(len(members), dtype=weights[0].dtype, device=weights[0].device)
    # The operations of a few small networks are too short for two threads.
    with one_thread() if inputs.device.type == "cpu" else nullcontext():
        for epoch in range(recipe.epochs):
            order = permutation(seed, members, "order", epoch, n)
            for k, rows in enumerate(order.split(recipe.batch_size, dim=1)[:steps]):
                step = epoch * steps + k
                values, gradients = slope(weights, inputs[rows], targets[rows], step)
                recipe.update(weights, gradients, moments, step, recipe.rate(step, steps))
                if epoch == recipe.epochs - 1:
                    total, seen = total + values * rows.shape[1], seen + rows.shape[1]
    refuse_diverged(weights, members, total)
    return total / max(seen, 1)


def by_autograd(loss: Loss) -> Slope:
    """A loss (R,) with the gradients of its runs, which do not touch each other's weights."""

    def slope(weights: list[Tensor], x: Tensor, y: Tensor, step: int) -> tuple[Tensor, list[Tensor]]:
        with torch.enable_grad():
            leaves = [weight.detach().requires_grad_() for weight in weights]
            values = loss(leaves, x, y, step)
            return values.detach(), list(torch.autograd.grad(values.sum(), leaves))

    return slope


class Stream:
    """Random numbers for one step after the other, several steps to a call: for small networks calls cost more than numbers.

    ``stream(step, shape)`` is (R, *shape), a function of (seed, member, purpose, step, shape) alone. ``draw`` is a function
    of `lib.randomness`; how many steps share a call follows from the shape, never from the number of members.
    """

    def __init__(
        self, draw: Callable[..., Tensor], seed: int, members: Tensor, purpose: str, dtype: torch.dtype
    ):
        self.draw, self.key, self.dtype = draw, (seed, members, purpose), dtype
        self.held: tuple[int, tuple[int, ...]] | None = None

    def __call__(self, step: int, shape: tuple[int, ...]) -> Tensor:
        together = max(1, BLOCK // math.prod(shape))
        block, place = divmod(step, together)
        if self.held != (block, shape):
            numbers = self.draw(*self.key, block, (together, *shape), self.dtype)
            self.held, self.numbers = (block, shape), numbers.unbind(1)
        return self.numbers[place]


def chain(net: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers of a Sequential with their names; raises UnsupportedTraining for what has no stacked form."""
    if not isinstance(net, nn.Sequential):
        raise UnsupportedTraining(
            f"a {type(net).__name__} is no nn.Sequential, whose layers could be stacked."
        )
    layers = stacked.layers(net)
    for name, layer in layers:
        if (reason := stacked.refusal(layer, name)) is not None:
            raise UnsupportedTraining(reason)
    return layers


def outputs_of(net: nn.Module) -> int:
    """How many numbers the network puts out: the width of its last layer with weights."""
    widths = [layer.weight.shape[0] for _, layer in chain(net) if hasattr(layer, "weight")]
    if not widths:
        raise UnsupportedTraining("the network has no parameters: nothing to train.")
    return widths[-1]


def mean_loss(loss: str, outputs: Float[Tensor, "R B out"], targets: Shaped[Tensor, "R B ..."]) -> Tensor:
    """The mean loss of each run's batch, (R,)."""
    return per_example(loss, outputs, targets).mean(dim=1)


def refuse_diverged(weights: list[Tensor], members: Int64[Tensor, " R"], values: Float[Tensor, " R"]) -> None:
    """Raise Diverged where a run's weights or its loss are not finite."""
    finite = values.isfinite()
    for weight in weights:
        finite &= weight.isfinite().reshape(len(weight), -1).all(dim=1)
    if not bool(finite.all()):
        lost = members[~finite].tolist()
        named = ", ".join(map(str, lost[:8])) + (", ..." if len(lost) > 8 else "")
        raise Diverged(
            f"{len(lost)} of {len(members)} runs diverged (run {named}): lower the learning rate, or leave them out."
        )
