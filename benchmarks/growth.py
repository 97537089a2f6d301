"""How the book's main kernels grow: core-seconds and memory against networks, widths, examples, steps.

python -m benchmarks.growth                measure everything and write data/growth.toml, which the page of costs reads
python -m benchmarks.growth --only match   measure the series whose names hold this, and print them alone

One thread, so that seconds are core-seconds. Every size of a series has a process of its own, whose peak of memory is that
size's; they take turns, round by round, so that a machine that is busy for a moment slows all sizes alike. What a series
gave is kept at once: a run that was stopped goes on from there.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from benchmarks.work import BUILD, ROOT

# This process imports no torch: what a parent holds at the fork is where its child's peak begins.
TARGET, KEPT = ROOT / "data" / "growth.toml", BUILD / "growth.json"
ROUNDS, LEAST = 3, 0.05  # rounds, and the seconds that one of them lasts at least
SEED = 991
HEAD = """\
# Written by `python -m benchmarks.growth`, read by lib/cost_series.py. Do not edit: measure again.
# seconds, cpu: wall and processor seconds of one piece of work, a list a size, a number a round. base, peak: bytes that its
# process held before, and at most during the work (0: this system does not say). others: cores that other programs used meanwhile (-1).
"""
Work = Callable[[], object]


@dataclass(frozen=True)
class Series:
    """One kernel at rising sizes.

    ``variable`` grows, ``fixed`` says what does not. ``splits``: whether workers that know nothing of each other can share the
    work, ``how`` in words; ``chapters``: whose size in numbers (networks, chains, particles) this variable is.
    """

    kernel: str
    variable: str
    sizes: tuple[int, ...]
    fixed: str
    splits: bool
    how: str
    prepare: Callable[[int], Work]
    chapters: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Such as ``population.train, networks``."""
        return f"{self.kernel}, {self.variable}"


# -------------------------------------------------------------------------------------------------- the work


def examples(n: int):
    """n inputs of the digits' shape, 64 numbers in ten classes: a random picture each, and noise; nothing is loaded."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    pictures, classes = torch.rand(10, 64, generator=generator), torch.randint(10, (n,), generator=generator)
    return pictures[classes] + 0.3 * torch.randn(n, 64, generator=generator), classes


def training(members: int = 64, width: int = 16, n: int = 1_280) -> Work:
    from lib.networks import perceptron
    from lib.population import Recipe, train

    (x, y), net = examples(n), perceptron((64, width, 10))
    recipe = Recipe(lr=0.1, batch_size=64, epochs=2)
    return lambda: train(net, x, y, recipe, members=members, seed=SEED)


def gradient_chains(chains: int = 32, steps: int = 100) -> Work:
    from lib.networks import perceptron
    from lib.population import Recipe
    from lib.posteriors import sghmc

    (x, y), net = examples(1_280), perceptron((64, 16, 10))
    recipe = Recipe(lr=0.03, batch_size=64, epochs=1, weight_decay=1e-3)
    options = sghmc.Sghmc(burn_in=0, epochs=steps // 20, keep=2)
    return lambda: sghmc.fit(net, x, y, recipe, options, members=chains, seed=SEED)


def hamiltonian_chains(chains: int = 8, n: int = 1_280) -> Work:
    from lib.networks import perceptron
    from lib.population import Recipe, initial
    from lib.posteriors import hmc
    from lib.posteriors.target import of_recipe, ravel

    (x, y), net = examples(n), perceptron((64, 16, 10))
    target = of_recipe(net, x, y, Recipe(lr=0.1, batch_size=64, epochs=1, weight_decay=1e-3))
    start = ravel(initial(net, chains, SEED))
    options = {"warmup": 1, "draws": 2, "leapfrog": 10, "step_size": 1e-4}
    return lambda: hmc.sample(target, start, **options, seed=SEED)


def free_energy(particles: int = 200, n: int = 10_000) -> Work:
    import torch

    from lib.free_energy.truths import T1
    from lib.growth.curves import Learner, climb

    ends = [float(10**k) for k in range(1, len(str(n)))]
    run = {"points": 64, "copies": 1, "seed": SEED, "stream": 0, "device": torch.device("cpu")}
    return lambda: climb(Learner(T1, (1, 4, 1)), ends, particles=particles, **run)


def trained(width: int, count: int):
    """Networks 64-w-w-10 after three epochs, in which they learn the classes: a matching's price depends on the weights."""
    from lib.networks import perceptron
    from lib.population import Recipe, train
    from lib.symmetry import find_symmetries

    (x, y), net = examples(1_280), perceptron((64, width, width, 10))
    recipe = Recipe(lr=0.05, batch_size=64, epochs=3, momentum=0.9)
    return net, train(net, x, y, recipe, members=count, seed=SEED).params, find_symmetries(net, x[:2])


