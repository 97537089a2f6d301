"""One HTML file with everything in it: no script, no font, no picture is fetched; it reads in light and in dark, and on a phone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import torch

from lib.plots import Shown
from lib.report.everything import Report
from lib.report.figures import draw
from lib.report.sentences import say
from lib.report.verdicts import NO, OPEN, YES
from lib.table import Table

CSS = """
:root { color-scheme: light dark; --ink: #1f2328; --page: #ffffff; --quiet: #57606a; --line: #d0d7de; --yes: #11693d; --no: #a33208; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --page: #0f1318; --quiet: #a5aeb8; --line: #38414c; --yes: #6fcf9b; --no: #ff9c6e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 56rem; padding: 1.25rem; color: var(--ink); background: var(--page); font: 17px/1.6 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.25; } h2 { margin-top: 2.5rem; font-size: 1.3rem; } h3 { font-size: 1.05rem; }
p, li { max-width: 44rem; } .quiet, figcaption { color: var(--quiet); font-size: 0.92em; }
.scroll { overflow-x: auto; margin: 1rem 0; } table { border-collapse: collapse; font-size: 0.92em; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--quiet); padding-bottom: 0.3rem; } th, td { padding: 0.35rem 0.9rem 0.35rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
tbody th { font-weight: 500; } figure { max-width: 100%; } figure svg { color: var(--ink); }
.verdict { display: inline-block; padding: 0.1em 0.7em; border: 2px solid currentColor; border-radius: 1em; font-weight: 600; }
.yes { color: var(--yes); } .no { color: var(--no); } .open { color: var(--quiet); border-style: dashed; }
nav ul { padding-left: 1.2rem; } a { color: inherit; } summary { cursor: pointer; }
"""
TITLES = {
    "next": "What to do next",
    "files": "Checkpoints",
    "data": "Examples",
    "symmetries": "Symmetries",
    "mass": "Mass",
    "alignment": "Distances",
    "barriers": "Barriers between networks",
    "merging": "Can they be merged?",
    "ensemble": "Together and apart",
}
WORDS = {
    "Barrier": "how far loss or error rises on the straight line between two networks' weights, above the straight line between its ends.",
    "In one order of units": "hidden units can be permuted without a change of the function; matching looks for the order in which networks are nearest to "
    "each other. Jointly: all at once; each to one: all to the first.",
    "Mass, orbit": "the sum of squared weights; all weights that permuting and rescaling make of one network without changing its function. Homogeneous scales: "
    "a ReLU unit's incoming weights times a factor, its outgoing ones divided by it.",
    "Plain mean, merged mean": "the mean of the weights as they are, and in one order of units, each network at the least mass of its orbit.",
    "Parts of a barrier": "what each remedy takes off it, given those before: permuting, rescaling, and setting the hidden units' mean and spread to those of the "
    "ends (statistics). A remedy may also raise the barrier: its part is then negative.",
    "ECE, NLL": "expected calibration error: by how much stated probabilities miss the share that is right; negative log-likelihood: the mean of minus the "
    "logarithm of the right class's probability.",
}
LONG = 12  # rows from which a table is folded


def page(found: Report, *, title: str = "Networks of one architecture", how: str = "") -> str:
    """The report as one HTML document; ``how`` is the command that made it."""
    parts = "".join(_section(name, heading, list(_content(name, found))) for name, heading in TITLES.items())
    parts += _section("words", "Words on this page", [_glossary(parts)])
    links = "".join(
        f'<li><a href="#{name}">{heading}</a></li>' for name, heading in (*TITLES.items(), ("words", "Words"))
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{escape(title)}</h1>\n{_verdict(found)}<nav aria-label="Contents"><ul>{links}</ul></nav>\n{parts}'
        f'<footer class="quiet"><p>{escape(how)}</p><p>torch {torch.__version__}. Intervals are 95 %.</p></footer>\n'
        "</main>\n</body>\n</html>\n"
    )


def write(path: str | Path, html: str) -> Path:
    """Write the page whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(html, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path.resolve()


def _section(name: str, heading: str, content: Sequence[str]) -> str:
    return f'<section aria-labelledby="{name}">\n<h2 id="{name}">{escape(heading)}</h2>\n{"".join(content)}</section>\n'


def _verdict(found: Report) -> str:
    if not found.verdict:
        return ""
    kind = {YES: "yes", NO: "no", OPEN: "open"}[found.verdict]
    text = {YES: "can be merged", NO: "cannot be merged", OPEN: "merging: unresolved"}[found.verdict]
    return f'<p><span class="verdict {kind}">{text}</span></p>\n<p>{escape(found.headline)}</p>\n'


def _content(name: str, found: Report) -> Iterator[str]:
    if name == "next":
        yield _list(
            [f"<strong>{escape(each.action)}.</strong> {escape(each.reason)}" for each in found.advice]
        )
        return
    if name == "files":
        yield _words(say(found.models)[:1]) + _table(found.models.table())
        yield _words([w for w in say(found.models) if w.startswith(("Left alone", "One network"))])
        return
    things = {
        "data": (found.halves,),
        "symmetries": (found.structure,),
        "mass": (found.mass,),
        "alignment": (found.alignment,),
        "barriers": (found.plan if found.barriers else None, found.barriers),
        "merging": (found.merging,),
        "ensemble": (found.ensemble,),
    }[name]
    for thing in things:
        if thing is not None:
            yield _words(found.words(name) if thing is found.merging else say(thing))
            yield from _shown(thing)
    if name == "barriers" and "activations" in found.problems:
        yield f"<p>Not matched by activations: {escape(found.problems['activations'])}</p>"
    if why := found.why_not(name):
        yield f"<p><strong>Not measured:</strong> {escape(why)}</p>"
    elif not any(thing is not None for thing in things):
        yield f'<p class="quiet">{_absent(name, found)}</p>'


def _glossary(text: str) -> str:
    """The words that the page uses, explained."""
    used = {
        w: meaning
        for w, meaning in WORDS.items()
        if any(each.lower() in text.lower() for each in w.split(", "))
    }
    return f"<dl>{''.join(f'<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>' for word, meaning in used.items())}</dl>"


def _absent(name: str, found: Report) -> str:
    if name in ("barriers", "merging", "ensemble") and found.halves is None:
        return "Not measured: it needs examples."
    if len(found.models) < 2 and name in ("alignment", "barriers", "merging"):
        return "Not measured: it needs two networks."
    return "Not measured: it needs the symmetries, which could not be found."


def _shown(thing: object) -> Iterator[str]:
    picture = draw(thing)
    if isinstance(picture, Shown):
        yield picture._repr_html_()
    for verb in ("table", "parts_table", "diversity_table", "singles"):
        table = getattr(thing, verb, None)
        if table is not None and (made := table()).rows:
            yield _table(made)


def _table(table: Table) -> str:
    if len(table.rows) <= LONG:
        return table.html()
    return (
        f"<details><summary>{escape(table.caption)}: {len(table.rows)} rows</summary>{table.html()}</details>"
    )


def _words(sentences: Sequence[str]) -> str:
    return "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)


def _list(items: Sequence[str]) -> str:
    return f"<ol>{''.join(f'<li>{item}</li>' for item in items)}</ol>"
