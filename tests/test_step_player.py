"""The figure of one training step, as numbers and as text; tests/book plays with it in a browser."""

import re

import numpy as np
import pytest
import torch

from lib.step_player import (
    DIRECTION,
    LENGTHS,
    METHODS,
    MOST,
    RATES,
    TARGET,
    gradient,
    loss,
    step_player,
    walk,
)
from lib.unit_norm import UnitNormSGD


def along(path):
    return (path / path.norm(dim=1, keepdim=True)).numpy()


def attributes(page, part):
    return dict(re.findall(r'([a-z-]+)="([^"]*)"', re.search(rf'data-part="{part}"[^>]*', page)[0]))


def points(page, part):
    numbers = re.findall(r"-?\d+\.\d", attributes(page, part)["d"])
    return np.array(numbers, float).reshape(-1, 2)


def by_angle(method, rate, length):
    """The same walks written in polar coordinates, where the loss is 1 - cos of the angle to the target."""
    angle, target = np.arctan2(DIRECTION[1], DIRECTION[0]), np.arctan2(TARGET[1], TARGET[0])
    if method == "unit norm":
        length = 1.0
    found = [(length, angle)]
    for _ in range(MOST):
        turn = rate * np.sin(angle - target) / (length**2 if method == "SGD" else 1.0)
        angle -= np.arctan(turn)
        length *= 1.0 if method == "unit norm" else np.sqrt(1 + turn**2)
        found.append((length, angle))
    r, a = np.array(found).T
    return np.column_stack([r * np.cos(a), r * np.sin(a)])


def test_the_gradient_is_autograds():
    w = torch.tensor([[1.3, -0.4], [0.1, 0.2], [-2.0, 0.7]], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(w).sum(), w)
    assert torch.allclose(gradient(w.detach()), slope, atol=1e-14)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rate", [RATES[0], 0.3, RATES[-1]])
@pytest.mark.parametrize("length", [LENGTHS[0], 1.0, LENGTHS[-1]])
def test_a_walk_is_the_one_in_polar_coordinates(method, rate, length):
    np.testing.assert_allclose(walk(method, rate, length), by_angle(method, rate, length), rtol=1e-9)


@pytest.mark.parametrize(("method", "optimiser"), [("SGD", torch.optim.SGD), ("unit norm", UnitNormSGD)])
def test_a_walk_is_the_optimisers(method, optimiser):
    path = walk(method, 0.5, 0.6)
    w = torch.nn.Parameter(path[:1].clone())
    stepper = optimiser([w], lr=0.5)
    for point in path[1:]:
        stepper.zero_grad()
        loss(w).sum().backward()
        stepper.step()
        assert torch.allclose(w.detach()[0], point, atol=1e-12)


def test_the_length_grows_by_pythagoras_under_sgd_alone():
    path = walk("SGD", 0.5, 0.4)
    squares, slopes = path.square().sum(1), gradient(path).square().sum(1)
    assert torch.allclose(squares[1:], squares[:-1] + 0.25 * slopes[:-1], rtol=1e-14)
    assert torch.allclose(walk("unit norm", 0.5, 0.4).norm(dim=1), torch.ones(MOST + 1, dtype=torch.float64))


def test_the_starting_length_matters_to_sgd_alone():
    for method in METHODS:
        short, long = (loss(walk(method, 0.3, length)) for length in (LENGTHS[0], LENGTHS[-1]))
        gap = float((short - long).abs().max())
        assert gap > 1 if method == "SGD" else gap < 1e-12
    np.testing.assert_allclose(
        along(walk("unit norm", 0.3, 2.0)), along(walk("scaled metric", 0.3, 2.0)), atol=1e-12
    )


def test_what_is_drawn_are_these_numbers():
    page = step_player(0.5, 1.2, 7).page
    limit = 150 / float(attributes(page, "circle")["r"])
    for i, method in enumerate(METHODS):
        path = walk(method, 0.5, 1.2)
        drawn = (points(page, f"path-{i}") / 150 - 1) * limit * [1, -1]
        np.testing.assert_allclose(drawn, path[:8], atol=0.06 / 150 * limit + 0.01)
        heights = points(page, f"loss-{i}")
        np.testing.assert_allclose(heights[:, 0], np.arange(MOST + 1) * 10)
        np.testing.assert_allclose(2 - heights[:, 1] / 90, loss(path)[:, 0], atol=0.001)
        at = attributes(page, f"loss-point-{i}")
        assert [float(at["cx"]), float(at["cy"])] == list(heights[7])
    for i, length in enumerate([LENGTHS[0], LENGTHS[-1]]):
        drawn = 2 - points(page, f"end-{i}")[:, 1] / 90
        np.testing.assert_allclose(drawn, loss(walk("SGD", 0.5, length))[:, 0], atol=0.001)


def test_the_last_step_is_drawn_in_its_parts():
    page = step_player(1.0, 1.0, 3).page
    circle = {name: float(attributes(page, "close-circle")[name]) for name in ("cx", "cy", "r")}
    origin, scale = np.array([circle["cx"], circle["cy"]]), np.array([1, -1]) / circle["r"]
    start, tip = (points(page, "gradient")[:2] - origin) * scale
    again, end = (points(page, "retraction")[:2] - origin) * scale
    path = walk("unit norm", 1.0, 1.0)
    np.testing.assert_allclose([start, end], path[2:4], atol=0.005)
    np.testing.assert_allclose(tip - start, -gradient(path[2:3])[0], atol=0.005)
    np.testing.assert_allclose(tip, again)
    np.testing.assert_allclose(tip / np.linalg.norm(tip), end, atol=0.005)
    for edge in (points(page, "tangent") - origin) * scale:
        assert (edge - start) @ start == pytest.approx(0, abs=0.02)


def test_the_text_without_javascript_tells_the_losses():
    page = step_player(0.5, 1.2, 7).page
    words = re.search("<noscript>(.*)</noscript>", page)[1]
    for method in METHODS:
        assert f"{float(loss(walk(method, 0.5, 1.2))[7]):.3f}" in words


def test_nothing_is_fetched_and_controls_wait_for_the_script():
    page = step_player()._repr_html_()
    assert not re.search(r"https?://|@import|src=|url\(", page)
    assert 'data-part="controls" hidden' in page
    assert step_player().page == page
    assert "SGD, unit norm and scaled metric" in repr(step_player())


@pytest.mark.parametrize(
    ("chosen", "what"), [({"rate": 0.4}, "rate"), ({"length": 5.0}, "length"), ({"steps": 31}, "steps")]
)
def test_what_no_slider_has_is_refused(chosen, what):
    with pytest.raises(ValueError, match=f"{what}.*choose one of"):
        step_player(**chosen)
