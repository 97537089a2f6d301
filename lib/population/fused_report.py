"""How fast the fused form trains, and how near that is to the card's limits: counted operations and bytes over seconds."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch

from lib.networks import optumnist
from lib.population import fused
from lib.population.initialise import initial
from lib.population.recipe import MultiStep, Recipe
from lib.randomness import integers

FULL = (8192, 60, 60_000)  # networks, epochs and examples of the full run


@dataclass(frozen=True)
class Work:
    """What training must do for one sample of one network, whatever the program: operations and bytes."""

    multiply_adds: dict[str, int]
    bytes: int

    @property
    def flops(self) -> int:
        return 2 * sum(self.multiply_adds.values())


def work(map1: int = 24, map2: int = 4, pooled: int = 8, units: int = 10, hidden: int = 3) -> Work:
    """OptuMNIST-v1's count.  The pooling reads 24 x 24 of the first convolution's 25 x 25 outputs: only those are needed.

    On the way back the maximum lets one output in nine through, so that the first filter's gradient needs few products; its
    input needs none.  Elementwise work (maxima, ReLU, softmax, the update) is not counted.  Bytes are those of a sample's
    image, label and place in the batch, each read once; weights stay on the chip.
    """
    head = units * hidden + hidden * 10
    return Work(
        {
            "first convolution": 2 * map1**2 * 16,
            "second convolution": units * map2**2 * 25,
            "head": head,
            "second filter's gradient": units * map2**2 * 25,
            "second convolution's input": units * map2**2 * 25,
            "head's gradients": 2 * head,
            "first filter's gradient": 2 * pooled**2 * 16,
        },
        bytes=784 + 1 + 4,
    )


WORK = work()


@dataclass(frozen=True)
class Card:
    """A card's limits: float32 operations and bytes of its memory, per second."""

    name: str
    flops: float
    bytes: float


def card_of(device: torch.device) -> Card:
    """The limits of a card: 128 multiply-adds a cycle and multiprocessor at its top clock; bytes as a large copy moves them."""
    properties = torch.cuda.get_device_properties(device)
    clock = 1e3 * (
        getattr(properties, "clock_rate", 0) or 1_980_000
    )  # kHz; where torch does not say, an H200's
    source = torch.empty(1 << 30, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    seconds = min(seconds_of(lambda: target.copy_(source), device) for _ in range(5))
    return Card(
        properties.name, properties.multi_processor_count * 128 * 2 * clock, 2 * len(source) / seconds
    )


def throughput(networks: int, epochs: int, examples: int, seconds: float, card: Card) -> dict[str, float]:
    """Samples/s of a run, the two floors in seconds (all operations, all bytes, at the card's limits), and the shares reached."""
    samples = networks * epochs * examples
    floors = {"arithmetic": samples * WORK.flops / card.flops, "memory": samples * WORK.bytes / card.bytes}
    report = {"seconds": seconds, "samples_per_s": samples / seconds}
    report |= {f"{kind}_floor_s": floor for kind, floor in floors.items()}
    return report | {f"share_of_{kind}": floor / seconds for kind, floor in floors.items()}


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Wall time of a call, the card's work included."""
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def main() -> None:
    """Check the kernel on this card, time it on noise in the full run's shape, and say what the full run would take."""
    options = argparse.ArgumentParser(description=main.__doc__)
    options.add_argument(
        "--members", type=int, default=1188, help="1188: three blocks for each of an H200's 132 x 3 places"
    )
    options.add_argument("--examples", type=int, default=FULL[2])
    options.add_argument("--epochs", type=int, default=3, help="timed epochs; the fastest is reported")
    options.add_argument("--blocks", type=int, nargs="+", default=[fused.DEFINES["BLOCKS_PER_SM"]])
    options.add_argument("--windows", type=int, nargs="+", default=[fused.DEFINES["WINDOWS"]])
    chosen = options.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit(
            "no CUDA card here: the fused form runs on one, and tests/test_fused.py checks it without."
        )
    device = torch.device("cuda", torch.cuda.current_device())
    card = card_of(device)
    print(f"{card.name}: {card.flops / 1e12:.1f} TFLOP/s in float32, {card.bytes / 1e12:.2f} TB/s (copy)")
    for blocks, windows in product(chosen.blocks, chosen.windows):
        kernel = fused.build(device, BLOCKS_PER_SM=blocks, WINDOWS=windows)
        print(f"\nregisters for {blocks} blocks a multiprocessor, {windows} windows at a time")
        difference = fused.disagreement(kernel, device, members=528)  # several blocks on each multiprocessor
        verdict = "agrees" if difference <= fused.TOLERANCE else "DISAGREES"
        print(f"kernel against ordinary path in float64: {verdict}, {difference:.1e} of a few steps' change")
        _time(kernel, chosen.members, chosen.examples, chosen.epochs, device, card)


def _time(
    kernel: fused.Launch, members: int, examples: int, epochs: int, device: torch.device, card: Card
) -> None:
    ids = torch.arange(members, device=device)
    pixels = integers(0, ids[:1], "benchmark/images", 0, 256, (examples, 1, 28, 28))[0].float() / 255
    labels = integers(0, ids[:1], "benchmark/labels", 0, 10, (examples,))[0]
    recipe = Recipe(0.04, 64, 60, weight_decay=2e-4, schedule=MultiStep((15, 30), 0.5))
    run = fused.fit(optumnist(), pixels, labels, recipe, 0, kernel)
    weights = list(initial(optumnist(), ids, 0).values())
    sorting, whole = [], []
    for epoch in range(epochs + 1):  # the first is a warm-up
        sorting.append(seconds_of(lambda e=epoch: run.order(ids, e), device))
        whole.append(seconds_of(lambda e=epoch: run.epoch(weights, ids, e), device))
    order, total = min(sorting[1:]), min(whole[1:])
    for name, seconds in (
        ("an epoch", total),
        ("of it, orders", order),
        ("of it, the kernel", total - order),
    ):
        report = throughput(members, 1, examples, seconds, card)
        print(
            f"{name}: {seconds:.3f} s, {report['samples_per_s'] / 1e6:.1f} million samples/s, "
            f"{report['share_of_arithmetic']:.1%} of the arithmetic limit, {report['share_of_memory']:.1%} of the memory's"
        )
    full = total * FULL[0] * FULL[1] * FULL[2] / (members * examples)
    print(f"{FULL[0]} networks, {FULL[1]} epochs of {FULL[2]} examples: {full:.0f} s at this rate")
