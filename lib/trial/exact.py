"""What theory says exactly, tried in float64: one function, two sets of weights, and every method's loss curve from both.

BatchNorm's epsilon is 1e-100 here (torch refuses 0) unless said otherwise. Which weights are filters and how they may be
rescaled comes from ``find_symmetries``, never from a list (P4-C1, C2, C3, X1, X3, X4, and the identity of X2).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lib.data import load
from lib.params import Params, member
from lib.population import initial
from lib.randomness import permutation, uniform
from lib.rules import Measurement
from lib.symmetry import Symmetries, find_symmetries, rescale
from lib.unit_norm.constrain import constrainable
from lib.unit_norm.manifold import normalise
from lib.unit_norm.steps import STEPS

TINY = 1e-100
BATCH = 100


@dataclass(frozen=True, eq=False)
class Problem:
    """A network with BatchNorm, in float64 and training mode, and the examples that it learns."""

    name: str
    net: nn.Module
    inputs: Float[Tensor, "N ..."]
    targets: Int64[Tensor, " N"]

    @cached_property
    def symmetries(self) -> Symmetries:
        return find_symmetries(self.net, self.inputs[:2])

    @cached_property
    def filters(self) -> tuple[str, ...]:
        """The weights that may have unit rows at no cost."""
        return constrainable(self.symmetries)

    def start(self, seed: int) -> Params:
        """Torch's initial weights, every filter divided by its length."""
        params = member(initial(self.net, torch.tensor([seed]), seed), 0)
        return self.on_manifold(params)

    def on_manifold(self, params: Mapping[str, Tensor]) -> Params:
        """The same function (epsilon apart) with unit filters."""
        return {k: normalise(v) if k in self.filters else v.clone() for k, v in params.items()}

    def loss(self, params: Mapping[str, Tensor], rows: Int64[Tensor, " B"]) -> Float[Tensor, ""]:
        """Cross-entropy on a batch, by the batch's own statistics."""
        return F.cross_entropy(
            functional_call(self.net, dict(params), (self.inputs[rows],)), self.targets[rows]
        )

    def rescaled(
        self, params: Params, seed: int, decades: float, kinds: Sequence[str], draw: int = 0
    ) -> Params:
        """The same function, every unit of the freedoms of these kinds rescaled by a factor 10^U(-decades, decades)."""
        scales = []
        for i, freedom in enumerate(self.symmetries.scales):
            u = uniform(seed, torch.tensor([draw]), f"scales/{i}", 0, (freedom.size,), torch.float64)[0]
            scales.append((2 * u - 1) * decades * np.log(10) * (freedom.kind in kinds))
        return rescale(params, self.symmetries, scales)


def dense(eps: float = TINY, affine: bool = False, hidden: int = 32) -> Problem:
    """64-32-32-10 with BatchNorm on scikit-learn's digits."""
    data = load("digits", "train", flat=True)
    layers: list[nn.Module] = []
    for k in (64, hidden):
        layers += [nn.Linear(k, hidden, bias=False), _norm(nn.BatchNorm1d, hidden, eps, affine), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Linear(hidden, 10, bias=False)).double()
    return Problem("dense", net, data.inputs.double(), data.targets)


def convolutional(eps: float = TINY, affine: bool = False, channels: int = 8) -> Problem:
    """Two convolutions of 3 x 3 with BatchNorm, ReLU and pooling, on MNIST's first 2,000 training images."""
    data = load("mnist", "train")
    layers: list[nn.Module] = []
    for k, n in ((1, channels), (channels, 2 * channels)):
        layers += [
            nn.Conv2d(k, n, 3, bias=False),
            _norm(nn.BatchNorm2d, n, eps, affine),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(2 * channels * 25, 10, bias=False)).double()
    return Problem("convolutional", net, data.inputs[:2000].double(), data.targets[:2000])


def _norm(kind: type[nn.Module], units: int, eps: float, affine: bool) -> nn.Module:
    return kind(units, eps=eps, affine=affine, track_running_stats=False)


Update = Callable[[Params, Params], None]


def update(problem: Problem, method: str, rate: float, decay: float = 0.0) -> Update:
    """One step of ``method`` on the filters and of plain SGD on the rest, in place, given the gradients."""

    def step(params: Params, gradients: Params) -> None:
        for name, weight in params.items():
            if name in problem.filters:
                slope = gradients[name] + decay * weight if decay else gradients[name]
                STEPS[method](weight.flatten(1), slope.flatten(1), rate)
            else:
                weight.sub_(gradients[name], alpha=rate)

    return step


Watch = Callable[[Params, Params], None]


