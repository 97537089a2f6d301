"""The integrated output layer against normal densities, dense linear algebra, autograd and fifty digits."""

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from lib.free_energy import ridge
from lib.free_energy.ridge import Moments

deterministic = settings(derandomize=True, deadline=None, max_examples=25)
cases = st.tuples(
    st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 3), st.sampled_from([(), (1,), (3,), (2, 3)])
)


def points(seed, k, o, batch, n=7):
    """Features (*batch, n, k), targets (*batch, n, o) and weights (*batch, n), one of them zero."""
    rng = np.random.default_rng(seed)
    q = rng.uniform(0.2, 2, (*batch, n))
    q[..., rng.integers(n)] = 0
    return rng.normal(size=(*batch, n, k)), 2 * rng.normal(size=(*batch, n, o)), q


def behind(x, axes=2):
    """The batch's axes moved behind the last ``axes``."""
    batch = x.ndim - axes
    return torch.from_numpy(np.ascontiguousarray(x.transpose(*range(batch, x.ndim), *range(batch))))


def moments(phi, y, q):
    weighted = phi * q[..., None]
    gram = np.einsum("...ni,...nj->...ij", weighted, phi)
    cross = np.einsum("...ni,...no->...io", weighted, y)
    return Moments(behind(gram), behind(cross), torch.as_tensor((q * (y**2).sum(-1)).sum(-1)))


def dense(gram, cross, power, t):
    """The log evidence by torch.linalg, the batch in front: differentiable in everything."""
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype)
    matrix = eye + t[..., None, None] * gram
    fit = (cross * torch.linalg.solve(matrix, cross)).sum((-1, -2))
    return -0.5 * cross.shape[-1] * torch.logdet(matrix) + 0.5 * t**2 * fit - 0.5 * t * power


def in_front(m):
    batch = m.gram.ndim - 2
    order = (*range(2, 2 + batch), 0, 1)
    return m.gram.permute(order).contiguous(), m.cross.permute(order).contiguous(), m.power


def random_t(seed, batch):
    return torch.as_tensor(10 ** np.random.default_rng(seed + 1).uniform(-3, 3, batch))


@deterministic
@given(cases)
def test_log_evidence_is_a_normal_density(case):
    """The integral of N(v; 0, I) prod N(y; v phi, 1/(t q)) is N(y; 0, 1/(t q) + phi phi^T); constants put back by hand."""
    seed, k, o, batch = case
    phi, y, q = points(seed, k, o, batch)
    t = random_t(seed, batch)
    found = ridge.log_evidence(moments(phi, y, q), t)
    assert found.shape == batch
    for index in np.ndindex(*batch):
        counts = q[index] > 0
        f, noise = phi[index][counts], 1 / (t.numpy()[index] * q[index][counts])
        density = multivariate_normal(np.zeros(len(f)), np.diag(noise) + f @ f.T)
        expected = sum(density.logpdf(column) for column in y[index][counts].T)
        expected += 0.5 * o * np.log(2 * np.pi * noise).sum()
        assert found[index].item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@deterministic
@given(cases)
def test_posterior_is_dense_linear_algebra(case):
    seed, k, o, batch = case
    m, t = moments(*points(seed, k, o, batch)), random_t(seed, batch)
    gram, cross, power = in_front(m)
    matrix = torch.eye(k, dtype=torch.float64) + t[..., None, None] * gram
    found = ridge.posterior(m, t)
    shape = (*range(len(batch), len(batch) + 2), *range(len(batch)))

    def same(ours, expected):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)

    same(found.mean, torch.linalg.solve(matrix, t[..., None, None] * cross).permute(shape))
    same(found.covariance, torch.linalg.inv(matrix).permute(shape))
    same(found.whitener, torch.linalg.inv(torch.linalg.cholesky(matrix)).permute(shape))
    same(found.log_determinant, torch.logdet(matrix))
    same(ridge.cholesky(matrix.permute(shape)), torch.linalg.cholesky(matrix).permute(shape))
    same(ridge.value(m, t, found), ridge.log_evidence(m, t))
    same(ridge.value(m, t, found), dense(gram, cross, power, t))


