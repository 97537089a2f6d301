"""SegNet: its shape is the published one, unpooling puts values where they came from, and its filters' lengths are free."""

import copy

import pytest
import torch
from torch import nn

from lib.segmentation.segnet import SegNet


def images(n=2, height=16, width=24):
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(991))


def test_the_default_is_segnet_basic():
    net = SegNet()
    shapes = [tuple(p.shape) for p in net.filters().values()]
    assert shapes == [(64, 3, 7, 7), *[(64, 64, 7, 7)] * 7]
    names = [name for name, _ in net.named_parameters()]
    assert names == [
        *net.filters(),
        "classifier.weight",
        "classifier.bias",
    ]  # no bias before a norm, none learned in it
    assert tuple(net.classifier.weight.shape) == (11, 64, 1, 1)


@pytest.mark.parametrize(
    ("levels", "channels", "kernel", "classes"), [(1, 2, 1, 2), (2, 3, 3, 4), (3, 5, 7, 11)]
)
@pytest.mark.parametrize("unpooling", ["places", "nearest"])
def test_a_class_for_every_pixel(levels, channels, kernel, classes, unpooling):
    net = SegNet(classes, levels=levels, channels=channels, kernel=kernel, unpooling=unpooling)
    assert net(images()).shape == (2, classes, 16, 24)
    assert len(net.filters()) == 2 * levels


def transparent(net):
    """Convolutions that hand on one channel as it is, and no norms."""
    for block in (*net.encoder, *net.decoder):
        nn.init.zeros_(block[0].weight)
        block[0].weight.data[0, 0, 1, 1] = 1
        block[1] = nn.Identity()
    nn.init.ones_(net.classifier.weight)
    nn.init.zeros_(net.classifier.bias)
    return net


def test_maxima_come_back_to_their_places():
    """Two levels: of every 4 x 4 block the maximum survives, where it was; all else is zero."""
    net = transparent(SegNet(2, levels=2, channels=1, kernel=3))
    given = images().abs() + 0.1
    found = net(given)[:, 0]
    blocks = given[:, 0].unflatten(1, (4, 4)).unflatten(3, (6, 4)).movedim(2, 3)  # (N, 4, 6, 4, 4)
    largest = blocks == blocks.amax((3, 4), keepdim=True)
    wanted = torch.where(largest, blocks, 0.0).movedim(3, 2).flatten(3, 4).flatten(1, 2)
    torch.testing.assert_close(found, wanted)
    spread = transparent(SegNet(2, levels=2, channels=1, kernel=3, unpooling="nearest"))(given)[:, 0]
    torch.testing.assert_close(spread, blocks.amax((3, 4)).repeat_interleave(4, 1).repeat_interleave(4, 2))


def test_the_encoder_has_relu_and_the_decoder_has_none():
    net = transparent(SegNet(2, levels=1, channels=1, kernel=3))
    below = -images().abs()
    assert net(below).abs().max() == 0
    net.decoder[0][0].weight.data.neg_()
    assert net(-below).min() < 0


def test_every_filter_may_have_any_length():
    """In training, with norms almost without epsilon: the symmetry that unit norm removes, seen through unpooling too."""
    net = SegNet(5, levels=2, channels=4, kernel=3).double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-30
    other, given = copy.deepcopy(net), images().double()
    for weight in other.filters().values():
        weight.data *= 10 ** torch.linspace(-2, 2, len(weight), dtype=torch.float64)[:, None, None, None]
    torch.testing.assert_close(other(given), net(given), rtol=1e-9, atol=1e-9)
    other.classifier.weight.data *= 2
    assert not torch.allclose(other(given), net(given), rtol=1e-2)


def test_a_learned_scale_is_there_when_asked_for():
    net = SegNet(5, levels=1, channels=4, kernel=3, affine=True)
    assert [n for n, p in net.named_parameters() if p.ndim == 1] == [
        "encoder.0.1.weight", "encoder.0.1.bias", "decoder.0.1.weight", "decoder.0.1.bias", "classifier.bias",
    ]  # fmt: skip
    assert list(net.filters()) == ["encoder.0.0.weight", "decoder.0.0.weight"]


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"levels": 0}, "at least one level"),
        ({"channels": 0}, "0 channels"),
        ({"classes": 1}, "two classes"),
        ({"kernel": 4}, "filters of 4 x 4 have no middle"),
        ({"kernel": -1}, "take an odd kernel"),
    ],
)
def test_impossible_sizes_are_refused(sizes, words):
    with pytest.raises(ValueError, match=words):
        SegNet(**sizes)


def test_images_that_cannot_be_halved_are_refused():
    with pytest.raises(
        ValueError, match=r"16 x 24 pixels cannot be halved 4 times: crop them to multiples of 16"
    ):
        SegNet(channels=2, kernel=3)(images())
