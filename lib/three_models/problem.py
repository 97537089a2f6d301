"""The networks that the chapter joins: perceptrons with two hidden layers, and how they are trained."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from lib.data import Dataset, load
from lib.networks import perceptron
from lib.params import Params
from lib.population import Cosine, Recipe, train
from lib.symmetry import Symmetries, find_symmetries

STANDARD, FAST = "standard", "high rate, no warm-up"


@dataclass(frozen=True, eq=False)
class Problem:
    """One architecture with its symmetries, on one set of images."""

    net: nn.Module
    symmetries: Symmetries
    learn: Dataset
    test: Dataset


def perceptrons(images: str, width: int, hidden: int = 2, device: torch.device | None = None) -> Problem:
    """``hidden`` layers of ``width`` units between the pixels and ten classes."""
    learn, test = (_on(load(images, part, flat=True), device) for part in ("train", "test"))
    net = perceptron((learn.inputs.shape[1], *[width] * hidden, len(learn.targets.unique())))
    return Problem(net, find_symmetries(net, learn.inputs[:2].cpu()), learn, test)


def recipe(epochs: int, batch: int = 64, kind: str = STANDARD) -> Recipe:
    """The authors' optimiser (SGD, momentum 0.9, rate 0.1, decay 1e-4, one epoch of warm-up; a cosine in place of their steps).

    ``FAST``: four times the rate, and no warm-up.
    """
    standard = Recipe(
        lr=0.1,
        batch_size=batch,
        epochs=epochs,
        momentum=0.9,
        weight_decay=1e-4,
        schedule=Cosine(),
        warmup=1,
    )
    return standard if kind == STANDARD else replace(standard, lr=0.4, warmup=0)


def trained(problem: Problem, how: Recipe, members: range, seed: int) -> Params:
    """A population, on the device of the images; every member must have stayed finite."""
    learn = problem.learn
    found = train(
        problem.net, learn.inputs, learn.targets, how, members=members, seed=seed, device=learn.inputs.device
    )
    if bool((found.diverged_at >= 0).any()):
        raise RuntimeError("a network diverged: lower the rate of the recipe.")
    return found.params


def _on(data: Dataset, device: torch.device | None) -> Dataset:
    return replace(data, inputs=data.inputs.to(device), targets=data.targets.to(device))
