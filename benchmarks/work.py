"""What the scripts share: peers as processes that are timed in turn, so that a busy machine slows all of them alike.

A peer reads a line from standard input, does the work once and writes the seconds it took.  This file imports nothing
but the standard library: the JAX peer runs it in another environment.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "_build" / "benchmarks"


def serve(work: Callable[[], object]) -> None:
    """Peer's side: do the work once to warm up, then once for each line that comes in."""
    work()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        work()
        print(time.perf_counter() - start, flush=True)


def take_turns(commands: dict[str, list[str]], rounds: int) -> dict[str, list[float] | str]:
    """Seconds of every peer over the rounds, or the reason why it has none."""
    peers, result = {}, {}
    with tempfile.TemporaryFile("w+") as errors:
        for who, command in commands.items():
            peer = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT
            )
            if peer.stdout.readline().strip() == "ready":
                peers[who], result[who] = peer, []
            else:
                errors.seek(0)
                said = errors.read().strip().splitlines()
                result[who] = said[-1] if said else f"it ended with exit code {peer.wait()}"
        for _ in range(rounds):
            for who, peer in peers.items():
                peer.stdin.write("go\n")
                peer.stdin.flush()
                result[who].append(float(peer.stdout.readline()))
        for peer in peers.values():
            peer.communicate()
    return result


def report(work: str, who: str, unit: str, values: list[float] | str, **more: object) -> None:
    """One JSON line: median, least, greatest and number of runs, or why there is none."""
    line = {"work": work, "who": who}
    if isinstance(values, str):
        line["missing"] = values
    else:
        line |= {f"median_{unit}": round(statistics.median(values), 3), "min": round(min(values), 3)}
        line |= {"max": round(max(values), 3), "runs": len(values)}
    print(json.dumps(line | more), flush=True)


def ratio(work: str, seconds: dict[str, list[float] | str], above: str, below: str, **more: object) -> None:
    """One line, of ratios taken within a round; none where one of the two has no time."""
    a, b = seconds[above], seconds[below]
    if not isinstance(a, str) and not isinstance(b, str):
        of_medians = round(statistics.median(a) / statistics.median(b), 3)
        ratios = [x / y for x, y in zip(a, b, strict=True)]
        report(work, f"{above} / {below}", "ratio", ratios, of_medians=of_medians, **more)


def installed_apart(folder: Path, requirement: str) -> str | None:
    """None where the package lies in its folder, into which pip puts it without what it requires; else why it does not."""
    done = folder / "installed"
    if done.exists():
        return None
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    try:
        subprocess.run([*pip, requirement], check=True, stdout=sys.stderr)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"no {requirement}: {error}", file=sys.stderr)
        return f"pip could not install {requirement} (its message is on standard error)"
    done.touch()
    return None


def jax_python() -> str | None:
    """The Python of the JAX environment, made when absent; None where it cannot be made."""
    home = BUILD / "jax"
    python = home / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    done = home / "installed"
    if not done.exists():
        print(f"making an environment for JAX in {home.relative_to(ROOT)}", file=sys.stderr)
        try:
            subprocess.run(
                [sys.executable, "-m", "venv", "--clear", str(home)], check=True, stdout=sys.stderr
            )
            install = [
                str(python),
                "-m",
                "pip",
                "install",
                "-q",
                "-r",
                str(ROOT / "benchmarks" / "requirements.txt"),
            ]
            subprocess.run(install, check=True, stdout=sys.stderr)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"no JAX: {error}", file=sys.stderr)
            return None
        done.touch()
    return str(python)
