"""Exact moves between modes that gradients do not find: deterministic involutions that preserve volume.

A move maps positions (C, D) and uniform numbers (C,), drawn independently of the state, to proposed positions
(C, D). For a fixed number it is its own inverse and its Jacobian is 1 in size, so that accepting with
min{1, π(proposal) / π(position)} leaves the target invariant (Green 1995, the deterministic case).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.posteriors.target import ravel, unravel

Move = Callable[[Tensor, Tensor], Tensor]


def flip_unit(net: nn.Sequential, inputs: Float[Tensor, "n d"]) -> Move:
    """Turn one hidden unit of a Linear-ReLU-Linear network round, and let the output bias make up for it.

    With z = w·x + b the unit's input, a its outgoing weights, c the output bias and k the mean of |z| over ``inputs``,

        (w, b, a, c)  ->  (-w, -b, -a, c + a k).

    k does not change under the move, so twice the move is nothing; it is a reflection and a shear, so volume is kept.
    The function is nearly the same where |z| is near k: a unit that said "yes" on one side says "no" on the other.
    This is no symmetry of the network (the Metropolis test decides), but it joins the four sign patterns of the
    output weights. Raises ValueError for a network of another form.
    """
    form = [type(layer) for layer in net]
    if form != [nn.Linear, nn.ReLU, nn.Linear] or net[0].bias is None or net[2].bias is None:
        raise ValueError(
            f"flip_unit needs Linear, ReLU, Linear with biases, not {[t.__name__ for t in form]}."
        )
    hidden = net[0].out_features

    def move(positions: Tensor, number: Tensor) -> Tensor:
        params = {name: tensor.clone() for name, tensor in unravel(positions, net).items()}
        chains = torch.arange(len(positions), device=positions.device)
        unit = (number * hidden).long().clamp_max(hidden - 1)
        w, b, a = (
            params["0.weight"][chains, unit],
            params["0.bias"][chains, unit],
            params["2.weight"][chains, :, unit],
        )
        k = (w @ inputs.T + b[:, None]).abs().mean(1, keepdim=True)
        params["0.weight"][chains, unit] = -w
        params["0.bias"][chains, unit] = -b
        params["2.weight"][chains, :, unit] = -a
        params["2.bias"] += a * k
        return ravel(params)

    return move
