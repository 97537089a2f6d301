"""The closed forms against the Gaussian of vec(W), Kronecker covariance and all, and what must not change them."""

import itertools
import math

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from lib import randomness
from lib.matrix_gaussian.distribution import MatrixGaussian, factor, vec
from lib.matrix_gaussian.pseudo_data import JITTER, PseudoData

R, C, BATCH = 5, 3, 4
KINDS = list(itertools.product((True, False), repeat=2))  # are rows diagonal, are columns


def normal(name, *shape):
    return randomness.normal(5, torch.arange(1), name, 0, shape, torch.float64)[0]


def covariance(name, size, *batch):
    g = normal(name, *batch, size, size)
    return g @ g.mT / size + 0.1 * torch.eye(size, dtype=g.dtype)


def law(name, kinds=(False, False), batch=(), shape=(R, C)):
    roots = [
        torch.exp(0.5 * normal(f"{name}{axis}", *batch, size))
        if simple
        else factor(covariance(f"{name}{axis}", size, *batch))
        for axis, size, simple in zip("rc", shape, kinds, strict=True)
    ]
    return MatrixGaussian(normal(f"{name}m", *batch, *shape), *roots)


def vector(one):
    return MultivariateNormal(vec(one.mean), one.kronecker())


def close(found, right, tolerance=1e-12):
    assert found.shape == right.shape
    assert (found - right).norm() <= tolerance * right.norm()


# ----------------------------------------------------------------------------------------- what the numbers say


def test_kronecker_is_the_covariance_of_stacked_columns():
    one = law("x")
    u, v, k = one.row_covariance, one.column_covariance, one.kronecker()
    for (i, j), (p, q) in itertools.product(itertools.product(range(R), range(C)), repeat=2):
        assert k[j * R + i, q * R + p] == pytest.approx(float(u[i, p] * v[j, q]), rel=1e-14)
    assert vec(one.mean)[2 * R + 1] == one.mean[1, 2]
    close(vec(one.variance), k.diagonal())


@pytest.mark.parametrize("kinds", KINDS)
def test_covariances_are_those_given(kinds):
    one = law("x", kinds, (BATCH,))
    for found, root, simple in zip(
        (one.row_covariance, one.column_covariance), (one.rows, one.columns), kinds, strict=True
    ):
        close(found, torch.diag_embed(root**2) if simple else root @ root.mT)
    batched = vec(one.variance)
    close(batched, one.kronecker().diagonal(dim1=-2, dim2=-1))


def test_full_factors_what_it_is_given():
    u, v = covariance("u", R), covariance("v", C)
    one = MatrixGaussian.full(normal("m", R, C), row_covariance=u, column_covariance=v)
    close(one.kronecker(), torch.kron(v, u))


def test_diagonal_expands_a_batch():
    one = MatrixGaussian.diagonal(
        normal("m", BATCH, R, C), torch.ones(R).double(), 2 * torch.ones(C).double()
    )
    assert one.rows.shape == (BATCH, R)
    close(one.variance, torch.full((BATCH, R, C), 4.0, dtype=torch.float64))


# ------------------------------------------------------------------------------------ densities and divergences


@pytest.mark.parametrize(("q", "p"), list(itertools.product(KINDS, KINDS)))
def test_kl_is_that_of_the_kronecker_gaussian(q, p):
    a, b = law("q", q, (BATCH,)), law("p", p, (BATCH,))
    close(a.kl(b), kl_divergence(vector(a), vector(b)))
    single = law("p", p)  # against one law for the whole batch
    close(a.kl(single), kl_divergence(vector(a), vector(single)))
    assert a.kl(a).abs().max() < 1e-13


def test_kl_of_diagonals_from_the_standard_prior_is_the_papers_formula():
    one = law("q", (True, True))
    prior = MatrixGaussian.diagonal(
        torch.zeros(R, C).double(), torch.ones(R).double(), torch.ones(C).double()
    )
    u, v = one.rows**2, one.columns**2
    right = 0.5 * (
        u.sum() * v.sum() + one.mean.square().sum() - R * C - C * u.log().sum() - R * v.log().sum()
    )
    close(one.kl(prior), right)


