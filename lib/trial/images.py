"""A fair trial on MNIST: each run with rates of its own, both methods with the same budget, pairs that share everything else.

A run is a stream (seed, start, order of batches, own random training and validation images); its two rates, of the filters and
of the classifier, are searched on 1,000 of its training images with 500 validation images, as the protocol has it (notes,
section 1.6, from the descendant of the authors' code; one rate there, two here). P4-C4, C5, C8 and the last part of X2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lib import intervals
from lib.data import load
from lib.kept import Kept
from lib.parallel import side_by_side
from lib.randomness import permutation
from lib.rules import Measurement
from lib.unit_norm.network import Network
from lib.unit_norm.schedules import BoldDriver, Constant, ExponentialDecay, Schedule
from lib.unit_norm.training import Examples, Trained, train

SGD, UNIT = "SGD", "unit norm"
SCHEDULES: dict[str, Schedule] = {
    "constant": Constant(),
    "bold driver": BoldDriver(),
    "exponential decay": ExponentialDecay(),
}
DEPTHS = (2, 4)
UNITS, POOL = 128, 2  # before the maximum of two neighbours: our choice, the paper's widths are not known
SEARCH_TRAIN, SEARCH_VALIDATION = 1_000, 500  # the protocol's
WATCHED = 1_000  # training images whose loss is followed


@runtime_checkable
class Sizes(Protocol):
    """What the trial reads of a profile."""

    images: str
    runs: int
    validation: int
    rates: tuple[float, ...]
    ratios: tuple[float, ...]
    search_epochs: int
    search_schedules: bool
    epochs: int


def network(depth: int, norm: bool = True) -> Network:
    """784, ``depth`` layers of 128 filters with a maximum of two neighbours, 10 classes."""
    return Network((784, *[UNITS] * depth, 10), pool=POOL, norm=norm)


@dataclass(frozen=True, eq=False)
class Split:
    """For every run: its training and validation images, those of the search, and the test images of all."""

    train: Examples
    validation: Examples
    search_train: Examples
    search_validation: Examples
    followed: Examples
    test: Examples


def split(images: str, runs: int, validation: int, *, seed: int, device: torch.device) -> Split:
    """Random training and validation images of each run, out of the set's training part."""
    learn, test = load(images, "train", flat=True), load(images, "test", flat=True)
    order = permutation(seed, torch.arange(runs), "trial/images", 0, len(learn)).to(device)
    inputs, targets = learn.inputs.to(device), learn.targets.to(device)

    def some(rows: Int64[Tensor, "S n"]) -> Examples:
        return Examples(inputs, targets, rows.contiguous())

    everyone = torch.arange(len(test), device=device).expand(runs, -1)
    return Split(
        some(order[:, validation:]),
        some(order[:, :validation]),
        some(order[:, validation : validation + SEARCH_TRAIN]),
        some(order[:, : min(validation, SEARCH_VALIDATION)]),
        some(order[:, validation : validation + WATCHED]),
        Examples(test.inputs.to(device), test.targets.to(device), everyone.contiguous()),
    )


@dataclass(frozen=True, eq=False)
class Search:
    """Validation errors of the two-rate grid: (S, rates, ratios), and the pair that each run takes, (S,) each."""

    errors: Float[np.ndarray, "S rates ratios"]
    filters: Float[np.ndarray, " S"]
    classifier: Float[np.ndarray, " S"]


