"""Students' notebooks: nothing of a solution, checks that answer both ways, Markdown that any Jupyter renders."""

from __future__ import annotations

import ast
import contextlib
import io
import re

import nbformat
import pytest
from planted import PARAMETERS, notebook

from lib import results
from lib.chapter import ROOT, Chapter, CodeCell, chapters, code_cells, parse, text
from lib.plain_markdown import Book, NotPlain, Plain, labels, read_book
from lib.student import NoNotebook, main, needed, student, teaching_minutes, write

BOOK = read_book()


@pytest.fixture(scope="module", params=chapters(), ids=lambda chapter: chapter.stem)
def pair(request):
    """A chapter, and the notebook that students get of it."""
    return request.param, student(request.param, BOOK)


def words(source: str) -> str:
    return " ".join(source.split())


def run(notebook: dict, solved: dict[int, str]) -> tuple[list[str], list[str]]:
    """What the checks of a student's notebook print on its stubs, and then on what is ``solved`` in their place.

    Of the other cells only what checks and solutions need is executed, and that once.
    """
    cells = code_cells(notebook)
    asked = {cell.index: cell for cell in cells if cell.tags & {"exercise", "check"}}
    space: dict[str, object] = {"display": print}
    answered = [CodeCell(cell.index, cell.tags, solved.get(cell.index, cell.source)) for cell in cells]
    for index, source in needed(answered, set(asked)):
        if index not in asked:
            exec(compile(source, f"<cell {index}>", "exec"), space)
    told: tuple[list[str], list[str]] = ([], [])
    for printed, replaced in zip(told, ({}, solved), strict=True):
        for index, cell in asked.items():
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(replaced.get(index, cell.source), f"<cell {index}>", "exec"), space)
            printed += [out.getvalue().strip()] * ("check" in cell.tags)
    return told


def answers(chapter: Chapter, made: dict) -> dict[int, str]:
    """The stubs of a student's notebook with the chapter's own solutions under their names."""
    solutions = [cell.source for cell in chapter.code_cells() if "solution" in cell.tags]
    stubs = [cell for cell in code_cells(made) if "exercise" in cell.tags]
    assert len(stubs) == len(solutions)
    written = {}
    for stub, solution in zip(stubs, solutions, strict=True):
        (name,) = [node.name for node in parse(stub.source).body if isinstance(node, ast.FunctionDef)]
        body = [node for node in parse(solution).body if isinstance(node, ast.FunctionDef | ast.ImportFrom)]
        own = "\n".join(map(ast.unparse, body)).replace(f"{name}_solution", name)
        written[stub.index] = f"{stub.source}\n{own}"
    return written


def test_is_a_notebook_without_outputs(pair):
    chapter, made = pair
    nbformat.validate(nbformat.from_dict(made))
    assert not any(cell["outputs"] or cell["execution_count"] for cell in made["cells"] if "outputs" in cell)
    assert text(made["cells"][0]["source"]).startswith("**Student notebook** of")
    assert [cell.source for cell in code_cells(made) if "parameters" in cell.tags] == [
        cell.source for cell in chapter.code_cells() if "parameters" in cell.tags
    ]


def test_nothing_of_a_solution_is_left(pair):
    chapter, made = pair
    everything = words("\n".join(text(cell["source"]) for cell in made["cells"]))
    code = words("\n".join(cell.source for cell in code_cells(made)))
    assert "_solution" not in everything
    for cell in chapter.code_cells():
        if "solution" not in cell.tags:
            continue
        assert words(cell.source) not in everything
        for node in parse(cell.source).body:
            if isinstance(node, ast.FunctionDef):
                assert words(ast.unparse(node.body)) not in everything
            if not isinstance(node, ast.Import | ast.ImportFrom):
                assert words(ast.unparse(node)) not in code


def test_everything_else_is_the_chapters(pair):
    chapter, made = pair
    kept = [c for c in chapter.code_cells() if "solution" not in c.tags and "results.save(" not in c.source]
    assert [(c.source, c.tags) for c in code_cells(made)] == [(c.source, c.tags) for c in kept]
    hints = sum(text(cell["source"]).count("<summary>Hint</summary>") for cell in made["cells"])
    assert hints == sum("exercise" in c.tags for c in kept) == sum("check" in c.tags for c in kept) >= 4


