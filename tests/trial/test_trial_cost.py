"""What a step costs: networks that the claim names, turns that a pretended clock counts, and verdicts on made-up times."""

import numpy as np
import pytest
import torch
from torch import nn

from lib import claims, intervals
from lib.claims import CONFIRMED, NOT_CONFIRMED, UNRESOLVED
from lib.trial import cost
from lib.trial.cost import NETWORKS, SGD, UNIT, Times, measure, rows, step_times
from lib.unit_norm.optimisers import UnitNormSGD

CPU = torch.device("cpu")


def tiny():
    """Networks of four units, all with the same weights."""
    net = nn.Sequential(
        nn.Linear(6, 4, bias=False), nn.BatchNorm1d(4, affine=False), nn.ReLU(), nn.Linear(4, 10)
    )
    with torch.no_grad():
        for i, parameter in enumerate(net.parameters()):
            parameter.copy_(torch.arange(parameter.numel()).add(i).sin().view_as(parameter))
    return net, torch.arange(72.0).cos().view(12, 6)


@pytest.mark.parametrize(
    ("name", "shapes", "example"),
    [
        ("dense", [(512, 784), (512, 512), (512, 512), (10, 512)], (100, 784)),
        (
            "convolutional",
            [(64, 1, 3, 3), (64, 64, 3, 3), (64, 64, 3, 3), (64, 64, 3, 3), (10, 64 * 49)],
            (100, 1, 28, 28),
        ),
    ],
)
def test_networks_are_the_claims(name, shapes, example):
    net, x = NETWORKS[name]()
    assert [tuple(p.shape) for p in net.parameters() if p.ndim > 1] == shapes
    assert sum(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in net.modules()) == len(shapes) - 1
    assert tuple(x.shape) == example
    assert net(x[:2]).shape == (2, 10)


def test_steps_are_timed_in_turns_after_a_round_that_warms_up(monkeypatch):
    """Steps pretended: the k-th of all takes k seconds, a tenth of it in the optimiser; of every round the median counts."""
    calls = []

    def pretended(net, x, y, optimiser, device):
        def step():
            calls.append(type(optimiser))
            return float(len(calls)), len(calls) / 10

        return step

    monkeypatch.setitem(cost.NETWORKS, "tiny", tiny)
    monkeypatch.setattr(cost, "_step", pretended)
    found = step_times("tiny", repeats=2, steps=3, device=CPU)
    assert calls == [torch.optim.SGD, UnitNormSGD] * 9  # three rounds of three steps
    assert found.network == "tiny"
    assert found.whole[SGD].tolist() == [9, 15]  # steps 7, 9, 11 and 13, 15, 17
    assert found.whole[UNIT].tolist() == [10, 16]
    assert found.alone[SGD].tolist() == pytest.approx([0.9, 1.5])
    assert found.alone[UNIT].tolist() == pytest.approx([1.0, 1.6])


def test_a_step_is_whole(monkeypatch):
    """What is timed trains: unit norm leaves unit filters, both methods move every weight; the optimiser is its last part."""
    made, right = [], cost._step

    def spy(net, x, y, optimiser, device):
        made.append((net, optimiser))
        return right(net, x, y, optimiser, device)

    monkeypatch.setitem(cost.NETWORKS, "tiny", tiny)
    monkeypatch.setattr(cost, "_step", spy)
    found = step_times("tiny", repeats=1, steps=1, device=CPU)
    start, x = tiny()
    y = torch.arange(12) % 10
    unit = [p.clone() for p in start.parameters()]
    unit[0] = unit[0] / unit[0].norm(dim=1, keepdim=True)
    for net, optimiser in made:
        weights = list(net.parameters())
        assert {id(p) for group in optimiser.param_groups for p in group["params"]} == {
            id(p) for p in weights
        }
        assert all(group["lr"] == 1e-3 for group in optimiser.param_groups)
        lengths = weights[0].detach().norm(dim=1)
        if isinstance(optimiser, UnitNormSGD):
            torch.testing.assert_close(lengths, torch.ones(4))
            assert not any(torch.equal(a, b) for a, b in zip(weights, unit, strict=True))
        else:
            plain, _ = tiny()
            one = torch.optim.SGD(plain.parameters(), lr=1e-3)
            for _ in range(2):  # the warming step and the timed one
                one.zero_grad()
                nn.functional.cross_entropy(plain(x), y).backward()
                one.step()
            for a, b in zip(weights, plain.parameters(), strict=True):
                torch.testing.assert_close(a, b)
    for method in (SGD, UNIT):
        assert found.whole[method].shape == found.alone[method].shape == (1,)
        assert 0 < found.alone[method][0] <= found.whole[method][0]


