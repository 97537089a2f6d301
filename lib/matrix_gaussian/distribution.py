r"""Matrix Gaussians in closed form: densities, divergences, marginals, linear images and conditionals.

$$
\begin{aligned}
W \sim MN(M, U, V) &\iff \operatorname{vec} W \sim N(\operatorname{vec} M,\; V \otimes U), \\
W = M + L E K^\top, &\quad U = L L^\top, \quad V = K K^\top,
\end{aligned}
$$

with columns stacked, U (r x r) the covariance of rows (a layer's inputs), V (c x c) that of columns (its outputs)
and E standard normal (Louizos & Welling 2016, section 2). Everything is computed from the roots L and K by
triangular solves and QR, in r³ + c³ operations; no inverse is formed, and no Kronecker product except by
``kronecker``. (U, V) and (aU, V / a) are the same law: compare products of the two, never one alone.

A root is a vector of standard deviations (it is then diagonal) or a matrix: lower triangular, or with fewer columns
than rows. A zero on the diagonal, or missing columns, make the law *singular*: it can be drawn from, marginalised,
transformed and conditioned, but it has no density, and what needs one is refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)
Index = Sequence[int] | Int64[Tensor, " k"] | slice


@dataclass(frozen=True)
class MatrixGaussian:
    """MN(M, U, V) with any batch axes, the same for the three tensors; ``diagonal`` and ``full`` expand them.

    Attributes:
        mean: M (*batch, r, c).
        rows: standard deviations (*batch, r), or a root L (*batch, r, k) with U = L Lᵀ and k at most r.
        columns: standard deviations (*batch, c), or a root K (*batch, c, k) with V = K Kᵀ and k at most c.

    ``MatrixGaussian(mean, factor(U), sd)`` mixes the kinds. Raises ValueError where a tensor has another shape or is
    no root.
    """

    mean: Float[Tensor, "*batch r c"]
    rows: Float[Tensor, "*batch r"] | Float[Tensor, "*batch r k"]
    columns: Float[Tensor, "*batch c"] | Float[Tensor, "*batch c l"]

    def __post_init__(self) -> None:
        for name, root, size in zip(("rows", "columns"), self._roots, self.mean.shape[-2:], strict=True):
            root.check(name, (*self.mean.shape[:-2], size))

    @classmethod
    def diagonal(
        cls,
        mean: Float[Tensor, "*#batch r c"],
        row_sd: Float[Tensor, "*#batch r"],
        column_sd: Float[Tensor, "*#batch c"],
    ) -> MatrixGaussian:
        """Var W_ij = s_i² t_j² and no correlations, from standard deviations s of the rows and t of the columns."""
        return _broadcast(mean, _Root(row_sd, True), _Root(column_sd, True))

    @classmethod
    def full(
        cls,
        mean: Float[Tensor, "*#batch r c"],
        *,
        row_covariance: Float[Tensor, "*#batch _ _"],
        column_covariance: Float[Tensor, "*#batch _ _"],
    ) -> MatrixGaussian:
        """MN(M, U, V) from covariances, which are factored. Raises ValueError where one is none, or of another size."""
        given = {"row_covariance": row_covariance, "column_covariance": column_covariance}
        for (name, covariance), size in zip(given.items(), mean.shape[-2:], strict=True):
            if covariance.shape[-2:] != (size, size):
                raise ValueError(
                    f"{name} has the shape {tuple(covariance.shape)}: the mean {tuple(mean.shape)} asks for "
                    f"(..., {size}, {size}). Rows are the mean's first axis, columns its second."
                )
        return _broadcast(mean, *(_Root(factor(value, name), False) for name, value in given.items()))

    # --------------------------------------------------------------------------------------- what it looks like

    @property
    def _roots(self) -> tuple[_Root, _Root]:
        return tuple(_Root(root, root.ndim < self.mean.ndim) for root in (self.rows, self.columns))

    @property
    def mT(self) -> MatrixGaussian:
        """The law of Wᵀ: rows and columns change places."""
        return MatrixGaussian(self.mean.mT, self.columns, self.rows)

    @property
    def noise_shape(self) -> tuple[int, int]:
        """The last two axes of the noise that a draw takes: (r, c), and less where a root is narrow."""
        return self.rows.shape[-1], self.columns.shape[-1]

    @property
    def singular(self) -> bool:
        """Whether any law of the batch has no density."""
        return any(root.singular for root in self._roots)

    @property
    def row_covariance(self) -> Float[Tensor, "*batch r r"]:
        """U, in units in which ``column_covariance`` is V."""
        return self._roots[0].covariance()

    @property
    def column_covariance(self) -> Float[Tensor, "*batch c c"]:
        """V, in units in which ``row_covariance`` is U."""
        return self._roots[1].covariance()

    @property
    def variance(self) -> Float[Tensor, "*batch r c"]:
        """Var W_ij = U_ii V_jj."""
        u, v = (root.variance() for root in self._roots)
        return u[..., :, None] * v[..., None, :]

    def kronecker(self) -> Float[Tensor, "*batch rc rc"]:
        """V ⊗ U, the covariance of ``vec(W)``, in (rc)² numbers: for tests and small cases."""
        u, v = self.row_covariance, self.column_covariance
        return (v[..., :, None, :, None] * u[..., None, :, None, :]).flatten(-4, -3).flatten(-2, -1)

    # -------------------------------------------------------------------------------------- draws and densities

    def sample(self, noise: Float[Tensor, ...]) -> Float[Tensor, "*draws r c"]:
        """M + L E Kᵀ from standard normal noise E (*draws, *batch, *noise_shape)."""
        if noise.shape[-2:] != self.noise_shape:
            raise ValueError(
                f"the noise's last axes are {tuple(noise.shape[-2:])}: this law takes {self.noise_shape} "
                "(its noise_shape), after any axes of draws and the batch."
            )
        rows, columns = self._roots
        return self.mean + columns.times(rows.times(noise).mT).mT

    def log_prob(self, w: Float[Tensor, "*draws r c"]) -> Float[Tensor, ...]:
        """-½ (‖L⁻¹(W - M)K⁻ᵀ‖² + rc ln 2π + c ln|U| + r ln|V|), for W (*draws, *batch, r, c)."""
        self._need_density("log_prob")
        return -0.5 * (self._distance(w - self.mean) + self._log_det() + self._rc * LOG_2PI)

    def entropy(self) -> Float[Tensor, "*batch"]:
        """½ (rc (1 + ln 2π) + c ln|U| + r ln|V|), in nats."""
        self._need_density("entropy")
        return 0.5 * (self._rc * (1 + LOG_2PI) + self._log_det())

    def kl(self, other: MatrixGaussian) -> Float[Tensor, ...]:
        """KL(self ‖ other) in nats; batches broadcast.

        ½ { tr(U₀⁻¹U) tr(V₀⁻¹V) + tr[(M - M₀)ᵀ U₀⁻¹ (M - M₀) V₀⁻¹] - rc
            + c (ln|U₀| - ln|U|) + r (ln|V₀| - ln|V|) },

        index 0 for ``other``; the first trace is ‖L₀⁻¹L‖². Raises ValueError where a law is singular or the shapes
        differ.
        """
        mine, others = (tuple(law.mean.shape[-2:]) for law in (self, other))
        if mine != others:
            raise ValueError(f"KL of {mine} from {others} matrices: both laws must be of one shape.")
        self._need_density("kl")
        other._need_density("kl")
        rows, columns = (
            base.solve(own.matrix()).square().sum((-1, -2))
            for own, base in zip(self._roots, other._roots, strict=True)
        )
        distance = other._distance(self.mean - other.mean)
        return 0.5 * (rows * columns + distance - self._rc + other._log_det() - self._log_det())

    @property
    def _rc(self) -> int:
        return self.mean.shape[-2] * self.mean.shape[-1]

    def _distance(self, difference: Tensor) -> Tensor:
        """‖L⁻¹ D K⁻ᵀ‖² = tr(Dᵀ U⁻¹ D V⁻¹)."""
        rows, columns = self._roots
        return columns.solve(rows.solve(difference).mT).square().sum((-1, -2))

    def _log_det(self) -> Tensor:
        """ln|V ⊗ U| = c ln|U| + r ln|V|."""
        rows, columns = self._roots
        return self.mean.shape[-1] * rows.log_det() + self.mean.shape[-2] * columns.log_det()

    def _need_density(self, what: str) -> None:
        if self.singular:
            raise ValueError(
                f"{what} of a singular law: it lives on a subspace and has no density, so that a divergence is infinite "
                "or undefined. Compare means and covariances, or transform it to as many rows as it has rank."
            )

    # ------------------------------------------------------------------------------------------ laws made of it

    def marginal_rows(self, index: Index) -> MatrixGaussian:
        """The law of W[index]: MN(M[index], U[index, index], V). Raises ValueError for a row named twice."""
        r = self.mean.shape[-2]
        chosen = torch.arange(r, device=self.mean.device)[index]
        if chosen.unique().numel() != chosen.numel():
            raise ValueError(f"{chosen.tolist()} names a row or column twice: name each once.")
        rows, columns = self._roots
        if rows.diagonal:
            root = self.rows[..., chosen]
        else:
            root = _lower(self.rows[..., chosen, :], rows.norm()[..., chosen])
        return _broadcast(self.mean[..., chosen, :], _Root(root, rows.diagonal), columns)

    def marginal_columns(self, index: Index) -> MatrixGaussian:
        """The law of W[:, index]: MN(M[:, index], U, V[index, index])."""
        return self.mT.marginal_rows(index).mT

    def transform(
        self, a: Float[Tensor, "... m r"] | None = None, b: Float[Tensor, "... c d"] | None = None
    ) -> MatrixGaussian:
        """The law of A W B: MN(A M B, A U Aᵀ, Bᵀ V B); None is the identity. Pre-activations: ``transform(a)``.

        Singular where A has more rows than U has rank, or rows that (to rounding) repeat what others say.
        """
        law = self
        if a is not None:
            rows, columns = law._roots
            root = _lower(rows.after(a), rows.size_after(a))
            law = _broadcast(a @ law.mean, _Root(root, False), columns)
        return law if b is None else law.mT.transform(b.mT).mT

    def condition(self, a: Float[Tensor, "... m r"], b: Float[Tensor, "... m c"]) -> MatrixGaussian:
        """The law of W given A W = B exactly; singular, of row rank r - m.

        With S = A U Aᵀ: MN(M + U Aᵀ S⁻¹ (B - A M), U - U Aᵀ S⁻¹ A U, V). By QR of (AL)ᵀ = Q₁R, with Q₂ completing
        Q₁ to an orthogonal basis, the mean is M + L Q₁ R⁻ᵀ (B - A M) and the root L Q₂ (r, r - m): S is never formed.
        Raises ValueError where the conditions are not independent under this law.
        """
        m, (rows, columns) = a.shape[-2], self._roots
        reach = rows.after(a)  # A L
        if m > reach.shape[-1]:
            raise ValueError(
                f"{m} conditions on a law of row rank {reach.shape[-1]} repeat or contradict each other: give fewer."
            )
        basis, upper = torch.linalg.qr(reach.mT, mode="complete")
        lower = upper[..., :m, :].mT
        pivots = lower.diagonal(dim1=-2, dim2=-1).abs()
        if not (pivots > _tolerance(a.dtype) * rows.size_after(a)).all():
            raise ValueError(
                "rows of A depend on each other under this law (A U Aᵀ is not positive definite): A W = B repeats "
                "or contradicts itself. Leave out the dependent rows."
            )
        missing = torch.linalg.solve_triangular(lower, b - a @ self.mean, upper=False)
        mean = self.mean + rows.times(basis[..., :m] @ missing)
        root = rows.times(basis[..., m:])
        fixed = _norm(root) <= _tolerance(root.dtype) * rows.norm()  # A determines these rows
        return _broadcast(mean, _Root(root.masked_fill(fixed[..., None], 0), False), columns)


# -------------------------------------------------------------------------------------------------------- roots


def vec(w: Float[Tensor, "*draws r c"]) -> Float[Tensor, "*draws rc"]:
    """The columns of W below each other."""
    return w.mT.flatten(-2)


def factor(covariance: Float[Tensor, "*batch r r"], name: str = "covariance") -> Float[Tensor, "*batch r r"]:
    """The lower Cholesky factor. Raises ValueError where it is not finite, symmetric and positive definite."""
    size = covariance.detach().abs().amax((-1, -2))
    if not torch.isfinite(size).all():
        raise ValueError(f"{name} has entries that are not finite: check what it was computed from.")
    skew = (covariance - covariance.mT).detach().abs().amax((-1, -2))
    if (skew > _tolerance(covariance.dtype) * size).any():
        raise ValueError(f"{name} is not symmetric: give (C + C.mT) / 2 if only rounding is to blame.")
    lower, failed = torch.linalg.cholesky_ex(covariance)
    if failed.any():
        raise ValueError(
            f"{name} is not positive definite ({int((failed != 0).sum())} of {failed.numel()} in the batch): give one "
            "that varies in every direction, or build a singular law from a narrow root."
        )
    return lower


def _tolerance(dtype: torch.dtype) -> float:
    """What counts as rounding, relative to the numbers that went in: 2e-12 in float64, 6e-6 in float32."""
    return torch.finfo(dtype).eps ** 0.75


def _norm(root: Tensor) -> Tensor:
    """The rows' lengths: standard deviations."""
    return torch.linalg.vector_norm(root, dim=-1)