@deterministic
@given(cases)
def test_energies_are_derivatives_in_temperature(case):
    seed, k, o, batch = case
    m, t = moments(*points(seed, k, o, batch)), random_t(seed, batch).requires_grad_()
    (slope,) = torch.autograd.grad(dense(*in_front(m), t).sum(), t, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), t)
    t = t.detach()
    known = ridge.posterior(m, t)
    torch.testing.assert_close(ridge.energy(m, known), -slope.detach(), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(ridge.energy_variance(m, known), curvature, rtol=1e-6, atol=1e-9)


@deterministic
@given(cases)
def test_slopes_are_derivatives_in_the_moments(case):
    seed, k, o, batch = case
    m, t = moments(*points(seed, k, o, batch)), random_t(seed, batch)
    gram, cross, power = in_front(m)
    by = torch.autograd.grad(
        dense(gram.requires_grad_(), cross.requires_grad_(), power, t).sum(), (gram, cross)
    )
    shape = (*range(len(batch), len(batch) + 2), *range(len(batch)))
    for ours, expected in zip(ridge.slopes(m, t, ridge.posterior(m, t)), by, strict=True):
        torch.testing.assert_close(ours, expected.permute(shape), rtol=1e-8, atol=1e-8)


def test_mean_and_variance_of_the_energy_are_those_of_draws():
    phi, y, q = points(5, 3, 2, ())
    m, t = moments(phi, y, q), torch.tensor(0.7, dtype=torch.float64)
    known = ridge.posterior(m, t)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(400_000, 3, 2))
    v = known.mean.numpy() + np.einsum("ij,dio->djo", known.whitener.numpy(), noise)
    e = 0.5 * np.einsum("n,dno->d", q, (y - np.einsum("nk,dko->dno", phi, v)) ** 2)
    error = e.std() / len(e) ** 0.5
    assert abs(ridge.energy(m, known).item() - e.mean()) < 4 * error
    assert ridge.energy_variance(m, known).item() == pytest.approx(e.var(), rel=0.02)


def test_one_temperature_a_problem_broadcasts_over_its_networks():
    m = moments(*points(2, 3, 1, (2, 4)))
    power = m.power[:, :1]  # one power a problem broadcasts too
    m = Moments(m.gram, m.cross, power)
    t = torch.tensor([[0.5], [30.0]], dtype=torch.float64)
    each = Moments(m.gram, m.cross, power.expand(2, 4))
    full = t.expand(2, 4)
    known, one = ridge.posterior(m, t), ridge.posterior(each, full)
    assert torch.equal(ridge.log_evidence(m, t), ridge.log_evidence(each, full))
    assert torch.equal(ridge.value(m, t, known), ridge.value(each, full, one))
    assert torch.equal(ridge.energy(m, known), ridge.energy(each, one))
    for a, b in zip(ridge.slopes(m, t, known), ridge.slopes(each, full, one), strict=True):
        assert torch.equal(a, b)


def test_nothing_is_learned_at_temperature_zero():
    m, t = moments(*points(3, 4, 2, (3,))), torch.zeros(3, dtype=torch.float64)
    known = ridge.posterior(m, t)
    assert torch.equal(ridge.log_evidence(m, t), t)
    assert not known.mean.any()
    torch.testing.assert_close(known.covariance, torch.eye(4, dtype=torch.float64)[..., None].expand(4, 4, 3))
    prior_mean = 0.5 * (m.power + 2 * m.gram.diagonal().sum(-1))
    torch.testing.assert_close(ridge.energy(m, known), prior_mean)


@pytest.mark.parametrize("exact_fit", [True, False])
def test_great_temperatures_keep_their_digits(exact_fit):
    """At t = 1e8 the fit and the power, 1e8 each, cancel to some ten nats; the energy is 1e-8 of the power."""
    rng = np.random.default_rng(4)
    phi = rng.normal(size=(200, 4))
    y = phi @ rng.normal(size=(4, 1)) + (0 if exact_fit else 1e-3) * rng.normal(size=(200, 1))
    m = moments(phi, y, np.full(200, 1 / 200))
    t = torch.tensor(1e8, dtype=torch.float64)
    known = ridge.posterior(m, t)
    with mpmath.workdps(50):
        # the moments from the points in fifty digits, so that rounding them is judged too
        f, targets = mpmath.matrix(phi.tolist()), mpmath.matrix(y.tolist())
        gram, cross, power = f.T * f / 200, f.T * targets / 200, (targets.T * targets)[0] / 200
        at = mpmath.mpf(10) ** 8
        matrix = mpmath.eye(4) + at * gram
        inverse = matrix**-1
        mean = at * inverse * cross
        fit = at * (mean.T * cross)[0]
        value = float((fit - at * power - mpmath.log(mpmath.det(matrix))) / 2)
        spread = sum((inverse * gram)[i, i] for i in range(4))
        energy = float((power + (mean.T * (gram * mean - 2 * cross))[0] + spread) / 2)
    assert ridge.log_evidence(m, t).item() == pytest.approx(value, abs=1e-6)
    assert ridge.value(m, t, known).item() == pytest.approx(value, abs=1e-6)
    assert ridge.energy(m, known).item() == pytest.approx(energy, abs=1e-14)
    if exact_fit:
        assert energy == pytest.approx(4 / 2e8, rel=1e-3)  # k / 2t: the coefficient of a regular model
        assert ridge.energy_variance(m, known).item() == pytest.approx(4 / 2e16, rel=1e-3)


def test_a_matrix_that_is_not_positive_definite_has_no_factor():
    matrix = torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64)
    both = torch.stack([matrix, torch.eye(2, dtype=torch.float64)], -1)
    factor = ridge.cholesky(both)
    assert factor[..., 0].isnan().any()
    assert torch.equal(factor[..., 1], both[..., 1])
