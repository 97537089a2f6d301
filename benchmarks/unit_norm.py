"""Filters of unit norm: a whole training step, the optimiser alone, and 120 trainings as one stack, beside their peers.

step: 784-512-512-512-10 with BatchNorm, batch 100: zero the gradients, forward, cross entropy, backward, optimiser.
optimiser: ``step()`` alone on the gradients of that network. stack: 24 rates x 5 streams of 784-128-128-10 on MNIST-5k,
five epochs, against one by one. In float64 ours and geoopt's steps, and the stack and a module, are compared in the same run.

python -m benchmarks.unit_norm [step | optimiser | stack] [--rounds ROUNDS]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from benchmarks.work import BUILD, installed_apart, ratio, report, serve, take_turns
from lib.data import load
from lib.randomness import permutation
from lib.trial.cost import dense
from lib.unit_norm import Examples, Network, UnitNormAdam, UnitNormSGD, train, unit_norm_parameters

THREADS, BATCH, SEED, RATE, MOMENTUM = 2, 100, 991, 1e-3, 0.9
STEPS = {"step": 40, "optimiser": 100}  # of a round
ROUNDS = {"step": 15, "optimiser": 15, "stack": 5}

SGD, HEAVY, ADAM = "torch SGD", f"torch SGD, momentum {MOMENTUM}", "torch Adam"
UNIT, UNIT_HEAVY, UNIT_ADAM = (f"lib UnitNorm{of.removeprefix('torch ')}" for of in (SGD, HEAVY, ADAM))
GEOOPT, GEOOPT_ADAM = "geoopt 0.5.1 RiemannianSGD", "geoopt 0.5.1 RiemannianAdam"
WEIGHT_NORM = "torch weight_norm + SGD"
GEOTORCH_VERSION, GEOTORCH = "0.4.0", BUILD / "geotorch"
SPHERE, EMBEDDED = (f"geotorch {GEOTORCH_VERSION} sphere{how} + SGD" for how in ("", ", embedded"))

Optimiser = torch.optim.Optimizer
OPTIMISERS: dict[str, Callable[[nn.Module, Tensor], Optimiser]] = {
    SGD: lambda net, x: torch.optim.SGD(net.parameters(), RATE, foreach=True),
    f"{SGD}, fused": lambda net, x: torch.optim.SGD(net.parameters(), RATE, fused=True),
    HEAVY: lambda net, x: torch.optim.SGD(net.parameters(), RATE, MOMENTUM, foreach=True),
    ADAM: lambda net, x: torch.optim.Adam(net.parameters(), RATE, foreach=True),
    f"{ADAM}, fused": lambda net, x: torch.optim.Adam(net.parameters(), RATE, fused=True),
    UNIT: lambda net, x: UnitNormSGD(unit_norm_parameters(net, x[:2]), RATE, foreach=True),
    UNIT_HEAVY: lambda net, x: UnitNormSGD(unit_norm_parameters(net, x[:2]), RATE, MOMENTUM, foreach=True),
    UNIT_ADAM: lambda net, x: UnitNormAdam(unit_norm_parameters(net, x[:2]), RATE, foreach=True),
}
BASES = {  # of each part: who is divided by whom
    "step": {UNIT: SGD, UNIT_HEAVY: HEAVY, GEOOPT: SGD, WEIGHT_NORM: SGD, SPHERE: SGD, EMBEDDED: SGD},
    "optimiser": {f"{SGD}, fused": SGD, UNIT: SGD, GEOOPT: SGD}
    | {f"{ADAM}, fused": ADAM, UNIT_ADAM: ADAM, GEOOPT_ADAM: ADAM},
}

NET, STREAMS, EPOCHS, SAMPLE = (
    Network((784, 128, 128, 10)),
    5,
    5,
    6,
)  # SAMPLE: runs that are trained one by one
RATES = torch.logspace(-2, 0, 24)
RUNS = STREAMS * len(RATES)
STACK, PRODUCT = f"lib.unit_norm.train, one stack, {THREADS} threads", f"torch.mm, {THREADS} threads"
WAYS = ("2 threads", "1 thread", "two processes of one thread")
SIDE, PRODUCTS = 2048, 5  # the square matrices of which the products are taken whose speed is the machine's


# -------------------------------------------------------------------------------- a step, whole or the optimiser's


def problem(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor, Tensor]:
    """The network with torch's own initial weights, a batch and its classes: the same for everyone."""
    torch.manual_seed(SEED)
    net, x = dense()
    return net.to(dtype), x.to(dtype), torch.arange(BATCH) % 10


