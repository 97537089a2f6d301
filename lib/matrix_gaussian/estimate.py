"""The matrix Gaussian of largest likelihood for a sample of matrices, by flip-flop (Dutilleul 1999).

Given one covariance, the other has a formula; taking turns never lowers the likelihood:

    U = Σ_p (W_p - M) V⁻¹ (W_p - M)ᵀ / (P c),    V = Σ_p (W_p - M)ᵀ U⁻¹ (W_p - M) / (P r).

With diagonal covariances the same, entry by entry. (a U, V / a) is the same law: the trace of V is set to c.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from lib.matrix_gaussian.distribution import MatrixGaussian

ROUNDS = 200
STILL = 1e-6  # relative change of a covariance below which turns end


def fitted(w: Float[Tensor, "P r c"], *, diagonal: bool = False, shrinkage: float = 0.0) -> MatrixGaussian:
    """The law of largest likelihood of P matrices (float64), with full or ``diagonal`` covariances.

    ``shrinkage`` s replaces each full covariance by (1 - s) of itself and s of its diagonal, in every turn. Raises ValueError for
    a single matrix, for entries that are not finite, and where the sample cannot tell full covariances: r > P c or c > P r.
    """
    count, r, c = w.shape
    if count < 2 or not bool(w.isfinite().all()):
        raise ValueError(
            f"{count} matrices, or some with entries that are not finite: a spread needs two finite ones at least."
        )
    if not diagonal and not shrinkage and max(r, c) > (count - 1) * min(r, c):
        raise ValueError(
            f"{count} matrices of {r} x {c} do not determine both covariances: give more, shrink them, or take diagonal ones."
        )
    w = w.double()
    away = w - w.mean(0)
    turn = _diagonal_turn if diagonal else lambda x, other: _full_turn(x, other, shrinkage)
    columns = torch.ones(c, dtype=w.dtype, device=w.device)
    columns = columns if diagonal else columns.diag()
    for _ in range(ROUNDS):
        rows = turn(away, columns)
        after = turn(away.mT, rows)
        trace = (after if diagonal else after.diagonal()).mean()
        after, rows = after / trace, rows * trace
        still = float((after - columns).abs().max() / after.abs().max()) < STILL
        columns = after
        if still:
            break
    if diagonal:
        return MatrixGaussian.diagonal(w.mean(0), rows.sqrt(), columns.sqrt())
    return MatrixGaussian.full(w.mean(0), row_covariance=rows, column_covariance=columns)


def _diagonal_turn(away: Float[Tensor, "P r c"], columns: Float[Tensor, " c"]) -> Float[Tensor, " r"]:
    spread = (away.square() / columns).mean((0, 2))
    return spread.clamp_min(torch.finfo(spread.dtype).tiny)


def _full_turn(
    away: Float[Tensor, "P r c"], columns: Float[Tensor, "c c"], shrinkage: float
) -> Float[Tensor, "r r"]:
    half = torch.linalg.solve_triangular(torch.linalg.cholesky(columns), away.mT, upper=False)  # (P, c, r)
    found = (half.mT @ half).mean(0) / columns.shape[0]
    return (1 - shrinkage) * found + shrinkage * found.diagonal().diag()
