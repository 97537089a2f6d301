"""Are the neurons of a layer exchangeable? Which of them holds the largest weight, run by run (claim P1-C3).

Independent training with independent, identically distributed initial weights gives every neuron of a layer the same
marginal distribution (Laurent et al. 2024, corollary of Proposition 1), so the leading neuron is uniform over the layer.
The distance from uniform that n independent uniform draws have by chance is subtracted. Its expectation is exact: a
count is binomial, and the mean absolute deviation of a binomial count has De Moivre's closed form.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int, Int64
from torch import Tensor

from lib.claims import Measurement
from lib.params import Params
from lib.posteriors.draws import Draws

LEADERS = ("largest weight", "largest norm")
TITLES = {
    "imbalance_independent": "independent networks",
    "imbalance_chain": "one SGHMC chain",
    "imbalance_swag": "one SWAG run",
}  # of the measurements, for figures


def leading_unit(params: Mapping[str, Tensor], weight_name: str, by: str) -> Int64[Tensor, " P"]:
    """The unit of layer ``weight_name`` (P, units, ...) that leads in each network, the first of equals.

    ``by`` "largest weight": it has the largest incoming weight (an entry, with its sign; poster, section 7);
    "largest norm": its incoming weights have the largest L2 norm. Biases are left out. Raises ValueError where weights
    are not finite.
    """
    if by not in LEADERS:
        raise ValueError(f"there is no leader by {by!r}: choose one of {', '.join(map(repr, LEADERS))}.")
    weights = params[weight_name].flatten(2)
    broken = (~weights.isfinite()).flatten(1).any(1).nonzero().flatten()
    if len(broken):
        raise ValueError(
            f"network {int(broken[0])} has weights in {weight_name!r} that are not finite: leave diverged networks out."
        )
    measure = weights.amax(2) if by == "largest weight" else weights.norm(dim=2)
    return measure.argmax(1)


def tally(indices: Int[np.ndarray, "*runs draws"], units: int) -> Int[np.ndarray, "*runs units"]:
    """How often each unit leads among the draws of each run: the bars of the poster's histogram."""
    rows = indices.reshape(-1, indices.shape[-1])
    counts = np.stack([np.bincount(row, minlength=units) for row in rows])
    if counts.shape[1] > units:
        raise ValueError(f"unit {counts.shape[1] - 1} leads, but the layer has {units} units.")
    return counts.reshape(*indices.shape[:-1], units)


def by_chance(draws: int, units: int) -> float:
    """Expected total variation distance from uniform of ``draws`` independent uniform draws among ``units``.

    Half the sum over units of E|count / n - 1 / units|, where De Moivre (1730) gives for B ~ Bin(n, p) and
    k = floor(n p) + 1 that E|B - n p| = 2 k (1 - p) P(B = k).
    """
    if draws < 1 or units < 1:
        raise ValueError(
            f"{draws} draws among {units} units have no distance: there must be one of each at least."
        )
    if units == 1:
        return 0.0
    p = 1 / units
    k = draws // units + 1
    log_choose = math.lgamma(draws + 1) - math.lgamma(k + 1) - math.lgamma(draws - k + 1)
    log_mass = log_choose + k * math.log(p) + (draws - k) * math.log1p(-p) if k <= draws else -math.inf
    return units / 2 * 2 * k * (1 - p) * math.exp(log_mass) / draws


def imbalance(counts: Int[np.ndarray, "*runs units"]) -> Float[np.ndarray, "*runs"]:
    """Total variation distance from uniform of each run's counts, minus what chance alone would give.

    Zero on average for independent uniform draws; at most 1 - 1 / units - chance. It underestimates a distance that is
    small beside ``by_chance``: noise of that size hides it.
    """
    draws, units = counts.sum(-1, keepdims=True), counts.shape[-1]
    distance = np.abs(counts / draws - 1 / units).sum(-1) / 2
    sizes, which = np.unique(draws, return_inverse=True)
    chance = np.array([by_chance(int(size), units) for size in sizes])[which]
    return np.asarray(distance - chance.reshape(distance.shape))


