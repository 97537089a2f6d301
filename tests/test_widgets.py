"""The figure to play with, as text; tests/book plays with it in a browser."""

import re

import pytest
import torch

from lib.widgets import orbit_player

NET = {
    "0.weight": torch.tensor([[1.6, 1.3], [-1.2, -1.5]]),
    "0.bias": torch.tensor([0.3, 0.5]),
    "2.weight": torch.tensor([[2.1, -2.4]]),
    "2.bias": torch.tensor([-0.4]),
}


def path(page, part):
    return re.search(rf'data-part="{part}" d="([^"]+)"', page)[1]


def test_the_drawn_graph_is_the_networks_function():
    page = orbit_player(NET, limit=6.0)._repr_html_()
    low, high = map(float, re.search(r'"range": \[([-\d.]+), ([-\d.]+)\]', page).groups())
    points = torch.tensor(
        [[float(v) for v in pair.split()] for pair in path(page, "function")[1:].split("L")]
    )
    inputs = ((points[:, :1] / 150 - 1) * 6.0) * torch.ones(1, 2) / 2**0.5
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
    net.load_state_dict(NET)
    drawn = high - points[:, 1] / 300 * (high - low)
    assert torch.allclose(drawn, net(inputs)[:, 0].detach(), atol=0.01 * (high - low))


def test_the_mirror_image_swaps_the_coordinates():
    page = orbit_player(NET)._repr_html_()
    (mx, my), (px, py) = (
        map(float, re.search(rf'data-part="{part}" r="6" cx="([\d.]+)" cy="([\d.]+)"', page).groups())
        for part in ("mirror", "point")
    )
    assert (mx, my) == pytest.approx((300 - py, 300 - px), abs=0.11)


def test_nothing_is_fetched_and_controls_wait_for_the_script():
    page = orbit_player(NET)._repr_html_()
    assert not re.search(r"https?://|@import|src=|url\(", page)
    assert 'data-part="controls" hidden' in page
    assert "<noscript>" in page


def test_same_network_same_text():
    assert orbit_player(NET).page == orbit_player(dict(NET)).page


def test_another_network_is_refused():
    with pytest.raises(ValueError, match="2-2-1"):
        orbit_player({**NET, "0.bias": torch.zeros(3)})
