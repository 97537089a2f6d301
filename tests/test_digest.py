"""The digest moves with what a number depends on and with nothing else: each direction on a planted package."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lib import digest
from lib.chapter import Chapter, UnknownChapter, find

ROOT = Path(__file__).resolve().parents[1]
FILES = {
    "lib/__init__.py": '"""A planted package."""\n',
    "lib/work.py": '''
"""Work."""
import math
from lib.tools import helper as assist
from lib import group

RATE = 0.5
UNUSED = 1


def measure(x):
    """Says what it does."""
    y = assist(x)  # a comment
    return group.turn(y) * RATE


def other(x):
    return x + UNUSED
''',
    "lib/tools.py": '''
class Base:
    """A base."""

    factor = 2

    def apply(self, x):
        return self.factor * x


class Tool(Base):
    def run(self, x):
        return self.apply(x)


def helper(x):
    return Tool().run(x)


def elsewhere(x):
    return -x
''',
    "lib/group/__init__.py": "from .turning import turn\nfrom .mirror import flip\n",
    "lib/group/turning.py": "import math as m\n\n\ndef turn(x):\n    return m.cos(x)\n",
    "lib/group/mirror.py": "def flip(x):\n    return -x\n",
    "lib/dynamic.py": "from lib import tools\n\n\ndef call(name, x):\n    return getattr(tools, name)(x)\n",
    "lib/starred.py": "from lib.tools import *\n\n\ndef call(x):\n    return helper(x)\n",
    "lib/registry.py": """
RULES = {}


def rule(function):
    RULES[function.__name__] = function
    return function


@rule
def double(x):
    return 2 * x


def judge(name, x):
    return RULES[name](x)
""",
    "lib/plots.py": "def show(x):\n    print(x)\n",
    "lib/profile.py": """
from __future__ import annotations
from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    n: int


@dataclass(frozen=True)
class Profile:
    name: str
    planted: Sizes
    neighbour: Sizes


def get(name):
    if name not in ("quick", "full"):
        raise ValueError(f"no profile {name}")
    return Profile(name, Sizes(10 if name == "quick" else 100), Sizes(7))
""",
    "data/claims.toml": """
[settings.planted]
sigma = 1.0

[settings.neighbour]
sigma = 1.0

[[claim]]
id = "X1"
chapter = "planted"
statement = "mine"

