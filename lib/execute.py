"""Execute one chapter: by papermill in this environment's own kernel, or, where Jupyter is missing, plainly.

`python -m lib.execute CHAPTER PROFILE SEED` is the plain way: the code cells in order, in that very process.
"""

from __future__ import annotations

import contextlib
import linecache
import os
import re
import subprocess
import sys
import time
import traceback
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lib.chapter import ROOT, Chapter, find, without_magics
from lib.env import KERNEL, write_kernel

READERS_KERNEL = {
    "name": "python3",
    "display_name": "Python 3",
    "language": "python",
}  # what a download asks for
LAST_LINES = 12


class ChapterFailed(Exception):
    """A chapter did not run to its end; the message names the cell and repeats the last words of its error."""


def has_jupyter() -> bool:
    """Whether papermill and a kernel are installed here."""
    from importlib.util import find_spec

    return all(find_spec(name) is not None for name in ("papermill", "nbclient", "ipykernel"))


def by_papermill(
    chapter: Chapter, target: Path, parameters: Mapping[str, Any], device: str, root: Path = ROOT
) -> Any:
    """Execute a copy of the chapter at ``target`` and return it as a notebook; raises ChapterFailed.

    The kernel is the running interpreter's: its description lies in the build tree, which is searched first.
    """
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError

    write_kernel(root / "_build" / "jupyter", sys.executable)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with surroundings(root, device):
            papermill.execute_notebook(
                str(chapter.path),
                str(target),
                parameters=dict(parameters),
                kernel_name=KERNEL,
                cwd=str(chapter.path.parent),
                progress_bar=sys.stderr.isatty(),
                request_save_on_cell_execute=False,
            )
    except papermill.PapermillExecutionError as error:
        words = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
        raise ChapterFailed(f"{place(chapter, error.source)}\n{ending(words)}") from None
    except DeadKernelError:
        raise ChapterFailed("its kernel died, most often for want of memory.") from None
    return tidy(nbformat.read(target, as_version=4))


def tidy(notebook: Any) -> Any:
    """Take out what papermill leaves behind (paths and times of this machine), and hide the cell that it injected."""
    notebook.metadata.pop("papermill", None)
    notebook.metadata["kernelspec"] = dict(READERS_KERNEL)
    for cell in notebook.cells:
        for name in ("papermill", "execution"):
            cell.metadata.pop(name, None)
        tags = cell.metadata.get("tags", [])
        if "injected-parameters" in tags and "remove-cell" not in tags:
            cell.metadata["tags"] = [*tags, "remove-cell"]
    return notebook


@contextlib.contextmanager
def surroundings(root: Path, device: str) -> Iterator[None]:
    """The variables that a chapter's process inherits, set while it runs: see ``inherited``."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(inherited(root, device, before))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def inherited(root: Path, device: str, outer: Mapping[str, str]) -> dict[str, str]:
    """The outer environment with the device, this checkout's package and kernel first, and no one's start-up files."""

    def first(path: Path, name: str) -> str:
        return os.pathsep.join([str(path), *filter(None, [outer.get(name)])])

    own = {
        "BOOK_DEVICE": device,
        "PYTHONPATH": first(root, "PYTHONPATH"),
        "JUPYTER_PATH": first(root / "_build" / "jupyter", "JUPYTER_PATH"),
        "IPYTHONDIR": str(root / "_build" / "ipython"),
    }
    return {name: value for name, value in outer.items() if name != "MPLBACKEND"} | own


def plainly(chapter: Chapter, parameters: Mapping[str, Any], device: str, root: Path = ROOT) -> None:
    """Execute the chapter's code cells in a process of their own, without Jupyter; raises ChapterFailed."""
    command = [
        sys.executable,
        "-m",
        "lib.execute",
        chapter.name,
        str(parameters["PROFILE"]),
        str(parameters["SEED"]),
    ]
    environment = inherited(root, device, os.environ) | {"MPLBACKEND": "Agg"}
    done = subprocess.run(command, cwd=chapter.path.parent, env=environment)
    if done.returncode < 0:
        raise ChapterFailed(
            f"its process was ended by signal {-done.returncode}, most often for want of memory."
        )
    if done.returncode:
        raise ChapterFailed("its last words stand above.")


def in_this_process(chapter: Chapter, parameters: Mapping[str, Any]) -> None:
    """Run the code cells in order in a fresh ``__main__``, the parameters replaced; says how long each cell took."""
    module = types.ModuleType("__main__")
    module.__dict__.update(display=print, get_ipython=lambda: None)
    sys.modules["__main__"] = module  # where pickle and dataclasses look for what a chapter defines
    cells = chapter.code_cells()
    for number, cell in enumerate(cells, start=1):
        source = without_magics(cell.source)
        name = f"<{chapter.name}, code cell {number}>"
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        start = time.perf_counter()
        try:
            exec(compile(source, name, "exec"), module.__dict__)
        except (Exception, SystemExit) as error:
            error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next  # begin in the chapter
            words = "".join(traceback.format_exception(error))
            raise ChapterFailed(f"{place(chapter, cell.source)}\n{ending(words)}") from None
        if "parameters" in cell.tags:
            module.__dict__.update(parameters)
        print(f"  code cell {number} of {len(cells)}: {time.perf_counter() - start:.1f} s", flush=True)


def place(chapter: Chapter, source: str) -> str:
    """Which code cell this is: its number and its first line."""
    cells = [cell.source.strip() for cell in chapter.code_cells()]
    number = f" {cells.index(source.strip()) + 1} of {len(cells)}" if source.strip() in cells else ""
    first = next((line for line in source.splitlines() if line.strip()), "").strip()
    return f"code cell{number}, which begins with `{first}`, ended in an error:"


def ending(text: str) -> str:
    """The last lines of a traceback, indented."""
    return "\n".join(f"    {line}" for line in text.rstrip().splitlines()[-LAST_LINES:])


def main(arguments: list[str]) -> int:
    """Execute one chapter plainly: exit code 1 and the failing cell on standard error where it fails."""
    name, profile, seed = arguments
    try:
        in_this_process(find([name])[0], {"PROFILE": profile, "SEED": int(seed)})
    except ChapterFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
