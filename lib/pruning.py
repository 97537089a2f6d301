"""Iterative magnitude pruning of whole populations: prune the smallest of what is left, rewind, train again under the mask.

Masks are plain like parameters: a flat dict of boolean tensors (P, ...), True where a weight lives (Frankle & Carbin 2019; rewinding to
an early epoch, Frankle et al. 2020). ``lib.population.train`` takes them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn

from lib.params import Params
from lib.randomness import permutation
from lib.symmetry import Symmetries, permute

Masks = dict[str, Tensor]


def prunable(net: nn.Module) -> list[str]:
    """Names of the weights that are pruned: those of linear and convolutional layers but the last, which is the head."""
    layers = [
        name for name, layer in net.named_modules() if isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd))
    ]
    if len(layers) < 2:
        raise ValueError("the network has no hidden layer, and its head is never pruned.")
    return [f"{name}.weight" if name else "weight" for name in layers[:-1]]


def full(params: Mapping[str, Tensor], names: list[str]) -> Masks:
    """Masks under which every weight of the named tensors lives."""
    return {name: torch.ones_like(params[name], dtype=torch.bool) for name in names}


def prune(params: Mapping[str, Tensor], masks: Masks, rate: float = 0.2) -> Masks:
    """Without the smallest ``rate`` of the living weights of each network, over all masked tensors together.

    The number that goes is rounded down; of equal sizes the first in the order of tensors and positions goes first.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"a rate of {rate} leaves nothing to prune: it must lie in [0, 1).")
    living = torch.cat([mask.flatten(1) for mask in masks.values()], 1)
    sizes = torch.cat([params[name].abs().flatten(1) for name in masks], 1).masked_fill(~living, torch.inf)
    gone = [int(rate * count) for count in living.sum(1).tolist()]  # in double precision, on any device
    rank = sizes.argsort(dim=1, stable=True).argsort(dim=1)
    keep = living & (rank >= torch.tensor(gone, device=rank.device)[:, None])
    parts = keep.split([m[0].numel() for m in masks.values()], 1)
    return {name: part.view_as(mask) for (name, mask), part in zip(masks.items(), parts, strict=True)}


def apply(params: Mapping[str, Tensor], masks: Masks) -> Params:
    """The networks with their dead weights at zero."""
    return {name: tensor * masks[name] if name in masks else tensor for name, tensor in params.items()}


def density(masks: Masks) -> Float64[Tensor, " P"]:
    """The share of weights that live, of each network."""
    living = sum(mask.flatten(1).sum(1) for mask in masks.values())
    return living.double() / sum(mask[0].numel() for mask in masks.values())


def permute_masks(masks: Masks, symmetries: Symmetries, perms: tuple[Int64[Tensor, "*P _"], ...]) -> Masks:
    """Masks moved along with the units of their networks."""
    members = len(next(iter(masks.values())))
    others = {
        name: torch.zeros(members, *shape, dtype=torch.bool)
        for name, shape in symmetries.shapes.items()
        if name not in masks
    }
    moved = permute(others | masks, symmetries, perms)
    return {name: moved[name] for name in masks}


def random_like(masks: Masks, seed: int, purpose: str = "pruning/random") -> Masks:
    """Masks with as many living weights in each tensor, at random places of their own for each network."""
    found = {}
    for name, mask in masks.items():
        flat = mask.flatten(1).cpu()
        order = permutation(seed, torch.arange(len(flat)), f"{purpose}/{name}", 0, flat.shape[1])
        found[name] = (order < flat.sum(1, keepdim=True)).view_as(mask).to(mask.device)
    return found