@pytest.mark.parametrize("kinds", KINDS)
def test_log_prob_and_entropy_are_those_of_the_kronecker_gaussian(kinds):
    one, w = law("x", kinds, (BATCH,)), 3 * normal("w", 7, BATCH, R, C)
    close(one.log_prob(w), vector(one).log_prob(vec(w)))
    close(one.entropy(), vector(one).entropy())


def test_a_scale_moved_between_the_axes_changes_nothing():
    one, other, w, scale = law("q"), law("p"), normal("w", R, C), 7.3
    moved = MatrixGaussian(one.mean, one.rows * scale, one.columns / scale)
    close(moved.log_prob(w), one.log_prob(w))
    close(moved.kl(other), one.kl(other))
    close(other.kl(moved), other.kl(one))
    wrong = MatrixGaussian(one.mean, one.rows * scale, one.columns)
    assert abs(wrong.kl(other) - one.kl(other)) > 1


def test_gradients_flow_through_the_divergence():
    q, p = law("q"), law("p", (True, False))
    leaves = [t.clone().requires_grad_() for t in (q.mean, q.rows, q.columns)]

    def kl(mean, rows, columns):
        return MatrixGaussian(mean, rows.tril(), columns.tril()).kl(p)

    assert torch.autograd.gradcheck(kl, leaves)


# -------------------------------------------------------------------------------------------------------- draws


@pytest.mark.parametrize("kinds", KINDS)
def test_draws_have_the_laws_moments(kinds):
    """The bound is four times the expected Frobenius error: of the covariance's, at most √((d + 1) / n) of its norm."""
    n, one = 40_000, law("x", kinds)
    w = vec(one.sample(randomness.normal(1, torch.arange(n), "draw", 0, one.noise_shape, torch.float64)))
    close(w.mean(0), vec(one.mean), 4 * float((one.kronecker().trace() / n).sqrt() / one.mean.norm()))
    close(w.T.cov(), one.kronecker(), 4 * math.sqrt((R * C + 1) / n))


def test_a_draw_is_linear_in_its_noise():
    one, e = law("x"), normal("e", 6, R, C)
    root = torch.kron(one.columns, one.rows)
    close(vec(one.sample(e) - one.mean), vec(e) @ root.mT)


# ------------------------------------------------------------------------------------------- laws made of a law


@pytest.mark.parametrize("kinds", KINDS)
def test_marginals_are_blocks(kinds):
    one, rows, columns = law("x", kinds, (BATCH,)), [3, 0, 4], [2, 0]
    small = one.marginal_rows(rows).marginal_columns(torch.tensor(columns))
    assert not small.singular
    kept = [j * R + i for j in columns for i in rows]
    close(vec(small.mean), vec(one.mean)[..., kept])
    close(small.kronecker(), one.kronecker()[..., kept, :][..., kept])
    close(one.marginal_rows(slice(1, 3)).mean, one.mean[..., 1:3, :])


@pytest.mark.parametrize("kinds", KINDS)
def test_linear_images_have_the_image_of_the_moments(kinds):
    one, a, b = law("x", kinds), normal("a", BATCH, 4, R), normal("b", BATCH, C, 2)
    image, both = one.transform(a, b), b.mT[..., :, None, :, None] * a[..., None, :, None, :]
    linear = both.flatten(-4, -3).flatten(-2)  # Bᵀ ⊗ A
    close(image.mean, a @ one.mean @ b)
    close(image.kronecker(), linear @ one.kronecker() @ linear.mT)
    assert not image.singular
    close(image.log_prob(image.mean), vector(image).log_prob(vec(image.mean)))
    assert one.transform() is one


def test_images_of_too_many_or_repeated_rows_are_singular():
    one, a = law("x"), normal("a", R + 2, R)
    wide, twice = one.transform(a), one.transform(torch.cat([a[:1], a[:1]]))
    for image, by in ((wide, a), (twice, torch.cat([a[:1], a[:1]]))):
        assert image.singular
        close(image.row_covariance, by @ one.row_covariance @ by.mT)
        image.sample(torch.zeros(image.noise_shape, dtype=torch.float64))


