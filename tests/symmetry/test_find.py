"""What find_symmetries finds, place by place; that it is sound; what it refuses; that it leaves the network alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from lib.networks import optumnist
from lib.params import params_of
from lib.symmetry import (
    ScaleFreedom,
    Symmetries,
    count_permutations,
    permute,
    random_log_scales,
    random_permutations,
    rescale,
)
from lib.symmetry.find import UnsupportedNetwork, VerificationError, find_symmetries
from lib.symmetry.verify import verify


class Net(nn.Module):
    """Layers and the function that connects them."""

    def __init__(self, forward: Callable, *layers: nn.Module, **named: nn.Module) -> None:
        super().__init__()
        self.connect, self.layers = forward, nn.ModuleList(layers)
        for name, layer in named.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.connect(self, x)


class Block(nn.Module):
    """A residual block with BatchNorm; a projection shortcut where the width or the stride changes."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or width_in != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y += self.shortcut(x)
        return F.relu(y)


def resnet(widths: tuple[int, ...] = (3, 4)) -> nn.Module:
    blocks, width_in = [], widths[0]
    for i, width in enumerate(widths):
        blocks += [Block(width_in, width, 1 if i == 0 else 2), Block(width, width, 1)]
        width_in = width
    stem = [nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width_in, 5))


def one_block() -> nn.Module:
    return nn.Sequential(*resnet((3,))[:4], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5))


IMAGE = torch.zeros(2, 3, 8, 8)


def table(freedom: ScaleFreedom) -> set[tuple[str, int, float]]:
    return {(p.name, p.axis, p.exponent) for p in freedom.places}


def by_kind(found: Symmetries, kind: str) -> list[ScaleFreedom]:
    return [freedom for freedom in found.scales if freedom.kind == kind]


# --- known groups ------------------------------------------------------------------------------------------------


def test_dense_networks():
    found = find_symmetries(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)), torch.zeros(1, 2))
    assert count_permutations(found) == 2
    (group,), (freedom,) = found.permutations, found.scales
    assert {(p.name, p.axis) for p in group.places} == {("0.weight", 0), ("0.bias", 0), ("2.weight", 1)}
    assert table(freedom) == {("0.weight", 0, 1), ("0.bias", 0, 1), ("2.weight", 1, -1)}
    assert (freedom.size, freedom.kind, freedom.exact) == (2, "homogeneous", True)
    digits = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    assert count_permutations(find_symmetries(digits, torch.zeros(1, 64))) == math.factorial(16)


def test_optumnist_has_172800_permutations():
    found = find_symmetries(optumnist(), torch.zeros(1, 1, 28, 28))
    assert count_permutations(found) == 172_800
    assert [(g.size, g.inside) for g in found.permutations] == [
        (5, (2, 0)),
        (5, (2, 1)),
        (2, None),
        (3, None),
    ]
    assert [(f.size, f.kind, f.exact) for f in found.scales] == [
        (2, "homogeneous", True),
        (10, "homogeneous", True),
        (3, "homogeneous", True),
    ]
    grouped = found.scales[0]  # one input channel feeds five rows: they follow it as rows
    (rows,) = [p for p in grouped.places if p.name == "3.weight"]
    assert (rows.axis, rows.exponent, rows.index.tolist()) == (0, -1, [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]])


def test_a_residual_network_shares_its_streams_and_frees_its_scales():
    found = find_symmetries(resnet((3, 4, 5)), IMAGE)
    streams = [g for g in found.permutations if len(g.places) > 6]
    assert sorted(g.size for g in streams) == [3, 4, 5]
    assert sorted(g.size for g in found.permutations) == [3, 3, 3, 4, 4, 4, 5, 5, 5]
    (first,) = [g for g in streams if g.size == 3]
    convs = {(p.name, p.axis) for p in first.places if p.name.endswith("weight") and "bn" not in p.name}
    assert convs >= {("0.weight", 0), ("3.conv2.weight", 0), ("4.conv2.weight", 0)}
    assert convs >= {
        ("3.conv1.weight", 1),
        ("4.conv1.weight", 1),
        ("5.conv1.weight", 1),
        ("5.shortcut.0.weight", 1),
    }
    normalised, affine = by_kind(found, "normalised"), by_kind(found, "affine")
    assert len(found.scales) == len(normalised) + len(affine)
    assert len(normalised) == 1 + 2 * 6 + 2  # one a convolution
    assert not any(f.exact for f in normalised)
    assert len(affine) == 6 + 3  # inner ones, and one a stream
    assert all(f.exact for f in affine)


