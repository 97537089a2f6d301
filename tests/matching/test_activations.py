"""Activation matching: planted orders are found, sums are those of one pass, and units are read where it says."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent.parent / "symmetry"))  # the hand-made networks
import handmade

from lib.matching.activations import (
    activations,
    correlations,
    match_activations,
    match_activations_pairs,
)
from lib.networks import optumnist, perceptron
from lib.params import Params, member, select
from lib.symmetry import Symmetries, compose, find_symmetries, inverse, permute, random_permutations


class Block(nn.Module):
    """A residual block whose nonlinearities are modules, one of them in place, as in most networks for images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 5, 3, padding=1)
        self.conv1, self.norm1 = nn.Conv2d(5, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.conv2, self.norm2 = nn.Conv2d(5, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.start, self.inner, self.outer = nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU(inplace=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(self.stem(x))
        y = self.norm2(self.conv2(self.inner(self.norm1(self.conv1(x)))))
        return self.head(self.outer(y + x).mean((2, 3)))


class Functions(nn.Module):
    """Nonlinearities that are functions, before a module that belongs to a later layer of the same width."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.late = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.late(self.second(F.tanh(self.first(x)))))


class Mixed(nn.Module):
    """A residual stream whose first nonlinearity is a module, and whose last is a function."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.start = nn.Linear(4, 6), nn.ReLU()
        self.up, self.down, self.head = nn.Linear(6, 7), nn.Linear(7, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(self.stem(x))
        return self.head((x + self.down(self.up(x).tanh())).tanh())


class Turned(nn.Module):
    """A transposed convolution, whose weight has its inputs first."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.turned, self.head = nn.Conv1d(1, 4, 3), nn.ConvTranspose1d(4, 6, 2), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.turned(self.up(x).relu()).relu().mean(2))


class Bare(nn.Module):
    """Weights that no module holds."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.zeros(5, 4)), nn.Parameter(torch.zeros(3, 5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.up).relu(), self.down)


def convolutions() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(5, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)),
    )


def flattened() -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(1, 4, 3), nn.Flatten(), nn.ReLU(), nn.Linear(28, 3))


FOUND = {
    "two hidden layers": (lambda: perceptron((8, 12, 10, 4)), (8,)),
    "convolutions and a norm": (convolutions, (2, 10, 10)),
    "a residual stream of functions": (handmade.Residual, (4,)),
    "a residual block of modules": (Block, (2, 6, 6)),
    "functions": (Functions, (4,)),
    "a module, then a function": (Mixed, (4,)),
    "a transposed convolution": (Turned, (1, 9)),
    "an activation behind a reshape": (flattened, (1, 9)),
}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def setting(name: str, members: int, examples: int = 150) -> tuple[nn.Module, Symmetries, Params, Tensor]:
    build, shape = FOUND[name]
    net = build().double()
    inputs = torch.randn(examples, *shape, generator=generator(1), dtype=torch.float64)
    params = handmade.population(net, members, seed=2)  # no two dead units, which would tie
    return net, find_symmetries(net, inputs[:2]), params, inputs


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * b.abs().max())


@pytest.mark.parametrize("where", ["after", "before"])
@pytest.mark.parametrize("name", FOUND)
def test_planted_permutations_are_found_exactly(name: str, where: str) -> None:
    net, symmetries, params, inputs = setting(name, 1)
    reference = member(params, 0)
    planted = random_permutations(symmetries, generator(4), 6)
    found = match_activations(
        net, reference, permute(reference, symmetries, planted), symmetries, inputs, where=where
    )
    read = activations(net, params, symmetries, inputs, where)
    back = inverse(symmetries, planted)
    for units, perm, other, worth in zip(read, found.perms, back, found.objective, strict=True):
        alive = (units[0].std(0) > 0).sum()
        assert alive >= units.shape[2] - 1  # two dead units would tie
        assert torch.equal(perm, other)
        assert (worth - alive).abs().max() < 1e-9
    for key, tensor in found.params.items():
        assert torch.equal(tensor, reference[key].expand_as(tensor)), key


@pytest.mark.parametrize("kernel", ["correlation", "product"])
@pytest.mark.parametrize("name", ["two hidden layers", "a residual block of modules"])
def test_batches_give_what_one_pass_gives(name: str, kernel: str) -> None:
    net, symmetries, params, inputs = setting(name, 5)
    first, second = member(params, 0), select(params, slice(1, None))
    whole, streamed = (
        match_activations(net, first, second, symmetries, inputs, kernel=kernel, batch=batch)
        for batch in (150, 11)
    )
    assert close(streamed.objective, whole.objective)
    assert all(torch.equal(a, b) for a, b in zip(streamed.perms, whole.perms, strict=True))


