"""A chapter's notebook as plain data: where it lies, what it is called, what its code cells say. Needs no Jupyter."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class UnknownChapter(ValueError):
    """A name that no notebook of the book has; the message lists those there are."""


@dataclass(frozen=True)
class CodeCell:
    """One code cell: its place among all cells (from 0), its tags, and its source."""

    index: int
    tags: frozenset[str]
    source: str


@dataclass(frozen=True)
class Chapter:
    """One notebook of the book; ``01-two-neurons.ipynb`` is the chapter called ``two-neurons``."""

    path: Path

    @property
    def stem(self) -> str:
        """The file's name without its ending: ``01-two-neurons``."""
        return self.path.stem

    @property
    def name(self) -> str:
        """The stem without its number: ``two-neurons``, the name in results, claims and commands."""
        return re.sub(r"^\d+[a-z]?-", "", self.stem)

    def read(self) -> dict[str, Any]:
        """The notebook's JSON. Raises ValueError, naming the file, where it is none."""
        try:
            return json.loads(self.path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{self.path.name} is no notebook: its JSON ends in an error ({error})."
            ) from None

    def code_cells(self) -> list[CodeCell]:
        """The code cells in order."""
        return code_cells(self.read())


def code_cells(notebook: dict[str, Any]) -> list[CodeCell]:
    """The code cells of a notebook's JSON in order, those that papermill injected left out."""
    cells = [
        CodeCell(i, frozenset(cell.get("metadata", {}).get("tags", ())), text(cell["source"]))
        for i, cell in enumerate(notebook["cells"])
        if cell["cell_type"] == "code"
    ]
    return [cell for cell in cells if "injected-parameters" not in cell.tags]


def text(source: str | list[str]) -> str:
    """A cell's source as one string; the format stores a string or a list of lines."""
    return source if isinstance(source, str) else "".join(source)


def without_magics(source: str) -> str:
    """The cell's Python: lines that only IPython understands (``%magic``, ``!shell``) made into ``pass``."""
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.MULTILINE)


def parse(source: str) -> ast.Module:
    """The syntax tree of a cell; one that is not plain Python counts as its own text."""
    try:
        return ast.parse(without_magics(source))
    except SyntaxError:
        return ast.parse(f"__not_python__({source!r})")


def chapters(root: Path = ROOT) -> list[Chapter]:
    """Every chapter of the book, in reading order."""
    return [Chapter(path) for path in sorted((root / "chapters").glob("[0-9]*.ipynb"))]


def find(names: list[str], root: Path = ROOT) -> list[Chapter]:
    """The chapters with these names, stems or paths, each once, in the order asked; all of them for an empty list.

    Raises UnknownChapter for a name that none of them has.
    """
    known = chapters(root)
    chosen = []
    for name in names:
        wanted = Path(name).name.removesuffix(".ipynb")
        found = [chapter for chapter in known if wanted in (chapter.name, chapter.stem)]
        if not found:
            listed = ", ".join(chapter.name for chapter in known) or "none yet"
            raise UnknownChapter(f"there is no chapter called {name!r}; the book has: {listed}.")
        chosen += found
    return list(dict.fromkeys(chosen)) if names else known
