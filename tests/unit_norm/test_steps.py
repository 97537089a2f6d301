"""Every step against its formula, its peers and its symmetry; its blocks and its two ways of computing change nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peers import geoopt, pymanopt
from torch import Tensor

from lib.randomness import normal
from lib.unit_norm import steps
from lib.unit_norm.steps import STEPS, chained_rates, own_rates

N, K = 7, 5
DOUBLE = torch.float64
UNIT = ("unit norm", "normalise after the step")


def draw(name: str, *shape: int, dtype: torch.dtype = DOUBLE) -> Tensor:
    return normal(41, torch.arange(1), name, 0, shape, DOUBLE)[0].to(dtype)


def unit(w: Tensor) -> Tensor:
    return w / w.square().sum(1, keepdim=True).sqrt()


def close(found: Tensor, right: Tensor, tolerance: float = 1e-14) -> None:
    assert found.shape == right.shape
    assert (found.double() - right.double()).abs().max() <= tolerance * (1 + right.double().abs().max())


def row_by_row(method: str, w: Tensor, g: Tensor, rate: float | Tensor) -> Tensor:
    """The formulas of the module's head, for one row at a time, in NumPy's float64."""
    rates = np.broadcast_to(torch.as_tensor(rate, dtype=DOUBLE).numpy(), (len(w), 1))[:, 0]
    out = []
    for a, b, eta in zip(w.double().numpy(), g.double().numpy(), rates, strict=True):
        square = a @ a
        radial = (b @ a) * a / square
        moved = {
            "SGD": a - eta * b,
            "unit norm": a - eta * (b - radial),
            "normalise after the step": a - eta * b,
            "scaled metric": a - eta * square * b,
            "SGD without radial part": a - eta * (b - radial),
        }[method]
        out.append(moved / np.linalg.norm(moved) if method in UNIT else moved)
    return torch.from_numpy(np.stack(out))


each_method = pytest.mark.parametrize("method", STEPS)
each_way = pytest.mark.parametrize("by_numpy", [True, False])


@pytest.fixture
def way(request, monkeypatch) -> None:
    """NumPy's way, or torch's, whatever the number of threads here."""
    numpy = request.getfixturevalue("by_numpy")
    monkeypatch.setattr(steps, "_by_numpy", lambda tensor: numpy and tensor.dtype in (torch.float32, DOUBLE))


# -------------------------------------------------------------------------------------------------------- formulas


@each_method
@each_way
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("rate", ["number", "whole number", "rows", "negative"])
@pytest.mark.usefixtures("way")
def test_each_step_is_its_formula(method, by_numpy, dtype, rate):
    w, g = draw("w", N, K, dtype=dtype), draw("g", N, K, dtype=dtype)
    rows = draw("rate", N, 1, dtype=dtype).abs()
    eta = {"number": 0.3, "whole number": 2, "rows": rows, "negative": -0.3}[rate]
    right, kept = row_by_row(method, w, g, eta), g.clone()
    assert STEPS[method](w, g, eta) is None
    close(w, right, 8 * torch.finfo(dtype).eps)
    assert torch.equal(g, kept)
    if method in UNIT:
        close(w.norm(dim=1), torch.ones(N), 4 * torch.finfo(dtype).eps)


@each_method
def test_small_floats_go_torchs_way(method):
    w, g = unit(draw("w", N, K)).bfloat16(), draw("g", N, K).bfloat16()
    rows = draw("rate", N, 1).abs().bfloat16()
    for rate in (0.25, rows):
        moved = w.clone()
        STEPS[method](moved, g, rate)
        assert moved.dtype == torch.bfloat16
        close(moved, row_by_row(method, w, g, rate), 0.03)


def test_rows_in_any_memory_step_alike():
    """Rows of a larger table, and rows that are columns in memory."""
    for method, step in STEPS.items():
        w, g, rate = draw("w", N, K), draw("g", N, K), draw("rate", N, 1).abs()
        right = row_by_row(method, w, g, rate)
        table, turned = torch.zeros(2 * N, K + 3, dtype=DOUBLE), w.T.contiguous().T
        table[::2, 2:-1] = w
        step(table[::2, 2:-1], g.T.contiguous().T, rate)
        close(table[::2, 2:-1], right)
        assert table[1::2].abs().sum() == 0
        assert table[:, :2].abs().sum() == 0
        step(turned, g, rate)
        close(turned, right)


@each_method
@each_way
@pytest.mark.parametrize("rate", ["number", "rows"])
@pytest.mark.parametrize("rows", [1, 3, 7])
@pytest.mark.usefixtures("way", "two_threads")
def test_blocks_change_nothing(method, by_numpy, rate, rows, monkeypatch):
    w, g = draw("w", N, K), draw("g", N, K)
    eta = 0.3 if rate == "number" else draw("rate", N, 1).abs()
    whole, seen = w.clone(), []
    STEPS[method](whole, g, eta)
    monkeypatch.setattr(steps, "CACHE", -(-rows * 2 * 8 * K // torch.get_num_threads()))
    monkeypatch.setattr(steps, "_inner", lambda a, b, real=steps._inner: seen.append(len(a)) or real(a, b))
    STEPS[method](w, g, eta)
    assert torch.equal(w, whole)
    if method != "SGD":
        assert seen[0] == rows
        assert seen[-1] == N - rows * ((N - 1) // rows)


@pytest.mark.usefixtures("two_threads")
def test_a_matrix_larger_than_its_cache_is_split_without_being_told(monkeypatch):
    seen = []
    monkeypatch.setattr(steps, "_inner", lambda a, b, real=steps._inner: seen.append(len(a)) or real(a, b))
    rows = 3 * (1 << 18) // 1024 + 5
    w, g = torch.ones(rows, 1024), torch.ones(rows, 1024)
    steps.scaled_metric(w, g, 0.0)
    assert sum(seen) == rows
    assert max(seen) * 2 * 4 * 1024 <= steps.CACHE * torch.get_num_threads()
    assert torch.equal(w, torch.ones(rows, 1024))


# ---------------------------------------------------------------------------------------- unit norm, come what may


@each_way
@pytest.mark.parametrize("length", [1e-3, 0.5, 3.0, 1e3])
@pytest.mark.usefixtures("way")
def test_unit_norm_takes_rows_of_any_length_to_the_manifold(by_numpy, length):
    """Its direction is that of the tangent step from the row as it is."""
    w, g = length * unit(draw("w", N, K)), draw("g", N, K)
    right = row_by_row("unit norm", w, g, 0.4)
    steps.unit_norm(w, g, 0.4)
    close(w, right)


@each_way
@pytest.mark.parametrize("radial", [1.0, 1e2, 1e4, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.usefixtures("way")
def test_rows_stay_unit_however_long_the_radial_part(by_numpy, radial, dtype):
    """Without a norm a gradient may point along its filter; the difference of squares then has no digits left."""
    w = unit(draw("w", N, 50)).to(dtype)
    g = radial * w + draw("g", N, 50).to(dtype)
    right, eps = row_by_row("unit norm", w, g, 1.0), torch.finfo(dtype).eps
    steps.unit_norm(w, g, 1.0)
    close(w.double().norm(dim=1), torch.ones(N), 8 * eps)
    close(w, right, 8 * eps * abs(radial))


@each_method
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_a_row_that_diverges_is_alone_and_silent(method, bad):
    w, g = draw("w", N, K, dtype=torch.float32), draw("g", N, K, dtype=torch.float32)
    right = row_by_row(method, w, g, 0.3)
    g[2] *= bad
    STEPS[method](w, g, 0.3)
    others = [0, 1, 3, 4, 5, 6]
    close(w[others], right[others], 1e-6)
    assert not torch.allclose(w[2].double(), right[2])


# ----------------------------------------------------------------------------------------------------------- peers


def test_unit_norm_is_geoopts_riemannian_sgd():
    w = unit(draw("w", N, K))
    point = geoopt.ManifoldParameter(w.clone(), manifold=geoopt.Sphere())
    optimiser = geoopt.optim.RiemannianSGD([point], lr=0.7)
    for i in range(5):
        point.grad = draw(f"g{i}", N, K)
        steps.unit_norm(w, point.grad.clone(), 0.7)
        optimiser.step()
        close(w, point.detach())


def test_unit_norm_is_a_step_of_pymanopts_oblique_manifold():
    w, g, oblique = unit(draw("w", N, K)), draw("g", N, K), pymanopt.manifolds.Oblique(K, N)
    point = w.T.numpy().copy()
    moved = oblique.retraction(point, -0.7 * oblique.euclidean_to_riemannian_gradient(point, g.T.numpy()))
    steps.unit_norm(w, g, 0.7)
    close(w, torch.from_numpy(moved.T.copy()))


# --------------------------------------------------------------------------------------- what batch norm makes of it


def with_norm(w: Tensor, x: Tensor) -> Tensor:
    """A layer's outputs under batch norm with epsilon 0."""
    z = x @ w.T
    return (z - z.mean(0)) / z.var(0, unbiased=False).sqrt()


