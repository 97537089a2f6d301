r"""The generalised Gauss-Newton matrix of n (mean loss), for many networks at once.

With J_n the Jacobian of example n's outputs in the parameters and Λ_n = S_n S_nᵀ the Hessian of its loss in the outputs,

$$ G = \sum_n J_n^\top \Lambda_n J_n $$

(Schraudolph 2002), which is the Hessian of the loss wherever the outputs are linear in the parameters. In a perceptron the
derivative of an output in W_{ki} is the slope b_k of the unit times the activation a_i, so that two layers' block is

$$ G_{(k i), (k' i')} = \sum_n \Big( \sum_s (S^\top b)_{s k}\, (S^\top b')_{s k'} \Big)_n \, (a_i\, a'_{i'})_n $$

one matrix product of (k k' × n) by (n × i i'): ten times fewer operations than JᵀΛJ for 64-16-8 units. Other networks
take their Jacobians by torch.func, in blocks of examples. No loss here has a Hessian that depends on the target.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from lib.params import member
from lib.population.dense import Dense
from lib.posteriors.target import unravel

NUMBERS = 1 << 22  # held at a time by a block of runs or of examples: on a CPU they stay in the cache


def root(loss: str, outputs: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k k"]:
    """Sᵀ of one example (rows s, columns outputs), where S Sᵀ is the Hessian of its loss in its outputs."""
    k = outputs.shape[-1]
    if loss == "cross_entropy":  # diag(p) - p pᵀ
        p = torch.softmax(outputs, dim=-1)
        return torch.diag_embed(p.sqrt()) - p.sqrt()[..., :, None] * p[..., None, :]
    if loss == "binary_cross_entropy":
        p = torch.sigmoid(outputs)
        return torch.diag_embed((p * (1 - p) / k).sqrt())
    return torch.diag_embed(torch.full_like(outputs, (2 / k) ** 0.5))


def offsets(net: nn.Module) -> dict[str, int]:
    """Where each parameter begins in a position."""
    sizes = [parameter.numel() for parameter in net.parameters()]
    names = [name for name, _ in net.named_parameters()]
    return dict(zip(names, accumulate(sizes, initial=0), strict=False))


def last_layer(net: nn.Module) -> int:
    """Where the parameters of the last layer that has any begin in a position."""
    begins = offsets(net)
    layer = list(begins)[-1].rpartition(".")[0]
    return min(begin for name, begin in begins.items() if name.rpartition(".")[0] == layer)


def full(
    net: nn.Module,
    positions: Float[Tensor, "R D"],
    inputs: Shaped[Tensor, "n ..."],
    loss: str,
    *,
    begin: int = 0,
    fast: bool = True,
) -> Float[Tensor, "R d d"]:
    """The lower triangle of G (above it lies no meaning), in the parameters from number ``begin`` on, a layer's first."""
    size = positions.shape[1] - begin
    found = positions.new_zeros(len(positions), size, size)
    dense = Dense.recognise(net, loss) if fast else None
    if dense is None:
        for run, slopes in _jacobians(net, positions, inputs, loss, begin):
            found[run].addmm_(slopes.mT, slopes)
        return found
    runs = max(1, NUMBERS // size**2)
    for first in range(0, len(positions), runs):
        part = found[first : first + runs]
        for layers in _layers(dense, net, positions[first : first + runs], inputs, begin):
            for i, row in enumerate(layers):
                for column in layers[: i + 1]:
                    _add_block(part, row, column)
    return found


def diagonal(
    net: nn.Module,
    positions: Float[Tensor, "R D"],
    inputs: Shaped[Tensor, "n ..."],
    loss: str,
    *,
    begin: int = 0,
    fast: bool = True,
) -> Float[Tensor, "R d"]:
    """The diagonal of ``full``, without the rest."""
    found = torch.zeros_like(positions[:, begin:])
    dense = Dense.recognise(net, loss) if fast else None
    if dense is None:
        for run, slopes in _jacobians(net, positions, inputs, loss, begin):
            found[run] += slopes.square().sum(0)
        return found
    for layers in _layers(dense, net, positions, inputs, begin):
        for layer in layers:
            entries = layer.slopes.square().sum(1) @ layer.activations.square().mT  # (R, k, i)
            for where, part in layer.places():
                found[:, where] += entries[..., part].flatten(1)
    return found


@dataclass(frozen=True)
class _Layer:
    """A linear layer on n examples: its activations (R or 1, i, n), the last one 1 if there is a bias, and its slopes
    Sᵀ ∂outputs/∂z (R, s, k, n)."""

    begin: int
    linear: nn.Linear
    activations: Tensor
    slopes: Tensor

    def places(self) -> list[tuple[slice, slice]]:
        """Of the weight and of the bias: where it lies in G, and which of the activations it multiplies."""
        inputs, middle = self.linear.in_features, self.begin + self.linear.weight.numel()
        found = [(slice(self.begin, middle), slice(0, inputs))]
        if self.linear.bias is not None:
            found.append((slice(middle, middle + self.linear.out_features), slice(inputs, inputs + 1)))
        return found


def _layers(
    dense: Dense, net: nn.Module, positions: Tensor, inputs: Tensor, begin: int
) -> Iterator[list[_Layer]]:
    """The layers from ``begin`` on, for one block of examples after the other."""
    params, begins = unravel(positions, net), offsets(net)
    linears = [net.get_submodule(name) for name in dense.layers]
    starts = [begins[f"{name}.weight"] - begin for name in dense.layers]
    weights = [params[f"{name}.weight"] for name in dense.layers]
    widest = max(dense.outputs, max(dense.widths[1:])) * sum(dense.widths[1:])
    examples = max(32, 4 * NUMBERS // (len(positions) * widest + (dense.widths[0] + 1) ** 2))
    for block in inputs.to(positions.dtype).flatten(1).split(examples):
        values, activations = block.mT[None], []
        for i, (name, weight) in enumerate(zip(dense.layers, weights, strict=True)):
            if i:
                values = torch.relu(values) if dense.activations[i - 1] is nn.ReLU else torch.tanh(values)
            activations.append(values)
            values = weight @ values
            if dense.biases[i]:
                values = values + params[f"{name}.bias"][..., None]
        slopes = root(dense.loss, values.mT).permute(0, 2, 3, 1)  # (R, s, k, n)
        layers = []
        for i in reversed(range(len(linears))):
            below = activations[i]
            one = [torch.ones_like(below[:, :1])] if dense.biases[i] else []
            layers.insert(
                0, _Layer(starts[i], linears[i], torch.cat([below, *one], dim=1), slopes.contiguous())
            )
            if starts[i] <= 0:
                break
            relu = dense.activations[i - 1] is nn.ReLU
            derivative = (below > 0).to(below.dtype) if relu else 1 - below.square()
            slopes = (weights[i].mT[:, None] @ slopes) * derivative[:, None]
        yield layers


def _pairs(a: int, b: int, same: bool, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """All pairs of range(a) and range(b), or those with left >= right, and the number of each pair, in either order."""
    left, right = (
        torch.tril_indices(a, a) if same else torch.cartesian_prod(torch.arange(a), torch.arange(b)).T
    )
    number = torch.empty(a, b, dtype=torch.int64)
    number[left, right] = torch.arange(len(left))
    if same:
        number[right, left] = number[left, right]
    return left.to(device), right.to(device), number.to(device)


def _add_block(found: Float[Tensor, "R d d"], row: _Layer, column: _Layer) -> None:
    """Add the block of two layers; of a layer with itself, what lies on or below the diagonal."""
    same, (k, l) = row is column, (row.linear.out_features, column.linear.out_features)  # noqa: E741
    left, right, number = _pairs(k, l, same, found.device)
    units = found.new_zeros(())  # (R, unit pairs, n)
    for a, b in zip(row.slopes.unbind(1), column.slopes.unbind(1), strict=True):
        units = a.index_select(1, left).mul_(b.index_select(1, right)).add_(units)
    a, b = row.activations, column.activations
    left, right, entry = _pairs(a.shape[1], b.shape[1], same, found.device)
    products = (a.index_select(1, left) * b.index_select(1, right)).mT  # (R or 1, n, entry pairs)
    block = units @ (products[0] if len(products) == 1 else products)

    for rows, above in row.places():
        for columns, beside in column.places():
            entries = entry[above, beside]
            for unit in range(k):
                partners = number[unit, : unit + 1] if same and rows == columns else number[unit]
                values = block.index_select(1, partners).index_select(2, entries.flatten())
                values = values.unflatten(2, entries.shape).transpose(1, 2).flatten(2)
                down = rows.start + unit * len(entries)
                found[:, down : down + len(entries), columns.start : columns.start + values.shape[2]] += (
                    values
                )


def _jacobians(
    net: nn.Module, positions: Tensor, inputs: Tensor, loss: str, begin: int
) -> Iterator[tuple[int, Float[Tensor, "rows d"]]]:
    """Run after run and block of examples after block: the rows of SᵀJ."""
    was_training = net.training
    net.eval()
    inputs = inputs.to(positions.dtype)

    def outputs(tail: Tensor, head: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        params = unravel(torch.cat([head, tail]), net)
        found = functional_call(net, params, (x[None],))[0]
        return found, found

    slopes_of = vmap(jacrev(outputs, has_aux=True), in_dims=(None, None, 0))
    width = functional_call(net, member(unravel(positions[:1], net), 0), (inputs[:1],)).shape[-1]
    examples = max(1, NUMBERS // (width * positions.shape[1]))
    try:
        for run, position in enumerate(positions):
            for block in inputs.split(examples):
                jacobian, values = slopes_of(position[begin:], position[:begin], block)  # (n, k, d), (n, k)
                yield run, (root(loss, values) @ jacobian).flatten(0, 1)
    finally:
        net.train(was_training)
