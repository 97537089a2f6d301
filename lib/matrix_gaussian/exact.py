r"""Are the closed forms exact? Each against the brute force that it replaces, in float64 (claim P3-C1).

$$
\begin{aligned}
& \mathrm{KL}\big(N(\operatorname{vec} M, V \otimes U)\,\big\|\,\cdot\big), \\
& \operatorname{vec} W \mid (I \otimes A) \operatorname{vec} W = \operatorname{vec} B, \\
& A W \sim MN(A M,\; A U A^\top,\; V),
\end{aligned}
$$

the first by ``torch.distributions`` on the Kronecker Gaussian, the second by conditioning that Gaussian, the third by
draws: of W itself, and of pre-activations as ``laws.RowColumn`` draws them. That local reparametrisation draws every
example by itself; its law has the diagonal of A U Aᵀ only (right marginals, no correlation between examples), and is
judged against that.
Every error is relative: a distance over the size (Frobenius norm) of what is right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from lib import randomness
from lib.claims import Measurement
from lib.intervals import student
from lib.matrix_gaussian.distribution import MatrixGaussian, factor, vec
from lib.matrix_gaussian.laws import RowColumn

LARGEST = (8, 6)  # of the random matrices: their Kronecker covariance has 48 rows
SAMPLED = (6, 4)  # where moments are sampled: noise costs more than all the rest
EXAMPLES = 3  # rows of A there
CHUNK = 4_000  # draws at a time: they stay in the cache
KINDS = ("diagonal", "mixed", "full")


# ------------------------------------------------------------------------------------------------- random cases


def normal(seed: int, case: int, purpose: str, *shape: int) -> Float[Tensor, ...]:
    """Standard normal numbers of one case, float64."""
    return randomness.normal(seed, torch.tensor([case]), purpose, 0, shape, torch.float64)[0]


def random_root(noise: Float[Tensor, "n n"], diagonal: bool) -> Float[Tensor, " n"] | Float[Tensor, "n n"]:
    """Standard deviations exp(g / 2), or the factor of G Gᵀ / n + I / 10, g and G standard normal.

    The tenth keeps covariances far enough from singular ones for brute force to be a judge.
    """
    if diagonal:
        return torch.exp(0.5 * noise[0])
    return factor(noise @ noise.mT / len(noise) + 0.1 * torch.eye(len(noise), dtype=noise.dtype))


def random_law(seed: int, case: int, name: str, shape: tuple[int, int], kind: str) -> MatrixGaussian:
    """A law with a standard normal mean; ``mixed``: full rows and diagonal columns, or the reverse in odd cases."""
    (r, c), mixed = shape, kind == "mixed"
    # one call: each costs more than a small law's algebra
    noise = normal(seed, case, name, r * c + r * r + c * c)
    mean, rows, columns = noise.split([r * c, r * r, c * c])
    return MatrixGaussian(
        mean.view(r, c),
        random_root(rows.view(r, r), case % 2 == 1 if mixed else kind == "diagonal"),
        random_root(columns.view(c, c), case % 2 == 0 if mixed else kind == "diagonal"),
    )


def random_shapes(seed: int, cases: int) -> list[tuple[int, int]]:
    """Shapes from 2 x 1 to 8 x 6: two rows at least, so that a condition leaves one free."""
    r, c = LARGEST
    index = torch.arange(cases)
    rows = 2 + randomness.integers(seed, index, "rows", 0, r - 1, ())
    columns = 1 + randomness.integers(seed, index, "columns", 0, c, ())
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


# -------------------------------------------------------------------------------------------------- brute force


def as_vector(law: MatrixGaussian) -> MultivariateNormal:
    """The law of vec(W), Kronecker product and all."""
    return MultivariateNormal(vec(law.mean), law.kronecker())


def condition_vector(
    law: MatrixGaussian, a: Float[Tensor, "m r"], b: Float[Tensor, "m c"]
) -> tuple[Float[Tensor, " rc"], Float[Tensor, "rc rc"]]:
    """Mean and covariance of vec(W) given A W = B, by conditioning N(μ, K) on H vec(W) = vec(B), H = I ⊗ A."""
    h = torch.kron(torch.eye(law.mean.shape[-1], dtype=a.dtype), a)
    mean, covariance = vec(law.mean), law.kronecker()
    gain = torch.linalg.solve(h @ covariance @ h.mT, h @ covariance).mT
    return mean + gain @ (vec(b) - h @ mean), covariance - gain @ h @ covariance


def relative(found: Tensor, right: Tensor) -> float:
    """‖found - right‖ / ‖right‖, Frobenius."""
    return float((found - right).norm() / right.norm())


def kl_error(seed: int, case: int, shape: tuple[int, int], kind: str) -> float:
    """Of the closed form, between two random laws of one kind; ``mixed``: full against diagonal on both axes."""
    q = random_law(seed, case, "q", shape, kind)
    p = random_law(seed, case + 1 if kind == "mixed" else case, "p", shape, kind)
    return relative(q.kl(p), kl_divergence(as_vector(q), as_vector(p)))


def conditional_errors(seed: int, case: int, shape: tuple[int, int], kind: str) -> tuple[float, float]:
    """Of the conditional mean and covariance given one to r - 1 random rows of A."""
    r, c = shape
    m = 1 + case % (r - 1)
    a, b = normal(seed, case, "a", m, r), normal(seed, case, "b", m, c)
    law = random_law(seed, case, "conditioned", shape, kind)
    found, (mean, covariance) = law.condition(a, b), condition_vector(law, a, b)
    return relative(vec(found.mean), mean), relative(found.kronecker(), covariance)


# ----------------------------------------------------------------------------------------------------- sampling


def chunks(draws: int) -> Iterator[Tensor]:
    """The numbers of the draws, CHUNK at a time."""
    yield from torch.arange(draws).split(CHUNK)


def local_draws(
    law: MatrixGaussian, a: Float[Tensor, "N r"], draws: int, seed: int, purpose: str
) -> Iterator[Float[Tensor, "n N c"]]:
    """Pre-activations by the layer's own forward pass, in float64."""
    p = {"mean": law.mean, "log_row": law.rows.log(), "log_column": law.columns.log()}
    for index in chunks(draws):
        noise = randomness.normal(seed, index, purpose, 0, (len(a), law.mean.shape[-1]), torch.float64)
        yield RowColumn().forward(p, a, {"output": noise})[0]


