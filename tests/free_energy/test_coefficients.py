"""Coefficients on cases with a known answer: counts, bounds, exact thresholds, dead units, and every refusal."""

import math
from itertools import pairwise, product

import numpy as np
import pytest
from scipy.integrate import dblquad
from scipy.special import ndtr, wofz

from lib.free_energy import coefficients
from lib.free_energy.coefficients import (
    Probability,
    Rlct,
    can_realise,
    check_realises,
    embedding_cost,
    hidden_units,
    parameter_count,
    probability_dead,
    redundant_units,
    relu_bound,
    rlct_deep_linear,
    rlct_monomial,
    rlct_reduced_rank,
    sharp_bound,
)
from lib.networks import perceptron

CONSTANT, KINK, PLANE, DEEP = (1, 0, 1), (1, 1, 1), (2, 2, 1), (2, 2, 2, 1)


@pytest.mark.parametrize("widths", [(3, 2), KINK, PLANE, DEEP, (5, 7, 3, 2)])
def test_counts_are_those_of_the_network(widths):
    net = perceptron(widths)
    assert parameter_count(widths) == sum(p.numel() for p in net.parameters())
    assert hidden_units(widths) == sum(widths) - widths[0] - widths[-1]


@pytest.mark.parametrize(
    ("truth", "relu", "sharp"),
    [(CONSTANT, 0.5, 0.5), (KINK, 2, 1.5), (PLANE, 4.5, 3.5), (DEEP, 7.5, 5.5), ((1, 0, 3), 1.5, 1.5)],
)
def test_bounds_of_the_books_truths(truth, relu, sharp):
    assert (relu_bound(truth), sharp_bound(truth)) == (relu, sharp)


@pytest.mark.parametrize("truth", [KINK, PLANE, DEEP])
def test_bounds_lie_below_that_of_every_larger_regular_learner(truth):
    assert sharp_bound(truth) < relu_bound(truth) == parameter_count(truth) / 2
    for wider, deeper in product(range(3), range(3)):
        learner = (truth[0], *(h + wider for h in truth[1:-1]), *[truth[-2]] * deeper, truth[-1])
        assert can_realise(learner, truth)
        assert redundant_units(learner, truth) == wider * (len(truth) - 2) + deeper * truth[-2]
        assert relu_bound(truth) <= parameter_count(learner) / 2


@pytest.mark.parametrize(
    ("widths", "truth", "reason"),
    [
        ((1, 2, 1), PLANE, "has 1 inputs and the truth 2"),
        ((2, 2, 3), PLANE, "has 3 outputs and the truth 1"),
        ((2, 9, 1), DEEP, r"fewer hidden layers \(1\) than the truth \(2\); add layers"),
        ((2, 1), PLANE, r"fewer hidden layers \(0\)"),
        ((2, 1, 1), PLANE, "hidden layer 1 has 1 units and the truth's 2; widen it"),
        ((2, 2, 1, 1), DEEP, "hidden layer 2 has 1 units and the truth's 2; widen it"),
        ((2, 4, 1, 1), PLANE, "hidden layer 2 has 1 units and the truth's last, .* 2; widen it"),
        ((1, 5, 3, 2, 1), (1, 5, 3, 1), "hidden layer 3 has 2 units and the truth's last, .* 3; widen it"),
    ],
)
def test_a_learner_that_need_not_realise_the_truth_is_refused_with_the_reason(widths, truth, reason):
    assert not can_realise(widths, truth)
    for refuse in (check_realises, redundant_units, embedding_cost):
        with pytest.raises(ValueError, match=rf"need not realise a truth of widths \({truth[0]}, .*{reason}"):
            refuse(widths, truth)


@pytest.mark.parametrize(
    ("widths", "truth"),
    [(KINK, KINK), ((1, 4, 1), CONSTANT), ((1, 5, 3, 3, 1), (1, 5, 3, 1)), ([2, 2, 2, 1], PLANE)],
)
def test_a_learner_that_can_realise_the_truth_is_let_through(widths, truth):
    assert can_realise(widths, truth)
    check_realises(widths, truth)


@pytest.mark.parametrize("widths", [(1,), ()])
def test_too_few_widths_are_refused(widths):
    for count in (parameter_count, hidden_units, relu_bound, sharp_bound):
        with pytest.raises(ValueError, match="no network: give at least its inputs and its outputs"):
            count(widths)


@pytest.mark.parametrize("widths", [(0, 1, 1), (1, 1, 0), (1, -1, 1)])
def test_impossible_widths_are_refused(widths):
    for count in (parameter_count, hidden_units, relu_bound, sharp_bound):
        with pytest.raises(ValueError, match="must be 1 or more, hidden layers 0 or more"):
            count(widths)
    with pytest.raises(ValueError, match="must be 1 or more"):
        can_realise(widths, KINK)


