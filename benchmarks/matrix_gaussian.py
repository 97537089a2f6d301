"""Matrix-Gaussian layers: a training step beside nn.Linear, autograd and bayesian-torch; yacht's splits at once.

A step is forward, mean squared error, KL over 50,000 and backward, of one layer, with a batch of 100 whose inputs
want no gradient. Loss and gradients of the autograd peer are compared with ours in float64, on the same noise.

python -m benchmarks.matrix_gaussian [layers | yacht] [--rounds ROUNDS] [--updates UPDATES]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.work import BUILD, installed_apart, ratio, report, serve, take_turns
from lib.contest import published
from lib.contest.methods import VMG, Plan, score, train
from lib.contest.problems import COLUMNS, Problem, uci
from lib.data.download import MissingData
from lib.device import one_thread
from lib.matrix_gaussian.laws import Factorised, Law, RowColumn
from lib.matrix_gaussian.layer import MatrixGaussianLinear
from lib.matrix_gaussian.pseudo_data import PseudoData
from lib.matrix_gaussian.training import Examples, Schedule
from lib.parallel import side_by_side

THREADS, BATCH, SIZE, SEED = 2, 100, 50_000, 990
LAYERS = {"784-150": (784, 150), "150-150": (150, 150), "750-750": (750, 750)}
STEPS = {"784-150": 200, "150-150": 400, "750-750": 40}  # of a round
LAWS: dict[str, Law] = {
    "pseudo-data": PseudoData(50, 0.01, per_entry=True),
    "row-column": RowColumn(),
    "factorised": Factorised(),
}
REACH = {"pseudo-data": 3.5, "row-column": 1.3, "factorised": 2}  # times nn.Linear
LINEAR = "torch.nn.Linear"

VERSION, KINDS = "0.5.0", ("LinearReparameterization", "LinearFlipout")
BAYESIAN_TORCH = BUILD / "bayesian_torch"

EPOCHS, UPDATES, SPLITS, ROWS = 2_000, 110_000, 20, 5  # 277 training rows: 55 batches of five an epoch
TRIAL, TRIALS = 1_000, 3  # updates, and turns, after which it is known whether two processes are faster
PROTOTYPE = "not run here: 269 s in the notes, once, on two cores shared with other work"
CPU = torch.device("cpu")


# ---------------------------------------------------------------------------------------- a layer's step


def batch(name: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Inputs and targets."""
    generator = torch.Generator().manual_seed(SEED)
    x, y = (torch.randn(BATCH, width, generator=generator, dtype=torch.float64) for width in LAYERS[name])
    return x.to(dtype), y.to(dtype)


def layer(law: str, name: str, dtype: torch.dtype = torch.float32) -> MatrixGaussianLinear:
    return MatrixGaussianLinear(*LAYERS[name], law=LAWS[law], seed=SEED, dtype=dtype)


def rounds_of(step: Callable[[], None], name: str) -> None:
    for _ in range(STEPS[name]):
        step()


def ours(law: str, name: str) -> None:
    """A step of our layer, or of nn.Linear, which has no divergence."""
    plain = law == LINEAR
    module, (x, y) = torch.nn.Linear(*LAYERS[name]) if plain else layer(law, name), batch(name)

    def step() -> None:
        module.zero_grad()
        value = (module(x) - y).square().mean()
        (value if plain else value + module.divergence() / SIZE).backward()

    serve(lambda: rounds_of(step, name))


def largest_difference(law: str, name: str) -> float:
    """Of loss and gradients, ours and autograd's in float64, relative to each tensor's largest entry."""
    from benchmarks.peers import vmg_autograd

    module, (x, y) = layer(law, name, torch.float64), batch(name, torch.float64)
    noise = module.noise(module.law.noise_shapes(BATCH, module.r, module.c))
    module.draws["training"] = 0  # the pass meets the same numbers
    mine = (module(x) - y).square().mean() + module.divergence() / SIZE
    mine.backward()
    p = vmg_autograd.parameters(law, name, torch.float64)
    theirs = vmg_autograd.loss(law, p, x, y, {key: value[0] for key, value in noise.items()})
    theirs.backward()
    pairs = [(mine.detach(), theirs.detach()), *((getattr(module, key).grad, p[key].grad) for key in p)]
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


def layers(rounds: int) -> None:
    # without its requirements (torchvision, TensorBoard, scikit-learn), which its layers never import
    why_not = installed_apart(BAYESIAN_TORCH, f"bayesian-torch=={VERSION}")
    for name in LAYERS:
        work = f"training step, layer {name}, batch {BATCH}, {THREADS} threads"
        here, peer = (
            [sys.executable, "-m", f"benchmarks.{script}"]
            for script in ("matrix_gaussian", "peers.vmg_autograd")
        )
        commands = {LINEAR: [*here, "serve", LINEAR, name]}
        for law in LAWS:
            commands[f"lib, {law}"] = [*here, "serve", law, name]
            commands[f"autograd, {law}"] = [*peer, law, name]
            commands[f"torch.compile, {law}"] = [*peer, law, name, "compiled"]
        theirs = {kind: f"bayesian-torch {VERSION}, {kind}" for kind in KINDS}
        if why_not is None:
            script = [sys.executable, "-m", "benchmarks.peers.bayesian_torch_layers"]
            commands |= {who: [*script, kind, name] for kind, who in theirs.items()}
        seconds = take_turns(commands, rounds)
        seconds |= {} if why_not is None else dict.fromkeys(theirs.values(), why_not)
        for who, values in seconds.items():
            if not isinstance(values, str):
                seconds[who] = [s / STEPS[name] * 1e6 for s in values]
            report(work, who, "us_per_step", seconds[who])
        for law in LAWS:
            mine = f"lib, {law}"
            more = {"reach": f"<= {REACH[law]}", "differs": f"{largest_difference(law, name):.0e}"}
            ratio(work, seconds, mine, LINEAR, **more)
            for peer_of in (f"autograd, {law}", f"torch.compile, {law}"):
                ratio(work, seconds, peer_of, mine)
        for who in theirs.values():
            ratio(work, seconds, who, "lib, factorised")


