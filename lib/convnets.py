"""The convolutional networks of the literature on linear connectivity: VGG-16 and ResNet-20, at any width.

With ``norm="layer"`` every convolution is followed by a layer norm over the *channels* at each position, as in the authors' code (and in
Git Re-Basin's): it keeps no running statistics, so that networks between networks need no recalibration. It is not
``GroupNorm(1, channels)``, which normalises over positions too. ``norm="batch"`` takes BatchNorm,
and ``None`` nothing.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.params import Params
from lib.population import initial, member_ids
from lib.randomness import normal


class ChannelNorm(nn.LayerNorm):
    """Each position's channels to mean 0 and variance 1, then a scale and a shift a channel; inputs (N, channels, H, W)."""

    def forward(self, x: Float[Tensor, "N channels H W"]) -> Float[Tensor, "N channels H W"]:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Average(nn.Module):
    """The mean over positions, as ``nn.AdaptiveAvgPool2d(1)``, of channels that a ``ChannelNorm`` left last in memory too.

    There torch.func.vmap has no fast form of the pooling.
    """

    def forward(self, x: Float[Tensor, "N channels H W"]) -> Float[Tensor, "N channels 1 1"]:
        return x.mean((2, 3), keepdim=True)


NORMS = {"layer": ChannelNorm, "batch": nn.BatchNorm2d, None: nn.Identity}
VGG16 = (1, 1, 0, 2, 2, 0, 4, 4, 4, 0, 8, 8, 8, 0, 8, 8, 8)  # channels over width; 0 halves the image


def vgg16(width: int = 64, norm: str | None = "layer", classes: int = 10, channels: int = 3) -> nn.Sequential:
    """Thirteen convolutions in five blocks of W to 8 W channels, an average over the last positions, one linear head."""
    layers: list[nn.Module] = []
    for share in VGG16:
        if not share:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, share * width, 3, padding=1), _norm(norm)(share * width), nn.ReLU()]
        channels = share * width
    return nn.Sequential(*layers, _average(norm), nn.Flatten(), nn.Linear(channels, classes))


class Block(nn.Module):
    """Two convolutions beside a shortcut, which is a convolution of size 1 where channels or positions change."""

    def __init__(self, before: int, after: int, stride: int, norm: str) -> None:
        super().__init__()
        make = _norm(norm)
        self.conv1, self.norm1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), make(after)
        self.conv2, self.norm2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), make(after)
        self.inner, self.outer = nn.ReLU(), nn.ReLU()
        changes = stride > 1 or before != after
        self.shortcut = (
            nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), make(after))
            if changes
            else nn.Identity()
        )

    def forward(self, x: Float[Tensor, "N before H W"]) -> Float[Tensor, "N after h w"]:
        y = self.inner(self.norm1(self.conv1(x)))
        return self.outer(self.norm2(self.conv2(y)) + self.shortcut(x))


def resnet20(width: int = 16, norm: str = "layer", classes: int = 10, channels: int = 3) -> nn.Sequential:
    """A convolution, three stages of three blocks with W, 2 W and 4 W channels, an average over positions, one linear head."""
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, 1, 1, bias=False), _norm(norm)(width), nn.ReLU()]
    before = width
    for stage in range(3):
        for block in range(3):
            after = width << stage
            layers.append(Block(before, after, 2 if stage and not block else 1, norm))
            before = after
    return nn.Sequential(*layers, _average(norm), nn.Flatten(), nn.Linear(before, classes))


def initial_kaiming(net: nn.Module, members: int | range | Tensor, seed: int) -> Params:
    """Initial parameters (P, ...) by counter: weights of linear and convolutional layers from N(0, 2 / fan_in), their biases 0.

    Norms begin at scale 1 and shift 0, buffers as in ``net`` (He et al., *Delving deep into rectifiers*, ICCV 2015). Raises
    UnsupportedTraining, with its name, for any other layer that owns parameters.
    """
    members = member_ids(members)
    params = initial(net, members, seed)
    for prefix, layer in net.named_modules():
        if not isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)):
            continue
        for name, parameter in layer.named_parameters(prefix, recurse=False):
            if name.endswith("bias"):
                params[name] = torch.zeros_like(params[name])
                continue
            shape, spread = tuple(parameter.shape), (2 / parameter[0].numel()) ** 0.5
            params[name] = spread * normal(seed, members, f"kaiming/{name}", 0, shape, parameter.dtype)
    return params


def _norm(name: str | None) -> type[nn.Module]:
    if name not in NORMS:
        raise ValueError(f"there is no norm {name!r} here: choose one of {', '.join(map(repr, NORMS))}.")
    return NORMS[name]


def _average(norm: str | None) -> nn.Module:
    return Average() if norm == "layer" else nn.AdaptiveAvgPool2d(1)
