"""The approximate posteriors of the study: each method tuned by one budget, fitted to many runs, sampled alike."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor

from lib import metrics
from lib.params import Params, population_size, select
from lib.population import predict
from lib.posteriors import dropout, laplace, mean_field, sghmc, swag
from lib.posteriors.draws import Draws
from lib.posteriors.tuning import Tuned, choose
from lib.study.problem import Problem
from lib.table import Table

METHODS: dict[str, ModuleType] = {
    "dropout": dropout,
    "mean-field VI": mean_field,
    "SWAG": swag,
    "Laplace": laplace,
    "SGHMC": sghmc,
}
POST_HOC = ("SWAG", "Laplace")  # begin at trained networks
QUARTER = 4  # of the epochs suffice to tell candidates apart
NETWORKS = 1 << 8  # predicted with at a time: their probabilities then stay near the processor


@dataclass(frozen=True)
class Approximation:
    """One method: its tuned options, S samples of each of its R runs, and the seconds that tuning and fitting took."""

    method: str
    tuned: Tuned
    draws: Draws
    record: dict
    seconds: float


def fit(
    problem: Problem,
    method: str,
    options: object,
    start: Params | None,
    members: Tensor,
    seed: int,
    share: int = 1,
) -> object:
    """Fit R = len(members) runs of a method; ``start`` holds trained networks (R, ...) for those that begin there.

    ``share``: one in so many of the recipe's epochs, for methods that take their length from it.
    """
    recipe = replace(problem.method_recipe, epochs=-(-problem.method_recipe.epochs // share))
    return METHODS[method].fit(
        problem.net,
        problem.train.inputs,
        problem.train.targets,
        recipe,
        options,
        members=members,
        seed=seed,
        device=problem.train.inputs.device,
        start=start if method in POST_HOC else None,
    )


def approximate(
    problem: Problem, method: str, trained: Params, *, samples: int, tuning_runs: int, seed: int
) -> Approximation:
    """Tune a method's options on a few runs, then fit and sample one run for each of the ``trained`` networks.

    The tuning runs are members of their own, which the final runs do not share; post-hoc methods begin them at the first
    of the trained networks, the others train for a quarter of the epochs. Every method has the same number of candidates,
    runs and samples.
    """
    began, runs = time.perf_counter(), population_size(trained)
    module, first = METHODS[method], select(trained, slice(tuning_runs))

    def score(options: object) -> float:
        fitted = fit(problem, method, options, first, torch.arange(runs, runs + tuning_runs), seed, QUARTER)
        draws = module.draw(fitted, samples, seed=seed)
        probabilities = predictive(problem, draws, problem.validation.inputs)
        return float(metrics.nll(probabilities, problem.validation.targets).mean())

    tuned = choose(module.CANDIDATES, score, runs=tuning_runs)
    fitted = fit(problem, method, tuned.option, trained, torch.arange(runs), seed)
    draws = module.draw(fitted, samples, seed=seed)
    return Approximation(method, tuned, draws, fitted.record, time.perf_counter() - began)


def predictive(problem: Problem, draws: Draws, inputs: Float[Tensor, "N ..."]) -> Float[Tensor, "R N K"]:
    """The averaged predictive of each approximation: class probabilities, mean over its S samples."""
    return torch.stack([p.mean(0) for p in each_run(problem, draws, inputs)])


def each_run(problem: Problem, draws: Draws, inputs: Float[Tensor, "N ..."]):
    """The class probabilities (S, N, K) of each approximation in turn."""
    at_once = max(1, NETWORKS // draws.draws)
    for run in range(0, draws.runs, at_once):
        rows = slice(run * draws.draws, (run + at_once) * draws.draws)
        outputs = predict(problem.net, select(draws.params, rows), inputs).softmax(-1)
        yield from outputs.split(draws.draws)


def tuning_table(found: Mapping[str, Approximation]) -> Table:
    """What was tuned: each method's candidates (where they differ), their validation NLL, the choice, and the seconds."""
    rows = []
    for method, approximation in found.items():
        tuned = approximation.tuned
        options = [asdict(candidate) for candidate in tuned.candidates]
        varied = [name for name in options[0] if len({str(o[name]) for o in options}) > 1]
        shown = ["/".join(_short(o[name]) for name in varied) for o in options]
        scores = ["failed" if math.isnan(score) else f"{score:.3f}" for score in tuned.scores]
        place = tuned.candidates.index(tuned.option)
        chosen = shown[place] + (" (an end)" if len(shown) > 1 and place in (0, len(shown) - 1) else "")
        rows.append((method, ", ".join(varied), ", ".join(shown), ", ".join(scores), chosen))
    return Table(
        ("Method", "Option", "Candidates", "Validation NLL", "Chosen"),
        rows,
        "One budget for every method: three candidates, the same runs and samples; Laplace by its evidence",
    )


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else "none" if value is None else str(value)
