"""Lay out what the site is built from: the pages, the executed chapters under today's prose, generated fragments.

A staged notebook is today's source with the outputs of its executed copy: an edit of the prose needs no second
execution, and the page's download is the executed notebook.
"""

from __future__ import annotations

import ast
import copy
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lib.chapter import ROOT, chapters, parse, text
from lib.run import executed_copy

PAGES = ("_config.yml", "_toc.yml", "*.md", "_static", "_templates", "chapters")


class NotExecuted(Exception):
    """A chapter has no executed copy that matches its code cells."""


def fragments() -> dict[str, Callable[[], str]]:
    """The generated pieces of pages by name, made from the result files."""
    from lib import costs, scoreboard, student, unreproduced

    return {
        "verdicts": scoreboard.verdicts_markdown,
        "scoreboard": scoreboard.scoreboard_markdown,
        "not-reproduced": unreproduced.unreproduced_markdown,
        "costs": costs.costs_markdown,
        "teaching-minutes": student.teaching_minutes,
    }


def stage(
    target: Path,
    root: Path = ROOT,
    profile: str = "quick",
    make: Mapping[str, Callable[[], str]] | None = None,
) -> Path:
    """Make the folder ``target`` anew from the sources, the executed copies and the fragments; returns it.

    A file that says what it said before keeps its time, by which Sphinx knows what to read again. Raises NotExecuted for a chapter
    whose executed copy is missing or has other code; the folder then stays as it was.
    """
    new = target.with_name(f"{target.name}.next")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for path in (path for pattern in PAGES for path in sorted(root.glob(pattern))):
        if path.is_dir():
            unwanted = shutil.ignore_patterns(".*", "__pycache__")
            shutil.copytree(path, new / path.name, ignore=unwanted)
        else:
            shutil.copy2(path, new)
    for chapter in chapters(root):
        executed = executed_copy(chapter, profile, root)
        if not executed.is_file():
            raise NotExecuted(
                f"{chapter.name} has not been executed: run `python -m lib.run {chapter.name}`."
            )
        try:
            merged = merge(chapter.read(), json.loads(executed.read_text(encoding="utf-8")))
        except NotExecuted as problem:
            raise NotExecuted(f"{chapter.name}: {problem}") from None
        page = new / "chapters" / chapter.path.name
        page.write_text(json.dumps(merged, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    generated = new / "generated"
    generated.mkdir()
    for name, markdown in (fragments() if make is None else make).items():
        (generated / f"{name}.md").write_text(markdown(), encoding="utf-8")
    keep_times(target, new)
    shutil.rmtree(target, ignore_errors=True)
    new.replace(target)
    return target


def keep_times(old: Path, new: Path) -> None:
    """Give every file of ``new`` that has an equal one in ``old`` that one's time; all others are of now."""
    for path in (path for path in new.rglob("*") if path.is_file()):
        before = old / path.relative_to(new)
        if before.is_file() and before.read_bytes() == path.read_bytes():
            shutil.copystat(before, path)
        else:
            os.utime(path)


def merge(source: Mapping[str, Any], executed: Mapping[str, Any]) -> dict[str, Any]:
    """Today's cells with the executed copy's outputs, code cell by code cell, and its injected parameters.

    Raises NotExecuted where a code cell does other things than the one that was executed.
    """
    ran = [cell for cell in executed["cells"] if cell["cell_type"] == "code"]
    injected = {i for i, cell in enumerate(ran) if "injected-parameters" in cell["metadata"].get("tags", ())}
    pending = iter(enumerate(ran))
    cells = []
    for cell in copy.deepcopy(source["cells"]):
        cells.append(cell)
        if cell["cell_type"] != "code":
            continue
        i, match = next(pending, (-1, None))
        if match is None or not same_code(text(cell["source"]), text(match["source"])):
            raise NotExecuted("its code has changed since it was executed: run it again.")
        cell |= {"outputs": match["outputs"], "execution_count": match["execution_count"]}
        while i + 1 in injected:
            i, match = next(pending)
            cells.append(match)
    if next(pending, None) is not None:
        raise NotExecuted("its code has changed since it was executed: run it again.")
    return {**source, "cells": cells, "metadata": executed["metadata"]}


def same_code(one: str, other: str) -> bool:
    """Whether two cells do the same, comments and layout aside."""
    return one == other or ast.dump(parse(one)) == ast.dump(parse(other))
