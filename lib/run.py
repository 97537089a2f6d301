"""`python -m lib.run CHAPTER... --profile quick|full --seed S --device auto|cpu|cuda|mps`: execute chapters.

Only what changed is executed again (``lib.digest``); a chapter that fails does not stop the others, and the exit
code says so. With papermill the executed copies lie in ``_build/executed/PROFILE/``; without it, on a machine
that has no Jupyter, the same cells run plainly and leave their results alone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lib import digest, execute
from lib.chapter import ROOT, Chapter, UnknownChapter, find
from lib.env import EnvironmentProblem, only_one, replace_text

RESULTS = {"quick": "_build/results/quick", "full": "data/results/full"}
DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True)
class Outcome:
    """What became of one chapter: executed now, fresh from before, or failed; and the seconds it took now."""

    chapter: Chapter
    status: Literal["executed", "fresh", "failed"]
    seconds: float = 0.0


def executed_copy(chapter: Chapter, profile: str, root: Path = ROOT) -> Path:
    """Where papermill's executed copy of a chapter lies."""
    return root / "_build" / "executed" / profile / chapter.path.name


def results_file(chapter: Chapter, profile: str, root: Path = ROOT) -> Path:
    """Where the chapter's ``results.save`` writes in this profile."""
    return root / RESULTS[profile] / f"{chapter.name}.json"


def is_fresh(chapter: Chapter, profile: str, seed: int, device: str, root: Path = ROOT) -> bool:
    """Whether executing the chapter again could change nothing.

    Quick: the executed copy was made from the same code, data, claims, lock and parameters, and its results are
    still there. Full: the published results have the digest that the chapter has today, and this seed.
    """
    if profile == "full":
        published = read_json(results_file(chapter, profile, root))
        made_with = published.get("provenance", {}).get("digest")
        return published.get("seed") == seed and made_with == digest.of_chapter(chapter, profile, root)
    book = read_json(executed_copy(chapter, profile, root)).get("metadata", {}).get("book", {})
    has_results = not book.get("saved") or results_file(chapter, profile, root).is_file()
    if not has_results or "key" not in book:
        return False
    return book["key"] == digest.run_key(chapter, profile, seed, device, root)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object, {} where the file is missing or broken."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def run(
    chapters: Sequence[Chapter],
    profile: str,
    seed: int = 0,
    device: str = "auto",
    *,
    root: Path = ROOT,
    force: bool = False,
    plain: bool = False,
) -> list[Outcome]:
    """Execute the chapters that are not fresh, one after the other, and say on the terminal how each went.

    Raises EnvironmentProblem while another run of the same profile is under way in this folder.
    """
    outcomes = []
    with only_one(root / "_build" / f"run-{profile}.lock", f"A {profile} run"):
        for leftover in (root / "_build" / "executed" / profile).glob(".*.partial.ipynb"):
            leftover.unlink()  # of a run that was killed
        for chapter in chapters:
            if not force and is_fresh(chapter, profile, seed, device, root):
                print(f"{chapter.name}: fresh, not executed again ({profile}, seed {seed})", flush=True)
                outcomes.append(Outcome(chapter, "fresh"))
                continue
            print(f"{chapter.name}: executing ({profile}, seed {seed}, device {device})", flush=True)
            outcomes.append(run_one(chapter, profile, seed, device, root, plain or not execute.has_jupyter()))
    return outcomes


def run_one(chapter: Chapter, profile: str, seed: int, device: str, root: Path, plain: bool) -> Outcome:
    """Execute one chapter; what it leaves behind is complete or not there."""
    parameters = {"PROFILE": profile, "SEED": seed}
    target = executed_copy(chapter, profile, root)
    partial = target.with_name(f".{target.stem}.{os.getpid()}.partial.ipynb")
    begun, start = time.time(), time.perf_counter()
    try:
        if not any("parameters" in cell.tags for cell in chapter.code_cells()):
            raise execute.ChapterFailed("it has no code cell tagged `parameters`, so no profile can be set.")
        if plain:
            execute.plainly(chapter, parameters, device, root)
        else:
            key = digest.run_key(chapter, profile, seed, device, root)
            notebook = execute.by_papermill(chapter, partial, parameters, device, root)
            seconds = time.perf_counter() - start
            results = results_file(chapter, profile, root)
            saved = (
                results.is_file() and results.stat().st_mtime >= begun - 2
            )  # file systems may keep whole seconds
            book = {
                "key": key,
                "profile": profile,
                "seed": seed,
                "seconds": round(seconds, 1),
                "saved": saved,
            }
            notebook.metadata["book"] = book
            replace_text(target, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    except execute.ChapterFailed as failure:
        print(f"{chapter.name}: FAILED after {time.perf_counter() - start:.0f} s: {failure}", flush=True)
        if partial.is_file():
            failed = root / "_build" / "failed" / profile / chapter.path.name
            failed.parent.mkdir(parents=True, exist_ok=True)
            partial.replace(failed)
            print(f"    as far as it came: {failed}", flush=True)
        return Outcome(chapter, "failed", time.perf_counter() - start)
    finally:
        partial.unlink(missing_ok=True)
    seconds = time.perf_counter() - start
    timings = root / "_build" / "timings" / f"{profile}.json"
    replace_text(timings, json.dumps(read_json(timings) | {chapter.name: round(seconds, 1)}, indent=1) + "\n")
    print(f"{chapter.name}: done in {seconds:.0f} s", flush=True)
    return Outcome(chapter, "executed", seconds)


def summary(outcomes: Sequence[Outcome]) -> str:
    """One line that counts the outcomes."""
    counts = [
        f"{sum(o.status == status for o in outcomes)} {status}" for status in ("executed", "fresh", "failed")
    ]
    return f"chapters: {', '.join(counts)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: 0 where every chapter ran or is fresh, 1 where one failed, 2 for a request that makes no sense."""
    parser = argparse.ArgumentParser(prog="python -m lib.run", description="Execute chapters of the book.")
    parser.add_argument(
        "chapters", nargs="*", metavar="CHAPTER", help="a name such as two-neurons; none: every one"
    )
    parser.add_argument("--profile", choices=RESULTS, default="quick")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--force", action="store_true", help="execute fresh chapters too")
    parser.add_argument("--plain", action="store_true", help="without Jupyter, even where it is installed")
    asked = parser.parse_args(arguments)
    try:
        outcomes = run(
            find(asked.chapters),
            asked.profile,
            asked.seed,
            asked.device,
            force=asked.force,
            plain=asked.plain,
        )
    except (UnknownChapter, EnvironmentProblem) as problem:
        print(problem, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "\nStopped. The chapters that were done stay done; the same command goes on from there.",
            file=sys.stderr,
        )
        return 130
    print(summary(outcomes))
    return int(any(outcome.status == "failed" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