def test_images_that_are_small_or_nearly_dependent_are_not_singular():
    one, a = law("x"), normal("a", 2, R)
    shrunk, points = one.transform(1e-9 * a), a @ one.mean
    close(shrunk.log_prob(1e-9 * points), one.transform(a).log_prob(points) + 2 * C * math.log(1e9))
    near = one.transform(torch.stack([a[0], a[0] + 1e-7 * a[1]]))  # det = det of a's, times 1e-14
    right = one.transform(a).entropy() + C * math.log(1e-7)
    assert near.entropy() == pytest.approx(float(right), rel=1e-7)


# ------------------------------------------------------------------------------------------------- conditioning


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("m", [1, 3, R - 1])
def test_conditioning_is_that_of_the_vectorised_gaussian(kinds, m):
    one, a, b = law("x", kinds), normal("a", m, R), normal("b", m, C)
    h, k = torch.kron(torch.eye(C, dtype=a.dtype), a), one.kronecker()
    gain = k @ h.mT @ torch.linalg.inv(h @ k @ h.mT)
    found = one.condition(a, b)
    close(vec(found.mean), vec(one.mean) + gain @ (vec(b) - h @ vec(one.mean)), 1e-11)
    close(found.kronecker(), k - gain @ h @ k, 1e-11)
    assert found.rows.shape == (R, R - m)
    drawn = found.sample(normal("e", 20, *found.noise_shape))
    assert (a @ drawn - b).abs().max() < 1e-12
    assert found.variance.min() > 0


def test_conditioning_works_for_a_batch_and_one_by_one():
    one, a, b = law("x"), normal("a", BATCH, 3, R), normal("b", BATCH, 3, C)
    whole, steps = one.condition(a, b), one.condition(a[:, :1], b[:, :1]).condition(a[:, 1:], b[:, 1:])
    for i in range(BATCH):
        own = one.condition(a[i], b[i])
        close(whole.mean[i], own.mean)
        close(whole.row_covariance[i], own.row_covariance)
    close(steps.mean, whole.mean, 1e-11)
    close(steps.row_covariance, whole.row_covariance, 1e-11)
    fixed = one.condition(normal("a", R, R), normal("b", R, C))  # as many conditions as rows: no freedom left
    assert fixed.rows.shape == (R, 0)
    assert not fixed.variance.any()


def test_a_conditioned_law_has_a_density_where_it_still_varies():
    one, a, b, new = law("x"), normal("a", 2, R), normal("b", 2, C), normal("new", 3, R)
    image = one.condition(a, b).transform(new)
    assert not image.singular
    close(image.log_prob(image.mean), vector(image).log_prob(vec(image.mean)))
    known = one.condition(a, b).transform(torch.cat([new[:1], a[:1]]))
    assert known.singular
    close(known.mean[1], b[0])
    last, mixed = torch.eye(R, dtype=torch.float64)[-2:], normal("two", 2, 2)
    fixed = one.condition(
        mixed @ last, b
    )  # two equations for two rows, which rounding alone would leave 1e-17 of freedom
    assert not fixed.variance[-2:].any()
    assert fixed.transform(last[:1]).singular
    close(fixed.mean[-2:], torch.linalg.solve(mixed, b), 1e-11)


def jitter_error(law, inputs):
    """By how much a jitter j on S moves a correction U Aᵀ S⁻¹ (...) at most: j / λ_min(S), in units of U's root."""
    s = inputs @ law.row_covariance @ inputs.mT
    return float((JITTER * s.diagonal(dim1=-2, dim2=-1).mean(-1) / torch.linalg.eigvalsh(s)[:, 0]).max())