def test_a_truth_without_hidden_layer_is_refused():
    for bound in (relu_bound, sharp_bound, lambda truth: can_realise(KINK, truth)):
        with pytest.raises(ValueError, match=r"widths \(1, 1\) has no hidden layer"):
            bound((1, 1))


@pytest.mark.parametrize(
    ("hidden", "value", "multiplicity"), [(3, 13.5, 1), (4, 15.0, 2), (5, 16.0, 1), (6, 17.0, 2)]
)
def test_reduced_rank_regression_of_six_by_six_with_rank_three(hidden, value, multiplicity):
    assert rlct_reduced_rank(6, hidden, 6, 3) == Rlct(value, multiplicity)


@pytest.mark.parametrize(
    ("sizes", "value"),
    [((1, 1, 5, 1), 2.5), ((5, 1, 1, 1), 2.5), ((1, 2, 7, 0), 1.0), ((7, 2, 1, 0), 1.0), ((2, 9, 3, 1), 3.0)],
)
def test_reduced_rank_regression_of_lopsided_sizes(sizes, value):
    assert rlct_reduced_rank(*sizes) == Rlct(value, 1)


def test_two_linear_layers_are_reduced_rank_regression():
    for sizes in product(range(1, 7), repeat=3):
        for rank in range(min(sizes) + 1):
            assert rlct_deep_linear(sizes, rank) == rlct_reduced_rank(*sizes, rank), (sizes, rank)


@pytest.mark.parametrize(
    ("widths", "rank", "value", "multiplicity"),
    [
        ((2, 2, 2), 0, 1.5, 1),
        ((2, 2, 2), 1, 2.0, 2),
        ((3, 2, 3), 0, 2.5, 1),
        ((3, 2, 3), 1, 3.5, 2),
        ((2, 2, 2, 2), 0, 1.5, 3),
        ((3, 3, 3, 3), 1, 4.0, 3),
        ((4,) * 6, 2, 7.5, 7),
        ((2,) * 11, 1, 2.0, 10),
        ((3, 4), 2, 6.0, 1),
        ((1,) * 5, 0, 0.5, 4),
    ],
)
def test_deep_linear_networks(widths, rank, value, multiplicity):
    found = rlct_deep_linear(widths, rank)
    assert found.multiplicity == multiplicity
    assert found.value == pytest.approx(value, abs=1e-12)


def test_a_deep_linear_network_has_the_coefficient_of_its_transpose_and_never_above_half_its_parameters():
    for widths in product(range(1, 5), repeat=4):
        for rank in range(min(widths) + 1):
            found = rlct_deep_linear(widths, rank)
            assert found == rlct_deep_linear(widths[::-1], rank)
            assert found.value <= sum(a * b for a, b in pairwise(widths)) / 2
            assert found.value >= rlct_deep_linear((*widths[:2], 4, *widths[2:]), rank).value - 1e-12


@pytest.mark.parametrize("rank", [-1, 3])
def test_impossible_ranks_are_refused(rank):
    for sizes in ((2, 4, 5), (4, 2, 5), (5, 4, 2)):
        with pytest.raises(
            ValueError, match=rf"has rank {rank}: give a rank from 0 to 2, the smallest width"
        ):
            rlct_reduced_rank(*sizes, rank)
        with pytest.raises(
            ValueError, match=rf"has rank {rank}: give a rank from 0 to 2, the smallest width"
        ):
            rlct_deep_linear(sizes, rank)


@pytest.mark.parametrize("widths", [(2,), (2, 0, 2), ()])
def test_impossible_linear_networks_are_refused(widths):
    with pytest.raises(ValueError, match="no linear network: give at least two, each 1 or more"):
        rlct_deep_linear(widths, 0)


@pytest.mark.parametrize(
    ("exponents", "value", "multiplicity"),
    [((1, 1), 1 / 2, 2), ((2, 2), 1 / 4, 2), ((1, 3), 1 / 6, 1), ([2, 1, 2, 1, 2], 1 / 4, 3)],
)
def test_monomials(exponents, value, multiplicity):
    assert rlct_monomial(exponents) == Rlct(value, multiplicity)


@pytest.mark.parametrize("exponents", [(), (1, 0), (-1,)])
def test_what_is_no_monomial_is_refused(exponents):
    with pytest.raises(ValueError, match="no monomial's: each must be 1 or more; leave out variables"):
        rlct_monomial(exponents)


