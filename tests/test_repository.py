"""What holds for every file of the repository: style, stripped notebooks, short cells, nothing of one machine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lib.chapter import Chapter, chapters

ROOT = Path(__file__).resolve().parents[1]
LONGEST_CELL = 25  # lines; the book aims at 15
MACHINE = "|".join(rf"/{folder}/\w" for folder in ("work", "root", "tmp", "home")) + r"|[A-Z]:\\Users"
REGISTRY = r"pypi\.org|pythonhosted\.org|registry\.npmjs|conda\.anaconda|deb\.debian\.org|download\.pytorch"


def tracked() -> list[Path]:
    """The text files that belong to the book: git's list, or without git everything that is not built."""
    try:
        asked = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(asked, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
        paths = [ROOT / name for name in listed if name]
    except (OSError, subprocess.CalledProcessError):
        built = re.compile(r"^(_build|\.venv|\.git|.*_cache|.*__pycache__)")
        paths = [path for path in ROOT.rglob("*") if not built.match(str(path.relative_to(ROOT)))]
    return [path for path in paths if path.is_file() and b"\0" not in path.read_bytes()[:4096]]


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff_agrees(command):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_names_a_machine_or_a_registry():
    here = Path(__file__)
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in tracked()
        if path != here
        for match in re.finditer(f"{MACHINE}|{REGISTRY}", path.read_text(encoding="utf-8"))
    ]
    assert not found


@pytest.mark.parametrize("chapter", chapters(), ids=lambda chapter: chapter.stem)
class TestChapter:
    """Every chapter's notebook as it is kept."""

    def test_is_stripped(self, chapter: Chapter):
        notebook = chapter.read()
        for cell in notebook["cells"]:
            assert not cell.get("outputs"), f"cell {cell['id']} holds outputs: clear them before you commit."
            assert cell.get("execution_count") is None
        assert notebook["metadata"]["kernelspec"]["name"] == "python3"
        assert set(notebook["metadata"]) <= {"kernelspec", "language_info"}

    def test_has_one_parameters_cell_with_quick_and_zero(self, chapter: Chapter):
        (parameters,) = [cell for cell in chapter.code_cells() if "parameters" in cell.tags]
        values: dict[str, object] = {}
        exec(parameters.source, values)
        assert (values["PROFILE"], values["SEED"]) == ("quick", 0)

    def test_cells_are_short(self, chapter: Chapter):
        long = {
            cell.index: n
            for cell in chapter.code_cells()
            if (n := cell.source.count("\n") + 1) > LONGEST_CELL
        }
        assert not long, f"cells of more than {LONGEST_CELL} lines (index: lines); move machinery to lib"

    def test_measures_and_imports_no_display_machinery(self, chapter: Chapter):
        cells = chapter.code_cells()
        assert any("measure" in cell.tags for cell in cells), (
            "no cell is tagged `measure`: the digest covers them all"
        )
        source = "\n".join(cell.source for cell in cells)
        assert not re.search(r"^\s*(from|import) IPython", source, re.MULTILINE), (
            "a GPU machine may lack IPython"
        )


def test_every_summary_leads_back_and_on():
    """One argument: each chapter's last words name the chapter before and the one behind it."""
    found = chapters(ROOT)
    stems = ["00-before-you-begin", *(chapter.stem for chapter in found), None]
    for before, chapter, after in zip(stems, found, stems[2:], strict=False):
        cells = [
            "".join(cell["source"]) for cell in chapter.read()["cells"] if cell["cell_type"] == "markdown"
        ]
        (summary,) = [cell for cell in cells if cell.startswith("## Summary")]
        for other in filter(None, (before, after)):
            assert f"{{doc}}`{other}`" in summary, f"{chapter.stem} does not lead to {other}"


def test_no_label_is_given_twice():
    """Sphinx would say so at the end of a build; this says so in a second."""
    given = re.compile(r"^(?::label: (?P<block>\S+)|\((?P<target>[\w-]+)\)=)\s*$", re.MULTILINE)
    seen: dict[str, str] = {}
    for path in [*(ROOT / "chapters").glob("*.md"), *(ROOT / "chapters").glob("*.ipynb")]:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            cells = json.loads(text)["cells"]
            text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        for match in given.finditer(text):
            label = match["block"] or match["target"]
            assert label not in seen, f"{label} is given in {seen[label]} and in {path.name}"
            seen[label] = path.name
