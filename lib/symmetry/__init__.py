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
from lib.symmetry.canonical import Canonical, canonical_form, canonicalize
from lib.symmetry.find import UnsupportedNetwork, VerificationError, find_symmetries
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
    "Canonical",
    "Kind",
    "LogScaleObjective",
    "MinMass",
    "PermutationGroup",
    "Place",
    "ScaleFreedom",
    "Symmetries",
    "UnattainedInfimum",
    "UnsupportedNetwork",
    "Verification",
    "VerificationError",
    "canonical_form",
    "canonicalize",
    "compose",
    "count_permutations",
    "find_symmetries",
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
