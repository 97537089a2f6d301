"""The methods that are compared, all trained in the same way: same network, start of the means, noise of the data, steps and average."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from lib import regression_metrics as metrics
from lib.contest.problems import Problem
from lib.matrix_gaussian.laws import Factorised, Law, Point, RowColumn
from lib.matrix_gaussian.likelihoods import Gaussian
from lib.matrix_gaussian.network import Network
from lib.matrix_gaussian.prediction import noise_precision, sampled
from lib.matrix_gaussian.pseudo_data import PseudoData
from lib.matrix_gaussian.training import Examples, Fit, Schedule, fit

VMG, FACTORISED, DIAGONAL = (
    "matrix Gaussian with pseudo-data",
    "factorised Gaussian",
    "diagonal matrix Gaussian",
)
COLD = "factorised Gaussian, cold"
DROPOUT, ENSEMBLE, POINT = "dropout", "deep ensemble", "one network"
POINTS = (DROPOUT, ENSEMBLE, POINT)
CHARGE = 0.1  # of the cold posterior's divergence
NETWORKS = 5  # of an ensemble
EARLY_DRAWS = 20  # of a prediction before the end, where only its mean counts
DROP = 0.05  # the chance that a hidden unit is off
# Where standard deviations start (their logarithm), and the factor of the learning rate: every variant is trained, and the best one
# counts. The matrix Gaussian has one, the authors'; so has the diagonal one, which is compared with the factorised one's first.
WIDE, NARROW = 0.0, -3.0
FASTER = 5.0
VARIANTS = {
    FACTORISED: ((WIDE, 1.0), (NARROW, 1.0), (WIDE, FASTER), (NARROW, FASTER)),
    COLD: ((NARROW, 1.0), (NARROW, FASTER)),
    DROPOUT: ((None, 1.0), (None, FASTER)),
    ENSEMBLE: ((None, 1.0), (None, FASTER)),
    POINT: ((None, 1.0), (None, FASTER)),
}


@dataclass(frozen=True)
class Plan:
    """What is trained: pseudo-data and their noise (the authors' yacht script), the schedule, and draws for predictions."""

    schedule: Schedule
    draws: int
    pseudo: int = 5
    noise: float = 0.005
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Scores:
    """Of R runs: what their predictions are worth on test rows, and the RMSE on the way.

    ``early``: {updates: RMSE} of the runs of the main size. Errors and densities are in the targets' own unit.
    """

    rmse: Float[Tensor, " R"]
    log_likelihood: Float[Tensor, " R"]
    student: Float[Tensor, " R"]
    calibration: Float[Tensor, " R"]
    early: dict[int, Float[Tensor, " main"]]

    def cpu(self) -> Scores:
        """The same off the device."""
        early = {k: v.cpu() for k, v in self.early.items()}
        return Scores(
            *(v.cpu() for v in (self.rmse, self.log_likelihood, self.student, self.calibration)), early
        )


def law(name: str, plan: Plan) -> Law:
    """The law of the weights that a method stands for."""
    return {
        VMG: PseudoData(plan.pseudo, plan.noise),
        FACTORISED: Factorised(),
        COLD: Factorised(NARROW),
        DIAGONAL: RowColumn(),
        DROPOUT: Point(DROP),
        ENSEMBLE: Point(),
        POINT: Point(),
    }[name]


def network(name: str, problem: Problem, plan: Plan) -> Network:
    """A method's network. Points are fitted by maximum likelihood, as they are in practice: under the prior that the variational
    methods have, their mode is nearly the network that is zero."""
    widths = (problem.inputs.shape[-1], problem.hidden, problem.targets.shape[-1])
    likelihood = Gaussian(prior_scale=problem.prior_scale)
    charge = 0.0 if name in POINTS else CHARGE if name == COLD else 1.0
    return Network.of(law(name, plan), widths, likelihood, hyper_priors=name not in POINTS, charge=charge)


def train(name: str, problem: Problem, plan: Plan) -> Fit:
    """Every run of a method, variant after variant; of ensembles every network, network after network in each variant.

    The first network of an ensemble is that of the method "one network".
    """
    variants, net = VARIANTS.get(name, ((None, 1.0),)), network(name, problem, plan)
    members, examples, unit = problem.members, problem.train, problem.train.unit
    if name == ENSEMBLE:
        members = torch.cat([members + (j << 32) for j in range(NETWORKS)])
        examples = repeated(examples, NETWORKS)
    starts, rates = [], []
    for log_sd, rate in variants:
        begins = net if log_sd is None else replace(net, laws=(Factorised(log_sd),) * len(net.laws))
        starts.append(begins.start(members.to(unit.device), examples.unit, plan.seed))
        rates.append(torch.full((len(members), 1), rate).to(unit))
    return fit(
        net,
        repeated(examples, len(variants)),
        plan.schedule,
        seed=plan.seed,
        members=members.repeat(len(variants)),
        start=torch.cat(starts),
        rates=torch.cat(rates) if len(variants) > 1 else None,
    )


def repeated(examples: Examples, times: int) -> Examples:
    """Every run several times, all runs once before any twice."""
    return Examples(
        *(
            x.repeat(times, *[1] * (x.ndim - 1))
            for x in (examples.inputs, examples.targets, examples.counts, examples.unit)
        )
    )


def predict(
    name: str, trained: Fit, problem: Problem, plan: Plan, inputs: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Sampled outputs (V, R, S, N, k) in the targets' unit, and shape and rate of the noise's precision (V, R, k), with V variants.

    An ensemble's networks are its samples, their noises averaged.
    """
    runs, networks = len(problem.shift), NETWORKS if name == ENSEMBLE else 1
    variants = len(trained.flat) // (runs * networks)
    draws = 1 if name in (ENSEMBLE, POINT) else plan.draws
    f = sampled(trained, inputs.repeat(variants * networks, 1, 1), draws, seed=plan.seed)
    f = (
        f.unflatten(0, (variants, networks, runs)).movedim(1, 3).flatten(2, 3)
    )  # (V, R, draws * networks, N, k)
    f = f * problem.train.unit[:, None, None] + problem.shift[:, None, None]
    shape, rate = (x.unflatten(0, (variants, networks, runs)).mean(1) for x in noise_precision(trained))
    return f, shape, rate


def first_networks(trained: Fit, runs: int) -> Fit:
    """Of ensembles, the first network of every run and variant: the method "one network", which need not be trained again."""
    each = torch.arange(len(trained.flat)).view(-1, NETWORKS, runs)[:, 0].flatten()
    return trained.select(each.to(trained.flat.device))


def at_main(trained: Fit, problem: Problem) -> tuple[Fit, Problem]:
    """The runs of the main size alone, of every variant and network."""
    copies = len(trained.flat) // len(problem.shift)
    runs = problem.runs(problem.main)
    each = torch.cat([runs + k * len(problem.shift) for k in range(copies)])
    return trained.select(each.to(trained.flat.device)), problem.of_size(problem.main)


def score(name: str, trained: Fit, problem: Problem, plan: Plan) -> list[Scores]:
    """The scores of each variant (one, but for the factorised Gaussian)."""
    f, shape, rate = predict(name, trained, problem, plan, problem.inputs)
    y = problem.targets.expand(len(f), *problem.targets.shape)
    (small, main), early = at_main(trained, problem), {}
    few = replace(plan, draws=min(plan.draws, EARLY_DRAWS))
    for look in trained.looks:
        each, _, _ = predict(name, small.at(look), main, few, main.inputs)
        early[look] = metrics.rmse(each, main.targets.expand(len(each), *main.targets.shape))
    columns = [
        metrics.rmse(f, y),
        metrics.log_likelihood(f, y, shape, rate),
        metrics.student_log_likelihood(f, y, shape, rate),
        metrics.calibration_error(metrics.pit(f, y, shape, rate)),
    ]
    return [
        Scores(*(c[v] for c in columns), {look: e[v] for look, e in early.items()}).cpu()
        for v in range(len(f))
    ]


def run(names: Sequence[str], problem: Problem, plan: Plan) -> dict[str, list[Scores]]:
    """Train and score several methods on one problem, one after the other."""
    return {name: score(name, train(name, problem, plan), problem, plan) for name in names}
