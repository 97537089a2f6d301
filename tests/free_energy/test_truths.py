"""The truths and the problems made of them, against formulas in NumPy and integrals by SciPy."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import quad

from lib.free_energy import truths
from lib.free_energy.regression import Regression, join
from lib.free_energy.targets import target
from lib.free_energy.truths import REACH, T0, T1, T2, T3, Truth, grid

ALL = [T0, T1, T2, T3]


def relu(x):
    return np.maximum(x, 0)


def second_layer(a, b):
    """What the units of T3's second hidden layer see before their activation."""
    h = relu(a + 0.5 * b + 0.1), relu(-0.6 * a + b + 0.2)
    return 1.2 * h[0] - 0.9 * h[1] - 0.2, -0.8 * h[0] + 1.1 * h[1] - 0.1


FORMULAS = {
    "T0": lambda x: 0.5 + 0 * x,
    "T1": lambda x: 1.5 * relu(x - 0.1) - 0.3,
    "T2": lambda a, b: 1.5 * relu(a + 0.5 * b + 0.1) - 1.2 * relu(-0.6 * a + b + 0.2) + 0.2,
    "T3": lambda a, b: 1.5 * relu(second_layer(a, b)[0]) - 1.4 * relu(second_layer(a, b)[1]) + 0.1,
}


@pytest.mark.parametrize("truth", ALL, ids=lambda truth: truth.name)
class TestTruths:
    def test_are_their_formulas(self, truth):
        inputs = (
            torch.rand(3, 50, truth.widths[0], generator=torch.Generator().manual_seed(1)).double() * 2 - 1
        )
        found = truth(inputs)
        assert found.shape == (3, 50, 1)
        expected = FORMULAS[truth.name](*inputs.numpy().transpose(2, 0, 1))
        np.testing.assert_allclose(found[..., 0], expected, rtol=1e-12, atol=1e-12)

    def test_has_as_many_parameters_as_its_widths_say(self, truth):
        widths = truth.widths
        count = sum(above * (below + 1) for below, above in pairwise(widths))
        assert len(truth.parameters) == count


class TestMinimality:
    """No smaller network of the same depth does the same: what the exact coefficients of the notes stand on."""

    def test_no_unit_of_the_first_layer_is_dead_always_on_or_parallel_to_another(self):
        for truth in (T1, T2, T3):
            inputs, hidden = truth.widths[:2]
            weight = np.array(truth.parameters[: inputs * hidden]).reshape(hidden, inputs)
            bias = np.array(truth.parameters[inputs * hidden :][:hidden])
            assert (np.abs(bias) < np.abs(weight).sum(1)).all()  # the kink meets the cube
            directions = weight / np.linalg.norm(weight, axis=1, keepdims=True)
            cosines = np.abs(directions @ directions.T)[~np.eye(hidden, dtype=bool)]
            assert (cosines < 0.99).all()

    def test_second_layer_switches_on_the_support_with_no_weight_zero(self):
        axis = np.linspace(-1, 1, 201)
        before = second_layer(*np.meshgrid(axis, axis))
        on = [np.mean(b > 0) for b in before]
        assert all(0.1 < share < 0.9 for share in on)
        assert abs(np.corrcoef(before[0].ravel(), before[1].ravel())[0, 1]) < 0.999
        assert all(p != 0 for truth in (T1, T2, T3) for p in truth.parameters)

    def test_the_constants_unit_is_dead(self):
        known = target(truths.population(T0, 50), (1, 1, 1), collapsed=False)
        assert known.dead(torch.tensor(T0.parameters, dtype=torch.float64)[None, None]).all()


class TestGrid:
    def test_is_the_midpoints_of_equal_cells(self):
        np.testing.assert_allclose(grid(4)[:, 0], [-0.75, -0.25, 0.25, 0.75])
        assert grid(1).tolist() == [[0]]
        square = grid(100, 2).numpy()
        assert square.shape == (100, 2)
        assert sorted(square.tolist()) == square.tolist()
        np.testing.assert_allclose(np.unique(square), grid(10)[:, 0])
        assert len(grid(1000, 3)) == 1000
        assert len(grid(99, 2)) == 100  # about as many


def k_of(parameters, truth, density=lambda x: 0.5, low=-1.0, high=1.0):
    """K(w) of a 1-H-1 network by adaptive quadrature between all kinks."""
    h = (len(parameters) - 1) // 3
    w, b, v, c = (parameters[s] for s in (slice(h), slice(h, 2 * h), slice(2 * h, 3 * h), -1))

    def integrand(x):
        return 0.5 * (v @ relu(w * x + b) + c - FORMULAS[truth.name](x)) ** 2 * density(x)

    borders = sorted({low, 0.1, high, *(k for k in -b / w if low < k < high)})
    return sum(quad(integrand, a, b, epsabs=1e-12)[0] for a, b in pairwise(borders))


