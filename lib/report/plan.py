"""What a report can afford: how many examples, points on a line and pairs of networks fit a few minutes on two cores.

Costs are counted, not timed, so that the same files give the same report on any machine: floating-point operations of one
example (torch's own counter), calls, and the size of the assignment problems, at the speed of a small machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lib.report.finding import Finding
from lib.report.outputs import norms
from lib.symmetry import Symmetries

SECONDS = 100.0  # for all passes through networks; matching has half as many beside
SPEED = 8e10  # floating-point operations a second, two cores
CALL = 3e-5  # seconds a layer and pass
WEIGHT = 4e-9  # seconds a weight and pass: mixed, copied, read
MATCHING = 6e10  # operations a second in tables of worths
CUBIC = 1e-9  # seconds a cubed unit of an assignment problem
SWEEPS = 3
LEAST_MATCHING = 0.01  # seconds
MEMORY = 1 << 30  # bytes of activations while statistics are read
WANTED, ENOUGH, LEAST = (
    4000,
    1000,
    64,
)  # examples: at most, before lines are made coarser, and whatever it takes
LINES = (
    (True, 11),
    (True, 5),
    (False, 11),
    (False, 5),
    (False, 3),
)  # all pairs or those with one network; points


@dataclass(frozen=True, repr=False)
class Plan(Finding):
    """What is measured.

    examples     how many examples, both halves together
    calibration  how many of one half are read for statistics at a time, at most
    points       on each line, both ends among them
    every        all pairs of networks; else each network with the first
    joint        all networks aligned jointly; else each to the first
    parted       pairs whose barrier is taken apart
    activations  units are matched by what they put out, too
    seconds      what that should take on two cores
    """

    examples: int
    calibration: int = 512
    points: int = 11
    every: bool = True
    joint: bool = True
    parted: int = 4
    activations: bool = False
    seconds: float = 0.0

    def pairs(self, n: int) -> Tensor:
        """The pairs (K, 2) of n networks."""
        if self.every:
            return torch.combinations(torch.arange(n))
        return torch.stack([torch.zeros(n - 1, dtype=torch.int64), torch.arange(1, n)], 1)


@dataclass(frozen=True)
class Cost:
    """Of one network: seconds an example, seconds a call, examples that fit the memory at a time, seconds a matching."""

    example: float
    call: float
    room: int
    matching: float

    def passes(self, examples: float | int, calls: float | int) -> float:
        return self.example * examples + self.call * calls


def cost(net: nn.Module, example: Shaped[Tensor, "k ..."], symmetries: Symmetries | None) -> Cost:
    """What a network costs, from one pass of two examples: a BatchNorm without running statistics refuses one."""
    two = example[:2]
    sizes, layers = [two.numel() / len(two)], [m for m in net.modules() if not list(m.children())]

    def seen(layer: nn.Module, args: tuple, output: object) -> None:
        sizes.append(output.numel() / len(two) if isinstance(output, Tensor) else 0)

    hooks = [layer.register_forward_hook(seen) for layer in layers]
    was = net.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.eval()(two)
    net.train(was)
    for hook in hooks:
        hook.remove()
    return Cost(
        example=counter.get_total_flops() / len(two) / SPEED + 2e-9 * sum(sizes),
        call=CALL * len(layers) + WEIGHT * sum(p.numel() for p in net.parameters()),
        room=max(2, int(MEMORY / (16 * max(sizes)))),
        matching=0.0 if symmetries is None else matching(symmetries),
    )


def matching(symmetries: Symmetries) -> float:
    """Seconds that bringing one network into the order of another should take."""
    total = LEAST_MATCHING
    for group in symmetries.permutations:
        owned = sum(math.prod(symmetries.shapes[place.name]) for place in group.places)
        total += SWEEPS * (2 * group.size * owned / MATCHING + CUBIC * group.size**3)
    return total


def plan(
    net: nn.Module,
    n: int,
    example: Shaped[Tensor, "k ..."],
    count: int,
    symmetries: Symmetries | None = None,
    examples: int | None = None,
) -> Plan:
    """The finest lines between ``n`` networks that still leave room for enough of ``count`` examples, or for ``examples``."""
    one = cost(net, example, symmetries)
    wanted = min(count, WANTED if examples is None else examples)
    needed = min(wanted, ENOUGH) if examples is None else wanted
    pairs = n * (n - 1) // 2
    joint = n > 2 and (pairs + 4 * n) * one.matching <= SECONDS / 2  # two networks have one pair
    found = Plan(wanted, joint=joint)
    for every, points in LINES:
        pairs = n * (n - 1) // 2 if every else n - 1
        if every and pairs * one.matching > SECONDS / 2:
            continue
        parted = min(pairs, 4 if one.matching * 4 < SECONDS / 8 else 1)
        a, calls = _passes(n, pairs, points - 2, parted, bool(norms(net)))
        fits = int(
            (SECONDS - one.call * calls) / (one.example * a)
        )  # calls do not grow with examples, in one batch
        number = wanted if examples is not None else min(wanted, max(LEAST, fits))
        seconds = one.passes(a * number, calls) + one.matching * (
            pairs + parted + (4 * n if joint and not every else 0)
        )
        cheap = every and pairs * one.matching < SECONDS / 20
        found = Plan(number, min(512, one.room), points, every, joint, parted, cheap, round(seconds, 1))
        if fits >= needed:
            break
    return found


def _passes(n: int, pairs: int, inner: int, parted: int, has_norms: bool) -> tuple[int, int]:
    """Examples that go through networks, for each example of both halves, and calls."""
    reads = 3 if has_norms else 1  # in halves: a recalibration reads the one, a score the other
    lines, parts = pairs * inner * reads, parted * inner * 2
    merged = 4 + 2 * n if has_norms else 2  # with norms, statistics of every network are read anew, too
    calls = (4 if has_norms else 2) * n + 2 * lines + 4 * parts + 8
    return n + lines + parts + merged, calls
