"""Gaussian approximations against closed forms, quadrature, finite differences, naive code, and what must be refused."""

import math
from dataclasses import replace

import pytest
import torch

from lib import randomness
from lib.free_energy import ridge, truths
from lib.free_energy.evidence import linear, linear_moments, one_unit, one_unit_free_energy
from lib.free_energy.features import Layers
from lib.free_energy.regression import Regression, join
from lib.free_energy.targets import target
from lib.free_energy.truths import Truth
from lib.free_energy.variational import (
    Gaussians,
    Options,
    fit_full_gaussian,
    fit_laplace,
    fit_matrix_gaussian,
    fit_mean_field,
    gauss_newton,
    integrand,
    jacobian,
    put_to_sleep,
    rank_one,
    step,
)

SEED = 990
LINE = Truth("line", (3, 1), (0.7, -1.2, 0.4, 0.0))


def normal(*shape, purpose="test"):
    return randomness.normal(SEED, torch.arange(shape[0]), purpose, 0, shape[1:], torch.float64)


def diagonal(matrix):
    return matrix.diagonal(dim1=-2, dim2=-1).diag_embed()


@pytest.fixture(scope="module")
def lines():
    """Linear regression without a constant under a prior of scale 1.5: the problem, the target, starts near nothing."""
    problem = truths.data(LINE, 40, 3, SEED, sigma=0.5)
    skewed = torch.tensor([[1.0, 0.6, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]], dtype=torch.float64)
    problem = replace(problem, inputs=problem.inputs @ skewed)
    return problem, target(problem, (3, 1), collapsed=False, bias=False, weight_scale=1.5), normal(3, 4, 3)


@pytest.fixture(scope="module")
def kinks():
    """1-1-1 networks at n = 100 and 1000: the exact free energies, the target, and draws from the true posterior."""
    problem = join([truths.data(truths.T1, n, 3, SEED) for n in (100, 1000)])
    collapsed, whole = target(problem, (1, 1, 1)), target(problem, (1, 1, 1), collapsed=False)
    one = torch.ones(6, 1, dtype=torch.float64)
    nodes = one_unit(collapsed, one)
    mass = nodes.log_weight + collapsed.log_likelihood(collapsed.statistics(nodes.position), one)
    levels = torch.softmax(mass, 1).cumsum(1)
    index = torch.searchsorted(levels, ((torch.arange(16).double() + 0.5) / 16).expand(6, -1).contiguous())
    hidden = nodes.position.gather(1, index[..., None].expand(-1, -1, 2))
    output = ridge.posterior(collapsed.statistics(hidden), one).mean[:, 0].permute(1, 2, 0)
    return one_unit_free_energy(collapsed, one), whole, torch.cat([hidden, output], 2)


def test_linear_regression_is_solved_exactly_by_every_full_gaussian(lines):
    problem, whole, starts = lines
    exact = linear(problem, 1.5)
    laplace, full = fit_laplace(whole, starts), fit_full_gaussian(whole, starts, seed=SEED)
    torch.testing.assert_close(laplace.free_energy, exact, rtol=0, atol=1e-9)
    torch.testing.assert_close(full.free_energy, exact, rtol=0, atol=1e-4)
    assert full.standard_error.max() < 1e-4  # the samples agree where q is the posterior
    moments = linear_moments(problem, 1.5)
    precision = (moments.gram.permute(2, 0, 1) + torch.eye(3)) / 1.5**2
    for fit in (laplace, full):
        covariance = fit.factor @ fit.factor.mT
        torch.testing.assert_close(
            covariance @ precision, torch.eye(3).double().expand(3, 3, 3), rtol=0, atol=0.01
        )
        mean = 1.5 * torch.linalg.solve(1.5**2 * precision, moments.cross.permute(2, 0, 1))[..., 0]
        torch.testing.assert_close(fit.position, mean, rtol=0, atol=0.01)


