"""`python -m lib.student [OUT]`: the chapters as notebooks to work in, with every exercise and without its solution.

A student's notebook has the chapter's cells in plain Markdown (``lib.plain_markdown``), so that it reads well in any
Jupyter. It leaves out the solutions, and the cell that saves the chapter's results: what a reader changes in it must
not become a number of the book.
"""

from __future__ import annotations

import ast
import copy
import json
import re
import symtable
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lib import results
from lib.chapter import ROOT, Chapter, CodeCell, chapters, code_cells, parse, text
from lib.env import KERNEL, replace_text
from lib.plain_markdown import Book, NotPlain, Plain, markdown_cells, read_book
from lib.reach import changed
from lib.rules import PROFILES
from lib.run import read_json

SAVES = re.compile(r"\bresults\.save\(")
ABOUT = """\
**Student notebook** of *{title}*, a chapter of the book *Symmetry in Weight Space*.

- **To run it** choose the kernel *Symmetry in Weight Space* (the book's `.venv`: `make env` makes it, and `install.py` in
  the offline bundle) and run all cells once, from the first to the last{minutes}.
- **To do an exercise** replace `return None  # your turn` in its stub, run that cell and the check below it. The check says
  *not attempted*, what is *not yet* right, or *correct*. A hint is folded away below the check.
- **The solutions** stand in the book, on the page of this chapter (`chapters/{stem}.html`), below each exercise.

Nothing that you change here changes the book: this notebook saves no results."""


class NoNotebook(ValueError):
    """A chapter of which no student's notebook can be made; the message says which cell is in the way."""


def student(chapter: Chapter, book: Book, seconds: float | None = None) -> dict[str, Any]:
    """The student's notebook of a chapter, as JSON without outputs.

    ``seconds`` is what the whole chapter was measured to take, None where nobody has measured it. Raises NotPlain for
    markup without a plain counterpart, and NoNotebook where a cell that stays needs a name from a solution.
    """
    source = chapter.read()
    kept = [cell for cell in source["cells"] if not left_out(cell)]
    refuse_borrowed_names(chapter, source)
    plain = Plain(chapter.stem, book)
    cells = []
    for cell in copy.deepcopy(kept):
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
        else:
            cell["source"] = plain(text(cell["source"]))
        if text(cell["source"]).strip():
            cells.append(cell)
    minutes = (
        "" if seconds is None else f"; that took {seconds:.0f} seconds on the machine that built the book"
    )
    title = book.titles.get(chapter.stem, chapter.stem)
    about = ABOUT.format(title=title, stem=chapter.stem, minutes=minutes)
    first = {"cell_type": "markdown", "id": "about-this-notebook", "metadata": {}, "source": about}
    kernel = {"name": KERNEL, "display_name": "Symmetry in Weight Space", "language": "python"}
    return source | {
        "cells": [first, *cells],
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
    }


def left_out(cell: dict[str, Any]) -> bool:
    """Whether a cell is a solution, or saves the chapter's results."""
    tags = cell.get("metadata", {}).get("tags", ())
    return "solution" in tags or (cell["cell_type"] == "code" and bool(SAVES.search(text(cell["source"]))))


def refuse_borrowed_names(chapter: Chapter, notebook: dict[str, Any]) -> None:
    """Raise NoNotebook where a cell that stays reads a name that only a cell left out binds."""
    missing: dict[str, int] = {}
    for cell in code_cells(notebook):
        bound, read = set(), set()
        for statement in parse(cell.source).body:
            now, before = names(statement)
            read |= before - bound
            bound |= now
        if left_out(notebook["cells"][cell.index]):
            missing |= {name: cell.index for name in bound - missing.keys()}
            continue
        for name in sorted(read & missing.keys()):
            raise NoNotebook(
                f"{chapter.name}: cell {cell.index} reads `{name}`, which only cell {missing[name]} binds, a solution or the "
                "saving of results, and students' notebooks go without it: bind the name in a cell that stays."
            )
        missing = {name: index for name, index in missing.items() if name not in bound}


