r"""Does the paper's objective bound the evidence? Asked where the evidence is a formula (X-F2).

One linear layer, W ~ N(0, I) with r rows (the bias among them) and c columns, targets with known noise:

$$
\begin{aligned}
y &= aW + \varepsilon / \sqrt\tau, \quad a = [x, 1] / \sqrt r, \\
\ln p(y) &= \sum_j \ln N(y_j;\, 0,\; a a^\top + I / \tau).
\end{aligned}
$$

A valid law q has $J = E_q \ln p(y \mid W) - \mathrm{KL}(q \,\|\, p) = \ln p(y) - \mathrm{KL}(q \,\|\, p(W \mid y))$, never above
the evidence. The best factorised one falls short by $\tfrac c2 (\sum_i \ln \Lambda_{ii} - \ln\det\Lambda)$ with $\Lambda = I +
\tau a^\top a$, and so does the best `RowColumn`, since $1 / \Lambda_{ii}$ is the same in every column. The paper's objective takes
the likelihood under the law *conditioned* on pseudo-data and charges the divergence of the unconditioned one. Each pseudo-datum
then fixes c weights as it likes, and nothing is paid for them (the divergence of that singular law is infinite): from m = r on,
M = 0, U = I, V = I and $\tilde B = \tilde A \hat W$ fix all weights at $\hat W$ at no cost, and $J \to \ln p(y \mid \hat W)$, which
at the maximum of the likelihood lies above the evidence whatever the data. *Excess*: J minus the log evidence, nats.

The mean over the outputs' noise is exact, from draws at plus and minus one deviation (the loss is quadratic); that over the
pseudo-data's noise is sampled in pairs of opposite sign, the reported one with fresh numbers.

`prices` asks the neighbouring question of the networks of `lib.growth.bridge`: what a valid matrix Gaussian pays against the
exact free energy, beside the mean-field family that contains it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lib import intervals, randomness
from lib.claims import Measurement
from lib.device import one_thread
from lib.free_energy import evidence
from lib.free_energy.regression import Regression
from lib.free_energy.targets import target
from lib.free_energy.truths import Truth
from lib.free_energy.variational import fit_matrix_gaussian
from lib.growth import data_sets
from lib.growth.curves import shape
from lib.matrix_gaussian.laws import Factorised, Law, RowColumn
from lib.matrix_gaussian.likelihoods import Gaussian
from lib.matrix_gaussian.network import Network, prepared
from lib.matrix_gaussian.pseudo_data import PseudoData
from lib.matrix_gaussian.training import Adam, Schedule
from lib.parallel import side_by_side
from lib.posteriors.descent import Stream, refuse_diverged

COUNTS = (1, 2, 5)  # pseudo-data of the ledger's cells; 5 = r fixes all weights
INPUTS, OUTPUTS, EXAMPLES = 4, 2, 30  # r = 5 with the bias
PRECISION = 4.0  # noise of half a unit beside outputs of variance one
RATE = 0.08  # of Adam, falling to nothing along half a cosine
CHUNK = 64  # pairs of draws at a time
PROPER: dict[str, Law] = {"diagonal matrix Gaussian": RowColumn(), "factorised": Factorised()}


@dataclass(frozen=True)
class Known(Gaussian):
    """A normal target whose precision is given: no Gamma is learned, and the inherited prior of one is not used."""

    prior_scale: str = "standardised"
    precision: float = PRECISION

    def precisions(self, outputs: int) -> int:
        return 0

    def slope(
        self, outputs: Float[Tensor, "R B k"], targets: Float[Tensor, "R B k"], mean: Tensor, mean_log: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Each run's mean loss and its gradient in the outputs."""
        known = torch.full_like(targets[:, 0], self.precision)
        return super().slope(outputs, targets, known, known.log())


