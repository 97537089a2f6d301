"""Iterative pruning of pairs of networks: one permutation for all levels (P5-C8), and masks that move (P5-C9).

Networks stand in a ring: each is paired with the next, which permutes with few matchings a level. Level 0 is dense; every level is
rewound to the weights of an early epoch and trained again under its mask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lib import pruning
from lib.intervals import jackknife
from lib.kept import Kept
from lib.matching import match
from lib.params import Params, select
from lib.population import Recipe, evaluate
from lib.rules import Measurement
from lib.symmetry import permute
from lib.three_models.problem import Problem, problem_of, recipe, trained
from lib.three_models.stars import barriers

MEMBERS = 500_000  # member numbers, away from those of other experiments
RATE = 0.2  # of the remaining weights, a level
LOSS = 0.01  # of accuracy: a sparser level does not count
DENSITIES = (0.10, 0.05, 0.02)
TRANSPORTS = ("own mask", "permuted mask", "raw mask", "random mask")
LEVEL = 0.983  # of an interval, for three looks at once


@dataclass(frozen=True, eq=False)
class Pruned:
    """Error barriers (levels, n) of each network and the next: under none, the dense, and each level's own permutation; the test
    accuracy of each network at each level, and the density (levels,). With (densities, n) accuracies of networks that were
    trained again under a mask of each kind."""

    density: Float[np.ndarray, " levels"]
    accuracy: Float[np.ndarray, "levels n"]
    plain: Float[np.ndarray, "levels n"]
    dense: Float[np.ndarray, "levels n"]
    own: Float[np.ndarray, "levels n"]
    equal: Float[np.ndarray, " levels"]
    transported: Mapping[str, Float[np.ndarray, "densities n"]]

    @property
    def members(self) -> int:
        """How many networks there are."""
        return self.accuracy.shape[1]

    @property
    def counts(self) -> list[int]:
        """The levels, from the first sparse one, whose accuracy is within 1 % of the dense one."""
        mean = self.accuracy.mean(1)
        return [k for k in range(1, len(mean)) if mean[k] >= mean[0] - LOSS]


def prune_and_join(
    setting: str,
    width: int,
    count: int,
    levels: int,
    epochs: int,
    alphas: int,
    *,
    seed: int,
    device: torch.device,
    kept: Kept | None = None,
) -> Pruned:
    """``count`` networks, each level trained for ``epochs`` from the weights after the first epoch."""
    problem, members = problem_of(setting, width, device=device), range(MEMBERS, MEMBERS + count)
    kept, again = kept or Kept(None), replace(recipe(epochs), warmup=0)
    rewind = kept.part("pruned-rewind", lambda: trained(problem, replace(again, epochs=1), members, seed))
    nets, masks = [], [pruning.full(rewind, pruning.prunable(problem.net))]
    for level in range(levels + 1):
        if level:
            masks.append(pruning.prune(nets[-1], masks[-1], RATE))
        nets.append(
            kept.part(
                f"pruned-{level}", lambda mask=masks[-1]: trained(problem, again, members, seed, rewind, mask)
            )
        )
    test, ring = problem.test, torch.arange(count).roll(-1)
    perms = [match(params, select(params, ring), problem.symmetries).perms for params in nets]
    tries = {"plain": [None] * len(nets), "dense": [perms[0]] * len(nets), "own": perms}
    joined = {
        kind: np.stack(
            [_next_barriers(problem, p, ring, perm, alphas) for p, perm in zip(nets, which, strict=True)]
        )
        for kind, which in tries.items()
    }
    accuracy = [
        evaluate(problem.net, p, test.inputs, test.targets)["accuracy"].double().cpu().numpy() for p in nets
    ]
    same = [
        np.mean([(a == b).double().mean().item() for a, b in zip(own, perms[0], strict=True)])
        for own in perms
    ]
    return Pruned(
        np.array([float(pruning.density(m).mean()) for m in masks]),
        np.stack(accuracy),
        joined["plain"],
        joined["dense"],
        joined["own"],
        np.array(same),
        _transported(problem, nets[-1], masks[-1], rewind, perms[0], ring, again, members, seed),
    )


def _transported(
    problem: Problem,
    sparse: Params,
    masks: pruning.Masks,
    rewind: Params,
    perms: tuple[Int64[Tensor, "n _"], ...],
    ring: Int64[Tensor, " n"],
    again: Recipe,
    members: range,
    seed: int,
) -> dict[str, np.ndarray]:
    """Each network trained again under the next one's mask, moved by the dense permutation or as it is, beside its own."""
    found: dict[str, list[np.ndarray]] = {kind: [] for kind in TRANSPORTS}
    for density in DENSITIES:
        own = pruning.prune(sparse, masks, max(0.0, 1 - density / float(pruning.density(masks).mean())))
        raw = select(own, ring)
        four = (
            own,
            pruning.permute_masks(raw, problem.symmetries, perms),
            raw,
            pruning.random_like(raw, seed),
        )
        for kind, mask in zip(TRANSPORTS, four, strict=True):
            params = trained(problem, again, members, seed, rewind, mask)
            scores = evaluate(problem.net, params, problem.test.inputs, problem.test.targets)
            found[kind].append(100 * scores["accuracy"].double().cpu().numpy())
    return {kind: np.stack(rows) for kind, rows in found.items()}


