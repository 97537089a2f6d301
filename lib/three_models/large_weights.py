"""Which weights decide a weight matching: permutations found from the largest or the smallest alone (P5-C11)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from lib.intervals import jackknife
from lib.params import Params
from lib.rules import Measurement
from lib.three_models.problem import Problem
from lib.three_models.stars import ACTIVATIONS, WEIGHTS, between_pairs, of_pairs, table

SHARE = 0.3  # the ledger's


def kept_weights(params: Params, share: float, largest: bool) -> Params:
    """The networks with all but a share of each weight matrix's entries set to zero, by size; vectors stay."""
    found = {}
    for name, tensor in params.items():
        if tensor.ndim < 3:
            found[name] = tensor
            continue
        size = tensor.abs().flatten(1)
        place = size.argsort(dim=1, stable=True).argsort(dim=1)
        count = round(share * size.shape[1])
        inside = place >= size.shape[1] - count if largest else place < count
        found[name] = tensor * inside.view_as(tensor)
    return found


def truncated(
    problem: Problem, params: Params, alphas: int, shares: Sequence[float] = (SHARE,)
) -> dict[str, Float[np.ndarray, "n n"]]:
    """Error barriers (n, n) of the whole networks, under permutations found from parts of their weights, and under others."""
    found = {
        "none": between_pairs(problem, params, None, alphas).error,
        "all": between_pairs(problem, params, table(problem, params, WEIGHTS), alphas).error,
        ACTIVATIONS: between_pairs(problem, params, table(problem, params, ACTIVATIONS), alphas).error,
    }
    for share in shares:
        for side, largest in (("largest", True), ("smallest", False)):
            perms = table(problem, kept_weights(params, share, largest), WEIGHTS)
            found[f"{side} {share:.0%}"] = between_pairs(problem, params, perms, alphas).error
    return found


def levels(found: Mapping[str, Float[np.ndarray, "n n"]]) -> dict[str, tuple[float, float, float]]:
    """Mean barriers with intervals over networks."""
    members = len(next(iter(found.values())))
    rows = np.stack(jackknife(lambda g: np.array([of_pairs(v, g[0]) for v in found.values()]), [members]), 1)
    return {name: tuple(float(x) for x in row) for name, row in zip(found, rows, strict=True)}


def measure_large_weights(found: Mapping[str, Float[np.ndarray, "n n"]]) -> list[Measurement]:
    """P5-C11: smallest 30 % over none; largest 30 % minus all."""
    members = len(found["none"])

    def two(groups: Sequence[np.ndarray]) -> np.ndarray:
        small, large, whole, none = (
            of_pairs(found[name], groups[0])
            for name in (f"smallest {SHARE:.0%}", f"largest {SHARE:.0%}", "all", "none")
        )
        return np.array([small / none, large - whole])

    rows = np.stack(jackknife(two, [members]), 1)
    return [
        Measurement(name, "weight matching", *row, n=members, seeds=members)
        for name, row in zip(("small_ratio", "large_change"), rows, strict=True)
    ]
