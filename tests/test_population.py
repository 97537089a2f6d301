"""Populations: torch's own optimisers as reference, members that ignore neighbours, divergence, kills and archives.

Which of the three guarantees a test checks is in its name: "bits" (one CPU build, whatever population, chunk or thread
count), "tolerance" (after one step, for the generic path), and the third, bits on an accelerator for a fixed chunk
shape, is checked where there is one.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from lib.params import member, select
from lib.population import (
    Constant,
    Cosine,
    MultiStep,
    Recipe,
    UnsupportedTraining,
    evaluate,
    initial,
    load,
    predict,
    save,
    train,
    training,
    walk,
)
from lib.population.dense import Dense
from lib.population.training import arrange
from lib.randomness import permutation
from lib.symmetry import find_symmetries, permute, random_permutations

ROOT = Path(__file__).parents[1]
ACCELERATOR = torch.cuda.is_available()


def perceptron(*widths, activation=nn.ReLU, dtype=torch.float32, bias=True):
    layers = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b, bias=bias, dtype=dtype), activation()]
    return nn.Sequential(*layers[:-1])


def problem(n=150, inputs=6, outputs=4, loss="cross_entropy", dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, inputs, generator=generator, dtype=dtype)
    if loss == "cross_entropy":
        return x, torch.randint(0, outputs, (n,), generator=generator)
    y = torch.randn(n, outputs, generator=generator, dtype=dtype)
    return x, (y > 0).to(dtype) if loss == "binary_cross_entropy" else y


REFERENCE_LOSS = {
    "cross_entropy": F.cross_entropy,
    "binary_cross_entropy": F.binary_cross_entropy_with_logits,
    "mse": F.mse_loss,
}


def trained_by_torch(net, params, x, y, recipe, member_id, seed, scheduler=None):
    """One network trained the ordinary way, on the batches that the counter gives to this member."""
    net.load_state_dict(params)
    if recipe.optimiser == "adam":
        optimiser = torch.optim.Adam(
            net.parameters(), recipe.lr, recipe.betas, recipe.eps, weight_decay=recipe.weight_decay
        )
    else:
        optimiser = torch.optim.SGD(
            net.parameters(),
            recipe.lr,
            recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov,
        )
    scheduler = scheduler and scheduler(optimiser)
    for epoch in range(recipe.epochs):
        order = permutation(seed, torch.tensor([member_id]), "order", epoch, len(x))[0]
        total = 0.0
        for rows in order.split(recipe.batch_size):
            if recipe.drop_last and len(rows) < recipe.batch_size:
                continue
            optimiser.zero_grad()
            loss = REFERENCE_LOSS[recipe.loss](net(x[rows]), y[rows])
            loss.backward()
            optimiser.step()
            if scheduler:
                scheduler.step()
            total += loss.item() * len(rows)
    used = recipe.steps_per_epoch(len(x)) * recipe.batch_size if recipe.drop_last else len(x)
    return net.state_dict(), total / used


RECIPES = {
    "sgd": {},
    "decay": {"weight_decay": 0.1},
    "momentum": {"momentum": 0.9, "weight_decay": 0.01},
    "nesterov": {"momentum": 0.8, "nesterov": True},
    "adam": {"optimiser": "adam", "lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.05},
    "drop_last": {"drop_last": True},
}


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("kind", RECIPES)
def test_members_train_as_torch_optim_would_train_them(kind, fast):
    x, y = problem(dtype=torch.float64)
    net = perceptron(6, 5, 4, dtype=torch.float64)
    recipe = Recipe(**{"lr": 0.1, "batch_size": 40, "epochs": 3} | RECIPES[kind])
    start = initial(net, range(3, 6), 7)
    result = train(net, x, y, recipe, members=range(3, 6), seed=7, fast=fast)
    for i in range(3):
        params, loss = trained_by_torch(net, member(start, i), x, y, recipe, 3 + i, 7)
        for name, tensor in params.items():
            torch.testing.assert_close(result.params[name][i], tensor, rtol=1e-10, atol=1e-12)
        assert abs(result.loss[i] - loss) < 1e-10


@pytest.mark.parametrize("loss", REFERENCE_LOSS)
@pytest.mark.parametrize("net", ["relu", "tanh deep", "linear", "no bias"])
def test_both_paths_agree_with_torch_on_every_loss_and_shape(net, loss):
    net = {
        "relu": perceptron(6, 5, 4, dtype=torch.float64),
        "tanh deep": perceptron(6, 5, 3, 7, 4, activation=nn.Tanh, dtype=torch.float64),
        "linear": nn.Sequential(nn.Flatten(), nn.Linear(6, 4, dtype=torch.float64)),
        "no bias": perceptron(6, 5, 4, dtype=torch.float64, bias=False),
    }[net]
    x, y = problem(loss=loss, dtype=torch.float64)
    x = x.view(-1, 2, 3) if isinstance(net[0], nn.Flatten) else x
    recipe = Recipe(lr=0.2, batch_size=32, epochs=2, loss=loss)
    assert Dense.recognise(net, loss) is not None
    fast, slow = (train(net, x, y, recipe, members=4, seed=1, fast=fast) for fast in (True, False))
    reference, value = trained_by_torch(net, member(initial(net, 4, 1), 2), x, y, recipe, 2, 1)
    for name, tensor in reference.items():
        torch.testing.assert_close(fast.params[name], slow.params[name], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(fast.params[name][2], tensor, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(fast.loss, slow.loss, rtol=1e-10, atol=0)
    assert abs(fast.loss[2] - value) < 1e-10


def test_schedules_are_torchs():
    from torch.optim import lr_scheduler

    x, y = problem(dtype=torch.float64)
    net, steps = perceptron(6, 4, dtype=torch.float64), 5  # 150 examples in batches of 30
    cases = [
        (MultiStep((1, 2), 0.3), 0, lambda o: lr_scheduler.MultiStepLR(o, [steps, 2 * steps], 0.3)),
        (Cosine(), 0, lambda o: lr_scheduler.CosineAnnealingLR(o, 3 * steps)),
        (Cosine(0.1), 0, lambda o: lr_scheduler.CosineAnnealingLR(o, 3 * steps, eta_min=0.02)),
        (Constant(), 1, lambda o: lr_scheduler.LinearLR(o, 1 / steps, 1.0, steps - 1)),
        (
            Cosine(),
            1,
            lambda o: lr_scheduler.SequentialLR(
                o,
                [
                    lr_scheduler.LinearLR(o, 1 / steps, 1.0, steps - 1),
                    lr_scheduler.CosineAnnealingLR(o, 2 * steps),
                ],
                [steps],
            ),
        ),
    ]
    for schedule, warmup, scheduler in cases:
        recipe = Recipe(lr=0.2, batch_size=30, epochs=3, schedule=schedule, warmup=warmup)
        result = train(net, x, y, recipe, members=1, seed=0)
        reference, _ = trained_by_torch(net, member(initial(net, 1, 0), 0), x, y, recipe, 0, 0, scheduler)
        for name, tensor in reference.items():
            torch.testing.assert_close(result.params[name][0], tensor, rtol=1e-9, atol=1e-12)


def assert_same_bits(one, other):
    for name in one.params:
        assert torch.equal(one.params[name], other.params[name]), name
    assert torch.equal(one.loss, other.loss)
    assert torch.equal(one.diverged_at, other.diverged_at)


SHAPES = [
    ((64, 16, 10), "cross_entropy", 64, torch.float32),
    ((2, 2, 1), "binary_cross_entropy", 10, torch.float32),
    ((8, 50, 1), "mse", 32, torch.float32),
    ((7, 33, 9, 3), "cross_entropy", 50, torch.float32),
    ((33, 50, 10), "binary_cross_entropy", 50, torch.float32),
    ((50, 5), "cross_entropy", 10, torch.float32),
    ((5, 11, 3), "mse", 7, torch.float64),
]


@pytest.mark.parametrize(("widths", "loss", "batch", "dtype"), SHAPES)
def test_bits_of_a_member_do_not_depend_on_its_neighbours(widths, loss, batch, dtype):
    x, y = problem(150, widths[0], widths[-1], loss, dtype)
    net = perceptron(*widths, dtype=dtype)
    recipe = Recipe(lr=0.1, batch_size=batch, epochs=2, loss=loss, momentum=0.5)

    def run(members):
        return train(net, x, y, recipe, members=members, seed=3)

    everyone = run(256)
    for members in (
        torch.tensor([21]),
        torch.tensor([200, 17]),
        torch.arange(101, 142),
        torch.arange(3, 256, 5),
    ):
        assert_same_bits(run(members), everyone.where(members))


@pytest.mark.parametrize(("widths", "loss", "batch", "dtype"), SHAPES[:3])
def test_bits_do_not_depend_on_chunks_and_threads(widths, loss, batch, dtype, monkeypatch):
    x, y = problem(150, widths[0], widths[-1], loss, dtype)
    net = perceptron(*widths, dtype=dtype)
    recipe = Recipe(lr=0.1, batch_size=batch, epochs=2, loss=loss)
    whole, before = train(net, x, y, recipe, members=100, seed=3), torch.get_num_threads()
    try:
        for cache, threads in ((1, 1), (1, 3), (1 << 30, 2)):
            monkeypatch.setattr(training, "CACHE", cache)
            torch.set_num_threads(threads)
            assert_same_bits(train(net, x, y, recipe, members=100, seed=3), whole)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(144, 3)
    )


def test_generic_members_agree_across_populations_within_tolerance_after_one_step():
    x, y = problem(20, 64, 3)
    x, net = x.view(-1, 1, 8, 8), convolutional()
    recipe = Recipe(lr=0.1, batch_size=20, epochs=1)
    everyone = train(net, x, y, recipe, members=12, seed=3)
    few = train(net, x, y, recipe, members=torch.tensor([9, 2]), seed=3)
    for name, tensor in few.params.items():
        torch.testing.assert_close(tensor, everyone.params[name][[9, 2]], rtol=1e-5, atol=1e-6)


def test_dropout_in_a_population_is_dropout():
    """With one weight a unit and gradient 1, a step shows the mask: kept units move by lr / (1 - p)."""
    net = nn.Sequential(nn.Identity(), nn.Dropout(0.25), nn.Linear(1000, 1, bias=False))
    x, y = torch.ones(1, 1000), torch.zeros(1, 1)
    start = {"2.weight": torch.zeros(50, 1, 1000)}
    recipe = Recipe(lr=1.0, batch_size=1, epochs=1, loss="binary_cross_entropy")
    result = train(net, x, y, recipe, members=50, seed=0, start=start)
    moved = -2 * result.params["2.weight"].flatten(1)  # the gradient of the logit is one half
    torch.testing.assert_close(moved.unique(), torch.tensor([0, 4 / 3]))
    assert abs((moved > 0).double().mean() - 0.75) < 4 * (0.75 * 0.25 / moved.numel()) ** 0.5
    assert abs(torch.corrcoef(moved)[0, 1]) < 0.15  # members have masks of their own
    twice = train(net, x, y, replace(recipe, lr=1e-3, epochs=2), members=50, seed=0, start=start).params[
        "2.weight"
    ]
    assert abs((twice == 0).double().mean() - 1 / 16) < 0.01  # and every step its own
    again = train(net, x, y, recipe, members=torch.tensor([7]), seed=0, start=select(start, slice(7, 8)))
    assert torch.equal(again.params["2.weight"][0] == 0, result.params["2.weight"][7] == 0)


def test_what_a_population_cannot_train_is_refused_by_name():
    x, y = problem(20, 6, 4)
    recipe = Recipe(lr=0.1, batch_size=10, epochs=1)
    norm = nn.Sequential(nn.Linear(6, 5), nn.InstanceNorm1d(5, track_running_stats=True), nn.Linear(5, 4))
    with pytest.raises(UnsupportedTraining, match=r"'1' is a InstanceNorm1d .*GroupNorm"):
        train(norm, x, y, recipe, members=2, seed=0)
    twice = nn.BatchNorm1d(6, affine=False)
    with pytest.raises(UnsupportedTraining, match=r"share .* one set of running statistics"):
        train(nn.Sequential(twice, nn.Linear(6, 6), twice, nn.Linear(6, 4)), x, y, recipe, members=2, seed=0)
    tied = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 4))
    tied[2].weight = tied[0].weight
    with pytest.raises(UnsupportedTraining, match="share one parameter"):
        train(tied, x, y, recipe, members=2, seed=0)
    with pytest.raises(UnsupportedTraining, match=r"'0' \(Bilinear\)"):
        initial(nn.Sequential(nn.Bilinear(2, 2, 2)), 2, 0)
    net = perceptron(6, 4)
    with pytest.raises(ValueError, match=r"\[0, 4\)"):
        train(net, x, y + 1, recipe, members=2, seed=0)
    with pytest.raises(ValueError, match="one target per output"):
        train(net, x, x, Recipe(lr=1.0, batch_size=1, epochs=1, loss="mse"), members=2, seed=0)
    with pytest.raises(ValueError, match="distinct"):
        train(net, x, y, recipe, members=torch.tensor([1, 1]), seed=0)


class Residual(nn.Module):
    """A block of no Sequential, whose norm comes by another name than its place."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(6, momentum=0.4), nn.Linear(6, 6)

    def forward(self, x):
        return x + torch.tanh(self.linear(self.norm(x)))


