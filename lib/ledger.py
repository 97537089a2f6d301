"""The ledger of claims, read from ``data/claims.toml`` and checked: what is claimed, measured, and decided how.

The file's head explains its keys. Every mistake in it is a LedgerError that names the claim and the key.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lib.rules import PROFILES, Condition, Either, Every, Region, Rule, Sizes, chance, conditions, describe

LEDGER = Path(__file__).parent.parent / "data" / "claims.toml"
CHAPTERS = {  # owner chapter -> the paper it is about, and that paper's short title
    "two-neurons": (1, "Symmetry-aware posteriors"),
    "posteriors": (1, "Symmetry-aware posteriors"),
    "free-energy": (2, "Free energy of deep ReLU networks"),
    "matrix-gaussian": (3, "Matrix-Gaussian variational inference"),
    "unit-norm": (4, "Unit-norm filters"),
    "three-models": (5, "Simultaneous linear connectivity"),
    "one-population": (0, "One population, five lenses"),
}
MARKS = ("verified", "by eye", "recalled", "derived", "none")


class LedgerError(ValueError):
    """The ledger says something that no claim or rule can be made of."""


@dataclass(frozen=True)
class Claim:
    """One statement of a paper (or of ours), with everything that decides about it."""

    id: str
    chapter: str
    statement: str
    source: str
    figure: str
    mark: str
    metric: str
    unit: str
    rule: Rule
    scope: Mapping[str, str]
    measures: Mapping[str, str]
    pilot: bool
    article: tuple[str, ...] = ()
    why: str = ""
    out_of_reach: Mapping[str, str] | None = None
    changed: tuple[str, ...] = ()

    @property
    def paper(self) -> int:
        """Number of the paper whose chapter owns the claim, 0 where it belongs to none."""
        return CHAPTERS[self.chapter][0]

    @property
    def ours(self) -> bool:
        """Whether the claim is the book's own question and not the paper's statement."""
        return "X" in self.id

    @property
    def stated(self) -> bool:
        """Whether the sentence is the paper's own; controls and derivations under a paper's number are this book's."""
        return not self.ours and not self.source.startswith(("Ours", "Derived"))

    def chance(self, profile: str) -> float:
        """Upper bound on the probability that the rule confirms although there is no effect."""
        return chance(self.rule, profile)

    def describe(self, profile: str) -> str:
        """The rule as one plain English phrase."""
        return describe(self.rule, profile)


def ledger(path: Path | None = None) -> dict[str, Claim]:
    """Every claim by its id, in the ledger's order."""
    return dict(_read(path or LEDGER)[0])


def setting(chapter: str, name: str, path: Path | None = None):
    """A number that a chapter must fix beforehand, such as ``setting("two-neurons", "prior_sigma")``."""
    table = _read(path or LEDGER)[1]
    if name not in table.get(chapter, {}):
        known = ", ".join(f"{c}.{n}" for c, names in table.items() for n in names)
        raise KeyError(f"the ledger has no setting {chapter}.{name}; it has {known}.")
    return table[chapter][name]


@lru_cache
def _read(path: Path) -> tuple[dict[str, Claim], dict]:
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    claims: dict[str, Claim] = {}
    for table in document.get("claim", []):
        name = str(table.get("id", "without an id"))
        try:
            claim = parse_claim(table)
        except LedgerError as error:
            raise LedgerError(f"claim {name}: {error}") from None
        if name in claims:
            raise LedgerError(f"claim {name} stands twice in the ledger.")
        claims[name] = claim
    return claims, document.get("settings", {})


_TEXTS = {"id", "chapter", "statement", "source", "figure", "mark", "metric", "unit"}
_CLAIM_KEYS = _TEXTS | {
    "rule",
    "scope",
    "measures",
    "pilot",
    "article",
    "why",
    "out_of_reach",
    "changed",
}