def test_no_markup_of_the_book_is_left(pair):
    _, made = pair
    for cell in made["cells"]:
        if cell["cell_type"] == "markdown":
            source = text(cell["source"])
            assert not re.search(
                r"^\s*(:{3,}|`{3,}\{)|\{[a-z:]+\}`|^\([\w-]+\)=|^:\w+:", source, re.MULTILINE
            )
            assert source.count("<details>") == source.count("</details>")
            for line in source.splitlines():
                assert not line.startswith(">") or line.count("$$") % 2 == 0, (
                    "a quote's mark inside a formula"
                )


def test_links_lead_to_headings_of_the_notebook_or_to_other_notebooks(pair):
    _, made = pair
    source = "\n".join(text(cell["source"]) for cell in made["cells"] if cell["cell_type"] == "markdown")
    headings = {
        found.replace(" ", "-").replace("(", "%28").replace(")", "%29")
        for found in re.findall(r"^#+ (.*)$", source, re.MULTILINE)
    }
    for target in re.findall(r"\[[^\]]+\]\(([^)\s]+)\)", source):
        if not target.startswith("https://"):
            assert target[1:] in headings or target.removesuffix(".ipynb") in BOOK.notebooks, target


def test_each_check_says_not_attempted_and_with_the_solution_correct(pair, tmp_path, monkeypatch):
    chapter, made = pair
    monkeypatch.chdir(tmp_path)
    stubs, solved = run(made, answers(chapter, made))
    assert len(stubs) >= 4
    assert set(stubs) == {"not attempted"}
    assert set(solved) == {"correct"}


MARKUP = """\
# A page

(here)=
## A part

````{prf:theorem} Named
:label: the-theorem

Let $x$:

$$
x = {a} \\\\
y
$$
````

:::{note}
See {ref}`here`, [there](here), {prf:ref}`the-theorem`, {doc}`other`, {doc}`a word <page>`, {cite:t}`w` and {cite:p}`w`.

```python
# {doc}`other` stays
```
:::

```{exercise} Do it
:label: ex
Do.
```

:::{dropdown} Hint
Think.
:::

:::{dropdown} Solution
Secret.
:::

```{solution} ex
Secret.
```
"""
PLAIN = """\
# A page

## A part

> **Theorem 7.1** (Named).
>
> Let $x$:
>
> $$ x = {a} \\\\ y $$

> **Note**
>
> See [“A part”](#A-part), [there](#A-part), Theorem 7.1, [Other](other.ipynb), *a word* (in the book), Who (1999) and (Who, 1999).
>
> ```python
> # {doc}`other` stays
> ```

### Exercise 7.1. Do it

Do.

<details>
<summary>Hint</summary>

Think.

</details>"""


@pytest.fixture
def small():
    """A book of one page, whose labels it reads itself."""
    places = {label: place for label, place in labels(MARKUP, "07-page") if label}
    titles = {"other": "Other", "page": "Page"}
    return Book(places, titles, frozenset({"other"}), {"w": ("Who", "1999")})


def test_markup_becomes_plain_markdown(small):
    assert Plain("07-page", small)(MARKUP) == PLAIN


def test_a_label_of_another_chapter_names_the_chapter(small):
    elsewhere = Plain(
        "08-next", Book(small.places, small.titles | {"07-page": "A page"}, frozenset({"07-page"}))
    )
    assert elsewhere("{prf:ref}`the-theorem`") == "Theorem 7.1 in [A page](07-page.ipynb)"


@pytest.mark.parametrize(
    ("markup", "said"),
    [
        ("```{tab-set}\n```", "the directive {tab-set} has no plain counterpart"),
        ("{kbd}`x`", "the role {kbd} has no plain counterpart"),
        ("{ref}`nowhere`", "no page or chapter has the label `nowhere`"),
        ("{doc}`nowhere`", "{doc}`nowhere` leads nowhere"),
        ("{cite:p}`nobody`", "no work called `nobody`"),
    ],
)
def test_what_it_cannot_write_plainly_it_refuses(small, markup, said):
    with pytest.raises(NotPlain, match=re.escape(said)):
        Plain("07-page", small)(markup)