def test_linear_regression_costs_independent_coordinates_what_its_correlations_say(lines):
    problem, whole, starts = lines
    precision = linear_moments(problem, 1.5).gram.permute(2, 0, 1) + torch.eye(3)
    cost = 0.5 * (precision.diagonal(dim1=1, dim2=2).log().sum(1) - torch.logdet(precision))
    assert cost.min() > 0.2
    # correlated coordinates, one at a time: many steps
    options = Options(rounds=((2, 8, 100), (1, 32, 800)), rates=(0.3, 0.05))
    fit = fit_mean_field(whole, starts, options, seed=SEED)
    error = (fit.free_energy - linear(problem, 1.5) - cost).abs()
    assert (error < 4 * fit.standard_error + 0.002).all()
    variance = 1.5**2 / precision.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close((fit.factor @ fit.factor.mT), variance.diag_embed(), rtol=0.05, atol=1e-12)


def test_bounds_lie_above_the_exact_free_energy_in_their_order(kinks):
    exact, whole, starts = kinks
    mean_field, full = (fit(whole, starts, seed=SEED) for fit in (fit_mean_field, fit_full_gaussian))
    for fit in (mean_field, full):
        assert (fit.free_energy > exact - 3 * fit.standard_error).all()
        assert not fit.record["refused"]
    assert (mean_field.free_energy > full.free_energy + 0.3).all()
    assert (full.free_energy < exact + 1.5).all()
    laplace = fit_laplace(whole, starts)
    assert ((laplace.free_energy - exact).abs() < 1.5).all()
    assert laplace.record["slope"].max() < 1.0


@pytest.mark.parametrize("fit", [fit_mean_field, fit_full_gaussian])
def test_the_quick_settings_come_near_a_run_ten_times_as_long(kinks, fit):
    _, whole, starts = kinks
    longer = Options(rounds=((8, 16, 60), (4, 32, 120), (2, 64, 400)), fresh=8192)
    quick, long = fit(whole, starts, seed=SEED), fit(whole, starts, longer, seed=SEED + 1)
    error = (quick.standard_error.square() + long.standard_error.square()).sqrt()
    assert (quick.free_energy - long.free_energy < 0.05 + 3 * error).all()


def test_a_unit_more_costs_a_gaussian_more_than_it_costs_the_truth(kinks):
    exact, _, small = kinks
    problem = join([truths.data(truths.T1, n, 3, SEED) for n in (100, 1000)])
    wide = target(problem, (1, 2, 1), collapsed=False)
    w, b, v, c = small[..., None].unbind(2)
    starts = torch.cat([w, 0 * w - 0.1, b, 0 * b - 0.5, v, 0 * v + 0.7, c], 2)  # the second unit is dead
    assert wide.dead(starts)[..., 1].all()
    fit = fit_full_gaussian(wide, starts, seed=SEED)
    # F of the wider network is at most log 4 above that of the smaller one
    assert (fit.free_energy > exact + math.log(4) - 3 * fit.standard_error).all()
    assert (fit.free_energy < exact + 6).all()


@pytest.mark.parametrize(
    ("widths", "bias", "scales"), [((1, 2, 1), True, (1.0, 2.0)), ((2, 3, 2, 2), False, (0.5, 1.0))]
)
def test_the_integrand_has_the_mean_of_naive_code(widths, bias, scales):
    dimension = Layers(widths, bias).dimension
    inputs, targets = normal(1, 20, widths[0]), normal(1, 20, widths[-1], purpose="targets")
    problem = Regression(inputs, targets, torch.full((1, 20), 0.3).double(), torch.tensor([1.7]).double())
    whole = target(problem, widths, collapsed=False, bias=bias, weight_scale=scales[0], bias_scale=scales[1])
    factor = 0.2 * normal(1, 1, dimension, dimension, purpose="factor").tril(-1) + 0.3 * torch.eye(dimension)
    q, noise = (
        Gaussians(normal(1, 1, dimension, purpose="mean"), factor.double()),
        normal(1, 20_000, dimension),
    )
    got = integrand(whole, q, noise)[0, 0]

    sd = whole.scale
    posterior = torch.distributions.MultivariateNormal(
        q.mean[0, 0] * sd, scale_tril=sd[:, None] * factor[0, 0]
    )
    prior = torch.distributions.MultivariateNormal(torch.zeros_like(sd), torch.diag(sd**2))
    theta = q.mean[0, 0] * sd + (noise[0] @ factor[0, 0].mT) * sd
    values = inputs[0].expand(len(theta), -1, -1)
    layers = Layers(widths, bias).split(theta)
    for i, (weight, constant) in enumerate(layers):
        values = values @ weight.mT + (0 if constant is None else constant[:, None])
        values = torch.relu(values) if i + 1 < len(layers) else values
    energy = 0.5 * 0.3 * (values - targets[0]).square().sum((1, 2)) - 1.7
    expected = energy + posterior.log_prob(theta) - prior.log_prob(theta)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    closed = energy.mean() + torch.distributions.kl_divergence(posterior, prior)
    assert abs(float(got.mean() - closed)) < 0.1


