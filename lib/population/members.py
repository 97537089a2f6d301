"""A trained population: its parameters and what is known of each member."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from lib.params import Params
from lib.population.recipe import Recipe


@dataclass(frozen=True)
class Population:
    """Trained members: ``params`` with a leading axis P, and what is known of each member.

    ``loss`` is the mean training loss over the last epoch, each batch before its step; NaN for a member that diverged.
    ``diverged_at`` is the step (from 0) whose loss or update (of weights, of running statistics) was the first not to be
    finite, or -1; such a member's parameters are those before that step.  ``accuracy`` is a share of right answers that somebody measured and kept
    with the members (an archive does), or None.
    """

    params: Params
    members: Int64[Tensor, " P"]
    seed: int
    recipe: Recipe
    loss: Float[Tensor, " P"]
    diverged_at: Int64[Tensor, " P"]
    accuracy: Float[Tensor, " P"] | None = None

    def __len__(self) -> int:
        return len(self.members)

    def __repr__(self) -> str:
        diverged = int((self.diverged_at >= 0).sum())
        return (
            f"Population of {len(self)} networks, seed {self.seed}, {self.recipe.epochs} epochs, "
            f"median loss {float(self.loss.nanmedian()):.4g}, {diverged} diverged"
        )

    @property
    def finite(self) -> Bool[Tensor, " P"]:
        """Which members never diverged."""
        return self.diverged_at < 0

    def where(self, keep: Shaped[Tensor, " K"]) -> Population:
        """The sub-population at ``keep``: indices or a boolean mask."""
        return self._each(lambda tensor: tensor[keep.to(tensor.device)])

    def to(self, device: str | torch.device) -> Population:
        """The same population on ``device``."""
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change) -> Population:
        return replace(
            self,
            params={name: change(tensor) for name, tensor in self.params.items()},
            members=change(self.members),
            loss=change(self.loss),
            diverged_at=change(self.diverged_at),
            accuracy=None if self.accuracy is None else change(self.accuracy),
        )


def join(parts: Sequence[Population]) -> Population:
    """One population of the members of several, in their order.

    The accuracy is kept where every part has one.  Raises ValueError where there is no part, where seed, recipe or
    parameters differ, or where a member occurs twice.
    """
    if not parts:
        raise ValueError("there is nothing to join: give at least one population.")
    first = parts[0]
    for part in parts[1:]:
        for what in ("seed", "recipe"):
            if getattr(part, what) != getattr(first, what):
                raise ValueError(
                    f"populations of another {what} are not joined: their members are not of one run."
                )
        if [(n, t.shape[1:]) for n, t in part.params.items()] != [
            (n, t.shape[1:]) for n, t in first.params.items()
        ]:
            raise ValueError("populations of different networks are not joined: names or shapes differ.")
    members = torch.cat([part.members for part in parts])
    if len(torch.unique(members)) != len(members):
        raise ValueError("a member occurs in two of the populations: join those that share none.")
    accuracies = [part.accuracy for part in parts if part.accuracy is not None]
    return Population(
        {name: torch.cat([part.params[name] for part in parts]) for name in first.params},
        members,
        first.seed,
        first.recipe,
        torch.cat([part.loss for part in parts]),
        torch.cat([part.diverged_at for part in parts]),
        torch.cat(accuracies) if len(accuracies) == len(parts) else None,
    )
