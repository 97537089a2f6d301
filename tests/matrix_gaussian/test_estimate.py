"""The matrix Gaussian of largest likelihood: known laws are found, and no neighbour is likelier."""

from __future__ import annotations

import pytest
import torch

from lib.matrix_gaussian.distribution import MatrixGaussian
from lib.matrix_gaussian.estimate import fitted


def _normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _law(r, c, diagonal):
    mean = _normal(r, c, seed=1)
    if diagonal:
        return MatrixGaussian.diagonal(mean, 0.5 + torch.rand(r).double(), 0.5 + torch.rand(c).double())
    a, b = _normal(r, r, seed=2), _normal(c, c, seed=3)
    return MatrixGaussian.full(mean, row_covariance=a @ a.T + torch.eye(r).double(), column_covariance=b @ b.T + torch.eye(c).double())  # fmt: skip


@pytest.mark.parametrize("diagonal", [False, True])
def test_a_known_law_is_found(diagonal):
    torch.manual_seed(0)
    law = _law(4, 3, diagonal)
    found = fitted(law.sample(_normal(20_000, 4, 3)), diagonal=diagonal)
    torch.testing.assert_close(found.mean, law.mean, rtol=0, atol=0.1)
    error = (found.kronecker() - law.kronecker()).norm() / law.kronecker().norm()
    assert error < 0.03


@pytest.mark.parametrize("diagonal", [False, True])
def test_no_neighbour_is_likelier(diagonal):
    w = _law(3, 4, False).sample(_normal(12, 3, 4))
    found = fitted(w, diagonal=diagonal)
    best = float(found.log_prob(w).sum())
    for step in (0.97, 1.03):
        for side in ("rows", "columns"):
            for k in range(getattr(found, side).shape[-1]):
                root = getattr(found, side).clone()
                root[..., k] *= step
                roots = {"rows": found.rows, "columns": found.columns} | {side: root}
                assert float(MatrixGaussian(found.mean, **roots).log_prob(w).sum()) < best


def test_the_scale_between_rows_and_columns_is_fixed_by_the_columns():
    w = _law(3, 4, False).sample(_normal(40, 3, 4))
    assert float(fitted(w).column_covariance.diagonal().mean()) == pytest.approx(1)
    assert float(fitted(w, diagonal=True).columns.square().mean()) == pytest.approx(1)


def test_shrinkage_goes_from_full_to_independent_rows_and_columns():
    w = _law(3, 4, False).sample(_normal(40, 3, 4))
    diagonal = fitted(w, diagonal=True)
    torch.testing.assert_close(fitted(w, shrinkage=1.0).variance, diagonal.variance, rtol=1e-4, atol=0)
    few = w[:2]  # too few for full covariances
    assert bool(fitted(few, shrinkage=0.1).variance.isfinite().all())


def test_what_has_no_spread_or_too_few_matrices_is_refused():
    with pytest.raises(ValueError, match="two finite ones at least"):
        fitted(_normal(1, 2, 2))
    with pytest.raises(ValueError, match="entries that are not finite"):
        fitted(torch.full((3, 2, 2), torch.nan))
    with pytest.raises(ValueError, match="do not determine both covariances: give more, shrink them"):
        fitted(_normal(3, 9, 2))
