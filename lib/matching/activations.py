"""Activation matching: units are alike that fire alike, whatever their weights.

For each permutation group by itself, the assignment that maximises the sum of correlations between the units of two networks
over examples (and positions, in a convolution). REPAIR and ZipIt take Pearson's correlation, Git Re-Basin's scripts the product
without centring: ``kernel``. Activations are read ``after`` the nonlinearity that follows a layer (and its norm), or ``before``
it. Where several layers write the same units (a residual stream), the last of them in the order of computation is read, and what
follows it: there the whole stream is seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64, Shaped
from torch import Tensor, nn
from torch.func import functional_call

from lib.device import one_thread
from lib.matching.assignment import solver
from lib.matching.units import compared, refuse_broken
from lib.params import Params, member, population_size
from lib.population import stacked
from lib.symmetry import Symmetries, members_of, permute

NONLINEAR = (nn.ReLU, nn.Tanh, nn.SiLU, nn.GELU, nn.Sigmoid, nn.LeakyReLU, nn.ELU, nn.Softplus)
BATCH = 1024


@dataclass(frozen=True, eq=False)
class MatchedActivations:
    """Permutations, one (K, size) int64 tensor a group, and the sum of the matched units' similarities, (groups, K) float64."""

    perms: tuple[Int64[Tensor, "K _"], ...]
    objective: Float64[Tensor, "groups K"]


def match_activations(
    net: nn.Module,
    reference: Mapping[str, Tensor],
    others: Mapping[str, Tensor],
    symmetries: Symmetries,
    inputs: Shaped[Tensor, "N ..."],
    **options,
) -> tuple[Params, MatchedActivations]:
    """``others`` (P, ...) in the order of a ``reference`` network, with the permutations; options as below."""
    members = members_of(others, symmetries)
    if members is None or members_of(reference, symmetries) is not None:
        raise ValueError("match a population to one network: others (P, ...), reference a single network.")
    both = {name: torch.cat([reference[name][None], others[name]]) for name in others}
    pairs = torch.stack([torch.zeros(members, dtype=torch.int64), torch.arange(1, members + 1)], 1)
    found = match_activations_pairs(net, both, pairs, symmetries, inputs, **options)
    return permute(others, symmetries, found.perms), found


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
) -> MatchedActivations:
    """perms[k] brings network pairs[k, 1] of a population into the order of network pairs[k, 0].

    Each network is run once, in evaluation mode, batch by batch; sums are float64. A dead unit has similarity 0 with every unit.
    Raises ValueError for options that are not known, weights that are not finite, and units inside exchangeable blocks.
    """
    if where not in ("after", "before") or kernel not in ("correlation", "product"):
        raise ValueError(
            f"where={where!r}, kernel={kernel!r}: choose 'after' or 'before', 'correlation' or 'product'."
        )
    for group in symmetries.permutations:
        if group.inside is not None:
            raise ValueError(
                f"the units of {group.layer!r} live inside exchangeable blocks, which activation matching does not order: "
                "match by weights."
            )
    refuse_broken(params, compared(symmetries))
    chosen, pairs = solver(assignment), pairs.cpu()
    sums = _Sums(pairs, len(symmetries.permutations), kernel == "correlation")
    for start in range(0, len(inputs), batch):
        sums.add(activations(net, params, symmetries, inputs[start : start + batch], where))
    with one_thread():
        similarities = [sums.similarity(g) for g in range(len(symmetries.permutations))]
        perms = tuple(chosen(similarity) for similarity in similarities)
    objective = [s.gather(2, p[..., None]).sum((1, 2)) for s, p in zip(similarities, perms, strict=True)]
    return MatchedActivations(perms, torch.stack(objective))


def activations(
    net: nn.Module,
    params: Mapping[str, Tensor],
    symmetries: Symmetries,
    inputs: Shaped[Tensor, "B ..."],
    where: str = "after",
) -> list[Shaped[Tensor, "P _ size"]]:
    """For each group the activations of all networks of a population, (P, examples · positions, size)."""
    floating = next(t for t in params.values() if t.is_floating_point())
    inputs = inputs.to(floating.device, floating.dtype)
    seen = _stacked(net, params, inputs) if stacked.supports(net) else _hooked(net, params, inputs)
    return [_of_group(seen, group, where) for group in symmetries.permutations]