def _lower(root: Tensor, scale: Tensor) -> Tensor:
    """A lower triangular T (m, m) with T Tᵀ = root rootᵀ, root (m, k), no pivot negative; the root itself if m > k.

    By QR of the transpose, which does not square the condition number. Pivots that are rounding of ``scale`` (the size
    of each row's terms before they cancelled) become exactly 0: that is how a singular law knows itself.
    """
    if root.shape[-2] > root.shape[-1]:
        return root
    lower = torch.linalg.qr(root.mT).R.mT
    pivots = lower.diagonal(dim1=-2, dim2=-1)
    lower = lower * torch.where(pivots < 0, -1.0, 1.0).to(root)[..., None, :]
    gone = pivots.abs() <= _tolerance(root.dtype) * scale
    return lower.masked_fill(torch.diag_embed(gone), 0)


@dataclass(frozen=True)
class _Root:
    """L with L Lᵀ = U, as standard deviations (*batch, r) or a matrix (*batch, r, k)."""

    value: Tensor
    diagonal: bool

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises ValueError unless this is a root of the axis ``name`` with the batch and size of ``shape``."""
        found, width = tuple(self.value.shape), () if self.diagonal else self.value.shape[-1:]
        if found != (*shape, *width) or any(k > shape[-1] for k in width):
            raise ValueError(
                f"{name} has the shape {found}: give standard deviations {shape}, or a root {shape} + (k,) with k at "
                f"most {shape[-1]}. MatrixGaussian.diagonal and .full expand batches."
            )
        if self.diagonal or found[-1] == shape[-1]:
            if not (self.pivots >= 0).all():
                raise ValueError(f"{name} has lengths below 0, or that are no numbers, on its diagonal.")
            if not self.diagonal and self.value.triu(1).any():
                raise ValueError(f"{name} is no lower triangular factor: factor(covariance) makes one.")

    @property
    def pivots(self) -> Tensor:
        return self.value if self.diagonal else self.value.diagonal(dim1=-2, dim2=-1)

    @property
    def singular(self) -> bool:
        narrow = not self.diagonal and self.value.shape[-1] < self.value.shape[-2]
        return narrow or bool((self.pivots == 0).any())

    def expand(self, batch: torch.Size) -> Tensor:
        return self.value.expand(*batch, *self.value.shape[-1 if self.diagonal else -2 :])

    def matrix(self) -> Tensor:
        return torch.diag_embed(self.value) if self.diagonal else self.value

    def norm(self) -> Tensor:
        return self.value if self.diagonal else _norm(self.value)

    def variance(self) -> Tensor:
        return self.value.square() if self.diagonal else self.value.square().sum(-1)

    def covariance(self) -> Tensor:
        return torch.diag_embed(self.variance()) if self.diagonal else self.value @ self.value.mT

    def log_det(self) -> Tensor:
        """ln|U|."""
        return 2 * self.pivots.log().sum(-1)

    def times(self, x: Tensor) -> Tensor:
        return self.value[..., None] * x if self.diagonal else self.value @ x

    def after(self, a: Tensor) -> Tensor:
        """A L."""
        return a * self.value[..., None, :] if self.diagonal else a @ self.value

    def size_after(self, a: Tensor) -> Tensor:
        """The size of the terms that make each row of A L, before any cancel."""
        return (a.abs() @ self.norm()[..., None])[..., 0]

    def solve(self, x: Tensor) -> Tensor:
        """L⁻¹ x."""
        if self.diagonal:
            return x / self.value[..., None]
        return torch.linalg.solve_triangular(self.value, x, upper=False)


def _broadcast(mean: Tensor, rows: _Root, columns: _Root) -> MatrixGaussian:
    """The law with all three tensors at one batch."""
    batches = (root.value.shape[: -1 if root.diagonal else -2] for root in (rows, columns))
    batch = torch.broadcast_shapes(mean.shape[:-2], *batches)
    return MatrixGaussian(mean.expand(*batch, *mean.shape[-2:]), rows.expand(batch), columns.expand(batch))
