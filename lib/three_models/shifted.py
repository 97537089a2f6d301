"""Networks trained where the data are shifted, the factory's case: noise, brightness, class balance (X-M1, ours)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float

from lib.connectivity import lines
from lib.data import Dataset
from lib.intervals import jackknife
from lib.matching import match
from lib.params import select
from lib.randomness import normal, uniform
from lib.rules import Measurement
from lib.symmetry import permute
from lib.three_models.problem import problem_of, recipe, trained

SHIFTS = ("noise", "brightness", "class balance")
MEMBERS = 400_000  # member numbers, away from those of other experiments
NOISE, BRIGHT, RARE = (
    0.3,
    0.4,
    0.2,
)  # standard deviation; what is added to each pixel; the share kept of classes 0 to 4


@dataclass(frozen=True, eq=False)
class Shifted:
    """Loss barriers on the pooled data between each network of the original data and each of the shifted, (n, n)."""

    plain: Float[np.ndarray, "n n"]
    aligned: Float[np.ndarray, "n n"]
    random: Float[np.ndarray, "n n"]


def shift(data: Dataset, kind: str, seed: int) -> Dataset:
    """The data as another camera or another line would give them; pixels stay in [0, 1]. Raises ValueError for another kind."""
    if kind not in SHIFTS:
        raise ValueError(f"there is no shift called {kind!r}: choose one of {', '.join(SHIFTS)}.")
    rows = torch.arange(len(data))
    x = data.inputs
    if kind == "noise":
        drawn = normal(seed, rows, "shift/noise", 0, tuple(x.shape[1:])).to(x.device)
        return replace(data, inputs=(x + NOISE * drawn).clamp(0, 1))
    if kind == "brightness":
        return replace(data, inputs=(x + BRIGHT).clamp(0, 1))
    drawn = uniform(seed, rows, "shift/classes", 0, ()).to(x.device)
    keep = (data.targets >= 5) | (drawn < RARE)
    return replace(data, inputs=x[keep], targets=data.targets[keep])


def join(
    setting: str, width: int, count: int, epochs: int, alphas: int, *, seed: int, device: torch.device
) -> dict[str, Shifted]:
    """``count`` networks of the original data and of each shift; every original is joined with every shifted one."""
    problem = problem_of(setting, width, device=device)
    first = trained(problem, recipe(epochs), range(MEMBERS, MEMBERS + count), seed)
    found = {}
    for k, kind in enumerate(SHIFTS):
        members = range(MEMBERS + (k + 1) * count, MEMBERS + (k + 2) * count)
        elsewhere = replace(problem, learn=shift(problem.learn, kind, seed))
        second = trained(elsewhere, recipe(epochs), members, seed)
        other = shift(problem.test, kind, seed + 1)
        inputs = torch.cat([problem.test.inputs, other.inputs])
        targets = torch.cat([problem.test.targets, other.targets])
        a, b = (grid.flatten() for grid in torch.meshgrid(*[torch.arange(count)] * 2, indexing="ij"))
        ends = select(second, b)
        perms = match(select(first, a), ends, problem.symmetries).perms
        generator = torch.Generator().manual_seed(seed + k)
        drawn = [torch.rand(perm.shape, generator=generator).argsort(1).to(perm.device) for perm in perms]
        values = []
        for moved in (None, perms, drawn):
            here = ends if moved is None else permute(ends, problem.symmetries, moved)
            both = {name: torch.cat([first[name], here[name]]) for name in first}
            pairs = torch.stack([a, count + torch.arange(len(b))], 1)
            line = lines(problem.net, both, pairs, inputs, targets, alphas)
            values.append(line.barrier("loss").double().cpu().numpy().reshape(count, count))
        found[kind] = Shifted(*values)
    return found


def ratios(found: Mapping[str, Shifted], what: str = "aligned") -> dict[str, tuple[float, float, float]]:
    """Mean loss barrier, aligned (or randomly permuted) over plain, with intervals over both sets of networks."""
    intervals = {}
    for kind, each in found.items():
        one = getattr(each, what)

        def ratio(groups: Sequence[np.ndarray], one=one, plain=each.plain) -> np.ndarray:
            here = np.ix_(*groups)
            return np.array([one[here].mean() / plain[here].mean()])

        intervals[kind] = tuple(float(x[0]) for x in jackknife(ratio, one.shape))
    return intervals


def measure_shifts(found: Mapping[str, Shifted]) -> list[Measurement]:
    """X-M1: one cell a shift."""
    return [
        Measurement("aligned_ratio", kind, *interval, n=len(found[kind].plain), seeds=len(found[kind].plain))
        for kind, interval in ratios(found).items()
    ]
