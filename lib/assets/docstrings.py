"""A Sphinx extension: the plain docstrings of ``lib`` as pages.

They are written to be read in an editor, with |x|, m* and aligned columns in them. Read as reStructuredText that is
full of markup nobody meant; here prose is escaped, sections and columns become lists, indented formulas stay as drawn
and those between $$ are set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

SECTION = re.compile(
    r"(Args|Arguments|Attributes|Returns|Yields|Raises|Source|Sources|Example|Examples|Note):\s*(.*)"
)
COLUMN = re.compile(r"(\S+(?: [^\s.]+){0,3}) {2,}(\S.*)")  # name, two or more spaces, meaning
ENTRY = re.compile(r"([\w.*, ]+?(?: \([^)]*\))?): (.*)")
CODE = re.compile(r"``(.+?)``|(?::\w+(?::\w+)?:)?`([^`]+)`")
EMPHASIS = re.compile(r"(?<![\w*\\])\*(\w[\w -]*)\*(?![\w*])")


def escape(text: str) -> str:
    """Prose as reStructuredText that shows itself: only code and *emphasis* keep their meaning."""
    out, end = [], 0
    for match in CODE.finditer(text):
        out += [_plain(text[end : match.start()]), f"``{match[1] or match[2]}``"]
        # A literal must end before punctuation or space; glue a following letter with an escaped space.
        if text[match.end() : match.end() + 1].isalnum():
            out.append("\\ ")
        end = match.end()
    return "".join([*out, _plain(text[end:])])


def _plain(text: str) -> str:
    kept: list[str] = []

    def keep(match: re.Match[str]) -> str:
        kept.append(match[0])
        return f"\0{len(kept) - 1}\0"

    text = EMPHASIS.sub(keep, text)
    text = re.sub(r"([\\*`|])", r"\\\1", text)
    text = re.sub(r"_(?!\w)", r"\\_", text)
    return re.sub(r"\0(\d+)\0", lambda match: kept[int(match[1])], text)


def convert(lines: list[str]) -> Iterator[str]:
    """One docstring, line by line."""
    for block in _blocks(lines):
        first = block[0]
        section = SECTION.fullmatch(first)
        if section:
            yield from _section(section[1], section[2], block[1:])
        elif first.strip().startswith("$$") and block[-1].strip().endswith("$$"):
            formula = " ".join(line.strip() for line in block).strip("$ ")
            yield from [".. math::", "", f"   {formula}"]
        elif first.startswith((" ", ">>>")):
            yield from ["::", "", *(f"   {line}" for line in block)]
        elif COLUMN.fullmatch(first) and all(
            line.startswith("  ") or COLUMN.fullmatch(line) for line in block
        ):
            yield from _definitions(block, COLUMN)
        elif re.match(r"[-*•] |\d+[.)] ", first):
            yield from _items(block)
        else:
            text = [escape(line) for line in block]
            if text[-1].endswith("::"):  # the indented block that follows brings its own
                text[-1] = text[-1][:-1]
            yield from text
        yield ""


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    """Paragraphs; a section header takes its indented paragraphs along and ends the paragraph before it."""
    block: list[str] = []
    for line in [*lines, ""]:
        line = line.rstrip()
        in_section = bool(block) and SECTION.fullmatch(block[0])
        if not line:
            if block and not in_section:
                yield block
                block = []
            continue
        starts = SECTION.fullmatch(line) or (in_section and not line.startswith(" ") and not in_section[2])
        if block and starts:
            yield block
            block = []
        block.append(line)
    if block:
        yield block


def _section(title: str, rest: str, body: list[str]) -> Iterator[str]:
    indent = min((len(line) - len(line.lstrip()) for line in body), default=0)
    body = [line[indent:] for line in body]
    if rest or not body or not ENTRY.fullmatch(body[0]):
        yield f"**{title}:** " + escape(" ".join([rest, *(line.strip() for line in body)]).strip())
        return
    yield f"**{title}**"
    yield ""
    yield from _definitions(body, ENTRY)


def _definitions(lines: list[str], pattern: re.Pattern[str]) -> Iterator[str]:
    for line in lines:
        match = None if line.startswith(" ") else pattern.fullmatch(line)
        if match:
            yield from ["", f"``{match[1].strip('`')}``", f"   {escape(match[2])}"]
        else:
            yield f"   {escape(line.strip())}"


def _items(lines: list[str]) -> Iterator[str]:
    for line in lines:
        match = re.match(r"([-*•]|\d+[.)]) (.*)", line)
        yield f"- {escape(match[2])}" if match else f"  {escape(line.strip())}"


def process(app: Any, what: str, name: str, item: Any, options: Any, lines: list[str]) -> None:
    """Sphinx's ``autodoc-process-docstring``: rewrite ``lines`` in place."""
    lines[:] = list(convert(lines))


def setup(app: Any) -> dict[str, bool]:
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", process)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
