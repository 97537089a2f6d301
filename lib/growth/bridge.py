"""What variational free energies pay for the symmetries that they cannot see, against exact ones on the same data (X-F1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lib import intervals
from lib.claims import Measurement
from lib.free_energy import variational
from lib.free_energy.targets import target
from lib.free_energy.truths import Truth
from lib.free_energy.variational import Fit
from lib.growth.curves import shape
from lib.growth.data_sets import Evidence, learn, problems, small_free_energy
from lib.parallel import side_by_side

FAMILIES: dict[str, Callable[..., Fit]] = {
    "mean-field": variational.fit_mean_field,
    "full Gaussian": variational.fit_full_gaussian,
    "Laplace": lambda target, starts, *, seed: variational.fit_laplace(target, starts),
}


@dataclass(frozen=True)
class Bridge:
    """One learner: the exact free energies of its data sets, and each family's gap above them.

    Attributes:
        widths, sizes.
        exact: F_n - n S_n, (sizes, B).
        gaps: by family, (sizes, B); not a number where a fit was refused.
        refused: fits refused, by family.
    """

    widths: tuple[int, ...]
    sizes: tuple[int, ...]
    exact: Float[Tensor, "sizes B"]
    gaps: dict[str, Float[Tensor, "sizes B"]]
    refused: dict[str, int]


def build(
    truth: Truth,
    widths: tuple[int, ...],
    sizes: Sequence[int],
    *,
    sets: int,
    copies: int,
    particles: int,
    seed: int,
    stream: int,
    device: torch.device,
) -> Bridge:
    """Sample the posteriors, then fit each family from starts inside them."""
    sampled: Evidence = learn(
        truth, widths, sizes, sets=sets, copies=copies, particles=particles, seed=seed, stream=stream,
        device=device, draws=copies * particles,
    )  # fmt: skip
    data = problems(truth, sizes, sets, seed).to(device)
    whole = target(data, widths, collapsed=False)
    exact = sampled.free_energy.mean(0)
    if widths == (1, 1, 1):
        exact = small_free_energy(truth, sizes, sets, seed)
    gaps, refused = {}, {}
    for name, fit in FAMILIES.items():
        found = fit(whole, sampled.draws, seed=seed)
        gaps[name] = found.free_energy.cpu().view(len(sizes), sets) - exact
        refused[name] = int(found.free_energy.isnan().sum())
    return Bridge(widths, tuple(sizes), exact, gaps, refused)


def build_all(
    truth: Truth, learners: Sequence[tuple[int, ...]], sizes: Sequence[int], device: torch.device, **of
) -> list[Bridge]:
    """Every learner's bridge, side by side, in order of the learners."""
    return side_by_side(
        [
            lambda i=i, widths=widths: build(truth, widths, sizes, stream=100 + i, device=device, **of)
            for i, widths in enumerate(learners)
        ],
        device,
    )


def measure(small: Bridge, wide: Bridge) -> list[Measurement]:
    """X-F1: growth of each family's gap from the truth-sized to the widest learner, at the largest n, data sets paired."""
    found = []
    for name in FAMILIES:
        growth = (wide.gaps[name][-1] - small.gaps[name][-1]).numpy()
        sound = growth[np.isfinite(growth)]
        interval = intervals.student(sound) if len(sound) > 1 else (np.nan, np.nan, np.nan)
        found.append(Measurement("gap_growth", name, *interval, n=len(sound), seeds=1))
    return found


def table(bridges: Sequence[Bridge]) -> list[tuple]:
    """For a table: learner, n, exact free energy, and each family's gap, with intervals over data sets."""
    rows = []
    for bridge in bridges:
        for i, n in enumerate(bridge.sizes):
            columns = [bridge.exact[i], *(bridge.gaps[name][i] for name in FAMILIES)]
            cells = [c[c.isfinite()].numpy() for c in columns]
            rows.append(
                (
                    shape(bridge.widths),
                    n,
                    *("{:.2f} ({:.2f} to {:.2f})".format(*intervals.student(c)) for c in cells),
                )
            )
    return rows


def growth_with_n(bridge: Bridge) -> dict[str, tuple[float, float, float]]:
    """Growth in log n between the smallest and the largest n, with intervals: of the exact free energy, and of each gap.

    Gaps are differences on the same data set, so that the noise of the data does not blur their growth.
    """
    span = float(np.log(bridge.sizes[-1] / bridge.sizes[0]))
    growth = {
        name: ((v[-1] - v[0]) / span).numpy() for name, v in {"exact": bridge.exact, **bridge.gaps}.items()
    }
    return {name: intervals.student(values[np.isfinite(values)]) for name, values in growth.items()}


def gap_series(bridges: Sequence[Bridge]) -> dict[str, tuple[np.ndarray, ...]]:
    """For a figure: each family's gap at the largest n against the number of hidden units, learners of one hidden layer."""
    shallow = sorted((b for b in bridges if len(b.widths) == 3), key=lambda b: b.widths[1])
    series = {}
    for name in FAMILIES:
        gaps = [b.gaps[name][-1] for b in shallow]
        rows = [intervals.student(gap[gap.isfinite()].numpy()) for gap in gaps]
        mean, low, high = map(np.array, zip(*rows, strict=True))
        series[name] = (np.array([float(b.widths[1]) for b in shallow]), mean, low, high)
    return series
