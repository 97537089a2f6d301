"""Picture networks: the ordinary training on shifted pictures; the same network in any company, whole or resumed."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from lib import pruning
from lib.convnets import initial_kaiming, resnet20, vgg16
from lib.data import Dataset, load
from lib.kept import Kept
from lib.params import Params, select
from lib.population import evaluate, train
from lib.three_models import pictures
from lib.three_models.pictures import Schedule, batches, shifted, train_picture_networks

SHORT = Schedule(epochs=3, rate=0.05, warmup=1, decay=1e-3, batch=16)
CPU = torch.device("cpu")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def coloured(count: int = 40, side: int = 8) -> Dataset:
    """Noise with one bright colour: classes that no shift and no mirror changes."""
    targets = torch.arange(count) % 3
    inputs = torch.randn(count, 3, side, side, generator=generator(1))
    inputs[torch.arange(count), targets] += 1
    return Dataset(inputs, targets, "coloured", "train", "made here")


def small(norm: str = "layer", width: int = 2) -> nn.Sequential:
    return resnet20(width, norm, classes=3)


def learned(
    net: nn.Module, members=range(2), schedule: Schedule = SHORT, seed: int = 5, side: int = 8, **options
):
    return train_picture_networks(net, coloured(side=side), schedule, members, seed, CPU, **options)


def same(a: Params, b: Params) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_networks_learn():
    digits = load("digits", "train")
    digits = replace(digits, inputs=digits.inputs[:700].view(-1, 1, 8, 8) - 0.3, targets=digits.targets[:700])
    net, schedule = resnet20(8, channels=1), Schedule(epochs=3, rate=0.05, batch=32, shifts=False)
    found, _ = train_picture_networks(net, digits, schedule, 1, 5, CPU)
    before = evaluate(net, initial_kaiming(net, 1, 5), digits.inputs, digits.targets)["loss"]
    after = evaluate(net, found, digits.inputs, digits.targets)["loss"]
    assert (after < 0.5 * before).all()
    assert (after < 0.75 * math.log(10)).all()  # better than to know nothing


STEPS = replace(SHORT, steps=(1, 2))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("norm", "schedule"), [("layer", SHORT), ("batch", STEPS)])
def test_without_shifts_it_is_the_ordinary_training(norm, schedule, masked):
    """In float64: batches, rates, momentum, decay, masks and running statistics are those of ``lib.population``.

    With four channels at least: a layer norm of two makes a chaos, in which roundings grow to 1e-3 in nine steps.
    """
    net, data = small(norm, 4).double(), coloured()
    schedule = replace(schedule, shifts=False)
    start = initial_kaiming(net, 2, seed=3)
    masks = pruning.prune(start, pruning.full(start, pruning.prunable(net)), 0.6) if masked else None
    found, _ = learned(net, schedule=schedule, start=start, masks=masks)
    other = train(
        net, data.inputs.double(), data.targets, schedule.recipe, members=2, seed=5, start=start, masks=masks
    ).params
    assert found.keys() == other.keys() == net.state_dict().keys()
    for name, tensor in other.items():
        assert found[name].dtype == tensor.dtype
        assert torch.allclose(found[name].double(), tensor.double(), rtol=1e-7, atol=1e-9), name


def test_rates_warm_up_and_fall():
    rates = [replace(SHORT, epochs=4).recipe.rate(step, 10) for step in range(40)]
    assert rates[:10] == pytest.approx([0.005 * (k + 1) for k in range(10)])
    assert rates[10] == 0.05
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert Schedule(2, warmup=0).recipe.rate(0, 10) == 0.1
    steps = Schedule(160, steps=(80, 120)).recipe
    assert [steps.rate(epoch * 10, 10) for epoch in (79, 80, 119, 120)] == pytest.approx(
        [0.1, 0.01, 0.01, 0.001]
    )
    assert (steps.momentum, steps.nesterov, steps.weight_decay, steps.batch_size) == (0.9, False, 1e-4, 128)


def test_pictures_are_cut_from_their_frame_and_mirrored():
    some = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5) + 1
    no = torch.zeros(2, dtype=torch.bool)
    centre = torch.full((2, 2), 4)
    assert torch.equal(shifted(some, centre, no), some)
    assert torch.equal(shifted(some, centre, ~no), some.flip(-1))
    moved = shifted(some, torch.tensor([[6, 4], [4, 1]]), no)
    assert torch.equal(moved[0, :, :2], some[0, :, 2:])
    assert (moved[0, :, 2:] == 0).all()
    assert torch.equal(moved[1, :, :, 3:], some[1, :, :, :2])
    assert (moved[1, :, :, :3] == 0).all()
    both = shifted(some, torch.tensor([[4, 1], [4, 4]]), torch.tensor([True, False]))
    assert torch.equal(both[0], shifted(some, torch.tensor([[4, 1], [4, 4]]), no)[0].flip(-1))


def spots(number: int = 2, seed: int = 7, epoch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of pictures with two spots that no cut loses, and where these appear: down, across, mirrored or not."""
    plain = torch.zeros(3000, 2, 9, 11)
    plain[:, 0, 4, 5] = plain[:, 1, 4, 6] = torch.arange(3000) + 1.0
    shown = list(batches(plain, replace(SHORT, batch=700), number, seed, epoch))
    assert [len(rows) for rows, _ in shown] == [700, 700, 700, 700, 200]
    rows, images = (torch.cat(part) for part in zip(*shown, strict=True))
    assert torch.equal(images.amax((1, 2, 3)), rows + 1.0)
    down, (left, right) = images[:, 0].amax(2).argmax(1), images.amax(2).argmax(2).T
    assert ((right - left).abs() == 1).all()
    return rows, torch.stack([down, left - 1, (right < left).long()])


