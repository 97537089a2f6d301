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
from lib.symmetry.structure import Kind, PermutationGroup, Place, ScaleFreedom, Symmetries, Verification

__all__ = [
    "Kind",
    "PermutationGroup",
    "Place",
    "ScaleFreedom",
    "Symmetries",
    "Verification",
    "compose",
    "count_permutations",
    "identity",
    "inverse",
    "members_of",
    "permute",
    "random_log_scales",
    "random_permutations",
    "rescale",
]
