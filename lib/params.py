"""Plain parameters: a network is a flat dict of tensors, a population the same dict with a leading member axis."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

Params = dict[str, Tensor]


def params_of(net: nn.Module) -> Params:
    """Parameters and buffers of one network as a detached flat dict with the names of ``state_dict()``."""
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


def stack(networks: list[Mapping[str, Tensor]]) -> Params:
    """Stack P single networks of one architecture into a population: each tensor gains a leading axis P."""
    names = list(networks[0])
    for i, network in enumerate(networks):
        if list(network) != names:
            raise ValueError(
                f"network {i} has other parameter names than network 0: a population holds one architecture."
            )
    return {name: torch.stack([network[name] for network in networks]) for name in names}


def member(params: Mapping[str, Tensor], i: int) -> Params:
    """Member ``i`` of a population, as a single network."""
    return {name: tensor[i] for name, tensor in params.items()}


def select(params: Mapping[str, Tensor], members: Tensor | slice) -> Params:
    """The sub-population at ``members`` (indices, a boolean mask or a slice)."""
    return {name: tensor[members] for name, tensor in params.items()}


def population_size(params: Mapping[str, Tensor]) -> int:
    """P, the common length of every tensor's leading axis; raises ValueError where they differ."""
    sizes = {tensor.shape[0] if tensor.ndim else None for tensor in params.values()}
    if len(sizes) != 1 or None in sizes:
        raise ValueError(
            f"the tensors have leading axes {sorted(map(str, sizes))}: a population has one length P on all of them."
        )
    return sizes.pop()
