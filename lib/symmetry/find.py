"""Find the symmetries of a network: trace it, derive its groups and freedoms, and try them before they are returned."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from lib.symmetry.groups import permutation_groups, scale_freedoms
from lib.symmetry.rules import RULES
from lib.symmetry.structure import Symmetries
from lib.symmetry.trace import Trace, UnsupportedNetwork
from lib.symmetry.verify import VerificationError, verify

__all__ = ["UnsupportedNetwork", "VerificationError", "find_symmetries"]


def find_symmetries(net: nn.Module, example: Tensor | tuple[Tensor, ...]) -> Symmetries:
    """All unit permutations and positive rescalings of a feed-forward network that leave its function unchanged.

    ``example``: an input (a tuple for several) with a leading batch axis; only shapes and types matter, and at most two
    of its rows are used. Understood are dense and (grouped, transposed) convolutional layers, Batch-, Instance-, Layer-,
    Group- and RMSNorm, pooling, reshapes, sums, products, concatenation and elementwise maps, as modules or functions,
    in evaluation mode. Not looked for: sign flips (odd activations), rotations of linear chains, shifts before a norm,
    units that happen to be equal or dead in this network: symmetries of the architecture are reported. Where two
    partitions into blocks cross (a channel shuffle between grouped convolutions), only exchanges within their cells are.

    The network is not changed. Raises UnsupportedNetwork, naming layer and reason, for what cannot be treated, and
    VerificationError if what was found does not hold (an internal error). Sources: Laurent et al. 2024, section 3;
    Sharma et al. 2024, section 2; Badrinarayanan et al. 2015 for the norms.
    """
    inputs = tuple(
        x[:2] if x.ndim > 1 else x for x in (example if isinstance(example, tuple) else (example,))
    )
    ledger = Trace(net, RULES).run(inputs)
    shapes = {name: tensor.shape for name, tensor in net.state_dict().items() if isinstance(tensor, Tensor)}
    found = Symmetries(permutation_groups(ledger), scale_freedoms(ledger), shapes)
    return replace(found, verification=verify(net, inputs, found))