@pytest.mark.parametrize("shape", [diagonal, torch.tril])
@pytest.mark.parametrize("widths", [(1, 2, 1), (1, 2, 2, 1)])
def test_steps_follow_the_bounds_gradient(shape, widths):
    """With noise of exact first and second moments, E_q[h] - log|L| on it is differentiated by finite differences."""
    whole = target(truths.data(truths.T1, 30, 2, SEED), widths, collapsed=False)
    dimension = len(whole.scale)
    noise = normal(2, 64, dimension)
    noise = noise - noise.mean(1, keepdim=True)
    noise = noise @ torch.linalg.inv(torch.linalg.cholesky(noise.mT @ noise / 64)).mT
    factor = shape(0.1 * normal(2, 1, dimension, dimension, purpose="factor")).tril(-1) + 0.3 * torch.eye(
        dimension
    )
    q = Gaussians(normal(2, 1, dimension, purpose="mean"), factor.double())
    rate, size = 1e-3, 1e-6
    moved = step(whole, q, noise, rate, 1e9, shape)
    inverse = torch.linalg.inv(q.factor)
    shift = (inverse @ (moved.mean - q.mean)[..., None])[:, 0, :, 0] / -rate
    spread = inverse @ moved.factor
    spread = (
        spread.tril(-1) + diagonal(spread).clamp_min(1e-300).log().nan_to_num(0).mul(torch.eye(dimension))
    )[:, 0] / -rate

    def value(delta, a):
        moved = q.mean + (q.factor @ delta[..., None])[..., 0]
        return integrand(whole, Gaussians(moved, q.factor @ (torch.eye(dimension) + a)), noise).mean(2)[:, 0]

    zero, one = torch.zeros(2, 1, dimension).double(), torch.eye(dimension).double()
    nothing = torch.zeros(2, 1, dimension, dimension).double()
    for i in range(dimension):
        slope = (value(zero + size * one[i], nothing) - value(zero - size * one[i], nothing)) / (2 * size)
        torch.testing.assert_close(shift[:, i], slope, rtol=1e-3, atol=1e-3)
        for j in range(i + 1):
            e = size * torch.outer(one[i], one[j])
            slope = (value(zero, nothing + e) - value(zero, nothing - e)) / (2 * size)
            expected = (
                torch.zeros_like(slope) if shape is diagonal and i != j else slope * (0.5 if i == j else 1.0)
            )
            torch.testing.assert_close(spread[:, i, j], expected, rtol=1e-3, atol=1e-3)


def test_long_steps_are_shortened_to_their_reach(kinks):
    _, whole, starts = kinks
    q = Gaussians(starts[:, :2], torch.eye(4).double().expand(6, 2, 4, 4).contiguous())
    moved = step(whole, q, normal(6, 8, 4), 100.0, 0.1, torch.tril)
    assert ((moved.mean - q.mean).norm(dim=-1) < 0.1 + 1e-12).all()
    assert (moved.factor.diagonal(dim1=-2, dim2=-1) > 0.9).all()


