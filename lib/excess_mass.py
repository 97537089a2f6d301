"""How far trained networks stay above the smallest mass of their scaling orbit, and what decides it (claims P1-C5, C5b).

The excess mass is 100 (m / m* - 1) percent, with m the sum of squared weights and m* its minimum over all rescalings
that leave the function unchanged (Laurent et al. 2024, Definition 3.3 and Figure 2; biases left out, as in the authors'
code). For a unit of one hidden layer with squared incoming and outgoing norms in_i and out_i, m* = 2 Σ √(in_i out_i):
the excess measures how unequal the two sides are. Gradient flow keeps out_i - in_i (bias² counted in in_i) as it was,
and decay shrinks it by exp(-2 wd t) at time t = lr · steps, so that flow keeps what initialisation left and decay removes it, up to the biases; the noise of
SGD, which grows with lr / batch, drives each unit towards a balance of its own (Ziyin et al., arXiv 2308.06671).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor, nn

from lib.device import one_thread
from lib.intervals import bootstrap
from lib.params import Params
from lib.population import Recipe, evaluate, walk
from lib.rules import Measurement
from lib.symmetry import Symmetries, find_symmetries, mass, min_mass

NOTICEABLE = 0.1  # percent: the ledger's `excess_share` counts the networks above it


@dataclass(frozen=True, eq=False)
class Masses:
    """Mass and minimum mass of P networks; ``dead`` counts each one's units without a path from input to output."""

    mass: Float64[Tensor, " P"]
    minimum: Float64[Tensor, " P"]
    dead: Int64[Tensor, " P"]

    @property
    def excess(self) -> Float64[Tensor, " P"]:
        """100 (m / m* - 1), in percent."""
        return 100 * (self.mass / self.minimum - 1)


def masses(params: Mapping[str, Tensor], symmetries: Symmetries, biases: bool = False) -> Masses:
    """Mass now and at the minimum of each member of a population (P, ...); NaN for members that are not finite.

    ``biases``: whether the mass counts them, as weight decay does and the paper's code does not. Raises UnattainedInfimum
    where a norm makes the problem degenerate (see lib.degenerate_mass).
    """
    smallest = min_mass(params, symmetries, biases=biases)
    dead = torch.cat(smallest.dead, dim=1).sum(1)
    return Masses(mass(params, symmetries, biases), smallest.mass, dead)


def excess(
    params: Mapping[str, Tensor], symmetries: Symmetries, biases: bool = False
) -> Float64[Tensor, " P"]:
    """Excess mass of each member of a population, in percent; NaN for members that are not finite."""
    return masses(params, symmetries, biases).excess


def measure(found: Mapping[str, Float[Tensor, " _"]], *, resamples: int, seed: int) -> list[Measurement]:
    """`excess_median` and `excess_share` of P1-C5, from each recipe's excess masses in percent (cell -> (P,)).

    The median's interval is a bootstrap over networks. The share's is Clopper and Pearson's: where all networks exceed
    the threshold a bootstrap would return an interval of no width, whatever their number.

    Raises:
        ValueError: a network without a finite excess, which must be named and counted by whoever leaves it out.
    """
    from scipy.stats import binomtest

    measured = []
    for cell, values in found.items():
        sample = values.cpu().numpy()
        lost = int((~np.isfinite(sample)).sum())
        if lost:
            raise ValueError(
                f"{lost} of the {len(sample)} networks of '{cell}' have no finite excess mass: leave the diverged ones out "
                "(population.where(population.finite)) and report how many there were."
            )
        (value,), (low,), (high,) = bootstrap(
            lambda rows, sample=sample: np.median(sample[rows], keepdims=True),
            len(sample),
            resamples=resamples,
            seed=seed,
        )
        size = {"n": len(sample), "seeds": len(sample)}
        measured.append(Measurement("excess_median", cell, value, low, high, **size))
        many = binomtest(int((sample > NOTICEABLE).sum()), len(sample))
        interval = many.proportion_ci()
        measured.append(
            Measurement("excess_share", cell, many.statistic, interval.low, interval.high, **size)
        )
    return measured


@dataclass(frozen=True)
class Setting:
    """Plain SGD at a constant rate, for a number of steps."""

    lr: float
    batch: int
    weight_decay: float
    steps: int

    @property
    def noise(self) -> float:
        """lr / batch, the scale of the noise of SGD."""
        return self.lr / self.batch

    @property
    def decay(self) -> float:
        """2 lr wd steps: by exp(-decay) an imbalance shrinks under gradient flow."""
        return 2 * self.lr * self.weight_decay * self.steps

    def __str__(self) -> str:
        return (
            f"lr {self.lr:g}, batch {self.batch}, weight decay {self.weight_decay:.3g}, {self.steps:,} steps"
        )


