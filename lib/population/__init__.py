"""Thousands of independent networks at once: initialise, train, predict, evaluate, save."""

from lib.population.archive import load, save
from lib.population.initialise import initial, member_ids
from lib.population.members import Population
from lib.population.recipe import Constant, Cosine, MultiStep, Recipe
from lib.population.training import Moment, evaluate, predict, train, walk
from lib.population.vmapped import UnsupportedTraining

__all__ = [
    "Constant",
    "Cosine",
    "Moment",
    "MultiStep",
    "Population",
    "Recipe",
    "UnsupportedTraining",
    "evaluate",
    "initial",
    "load",
    "member_ids",
    "predict",
    "save",
    "train",
    "walk",
]
