"""Symmetries of a network's weights: found, acted with, and removed."""

from lib.symmetry.structure import Kind, PermutationGroup, Place, ScaleFreedom, Symmetries, Verification

__all__ = ["Kind", "PermutationGroup", "Place", "ScaleFreedom", "Symmetries", "Verification"]
