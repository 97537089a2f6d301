"""One convolution of many networks as batched products of banded matrices, and the pooling and activation that follow.

A convolution that is cut into blocks of its output positions is a product of matrices: the block's window of the input,
flattened, times the kernel written once for each position of the block, shifted, with zeros between (``Filter`` chooses
the block).  Blocks of one position are the usual unfolded patches, one block is the whole banded matrix; in between the
products are large enough to be fast, and the windows overlap little enough to be cheap.

Where max pooling follows, the blocks are its windows: the products' rows are then (position, channel), and pooling is a
maximum over the first axis.  Its gradient goes in equal shares to the positions that reach the maximum: that is torch's
gradient wherever the maximum is single or the tied patches are equal (flat background).  Bias and activation, which
commute with the maximum, come after it, where fewer numbers are left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lib.population import stacked
from lib.population.dense import ACTIVATIONS

aten = torch.ops.aten
BACKWARD = {
    nn.ReLU: lambda gradient, output, out: aten.threshold_backward.grad_input(
        gradient, output, 0, grad_input=out
    ),
    nn.Tanh: lambda gradient, output, out: aten.tanh_backward.grad_input(gradient, output, grad_input=out),
    None: lambda gradient, output, out: out.copy_(gradient),
}
FORWARD = {kind: forward for kind, (forward, _) in ACTIVATIONS.items()} | {None: lambda z, out: out.copy_(z)}
Pair = tuple[int, int]


@dataclass(frozen=True)
class Filter:
    """A convolution with the activation and the max pooling after it, and the block that its matrix covers."""

    name: str
    bias: bool
    channels: Pair  # in, out
    size: Pair  # of the input, with its padding
    padding: tuple[int, int, int, int]  # left, right, above, below
    kernel: Pair
    stride: Pair
    dilation: Pair
    groups: int
    pool: Pair
    activation: type[nn.Module] | None
    first: bool  # reads the data: windows are cut beforehand, and all groups share a matrix
    block: Pair = (1, 1)

    @staticmethod
    def read(
        name: str, layer: nn.Conv2d, size: Pair, pool: Pair, activation: type[nn.Module] | None, first: bool
    ) -> Filter:
        """The filter of a layer on inputs of this size, with the block that costs least."""
        left, right, above, below = padding = stacked.padding(layer)
        found = Filter(
            name=name,
            bias=layer.bias is not None,
            channels=(layer.in_channels, layer.out_channels),
            size=(size[0] + above + below, size[1] + left + right),
            padding=padding,
            kernel=layer.kernel_size,
            stride=layer.stride,
            dilation=layer.dilation,
            groups=layer.groups,
            pool=pool,
            activation=activation,
            first=first,
        )
        if pool != (1, 1) or min(found.positions) < 1:
            return replace(found, block=pool)
        high, wide = ([q for q in range(1, n + 1) if n % q == 0] for n in found.positions)
        return min((replace(found, block=(a, b)) for a in high for b in wide), key=Filter.cost)

    @property
    def positions(self) -> Pair:
        """Output positions that are used: those that fill pooling windows."""
        full = (
            (n - d * (k - 1) - 1) // s + 1
            for n, d, k, s in zip(self.size, self.dilation, self.kernel, self.stride, strict=True)
        )
        return tuple(n // p * p for n, p in zip(full, self.pool, strict=True))

    @property
    def outputs(self) -> Pair:
        """Size of what leaves, after pooling."""
        return tuple(n // p for n, p in zip(self.positions, self.pool, strict=True))

    @property
    def blocks(self) -> Pair:
        return tuple(n // q for n, q in zip(self.positions, self.block, strict=True))

    @property
    def window(self) -> Pair:
        """What a block sees of the input."""
        return tuple(
            (q - 1) * s + d * (k - 1) + 1
            for q, s, d, k in zip(self.block, self.stride, self.dilation, self.kernel, strict=True)
        )

    @property
    def matrices(self) -> int:
        """Banded matrices of one member."""
        return 1 if self.first else self.groups

    @property
    def shape(self) -> Pair:
        """Rows and columns of a banded matrix."""
        rows = self.channels[1] // self.matrices * math.prod(self.block)
        return rows, self.channels[0] // self.matrices * math.prod(self.window)

    @property
    def whole(self) -> bool:
        """Whether the window is the whole input, so that nothing is copied."""
        return not self.first and not any(self.padding) and self.window == self.size

    def cost(self) -> float | int:
        """About what an example costs, in nanoseconds as on one core: products, and windows copied or gathered."""
        (rows, columns), blocks = self.shape, math.prod(self.blocks)
        products = 3 * self.matrices * rows * columns * blocks
        copies = 0 if self.whole else self.matrices * columns * blocks
        return 0.04 * products + 0.5 * copies + 0.03 * self.matrices * rows * columns

    def taps(self, matrix: Tensor) -> Tensor:
        """The kernel's places in the banded matrices, (C, groups, out, in, kernel, kernel, block, block)."""
        (into, out), (rows, columns) = (n // self.groups for n in self.channels), self.shape
        area, (_, wide) = math.prod(self.window), self.window
        if self.pool == (1, 1):  # rows are (channel, position)
            channel, down, right = math.prod(self.block), self.block[1], 1
        else:  # rows are (position, channel)
            channel, right = 1, rows // math.prod(self.block)
            down = right * self.block[1]
        group = out * channel * columns + into * area if self.first else rows * columns
        return matrix.as_strided(
            (len(matrix) // self.matrices, self.groups, out, into, *self.kernel, *self.block),
            (
                self.matrices * rows * columns,
                group,
                channel * columns,
                area,
                self.dilation[0] * wide,
                self.dilation[1],
                down * columns + self.stride[0] * wide,
                right * columns + self.stride[1],
            ),
        )

    def cut(self, x: Tensor) -> Tensor:
        """The windows of padded images (N, in, ...): a view (N, down, right, in, window, window)."""
        return self.windows(x).permute(0, 2, 3, 1, 4, 5)

    def windows(self, x: Tensor) -> Tensor:
        """A view (..., down, right, window, window) of padded inputs whose last two axes are their size."""
        (high, wide), (down, right) = (
            self.window,
            (q * s for q, s in zip(self.block, self.stride, strict=True)),
        )
        cut = x.unfold(-2, high, down).unfold(-2, wide, right)
        return cut[..., : self.blocks[0], : self.blocks[1], :, :]


class Filtering:
    """One filter of C members on batches of B: its arrays and views, a forward and a backward pass."""

    def __init__(
        self, f: Filter, kernel: Tensor, bias: Tensor | None, batch: int, source: Tensor | None
    ) -> None:
        members, (rows, columns), (down, right) = len(kernel), f.shape, f.blocks
        count, out = down * right * batch, f.channels[1]

        def empty(*shape: int) -> Tensor:
            return kernel.new_empty(*shape)

        self.f, self.bias, self.source = f, bias, source
        self.kernel = kernel.view(members, f.groups, out // f.groups, *kernel.shape[2:], 1, 1)
        self.matrix = empty(members * f.matrices, rows, columns).zero_()
        self.gradient_of_matrix = torch.empty_like(self.matrix)
        self.taps, self.gradient_of_taps = f.taps(self.matrix), f.taps(self.gradient_of_matrix)
        self.z = empty(members * f.matrices, rows, count)
        self.gradient = torch.empty_like(kernel)
        self.gradient_by_group = self.gradient.view(self.kernel.shape[:-2])
        self.gradient_of_bias = None if bias is None else torch.empty_like(bias)
        self._views_of_output(members, batch)
        if f.first:
            self.x = empty(members, count, columns).mT
            self.gathered = self.x.mT.view(members * batch, down, right, f.channels[0], *f.window)
        else:
            self._views_of_input(members, batch)
        self.x_t, self.matrix_t = self.x.mT, self.matrix.mT

    def _views_of_output(self, members: int, batch: int) -> None:
        """``maximum`` (with pooling) or z itself, and ``before``: the same as (C, out, ..., batch), like ``after``."""
        f, out, (down, right), (high, wide) = self.f, self.f.channels[1], self.f.blocks, self.f.block
        self.a = self.z.new_empty(members, out, *f.outputs, batch)
        places = (batch, down, right) if f.first else (down, right, batch)
        if self.pooled:
            self.by_position = self.z.view(len(self.z), high * wide, -1)
            self.maximum = torch.empty_like(self.by_position[:, 0])
            self.ties = torch.empty_like(self.maximum)
            before = self.maximum.view(members, out, *places)
            self.before = before.permute(0, 1, 3, 4, 2) if f.first else before
            self.after = self.a
        else:
            self.maximum = self.z
            before = self.z.view(members, out, high, wide, *places)
            order = (0, 1, 5, 2, 6, 3, 4) if f.first else (0, 1, 4, 2, 5, 3, 6)
            self.before = before.permute(order)
            self.after = self.a.view(members, out, down, high, right, wide, batch)
        self.by_channel = self.maximum.view(members, out, -1)

    def _views_of_input(self, members: int, batch: int) -> None:
        """``x``, the windows: the source itself where one window is all of it; and its gradient's way back."""
        f, source = self.f, self.source
        columns, (left, right, above, below) = f.shape[1], f.padding
        if f.whole:
            self.x = source.reshape(members * f.groups, columns, batch)
            self.gradient_of_x = torch.empty_like(self.x)
            self.gradient_of_source = self.gradient_of_x.view(source.shape)
            return
        high, wide = f.size
        self.x = source.new_empty(members * f.groups, columns, self.z.shape[-1])
        self.gradient_of_x = torch.empty_like(self.x)
        self.padded = source.new_zeros(members, f.channels[0], high, wide, batch)
        self.gradient_of_padded = torch.empty_like(self.padded)
        inside = (slice(None), slice(None), slice(above, high - below), slice(left, wide - right))
        self.inside, self.gradient_of_source = self.padded[inside], self.gradient_of_padded[inside]

        def cut(padded: Tensor) -> Tensor:  # as x: (C, channels, window, window, down, right, batch)
            return f.windows(padded.movedim(-1, 2)).permute(0, 1, 5, 6, 3, 4, 2)

        def split(x: Tensor) -> Tensor:
            return x.view(members, f.channels[0], *f.window, *f.blocks, batch)

        self.cut, self.split_x = cut(self.padded), split(self.x)
        to, of = cut(self.gradient_of_padded), split(self.gradient_of_x)
        axes = (
            (2, 3) if math.prod(f.window) < math.prod(f.blocks) else (4, 5)
        )  # what overlaps goes one by one
        self.folds = [
            (to.select(axes[1], j).select(axes[0], i), of.select(axes[1], j).select(axes[0], i))
            for i in range(to.shape[axes[0]])
            for j in range(to.shape[axes[1]])
        ]

    @property
    def pooled(self) -> bool:
        return self.f.pool != (1, 1)

    def forward(self) -> None:
        """From ``x`` (or the source) to ``a``."""
        self.taps.copy_(self.kernel)
        if not self.f.first and not self.f.whole:
            self.inside.copy_(self.source)
            self.split_x.copy_(self.cut)
        torch.bmm(self.matrix, self.x, out=self.z)
        if self.pooled:
            torch.amax(self.by_position, 1, out=self.maximum)
            self.by_position.eq_(
                self.maximum[:, None]
            )  # the products are not needed again: who reaches the maximum is
            torch.sum(self.by_position, 1, out=self.ties)
        if self.bias is not None:
            self.by_channel.add_(self.bias[..., None])
        FORWARD[self.f.activation](self.before, self.after)

    def backward(self, gradient: Tensor) -> None:
        """From the gradient of ``a`` to those of kernel, bias and, past the first filter, of the source."""
        BACKWARD[self.f.activation](gradient.view_as(self.after), self.after, self.before)
        if self.bias is not None:
            torch.sum(self.by_channel, -1, out=self.gradient_of_bias)
        if self.pooled:
            self.by_position.mul_(self.maximum.div_(self.ties)[:, None])
        torch.bmm(self.z, self.x_t, out=self.gradient_of_matrix)
        torch.sum(self.gradient_of_taps, (-2, -1), out=self.gradient_by_group)
        if self.f.first:
            return
        torch.bmm(self.matrix_t, self.z, out=self.gradient_of_x)
        if not self.f.whole:
            self.gradient_of_padded.zero_()
            for to, of in self.folds:
                to.add_(of)
