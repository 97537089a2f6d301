"""Every data set of the book through one verb: ``load(name, split)``.

What comes inside a package (digits, diabetes, mnist5k) or is made here (two-blobs) needs no file; for the others see
lib/data/download.py: BOOK_DATA, then the cache, then a download with its checksum. data/registry.toml holds the sources.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib.data.camvid import SPLITS as CAMVID_SPLITS
from lib.data.download import describe, files, find, registry
from lib.data.readers import READERS


@dataclass(frozen=True, eq=False)
class Dataset:
    """N examples: ``inputs`` (N, ...) and ``targets``, with where they came from.

    Classification: float32 inputs in [0, 1] (images channels first) and int64 classes (N,); segmentation: int64
    classes (N, H, W); regression: float64 inputs (N, d) and targets (N, 1) in their original units.
    """

    inputs: Tensor
    targets: Tensor
    name: str
    split: str
    source: str
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True, eq=False)
class Standardised:
    """A train and a test set in units of the training rows' standard deviation, and the way back.

    ``target_mean`` and ``target_std`` (1,) return predictions to the original units; for classes they are 0 and 1.
    """

    train: Dataset
    test: Dataset
    input_mean: Tensor
    input_std: Tensor
    target_mean: Tensor
    target_std: Tensor


def load(
    name: str, split: str | None = None, *, draw: int = 0, scaled: bool = True, flat: bool = False
) -> Dataset:
    """The set ``name``: its "train", "val" or "test" part, or with ``split=None`` all that there is of it.

    ``draw``: which random split (digits, diabetes, mnist5k: 80 % train), published split (UCI) or sample
    (two-blobs); sets with one published split take 0 only. ``scaled=False`` leaves pixels as the uint8 they
    are (digits 0..16, images 0..255); tables are never scaled here, see ``standardise``. ``flat=True`` gives (N, d)
    instead of images (N, C, H, W); digits are always (N, 64).

    Raises KeyError for an unknown set, ValueError for a split or draw that it lacks, MissingData and CorruptData.
    """
    entry = describe(name)
    if draw < 0:
        raise ValueError(f"draw {draw} of {name!r}: draws are numbered from 0.")
    inputs, targets, source = READERS[entry["reader"]](name, split, draw)
    return Dataset(
        inputs=_inputs(inputs, 16 if name == "digits" else 255, scaled, flat),
        targets=torch.from_numpy(targets),
        name=name,
        split=split or "all",
        source=source,
        classes=tuple(entry.get("classes", ())),
    )


def available() -> dict[str, str]:
    """Each set's name and where it would come from: a package, "made here", "BOOK_DATA", "cache" or "download"."""
    return {name: _place(name, entry) for name, entry in registry().items()}


def uci(name: str, split_index: int) -> tuple[Dataset, Dataset]:
    """Train and test rows of published split ``split_index`` of one of the nine UCI sets, in original units.

    The splits are those of Hernandez-Lobato and Adams (2015), which later papers share; results on others are not
    comparable. Raises ValueError for a set without them or a split index that it lacks.
    """
    return load(name, "train", draw=split_index), load(name, "test", draw=split_index)


def standardise(train: Dataset, test: Dataset, dtype: torch.dtype = torch.float32) -> Standardised:
    """Both sets in units of the training rows' mean and standard deviation (divided by n, as in the UCI protocol).

    A column that is constant over the training rows is only centred: its standard deviation counts as 1.
    Targets are treated likewise in regression and left as they are in classification. Computed in float64.
    """
    input_mean, input_std = _moments(train.inputs)
    target_mean, target_std = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    if train.targets.is_floating_point():
        target_mean, target_std = _moments(train.targets)

    def apply(part: Dataset) -> Dataset:
        inputs = ((part.inputs.double() - input_mean) / input_std).to(dtype)
        targets = part.targets
        if targets.is_floating_point():
            targets = ((targets.double() - target_mean) / target_std).to(dtype)
        return replace(part, inputs=inputs, targets=targets)

    scales = (value.to(dtype) for value in (input_mean, input_std, target_mean, target_std))
    return Standardised(apply(train), apply(test), *scales)


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    values = values.double()
    constant = values.amax(0) == values.amin(0)
    std = values.std(0, correction=0)
    return values.mean(0), torch.where(constant, torch.ones_like(std), std)


def _inputs(values: np.ndarray, white: int, scaled: bool, flat: bool) -> Tensor:
    """Pixels as float32 in [0, 1] if ``scaled``, else as they are; tables unchanged; images as rows if ``flat``."""
    inputs = torch.from_numpy(values)
    if scaled and inputs.dtype == torch.uint8:
        inputs = inputs.to(torch.float32).div_(white)
    return inputs.flatten(1) if flat else inputs


def _place(name: str, entry: dict[str, Any]) -> str:
    if "package" in entry:
        return f"package {entry['package']}"
    if "folder" not in entry:
        return "made here"
    for key in ("local", "files"):
        found = [find(file.path) for file in files(name, key).values()]
        if found and all(found):
            return found[0][1]
    if entry["reader"] == "camvid":
        found = [find(f"{entry['folder']}/camvid_{part}.npz") for part in CAMVID_SPLITS]
        if all(found):
            return found[0][1]
    return "download"
