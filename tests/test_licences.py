"""LICENCES.md names every data set and every direct pin; CITATION.cff agrees with pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from lib.data.download import registry

ROOT = Path(__file__).resolve().parents[1]


def rows(heading: str) -> dict[str, list[str]]:
    """The cells of the table under ``heading`` of LICENCES.md, by the first cell."""
    text = (ROOT / "LICENCES.md").read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {first.strip("`"): rest for first, *rest in cells}


def test_every_data_set_with_its_doubts():
    table = rows("Data")
    assert list(table) == list(registry())
    for name, entry in registry().items():
        assert table[name] == [entry["title"], entry["licence"], entry["citation"]]


def test_every_direct_pin():
    pins = ROOT / "environment.yml"
    if not pins.exists():
        pytest.skip("environment.yml is not there yet")
    named = re.findall(r"^\s+- ([\w.-]+)==", pins.read_text(encoding="utf-8"), flags=re.MULTILINE)
    table = rows("Packages")
    assert sorted(table) == sorted(named)
    assert all(len(cells) == 1 and cells[0] for cells in table.values())


def test_the_licence_is_the_packages_own():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert project["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")
    assert "\nlicense: MIT\n" in citation
    assert f"\nversion: {project['version']}\n" in citation
