"""The symbols of the book's formulas, and whether the notation page lists them.

What counts as one symbol: a letter, Latin or Greek, with the accent above it and a star behind it (``\\hat\\lambda``,
``m^\\ast``, ``\\mathcal{M}``), a word set upright (``\\operatorname{diag}``), or an operator (``\\rhd``). Indices and
powers make no other symbol: ``W_l`` is ``W`` with the letter ``l``. Words in an index are labels and no symbols.
Signs that mean the same in all of mathematics (``COMMON``) need no entry.

How the page lists: the first symbol of each formula in a table's first column is what the row explains. A section
holds for the chapters that its text names before the table (``03-free-energy``), or for all where it names none; letters in the section
*Running letters* are indices, and hold everywhere. So one letter may mean two things in two chapters, but a chapter
cannot use a letter that only another one explains.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib.chapter import ROOT, Chapter, chapters, parse, text
from lib.plain_markdown import CODE, OPENING
from lib.rules import PROFILES


def words(text: str) -> frozenset[str]:
    """Its words, each once."""
    return frozenset(text.split())


PAGE = Path("chapters/notation.md")
RUNNING = "Running letters"
ACCENTS = {name: name for name in ("hat", "bar", "tilde")}
ACCENTS |= {"widehat": "hat", "overline": "bar", "widetilde": "tilde"}
STYLES = {"mathcal", "mathbb", "mathbf", "boldsymbol", "mathfrak", "mathsf"}
WORDS = {"mathrm", "operatorname", "text", "textstyle"}
GREEK = words(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi "
    "omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega"
)
VARIANTS = {f"var{name}": name for name in ("epsilon", "phi", "theta", "rho", "sigma")}
LAYOUT = words(
    "frac tfrac dfrac sqrt left right big Big bigl bigr Bigl Bigr biggl biggr quad qquad begin end underbrace overbrace "
    "displaystyle textstyle scriptstyle limits nolimits substack phantom label tag"
)
COMMON = words(
    "sum prod int log ln exp max min arg sup inf lim sin cos tan tanh arctan det dim infty cdot cdots dots ldots vdots "
    "times pm mp le leq ge geq ne neq ll gg approx sim simeq equiv propto in notin subset subseteq cup cap setminus "
    "to mapsto rightarrow leftarrow Rightarrow iff implies forall exists mid Vert vert lVert rVert lvert rvert langle "
    "rangle lfloor rfloor lceil rceil top ast star circ partial prime colon"
)
TOKEN = re.compile(r"\\[A-Za-z]+|\\.|[A-Za-z]|[{}_^*']|\S", re.DOTALL)
FORMULA = re.compile(r"(?<!\\)\$\$(?P<block>.+?)\$\$|(?<![\\$])\$(?P<inline>[^$]+?)(?<!\\)\$", re.DOTALL)
LABEL = re.compile("[A-Z]{2,}|in|out")  # an index that is a word or an abbreviation
VERBATIM = {"code", "code-block", "raw", "eval-rst", "include"}
INLINE_CODE = re.compile(r"(?P<role>\{[\w:]+\})?`(?P<code>[^`\n]+)`")


@dataclass(frozen=True)
class Use:
    """A symbol or a name where it stands: the page's stem and the cell (or, on a page that is no notebook, the line)."""

    symbol: str
    stem: str
    place: str


@dataclass(frozen=True)
class Entry:
    """What one row of the notation page lists, and for which chapters' stems (all of them where there are none)."""

    symbols: tuple[str, ...]
    names: tuple[str, ...]
    section: str
    stems: frozenset[str]

    def holds(self, stem: str) -> bool:
        """Whether the entry speaks for this page; one that is no chapter may use every chapter's symbols."""
        return not self.stems or stem in self.stems or not re.match(r"0*[1-9]", stem)


def symbols(tex: str) -> list[str]:
    """The symbols of one formula in order, each as often as it stands there."""
    tex = re.sub(r"\\(begin|end|label|tag)\s*\{[^}]*\}(\{[^}]*\})?", " ", tex)
    return list(_read(TOKEN.findall(tex), inside=False))


