"""The bundle for a room without network: complete, the same bytes each time, and an environment from it alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from planted import PARAMETERS, Checkout

from lib import bundle
from lib.bundle import BundleProblem
from lib.env import python_in

CELLS = (
    ("markdown", (), "# Planted chapter"),
    PARAMETERS,
    ("code", ("exercise",), "def double(x):\n    return None  # your turn"),
    ("code", ("solution",), "def double_solution(x):\n    return 2 * x"),
)


def make_wheel(folder: Path, name: str) -> Path:
    """A wheel of one module, made by hand."""
    folder.mkdir(exist_ok=True)
    about = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": "ANSWER = 42\n",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/RECORD": "",
    }
    files[f"{about}/RECORD"] = "".join(f"{file},,\n" for file in files)
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in files.items():
            archive.writestr(file, content)
    return path


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A planted book as if built, whose only pin is a wheel in the folder ``shelf`` beside it."""
    made = Checkout(tmp_path_factory.mktemp("room") / "a book")
    made.chapter("01-planted", *CELLS)
    made.write("requirements.txt", "tiny==1.0\n")
    made.write("data/claims.toml", "")
    made.write("data/large.npz", "not for the bundle")
    made.write("_build/html/index.html", "<p>front page</p>")
    made.write("_build/html/_static/documentation_options.js", "{SHOW_SEARCH_SUMMARY: true}")
    made.write("_build/html/_sources/chapters/01-planted.ipynb", "executed")
    made.write("_build/html/.buildinfo", "made today")
    made.write("_build/timings/quick.json", '{"planted": 41.8}')
    made.write("lib/__pycache__/work.pyc", "compiled")
    make_wheel(made.root.parent / "shelf", "tiny")
    return made


@pytest.fixture
def from_shelf(checkout):
    """What keeps pip off the network: it looks into the folder ``shelf`` alone."""
    return ("--no-index", "--find-links", str(checkout.root.parent / "shelf"))


def test_the_zip_is_complete_and_the_same_each_time(checkout, from_shelf, tmp_path):
    first = bundle.bundle(tmp_path / "a.zip", checkout.root, options=from_shelf)
    second = bundle.bundle(tmp_path / "b.zip", checkout.root, options=from_shelf)
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as packed:
        entries = {entry.filename.removeprefix(f"{bundle.NAME}/"): entry for entry in packed.infolist()}
        said = {name: packed.read(entry).decode("utf-8", "replace") for name, entry in entries.items()}
    assert list(entries) == sorted(entries)
    assert {entry.date_time for entry in entries.values()} == {(1980, 1, 1, 0, 0, 0)}
    stored = {name for name, entry in entries.items() if entry.compress_type == zipfile.ZIP_STORED}
    assert stored == {"wheels/tiny-1.0-py3-none-any.whl"}
    assert {"book/index.html", "lib/chapter.py", "data/claims.toml", "chapters/01-planted.ipynb"} <= set(
        entries
    )
    assert {"README.md", "install.py", "requirements.txt"} <= set(entries)
    assert not {"data/large.npz", "book/.buildinfo", "lib/__pycache__/work.pyc"} & set(entries)
    assert said["book/notebooks/01-planted.ipynb"] == "executed"
    assert "SHOW_SEARCH_SUMMARY: false" in said["book/_static/documentation_options.js"]
    assert "double_solution" not in said["student/01-planted.ipynb"]
    here = "Python {}.{} on ".format(*sys.version_info[:2]) + sysconfig.get_platform()
    assert here in said["README.md"]
    assert "took 42 seconds" in said["README.md"]


def test_the_environment_comes_from_the_bundle_alone(checkout, from_shelf, tmp_path):
    made = bundle.bundle(tmp_path / "a room" / "bundle.zip", checkout.root, options=from_shelf)
    with zipfile.ZipFile(made) as packed:
        packed.extractall(tmp_path / "a room")
    here = tmp_path / "a room" / bundle.NAME
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_EXTRA_INDEX_URL": "http://127.0.0.1:9/"}
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON"))} | nowhere
    installed = subprocess.run(
        [sys.executable, str(here / "install.py")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert installed.returncode == 0, installed.stdout + installed.stderr
    assert "index" not in (here / ".venv" / "install.log").read_text("utf-8"), "pip looked beyond the folder"
    asked = "import tiny, lib; print(tiny.ANSWER, lib.__file__)"
    told = subprocess.run(
        [str(python_in(here / ".venv")), "-c", asked],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert told.stdout.split(maxsplit=1) == ["42", f"{here / 'lib' / '__init__.py'}\n"], told.stderr
    kernel = next(here.glob(".venv/share/jupyter/kernels/*/kernel.json"))
    assert str(here / ".venv") in json.loads(kernel.read_text(encoding="utf-8"))["argv"][0]


def test_wheels_for_another_python_say_so_and_refuse_this_one(checkout, from_shelf, tmp_path):
    made = bundle.bundle(
        tmp_path / "bundle", checkout.root, python="3.99", platforms=["win_amd64"], options=from_shelf
    )
    assert (made / "wheels" / "tiny-1.0-py3-none-any.whl").is_file()
    assert "with Python 3.99 on win_amd64" in (made / "README.md").read_text(encoding="utf-8")
    refused = subprocess.run([sys.executable, str(made / "install.py")], capture_output=True, text=True)
    assert refused.returncode == 1
    assert "These wheels are for Python 3.99, and this is Python 3." in refused.stderr
    assert not (made / ".venv").exists()


def test_without_wheels_the_readme_says_where_packages_come_from(checkout, tmp_path):
    made = bundle.bundle(tmp_path / "bundle", checkout.root, with_wheels=False)
    assert not (made / "wheels").exists()
    assert "made without wheels" in (made / "README.md").read_text(encoding="utf-8")
    assert "WHEELS_FOR = Path(__file__).resolve().parent, None" in (made / "install.py").read_text("utf-8")


def test_what_cannot_be_bundled_is_told(checkout, from_shelf, tmp_path):
    with pytest.raises(BundleProblem, match="the site has not been built"):
        bundle.bundle(tmp_path / "a.zip", tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(BundleProblem, match="is there already"):
        bundle.bundle(tmp_path / "full", checkout.root, with_wheels=False)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
    asked = tmp_path / "requirements.txt"
    asked.write_text("absent==1.0\n")
    with pytest.raises(BundleProblem, match=r"(?s)wheel for every pin of requirements.txt.*absent==1\.0"):
        bundle.download(asked, tmp_path / "wheels", options=from_shelf)
    with pytest.raises(BundleProblem, match=r"--python new is no version"):
        bundle.download(asked, tmp_path / "wheels", python="new")


def test_sizes_name_the_parts_of_zip_and_folder(checkout, from_shelf, tmp_path):
    folder = bundle.bundle(tmp_path / "bundle", checkout.root, options=from_shelf)
    (folder / "wheels" / "large.whl").write_bytes(b"0" * 2_000_000)
    assert bundle.sizes(folder).startswith("2.")
    assert ": wheels 2.0, " in bundle.sizes(folder)
    files = {path.relative_to(folder).as_posix(): path for path in bundle.every_file(folder)}
    assert ": wheels 2.0, " in bundle.sizes(bundle.write_zip(files, tmp_path / "bundle.zip", bundle.NAME))
