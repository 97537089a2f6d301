"""The report on networks whose symmetries are known: its numbers, its remedies where they apply, its layout."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from torch import Tensor, nn

from lib.matching import match
from lib.networks import optumnist
from lib.params import params_of
from lib.symmetry import UnsupportedNetwork, VerificationError, canonicalize, min_mass
from lib.unit_norm.diagnosis import NOT_SOUGHT, WIDTH, Diagnosis, diagnose

ROW, IMAGE = torch.zeros(4, 3), torch.zeros(4, 3, 8, 8)


class Block(nn.Module):
    """A residual block as in torchvision: two convolutions with BatchNorm, and a projection where the width changes."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width_in, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.downsample = nn.Sequential()
        if width_in != width:
            self.downsample = nn.Sequential(nn.Conv2d(width_in, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.downsample(x)).relu()


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.layer1, self.layer2 = Block(4, 4), Block(4, 6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer2(self.layer1(self.bn1(self.conv1(x)).relu())).mean((2, 3)))


def mlp(activation: Callable[[], nn.Module], *norm: nn.Module, bias: bool = True) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5, bias=bias), *norm, activation(), nn.Linear(5, 2))


def vgg() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6, 2)
    )  # fmt: skip


def depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.ConvTranspose2d(4, 3, 2), nn.ReLU(),
        nn.Flatten(), nn.Linear(75, 2),
    )  # fmt: skip


