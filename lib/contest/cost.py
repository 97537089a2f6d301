"""What a posterior costs: parameters counted, and the time of a training step against a deterministic layer's (P3-C10)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from lib import intervals
from lib.claims import Measurement
from lib.contest.methods import DIAGONAL, FACTORISED, VMG
from lib.device import one_thread
from lib.matrix_gaussian.laws import Factorised, Law, Point, RowColumn
from lib.matrix_gaussian.layer import MatrixGaussianLinear, divergence
from lib.matrix_gaussian.pseudo_data import PseudoData

PSEUDO = 50
LAYERS = {"784-150": (784, 150), "150-150": (150, 150), "750-750": (750, 750)}
NETWORKS = {"3x150": [150] * 3, "2x400": [400] * 2, "3x750": [750] * 3}
DETERMINISTIC = "deterministic"


def laws(pseudo: int = PSEUDO) -> dict[str, Law]:
    """The posteriors whose cost is compared; the authors' classifier has its noise of rank one."""
    return {
        DETERMINISTIC: Point(),
        FACTORISED: Factorised(),
        DIAGONAL: RowColumn(),
        VMG: PseudoData(pseudo, 0.01, per_entry=True),
    }


def parameters(law: Law, inputs: int, outputs: int) -> int:
    """Numbers that a layer learns, bias included."""
    return sum(math.prod(shape) for shape in law.shapes(inputs + 1, outputs).values())


def of_network(law: Law, hidden: Sequence[int], inputs: int = 784, outputs: int = 10) -> int:
    """Numbers that a perceptron of such layers learns."""
    widths = (inputs, *hidden, outputs)
    return sum(parameters(law, a, b) for a, b in pairwise(widths))


def break_even(inputs: int, outputs: int) -> float:
    """The number of pseudo-data from which a layer has more parameters than a factorised one, noise of rank one included.

    rc = (r + c)(M + 2) + M, with r the inputs and the bias.
    """
    r, c = inputs + 1, outputs
    return (r * c - 2 * (r + c)) / (r + c + 1)


def parameter_table() -> list[tuple[str, ...]]:
    """For a page: numbers learned by every posterior, the ratio to the factorised one, and the break-even number of pseudo-data."""
    of, rows = laws(), []
    for inputs, outputs in ((784, 150), (150, 150), (150, 10), (750, 750), (6, 50)):
        counts = [parameters(law, inputs, outputs) for law in of.values()]
        rows.append((f"{inputs}-{outputs}", counts, f"{break_even(inputs, outputs):.0f}"))
    for name, hidden in NETWORKS.items():
        rows.append((f"784-{name}-10", [of_network(law, hidden) for law in of.values()], "–"))
    return [
        (name, *(f"{n:,}" for n in counts), f"{counts[3] / counts[1]:.2f}", even)
        for name, counts, even in rows
    ]


@dataclass(frozen=True)
class Times:
    """Seconds of training steps of one layer, by method, ``repeats`` medians each, taken in turns."""

    layer: str
    seconds: Mapping[str, np.ndarray]

    def ratio(self, method: str, other: str = DETERMINISTIC) -> np.ndarray:
        """Of the repeats of one method over those of another."""
        return self.seconds[method] / self.seconds[other]


def step_times(
    layer: str, *, repeats: int, steps: int, seed: int, device: torch.device, batch: int = 100
) -> Times:
    """A step is forward, loss, divergence and backward, of one layer; methods take turns, so that what disturbs one disturbs all.

    On a CPU one thread: two wait for each other where the machine does something else besides.
    """
    inputs, outputs = LAYERS[layer]
    generator = torch.Generator(device="cpu").manual_seed(seed)
    x = torch.randn(batch, inputs, generator=generator).to(device)
    y = torch.randn(batch, outputs, generator=generator).to(device)
    runs: dict[str, Callable[[], None]] = {}
    for name, law in laws().items():
        module = (
            torch.nn.Linear(inputs, outputs)
            if name == DETERMINISTIC
            else MatrixGaussianLinear(inputs, outputs, law=law, seed=seed)
        )
        runs[name] = _step(module.to(device), x, y)
    found: dict[str, list[float]] = {name: [] for name in runs}
    with one_thread() if device.type == "cpu" else nullcontext():
        for repeat in range(repeats + 1):
            for name, run in runs.items():
                taken = [_seconds(run, device) for _ in range(steps)]
                if repeat:  # the first round warms up
                    found[name].append(float(np.median(taken)))
    return Times(layer, {name: np.array(values) for name, values in found.items()})


def measure(times: Sequence[Times]) -> list[Measurement]:
    """P3-C10: time of a step, matrix Gaussian over factorised; parameters of whole networks likewise."""
    found = []
    for each in times:
        ratio = each.ratio(VMG, FACTORISED)
        found.append(
            Measurement("time_ratio", each.layer, *intervals.student(ratio), n=len(ratio), seeds=len(ratio))
        )
    of = laws()
    for name, hidden in NETWORKS.items():
        ratio = of_network(of[VMG], hidden) / of_network(of[FACTORISED], hidden)
        found.append(Measurement("parameter_ratio", name, ratio, ratio, ratio, n=1, seeds=1))
    return found


def _step(module: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    def step() -> None:
        module.zero_grad()
        loss = (module(x) - y).square().mean()
        if not isinstance(module, torch.nn.Linear):
            loss = loss + divergence(module) / 50_000
        loss.backward()

    return step


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    begin = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin
