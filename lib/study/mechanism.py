"""The sweep behind the excess mass: which settings are trained in each profile, and their curves (P1-C5b)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lib import excess_mass
from lib.claims import Measurement
from lib.excess_mass import Regression, Setting, Sweep
from lib.study.problem import Problem, digits


@dataclass(frozen=True)
class Mechanism:
    """The sweeps, one a kind of network, the regression over them, and what the ledger asks for."""

    sweeps: tuple[Sweep, ...]
    regression: Regression
    measurements: list[Measurement]


def kinds(problem: Problem) -> list[tuple[Problem, tuple[Setting, ...]]]:
    """What is swept: digits alone, or for MNIST a larger grid of the digits networks and one of OptuMNIST-v1."""
    if problem.name != "MNIST":
        return [(problem, excess_mass.QUICK)]
    small = digits(problem.train.inputs.device)
    return [(small, excess_mass.FULL), (problem, excess_mass.FULL_OPTUMNIST)]


def measure(problem: Problem, *, networks: int, resamples: int, seed: int) -> Mechanism:
    """Train the sweeps, and on the first kind of network the noisiest setting once more without noise."""

    def swept(p: Problem, settings: tuple[Setting, ...]) -> Sweep:
        return excess_mass.sweep(
            p.net, p.train.inputs, p.train.targets, settings, networks=networks, seed=seed
        )

    parts = kinds(problem)
    sweeps = tuple(swept(p, settings) for p, settings in parts)
    first, settings = parts[0]
    noisy, quiet = excess_mass.without_noise(settings, len(first.train))
    found, regression = excess_mass.measure_sweep(
        sweeps, sweeps[0].at((noisy,)), swept(first, (quiet,)), resamples=resamples, seed=seed
    )
    return Mechanism(sweeps, regression, found)


def curves(sweep: Sweep) -> dict[str, tuple[Float[np.ndarray, " x"], Float[np.ndarray, " x"]]]:
    """For a figure: the median excess against lr / batch, one curve a decay; geometric means over rates and lengths."""
    found = {}
    for decay in sorted({round(s.decay, 9) for s in sweep.settings}):
        mine = [i for i, s in enumerate(sweep.settings) if round(s.decay, 9) == decay]
        noise = np.array([sweep.settings[i].noise for i in mine])
        values = sorted(set(noise.tolist()))
        means = [float(np.exp(np.log(sweep.median[mine])[noise == x].mean())) for x in values]
        found[f"2 lr wd steps = {decay:g}"] = (np.array(values), np.array(means))
    return found
