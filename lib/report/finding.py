"""What every finding can do: say itself in sentences, draw itself, and show itself in a notebook."""

from __future__ import annotations

from lib.plots import Shown
from lib.say import Prose
from lib.table import markdown


class Finding:
    """Base of the report's frozen dataclasses; the words are in ``lib.report.sentences``, the pictures in ``lib.report.figures``."""

    def sentences(self) -> tuple[str, ...]:
        """What was found, in plain text."""
        from lib.report.sentences import say

        return say(self)

    def prose(self) -> Prose:
        """The sentences as Markdown, a paragraph each."""
        return Prose("\n\n".join(markdown(sentence) for sentence in self.sentences()))

    def figure(self) -> Shown | None:
        """Its picture, or None where a table says it all."""
        from lib.report.figures import draw

        return draw(self)

    def __str__(self) -> str:
        return "\n".join(self.sentences())

    def __repr__(self) -> str:
        return f"{type(self).__name__}: print it, or ask it for .sentences(), .figure() or .table()."

    def _repr_markdown_(self) -> str:
        return self.prose().text
