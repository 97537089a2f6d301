"""What a chapter measured, as one small JSON file with its provenance, and the table that sets it beside the paper.

Quick results live in the build tree, full ones in ``data/results/full``. Files are written atomically and checked on
reading: a file that was cut or edited says so in a sentence. They hold Python's own numbers only; what is not finite is
``null``. The measurements behind every verdict are kept, so that a verdict can be judged again under a changed rule.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

import numpy
import torch

from lib.claims import VERDICTS, Measurement, Verdict, judge, ledger, number
from lib.rules import PROFILES
from lib.say import Prose
from lib.table import Table

ROOT = Path(__file__).parent.parent
FOLDERS = {"quick": Path("_build/results/quick"), "full": Path("data/results/full")}
SYMBOLS = {"confirmed": "✓", "not confirmed": "✗", "unresolved": "?", "out of reach here": "–"}
NOT_PUBLISHED = "GPU run not yet published"
NOT_MEASURED = "not yet measured"
STALE = "STALE: made with other code or sizes"


class ResultsError(ValueError):
    """A result file is not one."""


def path(chapter: str, profile: str, root: Path | None = None) -> Path:
    """Where the results of a chapter (a notebook's name without number) are kept in one profile."""
    if profile not in FOLDERS:
        raise KeyError(f"there is no profile '{profile}': the profiles are {' and '.join(PROFILES)}.")
    return (root or ROOT) / FOLDERS[profile] / f"{chapter}.json"


def save(
    chapter: str,
    profile: str,
    seed: int,
    verdicts: Iterable[Verdict],
    tables: Mapping | None = None,
    *,
    device: torch.device | str = "cpu",
    wall_seconds: float | int | None = None,
    digest: str | None = None,
    root: Path | None = None,
) -> Path:
    """Write a chapter's verdicts and tables with their provenance; returns the file's path.

    ``tables`` holds numbers, texts, lists, dicts, arrays and tensors; ``digest`` is by default that of the chapter as
    its code and sizes stand now. Raises TypeError for what JSON cannot hold, and ResultsError where a verdict was judged
    in another profile or given twice; then nothing is written.
    """
    target = path(chapter, profile, root)
    digest = digest or digest_now(chapter, profile, root)
    entries = [_entry(verdict) for verdict in verdicts]
    for verdict in entries:
        if verdict["profile"] != profile:
            raise ResultsError(
                f"{verdict['id']} was judged in profile {verdict['profile']}, not in {profile}."
            )
    document = {
        "chapter": chapter,
        "profile": profile,
        "seed": seed,
        "claims": entries,
        "tables": _plain(dict(tables or {})),
        "provenance": _surroundings(torch.device(device), wall_seconds, digest),
    }
    _check(document, chapter, profile, f"the results of {chapter}")
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{chapter}-", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=1, ensure_ascii=False, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return target


def load(chapter: str, profile: str, root: Path | None = None) -> dict | None:
    """The results of a chapter in one profile, checked; None where there are none. Raises ResultsError for a bad file."""
    file = path(chapter, profile, root)
    if not file.exists():
        return None
    name = f"{FOLDERS[profile].as_posix()}/{chapter}.json"
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ResultsError(f"{name} is cut or is not JSON ({error}): {_way_out(chapter, profile)}") from None
    try:
        _check(document, chapter, profile, name)
    except ResultsError as error:
        raise ResultsError(f"{error} To be rid of it, {_way_out(chapter, profile)}") from None
    return document


def judged_again(result: Mapping) -> dict[str, Verdict]:
    """The verdicts that the ledger of today gives on a result file's measurements, by claim."""
    known = ledger()
    return {
        entry["id"]: judge(entry["id"], result["profile"], map(_measurement, entry["measurements"]))
        for entry in result["claims"]
        if entry["id"] in known
    }


def stale(result: Mapping, digest: str | None) -> bool:
    """Whether results were made with other code or sizes than those of ``digest`` (None: not asked)."""
    return digest is not None and result["provenance"]["digest"] != digest


def digest_now(chapter: str, profile: str, root: Path | None = None) -> str | None:
    """The digest of a chapter as its code and sizes stand now, None where it has no notebook yet."""
    from lib.chapter import UnknownChapter
    from lib.digest import of_chapter

    try:
        return of_chapter(chapter, profile, root or ROOT)
    except UnknownChapter:
        return None


def comparison(
    claim_ids: Iterable[str],
    this_run: Mapping | Iterable[Verdict],
    full_digest: str | None = None,
    root: Path | None = None,
) -> Table:
    """The table *paper, this run, GPU run* for some claims of the ledger; without the paper where none of them has a figure.

    ``this_run`` is a loaded result or the verdicts just made. A published run is stamped stale where its digest is not
    ``full_digest`` (by default that of the claim's owner chapter as its code and sizes stand now).
    """
    entries = this_run["claims"] if isinstance(this_run, Mapping) else [_entry(v) for v in this_run]
    mine = {entry["id"]: entry for entry in entries}
    known = ledger()
    published: dict[str, tuple[dict | None, str | None]] = {}
    rows = []
    for claim_id in claim_ids:
        claim = known[claim_id]
        if claim.chapter not in published:
            result = load(claim.chapter, "full", root)
            now = (full_digest or digest_now(claim.chapter, "full", root)) if result else None
            published[claim.chapter] = (result, now)
        result, now = published[claim.chapter]
        rows.append(
            (
                claim_id,
                f"{claim.figure} [{claim.mark}]" if claim.mark != "none" else claim.figure,
                cell(mine.get(claim_id)),
                full_cell(result, claim_id, now),
            )
        )
    if all(known[row[0]].mark == "none" for row in rows):
        rows = [(name, *runs) for name, _, *runs in rows]
        return Table(("Claim", "This run", "GPU run"), rows, "This run and the published GPU run")
    return Table(("Claim", "Paper", "This run", "GPU run"), rows, "Paper, this run and the published GPU run")


def provenance(chapter: str, profile: str, root: Path | None = None) -> Prose:
    """A chapter's footer: when, where, by what and from what its numbers on this page were computed."""
    result = load(chapter, profile, root)
    if result is None:
        return Prose(f"No results of {chapter} in the {profile} profile: {NOT_MEASURED}.")
    made = result["provenance"]
    wall = f"{made['wall_seconds']:.0f} s" if made["wall_seconds"] is not None else "a time not taken"
    return Prose(
        f"*Computed on {made['date'][:10]} in {wall}, profile {profile}, seed {result['seed']}, on {made['device']} "
        f"({made['device_name']}, {made['threads']} threads), with Python {made['python']}, torch {made['torch']}, "
        f"numpy {made['numpy']}; digest {(made['digest'] or 'unknown')[:12]}, "
        f"commit {(made['commit'] or 'unknown')[:12]}.*"
    )


def cell(entry: Mapping | None) -> str:
    """A claim's entry in one run as a short text: symbol, verdict, number with interval."""
    if entry is None:
        return NOT_MEASURED
    text = f"{SYMBOLS[entry['verdict']]} {entry['verdict']}"
    if entry["value"] is None:
        return text
    return f"{text}: {entry['label']} = {number(entry['value'], entry['interval'], entry['unit'])}"


def full_cell(result: Mapping | None, claim_id: str, digest: str | None = None) -> str:
    """A claim's text in the published full run: not published, not measured, its verdict, and a stamp where stale."""
    if result is None:
        return NOT_PUBLISHED
    text = cell(next((entry for entry in result["claims"] if entry["id"] == claim_id), None))
    return f"{text} ({STALE})" if stale(result, digest) else text


# ------------------------------------------------------------------------------------------------ to and from JSON


def _entry(verdict: Verdict) -> dict:
    head = verdict.headline
    return {
        "id": verdict.id,
        "profile": verdict.profile,
        "verdict": verdict.verdict,
        "value": _plain(verdict.value),
        "interval": [_plain(end) for end in verdict.interval],
        "unit": verdict.unit,
        "scope": verdict.scope,
        "note": verdict.note,
        "label": verdict.label,
        "n": head.n if head else 0,
        "seeds": head.seeds if head else 0,
        "cell": head.cell if head else "",
        "cells": head.cells if head else 0,
        "sentence": verdict.sentence,
        "measurements": [_record(measurement) for measurement in verdict.measurements],
    }


def _record(measurement: Measurement) -> dict:
    """A measurement as JSON; an infinite end is kept as text, so that it can be judged again."""
    infinite = {key for key in ("low", "high") if math.isinf(getattr(measurement, key))}
    return {key: str(x) if key in infinite else _plain(x) for key, x in vars(measurement).items()}


def _measurement(record: Mapping) -> Measurement:
    ends = {key: float(record[key]) for key in ("low", "high") if record[key] in ("inf", "-inf")}
    return Measurement(**{**record, **ends})


def _plain(x):
    """Numbers, texts, lists and dicts of Python's own types; what is not finite becomes None."""
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu().tolist()
    elif isinstance(x, numpy.ndarray | numpy.generic):
        x = x.tolist()
    if x is None or isinstance(x, bool | int | str):
        return x
    if isinstance(x, float):
        return x if math.isfinite(x) else None
    if isinstance(x, Mapping):
        return {str(key): _plain(value) for key, value in x.items()}
    if isinstance(x, list | tuple | range):
        return [_plain(value) for value in x]
    raise TypeError(f"a result file holds numbers, texts, lists and dicts, not {type(x).__name__}: {x!r:.80}")


def _surroundings(device: torch.device, wall_seconds: float | int | None, digest: str | None) -> dict:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "system": platform.system(),
        "device": device.type,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "wall_seconds": _plain(wall_seconds),
        "peak_bytes": _peak_bytes(),
        "digest": digest,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
    }


