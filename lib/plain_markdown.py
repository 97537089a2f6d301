"""MyST Markdown made into the plain Markdown that every notebook editor renders: quotes, folds, headings, links.

Boxes become quotes, exercises become headings, folds become ``<details>``, cross references become words and links.
Formulas and code stay as they are. What has no plain counterpart is an error, so that no markup is left to be
read as text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lib.chapter import ROOT, Chapter, text

OPENING = re.compile(r"^\s*(?P<fence>:{3,}|`{3,})\{(?P<name>[\w:-]+)\}\s*(?P<title>.*?)\s*$")
CODE = re.compile(r"^\s*(?P<fence>`{3,}|~{3,})")
OPTION = re.compile(r"^:(?P<key>[\w-]+):\s*(?P<value>.*?)\s*$")
TARGET = re.compile(r"^\((?P<label>[\w:-]+)\)=\s*$")
HEADING = re.compile(r"^#{1,6}\s+(?P<title>.*?)\s*$")
ROLE = re.compile(r"(?<!`)\{(?P<role>[\w:]+)\}`(?P<text>[^`]+)`")
LOCAL_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<label>[A-Za-z][\w:-]*)\)")
PICTURE = re.compile(r"!\[(?P<alt>[^\]]*)\]\((?!https?:|data:)[^)]*\)")
QUOTED = {
    "admonition",
    "note",
    "tip",
    "hint",
    "important",
    "warning",
    "caution",
    "attention",
    "seealso",
    "margin",
}
NUMBERED = {"exercise"} | {
    f"prf:{kind}" for kind in ("theorem", "proposition", "definition", "lemma", "corollary", "algorithm", "remark",
                               "example", "conjecture", "axiom", "assumption", "property", "observation")
}  # fmt: skip
LITERAL = {"math", "code", "code-block"}
SOLUTIONS = {"solution", "solution-start", "solution-end"}
NO_COUNTERPART = (
    "has no plain counterpart: use another one in chapters, or teach `lib.plain_markdown` how to write it."
)


class NotPlain(ValueError):
    """A piece of MyST that has no plain counterpart here, or a reference that leads nowhere."""


@dataclass(frozen=True)
class Place:
    """What a label names: the page's stem, what is there as the book calls it, and the heading to link to ("" for none)."""

    stem: str
    words: str
    heading: str = ""


@dataclass(frozen=True)
class Book:
    """What cross references need to know: labels, titles of pages and of notebooks, and works cited (author, year)."""

    places: Mapping[str, Place] = field(default_factory=dict)
    titles: Mapping[str, str] = field(default_factory=dict)
    notebooks: frozenset[str] = frozenset()
    works: Mapping[str, tuple[str, str]] = field(default_factory=dict)


def read_book(root: Path = ROOT) -> Book:
    """All labels, titles and cited works of the book's pages and chapters."""
    places: dict[str, Place] = {}
    titles: dict[str, str] = {}
    pages = {path.stem: path.read_text(encoding="utf-8") for path in sorted((root / "chapters").glob("*.md"))}
    notebooks = sorted((root / "chapters").glob("*.ipynb"))
    pages |= {path.stem: "\n\n".join(markdown_cells(Chapter(path))) for path in notebooks}
    for stem, page in pages.items():
        found = list(labels(page, stem))
        places |= {label: place for label, place in found if label}
        titles[stem] = next((place.heading for label, place in found if not label), stem)
    listed = root / "chapters" / "references.bib"
    works = read_works(listed.read_text(encoding="utf-8")) if listed.is_file() else {}
    return Book(places, titles, frozenset(path.stem for path in notebooks), works)


def markdown_cells(chapter: Chapter) -> list[str]:
    """The sources of a notebook's Markdown cells in order."""
    return [text(cell["source"]) for cell in chapter.read()["cells"] if cell["cell_type"] == "markdown"]


def labels(page: str, stem: str) -> Iterator[tuple[str, Place]]:
    """The labels of one page with their places; the page's own title comes under the label ""."""
    counts: Counter[str] = Counter()
    pending, titled = "", False
    for block in every(blocks(page.splitlines())):
        if block.name in NUMBERED:
            counts[block.name] += 1
            words = numbered(block.name, counts[block.name], stem)
            heading = f"{words}. {block.title}" if block.name == "exercise" else ""
            yield block.options.get("label", "?"), Place(stem, words, heading)
        elif target := TARGET.match(block.title):
            pending = target["label"]
        elif not block.name and (heading := HEADING.match(block.title)):
            if block.title.startswith("# ") and not titled:
                titled = True
                yield "", Place(stem, heading["title"], heading["title"])
            if pending:
                yield pending, Place(stem, f"“{heading['title']}”", heading["title"])
            pending = ""