def before_norms(net: nn.Module) -> list[nn.Linear]:
    """The layers whose filters a norm reads."""
    *hidden, _ = (layer for layer in net if isinstance(layer, nn.Linear))
    return hidden


def serve_steps(part: str, net: nn.Module, x: Tensor, y: Tensor, optimiser: Optimiser) -> None:
    """A round: whole steps, or the optimiser's alone, again and again from the same weights with the same gradients."""

    def whole() -> None:
        for _ in range(STEPS[part]):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimiser.step()

    def alone() -> None:
        with torch.no_grad():
            for parameter, value in zip(net.parameters(), start, strict=True):
                parameter.copy_(value)
        for _ in range(STEPS[part]):
            optimiser.step()

    nn.functional.cross_entropy(net(x), y).backward()
    start = [parameter.detach().clone() for parameter in net.parameters()]
    serve(whole if part == "step" else alone)


def ours(part: str, who: str) -> None:
    net, x, y = problem()
    serve_steps(part, net, x, y, OPTIMISERS[who](net, x))


def steps(part: str, rounds: int) -> None:
    whole = part == "step"
    work = f"{'training' if whole else 'optimiser'} step, 784-512-512-512-10, BatchNorm, batch {BATCH}, {THREADS} threads"
    bases, missing = BASES[part], {}
    if whole and (why_not := installed_apart(GEOTORCH, f"geotorch=={GEOTORCH_VERSION}")) is not None:
        missing = dict.fromkeys((SPHERE, EMBEDDED), why_not)
    scripts = {GEOOPT: "peers.geoopt_sphere", GEOOPT_ADAM: "peers.geoopt_sphere"}
    scripts |= dict.fromkeys((WEIGHT_NORM, SPHERE, EMBEDDED), "peers.parametrized_rows")
    python = [sys.executable, "-m"]
    commands = {
        who: [*python, f"benchmarks.{scripts[who]}", part, who]
        if who in scripts
        else [*python, "benchmarks.unit_norm", "serve", part, who]
        for who in dict.fromkeys((*bases.values(), *bases))
        if who not in missing
    }
    seconds = take_turns(commands, rounds) | missing
    for who, values in seconds.items():
        if not isinstance(values, str):
            seconds[who] = [s / STEPS[part] * 1e6 for s in values]
        report(work, who, "us_per_step", seconds[who])
    for who, base in bases.items():
        ratio(
            work, seconds, who, base, **({"differs": differs(who)} if timed(seconds, who, "geoopt") else {})
        )
    for mine, theirs in ((UNIT, GEOOPT), (UNIT_ADAM, GEOOPT_ADAM)):
        if mine in seconds:
            ratio(work, seconds, theirs, mine)


def timed(seconds: dict[str, list[float] | str], who: str, kind: str) -> bool:
    return who.startswith(kind) and not isinstance(seconds[who], str)


def differs(geoopts: str) -> str:
    """How far ours and geoopt's weights are apart after five steps in float64 on ours' gradients.

    The largest difference, relative to each tensor's largest entry; the rate is such that filters turn visibly.
    """
    from benchmarks.peers import geoopt_sphere

    (mine, x, y), (theirs, _, _) = problem(torch.float64), problem(torch.float64)
    optimisers = [
        OPTIMISERS[UNIT_ADAM if geoopts == GEOOPT_ADAM else UNIT](mine, x),
        geoopt_sphere.optimiser(geoopts, theirs),
    ]
    for group in (group for optimiser in optimisers for group in optimiser.param_groups):
        group["lr"] = 0.01 if geoopts == GEOOPT_ADAM else 0.1
    for _ in range(5):
        mine.zero_grad()
        nn.functional.cross_entropy(mine(x), y).backward()
        for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
            q.grad = p.grad.clone()
        for optimiser in optimisers:
            optimiser.step()
    pairs = zip(mine.parameters(), theirs.parameters(), strict=True)
    return f"{max(apart(p.detach(), q.detach()) for p, q in pairs):.0e}"


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max())


# ------------------------------------------------------------------------------------------- a stack of trainings


@cache
def images(dtype: torch.dtype = torch.float32) -> Examples:
    """The 4,000 training images of MNIST-5k, of which every stream has all."""
    found = load("mnist5k", "train", flat=True)
    rows = torch.arange(len(found)).expand(STREAMS, -1).contiguous()
    return Examples(found.inputs.to(dtype), found.targets, rows)


