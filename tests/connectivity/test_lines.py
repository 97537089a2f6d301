"""Lines, triangles and simplices: barriers by their definition, and the exact properties of the notes (section 6, no. 9)."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn
from torch.func import functional_call

from lib.connectivity import Lines, between, lines, scores, simplex, triangle
from lib.networks import perceptron
from lib.params import params_of, select, stack
from lib.symmetry import find_symmetries, inverse, permute, random_permutations


def problem(members: int = 4) -> tuple:
    """Networks that compute almost the same, in other orders of their units: good ends, and barriers between them."""
    net = perceptron((5, 8, 6, 3)).double()
    generator = torch.Generator().manual_seed(1)
    one = {k: 2 * torch.randn(t.shape, generator=generator, dtype=t.dtype) for k, t in params_of(net).items()}
    inputs = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    symmetries = find_symmetries(net, inputs[:2])
    params = permute(one, symmetries, random_permutations(symmetries, generator, members))
    params = {
        k: t + 0.05 * torch.randn(t.shape, generator=generator, dtype=t.dtype) for k, t in params.items()
    }
    return net, params, inputs, functional_call(net, one, (inputs,)).argmax(1)


MODULE = importlib.import_module("lib.connectivity.lines")  # whose name the function of that name hides
PAIRS = torch.tensor([[0, 1], [2, 3], [1, 0], [3, 0]])


def test_the_barrier_is_the_papers() -> None:
    alphas = torch.tensor([0, 0.25, 1], dtype=torch.float64)
    loss = torch.tensor([[1.0, 4.0, 5.0], [2.0, 1.0, 0.0]], dtype=torch.float64)
    found = Lines(alphas, loss, loss / 10)
    assert torch.equal(found.barrier(), torch.tensor([2.0, 0.0], dtype=torch.float64))
    assert torch.equal(found.barrier(ends="mean"), torch.tensor([2.0, 1.0], dtype=torch.float64))
    assert torch.allclose(found.barrier("error"), torch.tensor([0.2, 0.0], dtype=torch.float64))
    with pytest.raises(ValueError, match="no 'calibrated'"):
        found.barrier("calibrated")
    with pytest.raises(ValueError, match="no 'accuracy'"):
        found.barrier("accuracy")
    with pytest.raises(ValueError, match="'linear' or 'mean', not 'max'"):
        found.barrier(ends="max")


def test_points_of_a_line_are_mixtures_and_its_ends_the_networks() -> None:
    net, params, inputs, targets = problem()
    found = lines(net, params, PAIRS, inputs, targets, 5, calibrate=(inputs, targets))
    assert torch.equal(found.alphas, torch.linspace(0, 1, 5, dtype=torch.float64))
    weights = torch.stack([1 - found.alphas, found.alphas], 1).expand(4, -1, -1)
    plain = scores(net, params, PAIRS, weights, inputs, targets, calibrate=(inputs, targets))
    alone = scores(
        net, params, torch.arange(4)[:, None], torch.ones(4, 1, 1), inputs, targets, calibrate=(inputs, targets)
    )  # fmt: skip
    for what in ("loss", "error", "calibrated"):
        here = getattr(found, what)
        assert torch.allclose(here, getattr(plain, what), rtol=1e-12)
        assert torch.equal(here[:, [0, -1]], getattr(alone, what)[PAIRS, 0])
        assert (found.barrier(what) >= 0).all()
        assert found.barrier(what).max() > 0.01


def test_each_end_is_evaluated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    net, params, inputs, targets = problem()
    mixtures = []

    def counted(net_, params_, index, weights, *rest, **options):
        mixtures.append(weights.shape[0] * weights.shape[1])
        return scores(net_, params_, index, weights, *rest, **options)

    monkeypatch.setattr(MODULE, "scores", counted)
    lines(net, params, PAIRS, inputs, targets, 7)
    assert sorted(mixtures) == [4, 4 * 5]


def test_a_line_does_not_ask_where_it_begins() -> None:
    net, params, inputs, targets = problem()
    found = lines(net, params, PAIRS[[0, 2]], inputs, targets, 9)
    assert torch.allclose(found.loss[0], found.loss[1].flip(0), rtol=1e-12)
    assert abs(found.barrier()[0] - found.barrier()[1]) < 1e-12
    own = lines(net, params, torch.tensor([[2, 2]]), inputs, targets, 9)
    assert own.barrier().abs().max() < 1e-12
    assert own.barrier("error").abs().max() < 1e-12


def test_barriers_and_permutations() -> None:
    net, params, inputs, targets = problem()
    symmetries = find_symmetries(net, inputs[:2])
    perms = random_permutations(symmetries, torch.Generator().manual_seed(2))
    moved = permute(params, symmetries, perms)
    back = permute(moved, symmetries, inverse(symmetries, perms))
    assert between(net, params, back, inputs, targets).barrier().max() < 1e-12
    assert between(net, params, moved, inputs, targets).barrier().min() > 0.01
    before, after = (lines(net, x, PAIRS, inputs, targets).barrier() for x in (params, moved))
    assert torch.allclose(before, after, rtol=1e-10, atol=1e-12)


def test_two_populations_meet_pair_by_pair() -> None:
    net, params, inputs, targets = problem()
    first, second = select(params, slice(0, 2)), select(params, slice(2, 4))
    found = between(net, first, second, inputs, targets, 6, calibrate=(inputs, targets))
    aim = lines(net, params, torch.tensor([[0, 2], [1, 3]]), inputs, targets, 6, calibrate=(inputs, targets))
    for what in ("loss", "error", "calibrated"):
        assert torch.equal(getattr(found, what), getattr(aim, what))


def test_a_triangle_holds_its_corners_and_its_sides() -> None:
    net, params, inputs, targets = problem()
    weights, loss, error = triangle(net, params, (3, 0, 2), inputs, targets, steps=4)
    assert weights.shape == (15, 3)
    assert (weights.sum(1) == 1).all()
    assert len(weights.unique(dim=0)) == 15
    side = lines(net, params, torch.tensor([[3, 2]]), inputs, targets, 5)
    on_side = weights[:, 1] == 0
    order = weights[on_side][:, 2].argsort()
    assert torch.allclose(loss[on_side][order], side.loss[0], rtol=1e-12)
    assert torch.allclose(error[on_side][order], side.error[0], rtol=1e-12)


def test_the_excess_of_a_simplex() -> None:
    net, params, inputs, targets = problem(6)
    group = torch.tensor([[0, 1, 2], [5, 3, 4]])
    centre, worst = simplex(net, params, group, inputs, targets, 40, seed=3)
    ends = scores(net, params, torch.arange(6)[:, None], torch.ones(6, 1, 1), inputs, targets).loss[:, 0]
    thirds = torch.full((2, 1, 3), 1 / 3, dtype=torch.float64)
    aim = scores(net, params, group, thirds, inputs, targets).loss[:, 0] - ends[group].mean(1)
    assert torch.allclose(centre, aim, rtol=1e-6)
    assert (worst >= centre).all()
    assert (worst > centre).any()
    again = simplex(net, params, group, inputs, targets, 40, seed=3)
    assert torch.equal(worst, again[1])
    assert not torch.equal(worst, simplex(net, params, group, inputs, targets, 40, seed=4)[1])
    more = simplex(net, params, torch.cat([group, group[:1]]), inputs, targets, 40, seed=3)
    assert torch.allclose(more[1][:2], worst, rtol=1e-12)


def test_points_of_a_simplex_are_spread_evenly_and_the_worst_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net, params, inputs, targets = problem()
    seen = []

    def listening(net_, params_, index, weights, *rest, **options):
        seen.append(weights)
        return scores(net_, params_, index, weights, *rest, **options)

    monkeypatch.setattr(MODULE, "scores", listening)
    group = torch.tensor([[0, 1, 2]])
    _, worst = simplex(net, params, group, inputs, targets, 4000, seed=5)
    drawn = seen[0][0, -4000:]
    assert (drawn >= 0).all()
    assert torch.allclose(drawn.sum(1), torch.ones(4000, dtype=torch.float64))
    assert (drawn.mean(0) - 1 / 3).abs().max() < 0.015
    assert (drawn.var(0) - 1 / 18).abs().max() < 0.005  # of Dirichlet(1, 1, 1)
    assert abs((drawn[:, 0] > 0.5).double().mean() - 0.25) < 0.03
    loss = scores(net, params, group, seen[0], inputs, targets).loss
    excess = loss[0, -4000:] - drawn @ loss[0, :3]
    assert torch.allclose(worst[0], excess.max(), rtol=1e-12)


def test_misuse_of_lines_is_refused() -> None:
    net, params, inputs, targets = problem()
    for alphas in ([0, 0.5], [0.1, 1], [-0.5, 0, 1], [0, 1, 1.5], [0, 0.5, 0.4, 1], [0, torch.nan, 1], [0]):
        with pytest.raises(ValueError, match="points rise from 0"):
            lines(net, params, PAIRS, inputs, targets, torch.tensor(alphas, dtype=torch.float64))
    with pytest.raises(ValueError, match="1 points make no line"):
        lines(net, params, PAIRS, inputs, targets, 1)
    with pytest.raises(ValueError, match="there are 1 networks"):
        lines(net, select(params, slice(0, 1)), PAIRS[:1] * 0, inputs, targets)
    with pytest.raises(ValueError, match=r"pairs \(0, 2\)"):
        lines(net, params, PAIRS[:0], inputs, targets)
    with pytest.raises(ValueError, match="names network 4"):
        lines(net, params, PAIRS + 1, inputs, targets)
    wide = {k: torch.cat([v, v], 1) if k == "0.weight" else v for k, v in params.items()}
    with pytest.raises(ValueError, match=r"'0.weight' has shape \(4, 8, 5\)"):
        between(net, params, wide, inputs, targets)
    with pytest.raises(ValueError, match="as many on either side"):
        between(net, params, select(params, slice(0, 3)), inputs, targets)
    broken = {k: v.clone() for k, v in params.items()}
    broken["0.weight"][2] = torch.nan
    with pytest.raises(ValueError, match="network 2 has weights that are not finite"):
        lines(net, broken, PAIRS, inputs, targets)
    with pytest.raises(ValueError, match="at least two corners"):
        simplex(net, params, torch.tensor([[0], [1]]), inputs, targets, 3, seed=1)


def test_batch_norm_ends_are_their_own_function() -> None:
    """Property 10: permuted networks with BatchNorm, at the ends of the line."""
    net = perceptron((5, 8, 3), norm=nn.BatchNorm1d).double().eval()
    generator = torch.Generator().manual_seed(4)
    one = params_of(net)
    params = stack(
        [
            {
                k: torch.rand(t.shape, generator=generator, dtype=t.dtype) + 0.5
                if t.is_floating_point()
                else t
                for k, t in one.items()
            }
            for _ in range(2)
        ]
    )
    inputs = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 3, (40,), generator=generator)
    symmetries = find_symmetries(net, inputs[:2])
    moved = permute(params, symmetries, random_permutations(symmetries, torch.Generator().manual_seed(5), 2))
    found = lines(net, moved, torch.tensor([[0, 1]]), inputs, targets)
    alone = scores(net, params, torch.arange(2)[:, None], torch.ones(2, 1, 1), inputs, targets)
    assert torch.allclose(found.loss[0, [0, -1]], alone.loss[:, 0], rtol=1e-12)
    assert torch.equal(found.error[0, [0, -1]], alone.error[:, 0])