def matching(width: int) -> Work:
    from lib.matching import match
    from lib.params import member

    _, params, symmetries = trained(width, 2)
    return lambda: match(member(params, 0), member(params, 1), symmetries)


def joint(count: int) -> Work:
    from lib.matching import match_many

    _, params, symmetries = trained(64, count)
    return lambda: match_many(params, symmetries, "joint")


def barriers(pairs: int = 45, alphas: int = 25, width: int = 64) -> Work:
    import torch

    from lib.connectivity import lines
    from lib.networks import perceptron
    from lib.population import initial

    net, count = perceptron((64, width, width, 10)), 10 if pairs <= 45 else 64
    params, (x, y) = initial(net, count, SEED), examples(360)  # untrained: a line costs what it costs
    chosen = torch.combinations(torch.arange(count))[:pairs]
    return lambda: lines(net, params, chosen, x, y, alphas)


def matrix_gaussian(width: int = 32, runs: int = 4) -> Work:
    import torch

    from lib.matrix_gaussian.likelihoods import Categorical
    from lib.matrix_gaussian.network import Network
    from lib.matrix_gaussian.pseudo_data import PseudoData
    from lib.matrix_gaussian.training import Examples, Schedule, fit

    x, y = examples(1_280)
    data = Examples(x[None], y[None], torch.full((runs,), len(x)), torch.ones(runs, 1))
    net = Network.of(PseudoData(10, 0.01), (64, width, 10), Categorical())
    return lambda: fit(net, data, Schedule(40, 100), seed=SEED)


def unit_norm(width: int = 32, runs: int = 4) -> Work:
    import torch

    from lib.unit_norm.network import Network
    from lib.unit_norm.training import Examples, train

    x, y = examples(1_280)
    data = Examples(x, y, torch.arange(len(x))[None])
    rates, streams = torch.full((1, runs), 0.1), torch.arange(1)
    net = Network((64, width, width, 10))
    return lambda: train(net, "unit norm", data, rates, seed=SEED, streams=streams, epochs=3)