@pytest.mark.parametrize(("widths", "bias"), [((1, 3, 1), True), ((2, 2, 3, 2), True), ((2, 3, 1), False)])
def test_jacobians_are_those_of_autograd(widths, bias):
    layers = Layers(widths, bias)
    position, inputs = normal(2, 2, layers.dimension), normal(2, 5, widths[0], purpose="inputs")
    for output in range(widths[-1]):
        found = jacobian(layers, position, inputs, output)
        for r in range(2):

            def values(w, r=r, output=output):
                return layers.forward(w[None], inputs[r : r + 1], last=False)[-1][0, :, output].sum(0)

            expected = torch.autograd.functional.jacobian(values, position[r])
            torch.testing.assert_close(found[r], expected.permute(1, 2, 0))


def test_gauss_newton_is_the_same_from_tables_and_from_points():
    problem = join([truths.data(truths.T1, n, 2, SEED, sigma=0.5) for n in (20, 50)])
    tabled = target(problem, (1, 2, 1), collapsed=False)
    position = normal(4, 3, 7)
    slopes = jacobian(tabled.layers, position, problem.inputs, 0)
    expected = torch.einsum("rkdn,rn,rken->rkde", slopes, problem.weights, slopes)
    torch.testing.assert_close(gauss_newton(tabled, position), expected)
    # two outputs add up
    wide = Regression(problem.inputs, torch.cat([problem.targets] * 2, 2), problem.weights, problem.truth)
    both = target(wide, (1, 2, 2), collapsed=False)
    position = normal(4, 3, 10)
    slopes = [jacobian(both.layers, position, problem.inputs, o) for o in (0, 1)]
    expected = sum(torch.einsum("rkdn,rn,rken->rkde", s, problem.weights, s) for s in slopes)
    torch.testing.assert_close(gauss_newton(both, position), expected)


@pytest.mark.parametrize("widths", [(1, 3, 1), (1, 2, 3, 1)])
def test_sleep_moves_dead_units_and_no_function(widths):
    whole = target(truths.data(truths.T1, 30, 2, SEED), widths, collapsed=False)
    starts = normal(2, 50, len(whole.scale))
    asleep, dead = put_to_sleep(whole, starts), whole.dead(starts)
    assert dead.any()
    torch.testing.assert_close(whole.statistics(asleep), whole.statistics(starts))
    assert (whole.dead(asleep) >= dead).all()
    touched = (asleep != starts).any(-1)
    assert (touched == dead.any(-1)).all()
    weight, bias = whole.layers.split(asleep)[0]
    first = dead[..., : widths[1]]
    assert (weight[..., 0][first] == 0).all()
    assert (bias[first] == -1.25).all()


@pytest.mark.parametrize("fit", [fit_mean_field, fit_full_gaussian])
def test_answers_are_functions_of_seed_and_member_alone(kinks, fit):
    _, whole, starts = kinks
    short = Options(rounds=((3, 4, 5), (1, 8, 10)), fresh=600)
    problem = join([truths.data(truths.T1, n, 3, SEED) for n in (100, 1000)])
    together, again = (fit(whole, starts, short, seed=SEED) for _ in range(2))
    assert torch.equal(together.free_energy, again.free_energy)
    alone = fit(
        target(problem[3:4], (1, 1, 1), collapsed=False),
        starts[3:4],
        short,
        seed=SEED,
        members=torch.tensor([3]),
    )
    torch.testing.assert_close(alone.free_energy, together.free_energy[3:4])
    assert alone.start == together.start[3]
    other = fit(whole, starts, short, seed=SEED + 1)
    assert (other.free_energy != together.free_energy).all()