def parse_claim(table: Mapping) -> Claim:
    """Make a claim of its table in the ledger."""
    unknown = set(table) - _CLAIM_KEYS
    missing = (_TEXTS | {"rule", "scope", "measures", "pilot"}) - set(table)
    if unknown or missing:
        raise LedgerError(f"unknown keys {sorted(unknown)}, missing keys {sorted(missing)}.")
    if not re.fullmatch(r"P[1-5]-[CX]\d+b?|X-[A-Z]\d+", table["id"]):
        raise LedgerError("the id is none of P1-C1, P1-C5b, P4-X1, X-F1 or alike.")
    if table["chapter"] not in CHAPTERS:
        raise LedgerError(f"its chapter '{table['chapter']}' is none of {', '.join(CHAPTERS)}.")
    if table["mark"] not in MARKS:
        raise LedgerError(f"its mark '{table['mark']}' is none of {', '.join(MARKS)}.")
    if (table["mark"] == "none") != (table["figure"] == "none available"):
        raise LedgerError("a figure has a mark, and only 'none available' has the mark 'none'.")
    if set(table["scope"]) != set(PROFILES):
        raise LedgerError("'scope' says what each profile covers: quick and full.")
    out = table.get("out_of_reach", {})
    if not set(out) <= set(PROFILES) or not all(out.values()):
        raise LedgerError("'out_of_reach' gives a reason for quick or full.")
    rule = parse_rule(table["rule"])
    for profile in PROFILES:
        judged = {condition.measure for condition in conditions(rule, profile)}
        if not judged:
            raise LedgerError(f"its rule asks for nothing in profile {profile}.")
        if judged - set(table["measures"]):
            raise LedgerError(f"'measures' does not describe {sorted(judged - set(table['measures']))}.")
    lists = {key: tuple(table.get(key, ())) for key in ("article", "changed")}
    return Claim(**{**table, "rule": rule, "out_of_reach": out, **lists})


_KEYS = {
    "measure",
    "above",
    "below",
    "inside",
    "over",
    "cells",
    "counting",
    "n",
    "seeds",
    "profiles",
    "chance",
}


def parse_rule(table: Mapping) -> Rule:
    """Make a rule of its table; raises LedgerError with a sentence where it is not one."""
    for key, kind in (("all", Every), ("any", Either)):
        if key in table:
            if set(table) != {key} or not table[key]:
                raise LedgerError(
                    f"'{key}' must be its table's only key and hold at least one condition: {table}"
                )
            return kind(tuple(parse_rule(part) for part in table[key]))
    unknown = set(table) - _KEYS
    if unknown:
        raise LedgerError(f"a condition has no key '{min(unknown)}': {table}")
    over = table.get("over", "all")
    over = {"share": 1.0} if over == "all" else over
    if not isinstance(over, dict) or len(over) != 1 or not set(over) <= {"share", "at_least"}:
        raise LedgerError(f"'over' is \"all\", {{at_least = k}} or {{share = s}}: {table}")
    if not 0 < over.get("share", 1.0) <= 1 or over.get("at_least", 1) < 1:
        raise LedgerError(f"'over' needs 0 < share <= 1 or at_least >= 1: {table}")
    asked = table.get("profiles", PROFILES)
    if not asked or not set(asked) <= set(PROFILES):
        raise LedgerError(f"'profiles' holds names among {PROFILES}: {table}")
    probability = float(table.get("chance", Condition.chance))
    if not 0 <= probability <= 1:
        raise LedgerError(f"'chance' is a probability: {table}")
    return Condition(
        measure=table.get("measure", ""),
        region=_region(table),
        sizes={profile: _sizes(table, profile) for profile in asked},
        share=float(over.get("share", 1.0)),
        at_least=over.get("at_least"),
        chance=probability,
    )


def _region(table: Mapping) -> Region:
    kinds = [kind for kind in ("above", "below", "inside") if kind in table]
    if not table.get("measure") or len(kinds) != 1:
        raise LedgerError(f"a condition names a measure and one of above, below, inside: {table}")
    ends = table[kinds[0]] if kinds[0] == "inside" else [table[kinds[0]]]
    region = Region(kinds[0], tuple(float(end) for end in ends))
    if kinds[0] == "inside" and not (len(region.ends) == 2 and region.ends[0] < region.ends[1]):
        raise LedgerError(f"'inside' takes [a, b] with a < b: {table}")
    return region


def _sizes(table: Mapping, profile: str) -> Sizes:
    values = {}
    for key in ("cells", "counting", "n", "seeds"):
        value = table.get(key, getattr(Sizes, key))
        if isinstance(value, dict):
            if profile not in value:
                raise LedgerError(f"'{key}' says nothing for profile {profile}: {table}")
            value = value[profile]
        values[key] = value
    names = tuple(values["cells"]) if isinstance(values["cells"], list) else ()
    cells = len(names) or values.pop("cells")
    return Sizes(**{**values, "cells": cells, "names": names})
