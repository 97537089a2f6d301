"""The networks that the chapter joins, and how they are trained.

A *setting* names the data, and after a slash the network, where it is no perceptron with two hidden layers: "digits", "mnist",
"cifar10/vgg-16", "cifar10/resnet-20".
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from lib.convnets import resnet20, vgg16
from lib.data import Dataset, load
from lib.networks import perceptron
from lib.params import Params, select
from lib.population import Cosine, Population, Recipe, stacked, train
from lib.symmetry import Symmetries, find_symmetries

CONVOLUTIONAL = {"vgg-16": vgg16, "resnet-20": resnet20}
TEST = 2_000
FAST_RATE = 0.25
STANDARD, FAST = "standard", "high rate, no warm-up"


@dataclass(frozen=True, eq=False)
class Problem:
    """One architecture with its symmetries, on one set of images."""

    net: nn.Module
    symmetries: Symmetries
    learn: Dataset
    test: Dataset


def problem_of(setting: str, width: int, device: torch.device | None = None) -> Problem:
    """The network of this width on the data of a setting; pictures have each channel at mean 0 and standard deviation 1.

    Convolutional networks are tested on the first ``TEST`` pictures: lines of networks are many.
    """
    images, _, network = setting.partition("/")
    if network and network not in CONVOLUTIONAL:
        raise ValueError(
            f"there is no network {network!r} here: choose one of {', '.join(CONVOLUTIONAL)}, or none."
        )
    learn, test = (load(images, part, flat=not network) for part in ("train", "test"))
    classes = len(learn.targets.unique())
    if network:
        axes = (0, 2, 3)
        mean, std = learn.inputs.mean(axes, keepdim=True), learn.inputs.std(axes, keepdim=True)
        learn, test = (replace(part, inputs=(part.inputs - mean) / std) for part in (learn, test))
        test = replace(test, inputs=test.inputs[:TEST], targets=test.targets[:TEST])
        net = CONVOLUTIONAL[network](width, classes=classes, channels=learn.inputs.shape[1])
    else:
        net = perceptron((learn.inputs.shape[1], width, width, classes))
    return Problem(net, find_symmetries(net, learn.inputs[:2]), _on(learn, device), _on(test, device))


def recipe(epochs: int, batch: int = 64, kind: str = STANDARD) -> Recipe:
    """The authors' optimiser (SGD, momentum 0.9, rate 0.1, decay 1e-4, one epoch of warm-up; a cosine in place of their steps).

    ``FAST``: two and a half times the rate, and no warm-up.
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
    return standard if kind == STANDARD else replace(standard, lr=FAST_RATE, warmup=0)


def trained(
    problem: Problem,
    how: Recipe,
    members: range,
    seed: int,
    start: Params | None = None,
    masks: Params | None = None,
) -> Params:
    """A population, on the device of the images; every member must have stayed finite.

    Perceptrons train together; convolutional networks one after the other, which fills an accelerator as well.
    """
    learn = problem.learn

    def some(ids: range, rows: slice) -> Population:
        own = (None if x is None else select(x, rows) for x in (start, masks))
        begin, living = own
        return train(
            problem.net,
            learn.inputs,
            learn.targets,
            how,
            members=ids,
            seed=seed,
            device=learn.inputs.device,
            start=begin,
            masks=living,
        )

    if stacked.supports(problem.net):
        found = [some(members, slice(None))]
    else:
        found = [some(members[i : i + 1], slice(i, i + 1)) for i in range(len(members))]
    if any(bool((each.diverged_at >= 0).any()) for each in found):
        raise RuntimeError("a network diverged in training: lower the rate of the recipe.")
    return {name: torch.cat([each.params[name] for each in found]) for name in found[0].params}


def _on(data: Dataset, device: torch.device | None) -> Dataset:
    return replace(data, inputs=data.inputs.to(device), targets=data.targets.to(device))