def test_correlations_are_numpys_and_zero_for_dead_units() -> None:
    a, b = torch.randn(2, 3, 50, 6, generator=generator(5), dtype=torch.float64) * 2 + 7
    expected = [np.corrcoef(x.T, y.T)[:6, 6:] for x, y in zip(a.numpy(), b.numpy(), strict=True)]
    assert (correlations(a, b) - torch.from_numpy(np.stack(expected))).abs().max() < 1e-12
    a[:, :, 2], b[1, :, 4] = 0.3, 0.0
    dead = correlations(a, b)
    assert (dead[:, 2] == 0).all()
    assert (dead[1, :, 4] == 0).all()
    assert (dead[0, :2, 4] != 0).all()
    assert (correlations(a, a).diagonal(dim1=1, dim2=2) > 1 - 1e-12).sum() == 15


@pytest.mark.parametrize("kernel", ["correlation", "product"])
def test_the_objective_is_the_sum_of_matched_similarities(kernel: str) -> None:
    net, symmetries, params, inputs = setting("two hidden layers", 4)
    pairs = torch.tensor([[0, 1], [2, 3], [3, 0]])
    found = match_activations_pairs(net, params, pairs, symmetries, inputs, kernel=kernel)
    for g, units in enumerate(activations(net, params, symmetries, inputs)):
        for k, (a, b) in enumerate(pairs.tolist()):
            ours, theirs = units[a], units[b][:, found.perms[g][k]]
            if kernel == "correlation":
                ours, theirs = (x - x.mean(0) for x in (ours, theirs))
                ours, theirs = (x / x.square().mean(0).sqrt() for x in (ours, theirs))
            assert close((ours * theirs).mean(0).sum(), found.objective[g, k])


def test_a_relabelled_reference_relabels_the_permutation() -> None:
    net, symmetries, params, inputs = setting("two hidden layers", 3)
    a, b = member(params, 0), member(params, 1)
    order = random_permutations(symmetries, generator(6))
    plain = match_activations(net, a, b, symmetries, inputs)
    relabelled = match_activations(net, permute(a, symmetries, order), b, symmetries, inputs)
    expected = compose(symmetries, plain.perms, order)
    assert all(torch.equal(x, y) for x, y in zip(relabelled.perms, expected, strict=True))
    assert close(relabelled.objective, plain.objective)


@pytest.mark.parametrize("name", FOUND)
def test_the_way_back_is_the_inverse(name: str) -> None:
    net, symmetries, params, inputs = setting(name, 6)
    pairs = torch.tensor([[0, 1], [1, 0], [4, 2], [2, 4]])
    found = match_activations_pairs(net, params, pairs, symmetries, inputs)
    back = inverse(symmetries, [perm[1::2] for perm in found.perms])
    assert all(torch.equal(perm[::2], other) for perm, other in zip(found.perms, back, strict=True))
    assert not all((perm[0] == torch.arange(perm.shape[1])).all() for perm in found.perms)


def test_all_ways_to_name_two_networks_agree() -> None:
    net, symmetries, params, inputs = setting("convolutions and a norm", 6)
    first, second = select(params, slice(0, 3)), select(params, slice(3, 6))
    rows = match_activations(net, first, second, symmetries, inputs)
    pairs = match_activations_pairs(net, params, torch.tensor([[0, 3], [1, 4], [2, 5]]), symmetries, inputs)
    star = match_activations(net, member(params, 1), second, symmetries, inputs)
    alone = match_activations(net, member(params, 1), member(params, 4), symmetries, inputs)
    for a, b, c, d in zip(rows.perms, pairs.perms, star.perms, alone.perms, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a[1], c[1])
        assert torch.equal(a[1], d)
    assert alone.objective.shape == (2,)
    assert close(alone.objective, rows.objective[:, 1])
    moved = permute(member(params, 4), symmetries, alone.perms)
    assert all(torch.equal(tensor, alone.params[key]) for key, tensor in moved.items())


def test_units_that_are_dead_in_both_take_what_is_left() -> None:
    net, symmetries, params, inputs = setting("two hidden layers", 1)
    reference = member(params, 0)
    reference["0.bias"][[3, 8]] = -1e4
    planted = random_permutations(symmetries, generator(7), 4)
    found = match_activations(net, reference, permute(reference, symmetries, planted), symmetries, inputs)
    alive = torch.tensor([u for u in range(12) if u not in (3, 8)])
    back = inverse(symmetries, planted)[0]
    assert torch.equal(found.perms[0][:, alive], back[:, alive])
    assert torch.equal(found.perms[0][:, [3, 8]].sort(1).values, back[:, [3, 8]].sort(1).values)
    assert (found.objective[0] - 10).abs().max() < 1e-9


