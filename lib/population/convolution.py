"""Small convolutional networks by the thousand: hand-written passes, every convolution a banded matrix on blocks.

``lib.population.filters`` has one convolution, this file the network: convolutions and then a perceptron.  Windows of the
inputs depend on the data alone: they are cut once for all, and a minibatch gathers them.

Activations are held features first, (C, channels, height, width, batch), as in ``lib.population.dense``, and products
write into arrays that are made once.  The gradient of the first convolution's input is never computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.params import Params
from lib.population import losses, stacked
from lib.population.dense import ACTIVATIONS
from lib.population.filters import BACKWARD, FORWARD, Filter, Filtering

TABLE = 1 << 30  # bytes of windows that are kept for a whole run on a CPU


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
