"""One permutation along two whole trainings, and permutations found early in them (P5-C4 to C7).

Networks are kept at several epochs of one training. At each of these epochs pairs are matched; a permutation of epoch t is then
tried at the end, and that of the end at every epoch. The standard training has two halves of networks, paired within each: what
is chosen on one half is judged on the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lib.intervals import jackknife
from lib.kept import Kept
from lib.matching.activations import activations
from lib.params import Params
from lib.population import evaluate
from lib.rules import Measurement
from lib.three_models.problem import FAST, STANDARD, Problem, problem_of, snapshots
from lib.three_models.stars import (
    ACTIVATIONS,
    MATCHINGS,
    WEIGHTS,
    between_pairs,
    of_pairs,
    table,
)

MEMBERS = 100_000  # member numbers, away from those of the widths
CHANCE = 0.5  # an epoch counts where the mean test error lies below this share of chance's
WATCHED = 500  # training images in which a unit that never fires counts as dead
TRAININGS = (STANDARD, FAST)


@dataclass(frozen=True, eq=False)
class Followed:
    """One kind of training, pairs (n, n) at T epochs: error barriers, and the share of equal positions of two permutations.

    ``early[m][t]``: at the end, under the permutation of epoch t by matching m; ``late[m][t]``: at epoch t, under that of the end;
    ``plain[t]``: at epoch t, under none. ``equal[m][t]`` compares with the last permutation
    of weight matching, and drops units that are dead in either network at the end. No numbers for pairs across halves.
    """

    epochs: tuple[int, ...]
    test_error: Float[np.ndarray, "T n"]
    plain: Float[np.ndarray, "T n n"]
    early: Mapping[str, Float[np.ndarray, "T n n"]]
    late: Mapping[str, Float[np.ndarray, "T n n"]]
    equal: Mapping[str, Float[np.ndarray, "T n n"]]

    @property
    def members(self) -> int:
        """How many networks there are."""
        return self.test_error.shape[1]

    @property
    def knows(self) -> list[int]:
        """The epochs' places at which the networks are better than chance by far: others have no barrier to speak of."""
        chance = 1 - 1 / 10
        return [t for t in range(len(self.epochs)) if self.test_error[t].mean() < CHANCE * chance]


Part = dict[str, Tensor]
HALVES = ((STANDARD, 0), (STANDARD, 1), (FAST, 0))


def follow_half(
    setting: str,
    width: int,
    count: int,
    epochs: Sequence[int],
    alphas: int,
    kind: str,
    half: int,
    *,
    seed: int,
    device: torch.device,
    kept: Kept | None = None,
) -> Part:
    """One half of one kind of training: ``count`` networks, kept after some ``epochs``, of which the last is the end."""
    name = f"trajectory-{'standard' if kind == STANDARD else 'fast'}-{half}"
    return (kept or Kept(None)).part(
        name,
        lambda: _followed(
            setting, width, _members(kind, half, count), tuple(epochs), kind, alphas, seed, device
        ),
    )


def gather(epochs: Sequence[int], halves: Sequence[Part]) -> dict[str, Followed]:
    """The two kinds of training, from their halves in the order of ``HALVES``."""
    first, second, fast = halves
    epochs = tuple(epochs)
    return {STANDARD: _read(epochs, _joined(first, second)), FAST: _read(epochs, fast)}


def _members(kind: str, half: int, count: int) -> range:
    start = MEMBERS * (1 + TRAININGS.index(kind)) + half * count
    return range(start, start + count)


def _followed(
    setting: str,
    width: int,
    members: range,
    epochs: tuple[int, ...],
    kind: str,
    alphas: int,
    seed: int,
    device: torch.device,
) -> dict[str, Tensor]:
    problem = problem_of(setting, width, device=device)
    nets = snapshots(problem, members, epochs, kind, seed)
    test = problem.test
    error = [1 - evaluate(problem.net, p, test.inputs, test.targets)["accuracy"] for p in nets]
    parts = {
        "test_error": torch.stack(error).double().cpu(),
        "plain": _stacked([between_pairs(problem, p, None, alphas).error for p in nets]),
    }
    alive, tables_of = _alive(problem, nets[-1]), {}
    for matching in MATCHINGS:
        tables_of[matching] = tables = [table(problem, p, matching) for p in nets]
        tries = {
            "early": [(nets[-1], found) for found in tables],
            "late": [(p, tables[-1]) for p in nets],
        }
        for name, what in tries.items():
            parts[f"{name}/{matching}"] = _stacked(
                [between_pairs(problem, p, found, alphas).error for p, found in what]
            )
        parts[f"equal/{matching}"] = torch.stack(
            [_equal(found, tables_of[WEIGHTS][-1], alive) for found in tables]
        )
    return parts


def _alive(problem: Problem, params: Params) -> list[Tensor]:
    """For each group (n, size): units that fire for some of the training images."""
    seen = activations(problem.net, params, problem.symmetries, problem.learn.inputs[:WATCHED])
    return [(units > 0).any(1).cpu() for units in seen]


def _equal(one, other, alive: list[Tensor]) -> Float[Tensor, "n n"]:
    """The share of equal positions of two tables, over places and units that are alive in both networks."""
    same, count = 0.0, 0.0
    for a, b, lives in zip(one, other, alive, strict=True):
        members = len(lives)
        ours = lives[:, None].expand(members, members, -1)
        theirs = lives[None].expand(members, members, -1).gather(2, b)
        counts = ours & theirs
        same = same + ((a == b) & counts).sum(2).double()
        count = count + counts.sum(2).double()
    shares = same / count
    return shares.fill_diagonal_(torch.nan)


