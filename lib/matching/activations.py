"""Activation matching: units are alike that fire alike, whatever their weights.

For each permutation group by itself, the assignment that maximises the sum of similarities between the units of two networks
over examples (and positions, in a convolution). REPAIR and ZipIt take Pearson's correlation, Git Re-Basin's scripts the product
without centring: ``kernel``. Units are read

- ``before`` the nonlinearity: the output of the last layer that writes them in the order of computation, its norm if it has one;
- ``after`` it: the output of the activation module that follows that layer, or, where that is no module but a function, what the
  last layer that reads them gets as its input.

On a residual stream that ends its blocks with a module for the nonlinearity, "after" is the whole stream of the last block, and
"before" the last branch that was added to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvTransposeNd

from lib.device import one_thread
from lib.matching.assignment import solver
from lib.matching.units import BUFFERS, compared, refuse_broken
from lib.params import Params, member, population_size
from lib.population import stacked
from lib.symmetry import PermutationGroup, Symmetries, members_of, permute

NONLINEAR = (nn.ReLU, nn.Tanh, nn.SiLU, nn.GELU, nn.Sigmoid, nn.LeakyReLU, nn.ELU, nn.Softplus)
LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm)  # their channels lie on the last axis, others' after the batch
BATCH = 256  # examples at a time: the activations of all networks are held at once


@dataclass(frozen=True, eq=False)
class MatchedPairs:
    """Permutations, one (*K, size) int64 tensor a group, and the sum of the matched units' similarities, (groups, *K) float64."""

    perms: tuple[Int64[Tensor, "*K _"], ...]
    objective: Tensor


@dataclass(frozen=True, eq=False)
class MatchedActivations(MatchedPairs):
    """The same, with the matched networks: params = permute(second, symmetries, perms), the same functions."""

    params: Params


def match_activations(
    net: nn.Module,
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    symmetries: Symmetries,
    inputs: Shaped[Tensor, "N ..."],
    **options: str | int,
) -> MatchedActivations:
    """Each of ``second`` (P, ...), or the single network that it is, in the order of ``first``: one network, or one for each.

    Options, and what is raised, as in ``match_activations_pairs``.
    """
    members, references = members_of(second, symmetries), members_of(first, symmetries)
    if references is not None and references != members:
        raise ValueError(
            f"{references} references for {'a single network' if members is None else f'{members} networks'}: give one "
            "reference (say member(params, 0)), or one for each network."
        )
    ours = first if references is not None else {name: tensor[None] for name, tensor in first.items()}
    theirs = second if members is not None else {name: tensor[None] for name, tensor in second.items()}
    both = {name: torch.cat([ours[name], theirs[name]]) for name in symmetries.shapes}
    rows = torch.arange(members or 1)
    pairs = torch.stack([rows if references else torch.zeros_like(rows), (references or 1) + rows], 1)
    found = match_activations_pairs(net, both, pairs, symmetries, inputs, **options)
    perms, objective = found.perms, found.objective
    if members is None:
        perms, objective = tuple(perm[0] for perm in perms), objective[:, 0]
    return MatchedActivations(perms, objective, permute(second, symmetries, perms))


