"""All lenses on one population: trained once, looked at side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float

from lib.kept import Kept
from lib.local_chains import Options
from lib.one_population import energy, gaussians, paths, starts, twin_measures
from lib.one_population.problem import (
    ALIGNED,
    VIEWS,
    Problem,
    population,
    problem_of,
    seen,
    spread,
    twins,
    views,
)
from lib.parallel import side_by_side
from lib.params import Params, select


@runtime_checkable
class Sizes(Protocol):
    """What the chapter reads of a profile."""

    images: str
    learn: int | None
    widths: tuple[int, ...]
    members: int
    epochs: int
    groups: int
    paired: int
    alphas: int
    draws: int
    twin_groups: int
    heated: int
    heat_warmup: int
    heat_draws: int
    heat_leapfrog: int
    local_members: int
    local_moved: int
    local_warmup: int
    local_draws: int
    local_leapfrog: int
    looks: tuple[int, ...]
    bound_draws: int


@dataclass(frozen=True, eq=False)
class Lenses:
    """What the five papers' instruments find in one population (of one width)."""

    problem: Problem
    plain: twin_measures.Summary
    unit: twin_measures.Summary
    spreads: Mapping[str, float]
    pairs: Mapping[str, paths.Pairs]
    distance: paths.Table
    heat: energy.Heat
    local: energy.Local
    moved: energy.Local
    losses: Mapping[str, gaussians.Losses]
    begun: starts.Begun
    apart: Mapping[str, Float[np.ndarray, " groups"]]
    unit_pairs: paths.Pairs
    group: int

    @property
    def cell(self) -> str:
        """The name of this population in measurements."""
        return f"width {self.problem.width}"


@dataclass(frozen=True, eq=False)
class Populations:
    """The trained networks and their views; the twins as trained."""

    problem: Problem
    seen: Mapping[str, Params]
    twins: Params


def train(
    sizes: Sizes, width: int, *, seed: int, device: torch.device, kept: Kept | None = None
) -> Populations:
    """The population and its twin, and three views of the first."""
    kept = kept or Kept(None)
    problem = problem_of(sizes.images, width, sizes.learn, sizes.epochs, device)
    members = range(sizes.members)
    plain = kept.part(f"population-{width}", lambda: population(problem, members, seed))
    twin = kept.part(f"twins-{width}", lambda: twins(problem, members, seed))
    plain, twin = ({name: t.to(device) for name, t in params.items()} for params in (plain, twin))
    return Populations(problem, views(problem, plain), twin)


def look(sizes: Sizes, found: Populations, *, seed: int, device: torch.device) -> Lenses:
    """Every lens; on a CPU side by side."""
    problem, plain, twin = found.problem, found.seen["raw"], found.twins
    few = slice(0, sizes.paired)
    width = {"images": sizes.images, "width": problem.width, "learn": sizes.learn, "epochs": sizes.epochs}
    again = lambda: problem_of(*width.values(), device)  # noqa: E731 - a piece carries numbers, not a traced network
    points = energy.minima(problem, select(plain, slice(0, max(sizes.local_members, sizes.heated))), 400)
    options = Options(
        warmup=sizes.local_warmup, draws=sizes.local_draws, leapfrog=sizes.local_leapfrog, gamma=1.0
    )
    local_points = points[: sizes.local_members]
    moved_points = energy.permuted(problem, points[: sizes.local_moved], seed)
    pieces = {
        **{
            f"pairs {view}": lambda v=view: paths.pairs(again(), select(found.seen[v], few), sizes.alphas)
            for view in VIEWS
        },
        "losses": lambda: gaussians.losses(again(), found.seen, sizes.groups, sizes.draws, seed),
        "one run": lambda: gaussians.one_run(again(), plain, sizes.groups, sizes.draws, seed),
        # aligned among all of them, as the plain networks are: how many are aligned together changes their barriers
        "unit": lambda: paths.pairs(
            again(), select(seen(again(), twin, ALIGNED, "unit_norm"), few), sizes.alphas
        ),
        "heat": lambda: energy.heat(
            again(),
            points[: sizes.heated],
            warmup=sizes.heat_warmup,
            draws=sizes.heat_draws,
            leapfrog=sizes.heat_leapfrog,
            seed=seed,
        ),
        "starts": lambda: starts.begin(
            again(), dict(found.seen), sizes.groups, sizes.looks, sizes.bound_draws, seed
        ),
        "moved": lambda: energy.local(again(), moved_points, options, seed, first=sizes.local_members),
        "apart": lambda: twin_measures.distances(again(), plain, twin, sizes.twin_groups, seed),
        "local": lambda: energy.local(again(), local_points, options, seed),
    }
    done = dict(zip(pieces, side_by_side(list(pieces.values()), device), strict=True))
    return Lenses(
        problem,
        twin_measures.summary(problem, plain),
        twin_measures.summary(problem, twin),
        {view: spread(params) for view, params in found.seen.items()},
        {view: done[f"pairs {view}"] for view in VIEWS},
        paths.function_distance(problem, select(plain, few)),
        done["heat"],
        done["local"],
        done["moved"],
        done["losses"] | done["one run"],
        done["starts"],
        done["apart"],
        done["unit"],
        sizes.members // sizes.groups,
    )
