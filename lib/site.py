"""The site: Jupyter Book's Sphinx engine over the staged sources, swapped in whole, and packed as one zip."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from lib.chapter import ROOT
from lib.env import lock_digest, replace_text

ARCHIVE = "symmetry-in-weight-space"
PAGES = (".md", ".ipynb")


class SiteFailed(Exception):
    """The pages could not be built without a warning; what Sphinx said is on the terminal."""


def build(source: Path, html: Path, root: Path = ROOT) -> bool:
    """Build ``source`` into ``html`` with every warning an error; returns False where nothing had changed.

    Beside the old site, which the new one replaces when it is complete: SiteFailed is raised, and the old site stays as it is, where Sphinx
    warns. Where only pages' contents changed, Sphinx goes on from a copy of the last site, which had no warning, and reads
    those pages alone; if that moves anything that other pages may refer to, everything is read again.
    """
    stamp, doctrees = html.with_name("site.key"), html.with_name("doctrees")
    key, frame = site_key(source, root), frame_key(source, root)
    last = (
        stamp.read_text(encoding="utf-8").split()
        if stamp.is_file() and (html / "index.html").is_file()
        else []
    )
    if last[:1] == [key]:
        return False
    print("pages: building", flush=True)
    after, cache = html.with_name("html.next"), html.with_name("doctrees.next")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    configure = ["-c", "from jupyter_book.cli.main import main; main()", "config", "sphinx", str(source)]
    made = subprocess.run([sys.executable, *configure], env=environment, capture_output=True, text=True)
    if made.returncode:
        raise SiteFailed(f"{made.stdout}{made.stderr}\n_config.yml or _toc.yml cannot be read; see above.")
    sphinx = [
        sys.executable,
        "-m",
        "sphinx",
        "-n",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        "-d",
        str(cache),
    ]

    def render(go_on: bool) -> bool:
        for old, new in ((html, after), (doctrees, cache)):
            shutil.rmtree(new, ignore_errors=True)
            if go_on:
                shutil.copytree(old, new)
        return subprocess.run([*sphinx, str(source), str(after)], env=environment).returncode == 0

    go_on = last[1:] == [frame] and doctrees.is_dir()
    sound = render(go_on)
    if sound and go_on and targets(after) != targets(html):
        sound = render(False)
    if not sound:
        raise SiteFailed(f"the pages have warnings, see above. As far as they came: {after}")
    stamp.unlink(missing_ok=True)
    for old, new in ((html, after), (doctrees, cache)):
        before = old.with_name(f"{old.name}.before")
        shutil.rmtree(before, ignore_errors=True)
        if old.exists():
            old.replace(before)
        new.replace(old)
        shutil.rmtree(before, ignore_errors=True)
    replace_text(stamp, f"{key} {frame}")
    return True


def targets(html: Path) -> bytes:
    """Everything on the site that a page can refer to, with the titles that the contents list: Sphinx's inventory."""
    return (html / "objects.inv").read_bytes()


def frame_key(source: Path, root: Path) -> str:
    """sha256 of what concerns every page: which pages there are, and all that is none (configuration, styles, scripts, the lock)."""
    content = hashlib.sha256(lock_digest(root / "requirements.txt").encode())
    files = [path for path in sorted(source.rglob("*")) if path.is_file() and path != source / "conf.py"]
    for path in files:
        page = path.suffix in PAGES
        content.update(
            f"\0{path.relative_to(source).as_posix()}\0".encode() + (b"" if page else path.read_bytes())
        )
    return content.hexdigest()


def site_key(source: Path, root: Path) -> str:
    """sha256 of everything that the pages are made from: staged files, docstrings' sources, the lock."""
    files = [*source.rglob("*"), *(root / "lib").rglob("*.py"), *(root / "lib" / "assets").rglob("*")]
    content = hashlib.sha256(lock_digest(root / "requirements.txt").encode())
    for path in sorted(path for path in files if path.is_file() and path != source / "conf.py"):
        content.update(f"\0{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return content.hexdigest()


def pack(html: Path, target: Path) -> Path:
    """Write the site as one zip with a single folder in it, to be opened at its index.html; returns the zip.

    The executed notebooks lie in its folder ``notebooks`` too. The same site gives the same bytes.
    """
    return write_zip(packed(html), target, ARCHIVE)


def packed(html: Path) -> dict[str, Path | bytes]:
    """The files of the site as they serve from a folder, by name, with the executed notebooks in a folder of their own too."""
    files: dict[str, Path | bytes] = {}
    for path in every_file(html):
        name = path.relative_to(html).as_posix()
        files[name] = offline(name, path.read_bytes()) if name.endswith(".js") else path
    files |= {f"notebooks/{Path(name).name}": path for name, path in files.items() if name.endswith(".ipynb")}
    files.pop(".buildinfo", None)
    return files


def every_file(folder: Path) -> Iterator[Path]:
    """The files in a folder at any depth, in the order of their names."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def write_zip(files: Mapping[str, Path | bytes], target: Path, folder: str) -> Path:
    """Write the files as one zip with a single folder in it; returns its path. The same files give the same bytes.

    Wheels are zips already, and are stored as they are.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with zipfile.ZipFile(partial, "w") as archive:
            for name, content in sorted(files.items()):
                entry = zipfile.ZipInfo(f"{folder}/{name}")  # dated 1980, whenever it is made
                entry.compress_type = zipfile.ZIP_STORED if name.endswith(".whl") else zipfile.ZIP_DEFLATED
                entry.external_attr = 0o644 << 16
                if isinstance(content, bytes):
                    archive.writestr(entry, content)
                else:
                    entry.file_size = content.stat().st_size  # so that a large one gets a large header
                    with content.open("rb") as source, archive.open(entry, "w") as there:
                        shutil.copyfileobj(source, there, 1 << 20)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def offline(name: str, content: bytes) -> bytes:
    """A file of the site as it serves from a folder: a browser lets no opened page read another, so search shows no extracts."""
    if name == "_static/documentation_options.js":
        return content.replace(b"SHOW_SEARCH_SUMMARY: true", b"SHOW_SEARCH_SUMMARY: false")
    return content
