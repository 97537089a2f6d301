"""The report's measurements as five verbs; each returns a frozen dataclass with ``table()``, for ``sentences.say`` and ``figures.draw``."""

from lib.report.barriers import Barriers, barriers
from lib.report.ensemble import Ensemble, ensemble
from lib.report.merging import Merging, merging
from lib.report.structure import Alignment, Mass, Structure, align, mass, structure

__all__ = [
    "Alignment",
    "Barriers",
    "Ensemble",
    "Mass",
    "Merging",
    "Structure",
    "align",
    "barriers",
    "ensemble",
    "mass",
    "merging",
    "structure",
]