class TestPopulation:
    @pytest.mark.parametrize("truth", [T0, T1], ids=lambda truth: truth.name)
    @pytest.mark.parametrize("gaussian", [False, True])
    def test_energy_is_k_by_quadrature(self, truth, gaussian):
        problem = truths.population(truth, 20_000, gaussian)
        known = target(problem, (1, 3, 1), collapsed=False)
        position = torch.from_numpy(np.random.default_rng(2).normal(size=(1, 6, 10)))
        found = known.statistics(position)
        law = (stats.norm.pdf, -REACH, REACH) if gaussian else ()
        expected = [k_of(row, truth, *law) for row in position[0].numpy()]
        np.testing.assert_allclose(found[0], expected, rtol=1e-5)

    @pytest.mark.parametrize("truth", [T2, T3], ids=lambda truth: truth.name)
    def test_many_points_in_the_plane_converge(self, truth):
        """Gauss-Legendre cells of another size give the same K."""
        position = torch.from_numpy(np.random.default_rng(2).normal(size=(1, 3, 9)))
        known = target(truths.population(truth, 400**2), (2, 2, 1), collapsed=False)
        nodes, weights = np.polynomial.legendre.leggauss(3)
        cells = np.linspace(-1, 1, 161)
        x = (cells[:-1, None] + (nodes + 1) / 2 * np.diff(cells)[:, None]).ravel()
        q = np.tile(weights / 2, 160) / 160
        a, b = np.meshgrid(x, x)
        for row, found in zip(position[0].numpy(), known.statistics(position)[0], strict=True):
            w, bias, v, c = row[:4].reshape(2, 2), row[4:6], row[6:8], row[8]
            net = c + sum(v[i] * relu(w[i, 0] * a + w[i, 1] * b + bias[i]) for i in range(2))
            expected = 0.5 * q @ (net - FORMULAS[truth.name](a, b)) ** 2 @ q
            assert found.item() == pytest.approx(expected, rel=1e-4)

    @pytest.mark.parametrize("inputs", [1, 2])
    def test_normal_inputs_have_normal_moments(self, inputs):
        truth = T1 if inputs == 1 else T2
        problem = truths.population(truth, 200**inputs, gaussian=True)
        x, q = problem.inputs[0], problem.weights[0]
        assert q.sum().item() == pytest.approx(1, abs=1e-12)
        for i in range(inputs):
            moments = [(q * x[:, i] ** k).sum().item() for k in range(1, 7)]
            assert moments == pytest.approx([0, 1, 0, 3, 0, 15], abs=1e-7)
        if inputs == 2:
            assert (q * x[:, 0] * x[:, 1]).sum().item() == pytest.approx(0, abs=1e-12)
        assert 2 * stats.norm.sf(REACH) < 1e-13

    def test_has_no_noise_and_weights_of_one_in_all(self):
        for truth in ALL:
            problem = truths.population(truth, 49)
            assert problem.weights.sum(1).tolist() == pytest.approx([1])
            assert len(problem.weights.unique()) == 1
            assert torch.equal(problem.targets, truth(problem.inputs))
            assert problem.truth.tolist() == [0]
            assert len(problem) == 1