[[claim]]
id = "X2"
chapter = "neighbour"
statement = "not mine"
""",
    "data/registry.toml": '[blobs]\nsha256 = "1"\n\n[stars]\nsha256 = "2"\n',
    "requirements.txt": "six==1.17.0\n",
}
CELLS = [
    ("markdown", (), "# Planted"),
    ("code", ("parameters",), 'PROFILE = "quick"\nSEED = 0'),
    (
        "code",
        (),
        "from lib import plots, profile, tools\nfrom lib import work as w\nscale = 3\nname = 'blobs'",
    ),
    ("code", (), "def shifted(x):\n    return x + scale"),
    ("code", ("measure",), "values = [shifted(w.measure(x)) for x in range(profile.get(PROFILE).planted.n)]"),
    ("code", (), "plots.show(values)\nprint(tools.elsewhere(1))"),
]


def notebook(cells) -> str:
    """The JSON of a notebook with these (kind, tags, source)."""
    made = []
    for i, (kind, tags, source) in enumerate(cells):
        cell = {"cell_type": kind, "id": f"c{i}", "metadata": {"tags": list(tags)}, "source": source}
        made.append(cell | ({"outputs": [], "execution_count": None} if kind == "code" else {}))
    return json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


class Planted:
    """A small book in a folder, whose files a test changes by replacing text."""

    def __init__(self, root: Path):
        self.root = root
        for name, text in FILES.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        self.cells(CELLS)

    def cells(self, cells) -> None:
        path = self.root / "chapters" / "03-planted.ipynb"
        path.parent.mkdir(exist_ok=True)
        path.write_text(notebook(cells), encoding="utf-8")

    def change(self, file: str, old: str, new: str) -> None:
        path = self.root / file
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")

    def measured(self, profile: str = "quick") -> str:
        return digest.of_chapter("planted", profile, self.root)

    def key(self, profile: str = "quick", seed: int = 0, device: str = "auto") -> str:
        return digest.run_key(find(["planted"], self.root)[0], profile, seed, device, self.root)


@pytest.fixture
def book(tmp_path):
    return Planted(tmp_path)


UNMOVED = {
    "a comment": ("lib/work.py", "# a comment", "# another"),
    "a docstring": ("lib/work.py", "Says what it does.", "Says it better."),
    "a module's docstring": ("lib/work.py", '"""Work."""', '"""Other work."""'),
    "layout": (
        "lib/work.py",
        "    return group.turn(y) * RATE",
        "\n    return (\n        group.turn(y) * RATE\n    )",
    ),
    "an unused constant": ("lib/work.py", "UNUSED = 1", "UNUSED = 2"),
    "an unreached function": ("lib/work.py", "x + UNUSED", "x - UNUSED"),
    "a function that only a showing cell calls": ("lib/tools.py", "return -x", "return +x"),
    "an unreached module": ("lib/group/mirror.py", "return -x", "return +x"),
    "a plot": ("lib/plots.py", "print(x)", "print(x, x)"),
    "another chapter's sizes": ("lib/profile.py", "Sizes(7)", "Sizes(8)"),
    "the full sizes": ("lib/profile.py", "else 100", "else 1000"),
    "another chapter's settings": ("data/claims.toml", "neighbour]\nsigma = 1.0", "neighbour]\nsigma = 2.0"),
    "the lock": ("requirements.txt", "1.17.0", "1.16.0"),
}
MOVED = {
    "the function called": ("lib/work.py", "* RATE", "+ RATE"),
    "a constant it reads": ("lib/work.py", "RATE = 0.5", "RATE = 0.25"),
    "a function that it calls under another name": ("lib/tools.py", "Tool().run(x)", "Tool().run(x + 1)"),
    "a method": ("lib/tools.py", "return self.apply(x)", "return self.apply(2 * x)"),
    "an inherited method": ("lib/tools.py", "self.factor * x", "self.factor + x"),
    "a class attribute": ("lib/tools.py", "factor = 2", "factor = 3"),
    "a function behind a re-export": ("lib/group/turning.py", "m.cos(x)", "m.sin(x)"),
    "what an outside name means": ("lib/group/turning.py", "import math as m", "import cmath as m"),
    "where a re-export points": (
        "lib/group/__init__.py",
        "from .turning import turn",
        "from .mirror import flip as turn",
    ),
    "the chapter's sizes": ("lib/profile.py", "Sizes(10 if", "Sizes(11 if"),
    "the chapter's settings": (
        "data/claims.toml",
        "[settings.planted]\nsigma = 1.0",
        "[settings.planted]\nsigma = 2.0",
    ),
    "a helper in another cell": ("chapters/03-planted.ipynb", "x + scale", "x - scale"),
    "a constant in another cell": ("chapters/03-planted.ipynb", "scale = 3", "scale = 4"),
    "the measuring cell": ("chapters/03-planted.ipynb", "values = [", "values = [-"),
}


@pytest.mark.parametrize("case", UNMOVED)
def test_digest_stays(book, case):
    before = book.measured()
    book.change(*UNMOVED[case])
    assert book.measured() == before


@pytest.mark.parametrize("case", MOVED)
def test_digest_moves(book, case):
    before = book.measured()
    book.change(*MOVED[case])
    assert book.measured() != before


def test_prose_showing_cells_and_seed_do_not_move_the_digest_but_the_profile_does(book):
    before = book.measured()
    assert book.measured("full") != before
    changed = [
        *CELLS[:1],
        ("markdown", (), "More prose."),
        *CELLS[1:5],
        ("code", (), "plots.show(values[1:])"),
    ]
    changed[2] = ("code", ("parameters",), 'PROFILE = "quick"\nSEED = 5')
    book.cells(changed)
    assert book.measured() == before


@pytest.mark.parametrize(
    ("call", "change"),
    [
        ("dynamic.call(name, 1)", ("lib/tools.py", "return -x", "return +x")),  # getattr on a module
        ("starred.call(1)", ("lib/tools.py", "return -x", "return +x")),  # a star import
        ("from lib.tools import *\nelsewhere(1)", ("lib/tools.py", "return -x", "return +x")),
        (
            "registry.judge(name, 1)",
            ("lib/registry.py", "return 2 * x", "return 3 * x"),
        ),  # a registering decorator
        ("__import__('importlib').import_module('lib.tools')", ("lib/tools.py", "return -x", "return +x")),
        ("vars(tools)", ("lib/tools.py", "return -x", "return +x")),
    ],
)
def test_what_cannot_be_told_from_the_source_counts_whole(book, call, change):
    cell = (
        "code",
        ("measure",),
        f"from lib import dynamic, registry, starred, tools\nname = 'blobs'\n{call}",
    )
    book.cells([*CELLS[:2], cell])
    before = book.measured()
    book.change(*change)
    assert book.measured() != before


def test_a_local_name_is_not_the_module_s(book):
    """``other`` inside ``measure`` is a variable, so the function of that name is not reached."""
    book.change("lib/work.py", "y = assist(x)", "other = assist(x); y = other")
    before = book.measured()
    book.change("lib/work.py", "x + UNUSED", "x - UNUSED")
    assert book.measured() == before


def test_a_file_that_the_code_names_counts(book):
    (book.root / "lib" / "kernel.cpp").write_text("int one;\n", encoding="utf-8")
    book.change("lib/work.py", "RATE = 0.5", 'RATE = 0.5\nKERNEL = "kernel.cpp"')
    book.change("lib/work.py", "y = assist(x)", "y = assist(x) + len(KERNEL)")
    before = book.measured()
    (book.root / "lib" / "kernel.cpp").write_text("int two;\n", encoding="utf-8")
    assert book.measured() != before


def test_cells_that_are_not_plain_python_still_count(book):
    book.cells([*CELLS[:5], ("code", ("measure",), "%matplotlib inline\nvalues = 1")])
    before = book.measured()
    book.cells([*CELLS[:5], ("code", ("measure",), "%matplotlib inline\nvalues = 2")])
    middle = book.measured()
    book.cells([*CELLS[:5], ("code", ("measure",), "%%bash\necho 2")])
    assert len({before, middle, book.measured()}) == 3


KEY_STAYS = {
    "a comment": ("lib/work.py", "# a comment", "# another"),
    "an unreached function": ("lib/work.py", "x + UNUSED", "x - UNUSED"),
    "another chapter's sizes": ("lib/profile.py", "Sizes(7)", "Sizes(8)"),
    "the full sizes while nothing is published": ("lib/profile.py", "else 100", "else 1000"),
    "another chapter's claim": ("data/claims.toml", "not mine", "still not mine"),
    "a data set that is not mentioned": ("data/registry.toml", '"2"', '"3"'),
    "prose": ("chapters/03-planted.ipynb", "# Planted", "# Planted anew"),
}
KEY_MOVES = {
    "a plot": ("lib/plots.py", "print(x)", "print(x, x)"),
    "a showing cell": ("chapters/03-planted.ipynb", "plots.show(values)", "plots.show(values[1:])"),
    "what only a showing cell calls": ("lib/tools.py", "return -x", "return +x"),
    "the lock": ("requirements.txt", "1.17.0", "1.16.0"),
    "the chapter's claim": ("data/claims.toml", '"mine"', '"mine still"'),
    "a data set that is mentioned": ("data/registry.toml", '"1"', '"3"'),
    "the sizes": ("lib/profile.py", "Sizes(10 if", "Sizes(11 if"),
}


@pytest.mark.parametrize("case", KEY_STAYS)
def test_run_key_stays(book, case):
    before = book.key()
    book.change(*KEY_STAYS[case])
    assert book.key() == before


@pytest.mark.parametrize("case", KEY_MOVES)
def test_run_key_moves(book, case):
    before = book.key()
    book.change(*KEY_MOVES[case])
    assert book.key() != before


def test_run_key_tells_profiles_seeds_devices_and_published_runs_apart(book):
    keys = [book.key(), book.key("full"), book.key(seed=1), book.key(device="cpu")]
    published = book.root / "data" / "results" / "full" / "planted.json"
    published.parent.mkdir(parents=True)
    published.write_text("{}", encoding="utf-8")
    keys.append(book.key())
    book.change("lib/profile.py", "else 100", "else 1000")
    keys.append(book.key())  # the published run has become stale, and the page says so
    assert len(set(keys)) == 6


def test_unknown_names_are_answered_in_sentences(book):
    with pytest.raises(UnknownChapter, match=r"no chapter called 'plantet'; the book has: planted\."):
        digest.of_chapter("plantet", "quick", book.root)
    with pytest.raises(ValueError, match="no profile tiny"):
        digest.of_chapter("planted", "tiny", book.root)
    assert find(["planted", "03-planted", "chapters/03-planted.ipynb"], book.root) == find([], book.root)


def test_digest_is_the_same_on_every_supported_python(tmp_path):
    """A run published from one Python must be fresh on another: the real package's whole reach, where one is here."""
    shutil.copytree(ROOT / "lib", tmp_path / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from lib.digest import *\n"
        "reach = Reach(Path(sys.argv[1]) / 'lib')\n"
        "for path in sorted((Path(sys.argv[1]) / 'lib').glob('*.py')):\n"
        "    reach._whole(f'lib.{path.stem}')\n"
        "print(sha256(describe(reach)))"
    )
    pythons, own = [sys.executable], "{}.{}".format(*sys.version_info)
    for version in {"3.11", "3.12", "3.13"} - {own}:
        installed = [*map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"))]
        pythons += [*installed, shutil.which(f"python{version}")][:1]
    done = [
        subprocess.run([python, "-I", "-c", code, str(tmp_path)], capture_output=True, text=True)
        for python in filter(None, pythons)
    ]
    answers = [answer.stdout for answer in done if answer.returncode == 0]
    assert len(answers) >= 1
    assert len(set(answers)) == 1


def test_real_chapters_have_a_digest():
    """In a process of its own: checked call by call, the walk through all of `lib` takes ten times as long."""
    chapters = find([], ROOT)
    assert all(isinstance(chapter, Chapter) for chapter in chapters)
    code = "\n".join(
        [
            "from lib import digest",
            f"for name in {[chapter.name for chapter in chapters]!r}:",
            "    print(*(digest.of_chapter(name, profile) for profile in ('quick', 'full')))",
        ]
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(chapters)
    for chapter, (quick, full) in zip(chapters, (line.split() for line in lines), strict=True):
        assert len(quick) == len(full) == 64
        assert (quick != full) == bool(digest.sizes(chapter, "quick", ROOT))