def test_every_picture_is_shown_once_an_epoch_and_shifts_are_uniform():
    rows, places = spots()
    assert torch.equal(rows.sort().values, torch.arange(3000))
    assert not torch.equal(rows, torch.arange(3000))
    for place, kinds in zip(places, (9, 9, 2), strict=True):
        assert (place.bincount(minlength=kinds) / 3000 - 1 / kinds).abs().max() < 0.03
        assert (
            place[:700] == place[700:1400]
        ).float().mean() < 1.2 / kinds  # a picture's own, not the batch's
    assert (torch.corrcoef(places.double()) - torch.eye(3)).abs().max() < 0.08


def test_each_epoch_network_and_seed_has_its_own_shifts():
    rows, places = spots()
    again = spots()
    assert torch.equal(rows, again[0])
    assert torch.equal(places, again[1])
    for change in ({"number": 3}, {"seed": 8}, {"epoch": 2}):
        other_rows, other = spots(**change)
        assert not torch.equal(rows, other_rows)
        same_place = (places[:, rows.argsort()] == other[:, other_rows.argsort()]).double().mean(1)
        assert (same_place - torch.tensor([1 / 9, 1 / 9, 1 / 2])).abs().max() < 0.05
    plain = coloured().inputs
    ((rows, images),) = batches(plain, replace(SHORT, batch=40, shifts=False), 2, 7, 1)
    assert torch.equal(images, plain[rows])


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_a_network_is_the_same_in_any_company(norm):
    net = small(norm)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    together, _ = learned(net, range(3))
    alone, _ = learned(net, torch.tensor([2, 1]))
    assert same(alone, select(together, torch.tensor([2, 1])))
    assert same(net.state_dict(), before)  # which is nobody's
    for name, tensor in together.items():
        if tensor.ndim == 5:
            assert not torch.equal(tensor[0], tensor[1]), name
    other, _ = learned(net, range(3), seed=6)
    assert not torch.equal(other["0.weight"], together["0.weight"])


