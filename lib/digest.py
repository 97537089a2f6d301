"""What a chapter's numbers depend on, as one digest: a published run is fresh while this digest is the same.

``of_chapter`` covers the statements that the cells tagged ``measure`` reach (``lib.reach``; syntax trees, so that
comments, docstrings and layout do not count), the chapter's sizes in the profile, and its settings in the ledger.
It is the same on every Python version. ``run_key`` is the wider question whether an executed copy of the notebook
may be shown again: every code cell, every reached file, the lock, the data's and claims' entries, the published run.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import runpy
import sys
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from lib.chapter import ROOT, Chapter, CodeCell, find, parse
from lib.env import lock_digest
from lib.reach import Module, Reach

SIZES = "lib.profile"  # counted by the chapter's own sizes, not by its source, which holds the other chapters' too
MACHINERY = {"lib.digest", "lib.reach", "lib.chapter", "lib.env", "lib.execute", "lib.run"}
PRESENTATION = {
    "lib.plots",
    "lib.drawing",
    "lib.widgets",
    "lib.step_player",
    "lib.results",
    "lib.claims",
    "lib.scoreboard",
}
SILENT_FIELDS = {"ctx", "kind", "type_comment", "type_ignores"}


def of_chapter(chapter: Chapter | str, profile: str, root: Path = ROOT) -> str:
    """sha256 of what the measurements of ``chapter`` depend on in ``profile``.

    Where no cell is tagged ``measure``, every code cell counts as one. Raises UnknownChapter for a name that no
    notebook has and ValueError for an unknown profile.
    """
    chapter = find([chapter], root)[0] if isinstance(chapter, str) else chapter
    reach = follow(chapter, root, only="measure", without={SIZES, *PRESENTATION, *MACHINERY})
    return sha256(describe(reach), sizes(chapter, profile, root), settings(chapter, root))


def run_key(chapter: Chapter, profile: str, seed: int, device: str, root: Path = ROOT) -> str:
    """sha256 of everything that can change the outputs of the chapter's notebook."""
    reach = follow(chapter, root, without={SIZES, *MACHINERY})
    published = root / "data" / "results" / "full" / f"{chapter.name}.json"
    raising = [cell.index for cell in chapter.code_cells() if "raises-exception" in cell.tags]
    return sha256(
        describe(reach),
        sizes(chapter, profile, root),
        entries(chapter, reach.strings, root),
        lock_digest(root / "requirements.txt"),
        # the page stamps a published run as stale by today's digest of the full profile
        [published.read_text(encoding="utf-8"), of_chapter(chapter, "full", root)]
        if published.is_file()
        else [],
        [profile, seed, device, sys.version_info[:2], raising],
    )


def follow(chapter: Chapter, root: Path, only: str = "", without: Iterable[str] = ()) -> Reach:
    """What the chapter's cells reach in ``lib``; with ``only``, the cells of that tag and what these need of the rest."""
    cells = chapter.code_cells()
    roots = {cell.index for cell in cells if only in cell.tags} or {cell.index for cell in cells}
    statements = [(cell, statement) for cell in cells for statement in statements_of(cell)]
    notebook = Module("__notebook__", False, [statement for _, statement in statements])
    reach = Reach(root / "lib", without)
    reach.add(notebook, [i for i, (cell, _) in enumerate(statements) if cell.index in roots])
    return reach


def statements_of(cell: CodeCell) -> list[ast.stmt]:
    """The statements of a cell; papermill overwrites a ``parameters`` cell, so what it says does not count."""
    return [] if "parameters" in cell.tags else parse(cell.source).body


def describe(reach: Reach) -> list[Any]:
    """The reached statements without comments and docstrings, what outside names mean, and the reached files' bytes."""
    return [
        [
            [module, _plain_statement(statement)]
            for module, statement in reach.statements()
            if not is_text(statement)
        ],
        sorted(reach.bindings),
        sorted([path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in reach.files),
    ]


@cache
def _plain_statement(statement: ast.stmt) -> Any:
    """``plain``, once for every chapter that reaches the statement."""
    return plain(statement)


def plain(node: Any) -> Any:
    """A syntax tree as nested lists, alike on every Python version: no positions, no docstrings, no empty fields."""
    if isinstance(node, ast.AST):
        return [type(node).__name__, *([name, plain(value)] for name, value in spoken_fields(node))]
    if isinstance(node, list):
        return [plain(item) for item in node if not is_text(item)]
    return f"{type(node).__name__} {node!r}"


def spoken_fields(node: ast.AST) -> Iterator[tuple[str, Any]]:
    """The fields of a node that say something about what it does."""
    for name, value in ast.iter_fields(node):
        if name not in SILENT_FIELDS and value is not None and value != []:
            yield name, value


def is_text(node: Any) -> bool:
    """Whether a statement is a string alone: a docstring, or the description of a field."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def sizes(chapter: Chapter, profile: str, root: Path) -> dict[str, Any]:
    """The chapter's own sizes in the profile, {} where it has none."""
    path = root / "lib" / "profile.py"
    if not path.is_file():
        return {}
    own = getattr(runpy.run_path(str(path))["get"](profile), chapter.name.replace("-", "_"), None)
    return {} if own is None else dataclasses.asdict(own)


def settings(chapter: Chapter, root: Path) -> dict[str, Any]:
    """The chapter's settings in the ledger, which its measurements read."""
    return table(root / "data" / "claims.toml").get("settings", {}).get(chapter.name, {})


def entries(chapter: Chapter, strings: set[str], root: Path) -> list[Any]:
    """The entries that the chapter can name: its own and mentioned claims, its settings, the data sets it mentions."""
    ledger = table(root / "data" / "claims.toml").get("claim", [])
    claims = [claim for claim in ledger if claim.get("chapter") == chapter.name or claim.get("id") in strings]
    registry = table(root / "data" / "registry.toml")
    return [claims, settings(chapter, root), {name: registry[name] for name in registry if name in strings}]


def table(path: Path) -> dict[str, Any]:
    """A TOML file's content, {} where there is none."""
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def sha256(*parts: Any) -> str:
    """Digest of nested lists, dicts, numbers and strings."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).hexdigest()
