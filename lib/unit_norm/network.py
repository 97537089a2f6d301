"""Stacks of networks with batch normalisation: hand-written passes for hundreds of runs that share their batches.

The network of Badrinarayanan et al. 2015: filters, batch normalisation, the maximum of each ``pool`` neighbouring units,
ReLU, and again; last a soft-max classifier. No biases (those before a norm have no effect) and nothing learned in the norms.

A stack holds S *streams* of R *runs*: weights (S, R, n, k). The runs of a stream see the same batches in the same order,
whatever their rates, starts and methods, so that comparisons between them are paired; and the first layer of all of them
is one matrix product. Activations are held units first, (S R, units, batch), as in ``lib.population.dense``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from lib.randomness import normal
from lib.unit_norm.manifold import normalise

aten = torch.ops.aten
BLOCK = 500  # examples evaluated at once


@dataclass(frozen=True)
class Network:
    """``widths``: inputs, filters of each layer, classes; ``pool`` neighbouring units share a maximum; ``norm``: with
    batch normalisation (epsilon ``eps``, running averages of momentum 0.1, as in torch) or without."""

    widths: tuple[int, ...]
    pool: int = 1
    norm: bool = True
    eps: float = 1e-5

    def __post_init__(self) -> None:
        if len(self.widths) < 3:
            raise ValueError(f"widths {self.widths}: name the inputs, at least one layer, and the classes.")
        for width in self.widths[1:-1]:
            if width % self.pool:
                raise ValueError(f"{width} filters are no whole number of pools of {self.pool} units.")

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of each weight, the classifier last."""
        inputs, *hidden, classes = self.widths
        before = [inputs, *(width // self.pool for width in hidden)]
        return tuple(zip((*hidden, classes), before, strict=True))

    def initial(
        self, seed: int, streams: Int64[Tensor, " S"], dtype: torch.dtype = torch.float32
    ) -> list[Float[Tensor, "S 1 _ _"]]:
        """Normal numbers, every row divided by its length, the classifier's too (the protocol; notes, section 1.6)."""
        return [
            normalise(normal(seed, streams, f"initial/{i}", 0, shape, dtype), lead=2)[:, None]
            for i, shape in enumerate(self.shapes)
        ]

    def module(self) -> nn.Sequential:
        """The same network as a plain torch module (float32, torch's own initial weights)."""
        layers: list[nn.Module] = []
        for (n, k), _ in pairwise(self.shapes):
            layers.append(nn.Linear(k, n, bias=False))
            if self.norm:
                layers.append(nn.BatchNorm1d(n, eps=self.eps, affine=False))
            if self.pool > 1:
                layers += [nn.Unflatten(1, (1, n)), nn.MaxPool1d(self.pool), nn.Flatten()]
            layers.append(nn.ReLU())
        n, k = self.shapes[-1]
        return nn.Sequential(*layers, nn.Linear(k, n, bias=False))

    @property
    def numbers(self) -> int:
        """How many weights one run has."""
        return sum(math.prod(shape) for shape in self.shapes)

    def multiplications(self, batch: int) -> int:
        """Of one training step of one run: forward, and both products of backward but for the inputs."""
        products = [n * k for n, k in self.shapes]
        return batch * (3 * sum(products) - products[0])


class Pass:
    """Forward and backward of a stack on batches of one size; its arrays are made once.

    ``weights`` and the running ``means`` and ``variances`` (S, R, n) are read, and the latter written, in place.
    """

    def __init__(
        self,
        net: Network,
        weights: Sequence[Float[Tensor, "S R _ _"]],
        means: Sequence[Float[Tensor, "S R _"]],
        variances: Sequence[Float[Tensor, "S R _"]],
        batch: int,
    ) -> None:
        self.net, self.weights, self.means, self.variances = net, weights, means, variances
        self.streams, self.runs = weights[0].shape[:2]
        self.stack = self.streams * self.runs

        def empty(units: int) -> Tensor:
            return weights[0].new_empty(self.stack, units, batch)

        self.z = [empty(n) for n, _ in net.shapes]
        self.inputs = [empty(k) for _, k in net.shapes[1:]]
        self.gradients = [torch.empty_like(weight) for weight in weights]
        self.batch = batch

    def forward(self, x: Float[Tensor, "S B k"], train: bool) -> Float[Tensor, "SR classes B"]:
        """Logits; with ``train``, by the batch's own statistics, which enter the running averages."""
        self.x, self.saved, self.hats = x, [], []
        first = self.weights[0].flatten(1, 2)  # all runs of a stream at once: (S, R n, k)
        torch.bmm(first, x.mT, out=self.z[0].view(self.streams, -1, self.batch))
        for layer, z in enumerate(self.z[:-1]):
            hat = self._norm(layer, z, train) if self.net.norm else z
            self.hats.append(hat)
            after = self.inputs[layer]
            if self.net.pool > 1:
                torch.amax(hat.unflatten(1, (-1, self.net.pool)), 2, out=after)
                after.clamp_min_(0)
            else:
                torch.clamp_min(hat, 0, out=after)
            torch.bmm(self.weights[layer + 1].flatten(0, 1), after, out=self.z[layer + 1])
        return self.z[-1]

    def backward(self, slope: Float[Tensor, "SR classes B"]) -> list[Float[Tensor, "S R _ _"]]:
        """Gradients of every weight from the slope of the loss at the logits."""
        last = len(self.weights) - 1
        for layer in range(last, 0, -1):
            before = self.inputs[layer - 1]
            torch.bmm(slope, before.mT, out=self.gradients[layer].flatten(0, 1))
            back = torch.bmm(self.weights[layer].flatten(0, 1).mT, slope)
            aten.threshold_backward.grad_input(back, before, 0, grad_input=back)
            if self.net.pool > 1:
                back = self._unpool(layer - 1, back)
            slope = self._norm_backward(layer - 1, back) if self.net.norm else back
        wide = slope.view(self.streams, -1, self.batch)
        torch.bmm(wide, self.x, out=self.gradients[0].flatten(1, 2))
        return self.gradients

    def _norm(self, layer: int, z: Tensor, train: bool) -> Tensor:
        """(z - mean) / √(variance + ε) of every unit; every unit of every run is one channel of torch's own kernel."""
        mean, variance = self.means[layer].view(-1), self.variances[layer].view(-1)
        channels = z.view(1, -1, self.batch)
        hat, *saved = aten.native_batch_norm(channels, None, None, mean, variance, train, 0.1, self.net.eps)
        self.saved.append(saved)
        return hat.view_as(z)

    def _norm_backward(self, layer: int, slope: Tensor) -> Tensor:
        channels = (1, -1, self.batch)
        back, _, _ = aten.native_batch_norm_backward(
            slope.view(channels),
            self.z[layer].view(channels),
            None,
            None,
            None,
            *self.saved[layer],
            True,
            self.net.eps,
            [True, False, False],
        )
        return back.view_as(slope)

    def _unpool(self, layer: int, slope: Tensor) -> Tensor:
        """A maximum's slope goes to the unit that attained it (all slopes are 0 where that was not positive)."""
        units = self.hats[layer].unflatten(1, (-1, self.net.pool))
        attained = units == self.inputs[layer].unsqueeze(2)
        return (attained * slope.unsqueeze(2)).flatten(1, 2)


def evaluate(
    net: Network,
    weights: Sequence[Float[Tensor, "S R _ _"]],
    means: Sequence[Float[Tensor, "S R _"]],
    variances: Sequence[Float[Tensor, "S R _"]],
    inputs: Float[Tensor, "S N k"],
    targets: Int64[Tensor, "S N"],
) -> tuple[Float[Tensor, "S R"], Float[Tensor, "S R"]]:
    """Mean loss and share of wrong answers of every run, by running averages; a run that diverged has errors of 1."""
    streams, runs = weights[0].shape[:2]
    loss, wrong = 0.0, 0.0
    for x, y in zip(inputs.split(BLOCK, 1), targets.split(BLOCK, 1), strict=True):
        logits = Pass(net, weights, means, variances, x.shape[1]).forward(x, train=False)
        logits = logits.view(streams, runs, -1, x.shape[1])
        answers = torch.log_softmax(logits, 2).gather(2, y[:, None, None].expand(-1, runs, -1, -1))
        loss = loss - answers.sum((2, 3))
        right = (logits.argmax(2) == y[:, None]) & logits.isfinite().all(2)
        wrong = wrong + (~right).sum(2)
    return loss / inputs.shape[1], wrong.double() / inputs.shape[1]
