"""A user's examples: an .npz file or a folder of pictures; a seeded subset of them, in two halves that never meet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, Int64, Shaped
from torch import Tensor, nn

from lib.randomness import permutation
from lib.report.finding import Finding
from lib.torchvision_guard import import_torchvision

TASKS = ("classification", "regression")
INPUTS, TARGETS = ("inputs", "x", "X"), ("targets", "y", "Y")
NORMALISATIONS = {"imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}
IMAGE_SIZE = 224


class DataProblem(ValueError):
    """Examples that cannot be used; the text says why and what would do."""


@dataclass(frozen=True, eq=False)
class Source:
    """Examples that are not read yet: ``take(rows)`` gives their inputs (k, ...), ``targets`` (N,) or (N, outputs) all targets.

    ``tokens``, where the inputs are whole numbers: the same as int64, for a network that looks them up in a table.
    """

    task: str
    targets: Shaped[Tensor, "N ..."] = field(repr=False)
    take: Callable[[Int[np.ndarray, " k"]], Shaped[Tensor, "k ..."]] = field(repr=False)
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    tokens: Callable[[Int[np.ndarray, " k"]], Int64[Tensor, "k ..."]] | None = field(default=None, repr=False)

    def taken_by(self, net: nn.Module) -> Source:
        """As ``net`` takes its inputs: whole numbers stay whole where it has an embedding."""
        if self.tokens is None or not any(isinstance(layer, nn.Embedding) for layer in net.modules()):
            return self
        notes = ("Inputs are whole numbers, and are looked up in the network's embedding.",)
        return replace(self, take=self.tokens, notes=notes, tokens=None)

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def example(self) -> Shaped[Tensor, "2 ..."]:
        """The first two inputs (or the first, twice)."""
        return self.take(np.array([0, min(1, len(self) - 1)]))


@dataclass(frozen=True, eq=False)
class Examples:
    """N inputs and their targets."""

    inputs: Shaped[Tensor, "N ..."]
    targets: Shaped[Tensor, "N ..."]

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True, eq=False, repr=False)
class Halves(Finding):
    """The examples that are used. Statistics, temperatures and the choice of the best model come from ``calibration``; every
    score is measured on ``scoring``, and on nothing else.

    ``left_out``: how many there are beside.
    """

    task: str
    calibration: Examples
    scoring: Examples
    left_out: int = 0
    notes: tuple[str, ...] = ()

    @property
    def example(self) -> Shaped[Tensor, "k ..."]:
        """Two inputs."""
        return self.scoring.inputs[:2]


def read(
    path: str | Path,
    task: str = "classification",
    *,
    image_size: int = IMAGE_SIZE,
    normalise: str | None = None,
) -> Source:
    """An .npz file (``inputs`` or ``x``, and ``targets`` or ``y``), or a folder with one subfolder of pictures a class.

    Targets: whole numbers (N,) for "classification", numbers (N,) or (N, outputs) for "regression". Pictures are resized to
    ``image_size`` squared, and with ``normalise="imagenet"`` brought to that set's mean and deviation. Raises DataProblem.
    """
    if task not in TASKS:
        raise DataProblem(f"there is no task {task!r}: choose one of {', '.join(TASKS)}.")
    path = Path(path)
    if path.is_dir():
        return _pictures(path, task, image_size, normalise)
    if not path.is_file():
        raise DataProblem(
            f"there is no file or folder {str(path)!r}: give an .npz file, or a folder with one subfolder a class."
        )
    return _arrays(path, task)


def draw(source: Source, examples: int | None = None, *, seed: int = 0) -> Halves:
    """``examples`` of them (all by default), drawn without replacement by ``seed``, in two halves; scoring gets the odd one.

    Raises DataProblem for fewer than four examples, and inputs or targets that are not finite.
    """
    count = len(source) if examples is None else min(examples, len(source))
    if count < 4:
        raise DataProblem(f"{count} examples are too few for two halves with two each: give at least four.")
    order = permutation(seed, torch.zeros(1, dtype=torch.int64), "report/examples", 0, len(source))[0][:count]
    parts, broken = [], {}
    for rows in (order[: count // 2], order[count // 2 :]):
        inputs, targets = source.take(rows.numpy()), source.targets[rows]
        for what, values in (("inputs", inputs), ("targets", targets)):
            if values.is_floating_point():
                which = (~values.isfinite()).flatten(1).any(1) if values.ndim > 1 else ~values.isfinite()
                broken.setdefault(what, []).extend(rows[which].tolist())
        parts.append(Examples(inputs, targets))
    for what, rows in broken.items():
        if rows:
            raise DataProblem(
                f"the {what} of {len(rows)} of {count} examples are NaN or infinite, example {min(rows)} the first: leave them out."
            )
    return Halves(source.task, *parts, left_out=len(source) - count, notes=source.notes)


def _arrays(path: Path, task: str) -> Source:
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise DataProblem(
                f"{path.name} holds one bare array: save it by np.savez(file, inputs=..., targets=...)."
            )
        with file:
            names = [
                next((name for name in known if name in file.files), None) for known in (INPUTS, TARGETS)
            ]
            if None in names:
                raise DataProblem(
                    f"{path.name} holds {', '.join(file.files) or 'nothing'}: it needs inputs (or x) and targets (or y)."
                )
            inputs, targets = (file[name] for name in names)
    except DataProblem:
        raise
    except Exception as error:
        code = "allow_pickle" in str(error)
        why = (
            "it holds Python objects, and to open them would run code"
            if code
            else f"{type(error).__name__}: {error}"
        )
        raise DataProblem(
            f"{path.name} cannot be read as an .npz of plain numbers ({why:.160}): write it by np.savez."
        ) from None
    if inputs.ndim < 1 or targets.ndim < 1 or len(inputs) != len(targets):
        raise DataProblem(
            f"{path.name} holds inputs of shape {inputs.shape} and targets {targets.shape}: their first axes must be of one length."
        )
    if not len(inputs):
        raise DataProblem(f"{path.name} holds no examples at all: give some.")
    inputs, notes = _numbers(inputs, path.name)
    whole = inputs.dtype.kind in "iu"
    return Source(
        task,
        _targets(targets, task, path.name),
        lambda rows: torch.from_numpy(np.ascontiguousarray(inputs[rows], dtype=np.float32)),
        tuple(notes),
        tokens=(lambda rows: torch.from_numpy(inputs[rows].astype(np.int64))) if whole else None,
    )


def _numbers(inputs: np.ndarray, name: str) -> tuple[np.ndarray, list[str]]:
    if inputs.dtype.kind not in "fiub":
        raise DataProblem(f"the inputs of {name} are of type {inputs.dtype}: give numbers, float32 best.")
    if inputs.dtype.kind == "f":
        return inputs, [] if inputs.dtype == np.float32 else [
            f"Inputs were converted from {inputs.dtype} to float32."
        ]
    low, high = inputs.min(), inputs.max()
    return inputs, [
        f"Inputs are whole numbers ({inputs.dtype}, {low} to {high}) and were converted to float32 as they are: scale them as "
        "in training if the networks expect that."
    ]


def _targets(targets: np.ndarray, task: str, name: str) -> Tensor:
    if task == "regression":
        if targets.dtype.kind not in "fiu" or targets.ndim > 2:
            raise DataProblem(
                f"the targets of {name} are {targets.dtype} of shape {targets.shape}: give numbers (N,) or (N, outputs)."
            )
        return torch.from_numpy(targets.astype(np.float32))
    if targets.ndim == 2 and targets.shape[1] == 1:
        targets = targets[:, 0]
    whole = targets.dtype.kind in "iub" or (
        targets.dtype.kind == "f" and bool((targets == np.round(targets)).all())
    )
    if (
        targets.ndim == 2
        and whole
        and bool(((targets == 0) | (targets == 1)).all() and (targets.sum(1) == 1).all())
    ):
        raise DataProblem(
            f"the targets of {name} are one-hot, of shape {targets.shape}: save targets.argmax(1), the numbers of the classes."
        )
    if targets.ndim != 1 or not whole:
        raise DataProblem(
            f"the targets of {name} are {targets.dtype} of shape {targets.shape}, not whole labels (N,): give class numbers from 0 "
            "on, or ask for --task regression."
        )
    return torch.from_numpy(targets.astype(np.int64))


def _pictures(folder: Path, task: str, size: int, normalise: str | None) -> Source:
    if task != "classification":
        raise DataProblem(f"{folder} is a folder of pictures by class: for regression give an .npz file.")
    if size < 1:
        raise DataProblem(f"pictures of {size} x {size} hold nothing: give --image-size 1 or more.")
    if normalise not in (None, *NORMALISATIONS):
        raise DataProblem(
            f"there is no normalisation {normalise!r}: choose {', '.join(NORMALISATIONS)}, or none."
        )
    import_torchvision()
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise DataProblem(
            f"{folder} is no folder of pictures by class ({error}): it needs one subfolder a class, with pictures inside."
        ) from None
    except Exception as error:
        raise DataProblem(f"{folder} cannot be read as pictures by class: {error}") from None

    def take(rows: Int[np.ndarray, " k"]) -> Float[Tensor, "k 3 size size"]:
        return torch.stack([_picture(found.samples[row][0], size, normalise) for row in rows.tolist()])

    said = f"Pictures were resized to {size} x {size}, values from 0 to 1" + (
        ", then brought to ImageNet's mean and deviation." if normalise else ", not normalised."
    )
    named = ", ".join(found.classes[:6]) + (" …" if len(found.classes) > 6 else "")
    notes = (said, f"Classes by name of the subfolders, in alphabetical order from 0: {named}.")
    return Source(task, torch.tensor(found.targets), take, notes, tuple(found.classes))


def _picture(path: str, size: int, normalise: str | None) -> Float[Tensor, "3 size size"]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            pixels = np.array(
                image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR), dtype=np.float32
            )
    except OSError as error:
        raise DataProblem(
            f"the picture {path} cannot be read ({error}): replace it or take it out."
        ) from None
    x = torch.from_numpy(pixels).movedim(-1, 0) / 255
    if normalise is None:
        return x
    mean, deviation = (torch.tensor(values)[:, None, None] for values in NORMALISATIONS[normalise])
    return (x - mean) / deviation
