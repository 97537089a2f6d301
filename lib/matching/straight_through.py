"""Straight-through estimation: the permutation under which two networks meet at a low loss, found with data and gradients.

Git Re-Basin (Ainsworth, Hayase & Srinivasa 2023, section 3.3): latent weights, free at first the reference's own, stand between
the two. The permutation is that of weight matching to the latent; the loss is taken at the midpoint of the reference and the
permuted network; and its gradient by the permuted network passes straight through the matching, to the latent, which takes
a step of Adam (Kingma & Ba 2015). Of all permutations on the way, the one with the lowest loss at the midpoint is kept: the
first is plain weight matching, of which the result never falls short on these inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64, Shaped
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lib.matching.units import compared, refuse_broken
from lib.matching.weights import match
from lib.params import Params
from lib.randomness import permutation
from lib.symmetry import Symmetries, members_of, permute

AT_ONCE = 1024  # examples


@dataclass(frozen=True, eq=False)
class StraightThrough:
    """A network brought into the order of another: params = permute(second, symmetries, perms), the same function.

    ``losses`` (1 + steps,) float64: mean loss at the midpoint, on all inputs, of weight matching and of the permutation after
    each step. ``perms``, one (size,) int64 tensor a group, are those of the lowest.
    """

    params: Params
    perms: tuple[Int64[Tensor, " _"], ...]
    losses: Float64[Tensor, " steps"]


def straight_through(
    net: nn.Module,
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    symmetries: Symmetries,
    inputs: Shaped[Tensor, "N ..."],
    targets: Shaped[Tensor, "N ..."],
    *,
    steps: int = 200,
    rate: float = 1e-2,
    batch: int = 128,
    seed: int = 0,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> StraightThrough:
    """``second`` in the order in which it meets ``first`` at the lowest loss that is found; both are single networks.

    ``steps`` of Adam at ``rate`` on minibatches of ``batch`` examples, in an order drawn by ``seed`` for each pass. ``loss`` is
    a mean over examples. Networks run in evaluation mode; running statistics meet in the middle as the weights do.

    Raises ValueError for populations, weights that are not finite, and a loss at the midpoint that is not.
    """
    names = compared(symmetries)
    for which, network in (("the first network", first), ("the second network", second)):
        if members_of(network, symmetries) is not None:
            raise ValueError(
                "straight-through estimation takes one pair: give single networks, not populations."
            )
        refuse_broken({name: tensor[None] for name, tensor in network.items()}, names, which)
    latent = {name: tensor.detach().clone() for name, tensor in first.items()}
    adam = torch.optim.Adam([latent[name] for name in names], lr=rate)
    training = net.training
    net.eval()
    try:
        perms = best = match(latent, second, symmetries).perms
        middle = _midpoint(first, permute(second, symmetries, perms))
        losses = [_loss(net, middle, inputs, targets, loss)]
        for step in range(steps):
            rows = _minibatch(len(inputs), batch, seed, step).to(inputs.device)
            gradients = _gradients(net, middle, names, inputs[rows], targets[rows], loss)
            for name, gradient in zip(names, gradients, strict=True):
                latent[name].grad = gradient / 2  # the midpoint moves half as far
            adam.step()
            before, perms = perms, match(latent, second, symmetries).perms
            if all(torch.equal(old, new) for old, new in zip(before, perms, strict=True)):
                losses.append(losses[-1])
                continue
            middle = _midpoint(first, permute(second, symmetries, perms))
            losses.append(_loss(net, middle, inputs, targets, loss))
            best = perms if losses[-1] < min(losses[:-1]) else best
    finally:
        net.train(training)
    return StraightThrough(permute(second, symmetries, best), best, torch.tensor(losses, dtype=torch.float64))


def _midpoint(first: Mapping[str, Tensor], moved: Params) -> Params:
    """Halfway between two networks; counters of integers are the first's."""
    return {name: (t + moved[name]) / 2 if t.is_floating_point() else t for name, t in first.items()}


def _loss(
    net: nn.Module,
    params: Params,
    inputs: Tensor,
    targets: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> float:
    """The mean over all inputs."""
    total = 0.0
    with torch.no_grad():
        for x, y in zip(inputs.split(AT_ONCE), targets.split(AT_ONCE), strict=True):
            total += len(x) * float(loss(functional_call(net, params, (x,)), y))
    if not math.isfinite(total):
        raise ValueError(
            "the loss at the midpoint is not finite: leave diverged networks out before matching."
        )
    return total / len(inputs)


def _gradients(
    net: nn.Module,
    params: Params,
    names: list[str],
    inputs: Tensor,
    targets: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, ...]:
    leaves = {name: params[name].detach().requires_grad_() for name in names}
    value = loss(functional_call(net, {**params, **leaves}, (inputs,)), targets)
    return torch.autograd.grad(value, [leaves[name] for name in names])


def _minibatch(examples: int, batch: int, seed: int, step: int) -> Int64[Tensor, " _"]:
    """The rows of a step: each pass over the examples in an order of its own, its incomplete last minibatch left out."""
    batch = min(batch, examples)
    turn, place = divmod(step, examples // batch)
    order = permutation(seed, torch.tensor([0]), "matching/minibatches", turn, examples)[0]
    return order[place * batch : (place + 1) * batch]
