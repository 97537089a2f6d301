"""Regression problems as stacks: every split of a set, and every number of training rows, is one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lib import data, randomness
from lib.data import Dataset
from lib.matrix_gaussian.training import Examples

NOISE = 3.0  # of the cubic toy
REACH = 4.0  # its inputs lie in [-REACH, REACH]
COLUMNS = ("inputs", "targets", "shift", "centre", "scale")  # of a problem, run by run


@dataclass(frozen=True, eq=False)
class Problem:
    """S splits times K sizes, one run each, the sizes of a split in order.

    Attributes:
        name, hidden: of the data set; units of the one hidden layer.
        train: in units of each run's own training rows.
        inputs: of the test rows, in those units, (S * K, N, d).
        targets: of the test rows, in their own unit, (S * K, N, k).
        shift: the training targets' mean, (S * K, k).
        centre, scale: mean and standard deviation of the training inputs, (S * K, d).
        splits, sizes: how many splits there are, and the numbers of training rows.
        main: the number of training rows at which methods are compared.
        prior_scale: in which unit the prior of the noise speaks, see `lib.matrix_gaussian.likelihoods`.
    """

    name: str
    hidden: int
    train: Examples
    inputs: Float[Tensor, "R N d"]
    targets: Float[Tensor, "R N k"]
    shift: Float[Tensor, "R k"]
    centre: Float[Tensor, "R d"]
    scale: Float[Tensor, "R d"]
    splits: int
    sizes: tuple[int, ...]
    main: int
    prior_scale: str = "raw"

    @property
    def members(self) -> Int64[Tensor, " R"]:
        """The number of each run's split: runs of a split start alike and meet the same noise, whatever their size."""
        return torch.arange(self.splits).repeat_interleave(len(self.sizes))

    def runs(self, size: int) -> Int64[Tensor, " S"]:
        """The runs with so many training rows."""
        return torch.arange(self.splits) * len(self.sizes) + self.sizes.index(size)

    def of_size(self, size: int) -> Problem:
        """The problem with this number of training rows alone."""
        runs, t = self.runs(size), self.train
        train = Examples(t.inputs[runs, :size], t.targets[runs, :size], t.counts[runs], t.unit[runs])
        columns = {name: getattr(self, name)[runs] for name in COLUMNS}
        return replace(self, train=train, sizes=(size,), main=size, **columns)

    def to(self, device: torch.device) -> Problem:
        """The same on a device."""
        t = self.train
        train = Examples(*(x.to(device) for x in (t.inputs, t.targets, t.counts, t.unit)))
        return replace(self, train=train, **{name: getattr(self, name).to(device) for name in COLUMNS})


def stack(
    name: str,
    hidden: int,
    parts: Sequence[tuple[Dataset, Dataset]],
    sizes: Sequence[int] = (),
    main: int | None = None,
    prior_scale: str = "raw",
) -> Problem:
    """Splits of one data set, each with its first ``sizes`` training rows (their order is random) and with all.

    Every run is standardised on its own training rows. Raises ValueError where a run's targets do not vary.
    """
    sizes = tuple(sorted({*sizes, len(parts[0][0])}))
    columns: dict[str, list[Tensor]] = {key: [] for key in ("x", "y", "unit", *COLUMNS)}
    for split, (train, test) in enumerate(parts):
        for size in sizes:
            few = Dataset(train.inputs[:size], train.targets[:size], train.name, train.split, train.source)
            if len(few) < size or bool((few.targets.amax(0) == few.targets.amin(0)).any()):
                raise ValueError(
                    f"{name}, split {split}: {len(few)} of {size} training rows asked for, and a target that must "
                    "vary over them: take a size that the set has, or leave that target out."
                )
            s = data.standardise(few, test)
            room = (0, 0, 0, max(sizes) - size)
            columns["x"].append(torch.nn.functional.pad(s.train.inputs, room))
            columns["y"].append(torch.nn.functional.pad(s.train.targets, room))
            columns["inputs"].append(s.test.inputs)
            columns["targets"].append(test.targets.float())
            columns["shift"].append(s.target_mean)
            columns["unit"].append(s.target_std)
            columns["centre"].append(s.input_mean)
            columns["scale"].append(s.input_std)
    of = {key: torch.stack(values) for key, values in columns.items()}
    counts = torch.tensor(sizes).repeat(len(parts))
    train = Examples(of["x"], of["y"], counts, of["unit"])
    columns = {name: of[name] for name in COLUMNS}
    return Problem(
        name,
        hidden,
        train,
        **columns,
        splits=len(parts),
        sizes=sizes,
        main=main or max(sizes),
        prior_scale=prior_scale,
    )


def diabetes(splits: int, sizes: Sequence[int], seed: int) -> Problem:
    """scikit-learn's diabetes: 354 training and 88 test rows of ten columns; split i of a seed is draw 100 · seed + i.

    Its target is a score of arbitrary unit, with a standard deviation of 77: a prior in that unit would say that the noise is 1.
    """
    draws = [100 * seed + i for i in range(splits)]
    parts = [(data.load("diabetes", "train", draw=d), data.load("diabetes", "test", draw=d)) for d in draws]
    return stack("diabetes", 50, parts, sizes, prior_scale="standardised")


def cubic(splits: int, sizes: Sequence[int], seed: int, tests: int = 100) -> Problem:
    """The cubic toy (recalled): x uniform on [-4, 4], y = x³ + N(0, 9), and 100 hidden units; test rows from the same law.

    Methods are compared at the smallest size, the toy's own twenty points.
    """
    parts = [
        (cubic_rows(seed, i, max(sizes), "train"), cubic_rows(seed, i, tests, "test")) for i in range(splits)
    ]
    return stack("cubic toy", 100, parts, sizes, main=min(sizes))


def cubic_rows(seed: int, split: int, n: int, part: str) -> Dataset:
    """n rows of the cubic toy; those of a smaller n come first."""
    who = torch.tensor([split])
    x, noise = (
        draw(seed, who, f"cubic/{part}/{name}", 0, (n, 1), torch.float64)[0]
        for draw, name in ((randomness.uniform, "x"), (randomness.normal, "noise"))
    )
    x = REACH * (2 * x - 1)
    return Dataset(x, x**3 + NOISE * noise, "cubic toy", part, "made here")


def uci(name: str, splits: int, sizes: Sequence[int] = ()) -> Problem:
    """A UCI set with its published splits; 100 hidden units for protein, as published, and 50 for the others."""
    hidden = 100 if name.startswith("protein") else 50
    return stack(name, hidden, [data.uci(name, i) for i in range(splits)], sizes)