@pytest.mark.parametrize("fit", [fit_mean_field, fit_full_gaussian, None])
def test_a_problem_that_diverges_is_refused_and_its_neighbour_is_not(lines, fit):
    problem, whole, starts = lines
    spoilt = problem.targets.clone()
    spoilt[1] = 1e200
    bad = target(replace(problem, targets=spoilt), (3, 1), collapsed=False, bias=False, weight_scale=1.5)
    run = (lambda t: fit_laplace(t, starts)) if fit is None else (lambda t: fit(t, starts, seed=SEED))
    found, expected = run(bad), run(whole)
    assert found.free_energy.isnan().tolist() == [False, True, False]
    assert list(found.record["refused"]) == [1]
    assert "problem 1 has no finite free energy at any start" in found.record["refused"][1]
    torch.testing.assert_close(found.free_energy[[0, 2]], expected.free_energy[[0, 2]])


def test_what_does_not_fit_is_refused(kinks):
    _, whole, starts = kinks
    problem = join([truths.data(truths.T1, n, 3, SEED) for n in (100, 1000)])
    for wrong, positions in (
        (target(problem, (1, 1, 1)), starts[..., :2]),
        (whole, starts[:2]),
        (whole, starts[:, :0]),
    ):
        with pytest.raises(ValueError, match="build the target with collapsed=False and pass"):
            fit_mean_field(wrong, positions, seed=SEED)
        with pytest.raises(ValueError, match="build the target with collapsed=False and pass"):
            fit_laplace(wrong, positions)
    for odd in ({"fresh": 601}, {"rounds": ()}, {"rounds": ((2, 3, 10),)}):
        with pytest.raises(ValueError, match="their number must be even"):
            Options(**odd)


def logs_of(fit, whole):
    """Logarithms of deviations in units of the prior's, layer by layer: matrices (R, out, in + 1)."""
    logs = (fit.factor.diagonal(dim1=-2, dim2=-1) / whole.scale).log()
    return [torch.cat([weight, bias[..., None]], -1) for weight, bias in whole.layers.split(logs)]


def interaction(table):
    """What of a matrix is no sum of a row's and a column's number."""
    centred = table - table.mean(-1, keepdim=True)
    return centred - centred.mean(-2, keepdim=True)


def test_a_matrix_gaussian_of_one_unit_is_the_mean_field_one(kinks):
    exact, whole, starts = kinks
    fit = fit_matrix_gaussian(whole, starts, seed=SEED)
    mean_field = fit_mean_field(whole, starts, seed=SEED)
    torch.testing.assert_close(fit.record["mean_field"].free_energy, mean_field.free_energy)
    assert ((fit.free_energy - mean_field.free_energy).abs() < 0.05).all()
    assert (fit.free_energy > exact).all()
    assert torch.equal(fit.start, mean_field.start)


def test_a_matrix_gaussian_costs_linear_regression_what_independent_coordinates_cost(lines):
    problem, whole, starts = lines
    precision = linear_moments(problem, 1.5).gram.permute(2, 0, 1) + torch.eye(3)
    cost = 0.5 * (precision.diagonal(dim1=1, dim2=2).log().sum(1) - torch.logdet(precision))
    options = Options(rounds=((2, 8, 100), (1, 32, 800)), rates=(0.3, 0.05))
    fit = fit_matrix_gaussian(whole, starts, options, seed=SEED)
    error = (fit.free_energy - linear(problem, 1.5) - cost).abs()
    assert (error < 4 * fit.standard_error + 0.002).all()


