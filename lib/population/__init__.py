"""Thousands of independent networks at once: initialise, train, predict, evaluate, save."""

from lib.population.archive import describe_archive, load, record, save
from lib.population.initialise import initial, member_ids
from lib.population.members import Population, join
from lib.population.recipe import Constant, Cosine, MultiStep, Recipe
from lib.population.shards import ShardError, train_sharded
from lib.population.training import Moment, evaluate, predict, train, walk
from lib.population.vmapped import UnsupportedTraining

__all__ = [
    "Constant",
    "Cosine",
    "Moment",
    "MultiStep",
    "Population",
    "Recipe",
    "ShardError",
    "UnsupportedTraining",
    "describe_archive",
    "evaluate",
    "initial",
    "join",
    "load",
    "member_ids",
    "predict",
    "record",
    "save",
    "train",
    "train_sharded",
    "walk",
]
