"""The symmetries of torchvision's own networks, found from their code."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from lib.symmetry import Symmetries
from lib.symmetry.find import UnsupportedNetwork, find_symmetries
from lib.torchvision_guard import import_torchvision


@pytest.fixture(scope="module")
def models():
    return import_torchvision().models


def kinds(found: Symmetries) -> dict[str, int]:
    return {
        kind: sum(f.kind == kind for f in found.scales) for kind in ("homogeneous", "normalised", "affine")
    }


def image(size: int = 32) -> torch.Tensor:
    return torch.zeros(1, 3, size, size)


def test_resnet18_has_four_streams_and_eight_inner_groups(models):
    found = find_symmetries(models.resnet18(), image())
    inner = [g for g in found.permutations if re.fullmatch(r"layer\d\.\d\.conv1 \(Conv2d\)", g.layer)]
    streams = [g for g in found.permutations if g not in inner]
    assert sorted(g.size for g in inner) == [64, 64, 128, 128, 256, 256, 512, 512]
    assert sorted(g.size for g in streams) == [64, 128, 256, 512]
    assert all({p.axis for p in g.places if p.name.endswith("conv2.weight")} == {1} for g in inner)
    assert kinds(found) == {
        "homogeneous": 0,
        "normalised": 20,
        "affine": 12,
    }  # 20 convolutions; 8 inner, 4 streams
    assert max(found.verification.permutation_error, found.verification.scale_error) < 1e-9


def test_a_bottleneck_planted_in_resnet18_is_found(models):
    net = models.resnet18(num_classes=10)
    net.fc = nn.Sequential(nn.Linear(512, 7), nn.Linear(7, 10))
    found = find_symmetries(net, image())
    assert len(found.permutations) == 13
    assert kinds(found) == {"homogeneous": 1, "normalised": 20, "affine": 12}


def test_resnet50(models):
    found = find_symmetries(models.resnet50(num_classes=10), image())
    assert len(found.permutations) == 1 + 4 + 2 * 16  # stem, four streams, two inner groups a block
    assert kinds(found) == {"homogeneous": 0, "normalised": 53, "affine": 1 + 4 + 2 * 16}


def test_vgg16_bn(models):
    """13 convolutions with BatchNorm and two hidden dense layers; each channel owns 49 columns of the first.

    The dense layers are cut to 64 units: at 4,096 they hold 120 of 138 million parameters and test nothing more.
    """
    net = models.vgg16_bn(num_classes=10)
    net.classifier = nn.Sequential(
        nn.Linear(512 * 49, 64),
        nn.ReLU(True),
        nn.Dropout(),
        nn.Linear(64, 64),
        nn.ReLU(True),
        nn.Linear(64, 10),
    )
    found = find_symmetries(net, image())
    assert len(found.permutations) == 13 + 2
    assert kinds(found) == {"homogeneous": 2, "normalised": 13, "affine": 13}
    (columns,) = [p for g in found.permutations for p in g.places if p.index.shape == (512, 49)]
    assert (columns.name, columns.axis) == ("classifier.0.weight", 1)


def test_densenet121(models):
    """A group a convolution: those of a dense block are read by every later norm, at their own positions."""
    found = find_symmetries(models.densenet121(num_classes=10), image())
    convolutions = 1 + 2 * (6 + 12 + 24 + 16) + 3
    assert len(found.permutations) == convolutions
    # what a norm reads: every convolution, and the stem's norm, which only the dense block's norms read
    assert kinds(found) == {"homogeneous": 0, "normalised": convolutions + 1, "affine": convolutions}
    (first,) = [g for g in found.permutations if g.layer.startswith("features.denseblock1.denselayer1.conv2")]
    norms = [p for p in first.places if p.name.endswith("norm1.weight")]
    assert [p.index.flatten().tolist() for p in norms] == [[*range(64, 96)]] * 5
    (last,) = [p for p in first.places if p.name == "features.transition1.conv.weight"]
    assert (last.axis, last.index.flatten().tolist()) == (1, [*range(64, 96)])


def test_squeezenet(models):
    """A stem and 8 fire modules, each one squeezing and two concatenated expanding convolutions; ReLU, no norm."""
    found = find_symmetries(models.squeezenet1_1(num_classes=10), image())
    assert len(found.permutations) == 1 + 8 * 3
    assert kinds(found) == {"homogeneous": 25, "normalised": 0, "affine": 0}


def test_a_vision_transformer_is_refused_by_name(models):
    with pytest.raises(UnsupportedNetwork) as caught:
        find_symmetries(models.swin_t(num_classes=10), image(64))
    assert "ShiftedWindowAttention" in caught.value.layer
