"""Initial parameters of a population: PyTorch's default distributions, drawn by counter."""

from __future__ import annotations

import math

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from lib.params import Params
from lib.population.vmapped import UnsupportedTraining
from lib.randomness import uniform

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


def initial(net: nn.Module, members: int | range | Tensor, seed: int) -> Params:
    """PyTorch's default initial distributions, drawn by counter, on the device of ``members``.

    Linear and convolution weights and biases are uniform on ±1/√fan_in (what ``kaiming_uniform_(a=√5)`` comes to), norm
    layers start at scale 1 and shift 0, buffers as in ``net``.  Raises UnsupportedTraining, with its name, for any other
    layer that owns parameters.
    """
    members = member_ids(members)
    params = {}
    for prefix, layer in net.named_modules():
        own = dict(layer.named_parameters(prefix, recurse=False))
        if isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)) and not getattr(
            layer, "transposed", False
        ):
            bound = 1 / math.sqrt(layer.weight[0].numel())
            for name, parameter in own.items():
                draw = uniform(seed, members, f"initial/{name}", 0, tuple(parameter.shape), parameter.dtype)
                params[name] = (2 * draw - 1) * bound
        elif isinstance(layer, NORMS):
            for name, parameter in own.items():
                value = 1.0 if name.endswith("weight") else 0.0
                shape = (len(members), *parameter.shape)
                params[name] = torch.full(shape, value, dtype=parameter.dtype, device=members.device)
        elif own:
            raise UnsupportedTraining(
                f"layer {prefix!r} ({type(layer).__name__}) has no known initial distribution here: "
                "pass initial parameters with start=."
            )
    for name, tensor in net.state_dict().items():
        if name not in params:
            params[name] = tensor.to(members.device).expand(len(members), *tensor.shape).clone()
    return {name: params[name] for name in net.state_dict()}


def member_ids(members: int | range | Tensor) -> Int64[Tensor, " P"]:
    """Members as int64 ids: a number P means 0 … P-1."""
    if not isinstance(members, Tensor):
        members = (
            torch.arange(members)
            if isinstance(members, int)
            else torch.tensor(list(members), dtype=torch.int64)
        )
    if members.ndim != 1 or len(members) == 0 or members.is_floating_point():
        raise ValueError(
            f"members must be a number, a range or a 1-d tensor of ids, at least one: got {members}."
        )
    return members.long()
