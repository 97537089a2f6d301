"""Principal planes against NumPy and scikit-learn, and what positions explain on populations with a known answer."""

import numpy as np
import pytest
import torch

from lib import projection
from lib.networks import optumnist, perceptron
from lib.population import initial
from lib.symmetry import canonicalize, find_symmetries, permute, random_permutations


def points(n=60, d=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scales = torch.linspace(3, 0.2, d, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) * scales + 5


@pytest.mark.parametrize("shape", [(60, 9), (8, 30)])
def test_the_plane_is_scikit_learns(shape):
    from sklearn.decomposition import PCA

    data = points(*shape)
    theirs = PCA(3, svd_solver="full").fit(data.numpy())
    ours = projection.plane(data, 3)
    np.testing.assert_allclose(ours.shares, theirs.explained_variance_ratio_, rtol=1e-9)
    np.testing.assert_allclose(np.abs((ours.axes.numpy() * theirs.components_).sum(1)), 1, rtol=1e-9)
    placed = ours.at(data).abs().numpy()
    np.testing.assert_allclose(placed, np.abs(theirs.transform(data.numpy())), atol=1e-9)
    torch.testing.assert_close(ours.shares_of(data), ours.shares)


@pytest.mark.parametrize("shape", [(60, 9), (8, 30)])
def test_signs_do_not_depend_on_the_order_of_the_points(shape):
    data = points(*shape)
    axes = projection.plane(data).axes
    assert (axes.gather(1, axes.abs().argmax(1, keepdim=True)) > 0).all()
    torch.testing.assert_close(projection.plane(data.flip(0)).axes, axes)
    torch.testing.assert_close(projection.plane(-data).axes, axes)


def test_chance_is_what_independent_weights_show():
    found = projection.plane(points(400, 12))  # independent coordinates: nothing but chance
    torch.testing.assert_close(found.chance, found.shares, rtol=0.1, atol=0)
    common = points(400, 1, seed=1) + 0.1 * torch.randn(400, 12, generator=torch.Generator().manual_seed(2))
    together = projection.plane(common)
    assert together.shares[0] > 0.95
    assert together.chance.max() < 0.15  # shuffled one by one, the twelve have nothing in common


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (points().index_fill(0, torch.tensor([3]), torch.nan), "1 of 60 points are not finite"),
        (points(2, 9), "no 2 principal components"),
        (torch.ones(5, 4, dtype=torch.float64), "span no plane"),
    ],
)
def test_points_without_a_plane_are_refused(data, words):
    with pytest.raises(ValueError, match=words):
        projection.plane(data)


NET = perceptron((4, 3, 2))
SYMMETRIES = find_symmetries(NET, torch.zeros(2, 4))


def test_points_hold_every_weight_once():
    params = initial(NET, 5, 1)
    whole = projection.network_points(params)
    assert whole.shape == (5, 4 * 3 + 3 + 3 * 2 + 2)
    units = projection.unit_points(params, SYMMETRIES)
    assert units.shape == (5, 3, 4 + 1 + 2)
    parts = (params["0.weight"], params["0.bias"][..., None], params["2.weight"].mT)
    expected = torch.cat(parts, 2).double()
    torch.testing.assert_close(units.sort(dim=2).values, expected.sort(dim=2).values)


def test_units_move_as_points_when_they_are_permuted():
    generator = torch.Generator().manual_seed(0)
    for net, example in ((NET, torch.zeros(2, 4)), (optumnist(), torch.zeros(2, 1, 28, 28))):
        symmetries = find_symmetries(net, example)
        params = initial(net, 4, 2)
        group = next(g for g, each in enumerate(symmetries.permutations) if each.inside is None)
        elements = [torch.arange(each.size).expand(4, -1) for each in symmetries.permutations]
        elements[group] = random_permutations(symmetries, generator, members=4)[group]
        before = projection.unit_points(params, symmetries, group)
        after = projection.unit_points(permute(params, symmetries, elements), symmetries, group)
        torch.testing.assert_close(after, before.gather(1, elements[group][..., None].expand_as(before)))


def test_position_explains_nothing_in_exchangeable_units_and_all_in_equal_networks():
    drawn = [projection.explained_by_position(points(80, 6, seed).view(20, 4, 6)) for seed in range(40)]
    assert abs(np.mean(drawn)) < 0.01
    same = points(4, 6).expand(20, 4, 6)
    assert projection.explained_by_position(same) == pytest.approx(1)
    half = same - same.mean((0, 1))
    half = half / half.square().mean().sqrt()
    noise = torch.randn(20_000, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    mixed = half[:1] + noise
    assert projection.explained_by_position(mixed) == pytest.approx(0.5, abs=0.01)
    with pytest.raises(ValueError, match="at least two of both"):
        projection.explained_by_position(same[:1])


def test_a_canonical_form_takes_the_positions_apart():
    params = initial(NET, 400, 3)
    raw = projection.explained_by_position(projection.unit_points(params, SYMMETRIES))
    cleaned, seconds = projection.timed(lambda p: canonicalize(p, SYMMETRIES), params)
    after = projection.explained_by_position(projection.unit_points(cleaned, SYMMETRIES))
    assert abs(raw) < 0.01
    assert after > 0.05
    assert seconds > 0
    found = projection.plane(projection.network_points(cleaned))
    panels = projection.project(
        found, {"raw": projection.network_points(params), "cleaned": projection.network_points(cleaned)}
    )
    assert [(p.shape, title) for p, title in panels] == [((400, 2), "raw"), ((400, 2), "cleaned")]
    np.testing.assert_allclose(panels[1][0].mean(0), 0, atol=1e-12)
