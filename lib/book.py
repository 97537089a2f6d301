"""`python -m lib.book build|test|dist|clean`: the book as a whole, from changed chapters to the finished site."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from lib import run, site, stage
from lib.chapter import ROOT, chapters
from lib.env import KERNEL, EnvironmentProblem, only_one, write_kernel
from lib.execute import inherited


class BookProblem(Exception):
    """Why the book could not be built, in a sentence."""


def build(root: Path = ROOT, profile: str = "quick", seed: int = 0, device: str = "auto") -> Path:
    """Execute the chapters that changed, build the pages, and return the path of their front page.

    Raises BookProblem where a chapter fails or the pages have a warning; the last good site then stays in place.
    """
    with only_one(root / "_build" / "book.lock", "A build"):
        outcomes = run.run(chapters(root), profile, seed, device, root=root)
        if failed := [outcome.chapter.name for outcome in outcomes if outcome.status == "failed"]:
            raise BookProblem(
                f"the pages were not built, because these chapters failed: {', '.join(failed)}."
            )
        html = root / "_build" / "html"
        try:
            source = stage.stage(root / "_build" / "source", root, profile)
            print("pages: built" if site.build(source, html, root) else "pages: up to date", flush=True)
        except (site.SiteFailed, stage.NotExecuted) as problem:
            raise BookProblem(str(problem)) from None
        return html / "index.html"


def dist(root: Path = ROOT) -> Path:
    """Build the book and pack it as one zip that opens offline; returns the zip's path."""
    build(root)
    return site.pack(root / "_build" / "html", root / "_build" / f"{site.ARCHIVE}.zip")


def clean(root: Path = ROOT) -> None:
    """Remove everything that was built; the environment and the published results stay."""
    shutil.rmtree(root / "_build", ignore_errors=True)


def prove(root: Path = ROOT) -> int:
    """Prove the book: build it, run the tests and the notebooks a second time; returns how many failed.

    The last line counts all of it: ``N passed, N failed, N skipped``.
    """
    counts = Counter(passed=0, failed=0, skipped=0)
    try:
        print(build(root), flush=True)
        counts["passed"] += 1
    except BookProblem as problem:
        print(f"the book could not be built: {problem}", flush=True)
        counts["failed"] += 1
    reports = root / "_build" / "reports"
    reports.mkdir(parents=True, exist_ok=True)
    tests = [sys.executable, "-m", "pytest", "--numprocesses=auto", "--dist=loadfile"]
    counts += counted(tests, reports / "tests.xml", root, os.environ)
    copies = [
        copy for chapter in chapters(root) if (copy := run.executed_copy(chapter, "quick", root)).is_file()
    ]
    if copies:
        write_kernel(root / "_build" / "jupyter", sys.executable)
        environment = inherited(root, os.environ.get("BOOK_DEVICE", "auto"), os.environ)
        counts += counted(second_execution(copies, root), reports / "notebooks.xml", root, environment)
    print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped", flush=True)
    return counts["failed"]


def second_execution(copies: Sequence[Path], root: Path = ROOT) -> list[str]:
    """The command that executes these copies again (nbval) and compares what their cells print with what stands there."""
    options = ["-p", "nbval", "-p", "no:cacheprovider", "-o", "addopts=", "-o", "filterwarnings=default"]
    compare = ["--nbval", "--nbval-kernel-name", KERNEL]
    sanitize = ["--nbval-sanitize-with", str(root / "tests" / "nbval.cfg")]
    return [sys.executable, "-m", "pytest", "-q", *options, *compare, *sanitize, *map(str, copies)]


def counted(command: Sequence[str], report: Path, root: Path, environment: Mapping[str, str]) -> Counter[str]:
    """Run one pytest session and count its report; a session that ends without one counts as a failure."""
    report.unlink(missing_ok=True)
    done = subprocess.run([*command, f"--junitxml={report}"], cwd=root, env=environment)
    if not report.is_file():
        return Counter(failed=1)
    suites = xml.etree.ElementTree.parse(report).getroot().iter("testsuite")
    found: Counter[str] = Counter()
    for suite in suites:
        broken = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        skipped = int(suite.get("skipped", 0))
        found += Counter(passed=int(suite.get("tests", 0)) - broken - skipped, failed=broken, skipped=skipped)
    if done.returncode and not found["failed"]:
        found["failed"] += 1
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: exit code 0 where all went well, 1 with a sentence where it did not."""
    parser = argparse.ArgumentParser(
        prog="python -m lib.book", description="Build, prove, pack or clean the book."
    )
    parser.add_argument("command", choices=("build", "test", "dist", "clean"))
    command = parser.parse_args(arguments).command
    try:
        if command == "build":
            print(build())
        elif command == "test":
            return int(prove() > 0)
        elif command == "dist":
            print(dist())
        else:
            clean()
    except (BookProblem, EnvironmentProblem) as problem:
        print(problem, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; the same command goes on from there.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
