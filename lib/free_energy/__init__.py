"""Free energies of regression networks: known coefficients, exact evidences, and tempered targets."""

from lib.free_energy.coefficients import (
    Rlct,
    check_realises,
    embedding_cost,
    parameter_count,
    probability_dead,
    relu_bound,
    rlct_deep_linear,
    rlct_reduced_rank,
    sharp_bound,
)
from lib.free_energy.regression import Regression
from lib.free_energy.targets import Target, target

__all__ = [
    "Regression",
    "Rlct",
    "Target",
    "check_realises",
    "embedding_cost",
    "parameter_count",
    "probability_dead",
    "relu_bound",
    "rlct_deep_linear",
    "rlct_reduced_rank",
    "sharp_bound",
    "target",
]
