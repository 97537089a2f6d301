"""Have the chains met? Rank-normalised split R-hat and bulk effective sample size (Vehtari et al. 2021), by ArviZ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Convergence:
    """R-hat and bulk effective sample size of one scalar, over all chains."""

    name: str
    rhat: float
    ess: float


def convergence(name: str, draws: Float[np.ndarray, "draws C"]) -> Convergence:
    """R-hat and effective sample size of one scalar that C chains drew.

    Raises ValueError for fewer than two chains or four draws, and for values that are not finite.
    """
    if draws.shape[0] < 4 or draws.shape[1] < 2:
        raise ValueError(
            f"{name}: {draws.shape[1]} chains of {draws.shape[0]} draws; R-hat needs two chains of four draws."
        )
    if not np.isfinite(draws).all():
        raise ValueError(
            f"{name}: some draws are not finite, so that no diagnostic can speak for the chains."
        )
    from arviz_stats.base import array_stats

    chains = np.ascontiguousarray(draws.T, dtype=np.float64)
    return Convergence(
        name,
        float(array_stats.rhat(chains, chain_axis=0, draw_axis=1, method="rank")),
        float(array_stats.ess(chains, chain_axis=0, draw_axis=1, method="bulk")),
    )


def converged(
    scalars: Mapping[str, Float[np.ndarray, "draws C"]], rhat_max: float, ess_min: float | int
) -> tuple[bool, list[Convergence]]:
    """Whether every scalar has R-hat <= rhat_max and effective sample size >= ess_min, and the evidence."""
    evidence = [convergence(name, draws) for name, draws in scalars.items()]
    return all(c.rhat <= rhat_max and c.ess >= ess_min for c in evidence), evidence