def test_units_are_read_where_it_says() -> None:
    net, symmetries, params, x = setting("functions", 1)
    own = member(params, 0)
    first = F.linear(x, own["first.weight"], own["first.bias"])
    second = F.linear(first.tanh(), own["second.weight"], own["second.bias"])
    for where, expected in (("before", (first, second)), ("after", (first.tanh(), second.relu()))):
        read = activations(net, params, symmetries, x, where)
        assert all(close(units[0], wanted) for units, wanted in zip(read, expected, strict=True))

    net, symmetries, params, x = setting("convolutions and a norm", 2)
    net.load_state_dict(member(params, 1))
    for where, layers in (("before", (2, 5)), ("after", (3, 6))):
        read = activations(net, params, symmetries, x, where)
        for units, layer in zip(read, layers, strict=True):
            assert close(units[1], net.eval()[:layer](x).movedim(1, -1).flatten(0, -2).detach())


STREAMS = ["a residual stream of functions", "a residual block of modules", "a module, then a function"]


@pytest.mark.parametrize("name", STREAMS)
def test_a_residual_stream_is_read_whole(name: str) -> None:
    net, symmetries, params, x = setting(name, 2)
    net.load_state_dict(member(params, 1))
    seen: list[Tensor] = []
    if name != "a residual block of modules":
        hook = net.head.register_forward_hook(lambda layer, args, y: seen.append(args[0].detach()))
    else:
        hook = net.outer.register_forward_hook(lambda layer, args, y: seen.append(y.detach()))
    net.eval()(x)
    hook.remove()
    g = next(i for i, group in enumerate(symmetries.permutations) if group.layer.startswith("stem"))
    expected = seen[0].movedim(1, -1).flatten(0, -2)
    assert close(activations(net, params, symmetries, x)[g][1], expected)


def test_the_network_is_left_as_it_was() -> None:
    net, symmetries, params, x = setting("a residual block of modules", 2)
    net.train()
    own = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    activations(net, params, symmetries, x)
    assert net.training
    assert all(torch.equal(own[key], tensor) for key, tensor in net.state_dict().items())
    assert not any(layer._forward_hooks for layer in net.modules())


def test_misuse_is_refused() -> None:
    net, symmetries, params, inputs = setting("two hidden layers", 3)
    one = member(params, 0)
    with pytest.raises(ValueError, match="choose 'after' or 'before'"):
        match_activations(net, one, params, symmetries, inputs, where="between")
    with pytest.raises(ValueError, match="'correlation' or 'product'"):
        match_activations(net, one, params, symmetries, inputs, kernel="cosine")
    with pytest.raises(ValueError, match="3 references for a single network"):
        match_activations(net, params, one, symmetries, inputs)
    with pytest.raises(ValueError, match="not a single network"):
        match_activations_pairs(net, one, torch.tensor([[0, 0]]), symmetries, inputs)
    broken = {key: tensor.clone() for key, tensor in params.items()}
    broken["2.weight"][1, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="network 2 has weights that are not finite"):
        match_activations(net, one, broken, symmetries, inputs)
    with pytest.raises(ValueError, match=r"activations of '0 \(Linear\)' are not finite"):
        match_activations(net, one, params, symmetries, inputs / 0)
    grouped = optumnist()
    found = find_symmetries(grouped, torch.zeros(2, 1, 28, 28))
    with pytest.raises(ValueError, match="live inside exchangeable blocks"):
        activations(grouped, handmade.population(grouped, 2, 1), found, torch.zeros(2, 1, 28, 28))


def test_units_that_no_module_shows_are_refused() -> None:
    net = Bare().double()
    x = torch.randn(20, 4, generator=generator(8), dtype=torch.float64)
    symmetries = find_symmetries(net, x[:2])
    for where in ("after", "before"):
        with pytest.raises(ValueError, match="no module of the network shows the units"):
            activations(net, handmade.population(net, 2, 1), symmetries, x, where)


def test_a_norm_by_the_batch_is_not_split() -> None:
    net = perceptron((4, 6, 3), norm=nn.BatchNorm1d, track_running_stats=False).double()
    x = torch.randn(20, 4, generator=generator(9), dtype=torch.float64)
    symmetries, params = find_symmetries(net, x[:4]), handmade.population(net, 2, 1)
    with pytest.raises(ValueError, match=r"layer '1' normalises by the batch.*batch=20"):
        match_activations(net, member(params, 0), params, symmetries, x, batch=10)
    assert match_activations(net, member(params, 0), params, symmetries, x).objective[0, 0] > 4
