"""Every data set of the book through one verb: ``load(name, split)``."""

from lib.data.download import CorruptData, MissingData, describe
from lib.data.readers import two_blobs
from lib.data.sets import Dataset, Standardised, available, load, standardise, uci
from lib.data.splits import uci_splits

__all__ = [
    "CorruptData",
    "Dataset",
    "MissingData",
    "Standardised",
    "available",
    "describe",
    "load",
    "standardise",
    "two_blobs",
    "uci",
    "uci_splits",
]
