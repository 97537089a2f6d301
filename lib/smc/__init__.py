"""Tempered sequential Monte Carlo on populations of networks: R problems, P particles each, all at once."""

from lib.smc.estimates import stepping_stone, thermodynamic_integration, two_temperature, wbic_temperature
from lib.smc.moves import State
from lib.smc.reverse import Bracket, bracket
from lib.smc.run import Run, Settings, Stage
from lib.smc.sampler import AllDead, islands, sample
from lib.smc.units import Units, units_of

__all__ = [
    "AllDead",
    "Bracket",
    "Run",
    "Settings",
    "Stage",
    "State",
    "Units",
    "bracket",
    "islands",
    "sample",
    "stepping_stone",
    "thermodynamic_integration",
    "two_temperature",
    "units_of",
    "wbic_temperature",
]
