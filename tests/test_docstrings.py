"""Plain docstrings as pages: what looks like markup and is none shows itself; lists, code and formulas are kept."""

import io

import pytest
from docutils.core import publish_doctree

from lib.assets.docstrings import convert


def page(text):
    warnings = io.StringIO()
    settings = {"warning_stream": warnings, "report_level": 1, "halt_level": 5}
    tree = publish_doctree("\n".join(convert(text.splitlines())), settings_overrides=settings)
    assert warnings.getvalue() == ""
    return tree


@pytest.mark.parametrize(
    "text", ["m* and *P", "|x| < |y|", "shape_ of a_", "a `b", r"\exp", "**kwargs, *args", "(in + 1)_ [1]_"]
)
def test_prose_shows_itself(text):
    assert page(text).astext() == text


def test_code_and_emphasis_keep_their_meaning():
    tree = page("Takes ``a*b`` and :func:`show`, *once*.")
    assert [node.astext() for node in tree.findall() if node.tagname == "literal"] == ["a*b", "show"]
    assert [node.astext() for node in tree.findall() if node.tagname == "emphasis"] == ["once"]


def test_sections_and_columns_become_lists():
    tree = page(
        "Do it.\n\nArgs:\n    one: the first,\n        at length.\n    two: m* of it.\nRaises:\n    ValueError: |x| > 1."
    )
    terms = [node.astext() for node in tree.findall() if node.tagname == "term"]
    assert terms == ["one", "two", "ValueError"]
    tree = page("mass        the minimum m*;\n            of all\nlog_scales  one a freedom")
    assert [node.astext() for node in tree.findall() if node.tagname == "term"] == ["mass", "log_scales"]


def test_formulas_are_set_and_drawn_ones_stay():
    assert [n.astext() for n in page("$$ a = \\tfrac12 |p|^2 $$").findall() if n.tagname == "math_block"] == [
        "a = \\tfrac12 |p|^2"
    ]
    assert [n.astext() for n in page("As:\n\n    a*b_ = |c|").findall() if n.tagname == "literal_block"] == [
        "a*b_ = |c|"
    ]


def test_code_after_two_colons_is_one_literal_block():
    lines = ["Do it so::", "", "    with a:", "        b()", "", "And go on."]
    assert list(convert(lines)) == [
        "Do it so:", "", "::", "", "       with a:", "           b()", "", "And go on.", "",
    ]  # fmt: skip