@dataclass(frozen=True, eq=False)
class Linear:
    """B data sets of one linear layer: inputs as the layer reads them (B, n, r), targets (B, n, c), the noise's precision."""

    inputs: Float[Tensor, "B n r"]
    targets: Float[Tensor, "B n c"]
    precision: float

    def network(self, law: Law) -> Network:
        """The layer with its law under the prior MN(0, I, I)."""
        widths = (self.inputs.shape[-1] - 1, self.targets.shape[-1])
        return Network.of(law, widths, Known(precision=self.precision), hyper_priors=False)

    def log_likelihood(self, outputs: Float[Tensor, "R n c"]) -> Float[Tensor, " R"]:
        """ln p(y | outputs) of R = B times any number of outputs, those of a data set next to each other."""
        miss = outputs.unflatten(0, (len(self.targets), -1)) - self.targets[:, None]
        return self.constant - 0.5 * self.precision * miss.square().sum((-1, -2)).flatten()

    @property
    def constant(self) -> float:
        """The logarithm of the likelihood of outputs without error."""
        return 0.5 * self.targets[0].numel() * math.log(self.precision / (2 * math.pi))


@dataclass(frozen=True)
class Excess:
    """An objective minus the log evidence of each data set, and the standard error of its Monte Carlo part, both (B,)."""

    value: Float[Tensor, " B"]
    error: Float[Tensor, " B"]


def problems(sets: int, seed: int, n: int = EXAMPLES) -> Linear:
    """``sets`` data sets of the model itself: standard normal x, W and noise."""
    members = torch.arange(sets)

    def normal(purpose: str, *size: int) -> Tensor:
        return randomness.normal(seed, members, f"bound/{purpose}", 0, size, torch.float64)

    a = prepared(normal("inputs", n, INPUTS))
    noise = normal("noise", n, OUTPUTS) * PRECISION**-0.5
    return Linear(a, a @ normal("weights", INPUTS + 1, OUTPUTS) + noise, PRECISION)


def log_evidence(problem: Linear) -> Float[Tensor, " B"]:
    """ln p(y), the weights integrated out."""
    y, nothing = problem.targets, torch.zeros_like(problem.targets[:, 0, 0])  # no truth: F_n itself
    weights = torch.full_like(y[..., 0], problem.precision)
    return problem.constant - evidence.linear(Regression(problem.inputs, y, weights, nothing))


def least_gap(problem: Linear) -> Float[Tensor, " B"]:
    """KL of the best factorised law (and of the best RowColumn) from the posterior: ½ c (Σ ln Λ_ii - ln det Λ)."""
    a = problem.inputs
    precision = problem.precision * a.mT @ a + torch.eye(a.shape[-1]).to(a)
    diagonal = precision.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return 0.5 * problem.targets.shape[-1] * (diagonal - torch.logdet(precision))


def ceiling(problem: Linear) -> Float[Tensor, " B"]:
    """Largest log-likelihood minus log evidence: the excess of m >= r noiseless pseudo-data; no charged likelihood is above it."""
    best = torch.linalg.lstsq(problem.inputs, problem.targets).solution
    return problem.log_likelihood(problem.inputs @ best) - log_evidence(problem)


def excess(problem: Linear, law: Law, flat: Float[Tensor, "B D"], *, seed: int, draws: int) -> Excess:
    """The objective at parameters ``flat`` minus the log evidence, over ``draws`` fresh draws of the pseudo-data's noise."""
    network, members = problem.network(law), torch.arange(len(flat))
    charge = network.divergence(flat, network.prior(torch.ones_like(problem.targets[:, 0])))
    (p,), values, noise = network.parameters(flat), [], {}
    pairs = draws // 2 if isinstance(law, PseudoData) else 1
    for first in range(0, pairs, CHUNK):
        here = min(CHUNK, pairs - first)
        if isinstance(law, PseudoData):
            size = (here, *law.noise_shapes(1, *network.sizes(0))["pseudo"])
            half = randomness.normal(seed, members, "bound/fresh", first, size, flat.dtype)
            noise["pseudo"] = torch.cat([half, -half], 1).flatten(0, 1)
        many = {name: x.repeat_interleave(2 * here, 0) for name, x in p.items()}
        a, sides = problem.inputs.repeat_interleave(2 * here, 0), []
        for side in (1.0, -1.0):
            output = a.new_full((*a.shape[:2], problem.targets.shape[-1]), side)
            sides.append(problem.log_likelihood(law.forward(many, a, noise | {"output": output})[0]))
        values.append((0.5 * sum(sides)).view(len(flat), 2, -1).mean(1))
    found = torch.cat(values, 1)
    error = found.std(1) / math.sqrt(pairs) if pairs > 1 else torch.zeros_like(charge)
    return Excess(found.mean(1) - charge - log_evidence(problem), error)


