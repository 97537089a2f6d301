"""Likelihoods of whole and collapsed networks against normal densities, their derivatives against finite differences."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from lib.free_energy import truths
from lib.free_energy.features import Layers
from lib.free_energy.regression import Regression, join
from lib.free_energy.targets import (
    Collapsed,
    CollapsedHinges,
    Target,
    Whole,
    WholeHinges,
    prior_scale,
    target,
)


def random(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def problem_of(inputs, outputs, seed=3):
    """Four problems of unequal sizes, padded, with unequal weights and an energy of the truth."""

    def part(n, seed):
        q = random(2, n, seed=seed).abs() + 0.1
        truth = random(2, seed=seed + 1)
        return Regression(random(2, n, inputs, seed=seed + 2), random(2, n, outputs, seed=seed + 3), q, truth)

    return join([part(5, seed), part(9, seed + 10)])


@dataclass(frozen=True)
class Case:
    widths: tuple[int, ...]
    kind: type
    collapsed: bool = True
    weight_scale: float = 1.0
    bias_scale: float = 1.0
    bias: bool = True
    activation: str = "relu"

    def target(self, problem):
        return target(problem, **{k: v for k, v in vars(self).items() if k != "kind"})


CASES = {
    "hinges": Case((1, 4, 1), CollapsedHinges),
    "one hinge": Case((1, 1, 1), CollapsedHinges),
    "whole hinges": Case((1, 4, 1), WholeHinges, collapsed=False),
    "whole hinges, other scales": Case((1, 3, 1), WholeHinges, False, weight_scale=0.7, bias_scale=2.0),
    "bias scale 2": Case((1, 4, 1), Collapsed, bias_scale=2.0),
    "weight scale 3": Case((1, 2, 1), Collapsed, weight_scale=3.0),
    "depth 3": Case((1, 3, 2, 1), Collapsed),
    "depth 4": Case((2, 3, 2, 2, 1), Collapsed, weight_scale=0.8, bias_scale=1.5),
    "two inputs": Case((2, 3, 1), Collapsed),
    "three outputs": Case((2, 3, 3), Collapsed, bias_scale=0.5),
    "linear without biases": Case((3, 2, 3), Collapsed, bias=False, activation="linear", weight_scale=1.3),
    "ReLU without biases": Case((1, 3, 1), Collapsed, bias=False),
    "linear": Case((1, 3, 1), Collapsed, activation="linear"),
    "whole, depth 3": Case((2, 3, 2, 2), Whole, collapsed=False, bias_scale=2.0),
    "whole, linear without biases": Case((3, 2, 3), Whole, False, bias=False, activation="linear"),
    "regression": Case((2, 2), Whole, collapsed=False),
    "two outputs of one input": Case((1, 2, 2), Whole, collapsed=False),
}
T = torch.tensor([[0.3], [1.0], [7.0], [40.0]], dtype=torch.float64)


def positions_of(known, particles=5, seed=1):
    """Draws of the prior; the first is zero altogether, the second's first parameters are."""
    position = random(known.problems, particles, len(known.scale), seed=seed) * known.scale
    if particles > 2:
        position[:, 0] = 0
        position[:, 1, :2] = 0
    return position


def setting(name, particles=5):
    case = CASES[name]
    problem = problem_of(case.widths[0], case.widths[-1])
    known = case.target(problem)
    assert isinstance(known, case.kind)
    assert isinstance(known, Target)
    return case, problem, known, positions_of(known, particles)


def dead_of(case, known, position):
    """Dead units; a network without a hidden layer has none to ask for."""
    return known.dead(position) if len(case.widths) > 2 else torch.empty(*position.shape[:2], 0)


def forward(case, row, x, depth):
    """A network's layer ``depth`` on points (N, M), in NumPy; the hidden activation on all but a network's last layer."""
    start = 0
    for i, (below, above) in enumerate(pairwise(case.widths[: depth + 1])):
        weight = row[start : start + above * below].reshape(above, below)
        start += above * below
        x = x @ weight.T
        if case.bias:
            x = x + row[start : start + above]
            start += above
        if case.activation == "relu" and i + 2 < len(case.widths):
            x = np.maximum(x, 0)
    return x


def brute(case, problem, r, row, t):
    """log ell_t of one network: minus t times its energy, or the normal density of the targets over the truth's."""
    x, y, q = (tensor[r].numpy() for tensor in (problem.inputs, problem.targets, problem.weights))
    truth = problem.truth[r].item()
    depth = len(case.widths) - 1
    if not case.collapsed:
        return -t * (0.5 * (q * ((y - forward(case, row, x, depth)) ** 2).sum(1)).sum() - truth)
    x, y, q = x[q > 0], y[q > 0], q[q > 0]
    features = case.weight_scale * forward(case, row, x, depth - 1)
    if case.bias:
        features = np.column_stack([features, np.full(len(x), case.bias_scale)])
    noise = 1 / (t * q)
    density = multivariate_normal(np.zeros(len(x)), np.diag(noise) + features @ features.T)
    return sum(density.logpdf(column) + 0.5 * np.log(2 * np.pi * noise).sum() for column in y.T) + t * truth


