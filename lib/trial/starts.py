"""Bad starts and bad rates: how wide is the band of learning rates that work? (P4-C7 on MNIST, X-U1 on tables.)

A start multiplies the filters of a unit-norm start by 10, by 0.1, or each by a factor of its own, 10^U(-2, 2): the same function
before the first step. Unit norm begins by normalising, so that its four starts are one (P4-C3 is the proof).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lib import intervals
from lib.data import load, standardise
from lib.data.sets import Dataset
from lib.randomness import uniform
from lib.rules import Measurement
from lib.trial.images import SGD, UNIT, network, split
from lib.unit_norm.network import Network
from lib.unit_norm.training import Examples, train

STARTS = ("unit", "x 10", "x 0.1", "mixed")
BAD = STARTS[1:]


def begin(
    net: Network, start: str, seed: int, streams: Int64[Tensor, " S"], dtype: torch.dtype = torch.float32
) -> list[Float[Tensor, "S 1 n k"]]:
    """The protocol's weights with their filters multiplied as ``start`` says; the classifier stays."""
    *filters, classifier = net.initial(seed, streams, dtype)
    if start == "mixed":
        factors = [
            10 ** (4 * uniform(seed, streams, f"mixed/{i}", 0, (w.shape[2],), dtype) - 2)
            for i, w in enumerate(filters)
        ]
        filters = [w * f[:, None, :, None] for w, f in zip(filters, factors, strict=True)]
    elif start != "unit":
        filters = [w * float(start.removeprefix("x ")) for w in filters]
    return [*filters, classifier]


@dataclass(frozen=True, eq=False)
class Sweep:
    """Test errors, in points, of SGD from every start and of unit norm, each (S, rates), over the grid of ``rates``."""

    rates: Float[np.ndarray, " rates"]
    sgd: dict[str, Float[np.ndarray, "S rates"]]
    unit: Float[np.ndarray, "S rates"]

    def best(self, start: str) -> Float[np.ndarray, " S"]:
        """SGD's lowest error over the grid."""
        return self.sgd[start].min(1)

    def band(self, errors: Float[np.ndarray, "S rates"], margin: float) -> Float[np.ndarray, " S"]:
        """Decades of rates whose error is at most ``margin`` points above SGD's best from the unit start."""
        return band(self.rates, errors, self.best("unit") + margin)


def band(
    rates: Float[np.ndarray, " rates"],
    errors: Float[np.ndarray, "S rates"],
    threshold: Float[np.ndarray, " S"],
) -> Float[np.ndarray, " S"]:
    """Length, in decades, of the rates where the error, linear between the grid's logarithmic rates, is within the threshold."""
    x = np.log10(rates)
    widths = np.zeros(len(errors))
    for left, right, step in zip(errors[:, :-1].T, errors[:, 1:].T, np.diff(x), strict=True):
        low, high = np.minimum(left, right), np.maximum(left, right)
        share = np.where(
            high > low, (threshold - low) / np.where(high > low, high - low, 1.0), low <= threshold
        )
        widths += step * np.clip(share, 0.0, 1.0)
    return widths


def sweep(
    net: Network,
    examples: Examples,
    test: Examples,
    rates: Sequence[float],
    *,
    seed: int,
    epochs: int,
    batch: int,
) -> Sweep:
    """SGD from the four starts and unit norm, every stream at every rate, one rate for filters and classifier, constant."""
    runs = len(examples.rows)
    streams = torch.arange(runs, device=examples.inputs.device)
    grid = torch.tensor(rates, device=examples.inputs.device).expand(runs, -1).contiguous()

    def errors(method: str, start: list[Tensor], rates: Float[Tensor, "S R"]) -> np.ndarray:
        done = train(
            net, method, examples, rates, seed=seed, streams=streams, epochs=epochs, batch=batch, start=start,
            watch={"test": test},
        )  # fmt: skip
        return 100 * done.errors["test"][-1].double().cpu().numpy()

    starts = [begin(net, start, seed, streams) for start in STARTS]
    n = len(rates)
    together = [
        torch.cat([weight.expand(-1, n, -1, -1) for weight in each], 1) for each in zip(*starts, strict=True)
    ]
    sgd = errors(SGD, together, grid.repeat(1, len(STARTS)))
    return Sweep(
        np.array(rates),
        {start: sgd[:, i * n : (i + 1) * n] for i, start in enumerate(STARTS)},
        errors(UNIT, starts[0], grid),
    )