@one_thread()
def optimised(problem: Linear, law: Law, *, seed: int, steps: int) -> Float[Tensor, "B D"]:
    """Parameters that maximise the objective on all examples; raises Diverged.

    Valid laws start where the layer does. Pseudo-data start `by_hand`: tiny random ones often stay nearly parallel, where
    their noise is costly, and a worse optimum of an objective that is too large would prove nothing.
    """
    network, (sets, n, _) = problem.network(law), problem.inputs.shape
    members, unit, hand = (
        torch.arange(sets),
        torch.ones_like(problem.targets[:, 0]),
        isinstance(law, PseudoData),
    )
    flat = by_hand(problem, law) if hand else network.start(members, unit, seed).contiguous()
    bound, terms = network.bind(flat), network.terms(torch.full((sets,), n), unit)
    adam = Adam(flat, Schedule(steps, n, rate=RATE))
    inputs, targets = (torch.cat([x, x], 1) for x in (problem.inputs, problem.targets))
    one = torch.ones_like(problem.targets)
    noise = {(0, "output"): torch.cat([one, -one], 1)}
    shapes = law.noise_shapes(2 * n, *network.sizes(0))
    pseudo = Stream(randomness.normal, seed, members, "bound/pseudo", flat.dtype)
    for step in range(steps):
        if hand:
            noise[0, "pseudo"] = pseudo(step, shapes["pseudo"])
        values, gradient = network.slope(bound, inputs, targets, noise, terms)
        factors = adam.factors(step)
        factors[0] *= 0.5 * (1 + math.cos(math.pi * step / steps))
        adam.step(gradient, factors)
        bound.clip()
    refuse_diverged([flat], members, values)
    return flat


def by_hand(problem: Linear, law: PseudoData) -> Float[Tensor, "B D"]:
    """Parameters whose pseudo-data fix the first m weight rows where they serve the likelihood best, at no cost.

    The pseudo-inputs are √r I, so that a pseudo-output is a weight row; those rows keep the prior's law, M = 0 and s = t = 1,
    for which nothing is paid. The other rows have the best independent Gaussians. From m = r on the weights are those of
    the largest likelihood.
    """
    network, (sets, _, r) = problem.network(law), problem.inputs.shape
    gram, cross = (problem.precision * problem.inputs.mT @ x for x in (problem.inputs, problem.targets))
    m, one = min(law.count, r), torch.eye(r).to(gram)
    free = one[m:].sum(0)  # 1 for the rows that no pseudo-datum fixes
    weights = torch.linalg.solve(gram + free.diag(), cross)
    flat = torch.zeros(sets, network.size).to(gram)
    (p,) = network.parameters(flat)
    p["mean"].copy_(free[:, None] * weights)
    p["log_row"].copy_(-0.5 * free * gram.diagonal(dim1=-2, dim2=-1).log1p())
    p["pseudo_inputs"][:, :m] = math.sqrt(r) * one[:m]
    p["pseudo_outputs"][:, :m] = weights[:, :m]
    p["log_noise"].fill_(law.bound)
    return flat


@dataclass(frozen=True)
class Result:
    """What was found on B data sets: excesses of valid laws, and of the paper's objective by the number of pseudo-data.

    ``highest``: the `ceiling`, which nothing exceeds; ``least``: minus `least_gap`, which no factorised law exceeds; both (B,).
    """

    proper: dict[str, Excess]
    paper: dict[int, Excess]
    highest: Float[Tensor, " B"]
    least: Float[Tensor, " B"]