def names(statement: ast.stmt) -> tuple[set[str], set[str]]:
    """Global names that a statement binds, and those that it reads, functions in it included."""
    top = symtable.symtable(ast.unparse(statement), "<cell>", "exec")
    bound = {
        s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()
    }
    read = {s.get_name() for s in top.get_symbols() if s.is_referenced()}
    for inner in scopes(top):
        read |= {s.get_name() for s in inner.get_symbols() if s.is_global() and s.is_referenced()}
    read |= {
        node.target.id
        for node in ast.walk(statement)
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name) and node.target.id in bound
    }
    return bound, read


def scopes(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    """The functions, classes and comprehensions inside a scope, at any depth."""
    for inner in table.get_children():
        yield inner
        yield from scopes(inner)


def needed(cells: Sequence[CodeCell], wanted: set[int]) -> list[tuple[int, str]]:
    """What must run so that the cells with these indices run: they themselves whole, of the others some statements.

    Returns (index of the cell, source) in order. A statement counts where it is the last to have bound or changed a
    name that is read later on; what a call changes inside an object is not seen.
    """
    statements = [(cell.index, statement) for cell in cells for statement in parse(cell.source).body]
    imported = {
        name for _, s in statements if isinstance(s, ast.Import | ast.ImportFrom) for name in names(s)[0]
    }
    asked: set[str] = set()
    chosen = []
    for index, statement in reversed(statements):
        bound, read = names(statement)
        altered = (
            set(changed(statement)) & read
        ) - imported  # a module's function is no change of the module
        if index in wanted or (bound | altered) & asked:
            certain = not isinstance(statement, ast.If | ast.For | ast.While | ast.Try | ast.With)
            asked = (asked - bound if certain else asked) | read
            chosen.append((index, ast.unparse(statement)))
    return chosen[::-1]


def write(target: Path, root: Path = ROOT) -> list[Path]:
    """Write the student's notebook of every chapter into the folder ``target``; returns their paths.

    Raises what ``student`` raises. Other files in the folder are left alone.
    """
    book, timings = read_book(root), read_json(root / "_build" / "timings" / "quick.json")
    written = []
    for chapter in chapters(root):
        notebook = student(chapter, book, timings.get(chapter.name))
        path = target / chapter.path.name
        replace_text(path, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
        written.append(path)
    return written


def teaching_minutes(root: Path = ROOT) -> str:
    """A Markdown table of each chapter's minutes: to read and to exercise as planned, to compute as measured.

    The plans stand in the chapters. Quick is what executing the whole notebook took on the machine that built the
    page, full what the published run says of itself; "not yet measured" where there is none.
    """
    titles = read_book(root).titles
    whole = {profile: read_json(root / "_build" / "timings" / f"{profile}.json") for profile in PROFILES}
    columns = ("Chapter", "To read (planned)", "Exercises (planned)", "Quick (measured)", "Full (measured)")
    lines = [columns, ["---"] * len(columns)]
    for chapter in chapters(root):
        prose = "\n".join(markdown_cells(chapter))
        reading = re.search(r"About (\d+) to read", prose)
        minutes = [int(found) for found in re.findall(r"^\*\w+, (\d+) minutes\.\*", prose, re.MULTILINE)]
        planned = (f"{reading[1]} min" if reading else "–", f"{len(minutes)}, {sum(minutes)} min")
        computed = [measured(chapter, profile, whole[profile], root) for profile in PROFILES]
        lines.append((titles[chapter.stem], *planned, *computed))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def measured(chapter: Chapter, profile: str, whole: dict[str, Any], root: Path) -> str:
    """The seconds of one chapter in one profile and what they were measured on, or that nobody has measured them."""
    provenance = (results.load(chapter.name, profile, root) or {}).get("provenance", {})
    seconds = whole.get(chapter.name) or provenance.get("wall_seconds")
    if not seconds:
        return results.NOT_MEASURED
    threads = f", {provenance['threads']} threads" if provenance.get("device") == "cpu" else ""
    return f"{seconds:,.0f} s ({provenance.get('device_name', 'device unknown')}{threads})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: prints the folder; exit code 1 with a sentence where a chapter cannot be turned."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if len(given) > 1 or given[:1] in (["-h"], ["--help"]):
        print("python -m lib.student [OUT]: write the students' notebooks into OUT (_build/student).")
        return int(len(given) > 1)
    target = Path(given[0]) if given else ROOT / "_build" / "student"
    try:
        written = write(target)
    except (NoNotebook, NotPlain) as problem:
        print(problem, file=sys.stderr)
        return 1
    print(f"{len(written)} notebooks in {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