def factorial(
    lrs: Sequence[float], batches: Sequence[int], decays: Sequence[float], steps: Sequence[int]
) -> tuple[Setting, ...]:
    """Every combination of rate, batch, decay and steps, the weight decay being what gives 2 lr wd steps = decay.

    So chosen, log decay is uncorrelated with log (lr / batch), and with each of lr, batch and steps.
    """
    return tuple(
        Setting(lr, batch, decay / (2 * lr * step), step)
        for lr, batch, decay, step in product(lrs, batches, decays, steps)
    )


# From the weak decay of the usual recipes (2 x 0.1 x 2e-4 x 1,000 = 0.04) upwards, by tens, to where a factor e^-4 is left.
DECAYS = (0.04, 0.4, 4.0)
# Rates and batches of the two recipes of P1-C5, crossed; two lengths, the longer the largest that a minute affords.
QUICK = factorial((0.1, 0.5), (8, 32), DECAYS, (500, 1500))
FULL = factorial((0.1, 0.25, 0.5), (8, 32, 128), DECAYS, (1000, 4000))
FULL_OPTUMNIST = factorial((0.04, 0.2), (16, 64), DECAYS, (4000,))


def without_noise(settings: Sequence[Setting], examples: int) -> tuple[Setting, Setting]:
    """The noisiest setting of a sweep, with the least decay and fewest steps, and the same on full batches."""
    noisy = max(settings, key=lambda s: (s.noise, -s.decay, -s.steps))
    return noisy, Setting(noisy.lr, examples, noisy.weight_decay, noisy.steps)


@dataclass(frozen=True, eq=False)
class Sweep:
    """Excess mass in percent, and accuracy on (the first of) the training examples, of K networks at each setting."""

    settings: tuple[Setting, ...]
    excess: Float64[Tensor, "S K"]
    accuracy: Float[Tensor, "S K"]

    def at(self, settings: Sequence[Setting]) -> Sweep:
        """The part of the sweep at these settings."""
        rows = torch.tensor([self.settings.index(setting) for setting in settings])
        return Sweep(tuple(settings), self.excess[rows], self.accuracy[rows])

    @property
    def median(self) -> Float64[np.ndarray, " S"]:
        """Median excess at each setting.

        Raises:
            ValueError: a network that diverged, with its setting.
        """
        lost = (~torch.isfinite(self.excess)).sum(1)
        if lost.any():
            worst = int(lost.argmax())
            raise ValueError(
                f"{int(lost[worst])} of the {self.excess.shape[1]} networks at {self.settings[worst]} diverged: lower that "
                "rate, or leave the setting out and say so."
            )
        return self.excess.quantile(0.5, dim=1).numpy()


