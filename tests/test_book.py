"""From sources to site in a planted checkout: today's prose over yesterday's outputs, whole or not at all."""

from __future__ import annotations

import json
import re
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import pytest
from planted import PARAMETERS, Checkout

from lib import stage

CELLS = (
    ("markdown", (), "# Planted chapter\n\nFirst prose."),
    PARAMETERS,
    ("code", (), "from lib import work\n# shown\nvalue = work.square(12)\nprint(value)"),
    ("code", (), "work.save('planted', PROFILE, SEED, value)"),
)
TOC = "format: jb-book\nroot: index\nchapters:\n  - file: chapters/01-planted\n"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A planted book, built once; the tests below change it in turn."""
    made = Checkout(tmp_path_factory.mktemp("books") / "a book")
    made.chapter("01-planted", *CELLS)
    made.write("index.md", "# Front page\n\n```{include} generated/verdicts.md\n```\n")
    made.write("chapters/extra.md", "# Extra page\n")
    made.write("_toc.yml", TOC + "  - file: chapters/extra\n")
    done = made.python("lib.book", "build")
    assert done.returncode == 0, done.stdout
    made.first = done.stdout
    return made


def page(checkout: Checkout, name: str = "chapters/01-planted") -> str:
    return (checkout.root / "_build" / "html" / f"{name}.html").read_text(encoding="utf-8")


class Links(HTMLParser):
    """Everything that a page fetches or points to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("href", "src") and value]


def test_build_ends_with_the_path_of_the_front_page_and_a_second_build_does_nothing(checkout):
    assert checkout.first.splitlines()[-1] == str(checkout.root / "_build" / "html" / "index.html")
    assert "Planted verdicts." in page(checkout, "index")
    again = checkout.python("lib.book", "build").stdout
    assert "planted: fresh" in again
    assert "pages: up to date" in again


def test_the_page_shows_outputs_and_hides_the_injected_parameters(checkout):
    assert "144" in page(checkout)
    assert "# Parameters" not in page(checkout)


def test_the_download_is_the_executed_notebook(checkout):
    links = Links()
    links.feed(page(checkout))
    (download,) = [link for link in links.found if link.endswith(".ipynb")]
    notebook = json.loads(
        (checkout.root / "_build" / "html" / "chapters" / download).resolve().read_text("utf-8")
    )
    assert [output["text"] for cell in notebook["cells"] for output in cell.get("outputs", ())] == ["144\n"]
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert "/_build/" not in json.dumps(notebook)


def test_prose_and_comments_are_rendered_anew_without_executing(checkout):
    before = (checkout.root / "_build" / "executed" / "quick" / "01-planted.ipynb").stat().st_mtime_ns
    checkout.change("chapters/01-planted.ipynb", "First prose.", "Second prose.")
    checkout.change("chapters/01-planted.ipynb", "# shown", "# shown anew")
    done = checkout.python("lib.book", "build")
    assert done.returncode == 0, done.stdout
    assert "planted: fresh" in done.stdout
    assert "Second prose." in page(checkout)
    assert "# shown anew" in page(checkout)
    assert (checkout.root / "_build" / "executed" / "quick" / "01-planted.ipynb").stat().st_mtime_ns == before


def test_an_edited_page_alone_is_read_again_and_what_it_takes_from_others_is_noticed(checkout):
    """The other page's tree stays the same file; but a target that goes, or a title that changes, concerns every page."""
    trees = checkout.root / "_build" / "doctrees" / "chapters"

    def built(text: str):
        checkout.write("chapters/extra.md", text)
        done = checkout.python("lib.book", "build")
        return done, (trees / "01-planted.doctree").stat().st_mtime_ns

    checkout.change("chapters/01-planted.ipynb", "Second prose.", "Second prose. {ref}`to-extra`")
    first, before = built("(to-extra)=\n# Extra page\n")
    assert first.returncode == 0, first.stdout
    second, after = built("(to-extra)=\n# Extra page\n\nOne more sentence.\n")
    assert second.returncode == 0, second.stdout
    assert "One more sentence." in page(checkout, "chapters/extra")
    assert after == before
    third, after = built("(to-extra)=\n# Extra page, renamed\n")
    assert third.returncode == 0, third.stdout
    assert after > before
    assert "Extra page, renamed" in page(checkout)
    lost, _ = built("# Extra page, renamed\n")
    assert lost.returncode == 1
    assert "undefined label: 'to-extra'" in lost.stdout
    checkout.change("chapters/01-planted.ipynb", " {ref}`to-extra`", "")
    again, _ = built("# Extra page\n")
    assert again.returncode == 0, again.stdout


