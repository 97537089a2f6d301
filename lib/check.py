"""`python -m lib.check`: is this machine ready for the book, and how long will it take here?

Looks at the interpreter, the packages against the pins, the notebooks' kernel, the data sets, the device; trains small
networks for five seconds; and predicts from that what the chapters take. Exit code 1 where something required is
broken, each time with the sentence that says how to mend it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import textwrap
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from lib import env
from lib.chapter import chapters

ROOT = env.ROOT
CORE = {  # what a chapter computes with; the other pins run notebooks, build pages and test
    "jaxtyping",
    "matplotlib",
    "mlxtend",
    "numpy",
    "pandas",
    "pooch",
    "safetensors",
    "scikit-learn",
    "scipy",
    "torch",
    "tqdm",
}
MEND = "run `make env` (without make: `python3 -m lib.env`)"


@dataclass(frozen=True)
class Finding:
    """One line of the report: ``state`` is "ok", "note" (nothing required is missing) or "BROKEN", with its ``mend``."""

    state: str
    text: str
    mend: str = ""


def python(version: tuple[int, ...] = sys.version_info[:3]) -> Iterator[Finding]:
    """Is the interpreter one that the packages exist for?"""
    name = f"Python {'.'.join(map(str, version))} on {platform.system()} {platform.machine()}"
    if env.suitable(tuple(version[:2])):
        yield Finding("ok", name)
    else:
        yield Finding(
            "BROKEN", name, "the book needs Python 3.11, 3.12 or 3.13: install one, then `make env`."
        )


def packages(lock: Path = ROOT / "requirements.txt") -> Iterator[Finding]:
    """Do the installed versions equal the pins? Local versions (``+cpu``) are the same version."""
    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError:
        yield Finding("BROKEN", "the packages are not installed", f"{MEND}.")
        return
    lines = [line for line in lock.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    pins = [pin for pin in map(Requirement, lines) if pin.marker is None or pin.marker.evaluate()]
    missing, other, right = [], [], 0
    for pin in pins:
        wanted = str(pin.specifier).removeprefix("==")
        try:
            found = metadata.version(pin.name).split("+")[0]
        except metadata.PackageNotFoundError:
            missing.append(pin.name)
            continue
        if found == wanted:
            right += 1
        else:
            other.append(f"{pin.name} {found} (pinned {wanted})")
    needed = sorted(CORE & set(missing))
    if needed:
        yield Finding("BROKEN", f"packages: {', '.join(needed)} not installed", f"{MEND}.")
    if others := [name for name in missing if name not in CORE]:
        shown = ", ".join(others[:6]) + (f" and {len(others) - 6} more" if len(others) > 6 else "")
        yield Finding(
            "note", f"packages: {shown} not installed; chapters compute without", f"to build pages, {MEND}."
        )
    if other:
        yield Finding(
            "note", f"packages: {', '.join(other)}: numbers may differ", f"for the pinned ones, {MEND}."
        )
    if right == len(pins):
        yield Finding("ok", f"packages: all {right} as pinned")


def kernel(prefix: Path = Path(sys.prefix)) -> Iterator[Finding]:
    """Do notebooks run in this environment, whatever other kernels the user has?"""
    description = prefix / "share" / "jupyter" / "kernels" / env.KERNEL / "kernel.json"
    try:
        interpreter = Path(json.loads(description.read_text(encoding="utf-8"))["argv"][0])
    except (OSError, ValueError, LookupError):
        text = f"kernel: {env.KERNEL} is not installed here; `python -m lib.run` works without"
        yield Finding("note", text, f"to run notebooks, {MEND}.")
        return
    if interpreter.exists() and interpreter.parent.resolve() == Path(sys.executable).parent.resolve():
        yield Finding("ok", f"kernel: {env.KERNEL} runs this environment")
    else:
        yield Finding("BROKEN", f"kernel: {env.KERNEL} runs {interpreter}, another environment", f"{MEND}.")


def data() -> Iterator[Finding]:
    """Which sets are here, and where; what is not is downloaded when a chapter of the full profile asks for it."""
    from lib.data import MissingData, available

    try:
        places = available()
    except MissingData as error:
        yield Finding("BROKEN", "data: the folder of BOOK_DATA", str(error))
        return
    for place in dict.fromkeys(places.values()):
        names = ", ".join(name for name, where in places.items() if where == place)
        if place == "download":
            text = f"data, not here: {names}; only the full profile reads them, and downloads them then"
            yield Finding("note", text, "with a copy of your own, let BOOK_DATA name its folder.")
        else:
            yield Finding("ok", f"data, {place}: {names}")


def device() -> Iterator[Finding]:
    """The device that chapters will use, and whether torchvision imports beside this torch."""
    import torch

    from lib.device import pick
    from lib.torchvision_guard import import_torchvision, stubbed

    try:
        chosen = pick()
    except (RuntimeError, ValueError) as error:
        yield Finding("BROKEN", "device: the one that BOOK_DEVICE names", str(error))
    else:
        about = f"{torch.get_num_threads()} threads"
        if chosen.type == "cuda":
            properties = torch.cuda.get_device_properties(chosen)
            about = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        yield Finding(
            "ok", f"device: {chosen.type} ({about}), torch {torch.__version__}, {os.cpu_count()} cores"
        )
    try:
        import_torchvision()
    except Exception as error:  # whatever stops its import must not stop this report
        yield Finding("note", f"torchvision: does not import ({error})", f"for the image chapters, {MEND}.")
    else:
        beside = "without its compiled operators, which the book does not need" if stubbed() else "as built"
        yield Finding("ok", f"torchvision: imports, {beside}")


def measure(seconds: float = 5.0, where: str = "cpu") -> float:
    """Microseconds a step and network, of 64-16-10 networks trained on digits in batches of 64; the best of many."""
    import torch
    from torch import nn

    from lib.data import load
    from lib.population import Recipe, train

    digits = load("digits", "train")
    net = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    recipe = Recipe(lr=0.1, batch_size=64, epochs=2)
    members = 256 if where == "cpu" else 16_384
    work = members * recipe.epochs * -(-len(digits) // recipe.batch_size)
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        start = time.perf_counter()
        train(net, digits.inputs, digits.targets, recipe, members=members, seed=0, device=where)
        if where == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best / work * 1e6


def predict(
    names: list[str], where: str, measured: float, table: Path = ROOT / "data" / "costs.toml"
) -> Iterator[tuple[str, str, float | None]]:
    """(chapter, profile, seconds expected here), None where no reference was recorded on that kind of device."""
    reference = tomllib.loads(table.read_text(encoding="utf-8")).get(where, {})
    for profile in ("quick", "full"):
        for name in names:
            seconds = reference.get("seconds", {}).get(profile, {}).get(name)
            yield (
                name,
                profile,
                None if seconds is None else float(seconds) * measured / reference["measured"],
            )


def in_words(seconds: float | None) -> str:
    """A duration as people say it: "40 s", "12 min", "3.5 h"."""
    if seconds is None:
        return "not measured yet"
    if seconds < 90:
        return f"about {max(seconds, 1):.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def guarded(topic: str, check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """The findings of one check; one that stops is itself a finding, so that the report goes on."""
    try:
        return list(check())
    except Exception as error:  # a broken environment breaks in many ways
        return [Finding("BROKEN", f"{topic}: {type(error).__name__}: {error}", f"{MEND}.")]


def speed(seconds: float) -> Iterator[Finding]:
    """The measurement, and what it predicts for each chapter and profile."""
    from lib.device import pick

    where = pick().type
    measured = measure(seconds, where)
    yield Finding("ok", f"speed: {measured:.2f} µs a step and network (64-16-10 networks on digits, {where})")
    names = [chapter.name for chapter in chapters()]
    for name, profile, expected in predict(names, where, measured):
        yield Finding("ok" if expected else "note", f"time: {name}, {profile}: {in_words(expected)}")


def in_lines(finding: Finding) -> str:
    """A finding for a terminal: its state in a column of its own, the way to mend it below."""
    paragraphs = [finding.text, finding.mend[:1].upper() + finding.mend[1:]]
    lines = [line for text in paragraphs for line in textwrap.wrap(text, 100, break_on_hyphens=False)]
    return f"{finding.state:>6}  " + "\n        ".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Print the report; 0 where nothing required is broken, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m lib.check", description="Is this machine ready for the book?"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to measure (default 5)")
    chosen = parser.parse_args(arguments)
    broken = 0

    checks = {"python": python, "packages": packages, "kernel": kernel, "data": data, "device": device}
    checks["speed"] = lambda: speed(chosen.seconds)
    for topic, check in checks.items():
        for finding in guarded(topic, check):
            broken += finding.state == "BROKEN"
            print(in_lines(finding), flush=True)
    print()
    print(f"{broken} broken, see above." if broken else "This machine is ready: `make book` builds the book.")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
