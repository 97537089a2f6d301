r"""A convolution whose kernels have a law, in place of ``nn.Conv2d``: beyond the paper, whose layers are dense.

W is r x c with a row for every entry of a patch (input channels x kernel, then the bias) and a column for every
output channel; a position's pre-activations are $[\text{patch}, 1]\, W / \sqrt{r}$: an image is a batch of
patches ("unfold").

With ``local`` noise every position draws its own. Each has the right mean and variance, but positions share
weights, so that their true noises are correlated: an approximation (as in Molchanov et al. 2017).
``local=False`` draws W once a batch and convolves: exact, with noise common to all images of the batch.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.matrix_gaussian.laws import Law
from lib.matrix_gaussian.layer import MatrixGaussianLayer

Size = int | tuple[int, int]
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class MatrixGaussianConv2d(MatrixGaussianLayer):
    """``nn.Conv2d`` with a law of its weights; inputs (N, in_channels, H, W) or without the N.

    Its first arguments are nn.Conv2d's, its options those of ``MatrixGaussianLinear``. Raises ValueError for
    groups: each group would be a matrix of its own, with its own law.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        law: Law | None = None,
        hyper_priors: bool = False,
        local: bool = True,
        seed: int,
        purpose: str = "layer",
    ) -> None:
        if groups != 1:
            raise ValueError(
                f"groups = {groups}: a grouped convolution is {groups} matrices, not one. Leave it an "
                "nn.Conv2d, or build it of several layers."
            )
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode = {padding_mode!r}: choose one of {', '.join(PADDING_MODES)}.")
        kernel = pair(kernel_size)
        super().__init__(
            in_channels * kernel[0] * kernel[1], out_channels, bias, device, dtype,
            law=law, hyper_priors=hyper_priors, local=local, seed=seed, purpose=purpose,
        )  # fmt: skip
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel
        self.stride, self.dilation, self.padding = pair(stride), pair(dilation), padding
        self.padding_mode = padding_mode
        self.edges = edges(padding, kernel, self.stride, self.dilation)

    def extra_repr(self) -> str:
        shape = (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        )
        return f"{shape}, padding={self.padding}; {super().extra_repr()}"

    def padded(self, x: Tensor) -> Float[Tensor, "N channels H W"]:
        """The images with their edges; an image alone becomes a batch of one. Raises ValueError."""
        if x.ndim not in (3, 4) or x.shape[-3] != self.in_channels:
            raise ValueError(
                f"inputs of shape {tuple(x.shape)} for a convolution of {self.in_channels} channels: "
                f"they must be (N, {self.in_channels}, H, W), or one image without the N."
            )
        x = x[None] if x.ndim == 3 else x
        if not any(self.edges):
            return x
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return nn.functional.pad(x, self.edges, mode)

    def apply_weights(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        kernel = weight.reshape(self.c, self.in_channels, *self.kernel_size)
        options = {"stride": self.stride, "dilation": self.dilation}
        out = nn.functional.conv2d(self.padded(x), kernel, bias, **options)
        return out[0] if x.ndim == 3 else out

    def apply_noisy(self, x: Tensor) -> Tensor:
        images = self.padded(x)
        patches = nn.functional.unfold(images, self.kernel_size, self.dilation, 0, self.stride).mT
        rows = self.noisy_rows(patches.reshape(-1, patches.shape[-1]))  # (N * positions, c)
        across = (
            (size - step * (length - 1) - 1) // stride + 1
            for size, length, stride, step in zip(
                images.shape[2:], self.kernel_size, self.stride, self.dilation, strict=True
            )
        )
        out = rows.view(len(images), -1, self.c).mT.contiguous().view(len(images), self.c, *across)
        return out[0] if x.ndim == 3 else out


def pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def edges(padding: Size | str, kernel: Size, stride: Size, dilation: Size) -> tuple[int, int, int, int]:
    """What is added left, right, above and below, as torch.nn.functional.pad wants it. Raises ValueError."""
    if padding == "same":
        if pair(stride) != (1, 1):
            raise ValueError(
                f"padding = 'same' with a stride of {stride}: sizes stay the same with stride 1 only."
            )
        needed = [step * (length - 1) for step, length in zip(pair(dilation), pair(kernel), strict=True)]
        above, left = (total // 2 for total in needed)  # as nn.Conv2d: an odd one goes to the far side
        return left, needed[1] - left, above, needed[0] - above
    if isinstance(padding, str) and padding != "valid":
        raise ValueError(f"padding = {padding!r}: give a number, a pair, 'valid' or 'same'.")
    down, across = (0, 0) if padding == "valid" else pair(padding)
    return across, across, down, down
