"""What a step costs (P4-C6): whole steps and the optimiser alone, plain SGD and unit norm, on plain torch modules.

Methods take turns, so that what disturbs one disturbs all. On a CPU torch's own number of threads, as a user has it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib import intervals
from lib.rules import Measurement
from lib.unit_norm.constrain import unit_norm_parameters
from lib.unit_norm.optimisers import UnitNormSGD

SGD, UNIT = "SGD", "unit norm"


def dense() -> tuple[nn.Module, Float[Tensor, "B k"]]:
    """784-512-512-512-10 with BatchNorm, and a batch of 100."""
    layers: list[nn.Module] = []
    for k in (784, 512, 512):
        layers += [nn.Linear(k, 512, bias=False), nn.BatchNorm1d(512, affine=False), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(512, 10)), torch.rand(100, 784)


def convolutional() -> tuple[nn.Module, Float[Tensor, "B c h w"]]:
    """Four convolutions of 64 channels with BatchNorm on images of 28 x 28, and a batch of 100."""
    layers: list[nn.Module] = []
    for i, k in enumerate((1, 64, 64, 64)):
        layers += [nn.Conv2d(k, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64, affine=False), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if i % 2 else []
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 49, 10)), torch.rand(100, 1, 28, 28)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {"dense": dense, "convolutional": convolutional}


@dataclass(frozen=True, eq=False)
class Times:
    """Seconds, ``repeats`` medians each: of whole steps and of ``optimiser.step()`` alone, by method."""

    network: str
    whole: dict[str, Float[np.ndarray, " repeats"]]
    alone: dict[str, Float[np.ndarray, " repeats"]]

    def ratio(self, alone: bool = False) -> Float[np.ndarray, " repeats"]:
        """Unit norm over SGD, within a repeat."""
        times = self.alone if alone else self.whole
        return times[UNIT] / times[SGD]


def step_times(network: str, *, repeats: int, steps: int, device: torch.device) -> Times:
    """Both methods in turns; a first round warms up."""
    runs = {}
    for method in (SGD, UNIT):
        net, x = NETWORKS[network]()
        net, x = net.to(device), x.to(device)
        y = torch.arange(len(x), device=device) % 10
        if method == SGD:
            optimiser: torch.optim.Optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
        else:
            optimiser = UnitNormSGD(unit_norm_parameters(net, x[:2]), lr=1e-3)
        runs[method] = _step(net, x, y, optimiser, device)
    whole: dict[str, list[float]] = {method: [] for method in runs}
    alone: dict[str, list[float]] = {method: [] for method in runs}
    for repeat in range(repeats + 1):
        taken = {method: [] for method in runs}
        for _ in range(steps):
            for method, run in runs.items():
                taken[method].append(run())
        if repeat:
            for method, pairs in taken.items():
                for place, values in zip((whole, alone), zip(*pairs, strict=True), strict=True):
                    place[method].append(float(np.median(values)))
    return Times(network, *({m: np.array(v) for m, v in place.items()} for place in (whole, alone)))


def _step(
    net: nn.Module, x: Tensor, y: Tensor, optimiser: torch.optim.Optimizer, device: torch.device
) -> Callable[[], tuple[float, float]]:
    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def step() -> tuple[float, float]:
        begin = clock()
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        middle = clock()
        optimiser.step()
        end = clock()
        return end - begin, end - middle

    return step


def measure(found: Sequence[Times]) -> list[Measurement]:
    """P4-C6: whole step, unit norm over SGD."""
    return [intervals.measured("step_ratio", t.network, t.ratio()) for t in found]


def rows(found: Sequence[Times]) -> list[tuple[str, ...]]:
    """For a page: network, milliseconds of a whole step and of the optimiser with both methods, and their ratios."""
    table = []
    for t in found:
        for name, times, alone in (("whole step", t.whole, False), ("optimiser alone", t.alone, True)):
            ratio = "{:.2f} ({:.2f} to {:.2f})".format(*intervals.student(t.ratio(alone)))
            table.append((t.network, name, *(f"{1e3 * np.median(times[m]):.2f}" for m in (SGD, UNIT)), ratio))
    return table