@pytest.mark.parametrize("name", CASES)
class TestEveryTarget:
    def test_likelihood_is_the_normal_density(self, name):
        case, problem, known, position = setting(name)
        found = known.log_likelihood(known.statistics(position), T)
        expected = [
            [brute(case, problem, r, row.numpy(), T[r].item()) for row in rows]
            for r, rows in enumerate(position)
        ]
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)

    def test_gradient_is_a_finite_difference(self, name):
        _, _, known, position = setting(name)
        position = position[:, 2:]  # no kink on a point
        value, slope = known.gradient(position, T)
        torch.testing.assert_close(value, known.log_likelihood(known.statistics(position), T))
        step = 1e-5
        for d in range(len(known.scale)):
            shift = torch.zeros_like(known.scale)
            shift[d] = step
            up, down = (known.log_likelihood(known.statistics(position + s), T) for s in (shift, -shift))
            torch.testing.assert_close(slope[..., d], (up - down) / (2 * step), rtol=1e-5, atol=1e-4)

    def test_energy_and_spread_are_derivatives_in_temperature(self, name):
        _, _, known, position = setting(name)
        statistics, h = known.statistics(position), 1e-5
        up, down = T * (1 + h), T * (1 - h)
        slope = known.log_likelihood(statistics, up) - known.log_likelihood(statistics, down)
        torch.testing.assert_close(known.energy(statistics, T), -slope / (up - down), rtol=1e-6, atol=1e-6)
        change = known.energy(statistics, up) - known.energy(statistics, down)
        spread = known.spread(statistics, T)
        torch.testing.assert_close(spread, -change / (up - down), rtol=1e-5, atol=1e-7)
        assert bool((spread[:, 1:] > 0).all() if known.collapsed else (spread == 0).all())

    def test_temperature_zero_is_the_prior(self, name):
        _, _, known, position = setting(name)
        found = known.log_likelihood(known.statistics(position), torch.zeros_like(T))
        assert torch.equal(found, torch.zeros_like(found))
        value, slope = known.gradient(position, torch.zeros_like(T))
        assert not value.any()
        assert not slope.any()

    @pytest.mark.parametrize("particles", [1, 5])
    def test_several_problems_equal_one_by_one(self, name, particles):
        case, problem, known, position = setting(name, particles)
        value, slope = known.gradient(position, T)
        energy = known.energy(known.statistics(position), T)
        dead = dead_of(case, known, position)
        for r, n in enumerate((5, 5, 9, 9)):
            parts = (problem.inputs, problem.targets, problem.weights)
            alone = case.target(
                Regression(*(x[r : r + 1, :n] for x in parts), problem.truth[r : r + 1])  # without padding
            )
            here, t = position[r : r + 1], T[r : r + 1]
            for ours, expected in zip((value, slope), alone.gradient(here, t), strict=True):
                torch.testing.assert_close(ours[r : r + 1], expected, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(energy[r : r + 1], alone.energy(alone.statistics(here), t))
            assert torch.equal(dead[r : r + 1], dead_of(case, alone, here))

    def test_dead_units_are_zero_on_every_point_that_counts(self, name):
        case, problem, known, _ = setting(name)
        position = positions_of(known, particles=60)
        found = dead_of(case, known, position)
        some = False
        for r, rows in enumerate(position.numpy()):
            x = problem.inputs[r][problem.weights[r] > 0].numpy()
            for p, row in enumerate(rows):
                hidden = [forward(case, row, x, depth) for depth in range(1, len(case.widths) - 1)]
                expected = [bool((unit == 0).all()) for layer in hidden for unit in layer.T]
                assert found[r, p].tolist() == expected
                some |= any(expected)
        assert some or len(case.widths) == 2

    def test_prior_scale_is_that_of_every_parameter(self, name):
        case, _, known, _ = setting(name)
        stack = case.widths[:-1] if case.collapsed else case.widths
        expected = []
        for below, above in pairwise(stack):
            expected += [case.weight_scale] * (below * above) + [case.bias_scale] * (above * case.bias)
        assert known.scale.tolist() == expected
        assert known.layers.widths == stack
        assert known.problems == 4


@pytest.mark.parametrize("name", ["whole hinges", "whole, linear without biases", "two outputs of one input"])
def test_a_dead_units_outgoing_weights_do_not_matter(name):
    case, _, known, _ = setting(name)
    position = positions_of(known, particles=60)
    dead = known.dead(position)
    inputs, hidden, outputs = case.widths
    start = hidden * (inputs + case.bias)
    changed = position.clone()
    weight = changed[..., start : start + hidden * outputs].unflatten(-1, (outputs, hidden))
    weight += 10 * dead[:, :, None]
    assert dead.any()
    torch.testing.assert_close(known.statistics(changed), known.statistics(position))


@pytest.mark.parametrize("collapsed", [True, False])
def test_hinges_are_the_general_targets(collapsed):
    problem = join([truths.data(truths.T1, n, 2, seed=1, sigma=0.5) for n in (10, 40)])
    fast = target(problem, (1, 5, 1), collapsed=collapsed)
    if collapsed:
        general = Collapsed(problem, fast.layers, fast.scale, torch.ones(6, 1, dtype=torch.float64))
    else:
        general = Whole(problem, fast.layers, fast.scale)
    position = positions_of(fast, 30)
    for ours, theirs in zip(fast.gradient(position, T), general.gradient(position, T), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)
    assert torch.equal(fast.dead(position), general.dead(position))
    assert fast.dead(position).any()
    for verb in ("log_likelihood", "energy", "spread"):
        ours, theirs = (getattr(x, verb)(x.statistics(position), T) for x in (fast, general))
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)
    # what one gradient touches: with every point, or without
    many = target(truths.population(truths.T1, 5000), (1, 5, 1), collapsed=collapsed)
    assert many.footprint == fast.footprint
    assert general.footprint == 40 * (5 + (not collapsed))


