"""Multilayer perceptrons by the thousand: hand-written forward and backward passes on batched matrix products.

A layer's weight and bias are one matrix, ``[W, b]``, that multiplies ``[x, 1]``; a population stacks them, (C, out, in + 1).
Activations are held features first, (C, width, batch): every elementwise step, and the softmax over a few classes, then
runs along contiguous rows of a batch, which is several times faster than along ten logits.  With A_0 the inputs,
A_l = [φ(Z_l), 1] and G_l = ∂loss/∂Z_l, the passes are

    Z_l = W_l A_{l-1},    ∂loss/∂W_l = G_l A_{l-1}ᵀ,    G_{l-1} = (W_lᵀ G_l without its last row) ⊙ φ'(Z_{l-1}).

Products write into contiguous arrays that are made once (torch takes its fast batched kernel for those only).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from lib.params import Params
from lib.population import losses

aten = torch.ops.aten


def _relu_backward(gradient: Tensor, output: Tensor) -> None:
    aten.threshold_backward.grad_input(gradient, output, 0, grad_input=gradient)


def _tanh_backward(gradient: Tensor, output: Tensor) -> None:
    aten.tanh_backward.grad_input(gradient, output, grad_input=gradient)


ACTIVATIONS = {
    nn.ReLU: (lambda z, out: torch.clamp_min(z, 0, out=out), _relu_backward),
    nn.Tanh: (lambda z, out: torch.tanh(z, out=out), _tanh_backward),
}


@dataclass(frozen=True)
class Dense:
    """A recognised perceptron: the names of its linear layers, their widths, biases and the activations between."""

    layers: tuple[str, ...]
    widths: tuple[int, ...]  # one more than layers: the inputs first
    biases: tuple[bool, ...]
    activations: tuple[type[nn.Module], ...]  # one fewer than layers
    loss: str
    dtype: torch.dtype

    @staticmethod
    def recognise(net: nn.Module, loss: str) -> Dense | None:
        """The perceptron that ``net`` is (an nn.Sequential: Linear, then ReLU or Tanh and Linear, and so on), or None."""
        children = list(net.named_children()) if type(net) is nn.Sequential else []
        if children and type(children[0][1]) is nn.Flatten and children[0][1].start_dim == 1:
            children = children[1:]
        linear, between = children[::2], [type(child) for _, child in children[1::2]]
        if len(children) % 2 == 0 or not all(type(child) is nn.Linear for _, child in linear):
            return None
        if not all(kind in ACTIVATIONS for kind in between):
            return None
        return Dense(
            layers=tuple(name for name, _ in linear),
            widths=(linear[0][1].in_features, *(child.out_features for _, child in linear)),
            biases=tuple(child.bias is not None for _, child in linear),
            activations=tuple(between),
            loss=loss,
            dtype=linear[0][1].weight.dtype,
        )

    @property
    def outputs(self) -> int:
        return self.widths[-1]

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """Shapes of the matrices [W, b]."""
        return [(n, k + b) for n, k, b in zip(self.widths[1:], self.widths, self.biases, strict=False)]

    def bytes_per_member(self, batch: int) -> int:
        """What one member's step touches."""
        numbers = 3 * sum(n * k for n, k in self.sizes) + batch * (self.widths[0] + 3 * sum(self.widths[1:]))
        return numbers * self.dtype.itemsize

    def pack(self, params: Params) -> list[Tensor]:
        """The matrices [W, b], contiguous, from a population's named tensors."""
        return [
            torch.cat([params[f"{name}.weight"], params[f"{name}.bias"][..., None]], dim=-1)
            if bias
            else params[f"{name}.weight"].clone()
            for name, bias in zip(self.layers, self.biases, strict=True)
        ]

    def unpack(self, matrices: list[Tensor]) -> Params:
        """The inverse of ``pack``."""
        params = {}
        for name, bias, matrix in zip(self.layers, self.biases, matrices, strict=True):
            params[f"{name}.weight"] = matrix[..., :-1].clone() if bias else matrix.clone()
            if bias:
                params[f"{name}.bias"] = matrix[..., -1].clone()
        return params

    def table(self, inputs: Tensor) -> Tensor:
        """The data as rows [x, 1] to gather minibatches from."""
        rows = inputs.to(self.dtype).flatten(1)
        return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1) if self.biases[0] else rows

    def lanes(self, batches: set[int]) -> int:
        """After how many members every array of a step is back on a 64-byte boundary (at least 2).

        The batched products round differently at different alignments, and for a batch of one.  A member that always
        sits at the same place modulo ``lanes``, among a multiple of ``lanes``, gets the same bits whatever its
        neighbours; elementwise kernels then have no remainder to treat apart either.
        """
        arrays = [n * k for n, k in self.sizes]
        arrays += [b * n for b in batches for n in (self.sizes[0][1], *self.widths[1:])]
        arrays += [
            b * (n + bias) for b in batches for n, bias in zip(self.widths[1:], self.biases[1:], strict=False)
        ]
        return max(2, 64 // math.gcd(64, *(numbers * self.dtype.itemsize for numbers in arrays)))

    def step(self, weights: list[Tensor], batch: int) -> Step:
        return Step(self, weights, batch)


class Step:
    """One training step of C members on batches of B: its arrays, and every view of them, are made once."""

    def __init__(self, net: Dense, weights: list[Tensor], batch: int) -> None:
        def empty(*shape: int) -> Tensor:
            return weights[0].new_empty(len(weights[0]), *shape)

        self.loss, self.batch, self.weights = net.loss, batch, weights
        hidden, targets = net.widths[1:-1], (batch,) if net.loss == "cross_entropy" else (batch, net.outputs)
        self.x = empty(batch, net.sizes[0][1])
        self.y = empty(*targets).long() if net.loss == "cross_entropy" else empty(*targets)
        self.rows_of_x, self.rows_of_y = self.x.flatten(0, 1), self.y.flatten(0, 1)
        self.z = [
            empty(n, batch) for n in net.widths[1:]
        ]  # before the activation, and later the gradient there
        self.a = [empty(n + bias, batch).fill_(1) for n, bias in zip(hidden, net.biases[1:], strict=True)]
        self.delta = empty(net.outputs, batch)
        self.gradient = [torch.empty_like(weight) for weight in weights]
        self.activations = [ACTIVATIONS[kind] for kind in net.activations]
        self.inputs_of = [self.x.mT, *self.a]  # A_{l-1}, (C, k, B)
        self.inputs_of_t = [a.mT for a in self.inputs_of]
        self.phi = [a[:, :n] for a, n in zip(self.a, hidden, strict=True)]  # without the row of ones
        self.back = [weight[..., :n].mT for weight, n in zip(weights[1:], hidden, strict=True)]
        self.targets = self.y if net.loss == "cross_entropy" else self.y.mT

    def forward(self, table: Tensor, rows: Tensor) -> Tensor:
        """Outputs (C, out, B) for the examples ``rows`` (C, B) of the table."""
        torch.index_select(table, 0, rows, out=self.rows_of_x)
        for i, (activate, _) in enumerate(self.activations):
            activate(torch.bmm(self.weights[i], self.inputs_of[i], out=self.z[i]), self.phi[i])
        return torch.bmm(self.weights[-1], self.inputs_of[-1], out=self.z[-1])

    def gradients(
        self, table: Tensor, targets: Tensor, rows: Tensor, want_losses: bool, *_: object
    ) -> tuple[list[Tensor], Tensor | None]:
        """The gradients of the batch's mean loss, and the losses (C, B) before the step if wanted."""
        rows = rows.reshape(-1)
        outputs = self.forward(table, rows)
        torch.index_select(targets, 0, rows, out=self.rows_of_y)
        values = losses.per_example(self.loss, outputs, self.targets, axis=1) if want_losses else None
        delta = losses.derivative(self.loss, outputs, self.targets, out=self.delta, axis=1)
        for i in range(len(self.weights) - 1, -1, -1):
            gradient = self.gradient[i]
            torch.baddbmm(gradient, delta, self.inputs_of_t[i], beta=0, alpha=1 / self.batch, out=gradient)
            if i:
                delta = torch.bmm(self.back[i - 1], delta, out=self.z[i - 1])
                self.activations[i - 1][1](delta, self.phi[i - 1])
        return self.gradient, values