Seen = list[
    tuple[str, nn.Module, Tensor]
]  # each module's name and output (P, B, ...), in the order of computation


def _stacked(net: nn.Module, params: Mapping[str, Tensor], x: Tensor) -> Seen:
    seen, x = [], x[None]
    with torch.no_grad():
        for name, layer in stacked.layers(net):
            x = stacked.apply(layer, stacked.own_of(params, name), x)
            seen.append((name, layer, x))
    return seen


def _hooked(net: nn.Module, params: Mapping[str, Tensor], x: Tensor) -> Seen:
    """Member by member; a module that is called several times is seen at each call."""
    per_member = [list(_calls(net, member(dict(params), i), x)) for i in range(population_size(dict(params)))]
    return [
        (calls[0][0], calls[0][1], torch.stack([y for _, _, y in calls]))
        for calls in zip(*per_member, strict=True)
    ]


def _calls(net: nn.Module, own: Params, x: Tensor) -> Iterator[tuple[str, nn.Module, Tensor]]:
    seen: Seen = []
    names = {layer: name for name, layer in net.named_modules() if not list(layer.children())}
    hooks = [
        layer.register_forward_hook(lambda layer, _, y: seen.append((names[layer], layer, y.clone())))
        for layer in names
    ]
    training = net.training
    net.eval()
    try:
        with torch.no_grad():
            functional_call(net, own, (x,))
    finally:
        net.train(training)
        for hook in hooks:
            hook.remove()
    yield from seen


def _of_group(seen: Seen, group, where: str) -> Tensor:
    """What the last module that writes the group's units puts out, or the nonlinearity behind it."""
    writers = {place.name.rpartition(".")[0] for place in group.places if place.axis == 0}
    last = max((i for i, (name, _, _) in enumerate(seen) if name in writers), default=None)
    if last is None:
        raise ValueError(
            f"the units of {group.layer!r} are written by no module of their own, so their activations cannot be read: match "
            "by weights."
        )
    if where == "after":
        follows = (i for i in range(last + 1, len(seen)) if not list(seen[i][1].parameters(recurse=False)))
        last = next((i for i in follows if isinstance(seen[i][1], NONLINEAR)), last)
    units = seen[last][2]
    if units.shape[2] != group.size:
        raise ValueError(
            f"the activations of {seen[last][0]!r} have {units.shape[2]} channels and the group of {group.layer!r} {group.size} "
            "units: match by weights."
        )
    return units.movedim(2, -1).flatten(1, -2)


class _Sums:
    """Products of the units of pairs of networks, and each network's own sums, over all examples so far."""

    def __init__(self, pairs: Tensor, groups: int, centred: bool) -> None:
        self.pairs, self.centred, self.count = pairs, centred, [0] * groups
        self.both: list = [0.0] * groups
        self.one: list = [0.0] * groups
        self.square: list = [0.0] * groups

    def add(self, found: list[Tensor]) -> None:
        first, second = self.pairs.unbind(1)
        for g, units in enumerate(found):
            units = units.double()
            self.count[g] += units.shape[1]
            self.one[g] = self.one[g] + units.sum(1)
            self.square[g] = self.square[g] + units.square().sum(1)
            products = [units[a].mT @ units[b] for a, b in zip(first.tolist(), second.tolist(), strict=True)]
            self.both[g] = self.both[g] + torch.stack(products)

    def similarity(self, g: int) -> Float64[Tensor, "K size size"]:
        first, second = self.pairs.unbind(1)
        both, mean = self.both[g] / self.count[g], self.one[g] / self.count[g]
        if not self.centred:
            return both
        variance = self.square[g] / self.count[g] - mean.square()
        alive = variance > 1e-12 * (self.square[g] / self.count[g]).clamp(min=torch.finfo(torch.float64).tiny)
        scale = torch.where(alive, variance.clamp(min=torch.finfo(torch.float64).tiny).rsqrt(), 0.0)
        covariance = both - mean[first][:, :, None] * mean[second][:, None]
        return covariance * scale[first][:, :, None] * scale[second][:, None]