def test_a_warning_fails_the_build_each_time_and_keeps_the_last_good_site(checkout):
    checkout.change("chapters/01-planted.ipynb", "Second prose.", "Prose with {doc}`nowhere`.")
    for _ in range(2):
        failed = checkout.python("lib.book", "build")
        assert failed.returncode == 1
        assert "nowhere" in failed.stdout
        assert "the pages have warnings" in failed.stdout
        assert "Second prose." in page(checkout)
    checkout.change("chapters/01-planted.ipynb", "Prose with {doc}`nowhere`.", "Second prose.")


def test_a_page_that_left_the_book_leaves_the_site_and_the_zip_opens_anywhere(checkout):
    assert (checkout.root / "_build" / "html" / "chapters" / "extra.html").is_file()
    checkout.write("_toc.yml", TOC)
    done = checkout.python("lib.book", "dist")
    assert done.returncode == 0, done.stdout
    assert not (checkout.root / "_build" / "html" / "chapters" / "extra.html").exists()
    archive = Path(done.stdout.splitlines()[-1])
    first = archive.read_bytes()
    assert checkout.python("lib.book", "dist").returncode == 0
    assert archive.read_bytes() == first, "the same site gives the same zip"

    with zipfile.ZipFile(archive) as packed:
        names = set(packed.namelist())
        options = packed.read("symmetry-in-weight-space/_static/documentation_options.js").decode()
        pages = {name: packed.read(name).decode() for name in names if re.search(r"(?<!macros)\.html$", name)}
    assert {name.split("/")[0] for name in names} == {"symmetry-in-weight-space"}
    assert "symmetry-in-weight-space/notebooks/01-planted.ipynb" in names
    assert not any("extra" in name for name in names)
    assert "SHOW_SEARCH_SUMMARY: false" in options, (
        "extracts would be read from other pages, which browsers refuse"
    )
    for name, text in pages.items():
        links = Links()
        links.feed(text)
        for link in links.found:
            target = re.split("[?#]", link)[0]
            if target and not re.match("[a-z]+:", link):
                assert not target.startswith("/"), f"{name}: {link} works on a server only"
                there = (Path("/") / name).parent.joinpath(target).resolve().relative_to("/")
                assert there.as_posix() in names, f"{name}: {link} leads nowhere"


def test_a_failing_chapter_is_named_and_no_site_is_swapped_in(checkout):
    kept = (checkout.root / "chapters" / "01-planted.ipynb").read_text(encoding="utf-8")
    checkout.change("chapters/01-planted.ipynb", "value = work.square(12)", "value = work.cube(12)")
    done = checkout.python("lib.book", "build")
    assert done.returncode == 1
    assert "these chapters failed: planted." in done.stdout
    assert "Second prose." in page(checkout)
    checkout.write("chapters/01-planted.ipynb", kept)


def test_clean_removes_what_was_built_and_nothing_else(tmp_path):
    made = Checkout(tmp_path)
    made.write("_build/html/index.html", "x")
    made.write("data/results/full/planted.json", "{}")
    made.write(".venv/book.json", "{}")
    assert made.python("lib.book", "clean").returncode == 0
    left = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")}
    assert left >= {"data", ".venv", "lib"}
    assert "_build" not in left


def executed(*sources: str, tags: tuple[str, ...] = ()) -> dict:
    """An executed notebook with these code cells; each prints its number."""
    cells = [
        {
            "cell_type": "code",
            "metadata": {"tags": list(tags)},
            "source": source,
            "outputs": [i],
            "execution_count": i,
        }
        for i, source in enumerate(sources, start=1)
    ]
    return {"cells": cells, "metadata": {}}


@pytest.mark.parametrize(
    "other",
    [("a = 1",), ("a = 1", "b = 3"), ("a = 1", "b = 2", "c = 3"), ("b = 2", "a = 1")],
    ids=["one fewer", "one changed", "one more", "another order"],
)
def test_outputs_are_never_put_under_other_code(other):
    source = executed("a = 1", "b = 2")
    with pytest.raises(stage.NotExecuted, match="run it again"):
        stage.merge(source, executed(*other))
    merged = stage.merge(executed("a = 1  # a comment", "b = (2)"), executed("a = 1", "b = 2"))
    assert [cell["outputs"] for cell in merged["cells"]] == [[1], [2]]
    assert merged["cells"][0]["source"] == "a = 1  # a comment"


def test_a_chapter_without_an_executed_copy_is_refused(tmp_path):
    made = Checkout(tmp_path)
    made.chapter("01-planted", *CELLS)
    with pytest.raises(stage.NotExecuted, match="planted has not been executed: run"):
        stage.stage(tmp_path / "_build" / "source", tmp_path, make={})