class TestData:
    @pytest.mark.parametrize("sigma", [1.0, 0.3])
    def test_energy_minus_the_truths_is_the_log_density_ratio(self, sigma):
        problem = truths.data(T1, 12, 2, seed=4, sigma=sigma)
        known = target(problem, (1, 2, 1), collapsed=False)
        position = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 7)))
        outputs = known.layers.forward(position, problem.inputs, last=False)[-1][:, :, 0].numpy()
        y, true = problem.targets[..., 0].numpy(), truths.T1(problem.inputs)[..., 0].numpy()
        own = stats.norm.logpdf(y[:, None], outputs, sigma).sum(2)
        expected = stats.norm.logpdf(y, true, sigma).sum(1)[:, None] - own
        np.testing.assert_allclose(known.statistics(position), expected, rtol=1e-10)

    def test_smaller_sets_are_the_first_examples_of_larger_ones(self):
        large = truths.data(T2, 31, 4, seed=4, sigma=0.3)
        for n in (1, 2, 7, 30):
            small = truths.data(T2, n, 3, seed=4, sigma=0.3)
            assert torch.equal(small.inputs, large.inputs[:3, :n])
            # the noise's logarithm and cosine may round differently in the last place
            torch.testing.assert_close(small.targets, large.targets[:3, :n], rtol=1e-13, atol=1e-13)

    def test_learners_share_data_and_sets_do_not(self):
        one, two = truths.data(T1, 5, 3, seed=4), truths.data(T1, 5, 3, seed=5)
        assert not torch.isclose(one.inputs, two.inputs).any()
        assert len(one.inputs.unique()) == 15
        assert torch.equal(one.inputs, truths.data(T0, 5, 3, seed=4).inputs)
        assert torch.equal(one.truth, truths.data(T0, 5, 3, seed=4).truth)

    def test_inputs_are_uniform_and_noise_is_normal(self):
        problem = truths.data(T2, 2000, 5, seed=1, sigma=0.3)
        noise = (problem.targets - T2(problem.inputs)) / 0.3
        uniform = stats.uniform(-1, 2).cdf
        assert stats.kstest(problem.inputs.flatten().numpy(), uniform).pvalue > 1e-3
        assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3
        pairs = torch.cat([problem.inputs, noise], 2).flatten(0, 1).T
        assert (torch.corrcoef(pairs) - torch.eye(3)).abs().max() < 0.04
        torch.testing.assert_close(problem.truth, 0.5 * noise.square().sum((1, 2)))
        assert problem.weights.unique().tolist() == pytest.approx([1 / 0.3**2])

    def test_noise_is_drawn_apart_from_the_inputs(self):
        """Not the transform of the very numbers that made them (one purpose for both would do that)."""
        problem = truths.data(T2, 40, 3, seed=4)
        noise, u = (problem.targets - T2(problem.inputs))[..., 0], (problem.inputs + 1) / 2
        same = (-2 * torch.log1p(-u[..., 0])).sqrt() * (2 * math.pi * u[..., 1]).cos()
        assert not torch.isclose(noise[:, ::2], same[:, :20]).any()

    def test_more_outputs_than_one(self):
        two = Truth("two", (1, 1, 2), (1.0, 0.0, 2.0, -3.0, 0.5, 0.25))
        problem = truths.data(two, 50, 3, seed=1)
        x = problem.inputs.clamp_min(0)
        noise = problem.targets - torch.cat([2 * x + 0.5, -3 * x + 0.25], 2)
        torch.testing.assert_close(problem.truth, 0.5 * noise.square().sum((1, 2)))
        assert abs(np.corrcoef(noise.flatten(0, 1).T.numpy())[0, 1]) < 0.3

    @pytest.mark.parametrize("n", [0, -3])
    def test_no_example_is_refused(self, n):
        with pytest.raises(ValueError, match=f"n = {n}: a data set has at least one example"):
            truths.data(T1, n, 2, seed=1)


@pytest.mark.parametrize(("outputs", "sigma"), [(1, 1.0), (1, 0.3), (3, 0.5)])
def test_entropy_is_scipys(outputs, sigma):
    expected = stats.multivariate_normal(np.zeros(outputs), sigma**2).entropy()
    assert truths.entropy(outputs, sigma) == pytest.approx(expected)
    if outputs == 1:
        assert truths.entropy(1, sigma) == pytest.approx(stats.norm(0, sigma).entropy())
    assert truths.entropy() == pytest.approx(0.5 * math.log(2 * math.pi * math.e))


class TestRegression:
    def problem(self, n, sets=2, seed=0):
        rng = np.random.default_rng(seed)
        shapes = (sets, n, 3), (sets, n, 2), (sets, n), (sets,)
        return Regression(*(torch.from_numpy(rng.uniform(0.5, 1, shape)) for shape in shapes))

    def test_power_is_the_weighted_sum_of_squares(self):
        problem = self.problem(5)
        expected = [
            sum(q * (y @ y) for q, y in zip(problem.weights[r], problem.targets[r], strict=True)).item()
            for r in range(2)
        ]
        assert problem.power.tolist() == pytest.approx(expected)

    @pytest.mark.parametrize("chosen", [slice(1, 3), torch.tensor([2, 0, 2])])
    def test_problems_are_chosen_whole(self, chosen):
        problem = self.problem(5, sets=4)
        found = problem[chosen]
        assert len(found) == len(torch.arange(4)[chosen])
        for name in ("inputs", "targets", "weights", "truth"):
            assert torch.equal(getattr(found, name), getattr(problem, name)[chosen])

    def test_joined_problems_keep_their_points_and_get_others_of_weight_zero(self):
        parts = [self.problem(2, 1, 1), self.problem(6, 2, 2), self.problem(4, 3, 3)]
        found = join(parts)
        assert len(found) == 6
        assert found.inputs.shape == (6, 6, 3)
        start = 0
        for part in parts:
            rows, n = slice(start, start + len(part)), part.inputs.shape[1]
            for name in ("inputs", "targets", "weights"):
                assert torch.equal(getattr(found, name)[rows, :n], getattr(part, name))
            assert not found.weights[rows, n:].any()
            assert (found.inputs[rows, n:] == part.inputs[:, -1:]).all()
            assert (found.targets[rows, n:] == part.targets[:, -1:]).all()
            assert torch.equal(found.truth[rows], part.truth)
            start += len(part)
        torch.testing.assert_close(found.power, torch.cat([part.power for part in parts]))

    def test_one_joined_problem_is_itself_and_moves(self):
        problem = self.problem(3)
        for same in (join([problem]), problem.to("cpu")):
            for name in ("inputs", "targets", "weights", "truth"):
                assert torch.equal(getattr(same, name), getattr(problem, name))
        assert problem.to("meta").truth.device.type == "meta"