def test_checkpoints_are_of_the_same_training():
    net = small("batch")
    start = initial_kaiming(net, 2, seed=3)
    last, between = learned(net, start=start, checkpoints=(3, 0, 1))
    assert list(between) == [0, 1, 3]
    assert same(between[3], last)
    assert same(between[0], start)
    plain, nothing = learned(net, start=start)
    assert same(plain, last)
    assert nothing == {}
    assert (between[1]["1.num_batches_tracked"] == 3).all()  # 40 pictures in batches of 16
    assert not torch.equal(between[1]["0.weight"], last["0.weight"])
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in last.values())


def test_a_network_that_is_rewound_goes_on_in_the_schedule():
    """Without momentum's memory: the last epochs of the schedule, from the weights that are given."""
    net, schedule = small(), replace(SHORT, epochs=3, rate=1e-9, warmup=0)
    start = initial_kaiming(net, 2, seed=3)
    _, between = learned(net, start=start, checkpoints=(2,))
    again, marks = learned(net, start=between[2], first=2, checkpoints=(2, 3))
    assert same(marks[2], between[2])
    assert same(marks[3], again)
    still, _ = learned(net, start=start, schedule=schedule, first=3)
    assert same(still, start)
    # one epoch of a schedule of one epoch has other rates and other batches
    fresh, _ = learned(net, start=between[2], schedule=replace(SHORT, epochs=1))
    assert not torch.equal(fresh["0.weight"], again["0.weight"])


def test_dead_weights_stay_exactly_at_zero():
    net = vgg16(2, "batch", classes=3)
    start = initial_kaiming(net, 2, seed=3)
    masks = pruning.prune(start, pruning.full(start, pruning.prunable(net)), 0.8)
    last, between = learned(net, start=start, side=16, masks=masks, checkpoints=(0, 2))
    for params in (last, *between.values()):
        assert all((params[name][~mask] == 0).all() for name, mask in masks.items())
    assert same(between[0], pruning.apply(start, masks))
    assert (last["0.weight"][masks["0.weight"]] != start["0.weight"][masks["0.weight"]]).all()
    spared, _ = learned(net, start=start, side=16, masks=pruning.full(start, pruning.prunable(net)))
    assert same(spared, learned(net, start=start, side=16)[0])


def test_a_run_that_was_cut_gives_the_same_networks(tmp_path, monkeypatch):
    net = small("batch")
    whole = learned(net, range(3), checkpoints=(1,))
    begun = []
    train_one = pictures._trained

    def cut(*arguments):
        begun.append(arguments[4])
        if len(begun) == 3:
            raise KeyboardInterrupt
        return train_one(*arguments)

    monkeypatch.setattr(pictures, "_trained", cut)
    with pytest.raises(KeyboardInterrupt):
        learned(net, range(3), checkpoints=(1,), kept=Kept(tmp_path))
    again = learned(net, range(3), checkpoints=(1,), kept=Kept(tmp_path))
    assert begun == [0, 1, 2, 2]
    assert same(again[0], whole[0])
    assert same(again[1][1], whole[1][1])
    learned(net, range(1), checkpoints=(1,), kept=Kept(tmp_path), name="level-1")
    assert begun[-1] == 0  # a part of another name


def test_misuse_is_refused():
    net = small()
    with pytest.raises(ValueError, match=r"checkpoints \[4\] are not all between epochs 0 and 3"):
        learned(net, checkpoints=[4])
    with pytest.raises(ValueError, match=r"checkpoints \[1\] are not all between epochs 2 and 3"):
        learned(net, checkpoints=[1], first=2)
    with pytest.raises(ValueError, match="a mask is given for 'conv'"):
        learned(net, masks={"conv": torch.ones(2, 3, dtype=torch.bool)})
    with pytest.raises(ValueError, match="start has 3 networks, and 2 are trained"):
        learned(net, start=initial_kaiming(net, 3, 1))
    with pytest.raises(RuntimeError, match="network 1 diverged in epoch 1"):
        learned(net, range(1, 2), schedule=replace(SHORT, rate=1e30, warmup=0))
