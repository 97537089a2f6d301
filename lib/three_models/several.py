"""n networks at once: aligned to the best reference, jointly, or one by one to the mean (P5-X1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lib.connectivity import simplex
from lib.intervals import student
from lib.kept import Kept
from lib.matching import match_many, objective
from lib.params import Params, select
from lib.rules import Measurement
from lib.three_models.problem import Problem, problem_of
from lib.three_models.stars import barriers

METHODS = ("reference", "joint", "merge_many")  # and "frank_wolfe", which takes minutes
DRAWS = 20  # points of each simplex, beside its centre


@dataclass(frozen=True, eq=False)
class Groups:
    """Disjoint groups of n networks: for each method the joint objective, the mean pairwise loss barrier, the loss of the average
    above the mean of the losses, and the same at the worst of some random points of the simplex; (G,) each."""

    n: int
    objective: Mapping[str, Float[np.ndarray, " G"]]
    pairwise: Mapping[str, Float[np.ndarray, " G"]]
    centroid: Mapping[str, Float[np.ndarray, " G"]]
    worst: Mapping[str, Float[np.ndarray, " G"]]


Part = dict[str, Tensor]


def align_group(
    setting: str,
    width: int,
    params: Params,
    methods: Sequence[str],
    alphas: int,
    *,
    seed: int,
    device: torch.device,
    kept: Kept | None = None,
    name: str = "",
) -> Part:
    """One group of networks (n, ...), aligned by each method and joined in pairs and in its simplex."""
    return (kept or Kept(None)).part(
        f"several-{name}", lambda: _aligned(problem_of(setting, width, device), params, methods, alphas, seed)
    )


def groups(params: Params, sizes: Sequence[int]) -> list[tuple[int, Params]]:
    """As many disjoint groups of each size as the networks give: (size, networks)."""
    members = len(next(iter(params.values())))
    return [(n, select(params, slice(g * n, (g + 1) * n))) for n in sizes for g in range(members // n)]


def gather(parts: Sequence[tuple[int, Part]]) -> list[Groups]:
    """The groups of each size together, from (size, part) as ``groups`` lists them."""
    sizes = list(dict.fromkeys(n for n, _ in parts))
    return [_groups(n, [part for size, part in parts if size == n]) for n in sizes]


def _aligned(problem: Problem, params: Params, methods: Sequence[str], alphas: int, seed: int) -> Part:
    aligned = {"reference": match_many(params, problem.symmetries, "reference")}
    for method in methods[1:]:
        start = aligned["reference"].perms if method == "joint" else None
        aligned[method] = match_many(params, problem.symmetries, method, start=start, seed=seed)
    found = {f"objective/{name}": each.objective[-1] for name, each in aligned.items()}
    found["objective/none"] = torch.tensor(objective(params, problem.symmetries))
    for name, here in {"none": params, **{name: each.params for name, each in aligned.items()}}.items():
        found |= {f"{key}/{name}": value for key, value in _measures(problem, here, alphas, seed).items()}
    return {key: torch.as_tensor(value, dtype=torch.float64) for key, value in found.items()}


def _measures(problem: Problem, params: Params, alphas: int, seed: int) -> dict[str, float]:
    members = len(next(iter(params.values())))
    pairs = barriers(problem, params, torch.combinations(torch.arange(members)), alphas)
    group = torch.arange(members)[None]
    test = problem.test
    centre, worst = simplex(problem.net, params, group, test.inputs, test.targets, DRAWS, seed)
    return {"pairwise": float(pairs.loss.mean()), "centroid": float(centre[0]), "worst": float(worst[0])}


def _groups(n: int, parts: Sequence[Mapping[str, Tensor]]) -> Groups:
    names = [key.partition("/")[2] for key in parts[0] if key.startswith("pairwise/")]

    def read(key: str) -> dict[str, np.ndarray]:
        return {name: np.array([float(p[f"{key}/{name}"]) for p in parts]) for name in names}

    return Groups(n, *(read(key) for key in ("objective", "pairwise", "centroid", "worst")))


def measure_joint(found: Sequence[Groups]) -> list[Measurement]:
    """P5-X1: mean pairwise loss barrier, reference minus joint, over groups; and by how much the objective fell short."""
    measured = []
    for each in found:
        gain = each.pairwise["reference"] - each.pairwise["joint"]
        short = 1 - each.objective["joint"] / each.objective["reference"]
        networks, groups = each.n * len(gain), len(gain)
        measured.append(Measurement("barrier_gain", str(each.n), *student(gain), n=networks, seeds=groups))
        worst = float(short.max())
        measured.append(
            Measurement(
                "objective_shortfall", str(each.n), worst, short.min(), worst, n=networks, seeds=groups
            )
        )
    return measured


def rows(found: Sequence[Groups]) -> list[tuple[str, ...]]:
    """For a page: n, method, pairwise barrier, loss of the average and of the worst point above the mean loss."""
    text = "{:.3f} ({:.3f} to {:.3f})"
    return [
        (str(each.n), method.replace("_", " "), *(text.format(*student(x[method])) for x in (each.pairwise, each.centroid, each.worst)))
        for each in found
        for method in each.pairwise
    ]  # fmt: skip
