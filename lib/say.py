"""Prose whose numbers come from the run, shown as Markdown in a notebook and on the page."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prose:
    """Markdown text."""

    text: str

    def _repr_markdown_(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return self.text


def say(template: str, **numbers: object) -> Prose:
    """``template`` with its fields filled in: ``say("{share:.0%} pass.", share=0.99)``.

    A number on a page is never typed: it is a field, filled by the run that the page shows.
    """
    return Prose(" ".join(template.format(**numbers).split()))