def search(method: str, depth: int, schedule: str, sizes: Sizes, data: Split, *, seed: int) -> Search:
    """Train every pair of the grid on the 1,000 images; ties in validation error fall to the lower validation loss."""
    runs = sizes.runs
    device = data.train.inputs.device
    rates = torch.tensor(sizes.rates, device=device)
    grid = rates[:, None] * torch.tensor(sizes.ratios, device=device)
    done = train(
        network(depth),
        method,
        data.search_train,
        rates.repeat_interleave(len(sizes.ratios)).expand(runs, -1).contiguous(),
        classifier_rates=grid.flatten().expand(runs, -1).contiguous(),
        seed=seed,
        streams=torch.arange(runs),
        epochs=sizes.search_epochs,
        schedule=SCHEDULES[schedule],
        watch={"validation": data.search_validation},
    )
    errors, loss = done.errors["validation"][-1], done.losses["validation"][-1]
    score = errors.double() + 1e-6 * torch.nan_to_num(loss.double(), nan=1e3, posinf=1e3).clamp(max=1e3)
    best = score.argmin(1).cpu()
    shape = (runs, len(sizes.rates), len(sizes.ratios))
    return Search(
        errors.reshape(shape).double().cpu().numpy(),
        rates.cpu().double().numpy()[best.numpy() // len(sizes.ratios)],
        grid.flatten().cpu().double().numpy()[best.numpy()],
    )


@dataclass(frozen=True, eq=False)
class Followed:
    """One method, depth and schedule: errors (E, S) on the test images, losses (E, S) on the followed training images,
    effective rates (E, S, layers), the searched rates, and the search's grid of validation errors (S, rates, ratios)."""

    errors: Float[np.ndarray, "E S"]
    losses: Float[np.ndarray, "E S"]
    effective: Float[np.ndarray, "E S L"]
    filters: Float[np.ndarray, " S"]
    classifier: Float[np.ndarray, " S"]
    grid: Float[np.ndarray, "S rates ratios"]

    @property
    def search(self) -> Search:
        """The search that gave the rates."""
        return Search(self.grid, self.filters, self.classifier)

    @property
    def last(self) -> Float[np.ndarray, " S"]:
        """Test error after the last epoch, in points."""
        return 100 * self.errors[-1]


Cell = tuple[str, int, str]  # method, depth, schedule


def trial(sizes: Sizes, *, seed: int, device: torch.device, kept: Kept | None = None) -> dict[Cell, Followed]:
    """Every method, depth and schedule; where ``search_schedules`` is false, one search (constant rate) serves all three.

    On a CPU methods and depths are trained side by side, a process each: stacks as small as these would wait for Python's lock.
    """
    kept = kept or Kept(None)
    pieces = [
        lambda m=method, d=depth: _schedules(m, d, sizes, seed, device, kept)
        for depth in DEPTHS
        for method in (SGD, UNIT)
    ]
    return {cell: run for found in side_by_side(pieces, device) for cell, run in found.items()}


def _schedules(
    method: str, depth: int, sizes: Sizes, seed: int, device: torch.device, kept: Kept
) -> dict[Cell, Followed]:
    data = split(sizes.images, sizes.runs, sizes.validation, seed=seed, device=device)
    common = None if sizes.search_schedules else search(method, depth, "constant", sizes, data, seed=seed)
    found: dict[Cell, Followed] = {}
    for schedule in SCHEDULES:
        part = kept.part(
            f"trial-{method}-{depth}-{schedule}".replace(" ", "-"),
            lambda s=schedule: _tensors(
                follow(
                    method,
                    depth,
                    s,
                    common or search(method, depth, s, sizes, data, seed=seed),
                    sizes,
                    data,
                    seed=seed,
                )
            ),
        )
        found[method, depth, schedule] = Followed(**{k: v.numpy() for k, v in part.items()})
    return found


def follow(
    method: str, depth: int, schedule: str, chosen: Search, sizes: Sizes, data: Split, *, seed: int
) -> Followed:
    """Train every run by its own rates, and look after each epoch."""
    done = train(
        network(depth),
        method,
        data.train,
        torch.from_numpy(chosen.filters)[:, None].float(),
        classifier_rates=torch.from_numpy(chosen.classifier)[:, None].float(),
        seed=seed,
        streams=torch.arange(sizes.runs),
        epochs=sizes.epochs,
        schedule=SCHEDULES[schedule],
        watch={"test": data.test, "train": data.followed},
    )
    return Followed(
        _numbers(done.errors["test"]),
        _numbers(done.losses["train"]),
        done.effective[:, :, 0].double().cpu().numpy(),
        chosen.filters,
        chosen.classifier,
        chosen.errors,
    )


def _numbers(series: Float[Tensor, "E S 1"]) -> Float[np.ndarray, "E S"]:
    return series[:, :, 0].double().cpu().numpy()


def _tensors(followed: Followed) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in vars(followed).items()}


# ------------------------------------------------------------------------------------------------------- measurements


def gains(found: Mapping[Cell, Followed], depth: int, schedule: str) -> Float[np.ndarray, " S"]:
    """Test error, SGD minus unit norm, in points, of every run."""
    return found[SGD, depth, schedule].last - found[UNIT, depth, schedule].last


def measure_gains(found: Mapping[Cell, Followed]) -> list[Measurement]:
    """P4-C4: one cell a schedule and depth."""
    return [
        _measured("error_gain", f"{schedule}, {depth} layers", gains(found, depth, schedule))
        for schedule in ("bold driver", "exponential decay")
        for depth in DEPTHS
    ]


def measure_depth(found: Mapping[Cell, Followed]) -> list[Measurement]:
    """P4-C5: the gain at four layers minus that at two."""
    return [
        _measured("depth_gain", schedule, gains(found, 4, schedule) - gains(found, 2, schedule))
        for schedule in ("bold driver", "exponential decay")
    ]


def schedule_need(found: Mapping[Cell, Followed], depth: int = 2) -> Float[np.ndarray, " S"]:
    """P4-X2: (constant minus scheduled test error) of unit norm, minus the same of SGD, averaged over both schedules."""

    def gain(method: str) -> np.ndarray:
        scheduled = [found[method, depth, schedule].last for schedule in ("bold driver", "exponential decay")]
        return found[method, depth, "constant"].last - np.mean(scheduled, axis=0)

    return gain(UNIT) - gain(SGD)


