"""`python -m lib.bundle [OUT]`: the book for a room without network, as one zip, or as a folder.

In it: the built site, the executed notebooks, the students' notebooks, what they run on (``lib``, ``data``, the chapters'
sources), the wheels of every pin, and ``install.py``, which makes the environment from them. What the bundle asks the
network for, it asks for while it is made.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib import site, student
from lib.chapter import ROOT
from lib.env import KERNEL
from lib.plain_markdown import NotPlain
from lib.run import read_json
from lib.site import every_file, write_zip

NAME = f"{site.ARCHIVE}-room"
SOURCES = (
    "lib/**/*",
    "data/*.toml",
    "data/results/full/*.json",
    "chapters/*.ipynb",
    "requirements.txt",
    "LICENSE",
)
INSTALL = '''\
"""`python3 install.py`: make the book's environment, .venv beside this file, from the folder wheels. No network."""

import os
import sys
from pathlib import Path

HERE, WHEELS_FOR = Path(__file__).resolve().parent, {version}
if WHEELS_FOR and sys.version_info[:2] != WHEELS_FOR:
    sys.exit("These wheels are for Python {{}}.{{}}, and this is Python {{}}.{{}}: run install.py with the former.".format(
        *WHEELS_FOR, *sys.version_info[:2]))
if WHEELS_FOR:
    os.environ.update(PIP_NO_INDEX="1", PIP_FIND_LINKS=(HERE / "wheels").as_uri())
sys.path.insert(0, str(HERE))

from lib.env import main  # noqa: E402

