"""OptuMNIST-v1 by the thousand on a CUDA card: one block of threads trains one network through a whole epoch.

Networks are independent, so blocks never wait for each other; weights stay in shared memory from the first step of an epoch to
its last, images are gathered as bytes and never unfolded.  ``fused.cu`` is the kernel; here it is fitted to a run, checked
against the ordinary path before its first use in a process, and called.

``population.train(..., device="cuda")`` takes this path by itself where network, recipe and data fit (see ``fit``), and
``BOOK_FUSED=0`` keeps it from doing so.  ``python -m lib.population.fused`` checks and times it.

ESTIMATE, not measured (no card was at hand): machine code for sm_90 issues about 28,800 instructions a warp and step (eight
rows of the first convolution at 1,820, of which 1,152 multiply and add; eight of its way back at 650; five channels of
the second at 530 forward and 1,050 back; 1,200 for the rest).  Four warps share 64 samples and a multiprocessor issues four
instructions a cycle, so a sample takes at least 450 cycles, against 255 if all were the multiplications that
``fused_report.WORK`` counts.  132 multiprocessors at 1.98 GHz then train at most 580 million samples/s; at 60 % of that,
8,192 networks see 60 epochs of 60,000 images in 85 s, to which the sorting of their 2.9e10 batch positions adds perhaps 30 s.
It uses 164 registers and spills none, so that three blocks (12 warps) share a multiprocessor.  First things to try there:
``--windows 4 8`` (a shorter loop for 7 % more instructions), and ``compute-sanitizer --tool racecheck`` on a small run.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from lib.networks import optumnist
from lib.params import Params
from lib.population.fused_launch import Kernel, compile
from lib.population.initialise import initial
from lib.population.recipe import Cosine, Recipe
from lib.population.vmapped import Vmapped
from lib.randomness import integers, permutation

SOURCE = Path(__file__).with_name("fused.cu")
BATCH = 64  # samples that a block holds
THREADS = 128
SHARED_BYTES = 72_704  # three blocks fill the 227 KiB of a Hopper multiprocessor
DEFINES = {"SHARED_BYTES": SHARED_BYTES, "BLOCKS_PER_SM": 3, "WINDOWS": 8}
TOLERANCE = 1e-3  # of a few steps' change of a tensor: float32 leaves about 1e-5, and a wrong term far more
KEYS = 1 << 25  # batch positions sorted at a time

# What trains one network a block, given their number and the tensors that the kernel takes.
Launch = Callable[..., None]


@dataclass(frozen=True)
class Fused:
    """A training run in its fused form: the data as bytes (pixel = scale · byte + shift), and what decides each step."""

    launch: Launch
    images: Tensor  # (N, 784) uint8
    labels: Tensor  # (N,) uint8
    scale: float
    shift: float
    recipe: Recipe
    seed: int

    @property
    def bytes_per_member(self) -> int:
        """What a member adds to the memory of an epoch: its order of the examples."""
        return 4 * len(self.images)

    def epoch(self, weights: list[Tensor], members: Tensor, epoch: int) -> tuple[Tensor, int]:
        """Train ``weights`` (C, ...) in place through one epoch: (sums of the losses before each step, of how many examples).

        Raises RuntimeError where the kernel left a member out, which no launch should.
        """
        n, device = len(self.images), self.images.device
        steps, batch = self.recipe.steps_per_epoch(n), self.recipe.batch_size
        rates = [self.recipe.rate(epoch * steps + k, steps) for k in range(steps)]
        packed = torch.cat([weight.flatten(1) for weight in weights], dim=1)
        losses = torch.full_like(packed[:, 0], -1.0)
        self.launch(
            len(packed),
            packed,
            losses,
            self.order(members, epoch),
            self.images,
            self.labels,
            torch.tensor(rates, dtype=torch.float32, device=device),
            torch.tensor([n, batch, steps], dtype=torch.int32, device=device),
            torch.tensor(
                [self.scale, self.shift, self.recipe.weight_decay], dtype=torch.float32, device=device
            ),
        )
        if bool((losses < 0).any()):
            raise RuntimeError(
                f"the fused kernel left {int((losses < 0).sum())} of {len(losses)} networks untrained: "
                "set BOOK_FUSED=0 to train by the ordinary path."
            )
        parts = packed.split([weight[0].numel() for weight in weights], dim=1)
        for weight, part in zip(weights, parts, strict=True):
            weight.copy_(part.view_as(weight))
        return losses, min(n, steps * batch)

    def order(self, members: Tensor, epoch: int) -> Tensor:
        """Each member's own order of the examples, (C, N) int32, the one that the ordinary path takes."""
        n = len(self.images)
        order = torch.empty(len(members), n, dtype=torch.int32, device=self.images.device)
        for rows in torch.arange(len(members), device=members.device).split(max(1, KEYS // n)):
            order[rows] = permutation(self.seed, members[rows], "order", epoch, n).int()
        return order


def fit(
    net: nn.Module, inputs: Tensor, targets: Tensor, recipe: Recipe, seed: int, launch: Launch | None = None
) -> Fused | None:
    """The fused form of a run, or None where network, recipe, data or device ask for the ordinary path.

    The network must be OptuMNIST-v1 in float32, the recipe plain SGD on cross-entropy with batches of 64 at most (any
    schedule), the inputs (N, 1, 28, 28) in 256 equal steps from the lowest to the highest, as bytes that were scaled
    and shifted are.  ``launch`` stands in for the card's kernel in tests.
    """
    if launch is None and (inputs.device.type != "cuda" or os.environ.get("BOOK_FUSED") == "0"):
        return None
    plain = recipe.optimiser == "sgd" and not recipe.momentum and recipe.loss == "cross_entropy"
    if not (plain and recipe.batch_size <= BATCH and is_optumnist(net)):
        return None
    if len(inputs) == 0 or tuple(inputs.shape[1:]) != (1, 28, 28):
        return None
    data = as_bytes(inputs.float())
    launch = launch or (data and checked(inputs.device))
    if not data or not launch:
        return None
    images, scale, shift = data
    return Fused(launch, images.flatten(1), targets.to(torch.uint8), scale, shift, recipe, seed)


def is_optumnist(net: nn.Module) -> bool:
    """Whether a network is OptuMNIST-v1 in float32: the same layers, and the same options, all of which a layer prints."""
    known = optumnist()
    same = repr(net) == repr(known) and [type(a) for a in net.modules()] == [type(a) for a in known.modules()]
    return same and all(parameter.dtype == torch.float32 for parameter in net.parameters())


def as_bytes(table: Tensor) -> tuple[Tensor, float, float] | None:
    """(bytes, scale, shift) with table = scale · bytes + shift to float32's rounding; None where that cannot be."""
    low, high = float(table.min()), float(table.max())
    scale = (high - low) / 255
    codes = ((table - low) / scale).round_() if high > low else torch.full_like(table, torch.nan)
    close = float((codes * scale + low - table).abs().max()) <= 1e-6 * max(abs(low), abs(high))
    return (codes.to(torch.uint8), scale, low) if close else None


@lru_cache
def build(device: torch.device, **defines: int) -> Kernel:
    """The kernel for a card, with other defines than ``DEFINES`` if given; RuntimeError where it cannot be compiled or loaded."""
    major, minor = torch.cuda.get_device_capability(device)
    code = compile(SOURCE.read_text(), f"sm_{major}{minor}", DEFINES | defines)
    return Kernel(code, "train_networks", device, THREADS, SHARED_BYTES)


@lru_cache
def checked(device: torch.device) -> Kernel | None:
    """The kernel, once it has agreed with the ordinary path on this very card; otherwise None and a warning."""
    try:
        kernel = build(device)
        difference = disagreement(kernel, device)
    except (RuntimeError, OSError) as error:
        warnings.warn(
            f"the fused training kernel cannot run here ({error}) Training takes the ordinary path, which is many "
            "times slower.",
            stacklevel=2,
        )
        return None
    if not difference <= TOLERANCE:
        warnings.warn(
            f"the fused training kernel disagrees with the ordinary path by {difference:.1e} of a few steps' change "
            f"(at most {TOLERANCE:.0e} is allowed), so it is not used: training takes the ordinary path, which is many times slower.",
            stacklevel=2,
        )
        return None
    return kernel


def disagreement(launch: Launch, device: torch.device, members: int = 132) -> float:
    """How far the kernel is from the ordinary path in float64, after an epoch of three batches and a part of one.

    Returns the largest ‖change - reference‖ / ‖reference‖ over members and tensors, a change being what the epoch did to
    a tensor, or the loss's own relative difference where that is larger; infinite where a second run gives other bits,
    as it does when threads race.  Rates fall from step to step, weights decay, and images are noise with blank parts.
    """
    net, recipe = optumnist(), Recipe(0.2, BATCH, 1, weight_decay=0.01, schedule=Cosine())
    ids = torch.arange(members, device=device)
    noise = integers(0, ids[:1], "self-check/images", 0, 512, (209, 1, 28, 28))[0] - 256
    noise[0, 0, 0, :2] = torch.tensor([0, 255])  # both ends of the scale occur
    table = (noise.clamp_min(0).float() / 255 - 0.1307) / 0.3081
    targets = integers(0, ids[:1], "self-check/labels", 0, 10, (len(table),))[0].to(device)
    start = initial(net, ids, 0)

    fused = fit(net, table.to(device), targets, recipe, 0, launch)
    (ours, losses), (again, _) = (_after_an_epoch(fused, start, ids) for _ in range(2))
    if not all(torch.equal(ours[name], again[name]) for name in ours):
        return float("inf")
    reference, loss = _reference(net.double(), recipe, start, table.double(), targets, ids)
    worst = ((losses - loss).abs() / loss).max()
    for name, value in reference.items():
        change = (value - start[name].double()).flatten(1).norm(dim=1)
        error = (ours[name].double() - value).flatten(1).norm(dim=1)
        worst = torch.maximum(worst, (error / change).max())
    return float(worst)


def _after_an_epoch(fused: Fused, start: Params, ids: Tensor) -> tuple[Params, Tensor]:
    weights = [tensor.clone() for tensor in start.values()]
    losses, seen = fused.epoch(weights, ids, 0)
    return dict(zip(start, weights, strict=True)), losses.double() / seen


def _reference(
    net: nn.Module, recipe: Recipe, start: Params, table: Tensor, targets: Tensor, ids: Tensor
) -> tuple[Params, Tensor]:
    """The same epoch by the ordinary path, in the dtype of ``net``: parameters and mean losses."""
    model = Vmapped(net, recipe.loss, 0, table, ids.device)
    table, steps = model.table(table.to(ids.device)), recipe.steps_per_epoch(len(table))
    weights, total = [start[name].to(model.dtype) for name in model.names], 0.0
    order = permutation(0, ids, "order", 0, len(table))
    for k, rows in enumerate(order.split(recipe.batch_size, dim=1)):
        step = model.step(weights, rows.shape[1])
        gradients, values = step.gradients(table, targets, rows, True, ids, k)
        recipe.update(weights, gradients, [], k, recipe.rate(k, steps))
        total = total + values.sum(dim=1)
    return dict(zip(model.names, weights, strict=True)), total / len(table)


if __name__ == "__main__":
    from lib.population.fused_report import main

    main()