def rate_fall(found: Mapping[Cell, Followed], depth: int = 2) -> Float[np.ndarray, " S"]:
    """P4-X2: SGD's effective rate of the filters, last epoch over the rate itself (filters begin at length one), constant rate."""
    run = found[SGD, depth, "constant"]
    return run.effective[-1].mean(1) / run.filters


def measure_need(found: Mapping[Cell, Followed]) -> list[Measurement]:
    """P4-X2 but for its identity."""
    return [
        _measured("schedule_need", "2 layers", schedule_need(found)),
        _measured("rate_fall", "2 layers", rate_fall(found)),
    ]


def matched(sgd: Followed, unit: Followed, levels: int = 20) -> Float[np.ndarray, " S"]:
    """P4-C8: test error at equal training loss, SGD minus unit norm, in points, of every run.

    Each run's error is read as a function of its logarithmic training loss (its lowest so far, so that the function has one
    value), linearly between epochs, at ``levels`` losses spread over the range that both methods passed through; averaged.
    """
    found = []
    for s in range(sgd.errors.shape[1]):
        curves = [by_loss_of_run(run.losses[:, s], 100 * run.errors[:, s]) for run in (sgd, unit)]
        low = np.max([x[0] for x, _ in curves])
        high = np.min([x[-1] for x, _ in curves])
        if not low < high < np.inf:  # nor where a run's first loss is no number
            found.append(np.nan)
            continue
        at = np.linspace(low, high, levels)
        found.append(float(np.mean(np.interp(at, *curves[0]) - np.interp(at, *curves[1]))))
    return np.array(found)


def by_loss_of_run(
    losses: Float[np.ndarray, " E"], errors: Float[np.ndarray, " E"]
) -> tuple[np.ndarray, np.ndarray]:
    """Error against log loss, increasing, at the epochs that brought a new lowest loss."""
    lowest = np.minimum.accumulate(losses)
    new = np.r_[True, lowest[1:] < lowest[:-1]]
    return np.log(losses[new])[::-1], errors[new][::-1]


def measure_matched(found: Mapping[Cell, Followed], schedule: str = "exponential decay") -> list[Measurement]:
    """P4-C8: one cell a depth; runs whose ranges of loss do not meet are left out, and n says so."""
    measured = []
    for depth in DEPTHS:
        values = matched(found[SGD, depth, schedule], found[UNIT, depth, schedule])
        values = values[np.isfinite(values)]
        if len(values) >= 2:
            measured.append(_measured("matched_gain", f"{depth} layers", values))
    return measured


def _measured(name: str, cell: str, values: Sequence[float] | np.ndarray) -> Measurement:
    """Mean and interval; no number where a run has none (one that diverged has no effective rate)."""
    if not np.isfinite(values).all():
        return Measurement(name, cell, None, None, None, n=len(values), seeds=len(values))
    return intervals.measured(name, cell, values)


def rows(found: Mapping[Cell, Followed]) -> list[tuple[str, ...]]:
    """For a page: schedule, layers, test error of both methods, and the paired gain, with intervals."""
    text = "{:.2f} ({:.2f} to {:.2f})"
    table = []
    for schedule in SCHEDULES:
        for depth in DEPTHS:
            values = [found[m, depth, schedule].last for m in (SGD, UNIT)]
            values.append(gains(found, depth, schedule))
            table.append((schedule, str(depth), *(text.format(*intervals.student(v)) for v in values)))
    return table


def without_norm(sizes: Sizes, *, seed: int, device: torch.device) -> dict[str, Trained]:
    """MNIST without BatchNorm (arXiv 1511.01754's first architecture): SGD, unit norm and scaled metric over the rates."""
    data = split(sizes.images, sizes.runs, sizes.validation, seed=seed, device=device)
    rates = torch.tensor(sizes.rates, device=device).expand(sizes.runs, -1).contiguous()
    return {
        method: train(
            network(2, norm=False),
            method,
            data.search_train,
            rates,
            seed=seed,
            streams=torch.arange(sizes.runs),
            epochs=sizes.search_epochs,
            watch={"test": data.test},
        )
        for method in (SGD, UNIT, "scaled metric")
    }


def rows_without_norm(found: Mapping[str, Trained]) -> list[tuple[str, ...]]:
    """For a page: update, its best rate (by the mean over runs), and the test error there, with intervals."""
    table = []
    for method, done in found.items():
        errors = 100 * done.errors["test"][-1].double().cpu().numpy()
        best = int(errors.mean(0).argmin())
        rate = float(done.rates[0, 0, best])
        table.append(
            (method, f"{rate:.3g}", "{:.2f} ({:.2f} to {:.2f})".format(*intervals.student(errors[:, best])))
        )
    return table
