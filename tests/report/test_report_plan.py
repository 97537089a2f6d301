"""What a report affords: coarser lines and fewer pairs before fewer examples, never more than there are."""

import pytest
import torch
from report_cases import build, digits
from torch import nn

from lib.report.plan import SECONDS, SPEED, cost, matching, plan
from lib.symmetry import find_symmetries


def test_small_networks_get_everything():
    symmetries = find_symmetries(build(), digits().example)
    found = plan(build(), 8, digits().example, 1797, symmetries)
    assert (found.examples, found.points, found.every, found.joint) == (1797, 11, True, True)
    assert found.seconds < SECONDS
    assert len(found.pairs(8)) == 28
    assert plan(build(), 8, digits().example, 10**6, symmetries).examples == 4000
    assert plan(build(), 8, digits().example, 1797, symmetries, 100).examples == 100


class Slow(nn.Module):
    """A network of so many operations an example, which are never made."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(4, width, bias=False)
        self.second = nn.Linear(width, width, bias=False)

    def forward(self, x):
        return self.second(self.first(x))


def test_costs_are_counted():
    width = 300
    found = cost(Slow(width), torch.randn(2, 4), None)
    assert found.example == pytest.approx(2 * (4 + width) * width / SPEED + 2e-9 * (4 + 2 * width), rel=1e-6)
    assert found.matching == 0


def test_slow_networks_get_coarser_lines_and_few_examples():
    net = Slow(3000)
    seen = [plan(net, 10, torch.randn(2, 4), count) for count in (10, 1000, 10**5)]
    assert [s.examples <= c for s, c in zip(seen, (10, 1000, 10**5), strict=True)] == [True] * 3
    fast = plan(Slow(30), 10, torch.randn(2, 4), 10**5)
    assert fast.points >= seen[-1].points
    assert fast.examples >= seen[-1].examples
    assert seen[-1].seconds < 2 * SECONDS


def test_pairs_with_the_first():
    found = plan(build(), 3, digits().example, 100)
    star = type(found)(100, every=False).pairs(4)
    assert star.tolist() == [[0, 1], [0, 2], [0, 3]]


def test_wide_groups_cost_more_to_match():
    small, wide = (find_symmetries(net, torch.randn(2, 8)) for net in (mlp(16), mlp(400)))
    assert matching(wide) > 20 * matching(small)


def mlp(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3)
    )