def test_times_of_a_step_by_a_pretended_clock(monkeypatch):
    ticks = iter([10.0, 17.0, 19.0])
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(ticks))
    net, x = tiny()
    step = cost._step(net, x, torch.arange(12) % 10, torch.optim.SGD(net.parameters(), lr=1e-3), CPU)
    assert step() == (9.0, 2.0)


# -------------------------------------------------------------------------------------------------------------- verdicts


def times(network, ratio, spread=0.0, repeats=5):
    """Unit norm over SGD, repeat by repeat on a machine that is at times ten times as slow; three times alone."""
    base = 1e-3 * np.array([1.0, 10.0, 1.0, 2.0, 1.0, 4.0])[:repeats]
    own = ratio * (1 + spread * np.linspace(-1, 1, repeats))
    return Times(network, {SGD: base, UNIT: own * base}, {SGD: 0.1 * base, UNIT: 0.3 * base})


def test_ratios_are_of_the_same_repeat():
    np.testing.assert_allclose(times("dense", 1.2).ratio(), 1.2)
    np.testing.assert_allclose(times("dense", 1.2).ratio(alone=True), 3.0)
    (m,) = measure([times("dense", 1.2, spread=0.1)])
    assert (m.value, m.low, m.high) == pytest.approx(
        intervals.student(1.2 * (1 + 0.1 * np.linspace(-1, 1, 5)))
    )
    assert (m.name, m.cell, m.n, m.seeds) == ("step_ratio", "dense", 5, 5)


@pytest.mark.parametrize(
    ("ratios", "spread", "repeats", "wanted"),
    [
        ((1.2, 1.1), 0.0, 5, CONFIRMED),
        ((1.3, 1.3), 0.0, 5, NOT_CONFIRMED),
        ((1.2, 1.2), 0.2, 5, UNRESOLVED),
        ((1.2, 1.1), 0.0, 4, UNRESOLVED),
    ],
)
def test_verdicts(ratios, spread, repeats, wanted):
    found = measure([times(name, r, spread, repeats) for name, r in zip(NETWORKS, ratios, strict=True)])
    assert claims.judge("P4-C6", "full", found).verdict == wanted
    assert claims.judge("P4-C6", "quick", found[:1]).verdict == wanted


def test_the_full_profile_asks_for_both_networks():
    found = measure([times("dense", 1.1), times("convolutional", 1.4)])
    assert claims.judge("P4-C6", "full", found).verdict == NOT_CONFIRMED
    assert claims.judge("P4-C6", "full", found[:1]).verdict == UNRESOLVED
    assert claims.judge("P4-C6", "quick", found[:1]).verdict == CONFIRMED


def test_rows_for_the_page():
    assert rows([times("dense", 1.2), times("convolutional", 2.0)]) == [
        ("dense", "whole step", "1.00", "1.20", "1.20 (1.20 to 1.20)"),
        ("dense", "optimiser alone", "0.10", "0.30", "3.00 (3.00 to 3.00)"),
        ("convolutional", "whole step", "1.00", "2.00", "2.00 (2.00 to 2.00)"),
        ("convolutional", "optimiser alone", "0.10", "0.30", "3.00 (3.00 to 3.00)"),
    ]
