"""What an architecture's symmetries are, and what its networks make of them: counts, mass, order of units. No data is needed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from operator import itemgetter

import torch
from jaxtyping import Float64, Int64, Shaped
from torch import Tensor, nn

from lib.matching import match, match_activations_pairs, match_many, objective
from lib.matching.units import compared
from lib.params import Params, member
from lib.report.checkpoints import Models
from lib.report.finding import Finding
from lib.report.intervals import Interval, over_networks, over_pairs
from lib.report.outputs import one_by_one
from lib.symmetry import Symmetries, UnsupportedNetwork, identity, inverse, min_mass, permute
from lib.symmetry import mass as mass_of
from lib.table import Table
from lib.unit_norm.diagnosis import Diagnosis, diagnose

BOUNDED = (
    "homogeneous",
    "affine",
)  # kinds of scales along which a mass has a minimum; before a norm it falls for ever

WEIGHTS, ACTIVATIONS = "weights", "activations"


@dataclass(frozen=True, eq=False, repr=False)
class Structure(Finding):
    """The symmetries of one architecture; ``diagnosis`` is None where they could not be found, for the reason in ``why_not``."""

    network: str
    diagnosis: Diagnosis | None = field(default=None, repr=False)
    why_not: str = ""

    @property
    def symmetries(self) -> Symmetries | None:
        return None if self.diagnosis is None else self.diagnosis.symmetries

    @property
    def units(self) -> int:
        """How many units can be permuted."""
        return sum(group.size for group in self.symmetries.permutations) if self.symmetries else 0

    def table(self) -> Table:
        """Kinds of symmetries, how many, and whether they are exact."""
        if self.diagnosis is None:
            return Table(("symmetry", "number", "exact"), [], "Symmetries")
        groups = len(self.diagnosis.symmetries.permutations)
        rows = [
            (
                f"permutations of {self.units:,} units in {groups} groups",
                f"10^{self.diagnosis.log10_permutations:,.1f}",
                "yes",
            )
        ]
        for kind, number in self.diagnosis.scales.items():
            exact = all(f.exact for f in self.diagnosis.symmetries.scales if f.kind == kind)
            rows.append(
                (f"{kind} scales", f"{number:,}", "yes" if exact else "as the norm's epsilon goes to 0")
            )
        free = len(self.diagnosis.unit_norm.tensors)
        rows.append(("weights whose filters may have unit norm", f"{free}", ""))
        return Table(("symmetry", "number", "exact"), rows, f"Symmetries of {self.network}")


def structure(net: nn.Module, example: Shaped[Tensor, "k ..."]) -> Structure:
    """The symmetries of ``net``, tried numerically; where they cannot be found, the reason in the finder's own words."""
    try:
        return Structure(type(net).__name__, diagnose(net, example))
    except (UnsupportedNetwork, RuntimeError, ValueError) as why:
        return Structure(type(net).__name__, None, str(why))


@dataclass(frozen=True, eq=False, repr=False)
class Mass(Finding):
    """Sum of squared weights of n networks, and the least along the scales that leave them the same; (n,) each, float64.

    ``kinds`` of scales that were used: all that have a minimum. Empty: there is nothing to rescale. ``balanced``: the same functions
    at the least mass, which is where networks are compared that only differ in scales.
    """

    names: tuple[str, ...]
    mass: Float64[Tensor, " n"]
    minimum: Float64[Tensor, " n"]
    kinds: tuple[str, ...]
    left_out: tuple[str, ...]
    balanced: Models = field(repr=False)

    @property
    def excess(self) -> Float64[Tensor, " n"]:
        """100 (mass / minimum - 1), in percent."""
        return 100 * (self.mass / self.minimum - 1)

    @property
    def mean_excess(self) -> Interval:
        """Over networks."""
        return over_networks(self.excess)

    def table(self) -> Table:
        """A row a network."""
        rows = [
            (name, f"{float(m):,.4g}", f"{float(least):,.4g}", f"{float(e):.3g} %")
            for name, m, least, e in zip(self.names, self.mass, self.minimum, self.excess, strict=True)
        ]
        return Table(("network", "mass", "least mass of its orbit", "excess"), rows, "Mass of each network")


