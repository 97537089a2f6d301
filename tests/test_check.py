"""The report tells right from missing, other and broken, and predicts by proportion; planted faults must show."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path

import pytest

from lib import check, env


def states(findings) -> list[str]:
    return [finding.state for finding in findings]


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 12, 9), (3, 13, 1)])
def test_supported_pythons_are_fine(version):
    assert states(check.python(version)) == ["ok"]


@pytest.mark.parametrize("version", [(3, 10, 14), (3, 14, 0)])
def test_other_pythons_are_broken_with_the_way_out(version):
    (finding,) = check.python(version)
    assert finding.state == "BROKEN"
    assert "3.11, 3.12 or 3.13" in finding.mend


def lock(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "requirements.txt"
    path.write_text("# a lock\n\n" + "\n".join(lines) + "\n")
    return path


def test_pins_that_are_met(tmp_path):
    torch = metadata.version("torch").split("+")[0]
    lines = [
        f"torch=={torch}",
        "absent-on-purpose==1.0 ; python_version < '3'",
        f"numpy=={metadata.version('numpy')}",
    ]
    (finding,) = check.packages(lock(tmp_path, *lines))
    assert (finding.state, finding.text) == ("ok", "packages: all 2 as pinned")


def test_pins_that_are_not_met(tmp_path):
    (finding,) = check.packages(lock(tmp_path, "torch==0.1"))
    assert finding.state == "note"
    assert f"torch {metadata.version('torch').split('+')[0]} (pinned 0.1)" in finding.text
    (finding,) = check.packages(lock(tmp_path, "absent-on-purpose==1.0"))
    assert finding.state == "note"
    assert "absent-on-purpose not installed" in finding.text


def test_a_core_package_that_is_missing_is_broken(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "CORE", {"absent-on-purpose"})
    finding, *others = check.packages(lock(tmp_path, "absent-on-purpose==1.0"))
    assert finding.state == "BROKEN"
    assert "make env" in finding.mend
    assert others == []


def test_core_packages_are_pins():
    text = (check.ROOT / "requirements.txt").read_text(encoding="utf-8").lower()
    assert [name for name in sorted(check.CORE) if f"\n{name}==" not in text] == []


def kernel_for(prefix: Path, interpreter: str) -> None:
    folder = prefix / "share" / "jupyter" / "kernels" / env.KERNEL
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kernel.json").write_text(json.dumps({"argv": [interpreter, "-m", "ipykernel_launcher"]}))


def test_the_kernel_is_this_environments_own(tmp_path):
    assert states(check.kernel(tmp_path)) == ["note"]
    kernel_for(tmp_path, sys.executable)
    assert states(check.kernel(tmp_path)) == ["ok"]
    kernel_for(tmp_path, str(tmp_path / "elsewhere" / "python"))
    (finding,) = check.kernel(tmp_path)
    assert finding.state == "BROKEN"
    assert "elsewhere" in finding.text


def test_the_kernel_file_that_make_env_writes_is_understood(tmp_path):
    env.write_kernel(tmp_path / "share" / "jupyter", Path(sys.executable))
    assert states(check.kernel(tmp_path)) == ["ok"]


def test_data_that_is_not_here_is_no_fault(tmp_path, monkeypatch):
    monkeypatch.delenv("BOOK_DATA", raising=False)
    monkeypatch.setenv("BOOK_CACHE", str(tmp_path))
    findings = list(check.data())
    assert "BROKEN" not in states(findings)
    assert any("package scikit-learn: digits" in finding.text for finding in findings)
    absent = next(finding for finding in findings if finding.state == "note")
    assert "cifar10" in absent.text
    assert "BOOK_DATA" in absent.mend


def test_a_folder_of_data_that_does_not_exist_is_broken(tmp_path, monkeypatch):
    monkeypatch.setenv("BOOK_DATA", str(tmp_path / "absent"))
    (finding,) = check.data()
    assert finding.state == "BROKEN"
    assert "no folder" in finding.mend


def test_a_device_that_is_not_here_is_broken(monkeypatch):
    monkeypatch.setenv("BOOK_DEVICE", "abacus")
    finding, torchvision = check.device()
    assert finding.state == "BROKEN"
    assert "no device called 'abacus'" in finding.mend
    assert torchvision.state == "ok"


def test_prediction_is_proportional(tmp_path):
    table = tmp_path / "costs.toml"
    table.write_text("[cpu]\nmachine = 'x'\nmeasured = 10.0\n[cpu.seconds.quick]\ntwo-neurons = 40.0\n")
    rows = list(check.predict(["two-neurons", "other"], "cpu", 25.0, table))
    assert rows == [
        ("two-neurons", "quick", 100.0),
        ("other", "quick", None),
        ("two-neurons", "full", None),
        ("other", "full", None),
    ]
    assert all(seconds is None for *_, seconds in check.predict(["two-neurons"], "cuda", 1.0, table))


def test_the_table_of_costs_is_well_formed():
    names = {chapter.name for chapter in check.chapters()}
    for where in ("cpu", "cuda", "mps"):
        for name, profile, seconds in check.predict(sorted(names), where, 1.0):
            assert seconds is None or seconds > 0, (name, profile)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "not measured yet"),
        (0.2, "about 1 s"),
        (41.4, "about 41 s"),
        (200.0, "about 3 min"),
        (9000.0, "about 2.5 h"),
    ],
)
def test_durations_in_words(seconds, words):
    assert check.in_words(seconds) == words


def test_a_check_that_stops_is_a_finding():
    def unlucky():
        raise OSError("the disk is full")
        yield

    (finding,) = check.guarded("luck", unlucky)
    assert finding.state == "BROKEN"
    assert "luck: OSError: the disk is full" in finding.text


def test_the_report_and_its_exit_code(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(check, "measure", lambda seconds, where: 12.5)
    monkeypatch.delenv("BOOK_DATA", raising=False)
    monkeypatch.setenv("BOOK_CACHE", str(tmp_path))
    monkeypatch.setattr(check, "kernel", lambda: [check.Finding("note", "kernel: looked at elsewhere")])
    assert check.main([]) == 0
    report = capsys.readouterr().out
    assert "speed: 12.50 µs a step and network" in report
    assert report.rstrip().endswith("This machine is ready: `make book` builds the book.")
    assert max(map(len, report.splitlines())) <= 108
    monkeypatch.setenv("BOOK_DATA", str(tmp_path / "absent"))
    assert check.main([]) == 1
    assert "1 broken, see above." in capsys.readouterr().out


def test_the_measurement_trains():
    assert 0 < check.measure(0.01) < 1e5
