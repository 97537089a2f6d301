"""Completeness by brute force: every way to permute the hidden axes of tiny networks, tensor by tensor, is tried.

Each tensor's hidden axis gets a permutation of its own (rows of one layer, columns of the next, a bias, ...), so that
nothing is assumed about which must agree; those that leave the function unchanged are counted, and that number must be
``count_permutations`` of what was found.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lib.symmetry import count_permutations
from lib.symmetry.find import find_symmetries


class Net(nn.Module):
    """Layers and the function that connects them."""

    def __init__(self, forward: Callable, **layers: nn.Module) -> None:
        super().__init__()
        self.connect = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.connect(self, x)


def linear(i: int, o: int) -> nn.Module:
    return nn.Linear(i, o, bias=False)


def conv(i: int, o: int, groups: int = 1, kernel: int = 1) -> nn.Module:
    return nn.Conv2d(i, o, kernel, groups=groups, bias=False)


IMAGE = (1, 2, 2, 2)
CASES = {
    "mlp": (
        Net(lambda n, x: n.b(n.a(x).relu()), a=nn.Linear(2, 3), b=nn.Linear(3, 2)),
        (1, 2),
        ["a.weight:0", "a.bias:0", "b.weight:1"],
        6,
    ),
    "frozen input and output": (
        Net(lambda n, x: n.b(n.a(x).tanh()), a=linear(3, 2), b=linear(2, 3)),
        (1, 3),
        ["a.weight:0", "a.weight:1", "b.weight:0", "b.weight:1"],
        2,
    ),
    "residual stream": (
        Net(lambda n, x: n.c((h := n.a(x)) + n.b(h).relu()), a=linear(2, 3), b=linear(3, 3), c=linear(3, 1)),
        (1, 2),
        ["a.weight:0", "b.weight:0", "b.weight:1", "c.weight:1"],
        6,
    ),
    "stream and inner units": (
        Net(
            lambda n, x: n.d((h := n.a(x)) + n.c(n.b(h).relu())),
            a=linear(2, 3),
            b=linear(3, 2),
            c=linear(2, 3),
            d=linear(3, 1),
        ),
        (1, 2),
        ["a.weight:0", "b.weight:0", "b.weight:1", "c.weight:0", "c.weight:1", "d.weight:1"],
        12,
    ),
    "stream that the input enters": (
        Net(lambda n, x: n.c(x + n.b(n.a(x).relu())), a=linear(3, 2), b=linear(2, 3), c=linear(3, 1)),
        (1, 3),
        ["a.weight:0", "a.weight:1", "b.weight:0", "b.weight:1", "c.weight:1"],
        2,
    ),
    "concatenation": (
        Net(
            lambda n, x: n.c(torch.cat([n.a(x).relu(), n.b(x).relu()], 1)),
            a=linear(2, 2),
            b=linear(2, 2),
            c=linear(4, 1),
        ),
        (1, 2),
        ["a.weight:0", "b.weight:0", "c.weight:1"],
        4,
    ),
    "channels flattened into columns": (
        Net(lambda n, x: n.b(n.a(x).relu().flatten(1)), a=conv(2, 2), b=linear(4, 1)),
        (1, 2, 1, 2),
        ["a.weight:0", "b.weight:1"],
        2,
    ),
    "grouped convolution": (
        Net(lambda n, x: n.c(n.b(n.a(x).relu()).relu()), a=conv(2, 4), b=conv(4, 4, 2), c=conv(4, 1)),
        (1, 2, 1, 1),
        ["a.weight:0", "b.weight:0", "b.weight:1", "c.weight:1"],
        None,  # counted with the columns of both blocks moved alike: 2! blocks, 2! inputs for both, (2!)² outputs
    ),
    "depthwise convolution": (
        Net(lambda n, x: n.c(n.b(n.a(x).relu()).relu()), a=conv(2, 3), b=conv(3, 3, 3), c=conv(3, 1)),
        (1, 2, 1, 1),
        ["a.weight:0", "b.weight:0", "c.weight:1"],
        6,
    ),
    "depthwise convolution that doubles": (
        Net(lambda n, x: n.c(n.b(n.a(x).relu()).relu()), a=conv(2, 2), b=conv(2, 4, 2), c=conv(4, 1)),
        (1, 2, 1, 1),
        ["a.weight:0", "b.weight:0", "c.weight:1"],
        8,
    ),
    "two nested partitions": (
        Net(
            lambda n, x: n.b(F.group_norm(F.group_norm(n.a(x), 2).tanh(), 4)),
            a=conv(2, 8),
            b=conv(8, 1),
        ),
        IMAGE,
        None,
        2 * (2 * 2 * 2) ** 2,
    ),
    "group norm": (
        Net(lambda n, x: n.b(F.group_norm(n.a(x), 2).relu()), a=conv(2, 4), b=conv(4, 1)),
        IMAGE,
        ["a.weight:0", "b.weight:1"],
        8,
    ),
    "layer norm": (
        Net(lambda n, x: n.b(n.n(n.a(x)).relu()), a=linear(2, 3), n=nn.LayerNorm(3), b=linear(3, 1)),
        (1, 2),
        ["a.weight:0", "n.weight:0", "n.bias:0", "b.weight:1"],
        6,
    ),
    "maxout": (
        Net(lambda n, x: n.b(n.a(x).view(-1, 2, 2).amax(2)), a=linear(2, 4), b=linear(2, 1)),
        (1, 2),
        ["a.weight:0", "b.weight:1"],
        8,
    ),
    "gated units": (
        Net(lambda n, x: n.b(F.glu(n.a(x), 1)), a=linear(2, 4), b=linear(2, 1)),
        (1, 2),
        ["a.weight:0", "b.weight:1"],
        2,
    ),
    "shortcut padded with zeros": (
        Net(
            lambda n, x: n.c(F.pad((h := n.a(x)), (0, 0, 0, 0, 1, 1)) + n.b(h).relu()),
            a=conv(2, 2),
            b=conv(2, 4),
            c=conv(4, 1),
        ),
        IMAGE,
        ["a.weight:0", "b.weight:0", "b.weight:1", "c.weight:1"],
        4,
    ),
}


def count_by_brute_force(net: nn.Module, x: Tensor, axes: list[str]) -> int:
    """Of all choices of one permutation an axis, how many leave the output unchanged."""
    params = {k: v.detach() for k, v in net.state_dict().items()}
    named = [(name, int(axis)) for name, axis in (spec.split(":") for spec in axes)]
    choices = [torch.tensor([*itertools.permutations(range(params[n].shape[a]))]) for n, a in named]
    grid = torch.cartesian_prod(*(torch.arange(len(c)) for c in choices))

    def output(picked: Tensor) -> Tensor:
        moved = dict(params)
        for i, (name, axis) in enumerate(named):
            moved[name] = moved[name].index_select(axis, choices[i][picked[i]])
        return functional_call(net, moved, (x,))

    outputs = vmap(output, chunk_size=8192)(grid)
    return int(((outputs - net(x)).abs().flatten(1).amax(1) < 1e-9).sum())


def randomised(net: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    net = net.double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) + 0.2)
    return net


@pytest.mark.parametrize("case", CASES)
def test_no_permutation_is_missed_and_none_is_invented(case):
    net, shape, axes, expected = CASES[case]
    net = randomised(net)
    found = find_symmetries(net, torch.zeros(shape))
    x = torch.randn(3, *shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    if expected is not None:
        assert count_permutations(found) == expected
    if axes is not None and expected is not None:
        with torch.no_grad():
            assert count_by_brute_force(net, x, axes) == expected


def test_grouped_convolution_is_counted_block_by_block():
    """The columns of the two blocks of rows are permuted apart: 2! blocks, (2!)² input and (2!)² output units."""
    net, _, _, _ = CASES["grouped convolution"]
    net = randomised(net)
    assert count_permutations(find_symmetries(net, torch.zeros(1, 2, 1, 1))) == 2 * 4 * 4
    a, b, c = (m.weight.detach()[:, :, 0, 0] for m in (net.a, net.b, net.c))
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))

    def output(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        h = (x @ a.T).relu()
        return torch.cat([h[:, :2] @ b[:2].T, h[:, 2:] @ b[2:].T], 1).relu() @ c.T

    reference, count = output(a, b, c), 0
    fours, swaps = [*itertools.permutations(range(4))], [[0, 1], [1, 0]]
    hidden = {}
    for rows, top, bottom in itertools.product(fours, swaps, swaps):
        moved = torch.cat([b[:2, top], b[2:, bottom]])
        hidden[rows, tuple(top), tuple(bottom)] = moved[list(rows)]
    for first, moved in itertools.product(fours, hidden.values()):
        before = output(a[list(first)], moved, torch.eye(4, dtype=torch.float64))
        candidates = torch.stack([before @ c[:, list(last)].T for last in fours])
        count += int(((candidates - reference).abs().flatten(1).amax(1) < 1e-9).sum())
    assert count == 2 * 4 * 4