def _read(tokens: list[str], inside: bool) -> Iterator[str]:
    """The symbols of some tokens; ``inside`` an index, where words are labels."""
    i = 0
    while i < len(tokens):
        token = tokens[i]
        name = VARIANTS.get(token[1:], token[1:]) if token.startswith("\\") else ""
        i += 1
        if token in "_^":
            argument, i = _argument(tokens, i)
            if not LABEL.fullmatch("".join(argument)):
                yield from _read(argument, inside=True)
            continue
        if name in ACCENTS or name in STYLES or name in WORDS:
            argument, i = _argument(tokens, i)
            found = _styled(name, argument, inside)
        elif name in GREEK or re.fullmatch("[A-Za-z]", token):
            found = [f"\\{name}" if name else token]
        elif name.isalpha() and name not in LAYOUT | COMMON:
            found = [token]
        else:
            continue
        if found == ["e"] and tokens[i : i + 1] == ["^"]:
            continue  # the exponential function
        star = _star(tokens, i)
        yield from found[:-1]
        yield from (f"{symbol}^\\ast" if star else symbol for symbol in found[-1:])


def _styled(name: str, argument: list[str], inside: bool) -> list[str]:
    if name in WORDS:
        word = "".join(argument)
        return [] if inside or name.startswith("text") or word == "const" else [rf"\operatorname{{{word}}}"]
    if name in STYLES:
        return [rf"\{name}{{{symbol}}}" for symbol in _read(argument, inside)]
    first, *rest = list(_read(argument, inside)) or [""]
    return [rf"\{ACCENTS[name]}{{{first}}}", *rest] if first else []


def _argument(tokens: list[str], i: int) -> tuple[list[str], int]:
    """What a command or an index takes from position ``i`` on, a group or one token; and the position behind it."""
    if tokens[i : i + 1] != ["{"]:
        wide = 2 if tokens[i : i + 1] and tokens[i][1:] in ACCENTS.keys() | STYLES else 1
        return tokens[i : i + wide], i + wide
    depth = 0
    for end in range(i, len(tokens)):
        depth += (tokens[end] == "{") - (tokens[end] == "}")
        if not depth:
            return tokens[i + 1 : end], end + 1
    return tokens[i + 1 :], len(tokens)


def _star(tokens: list[str], i: int) -> bool:
    """Whether a star stands behind position ``i``, before or after an index."""
    for _ in range(2):
        if tokens[i : i + 1] not in (["^"], ["_"]):
            return False
        argument, after = _argument(tokens, i + 1)
        if tokens[i] == "^":
            return argument in (["*"], [r"\ast"], [r"\star"])
        i = after
    return False


def without_code(page: str) -> str:
    """The page with every line of code blank, and its ``math`` directives between dollars; lines keep their numbers."""
    kept: list[str] = []
    fences: list[tuple[str, str]] = []  # the open blocks: the mark that closes one, and its name
    for line in page.splitlines():
        opening, code = OPENING.match(line), CODE.match(line)
        mark, name = fences[-1] if fences else ("", "")
        if mark and re.fullmatch(rf"\s*{re.escape(mark)}{re.escape(mark[0])}*\s*", line):
            kept.append("$$" if name == "math" else "")
            fences.pop()
        elif name == "math" or name in VERBATIM:
            kept.append(line if name == "math" else "")
        elif opening:
            fences.append((opening["fence"], opening["name"]))
            kept.append("$$" if opening["name"] == "math" else opening["title"])
        elif code:
            fences.append((code["fence"], "code"))
            kept.append("")
        else:
            kept.append(line)
    return "\n".join(kept)


def formulas(page: str) -> Iterator[tuple[int, str]]:
    """Every formula of a page of MyST Markdown, with the number of its line (from 1)."""
    plain = INLINE_CODE.sub(
        lambda m: f"${m['code']}$" if m["role"] == "{math}" else " " * len(m[0]), without_code(page)
    )
    for found in FORMULA.finditer(plain):
        yield plain[: found.start()].count("\n") + 1, found["block"] or found["inline"]


def pages(root: Path = ROOT) -> Iterator[tuple[str, str, str]]:
    """Every piece of prose that the notation page answers for: (page's stem, place or "" for a page by lines, source)."""
    for path in [root / "index.md", *sorted((root / "chapters").glob("*.md"))]:
        if path.is_file() and path != root / PAGE:
            yield path.stem, "", path.read_text(encoding="utf-8")
    for chapter in chapters(root):
        for i, cell in enumerate(chapter.read()["cells"]):
            if cell["cell_type"] == "markdown":
                yield chapter.stem, f"cell {i}", text(cell["source"])


def used_symbols(root: Path = ROOT) -> Iterator[Use]:
    """Every symbol in a formula of the book, the notation page left out."""
    for stem, place, source in pages(root):
        for line, tex in formulas(source):
            for symbol in symbols(tex):
                yield Use(symbol, stem, place or f"line {line}")