def stacked() -> None:
    rates, streams = RATES.expand(STREAMS, -1), torch.arange(STREAMS)
    train(NET, "unit norm", images(), rates, seed=SEED, streams=streams, epochs=EPOCHS, batch=BATCH)


def products() -> None:
    a, b = torch.rand(2, SIDE, SIDE)
    out = torch.empty_like(a)

    def work() -> None:
        for _ in range(PRODUCTS):
            torch.mm(a, b, out=out)

    serve(work)


def stack(rounds: int) -> None:
    count = images().rows.shape[1]
    layers = "-".join(map(str, NET.widths))
    work = f"{RUNS} trainings {layers}, unit norm, {count:,} images, {EPOCHS} epochs, batch {BATCH}"
    here, peer = (
        [sys.executable, "-m", f"benchmarks.{script}"] for script in ("unit_norm", "peers.one_by_one")
    )
    one_by_one = {way: f"one by one in torch, {way}, EXTRAPOLATED" for way in WAYS}
    commands = {STACK: [*here, "serve", "stack", "train"]}
    commands |= {who: [*peer, way] for way, who in one_by_one.items()}
    commands[PRODUCT] = [*here, "serve", "stack", "products"]
    seconds = take_turns(commands, rounds)
    scaled = f"the seconds of {SAMPLE} trainings were multiplied by {RUNS / SAMPLE:g}"
    for who in one_by_one.values():
        if not isinstance(seconds[who], str):
            seconds[who] = [s * RUNS / SAMPLE for s in seconds[who]]
    for who in (STACK, *one_by_one.values()):
        more = {"differs": stack_differs()} if who == STACK else {"extrapolated": scaled}
        report(work, who, "s", seconds[who], **more)
    for who in one_by_one.values():
        ratio(work, seconds, who, STACK)
    if isinstance(seconds[PRODUCT], str):
        report(work, PRODUCT, "GFlop_per_s", seconds[PRODUCT])
        return
    speeds = [PRODUCTS * 2 * SIDE**3 / s for s in seconds[PRODUCT]]
    report(f"product of two {SIDE} x {SIDE} matrices", PRODUCT, "GFlop_per_s", [s / 1e9 for s in speeds])
    flops = 2 * NET.multiplications(BATCH) * (count // BATCH) * EPOCHS * RUNS
    floor = f"its products at the speed of {PRODUCT}"
    seconds[floor] = [flops / speed for speed in speeds]
    ratio(work, seconds, floor, STACK, TFlop=round(flops / 1e12, 3))


def stack_differs() -> str:
    """How far a run of a stack and a module are apart after an epoch in float64: weights and running statistics."""
    from benchmarks.peers import one_by_one

    examples, streams = images(torch.float64), torch.arange(2)
    rates = torch.tensor([[0.01, 0.1]] * 2, dtype=torch.float64)
    some = Examples(examples.inputs, examples.targets, examples.rows[:2])
    found = train(NET, "unit norm", some, rates, seed=SEED, streams=streams, epochs=1, batch=BATCH)
    start = [weight[1, 0] for weight in NET.initial(SEED, streams, torch.float64)]
    order = permutation(SEED, streams[1:], "order", 0, examples.rows.shape[1])
    net = one_by_one.trained(some, float(rates[1, 1]), [order[0]], start)
    norms = [layer for layer in net if isinstance(layer, nn.BatchNorm1d)]
    pairs = [*zip(found.weights, net.parameters(), strict=True)]
    pairs += zip(found.means, (norm.running_mean for norm in norms), strict=True)
    pairs += zip(found.variances, (norm.running_var for norm in norms), strict=True)
    return f"{max(apart(mine[1, 1], theirs.detach()) for mine, theirs in pairs):.0e}"


def main() -> None:
    asked = argparse.ArgumentParser(prog="python -m benchmarks.unit_norm")
    asked.add_argument("part", nargs="?", choices=tuple(ROUNDS), help="all, where none is named")
    asked.add_argument(
        "--rounds", type=int, help=f"by default {', '.join(f'{n} ({p})' for p, n in ROUNDS.items())}"
    )
    chosen = asked.parse_args()
    for part in (chosen.part,) if chosen.part else ROUNDS:
        rounds = chosen.rounds or ROUNDS[part]
        if part == "stack":
            stack(rounds)
        else:
            steps(part, rounds)


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    if sys.argv[1:2] != ["serve"]:
        main()
    elif sys.argv[2] != "stack":
        ours(*sys.argv[2:])
    elif sys.argv[3] == "products":
        products()
    else:
        serve(stacked)
