"""Which rows of a set: published splits, reproducible random ones, and the counter-based words behind them."""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np

from lib.data.download import CorruptData, describe, registry

TRAINING_SHARE = 0.8  # of digits, diabetes and mnist5k, which have no published split
UCI_TRAINING_SHARE = 0.9


def published(
    name: str, split: str | None, draw: int, parts: tuple[str, ...], advice: str = ""
) -> tuple[str, ...]:
    """The parts that ``split`` asks for, of a set that has these parts and no random ones."""
    if draw:
        raise ValueError(f"{name!r} has one published split, so draw {draw} does not exist: leave it 0.")
    if split is not None and split not in parts:
        raise ValueError(
            f"{name!r} has no part {split!r}, only {', '.join(parts)}{advice and f': {advice}'}."
        )
    return parts if split is None else (split,)


def random_rows(name: str, split: str | None, draw: int, n: int) -> np.ndarray:
    """The rows of ``split`` in random split ``draw`` of a set of n rows: 80 % train, 20 % test, None for all in order."""
    order = np.argsort(philox(name, draw, n), kind="stable")
    return part_of(name, split, order, round(TRAINING_SHARE * n))


def part_of(name: str, split: str | None, order: np.ndarray, training: int) -> np.ndarray:
    """The rows of ``split``: the first ``training`` of ``order``, or the others, or with None all rows in order."""
    parts = {None: np.arange(len(order)), "train": order[:training], "test": order[training:]}
    if split not in parts:
        raise ValueError(f"{name!r} has no part {split!r}, only train, test.")
    return parts[split]


def philox(purpose: str, draw: int, n: int) -> np.ndarray:
    """n raw 64-bit words that depend on (purpose, draw, position) alone; NumPy never changes raw words."""
    word = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")
    return np.random.Philox(key=np.array([draw, word], dtype=np.uint64)).random_raw(n)


@cache
def uci_splits(name: str) -> np.ndarray:
    """Row orders of the published splits, int64 (splits, rows): the first round(0.9 rows) of each are for training.

    Made again by the authors' recipe, one legacy generator seeded with 1 and a permutation a split (equal to the
    published index files of all nine sets), and checked against the registry's digest.
    """
    entry = describe(name)
    if entry["reader"] != "uci":
        sets = [other for other, about in registry().items() if about["reader"] == "uci"]
        raise ValueError(f"{name!r} has no published UCI splits: they exist for {', '.join(sets)}.")
    legacy = np.random.RandomState(1)
    orders = np.stack([legacy.permutation(entry["rows"]) for _ in range(entry["splits"])]).astype("<i8")
    if hashlib.sha256(orders.tobytes()).hexdigest() != entry["splits_sha256"]:
        raise CorruptData(
            f"this NumPy ({np.__version__}) no longer makes the published splits of {name!r}: pin it."
        )
    orders.flags.writeable = False  # it is shared by every later call
    return orders