def pooled(
    counts: Int[np.ndarray, " units"], *, resamples: int, seed: int, level: float = 0.95
) -> tuple[float, float, float]:
    """Value and interval of the imbalance of independent networks, which are what is resampled.

    A resampled distance is larger on average than the one it is drawn around, since resampling adds noise to every
    count. So the replicates are moved by their own bias, to lie around the value (the recentred bootstrap).
    """
    generator = np.random.Generator(np.random.Philox(key=seed))
    n = int(counts.sum())
    if n < 2:
        raise ValueError(f"there are {n} networks: an interval needs at least two.")
    drawn = imbalance(generator.multinomial(n, counts / n, size=resamples))
    return _around(float(imbalance(counts)), drawn, level)


def averaged(
    counts: Int[np.ndarray, "runs units"], *, resamples: int, seed: int, level: float = 0.95
) -> tuple[float, float, float]:
    """Value and interval of the imbalance within a run, averaged over runs, which are what is resampled.

    Autocorrelation inside a run does not narrow it. A bootstrap of few runs is too narrow: by sqrt(1 - 1 / runs), and by
    the normal instead of Student's quantile; it is widened by both (coverage with ten runs: 0.95 instead of 0.91).
    """
    from scipy.stats import norm, t

    runs = len(counts)
    if runs < 2:
        raise ValueError(f"there are {runs} runs: an interval needs at least two.")
    generator = np.random.Generator(np.random.Philox(key=seed))
    each = imbalance(counts)
    drawn = each[generator.integers(runs, size=(resamples, runs))].mean(1)
    wider = math.sqrt(runs / (runs - 1)) * t.ppf((1 + level) / 2, runs - 1) / norm.ppf((1 + level) / 2)
    return _around(float(each.mean()), drawn, level, wider)


def _around(value: float, drawn: np.ndarray, level: float, wider: float = 1.0) -> tuple[float, float, float]:
    low, high = np.quantile(wider * (drawn - drawn.mean()), [(1 - level) / 2, (1 + level) / 2])
    return value, min(value, value + float(low)), max(value, value + float(high))


def measure(
    independent: Params, chain: Draws, swag: Draws, weight_name: str, *, resamples: int, seed: int
) -> list[Measurement]:
    """`imbalance_independent`, `imbalance_chain` and `imbalance_swag`, each by largest weight and by largest norm.

    ``independent`` (P, ...): one network a run, all pooled. ``chain`` and ``swag``: R runs of S samples; the distance is
    taken within each run, and averaged. n = networks or samples in all, seeds = networks or runs.
    """
    found = []
    for leader in LEADERS:
        counts = leaders(independent, chain, swag, weight_name, leader)
        value = pooled(counts["independent"], resamples=resamples, seed=seed)
        size = int(counts["independent"].sum())
        found.append(Measurement("imbalance_independent", leader, *value, n=size, seeds=size))
        for name in ("chain", "swag"):
            value = averaged(counts[name], resamples=resamples, seed=seed)
            sizes = {"n": counts[name].sum(), "seeds": len(counts[name])}
            found.append(Measurement(f"imbalance_{name}", leader, *value, **sizes))
    return found


def leaders(
    independent: Params, chain: Draws, swag: Draws, weight_name: str, by: str
) -> dict[str, Int[np.ndarray, "... units"]]:
    """The counts behind `measure`: "independent" (units,), "chain" and "swag" (runs, units).

    For the poster's picture take ``counts["independent"]`` beside ``counts["chain"][:3].sum(0)``.
    """
    units = independent[weight_name].shape[1]

    def lead(params: Params, *shape: int) -> np.ndarray:
        return tally(leading_unit(params, weight_name, by).cpu().numpy().reshape(shape), units)

    return {
        "independent": lead(independent, -1),
        "chain": lead(chain.params, chain.runs, chain.draws),
        "swag": lead(swag.params, swag.runs, swag.draws),
    }
