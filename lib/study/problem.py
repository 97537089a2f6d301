"""What the posterior study learns: a network, a recipe, training, validation and test data, and data from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from lib import randomness
from lib.data import load
from lib.networks import optumnist, perceptron
from lib.params import Params, population_size, select
from lib.permutation_events import Events
from lib.population import MultiStep, Population, Recipe, evaluate, fused_report, train_sharded
from lib.symmetry import Symmetries, find_symmetries, permute, random_permutations


@dataclass(frozen=True)
class Examples:
    """N inputs and their classes."""

    inputs: Float[Tensor, "N ..."]
    targets: Int64[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.inputs)

    def at(self, rows: Tensor | slice) -> Examples:
        """The examples at ``rows``."""
        return Examples(self.inputs[rows], self.targets[rows])

    def to(self, device: torch.device | str) -> Examples:
        """The same examples on a device."""
        return Examples(self.inputs.to(device), self.targets.to(device))


@dataclass(frozen=True)
class Problem:
    """Everything the study of one data set needs, on one device.

    ``recipe`` trains the independent networks; ``method_recipe`` is that of the approximations, of which SWAG and SGHMC
    have a length of their own. ``outside``: inputs from elsewhere, by name. ``first`` names the first layer's weight.
    """

    name: str
    net: nn.Sequential
    recipe: Recipe
    method_recipe: Recipe
    train: Examples
    validation: Examples
    test: Examples
    outside: dict[str, Tensor]
    first: str = "0.weight"

    @property
    def symmetries(self) -> Symmetries:
        """Of the network."""
        return find_symmetries(self.net, self.train.inputs[:2].cpu())


DIGITS = Recipe(lr=0.1, batch_size=32, epochs=40, weight_decay=2e-4)
NOISY = Recipe(lr=0.5, batch_size=8, epochs=20, weight_decay=2e-4)
OPTUMNIST = Recipe(lr=0.04, batch_size=64, epochs=60, weight_decay=2e-4, schedule=MultiStep((15, 30), 0.5))
MASS_RECIPES = {"lr 0.1, batch 32": DIGITS, "lr 0.5, batch 8": NOISY}
FOREIGN = {"quick": "inverted images", "full": "Fashion-MNIST"}  # the set of P1-C11


def digits(device: torch.device | str = "cpu") -> Problem:
    """The digits 0 to 7 of scikit-learn (8 x 8): 800 to train on, 143 to tune on, 500 to test on; 64-16-8 with ReLU.

    Outside: the digits 8 and 9, which no network has seen, and the test images with black and white exchanged. The pixels
    come in order of falling variance: the paper's sort goes by the *first* incoming weight, and the corner pixel is black
    in every image, so that its weight would never learn.
    """
    everything = load("digits")
    known = everything.targets < 8
    inputs, targets = everything.inputs[known], everything.targets[known]
    order = randomness.permutation(0, torch.zeros(1, dtype=torch.int64), "digits 0 to 7", 0, len(inputs))[0]
    pixels = inputs[order[:800]].var(0).argsort(descending=True, stable=True)
    examples = Examples(inputs[order][:, pixels], targets[order]).to(device)
    test = examples.at(slice(943, 1443))
    return Problem(
        name="digits 0 to 7",
        net=perceptron((64, 16, 8)),
        recipe=DIGITS,
        method_recipe=DIGITS,
        train=examples.at(slice(800)),
        validation=examples.at(slice(800, 943)),
        test=test,
        outside={
            "digits 8 and 9": everything.inputs[~known][:, pixels].to(device),
            "inverted images": 1 - test.inputs,
        },
    )


def mnist(device: torch.device | str = "cpu") -> Problem:
    """MNIST with OptuMNIST-v1: 55,000 to train on, 5,000 to tune on, the test set.

    Outside: the test sets of Fashion-MNIST and KMNIST, and letters of notMNIST. Inputs in [0, 1], as the recipe has them.
    The approximations that train their own networks get batches of 256 and 20 epochs, at the same rate a sample.
    """
    whole, test = load("mnist", "train"), load("mnist", "test")
    examples = Examples(whole.inputs, whole.targets).to(device)
    return Problem(
        name="MNIST",
        net=optumnist(),
        recipe=OPTUMNIST,
        method_recipe=replace(
            OPTUMNIST, lr=0.16, batch_size=256, epochs=20, schedule=MultiStep((10, 15), 0.5)
        ),
        train=examples.at(slice(55_000)),
        validation=examples.at(slice(55_000, 60_000)),
        test=Examples(test.inputs, test.targets).to(device),
        outside={
            title: load(name, "test").inputs.to(device)
            for title, name in (
                ("Fashion-MNIST", "fashion-mnist"),
                ("KMNIST", "kmnist"),
                ("notMNIST", "notmnist"),
            )
        },
    )


def of_profile(profile: str, device: torch.device | str = "cpu") -> Problem:
    """The problem of a profile: digits in ``quick``, MNIST in ``full``."""
    return digits(device) if profile == "quick" else mnist(device)


def learned(problem: Problem, params: Params, least: float) -> Bool[Tensor, " P"]:
    """Which networks have a validation accuracy above ``least``: the others are one constant function (notes of the recipe)."""
    examples = problem.validation
    return evaluate(problem.net, params, examples.inputs, examples.targets)["accuracy"] > least


def first_group(problem: Problem) -> int:
    """Position, among the permutation groups, of the one whose units the first layer writes."""
    groups = problem.symmetries.permutations
    return next(
        g
        for g, group in enumerate(groups)
        if any(p.name == problem.first and p.axis == 0 for p in group.places)
    )


def population(
    problem: Problem, networks: int, *, seed: int, shard: int, folder: Path | None = None
) -> Population:
    """Independent networks trained by the problem's recipe, on the device of its data; ``folder`` keeps finished shards."""
    inputs, targets = problem.train.inputs, problem.train.targets
    where = {"device": inputs.device, "shard": shard, "folder": folder}
    return train_sharded(problem.net, inputs, targets, problem.recipe, members=networks, seed=seed, **where)