def curve(
    problem: Problem, start: Params, step: Update, *, seed: int, steps: int, watch: Watch | None = None
) -> Float[np.ndarray, " steps"]:
    """The loss of every batch before its step. ``watch(params, gradients)`` sees each step before it is taken."""
    params = {name: tensor.clone() for name, tensor in start.items()}
    losses = []
    for rows in batches(len(problem.inputs), seed, steps):
        leaves = {name: tensor.requires_grad_() for name, tensor in params.items()}
        loss = problem.loss(leaves, rows)
        gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        params = {name: tensor.detach() for name, tensor in leaves.items()}
        if watch:
            watch(params, gradients)
        step(params, gradients)
        losses.append(float(loss.detach()))
    return np.array(losses)


def batches(n: int, seed: int, steps: int) -> list[Int64[Tensor, " B"]]:
    """The first ``steps`` batches of epoch after epoch, each in an order of its own."""
    found: list[Tensor] = []
    while len(found) < steps:
        order = permutation(seed, torch.tensor([seed]), "order", len(found), n)[0]
        found += order[: n - n % BATCH].split(BATCH)
    return found[:steps]


def gap(first: Float[np.ndarray, " steps"], second: Float[np.ndarray, " steps"]) -> float:
    """Largest distance of two loss curves."""
    return float(np.abs(first - second).max())


def loss_changes(
    make: Callable[[float], Problem], seeds: Sequence[int], factors: int, eps: float
) -> Float[np.ndarray, "seeds factors"]:
    """P4-C1: relative change of the loss of one batch under random factors of the filters."""
    problem = make(eps)
    found = np.empty((len(seeds), factors))
    for i, seed in enumerate(seeds):
        (rows,), params = batches(len(problem.inputs), seed, 1), problem.start(seed)
        with torch.no_grad():
            before = float(problem.loss(params, rows))
            for j in range(factors):
                after = float(problem.loss(problem.rescaled(params, seed, 2.0, ("normalised",), j), rows))
                found[i, j] = abs(after - before) / before
    return found


@dataclass(frozen=True)
class Curves:
    """Loss curves of one seed from two starts that are one function: unit filters, and filters rescaled by 10^U(-2, 2)."""

    unit: dict[str, Float[np.ndarray, " steps"]]
    scaled: dict[str, Float[np.ndarray, " steps"]]


def curves(problem: Problem, seed: int, *, steps: int, rate: float) -> Curves:
    """Every method from both starts; the methods that keep unit filters begin by normalising theirs."""
    start = problem.start(seed)
    other = problem.rescaled(start, seed, 2.0, ("normalised",))
    found: tuple[dict, dict] = ({}, {})
    for method in ("SGD", "unit norm", "scaled metric", "normalise after the step"):
        keeps = method in ("unit norm", "normalise after the step")
        for place, params in zip(found, (start, other), strict=True):
            begin = problem.on_manifold(params) if keeps else params
            place[method] = curve(problem, begin, update(problem, method, rate), seed=seed, steps=steps)
    return Curves(*found)


def affine_gap(make: Callable[..., Problem], seed: int, *, steps: int, rate: float, affine: bool) -> float:
    """P4-X3: gap of the unit-norm curves from starts that are one function, all scale freedoms moved by 10^U(-½, ½)."""
    problem = make(affine=affine)
    start = problem.start(seed)
    other = problem.rescaled(start, seed, 0.5, ("normalised", "affine"))
    both = [
        curve(problem, problem.on_manifold(p), update(problem, "unit norm", rate), seed=seed, steps=steps)
        for p in (start, other)
    ]
    return gap(*both)


def decay_gap(
    problem: Problem, seed: int, method: str, *, steps: int, rate: float, decay: float = 5e-4
) -> float:
    """P4-X4: gap of the loss curves with and without weight decay on the filters."""
    start = problem.start(seed)
    both = [
        curve(problem, start, update(problem, method, rate, d), seed=seed, steps=steps) for d in (0.0, decay)
    ]
    return gap(*both)


def identity_error(problem: Problem, seed: int, *, steps: int, rate: float) -> float:
    """P4-X2: largest relative error of ‖w‖² + η² ‖g‖² as the next ‖w‖² of plain SGD, over steps and filters."""
    worst, told = 0.0, {}

    def watch(params: Params, gradients: Params) -> None:
        nonlocal worst
        for name in problem.filters:
            now = params[name].flatten(1).square().sum(1)
            if name in told:
                worst = max(worst, float(((now - told[name]) / now).abs().max()))
            told[name] = now + rate**2 * gradients[name].flatten(1).square().sum(1)

    curve(problem, problem.start(seed), update(problem, "SGD", rate), seed=seed, steps=steps + 1, watch=watch)
    return worst