@pytest.mark.parametrize("size", [1.0, 100.0])
def test_pseudo_data_are_a_conditioned_diagonal_law(size):
    """Equal but for the jitter of S: S⁻¹ - (S + jI)⁻¹ = j S⁻¹ (S + jI)⁻¹, and j (S + jI)⁻¹ is at most j / λ_min(S)."""
    m, pseudo = 3, PseudoData(3)
    p = {name: value.double() for name, value in pseudo.start(R, C, torch.arange(BATCH), 3, "layer").items()}
    p["pseudo_inputs"], p["pseudo_outputs"] = size * normal("in", BATCH, m, R), normal("out", BATCH, m, C)
    p["log_row"] += 0.5 * normal("row", BATCH, R)
    law = MatrixGaussian.diagonal(p["mean"], p["log_row"].exp(), p["log_column"].exp())

    def assert_near(found, right, before, error):
        """In units of the rows' standard deviations, against the size of the correction."""
        assert ((found - right) / law.rows[..., None]).norm() < error * (
            (right - before) / law.rows[..., None]
        ).norm()

    still = law.condition(*pseudo.still(p))
    error = jitter_error(law, pseudo.still(p)[0])
    assert error < 1e-3
    assert (pseudo.row_covariance(p) - still.row_covariance).norm() < error * law.row_covariance.norm()
    assert_near(pseudo.mean_weights(p), still.mean, law.mean, error)

    noise = {"weight": normal("w", BATCH, R, C), "pseudo": normal("p", BATCH, m, R + C)}
    inputs, outputs, _, _ = pseudo.noisy(p, noise)
    noisy, before, drawn = (
        law.condition(inputs, outputs),
        law.sample(noise["weight"]),
        pseudo.weights(p, noise),
    )
    error = jitter_error(law, inputs)
    assert (inputs @ drawn - outputs).norm() < error * (inputs @ before - outputs).norm()
    free = (
        noisy.row_covariance / law.rows.square()[..., None, :]
    )  # I - U Aᵀ S⁻¹ A: what it leaves of a deviation
    assert_near(drawn, noisy.mean + free @ (before - law.mean), before, error)


# ----------------------------------------------------------------------------------------------------- refusals


def test_singular_laws_refuse_what_needs_a_density():
    one = law("x")
    flat = one.condition(normal("a", 2, R), normal("b", 2, C))
    still = MatrixGaussian.diagonal(one.mean, torch.zeros(R).double(), torch.ones(C).double())
    for refused in (
        lambda: flat.log_prob(one.mean),
        lambda: flat.entropy(),
        lambda: flat.kl(one),
        lambda: one.kl(flat),
        lambda: still.log_prob(one.mean),
        lambda: one.kl(still),
    ):
        with pytest.raises(ValueError, match="singular law"):
            refused()


def test_what_is_no_covariance_is_named():
    mean, u, v = normal("m", R, C), covariance("u", R), covariance("v", C)

    def full(u, v):
        return MatrixGaussian.full(mean, row_covariance=u, column_covariance=v)

    with pytest.raises(ValueError, match="row_covariance is not positive definite"):
        full(u - 5 * torch.eye(R), v)
    with pytest.raises(ValueError, match=r"column_covariance is not positive definite \(1 of 2"):
        full(u, torch.stack([v, -v]))
    with pytest.raises(ValueError, match="column_covariance is not symmetric"):
        full(u, v + torch.ones(C, C).double().triu(1))
    with pytest.raises(ValueError, match="row_covariance has the shape"):
        full(v, v)
    with pytest.raises(ValueError, match="not finite"):
        full(u * math.nan, v)


def test_what_is_no_root_is_refused():
    mean, l, k = normal("m", R, C), factor(covariance("u", R)), factor(covariance("v", C))  # noqa: E741
    with pytest.raises(ValueError, match="rows is no lower triangular factor"):
        MatrixGaussian(mean, l.mT.contiguous(), k)
    with pytest.raises(ValueError, match="columns has lengths below 0"):
        MatrixGaussian(mean, l, -k)
    with pytest.raises(ValueError, match="rows has the shape"):
        MatrixGaussian(mean, torch.cat([l, l], dim=1), k)


def test_conditions_and_shapes_that_do_not_fit_are_refused():
    one, a, b = law("x"), normal("a", R + 1, R), normal("b", R + 1, C)
    with pytest.raises(ValueError, match="6 conditions on a law of row rank 5"):
        one.condition(a, b)
    with pytest.raises(ValueError, match="depend on each other"):
        one.condition(torch.stack([a[0], a[1], a[0] - 2 * a[1]]), b[:3])
    with pytest.raises(ValueError, match="depend on each other"):
        one.condition(a[:1], b[:1]).condition(3 * a[:1], b[:1])
    with pytest.raises(ValueError, match="twice"):
        one.marginal_rows([0, 0])
    with pytest.raises(ValueError, match="one shape"):
        one.kl(law("y", shape=(R, C + 1)))
    with pytest.raises(ValueError, match="noise's last axes"):
        one.sample(normal("e", R, C + 1))