def test_deviations_of_a_matrix_gaussian_have_rank_one_and_lie_at_an_optimum():
    """Moved by rows or by columns the bound rises; it would fall outside the family, where the mean-field optimum is lower.

    Two hidden layers: of one hidden layer the mean-field optimum itself has nearly rank one.
    """
    problem = truths.data(truths.T3, 100, 4, SEED)
    whole = target(problem, (2, 2, 2, 1), collapsed=False)
    starts = torch.tensor(truths.T3.parameters).double() + 0.1 * normal(4, 4, len(whole.scale))
    fit = fit_matrix_gaussian(whole, starts, Options(rounds=((2, 16, 30), (1, 128, 200))), seed=SEED)
    assert not fit.record["refused"]
    # on average: of some data sets the mean-field descent, which is the shorter one, has not quite arrived
    assert (fit.free_energy - fit.record["mean_field"].free_energy).mean() > 0.1
    assert max(interaction(table).abs().max() for table in logs_of(fit.record["mean_field"], whole)) > 0.3
    assert max(interaction(table).abs().max() for table in logs_of(fit, whole)) < 1e-9

    noise = normal(4, 1024, len(whole.scale))
    noise = torch.cat([noise, -noise], 1)
    mean = (fit.position / whole.scale)[:, None]
    logs = (fit.factor.diagonal(dim1=-2, dim2=-1) / whole.scale).log()

    def rise(layer, table):
        """Of the mean bound when a layer's logarithms move by a table (out, in + 1), and by its negative."""
        shift = torch.zeros_like(logs[0])
        weight, bias = whole.layers.split(shift)[layer]
        weight.copy_(table[:, :-1])
        bias.copy_(table[:, -1])
        still, up, down = (
            integrand(whole, Gaussians(mean, (logs + s)[:, None].exp().diag_embed()), noise).mean()
            for s in (0 * shift, shift, -shift)
        )
        return min(up, down) - still

    for layer, rows in enumerate((2, 2, 1)):
        for k in range(rows + 3):
            table = torch.zeros(rows, 3)
            (table[k] if k < rows else table[:, k - rows]).fill_(0.15)
            assert rise(layer, table) > 0.01
    assert rise(1, 0.15 * torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]])) < -0.1


@pytest.mark.parametrize(("widths", "bias"), [((2, 3, 2), True), ((3, 2, 2), False)])
def test_the_projection_on_rank_one_is_the_nearest_sum_of_rows_and_columns(widths, bias):
    layers = Layers(widths, bias)
    diagonals = normal(2, 2, layers.dimension, purpose="diagonal")
    found = rank_one(layers)(
        diagonals.diag_embed() + normal(2, 2, layers.dimension, layers.dimension).tril(-1)
    )
    torch.testing.assert_close(found, diagonal(found))
    for (weight, constant), (w, b) in zip(
        layers.split(diagonals), layers.split(found.diagonal(dim1=-2, dim2=-1)), strict=True
    ):
        before, after = (
            x if y is None else torch.cat([x, y[..., None]], -1) for x, y in ((weight, constant), (w, b))
        )
        assert interaction(after).abs().max() < 1e-12
        rows, columns = before.shape[-2:]
        design = torch.cat(
            [torch.eye(rows).repeat_interleave(columns, 0), torch.eye(columns).repeat(rows, 1)], 1
        ).double()
        nearest = (design @ torch.linalg.pinv(design) @ before.flatten(-2)[..., None])[..., 0]
        torch.testing.assert_close(after.flatten(-2), nearest)


def test_a_matrix_gaussian_is_a_function_of_seed_and_member_and_refuses_what_diverges(kinks, lines):
    _, whole, starts = kinks
    short = Options(rounds=((3, 4, 5), (1, 8, 10)), fresh=600)
    together, again = (fit_matrix_gaussian(whole, starts, short, seed=SEED) for _ in range(2))
    assert torch.equal(together.free_energy, again.free_energy)
    one = target(truths.data(truths.T1, 1000, 3, SEED)[:1], (1, 1, 1), collapsed=False)
    alone = fit_matrix_gaussian(one, starts[3:4], short, seed=SEED, members=torch.tensor([3]))
    torch.testing.assert_close(alone.free_energy, together.free_energy[3:4])

    problem, whole, starts = lines
    spoilt = problem.targets.clone()
    spoilt[1] = 1e200
    bad = target(replace(problem, targets=spoilt), (3, 1), collapsed=False, bias=False, weight_scale=1.5)
    found = fit_matrix_gaussian(bad, starts, short, seed=SEED)
    assert found.free_energy.isnan().tolist() == [False, True, False]
    assert "problem 1 has no finite free energy at any start" in found.record["refused"][1]
    torch.testing.assert_close(
        found.free_energy[[0, 2]], fit_matrix_gaussian(whole, starts, short, seed=SEED).free_energy[[0, 2]]
    )