def train_settings(
    net: nn.Module,
    inputs: Shaped[Tensor, "N ..."],
    targets: Shaped[Tensor, "N ..."],
    settings: Sequence[Setting],
    *,
    networks: int,
    seed: int,
) -> Params:
    """Networks trained at every setting, (S K, ...), K after K; network k of setting s is member s K + k.

    Settings of one batch and length are trained as one population whose members have rates and decays of their own.
    """
    device = inputs.device
    rates = torch.tensor([s.lr for s in settings], dtype=torch.float64, device=device)
    shrinks = 1 - rates * torch.tensor([s.weight_decay for s in settings], dtype=rates.dtype, device=device)

    def update(weights: list[Tensor], gradients: list[Tensor], ids: Tensor, step: int, rate: float) -> None:
        of = (ids // networks).clamp(max=len(settings) - 1)  # slots beyond the members train for nobody
        for weight, gradient in zip(weights, gradients, strict=True):
            shape = (-1, *[1] * (weight.ndim - 1))
            weight.mul_(shrinks[of].to(weight.dtype).view(shape))
            weight.addcmul_(gradient, rates[of].to(weight.dtype).view(shape), value=-1)

    def trained(group: tuple[int, int]) -> tuple[Tensor, Params]:
        batch, steps = group
        mine = [i for i, s in enumerate(settings) if (s.batch, s.steps) == group]
        members = torch.cat([torch.arange(i * networks, (i + 1) * networks) for i in mine])
        recipe = Recipe(lr=1.0, batch_size=batch, epochs=math.ceil(steps / -(-len(inputs) // batch)))
        for moment in walk(
            net, inputs, targets, recipe, members=members, seed=seed, device=device, update=update
        ):
            if moment.step == steps - 1:
                break
        return members, moment.params

    groups = sorted({(s.batch, s.steps) for s in settings}, key=math.prod, reverse=True)  # the longest first
    workers = torch.get_num_threads() if device.type == "cpu" else 1
    with one_thread(), ThreadPoolExecutor(workers) as pool:
        parts = list(pool.map(trained, groups))
    order = torch.cat([members for members, _ in parts]).argsort().to(device)
    return {name: torch.cat([params[name] for _, params in parts])[order] for name in parts[0][1]}


def sweep(
    net: nn.Module,
    inputs: Shaped[Tensor, "N ..."],
    targets: Shaped[Tensor, "N ..."],
    settings: Sequence[Setting],
    *,
    networks: int,
    seed: int,
) -> Sweep:
    """Train ``networks`` networks at each setting, on the inputs' device, and find their excess mass."""
    params = train_settings(net, inputs, targets, settings, networks=networks, seed=seed)
    found = excess(params, find_symmetries(net, inputs[:2].cpu())).cpu()
    correct = evaluate(net, params, inputs[:1000], targets[:1000])["accuracy"].cpu()
    return Sweep(tuple(settings), found.view(-1, networks), correct.view(-1, networks))


@dataclass(frozen=True, eq=False)
class Regression:
    """Log median excess on logarithms of settings: elasticities with 95 % intervals, in the order of ``names``.

    ``correlation`` of the regressors; ``explained`` is the share of the variance (within networks' kinds) that the power
    law accounts for; ``settings`` how many were used.
    """

    names: tuple[str, ...]
    value: Float64[np.ndarray, " k"]
    low: Float64[np.ndarray, " k"]
    high: Float64[np.ndarray, " k"]
    correlation: Float64[np.ndarray, "k k"]
    explained: float
    settings: int


def regress(sweeps: Sequence[Sweep], names: Sequence[str] = ("noise", "decay")) -> Regression:
    """The power law, by least squares: log median excess = Σ elasticity · log setting + a constant for each sweep.

    The residuals hold both what networks differ by and what the power law misses, setting by setting, and not evenly; so
    the intervals are Student's with MacKinnon and White's covariance HC3 (1985). Resampling networks alone would miss the
    second part, and percentile intervals of resampled settings are too short at a dozen of them; the tests show HC3's
    coverage on planted power laws with either error.

    Args:
        sweeps: one a kind of network; settings without decay or without noise have no logarithm and must stay out.
        names: attributes of Setting.

    Raises:
        ValueError: a setting at zero, a diverged network, settings too few, or regressors that cannot be told apart.
    """
    from scipy.stats import t

    settings = [setting for swept in sweeps for setting in swept.settings]
    regressors = np.array([[getattr(setting, name) for name in names] for setting in settings], dtype=float)
    for setting, row in zip(settings, regressors, strict=True):
        if not (row > 0).all():
            raise ValueError(
                f"{setting}: {names[int(row.argmin())]} is zero and has no logarithm; leave it out."
            )
    kind = np.repeat(np.arange(len(sweeps)), [len(swept.settings) for swept in sweeps])
    own = (kind[:, None] == np.arange(len(sweeps))).astype(float)  # a constant for each kind of network

    def within(columns: np.ndarray) -> np.ndarray:
        return columns - own @ (own.T @ columns / own.sum(0)[:, None])

    x = within(np.log(regressors))
    y = within(np.log(np.concatenate([swept.median for swept in sweeps]))[:, None])[:, 0]
    free = len(x) - x.shape[1] - len(sweeps)
    if free < 1 or np.linalg.matrix_rank(x) < x.shape[1]:
        raise ValueError(
            f"{len(x)} settings do not tell the elasticities in {', '.join(names)} apart: vary each of them by itself."
        )
    inverse = np.linalg.pinv(x)
    value = inverse @ y
    residual = y - x @ value
    leverage = (x * inverse.T).sum(1) + (own / own.sum(0)).sum(1)
    spread = np.sqrt((inverse**2) @ (residual / (1 - leverage)) ** 2)
    half = t.ppf(0.975, free) * spread
    return Regression(
        tuple(names),
        value,
        value - half,
        value + half,
        np.atleast_2d(np.corrcoef(x.T)),
        float(1 - (residual**2).sum() / (y**2).sum()),
        len(x),
    )


def measure_sweep(
    sweeps: Sequence[Sweep], noisy: Sweep, full_batch: Sweep, *, resamples: int, seed: int
) -> tuple[list[Measurement], Regression]:
    """`noise_elasticity`, `decay_elasticity` and `full_batch_ratio` of P1-C5b, and the regression behind the first two.

    ``noisy`` and ``full_batch`` hold one setting each, of equal rate, decay and steps (see ``without_noise``); the ratio
    of their medians has a bootstrap interval over networks.
    """
    fit = regress(sweeps)
    networks = min(swept.excess.shape[1] for swept in sweeps)
    found = [
        Measurement(f"{name}_elasticity", "sweep", value, low, high, n=fit.settings, seeds=networks)
        for name, value, low, high in zip(fit.names, fit.value, fit.low, fit.high, strict=True)
    ]
    for part in (noisy, full_batch):
        _ = part.median  # refuses what diverged
    above, below = (part.excess[0].numpy() for part in (noisy, full_batch))
    k = min(len(above), len(below))
    (value,), (low,), (high,) = bootstrap(
        lambda rows: np.median(below[rows], keepdims=True) / np.median(above[rows]),
        k,
        resamples=resamples,
        seed=seed,
    )
    cell = f"lr {noisy.settings[0].lr:g}, batch {noisy.settings[0].batch}"
    found.append(Measurement("full_batch_ratio", cell, value, low, high, n=k, seeds=k))
    return found, fit
