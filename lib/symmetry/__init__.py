"""Symmetries of a network's weights: found, acted with, and removed."""

from lib.symmetry.act import (
    compose,
    count_permutations,
    identity,
    inverse,
    members_of,
    permute,
    random_log_scales,
    random_permutations,
    rescale,
)
from lib.symmetry.mass import (
    LogScaleObjective,
    MinMass,
    UnattainedInfimum,
    log_scale_objective,
    mass,
    min_mass,
)
from lib.symmetry.structure import Kind, PermutationGroup, Place, ScaleFreedom, Symmetries, Verification

__all__ = [
    "Kind",
    "LogScaleObjective",
    "MinMass",
    "PermutationGroup",
    "Place",
    "ScaleFreedom",
    "Symmetries",
    "UnattainedInfimum",
    "Verification",
    "compose",
    "count_permutations",
    "identity",
    "inverse",
    "log_scale_objective",
    "mass",
    "members_of",
    "min_mass",
    "permute",
    "random_log_scales",
    "random_permutations",
    "rescale",
]