def test_both_freedoms_of_batch_norm():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 1))
    before, after = find_symmetries(net, torch.zeros(4, 2)).scales
    assert (before.kind, before.exact, before.size) == ("normalised", False, 3)
    assert table(before) == {
        ("0.weight", 0, 1),
        ("0.bias", 0, 1),
        ("1.running_mean", 0, 1),
        ("1.running_var", 0, 2),
    }
    assert (after.kind, after.exact, after.size) == ("affine", True, 3)
    assert table(after) == {("1.weight", 0, 1), ("1.bias", 0, 1), ("3.weight", 1, -1)}


def test_batch_norm_without_affine_part_or_statistics_or_epsilon():
    def scales(norm: nn.Module) -> list[tuple[str, bool, int]]:
        net = nn.Sequential(nn.Linear(2, 3), norm, nn.ReLU(), nn.Linear(3, 1))
        return [(f.kind, f.exact, len(f.places)) for f in find_symmetries(net, torch.randn(4, 2)).scales]

    assert scales(nn.BatchNorm1d(3, affine=False)) == [("normalised", False, 4)]
    assert scales(nn.BatchNorm1d(3, affine=False, track_running_stats=False)) == [("normalised", False, 2)]
    assert scales(nn.BatchNorm1d(3, eps=0.0)) == [("normalised", True, 4), ("affine", True, 3)]


def test_the_effect_of_epsilon_is_reported():
    """Exact at epsilon = 0, an effect of the order of epsilon otherwise, more for a larger one."""

    def effect(eps: float) -> float:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, eps=eps), nn.ReLU(), nn.Linear(3, 1))
        return find_symmetries(net, torch.zeros(4, 2)).verification.epsilon_effect

    assert effect(0.0) == 0
    assert 1e-7 < effect(1e-5) < 1e-4 < effect(1e-1)


def test_a_norm_over_a_set_of_units_has_one_freedom_for_the_set():
    dense = nn.Sequential(nn.Linear(2, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 1))
    before, after = find_symmetries(dense, torch.zeros(1, 2)).scales
    assert (before.kind, before.size, before.exact) == ("normalised", 1, False)
    assert {(p.name, tuple(p.index.flatten().tolist())) for p in before.places} == {
        ("0.weight", tuple(range(6))),
        ("0.bias", tuple(range(6))),
    }
    assert (after.kind, after.size) == ("affine", 6)
    image = nn.Sequential(nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.ReLU(), nn.Conv2d(6, 1, 3))
    found = find_symmetries(image, IMAGE)
    assert [(g.size, g.inside) for g in found.permutations] == [(3, (2, 0)), (3, (2, 1)), (2, None)]
    before, after = found.scales
    assert (before.kind, before.size, after.kind, after.size) == ("normalised", 2, "affine", 6)
    assert before.places[0].index.tolist() == [[0, 1, 2], [3, 4, 5]]
    bare = nn.Sequential(nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6, affine=False), nn.ReLU(), nn.Conv2d(6, 1, 3))
    assert [f.kind for f in find_symmetries(bare, IMAGE).scales] == ["normalised"]


