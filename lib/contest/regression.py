"""All regressions of a profile: which methods train on which problems, as independent pieces of work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lib.contest import toy
from lib.contest.measures import Contest
from lib.contest.methods import (
    COLD,
    DIAGONAL,
    DROPOUT,
    ENSEMBLE,
    FACTORISED,
    POINT,
    VMG,
    Plan,
    Scores,
    at_main,
    first_networks,
    score,
    train,
)
from lib.contest.problems import Problem, cubic, diabetes, uci
from lib.contest.toy import Bands
from lib.kept import Kept, Tensors
from lib.matrix_gaussian.training import Schedule
from lib.parallel import side_by_side
from lib.profile import MatrixGaussian

BY_SIZE = (VMG, FACTORISED)  # trained on subsets of the data too
TRAINED = (*BY_SIZE, DIAGONAL, COLD, DROPOUT, ENSEMBLE)
METHODS = (*TRAINED, POINT)  # an ensemble's first network
FRACTIONS = (8, 4, 2, 1)  # of the updates: where learning curves are looked at
DRAWN = (VMG, FACTORISED, DROPOUT, ENSEMBLE)  # methods with a picture on the toy


@dataclass(frozen=True, eq=False)
class Piece:
    """What one method makes of one problem: its scores variant by variant, its bands on the toy, and an ensemble's networks alone."""

    scores: list[Scores]
    bands: list[Bands]
    alone: list[Scores]


def problem(name: str, sizes: MatrixGaussian, seed: int) -> Problem:
    """The problem of this name in a profile."""
    if name == "cubic toy":
        return cubic(sizes.cubic_splits, sizes.cubic_sizes, seed)
    if name == "diabetes":
        return diabetes(sizes.splits, sizes.subsets_of(name), seed)
    splits = min(sizes.splits, 5) if name == "protein" else sizes.splits
    return uci(name, splits, sizes.subsets_of(name))


def plan(found: Problem, sizes: MatrixGaussian, seed: int) -> Plan:
    """How methods are trained on a problem: the profile's updates, in batches that see every row often."""
    batch = max(sizes.batch, found.main // 100)
    looks = tuple(sizes.updates // k for k in FRACTIONS)
    schedule = Schedule(sizes.updates, min(batch, *found.sizes), sizes.rate, sizes.average, looks)
    return Plan(schedule, sizes.draws, sizes.pseudo, sizes.noise, seed)


def compare(
    names: Sequence[str],
    sizes: MatrixGaussian,
    seed: int,
    device: torch.device,
    folder: Path | None = None,
    methods: Sequence[str] = TRAINED,
) -> tuple[dict[str, Contest], dict[str, list[Bands]]]:
    """Every method on every problem; and the bands of some on the cubic toy, where that is among them.

    ``folder``: where finished pieces are kept, for a run that may be cut.
    """
    kept = Kept(folder)
    # lists rise in size here: `side_by_side` begins with the last piece
    order = sorted(methods, key=lambda m: (m in BY_SIZE, m == VMG))
    keys = [(name, method) for method in order for name in names]
    pieces = [lambda key=key: piece(*key, sizes, seed, device, kept) for key in keys]
    found = dict(zip(keys, side_by_side(pieces, device), strict=True))
    contests, bands = {}, {}
    for name in names:
        p = problem(name, sizes, seed)
        scores = {method: found[name, method].scores for method in methods}
        if ENSEMBLE in methods:
            scores[POINT] = found[name, ENSEMBLE].alone
        contests[name] = Contest(name, p.splits, p.sizes, p.main, sizes.updates, scores)
        if name == "cubic toy":
            bands = {m: found[name, m].bands for m in methods if found[name, m].bands}
    return contests, bands


def piece(
    name: str, method: str, sizes: MatrixGaussian, seed: int, device: torch.device, kept: Kept
) -> Piece:
    """Train and score one method on one problem."""

    def make() -> Tensors:
        whole = problem(name, sizes, seed).to(device)
        mine = whole if method in BY_SIZE else whole.of_size(whole.main)
        how = plan(whole, sizes, seed)
        trained = train(method, mine, how)
        found = {"scores": score(method, trained, mine, how), "bands": [], "alone": []}
        if method == ENSEMBLE:
            found["alone"] = score(POINT, first_networks(trained, len(mine.shift)), mine, how)
        if name == "cubic toy" and method in DRAWN:
            found["bands"] = toy.bands(method, *at_main(trained, mine), how)
        return _flat(Piece(**found))

    return _deep(kept.part(f"{name}-{method}".replace(" ", "-").replace(",", ""), make))


def _flat(piece: Piece) -> Tensors:
    """Every tensor under a name such as ``scores/0/rmse`` or ``scores/0/early/100``."""
    found: Tensors = {}
    for kind, entries in vars(piece).items():
        for v, entry in enumerate(entries):
            for name, value in vars(entry).items():
                each = value if isinstance(value, dict) else {"": value}
                found |= {f"{kind}/{v}/{name}/{key}".rstrip("/"): tensor for key, tensor in each.items()}
    return found


def _deep(tensors: Tensors) -> Piece:
    """What ``_flat`` made flat."""
    entries: dict[str, dict[int, dict]] = {"scores": {}, "bands": {}, "alone": {}}
    for key, tensor in tensors.items():
        kind, v, name, *look = key.split("/")
        entry = entries[kind].setdefault(int(v), {} if kind == "bands" else {"early": {}})
        if look:
            entry[name][int(look[0])] = tensor
        else:
            entry[name] = tensor
    of = {"scores": Scores, "bands": Bands, "alone": Scores}
    return Piece(**{kind: [of[kind](**entry) for entry in found.values()] for kind, found in entries.items()})


def naval(
    sizes: MatrixGaussian, seed: int, device: torch.device, folder: Path | None = None
) -> tuple[Contest, Contest]:
    """P3-C6: the matrix Gaussian on naval with the prior of the noise in raw and in standardised units."""
    kept, found = Kept(folder), []
    raw = problem("naval", sizes, seed).to(device)
    for scale in ("raw", "standardised"):
        mine = replace(raw, prior_scale=scale)
        how = plan(mine, sizes, seed)

        def make(mine: Problem = mine, how: Plan = how) -> Tensors:
            return _flat(Piece(score(VMG, train(VMG, mine, how), mine, how), [], []))

        scores = _deep(kept.part(f"naval-{scale}", make)).scores
        found.append(Contest("naval", mine.splits, mine.sizes, mine.main, sizes.updates, {VMG: scores}))
    return found[0], found[1]
