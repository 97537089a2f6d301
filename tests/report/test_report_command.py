"""The command line: a page and a summary where something could be reported, a sentence and exit 1 where nothing could."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from report_cases import build, convolutional, digits, network, picture_folder, write_digits
from safetensors.torch import load_file

from lib.report.__main__ import main
from lib.report.demonstration import BUILDER, make
from lib.report.demonstration import build as build_shown

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    return make(tmp_path_factory.mktemp("shown"), epochs=3)


def test_the_demonstration_is_reported_and_its_bad_files_named(shown, tmp_path, capsys):
    out, merged = tmp_path / "report.html", tmp_path / "merged.safetensors"
    asked = [str(shown.checkpoints), "--builder", BUILDER, "--data", str(shown.data), "--examples", "300"]
    assert main([*asked, "--out", str(out), "--merged", str(merged), "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    assert "ran code in your name" not in printed.out + printed.err
    assert "8 of 11 files were read" in printed.out
    assert str(out.resolve()) in printed.out
    html = out.read_text(encoding="utf-8")
    for name, why in (
        ("x_other_architecture.pt", "is of another architecture"),
        ("y_runs_code.pt", "would run code (it calls builtins.print)"),
        ("z_damaged.pt", "is damaged, cut short"),
    ):
        assert f"Refused: {name} " in printed.out
        assert name in html
        assert why in html
        assert why in printed.out
    for note in (
        "&#x27;module.&#x27;",
        "&#x27;model_state_dict&#x27;",
        "float16 to float32",
        "bfloat16 to float32",
    ):
        assert note in html
    net = build_shown()
    net.load_state_dict(load_file(merged))
    assert net(digits().scoring.inputs).isfinite().all()


def test_the_demonstration_is_the_same_for_a_seed(shown, tmp_path):
    again = make(tmp_path, epochs=3)
    for path in sorted(shown.checkpoints.iterdir()):
        assert (again.checkpoints / path.name).read_bytes() == path.read_bytes(), path.name


def test_what_needs_no_data_is_reported_without_them(tmp_path, capsys):
    torch.save(network(0), tmp_path / "a.pt")
    asked = [str(tmp_path), "--builder", "report_cases:build", "--out", str(tmp_path / "r.html")]
    assert main(asked) == 0
    assert main([*asked, "--data", str(tmp_path / "nowhere.npz")]) == 1
    assert "there is no file or folder" in capsys.readouterr().out
    assert "there is no file or folder" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_pictures_and_batch_norm(tmp_path, capsys):
    for i in range(2):
        torch.manual_seed(i)
        net = convolutional().train()
        net(torch.rand(20, 3, 16, 16))  # its own statistics
        torch.save(net.state_dict(), tmp_path / f"{i}.pt")
    pictures = picture_folder(tmp_path / "pictures", each=6)
    asked = [str(tmp_path), "--builder", "report_cases:convolutional", "--data", str(pictures)]
    options = ["--image-size", "16", "--normalise", "imagenet", "--out", str(tmp_path / "r.html")]
    assert main([*asked, *options]) == 0
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "resized to 16 x 16" in html
    assert "ImageNet" in html
    for kind in (
        "as they are, recalibrated",
        "matched by weights, recalibrated",
        "matched by activations, recalibrated",
    ):
        assert f'<th scope="row">{kind}</th>' in html
    assert "merged mean, statistics not read anew" in html
    assert "12 examples were used" in html
    assert "Not measured" not in html + capsys.readouterr().out


def test_a_page_without_findings_is_a_failure(tmp_path, capsys):
    """A network that takes no input that could be guessed, and no data: only the files are known."""
    torch.save(Odd().state_dict(), tmp_path / "a.pt")
    asked = [str(tmp_path), "--builder", "test_report_command:Odd", "--out", str(tmp_path / "r.html")]
    assert main(asked) == 1
    assert "--input-shape" in capsys.readouterr().out
    assert "--input-shape" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert main([*asked, "--input-shape", "3,12,12"]) == 0


def test_a_page_that_cannot_be_written_is_said(tmp_path, capsys):
    torch.save(network(0), tmp_path / "a.pt")
    (tmp_path / "file").write_text("in the way")
    assert (
        main(
            [
                str(tmp_path / "a.pt"),
                "--builder",
                "report_cases:build",
                "--out",
                str(tmp_path / "file" / "r.html"),
            ]
        )
        == 1
    )
    assert "name another --out" in capsys.readouterr().err


class Odd(torch.nn.Sequential):
    def __init__(self) -> None:
        super().__init__(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 10**2, 2))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "--builder", "report_cases:build"], "no file or folder 'nowhere'"),
        (["empty", "--builder", "report_cases:build"], "no checkpoint could be read"),
        (["good", "--builder", "report_cases"], "write module:function"),
        (["good", "--builder", "report_cases:build", "--input-shape", "a,b"], "no shape of one input"),
        (["good", "--builder", "report_cases:build", "--device", "abacus"], "no device called 'abacus'"),
    ],
)
def test_where_nothing_can_be_reported_the_exit_is_one(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "good").mkdir()
    torch.save(network(0), tmp_path / "good" / "a.pt")
    assert main(arguments) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_from_the_shell(tmp_path):
    """As a user does it: another directory, a module of their own, warnings as errors."""
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))\n"
    )
    (tmp_path / "runs").mkdir()
    for i in range(2):
        torch.save(network(i), tmp_path / "runs" / f"{i}.pt")
    write_digits(tmp_path / "digits.npz")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "lib.report", "runs", "--builder", "my_nets:build", "--data", "digits.npz"],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 of 2 files were read" in done.stdout
    assert (tmp_path / "report.html").stat().st_size > 20_000
    assert build() is not None