def run(
    sets: int, seed: int, *, counts: Sequence[int] = COUNTS, steps: int = 300, draws: int = 640
) -> Result:
    """Optimise and judge every objective on the same data sets; 640 draws: standard errors below 0.1 nats a data set."""
    problem = problems(sets, seed)

    def judged(law: Law) -> Excess:
        return excess(problem, law, optimised(problem, law, seed=seed, steps=steps), seed=seed, draws=draws)

    proper = {name: judged(law) for name, law in PROPER.items()}
    return Result(proper, {m: judged(PseudoData(m)) for m in counts}, ceiling(problem), -least_gap(problem))


def measure(result: Result) -> list[Measurement]:
    """X-F2: mean excess over data sets, with Student's interval: of the paper's objective, and of the valid ones as a guard."""
    cells = [("excess", f"pseudo-data, m = {m}", found) for m, found in result.paper.items()]
    cells += [("excess_proper", name, found) for name, found in result.proper.items()]
    return [
        Measurement(name, cell, *intervals.student(found.value.numpy()), n=len(found.value), seeds=1)
        for name, cell, found in cells
    ]


def table(result: Result) -> list[tuple[str, str, str, str]]:
    """For a page: objective, its mean excess with interval, smallest and largest over data sets, largest standard error."""
    columns = {**result.proper, **{f"pseudo-data, m = {m}": found for m, found in result.paper.items()}}
    nothing = torch.zeros_like(result.highest)
    columns["best factorised law, exact"] = Excess(result.least, nothing)
    columns["largest likelihood, exact"] = Excess(result.highest, nothing)
    return [
        (name, said(x.value), f"{float(x.value.min()):.2f} to {float(x.value.max()):.2f}", f"{float(x.error.max()):.2f}")
        for name, x in columns.items()
    ]  # fmt: skip


def said(values: Float[Tensor, " B"]) -> str:
    """The mean over the data sets that have a number, with Student's interval."""
    return "{:.2f} ({:.2f} to {:.2f})".format(*intervals.student(values[values.isfinite()].numpy()))


@dataclass(frozen=True)
class Price:
    """A learner: gaps of two families above its exact free energy, nats, (B,); not a number where a fit was refused."""

    widths: tuple[int, ...]
    n: int
    mean_field: Float[Tensor, " B"]
    matrix: Float[Tensor, " B"]


def price(
    truth: Truth, widths: tuple[int, ...], n: int, stream: int, *, seed: int, device: torch.device, **of: int
) -> Price:
    """On the bridge's data sets, from its starts: what mean-field and diagonal matrix Gaussians pay."""
    sets, copies, particles = of["sets"], of["copies"], of["particles"]
    sampled = data_sets.learn(
        truth, widths, (n,), sets=sets, copies=copies, particles=particles, seed=seed, stream=stream,
        device=device, draws=copies * particles,
    )  # fmt: skip
    exact = sampled.free_energy.mean(0)[0]
    if widths == (1, 1, 1):
        exact = data_sets.small_free_energy(truth, (n,), sets, seed)[0]
    data = data_sets.problems(truth, (n,), sets, seed).to(device)
    fit = fit_matrix_gaussian(target(data, widths, collapsed=False), sampled.draws, seed=seed)
    both = (fit.record["mean_field"], fit)
    return Price(widths, n, *(one.free_energy.cpu() - exact for one in both))


def prices(
    truth: Truth, learners: Sequence[tuple[int, ...]], n: int, *, device: torch.device, **of: int
) -> list[Price]:
    """Every learner's price, side by side; ``of``: seed, and sets, copies and particles of the exact posterior."""
    return side_by_side(
        [
            lambda i=i, widths=widths: price(truth, widths, n, 100 + i, device=device, **of)
            for i, widths in enumerate(learners)
        ],
        device,
    )


def price_table(found: Sequence[Price]) -> list[tuple[str, int, str, str, str]]:
    """For a page: learner, n, both gaps, and matrix minus mean-field, with intervals over data sets."""
    return [
        (shape(one.widths), one.n, *map(said, (one.mean_field, one.matrix, one.matrix - one.mean_field)))
        for one in found
    ]
