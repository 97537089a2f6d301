"""The scenes: cropped to the middle, standardised by the training pixels, and back."""

from types import SimpleNamespace

import pytest
import torch

from lib import data
from lib.data import Dataset
from lib.segmentation.scenes import crop, load


@pytest.fixture
def made(monkeypatch):
    """Three splits of few frames of the real size."""
    generator = torch.Generator().manual_seed(991)

    def loaded(name, part):
        assert name == "camvid-small"
        n = {"train": 3, "val": 1, "test": 2}[part]
        images = torch.rand(n, 3, 90, 120, generator=generator) * torch.tensor([0.2, 0.5, 1.0])[:, None, None]
        labels = torch.randint(12, (n, 90, 120), generator=generator)
        names = (*"abcdefghijk", "void")
        splits[part] = SimpleNamespace(images=images, labels=labels)
        return Dataset(images, labels, name, part, "made here", names)

    splits = {}
    monkeypatch.setattr(data, "load", loaded)
    return splits


def test_the_middle_is_cut_out():
    x = torch.arange(90 * 120).view(1, 90, 120)
    found = crop(x, 4)
    assert found.shape == (1, 80, 112)
    assert found[0, 0, 0] == 5 * 120 + 4
    assert found[0, -1, -1] == 84 * 120 + 115
    assert crop(x, 2).shape == crop(x, 3).shape == (1, 88, 120)
    assert torch.equal(crop(x, 1), x)
    with pytest.raises(ValueError, match="90 x 120 pixels cannot be halved 7 times"):
        crop(x, 7)


def test_images_are_in_units_of_the_training_pixels(made):
    found = load(4)
    assert found.train.images.shape == (3, 3, 80, 112)
    assert [len(split.images) for split in (found.train, found.val, found.test)] == [3, 1, 2]
    torch.testing.assert_close(found.train.images.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.train.images.std((0, 2, 3), correction=0), torch.ones(3))
    pixels = crop(made["train"].images, 4)
    torch.testing.assert_close(found.mean, pixels.mean((0, 2, 3)))
    assert found.test.images.mean((0, 2, 3)).abs().max() > 1e-4  # by the training's, not by their own
    assert found.classes == tuple("abcdefghijk")
    for split, name in ((found.train, "train"), (found.val, "val"), (found.test, "test")):
        assert torch.equal(split.labels, crop(made[name].labels, 4))


def test_a_picture_is_the_image_as_it_was(made):
    found = load(4)
    torch.testing.assert_close(found.picture(found.test, 1), crop(made["test"].images, 4)[1].movedim(0, -1))


def test_scenes_move_whole(made):
    found = load(4).to(torch.device("meta"))
    assert {x.device.type for s in (found.train, found.val, found.test) for x in (s.images, s.labels)} == {
        "meta"
    }