def match_activations_pairs(
    net: nn.Module,
    params: Mapping[str, Tensor],
    pairs: Int64[Tensor, "K 2"],
    symmetries: Symmetries,
    inputs: Shaped[Tensor, "N ..."],
    *,
    where: str = "after",
    kernel: str = "correlation",
    assignment: str = "scipy",
    batch: int = BATCH,
) -> MatchedPairs:
    """perms[k] brings network pairs[k, 1] of a population into the order of network pairs[k, 0].

    Each network is run once, in evaluation mode, ``batch`` examples at a time; sums are float64. A dead unit has similarity 0
    with every unit.

    Raises ValueError for options that are not known, weights or activations that are not finite, units inside exchangeable
    blocks, units that no module of the network shows, and a norm by the batch whose examples come in several batches.
    """
    if where not in ("after", "before") or kernel not in ("correlation", "product"):
        raise ValueError(
            f"where={where!r}, kernel={kernel!r}: choose 'after' or 'before', 'correlation' or 'product'."
        )
    if members_of(params, symmetries) is None:
        raise ValueError("pairs are those of a population: give params (P, ...), not a single network.")
    by_batch = next((name for name, layer in net.named_modules() if stacked.by_batch(layer)), None)
    if by_batch is not None and batch < len(inputs):
        raise ValueError(
            f"layer {by_batch!r} normalises by the batch, which must not be split: give batch={len(inputs)}."
        )
    refuse_broken(params, compared(symmetries))
    chosen, pairs = solver(assignment), pairs.cpu()
    sums = [_Sums(pairs) for _ in symmetries.permutations]
    for x in inputs.split(batch):
        for each, units in zip(sums, activations(net, params, symmetries, x, where), strict=True):
            each.add(units)
    with one_thread():
        worths = [each.correlation() if kernel == "correlation" else each.product() for each in sums]
        for group, worth in zip(symmetries.permutations, worths, strict=True):
            if not worth.isfinite().all():
                raise ValueError(
                    f"activations of {group.layer!r} are not finite: leave diverged networks out before matching."
                )
        perms = tuple(chosen(worth) for worth in worths)
    objective = [
        worth.gather(2, perm[..., None]).sum((1, 2)) for worth, perm in zip(worths, perms, strict=True)
    ]
    return MatchedPairs(perms, torch.stack(objective))


def correlations(
    first: Float[Tensor, "P n size"], second: Float[Tensor, "P n size"]
) -> Float64[Tensor, "P size size"]:
    """Pearson's correlation of each unit of ``first`` with each of ``second`` over n examples; 0 for units that are dead."""
    rows = torch.arange(len(first))
    sums = _Sums(torch.stack([rows, len(first) + rows], 1))
    sums.add(torch.cat([first, second]))
    return sums.correlation()


class _Sums:
    """Of pairs of networks the products of their units, and of each network its own sums, over all examples so far."""

    def __init__(self, pairs: Int64[Tensor, "K 2"]) -> None:
        self.first, self.second = pairs.unbind(1)
        self.count: int = 0
        self.one = self.square = self.both = torch.zeros((), dtype=torch.float64)

    def add(self, units: Float[Tensor, "P n size"]) -> None:
        units = units.double()
        products = [
            units[a].mT @ units[b] for a, b in zip(self.first.tolist(), self.second.tolist(), strict=True)
        ]
        self.count += units.shape[1]
        self.one, self.square = self.one + units.sum(1), self.square + units.square().sum(1)
        self.both = self.both + torch.stack(products)

    def product(self) -> Float64[Tensor, "K size size"]:
        return self.both / self.count

    def correlation(self) -> Float64[Tensor, "K size size"]:
        mean, square = self.one / self.count, self.square / self.count
        variance, tiny = square - mean.square(), torch.finfo(torch.float64).tiny
        dead = variance <= 1e-12 * square  # rounding: the unit says the same of all examples
        scale = variance.clamp(min=tiny).rsqrt().masked_fill(dead, 0.0)
        covariance = self.product() - mean[self.first][:, :, None] * mean[self.second][:, None]
        return covariance * scale[self.first][:, :, None] * scale[self.second][:, None]


def activations(
    net: nn.Module,
    params: Mapping[str, Tensor],
    symmetries: Symmetries,
    inputs: Shaped[Tensor, "B ..."],
    where: str = "after",
) -> list[Shaped[Tensor, "P _ size"]]:
    """For each group the activations of all networks of a population, (P, examples · positions, size).

    Sequential networks of known layers run all members at once, others member by member. Raises ValueError, naming the layer,
    where the units cannot be read.
    """
    floating = next(t for t in params.values() if t.is_floating_point())
    x = inputs.to(floating.device, floating.dtype)
    with torch.no_grad():
        if stacked.supports(net):
            return _stacked(net, params, symmetries, x, where)
        members = range(population_size(params))
        each = [_hooked(net, member(params, i), symmetries, x, where) for i in members]
    return [torch.cat(group) for group in zip(*each, strict=True)]


def _stacked(
    net: nn.Module, params: Mapping[str, Tensor], symmetries: Symmetries, x: Tensor, where: str
) -> list[Tensor]:
    watch, x = _Watch(net, symmetries, where), x[None]
    for name, layer in stacked.layers(net):
        before, x = x, stacked.apply(layer, stacked.own_of(params, name), x)
        watch.see(name, layer, before, x)
    return watch.found()


