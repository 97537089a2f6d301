"""Which filters may be constrained, on networks whose freedoms are known; that it costs no function; what is warned of."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lib.params import params_of, stack
from lib.symmetry import UnsupportedNetwork, find_symmetries
from lib.unit_norm.constrain import (
    UnitNormWarning,
    constrainable,
    constraints,
    unit_norm_parameters,
    void_biases,
    void_weight_decay,
    with_unit_filters,
)

ROW, IMAGE = torch.zeros(4, 3), torch.zeros(4, 3, 6, 6)


class Net(nn.Module):
    """Named layers, in the order given, and the function that connects them."""

    def __init__(self, forward: Callable, **layers: nn.Module) -> None:
        super().__init__()
        self.connect = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.connect(self, x)


def conv(inputs: int, outputs: int, size: int = 3, bias: bool = False, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=bias, groups=groups)


def on_image(*layers: nn.Module, width: int) -> nn.Sequential:
    """Convolutional layers, then a dense head on the mean of every channel."""
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2))


def mlp(activation: nn.Module, bias: bool = True) -> nn.Module:
    return nn.Sequential(
        nn.Linear(3, 5, bias), activation, nn.Linear(5, 4, bias), activation, nn.Linear(4, 2, bias)
    )


def mlp_with_norm(norm: Callable[[int], nn.Module], bias: bool = False) -> nn.Module:
    return nn.Sequential(
        nn.Linear(3, 5, bias), norm(5), nn.ReLU(), nn.Linear(5, 4, bias), norm(4), nn.ReLU(), nn.Linear(4, 2)
    )


def vgg() -> nn.Module:
    return nn.Sequential(
        conv(3, 4, bias=True), nn.ReLU(), nn.MaxPool2d(2), conv(4, 5, bias=True), nn.ReLU(), nn.Flatten(),
        nn.Linear(45, 6), nn.ReLU(), nn.Linear(6, 2),
    )  # fmt: skip


def residual_after_norm() -> nn.Module:
    """ResNet as published: every convolution is followed by a BatchNorm, then the stream is added."""

    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.bn0(net.stem(x)).relu()
        x = (x + net.bn2(net.c2(net.bn1(net.c1(x)).relu()))).relu()
        return net.head(x.mean((2, 3)))

    layers = {"stem": conv(3, 4), "c1": conv(4, 5), "c2": conv(5, 4), "head": nn.Linear(4, 2)}
    return Net(forward, **layers, bn0=nn.BatchNorm2d(4), bn1=nn.BatchNorm2d(5), bn2=nn.BatchNorm2d(4))


def residual_before_norm(bias: bool = False) -> nn.Module:
    """Pre-activation: stem and block write a stream that only norms read, so that they share one factor a channel."""

    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x)
        x = x + net.c2(net.c1(net.bn1(x).relu()).relu())
        return net.head(net.bn2(x).relu().mean((2, 3)))

    layers = {"c2": conv(5, 4, bias=bias), "stem": conv(3, 4, bias=bias), "c1": conv(4, 5, bias=bias)}
    return Net(forward, **layers, bn1=nn.BatchNorm2d(4), bn2=nn.BatchNorm2d(4), head=nn.Linear(4, 2))


def stream(stem: nn.Module) -> nn.Module:
    """A residual ReLU stream; the layers that write it last are registered first."""

    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x[..., :1] if net.stem.weight.shape[1] == 1 else x)
        x = x + net.down(net.up(x.relu()).relu())
        return net.head(x.relu())

    return Net(forward, head=nn.Linear(5, 2), down=nn.Linear(6, 5), up=nn.Linear(5, 6), stem=stem)


def transposed() -> nn.Module:
    return on_image(nn.ConvTranspose2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), width=4)


def depthwise(size: int) -> nn.Module:
    return on_image(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 4, size, groups=4), nn.BatchNorm2d(4), width=4)  # fmt: skip


def half_an_output() -> nn.Module:
    """The first units are outputs themselves and keep their scale, the others may be rescaled."""

    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.body(x)
        return torch.cat([y[:, :2], net.head(y[:, 2:].relu())], 1)

    return Net(forward, body=nn.Linear(3, 5), head=nn.Linear(3, 2))


def grouped() -> nn.Module:
    """Blocks of a grouped convolution: one weight's rows belong to two freedoms."""
    return on_image(conv(3, 4), nn.ReLU(), conv(4, 6, groups=2), width=6)


