"""What each unit owns of a network's tensors."""

from __future__ import annotations

from jaxtyping import Shaped
from torch import Tensor

from lib.symmetry.structure import Place

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # moved along, and not compared


def owned(tensor: Shaped[Tensor, "P ..."], place: Place) -> Shaped[Tensor, "P size _"]:
    """The entries that each unit owns at ``place`` of a tensor (P, ...)."""
    if place.rows is not None:
        tensor = tensor[:, place.rows.to(tensor.device)]
    entries = tensor.movedim(place.axis + 1, 1)[:, place.index.flatten().to(tensor.device)]
    return entries.reshape(len(tensor), place.size, -1)
