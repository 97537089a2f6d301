"""Where the units of a network lie in a position: read off its symmetries, not written by hand."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, pairwise
from threading import Lock

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from lib import symmetry
from lib.free_energy.features import Layers
from lib.params import params_of
from lib.posteriors.target import ravel, unravel


@dataclass(frozen=True)
class Units:
    """The U hidden units of a network with D parameters in its position.

    Attributes:
        exponents: by which power of c each parameter grows when a unit is rescaled by c, (U, D): 1 for what enters it, -1 for
            what leaves it.
        incoming: places of each unit's incoming weights and bias, (U, m), shorter lists filled with their last place.
        outgoing: which parameters leave each unit, (U, D).
        exchanges: one reordering of the position for every pair of units of one layer, (pairs, D).
        collapsed: whether the output layer is integrated out, hence in no position.
    """

    exponents: Float[Tensor, "U D"]
    incoming: Int64[Tensor, "U m"]
    outgoing: Bool[Tensor, "U D"]
    exchanges: Int64[Tensor, "pairs D"]
    collapsed: bool

    def pick(self, uniform: Float[Tensor, "R P"]) -> Int64[Tensor, "R P"]:
        """A random unit for each uniform number."""
        return (uniform * len(self.exponents)).long().clamp_max(len(self.exponents) - 1)

    def to(self, device: torch.device) -> Units:
        """The same tables on another device."""
        tables = (self.exponents, self.incoming, self.outgoing, self.exchanges)
        return Units(*(table.to(device) for table in tables), self.collapsed)


def units_of(layers: object, collapsed: bool) -> Units:
    """The units of a stack of ReLU layers with biases; ``collapsed`` says that an output layer follows the stack unseen.

    Raises ValueError for stacks of another kind, which no unit of theirs can be rescaled in.
    """
    known = isinstance(layers, Layers) and layers.activation == "relu" and layers.bias
    if not known or len(layers.widths) + collapsed < 3:
        raise ValueError(
            "only hidden ReLU units with biases can be redrawn, rescaled or exchanged: switch these moves off in Settings "
            "(redraws=0, rescales=0, dead=False)."
        )
    with _TRACING:
        return _units_of(layers, collapsed)


_TRACING = Lock()  # finding symmetries traces a module, which patches torch while it does


@lru_cache
def _units_of(layers: Layers, collapsed: bool) -> Units:
    net = _network((*layers.widths, 1) if collapsed else layers.widths)
    found = symmetry.find_symmetries(net, torch.zeros(2, layers.widths[0], dtype=torch.float64))
    places = {name: tensor[None] for name, tensor in params_of(net).items()}
    ones = {name: torch.ones_like(tensor) for name, tensor in places.items()}
    order = torch.arange(sum(p.numel() for p in net.parameters()), dtype=torch.float64)
    numbered = unravel(order[None], net)

    still = [torch.zeros(freedom.size, dtype=torch.float64) for freedom in found.scales]
    exponents = []
    for g, freedom in enumerate(found.scales):
        for unit in range(freedom.size):
            element = [scale.clone() for scale in still]
            element[g][unit] = 1.0
            exponents.append(ravel(symmetry.rescale(ones, found, element))[0].log())
    exchanges = []
    for g, group in enumerate(found.permutations):
        for a, b in combinations(range(group.size), 2):
            element = list(symmetry.identity(found))
            element[g][a], element[g][b] = b, a
            exchanges.append(ravel(symmetry.permute(numbered, found, element))[0].long())

    powers = torch.stack(exponents).round()[:, : layers.dimension]
    rows = [row.nonzero().flatten() for row in powers > 0]
    longest = max(len(row) for row in rows)
    incoming = torch.stack([torch.cat([row, row[-1:].expand(longest - len(row))]) for row in rows])
    pairs = torch.stack(exchanges) if exchanges else torch.empty(0, len(order), dtype=torch.int64)
    return Units(powers, incoming, powers < 0, pairs[:, : layers.dimension], collapsed)


def _network(widths: tuple[int, ...]) -> nn.Sequential:
    """A ReLU perceptron whose parameters lie in the order of a position."""
    layers: list[nn.Module] = []
    for below, above in pairwise(widths):
        layers += [nn.Linear(below, above, dtype=torch.float64), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
