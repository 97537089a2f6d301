"""One Gaussian for a whole population: what it predicts in each view, beside one run's SWAG and Laplace and the ensemble itself.

Every group of networks gives one number a method: the test loss (mean negative log probability, nats) of the averaged predictions of
equally many draws. Gaussian: sample mean and sample covariance of the group. Matrix Gaussian: both covariances of each layer
(weights with the bias as their last input), of largest likelihood.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float

from lib import gaussian_fit, metrics, randomness
from lib.intervals import student
from lib.matrix_gaussian.estimate import fitted
from lib.one_population.problem import ALIGNED, RAW, VIEWS, Problem, in_groups
from lib.params import Params, population_size, select
from lib.population import predict
from lib.posteriors import laplace, swag
from lib.rules import Measurement

SINGLE, ENSEMBLE, SWAG, LAPLACE = "one network", "ensemble", "SWAG", "Laplace"
FEW = 2  # runs of SWAG and Laplace in a group
Losses = Float[np.ndarray, " groups"]


def gaussian_name(view: str) -> str:
    """One Gaussian over all weights, fitted in a view."""
    return f"Gaussian, {view}"


def matrix_name(view: str) -> str:
    """One matrix Gaussian a layer, fitted in a view."""
    return f"matrix Gaussian, {view}"


def losses(
    problem: Problem, seen: Mapping[str, Params], groups: int, draws: int, seed: int
) -> dict[str, Losses]:
    """The test loss of the population's own methods, group by group: one network, ensemble, and a Gaussian and a matrix Gaussian a view."""
    found = {
        SINGLE: [_loss(problem, own, each=True) for own in in_groups(seen[RAW], groups)],
        ENSEMBLE: [_loss(problem, own) for own in in_groups(seen[RAW], groups)],
    }
    for view in VIEWS:
        own = in_groups(seen[view], groups)
        found[gaussian_name(view)] = [
            _loss(problem, gaussian_fit.draw(gaussian_fit.fit(g, 0), draws, seed=seed, first=k * draws))
            for k, g in enumerate(own)
        ]
        found[matrix_name(view)] = [
            _loss(problem, matrix_draws(g, draws, seed, first=k * draws)) for k, g in enumerate(own)
        ]
    return {name: np.array(values) for name, values in found.items()}


def matrix_draws(params: Params, draws: int, seed: int, first: int = 0) -> Params:
    """Networks drawn from the matrix Gaussians of largest likelihood of a perceptron's layers; where the networks are too few for
    both covariances, diagonal ones."""
    ids = torch.arange(first, first + draws, device=next(iter(params.values())).device)
    found = {}
    for name in (name for name in params if name.endswith(".weight")):
        bias = name.replace(".weight", ".bias")
        w = torch.cat([params[name], params[bias][..., None]], dim=2).mT  # (P, inputs + 1, units)
        r, c = w.shape[1:]
        law = fitted(w, diagonal=max(r, c) > (len(w) - 1) * min(r, c))
        noise = randomness.normal(seed, ids, f"matrix draw/{name}", 0, law.noise_shape, torch.float64)
        drawn = law.sample(noise).to(w.dtype).mT
        found[name], found[bias] = drawn[..., :-1].contiguous(), drawn[..., -1].contiguous()
    return {name: found[name] for name in params}


def one_run(problem: Problem, params: Params, groups: int, draws: int, seed: int) -> dict[str, Losses]:
    """The test loss of SWAG and Laplace around single networks: the mean over a few of each group."""
    own = in_groups(params, groups)
    starts = {name: torch.cat([g[name][:FEW] for g in own]) for name in params}
    size = population_size(own[0])
    members = torch.tensor([k * size + i for k in range(groups) for i in range(FEW)])
    learn = problem.learn
    found = {}
    for name, method in ((SWAG, swag), (LAPLACE, laplace)):
        fit = method.fit(
            problem.net,
            learn.inputs,
            learn.targets,
            problem.recipe,
            members=members,
            seed=seed,
            device=learn.inputs.device,
            start=starts,
        )
        drawn = method.draw(fit, draws, seed=seed)
        each = [
            _loss(problem, select(drawn.params, slice(r * draws, (r + 1) * draws)))
            for r in range(len(members))
        ]
        found[name] = np.array(each).reshape(groups, FEW).mean(1)
    return found


def _loss(problem: Problem, params: Params, each: bool = False) -> float:
    """Of the networks' averaged predictions, or the mean of their own losses."""
    probabilities = predict(problem.net, params, problem.test.inputs).softmax(-1).double()
    if not each:
        probabilities = probabilities.mean(0)
    return float(metrics.nll(probabilities, problem.test.targets).mean())


# ------------------------------------------------------------------------------------------------------- measurements


def share_lost(found: Mapping[str, Losses], name: str) -> Losses:
    """What a method loses of the ensemble's gain over one network: 0 as good as the ensemble, 1 no better than one network."""
    return (found[name] - found[ENSEMBLE]) / (found[SINGLE] - found[ENSEMBLE])


def measure_gaussian(cell: str, found: Mapping[str, Losses], n: int) -> list[Measurement]:
    """X-C3: the aligned Gaussian's share lost."""
    return [_measured("share_lost", cell, share_lost(found, gaussian_name(ALIGNED)), n)]


def measure_one_run(cell: str, found: Mapping[str, Losses], n: int) -> list[Measurement]:
    """X-C4: SWAG and Laplace around single runs, minus the aligned Gaussian."""
    aligned = found[gaussian_name(ALIGNED)]
    return [
        _measured("one_run_gain", f"{cell}, {other}", found[other] - aligned, n) for other in (SWAG, LAPLACE)
    ]


def measure_matrix(cell: str, found: Mapping[str, Losses], n: int) -> list[Measurement]:
    """X-C7: matrix Gaussians, raw minus aligned, and sorted minus aligned."""
    aligned = found[matrix_name(ALIGNED)]
    return [
        _measured("matrix_gain", f"{cell}, {view}", found[matrix_name(view)] - aligned, n)
        for view in VIEWS
        if view != ALIGNED
    ]


def table(found: Mapping[str, Losses]) -> dict[str, tuple[float, float, float]]:
    """Each method's mean loss with Student's interval over groups."""
    return {name: student(values) for name, values in found.items()}


def _measured(name: str, cell: str, values: Losses, n: int) -> Measurement:
    return Measurement(name, cell, *student(values), n=n, seeds=len(values))