def gradient(w: Tensor) -> Tensor:
    x, y = draw("x", 40, K), draw("y", 40, N)
    leaf = w.clone().requires_grad_()
    (with_norm(leaf, x) - y).square().mul(y.abs()).sum().backward()
    return leaf.grad / 40


def moved(method: str, w: Tensor, rate: float, count: int = 30) -> Tensor:
    w = w.clone()
    for _ in range(count):
        STEPS[method](w, gradient(w), rate)
    return w


def test_under_batch_norm_three_methods_move_directions_alike_and_sgd_does_not():
    """P4-X1: whatever the lengths, since the gradient of a row is orthogonal to it and falls with its length."""
    lengths = 10 ** draw("lengths", N, 1)
    start = lengths * unit(draw("w", N, K))
    right = moved("unit norm", unit(start), 0.5)
    assert (right - unit(start)).norm(dim=1).min() > 0.1
    close(moved("normalise after the step", unit(start), 0.5), right, 1e-12)
    close(unit(moved("scaled metric", start, 0.5)), right, 1e-12)
    for method in ("SGD", "SGD without radial part"):
        assert (unit(moved(method, start, 0.5)) - right).norm(dim=1).max() > 0.1


def test_lengths_grow_by_pythagoras_where_the_gradient_is_tangent():
    """‖w'‖² = ‖w‖² + η² ‖g‖²: of SGD under batch norm, and, less the radial part, of any gradient."""
    w = draw("w", N, K)
    g = gradient(w)
    close((w * g).sum(1), torch.zeros(N))
    right = w.square().sum(1) + 0.3**2 * g.square().sum(1)
    steps.euclidean(w, g, 0.3)
    close(w.square().sum(1), right)
    free = draw("g", N, K)
    tangent = free - (free * w).sum(1, keepdim=True) / w.square().sum(1, keepdim=True) * w
    right = w.square().sum(1) + 0.3**2 * tangent.square().sum(1)
    steps.without_radial(w, free, 0.3)
    close(w.square().sum(1), right)


