"""Where a layer's correlations come from (P3-C7), and its pre-activations as a Gaussian process (P3-C12)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lib import intervals, randomness
from lib.claims import Measurement
from lib.matrix_gaussian.laws import Law, Parameters, RowColumn
from lib.matrix_gaussian.likelihoods import Gaussian
from lib.matrix_gaussian.network import Network, prepared
from lib.matrix_gaussian.pseudo_data import PseudoData
from lib.matrix_gaussian.training import Examples, Schedule, fit

ROWS, COLUMNS = 20, 10  # of the layer, the bias among the rows
COUNTS = (5, 10)  # pseudo-data
EXAMPLES = 200
SHORT = Schedule(500, 20, 0.01, 0.99)
SHOWN = 5  # functions in a picture
PROCESS_COLUMNS = 4  # of the layer whose pre-activations are looked at along a line


@dataclass(frozen=True, eq=False)
class Correlation:
    """P3-C7: its measurements, and one seed's correlation of rows by the number of pseudo-data, (r, r).

    ``blurred``: its root mean square, with Student's interval over seeds, where the pseudo-data's noise is drawn too, with every
    weight matrix afresh. ``untrained``: the root mean square before any training, without that noise, mean over seeds.
    """

    measurements: list[Measurement]
    panels: dict[str, Float[np.ndarray, "r r"]]
    blurred: dict[str, tuple[float, float, float]]
    untrained: dict[str, float]


@dataclass(frozen=True, eq=False)
class Process:
    """P3-C12: its measurements, and a few functions of the line drawn in both ways, (SHOWN, points)."""

    measurements: list[Measurement]
    x: Float[np.ndarray, " points"]
    joint: Float[np.ndarray, "drawn points"]
    independent: Float[np.ndarray, "drawn points"]


def linear_problem(seeds: int, seed: int, device: torch.device) -> Examples:
    """Linear regression with inputs that share a common part, and as many outputs as the layer has columns; one set a seed."""
    who = torch.arange(seeds)

    def normal(name: str, *shape: int) -> Tensor:
        return randomness.normal(seed, who, f"correlation/{name}", 0, shape).to(device)

    inputs = 0.7 * normal("own", EXAMPLES, ROWS - 1) + 0.7 * normal("common", EXAMPLES, 1)
    targets = inputs @ normal("truth", ROWS - 1, COLUMNS) / ROWS**0.5 + 0.3 * normal(
        "noise", EXAMPLES, COLUMNS
    )
    counts = torch.full((seeds,), EXAMPLES, device=device)
    return Examples(inputs, targets, counts, torch.ones(seeds, COLUMNS, device=device))


def measure_correlation(*, draws: int, seeds: int, seed: int, device: torch.device) -> Correlation:
    """Train one layer with and without pseudo-data, draw its weights, correlate its rows."""
    examples = linear_problem(seeds, seed, device)
    laws: dict[str, Law] = {"no pseudo-data": RowColumn()}
    laws |= {f"{count} pseudo-data": PseudoData(count) for count in COUNTS}
    layers, untrained = {}, {}
    for name, law in laws.items():
        network = Network.of(law, (ROWS - 1, COLUMNS), Gaussian(prior_scale="standardised"))
        if isinstance(law, PseudoData):
            begin = network.parameters(
                network.start(torch.arange(seeds, device=device), examples.unit, seed)
            )[0]
            untrained[name] = float(off_diagonal(correlation_of(law.row_covariance(begin))).mean())
        layers[name] = network.parameters(fit(network, examples, SHORT, seed=seed).flat)[0]

    def normal(name: str, run: int, *shape: int) -> Tensor:
        who = torch.tensor([run], device=device)
        return randomness.normal(seed, who, f"correlation/{name}", 0, shape)[0]

    each: dict[str, list[Tensor]] = {name: [] for name in laws}
    noisy: dict[str, list[float]] = {name: [] for name, law in laws.items() if isinstance(law, PseudoData)}
    few, panels = draws // 5, {}
    for run in range(seeds):
        weight = normal(
            "weight", run, draws, ROWS, COLUMNS
        )  # the same for all laws: drawing costs more than they do
        for name, law in laws.items():
            p = {key: value[run : run + 1] for key, value in layers[name].items()}
            each[name].append(row_correlation(drawn(law, p, weight)))
            if isinstance(law, PseudoData):
                pseudo = normal("pseudo", run, few, law.count, ROWS + COLUMNS)
                blurred = row_correlation(drawn(law, p, weight[:few], pseudo))
                noisy[name].append(float(off_diagonal(blurred)))

    found = []
    for name, law in laws.items():
        correlation = torch.stack(each[name])
        panels[name] = correlation[0].cpu().numpy()
        if isinstance(law, PseudoData):
            cell, ranks = str(law.count), rank(law, layers[name])
            spread = off_diagonal(correlation).numpy()
            error = max(abs(found_rank - (ROWS - law.count)) for found_rank in ranks)
            found.append(_over_seeds("correlation_with", cell, spread, draws))
            found.append(Measurement("rank_error", cell, error, error, error, n=seeds, seeds=seeds))
        else:
            largest = (correlation - torch.eye(ROWS, device=device)).abs().amax((1, 2)).cpu().numpy()
            found.append(_over_seeds("correlation_without", "", largest, draws))
    return Correlation(
        found, panels, {name: intervals.student(values) for name, values in noisy.items()}, untrained
    )


def correlation_of(covariance: Float[Tensor, "*R r r"]) -> Float[Tensor, "*R r r"]:
    """A covariance over the roots of its diagonal."""
    sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    return covariance / (sd[..., :, None] * sd[..., None, :])


def off_diagonal(correlation: Float[Tensor, "*R r r"]) -> Float[Tensor, "*R"]:
    """The root mean square of what is beside the diagonal of ones."""
    r = correlation.shape[-1]
    squares = correlation.cpu().double().square().sum((-1, -2)) - r
    return (squares / (r * (r - 1))).sqrt()


def drawn(
    law: Law,
    p: Parameters,
    weight: Float[Tensor, "draws r c"],
    pseudo: Float[Tensor, "draws m entries"] | None = None,
) -> Float[Tensor, "draws r c"]:
    """Weights of one run, given its pseudo-data without their noise (the law whose covariance is derived) or with ``pseudo``."""
    noise = {"weight": weight}
    if isinstance(law, PseudoData):
        still = weight.new_zeros(
            1, law.count, sum(weight.shape[1:])
        )  # one block: factorised once for all draws
        noise["pseudo"] = still if pseudo is None else pseudo
    return law.weights(p, noise)


def row_correlation(weights: Float[Tensor, "draws r c"]) -> Float[Tensor, "r r"]:
    """The correlation of rows over draws, column by column, and then the mean over columns, which share it."""
    centred = weights - weights.mean(0)
    scaled = centred / centred.square().mean(0).sqrt()
    return torch.einsum("sij,skj->ik", scaled, scaled) / (len(weights) * weights.shape[2])


def rank(law: PseudoData, p: Parameters) -> list[int]:
    """The rank of the row covariance given the pseudo-data: of it in units of s, where its eigenvalues are 0 or 1."""
    scale = torch.exp(-p["log_row"])
    unit = scale[..., :, None] * law.row_covariance(p) * scale[..., None, :]
    return (torch.linalg.eigvalsh(unit.double()) > 0.5).sum(-1).tolist()


# ---------------------------------------------------------------------------------------------------- the process


def line(points: int, seed: int, run: int) -> tuple[Tensor, Float[Tensor, "points r"], Parameters]:
    """Points of [-2, 2], their random ReLU features as a layer reads them, and a layer with random s and t."""
    who, x = torch.tensor([run]), torch.linspace(-2, 2, points, dtype=torch.float64)

    def normal(name: str, *shape: int) -> Tensor:
        return randomness.normal(seed, who, f"process/{name}", 0, shape, torch.float64)

    features = (x[:, None] * normal("slope", 1, ROWS - 1)[0] + normal("offset", 1, ROWS - 1)[0]).relu()
    p = {
        "mean": normal("mean", ROWS, PROCESS_COLUMNS),
        "log_row": 0.3 * normal("row", ROWS),
        "log_column": 0.3 * normal("column", PROCESS_COLUMNS),
    }
    return x, prepared(features), p


def measure_process(
    *, draws: int, points: int, seeds: int, seed: int, device: torch.device, at_once: int = 2_000
) -> Process:
    """Draw pre-activations along a line with one weight matrix for all inputs, and with noise of its own for every input."""
    law, member = RowColumn(), torch.arange(1)
    errors, joints, alones = [], [], []
    for run in range(seeds):
        x, a, p = line(points, seed, run)
        a, p = a.to(device), {name: value.to(device) for name, value in p.items()}
        t, mean = p["log_column"].exp(), a @ p["mean"][0]
        kernel = (a * torch.exp(2 * p["log_row"])) @ a.T
        covariances = [torch.zeros_like(kernel), torch.zeros_like(kernel)]
        for first in range(0, draws, at_once):
            size = min(at_once, draws - first)

            def normal(
                name: str, *shape: int, first: int = first, run: int = run, size: int = size
            ) -> Tensor:
                purpose = f"process/{name}/{run}"
                return randomness.normal(
                    seed, member.to(device), purpose, first, (size, *shape), torch.float64
                )[0]

            joint = a @ law.weights(p, {"weight": normal("weight", ROWS, PROCESS_COLUMNS)})
            alone, _ = law.forward(
                p, a.expand(size, -1, -1), {"output": normal("output", points, PROCESS_COLUMNS)}
            )
            for total, outputs in zip(covariances, (joint, alone), strict=True):
                scaled = (outputs - mean) / t
                total += torch.einsum("sij,skj->ik", scaled, scaled) / (draws * PROCESS_COLUMNS)
            if run == first == 0:  # the first draws: the last may be fewer than are shown
                shown = [outputs[:SHOWN, :, 0].cpu().numpy() for outputs in (joint, alone)]
                axis = x.numpy()
        errors.append(float((covariances[0] - kernel).norm() / kernel.norm()))
        joints.append(neighbours(covariances[0]))
        alones.append(abs(neighbours(covariances[1])))
    found = [
        _over_seeds(name, "", np.array(values), draws)
        for name, values in (
            ("covariance_error", errors),
            ("neighbours_joint", joints),
            ("neighbours_independent", alones),
        )
    ]
    return Process(found, axis, *shown)


def neighbours(covariance: Float[Tensor, "points points"]) -> float:
    """The mean correlation of neighbouring points."""
    sd = covariance.diagonal().sqrt()
    return float((covariance.diagonal(1) / (sd[1:] * sd[:-1])).mean())


def _over_seeds(name: str, cell: str, values: Float[np.ndarray, " seeds"], n: int) -> Measurement:
    return Measurement(name, cell, *intervals.student(values), n=n, seeds=len(values))