def planted(tmp_path, *cells):
    path = tmp_path / "chapters" / "01-planted.ipynb"
    path.parent.mkdir(exist_ok=True)
    path.write_text(notebook([("markdown", (), "# Planted"), PARAMETERS, *cells]), encoding="utf-8")
    return Chapter(path)


def test_a_cell_that_borrows_from_a_solution_is_refused(tmp_path):
    solution = ("code", ("solution",), "def f_solution():\n    return 1\nvalue = f_solution()")
    with pytest.raises(NoNotebook, match=r"cell 3 reads `value`, which only cell 2 binds"):
        student(planted(tmp_path, solution, ("code", (), "print(value)")), Book())
    made = student(planted(tmp_path, solution, ("code", (), "value = 2\nprint(value)")), Book())
    assert len(made["cells"]) == 4, "a cell that binds the name itself borrows nothing"


def test_needed_follows_names_and_not_cells():
    sources = ["import math\nslow = 1", "a = 2\nb = math.pi", "a += 1", "if b:\n    c = 0", "print(a, c)"]
    cells = [CodeCell(i, frozenset(), source) for i, source in enumerate(sources)]
    wanted = [(0, "import math"), (1, "a = 2"), (1, "b = math.pi"), (2, "a += 1"), (3, "if b:\n    c = 0")]
    assert needed(cells, {4}) == [*wanted, (4, "print(a, c)")]


def test_write_and_the_command_line(tmp_path, monkeypatch, capsys):
    planted(tmp_path, ("code", (), "1 + 1"))
    (path,) = write(tmp_path / "out", tmp_path)
    assert nbformat.read(path, 4).cells[0].source.startswith("**Student notebook** of *Planted*")
    assert write(tmp_path / "out", tmp_path) == [path]
    assert main([str(tmp_path / "mine")]) == 0
    assert capsys.readouterr().out == f"{len(chapters())} notebooks in {tmp_path / 'mine'}\n"


def test_minutes_are_planned_or_measured_or_said_not_to_be(tmp_path):
    planned = "**Minutes.** About 35 to read.\n\n*Easy, 5 minutes.* Do.\n\n*Very hard, 20 minutes.*\n*Hard, 20 minutes.* Do."
    planted(tmp_path, ("markdown", (), planned))
    row = "| Planted | 35 min | 2, 25 min | {} | not yet measured |"
    assert row.format("not yet measured") in teaching_minutes(tmp_path)
    timings = tmp_path / "_build" / "timings" / "quick.json"
    timings.parent.mkdir(parents=True)
    timings.write_text('{"planted": 41.8}', encoding="utf-8")
    assert row.format("42 s (device unknown)") in teaching_minutes(tmp_path)
    saved = results.save("planted", "quick", 0, [], device="cpu", wall_seconds=30.0, digest="", root=tmp_path)
    machine = results.load("planted", "quick", tmp_path)["provenance"]
    place = f"({machine['device_name']}, {machine['threads']} threads)"
    assert row.format(f"42 s {place}") in teaching_minutes(tmp_path)
    timings.unlink()
    assert row.format(f"30 s {place}") in teaching_minutes(tmp_path)
    saved.unlink()
    assert row.format("not yet measured") in teaching_minutes(tmp_path)


def test_the_minutes_of_every_teaching_plan_follow_each_other():
    page = (ROOT / "chapters" / "teaching.md").read_text(encoding="utf-8")
    spans = re.findall(r"^(?:\||\* -) (\d+)–(\d+)\b", page, re.MULTILINE)
    ends, clock = [], 0
    for begin, end in ((int(begin), int(end)) for begin, end in spans):
        if begin == 0:
            ends.append(clock)
            clock = 0
        assert begin == clock < end, f"minute {begin} follows minute {clock}"
        clock = end
    assert [*ends[1:], clock] == [210, 210, 390, *[90] * (len(ends) - 3)]
    assert len(ends) >= 9, "half a day twice, a day, and ninety minutes for each of six chapters"
