"""`python -m lib.env`: the book's own environment in `.venv`, with the pinned packages and a kernel of its own.

Only the standard library, and a grammar that Python 3.6 reads too (so no `from __future__ import annotations`):
this module runs before anything is installed, and must tell an unsuitable Python what is missing.
"""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KERNEL = "symmetry-in-weight-space"
OLDEST, NEWEST = (3, 11), (3, 13)
PROBE = "import sys, venv, ensurepip; print(*sys.version_info[:2])"


class EnvironmentProblem(Exception):
    """What is missing on this machine, and the way out, in a sentence."""


def python_in(venv):
    """The interpreter of a virtual environment, on any platform."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def version_of(python):
    """(major, minor) of an interpreter that can make virtual environments, None where it does not run or cannot."""
    try:
        answer = subprocess.run([str(python), "-c", PROBE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError:
        return None
    words = answer.stdout.split()
    return (int(words[0]), int(words[1])) if answer.returncode == 0 and len(words) == 2 else None


def suitable(version):
    """Whether the book's packages exist for this version of Python."""
    return version is not None and OLDEST <= version <= NEWEST


def find_python(candidates=None):
    """The first suitable interpreter: the running one, else one by name on the PATH. Raises EnvironmentProblem."""
    if candidates is None:
        names = ["python3.13", "python3.12", "python3.11", "python3", "python"]
        candidates = [sys.executable] + [found for found in map(shutil.which, names) if found]
    seen = [(python, version_of(python)) for python in candidates]
    for python, version in seen:
        if suitable(version):
            return python
    met = ", ".join(
        "{} ({})".format(
            python, "{}.{}".format(*version) if version else "does not run, or has no venv module"
        )
        for python, version in seen
    )
    raise EnvironmentProblem(
        f"The book needs Python 3.11, 3.12 or 3.13 with its venv module, and found only: {met}. "
        "Install one of them (on Debian and Ubuntu the package python3-venv too) "
        "and name it: `make env PYTHON=python3.12`, or run `python3.12 -m lib.env`."
    )


def lock_digest(requirements):
    """sha256 of what the lock asks for; comments and order do not count."""
    lines = requirements.read_text(encoding="utf-8").splitlines()
    pins = sorted(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    return hashlib.sha256("\n".join(pins).encode()).hexdigest()


@contextlib.contextmanager
def only_one(path, what):
    """Hold the lock file `path`; raises EnvironmentProblem if another process holds it. Released even by a kill."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(str(path), "a+") as handle:
        try:
            if os.name == "nt":
                import msvcrt

                msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise EnvironmentProblem(
                f"{what} is already under way in this folder ({path.name} is held): wait until it ends, then try again."
            ) from None
        yield


def write_kernel(jupyter, python):
    """Describe the kernel that runs `python` inside the Jupyter data folder `jupyter`; returns the kernel's folder."""
    folder = jupyter / "kernels" / KERNEL
    folder.mkdir(parents=True, exist_ok=True)
    description = {
        "argv": [str(python), "-m", "ipykernel_launcher", "--log-level=CRITICAL", "-f", "{connection_file}"],
        "display_name": "Symmetry in Weight Space",
        "language": "python",
    }
    (folder / "kernel.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    return folder


def install(python, requirements, log):
    """pip install the lock, one moving line on a terminal; raises EnvironmentProblem with pip's last words."""
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "-r", str(requirements)]
    total = sum("==" in line for line in requirements.read_text(encoding="utf-8").splitlines())
    count, tail = 0, []
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8", "errors": "replace"}
    with open(str(log), "w", encoding="utf-8") as record, subprocess.Popen(command, **pipe) as pip:
        for line in pip.stdout:
            record.write(line)
            if line.strip() and not line.startswith("WARNING"):
                tail = [*tail[-14:], line.rstrip()]
            if line.startswith(("Collecting ", "Requirement already satisfied: ")):
                count += 1
                name = line.split(": " if ":" in line.split("==")[0] else " ")[1].split("==")[0].split(" ")[0]
                if sys.stdout.isatty():
                    print(f"\r  {min(count, total)}/{total} {name:<40.40}", end="", flush=True)
            elif line.startswith("Installing"):
                print(("\r" if sys.stdout.isatty() else "") + f"  unpacking them {' ' * 40}", flush=True)
    if pip.returncode:
        raise EnvironmentProblem(
            "pip could not install the pinned packages. Its last words:\n  {}\nThe rest is in {}; "
            "`make env` continues where it stopped.".format("\n  ".join(tail), log)
        )


def stamp_of(root, python):
    """What an installed environment is for: the lock, the interpreter's version, and this folder."""
    version = version_of(python)
    return {"lock": lock_digest(root / "requirements.txt"), "python": list(version or ()), "root": str(root)}


def make(root=ROOT):
    """Make or refresh `root/.venv`; returns its interpreter. Installs nothing where the stamp matches the lock."""
    venv = root / ".venv"
    python, stamp = python_in(venv), venv / "book.json"
    with only_one(root / "_build" / "env.lock", "The installation"):
        wanted = stamp_of(root, python)
        if stamp.exists() and json.loads(stamp.read_text(encoding="utf-8")) == wanted:
            print(f"environment: {venv} is up to date")
            return python
        if not suitable(tuple(wanted["python"])) or not runs(python, "import pip"):
            base = find_python()
            print("environment: making {} with Python {}.{}".format(venv, *version_of(base)), flush=True)
            shutil.rmtree(str(venv), ignore_errors=True)
            subprocess.run([str(base), "-m", "venv", str(venv)], check=True)
        print("environment: installing the pinned packages (minutes the first time)", flush=True)
        install(python, root / "requirements.txt", venv / "install.log")
        packages = subprocess.run(
            [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            stdout=subprocess.PIPE,
            check=True,
            encoding="utf-8",
        ).stdout.strip()
        (Path(packages) / f"{KERNEL}.pth").write_text(
            f"{root}\n"
        )  # .pth files are read in the locale's encoding
        write_kernel(venv / "share" / "jupyter", python)
        replace_text(stamp, json.dumps(stamp_of(root, python)))
    print(f"environment: {venv} is ready")
    return python


def runs(python, code):
    """Whether the interpreter runs this code without an error."""
    return subprocess.run([str(python), "-c", code], stderr=subprocess.DEVNULL).returncode == 0


def replace_text(path, text):
    """Write a file so that a reader, or a kill, sees the old one or the new one and nothing between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(str(partial), str(path))


def main():
    """Command line: exit code 0 and a line that says where, or 1 and a sentence that says why not."""
    try:
        make()
    except EnvironmentProblem as problem:
        print(problem, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. `make env` continues where this stopped.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
