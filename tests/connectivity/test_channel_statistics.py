"""REPAIR and recalibration: every hidden unit has the mean and spread it was to have, and the ends stay what they were."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from lib.connectivity import mixed, recalibrate, repair
from lib.networks import perceptron
from lib.params import Params, member, params_of, select, stack

INDEX = torch.tensor([[0, 1], [2, 0]])
WEIGHTS = torch.tensor([[[1, 0], [0.5, 0.5], [0.3, 0.7], [0, 1]]], dtype=torch.float64).expand(2, -1, -1)
INNER = [1, 2, 5, 6]  # rows of the population of mixtures that are no ends


class ChannelNorm(nn.Module):
    """A norm that torch does not know: over the channels at each position."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, self.bias).movedim(-1, 1)


def transposed() -> nn.Sequential:
    """Transposed convolutions, whose weights are (inputs, units of a group, ...): as many inputs as units, and others in two groups."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 6, 2), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2, groups=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(144, 4),
    )  # fmt: skip


class Residual(nn.Module):
    """Layers that are defined in another order than they are used in, around a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.second, self.first = nn.Linear(7, 4), nn.Linear(7, 7), nn.Linear(6, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        return self.head(x + self.second(x).relu())


def convolutional(norm: type[nn.Module]) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 5, 3), norm(5), nn.ReLU(), nn.Conv2d(5, 6, 2), norm(6), nn.ReLU(), nn.Flatten(), nn.Linear(54, 4)
    )  # fmt: skip


# network, inputs, the layers whose outputs are to be corrected, the output layer
NETWORKS = {
    "perceptron": (lambda: perceptron((6, 9, 7, 4)), (6,), ("0", "2"), "4"),
    "LayerNorm": (lambda: perceptron((6, 9, 7, 4), norm=nn.LayerNorm), (6,), ("1", "4"), "6"),
    "convolutions": (lambda: convolutional(nn.Identity), (1, 6, 6), ("0", "3"), "7"),
    "ChannelNorm": (lambda: convolutional(ChannelNorm), (1, 6, 6), ("1", "4"), "7"),
    "transposed": (transposed, (1, 6, 6), ("0", "2", "4"), "7"),
    "residual": (Residual, (6,), ("first", "second"), "head"),
}
BATCH_NORM = {
    "perceptron": (lambda: perceptron((6, 9, 7, 4), norm=nn.BatchNorm1d), (6,), ("1", "4")),
    "convolutions": (lambda: convolutional(nn.BatchNorm2d), (1, 6, 6), ("1", "4")),
}


