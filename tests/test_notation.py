"""Chapters and notation page agree: each symbol is listed for its chapter, each row is used, each name is there."""

from __future__ import annotations

import pytest
from planted import PARAMETERS, notebook

from lib.symbols import entries, formulas, problems, symbols

PAGE = """\
# Notation

## Running letters

$i$ counts.

## Everywhere

| Symbol | In the code | Shape | Meaning |
|---|---|---|---|
| $x$, $x_i$ | `inputs` | – | inputs |

## One

For {doc}`01-one` and `02-two`.

| Symbol | In the code | Shape | Meaning |
|---|---|---|---|
| $\\hat\\lambda(w)$ | `work.square(x)` | – | estimate |
"""
PROSE = "Let $\\hat\\lambda(x_i) = 1$; `work.square(3)` helps."


def test_every_symbol_of_the_book_is_listed_and_every_row_is_used():
    assert not (found := problems()), "\n".join(found)


@pytest.mark.parametrize(
    ("tex", "found"),
    [
        (r"\hat\lambda(w^\ast)", [r"\hat{\lambda}", r"w^\ast"]),
        (r"H^*_k, H_k^*, H^2", [r"H^\ast", "k", r"H^\ast", "k", "H"]),
        (r"\widehat{\mathrm{MMD}}^2 \le \varepsilon", [r"\hat{\operatorname{MMD}}", r"\epsilon"]),
        (r"\lambda_{\mathrm{ReLU}} + b_{PSR} + n_{in}", [r"\lambda", "b", "n"]),
        (r"\tilde A U \tilde A^\top", [r"\tilde{A}", "U", r"\tilde{A}"]),
        (r"e^{2 u_i} - e", ["u", "i", "e"]),
        (r"\mathbb{E}_t[E], \mathcal{M}", [r"\mathbb{E}", "t", "E", r"\mathcal{M}"]),
        (r"\operatorname{diag}(s) \otimes \lambda \rhd \omega", [r"\operatorname{diag}", "s", r"\otimes", r"\lambda", r"\rhd", r"\omega"]),
        (r"\begin{aligned} a &= \text{some words} \\ b &\ge \mathrm{const} \end{aligned}", ["a", "b"]),
        (r"\sum_{j \ne i} \tfrac12 \bigl\lVert x_j \bigr\rVert^2", ["j", "i", "x", "j"]),
        (r"w_i' = \sqrt{v}^{\,k + 1}", ["w", "i", "v", "k"]),
    ],
)  # fmt: skip
def test_symbols_are_letters_with_accent_and_star_words_and_operators(tex, found):
    assert symbols(tex) == found


def test_formulas_are_found_with_their_lines_and_code_is_none():
    page = (
        "A $x$, a role {math}`y`, code `$a$` and a price of \\$5.\n\n$$\nz\n$$\n\n```python\n'$b$'\n```\n\n"
        "```{prf:theorem} On $t$\n```{math}\nu\n```\n````\n\n:::{note}\n$v$\n:::\n"
    )
    assert [(line, tex.strip()) for line, tex in formulas(page)] == [
        (1, "x"), (1, "y"), (3, "z"), (11, "t"), (12, "u"), (18, "v"),
    ]  # fmt: skip


def test_rows_list_the_first_symbol_of_each_formula_for_their_section_s_chapters():
    running, everywhere, one = entries(PAGE)
    assert (running.symbols, everywhere.symbols, one.symbols) == (("i",), ("x",), (r"\hat{\lambda}",))
    assert one.names == ("work.square(x)",)
    assert [one.holds(stem) for stem in ("01-one", "02-two", "03-three", "00-before", "index")] == [
        True, True, False, True, True,
    ]  # fmt: skip


@pytest.fixture
def book(tmp_path):
    """Writes a book of one chapter (and a page, if asked), and returns what is wrong in it."""

    def write(prose=PROSE, page=PAGE, stem="01-one", preface=""):
        (tmp_path / "lib").mkdir(exist_ok=True)
        (tmp_path / "chapters").mkdir(exist_ok=True)
        code = "def square(inputs):\n    return inputs**2\n\n\nclass Hidden:\n    pass\n"
        (tmp_path / "lib" / "work.py").write_text(code, encoding="utf-8")
        (tmp_path / "chapters" / "notation.md").write_text(page, encoding="utf-8")
        (tmp_path / "index.md").write_text(preface, encoding="utf-8")
        cells = [("markdown", (), "# One"), PARAMETERS, ("markdown", (), prose)]
        (tmp_path / "chapters" / f"{stem}.ipynb").write_text(notebook(cells), encoding="utf-8")
        return problems(tmp_path)

    return write


def test_a_book_that_agrees_has_no_problem(book):
    assert book() == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"prose": PROSE + " Let $\\tilde x$."}, r"01-one, cell 2: the symbol $\tilde{x}$ is not among those that"),
        ({"preface": "$$\n\\mu\n$$"}, r"index, line 1: the symbol $\mu$ is not among those"),
        ({"stem": "03-three"}, r"03-three, cell 2: the symbol $\hat{\lambda}$ is not among"),
        ({"prose": PROSE + " And `Hidden`."}, "01-one, cell 2: the name `Hidden` of lib is not in the code column"),
        ({"prose": "$x_i$"}, r"section One: no chapter of it uses $\hat{\lambda}$"),
        ({"prose": "$\\hat\\lambda(x)$"}, "section Running letters: no chapter of it uses $i$"),
        ({"page": PAGE.replace("`inputs`", "`outputs`")}, "section Everywhere: nothing is called `outputs`"),
    ],
    ids=["accent", "page", "another chapter's", "name", "row", "running letter", "code column"],
)  # fmt: skip
def test_each_disagreement_is_a_sentence_that_says_where(book, changed, said):
    assert any(said in problem for problem in book(**changed)), book(**changed)