def normed(kind, **factory):
    net = {
        "dense": lambda: [nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4)],
        "momenta": lambda: [
            nn.BatchNorm1d(6, affine=False, momentum=0.7),
            nn.Sequential(nn.Linear(6, 5), nn.Sequential(nn.BatchNorm1d(5, momentum=None), nn.Tanh())),
            nn.Linear(5, 4),
        ],
        "module": lambda: [Residual(), nn.Linear(6, 4), nn.BatchNorm1d(4, eps=0.1, affine=False)],
        "images": lambda: [
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, 3, 3, bias=False),
            nn.BatchNorm2d(3, momentum=0.3),
            nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4, momentum=None)),
            nn.Flatten(),
            nn.Linear(16, 4),
            nn.BatchNorm1d(4, affine=False),
        ],
        "volumes": lambda: [
            nn.Unflatten(1, (1, 4, 4, 4)),
            nn.Conv3d(1, 2, 3),
            nn.BatchNorm3d(2),
            nn.Flatten(),
            nn.Linear(16, 4),
        ],
    }[kind]()
    return nn.Sequential(*net).to(**factory)


@pytest.mark.parametrize("kind", ["dense", "momenta", "module", "images", "volumes"])
def test_batch_norm_trains_and_keeps_its_statistics_as_torch_does(kind, monkeypatch):
    """Three epochs of four batches, the last one smaller; members in chunks of one."""
    monkeypatch.setattr(training, "CACHE", 1)
    net = normed(kind, dtype=torch.float64)
    x, y = problem(150, 64 if kind in ("images", "volumes") else 6, dtype=torch.float64)
    recipe = Recipe(lr=0.1, batch_size=40, epochs=3, momentum=0.5, weight_decay=0.01)
    start = initial(net, range(3, 6), 7)
    result = train(net, x, y, recipe, members=range(3, 6), seed=7)
    outputs = predict(net, result.params, x)
    assert list(result.params) == list(net.state_dict())
    for i in range(3):
        params, loss = trained_by_torch(net.train(), member(start, i), x, y, recipe, 3 + i, 7)
        for name, tensor in params.items():
            torch.testing.assert_close(result.params[name][i], tensor, rtol=1e-9, atol=1e-10)
        assert abs(result.loss[i] - loss) < 1e-9
        torch.testing.assert_close(outputs[i], net.eval()(x), rtol=1e-9, atol=1e-10)