def population(net: nn.Module, members: int = 3) -> Params:
    generator = torch.Generator().manual_seed(1)

    def drawn(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor + 7
        noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        return noise.abs() + 0.5 if name.endswith("running_var") else noise

    return stack([{k: drawn(k, t) for k, t in params_of(net).items()} for _ in range(members)])


def examples(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(80, *shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def moments(
    net: nn.Module, params: Params, names: tuple[str, ...], x: torch.Tensor, of: str = "output"
) -> dict:
    """Mean and standard deviation of each channel that the layers put out (or take in), member by member, (P, channels)."""
    seen: dict[str, list] = {name: [] for name in names}

    def hook(name: str):
        def look(_layer: nn.Module, args: tuple, output: torch.Tensor) -> None:
            values = (output if of == "output" else args[0]).transpose(0, 1).flatten(1)
            seen[name].append(torch.stack([values.mean(1), values.std(1, correction=0)]))

        return look

    hooks = [net.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    for i in range(len(next(iter(params.values())))):
        functional_call(net, member(params, i), (x,))
    for handle in hooks:
        handle.remove()
    return {name: torch.stack(found, 1) for name, found in seen.items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_hidden_units_get_the_statistics_between_those_of_the_ends(name: str) -> None:
    build, shape, layers, _ = NETWORKS[name]
    net, x = build().double().eval(), examples(shape)
    ends = population(net)
    found = repair(net, ends, INDEX, WEIGHTS, x)
    at_ends, plain, mended = (moments(net, p, layers, x) for p in (ends, mixed(ends, INDEX, WEIGHTS), found))
    for layer in layers:
        goal = torch.einsum("krm,skmc->skrc", WEIGHTS, at_ends[layer][:, INDEX]).flatten(1, 2)
        assert torch.allclose(mended[layer], goal, rtol=1e-10, atol=1e-12), layer
        assert (plain[layer] - goal)[:, INNER].abs().max() > 0.05, layer  # there was something to mend


@pytest.mark.parametrize("name", NETWORKS)
def test_the_ends_keep_their_function(name: str) -> None:
    build, shape, _, _ = NETWORKS[name]
    net, x = build().double().eval(), examples(shape)
    ends = population(net)
    found = repair(net, ends, INDEX, WEIGHTS, x)
    for row, end in ((0, 0), (3, 1), (4, 2), (7, 0)):
        before, after = (functional_call(net, member(p, i), (x,)) for p, i in ((ends, end), (found, row)))
        assert (before - after).abs().max() < 1e-12 * before.abs().max()


@pytest.mark.parametrize("name", NETWORKS)
def test_only_hidden_layers_are_corrected(name: str) -> None:
    build, shape, layers, head = NETWORKS[name]
    net, x = build().double(), examples(shape)
    ends = population(net)
    found, plain = repair(net, ends, INDEX, WEIGHTS, x), mixed(ends, INDEX, WEIGHTS)
    corrected = {key for key in plain if not torch.equal(found[key], plain[key])}
    assert corrected == {f"{layer}.{which}" for layer in layers for which in ("weight", "bias")}
    assert f"{head}.weight" in plain


def test_dead_units_are_left_alone() -> None:
    net, x = perceptron((6, 9, 7, 4)).double(), examples((6,))
    ends = population(net)
    ends["0.weight"][:, 4] = 0
    ends["2.weight"][:, 2] = 0
    found, plain = repair(net, ends, INDEX, WEIGHTS, x), mixed(ends, INDEX, WEIGHTS)
    for layer, unit in (("0", 4), ("2", 2)):
        assert torch.equal(found[f"{layer}.weight"][:, unit], plain[f"{layer}.weight"][:, unit])
        assert torch.equal(found[f"{layer}.bias"][:, unit], plain[f"{layer}.bias"][:, unit])
    assert all(t.isfinite().all() for t in found.values())


@pytest.mark.parametrize("name", BATCH_NORM)
def test_recalibrated_layers_normalise_what_they_are_given(name: str) -> None:
    build, shape, layers = BATCH_NORM[name]
    net, x = build().double().eval(), examples(shape)
    before = population(net)
    after = recalibrate(net, before, x)
    taken = moments(net, after, layers, x, of="input")  # what comes in after the layers before were corrected
    for layer in layers:
        assert torch.allclose(after[f"{layer}.running_mean"], taken[layer][0], rtol=1e-10, atol=1e-12)
        spread = after[f"{layer}.running_var"].sqrt()
        assert torch.allclose(
            spread, taken[layer][1], rtol=0.02
        )  # whichever correction for the sample's size
    assert all(torch.equal(after[k], before[k]) for k in before if "running" not in k)
    again = recalibrate(net, after, x)
    assert all(torch.allclose(again[k], after[k], rtol=1e-10, atol=1e-12) for k in after)


def test_recalibration_forgets_the_old_statistics() -> None:
    net, x = perceptron((6, 9, 7, 4), norm=nn.BatchNorm1d).double(), examples((6,))
    before = population(net)
    loud = {k: t * 50 + 3 if "running" in k else t for k, t in before.items()}
    a, b = recalibrate(net, before, x), recalibrate(net, loud, x)
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_batch_norm_between_two_networks_is_recalibrated() -> None:
    net, x = perceptron((6, 9, 7, 4), norm=nn.BatchNorm1d).double().eval(), examples((6,))
    ends = population(net)
    found, aim = repair(net, ends, INDEX, WEIGHTS, x), recalibrate(net, mixed(ends, INDEX, WEIGHTS), x)
    assert all(torch.equal(found[k][INNER], aim[k][INNER]) for k in aim)


def test_members_are_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = perceptron((6, 9, 7, 4)).double(), examples((6,))
    normed = perceptron((6, 9, 4), norm=nn.BatchNorm1d).double()
    ends, others = population(net), population(normed)
    whole = repair(net, ends, INDEX, WEIGHTS, x), recalibrate(normed, others, x)
    monkeypatch.setattr("lib.connectivity.statistics.MEMBERS", 1)
    parts = repair(net, ends, INDEX, WEIGHTS, x), recalibrate(normed, others, x)
    for a, b in zip(whole, parts, strict=True):
        assert all(torch.allclose(a[k].double(), b[k].double(), rtol=1e-10, atol=1e-12) for k in a)
    alone = recalibrate(normed, select(others, slice(1, 2)), x)
    assert all(torch.allclose(alone[k][0].double(), whole[1][k][1].double(), rtol=1e-10) for k in alone)


def test_the_network_that_was_passed_in_is_left_as_it_was() -> None:
    net, x = perceptron((6, 9, 4), norm=nn.BatchNorm1d).double(), examples((6,))
    params, before = population(net), params_of(net)
    kept = {k: t.clone() for k, t in params.items()}
    net.train()
    recalibrate(net, params, x)
    repair(net, params, INDEX, WEIGHTS, x)
    assert net.training
    assert all(torch.equal(t, before[k]) for k, t in params_of(net).items())
    assert all(torch.equal(t, kept[k]) for k, t in params.items())
    assert not any(layer._forward_hooks for layer in net.modules())


def test_networks_without_batch_norm_have_nothing_to_recalibrate() -> None:
    for net in (perceptron((6, 9, 4)), perceptron((6, 9, 4), norm=nn.BatchNorm1d, track_running_stats=False)):
        with pytest.raises(ValueError, match="no BatchNorm with running statistics"):
            recalibrate(net.double(), population(net), examples((6,)))
