"""Handwritten digits, permutation invariant: three hidden layers, test errors at equal updates (P3-C8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lib import data, intervals, metrics
from lib.claims import Measurement
from lib.contest.methods import CHARGE, COLD, DROPOUT, FACTORISED, POINT, POINTS, VMG
from lib.kept import Kept
from lib.matrix_gaussian.laws import Factorised, Law, Point
from lib.matrix_gaussian.likelihoods import Categorical, average, votes
from lib.matrix_gaussian.network import Network
from lib.matrix_gaussian.prediction import of_mean, sampled
from lib.matrix_gaussian.pseudo_data import PseudoData
from lib.matrix_gaussian.training import Examples, Fit, Schedule, fit
from lib.parallel import side_by_side
from lib.profile import MatrixGaussian

DROP = 0.5  # of hidden units, as usual for such widths; 0.05 is for fifty units
NARROW = -3.0  # logarithm of the factorised Gaussian's standard deviations at the start, its better one


@dataclass(frozen=True, eq=False)
class Digits:
    """Training and test images as rows of pixels in [0, 1], and their classes; one set for all runs."""

    train: Tensor
    labels: Int64[Tensor, " N"]
    test: Tensor
    answers: Int64[Tensor, " M"]

    def to(self, device: torch.device) -> Digits:
        """The same on a device."""
        return Digits(*(x.to(device) for x in (self.train, self.labels, self.test, self.answers)))


def load(name: str, rows: int | None = None) -> Digits:
    """mnist5k or mnist, its first ``rows`` training images."""
    train, test = data.load(name, "train", flat=True), data.load(name, "test", flat=True)
    return Digits(train.inputs[:rows], train.targets[:rows], test.inputs, test.targets)


def laws(pseudo: int) -> dict[str, Law]:
    """The methods on images: M_p pseudo-data in every layer with the authors' noise level 0.01 and their noise of rank one."""
    return {
        VMG: PseudoData(pseudo, 0.01, per_entry=True),
        FACTORISED: Factorised(NARROW),
        COLD: Factorised(NARROW),
        DROPOUT: Point(DROP),
        POINT: Point(),
    }


@dataclass(frozen=True, eq=False)
class Errors:
    """Test errors in per cent of several trainings: of the mean network at every look, and of averages and votes of draws at the end."""

    updates: Int64[Tensor, " looks"]
    mean: Float[Tensor, "looks R"]
    averaged: Float[Tensor, " R"]
    voted: Float[Tensor, " R"]
    nll: Float[Tensor, " R"]

    def last(self, looks: int) -> Float[np.ndarray, " R"]:
        """The mean over the last looks, training by training: one lucky epoch does not count."""
        return self.mean[-looks:].double().mean(0).numpy()


def train(
    name: str,
    width: int,
    digits: Digits,
    schedule: Schedule,
    *,
    pseudo: int,
    trainings: int,
    seed: int,
    layers: int = 3,
) -> Fit:
    """Several trainings side by side, prior MN(0, I, I) as in the authors' script; points by maximum likelihood."""
    widths = (digits.train.shape[1], *[width] * layers, int(digits.labels.max()) + 1)
    charge = 0.0 if name in POINTS else CHARGE if name == COLD else 1.0
    network = Network.of(laws(pseudo)[name], widths, Categorical(), hyper_priors=False, charge=charge)
    unit = torch.ones(trainings, 1, device=digits.train.device)
    counts = torch.full((trainings,), len(digits.train), device=digits.train.device)
    examples = Examples(digits.train[None], digits.labels[None], counts, unit)
    return fit(network, examples, schedule, seed=seed)


def contest(
    names: Sequence[str],
    width: int,
    digits: Digits,
    sizes: MatrixGaussian,
    seed: int,
    folder: Path | None = None,
) -> dict[str, Errors]:
    """Several methods at one width, each on its own learning rate; on a CPU side by side.

    ``folder``: where finished methods are kept, for a run that may be cut.
    """
    kept = Kept(folder)
    # the slowest of the lists here come first, and `side_by_side` begins with the last
    pieces = [lambda name=name: piece(name, width, digits, sizes, seed, kept) for name in names[::-1]]
    return dict(zip(names, side_by_side(pieces, digits.train.device)[::-1], strict=True))


def piece(name: str, width: int, digits: Digits, sizes: MatrixGaussian, seed: int, kept: Kept) -> Errors:
    """One method's errors at one width."""
    looks = {sizes.image_updates * k // 10 for k in range(1, 11)}
    looks |= {sizes.image_updates * (100 - k) // 100 for k in range(sizes.image_looks)}
    schedule = Schedule(
        sizes.image_updates, 100, sizes.image_rates[name != VMG], sizes.image_average, tuple(sorted(looks))
    )

    def make() -> dict[str, Tensor]:
        options = {"pseudo": sizes.image_pseudo, "trainings": sizes.image_trainings}
        fitted = train(name, width, digits, schedule, seed=seed, **options)
        return vars(errors(fitted, digits, draws=sizes.image_draws, seed=seed))

    return Errors(**kept.part(f"images-{width}-{name}".replace(" ", "-").replace(",", ""), make))


def errors(trained: Fit, digits: Digits, *, draws: int, seed: int) -> Errors:
    """What the trainings get wrong on the test images."""
    test, answers = digits.test[None], digits.answers
    fits = [trained.at(look) for look in trained.looks]
    mean = torch.stack([_error(of_mean(each, test).softmax(-1), answers) for each in fits])
    # one draw at a time: the weights of many would not fit
    probabilities = torch.stack(
        [sampled(trained, test, 1, seed=seed, first=k)[:, 0].softmax(-1) for k in range(draws)], dim=1
    )
    mixed = average(probabilities)
    return Errors(
        torch.tensor(list(trained.looks)),
        mean.cpu(),
        _error(mixed, answers).cpu(),
        _error(votes(probabilities), answers).cpu(),
        metrics.nll(mixed, answers).cpu(),
    )


def _error(probabilities: Tensor, answers: Tensor) -> Tensor:
    return 100 * (1 - metrics.accuracy(probabilities, answers))


def order(found: dict[str, Errors], looks: int = 1) -> list[Measurement]:
    """P3-C8, quick: test error of the others minus that of the matrix Gaussian, trainings paired."""
    ours = found[VMG].last(looks)
    return [
        intervals.measured(name, "3x150", found[other].last(looks) - ours)
        for name, other in (("order_factorised", FACTORISED), ("order_dropout", DROPOUT))
    ]


def by_width(found: dict[int, Errors], looks: int = 10) -> list[Measurement]:
    """P3-C8, full: test error at 3 x 150, and how much 3 x 750 is below it."""
    narrow, wide = found[150].last(looks), found[max(found)].last(looks)
    return [
        intervals.measured("error_150", "3x150", narrow),
        intervals.measured("width_gain", f"3x{max(found)}", narrow - wide),
    ]


def rows(found: dict[str, Errors], looks: int = 1) -> list[tuple[str, ...]]:
    """For a page: test errors in per cent and negative log-likelihood, with intervals over trainings."""
    text = "{:.2f} ({:.2f} to {:.2f})"
    table = []
    for name, each in found.items():
        columns = (each.last(looks), *(v.double().numpy() for v in (each.averaged, each.voted)))
        nll = "{:.3f} ({:.3f} to {:.3f})".format(*intervals.student(each.nll.double().numpy()))
        table.append((name, *(text.format(*intervals.student(values)) for values in columns), nll))
    return table