def test_running_statistics_go_on_from_those_of_the_start():
    """Each member from counts of its own; where the start holds none, from the network's."""
    x, y = problem(dtype=torch.float64)
    net = normed("momenta", dtype=torch.float64)
    net[0].running_mean += 2
    recipe, start = Recipe(lr=0.1, batch_size=40, epochs=1), initial(net, 3, 7)
    weights_only = train(
        net, x, y, recipe, members=3, seed=7, start={n: start[n] for n, _ in net.named_parameters()}
    )
    assert_same_bits(weights_only, train(net, x, y, recipe, members=3, seed=7))
    start["1.1.0.num_batches_tracked"] += torch.tensor([0, 3, 40])
    start["1.1.0.running_var"] *= torch.tensor([1, 2, 3])[:, None]
    result = train(net, x, y, recipe, members=3, seed=7, start=start)
    for i in range(3):
        params, _ = trained_by_torch(net, member(start, i), x, y, recipe, i, 7)
        for name, tensor in params.items():
            torch.testing.assert_close(result.params[name][i], tensor, rtol=1e-9, atol=1e-10)
    assert result.params["1.1.0.num_batches_tracked"].tolist() == [4, 7, 44]


def test_a_walk_shows_the_running_statistics_of_every_step():
    x, y = problem()
    net, recipe = normed("momenta"), Recipe(lr=0.1, batch_size=40, epochs=2)
    moments = [moment.params for moment in walk(net, x, y, recipe, members=3, seed=7)]
    assert [m["0.num_batches_tracked"].tolist() for m in moments] == [[k] * 3 for k in range(1, 9)]
    assert not torch.equal(moments[0]["1.1.0.running_mean"], moments[1]["1.1.0.running_mean"])
    whole = train(net, x, y, recipe, members=3, seed=7)
    for name, tensor in whole.params.items():
        torch.testing.assert_close(moments[-1][name], tensor, rtol=1e-5, atol=1e-6)


