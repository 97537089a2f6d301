"""Free energies of regression networks: known coefficients, exact evidences, tempered targets, and what is read off a run."""

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
from lib.free_energy.estimates import (
    stepping_stone,
    thermodynamic_integration,
    two_temperature,
    wbic_temperature,
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
    "stepping_stone",
    "target",
    "thermodynamic_integration",
    "two_temperature",
    "wbic_temperature",
]