KNOWN = {  # builder, example, without a norm asked for, with it, why the others are left
    "relu": (lambda: mlp(nn.ReLU()), ROW, (), ("0", "2"), {"4": "no freedom"}),
    "linear chain": (lambda: mlp(nn.Identity(), bias=False), ROW, (), ("0", "2"), {"4": "no freedom"}),
    "tanh": (lambda: mlp(nn.Tanh()), ROW, (), (), dict.fromkeys("024", "no freedom")),
    "batch norm": (lambda: mlp_with_norm(nn.BatchNorm1d), ROW, ("0", "3"), ("0", "3"), {"6": "no freedom"}),
    "layer norm": (lambda: mlp_with_norm(nn.LayerNorm), ROW, (), (), {"0": "shared", "3": "shared", "6": "no freedom"}),
    "vgg": (vgg, IMAGE, (), ("0", "3", "6"), {"8": "no freedom"}),
    "instance norm": (lambda: on_image(conv(3, 4), nn.InstanceNorm2d(4), width=4), IMAGE, ("0",), ("0",), {"5": "no freedom"}),
    "group norm": (lambda: on_image(conv(3, 4), nn.GroupNorm(2, 4), width=4), IMAGE, (), (), {"0": "shared", "5": "no freedom"}),
    "group norm of one": (lambda: on_image(conv(3, 4), nn.GroupNorm(4, 4), width=4), IMAGE, ("0",), ("0",), {"5": "no freedom"}),
    "relu, then norm": (lambda: on_image(conv(3, 4), nn.ReLU(), nn.BatchNorm2d(4), width=4), IMAGE, ("0",), ("0",), {"6": "no freedom"}),
    "depthwise": (lambda: depthwise(3), IMAGE, ("0", "3"), ("0", "3"), {"8": "no freedom"}),
    "depthwise 1 x 1": (lambda: depthwise(1), IMAGE, ("0",), ("0",), {"3": "one entry", "8": "no freedom"}),
    "grouped": (grouped, IMAGE, (), ("0", "2"), {"6": "no freedom"}),
    "transposed": (transposed, IMAGE, (), (), {"0": "transposed", "5": "no freedom"}),
    "half an output": (half_an_output, ROW, (), (), {"body": "no freedom", "head": "no freedom"}),
    "residual": (residual_after_norm, IMAGE, ("stem", "c1", "c2"), ("stem", "c1", "c2"), {"head": "no freedom"}),
    "pre-activation": (residual_before_norm, IMAGE, ("stem",), ("stem", "c1"), {"c2": "spent", "head": "no freedom"}),
    "stream": (lambda: stream(nn.Linear(3, 5)), ROW, (), ("stem", "up"), {"down": "spent", "head": "no freedom"}),
    "stream, narrow stem": (
        lambda: stream(nn.Linear(1, 5)), ROW, (), ("up",), {"stem": "one entry", "down": "cycle", "head": "no freedom"},
    ),
}  # fmt: skip


def weights(names: tuple[str, ...]) -> set[str]:
    return {f"{name}.weight" for name in names}


@pytest.mark.parametrize("case", KNOWN)
def test_known_networks(case):
    build, example, plain, more, left = KNOWN[case]
    symmetries = find_symmetries(build(), example)
    assert set(constrainable(symmetries)) == weights(plain)
    found = constraints(symmetries, homogeneous=True)
    assert set(found.tensors) == weights(more)
    assert found.left == {f"{name}.weight": why for name, why in left.items()}


def without_epsilon(net: nn.Module) -> nn.Module:
    """Float64, evaluation mode, random parameters and statistics, epsilons that vanish."""
    net = net.double().eval()
    generator = torch.Generator().manual_seed(3)
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            tensor.copy_(noise.square() + 0.5 if name.endswith("running_var") else noise)
    for module in net.modules():
        if hasattr(module, "eps"):
            module.eps = 1e-100
    return net


@pytest.mark.parametrize("case", [case for case in KNOWN if KNOWN[case][3]])
def test_unit_filters_cost_no_function(case):
    """Independent of the verification in find_symmetries: all constrained at once, lengths 1, outputs as before."""
    build, example, *_ = KNOWN[case]
    net = without_epsilon(build())
    symmetries = find_symmetries(net, example)
    tensors = constrainable(symmetries, homogeneous=True)
    params = params_of(net)
    moved = with_unit_filters(params, symmetries, tensors)
    for name in tensors:
        lengths = moved[name].flatten(1).norm(dim=1)
        torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=1e-12, atol=0)
        assert not torch.allclose(params[name], moved[name])
    x = torch.randn(example.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    torch.testing.assert_close(functional_call(net, moved, (x,)), net(x), rtol=1e-9, atol=1e-11)


def test_the_lengths_go_where_the_algebra_says():
    net = without_epsilon(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)))
    symmetries = find_symmetries(net, ROW)
    old = params_of(net)
    old["0.weight"][2] = 0
    new = with_unit_filters(old, symmetries, ["0.weight"])
    length = (
        old["0.weight"].norm(dim=1).where(torch.arange(5) != 2, 1.0)
    )  # a zero filter has none to give away
    torch.testing.assert_close(new["0.weight"], old["0.weight"] / length[:, None])
    torch.testing.assert_close(new["0.bias"], old["0.bias"] / length)
    torch.testing.assert_close(new["2.weight"], old["2.weight"] * length)
    torch.testing.assert_close(new["2.bias"], old["2.bias"])


