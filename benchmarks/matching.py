"""Matching and lines: pairs of perceptrons and of ResNet-20, eight networks jointly, and 45 lines, beside their peers.

pair: weight matching of 784-w-w-w-10 on MNIST-5k, w = 512 and 1,024. resnet: ResNet-20 with layer norms over channels, random
weights. joint: eight digits networks 64-256-256-10. lines: 45 pairs x 25 points, 64-512-512-10, 360 test digits.

python -m benchmarks.matching [pair | resnet | joint | lines] [--rounds ROUNDS]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from benchmarks.peers import rebasin_loop
from benchmarks.work import ratio, report
from lib.connectivity import lines
from lib.convnets import initial_kaiming, resnet20
from lib.data import load
from lib.matching import match, match_many
from lib.networks import perceptron
from lib.params import Params, member
from lib.population import Cosine, Recipe, train
from lib.symmetry import find_symmetries, members_of

SEED, ROUNDS = 992, 5
PORT, OURS = "Git Re-Basin's PyTorch loop", "lib.matching.match"


def networks(widths: tuple[int, ...], images: str, count: int, epochs: int) -> tuple[torch.nn.Module, Params]:
    """Trained perceptrons, by Adam."""
    net, data = perceptron(widths), load(images, "train", flat=True)
    recipe = Recipe(lr=1e-3, batch_size=100, epochs=epochs, optimiser="adam", schedule=Cosine())
    return net, train(net, data.inputs, data.targets, recipe, members=count, seed=SEED).params


def timed(
    work: dict[str, Callable[[], object]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, object]]:
    """All in turn, so that a busy machine slows all alike: seconds, and what each returned last."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    results = {}
    for k in range(rounds + 1):
        for name, once in work.items():
            start = time.perf_counter()
            results[name] = once()
            if k:
                seconds[name].append(time.perf_counter() - start)
    return seconds, results


def pair(rounds: int) -> None:
    for width in (512, 1024):
        net, nets = networks((784, width, width, width, 10), "mnist5k", 2, 4)
        layers = [name.removesuffix(".weight") for name in nets if name.endswith("weight")]
        compare(f"match {width}", net, nets, torch.zeros(2, 784), rebasin_loop.of_perceptron(layers), rounds)


def resnet(rounds: int) -> None:
    net = resnet20(16)
    nets = initial_kaiming(net, 2, SEED)
    compare(
        "match ResNet-20", net, nets, torch.zeros(2, 3, 32, 32), rebasin_loop.of_resnet20(list(nets)), rounds
    )


def compare(
    work: str,
    net: torch.nn.Module,
    nets: Params,
    example: Tensor,
    spec: rebasin_loop.Specification,
    rounds: int,
) -> None:
    a, b = member(nets, 0), member(nets, 1)
    symmetries = find_symmetries(net, example)
    seconds, found = timed(
        {OURS: lambda: match(a, b, symmetries), PORT: lambda: rebasin_loop.match(spec, a, b)}, rounds
    )
    report(
        work, OURS, "s", seconds[OURS], objective=float(found[OURS].objective[-1]), solves=found[OURS].solves
    )
    report(work, PORT, "s", seconds[PORT], objective=rebasin_loop.objective(spec, found[PORT], a, b))
    ratio(work, seconds, PORT, OURS)


def joint(rounds: int) -> None:
    net, nets = networks((64, 256, 256, 10), "digits", 8, 20)
    symmetries = find_symmetries(net, torch.zeros(2, 64))
    assert members_of(nets, symmetries) == 8
    quick = {m: lambda m=m: match_many(nets, symmetries, m) for m in ("joint", "merge_many")}
    seconds, found = timed(quick, rounds)
    slow, more = timed({"frank_wolfe": lambda: match_many(nets, symmetries, "frank_wolfe")}, 1)
    for name, each in {**found, **more}.items():
        report("joint 8 x 256", name, "s", {**seconds, **slow}[name], objective=float(each.objective[-1]))
    seconds["frank_wolfe"] = slow["frank_wolfe"] * len(seconds["joint"])  # timed once
    ratio("joint 8 x 256", seconds, "frank_wolfe", "joint")


def line(rounds: int) -> None:
    net, nets = networks((64, 512, 512, 10), "digits", 10, 3)
    test, pairs = load("digits", "test"), torch.combinations(torch.arange(10))

    def one_by_one() -> Tensor:
        found = []
        with torch.no_grad():
            for a, b in pairs.tolist():
                for alpha in torch.linspace(0, 1, 25):
                    mixed = {n: torch.lerp(t[a], t[b], alpha) for n, t in nets.items()}
                    logits = functional_call(net, mixed, (test.inputs,))
                    found.append(
                        (
                            cross_entropy(logits, test.targets),
                            (logits.argmax(1) != test.targets).float().mean(),
                        )
                    )
        return torch.tensor(found)

    seconds, found = timed(
        {
            "lib.connectivity.lines": lambda: lines(net, nets, pairs, test.inputs, test.targets, 25),
            "one by one": one_by_one,
        },
        rounds,
    )
    differs = float(
        (found["one by one"][:, 0].view(45, 25) - found["lib.connectivity.lines"].loss).abs().max()
    )
    for name, values in seconds.items():
        report("lines 45 x 25", name, "s", values, differs=differs)
    ratio("lines 45 x 25", seconds, "one by one", "lib.connectivity.lines")


WORK = {"pair": pair, "resnet": resnet, "joint": joint, "lines": line}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", nargs="?", choices=WORK)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    for name, work in WORK.items():
        if options.work in (None, name):
            work(options.rounds)


if __name__ == "__main__":
    main()