def test_diverged_members_keep_the_running_statistics_of_their_last_finite_weights():
    """In the first step, later in the first epoch, and in the second: as torch does it, until it breaks."""
    x, y = problem(60, 6, 4, "mse")
    net, recipe = normed("dense"), Recipe(lr=0.5, batch_size=20, epochs=4, loss="mse")
    start, wild = initial(net, 20, 0), {3: 1e30, 8: 1e6, 11: 100.0}
    calm = train(net, x, y, recipe, members=20, seed=0, start=start)
    for i, factor in wild.items():
        start["3.weight"][i] *= factor
    result = train(net, x, y, recipe, members=20, seed=0, start=start)
    assert torch.nonzero(~result.finite).flatten().tolist() == list(wild)
    assert_same_bits(result.where(result.finite), calm.where(result.finite))
    steps = result.diverged_at[list(wild)]
    assert steps[0] == 0 < steps[1] < 3 <= steps[2]
    assert torch.equal(result.params["1.num_batches_tracked"][list(wild)], steps)
    for i, stop in zip(wild, steps.tolist(), strict=True):
        net.load_state_dict(member(start, i))
        optimiser = torch.optim.SGD(net.parameters(), recipe.lr)
        for step in range(stop):
            order = permutation(0, torch.tensor([i]), "order", step // 3, 60)[0]
            rows = order[step % 3 * 20 : step % 3 * 20 + 20]
            optimiser.zero_grad()
            F.mse_loss(net(x[rows]), y[rows]).backward()
            optimiser.step()
        for name, tensor in net.state_dict().items():
            torch.testing.assert_close(result.params[name][i], tensor, rtol=1e-3, atol=1e-6)


def test_a_running_variance_beyond_the_numbers_is_divergence():
    """Weights and loss of such a member stay finite in training, and its predictions mean nothing."""
    x, y = problem(60, 6, 4)
    net, recipe = normed("dense"), Recipe(lr=0.1, batch_size=20, epochs=2)
    start = initial(net, 4, 0)
    start["0.weight"][2] *= 1e25
    result = train(net, x, y, recipe, members=4, seed=0, start=start)
    assert result.diverged_at.tolist() == [-1, -1, 0, -1]
    assert torch.equal(result.params["1.running_var"][2], torch.ones(5))


def test_a_batch_of_one_example_is_refused_before_the_first_step():
    x, y = problem(41, 6, 4)
    recipe = Recipe(lr=0.1, batch_size=20, epochs=1)
    with pytest.raises(
        UnsupportedTraining, match=r"'1' is a BatchNorm1d, and a batch of one .* drop_last=True"
    ):
        train(normed("dense"), x, y, recipe, members=2, seed=0)
    train(normed("dense"), x, y, replace(recipe, drop_last=True), members=2, seed=0)
    x, y = problem(41, 64, 4)
    images = normed("images")[:-1]  # its norms see several places of one image
    result = train(images, x, y, recipe, members=2, seed=0)
    assert result.params["2.num_batches_tracked"].tolist() == [3, 3]


def test_predictions_without_running_statistics_are_refused():
    for kind in ("dense", "module"):
        net = normed(kind)
        params = {name: tensor for name, tensor in initial(net, 2, 0).items() if "running" not in name}
        with pytest.raises(ValueError, match=r"hold no (1|0\.norm)\.running_mean"):
            predict(net, params, torch.zeros(3, 6))


def test_an_archive_holds_running_statistics(tmp_path):
    x, y = problem()
    net, path = normed("momenta"), tmp_path / "nets.safetensors"
    trained = train(net, x, y, Recipe(lr=0.1, batch_size=40, epochs=1), members=4, seed=3)
    save(path, trained)
    assert_same_bits(load(path, net), trained)
    assert_same_bits(load(path, net, members=[3, 1]), trained.where(torch.tensor([3, 1])))
    assert trained.params["0.num_batches_tracked"].tolist() == [4] * 4


def test_divergence_is_recorded_and_frozen_and_touches_nobody():
    """Members with huge initial weights blow up; the step is torch's own, the rest keep their bits."""
    x, y = problem(60, 6, 4, "mse")
    net = perceptron(6, 5, 4)
    recipe = Recipe(lr=0.5, batch_size=10, epochs=4, loss="mse")
    start = initial(net, 20, 0)
    calm = train(net, x, y, recipe, members=20, seed=0, start=start)
    assert bool(calm.finite.all())
    wild = {name: tensor.clone() for name, tensor in start.items()}
    for i, factor in ((3, 30.0), (11, 1e9)):
        for tensor in wild.values():
            tensor[i] *= factor
    result = train(net, x, y, recipe, members=20, seed=0, start=wild)
    assert torch.nonzero(~result.finite).flatten().tolist() == [3, 11]
    assert "2 diverged" in repr(result)
    others = result.finite
    assert_same_bits(result.where(others), calm.where(others))
    for i in (3, 11):
        assert result.loss[i].isnan()
        at = int(result.diverged_at[i])
        assert all(tensor[i].isfinite().all() for tensor in result.params.values())
        net.load_state_dict(member(wild, i))
        optimiser, step = torch.optim.SGD(net.parameters(), recipe.lr), 0
        while all(p.isfinite().all() for p in net.parameters()):  # the ordinary way, until it breaks
            last = {name: tensor.clone() for name, tensor in net.state_dict().items()}
            order = permutation(0, torch.tensor([i]), "order", step // 6, 60)[0]
            rows = order[step % 6 * 10 : step % 6 * 10 + 10]
            optimiser.zero_grad()
            loss = F.mse_loss(net(x[rows]), y[rows])
            loss.backward()
            if not loss.isfinite():
                break
            optimiser.step()
            step += 1
        else:
            step -= 1
        assert at == step
        for name, tensor in last.items():
            torch.testing.assert_close(result.params[name][i], tensor, rtol=1e-3, atol=0)


class Killed(Exception):
    pass


@pytest.mark.parametrize("kind", ["fast", "generic", "batch norm"])
def test_bits_of_a_run_that_was_stopped_and_resumed(tmp_path, monkeypatch, kind):
    x, y = problem()
    net, fast = normed("momenta") if kind == "batch norm" else perceptron(6, 5, 4), kind == "fast"
    recipe = Recipe(lr=0.1, batch_size=32, epochs=5, optimiser="adam", schedule=Cosine())
    arguments = {"members": 40, "seed": 3, "fast": fast}
    never_stopped = train(net, x, y, recipe, **arguments)
    path, epochs = tmp_path / "run.safetensors", []
    original = training._Run.epoch

    def breaks(self, state, members, epoch):
        epochs.append(epoch)
        if epoch == 3 and len(set(epochs)) == 4:
            raise Killed
        original(self, state, members, epoch)

    monkeypatch.setattr(training._Run, "epoch", breaks)
    with pytest.raises(Killed):
        train(net, x, y, recipe, checkpoint=path, every=0, **arguments)
    monkeypatch.setattr(training._Run, "epoch", lambda *a: (epochs.append(a[-1]), original(*a)))
    epochs.clear()
    with pytest.raises(ValueError, match="checkpoint of another run"):
        train(net, x, y, recipe, checkpoint=path, every=0, **arguments | {"seed": 4})
    assert_same_bits(train(net, x, y, recipe, checkpoint=path, every=0, **arguments), never_stopped)
    assert set(epochs) == {3, 4}
    assert list(tmp_path.iterdir()) == []


RUN_AND_WAIT = """
import sys, torch
from lib.population import archive, train
from tests.test_population import perceptron, problem, killed_recipe
store = archive.store
def store_and_say(*a):
    store(*a)
    print("stored", flush=True)
    if a[2] == 3:
        sys.stdin.read()
archive.store = store_and_say
train(perceptron(6, 5, 4), *problem(), killed_recipe(), members=40, seed=3, checkpoint=sys.argv[1], every=0)
"""


def killed_recipe():
    return Recipe(lr=0.1, batch_size=32, epochs=6, momentum=0.9)


def test_bits_of_a_run_that_was_killed_and_resumed(tmp_path):
    path = tmp_path / "run.safetensors"
    process = subprocess.Popen(
        [sys.executable, "-c", RUN_AND_WAIT, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    with process:
        for _ in range(3):
            assert process.stdout.readline() == b"stored\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    net, (x, y) = perceptron(6, 5, 4), problem()
    resumed = train(net, x, y, killed_recipe(), members=40, seed=3, checkpoint=path)
    assert_same_bits(resumed, train(net, x, y, killed_recipe(), members=40, seed=3))


def test_an_archive_gives_back_what_was_saved_and_refuses_what_is_not_its_own(tmp_path):
    x, y = problem()
    net, path = perceptron(6, 5, 4), tmp_path / "nets.safetensors"
    recipe = Recipe(lr=0.1, batch_size=32, epochs=1, schedule=MultiStep((1, 2), 0.3), warmup=0.5)
    trained = train(net, x, y, recipe, members=range(5, 9), seed=3)
    save(path, trained)
    loaded = load(path, net)
    assert_same_bits(loaded, trained)
    assert (loaded.seed, loaded.recipe, loaded.members.tolist()) == (3, recipe, [5, 6, 7, 8])
    with pytest.raises(ValueError, match=r"0\.weight is \(5, 6\) there and \(7, 6\) here"):
        load(path, perceptron(6, 7, 4))
    with pytest.raises(ValueError, match="absent"):
        load(path, perceptron(6, 5, 4, 4))
    whole = path.read_bytes()
    for length in (0, 4, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="damaged or cut short"):
            load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "absent")


def test_initial_parameters_have_torchs_distributions():
    net = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(24, 50))
    params = initial(net, 200, 0)
    assert list(params) == list(net.state_dict())
    for name, fan_in in (("0.weight", 18), ("0.bias", 18), ("3.weight", 24), ("3.bias", 24)):
        bound, draw = fan_in**-0.5, params[name].flatten()
        assert draw.abs().max() <= bound
        assert net.state_dict()[name].abs().max() <= bound  # torch's own bound, not only ours
        assert draw.abs().max() > 0.99 * bound
        assert abs(draw.mean()) < 4 * bound / (3 * len(draw)) ** 0.5
        assert draw.var() == pytest.approx(bound**2 / 3, rel=0.1)
    for name in ("1.weight", "1.bias", "1.running_var", "1.num_batches_tracked"):
        assert torch.equal(params[name], net.state_dict()[name].expand(200, *net.state_dict()[name].shape))
    few = initial(net, torch.tensor([150, 3]), 0)
    assert all(torch.equal(few[name], params[name][[150, 3]]) for name in params)
    assert not torch.equal(params["0.weight"], initial(net, 200, 1)["0.weight"])


def test_predict_and_evaluate_are_each_members_own():
    x, y = problem(30, 64, 3)
    x, net = x.view(-1, 1, 8, 8), convolutional()
    net.append(nn.BatchNorm1d(3))
    params = initial(net, 5, 0)
    params["6.running_mean"] += torch.arange(5.0)[:, None]
    outputs, scores = predict(net, params, x), evaluate(net, params, x, y)
    assert net.training
    net.eval()
    for i in range(5):
        alone = functional_call(net, member(params, i), (x,))
        torch.testing.assert_close(outputs[i], alone)
        assert scores["loss"][i] == pytest.approx(F.cross_entropy(alone, y).item(), rel=1e-5)
        assert scores["accuracy"][i] == pytest.approx((alone.argmax(1) == y).double().mean().item())
    binary = evaluate(
        perceptron(2, 1), initial(perceptron(2, 1), 3, 0), x[:, 0, 0, :2], y > 0, "binary_cross_entropy"
    )
    assert binary["accuracy"].shape == (3,)


@pytest.mark.parametrize("members", [[0, 1, 2, 3], [17, 200], [5], [3, 19, 35, 4], list(range(100, 141))])
def test_slots_keep_every_members_place_modulo_the_lanes(members):
    members = torch.tensor(members)
    slots, place = arrange(members, 16)
    assert len(slots) % 16 == 0
    assert torch.equal(slots[place], members)
    assert torch.equal(slots % 16, torch.arange(len(slots)) % 16)
    assert len(slots) // 16 == torch.bincount(members % 16).max()


def test_training_learns():
    """Two separable blobs: nearly every small network gets nearly everything right."""
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(200) % 2
    x = torch.randn(200, 2, generator=generator) + (4 * y[:, None] - 2)
    net = perceptron(2, 4, 1)
    recipe = Recipe(lr=0.5, batch_size=20, epochs=10, loss="binary_cross_entropy")
    result = train(net, x, y, recipe, members=100, seed=0)
    assert evaluate(net, result.params, x, y, "binary_cross_entropy")["accuracy"].median() > 0.98


def test_the_progress_bar_counts_and_is_silent_unless_asked(capfd):
    x, y = problem()
    recipe = Recipe(lr=0.1, batch_size=50, epochs=2)
    train(perceptron(6, 4), x, y, recipe, members=4, seed=0)
    assert capfd.readouterr().err == ""
    train(perceptron(6, 4), x, y, recipe, members=4, seed=0, progress=True)
    assert "100%" in capfd.readouterr().err


@pytest.mark.skipif(not ACCELERATOR, reason="no CUDA device here")
def test_an_accelerator_trains_the_same_networks():
    x, y = problem()
    net = perceptron(6, 5, 4)
    recipe = Recipe(lr=0.1, batch_size=150, epochs=1)
    here, there, again = (
        train(net, x, y, recipe, members=40, seed=3, device=device) for device in ("cpu", "cuda", "cuda")
    )
    assert_same_bits(there, again)
    for name, tensor in here.params.items():
        torch.testing.assert_close(tensor, there.params[name].cpu(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("fast", ["dense", "vmapped"])
def test_a_walk_is_the_same_training_step_by_step(fast):
    x, y = problem()
    net = perceptron(6, 8, 4) if fast == "dense" else perceptron(6, 8, 4, activation=nn.SiLU)
    recipe = Recipe(lr=0.1, batch_size=32, epochs=2, momentum=0.9, weight_decay=1e-3)
    whole = train(net, x, y, recipe, members=5, seed=3)
    moments = list(walk(net, x, y, recipe, members=5, seed=3))
    assert [moment.step for moment in moments] == list(range(10))
    last = moments[-1].params
    for name, tensor in whole.params.items():
        torch.testing.assert_close(last[name], tensor, rtol=1e-5, atol=1e-6)


def test_a_walk_takes_another_update_rule():
    """Langevin-like rules see gradients and members: here the plain gradient step, written by hand."""
    x, y = problem()
    net, recipe = perceptron(6, 8, 4), Recipe(lr=0.1, batch_size=150, epochs=3)
    seen = []

    def update(weights, gradients, ids, step, rate):
        seen.append((step, rate, ids.tolist()))
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.sub_(rate * gradient)

    *_, last = walk(net, x, y, recipe, members=torch.tensor([4, 9]), seed=3, update=update)
    whole = train(net, x, y, recipe, members=torch.tensor([4, 9]), seed=3)
    for name, tensor in whole.params.items():
        torch.testing.assert_close(last.params[name], tensor, rtol=1e-5, atol=1e-6)
    assert [step for step, *_ in seen] == [0, 1, 2]
    assert all({4, 9} <= set(ids) for *_, ids in seen)


@pytest.mark.parametrize("batch_size", [150, 32])
def test_training_commutes_with_permuting_units(batch_size):
    """Exchangeable neurons: the permuted start ends at the permuted end, the order of the data being the same."""
    x, y = problem(dtype=torch.float64)
    net, members = perceptron(6, 8, 4, dtype=torch.float64), torch.arange(3)
    symmetries = find_symmetries(net, x[:2])
    perms = random_permutations(symmetries, torch.Generator().manual_seed(0), members=3)
    recipe = Recipe(lr=0.1, batch_size=batch_size, epochs=3, momentum=0.5, weight_decay=1e-3)
    start = initial(net, members, 3)
    moved = permute(start, symmetries, perms)
    ends = [train(net, x, y, recipe, members=members, seed=3, start=p).params for p in (start, moved)]
    expected = permute(ends[0], symmetries, perms)
    for name, tensor in ends[1].items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-9, atol=1e-11)
    assert not torch.equal(ends[0]["0.weight"], ends[1]["0.weight"])
