"""SegNet-Basic, cut to what the claim asks: convolutions before norms, pooling whose places the decoder remembers."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class SegNet(nn.Module):
    """Images (B, 3, H, W) to logits (B, classes, H, W); H and W are multiples of 2^levels.

    Every level of the encoder is a convolution, a norm, ReLU and 2 x 2 max-pooling; every level of the decoder puts its
    input back to the places that the maxima of the same level came from, zeros elsewhere, and applies a convolution and a
    norm, no ReLU. A 1 x 1 convolution with a bias names the classes. Other convolutions have none: the norm subtracts it.

    Source: Badrinarayanan, Kendall & Cipolla (arXiv 1511.00561), SegNet-Basic, whose published layers are four levels of 64
    channels and 7 x 7 filters. Two things differ. ``affine=False``: a learned scale and shift of a norm can be traded against
    the next layer's weights, a symmetry that unit filters leave. No local response normalisation of the input: images are
    standardised by channel on the training set instead, which treats every pixel alike and has no constants to choose.

    ``unpooling="nearest"`` repeats every value four times instead; see ``lib.segmentation.training.optimiser``.
    Raises ValueError for sizes of which no network can be made, and for images that do not fit.
    """

    def __init__(
        self,
        classes: int = 11,
        *,
        levels: int = 4,
        channels: int = 64,
        kernel: int = 7,
        affine: bool = False,
        unpooling: Literal["places", "nearest"] = "places",
    ) -> None:
        super().__init__()
        if levels < 1 or channels < 1 or classes < 2:
            raise ValueError(
                f"a SegNet of {levels} levels, {channels} channels and {classes} classes has nothing to do: take at least "
                "one level, one channel and two classes."
            )
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(
                f"filters of {kernel} x {kernel} have no middle, so that the size would change: take an odd kernel."
            )
        self.unpooling = unpooling

        def block(inputs: int) -> nn.Sequential:
            convolution = nn.Conv2d(inputs, channels, kernel, padding=kernel // 2, bias=False)
            return nn.Sequential(convolution, nn.BatchNorm2d(channels, affine=affine))

        self.encoder = nn.ModuleList(block(channels if level else 3) for level in range(levels))
        self.decoder = nn.ModuleList(block(channels) for _ in range(levels))
        self.classifier = nn.Conv2d(channels, classes, 1)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B classes H W"]:
        multiple = 2 ** len(self.encoder)
        if images.shape[2] % multiple or images.shape[3] % multiple:
            raise ValueError(
                f"images of {images.shape[2]} x {images.shape[3]} pixels cannot be halved {len(self.encoder)} times: crop "
                f"them to multiples of {multiple}, as lib.segmentation.scenes.load does."
            )
        x, places = _by_pixel(images), []
        for block in self.encoder:
            x = F.relu(block(x))
            if self.unpooling == "places":
                x, place = F.max_pool2d(x, 2, return_indices=True)
                places.append(place)
            else:
                x = F.max_pool2d(x, 2)
        for block in self.decoder:
            if self.unpooling == "places":
                x = F.max_unpool2d(x, places.pop(), 2)
            else:
                x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = block(_by_pixel(x))
        return self.classifier(x)

    def filters(self) -> dict[str, nn.Parameter]:
        """The weights of the convolutions before norms, by name, from the image on."""
        return {name: p for name, p in self.named_parameters() if p.ndim == 4 and "classifier" not in name}


def _by_pixel(x: Tensor) -> Tensor:
    """The channels of a pixel side by side in memory, as fast convolutions want them; unpooling on CUDA undoes it."""
    return x.contiguous(memory_format=torch.channels_last)
