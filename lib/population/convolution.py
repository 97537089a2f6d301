"""Small convolutional networks by the thousand: hand-written passes, every convolution a banded matrix on blocks.

A convolution that is cut into blocks of its output positions is a product of matrices: the block's window of the input,
flattened, times the kernel written once for each position of the block, shifted, with zeros between (``Filter`` chooses
the block).  Blocks of one position are the usual unfolded patches, one block is the whole banded matrix; in between the
products are large enough to be fast, and the windows overlap little enough to be cheap.  Windows of the inputs depend on
the data alone: they are cut once for all, and a minibatch gathers them.

Where max pooling follows, the blocks are its windows: the products' rows are then (position, channel), and pooling is a
maximum over the first axis.  Its gradient goes in equal shares to the positions that reach the maximum: that is torch's
gradient wherever the maximum is single or the tied patches are equal (flat background).  Bias and activation, which
commute with the maximum, come after it, where fewer numbers are left.

Activations are held features first, (C, channels, height, width, batch), as in ``lib.population.dense``, and products
write into arrays that are made once.  The gradient of the first convolution's input is never computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.params import Params
from lib.population import losses, stacked
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
TABLE = 1 << 30  # bytes of windows that are kept for a whole run on a CPU


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


@dataclass(frozen=True)
class Convolution:
    """A recognised network: filters, a mean over positions or none, and linear layers with activations between them."""

    filters: tuple[Filter, ...]
    mean: bool
    linear: tuple[str, ...]
    widths: tuple[int, ...]  # one more than linear layers: the features first
    biases: tuple[bool, ...]
    activations: tuple[type[nn.Module], ...]  # one fewer than linear layers
    loss: str
    dtype: torch.dtype

    @staticmethod
    def recognise(net: nn.Module, loss: str, shape: tuple[int, ...]) -> Convolution | None:
        """What ``net`` is on inputs of one example's ``shape`` (channels, height, width), or None.

        Recognised is an nn.Sequential of: Conv2d (zero padding) with ReLU or Tanh and MaxPool2d (windows side by side)
        after it, in either order, as often as you like; AdaptiveAvgPool2d(1) or nothing; Flatten; Linear, and so on as
        in a perceptron.
        """
        if type(net) is not nn.Sequential or len(shape) != 3:
            return None
        if len(list(net.parameters())) != len(list(net.named_parameters(remove_duplicate=False))):
            return None
        chain = [(name, layer) for name, layer in stacked.layers(net) if not _idle(layer)]
        if any(stacked.refusal(layer) for _, layer in chain):
            return None
        filters, size, channels = [], tuple(shape[1:]), shape[0]
        while chain and type(chain[0][1]) is nn.Conv2d:
            name, layer = chain.pop(0)
            pool, activation = None, None
            while chain:
                kind = type(chain[0][1])
                if kind in ACTIVATIONS and activation is None:
                    activation = type(chain.pop(0)[1])
                elif kind is nn.MaxPool2d and pool is None and _plain(chain[0][1]):
                    pool = _pair(chain.pop(0)[1].kernel_size)
                else:
                    break
            if layer.in_channels != channels:
                return None
            found = Filter.read(name, layer, size, pool or (1, 1), activation, first=not filters)
            if min(found.positions) < 1:
                return None
            filters.append(found)
            size, channels = found.outputs, layer.out_channels
        mean = bool(chain) and type(chain[0][1]) is nn.AdaptiveAvgPool2d
        if mean and _pair(chain.pop(0)[1].output_size) != (1, 1):
            return None
        if not filters or not chain or type(chain.pop(0)[1]) is not nn.Flatten:
            return None
        linear, between = chain[::2], tuple(type(layer) for _, layer in chain[1::2])
        if len(chain) % 2 == 0 or not all(type(layer) is nn.Linear for _, layer in linear):
            return None
        if not all(kind in ACTIVATIONS for kind in between):
            return None
        widths = (channels * (1 if mean else math.prod(size)), *(layer.out_features for _, layer in linear))
        if widths[:-1] != tuple(layer.in_features for _, layer in linear):
            return None
        return Convolution(
            filters=tuple(filters),
            mean=mean,
            linear=tuple(name for name, _ in linear),
            widths=widths,
            biases=tuple(layer.bias is not None for _, layer in linear),
            activations=between,
            loss=loss,
            dtype=linear[0][1].weight.dtype,
        )

    @property
    def outputs(self) -> int:
        return self.widths[-1]

    @cached_property
    def names(self) -> list[str]:
        """Names of the trained tensors, in the order of the network."""
        owners = [(f.name, f.bias) for f in self.filters] + list(zip(self.linear, self.biases, strict=True))
        return [f"{name}.{kind}" for name, bias in owners for kind in ("weight", "bias")[: 1 + bias]]

    def arrays(self, batch: int) -> list[int]:
        """How many numbers of each array belong to one member."""
        found = []
        for f in self.filters:
            (rows, columns), count = f.shape, math.prod(f.blocks) * batch
            found += [f.matrices * n for n in (rows * columns, rows * columns, rows * count, columns * count)]
            found.append(f.channels[1] * math.prod(f.outputs) * batch)
            found += [] if f.first else [f.channels[0] * math.prod(f.size) * batch]
        for n, k in zip(self.widths[1:], self.widths, strict=False):
            found += [n * _row(k), n * batch, _row(k) * batch]
        return found

    def bytes_per_member(self, batch: int) -> int:
        """What one member's step touches again and again: not the windows of the data, which stream by twice."""
        first = self.filters[0]
        streamed = first.shape[1] * math.prod(first.blocks) * batch
        return (sum(self.arrays(batch)) - streamed) * self.dtype.itemsize

    def lanes(self, batches: set[int]) -> int:
        """After how many members every array is back on a 64-byte boundary (at least 2): see ``Dense.lanes``."""
        sizes = [numbers * self.dtype.itemsize for batch in batches for numbers in self.arrays(batch)]
        return max(2, 64 // math.gcd(64, *sizes))

    def pack(self, params: Params) -> list[Tensor]:
        """A population's tensors, as a list."""
        return [params[name].clone() for name in self.names]

    def unpack(self, tensors: list[Tensor]) -> Params:
        """The inverse of ``pack``."""
        return {name: tensor.clone() for name, tensor in zip(self.names, tensors, strict=True)}

    def table(self, inputs: Tensor) -> Tensor:
        """The data to gather minibatches from: on a CPU the first filter's windows, (N, down, right, in, window, window).

        Elsewhere, and where they would fill the memory, the images themselves: a step then cuts what it gathers.
        """
        first = self.filters[0]
        images = inputs.to(self.dtype)
        images = F.pad(images, first.padding) if any(first.padding) else images
        windows = first.cut(images)
        small = windows.numel() * windows.element_size() <= TABLE
        return windows.contiguous() if images.device.type == "cpu" and small else images

    def step(self, weights: list[Tensor], batch: int) -> Step:
        return Step(self, weights, batch)


def _idle(layer: nn.Module) -> bool:
    return type(layer) is nn.Identity or (type(layer) is nn.Dropout and layer.p == 0)


def _pair(value: int | tuple[int, int]) -> tuple:
    return tuple(value) if isinstance(value, tuple | list) else (value, value)


def _plain(pool: nn.MaxPool2d) -> bool:
    """Whether its windows lie side by side."""
    beside = _pair(pool.kernel_size) == _pair(pool.stride) and _pair(pool.padding) == (0, 0)
    return beside and _pair(pool.dilation) == (1, 1) and not pool.ceil_mode


def _row(k: int) -> int:
    """Numbers in a row of [W, b, 0 ...]: whole cache lines of either dtype, so that members keep their alignment."""
    return -(-(k + 1) // 16) * 16


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


class Step:
    """One training step of C members on batches of B: its arrays, and every view of them, are made once."""

    def __init__(self, net: Convolution, weights: list[Tensor], batch: int) -> None:
        named = dict(zip(net.names, weights, strict=True))
        members, self.net, self.batch = len(weights[0]), net, batch

        def empty(*shape: int) -> Tensor:
            return weights[0].new_empty(members, *shape)

        self.filters: list[Filtering] = []
        for f in net.filters:
            source = self.filters[-1].a if self.filters else None
            kernel, bias = named[f"{f.name}.weight"], named.get(f"{f.name}.bias")
            self.filters.append(Filtering(f, kernel, bias, batch, source))
        last, widths = self.filters[-1].a, net.widths
        self.h = [
            empty(_row(k), batch).zero_() for k in widths[:-1]
        ]  # inputs of the linear layers: [x, 1, 0 ...]
        self.w = [
            empty(n, _row(k)).zero_() for n, k in zip(widths[1:], widths, strict=False)
        ]  # [W, b, 0 ...]
        self.inputs = [h[:, :k] for h, k in zip(self.h, widths, strict=False)]
        self.area = math.prod(last.shape[2:4])
        self.features = last.flatten(2, 3) if net.mean else last.flatten(1, 3)
        self.h_t = [h.mT for h in self.h]
        self.back = [w[..., :k].mT for w, k in zip(self.w, widths, strict=False)]
        self.z = [empty(n, batch) for n in widths[1:]]
        self.delta = empty(net.outputs, batch)
        self.gradient_of_w = [torch.empty_like(w) for w in self.w]
        self.gradient_of_features = empty(widths[0], batch)
        each = (
            self.gradient_of_features.view(members, -1, 1, 1, batch)
            if net.mean
            else self.gradient_of_features
        )
        self.gradient_of_last = each.expand_as(last) if net.mean else each.view_as(last)
        self.copies, gradients = [], {}
        for name, bias, k, h, w, g in zip(
            net.linear, net.biases, widths, self.h, self.w, self.gradient_of_w, strict=False
        ):
            self.copies.append((w[..., :k], named[f"{name}.weight"]))
            gradients[f"{name}.weight"] = g[..., :k]
            if bias:
                h[:, k] = 1
                self.copies.append((w[..., k], named[f"{name}.bias"]))
                gradients[f"{name}.bias"] = g[..., k]
        for filtering in self.filters:
            gradients[f"{filtering.f.name}.weight"] = filtering.gradient
            gradients[f"{filtering.f.name}.bias"] = filtering.gradient_of_bias
        self.gradient = [gradients[name] for name in net.names]

    def forward(self, table: Tensor, rows: Tensor) -> Tensor:
        """Outputs (C, out, B) for the examples ``rows`` (C * B) of the table."""
        first = self.filters[0]
        torch.index_select(first.f.cut(table) if table.ndim == 4 else table, 0, rows, out=first.gathered)
        for filtering in self.filters:
            filtering.forward()
        if self.net.mean:
            torch.sum(self.features, 2, out=self.inputs[0]).div_(self.area)
        else:
            self.inputs[0].copy_(self.features)
        for into, weight in self.copies:
            into.copy_(weight)
        for i, kind in enumerate(self.net.activations):
            FORWARD[kind](torch.bmm(self.w[i], self.h[i], out=self.z[i]), self.inputs[i + 1])
        return torch.bmm(self.w[-1], self.h[-1], out=self.z[-1])

    def gradients(
        self, table: Tensor, targets: Tensor, rows: Tensor, want_losses: bool, *_: object
    ) -> tuple[list[Tensor], Tensor | None]:
        """The gradients of the batch's mean loss, and the losses (C, B) before the step if wanted."""
        outputs, loss = self.forward(table, rows.reshape(-1)), self.net.loss
        chosen = targets[rows] if loss == "cross_entropy" else targets[rows].mT
        values = losses.per_example(loss, outputs, chosen, axis=1) if want_losses else None
        delta = losses.derivative(loss, outputs, chosen, out=self.delta, axis=1).div_(self.batch)
        for i in range(len(self.w) - 1, -1, -1):
            torch.bmm(delta, self.h_t[i], out=self.gradient_of_w[i])
            if i:
                delta = torch.bmm(self.back[i], delta, out=self.z[i - 1])
                BACKWARD[self.net.activations[i - 1]](delta, self.inputs[i], delta)
        torch.bmm(self.back[0], delta, out=self.gradient_of_features)
        if self.net.mean:
            self.gradient_of_features.div_(self.area)
        gradient = self.gradient_of_last
        for filtering in reversed(self.filters):
            filtering.backward(gradient)
            gradient = None if filtering.f.first else filtering.gradient_of_source
        return self.gradient, values