def _stacked(tables: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(tables))


def _joined(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Two halves as one: tables of pairs beside each other, without numbers across."""
    found = {}
    for name, a in first.items():
        b = second[name]
        if a.ndim == 2:
            found[name] = torch.cat([a, b], 1)
            continue
        whole = a.new_full((len(a), a.shape[1] + b.shape[1], a.shape[2] + b.shape[2]), torch.nan)
        whole[:, : a.shape[1], : a.shape[2]], whole[:, a.shape[1] :, a.shape[2] :] = a, b
        found[name] = whole
    return found


def _read(epochs: tuple[int, ...], part: Mapping[str, Tensor]) -> Followed:
    def both(name: str) -> dict[str, np.ndarray]:
        return {matching: part[f"{name}/{matching}"].numpy() for matching in MATCHINGS}

    return Followed(
        epochs,
        part["test_error"].numpy(),
        part["plain"].numpy(),
        both("early"),
        both("late"),
        both("equal"),
    )


# ------------------------------------------------------------------------------------------------------- measurements


def over_time(values: Float[np.ndarray, "T n n"]) -> Float[np.ndarray, "3 T"]:
    """Means over pairs at every epoch, with intervals over networks."""
    return np.stack(jackknife(lambda g: np.array([of_pairs(v, g[0]) for v in values]), [values.shape[1]]))


def measure_late(found: Followed) -> list[Measurement]:
    """P5-C4, weight matching: the final permutation at each epoch, minus the larger of 2 % and 1.5 times its final barrier."""
    late = found.late[WEIGHTS]

    def excess(groups: Sequence[np.ndarray]) -> np.ndarray:
        barrier = np.array([of_pairs(late[t], groups[0]) for t in range(len(late))])
        return barrier - max(0.02, 1.5 * barrier[-1])

    value, low, high = jackknife(excess, [found.members])
    return [
        _measurement("trajectory_excess", f"epoch {found.epochs[t]}", (value[t], low[t], high[t]), found)
        for t in found.knows
    ]


def measure_early(found: Followed) -> list[Measurement]:
    """P5-C5, weight matching: at the end, the first epoch's permutation over the last one's; and Kendall's tau with the epoch."""
    from scipy.stats import kendalltau

    early = found.early[WEIGHTS]

    def both(groups: Sequence[np.ndarray]) -> np.ndarray:
        barrier = np.array([of_pairs(values, groups[0]) for values in early])
        return np.array([barrier[0] / barrier[-1], kendalltau(found.epochs, barrier).statistic])

    interval = np.stack(jackknife(both, [found.members]), 1)
    return [
        _measurement("early_ratio", "weight matching", tuple(interval[0]), found),
        _measurement("trend", "weight matching", tuple(interval[1]), found),
    ]


def measure_matchings(found: Mapping[str, Followed]) -> list[Measurement]:
    """P5-C6: at the end, weight minus activation matching, mean over the epochs of the permutation; one cell a training."""
    measured = []
    for kind, each in found.items():
        difference = each.early[WEIGHTS] - each.early[ACTIVATIONS]
        interval = jackknife(
            lambda g, d=difference: np.array([np.mean([of_pairs(v, g[0]) for v in d])]), [each.members]
        )
        measured.append(_measurement("matching_difference", kind, tuple(x[0] for x in interval), each))
    return measured


def measure_several(found: Followed) -> tuple[list[Measurement], str]:
    """P5-C7: a permutation chosen on the first half of the networks, judged on the other beside the last one of weight matching.

    Candidates are the permutations of all epochs and both matchings: chosen is the one of smallest error barrier at the end among
    those that agree with that last one on less than half of the positions. Also says which it is.
    """
    first, second = np.arange(found.members // 2), np.arange(found.members // 2, found.members)
    last = found.early[WEIGHTS][-1]
    options = []
    for matching in MATCHINGS:
        for t, epoch in enumerate(found.epochs):
            if of_pairs(found.equal[matching][t], first) < 0.5:
                options.append((of_pairs(found.early[matching][t], first), matching, epoch, t))
    if not options:
        return [], "no permutation that differs on half of the positions"
    _, matching, epoch, t = min(options)
    agree, difference = found.equal[matching][t], found.early[matching][t] - last

    def both(groups: Sequence[np.ndarray]) -> np.ndarray:
        here = second[groups[0]]
        return np.array([of_pairs(agree, here), of_pairs(difference, here)])

    interval = np.stack(jackknife(both, [len(second)]), 1)
    names = ("agreement", "barrier_difference")
    return [
        Measurement(name, "other half", *row, n=len(second), seeds=len(second))
        for name, row in zip(names, interval, strict=True)
    ], f"{matching} at epoch {epoch}"


def several_in_words(measured: Sequence[Measurement]) -> str:
    """What ``measure_several`` found, as a sentence; "" where it found no such permutation."""
    if not measured:
        return ""
    agree, less = measured
    return (
        f"The two agree on {agree.value:.0%} of the positions, and their error barriers differ by {100 * less.value:.2f} points "
        f"({100 * less.low:.2f} to {100 * less.high:.2f})."
    )


def _measurement(name: str, cell: str, interval: tuple[float, ...], found: Followed) -> Measurement:
    value, low, high = interval
    return Measurement(name, cell, value, low, high, n=found.members, seeds=found.members)