ALONE = "yes: each by seed and number"
IN_TURN = "no: its steps take turns"
WHOLE = "no: a network stays in one place"
MIXED = "no, resampling mixes them; copies of a run: yes"
SERIES = (
    Series("population.train", "networks", (8, 32, 128, 512, 1_024, 2_048), "64-16-10, 1,280 examples, batches of 64, 2 epochs",
           True, ALONE, lambda size: training(members=size), ("two-neurons", "one-population")),
    Series("population.train", "width", (16, 64, 256, 1_024, 2_048, 4_096), "8 networks 64-w-10, 1,280 examples, batches of 64, 2 epochs",
           False, WHOLE, lambda size: training(members=8, width=size)),
    Series("population.train", "examples", (256, 1_024, 4_096, 8_192, 16_384, 32_768), "64 networks 64-16-10, batches of 64, 2 epochs",
           False, IN_TURN, lambda size: training(n=size)),
    Series("posteriors.sghmc", "chains", (4, 16, 64, 128, 256, 512), "64-16-10, 1,280 examples, batches of 64, 100 steps",
           True, ALONE, lambda size: gradient_chains(chains=size), ("posteriors",)),
    Series("posteriors.sghmc", "steps", (40, 80, 160, 320, 640, 1_280), "32 chains of 64-16-10, batches of 64", False, IN_TURN,
           lambda size: gradient_chains(steps=size)),
    Series("posteriors.hmc", "examples", (256, 1_024, 4_096, 8_192, 16_384, 32_768), "8 chains of 64-16-10, 3 transitions of 10 steps",
           True, "yes, a sum over examples; not done here", lambda size: hamiltonian_chains(n=size)),
    Series("smc.sample", "particles", (400, 800, 1_600, 3_200, 6_400, 12_800), "1-4-1 on T1, to n = 10,000", False, MIXED,
           lambda size: free_energy(particles=size), ("free-energy",)),
    Series("smc.sample", "n", (100, 1_000, 10_000, 100_000, 1_000_000), "1-4-1 on T1, 800 particles, from n = 10 on", False,
           IN_TURN, lambda size: free_energy(800, size)),
    Series("matching.match", "width", (64, 128, 256, 512, 1_024, 2_048), "two networks 64-w-w-10", False,
           "no, one assignment problem; pairs: yes", matching),
    Series("matching.match_many", "networks", (3, 4, 6, 8, 11, 15), "networks 64-64-64-10, jointly", False,
           "no: each meets the sum of the others", joint),
    Series("connectivity.lines", "pairs", (15, 30, 45, 90, 180, 360), "64-64-64-10, 25 points a line, 360 examples",
           True, "yes: lines share nothing", lambda size: barriers(pairs=size), ("three-models",)),
    Series("connectivity.lines", "points a line", (6, 12, 25, 50, 100, 200), "45 pairs of 64-64-64-10, 360 examples", True,
           "yes: points share nothing", lambda size: barriers(alphas=size)),
    Series("connectivity.lines", "width", (32, 64, 128, 256, 512), "15 pairs of 64-w-w-10, 25 points a line, 360 examples",
           False, WHOLE, lambda size: barriers(15, width=size)),
    Series("matrix_gaussian.fit", "runs", (2, 4, 8, 16, 32, 64), "64-32-10, 10 pseudo-data, 40 updates of 100 examples", True, ALONE,
           lambda size: matrix_gaussian(runs=size), ("matrix-gaussian",)),
    Series("matrix_gaussian.fit", "width", (32, 64, 128, 256, 512, 1_024), "4 runs of 64-w-10, 10 pseudo-data, 40 updates of 100 examples",
           False, WHOLE, lambda size: matrix_gaussian(width=size)),
    Series("unit_norm.train", "runs", (8, 16, 32, 64, 128, 256), "64-32-32-10, 1,280 examples, batches of 100, 3 epochs", True, ALONE,
           lambda size: unit_norm(runs=size), ("unit-norm",)),
    Series("unit_norm.train", "width", (32, 64, 128, 256, 512, 1_024), "4 runs of 64-w-w-10, 1,280 examples, batches of 100, 3 epochs",
           False, WHOLE, lambda size: unit_norm(width=size)),
)  # fmt: skip


# --------------------------------------------------------------------------------------- a size, in its own process


def serve(series: Series, size: int) -> None:
    """Child's side: warm up at the smallest size, prepare this one, then one line of JSON for each line that comes in."""
    import torch

    torch.set_num_threads(1)
    series.prepare(series.sizes[0])()
    base = peak_bytes()
    work = series.prepare(size)
    forget_peak()
    print(json.dumps({"base": base}), flush=True)
    for _ in sys.stdin:
        count, wall, cpu = 0, time.perf_counter(), time.process_time()
        while count == 0 or time.perf_counter() - wall < LEAST:
            work()
            count += 1
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        told = {"wall": wall / count, "cpu": cpu / count, "spent": cpu, "peak": peak_bytes()}
        print(json.dumps(told), flush=True)


def peak_bytes() -> int:
    """The most that this process has held in memory, in bytes; 0 where the system does not say."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    """Where Linux allows it, count the peak anew: preparing the work is not the work."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


# ----------------------------------------------------------------------------------------------- all of them


class Failed(RuntimeError):
    """A size could not be measured."""


