"""How often training permutes the neurons: changes of the sorting permutation from step to step (claim P1-C12).

After every step the units of a layer are sorted, by their first weight or by their norm, as ``canonicalize`` would with
scale=None (Laurent et al. 2024, section 5.2, in a low-confidence reading). What is counted: positions of the sorted
order that another unit holds than one step before. The Kendall distance to the final order says how far there is to go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float64, Int16, Shaped
from torch import Tensor, nn

from lib.claims import Measurement
from lib.device import one_thread
from lib.intervals import bootstrap
from lib.population import Recipe, initial, member_ids, walk
from lib.symmetry import Place, Symmetries, find_symmetries

SORTS = ("first weight", "norm")


@dataclass(frozen=True, eq=False)
class Events:
    """What one population of P networks did in T steps.

    ``changes`` {sort: (T, P)}: positions of the order after each step that changed in it (the first step's: since
    initialisation). ``kendall`` {sort: (T, P)}: pairs of units whose order after the step is not the final one.
    ``rate`` (T,): the learning rate of each step. ``units``: how many are sorted in all.
    """

    changes: dict[str, Int16[Tensor, "T P"]]
    kendall: dict[str, Int16[Tensor, "T P"]]
    rate: Float64[Tensor, " T"]
    steps_per_epoch: int
    units: int
    seed: int


def sorted_groups(symmetries: Symmetries) -> dict[int, Place]:
    """The groups whose keys hang on no other group's order, each with the weight that writes its units.

    For a perceptron, its first hidden layer; for OptuMNIST-v1 the two channels of the first convolution and, in each of
    their blocks, the five of the second, which read one channel. Raises ValueError where there is none.
    """
    found = {}
    for g, group in enumerate(symmetries.permutations):
        rows = [p for p in group.places if p.axis == 0 and len(symmetries.shapes[p.name]) > 1]
        if not rows or rows[0].index.shape[1] > 1:
            continue  # whole blocks with several units each, whose first is known only once they are sorted
        columns = [p for other in symmetries.permutations for p in other.places if p.axis == 1]
        if all(column.name != rows[0].name for column in columns):
            found[g] = rows[0]
    if not found:
        raise ValueError("every layer of this network reads permuted units: none can be sorted by itself.")
    return found


def key(params: Mapping[str, Tensor], place: Place, sort: str, first: int = 0) -> Float64[Tensor, "P units"]:
    """What the units are sorted by, descending: their incoming weight number ``first``, or their incoming norm."""
    if sort not in SORTS:
        raise ValueError(f"there is no sort by {sort!r}: choose one of {', '.join(map(repr, SORTS))}.")
    weight = params[place.name].flatten(2)
    if sort == "first weight":
        values = weight[:, :, first].double()
    else:
        values = torch.linalg.vector_norm(weight, dim=2, dtype=torch.float64)
    return values[:, place.index[:, 0].to(weight.device)]


def order(keys: Float64[Tensor, "*P units"]) -> Int16[Tensor, "*P units"]:
    """The units in descending order of their keys, equals as they stand: as ``canonicalize`` sorts."""
    return keys.argsort(dim=-1, descending=True, stable=True).to(torch.int16)


def count(path: Shaped[Tensor, "steps *P units"]) -> tuple[Tensor, Tensor]:
    """Along a path of orders: positions that change from each to the next (steps - 1, *P), and Kendall distances to the
    last order (steps, *P), both int16.
    """
    changes = (path[1:] != path[:-1]).sum(-1)
    rank = path.long().argsort(dim=-1).to(torch.int16)
    first, second = torch.triu_indices(path.shape[-1], path.shape[-1], 1, device=path.device)
    final = rank[-1][..., first] < rank[-1][..., second]
    kendall = [((now[..., first] < now[..., second]) != final).sum(-1) for now in rank.split(256)]
    return changes.to(torch.int16), torch.cat(kendall).to(torch.int16)


def record(
    net: nn.Module,
    inputs: Shaped[Tensor, "N ..."],
    targets: Shaped[Tensor, "N ..."],
    recipe: Recipe,
    *,
    members: int | range | Tensor,
    seed: int,
    device: str | torch.device = "cpu",
    first: int = 0,
) -> Events:
    """Train ``members`` by ``recipe`` and watch their orders. Raises ValueError for members that diverge, by number.

    ``first`` numbers the incoming weight that the first-weight sort reads. The authors' is 0; but where that input is the
    same in all examples (the corner pixel of a digit), decay alone moves it, and its order never changes.
    """
    groups = sorted_groups(find_symmetries(net, inputs[:2]))
    ids, epoch = member_ids(members), recipe.steps_per_epoch(len(inputs))
    rates, keys, paths = [], {}, {(sort, g): [] for sort in SORTS for g in groups}
    last = initial(net, ids.to(device), seed)
    with one_thread():
        for which in paths:
            keys[which] = [key(last, groups[which[1]], which[0], first)]
        for moment in walk(net, inputs, targets, recipe, members=ids, seed=seed, device=device, start=last):
            last = moment.params
            rates.append(moment.rate)
            for (sort, g), recent in keys.items():
                recent.append(key(last, groups[g], sort, first))
                if len(rates) % epoch == 0:  # many are sorted in the time of one
                    paths[sort, g].append(order(torch.stack(recent)))
                    recent.clear()
    finite = torch.stack([tensor.flatten(1).isfinite().all(1) for tensor in last.values()]).all(0)
    if not bool(finite.all()):
        lost = ids[~finite.cpu()].tolist()
        raise ValueError(
            f"members {lost} diverged: their orders mean nothing. Lower the rate, or leave them out."
        )
    changes, kendall = {}, {}
    with one_thread():
        for sort in SORTS:
            counted = [count(torch.cat(paths[sort, g])) for g in groups]
            changes[sort] = torch.stack([changed for changed, _ in counted]).sum(0).to(torch.int16).cpu()
            kendall[sort] = (
                torch.stack([distance[1:] for _, distance in counted]).sum(0).to(torch.int16).cpu()
            )
    units = sum(place.size for place in groups.values())
    return Events(changes, kendall, torch.tensor(rates, dtype=torch.float64), epoch, units, seed)


def drops(events: Events) -> list[int]:
    """The steps at which the learning rate changes, each with one whole epoch at one rate before and after it."""
    found = ((events.rate.diff() != 0).nonzero().flatten() + 1).tolist()
    edges = [0, *found, len(events.rate)]
    if not found or any(b - a < events.steps_per_epoch for a, b in pairwise(edges)):
        raise ValueError(
            f"the learning rate changes {len(found)} times in {len(events.rate)} steps: an epoch before and an epoch "
            f"after each change ({events.steps_per_epoch} steps) are compared, so train by MultiStep, with milestones "
            "at least one epoch apart."
        )
    return found


def measure(events: Sequence[Events], *, resamples: int, seed: int) -> list[Measurement]:
    """`late_over_early` and `after_over_before`, by each sort, over the networks of several populations.

    Changes in the last quarter of the steps over those in the first, and changes in the epochs after the steps of the
    schedule over those in the epochs before: ratios of totals, with the bootstrap over networks. n = networks,
    seeds = populations. A total of zero below the line, also in a resample, leaves a number that is none (NaN), and so
    the question open. Raises ValueError for populations of one seed, or of different schedules.
    """
    if not events:
        raise ValueError("there are no events: record at least one population.")
    if len({one.seed for one in events}) < len(events):
        raise ValueError(
            "two populations have the same seed: they are the same networks, not independent ones."
        )
    first = events[0]
    if any(
        one.steps_per_epoch != first.steps_per_epoch or not torch.equal(one.rate, first.rate)
        for one in events
    ):
        raise ValueError(
            "the populations were trained by different schedules: their steps cannot be counted together."
        )
    epoch, quarter, found = first.steps_per_epoch, len(first.rate) // 4, drops(first)
    after = torch.cat([torch.arange(step, step + epoch) for step in found])
    windows = {
        "late_over_early": (slice(len(first.rate) - quarter, None), slice(quarter)),
        "after_over_before": (after, after - epoch),
    }
    names = [(name, sort) for name in windows for sort in SORTS]
    above, below = (
        np.stack(
            [
                np.concatenate([one.changes[sort][windows[name][side]].sum(0).numpy() for one in events])
                for name, sort in names
            ]
        )
        for side in (0, 1)
    )

    def ratio(networks: np.ndarray) -> np.ndarray:
        over, under = above[:, networks].sum(1), below[:, networks].sum(1)
        return np.where(under > 0, over / np.maximum(under, 1), np.nan)

    size = {"n": above.shape[1], "seeds": len(events)}
    numbers = zip(*bootstrap(ratio, size["n"], resamples=resamples, seed=seed), strict=True)
    return [
        Measurement(name, sort, *number, **size) for (name, sort), number in zip(names, numbers, strict=True)
    ]