sys.exit(main())
'''
README = """\
# Symmetry in Weight Space, for a room without network

| where | what |
|---|---|
| `book/index.html` | the whole book: open it by double click; search, formulas and figures need no network |
| `book/notebooks/` | the chapters as notebooks, executed, with their solutions |
| `student/` | the chapters as notebooks to work in: every exercise, no solution |
| `lib/`, `data/`, `chapters/` | what the notebooks run on |
{wheels}
## To run notebooks

{install}
Then open a notebook of the folder `student` in your editor (VS Code with its Jupyter extension, or a JupyterLab that the
machine has) and choose the kernel *Symmetry in Weight Space*; VS Code finds it in `.venv` when this folder is open.
For a JupyterLab that is installed elsewhere, once: `.venv/bin/python -m ipykernel install --user --name {kernel}`.
On Windows write `.venv\\Scripts\\python` for `.venv/bin/python`.

The quick profile, which the notebooks run in, downloads no data.{untold}
"""
WITH_WHEELS = """\
In this folder, with {python} on {platform} (the wheels are for that and for nothing else):

    python3 install.py

It makes `.venv` from the folder `wheels` and asks no network. By hand it is

    python3 -m venv .venv
    .venv/bin/python -m pip install --no-index --find-links wheels -r requirements.txt
    .venv/bin/python -c "import pathlib, sysconfig; pathlib.Path(sysconfig.get_path('purelib'), 'book.pth').write_text(str(pathlib.Path().resolve()))"
"""
WITHOUT_WHEELS = """\
This bundle was made without wheels: the packages come from the network. With Python 3.11, 3.12 or 3.13, in this folder:

    python3 install.py
"""


class BundleProblem(Exception):
    """Why the bundle could not be made, in a sentence."""


@dataclass(frozen=True)
class Wheels:
    """A folder of wheels, and what they are for: the Python's version and the platform's name."""

    folder: Path
    python: tuple[int, int]
    platform: str


def download(
    requirements: Path,
    target: Path,
    python: str | None = None,
    platforms: Sequence[str] = (),
    options: Sequence[str] = (),
) -> Wheels:
    """The wheels of every pin of ``requirements`` in the folder ``target``, by this environment's own pip.

    ``python`` ("3.12") and ``platforms`` (pip's names, such as "win_amd64") are those of the room's machines, by default
    this one's; pip then still reads a pin's markers (``sys_platform == ...``) as this machine's. ``options`` go to pip
    as they are. Only wheels are taken: a source archive could not be built without network. Raises BundleProblem with
    pip's last words.
    """
    version = re.fullmatch(r"(\d+)\.(\d+)", python or "{}.{}".format(*sys.version_info[:2]))
    if not version:
        raise BundleProblem(f"--python {python} is no version: write it as 3.12.")
    target.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet"]
    command += ["--only-binary", ":all:", "-r", str(requirements), "-d", str(target), *options]
    command += [f"--python-version={python}"] if python else []
    command += [f"--platform={name}" for name in platforms]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        words = "\n  ".join(done.stderr.strip().splitlines()[-8:])
        raise BundleProblem(
            f"pip could not fetch a wheel for every pin of {requirements.name}. Its last words:\n  {words}\n"
            "Try again with the network there, name another `--python` or `--platform`, or go `--without-wheels`."
        )
    name = ", ".join(platforms) or sysconfig.get_platform()
    return Wheels(target, (int(version[1]), int(version[2])), name)


def gather(root: Path, students: Path, wheels: Wheels | None) -> dict[str, Path | bytes]:
    """Every file of the bundle by its name in it: a file to copy, or what it says.

    Raises BundleProblem where the site has not been built.
    """
    html = root / "_build" / "html"
    if not (html / "index.html").is_file():
        raise BundleProblem("the site has not been built: run `make book` first.")
    files: dict[str, Path | bytes] = {}
    files |= {f"book/{name}": content for name, content in site.packed(html).items()}
    files |= {f"student/{path.name}": path for path in every_file(students)}
    for pattern in SOURCES:
        files |= {
            path.relative_to(root).as_posix(): path
            for path in root.glob(pattern)
            if path.is_file() and "__pycache__" not in path.parts
        }
    if wheels:
        files |= {f"wheels/{path.name}": path for path in every_file(wheels.folder)}
    files["install.py"] = INSTALL.format(version=wheels.python if wheels else None).encode()
    files["README.md"] = readme(wheels, root).encode()
    return dict(sorted(files.items()))


def readme(wheels: Wheels | None, root: Path) -> str:
    """What the room's README says, whether there are wheels or none."""
    longest = max(read_json(root / "_build" / "timings" / "quick.json").values(), default=0)
    told = (
        f" The longest chapter took {longest:.0f} seconds on the machine that built the book."
        if longest
        else ""
    )
    row, install = "", WITHOUT_WHEELS
    if wheels:
        python = "Python {}.{}".format(*wheels.python)
        row = f"| `wheels/` | the packages, for {python} on {wheels.platform} |\n"
        install = WITH_WHEELS.format(python=python, platform=wheels.platform)
    return README.format(wheels=row, install=install, kernel=KERNEL, untold=told)


def write_folder(files: Mapping[str, Path | bytes], target: Path) -> Path:
    """Write the files into a new folder; returns its path. Raises BundleProblem where it is there and not empty."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BundleProblem(f"{target} is there already: name a folder that is not, or remove it first.")
    for name, content in files.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            shutil.copyfile(content, path)
    return target


def bundle(
    out: Path | None = None,
    root: Path = ROOT,
    *,
    with_wheels: bool = True,
    python: str | None = None,
    platforms: Sequence[str] = (),
    options: Sequence[str] = (),
) -> Path:
    """Make the bundle: a zip where ``out`` ends in ``.zip`` (by default one in ``_build``), otherwise a new folder. Returns its path.

    Raises BundleProblem where the site or a wheel is missing, and what ``lib.student`` raises.
    """
    out = root / "_build" / f"{NAME}.zip" if out is None else out
    with tempfile.TemporaryDirectory() as scratch:
        students, wheels = Path(scratch) / "student", None
        student.write(students, root)
        gather(root, students, None)  # what is missing is told before the long download
        if with_wheels:
            wheels = download(root / "requirements.txt", Path(scratch) / "wheels", python, platforms, options)
        files = gather(root, students, wheels)
        return write_zip(files, out, NAME) if out.suffix == ".zip" else write_folder(files, out)


def sizes(path: Path) -> str:
    """How large a bundle is: in all, and its parts by folder, largest first, in MB."""
    parts: dict[str, int] = {}
    if path.is_dir():
        entries = [(file.relative_to(path).as_posix(), file.stat().st_size) for file in every_file(path)]
    else:
        with zipfile.ZipFile(path) as archive:
            entries = [(e.filename.partition("/")[2], e.compress_size) for e in archive.infolist()]
    for name, size in entries:
        part = name.split("/")[0] if "/" in name else "other files"
        parts[part] = parts.get(part, 0) + size
    listed = [f"{part} {size / 1e6:.1f}" for part, size in sorted(parts.items(), key=lambda item: -item[1])]
    return f"{sum(parts.values()) / 1e6:.1f} MB: {', '.join(listed)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: prints the bundle's path and sizes; exit code 1 with a sentence where it could not be made."""
    parser = argparse.ArgumentParser(
        prog="python -m lib.bundle", description="The book for a room without network."
    )
    parser.add_argument("out", nargs="?", type=Path, help=f"NAME.zip, or a new folder (_build/{NAME}.zip)")
    parser.add_argument(
        "--without-wheels", action="store_true", help="leave out the packages (hundreds of MB)"
    )
    parser.add_argument("--python", metavar="X.Y", help="Python of the room's machines (this one's)")
    parser.add_argument(
        "--platform", action="append", default=[], help="pip's name of their platform; may be repeated"
    )
    asked = parser.parse_args(arguments)
    try:
        made = bundle(
            asked.out, with_wheels=not asked.without_wheels, python=asked.python, platforms=asked.platform
        )
    except (BundleProblem, student.NoNotebook, NotPlain) as problem:
        print(problem, file=sys.stderr)
        return 1
    print(f"{made}\n{sizes(made)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