def weight_draws(
    law: MatrixGaussian, a: Float[Tensor, "N r"], draws: int, seed: int, purpose: str
) -> Iterator[Float[Tensor, "n N c"]]:
    """A W with W drawn whole."""
    for index in chunks(draws):
        yield a @ law.sample(randomness.normal(seed, index, purpose, 0, law.noise_shape, torch.float64))


def moment_errors(
    drawn: Iterator[Float[Tensor, "n N c"]], mean: Float[Tensor, "N c"], covariance: Float[Tensor, "d d"]
) -> tuple[float, float]:
    """Errors of the mean and of the covariance of vec(AW), over all draws."""
    count, total, squares = 0, torch.zeros(mean.numel(), dtype=mean.dtype), torch.zeros_like(covariance)
    for values in drawn:
        difference = vec(values - mean)  # from the right mean: nothing large cancels
        count, total = count + len(values), total + difference.sum(0)
        squares += difference.mT @ difference
    shift = total / count
    found = squares / count - torch.outer(shift, shift)
    return float(shift.norm() / mean.norm()), relative(found, covariance)


def sampled(seed: int, repetition: int, draws: int) -> dict[str, float]:
    """Errors of one repetition, by cell: a random law and a random A each."""
    a = normal(seed, repetition, "examples", EXAMPLES, SAMPLED[0])
    simple, full = (random_law(seed, repetition, "sampled", SAMPLED, kind) for kind in ("diagonal", "full"))
    rows = (a @ simple.row_covariance @ a.mT).diagonal().diag()
    independent = torch.kron(simple.column_covariance, rows)
    together = torch.kron(full.column_covariance, a @ full.row_covariance @ a.mT)
    of = (draws, seed, f"draws {repetition}")
    local = moment_errors(local_draws(simple, a, *of), a @ simple.mean, independent)
    whole = moment_errors(weight_draws(full, a, *of), a @ full.mean, together)
    names = (
        f"{what}, {how}"
        for how in ("local reparametrisation", "whole weights")
        for what in ("mean", "covariance")
    )
    return dict(zip(names, (*local, *whole), strict=True))


# ----------------------------------------------------------------------------------------- what the rule judges


def measure(
    *, cases: int, draws: int, seeds: int, seed: int, layers: Sequence[tuple[int, int]] = ()
) -> list[Measurement]:
    """P3-C1: errors of the KL, of the conditional law, and of sampled means and covariances of AW.

    Args:
        cases: random cases a seed and kind of covariance.
        draws: in each repetition, of both ways of drawing. 200,000 leave an error of about 1 %.
        seeds: repetitions; an exact error is the largest of all, a sampled one their mean with Student's interval.
        seed: of everything.
        layers: shapes (r, c) to try beside the random ones, with full covariances; brute force takes (rc)³.
    """
    shapes = {s: random_shapes(seed + s, cases) for s in range(seeds)}
    cells = {kind: (kind, shapes) for kind in KINDS}
    cells |= {f"{r} x {c}": ("full", dict.fromkeys(shapes, [(r, c)] * cases)) for r, c in layers}
    size, found = {"n": cases * seeds, "seeds": seeds}, []
    for cell, (kind, own) in cells.items():
        each = [(seed + s, case, shape, kind) for s in own for case, shape in enumerate(own[s])]
        found.append(_exact("kl_error", cell, [kl_error(*one) for one in each], size))
        means, covariances = zip(*(conditional_errors(*one) for one in each), strict=True)
        found.append(_exact("conditional_error", f"mean, {cell}", means, size))
        found.append(_exact("conditional_error", f"covariance, {cell}", covariances, size))
    repetitions = [sampled(seed, s, draws) for s in range(seeds)]
    for cell in repetitions[0]:
        interval = student(np.array([errors[cell] for errors in repetitions]))
        found.append(Measurement("moments_error", cell, *interval, n=draws, seeds=seeds))
    return found


def _exact(name: str, cell: str, errors: Sequence[float], size: dict[str, int]) -> Measurement:
    """The largest error, or what is not a number: no interval, since nothing is estimated."""
    worst = float(np.max(errors))
    return Measurement(name, cell, worst, worst, worst, **size)