def test_layer_norm_over_channels_of_an_image():
    """The norm of the linear-connectivity experiments (P5, section 1.6): channels at each pixel, not C, H and W."""

    def forward(net: Net, x: Tensor) -> Tensor:
        h = net.norm(net.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return net.head(h.relu().mean((2, 3)))

    net = Net(forward, conv=nn.Conv2d(3, 4, 3), norm=nn.LayerNorm(4), head=nn.Linear(4, 2))
    found = find_symmetries(net, IMAGE)
    assert [g.size for g in found.permutations] == [4]
    assert {p.name for p in found.permutations[0].places} == {
        "conv.weight",
        "conv.bias",
        "norm.weight",
        "norm.bias",
        "head.weight",
    }
    assert [(f.kind, f.size) for f in found.scales] == [("normalised", 1), ("affine", 4)]


def test_residual_stream_read_by_layer_norms():
    """Pre-norm: whatever is written to the stream is rescaled by one factor, together."""

    def forward(net: Net, x: Tensor) -> Tensor:
        h = net.stem(x)
        h = h + net.out(F.gelu(net.inner(net.norm(h))))
        return net.head(net.last(h))

    net = Net(
        forward,
        stem=nn.Linear(2, 4),
        norm=nn.LayerNorm(4),
        inner=nn.Linear(4, 5),
        out=nn.Linear(5, 4),
        last=nn.LayerNorm(4),
        head=nn.Linear(4, 3),
    )
    found = find_symmetries(net, torch.zeros(1, 2))
    assert sorted(g.size for g in found.permutations) == [4, 5]
    assert [(f.kind, f.size) for f in found.scales] == [("normalised", 1), ("affine", 4), ("affine", 4)]
    assert {p.name for p in found.scales[0].places} == {"stem.weight", "stem.bias", "out.weight", "out.bias"}


def test_depthwise_separable_convolutions_keep_their_units():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.ReLU(),
        nn.Conv2d(4, 2, 1),
    )
    found = find_symmetries(net, IMAGE)
    (group,) = found.permutations
    assert {(p.name, p.axis) for p in group.places} == {
        ("0.weight", 0),
        ("0.bias", 0),
        ("2.weight", 0),
        ("2.bias", 0),
        ("4.weight", 1),
    }
    first, second = found.scales
    assert table(first) == {("0.weight", 0, 1), ("0.bias", 0, 1), ("2.weight", 0, -1)}
    assert table(second) == {("2.weight", 0, 1), ("2.bias", 0, 1), ("4.weight", 1, -1)}


def test_dense_concatenation():
    """DenseNet: each layer's units appear in the columns of all later layers, at an offset."""

    def forward(net: Net, x: Tensor) -> Tensor:
        a = net.a(x).relu()
        b = net.b(a).relu()
        c = net.c(torch.cat([a, b], 1)).relu()
        return net.d(torch.cat([a, b, c], 1).mean((2, 3)))

    net = Net(forward, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 2, 1), c=nn.Conv2d(6, 3, 1), d=nn.Linear(9, 2))
    found = find_symmetries(net, IMAGE)
    assert [g.size for g in found.permutations] == [4, 2, 3]
    places = {(p.name, p.axis): p.index.flatten().tolist() for p in found.permutations[1].places}
    assert places[("c.weight", 1)] == [4, 5]
    assert places[("d.weight", 1)] == [4, 5]
    assert [f.size for f in found.scales] == [4, 2, 3]


def test_flatten_gives_each_channel_a_block_of_columns():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2))
    found = find_symmetries(net, IMAGE)
    (columns,) = [p for p in found.permutations[0].places if p.name == "4.weight"]
    assert columns.index.tolist() == [[*range(9 * c, 9 * c + 9)] for c in range(4)]
    last = Net(
        lambda n, x: n.b(n.a(x).permute(0, 2, 3, 1).flatten(1)), a=nn.Conv2d(3, 4, 7), b=nn.Linear(16, 2)
    )
    (columns,) = [p for p in find_symmetries(last, IMAGE).permutations[0].places if p.name == "b.weight"]
    assert columns.index.tolist() == [[c, c + 4, c + 8, c + 12] for c in range(4)]


def test_a_planted_bottleneck_is_found():
    """A linear bottleneck before the head adds one group and one freedom, and changes no other."""
    plain = find_symmetries(resnet(), IMAGE)
    net = resnet()
    net[-1] = nn.Sequential(nn.Linear(4, 7), nn.Identity(), nn.Linear(7, 5))
    planted = find_symmetries(net, IMAGE)
    assert sorted(g.size for g in planted.permutations) == sorted([*(g.size for g in plain.permutations), 7])
    assert len(planted.scales) == len(plain.scales) + 1
    assert [f.size for f in by_kind(planted, "homogeneous")] == [7]