def mass_populations(
    problem: Problem,
    pool: Population,
    networks: int,
    seed: int,
    device: torch.device | str,
    recipes: Mapping[str, Recipe] = MASS_RECIPES,
) -> dict[str, tuple[Problem, Params]]:
    """The populations of P1-C5, each with its problem: the digits recipes, and in ``full`` OptuMNIST-v1.

    Member i of a recipe is the same network wherever it is trained, so that the pool serves as the cell of its recipe.
    """
    small, found = digits(device), {}
    for cell, recipe in recipes.items():
        if (small.name, recipe) == (problem.name, problem.recipe):
            found[cell] = (small, select(pool.params, slice(networks)))
            continue
        trained = population(replace(small, recipe=recipe), networks, seed=seed, shard=networks)
        found[cell] = (small, trained.where(trained.finite).params)
    if problem.name == "MNIST":
        found["OptuMNIST-v1"] = (problem, select(pool.params, slice(networks)))
    return found


def stepped(problem: Problem) -> Recipe:
    """The recipe of P1-C12, whose learning rate falls in two steps: OptuMNIST's own; for digits, two thirds of its epochs."""
    if isinstance(problem.recipe.schedule, MultiStep):
        return problem.recipe
    return replace(problem.recipe, schedule=MultiStep((10, 20), 0.5))


def permuted_copies(problem: Problem, params: Params, seed: int) -> Params:
    """One randomly permuted copy of each network: the same functions, computed in another order."""
    generator = torch.Generator().manual_seed(seed)
    perms = random_permutations(problem.symmetries, generator, members=population_size(params))
    return permute(params, problem.symmetries, perms)


def event_curves(
    events: Sequence[Events],
) -> dict[str, tuple[Float[np.ndarray, " x"], Float[np.ndarray, " x"]]]:
    """For a figure: changed places a step and network, mean over each epoch and all networks, one curve a sort."""
    epoch = events[0].steps_per_epoch
    curves = {}
    for sort in events[0].changes:
        steps = torch.cat([one.changes[sort] for one in events], dim=1).double().mean(1)
        means = steps[: len(steps) // epoch * epoch].view(-1, epoch).mean(1).numpy()
        curves[sort] = (np.arange(len(means)) + 0.5, means)
    return curves


def throughput(problem: Problem, networks: int, seconds: float) -> dict:
    """What training the population took, for the record; on a CUDA device with OptuMNIST also the share of its limits."""
    sample_steps = networks * problem.recipe.epochs * len(problem.train)
    found = {"networks": networks, "seconds": seconds, "samples a second": sample_steps / seconds}
    device = problem.train.inputs.device
    if device.type == "cuda" and problem.name == "MNIST":
        card = fused_report.card_of(device)
        found |= fused_report.throughput(networks, problem.recipe.epochs, len(problem.train), seconds, card)
    return found
