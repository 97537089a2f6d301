"""What each unit owns of a network's tensors, and which tensors are compared."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Shaped
from torch import Tensor

from lib.symmetry.structure import Place, Symmetries

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # moved along, and not compared


def compared(symmetries: Symmetries) -> list[str]:
    """Names of the tensors that networks are compared by: weights, biases and norm parameters."""
    return [name for name in symmetries.shapes if name.rpartition(".")[2] not in BUFFERS]


def refuse_broken(
    networks: Mapping[str, Shaped[Tensor, "P ..."]], names: list[str], what: str = "network"
) -> None:
    """Raises ValueError, naming the first of the networks (P, ...) that has weights that are not finite."""
    for name in names:
        broken = (~networks[name].isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
        if broken:
            which = f"{what} {broken[0]}" if what == "network" else what
            raise ValueError(
                f"{which} has weights that are not finite ({name!r}): leave diverged networks out before matching."
            )


def owned(tensor: Shaped[Tensor, "P ..."], place: Place) -> Shaped[Tensor, "P size _"]:
    """The entries that each unit owns at ``place`` of a tensor (P, ...)."""
    if place.rows is not None:
        tensor = tensor[:, place.rows.to(tensor.device)]
    entries = tensor.movedim(place.axis + 1, 1)[:, place.index.flatten().to(tensor.device)]
    return entries.reshape(len(tensor), place.size, -1)
