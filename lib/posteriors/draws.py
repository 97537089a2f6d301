"""What every approximate posterior returns: parameter samples of independent runs, in the population layout."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lib.params import Params, population_size, select


@dataclass(frozen=True)
class Draws:
    """S parameter samples of each of R approximations: ``params`` (R * S, ...), all samples of one after the other.

    An approximation is one run of a method, or several runs taken together (``multi``). Raises ValueError where the
    population is not R * S networks.
    """

    params: Params
    runs: int
    draws: int

    def __post_init__(self) -> None:
        size = population_size(self.params)
        if size != self.runs * self.draws or size == 0:
            raise ValueError(
                f"{size} networks are not {self.runs} runs of {self.draws} samples: give the population run after run."
            )

    def of(self, run: int) -> Params:
        """The S samples of one approximation, as a population (S, ...)."""
        if not 0 <= run < self.runs:
            raise ValueError(f"there is no run {run}: {self.runs} runs are numbered from 0.")
        return select(self.params, slice(run * self.draws, (run + 1) * self.draws))

    def multi(self, together: int) -> Draws:
        """Every ``together`` runs as one approximation of several modes, with as many samples as one run had.

        Each run gives S / together of its samples, evenly spaced. Left-over runs are not used. Raises ValueError where
        S is not a multiple of ``together``, or where there are fewer runs than that.
        """
        if together < 1 or self.draws % together or self.runs < together:
            raise ValueError(
                f"{self.runs} runs of {self.draws} samples cannot be taken {together} together: the samples must "
                f"divide by {together}, and there must be {together} runs."
            )
        groups = self.runs // together
        device = next(iter(self.params.values())).device
        kept = torch.arange(0, self.draws, together, device=device)  # S / together of each run
        runs = torch.arange(groups * together, device=device)
        chosen = (runs[:, None] * self.draws + kept).flatten()
        return Draws(select(self.params, chosen), groups, self.draws)
