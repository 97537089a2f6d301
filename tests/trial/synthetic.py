"""Results as the experiments of the chapter hand them over, made up: no training, plain numbers."""

from __future__ import annotations

from itertools import product

import numpy as np

from lib.trial.cost import Times
from lib.trial.exact import Curves
from lib.trial.images import DEPTHS, SCHEDULES, SGD, UNIT, Cell, Followed, Search
from lib.trial.starts import STARTS, Sweep

EPOCHS, RUNS = 10, 5
AROUND = np.linspace(-1, 1, RUNS)  # the runs' deviations, mean 0


class Sizes:
    images, runs, validation, search_epochs, search_schedules, epochs = "none", RUNS, 100, 8, False, EPOCHS
    rates: tuple[float, ...] = (0.1, 0.316, 1.0, 3.16)
    ratios: tuple[float, ...] = (0.1, 1.0)


def curves(gap: float = 0.3, steps: int = 60) -> Curves:
    """SGD apart by ``gap`` at the last step, the other methods by 1e-15."""
    loss = 2.3 * np.exp(-np.arange(steps) / 25) + 0.1 * np.sin(np.arange(steps))
    late = np.linspace(0, 1, steps)
    methods = (SGD, "unit norm", "scaled metric", "normalise after the step")
    return Curves(
        {m: loss for m in methods}, {m: loss + late * (gap if m == SGD else 1e-15) for m in methods}
    )


def followed(method: str, depth: int, schedule: str, gain: float = 0.2) -> Followed:
    """Errors in per cent 5 + 4 exp(-t / 3) + 0.1 a run's deviation, unit norm's lower by ``gain``; losses fall by e in two epochs."""
    t = np.arange(1, EPOCHS + 1)[:, None]
    errors = 5 + 4 * np.exp(-t / 3) + 0.1 * AROUND - (gain if method == UNIT else 0)
    losses = np.exp(-t / 2 + 0.1 * AROUND)
    rates = np.array([1.0, 1.0, 1.0, 3.16, 3.16])
    factor = {"constant": 1 + 0.0 * t, "bold driver": 1.1**t, "exponential decay": 0.95**t}[schedule]
    fall = np.ones((EPOCHS, RUNS, depth))
    if method == SGD:
        fall = 1 / (1 + t[:, :, None] * np.exp(0.2 * AROUND)[:, None] * np.arange(1, depth + 1) / 4)
    effective = fall * factor[:, :, None] * rates[:, None]
    return Followed(errors / 100, losses, effective, rates, rates * Sizes.ratios[0], search(8.0).errors)


def trial(gain: float = 0.2) -> dict[Cell, Followed]:
    return {cell: followed(*cell, gain=gain) for cell in product((SGD, UNIT), DEPTHS, SCHEDULES)}


def search(least: float, sizes: type[Sizes] = Sizes) -> Search:
    """Errors of a bowl, lowest, ``least`` per cent, at the last rate but one with the first ratio; three runs choose that pair, two its upper neighbour."""
    r, q = np.arange(len(sizes.rates)), np.arange(len(sizes.ratios))
    bowl = least + 10 * np.abs(r - (len(r) - 2))[:, None] + 4 * q
    best, worst = sizes.rates[-2], sizes.rates[-1]
    filters = np.array([best, best, best, worst, worst])
    return Search(
        (bowl + AROUND[:, None, None]) / 100, filters, filters * np.take(sizes.ratios, [0, 0, 0, 1, 1])
    )


def sweep(shift: float = 1.0) -> Sweep:
    """V-shaped curves over ten rates half a decade apart: SGD from the unit start is lowest, 5 %, at rate 0.1."""
    rates = 10.0 ** np.arange(-2.5, 2.5, 0.5)
    places = {"unit": -1.0, "x 10": -1.0 + 2 * shift, "x 0.1": -1.0 - shift, "mixed": -1.0 + shift / 2}

    def errors(at: float, least: float = 5.0, slope: float = 8.0) -> np.ndarray:
        return least + slope * np.abs(np.log10(rates) - at) + 0.3 * AROUND[:, None]

    return Sweep(rates, {s: errors(places[s]) for s in STARTS}, errors(-0.5, 4.5, 3.0))


def times(network: str = "dense", ratio: float = 1.2) -> Times:
    base = 1e-3 * np.array([6.0, 6.5, 7.0, 6.2, 6.8])
    return Times(
        network, {SGD: base, UNIT: ratio * base}, {SGD: 0.1 * base, UNIT: 0.3 * base + 1e-5 * AROUND}
    )