def _hooked(net: nn.Module, own: Params, symmetries: Symmetries, x: Tensor, where: str) -> list[Tensor]:
    watch, training = _Watch(net, symmetries, where), net.training

    def seen(name: str):
        return lambda layer, args, named, y: watch.see(
            name, layer, [*args, *named.values()][0][None], y[None]
        )

    hooks = [
        layer.register_forward_hook(seen(name), with_kwargs=True)
        for name, layer in net.named_modules()
        if isinstance(layer, NONLINEAR) or _weighs(layer)
    ]
    net.eval()
    try:
        functional_call(net, own, (x,))
    finally:
        net.train(training)
        for hook in hooks:
            hook.remove()
    return watch.found()


class _Watch:
    """Sees the calls of a network's modules in order, and keeps each group's units as they were last seen."""

    def __init__(self, net: nn.Module, symmetries: Symmetries, where: str) -> None:
        self.groups, self.after = symmetries.permutations, where == "after"
        self.seats = [_seats(net, group) for group in self.groups]
        self.units: list[Tensor | None] = [None] * len(self.groups)
        self.open: list[tuple[Tensor, nn.Module, torch.Size] | None] = [None] * len(self.groups)
        self.fired = [False] * len(self.groups)

    def see(self, name: str, layer: nn.Module, x: Tensor, y: Tensor) -> None:
        """One call of a module: inputs (Q, B, ...), outputs (P, B, ...)."""
        activates, weighs = isinstance(layer, NONLINEAR), _weighs(layer)
        for g, (writers, readers) in enumerate(self.seats):
            if name in writers:
                self.open[g], self.fired[g] = (writers[name], layer, y.shape), False
                self.units[g] = None if self.after else self.read(g, name, layer, y, writers[name])
            elif self.after and activates and self.open[g] is not None and y.shape == self.open[g][2]:
                self.units[g] = self.read(g, name, self.open[g][1], y, self.open[g][0])
                self.open[g], self.fired[g] = None, True
            elif self.after and weighs:
                self.open[g] = None  # an activation module from here on belongs to another layer
                if name in readers and not self.fired[g]:
                    self.units[g] = self.read(g, name, layer, x, readers[name])

    def read(self, g: int, name: str, layer: nn.Module, tensor: Tensor, index: Tensor) -> Tensor:
        """(P, examples · positions, size) from activations with the channels where ``layer`` has them."""
        axis = -1 if isinstance(layer, nn.Linear) or type(layer) in LAST else 2
        channels = tensor.movedim(axis, -1)
        if index.max() >= channels.shape[-1]:
            raise ValueError(
                f"the activations of {name!r} have {channels.shape[-1]} channels, too few for the units of "
                f"{self.groups[g].layer!r}: match by weights."
            )
        units = channels[..., index.flatten().to(tensor.device)].unflatten(-1, tuple(index.shape))
        return units.mT.flatten(1, -2)

    def found(self) -> list[Tensor]:
        for group, units in zip(self.groups, self.units, strict=True):
            if units is None:
                raise _hidden(group)
        return self.units


def _seats(net: nn.Module, group: PermutationGroup) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The modules that write a group's units, and those that read them, each with the units' channels (size, k)."""
    if group.inside is not None:
        raise ValueError(
            f"the units of {group.layer!r} live inside exchangeable blocks, which activation matching does not order: "
            "match by weights."
        )
    writers, readers, held = {}, {}, {}
    for place in group.places:
        name, _, kind = place.name.rpartition(".")
        turned = isinstance(net.get_submodule(name), _ConvTransposeNd) and kind == "weight"  # (in, out, ...)
        writes = place.axis == int(turned)
        if kind not in BUFFERS:
            (writers if writes else readers)[name] = place.index
            held.setdefault(name, set()).add((kind, writes))
    for roles in held.values():
        if any(writes and not reads and kind != other for kind, writes in roles for other, reads in roles):
            raise _hidden(group)
    return writers, readers


def _hidden(group: PermutationGroup) -> ValueError:
    return ValueError(
        f"no module of the network shows the units of {group.layer!r} as what it gets or gives, so their activations cannot be "
        "read: give each layer a module of its own, or match by weights."
    )


def _weighs(layer: nn.Module) -> bool:
    return any(True for _ in layer.parameters(recurse=False))  # its own
