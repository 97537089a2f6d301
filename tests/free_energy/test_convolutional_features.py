"""Convolutional features and their collapsed target, against torch's own convolutions and finite differences."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import conv1d

from lib.free_energy.convolution import KERNEL, CollapsedConvolutions, Convolutions
from lib.free_energy.regression import Regression
from lib.smc import Settings, sample


def by_torch(layers, position, inputs):
    """The same network, one layer after the other, for one position (D,)."""
    c, start, signal = layers.channels, 0, inputs[:, None]
    for layer in range(1 + layers.redundant):
        below = c if layer else 1
        weight = position[start : start + c * below * KERNEL].view(c, below, KERNEL)
        start += c * below * KERNEL
        bias = position[start : start + c]
        start += c
        found = conv1d(signal, weight, bias, padding=KERNEL // 2).clamp_min(0)
        signal = signal + found if layers.skip and layer else found
    assert start == len(position)
    return signal.mean(2).T  # (C, N)


def problem(layers, copies=2, signals=12, length=5, seed=3):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(1, signals, length, generator=generator, dtype=torch.float64) * 2 - 1
    targets = torch.randn(1, signals, 1, generator=generator, dtype=torch.float64)
    weights = torch.rand(1, signals, generator=generator, dtype=torch.float64)
    truth = torch.rand(1, generator=generator, dtype=torch.float64)
    one = Regression(inputs, targets, weights, truth)[torch.zeros(copies, dtype=torch.int64)]
    return CollapsedConvolutions(one, layers, torch.ones(layers.dimension, dtype=torch.float64))


CASES = [(1, 0, True), (1, 2, True), (2, 1, True), (2, 2, False), (3, 1, False)]


@pytest.mark.parametrize(("channels", "redundant", "skip"), CASES)
def test_features_are_those_of_torch_s_convolutions(channels, redundant, skip):
    layers = Convolutions(channels, redundant, skip)
    known = problem(layers)
    position = torch.randn(
        2, 3, layers.dimension, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    found = layers.features(position, known.problem.inputs[0])
    for r in range(2):
        for p in range(3):
            expected = by_torch(layers, position[r, p], known.problem.inputs[0])
            torch.testing.assert_close(found[r, p], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("channels", "redundant", "skip"), CASES)
def test_gradient_energy_and_spread_are_derivatives(channels, redundant, skip):
    layers = Convolutions(channels, redundant, skip)
    known = problem(layers)
    position = torch.randn(
        2, 3, layers.dimension, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    t = torch.tensor([[0.7], [20.0]], dtype=torch.float64)

    def value(x, t):
        return known.log_likelihood(known.statistics(x), t)

    found, slope = known.gradient(position, t)
    torch.testing.assert_close(found, value(position, t), rtol=1e-10, atol=1e-10)
    h = 1e-6
    for i in range(layers.dimension):
        step = torch.zeros_like(position)
        step[..., i] = h
        expected = (value(position + step, t) - value(position - step, t)) / (2 * h)
        torch.testing.assert_close(slope[..., i], expected, rtol=1e-5, atol=1e-6)
    statistics = known.statistics(position)
    rise = (value(position, t + h) - value(position, t - h)) / (2 * h)
    torch.testing.assert_close(known.energy(statistics, t), -rise, rtol=1e-6, atol=1e-6)
    bend = (known.energy(statistics, t + h) - known.energy(statistics, t - h)) / (2 * h)
    torch.testing.assert_close(known.spread(statistics, t), -bend, rtol=1e-5, atol=1e-6)


def test_dead_redundant_layers_with_skip_connections_change_nothing():
    small, large = Convolutions(1, 0, skip=True), Convolutions(1, 2, skip=True)
    first = torch.tensor([0.8, -0.3, 0.5, 0.1], dtype=torch.float64)
    dead = torch.tensor([-1.0, -0.2, -0.4, -0.6], dtype=torch.float64)  # reads what is never negative
    inputs = problem(small).problem.inputs[0]
    long = torch.cat([first, dead, dead])[None, None]
    torch.testing.assert_close(large.features(long, inputs), small.features(first[None, None], inputs))
    assert not torch.allclose(
        Convolutions(1, 2, skip=False).features(long, inputs), small.features(first[None, None], inputs)
    )


def test_dead_channels_are_those_that_no_signal_wakes():
    layers = Convolutions(2, 0, skip=True)
    known = problem(layers)
    position = torch.tensor([0.1, 0.1, 0.1, 0.5, 0.5, 0.5, -1.0, 0.2], dtype=torch.float64)
    assert known.dead(position.expand(2, 1, -1))[0, 0].tolist() == [True, False]


def test_the_sampler_takes_it_and_reaches_half_of_the_identifiable_directions():
    from lib.growth.convolutions import MOVES
    from lib.growth.convolutions import problem as of_chapter

    layers = Convolutions(1, 0, skip=True)
    copies = of_chapter(5)[torch.zeros(3, dtype=torch.int64)]
    known = CollapsedConvolutions(copies, layers, torch.ones(layers.dimension, dtype=torch.float64))
    run = sample(known, [1e3, 1e5], particles=100, seed=5, settings=MOVES)
    slope = run.free_energy.diff(dim=0).mean() / torch.tensor(100.0).log()
    assert 2.2 < float(slope) < 2.9  # six parameters less one rescaling: 5/2
    with pytest.raises(ValueError, match="redraws=0"):
        sample(known, [1.0], particles=10, seed=0, settings=Settings())
