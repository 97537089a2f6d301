"""The cubic toy: what each method predicts, and how sure it is, inside and outside the data (P3-C9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lib import intervals
from lib import regression_metrics as metrics
from lib.claims import Measurement
from lib.contest.methods import FACTORISED, VMG, Plan, predict
from lib.contest.problems import REACH, Problem
from lib.matrix_gaussian.training import Fit

FAR = 6.0  # where the spread outside the data is read
GRID = 121  # points of [-FAR, FAR]


@dataclass(frozen=True, eq=False)
class Bands:
    """Predictions on a grid from -FAR to FAR, of R trainings of one method, in the target's unit.

    Attributes:
        x: (GRID,); mean, sd: of the prediction, its noise included, (R, GRID).
    """

    x: Float[Tensor, " grid"]
    mean: Float[Tensor, "R grid"]
    sd: Float[Tensor, "R grid"]

    @property
    def ratio(self) -> Float[Tensor, " R"]:
        """Mean standard deviation at both |x| = FAR over its mean on the data's range."""
        inside = self.x.abs() <= REACH
        return self.sd[:, [0, -1]].mean(1) / self.sd[:, inside].mean(1)

    def coverage(self, width: float = 3.0) -> Float[Tensor, " R"]:
        """Share of the grid where the true function lies within so many standard deviations of the mean."""
        return ((self.mean - self.x**3).abs() <= width * self.sd).double().mean(1)


def bands(name: str, trained: Fit, problem: Problem, plan: Plan) -> list[Bands]:
    """Of every variant of a method."""
    x = torch.linspace(-FAR, FAR, GRID, dtype=torch.float64)
    inputs = (x[None, :, None].to(problem.centre) - problem.centre[:, None]) / problem.scale[:, None]
    f, shape, rate = predict(name, trained, problem, plan, inputs)
    sd = metrics.predictive_sd(f, shape, rate)[..., 0]
    return [Bands(x, mean.cpu(), spread.cpu()) for mean, spread in zip(f.mean(2)[..., 0], sd, strict=True)]


def widest(variants: Sequence[Bands]) -> Bands:
    """The variant whose spread grows most outside the data, on average: the baseline is favoured."""
    return max(variants, key=lambda each: float(each.ratio.mean()))


def measure(found: Mapping[str, Sequence[Bands]]) -> list[Measurement]:
    """P3-C9: the ratio of spreads of the matrix Gaussian, and that over the factorised one's."""
    ours, other = found[VMG][0].ratio.double().numpy(), widest(found[FACTORISED]).ratio.double().numpy()
    return [
        Measurement(name, "cubic toy", *intervals.student(values), n=len(values), seeds=len(values))
        for name, values in (("spread_ratio", ours), ("spread_to_factorised", ours / other))
    ]


def rows(found: Mapping[str, Sequence[Bands]]) -> list[tuple[str, ...]]:
    """For a page: method, ratio of spreads, and coverage of three standard deviations, with intervals."""
    text = "{:.2f} ({:.2f} to {:.2f})"
    return [
        (
            name,
            text.format(*intervals.student(widest(each).ratio.double().numpy())),
            text.format(*intervals.student(widest(each).coverage().numpy().astype(np.float64))),
        )
        for name, each in found.items()
    ]