# ------------------------------------------------------------------------------------ chained rates, without a norm


def relu_net(weights: list[Tensor], x: Tensor, pool: int) -> Tensor:
    for w in weights[:-1]:
        x = x @ w.T
        x = F.relu(x.unflatten(1, (-1, pool)).amax(2))
    return x @ weights[-1].T


def network(depth: int, pool: int) -> list[Tensor]:
    widths = [K, *[6] * depth, 3]
    columns = [K, *[6 // pool] * depth]
    return [
        draw(f"layer{i}", n, k) / k**0.5 for i, (n, k) in enumerate(zip(widths[1:], columns, strict=True))
    ]


def rescaled(weights: list[Tensor], pool: int) -> list[Tensor]:
    """The same function: the rows of every pool times a factor, the columns that read it divided."""
    out, columns = [], torch.ones(K, dtype=DOUBLE)
    for i, w in enumerate(weights[:-1]):
        factor = 10 ** (0.5 * draw(f"factor{i}", len(w) // pool))
        out.append(factor.repeat_interleave(pool)[:, None] * w / columns)
        columns = factor
    return [*out, weights[-1] / columns]


def losses(weights: list[Tensor], rule: Callable, pool: int, rate: float = 0.05, count: int = 20) -> Tensor:
    x, y = draw("x", 30, K), torch.arange(30) % 3
    weights, values = [w.clone().requires_grad_() for w in weights], []
    for _ in range(count):
        loss = F.cross_entropy(relu_net(weights, x, pool), y)
        gradients = torch.autograd.grad(loss, weights)
        values.append(loss.detach())
        with torch.no_grad():
            for w, g, factor in zip(weights, gradients, rule(weights), strict=True):
                w -= rate * factor * g
    return torch.stack(values)


@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_chained_rates_are_equivariant_at_every_depth(depth, pool):
    weights = network(depth, pool)
    other = rescaled(weights, pool)
    x = draw("x", 30, K)
    close(relu_net(other, x, pool), relu_net(weights, x, pool))
    one, two = (losses(start, lambda w: chained_rates(w, pool), pool) for start in (weights, other))
    assert one[0] - one[-1] > 0.02
    assert (one - two).abs().max() < 1e-9
    plain = [losses(start, lambda w: [torch.ones_like(x) for x in w], pool) for start in (weights, other)]
    assert not (plain[0] - plain[1]).abs().max() < 1e-2


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_own_rates_are_equivariant_for_one_hidden_layer_only(depth):
    weights = network(depth, 1)
    one, two = (losses(start, own_rates, 1) for start in (weights, rescaled(weights, 1)))
    gap = (one - two).abs().max()
    assert one[0] - one[-1] > 0.02
    assert (gap < 1e-9) if depth == 1 else (gap > 1e-2)


def test_factors_by_hand():
    """Two pooled units of one layer, and the shapes that broadcast over the weights."""
    first = torch.tensor(
        [[1.0, 2.0], [0.0, 3.0], [1.0, 0.0], [1.0, 0.0]]
    )  # rows of 5, 9 and 1, 1: pools of 7 and 1
    second, last = torch.tensor([[1.0, 1.0], [2.0, 0.0]]), torch.tensor([[1.0], [2.0]])
    a, b, c = chained_rates([first, second, last], pool=2)
    assert a.tolist() == [[7, 7], [7, 7], [1, 1], [1, 1]]
    assert torch.allclose(b, torch.tensor([[18 / 7, 18], [18 / 7, 18]]))  # (1·7 + 1·1 + 4·7 + 0) / 2 = 18
    assert torch.allclose(c, torch.full((2, 1), 1 / 18))
    a, c = own_rates([first, torch.tensor([[1.0, 2.0, 3.0, 0.0], [2.0, 0.0, 1.0, 1.0]])])
    assert a.tolist() == [[5, 5], [9, 9], [1, 1], [1, 1]]
    assert c.tolist() == [[5, 4, 10, 1]] * 2
    assert chained_rates([last])[0].tolist() == [[1], [1]]