def test_a_population_keeps_its_dtype_and_takes_the_values_of_its_members():
    net = vgg()
    symmetries = find_symmetries(net, IMAGE)
    tensors = constrainable(symmetries, homogeneous=True)
    networks = [params_of(vgg()) for _ in range(2)]
    together = with_unit_filters(stack(networks), symmetries, tensors)
    for name, tensor in stack([with_unit_filters(x, symmetries, tensors) for x in networks]).items():
        assert together[name].dtype == torch.float32
        assert torch.equal(together[name], tensor)


@pytest.mark.parametrize("name", ["0.weight", "6.weight", "1.weight", "9.weight"])
def test_a_weight_without_a_factor_for_each_row_is_refused(name):
    net = mlp_with_norm(nn.LayerNorm)
    with pytest.raises(ValueError, match=rf"rows of '{name}' have no factor each"):
        with_unit_filters(params_of(net), find_symmetries(net, ROW), [name])


# --- parameter groups --------------------------------------------------------------------------------------------


def clean() -> nn.Module:
    """Nothing to warn of."""
    return mlp_with_norm(lambda n: nn.BatchNorm1d(n, affine=False))


def test_two_groups_for_an_optimiser():
    net = clean()
    filters, rest = unit_norm_parameters(net, ROW, filters_lr=0.2, rest_lr=0.01)
    assert (filters["unit_norm"], filters["lr"], rest["unit_norm"], rest["lr"]) == (True, 0.2, False, 0.01)
    assert [name for name, _ in filters["params"]] == ["0.weight", "3.weight"]
    together = filters["params"] + rest["params"]
    assert sorted(name for name, _ in together) == sorted(dict(net.named_parameters()))
    assert all(parameter is net.get_parameter(name) for name, parameter in together)
    optimiser = torch.optim.SGD([filters, rest], lr=1.0)
    kept = [(group["unit_norm"], group["lr"], group["param_names"]) for group in optimiser.param_groups]
    assert kept == [(True, 0.2, ["0.weight", "3.weight"]), (False, 0.01, ["6.weight", "6.bias"])]
    assert "lr" not in unit_norm_parameters(net, ROW)[0]


def test_the_network_is_left_alone():
    net = clean().train()
    before, state = params_of(net), torch.random.get_rng_state()
    unit_norm_parameters(net, ROW)
    assert all(module.training for module in net.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_homogeneous_filters_are_constrained_on_request():
    net = mlp(nn.ReLU())
    with pytest.raises(ValueError, match=r"'0\.weight', '2\.weight': no norm reads.*homogeneous=True"):
        unit_norm_parameters(net, ROW)
    filters, _ = unit_norm_parameters(net, ROW, homogeneous=True)
    assert [name for name, _ in filters["params"]] == ["0.weight", "2.weight"]


def test_where_nothing_can_be_constrained_the_reasons_are_told():
    with pytest.raises(ValueError, match=r"Sequential.*'0\.weight', '3\.weight': all filters .* in common"):
        unit_norm_parameters(mlp_with_norm(nn.LayerNorm), ROW)


def test_a_frozen_follower_ties_the_filters():
    """The head cannot absorb the lengths of the layer before it, nor a frozen bias the length of its filter."""
    net = mlp(nn.ReLU())
    net[4].weight.requires_grad_(False)
    filters, rest = unit_norm_parameters(net, ROW, homogeneous=True)
    assert [name for name, _ in filters["params"]] == ["0.weight"]
    assert "4.weight" in dict(rest["params"])
    symmetries = find_symmetries(net, ROW)
    frozen = constraints(symmetries, homogeneous=True, frozen=["0.bias"])
    assert (frozen.tensors, frozen.left["0.weight"]) == (("2.weight",), "frozen")


def test_a_parameter_of_two_layers_is_refused():
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 3))
    net[3].weight = net[0].weight
    with pytest.raises(UnsupportedNetwork, match="tied weights"):
        unit_norm_parameters(net, ROW)
    twice = Net(lambda n, x: n.norm(n.a(n.a(x))), a=nn.Linear(3, 3), norm=nn.BatchNorm1d(3))
    with pytest.raises(UnsupportedNetwork, match="tied weights"):
        unit_norm_parameters(twice, ROW)


# --- warnings ----------------------------------------------------------------------------------------------------


def warned(net: nn.Module, example: Tensor, **options: bool) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        unit_norm_parameters(net, example, **options)
    assert all(w.category is UnitNormWarning for w in caught)
    return [str(w.message) for w in caught]