def test_module_and_functional_forms_agree():
    def forward(net: Net, x: Tensor) -> Tensor:
        a, b, c = net.layers
        x = F.max_pool2d(torch.relu(F.conv2d(x, a.weight, a.bias)), 2)
        x = F.leaky_relu(F.batch_norm(b(x), c.running_mean, c.running_var, c.weight, c.bias), 0.1)
        return F.linear(x.view(x.size(0), -1), net.head.weight, net.head.bias)

    layers = (nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.Linear(5, 2))
    functional = find_symmetries(Net(forward, *layers[:3], head=layers[3]), IMAGE)
    modules = nn.Sequential(
        layers[0], nn.ReLU(), nn.MaxPool2d(2), *layers[1:3], nn.LeakyReLU(0.1), nn.Flatten(), layers[3]
    )
    as_modules = find_symmetries(modules, IMAGE)
    assert [g.size for g in functional.permutations] == [g.size for g in as_modules.permutations] == [4, 5]
    for one, other in zip(functional.scales, as_modules.scales, strict=True):
        assert (one.size, one.kind, len(one.places)) == (other.size, other.kind, len(other.places))


@pytest.mark.parametrize(
    ("activation", "scales"),
    [(nn.ReLU(), 1), (nn.LeakyReLU(), 1), (nn.Identity(), 1), (nn.PReLU(3), 1), (nn.Dropout(0.5), 1),
     (nn.Tanh(), 0), (nn.SiLU(), 0), (nn.GELU(), 0), (nn.Sigmoid(), 0), (nn.ReLU6(), 0), (nn.Softplus(), 0)],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)  # fmt: skip
def test_only_positively_homogeneous_activations_leave_a_scale(activation, scales):
    found = find_symmetries(nn.Sequential(nn.Linear(2, 3), activation, nn.Linear(3, 1)), torch.zeros(1, 2))
    assert [g.size for g in found.permutations] == [3]
    assert len(found.scales) == scales


def test_a_constant_added_to_a_stream_ends_its_scale_a_factor_does_not():
    def scales(forward: Callable) -> int:
        return len(find_symmetries(Net(forward, nn.Linear(2, 3), nn.Linear(3, 1)), torch.zeros(1, 2)).scales)

    assert scales(lambda n, x: n.layers[1]((n.layers[0](x) * 2).relu())) == 1
    assert scales(lambda n, x: n.layers[1]((n.layers[0](x) + 2).relu())) == 0
    assert scales(lambda n, x: n.layers[1](n.layers[0](x).clamp(min=0))) == 1
    assert scales(lambda n, x: n.layers[1](n.layers[0](x).clamp(min=1))) == 0


