"""Bytes of a data set, verified: from the folder BOOK_DATA, from the cache, or from the addresses in the registry.

Nothing is read before its checksum is: a wrong or truncated file is refused wherever it lies, and one that we
downloaded ourselves is not kept. BOOK_DATA names a folder of your own, which is looked in first and never written to;
BOOK_CACHE moves the cache folder. Both have the layout of the ``folder`` entries of data/registry.toml.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import sys
import tomllib
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

REGISTRY = Path(__file__).resolve().parents[2] / "data" / "registry.toml"


class MissingData(RuntimeError):
    """A file is neither on this machine nor to be had from its public addresses."""


class CorruptData(RuntimeError):
    """A file is there, but it is not the one that the registry describes."""


@dataclass(frozen=True)
class File:
    """One file of a set: ``path`` below BOOK_DATA or the cache, its checksum and size, its public addresses."""

    path: str
    sha256: str
    size: int
    urls: tuple[str, ...]


def registry() -> dict[str, dict[str, Any]]:
    """Every data set of data/registry.toml by name."""
    return _parse(REGISTRY)


@cache
def _parse(path: Path) -> dict[str, dict[str, Any]]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def describe(name: str) -> dict[str, Any]:
    """The registry's entry for the set ``name``; raises KeyError, with the names there are, for another."""
    sets = registry()
    if name not in sets:
        raise KeyError(f"there is no data set called {name!r}: choose one of {', '.join(sets)}.")
    return sets[name]


def files(name: str, key: str = "files") -> dict[str, File]:
    """The files of a set by their bare names; ``key="local"`` gives another form, found in BOOK_DATA only."""
    entry = describe(name)
    return {
        item["name"]: File(
            path=f"{entry['folder']}/{item['name']}",
            sha256=item["sha256"],
            size=item["bytes"],
            urls=tuple(f"{mirror}/{item['name']}" for mirror in entry["mirrors"]) if key == "files" else (),
        )
        for item in entry.get(key, [])
    }


def data_folder() -> Path | None:
    """The reader's own folder, named by BOOK_DATA, or None; raises MissingData where it names no folder."""
    named = os.environ.get("BOOK_DATA")
    if not named:
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise MissingData(
            f"BOOK_DATA names {named}, which is no folder: mend it, or unset it to download instead."
        )
    return folder


def cache_folder() -> Path:
    """Where downloads are kept: BOOK_CACHE, or the system's place for caches."""
    named = os.environ.get("BOOK_CACHE")
    if named:
        return Path(named).expanduser()
    try:
        import pooch
    except ModuleNotFoundError:  # a bare GPU machine that reads BOOK_DATA need not have it
        return Path.home() / ".cache" / "symmetry-in-weight-space"
    return Path(pooch.os_cache("symmetry-in-weight-space"))


def find(path: str) -> tuple[Path, str] | None:
    """Where ``path`` (or ``path``.gz) lies and the name of that place, "BOOK_DATA" or "cache"; None if nowhere."""
    for folder, place in ((data_folder(), "BOOK_DATA"), (cache_folder(), "cache")):
        for candidate in (path, f"{path}.gz") if folder else ():
            if (folder / candidate).is_file():
                return folder / candidate, place
    return None


def read(file: File) -> tuple[bytes, str]:
    """The verified bytes of ``file`` and where they came from, downloading them where need be.

    A file found only with an added ``.gz`` is unpacked before it is checked. Raises CorruptData or MissingData.
    """
    found = find(file.path)
    if found:
        path, place = found
        content = _unpacked(path, file)
        if content is not None and hashlib.sha256(content).hexdigest() == file.sha256:
            return content, place
        if place == "BOOK_DATA":
            raise CorruptData(
                f"{path} is not the file that data/registry.toml describes ({path.stat().st_size} bytes there; "
                f"expected {file.size} bytes with sha256 {file.sha256}): replace it, or move it away to download it."
            )
        path.unlink()
    path = download(file.urls, cache_folder() / file.path, file.path, file.sha256)
    return path.read_bytes(), "cache"


def download(urls: tuple[str, ...], path: Path, wanted: str, sha256: str | None) -> Path:
    """Fetch the first of ``urls`` whose bytes have the checksum, into ``path``; ``wanted`` is its name for people.

    Raises CorruptData where an address answered with other bytes, MissingData where none answered.
    """
    try:
        import pooch
    except ModuleNotFoundError:
        raise MissingData(
            f"{wanted} is not on this machine, and pooch, which would download it, is not installed: run `make env`, "
            "or let the environment variable BOOK_DATA name a folder that holds the file."
        ) from None
    refusals, corrupt = [], False
    for url in urls:
        try:
            pooch.retrieve(
                url,
                known_hash=sha256 and f"sha256:{sha256}",
                fname=path.name,
                path=path.parent,
                progressbar=sys.stderr.isatty(),
            )
            return path
        except OSError as error:  # every error of a connection, and a full or locked disk
            refusals.append(f"{url}: {type(error).__name__}: {str(error)[:200]}")
        except ValueError:
            corrupt = True
            refusals.append(f"{url}: a wrong or truncated file came, and was not kept")
    reasons = (
        "".join(f"\n  {refusal}" for refusal in refusals) or " the registry knows no public address of it."
    )
    raise (CorruptData if corrupt else MissingData)(
        f"{wanted} is not on this machine and could not be downloaded:{reasons}\n"
        f"With a network, try again later. With a copy of the file, put it at {wanted} below any folder, "
        "and let the environment variable BOOK_DATA name that folder."
    )


def _unpacked(path: Path, file: File) -> bytes | None:
    """The bytes of ``path``, without the ``.gz`` that was added to the registry's name; None if that fails."""
    content = path.read_bytes()
    if path.name == Path(file.path).name:
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error):
        return None
