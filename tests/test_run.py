"""Chapters run as a reader runs them, in a planted checkout: what is executed, what is not, and what a failure leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from planted import PARAMETERS, ROOT, Checkout

from lib import book, env, execute
from lib.chapter import Chapter

MEASURE = ("code", ("measure",), "value = work.square(7) + SEED\nprint(value)")
GOOD = (
    ("markdown", (), "# Good"),
    PARAMETERS,
    ("code", (), "from lib import work"),
    MEASURE,
    ("code", (), "work.save('good', PROFILE, SEED, value)"),
)
BAD = (
    PARAMETERS,
    ("code", (), "def fails():\n    raise KeyError('planted')"),
    ("code", (), "\n# here\nfails()"),
)


@pytest.fixture
def checkout(tmp_path):
    made = Checkout(tmp_path / "a book")
    made.chapter("01-good", *GOOD)
    return made


def outputs(copy: dict) -> str:
    """Everything that the cells of an executed copy printed."""
    return "".join(
        "".join(output.get("text", "")) for cell in copy["cells"] for output in cell.get("outputs", ())
    )


def test_a_chapter_is_executed_once_and_again_when_something_it_depends_on_changed(checkout):
    def run(*more: str) -> str:
        done = checkout.python("lib.run", "good", *more)
        assert done.returncode == 0, done.stdout
        return done.stdout.splitlines()[-1]

    executed, fresh = "chapters: 1 executed, 0 fresh, 0 failed", "chapters: 0 executed, 1 fresh, 0 failed"
    assert run() == executed
    assert run() == fresh
    checkout.change("chapters/01-good.ipynb", "# Good", "# Better")
    checkout.change("lib/work.py", "in short", "in few words")
    assert run() == fresh
    checkout.remove("_build/results/quick/good.json")
    assert run() == executed
    checkout.change("lib/work.py", "x * x", "x * x + 1")
    assert run() == executed
    copy = checkout.read("_build/executed/quick/01-good.ipynb")
    assert outputs(copy) == "50\n"
    assert run("--seed", "2") == executed
    assert checkout.read("_build/results/quick/good.json")["value"] == 52
    assert checkout.read("_build/timings/quick.json")["good"] > 0


def test_an_executed_copy_holds_nothing_of_this_machine_and_hides_the_injected_cell(checkout):
    assert checkout.python("lib.run").returncode == 0
    path = checkout.root / "_build" / "executed" / "quick" / "01-good.ipynb"
    assert str(checkout.root) not in path.read_text(encoding="utf-8")
    injected = [
        cell
        for cell in checkout.read(path)["cells"]
        if "injected-parameters" in cell["metadata"].get("tags", ())
    ]
    assert [cell["metadata"]["tags"] for cell in injected] == [["injected-parameters", "remove-cell"]]


def test_a_failing_chapter_stops_no_other_and_leaves_the_last_good_copy(checkout):
    checkout.chapter("00-bad", PARAMETERS, ("code", (), "print('good once')"))
    assert checkout.python("lib.run", "bad").returncode == 0
    checkout.chapter("00-bad", *BAD)
    done = checkout.python("lib.run")
    assert done.returncode == 1
    assert "bad: FAILED" in done.stdout
    assert "code cell 3 of 3, which begins with `# here`" in done.stdout
    assert "KeyError: 'planted'" in done.stdout
    assert done.stdout.endswith("chapters: 1 executed, 0 fresh, 1 failed\n")
    assert "good once" in outputs(checkout.read("_build/executed/quick/00-bad.ipynb"))
    left = sorted(path.name for path in (checkout.root / "_build" / "executed" / "quick").iterdir())
    assert left == ["00-bad.ipynb", "01-good.ipynb"]
    assert (checkout.root / "_build" / "failed" / "quick" / "00-bad.ipynb").is_file()


def test_the_kernel_is_this_environment_s_own_whatever_others_are_installed(checkout):
    for name in ("python3", env.KERNEL):
        planted = {"argv": ["false"], "display_name": "planted", "language": "python"}
        checkout.write(f"evil/kernels/{name}/kernel.json", json.dumps(planted))
    checkout.chapter("01-good", PARAMETERS, ("code", (), "import sys\nprint(sys.executable)"))
    evil = str(checkout.root / "evil")
    done = checkout.python("lib.run", JUPYTER_PATH=evil, JUPYTER_DATA_DIR=evil)
    assert done.returncode == 0, done.stdout
    assert outputs(checkout.read("_build/executed/quick/01-good.ipynb")).strip() == sys.executable


def test_device_and_profile_reach_the_chapter(checkout):
    checkout.chapter(
        "01-good", PARAMETERS, ("code", (), "import os\nprint(os.environ['BOOK_DEVICE'], PROFILE, SEED)")
    )
    for more in ((), ("--plain",)):
        done = checkout.python("lib.run", "--profile", "full", "--seed", "3", "--device", "cpu", *more)
        seen = done.stdout if more else outputs(checkout.read("_build/executed/full/01-good.ipynb"))
        assert "cpu full 3" in seen


def test_without_jupyter_the_same_cells_run_and_resume_by_the_published_digest(checkout):
    checkout.chapter("02-bad", *BAD)
    first = checkout.python("lib.run", "--plain", "--profile", "full", "--seed", "4")
    assert first.returncode == 1
    assert "code cell 3 of 3, which begins with `# here`" in first.stdout
    assert '<bad, code cell 2>", line 2, in fails' in first.stdout
    assert "execute.py" not in first.stdout, "the traceback begins in the chapter"
    assert checkout.read("data/results/full/good.json")["value"] == 53
    assert not (checkout.root / "_build" / "executed").exists()

    def again() -> str:
        return checkout.python("lib.run", "good", "--plain", "--profile", "full", "--seed", "4").stdout

    assert "good: fresh" in again()
    checkout.change("lib/work.py", "in short", "in few words")
    assert "good: fresh" in again()
    checkout.change("lib/work.py", "x * x", "x**2")
    assert "good: done" in again()


def test_requests_that_make_no_sense_are_answered_in_sentences(checkout):
    unknown = checkout.python("lib.run", "god")
    assert (unknown.returncode, unknown.stdout) == (
        2,
        "there is no chapter called 'god'; the book has: good.\n",
    )
    checkout.chapter("01-good", ("code", (), "1"))
    assert "no code cell tagged `parameters`" in checkout.python("lib.run").stdout
    with env.only_one(checkout.root / "_build" / "run-quick.lock", "A quick run"):
        assert "already under way" in checkout.python("lib.run").stdout


@pytest.mark.skipif(os.name == "nt", reason="sends the signal of Ctrl-C")
def test_ctrl_c_leaves_no_half_copy_and_no_kernel(checkout):
    wait = "import os, time\nopen('begun', 'w').write(str(os.getpid()))\ntime.sleep(600)"
    checkout.chapter("01-good", PARAMETERS, ("code", (), wait))
    begun = checkout.root / "chapters" / "begun"
    # tests in a shell's background ignore the signal, and would hand that on
    heed = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    with subprocess.Popen(
        [sys.executable, "-c", f"{heed}; runpy.run_module('lib.run', run_name='__main__', alter_sys=True)"],
        cwd=checkout.root,
        env=checkout.environment(),
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        while not (begun.is_file() and begun.read_text()):
            assert running.poll() is None
            time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 130
        assert "Stopped" in running.stderr.read()
    assert list((checkout.root / "_build" / "executed").rglob("*.ipynb")) == []
    for _ in range(100):
        try:
            os.kill(int(begun.read_text()), 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        pytest.fail("the kernel outlived the run")


def test_a_second_execution_that_prints_another_number_fails(checkout):
    timed = "import time\nprint(f'{time.perf_counter():.3f} s')"
    checkout.chapter("01-good", *GOOD, ("code", (), timed))
    assert checkout.python("lib.run").returncode == 0
    copy = checkout.root / "_build" / "executed" / "quick" / "01-good.ipynb"
    checkout.write("tests/nbval.cfg", (ROOT / "tests" / "nbval.cfg").read_text(encoding="utf-8"))
    reports = checkout.root / "_build" / "report.xml"

    def second() -> dict[str, int]:
        environment = execute.inherited(checkout.root, "auto", checkout.environment())
        return dict(
            book.counted(book.second_execution([copy], checkout.root), reports, checkout.root, environment)
        )

    assert second() == {"passed": 6}
    text = copy.read_text(encoding="utf-8")
    assert "49\\n" in text
    copy.write_text(text.replace("49\\n", "50\\n"), encoding="utf-8")
    assert second() == {"passed": 5, "failed": 1}


def test_a_cell_is_named_by_its_number_and_first_line(tmp_path):
    checkout = Checkout(tmp_path)
    checkout.chapter("01-good", *GOOD)
    chapter = Chapter(tmp_path / "chapters" / "01-good.ipynb")
    assert execute.place(chapter, MEASURE[2]).startswith("code cell 3 of 4, which begins with `value = ")
    assert execute.ending("a\nb\n") == "    a\n    b"