def test_learned_scale_and_gate():
    """A learned factor a unit (LayerScale) splits a freedom in two; a sigmoid gate leaves that of what it gates."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.gamma = (
                nn.Conv2d(3, 4, 1),
                nn.Conv2d(4, 2, 1),
                nn.Parameter(torch.ones(4, 1, 1)),
            )
            self.squeeze, self.excite = nn.Linear(4, 5), nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            gate = self.excite(self.squeeze(h.mean((2, 3))).relu()).sigmoid()
            return self.b((self.gamma * h).relu() * gate[:, :, None, None])

    found = find_symmetries(Scaled(), IMAGE)
    assert [g.size for g in found.permutations] == [4, 5]
    names = [{p.name for p in f.places} for f in found.scales]
    assert {"a.weight", "a.bias", "gamma", "squeeze.weight"} in names
    assert {"gamma", "b.weight"} in names


def test_what_nothing_reads_has_no_scale():
    net = Net(
        lambda n, x: (n.dead(x), n.b(n.a(x).relu()))[1],
        a=nn.Linear(2, 3),
        b=nn.Linear(3, 1),
        dead=nn.Linear(2, 4),
    )
    assert [f.layer for f in find_symmetries(net, torch.zeros(1, 2)).scales] == ["a (Linear)"]


# --- soundness ---------------------------------------------------------------------------------------------------


@st.composite
def architectures(draw: st.DrawFn) -> nn.Module:
    """A random stack of convolutions, norms, activations, pooling, residual blocks and dense layers."""
    layers: list[nn.Module] = [nn.Conv2d(3, 4, 3, padding=1)]
    width = 4
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["conv", "grouped", "depthwise", "norm", "pool", "residual"]))
        if kind in ("conv", "grouped", "depthwise"):
            new = draw(st.sampled_from([4, 6])) if kind == "conv" else width
            groups = {"conv": 1, "grouped": 2, "depthwise": width}[kind]
            layers.append(nn.Conv2d(width, new, 3, padding=1, groups=groups, bias=draw(st.booleans())))
            width = new
        elif kind == "norm":
            norms = [
                nn.BatchNorm2d(width),
                nn.GroupNorm(2, width),
                nn.GroupNorm(1, width),
                nn.InstanceNorm2d(width),
            ]
            layers.append(draw(st.sampled_from(norms)))
        elif kind == "pool":
            layers.append(
                draw(st.sampled_from([nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1), nn.Dropout2d()]))
            )
        else:
            layers.append(Block(width, width, 1))
        layers.append(draw(st.sampled_from([nn.ReLU(), nn.LeakyReLU(0.3), nn.Tanh(), nn.Identity()])))
    layers += [nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(4 * width, 5), nn.ReLU(), nn.Linear(5, 2)]
    return nn.Sequential(*layers)


@settings(max_examples=12, deadline=None)
@given(net=architectures(), seed=st.integers(0, 2**16))
def test_found_symmetries_leave_the_function_of_the_network_itself_unchanged(net: nn.Module, seed: int):
    """Independent of the verification inside: own parameters, own epsilons, exact freedoms only, all groups."""
    net = net.double().eval()
    found = find_symmetries(net, IMAGE)
    assert found.permutations
    generator = torch.Generator().manual_seed(seed)
    params = {k: v + 0.1 * torch.rand(v.shape, generator=generator).to(v) for k, v in params_of(net).items()}
    x = torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64)
    exact = dataclasses.replace(found, scales=tuple(f for f in found.scales if f.exact))
    moved = permute(params, exact, random_permutations(exact, generator))
    moved = rescale(moved, exact, random_log_scales(exact, generator, spread=0.5))
    assert any(not torch.equal(moved[name], params[name]) for name in params)
    before, after = functional_call(net, params, (x,)), functional_call(net, moved, (x,))
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9 * float(before.detach().abs().max()))


def broken(found: Symmetries) -> list[tuple[str, Symmetries]]:
    """Every symmetry with one of its places left out."""
    spoiled = []
    for attribute in ("permutations", "scales"):
        owners = getattr(found, attribute)
        for i, owner in enumerate(owners):
            for place in owner.places:
                rest = tuple(p for p in owner.places if p is not place)
                wrong = (*owners[:i], dataclasses.replace(owner, places=rest), *owners[i + 1 :])
                spoiled.append((owner.layer, dataclasses.replace(found, **{attribute: wrong})))
    return spoiled


@pytest.mark.parametrize("net", [optumnist(), one_block()], ids=["optumnist", "residual block"])
def test_the_verification_refuses_a_symmetry_that_lacks_a_place(net):
    example = (
        torch.zeros(2, 1, 28, 28) if isinstance(net[0], nn.Conv2d) and net[0].in_channels == 1 else IMAGE
    )
    found = find_symmetries(net, example)
    for layer, wrong in broken(found):
        with pytest.raises(VerificationError, match="internal error") as caught:
            verify(net, (example,), wrong)
        assert repr(layer) in str(caught.value)


def test_the_verification_sees_through_parameters_that_are_zero():
    """A block whose last norm starts at zero hides its inner units from every output: a wrong spec must still fail."""
    net = one_block()
    for block in net[3:4]:
        nn.init.zeros_(block.bn2.weight)
    found = find_symmetries(net, IMAGE)
    for _, wrong in broken(found)[:3]:
        with pytest.raises(VerificationError):
            verify(net, (IMAGE,), wrong)


def test_the_network_is_left_alone():
    net = resnet().train()
    before = params_of(net)
    versions = [tensor._version for tensor in net.state_dict(keep_vars=True).values()]
    state = torch.random.get_rng_state()
    example = torch.ones(2, 3, 8, 8)
    find_symmetries(net, example)
    assert all(module.training for module in net.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert [tensor._version for tensor in net.state_dict(keep_vars=True).values()] == versions
    assert all(p.requires_grad and p.grad is None and p.dtype == torch.float32 for p in net.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(example, torch.ones(2, 3, 8, 8))


# --- refusals ----------------------------------------------------------------------------------------------------


def tied() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    return net


def twice() -> nn.Module:
    return Net(lambda n, x: n.a(n.a(x).relu()), a=nn.Linear(4, 4))


TOKENS = torch.zeros(2, 3, 4)
ROW = torch.zeros(2, 4)
REFUSED = {
    "tied weights": (tied(), ROW, "2.weight", "tied weights.*'0.weight'"),
    "a layer called twice": (twice(), ROW, "a (Linear)", "tied weights"),
    "attention": (
        Net(lambda n, x: n.attend(x, x, x)[0], attend=nn.MultiheadAttention(4, 2, batch_first=True)),
        TOKENS, "attend (MultiheadAttention)", "attention",
    ),
    "attention by hand": (
        Net(lambda n, x: n.a(x) @ n.b(x).transpose(1, 2), a=nn.Linear(4, 4), b=nn.Linear(4, 4)),
        TOKENS, "Net", "matrix of activations",
    ),
    "recurrence": (nn.LSTM(4, 4), TOKENS, "LSTM", "tied weights"),
    "control flow on data": (
        Net(lambda n, x: n.a(x) if x.sum() > 0 else n.b(x), a=nn.Linear(4, 4), b=nn.Linear(4, 4)),
        ROW, "Net", "data-dependent control flow",
    ),
    "an unknown reshape": (
        Net(lambda n, x: n.b(n.a(x).reshape(2, 36, 4)), a=nn.Conv2d(3, 4, 3), b=nn.Linear(4, 2)),
        IMAGE, "b (Linear)", "mixes axis 2.*reshape",
    ),
    "a mix of pixels": (
        Net(lambda n, x: n.b(n.a(x)), a=nn.Conv2d(3, 4, 3), b=nn.Linear(6, 2)), IMAGE, "b (Linear)", "units lie elsewhere",
    ),
    "an unknown operation": (Net(lambda n, x: n.a(torch.cumsum(n.b(x), 1)), a=nn.Linear(4, 4), b=nn.Linear(4, 4)),
        ROW, "Net", "'cumsum'",
    ),
    "dropout that stays on": (Net(lambda n, x: F.dropout(n.a(x)), a=nn.Linear(4, 4)), ROW, "Net", "stays on"),
    "noise": (Net(lambda n, x: n.a(x) + torch.randn(4), a=nn.Linear(4, 4)), ROW, "Net", "random numbers"),
    "weights that are computed": (
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), ROW, "ParametrizedLinear", "computed from the parameter",
    ),
    "an example of the wrong shape": (nn.Linear(4, 4), torch.zeros(2, 5), "Linear", "does not run on the example"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_names_the_layer_and_the_reason(case):
    net, example, layer, reason = REFUSED[case]
    with pytest.raises(UnsupportedNetwork, match=reason) as caught:
        find_symmetries(net, example)
    assert caught.value.layer == layer
    assert caught.value.reason in str(caught.value)


class Casting(nn.Module):
    """Pictures as they are stored, cast in the forward pass."""

    def __init__(self, cast):
        super().__init__()
        self.cast, self.one, self.two, self.head = (
            cast,
            nn.Conv2d(3, 6, 3),
            nn.Conv2d(6, 4, 3),
            nn.Linear(4, 2),
        )

    def forward(self, x):
        x = self.cast(x.permute(0, 3, 1, 2)) / 255
        return self.head(self.two(self.one(x).relu()).relu().mean((2, 3)))


@pytest.mark.parametrize(
    "cast", [lambda x: x.float(), lambda x: x.to(torch.float32), lambda x: x.type(torch.float)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_a_cast_in_the_forward_pass_is_followed(cast, dtype):
    found = find_symmetries(Casting(cast), torch.randint(0, 255, (2, 8, 8, 3)).to(dtype))
    assert [group.size for group in found.permutations] == [6, 4]
    assert [freedom.size for freedom in found.scales] == [6, 4]
