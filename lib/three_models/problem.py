"""The networks that the chapter joins, and how they are trained.

A *setting* names the data, and after a slash the network, where it is no perceptron with two hidden layers: "digits", "mnist",
"cifar10/vgg-16", "cifar10/resnet-20".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from lib.convnets import resnet20, vgg16
from lib.data import Dataset, load
from lib.networks import perceptron
from lib.params import Params
from lib.population import Cosine, Recipe, stacked, train, walk
from lib.symmetry import Symmetries, find_symmetries
from lib.three_models.pictures import Schedule, train_picture_networks

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
    """A population, on the device of the images; raises RuntimeError where a member diverges.

    Perceptrons train together. Convolutional networks train one after the other on shifted and mirrored pictures, in batches of 128.
    """
    learn = problem.learn
    device = learn.inputs.device
    if not stacked.supports(problem.net):
        found, _ = train_picture_networks(
            problem.net, learn, _schedule(how), members, seed, device, start=start, masks=masks
        )
        return {name: tensor.to(device) for name, tensor in found.items()}
    population = train(
        problem.net,
        learn.inputs,
        learn.targets,
        how,
        members=members,
        seed=seed,
        device=device,
        start=start,
        masks=masks,
    )
    if bool((population.diverged_at >= 0).any()):
        raise RuntimeError("a network diverged in training: lower the rate of the recipe.")
    return population.params


def snapshots(problem: Problem, members: range, epochs: Sequence[int], kind: str, seed: int) -> list[Params]:
    """The networks after each of some epochs of one training, of which the last is the end."""
    learn, how = problem.learn, recipe(epochs[-1], kind=kind)
    device = learn.inputs.device
    if not stacked.supports(problem.net):
        _, after = train_picture_networks(
            problem.net, learn, _schedule(how), members, seed, device, checkpoints=tuple(epochs)
        )
        return [{name: tensor.to(device) for name, tensor in after[epoch].items()} for epoch in epochs]
    at = {epoch * how.steps_per_epoch(len(learn)) - 1 for epoch in epochs}
    moments = walk(problem.net, learn.inputs, learn.targets, how, members=members, seed=seed, device=device)
    found = [moment.params for moment in moments if moment.step in at]
    if not all(bool(t.isfinite().all()) for params in found for t in params.values()):
        raise RuntimeError(f"a network diverged in the training {kind!r}: lower its rate.")
    return found


def _schedule(how: Recipe) -> Schedule:
    return Schedule(how.epochs, how.lr, how.warmup, how.weight_decay)


def _on(data: Dataset, device: torch.device | None) -> Dataset:
    return replace(data, inputs=data.inputs.to(device), targets=data.targets.to(device))