def measure(series: Series, rounds: int) -> dict:
    """A series' table in the file: everything but ``prepare``, and what was measured."""
    command = [sys.executable, "-m", "benchmarks.growth", "--serve", series.name]
    peers, found = [], {"base": [], "peak": [], "seconds": [], "cpu": []}
    with tempfile.TemporaryFile("w+") as errors:

        def answer(peer: subprocess.Popen, size: int) -> dict:
            line = peer.stdout.readline()
            if not line:
                errors.seek(0)
                words = errors.read().strip().splitlines() or [f"exit code {peer.wait()}"]
                raise Failed(f"{series.name}, size {size:,}: {words[-1]}")
            return json.loads(line)

        try:
            for size in series.sizes:
                pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
                peers.append(subprocess.Popen([*command, str(size)], **pipes, text=True, cwd=ROOT))
            together = list(zip(peers, series.sizes, strict=True))
            found["base"] = [answer(peer, size)["base"] for peer, size in together]
            told, before, began = [], busy_seconds(), time.perf_counter()
            for _ in range(rounds):
                for peer, size in together:
                    peer.stdin.write("go\n")
                    peer.stdin.flush()
                    told.append(answer(peer, size))
            busy, lasted = busy_seconds() - before, time.perf_counter() - began
        finally:
            for peer in peers:
                peer.kill()
                peer.communicate()
    for i in range(len(series.sizes)):
        mine = told[i :: len(series.sizes)]
        found["seconds"].append([round(x["wall"], 6) for x in mine])
        found["cpu"].append([round(x["cpu"], 6) for x in mine])
        found["peak"].append(max(x["peak"] for x in mine))
    about = {key: value for key, value in vars(series).items() if key != "prepare"}
    others = max(0.0, busy - sum(x["spent"] for x in told)) / lasted if before >= 0 else -1.0
    return (
        about | {"date": datetime.now(UTC).isoformat(timespec="seconds"), "others": round(others, 2)} | found
    )


def busy_seconds() -> float:
    """Processor seconds that all programs of this machine have used since it started; -1 where the system does not say."""
    try:
        user, nice, system = map(int, Path("/proc/stat").read_text(encoding="utf-8").split()[1:4])
    except (OSError, ValueError):
        return -1.0
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def machine() -> dict:
    """What everything was measured on."""
    memory = 0
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    versions = {name: metadata.version(name) for name in ("torch", "numpy", "scipy")}
    told = {"machine": processor(), "cores": os.cpu_count() or 0, "memory": memory, "threads": 1}
    return told | {"system": platform.system(), "python": platform.python_version()} | versions


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def toml(document: dict, series: list[dict]) -> str:
    """The file's text; JSON's numbers, texts and lists are TOML's too."""

    def keys(table: dict) -> list[str]:
        return [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in table.items()]

    blocks = ["\n".join(keys(document)), *("\n".join(("[[series]]", *keys(table))) for table in series)]
    return f"{HEAD}\n" + "\n\n".join(blocks) + "\n"


def replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def run(chosen: list[Series], rounds: int, kept: Path | None, target: Path | None) -> int:
    """Measure, say a line a series, keep each at once, and write the file when none failed; returns how many failed."""
    about = machine()
    plan = [[s.name, s.sizes, s.fixed, rounds] for s in chosen]
    key = hashlib.sha256(json.dumps([about, plan]).encode()).hexdigest()
    known = json.loads(kept.read_text(encoding="utf-8")) if kept and kept.exists() else {}
    done = known.get("series", {}) if known.get("key") == key else {}
    failed = 0
    for series in chosen:
        if series.name not in done:
            try:
                done[series.name] = measure(series, rounds)
            except Failed as problem:
                failed += 1
                print(f"FAILED: {problem}", file=sys.stderr, flush=True)
                continue
            if kept:
                replace(kept, json.dumps({"key": key, "series": done}))
        medians = [f"{statistics.median(cpu):.3g}" for cpu in done[series.name]["cpu"]]
        print(f"{series.name}: {', '.join(medians)} s at {series.sizes}", flush=True)
    if target and not failed:
        replace(target, toml(about | {"rounds": rounds}, [done[series.name] for series in chosen]))
        if kept:
            kept.unlink(missing_ok=True)
        print(f"written: {target}")
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--only", help="series whose names hold this; nothing is written")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--serve", nargs=2, metavar=("SERIES", "SIZE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        name, size = asked.serve
        serve(next(series for series in SERIES if series.name == name), int(size))
        return 0
    chosen = [series for series in SERIES if asked.only is None or asked.only in series.name]
    if not chosen:
        print(
            f"no series holds {asked.only!r}: there are {', '.join(s.name for s in SERIES)}.", file=sys.stderr
        )
        return 2
    whole = asked.only is None
    try:
        return int(run(chosen, asked.rounds, KEPT if whole else None, TARGET if whole else None) > 0)
    except KeyboardInterrupt:
        print("\nStopped. What was measured is kept; the same command goes on from there.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
