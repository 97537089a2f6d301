"""The claim's instrument: it measures what it says, and each of its errors grows when its formula is broken."""

import math

import pytest
import torch

from lib import claims
from lib.matrix_gaussian import exact
from lib.matrix_gaussian.distribution import MatrixGaussian
from lib.matrix_gaussian.laws import RowColumn

SIZES = {"cases": 7, "seeds": 3, "seed": 11}
SMALL = {"cases": 2, "seeds": 2, "seed": 11, "draws": 100}


def worst(found, name):
    return max(m.value for m in found if m.name == name)


def test_the_claim_is_confirmed_by_its_own_rule():
    found = exact.measure(draws=100_000, **SIZES)
    assert claims.judge("P3-C1", "quick", found).verdict == claims.CONFIRMED
    assert worst(found, "kl_error") < 1e-12
    assert worst(found, "conditional_error") < 1e-10
    for m in found:
        assert m.seeds == 3
        assert m.n == (100_000 if m.name == "moments_error" else 21)
        assert (m.low == m.high) is (m.name != "moments_error")
        assert m.value > 0  # an instrument that compares a thing with itself would show none


def test_the_same_seed_gives_the_same_numbers():
    assert exact.measure(**SMALL) == exact.measure(**SMALL)


def test_layers_are_cells_of_their_own():
    found = exact.measure(cases=1, draws=100, seeds=2, seed=0, layers=((17, 4),))
    assert {m.cell for m in found if m.name == "kl_error"} == {*exact.KINDS, "17 x 4"}


def test_the_worst_case_counts(monkeypatch):
    """Of the numbers 10 seed + case the largest, and what is not a number wherever it appears."""
    monkeypatch.setattr(exact, "kl_error", lambda seed, case, shape, kind: 10.0 * seed + case)
    assert worst(exact.measure(**SMALL), "kl_error") == 10 * 12 + 1
    monkeypatch.setattr(exact, "kl_error", lambda seed, case, shape, kind: math.nan if case == 0 else 0.0)
    assert all(math.isnan(m.value) for m in exact.measure(**SMALL) if m.name == "kl_error")


def test_random_cases_span_their_kinds_and_shapes():
    shapes = exact.random_shapes(1, 300)
    assert {r for r, _ in shapes} == set(range(2, 9))
    assert {c for _, c in shapes} == set(range(1, 7))
    for case in range(2):
        law = exact.random_law(1, case, "x", (4, 3), "mixed")
        assert (law.rows.ndim, law.columns.ndim) == ((2, 1), (1, 2))[case]
    assert exact.random_law(1, 0, "x", (4, 3), "full").rows.ndim == 2
    assert exact.random_law(1, 0, "x", (4, 3), "diagonal").columns.ndim == 1


def test_moment_errors_of_known_draws():
    """Draws at ±2 about a mean that is off by 1: mean error 1 / 10, variance 4 where 5 is claimed."""
    drawn = torch.tensor([[[9.0]], [[13.0]]], dtype=torch.float64)
    mean, covariance = torch.tensor([[10.0]], dtype=torch.float64), torch.tensor([[5.0]], dtype=torch.float64)
    assert exact.moment_errors(iter([drawn[:1], drawn[1:]]), mean, covariance) == pytest.approx((0.1, 0.2))


def test_sampling_errors_fall_as_one_over_the_root_of_the_draws():
    few, many = (
        exact.sampled(2, 0, 2_000),
        exact.sampled(2, 0, 128_000),
    )  # 64 times as many: an eighth of the error
    for cell in ("covariance, local reparametrisation", "covariance, whole weights"):
        assert 4 < few[cell] / many[cell] < 16


# ----------------------------------------------------------------------------------------------- planted faults


def test_a_wrong_divergence_is_seen(monkeypatch):
    right = MatrixGaussian.kl
    monkeypatch.setattr(MatrixGaussian, "kl", lambda q, p: right(q, p) * (1 + 1e-9))
    assert worst(exact.measure(**SMALL), "kl_error") == pytest.approx(1e-9, rel=1e-3)


def test_a_wrong_conditional_is_seen(monkeypatch):
    right = MatrixGaussian.condition
    monkeypatch.setattr(MatrixGaussian, "condition", lambda law, a, b: right(law, a, b * (1 + 1e-6)))
    found = exact.measure(**SMALL)
    assert max(m.value for m in found if m.cell.startswith("mean") and m.name == "conditional_error") > 1e-7
    assert (
        max(m.value for m in found if m.cell.startswith("covariance") and m.name == "conditional_error")
        < 1e-10
    )


def test_a_layer_that_draws_too_wide_is_seen(monkeypatch):
    right = RowColumn.forward

    def wide(law, p, a, noise):
        return right(law, p, a, {"output": 1.02 * noise["output"]})

    monkeypatch.setattr(RowColumn, "forward", wide)
    errors = exact.sampled(11, 0, 40_000)
    assert errors["covariance, local reparametrisation"] > 0.03  # 1.02² - 1 = 0.04, and noise
    assert errors["covariance, whole weights"] < 0.03
