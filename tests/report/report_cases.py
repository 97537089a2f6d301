"""What the tests of the report share: small trained networks, and folders of files made from them."""

from functools import cache
from pathlib import Path

import numpy as np
import torch

from lib.data import load
from lib.networks import perceptron
from lib.params import Params, member
from lib.population import Recipe, train
from lib.report import data_source
from lib.report.checkpoints import Models

WIDTHS = (64, 16, 10)


def build() -> torch.nn.Sequential:
    return perceptron(WIDTHS)


@cache
def trained(members: int = 5, widths: tuple[int, ...] = WIDTHS) -> Params:
    learn = load("digits", "train")
    recipe = Recipe(lr=0.1, batch_size=32, epochs=6, momentum=0.9)
    return train(perceptron(widths), learn.inputs, learn.targets, recipe, members=members, seed=3).params


def network(i: int = 0) -> Params:
    return member(trained(), i)


def models_of(*networks: Params, net: torch.nn.Module | None = None) -> Models:
    params = {name: torch.stack([each[name] for each in networks]) for name in networks[0]}
    return Models((net or build()).eval(), params, tuple(f"{i}.pt" for i in range(len(networks))))


@cache
def digits(examples: int | None = None) -> data_source.Halves:
    test = load("digits")  # all that there are: intervals of few examples decide nothing
    source = data_source.Source("classification", test.targets, lambda rows: test.inputs[rows])
    return data_source.draw(source, examples)


def write_digits(path: Path) -> Path:
    test = load("digits", "test")
    np.savez(path, inputs=test.inputs.numpy(), targets=test.targets.numpy())
    return path


def convolutional() -> torch.nn.Sequential:
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2),
    )  # fmt: skip


def picture_folder(root: Path, each: int = 3, size: tuple[int, int] = (9, 7)) -> Path:
    """Two classes, "cats" without red and "dogs" with much of it."""
    from PIL import Image

    for c, name in enumerate(("cats", "dogs")):
        (root / name).mkdir(parents=True)
        for i in range(each):
            Image.new("RGB", size, (200 * c, 10 * i, 255)).save(root / name / f"{i}.png")
    return root