def on_images(
    images: str,
    rates: Sequence[float],
    *,
    runs: int,
    validation: int,
    epochs: int,
    small: bool,
    seed: int,
    device: torch.device,
) -> Sweep:
    """P4-C7 on MNIST, two layers; ``small``: on the protocol's 1,000 training images."""
    data = split(images, runs, validation, seed=seed, device=device)
    learn = data.search_train if small else data.train
    return sweep(network(2), learn, data.test, rates, seed=seed, epochs=epochs, batch=100)


def table(name: str, runs: int, *, device: torch.device) -> tuple[Examples, Examples]:
    """A table as a classification: every run learns one random (or published) split of it, inputs standardised on its rows."""
    splits = [_split(name, draw) for draw in range(runs)]

    def together(parts: list[Dataset]) -> Examples:
        n = min(map(len, parts))
        rows = torch.arange(len(parts) * n, device=device).view(len(parts), n)
        inputs, targets = (torch.cat([getattr(p, what)[:n] for p in parts]) for what in ("inputs", "targets"))
        return Examples(inputs.to(device), targets.to(device), rows)

    return together([learn for learn, _ in splits]), together([test for _, test in splits])


def _split(name: str, draw: int) -> tuple[Dataset, Dataset]:
    """Training and test rows; a target that is a number becomes the third, of the training rows', in which it lies."""
    learn, test = load(name, "train", draw=draw), load(name, "test", draw=draw)
    whole = standardise(learn, test)
    if not learn.targets.is_floating_point():
        return whole.train, whole.test
    cuts = torch.quantile(learn.targets.flatten(), torch.tensor([1 / 3, 2 / 3], dtype=learn.targets.dtype))
    return tuple(
        replace(part, targets=torch.bucketize(raw.targets.flatten(), cuts))
        for part, raw in ((whole.train, learn), (whole.test, test))
    )


def on_table(
    name: str,
    rates: Sequence[float],
    *,
    runs: int,
    splits: int,
    updates: int,
    seed: int,
    device: torch.device,
) -> Sweep:
    """X-U1 on one table: two layers of 32 units, no pooling, batches of 25, about ``updates`` steps.

    A run here is ``splits`` splits of the table, each with a network of its own: its error is their mean.
    """
    learn, test = table(name, runs * splits, device=device)
    net = Network((learn.inputs.shape[1], 32, 32, int(learn.targets.max()) + 1))
    epochs = -(-updates // (learn.rows.shape[1] // 25))
    found = sweep(net, learn, test, rates, seed=seed, epochs=epochs, batch=25)

    def grouped(errors: np.ndarray) -> np.ndarray:
        return errors.reshape(runs, splits, -1).mean(1)

    return Sweep(found.rates, {start: grouped(e) for start, e in found.sgd.items()}, grouped(found.unit))


# ------------------------------------------------------------------------------------------------------- measurements

MARGIN = 2.0  # points of error above SGD's best from the unit start at which a rate is still good


def measure_starts(found: Sweep) -> list[Measurement]:
    """P4-C7: how much a bad start worsens SGD's best error, and the decades of good rates that it loses."""
    unit = found.band(found.sgd["unit"], MARGIN)
    measured = []
    for start in BAD:
        measured += [
            intervals.measured("error_worsening", start, found.best(start) - found.best("unit")),
            intervals.measured("band_loss", start, unit - found.band(found.sgd[start], MARGIN)),
        ]
    return measured


def band_gain(found: Sweep) -> Float[np.ndarray, " S"]:
    """X-U1: decades of rates that are good whatever the start, unit norm minus SGD."""
    worst = np.max([found.sgd[start] for start in STARTS], axis=0)
    return found.band(found.unit, MARGIN) - found.band(worst, MARGIN)


def measure_tables(found: Mapping[str, Sweep]) -> list[Measurement]:
    """X-U1: one cell a data set."""
    return [intervals.measured("band_gain", name, band_gain(each)) for name, each in found.items()]


def rows(found: Sweep) -> list[tuple[str, ...]]:
    """For a page: start, best error over the grid, decades of good rates, with intervals; unit norm last."""
    text = "{:.2f} ({:.2f} to {:.2f})"
    series = {f"SGD, {start} start": errors for start, errors in found.sgd.items()}
    series["unit norm, any start"] = found.unit
    return [
        (
            name,
            *(text.format(*intervals.student(v)) for v in (errors.min(1), found.band(errors, MARGIN))),
        )
        for name, errors in series.items()
    ]
