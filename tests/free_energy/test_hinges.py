"""Moments of intervals against sums over points, their gradients against autograd, and the units' borders."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.free_energy import hinges as module
from lib.free_energy import truths
from lib.free_energy.hinges import active, hinges, tables
from lib.free_energy.regression import Regression, join

deterministic = settings(derandomize=True, deadline=None, max_examples=30)


def problem_of(seed, problems=3, n=9, middle=0.0):
    """Unsorted points with a tie and a weight of zero."""
    rng = np.random.default_rng(seed)
    x, y = middle + rng.uniform(-1, 1, (problems, n, 1)), rng.normal(size=(problems, n, 1))
    q = rng.uniform(0.1, 2, (problems, n))
    x[:, 3], q[:, 5] = x[:, 1], 0
    return Regression(*map(torch.from_numpy, (x, y, q, rng.normal(size=problems))))


def units_of(seed, hidden=4, problems=3, particles=6, middle=0.0):
    """Units with kinks in, left and right of the points, some with weight zero of either sign, some zero altogether."""
    rng = np.random.default_rng(seed + 1)
    weight, kink = rng.normal(size=(2, hidden, problems, particles))
    bias = -weight * (middle + kink)
    flat = rng.uniform(size=weight.shape)
    weight[flat < 0.1], weight[flat < 0.05] = 0.0, -0.0
    bias[flat < 0.1] = rng.normal(size=(flat < 0.1).sum())
    bias[flat < 0.02] = 0
    return torch.from_numpy(weight), torch.from_numpy(bias)


def on_points(problem, weight, bias):
    """Gram (k, k, R, P) and cross (k, 1, R, P) by sums over points; differentiable."""
    x, y, q = problem.inputs[..., 0], problem.targets[..., 0], problem.weights
    values = (weight[..., None] * x[:, None] + bias[..., None]).clamp_min(0)
    values = torch.cat([values, torch.ones_like(values[:1])])
    gram = torch.einsum("irpn,jrpn,rn->ijrp", values, values, q)
    return gram, torch.einsum("irpn,rn,rn->irp", values, q, y)[:, None]


seeds = st.integers(0, 10_000)


class TestMoments:
    @deterministic
    @given(seeds, st.sampled_from([0.0, -3.0, 40.0]))
    def test_are_sums_over_points(self, seed, middle):
        problem = problem_of(seed, middle=middle)
        weight, bias = units_of(seed, middle=middle)
        found = hinges(tables(problem), weight, bias).moments
        gram, cross = on_points(problem, weight, bias)
        torch.testing.assert_close(found.gram, gram, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(found.cross, cross, rtol=1e-9, atol=1e-10)
        power = (problem.weights * problem.targets[..., 0] ** 2).sum(1)
        torch.testing.assert_close(found.power, power[:, None])

    @deterministic
    @given(seeds, st.sampled_from([0.0, -3.0, 40.0]))
    def test_gradients_are_autograds(self, seed, middle):
        problem = problem_of(seed, middle=middle)
        weight, bias = units_of(seed, middle=middle)
        rng = np.random.default_rng(seed + 2)
        by_gram = torch.from_numpy(rng.normal(size=(5, 5, 3, 6)))
        by_gram, by_cross = by_gram + by_gram.transpose(0, 1), torch.from_numpy(rng.normal(size=(5, 1, 3, 6)))
        found = hinges(tables(problem), weight, bias)
        zero = (weight == 0) & (bias == 0)  # has no derivative
        gram, cross = on_points(problem, weight.requires_grad_(), bias.requires_grad_())
        slopes = torch.autograd.grad((gram * by_gram).sum() + (cross * by_cross).sum(), (weight, bias))
        for ours, expected in zip(found.pull(by_gram, by_cross), slopes, strict=True):
            torch.testing.assert_close(ours[~zero], expected[~zero], rtol=1e-9, atol=1e-8)

    def test_several_problems_are_each_on_its_own(self):
        problem, (weight, bias) = problem_of(1), units_of(1)
        together = hinges(tables(problem), weight, bias)
        for r in range(3):
            alone = hinges(tables(problem[r : r + 1]), weight[:, r : r + 1], bias[:, r : r + 1])
            torch.testing.assert_close(together.moments.gram[:, :, r], alone.moments.gram[:, :, 0])
            torch.testing.assert_close(together.moments.cross[:, :, r], alone.moments.cross[:, :, 0])
            torch.testing.assert_close(together.moments.power[r], alone.moments.power[0])

    def test_padding_changes_nothing(self):
        short, long = problem_of(1, n=6), problem_of(2, n=40)
        weight, bias = units_of(3)
        found = hinges(tables(join([short, long])), weight.repeat(1, 2, 1), bias.repeat(1, 2, 1))
        for rows, problem in ((slice(0, 3), short), (slice(3, 6), long)):
            alone = hinges(tables(problem), weight, bias).moments
            torch.testing.assert_close(found.moments.gram[:, :, rows], alone.gram)
            torch.testing.assert_close(found.moments.cross[:, :, rows], alone.cross)

    def test_a_hundred_thousand_points_keep_their_digits(self):
        """Cumulated sums are subtracted: the moments of a short interval far from the origin lose no more than rounding."""
        problem = truths.population(truths.T1, 100_000)
        weight = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)[:, None, None]
        bias = torch.tensor([-0.99, -0.9, 2.0], dtype=torch.float64)[:, None, None]
        found = hinges(tables(problem), weight, bias).moments
        gram, cross = on_points(problem, weight, bias)
        torch.testing.assert_close(found.gram, gram, rtol=1e-8, atol=1e-13)
        torch.testing.assert_close(found.cross, cross, rtol=1e-8, atol=1e-13)


class TestActive:
    @deterministic
    @given(seeds)
    def test_interval_is_where_the_unit_is_positive(self, seed):
        problem, (weight, bias) = problem_of(seed), units_of(seed)
        known = tables(problem)
        assert bool((known.points.diff(dim=1) >= 0).all())
        first, end = active(known, weight, bias)
        index = torch.arange(known.points.shape[1])
        inside = (first[..., None] <= index) & (index < end[..., None])
        assert torch.equal(inside, weight[..., None] * known.points[:, None] + bias[..., None] > 0)

    @pytest.mark.parametrize("zero", [0.0, -0.0])
    def test_a_unit_of_weight_zero_is_its_bias(self, zero):
        problem = problem_of(7)
        weight = torch.full((3, 3, 1), zero, dtype=torch.float64)
        bias = torch.tensor([2.0, -2.0, 0.0], dtype=torch.float64)[:, None, None].expand(3, 3, 1)
        found = hinges(tables(problem), weight, bias).moments
        total = problem.weights.sum(1)
        torch.testing.assert_close(found.gram[0, 0, :, 0], 4 * total)
        torch.testing.assert_close(found.gram[0, 3, :, 0], 2 * total)
        assert not found.gram[1:3].any()
        first, end = active(tables(problem), weight, bias)
        assert (end - first)[:, 0, 0].tolist() == [9, 0, 0]

    def test_a_point_on_the_kink_counts_for_neither_side(self):
        points = torch.tensor([[[0.0], [0.5], [1.0]]], dtype=torch.float64)
        problem = Regression(points, points, torch.ones(1, 3, dtype=torch.float64), torch.zeros(1).double())
        weight = torch.tensor([1.0, -1.0], dtype=torch.float64)[:, None, None]
        gram = hinges(tables(problem), weight, -0.5 * weight).moments.gram[..., 0, 0]
        assert gram[:2, :2].tolist() == [[0.25, 0], [0, 0.25]]


@pytest.mark.parametrize(("inputs", "outputs"), [(2, 1), (1, 3)])
def test_more_inputs_or_outputs_are_refused(inputs, outputs):
    x = torch.zeros(2, 4, inputs, dtype=torch.float64)
    problem = Regression(x, torch.zeros(2, 4, outputs).double(), x[..., 0], torch.zeros(2).double())
    sentence = f"one input and one output, not {inputs} and {outputs}: use the targets that visit every point"
    with pytest.raises(ValueError, match=sentence):
        tables(problem)


def test_the_cost_is_that_of_the_units_alone(monkeypatch):
    """No tensor of the moments grows with the points: only the tables do, and they are made once."""
    weight, bias = units_of(1, problems=1)
    known = tables(truths.population(truths.T1, 20_000))
    seen = []
    select = torch.Tensor.index_select
    monkeypatch.setattr(
        torch.Tensor, "index_select", lambda *a: seen.append(r := select(*a)) or r, raising=True
    )
    found = module.hinges(known, weight, bias)
    assert seen
    assert max(x.numel() for x in [*seen, found.moments.gram]) <= 5 * 5 * 5 * 6
