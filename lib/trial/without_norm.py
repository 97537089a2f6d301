"""Without a norm: which metric removes the symmetry of a ReLU network at every depth? (P4-C10, in float64.)

The paper's networks take the maximum of neighbouring units, so that a factor is shared inside a pool (notes, section 1.2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from lib.randomness import normal, uniform
from lib.rules import Measurement
from lib.trial.exact import batches, gap, least, worst
from lib.unit_norm.steps import chained_rates, own_rates


@dataclass(frozen=True, eq=False)
class Plain:
    """A ReLU network without norms or biases: filters, a maximum of ``pool`` neighbours, ReLU, and again; then a classifier."""

    weights: list[Float[Tensor, "_ _"]]
    pool: int

    @staticmethod
    def start(seed: int, inputs: int, layers: int, pool: int, hidden: int = 32, classes: int = 10) -> Plain:
        """Normal weights of variance 2 over the number of inputs, in float64."""
        shapes = [(hidden, inputs), *[(hidden, hidden // pool)] * (layers - 1), (classes, hidden // pool)]
        return Plain(
            [
                normal(seed, torch.tensor([seed]), f"plain/{i}", 0, s, torch.float64)[0] * (2 / s[1]) ** 0.5
                for i, s in enumerate(shapes)
            ],
            pool,
        )

    def outputs(self, x: Float[Tensor, "B k"]) -> Float[Tensor, "B classes"]:
        for weight in self.weights[:-1]:
            x = (x @ weight.T).unflatten(1, (-1, self.pool)).amax(2).clamp_min(0)
        return x @ self.weights[-1].T

    def rescaled(self, seed: int, decades: float = 1.0) -> Plain:
        """The same function: every pool's rows by a factor of its own, the columns that read it by the inverse."""
        weights, columns = [], self.weights[0].new_ones(self.weights[0].shape[1])
        for i, weight in enumerate(self.weights[:-1]):
            u = uniform(
                seed, torch.tensor([seed]), f"plain scales/{i}", 0, (len(weight) // self.pool,), torch.float64
            )
            factor = 10 ** ((2 * u[0] - 1) * decades)
            weights.append(factor.repeat_interleave(self.pool)[:, None] * weight / columns)
            columns = factor
        return Plain([*weights, self.weights[-1] / columns], self.pool)


def plain_curve(
    start: Plain,
    inputs: Float[Tensor, "N k"],
    targets: Int64[Tensor, " N"],
    rule: Callable[..., list[Tensor]] | None,
    *,
    seed: int,
    steps: int,
    rate: float,
) -> Float[np.ndarray, " steps"]:
    """Loss curve under w ← w - η f g with the factors f of ``rule`` (``chained_rates`` or ``own_rates``), or of SGD, f = 1."""
    weights = [weight.clone() for weight in start.weights]
    losses = []
    for rows in batches(len(inputs), seed, steps):
        leaves = [weight.requires_grad_() for weight in weights]
        loss = F.cross_entropy(Plain(leaves, start.pool).outputs(inputs[rows]), targets[rows])
        gradients = torch.autograd.grad(loss, leaves)
        weights = [weight.detach() for weight in leaves]
        factors = [1.0] * len(weights) if rule is None else _factors(rule, weights, start.pool)
        weights = [w - rate * f * g for w, f, g in zip(weights, factors, gradients, strict=True)]
        losses.append(float(loss.detach()))
    return np.array(losses)


def _factors(rule: Callable[..., list[Tensor]], weights: list[Tensor], pool: int) -> list[Tensor]:
    return rule(weights, pool) if rule is chained_rates else rule(weights)


@dataclass(frozen=True)
class WithoutNorm:
    """P4-C10, one seed: gaps of the loss curves by (hidden layers, pool) for the chained rule, own norms, and SGD."""

    chained: dict[tuple[int, int], float]
    own: dict[tuple[int, int], float]
    sgd: dict[tuple[int, int], float]


def without_norm(
    inputs: Float[Tensor, "N k"], targets: Int64[Tensor, " N"], seed: int, *, steps: int = 40, rate: float
) -> WithoutNorm:
    """One to three hidden layers, pool 1 and 2: each rule from two starts that are one function."""
    found: tuple[dict, dict, dict] = ({}, {}, {})
    for layers in (1, 2, 3):
        for pool in (1, 2):
            start = Plain.start(seed, inputs.shape[1], layers, pool)
            for place, rule in zip(found, (chained_rates, own_rates, None), strict=True):
                both = [
                    plain_curve(s, inputs, targets, rule, seed=seed, steps=steps, rate=rate)
                    for s in (start, start.rescaled(seed))
                ]
                place[layers, pool] = gap(*both)
    return WithoutNorm(*found)


def measure_without_norm(found: Sequence[WithoutNorm], steps: int) -> list[Measurement]:
    """P4-C10: the chained rule in all six cells, own norms in the four with two or three layers."""
    measured = []
    for layers, pool in found[0].chained:
        cell = f"{layers} layers, pool {pool}"
        measured.append(worst("chained_gap", cell, [each.chained[layers, pool] for each in found], steps))
        if layers > 1:
            measured.append(least("own_norm_gap", cell, [each.own[layers, pool] for each in found], steps))
    return measured


def rows(found: Sequence[WithoutNorm]) -> list[tuple[str, ...]]:
    """For a page: hidden layers, pool, and the largest gap over the seeds for the chained rule, own norms and SGD."""
    return [
        (
            str(layers),
            str(pool),
            *(
                f"{max(getattr(each, rule)[layers, pool] for each in found):.1e}"
                for rule in ("chained", "own", "sgd")
            ),
        )
        for layers, pool in found[0].chained
    ]
