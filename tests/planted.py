"""A small book planted in a folder of its own, with the real machinery in its ``lib``: run as a reader runs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MACHINERY = ("__init__", "env", "chapter", "reach", "digest", "execute", "run", "stage", "site", "book")
PARAMETERS = ("code", ("parameters",), 'PROFILE = "quick"\nSEED = 0')
Cell = tuple[str, Sequence[str], str]  # kind, tags, source

WORK = '''
import json
from lib import digest, run
from lib.chapter import ROOT, find


def square(x):
    return x * x


def save(chapter, profile, seed, value):
    """What ``results.save`` does, in short."""
    path = run.results_file(find([chapter])[0], profile, ROOT)
    path.parent.mkdir(parents=True, exist_ok=True)
    provenance = {"digest": digest.of_chapter(chapter, profile)}
    path.write_text(json.dumps({"seed": seed, "value": value, "provenance": provenance}))
'''
SCOREBOARD = """
def verdicts_markdown():
    return "Planted verdicts.\\n"


def scoreboard_markdown():
    return "Planted scoreboard.\\n"
"""
CONFIG = """
title: Planted
author: Nobody
only_build_toc_files: true
execute:
  execute_notebooks: "off"
repository:
  url: ""
sphinx:
  recursive_update: true
  extra_extensions: [sphinx-mathjax-offline]
"""


def notebook(cells: Sequence[Cell]) -> str:
    """The JSON of a notebook, without outputs, as it is kept in git."""
    made = []
    for i, (kind, tags, source) in enumerate(cells):
        cell = {"cell_type": kind, "id": f"c{i}", "metadata": {"tags": list(tags)}, "source": source}
        made.append(cell | ({"outputs": [], "execution_count": None} if kind == "code" else {}))
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return json.dumps({"cells": made, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})


class Checkout:
    """A planted checkout of the book and the commands that a reader types in it."""

    def __init__(self, root: Path):
        self.root = root
        for module in MACHINERY:
            self.write(f"lib/{module}.py", (ROOT / "lib" / f"{module}.py").read_text(encoding="utf-8"))
        self.write("lib/work.py", WORK)
        self.write("lib/scoreboard.py", SCOREBOARD)
        self.write("lib/unreproduced.py", 'def unreproduced_markdown():\n    return "Planted gaps.\\n"\n')
        self.write("lib/costs.py", 'def costs_markdown():\n    return "Planted costs.\\n"\n')
        self.write("lib/student.py", 'def teaching_minutes():\n    return "Planted minutes.\\n"\n')
        self.write("requirements.txt", "six==1.17.0\n")
        self.write("_config.yml", CONFIG)

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def change(self, name: str, old: str, new: str) -> None:
        text = (self.root / name).read_text(encoding="utf-8")
        assert old in text
        self.write(name, text.replace(old, new))

    def chapter(self, stem: str, *cells: Cell) -> None:
        self.write(f"chapters/{stem}.ipynb", notebook(cells))

    def read(self, name: str) -> dict:
        return json.loads((self.root / name).read_text(encoding="utf-8"))

    def environment(self, **more: str) -> dict[str, str]:
        outer = {
            name: value for name, value in os.environ.items() if not name.startswith(("BOOK_", "JUPYTER_"))
        }
        outer.pop("PYTHONPATH", None)
        return outer | more

    def python(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """``python -m ...`` in this checkout, standard output and error together."""
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=self.root,
            env=self.environment(**environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )

    def remove(self, name: str) -> None:
        path = self.root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