class MixerBlock(nn.Module):
    """A residual dense block under LayerNorm, without attention."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.last = nn.Linear(3, 4), nn.LayerNorm(4), nn.LayerNorm(4)
        self.up, self.down, self.head = nn.Linear(4, 8), nn.Linear(8, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.down(nn.functional.gelu(self.up(self.norm(x))))
        return self.head(self.last(x))


NETWORKS = {
    "resnet": (ResNet, IMAGE),
    "vgg": (vgg, IMAGE),
    "relu": (lambda: mlp(nn.ReLU), ROW),
    "tanh": (lambda: mlp(nn.Tanh), ROW),
    "batch norm": (lambda: mlp(nn.ReLU, nn.BatchNorm1d(5)), ROW),
    "clean": (lambda: mlp(nn.ReLU, nn.BatchNorm1d(5, affine=False), bias=False), ROW),
    "layer norm": (MixerBlock, ROW),
    "depthwise": (depthwise, IMAGE),
    "linear chain": (lambda: mlp(nn.Identity), ROW),
    "optumnist": (optumnist, torch.zeros(2, 1, 28, 28)),
}


def diagnosis(name: str) -> Diagnosis:
    torch.manual_seed(0)
    build, example = NETWORKS[name]
    return diagnose(build(), example)


# --- numbers -----------------------------------------------------------------------------------------------------


def test_a_residual_network_layer_by_layer():
    found = diagnosis("resnet")
    cells = {layer.layer: layer.cells() for layer in found.layers}
    assert list(cells) == [
        "conv1", "bn1", *(f"layer1.{n}" for n in ("conv1", "bn1", "conv2", "bn2")),
        *(f"layer2.{n}" for n in ("conv1", "bn1", "conv2", "bn2", "downsample.0", "downsample.1")), "fc",
    ]  # fmt: skip
    assert cells["conv1"] == ("conv1", "Conv2d", "4", "24", "4 normalised*", "yes")
    assert cells["bn1"] == ("bn1", "BatchNorm2d", "4", "with conv1", "4 affine", "")
    assert cells["layer1.conv2"] == (
        "layer1.conv2", "Conv2d", "4", "with conv1", "4 normalised*", "yes",
    )  # fmt: skip
    assert cells["layer2.downsample.0"][3] == "with layer2.conv2"
    assert cells["fc"] == ("fc", "Linear", "5", "", "", "no")
    assert found.permutations == math.factorial(4) ** 2 * math.factorial(6) ** 2
    assert found.log10_permutations == pytest.approx(math.log10(found.permutations))
    assert found.scales == {"normalised": 4 * 3 + 6 * 3, "affine": 4 * 2 + 6 * 2}
    assert set(found.unit_norm.tensors) == {
        f"{layer.layer}.weight" for layer in found.layers if layer.kind == "Conv2d"
    }


def test_optumnist_has_172800_permutations():
    found = diagnosis("optumnist")
    layers = {layer.layer: layer for layer in found.layers}
    assert found.permutations == 172_800
    assert math.prod(layer.permutations for layer in found.layers) == 172_800
    assert sum(layer.log10_permutations for layer in found.layers) == pytest.approx(math.log10(172_800))
    assert sorted(layer.groups for layer in layers.values() if layer.groups) == [(2,), (3,), (5, 5)]
    assert not any(layer.moves_with for layer in found.layers)
    assert "172,800 permutations of units, 15 positive scales (15 homogeneous)." in str(found)
    assert "normalised" not in str(found)


def test_large_numbers_are_powers_of_ten():
    wide = nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 2))
    found = diagnose(wide, ROW)
    assert (found.permutations, found.layers[0].cells()[3]) == (479_001_600, "10^8.7")
    assert "10^8.7 permutations of units, 0 positive scales." in str(found)


def test_frozen_layers_tie_the_filters():
    net = mlp(nn.ReLU)
    net[2].weight.requires_grad_(False)
    found = diagnose(net, ROW)
    assert [layer.unit_norm for layer in found.layers] == ["frozen", "no freedom"]
    assert found.remains[1].startswith("5 scales between layers, used up by no unit filter")
    normed = mlp(nn.ReLU, nn.BatchNorm1d(5))
    normed[0].bias.requires_grad_(False)
    assert diagnose(normed, ROW).layers[0].unit_norm == "frozen"


def test_columns_for_what_is_no_plain_layer():
    cells = [layer.cells() for layer in diagnosis("depthwise").layers]
    assert cells == [
        ("0", "Conv2d", "4", "24", "4 homogeneous", "if asked"),
        ("2", "Conv2d", "4", "with 0", "4 homogeneous", "if asked"),
        ("4", "ConvTranspose2d", "3", "6", "3 homogeneous", "transposed"),
        ("7", "Linear", "2", "", "", "no"),
    ]
    stream = {layer.layer: layer.cells()[3:] for layer in diagnosis("layer norm").layers}
    assert stream["stem"] == ("24", "1 normalised*", "shared")
    assert stream["down"] == ("with stem", "", "shared")
    assert stream["norm"] == ("with stem", "4 affine", "")
    assert stream["up"] == ("40,320", "", "no")


def test_parameters_of_the_network_itself_have_a_row():
    class Gain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain, self.inside = nn.Parameter(torch.ones(5)), nn.Linear(3, 5)
            self.out = nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out((self.inside(x) * self.gain).relu())

    rows = [layer.cells() for layer in diagnose(Gain(), ROW).layers]
    assert rows[0] == ("Gain", "Gain", "5", "with inside", "5 homogeneous", "")
    assert rows[1] == ("inside", "Linear", "5", "120", "5 homogeneous", "if asked")


@pytest.mark.parametrize("name", NETWORKS)
def test_what_was_tried_holds(name):
    found = diagnosis(name)
    tried = found.symmetries.verification
    assert max(tried.permutation_error, tried.scale_error, found.unit_norm_error) < 1e-9
    normed = name in ("resnet", "batch norm", "clean")
    assert (1e-9 < found.unit_norm_epsilon_effect < 1e-2) == normed
    assert normed or found.unit_norm_epsilon_effect < 1e-12


def test_the_effect_of_epsilon_grows_with_epsilon():
    def effect(eps: float) -> float:
        torch.manual_seed(0)
        return diagnose(mlp(nn.ReLU, nn.BatchNorm1d(5, eps=eps)), ROW).unit_norm_epsilon_effect

    assert effect(0.0) < 1e-14 < effect(1e-5) < 1e-4 < effect(1e-1)


def test_filters_that_miss_unit_length_are_an_internal_error(monkeypatch):
    """Set in the wrong order, the first layer's factors undo the lengths of the second."""
    module = sys.modules[Diagnosis.__module__]
    right = module.constraints

    def wrong(*args, **kwargs):
        found = right(*args, **kwargs)
        return replace(found, tensors=found.tensors[::-1])

    monkeypatch.setattr(module, "constraints", wrong)
    with pytest.raises(VerificationError, match=r"filters of '3\.weight', '0\.weight' miss unit length"):
        diagnose(vgg(), IMAGE)


def test_lengths_that_nothing_compensates_are_an_internal_error(monkeypatch):
    def alone(params, symmetries, tensors):
        rows = {
            n: x / x.flatten(1).norm(dim=1).view(-1, *(1,) * (x.ndim - 1))
            for n, x in params.items()
            if n in tensors
        }
        return params | rows

    monkeypatch.setattr(sys.modules[Diagnosis.__module__], "with_unit_filters", alone)
    with pytest.raises(VerificationError, match="miss unit length, or the function"):
        diagnose(vgg(), IMAGE)


# --- remedies ----------------------------------------------------------------------------------------------------

REMEDIES = {
    "unit": "unit_norm_parameters(net, example)",
    "asked": "homogeneous=True",
    "decay": "Weight decay on what a norm reads",
    "bias": "Build with bias=False",
    "affine": "affine=False",
    "scale": "canonicalize(params, symmetries)",
    "match": "lib.matching.match",
}
APPLY = {
    "resnet": {"unit", "decay", "affine", "scale", "match"},
    "vgg": {"asked", "scale", "match"},
    "relu": {"asked", "scale", "match"},
    "tanh": {"match"},
    "batch norm": {"unit", "decay", "bias", "affine", "scale", "match"},
    "clean": {"unit", "decay", "scale", "match"},
    "layer norm": {"decay", "affine", "scale", "match"},
    "depthwise": {"asked", "scale", "match"},
    "linear chain": {"asked", "scale", "match"},
    "optumnist": {"asked", "scale", "match"},
}


