"""The road scenes as the experiment sees them: cropped, standardised, whole on one device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lib import data

NAME = "camvid-small"
VOID = 11  # pixels without a class: no loss, no score


@dataclass(frozen=True, eq=False)
class Split:
    """N images (N, 3, H, W) and the class of every pixel, 0 to 10, or 11 for none (N, H, W)."""

    images: Float[Tensor, "N 3 H W"]
    labels: Int64[Tensor, "N H W"]

    def to(self, device: torch.device) -> Split:
        """The same on a device."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Scenes:
    """The published splits; images in units of the training pixels' deviation, channel by channel.

    ``mean`` and ``std`` (3,) lead back to values in [0, 1]; ``classes`` names the labels 0 to 10.
    """

    train: Split
    val: Split
    test: Split
    mean: Float[Tensor, " 3"]
    std: Float[Tensor, " 3"]
    classes: tuple[str, ...]

    def to(self, device: torch.device) -> Scenes:
        """The same with all images and labels on a device."""
        splits = (split.to(device) for split in (self.train, self.val, self.test))
        return Scenes(*splits, self.mean, self.std, self.classes)

    def picture(self, split: Split, index: int) -> Float[Tensor, "H W 3"]:
        """One image as it was, values in [0, 1], to be looked at."""
        image = split.images[index].cpu() * self.std[:, None, None] + self.mean[:, None, None]
        return image.movedim(0, -1).clamp(0, 1)


def load(levels: int = 4) -> Scenes:
    """camvid-small, cropped to its middle so that it can be halved ``levels`` times: 90 x 120 becomes 80 x 112 for four.

    A crop leaves real pixels only, where padding would bring in a border that the norms' means see; the middle has the
    horizon. Labels are cropped alike, so scores are of the crop. Raises MissingData where the set cannot be had.
    """
    parts = {name: data.load(NAME, name) for name in ("train", "val", "test")}
    images = {name: crop(part.inputs, levels) for name, part in parts.items()}
    labels = {name: crop(part.targets, levels) for name, part in parts.items()}
    pixels = images["train"].double().movedim(1, 0).flatten(1)
    mean, std = pixels.mean(1).float(), pixels.std(1, correction=0).float()
    splits = (
        Split((images[name] - mean[:, None, None]) / std[:, None, None], labels[name].contiguous())
        for name in parts
    )
    return Scenes(*splits, mean, std, parts["train"].classes[:VOID])


def crop(x: Tensor, levels: int) -> Tensor:
    """The middle of the last two axes, the largest with sides that are multiples of 2^levels.

    Raises ValueError where nothing would be left.
    """
    multiple = 2**levels
    height, width = (side // multiple * multiple for side in x.shape[-2:])
    if not height or not width:
        raise ValueError(
            f"{x.shape[-2]} x {x.shape[-1]} pixels cannot be halved {levels} times: take fewer levels."
        )
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    return x[..., top : top + height, left : left + width]