def used_names(root: Path, modules: Sequence[ast.Module]) -> Iterator[Use]:
    """The public functions and classes of ``lib`` that a chapter's prose names in backticks, unless it binds them itself."""
    public = {
        node.name
        for tree in modules
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }
    own = {chapter.stem: own_names(chapter) for chapter in chapters(root)}
    for stem, place, source in pages(root):
        if stem not in own:
            continue
        for found in INLINE_CODE.finditer(without_code(source)):
            called = re.match(r"(?:\w+\.)*(\w+)", found["code"])
            if called and not found["role"] and called[1] in public - own[stem] - set(PROFILES):
                yield Use(called[1], stem, place)


def own_names(chapter: Chapter) -> set[str]:
    """Names that a chapter's code binds otherwise than by import: its variables, functions and their parameters."""
    trees = [parse(cell.source) for cell in chapter.code_cells()]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    functions = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    return bound | functions | {node.arg for node in nodes if isinstance(node, ast.arg)}


def library(root: Path = ROOT) -> list[ast.Module]:
    """The syntax trees of all modules of ``lib``."""
    return [ast.parse(path.read_text(encoding="utf-8")) for path in sorted((root / "lib").rglob("*.py"))]


def entries(page: str) -> list[Entry]:
    """What the notation page lists, row by row; running letters together as one entry."""
    listed = []
    for part in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        section, _, body = part.partition("\n")
        if section.strip() == RUNNING:
            letters = dict.fromkeys(symbol for _, tex in formulas(body) for symbol in symbols(tex))
            listed.append(Entry(tuple(letters), (), RUNNING, frozenset()))
            continue
        stems = frozenset(re.findall(r"\b\d\d[a-z]?-[\w-]+", body.partition("\n|")[0]))
        for row in re.findall(r"^\|(.*)\|\s*$", body, re.MULTILINE)[2:]:
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)]
            heads = [found[0] for _, tex in formulas(cells[0]) if (found := symbols(tex))]
            names = re.findall(r"`([^`]+)`", cells[1]) if len(cells) > 1 else []
            listed.append(Entry(tuple(dict.fromkeys(heads)), tuple(names), section.strip(), stems))
    return listed


def problems(root: Path = ROOT) -> list[str]:
    """What is wrong between chapters and notation page, a sentence each; empty where they agree.

    A symbol or a name of ``lib`` that a chapter uses and the page does not list for it; a symbol that the page lists
    and no chapter of its section uses; a code name on the page that occurs in no code.
    """
    listed = entries((root / PAGE).read_text(encoding="utf-8"))
    used, modules = list(used_symbols(root)), library(root)
    said: dict[str, None] = {}
    for use in used:
        if not any(use.symbol in entry.symbols and entry.holds(use.stem) for entry in listed):
            where = f"chapters/notation.md lists for {use.stem}"
            first = f"{use.stem}, {use.place}: the symbol ${use.symbol}$ is not among those that {where}"
            said.setdefault(
                (use.symbol, use.stem), f"{first}; add a row, or write the symbol that the page has."
            )
    known = {match for entry in listed for name in entry.names for match in re.findall(r"\w+", name)}
    for use in used_names(root, modules):
        if use.symbol not in known:
            first = f"{use.stem}, {use.place}: the name `{use.symbol}` of lib is not in the code column of"
            said.setdefault((use.symbol, use.stem), f"{first} chapters/notation.md; add it there.")
    for entry in listed:
        for symbol in entry.symbols:
            if not any(use.symbol == symbol and entry.holds(use.stem) for use in used):
                first = f"chapters/notation.md, section {entry.section}: no chapter of it uses ${symbol}$"
                said.setdefault(
                    (symbol, entry.section), f"{first}; take the row out, or name the right chapters."
                )
    there = {path.stem for path in (root / "lib").rglob("*.py")}
    trees = [*modules, *(parse(cell.source) for c in chapters(root) for cell in c.code_cells())]
    there |= {name for tree in trees for node in ast.walk(tree) for name in identifiers(node)}
    for entry in listed:
        for name in entry.names:
            if (found := re.match(r"\w+", name)) and found[0] not in there:
                first = f"chapters/notation.md, section {entry.section}: nothing is called `{found[0]}`"
                said.setdefault((name, entry.section), f"{first}; correct the name.")
    return list(said.values())


def identifiers(node: ast.AST) -> Iterator[str]:
    """The names that one node of a syntax tree says: what it defines, reads, takes, or has as a field or a key."""
    for attribute in ("id", "name", "attr", "arg", "value"):
        if isinstance(name := getattr(node, attribute, None), str) and re.fullmatch(r"[\w.]+", name):
            yield from name.split(".")