# ------------------------------------------------------------------------------------------------- yacht


@dataclass(frozen=True, eq=False)
class Half(Problem):
    """Ten of the splits, with the members that they have among all: the same runs as in the whole stack."""

    first: int = 0

    @property
    def members(self) -> Tensor:
        return super().members + self.first


def halves(whole: Problem) -> list[Half]:
    found, size, t = [], whole.splits // 2, whole.train
    for first in (0, size):
        runs = slice(first, first + size)
        train = Examples(t.inputs[runs], t.targets[runs], t.counts[runs], t.unit[runs])
        columns = {name: getattr(whole, name)[runs] for name in COLUMNS}
        found.append(Half(**{**vars(whole), **columns, "train": train, "splits": size, "first": first}))
    return found


@dataclass(frozen=True)
class Run:
    """RMSE and log-likelihood of every split, and the seconds of training and of the predictions."""

    rmse: Tensor
    log_likelihood: Tensor
    training: float
    predicting: float

    @property
    def seconds(self) -> float:
        return self.training + self.predicting


def trained_and_scored(problem: Problem, updates: int) -> Run:
    """Settings of the authors' yacht script."""
    schedule = Schedule(updates, ROWS, rate=0.001, average=0.999)
    plan = Plan(schedule, draws=100, pseudo=5, noise=0.005, seed=SEED)
    begin = time.perf_counter()
    fit = train(VMG, problem, plan)
    middle = time.perf_counter()
    (found,) = score(VMG, fit, problem, plan)
    return Run(found.rmse, found.log_likelihood, middle - begin, time.perf_counter() - middle)


@one_thread()
def in_one(whole: Problem, updates: int) -> Run:
    return trained_and_scored(whole, updates)


def in_two(whole: Problem, updates: int) -> Run:
    pieces = [lambda half=half: trained_and_scored(half, updates) for half in halves(whole)]
    begin = time.perf_counter()
    parts = side_by_side(pieces, CPU)
    spent, predicting = time.perf_counter() - begin, max(part.predicting for part in parts)
    both = (torch.cat([getattr(part, name) for part in parts]) for name in ("rmse", "log_likelihood"))
    return Run(*both, spent - predicting, predicting)


WAYS = {
    "lib.contest, one thread": in_one,
    "lib.contest, two processes of ten splits": in_two,
}


def yacht(updates: int) -> None:
    work = f"yacht, {SPLITS} published splits, {EPOCHS:,} epochs ({UPDATES:,} updates) of batches of {ROWS}"
    one, two = WAYS
    try:
        whole = uci("yacht", SPLITS)
    except MissingData as error:
        report(work, one, "s", str(error))
        return
    for way in WAYS.values():
        way(whole, 10)  # workers are started, and warm
    trials = [{who: way(whole, TRIAL).seconds for who, way in WAYS.items()} for _ in range(TRIALS)]
    gain = statistics.median(trial[one] / trial[two] for trial in trials)
    for who, way in WAYS.items():
        if who == two and gain <= 1:
            why = f"not run to the end: {gain:.2f} times as fast as one thread in trials of {TRIAL:,} updates"
            report(work, who, "s", why)
            continue
        run = way(whole, updates)
        more = {"training_s": round(run.training, 2), "prediction_s": round(run.predicting, 2)}
        more |= {"rmse": said(run.rmse), "log_likelihood": said(run.log_likelihood)}
        if updates != UPDATES:
            who = f"{who}, EXTRAPOLATED"
            more["extrapolated"] = (
                f"{updates:,} updates were run and their seconds multiplied by {UPDATES / updates:g}; rmse and "
                "log_likelihood are those of the short run and say nothing about the paper's"
            )
        report(work, who, "s", [run.training * UPDATES / updates + run.predicting], **more)
    tables = {"rmse": published.RMSE, "log_likelihood": published.LOG_LIKELIHOOD}
    figures = {
        name: "{:.2f} ± {:.2f} ({})".format(*rows["yacht"].figure("vmg", SPLITS), published.MARKS["vmg"])
        for name, rows in tables.items()
    }
    report(work, "Louizos & Welling (2016)", "s", "no time in their table", **figures)
    figures = {"rmse": "0.695 ± 0.057 (notes)", "log_likelihood": "-1.293 ± 0.015 (notes)"}
    report(work, "JAX prototype, vmap over splits", "s", PROTOTYPE, **figures)


def said(values: Tensor) -> str:
    """Mean over splits and its standard error."""
    return f"{float(values.mean()):.3f} ± {float(values.std()) / len(values) ** 0.5:.3f}"


def main() -> None:
    asked = argparse.ArgumentParser(prog="python -m benchmarks.matrix_gaussian")
    asked.add_argument("part", nargs="?", choices=("layers", "yacht"), help="all, where none is named")
    asked.add_argument("--rounds", type=int, default=15)
    asked.add_argument(
        "--updates", type=int, default=UPDATES, help="fewer are extrapolated, and the row says so"
    )
    chosen = asked.parse_args()
    if chosen.part != "yacht":
        layers(chosen.rounds)
    if chosen.part != "layers":
        yacht(chosen.updates)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        torch.set_num_threads(THREADS)
        ours(*sys.argv[2:])
    else:
        main()
