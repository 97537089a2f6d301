"""A trained population: its parameters and what is known of each member."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from lib.params import Params, select
from lib.population.recipe import Recipe


@dataclass(frozen=True)
class Population:
    """Trained members: ``params`` with a leading axis P, and what is known of each member.

    ``loss`` is the mean training loss over the last epoch, each batch before its step; NaN for a member that diverged.
    ``diverged_at`` is the step (from 0) whose loss or update was the first not to be finite, or -1; such a member's
    parameters are those before that step.
    """

    params: Params
    members: Int64[Tensor, " P"]
    seed: int
    recipe: Recipe
    loss: Float[Tensor, " P"]
    diverged_at: Int64[Tensor, " P"]

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
        return Population(
            select(self.params, keep),
            self.members[keep],
            self.seed,
            self.recipe,
            self.loss[keep],
            self.diverged_at[keep],
        )