def _next_barriers(
    problem: Problem,
    params: Params,
    ring: Int64[Tensor, " n"],
    perms: tuple[Int64[Tensor, "n _"], ...] | None,
    alphas: int,
) -> np.ndarray:
    """Error barrier between each network and the next, in the order that is given for it."""
    after = select(params, ring)
    after = after if perms is None else permute(after, problem.symmetries, perms)
    both = {name: torch.cat([params[name], after[name]]) for name in params}
    members = len(ring)
    pairs = torch.arange(2 * members).view(2, members).T
    return barriers(problem, both, pairs, alphas).error


# ------------------------------------------------------------------------------------------------------- measurements


def over_ring(
    statistic: Callable[[np.ndarray], np.ndarray], members: int, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Value and interval of a statistic of the pairs (i, i + 1) whose networks are both there, given the places of such pairs."""

    def of(groups: list[np.ndarray]) -> np.ndarray:
        inside = np.isin(np.arange(members), groups[0]) & np.isin(
            (np.arange(members) + 1) % members, groups[0]
        )
        return np.atleast_1d(statistic(np.flatnonzero(inside)))

    return jackknife(of, [members], level=level)


def measure_levels(found: Pruned) -> list[Measurement]:
    """P5-C8: one cell a level that counts."""
    measured = []
    for k in found.counts:

        def two(pairs: np.ndarray, k=k) -> np.ndarray:
            plain, dense, own = (x[k][pairs].mean() for x in (found.plain, found.dense, found.own))
            return np.array([dense / plain if plain > 0 else np.nan, dense - own])

        rows = np.stack(over_ring(two, found.members), 1)
        for name, row in zip(("dense_ratio", "dense_excess"), rows, strict=True):
            value, low, high = (float(x) if np.isfinite(x) else None for x in row)
            measured.append(
                Measurement(
                    name,
                    f"{found.density[k]:.0%} dense",
                    value,
                    low,
                    high,
                    n=found.members,
                    seeds=found.members,
                )
            )
    return measured


def measure_masks(found: Pruned) -> list[Measurement]:
    """P5-C9: accuracy under the permuted mask minus that under the raw one, in points, with intervals for three looks."""
    gain = found.transported["permuted mask"] - found.transported["raw mask"]
    measured = []
    for density, values in zip(DENSITIES, gain, strict=True):
        row = over_ring(lambda pairs, v=values: np.array([v[pairs].mean()]), found.members, LEVEL)
        measured.append(
            Measurement(
                "mask_gain",
                f"{100 * density:.0f} %",
                *(float(x[0]) for x in row),
                n=found.members,
                seeds=found.members,
            )
        )
    return measured


def mask_rows(found: Pruned) -> list[tuple[str, ...]]:
    """For a page: density, and accuracy under each kind of mask with its interval over networks."""
    text = "{:.1f} ({:.1f} to {:.1f})"
    table = []
    for k, density in enumerate(DENSITIES):
        cells = []
        for kind in TRANSPORTS:
            row = over_ring(
                lambda pairs, v=found.transported[kind][k]: np.array([v[pairs].mean()]), found.members
            )
            cells.append(text.format(*(float(x[0]) for x in row)))
        table.append((f"{100 * density:.0f} %", *cells))
    return table


def level_bands(found: Pruned, kind: str) -> Float[np.ndarray, "3 levels"]:
    """Mean error barriers at each level with intervals: ``kind`` "plain", "dense" or "own"."""
    values = getattr(found, kind)
    return np.stack(over_ring(lambda pairs: values[:, pairs].mean(1), found.members))
