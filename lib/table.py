"""A small table of plain text that a notebook shows as HTML, a page as Markdown, and a phone can scroll."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


def markdown(text: str) -> str:
    """Text in which Markdown sees no markup: one line, with every character of meaning escaped."""
    return re.sub(r"([\\`*_{}\[\]<>#|$~])", r"\\\1", " ".join(text.split()))


@dataclass(frozen=True)
class Table:
    """Column titles and rows of plain text; the first column names its row."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | int]]
    caption: str = ""

    def markdown(self) -> str:
        """The table as MyST Markdown, inside a block that scrolls sideways where the page is narrow."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        cells = [[cell if cell == "---" else markdown(str(cell)) for cell in line] for line in lines]
        return "\n".join(["````{div} scroll", "", *(f"| {' | '.join(line)} |" for line in cells), "````"])

    def html(self) -> str:
        """The table as HTML that names its rows and columns to a screen reader and can be scrolled by keyboard."""
        head = "".join(
            f'<th scope="col">{escape(cell)}</th>' if cell else "<td></td>" for cell in self.columns
        )
        body = "".join(
            f'<tr><th scope="row">{escape(str(row[0]))}</th>'
            + "".join(f"<td>{escape(str(cell))}</td>" for cell in row[1:])
            + "</tr>"
            for row in self.rows
        )
        label = escape(self.caption or "table", quote=True)
        caption = f"<caption>{escape(self.caption)}</caption>" if self.caption else ""
        return (
            f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">'
            f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def __str__(self) -> str:
        return "\n".join(" | ".join(map(str, line)) for line in (self.columns, *self.rows))

    __repr__ = __str__
    _repr_html_ = html