def mass(models: Models, symmetries: Symmetries) -> Mass:
    """Each network's mass against its minimum over rescalings that leave its function unchanged, one network at a time."""
    found = {scale.kind for scale in symmetries.scales}
    kinds = tuple(kind for kind in BOUNDED if kind in found)
    left = tuple(sorted(found - set(kinds)))
    now = torch.stack([mass_of(each, symmetries) for each in one_by_one(models.params)]).cpu()
    if not kinds:
        return Mass(models.names, now, now, kinds, left, models)
    least, params = [], {name: torch.empty_like(tensor) for name, tensor in models.params.items()}
    for i, each in enumerate(one_by_one(models.params)):
        even = min_mass(each, symmetries, freedoms=kinds, tolerance=1e-9)
        least.append(even.mass)
        for name, tensor in even.params.items():
            params[name][i] = tensor
    balanced = replace(models, params=params, balanced=True)
    return Mass(models.names, now, torch.stack(least).cpu(), kinds, left, balanced)


@dataclass(frozen=True, eq=False, repr=False)
class Alignment(Finding):
    """n networks (``models``, as they were aligned) and orders of their units. Of pair k, ``perms[g][k]`` brings the second network's group g into the first's order.

    pairs           (K, 2)
    together        all networks in one order, (n, size) a group; to be averaged
    method          how ``together`` was found: "jointly", or "each to <name>"
    by              what pairs were matched by: "weights", or "activations"
    before, after   (K,) distance of the two networks over the mean of their norms, as they are and in the first one's order
    """

    models: Models = field(repr=False)
    pairs: Int64[Tensor, "K 2"]
    perms: tuple[Int64[Tensor, "K _"], ...] = field(repr=False)
    together: tuple[Int64[Tensor, "n _"], ...] = field(repr=False)
    method: str
    by: str
    before: Float64[Tensor, " K"]
    after: Float64[Tensor, " K"]

    @property
    def names(self) -> tuple[str, ...]:
        return self.models.names

    @property
    def mean_before(self) -> Interval:
        return over_pairs(self.before, self.pairs, len(self.names))

    @property
    def mean_after(self) -> Interval:
        return over_pairs(self.after, self.pairs, len(self.names))

    def pair(self, symmetries: Symmetries, k: int) -> tuple[Params, Params]:
        """The networks of pair k, the second in the order of the first."""
        first, second = (member(self.models.params, i) for i in self.pairs[k].tolist())
        return first, permute(second, symmetries, [perm[k] for perm in self.perms])

    def aligned(self, symmetries: Symmetries, i: int) -> Params:
        """Network i in the order that all share."""
        return permute(member(self.models.params, i), symmetries, [perm[i] for perm in self.together])

    def table(self) -> Table:
        """A row a pair."""
        rows = [
            (f"{self.names[i]} – {self.names[j]}", f"{b:.4f}", f"{a:.4f}")
            for (i, j), b, a in zip(
                self.pairs.tolist(), self.before.tolist(), self.after.tolist(), strict=True
            )
        ]
        return Table(
            ("pair", "in their own orders", "matched"), rows, "Distances, over the mean norm of the two"
        )


