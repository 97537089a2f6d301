"""What a piece of code can reach inside a package, read from the source without running it.

Names are followed through imports, re-exports, attributes of modules and classes, and module-level constants, to
the top-level statements that bind or change them. Where the source alone cannot tell (a module passed as a value,
a star import, ``globals()``, a module's name in a string), the whole module counts: too much is safe, too little
is not.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
REFLECTION = {"globals", "vars", "locals", "eval", "exec"}
Use = tuple[str, tuple[str, ...]]  # a name, and the attributes taken from it in a row


@dataclass
class Module:
    """One module's top-level statements by the names that they bind or change."""

    name: str
    is_package: bool
    statements: list[ast.stmt]
    bound: dict[str, list[int]] = field(default_factory=dict)  # name -> positions in statements
    imports: dict[str, set[tuple[str, str]]] = field(
        default_factory=dict
    )  # name -> {(module, attribute or "")}
    stars: set[str] = field(default_factory=set)
    effects: list[int] = field(default_factory=list)  # statements that run for their effect alone

    def __post_init__(self) -> None:
        for node in (node for statement in self.statements for node in ast.walk(statement)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                self._note_import(node)
        for i, statement in enumerate(self.statements):
            if isinstance(statement, ast.Import | ast.ImportFrom):
                continue
            names = set(changed(statement))
            for name in names:
                self.bound.setdefault(name, []).append(i)
            if not names or self._registers(statement):
                self.effects.append(i)

    def _note_import(self, node: ast.Import | ast.ImportFrom) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                target = alias.name if alias.asname else alias.name.split(".")[0]
                self.imports.setdefault(alias.asname or target, set()).add((target, ""))
            return
        package = self.name.split(".") if self.is_package else self.name.split(".")[:-1]
        base = package[: len(package) - node.level + 1] if node.level else []
        source = ".".join([*base, *([node.module] if node.module else [])])
        for alias in node.names:
            if alias.name == "*":
                self.stars.add(source)
            else:
                self.imports.setdefault(alias.asname or alias.name, set()).add((source, alias.name))

    def _registers(self, statement: ast.stmt) -> bool:
        """Whether a decorator of the package's own may put this definition where other code finds it."""
        package = self.name.split(".")[0]
        for decorator in getattr(statement, "decorator_list", ()):
            for name, _ in uses(decorator):
                sources = self.imports.get(name, set())
                if name in self.bound or any(source.split(".")[0] == package for source, _ in sources):
                    return True
        return False


def changed(statement: ast.stmt) -> Iterator[str]:
    """Names that a top-level statement binds, or whose object it changes in place."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
    elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        function = statement.value.func
        if isinstance(function, ast.Attribute) and (name := root_name(function)):
            yield name  # names.append(...)
    elif isinstance(statement, ast.Expr):
        return
    else:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name | ast.Attribute | ast.Subscript) and not isinstance(
                node.ctx, ast.Load
            ):
                if name := root_name(node):
                    yield name
            elif node is not statement and isinstance(node, ast.stmt):
                yield from changed(node)


def root_name(node: ast.expr) -> str | None:
    """The name that ``name.a[0].b`` starts from, None where it starts from a call or a literal."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def uses(node: ast.AST, inside: frozenset[str] = frozenset()) -> Iterator[Use]:
    """Names read in ``node`` that are not local to a function in it, each with the attributes taken from it."""
    if isinstance(node, ast.Name):
        if node.id not in inside:
            yield node.id, ()
    elif isinstance(node, ast.Attribute):
        attributes: list[str] = []
        start: ast.expr = node
        while isinstance(start, ast.Attribute):
            attributes.insert(0, start.attr)
            start = start.value
        if not isinstance(start, ast.Name):
            yield from uses(start, inside)
        elif start.id not in inside:
            yield start.id, tuple(attributes)
    elif isinstance(node, FUNCTIONS):
        body = node.body if isinstance(node.body, list) else [node.body]
        for part in ast.iter_child_nodes(node):  # decorators, defaults and annotations see the outer names
            if part not in body:
                yield from uses(part, inside)
        own = local_names(node, body)
        for part in body:
            yield from uses(part, inside | own)
    else:
        for part in ast.iter_child_nodes(node):
            yield from uses(part, inside)


def local_names(function: ast.AST, body: Iterable[ast.AST]) -> frozenset[str]:
    """Parameters and assigned names of one function, without those that it declares global."""
    arguments = [node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)]
    local, shared = set(arguments), set()
    pending = list(body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Global):
            shared.update(node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            local.add(node.id)
        if not isinstance(node, (*FUNCTIONS, *COMPREHENSIONS, ast.ClassDef)):
            pending += ast.iter_child_nodes(node)
    return frozenset(local - shared)


@cache
def _parsed(name: str, is_package: bool, path: Path, changed_at: int) -> Module:
    """A module as it stands; chapters share most of what they reach."""
    return Module(name, is_package, ast.parse(path.read_text(encoding="utf-8")).body)


@cache
def _uses(statement: ast.stmt) -> tuple[tuple[Use, ...], tuple[str, ...]]:
    """What a top-level statement uses, and the strings in it."""
    nodes = (node for node in ast.walk(statement) if isinstance(node, ast.Constant))
    return tuple(uses(statement)), tuple(node.value for node in nodes if isinstance(node.value, str))


class Reach:
    """Everything that the followed uses reach: statements by module, outside names, files of the package, strings."""

    def __init__(self, package: Path, without: Collection[str] = ()) -> None:
        self.package, self.without = package, frozenset(without)
        self.modules: dict[str, Module] = {}
        self.reached: dict[str, set[int]] = {}
        self.bindings: set[tuple[str, str, str, str]] = set()
        self.files: set[Path] = set()
        self.strings: set[str] = set()
        self._attached = {
            path.name: path
            for path in package.rglob("*")
            if path.is_file() and path.suffix not in {".py", ".pyc"} and "__pycache__" not in path.parts
        }

    def add(self, module: Module, positions: Iterable[int]) -> None:
        """Follow these statements of ``module``, which need not be a file of the package (a notebook)."""
        self.modules[module.name] = module
        self.reached.setdefault(module.name, set())
        for star in sorted(module.stars):
            self._whole(star)
        for i in positions:
            self._statement(module, i)

    def statements(self) -> Iterator[tuple[str, ast.stmt]]:
        """The reached statements with their module's name, modules by name, statements in source order."""
        for name in sorted(self.reached):
            for i in sorted(self.reached[name]):
                yield name, self.modules[name].statements[i]

    def _load(self, name: str) -> Module | None:
        """The module called ``name`` where it is a file of the package, its star imports and effects followed."""
        parts = name.split(".")
        if parts[0] != self.package.name or name in self.without:
            return None
        if name not in self.modules:
            path = self.package.joinpath(*parts[1:])
            is_package = path.is_dir()
            path = path / "__init__.py" if is_package else path.with_suffix(".py")
            if not path.is_file():
                return None
            self.modules[name] = _parsed(name, is_package, path, path.stat().st_mtime_ns)
        return self.modules[name]

    def _enter(self, module: Module) -> None:
        if module.name in self.reached:
            return
        self.reached[module.name] = set()
        if "." in module.name and (parent := self._load(module.name.rpartition(".")[0])):
            self._enter(parent)
        for star in sorted(module.stars):
            self._whole(star)
        for i in module.effects:
            self._statement(module, i)

    def _whole(self, name: str) -> None:
        module = self._load(name)
        if module is None:
            return
        self._enter(module)
        for i, statement in enumerate(module.statements):
            if not isinstance(statement, ast.Import | ast.ImportFrom):
                self._statement(module, i)
        if module.is_package:
            for local in sorted(module.imports):
                self._name(module, local, ())

    def _statement(self, module: Module, i: int) -> None:
        if i in self.reached[module.name]:
            return
        self.reached[module.name].add(i)
        used, strings = _uses(module.statements[i])
        for name, attributes in used:
            self._name(module, name, attributes)
        for value in strings:
            self._string(value)

    def _string(self, value: str) -> None:
        self.strings.add(value)
        if (path := self._attached.get(value.rpartition("/")[2])) is not None:
            self.files.add(path)
        if value.startswith(self.package.name + "."):
            self._whole(value)

    def _name(self, module: Module, name: str, attributes: tuple[str, ...]) -> None:
        for i in module.bound.get(name, ()):
            self._statement(module, i)
        for source, attribute in sorted(module.imports.get(name, ())):
            self.bindings.add((module.name, name, source, attribute))
            self._attribute(source, ((attribute,) if attribute else ()) + attributes)
        if name in REFLECTION and name not in module.bound:
            self._whole(module.name)

    def _attribute(self, source: str, attributes: tuple[str, ...]) -> None:
        module = self._load(source)
        if module is None:
            return
        if not attributes:
            self._whole(source)
            return
        self._enter(module)
        first, rest = attributes[0], attributes[1:]
        if first in module.bound or first in module.imports:
            self._name(module, first, rest)
        elif self._load(f"{source}.{first}") is not None:
            self._attribute(f"{source}.{first}", rest)
        elif f"{source}.{first}" not in self.without and not first.startswith("__"):
            self._whole(source)
