"""A report part by part, for a notebook: words, table and picture of each, or the reason why it was not measured."""

from __future__ import annotations

from lib.plots import Shown
from lib.report import data_source
from lib.report.data_source import DataProblem, Source
from lib.report.everything import Report
from lib.report.figures import draw
from lib.say import Prose
from lib.table import Table, markdown


def source(data: str, task: str, **pictures: object) -> Source | DataProblem | None:
    """The examples at ``data``, the problem that keeps them from being read, or None for "": what needs none is reported all the same."""
    if not data:
        return None
    try:
        return data_source.read(data, task, **pictures)
    except DataProblem as problem:
        return problem


def words(found: Report, name: str) -> Prose:
    """The sentences of one part, as a list; where it was not measured, why not."""
    part = getattr(found, name)
    if part is None:
        why = found.why_not(name) or found.problems.get("data") or "it needs what was not measured above."
        return Prose(f"*Not measured*: {markdown(why)}")
    return Prose("\n".join(f"- {markdown(sentence)}" for sentence in found.words(name)))


def table(found: Report, name: str) -> Table | None:
    """The table of one part."""
    part = getattr(found, name)
    return None if part is None else part.table()


def picture(found: Report, name: str) -> Shown | None:
    """The picture of one part, where it has one."""
    part = getattr(found, name)
    return None if part is None else draw(part)


def advice(found: Report) -> Prose:
    """What to do next."""
    return Prose(
        "\n".join(f"1. **{markdown(each.action)}.** {markdown(each.reason)}" for each in found.advice)
    )
