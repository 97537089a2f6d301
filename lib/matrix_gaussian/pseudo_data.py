r"""A matrix Gaussian conditioned on pseudo-data: what the paper's layer really uses, and where its correlations come from.

Given pseudo-inputs $\tilde A$ (m x r) and pseudo-outputs $\tilde B$ (m x c), condition W ~ MN(M, U, V), U = diag(s²) and
V = diag(t²), on $\tilde A W = \tilde B$. With $S = \tilde A U \tilde A^\top$, for a row a of the batch,

$$
\begin{aligned}
E\,[aW] &= aM + a U \tilde A^\top S^{-1} (\tilde B - \tilde A M), \\
\mathrm{Var}\,[aW]_j &= t_j^2\,( a U a^\top - a U \tilde A^\top S^{-1} \tilde A U a^\top ).
\end{aligned}
$$

(Louizos & Welling 2016, section on pseudo-data, read in the authors' code.) The law of W has the row covariance
$U - U \tilde A^\top S^{-1} \tilde A U$ of rank r - m, which is not diagonal. Pseudo-data carry multiplicative noise,
$\tilde A \circ (1 + \sigma_A \varepsilon)$, one draw a batch, whose logarithms are learned below a bound.

Departures from that code, all for numerical safety: Cholesky and triangular solves instead of an inverse, a jitter relative to the mean
diagonal of S, and a variance that is never below rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from lib import randomness
from lib.matrix_gaussian.laws import Parameters, RowColumn, Shapes, product, sd, variance

JITTER = 1e-6  # of S, relative to its mean diagonal
LOWEST_LOG_NOISE = -4.0  # the authors' code clips there
WIDTH = 0.01  # pseudo-data start uniform on [-WIDTH, WIDTH]
# -KL of multiplicative Gaussian noise from the log-uniform prior (Kingma, Salimans & Welling 2015, eq. 14), alpha <= 1
CUBIC = (1.16145124, -1.50204118, 0.58629921)


@dataclass(frozen=True)
class PseudoData:
    """A diagonal matrix Gaussian conditioned on ``count`` pseudo-data.

    Attributes:
        count: m. From the number of inputs r on, the layer is deterministic but for the pseudo-data's noise. Beyond r, S has no
            inverse but for its jitter: in float32 outputs are then a few per cent off, and slopes in s worse.
        noise: the paper's noise level λ, which bounds every logarithm of a noise by ln(λ) / 2.
        per_entry: noise σ = exp(d_k) exp(d_i) of rank one, entry by entry (the authors' classifier), where otherwise one
            number serves all pseudo-inputs and one all pseudo-outputs (their regression).
    """

    count: int
    noise: float = 0.005
    per_entry: bool = False

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(
                f"{self.count} pseudo-data: give one at least, or use RowColumn, which has none."
            )
        if not math.exp(2 * LOWEST_LOG_NOISE) < self.noise <= 1:
            raise ValueError(
                f"noise = {self.noise}: it must lie above {math.exp(2 * LOWEST_LOG_NOISE):.5f} and be at most 1."
            )

    @property
    def bound(self) -> float:
        """The largest logarithm of a noise."""
        return 0.5 * math.log(self.noise)

    def shapes(self, r: int, c: int) -> Shapes:
        own = {"pseudo_inputs": (self.count, r), "pseudo_outputs": (self.count, c)}
        noise = {"log_noise": (self.count + r + c if self.per_entry else 2,)}
        return RowColumn().shapes(r, c) | own | noise

    def noise_shapes(self, batch: int, r: int, c: int) -> Shapes:
        return {"output": (batch, c), "pseudo": (self.count, r + c)}

    def weight_noise_shapes(self, r: int, c: int) -> Shapes:
        return {"weight": (r, c), "pseudo": (self.count, r + c)}

    def start(self, r: int, c: int, members: Tensor, seed: int, purpose: str) -> Parameters:
        found = RowColumn().start(r, c, members, seed, purpose)
        for name in ("pseudo_inputs", "pseudo_outputs"):
            u = randomness.uniform(seed, members, f"{purpose}/{name}", 0, self.shapes(r, c)[name])
            found[name] = WIDTH * (2 * u - 1)
        found["log_noise"] = torch.full((len(members), *self.shapes(r, c)["log_noise"]), self.bound).to(u)
        return found

    # ------------------------------------------------------------------------------------ the noisy pseudo-data

    def noise_sd(self, p: Parameters) -> tuple[Tensor, Tensor]:
        """The noise σ of the pseudo-inputs and of the pseudo-outputs, which broadcast against them."""
        factors = sd(p, "log_noise")
        if not self.per_entry:
            return factors[..., :1, None], factors[..., 1:, None]
        r = p["pseudo_inputs"].shape[-1]
        row, inputs, outputs = factors.split([self.count, r, factors.shape[-1] - self.count - r], dim=-1)
        return row[..., :, None] * inputs[..., None, :], row[..., :, None] * outputs[..., None, :]

    def noisy(self, p: Parameters, noise: Parameters) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pseudo-inputs over √r and pseudo-outputs with their noise, and the noise itself, σ ε, of both."""
        r = p["pseudo_inputs"].shape[-1]
        of_a, of_b = self.noise_sd(p)
        noise_a, noise_b = noise["pseudo"][..., :r] * of_a, noise["pseudo"][..., r:] * of_b
        inputs = torch.addcmul(p["pseudo_inputs"], p["pseudo_inputs"], noise_a).mul_(r**-0.5)
        outputs = torch.addcmul(p["pseudo_outputs"], p["pseudo_outputs"], noise_b)
        return inputs, outputs, noise_a, noise_b

    def still(self, p: Parameters) -> tuple[Tensor, Tensor]:
        """Pseudo-data without noise, scaled as the layer's inputs are."""
        return p["pseudo_inputs"] * p["pseudo_inputs"].shape[-1] ** -0.5, p["pseudo_outputs"]

    # -------------------------------------------------------------------------------------------- the conditional law

    def forward(self, p: Parameters, a: Tensor, noise: Parameters) -> tuple[Tensor, tuple]:
        """Pre-activations (R, N, c) and what ``backward`` needs: two products more than without pseudo-data, m rows long."""
        m, (pseudo, outputs, noise_a, noise_b) = self.count, self.noisy(p, noise)
        u, t = variance(p, "log_row")[..., None, :], sd(p, "log_column")[..., None, :]
        rows = torch.cat([pseudo, a], dim=-2)  # pseudo-data and batch go through the layer together
        means, reach = product(rows, p["mean"]), product(pseudo * u, rows.mT)  # (R, m + N, c), (R, m, m + N)
        cross, factor = reach[..., m:], cholesky(reach[..., :m])
        missing = outputs - means[..., :m, :]
        # row by row in memory, or the products that read parts of it are slow
        solved = torch.cholesky_solve(torch.cat([cross, missing], dim=-1), factor).contiguous()
        gain, pull = solved[..., : a.shape[-2]], solved[..., a.shape[-2] :]  # S⁻¹S12 (R, m, N), S⁻¹(B̃ - ÃM)
        squared = a.square()
        whole = product(squared, u.mT)
        left = whole - (cross * gain).sum(-2)[..., None]
        floor = whole.mul_(8 * torch.finfo(a.dtype).eps).add_(torch.finfo(a.dtype).tiny)
        deviation = torch.maximum(left, floor).sqrt_()  # (R, N, 1)
        scaled = noise["output"] * t
        out = (means[..., m:, :] + product(cross.mT, pull)).addcmul_(deviation, scaled)
        return out, (rows, squared, u, gain, pull, deviation, left > floor, scaled, noise_a, noise_b)

    def backward(
        self, p: Parameters, tape: tuple, g: Tensor, inputs: bool
    ) -> tuple[Parameters, Tensor | None]:
        rows, squared, u, gain, pull, deviation, free, scaled, noise_a, noise_b = tape
        m, mean = self.count, p["mean"]
        pseudo, a = rows[..., :m, :], rows[..., m:, :]
        noisy = g * scaled
        d = (
            noisy.sum(-1, keepdim=True).div_(deviation).mul_(free)
        )  # twice that of the variance's factor (R, N, 1)
        missing = product(gain, g)  # of B̃ - ÃM (R, m, c)
        back = torch.cat([-missing, g], dim=-2)  # of every row's aM
        weighted = gain * d.mT
        # of S, both halves, and of S12: (R, m, m) and (R, m, N)
        of_square = torch.baddbmm(product(missing, pull.mT), weighted, gain.mT, beta=-1, alpha=0.5)
        of_square = of_square + of_square.mT
        diagonal = of_square.diagonal(dim1=-2, dim2=-1)
        diagonal.add_(diagonal.mean(-1, keepdim=True), alpha=jitter(m, g.dtype))
        of_cross = torch.baddbmm(weighted, pull, g.mT, beta=-1)
        crossed, squares = product(of_cross, a), product(of_square, pseudo)  # (R, m, r)
        of_rows = product(back if inputs else back[..., :m, :], mean.mT)
        of_pseudo = torch.addcmul(of_rows[..., :m, :], crossed + squares, u).mul_(mean.shape[-2] ** -0.5)
        # of the logarithm of s: twice u times the slope in u
        of_log = crossed.add_(squares, alpha=0.5).mul_(pseudo).sum(-2)
        of_log = of_log.mul_(2).add_(product(d.mT, squared)[..., 0, :]).mul_(u[..., 0, :])
        found = {
            "mean": product(rows.mT, back),
            "log_row": of_log,
            "log_column": product(deviation.mT, noisy)[..., 0, :],
            "pseudo_inputs": torch.addcmul(of_pseudo, of_pseudo, noise_a),
            "pseudo_outputs": torch.addcmul(missing, missing, noise_b),
            "log_noise": self._of_noise(
                of_pseudo * p["pseudo_inputs"] * noise_a, missing * p["pseudo_outputs"] * noise_b
            ),
        }
        if not inputs:
            return found, None
        below = of_rows[..., m:, :] + product(of_cross.mT, pseudo * u)
        return found, below.addcmul_(a, d * u)

    def _of_noise(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """From gradients entry by entry, in the logarithm of an entry's noise, to those of ``log_noise``."""
        if not self.per_entry:
            return torch.stack([inputs.sum((-1, -2)), outputs.sum((-1, -2))], dim=-1)
        return torch.cat([inputs.sum(-1) + outputs.sum(-1), inputs.sum(-2), outputs.sum(-2)], dim=-1)

    def weights(self, p: Parameters, noise: Parameters) -> Tensor:
        """A draw of W given noisy pseudo-data, by Matheron's rule: draw without them, then correct what they contradict."""
        inputs, outputs, _, _ = self.noisy(p, noise)
        return self._corrected(p, RowColumn().weights(p, noise), inputs, outputs)

    def mean_weights(self, p: Parameters) -> Tensor:
        """The mean of W given the pseudo-data without their noise (the paper's prediction in one pass)."""
        return self._corrected(p, p["mean"], *self.still(p))

    def _corrected(self, p: Parameters, w: Tensor, inputs: Tensor, outputs: Tensor) -> Tensor:
        reach = inputs * variance(p, "log_row")[..., None, :]
        factor = cholesky(reach @ inputs.mT)
        return w + reach.mT @ torch.cholesky_solve(outputs - inputs @ w, factor)

    def row_covariance(self, p: Parameters) -> Float[Tensor, "*R r r"]:
        """The row covariance given the pseudo-data without noise, in units where the column covariance is diag(t²)."""
        inputs, _ = self.still(p)
        u = variance(p, "log_row")
        reach = inputs * u[..., None, :]
        half = torch.linalg.solve_triangular(cholesky(reach @ inputs.mT), reach, upper=False)
        return torch.diag_embed(u) - half.mT @ half

    # --------------------------------------------------------------------------------------------- the paper's divergence

    def squares(self, p: Parameters) -> Tensor:
        """Of the law *before* it is conditioned: the paper's objective charges that one."""
        return RowColumn().squares(p)

    def log_det(self, p: Parameters) -> Tensor:
        return RowColumn().log_det(p)

    def add_pull(self, p: Parameters, factor: Tensor, gradients: Parameters) -> Tensor:
        return RowColumn().add_pull(p, factor, gradients)

    def log_det_slope(self, r: int, c: int) -> dict[str, float]:
        return RowColumn().log_det_slope(r, c)

    def noise_divergence(self, p: Parameters) -> Tensor:
        """KL of the pseudo-data's noise from a log-uniform prior, summed over entries, less its value at the bound.

        Per entry α_ki = a_k b_i has rank one, so that sums of its powers are products of sums: no table of entries is made.
        """
        (m, r), c = p["pseudo_inputs"].shape[-2:], p["mean"].shape[-1]
        top = self.bound * (2 if self.per_entry else 1)
        highest = top + sum(k * math.exp(2 * top) ** power for power, k in enumerate(CUBIC, 1))
        total = torch.full_like(p["mean"][..., 0, 0], highest * m * (r + c))
        if not self.per_entry:
            like = p["log_noise"]
            return total + (
                _minus_kl(sd(p, "log_noise")) * _entries(m * r, m * c, like.dtype, like.device)
            ).sum(-1)
        alpha = variance(p, "log_noise")
        logs = 0.5 * alpha.log()
        total = total - (r + c) * logs[..., :m].sum(-1) - m * logs[..., m:].sum(-1)
        for power, k in enumerate(CUBIC, 1):
            powers = alpha**power
            total = total - k * powers[..., :m].sum(-1) * powers[..., m:].sum(-1)
        return total

    def noise_pull(self, p: Parameters) -> Tensor:
        """The gradient of ``noise_divergence`` in ``log_noise``."""
        (m, r), c, like = p["pseudo_inputs"].shape[-2:], p["mean"].shape[-1], p["log_noise"]
        if not self.per_entry:
            return _slope(sd(p, "log_noise")).mul_(_entries(m * r, m * c, like.dtype, like.device))
        alpha, found = variance(p, "log_noise"), like.new_full(like.shape, -float(m))
        found[..., :m] = -float(r + c)
        for power, k in enumerate(CUBIC, 1):
            powers = alpha**power
            rows, others = powers[..., :m], powers[..., m:]
            opposite = [
                others.sum(-1, keepdim=True).expand_as(rows),
                rows.sum(-1, keepdim=True).expand_as(others),
            ]
            found.addcmul_(powers, torch.cat(opposite, dim=-1), value=-2.0 * power * k)
        return found


@cache
def _entries(inputs: int, outputs: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Minus how many entries each of the two noises serves."""
    return torch.tensor([-inputs, -outputs], dtype=dtype, device=device)


def jitter(m: int, dtype: torch.dtype) -> float:
    """Of S, relative to its mean diagonal: never below the rounding of an m x m factorisation."""
    return JITTER + 0.5 * m * torch.finfo(dtype).eps


def cholesky(square: Float[Tensor, "*R m m"]) -> Float[Tensor, "*R m m"]:
    """The lower factor of S, whose diagonal gains its relative jitter in place; not a number where S is no covariance."""
    diagonal = square.diagonal(dim1=-2, dim2=-1)
    diagonal.add_(diagonal.mean(-1, keepdim=True), alpha=jitter(square.shape[-1], square.dtype))
    factor, failed = torch.linalg.cholesky_ex(square)
    return factor.masked_fill_((failed != 0)[..., None, None], math.nan)


def _minus_kl(noise: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Of an entry with noise σ; α = σ²."""
    alpha = noise.square()
    return 0.5 * alpha.log() + alpha * (CUBIC[0] + alpha * (CUBIC[1] + alpha * CUBIC[2]))


def _slope(noise: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """The derivative of ``_minus_kl`` in ln σ."""
    alpha = noise.square()
    inner = (alpha * (3 * CUBIC[2])).add_(2 * CUBIC[1]).mul_(alpha).add_(CUBIC[0])
    return inner.mul_(alpha).mul_(2).add_(1)
