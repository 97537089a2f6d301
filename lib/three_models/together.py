"""The chapter's longer experiments, side by side: none needs a word from another, and together they keep every core busy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from lib.connectivity import Parts, decompose
from lib.kept import Kept
from lib.parallel import side_by_side
from lib.params import Params, select
from lib.three_models import chains, large_weights, pruned, several, shifted, trajectories
from lib.three_models.problem import problem_of
from lib.three_models.stars import Barriers


@runtime_checkable
class Sizes(Protocol):
    """What the experiments read of a profile."""

    images: str
    path_setting: str
    path_width: int
    path_epochs: tuple[int, ...]
    networks: int
    epochs: int
    alphas: int
    chain_width: int
    shift_width: int
    prune_setting: str
    prune_width: int
    prune_levels: int
    prune_epochs: int
    sizes_together: tuple[int, ...]
    methods_together: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Found:
    """What each experiment found, as its own module has it."""

    trajectories: Mapping[str, trajectories.Followed]
    pruned: pruned.Pruned
    chains: Mapping[str, tuple[Tensor, Barriers]]
    large: Mapping[str, np.ndarray]
    several: Sequence[several.Groups]
    shifted: Mapping[str, shifted.Shifted]
    parts: Parts


def run(sizes: Sizes, many: Params, *, seed: int, device: torch.device, kept: Kept | None = None) -> Found:
    """Everything; ``many`` networks of ``chain_width`` serve chains, truncated weights, the decomposition and the joint alignments."""
    few = select(many, slice(0, sizes.networks))
    halves = [
        lambda kind=kind, half=half: trajectories.follow_half(
            sizes.path_setting, sizes.path_width, sizes.networks, sizes.path_epochs, sizes.alphas, kind, half,
            seed=seed, device=device, kept=kept,
        )
        for kind, half in trajectories.HALVES
    ]  # fmt: skip
    listed = several.groups(many, sizes.sizes_together)
    groups = [
        lambda k=k, own=own: several.align_group(
            sizes.images,
            sizes.chain_width,
            own,
            sizes.methods_together,
            sizes.alphas,
            seed=seed,
            device=device,
            kept=kept,
            name=str(k),
        )
        for k, (_, own) in enumerate(listed)
    ]
    others = [
        lambda: _parts(sizes.images, sizes.chain_width, few, sizes.alphas, device),
        lambda: _chains(sizes.images, sizes.chain_width, few, sizes.alphas, seed, device),
        lambda: _large(sizes.images, sizes.chain_width, few, sizes.alphas, device),
        lambda: shifted.join(
            sizes.images, sizes.shift_width, sizes.networks, sizes.epochs, sizes.alphas, seed=seed, device=device
        ),
        lambda: pruned.prune_and_join(
            sizes.prune_setting, sizes.prune_width, sizes.networks, sizes.prune_levels, sizes.prune_epochs,
            sizes.alphas, seed=seed, device=device, kept=kept,
        ),
    ]  # fmt: skip
    found = side_by_side([*groups, *others[:-1], *halves, others[-1]], device)
    aligned, (parts, chained, large, moved), paths = (
        found[: len(groups)],
        found[len(groups) : len(groups) + 4],
        found[len(groups) + 4 : -1],
    )
    return Found(
        trajectories.gather(sizes.path_epochs, paths),
        found[-1],
        chained,
        large,
        several.gather([(n, part) for (n, _), part in zip(listed, aligned, strict=True)]),
        moved,
        parts,
    )


def _chains(
    setting: str, width: int, params: Params, alphas: int, seed: int, device: torch.device
) -> dict[str, tuple[Tensor, Barriers]]:
    return chains.chains(problem_of(setting, width, device), params, alphas, seed=seed)


def _large(
    setting: str, width: int, params: Params, alphas: int, device: torch.device
) -> dict[str, np.ndarray]:
    return large_weights.truncated(problem_of(setting, width, device), params, alphas)


def _parts(setting: str, width: int, params: Params, alphas: int, device: torch.device) -> Parts:
    """The barriers between each network and the next of a ring, in their parts."""
    problem, members = problem_of(setting, width, device), len(next(iter(params.values())))
    after = select(params, torch.arange(members).roll(-1))
    test = problem.test
    return decompose(
        problem.net,
        problem.symmetries,
        params,
        after,
        test.inputs,
        test.targets,
        problem.learn.inputs[:500],
        alphas,
    )
