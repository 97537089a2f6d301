"""Lines, triangles and simplices between trained networks, and what lies on them."""

from lib.connectivity.decomposition import PARTS, Parts, decompose
from lib.connectivity.lines import Lines, between, lines, simplex, triangle
from lib.connectivity.mixtures import Scores, mixed, scores
from lib.connectivity.statistics import recalibrate, repair

__all__ = [
    "PARTS",
    "Lines",
    "Parts",
    "Scores",
    "between",
    "decompose",
    "lines",
    "mixed",
    "recalibrate",
    "repair",
    "scores",
    "simplex",
    "triangle",
]