def align(
    models: Models,
    symmetries: Symmetries,
    pairs: Int64[Tensor, "K 2"] | None = None,
    *,
    joint: bool = True,
    inputs: Shaped[Tensor, "N ..."] | None = None,
) -> Alignment:
    """Matching of ``pairs`` (all by default), and one order for all: joint, or that of the first network.

    ``models`` as they stand: networks of other scales are compared at their least mass (``Mass.balanced``).
    By weights, a pair at a time; with ``inputs`` by what the units put out for them (the order for all is then the first one's).
    Raises ValueError for fewer than two networks, pairs that leave a network without the first, and units whose activations no
    module shows.
    """
    n = len(models)
    if n < 2:
        raise ValueError("alignment needs two networks at least: there is one.")
    pairs = torch.combinations(torch.arange(n)) if pairs is None else pairs
    if inputs is None:
        each = [match(*(member(models.params, i) for i in pair), symmetries).perms for pair in pairs.tolist()]
        perms = tuple(torch.stack(group).cpu() for group in zip(*each, strict=True))
    else:
        x = inputs.to(next(iter(models.params.values())).device)
        found = match_activations_pairs(models.net, models.params, pairs, symmetries, x)
        perms = tuple(perm.cpu() for perm in found.perms)
    if joint and inputs is None:
        every = len(pairs) == n * (n - 1) // 2
        start = max(_stars(models, symmetries, pairs, perms), key=itemgetter(0))[1] if every else None
        found = match_many(models.params, symmetries, start=start)
        together, method = tuple(perm.cpu() for perm in found.perms), "jointly"
    else:
        together, method = _star(models, symmetries, pairs, perms), f"each to {models.names[0]}"
    before, after = _distances(models, symmetries, pairs, perms)
    by = WEIGHTS if inputs is None else ACTIVATIONS
    return Alignment(models, pairs, perms, together, method, by, before, after)


def _stars(
    models: Models, symmetries: Symmetries, pairs: Tensor, perms: tuple[Tensor, ...]
) -> Iterator[tuple[float, tuple[Tensor, ...]]]:
    """For each network as the reference: the joint objective, and the orders that bring all to it; ``pairs`` are all pairs.

    ``match_many`` would match all pairs once more to find them.
    """
    n, device = len(models), next(iter(models.params.values())).device
    place = {pair: k for k, pair in enumerate(map(tuple, pairs.tolist()))}
    back = inverse(symmetries, perms)
    still = identity(symmetries)
    for r in range(n):
        rows = [
            still if j == r else [p[place[r, j]] for p in perms] if r < j else [p[place[j, r]] for p in back]
            for j in range(n)
        ]
        star = tuple(torch.stack(group).to(device) for group in zip(*rows, strict=True))
        yield objective(permute(models.params, symmetries, star), symmetries), star


def _star(
    models: Models, symmetries: Symmetries, pairs: Tensor, perms: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Each network in the order of the first, by the pairs that have it."""
    place = {j: k for k, (i, j) in enumerate(pairs.tolist()) if i == 0}
    absent = [models.names[j] for j in range(1, len(models)) if j not in place]
    if absent:
        raise ValueError(
            f"no pair joins {absent[0]} with {models.names[0]}, the first: align jointly, or add the pair."
        )
    found = []
    for group, perm in zip(symmetries.permutations, perms, strict=True):
        own = [torch.arange(group.size)] + [perm[place[j]] for j in range(1, len(models))]
        found.append(torch.stack(own))
    return tuple(found)


def _distances(
    models: Models, symmetries: Symmetries, pairs: Tensor, perms: tuple[Tensor, ...]
) -> tuple[Float64[Tensor, " K"], Float64[Tensor, " K"]]:
    """Over the mean of the two norms, before and after."""
    norms = [_norm(each, symmetries) for each in one_by_one(models.params)]
    before, after = [], []
    for k, (i, j) in enumerate(pairs.tolist()):
        first, second = member(models.params, i), member(models.params, j)
        scale = max((norms[i] + norms[j]) / 2, 1e-300)
        moved = permute(second, symmetries, [perm[k] for perm in perms])
        before.append(_distance(first, second, symmetries) / scale)
        after.append(_distance(first, moved, symmetries) / scale)
    return torch.tensor(before, dtype=torch.float64), torch.tensor(after, dtype=torch.float64)


def _distance(first: Mapping[str, Tensor], second: Mapping[str, Tensor], symmetries: Symmetries) -> float:
    return math.sqrt(
        sum(float((first[name] - second[name]).double().square().sum()) for name in compared(symmetries))
    )


def _norm(params: Mapping[str, Tensor], symmetries: Symmetries) -> float:
    return math.sqrt(sum(float(params[name].double().square().sum()) for name in compared(symmetries)))