@pytest.mark.parametrize("collapsed", [True, False])
def test_a_point_of_weight_zero_keeps_no_unit_alive(collapsed):
    x = torch.tensor([[[-1.0, 0.0], [0.5, 0.0], [3.0, 0.0]]], dtype=torch.float64)
    q = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)
    known = target(Regression(x, x[..., :1], q, torch.zeros(1).double()), (2, 2, 1), collapsed=collapsed)
    position = torch.zeros(1, 1, len(known.scale), dtype=torch.float64)
    position[..., :6] = torch.tensor([1.0, 0.0, 1.0, 0.0, -2.0, 0.0])  # (x - 2)_+ sees the third point alone
    assert known.dead(position).tolist() == [[[True, False]]]


@pytest.mark.parametrize("truth", [truths.T0, truths.T1, truths.T2, truths.T3], ids=lambda truth: truth.name)
@pytest.mark.parametrize("sigma", [1.0, 0.3])
def test_the_true_network_has_energy_zero(truth, sigma):
    for problem in (truths.data(truth, 20, 3, seed=1, sigma=sigma), truths.population(truth, 100)):
        known = target(problem, truth.widths, collapsed=False)
        position = torch.tensor(truth.parameters, dtype=torch.float64).expand(len(problem), 2, -1)
        t = torch.ones(len(problem), 1, dtype=torch.float64)
        energy = known.energy(known.statistics(position), t)
        torch.testing.assert_close(energy, torch.zeros_like(energy), rtol=0, atol=1e-12)


def test_collapsing_integrates_the_output_layer():
    """The mean of the whole network's likelihood over prior draws of its output layer is the collapsed one's."""
    problem = truths.data(truths.T1, 4, 1, seed=5)
    whole = target(problem, (1, 2, 1), collapsed=False, weight_scale=1.2, bias_scale=0.6)
    part = target(problem, (1, 2, 1), weight_scale=1.2, bias_scale=0.6)
    hidden = positions_of(part, 1)
    draws = random(1, 400_000, 3, seed=8) * whole.scale[-3:]
    position = torch.cat([hidden.expand(1, 400_000, 4), draws], 2)
    t = torch.full((1, 1), 0.8, dtype=torch.float64)
    values = whole.log_likelihood(whole.statistics(position), t).exp()
    error = values.std() / len(values[0]) ** 0.5
    expected = part.log_likelihood(part.statistics(hidden), t).exp()
    assert abs(values.mean() - expected).item() < 4 * error
    assert error < 0.01 * expected.item()


class TestRefusals:
    def test_widths_that_do_not_fit(self):
        problem = problem_of(2, 1)
        sentence = (
            r"widths \(1, 3, 1\) do not fit problems with 2 inputs and 1 outputs: begin with 2 and end with 1"
        )
        with pytest.raises(ValueError, match=sentence):
            target(problem, (1, 3, 1))
        with pytest.raises(ValueError, match="begin with 2 and end with 1"):
            target(problem, (2, 3, 2), collapsed=False)

    def test_nothing_left_to_sample(self):
        with pytest.raises(ValueError, match=r"without a hidden layer nothing is left.*pass collapsed=False"):
            target(problem_of(2, 1), (2, 1))

    @pytest.mark.parametrize(("weight", "bias"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0), (1.0, float("nan"))])
    def test_a_prior_of_no_width(self, weight, bias):
        sentence = rf"standard deviations are {weight} \(weights\) and {bias} \(biases\).*make both positive"
        with pytest.raises(ValueError, match=sentence):
            prior_scale(Layers((1, 2)), weight, bias)
        with pytest.raises(ValueError, match="zero variance leaves nothing to integrate over"):
            target(problem_of(1, 1), (1, 2, 1), weight_scale=weight, bias_scale=bias)