@dataclass(frozen=True)
class Block:
    """A directive (its name, title, options and lines), fenced code (the name "code"), or one line (no name, the title)."""

    name: str
    title: str
    lines: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)


def blocks(lines: Sequence[str]) -> Iterator[Block]:
    """The outermost blocks of a page or cell, in order; a block that is never closed ends with it."""
    i = 0
    while i < len(lines):
        opening, code = OPENING.match(lines[i]), CODE.match(lines[i])
        if fence := (opening or code):
            mark = fence["fence"]
            closed = re.compile(rf"^\s*{re.escape(mark[0])}{{{len(mark)},}}\s*$")
            end = next((j for j in range(i + 1, len(lines)) if closed.match(lines[j])), len(lines))
            if opening:
                options, content = split_options(lines[i + 1 : end])
                yield Block(opening["name"], opening["title"], tuple(content), options)
            else:
                yield Block("code", lines[i], tuple(lines[i : end + 1]))
            i = end
        else:
            yield Block("", lines[i])
        i += 1


def every(found: Iterable[Block]) -> Iterator[Block]:
    """These blocks, each followed by those inside it."""
    for block in found:
        yield block
        if block.name not in {"", "code"}:
            yield from every(blocks(block.lines))


def numbered(name: str, count: int, stem: str) -> str:
    """What the book calls the ``count``-th box of this kind in a chapter: "Theorem 3.1"."""
    chapter = re.match(r"0*(\d+)", stem)
    return f"{name.removeprefix('prf:').capitalize()} {chapter[1] + '.' if chapter else ''}{count}"


def read_works(bibliography: str) -> dict[str, tuple[str, str]]:
    """Authors (as they are cited) and year of every BibTeX entry, by key."""
    works = {}
    for entry in re.split(r"^@", bibliography, flags=re.MULTILINE)[1:]:
        key = re.match(r"\w+\{([^,\s]+),", entry)
        author = re.search(r"^\s*author\s*=\s*\{(.*)\},?\s*$", entry, re.MULTILINE)
        year = re.search(r"^\s*year\s*=\s*\{?(\d+)", entry, re.MULTILINE)
        if not (key and author and year):
            continue
        names = [re.sub(r"\{\\'a\}", "á", name).strip("{} ") for name in author[1].split(" and ")]
        many = len(names) > 2 or names[-1] == "others"
        works[key[1]] = (f"{names[0]} et al." if many else " and ".join(names), year[1])
    return works


