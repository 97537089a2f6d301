"""Batch normalisation makes the minimum mass degenerate: weights before it can shrink to nothing (claim P1-C6).

A norm with epsilon 0 divides its input by that input's own size, so that incoming weights w and s w are the same function
for every s > 0 (the running mean scales by s, the running variance by s²): the mass before the norm, s² |w|², has infimum
0 and no minimum (Laurent et al. 2024, poster). With epsilon above 0 the function breaks once s² var falls to epsilon.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from lib.claims import Measurement
from lib.device import one_thread
from lib.invariance import relative_change, weights
from lib.networks import perceptron
from lib.params import Params, params_of
from lib.population import initial
from lib.randomness import normal, permutation
from lib.symmetry import Symmetries, find_symmetries, rescale
from lib.symmetry.scale_graph import is_counted

SCALES = torch.logspace(0, -6, 13, dtype=torch.float64)
EPSILON = 1e-5  # of torch's norms


@dataclass(frozen=True, eq=False)
class Curve:
    """One kind of network along the scales: the mass before its norms, and what becomes of its outputs.

    ``change`` and ``change_epsilon``: max |f - f'| / max |f| over the inputs, f' at the scale and f at scale 1, with
    epsilon 0 and with 1e-5. One row a network.
    """

    cell: str
    scales: Float64[Tensor, " K"]
    mass: Float64[Tensor, "seeds K"]
    change: Float64[Tensor, "seeds K"]
    change_epsilon: Float64[Tensor, "seeds K"]


def networks(size: int, classes: int, eps: float = 0.0) -> dict[str, nn.Sequential]:
    """A dense and a convolutional network for images (1, size, size), float64, a norm after each layer but the last."""
    dense = perceptron((size * size, 16, 16, classes), norm=nn.BatchNorm1d, eps=eps)
    convolution = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4, eps=eps),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, bias=False),
        nn.BatchNorm2d(8, eps=eps),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, classes),
    )
    return {"dense": nn.Sequential(nn.Flatten(), *dense).double(), "convolution": convolution.double()}


def mass_before_norm(params: Params, symmetries: Symmetries) -> Float64[Tensor, "*P"]:
    """Sum of squares of the weights (biases left out) whose outputs a norm divides by their own size."""
    names = {
        place.name
        for freedom in symmetries.scales
        for place in freedom.places
        if freedom.kind == "normalised" and place.axis == 0 and is_counted(place.name, False)
    }
    owned = [(params[name], len(symmetries.shapes[name])) for name in sorted(names)]
    return sum(tensor.double().square().flatten(tensor.ndim - axes).sum(-1) for tensor, axes in owned)


def shrink(params: Params, symmetries: Symmetries, scales: Float64[Tensor, " K"]) -> Params:
    """The network with everything before its norms multiplied by each of the scales, (K, ...)."""
    moves = [
        (scales.log() if freedom.kind == "normalised" else torch.zeros_like(scales))[:, None].expand(
            -1, freedom.size
        )
        for freedom in symmetries.scales
    ]
    return rescale(params, symmetries, moves)


def trained(
    net: nn.Module,
    inputs: Float[Tensor, "N 1 h w"],
    targets: Int64[Tensor, " N"],
    *,
    seed: int,
    epochs: int,
    batch: int = 64,
    lr: float = 0.05,
) -> Params:
    """The network after SGD in training mode (norms by the batch, running statistics kept), float64; order by counter.

    Raises ValueError where the training diverges.
    """
    one, batch = torch.arange(1), min(batch, len(inputs))
    net.load_state_dict({name: tensor[0] for name, tensor in initial(net, one, seed).items()})
    net.to(inputs.device).train()
    optimiser = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    with one_thread():
        for epoch in range(epochs):
            order = permutation(seed, one, "order", epoch, len(inputs))[0]
            for rows in order.split(batch)[: len(inputs) // batch]:
                rows = rows.to(inputs.device)
                optimiser.zero_grad()
                nn.functional.cross_entropy(net(inputs[rows]), targets[rows]).backward()
                optimiser.step()
    params = {name: tensor.cpu() for name, tensor in params_of(net.eval()).items()}
    if not all(tensor.isfinite().all() for tensor in params.values()):
        raise ValueError(
            f"the network diverged at learning rate {lr:g} (seed {seed}): train it at a lower rate."
        )
    return params


@one_thread()  # these operations are too small for two
def curves(
    seed: int,
    *,
    seeds: int,
    inputs: Float[Tensor, "N 1 h w"] | None = None,
    targets: Int64[Tensor, " N"] | None = None,
    epochs: int = 0,
    scales: Float64[Tensor, " K"] = SCALES,
) -> list[Curve]:
    """Both networks along the scales, ``seeds`` of each: random weights and running statistics, or trained ones.

    Args:
        inputs: images to look at (the first 200 of them) and, with ``targets`` and ``epochs``, to train on with torch's
            epsilon 1e-5; without them, normal noise of 8 by 8.
        scales: from 1 downwards.
    """
    if inputs is None:
        inputs = normal(seed, torch.arange(200), "degenerate mass inputs", 0, (1, 8, 8), torch.float64)
    inputs = inputs.double()
    size, classes = inputs.shape[-1], 10 if targets is None else int(targets.max()) + 1
    looked_at = inputs[:200].cpu()
    exact, usual = networks(size, classes), networks(size, classes, EPSILON)
    found = []
    for cell, net in exact.items():
        symmetries = find_symmetries(net, looked_at[:2])
        rows = []
        for s in range(1_000 * seed, 1_000 * seed + seeds):
            if targets is None:
                params = weights(net, s)
            else:
                params = trained(usual[cell], inputs, targets, seed=s, epochs=epochs)
            moved = shrink(params, symmetries, scales)
            usual[cell].cpu()
            changes = [relative_change(n, params, moved, looked_at).detach() for n in (net, usual[cell])]
            rows.append((mass_before_norm(moved, symmetries), *changes))
        found.append(Curve(cell, scales, *(torch.stack(column) for column in zip(*rows, strict=True))))
    return found


def measure(found: Iterable[Curve]) -> list[Measurement]:
    """`mass_ratio`, `mass_increases`, `output_change` and `output_change_epsilon` of P1-C6.

    The interval goes from the smallest to the largest over the networks; the value is the worst of them: the largest, for
    the change under epsilon 1e-5 (which must be large) the smallest.
    """
    measured = []
    for curve in found:
        columns = curve.mass.T
        increases = sum((later >= earlier).double() for earlier, later in pairwise(columns))
        numbers = {
            "mass_ratio": columns[-1] / columns[0],
            "mass_increases": increases,
            "output_change": curve.change.amax(1),
            "output_change_epsilon": curve.change_epsilon[:, -1],
        }
        for name, values in numbers.items():
            low, high = float(values.min()), float(values.max())
            worst = low if name == "output_change_epsilon" else high
            size = {"n": len(values), "seeds": len(values)}
            measured.append(Measurement(name, curve.cell, worst, low, high, **size))
    return measured
