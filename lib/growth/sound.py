"""Intervals that stay silent where a run failed: one number that is not finite leaves the question unresolved."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from lib import intervals
from lib.smc import Run


def interval(values: Sequence[float] | Float[np.ndarray, " n"]) -> tuple[float, float, float]:
    """`lib.intervals.student`, or three times not-a-number where any value is not finite."""
    values = np.asarray(values, dtype=np.float64)
    return intervals.student(values) if np.isfinite(values).all() else (math.nan, math.nan, math.nan)


def sounded(run: Run) -> Float[Tensor, "C R"]:
    """The run's free energies, not a number for problems whose particles no longer moved at the end."""
    return run.free_energy.where(run.sound, math.nan)