@dataclass
class Plain:
    """A converter for the cells of one notebook, in order: it counts theorems and exercises as the book does.

    Call it with a cell's MyST Markdown; it returns plain Markdown. Folds of solutions are left out. Raises NotPlain,
    naming the markup and the notebook, for a directive, a role or a reference that it does not know.
    """

    stem: str
    book: Book
    counts: Counter[str] = field(default_factory=Counter)

    def __call__(self, source: str) -> str:
        """One cell's plain Markdown."""
        return re.sub(r"\n{3,}", "\n\n", "\n".join(self._lines(source.splitlines()))).strip("\n")

    def _lines(self, lines: Sequence[str]) -> Iterator[str]:
        for block in blocks(lines):
            if block.name == "code":
                yield from block.lines
            elif block.name:
                yield from ("", *self._directive(block), "")
            elif not TARGET.match(block.title):
                yield self._inline(block.title)

    def _directive(self, block: Block) -> Iterator[str]:
        name = block.name
        if name in {"figure", "image"}:
            words = " ".join(block.lines).strip() or block.options.get("alt", "")
            yield f"*A figure of the book stands here: {self._inline(words)}*"
            return
        if name in LITERAL:
            first, last = ("$$", "$$") if name == "math" else (f"```{block.title}", "```")
            yield from (first, *block.lines, last)
            return
        if name in SOLUTIONS or (
            name == "dropdown" and re.match("solution|answer", block.title, re.IGNORECASE)
        ):
            return
        title, called = self._inline(block.title), ""
        if name in NUMBERED:
            self.counts[name] += 1
            called = numbered(name, self.counts[name], self.stem)
        body = list(self._lines(block.lines))
        if name == "exercise":
            yield from (f"### {called}. {title}", "", *body)
        elif called:
            yield from quoted(f"**{called}**" + (f" ({title})." if title else "."), body)
        elif name == "prf:proof":
            yield from quoted("*Proof.*", [*body, "", "∎"])
        elif name in QUOTED:
            yield from quoted(f"**{title or name.capitalize()}**", body)
        elif name == "dropdown":
            yield from ("<details>", f"<summary>{title}</summary>", "", *body, "", "</details>")
        elif name == "div":
            yield from body
        else:
            raise NotPlain(f"{self.stem}: the directive {{{name}}} {NO_COUNTERPART}")

    def _inline(self, line: str) -> str:
        line = ROLE.sub(lambda found: self._role(found["role"], found["text"]), line)
        line = LOCAL_LINK.sub(self._local_link, line)
        return PICTURE.sub(lambda found: f"*(a picture of the book: {found['alt']})*", line)

    def _role(self, role: str, content: str) -> str:
        explicit = re.fullmatch(r"(?P<words>.*?)\s*<(?P<target>[^>]+)>", content)
        words, target = (explicit["words"], explicit["target"]) if explicit else ("", content)
        roles: dict[str, Callable[[], str]] = {
            "doc": lambda: self._page(target, words),
            "ref": lambda: self._label(target, words),
            "numref": lambda: self._label(target, words),
            "prf:ref": lambda: self._label(target, words),
            "math": lambda: f"${content}$",
            "cite:p": lambda: f"({'; '.join(', '.join(self._work(key)) for key in target.split(','))})",
            "cite:t": lambda: " and ".join("{} ({})".format(*self._work(key)) for key in target.split(",")),
        }
        if role not in roles:
            raise NotPlain(f"{self.stem}: the role {{{role}}} {NO_COUNTERPART}")
        return roles[role]()

    def _page(self, target: str, words: str) -> str:
        stem = target.rpartition("/")[2]
        if stem not in self.book.titles:
            raise NotPlain(f"{self.stem}: {{doc}}`{target}` leads nowhere; no page or chapter has that name.")
        words = words or self.book.titles[stem]
        return f"[{words}]({stem}.ipynb)" if stem in self.book.notebooks else f"*{words}* (in the book)"

    def _label(self, label: str, words: str) -> str:
        if label not in self.book.places:
            raise NotPlain(f"{self.stem}: no page or chapter has the label `{label}`.")
        place = self.book.places[label]
        if place.stem == self.stem:
            return (
                f"[{words or place.words}](#{anchor(place.heading)})"
                if place.heading
                else words or place.words
            )
        return f"{words or place.words} in {self._page(place.stem, '')}"

    def _local_link(self, found: re.Match[str]) -> str:
        known = found["label"] in self.book.places
        return self._label(found["label"], found["text"]) if known else found[0]

    def _work(self, key: str) -> tuple[str, str]:
        if key.strip() not in self.book.works:
            raise NotPlain(f"{self.stem}: the bibliography has no work called `{key.strip()}`.")
        return self.book.works[key.strip()]


def split_options(lines: Sequence[str]) -> tuple[dict[str, str], Sequence[str]]:
    """A directive's ``:key: value`` lines, and what follows them."""
    options: dict[str, str] = {}
    for i, line in enumerate(lines):
        if not (option := OPTION.match(line)):
            return options, lines[i:]
        options[option["key"]] = option["value"]
    return options, []


def quoted(title: str, body: list[str]) -> list[str]:
    """A block quote; a formula of several lines is first put on one, since the quote's marks would get into it."""
    joined = re.sub(
        r"\$\$.*?\$\$", lambda found: " ".join(found[0].split()), "\n".join(body), flags=re.DOTALL
    )
    return [f"> {line}".rstrip() for line in [title, "", *joined.strip("\n").splitlines()]]


def anchor(heading: str) -> str:
    """The fragment under which Jupyter finds a heading: spaces become hyphens."""
    return heading.replace(" ", "-").replace("(", "%28").replace(")", "%29")