@pytest.mark.parametrize("name", APPLY)
def test_each_remedy_stands_where_it_applies_and_only_there(name):
    found = diagnosis(name)
    text = "\n".join(found.remedies)
    assert {key for key, words in REMEDIES.items() if words in text} == APPLY[name]
    assert len(found.remedies) == len(APPLY[name])


@pytest.mark.parametrize("name", ["resnet", "vgg", "batch norm", "layer norm", "clean", "optumnist"])
def test_the_remedies_on_weights_can_be_carried_out(name):
    """With the very arguments that the report prints."""
    build, example = NETWORKS[name]
    found, params = diagnose(build(), example), params_of(build())
    form = canonicalize(params, found.symmetries)
    assert match(form, params, found.symmetries).params.keys() == params.keys()
    (sentence,) = [text for text in found.remedies if "canonicalize" in text]
    assert ("min_mass" in sentence) == (name != "clean")
    if name != "clean":
        call = sentence[sentence.index("min_mass(") :].rstrip(".")
        least = eval(call, {"min_mass": min_mass, "params": params, "symmetries": found.symmetries})
        assert bool(torch.isfinite(least.mass))


def test_what_remains():
    assert diagnosis("tanh").remains == (
        "The 120 permutations of units: no training method removes them.", NOT_SOUGHT,
    )  # fmt: skip
    remains = diagnosis("layer norm").remains
    assert "12 scales of learned scale" not in remains[1]
    assert remains[1] == "8 scales of learned scale and shift, unless affine=False."
    assert remains[2].startswith("1 scale before a norm, used up by no unit filter")
    assert remains[3].startswith("Free filters of 'stem.weight', 'down.weight': all filters of a layer")
    transposed = diagnosis("depthwise").remains
    assert transposed[1].startswith("3 scales between layers, used up by no unit filter")
    assert "'4.weight': the filters lie along another axis" in transposed[2]
    assert not any("scale" in sentence for sentence in diagnosis("clean").remains)


# --- layout ------------------------------------------------------------------------------------------------------


def deep() -> nn.Module:
    net: nn.Module = mlp(nn.ReLU, nn.BatchNorm1d(5))
    for name in ("classifier", "projection_of_the_head", "backbone_with_a_long_name", "<b>&module"):
        outer = nn.Sequential()
        outer.add_module(name, net)
        net = outer
    return net


@pytest.mark.parametrize("name", [*NETWORKS, "deep"])
def test_the_report_fits_88_columns(name):
    report = str(diagnose(deep(), ROW) if name == "deep" else diagnosis(name))
    assert max(map(len, report.splitlines())) <= WIDTH == 88
    lines = report.splitlines()
    (head,) = [line for line in lines if line.startswith("layer  ")]
    assert head.endswith("  unit norm")
    assert "What remains" in lines
    if name == "deep":
        assert "…" in report
        assert any(line.endswith("yes") for line in lines)


class Page(HTMLParser):
    """The tags, attributes and text of a page; fails where a name has become a tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.words = [], set(), ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.words += data


def test_the_table_in_a_notebook_is_plain_and_escaped():
    net = deep()
    net.__class__ = type("Net<i>", (nn.Sequential,), {})
    found = diagnose(net, ROW)
    page = Page(found._repr_html_())
    assert set(page.tags) == {
        "div",
        "table",
        "caption",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "p",
        "ul",
        "li",
        "strong",
    }
    assert not page.attributes & {"style", "bgcolor", "color"}
    assert page.tags.count("tr") == 1 + len(found.layers)
    assert found.layers[0].layer.startswith("<b>&module.")
    for words in (*found.summary(), *found.remedies, *found.remains, found.layers[0].layer):
        assert words in page.words


# --- the network -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_network_is_left_alone(dtype):
    net = ResNet().to(dtype).train()
    net.fc(torch.ones(1, 6, dtype=dtype)).sum().backward()
    net.layer1.eval()
    modes = [m.training for m in net.modules()]
    before, gradient = params_of(net), net.fc.weight.grad.clone()
    state = torch.random.get_rng_state()
    diagnose(net, IMAGE.to(dtype))
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(tensor.dtype == before[name].dtype for name, tensor in net.state_dict().items())
    assert torch.equal(net.fc.weight.grad, gradient)
    assert net.conv1.weight.grad is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_network_that_cannot_be_treated_is_refused():
    with pytest.raises(UnsupportedNetwork, match="recurrent"):
        diagnose(nn.Sequential(nn.RNN(3, 3)), torch.zeros(2, 4, 3))