@dataclass(frozen=True, eq=False)
class Found:
    """What one seed says on one network: curves from both starts, and the gaps and errors of P4-X2, X3 and X4."""

    curves: Curves
    affine: float
    plain: float
    decay_unit: float
    decay_sgd: float
    identity: float


RATE, FAST = 0.1, 1.0  # of every curve; and of P4-X4's whole training


def look(name: str, seed: int, *, steps: int, decay_steps: int) -> Found:
    """Everything about one network that needs training, for one seed."""
    make = NETWORKS[name]
    problem = make()
    short = {"steps": steps, "rate": RATE}
    return Found(
        curves(problem, seed, **short),
        affine_gap(make, seed, affine=True, **short),
        affine_gap(make, seed, affine=False, **short),
        max(decay_gap(problem, seed, "unit norm", steps=steps, rate=rate) for rate in (RATE, FAST)),
        decay_gap(problem, seed, "SGD", steps=decay_steps, rate=FAST),
        identity_error(problem, seed, **short),
    )


NETWORKS: dict[str, Callable[..., Problem]] = {"dense": dense, "convolutional": convolutional}


# ------------------------------------------------------------------------------------------------------- measurements


def worst(name: str, cell: str, values: Sequence[float], n: int) -> Measurement:
    """Largest over the seeds, smallest to largest."""
    return Measurement(name, cell, max(values), min(values), max(values), n=n, seeds=len(values))


def least(name: str, cell: str, values: Sequence[float], n: int) -> Measurement:
    """Smallest over the seeds, smallest to largest."""
    return Measurement(name, cell, min(values), min(values), max(values), n=n, seeds=len(values))


def measure_change(
    cell: str, exact: Float[np.ndarray, "s f"], epsilon: Float[np.ndarray, "s f"]
) -> list[Measurement]:
    """P4-C1: the largest change over the factors, of each seed."""
    n = exact.shape[1]
    return [
        worst("loss_change", cell, exact.max(1).tolist(), n),
        worst("loss_change_epsilon", cell, epsilon.max(1).tolist(), n),
    ]


def measure_looks(
    looks: Mapping[str, Sequence[Found]], steps: int, decay_steps: int
) -> dict[str, list[Measurement]]:
    """P4-C2, C3, X1, X3, X4 and X2's identity, from the seeds of every network; cells name a network that is not the dense one."""
    measured: dict[str, list[Measurement]] = defaultdict(list)
    for name, found in looks.items():
        where = "" if name == "dense" else f", {name}"
        for claim, some in measure_curves([each.curves for each in found], where).items():
            measured[claim] += some
        affine, plain = [each.affine for each in found], [each.plain for each in found]
        unit, sgd = [each.decay_unit for each in found], [each.decay_sgd for each in found]
        measured["P4-X2"] += measure_identity(found, steps, where)
        measured["P4-X3"] += measure_affine(affine, plain, steps, where)
        measured["P4-X4"] += measure_decay(unit, sgd, steps, decay_steps, where)
    return measured


def measure_identity(found: Sequence[Found], steps: int, where: str = "") -> list[Measurement]:
    """P4-X2's identity."""
    return [worst("identity_error", "SGD" + where, [each.identity for each in found], steps)]


def measure_curves(found: Sequence[Curves], where: str = "") -> dict[str, list[Measurement]]:
    """P4-C2, C3 and X1; ``where`` is added to the names of the cells, for another network than the dense one."""
    steps = len(found[0].unit["SGD"])

    def between(method: str) -> list[float]:
        return [gap(each.unit[method], each.scaled[method]) for each in found]

    def to_unit_norm(method: str) -> list[float]:
        return [gap(each.unit["unit norm"], each.scaled[method]) for each in found]

    return {
        "P4-C2": [least("sgd_gap", "SGD" + where, between("SGD"), steps)],
        "P4-C3": [
            worst("invariant_gap", m + where, between(m), steps) for m in ("unit norm", "scaled metric")
        ],
        "P4-X1": [
            worst("method_gap", m + where, to_unit_norm(m), steps)
            for m in ("scaled metric", "normalise after the step")
        ],
    }


def measure_affine(
    affine: Sequence[float], plain: Sequence[float], steps: int, where: str = ""
) -> list[Measurement]:
    """P4-X3."""
    return [
        least("affine_gap", "affine" + where, affine, steps),
        worst("plain_gap", "plain" + where, plain, steps),
    ]


def measure_decay(
    unit: Sequence[float], sgd: Sequence[float], steps: int, sgd_steps: int, where: str = ""
) -> list[Measurement]:
    """P4-X4."""
    return [
        worst("decay_gap_unit", "unit norm" + where, unit, steps),
        least("decay_gap_sgd", "SGD" + where, sgd, sgd_steps),
    ]