def _peak_bytes() -> int | None:
    """The most memory that this process, or one of its ended children, has held; None where the system does not say."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    both = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return unit * max(both)


def _commit() -> str | None:
    """The commit that the book's code stands at, with a mark where files differ from it; None outside git."""
    try:
        git = ["git", "-C", str(ROOT)]
        options = {"capture_output": True, "text": True, "check": True, "timeout": 10}
        head = subprocess.run([*git, "rev-parse", "HEAD"], **options).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no"], **options).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head} with changes" if changed.strip() else head


_ENTRY = {
    "id": str,
    "verdict": str,
    "value": (int, float, type(None)),
    "interval": list,
    "unit": str,
    "scope": str,
    "note": str,
    "measurements": list,
}
_MEASUREMENT = {field.name for field in fields(Measurement)}
_DOCUMENT = {"chapter": str, "profile": str, "seed": int, "claims": list, "tables": dict, "provenance": dict}
_PROVENANCE = (
    "python",
    "torch",
    "numpy",
    "device",
    "device_name",
    "threads",
    "wall_seconds",
    "digest",
    "date",
    "commit",
)


def _check(document, chapter: str, profile: str, name: str) -> None:
    """Raise ResultsError with a sentence unless ``document`` is the results of this chapter in this profile."""
    _require(document, _DOCUMENT, name)
    if (document["chapter"], document["profile"]) != (chapter, profile):
        told = f"{document['chapter']} in {document['profile']}"
        raise ResultsError(f"{name} should hold {chapter} in {profile}, but says {told}.")
    missing = [key for key in _PROVENANCE if key not in document["provenance"]]
    if missing:
        raise ResultsError(f"{name}: its provenance lacks {', '.join(missing)}.")
    seen = set()
    for i, entry in enumerate(document["claims"]):
        _require(entry, _ENTRY, f"{name}, claim {i}")
        if entry["verdict"] not in VERDICTS:
            raise ResultsError(f"{name}: {entry['id']} has the verdict '{entry['verdict']}', which is none.")
        if entry["id"] in seen:
            raise ResultsError(f"{name}: {entry['id']} stands in it twice.")
        seen.add(entry["id"])
        if not all(
            isinstance(record, dict) and set(record) == _MEASUREMENT for record in entry["measurements"]
        ):
            raise ResultsError(f"{name}: the measurements of {entry['id']} are not whole.")
        ends = entry["interval"]
        if len(ends) != 2 or not all(isinstance(end, int | float | None) for end in ends):
            raise ResultsError(f"{name}: the interval of {entry['id']} is not two numbers.")


def _require(table, fields: Mapping, name: str) -> None:
    if not isinstance(table, dict):
        raise ResultsError(f"{name} is not a table.")
    for key, kind in fields.items():
        if key not in table:
            raise ResultsError(f"{name} lacks '{key}'.")
        if not isinstance(table[key], kind) or isinstance(table[key], bool):
            raise ResultsError(f"{name}: '{key}' is of the wrong kind ({type(table[key]).__name__}).")


def _way_out(chapter: str, profile: str) -> str:
    return f"delete it and run `python -m lib.run {chapter} --profile {profile}`."
