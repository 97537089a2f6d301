"""Variational inference begun at four places: afresh, at one network, at the mean of raw networks, at the mean of aligned ones.

The posterior is a matrix Gaussian with diagonal covariances in each layer, its prior N(0, 1) in the units of ``matrix_gaussian`` (a layer
reads [x, 1] / √r). Each group of networks gives one run a start; runs of a group see the same batches and noise. Where the mean comes from
networks, the standard deviations begin at the aligned group's own, so that only the mean differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lib import metrics
from lib.intervals import student
from lib.matrix_gaussian.estimate import fitted
from lib.matrix_gaussian.laws import RowColumn
from lib.matrix_gaussian.likelihoods import Categorical
from lib.matrix_gaussian.network import Network
from lib.matrix_gaussian.prediction import sampled
from lib.matrix_gaussian.training import Examples, Fit, Schedule, fit
from lib.one_population.problem import ALIGNED, RAW, Problem, in_groups
from lib.params import Params, select
from lib.rules import Measurement

AFRESH, ONE, OF_RAW, OF_ALIGNED = STARTS = ("afresh", "one network", "mean of raw", "mean of aligned")


@dataclass(frozen=True, eq=False)
class Begun:
    """Of G groups and each start: the bound (nats an example, to be small) after each look, and the test loss at the end."""

    looks: tuple[int, ...]
    bound: dict[str, Float[np.ndarray, "looks G"]]
    loss: dict[str, Float[np.ndarray, " G"]]


def begin(
    problem: Problem,
    seen: dict[str, Params],
    groups: int,
    looks: Sequence[int],
    draws: int,
    seed: int,
    batch: int = 50,
    rate: float = 0.003,
) -> Begun:
    """Train one run a group and start, and look at the bound on the way."""
    learn, test = problem.learn, problem.test
    widths = (learn.inputs.shape[1], problem.width, 10)
    network = Network.of(RowColumn(), widths, Categorical(), hyper_priors=False)
    device = learn.inputs.device
    members, unit = torch.arange(groups, device=device), torch.ones(groups, 1, device=device)
    raw, aligned = in_groups(seen[RAW], groups), in_groups(seen[ALIGNED], groups)
    starts = {
        AFRESH: network.start(members, unit, seed),
        ONE: _at(network, [_mean(select(g, slice(0, 1))) for g in aligned], aligned),
        OF_RAW: _at(network, [_mean(g) for g in raw], aligned),
        OF_ALIGNED: _at(network, [_mean(g) for g in aligned], aligned),
    }
    counts = torch.full((groups,), len(learn), device=device)
    examples = Examples(learn.inputs[None], learn.targets[None], counts, unit)
    schedule = Schedule(looks[-1], batch, rate, average=0.99, looks=tuple(looks))
    bounds, ends = {}, {}
    for name, start in starts.items():
        trained = fit(network, examples, schedule, seed=seed, members=members, start=start)
        fits = [_still(trained, start), *(trained.at(look) for look in looks)]
        bounds[name] = np.stack([_bound(problem, each, draws, seed) for each in fits])
        outputs = sampled(trained, test.inputs[None], draws, seed=seed, first=draws)
        probabilities = outputs.double().softmax(-1).mean(1)
        ends[name] = metrics.nll(probabilities, test.targets).cpu().numpy()
    return Begun((0, *looks), bounds, ends)


def _bound(problem: Problem, trained: Fit, draws: int, seed: int) -> Float[np.ndarray, " G"]:
    """Minus the evidence bound, nats an example: the expected loss on the training set, and the divergence over n."""
    learn = problem.learn
    outputs = sampled(trained, learn.inputs[None], draws, seed=seed)
    logs = outputs.double().log_softmax(-1)
    label = learn.targets.expand(*logs.shape[:2], -1)[..., None]
    expected = -logs.gather(-1, label)[..., 0].mean((1, 2))
    prior = trained.network.prior(trained.unit)
    return (expected + trained.network.divergence(trained.flat, prior) / problem.examples).cpu().numpy()


def _still(trained: Fit, start: Tensor) -> Fit:
    return Fit(trained.network, start, {}, trained.loss, trained.members, trained.unit)


def _layers(params: Params) -> list[Float[Tensor, "P r c"]]:
    """The matrices [W, b]ᵀ in the units of ``matrix_gaussian``."""
    found = []
    for name in (name for name in params if name.endswith(".weight")):
        w = torch.cat([params[name], params[name.replace(".weight", ".bias")][..., None]], dim=2).mT
        found.append(w * w.shape[1] ** 0.5)
    return found


def _mean(params: Params) -> list[Float[Tensor, "r c"]]:
    return [w.mean(0) for w in _layers(params)]


def _at(network: Network, means: list[list[Tensor]], spreads: list[Params]) -> Float[Tensor, "G D"]:
    """Flat parameters: these means, and the standard deviations of the groups' own diagonal matrix Gaussians."""
    found = torch.zeros(len(means), network.size, dtype=means[0][0].dtype, device=means[0][0].device)
    for run, (mean, spread) in enumerate(zip(means, spreads, strict=True)):
        for i, (m, w) in enumerate(zip(mean, _layers(spread), strict=True)):
            law = fitted(w, diagonal=True)
            parts = {"mean": m, "log_row": law.rows.log(), "log_column": law.columns.log()}
            for name, value in parts.items():
                found[run, network.places[i, name][0]] = value.flatten().to(found.dtype)
    return found


# ------------------------------------------------------------------------------------------------------- measurements


def measure_starts(cell: str, found: Begun, n: int) -> list[Measurement]:
    """X-C8: the bound at the end, another start minus the aligned mean, nats an example; above zero the aligned start is better."""
    aligned = found.bound[OF_ALIGNED][-1]
    return [
        Measurement(
            "bound_gain",
            f"{cell}, {name}",
            *student(found.bound[name][-1] - aligned),
            n=n,
            seeds=len(aligned),
        )
        for name in (AFRESH, ONE, OF_RAW)
    ]