def test_each_warning_stands_where_it_applies():
    assert warned(clean(), ROW) == []
    (bias,) = warned(mlp_with_norm(lambda n: nn.BatchNorm1d(n, affine=False), bias=True), ROW)
    assert bias.startswith("the bias '0.bias', '3.bias' stands before a norm")
    assert "bias=False" in bias
    (affine,) = warned(mlp_with_norm(nn.BatchNorm1d), ROW)
    assert affine.startswith("the learned scale and shift of '1 (BatchNorm1d)', '4 (BatchNorm1d)'")
    assert "affine=False" in affine
    *_, spent = warned(residual_before_norm(), IMAGE)
    assert spent.startswith("the filters of 'c2.weight' stay free: another weight writes the same units")
    layers = (conv(3, 4), nn.InstanceNorm2d(4), nn.ReLU(), conv(4, 6), nn.GroupNorm(2, 6, affine=False))
    (shared,) = warned(on_image(*layers, width=6), IMAGE)
    assert shared.startswith("the filters of '3.weight' stay free: all filters of a layer or group have one")


def test_a_long_list_is_cut():
    layers = [layer for _ in range(5) for layer in (nn.Linear(3, 3), nn.BatchNorm1d(3, affine=False))]
    (bias,) = warned(nn.Sequential(*layers, nn.Linear(3, 1)), ROW)
    assert bias.startswith("the bias '0.bias', '2.bias', '4.bias' and 2 more stands")


VOID = {  # network, biases whose gradient is zero in training
    "batch norm": (lambda: mlp_with_norm(nn.BatchNorm1d, bias=True), ROW, {"0.bias", "3.bias"}),
    "no statistics kept": (
        lambda: mlp_with_norm(lambda n: nn.BatchNorm1d(n, track_running_stats=False), bias=True), ROW, {"0.bias", "3.bias"},
    ),
    "without epsilon": (
        lambda: mlp_with_norm(lambda n: nn.BatchNorm1d(n, eps=1e-30), bias=True), ROW, {"0.bias", "3.bias"},
    ),
    "layer norm": (lambda: mlp_with_norm(nn.LayerNorm, bias=True), ROW, set()),
    "instance norm": (lambda: on_image(conv(3, 4, bias=True), nn.InstanceNorm2d(4), width=4), IMAGE, {"0.bias"}),
    "its running statistics": (
        lambda: on_image(conv(3, 4, bias=True), nn.InstanceNorm2d(4, track_running_stats=True), width=4), IMAGE, {"0.bias"},
    ),
    "group norm": (lambda: on_image(conv(3, 4, bias=True), nn.GroupNorm(2, 4), width=4), IMAGE, set()),
    "relu between": (lambda: on_image(conv(3, 4, bias=True), nn.ReLU(), nn.BatchNorm2d(4), width=4), IMAGE, set()),
    "relu between, one unit": (
        lambda: nn.Sequential(nn.Linear(3, 1), nn.ReLU(), nn.BatchNorm1d(1), nn.Linear(1, 1)), ROW, set(),
    ),
    "max pool between": (
        lambda: on_image(conv(3, 4, bias=True), nn.MaxPool2d(2), nn.BatchNorm2d(4), width=4), IMAGE, {"0.bias"},
    ),
    "some of them": (
        lambda: on_image(conv(3, 4, bias=True), nn.ReLU(), nn.BatchNorm2d(4), conv(4, 5, bias=True), nn.BatchNorm2d(5), width=5),
        IMAGE, {"3.bias"},
    ),
    "stream": (lambda: residual_before_norm(bias=True), IMAGE, {"stem.bias", "c2.bias"}),
    "no norm": (lambda: mlp(nn.ReLU()), ROW, set()),
}  # fmt: skip


@pytest.mark.parametrize("case", VOID)
def test_void_biases_have_no_gradient_in_training_and_the_others_have(case):
    build, example, expected = VOID[case]
    torch.manual_seed(0)
    net = build().double().train()
    assert set(void_biases(net, example.double(), find_symmetries(net, example))) == expected
    net(torch.randn(16, *example.shape[1:], dtype=torch.float64)).square().sum().backward()
    size = {name: float(p.grad.abs().max()) for name, p in net.named_parameters() if name.endswith("bias")}
    assert all((size[name] < 1e-10) == (name in expected) for name in size)


def test_weight_decay_is_void_on_unit_filters_only():
    told = void_weight_decay({"unit_norm": True, "weight_decay": 5e-4})
    assert told.startswith("weight_decay=0.0005 has no effect on filters of unit norm")
    for group in ({"unit_norm": True, "weight_decay": 0}, {"unit_norm": True}, {"weight_decay": 0.1}):
        assert void_weight_decay(group) is None
    assert void_weight_decay({"unit_norm": False, "weight_decay": 0.1}) is None
