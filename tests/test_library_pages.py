"""The library's pages: each module stands on one of them, and a reader of a chapter finds there what its cells call."""

import ast
import importlib
import re
from collections import Counter
from types import ModuleType

from lib.chapter import ROOT, chapters

LISTED = [
    name
    for page in sorted((ROOT / "chapters" / "library").glob("*.md"))
    for name in re.findall(r"automodule:: (\S+)", page.read_text(encoding="utf-8"))
]


def called(source: str) -> set[str]:
    """The modules of ``lib`` in which a cell's imports are defined."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ImportFrom) or (node.module or "").partition(".")[0] != "lib":
            continue
        package = importlib.import_module(node.module)
        for name in (alias.name for alias in node.names):
            if not hasattr(package, name):
                importlib.import_module(f"{node.module}.{name}")
            thing = getattr(package, name)
            found.add(
                thing.__name__ if isinstance(thing, ModuleType) else getattr(thing, "__module__", node.module)
            )
    return {name for name in found if name.startswith("lib.")}


def test_no_module_is_described_twice():
    assert [name for name, times in Counter(LISTED).items() if times > 1] == []


def test_every_page_is_in_the_contents():
    contents = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    front = (ROOT / "chapters" / "api.md").read_text(encoding="utf-8")
    for page in (ROOT / "chapters" / "library").glob("*.md"):
        assert f"chapters/library/{page.stem}\n" in contents
        assert f"library/{page.stem}`" in front


def test_what_chapters_call_is_described():
    missing = {
        name
        for chapter in chapters()
        for cell in chapter.code_cells()
        for name in called(cell.source) - set(LISTED)
    }
    assert missing == set()
