"""The lock, its copy for conda, and the module that installs it: what a newcomer's first minute depends on."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lib import env

ROOT = Path(__file__).resolve().parents[1]
LOCK = (ROOT / "requirements.txt").read_text(encoding="utf-8")
DIRECT, TRANSITIVE = LOCK.split("# what they ask for in turn")


def pins(text: str) -> dict[str, Requirement]:
    """The requirements of a pip file by canonical name."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}


def test_lock_pins_every_line_to_one_public_version():
    for requirement in pins(LOCK).values():
        (specifier,) = requirement.specifier
        assert specifier.operator == "=="
        assert "+" not in specifier.version, f"{requirement}: a local version installs on one machine only"
        assert requirement.url is None


def test_conda_file_asks_for_the_same_direct_pins_and_python():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, packages = conda["dependencies"]
    assert packages["pip"] == [str(requirement) for requirement in pins(DIRECT).values()]
    assert pip == "pip"
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'requires-python = "{python.removeprefix("python ")}"' in project
    assert (env.OLDEST, env.NEWEST) == ((3, 11), (3, 13))


def test_lock_is_complete():
    """Whatever an installed package asks for on some supported machine stands in the lock too."""
    locked = pins(LOCK)
    machines = [
        {
            "python_version": version,
            "python_full_version": f"{version}.1",
            "sys_platform": platform,
            "extra": "",
        }
        | {"platform_system": {"win32": "Windows", "darwin": "Darwin", "linux": "Linux"}[platform]}
        for version in ("3.11", "3.12", "3.13")
        for platform in ("linux", "darwin", "win32")
    ]
    missing = set()
    for name, own in locked.items():
        try:
            asked = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # locked for other machines
        if name == "torch":
            continue  # its builds ask for different GPU libraries, and pin them themselves
        for requirement in map(Requirement, asked):
            for machine in machines:
                if any(
                    marker and not marker.evaluate(machine) for marker in (own.marker, requirement.marker)
                ):
                    continue
                pin = locked.get(canonicalize_name(requirement.name))
                if pin is None or (pin.marker is not None and not pin.marker.evaluate(machine)):
                    missing.add(
                        f"{requirement} (for {name}, {machine['python_version']}, {machine['sys_platform']})"
                    )
    assert not missing


def test_this_environment_is_the_lock():
    here = {"python_version": f"{sys.version_info[0]}.{sys.version_info[1]}"}
    for name, requirement in pins(LOCK).items():
        if requirement.marker is None or requirement.marker.evaluate(here):
            assert requirement.specifier.contains(importlib.metadata.version(name)), name


def test_unsuitable_pythons_are_refused_in_a_sentence(tmp_path):
    with pytest.raises(env.EnvironmentProblem, match=r"needs Python 3\.11.*does not run.*make env PYTHON="):
        env.find_python([tmp_path / "nothing"])
    assert not env.suitable((3, 10))
    assert not env.suitable((3, 14))
    assert not env.suitable(None)
    assert env.find_python([tmp_path / "nothing", sys.executable]) == sys.executable


def plant(root: Path, monkeypatch) -> list[str]:
    """A checkout whose installation only notes that it was asked for."""
    (root / "requirements.txt").write_text("# a comment\nsix==1.17.0\n", encoding="utf-8")
    asked: list[str] = []
    monkeypatch.setattr(env, "install", lambda python, requirements, log: asked.append("install"))
    return asked


def test_environment_installs_once_and_again_when_the_lock_changes(tmp_path, monkeypatch):
    root = tmp_path / "a folder with spaces"
    root.mkdir()
    asked = plant(root, monkeypatch)
    python = env.make(root)
    env.make(root)
    assert asked == ["install"]
    (root / "requirements.txt").write_text("# another comment\nsix==1.17.0\n", encoding="utf-8")
    env.make(root)
    assert asked == ["install"], "a comment is no reason to install"
    (root / "requirements.txt").write_text("six==1.16.0\n", encoding="utf-8")
    env.make(root)
    assert asked == ["install", "install"]

    (root / "lib").mkdir()
    (root / "lib" / "__init__.py").write_text("HERE = True\n", encoding="utf-8")
    anywhere = subprocess.run(
        [python, "-c", "import lib; print(lib.HERE)"], cwd=tmp_path, capture_output=True, text=True
    )
    assert anywhere.stdout.strip() == "True", anywhere.stderr
    kernel = root / ".venv" / "share" / "jupyter" / "kernels" / env.KERNEL / "kernel.json"
    assert json.loads(kernel.read_text(encoding="utf-8"))["argv"][0] == str(python)


def test_interrupted_installation_leaves_no_stamp(tmp_path, monkeypatch):
    plant(tmp_path, monkeypatch)

    def stopped(python, requirements, log):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(env, "install", stopped)
        with pytest.raises(KeyboardInterrupt):
            env.make(tmp_path)
    assert not (tmp_path / ".venv" / "book.json").exists()
    env.make(tmp_path)
    assert (tmp_path / ".venv" / "book.json").exists()


def test_a_second_process_is_refused_while_the_lock_is_held(tmp_path):
    lock = tmp_path / "some.lock"
    attempt = (
        "import sys; from pathlib import Path; from lib import env\n"
        "try:\n with env.only_one(Path(sys.argv[1]), 'The build'): print('entered')\n"
        "except env.EnvironmentProblem as problem: print(problem)"
    )
    command = [sys.executable, "-c", attempt, str(lock)]
    with env.only_one(lock, "The build"):
        refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    entered = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "already under way" in refused.stdout
    assert entered.stdout.strip() == "entered"


def test_failed_installation_repeats_what_pip_said(tmp_path):
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("./not-there==1.0\n", encoding="utf-8")
    with pytest.raises(env.EnvironmentProblem, match="pip could not install"):
        env.install(sys.executable, requirements, tmp_path / "install.log")


def test_env_module_reads_on_old_pythons():
    """An unsuitable Python must reach the sentence that refuses it: the grammar is 3.6's."""
    import ast

    ast.parse((ROOT / "lib" / "env.py").read_text(encoding="utf-8"), feature_version=(3, 6))
    ast.parse((ROOT / "lib" / "__init__.py").read_text(encoding="utf-8"), feature_version=(3, 6))