@pytest.mark.parametrize(("weight", "bias", "value"), [(1, 1, 0.25), (3.0, 3.0, 0.25), (1.0, 2.0, 0.352416)])
def test_one_input_is_exact(weight, bias, value):
    found = probability_dead(weight, bias)
    assert found.standard_error == 0.0
    assert found.value == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 10.0])
def test_monte_carlo_of_one_input_is_the_closed_form(ratio):
    found = coefficients._dead_by_monte_carlo(ratio, 1, 0, 1_000)
    assert found.value == pytest.approx(probability_dead(ratio, 1.0).value, rel=1e-12)
    assert found.standard_error < 1e-12


def _within(found: Probability, exact: float) -> bool:
    assert 0 < found.standard_error < 0.02 * exact
    return abs(found.value - exact) < 4 * found.standard_error


@pytest.mark.parametrize(("weight", "bias"), [(1.0, 1.0), (1.0, 2.0), (6.0, 1.5)])
def test_two_inputs_agree_with_quadrature_and_with_the_solid_angle(weight, bias):
    def density(v: float, u: float) -> float:
        return ndtr(-(u + v) * weight / bias) * 2 / math.pi * math.exp(-(u * u + v * v) / 2)

    exact, _ = dblquad(density, 0, 9, 0, 9, epsabs=1e-10)
    assert exact == pytest.approx(math.asin(1 / (2 * (weight / bias) ** 2 + 1)) / math.pi, abs=1e-8)
    assert _within(probability_dead(weight, bias, 2), exact)


@pytest.mark.parametrize("inputs", [3, 5, 10])
@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_more_inputs_agree_with_the_inverted_laplace_transform(inputs, ratio):
    """P(b + ||w||_1 < 0) from E exp(-s X) = exp(s²/2) erfcx(ratio s / √2)^inputs, along a line right of 0."""
    step = 0.02
    s = 1 + 1j * step * (np.arange(-400, 400) + 0.5)
    transform = np.exp(s**2 / 2) * wofz(1j * ratio * s / math.sqrt(2)) ** inputs
    exact = float((transform / s).real.sum() * step / (2 * math.pi))
    assert _within(probability_dead(ratio, 1.0, inputs, seed=3), exact)


def test_the_standard_error_is_the_spread_over_seeds():
    found = [probability_dead(1.0, 1.0, 3, seed=seed, draws=500) for seed in range(200)]
    spread = np.std([f.value for f in found], ddof=1)
    assert np.mean([f.standard_error for f in found]) == pytest.approx(spread, rel=0.2)  # 4 standard errors
    assert found[0] == probability_dead(1.0, 1.0, 3, seed=0, draws=500)


@pytest.mark.parametrize("scale", [0, 0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("inputs", [1, 2])
def test_a_prior_without_spread_is_refused(scale, inputs):
    with pytest.raises(ValueError, match=r"weight_scale is .*: a prior of zero variance"):
        probability_dead(scale, 1.0, inputs)
    with pytest.raises(ValueError, match=r"bias_scale is .*: a prior of zero variance"):
        probability_dead(1.0, scale, inputs)
    with pytest.raises(ValueError, match="a prior of zero variance"):
        embedding_cost((inputs, 2, 1), (inputs, 1, 1), 1.0, scale)


def test_a_unit_without_inputs_and_an_average_without_error_are_refused():
    with pytest.raises(ValueError, match="0 inputs has no weights: give at least one"):
        probability_dead(1.0, 1.0, 0)
    with pytest.raises(ValueError, match="1 draws have no standard error: give at least two"):
        probability_dead(1.0, 1.0, 2, draws=1)


@pytest.mark.parametrize("hidden", [1, 2, 4, 8])
def test_a_redundant_unit_of_one_input_costs_log_four(hidden):
    assert embedding_cost((1, hidden, 1), KINK) == pytest.approx((hidden - 1) * math.log(4))
    assert embedding_cost((1, hidden, 1), CONSTANT, 3, 3) == pytest.approx(hidden * math.log(4))


def test_the_embedding_cost_follows_scales_and_inputs():
    assert embedding_cost((1, 3, 1), KINK, 1.0, 2.0) == pytest.approx(-2 * math.log(math.atan(2) / math.pi))
    exact = -2 * math.log(math.asin(1 / 3) / math.pi)
    assert embedding_cost((2, 4, 1), PLANE) == pytest.approx(exact, abs=2 * 4 * 0.0006)


@pytest.mark.parametrize(("widths", "truth"), [((1, 2, 2, 1), KINK), (DEEP, DEEP)])
def test_the_embedding_cost_of_other_depths_is_refused(widths, truth):
    with pytest.raises(ValueError, match="derived for networks of the same depth with one hidden layer"):
        embedding_cost(widths, truth)
