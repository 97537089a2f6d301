"""Bring networks into one order of their units: by weights, by activations, two at a time or all together."""

from lib.matching.activations import MatchedActivations, match_activations, match_activations_pairs
from lib.matching.joint import Aligned, match_many, objective, pairwise
from lib.matching.weights import Matched, canonical_by_matching, match

__all__ = [
    "Aligned",
    "Matched",
    "MatchedActivations",
    "canonical_by_matching",
    "match",
    "match_activations",
    "match_activations_pairs",
    "match_many",
    "objective",
    "pairwise",
]
