"""Which reparametrisations does my network have, and what can be done about them? A report on a user's own module."""

from __future__ import annotations

import math
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from html import escape

import torch
from torch import Tensor, nn

from lib.symmetry import Symmetries, VerificationError, count_permutations, find_symmetries
from lib.symmetry.act import precise
from lib.symmetry.verify import Trial
from lib.table import Table
from lib.unit_norm.constrain import (
    WHY,
    Constraints,
    constraints,
    listing,
    unit_log_scales,
    void_biases,
    with_unit_filters,
)

WIDTH = 88  # of the printed report
NOT_SOUGHT = "Not looked for: sign flips (odd activations), rotations (linear chains), shifts before a norm."
COLUMNS = ("layer", "kind", "units", "permutations", "scales", "unit norm")


@dataclass(frozen=True)
class LayerSymmetry:
    """What is known of one layer.

    groups      sizes of the permutation groups of its units: the product of their factorials counts them
    moves_with  the layer whose units its own are, where it has no group itself
    scales      (kind, number of factors, exact); not exact: only as the norm's epsilon goes to zero
    unit_norm   "yes", "if asked" (homogeneous=True), a key of ``constrain.WHY``, or "" where it has no filters
    """

    layer: str
    kind: str
    units: int
    groups: tuple[int, ...]
    moves_with: str
    scales: tuple[tuple[str, int, bool], ...]
    unit_norm: str

    @property
    def permutations(self) -> int:
        """Their exact number, of any length."""
        return math.prod(map(math.factorial, self.groups))

    @property
    def log10_permutations(self) -> float:
        return math.log10(self.permutations)

    def cells(self) -> tuple[str, ...]:
        """The row of the report's table."""
        moves = f"with {self.moves_with}" if self.moves_with else ""
        scales = ", ".join(f"{n} {kind}{'' if exact else '*'}" for kind, n, exact in self.scales)
        units = str(self.units) if self.units else ""
        norm = {"no freedom": "no"}.get(self.unit_norm, self.unit_norm)
        return self.layer, self.kind, units, _count(self.permutations) if self.groups else moves, scales, norm


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """The symmetries of one architecture, layer by layer, what was tried, and what can be done.

    ``unit_norm``: the weights whose filters can be held at unit length, with or without a norm after them.
    ``unit_norm_error``: the relative change of the output when they are brought there and the rest compensates (or how far
    a length is from 1), in float64, on random weights, every epsilon at 1e-100; ``unit_norm_epsilon_effect``: that change on
    the network's own weights, with its own epsilons. Random permutations and scales: ``symmetries.verification``.
    """

    network: str
    layers: tuple[LayerSymmetry, ...]
    symmetries: Symmetries = field(repr=False)
    unit_norm: Constraints
    unit_norm_error: float
    unit_norm_epsilon_effect: float
    remedies: tuple[str, ...]
    remains: tuple[str, ...]

    @property
    def permutations(self) -> int:
        """Exact number of unit permutations, of any length."""
        return count_permutations(self.symmetries)

    @property
    def log10_permutations(self) -> float:
        return math.log10(self.permutations)

    @property
    def scales(self) -> dict[str, int]:
        """Number of positive factors by kind."""
        kinds: dict[str, int] = defaultdict(int)
        for freedom in self.symmetries.scales:
            kinds[freedom.kind] += freedom.size
        return dict(kinds)

    def summary(self) -> list[str]:
        """Totals, and what the trials gave: one sentence each."""
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in self.scales.items())
        lines = [
            f"{self.network}: {_count(self.permutations)} permutations of units, "
            f"{sum(self.scales.values()):,} positive scales{kinds and f' ({kinds})'}."
        ]
        if not all(freedom.exact for freedom in self.symmetries.scales):
            lines.append("* unchanged only as the norm's epsilon goes to 0.")
        tried = self.symmetries.verification
        lines.append(
            f"Tried in float64, epsilons at 0: a random permutation changes the output by {tried.permutation_error:.0e} of "
            f"its size, with a random rescaling by {tried.scale_error:.0e}"
            + (
                f"; the network's own epsilons make that {tried.epsilon_effect:.0e}."
                if tried.epsilon_effect
                else "."
            )
        )
        if self.unit_norm.tensors:
            lines.append(
                f"Filters brought to unit length, the rest compensating: {self.unit_norm_error:.0e}, with the network's own "
                f"weights and epsilons {self.unit_norm_epsilon_effect:.0e}."
            )
        return lines

    def __str__(self) -> str:
        rows = _fitted([COLUMNS, *(layer.cells() for layer in self.layers)])
        fill = partial(textwrap.fill, width=WIDTH)
        parts = [*map(fill, self.summary()), "", *rows]
        for title, sentences in self._sections():
            parts += ["", title, *(fill(s, initial_indent="- ", subsequent_indent="  ") for s in sentences)]
        return "\n".join(parts)

    def _repr_html_(self) -> str:
        table = Table(COLUMNS, [layer.cells() for layer in self.layers], f"Symmetries of {self.network}")
        parts = [*(f"<p>{escape(line)}</p>" for line in self.summary()), table.html()]
        for title, sentences in self._sections():
            items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
            parts.append(f"<p><strong>{title}</strong></p><ul>{items}</ul>")
        return "".join(parts)

    def _sections(self) -> list[tuple[str, tuple[str, ...]]]:
        sections = [("Remedies", self.remedies), ("What remains", self.remains)]
        return [(title, sentences) for title, sentences in sections if sentences]


def diagnose(net: nn.Module, example: Tensor | tuple[Tensor, ...]) -> Diagnosis:
    """The reparametrisations that leave ``net`` as a function unchanged, tried numerically, and the remedies that apply.

    ``example``: as in ``find_symmetries``. The network is not changed. Printing the result gives a report of 88 columns.
    Raises UnsupportedNetwork, naming layer and reason, for what cannot be treated, and VerificationError if unit filters
    change the function (an internal error). Sources: Badrinarayanan et al. 2015 (filters), van Laarhoven 2017 (weight
    decay under norms), Laurent et al. 2024 (canonical forms).
    """
    symmetries = find_symmetries(net, example)
    frozen = [name for name, parameter in net.named_parameters() if not parameter.requires_grad]
    free = constraints(symmetries, frozen=frozen)
    every = constraints(symmetries, homogeneous=True, frozen=frozen)
    error, effect = _try_unit_filters(net, example, symmetries, every.tensors)
    return Diagnosis(
        network=type(net).__name__,
        layers=_layers(net, symmetries, free, every),
        symmetries=symmetries,
        unit_norm=every,
        unit_norm_error=error,
        unit_norm_epsilon_effect=effect,
        remedies=tuple(_remedies(symmetries, free, every, void_biases(net, example, symmetries))),
        remains=tuple(_remains(symmetries, every)),
    )


def _try_unit_filters(
    net: nn.Module, example: Tensor | tuple[Tensor, ...], symmetries: Symmetries, tensors: tuple[str, ...]
) -> tuple[float, float]:
    """Change of the output, or of a length from 1: random weights without epsilons; of the output: own, with them."""
    if not tensors:
        return 0.0, 0.0
    inputs = example if isinstance(example, tuple) else (example,)
    trial = Trial(net, tuple(x[:2] if x.ndim > 1 else x for x in inputs))
    moved = with_unit_filters(trial.params, symmetries, tensors)
    lengths = torch.cat([moved[name].flatten(1).norm(dim=1) for name in tensors])
    off = float(torch.where(lengths > 0, lengths - 1, 0.0).abs().max())
    error = max(off, trial.error(moved))
    if not trial.passes(error):
        raise VerificationError(
            f"internal error of diagnose: filters of {listing(tensors)} miss unit length, or the function, by {error:.1e}. "
            "Please report the network; meanwhile constrain none of its filters."
        )
    own = {n: precise(x.detach()) if x.is_floating_point() else x for n, x in net.state_dict().items()}
    return error, trial.epsilon_effect(symmetries, unit_log_scales(own, symmetries, tensors))


def _layers(
    net: nn.Module, symmetries: Symmetries, free: Constraints, every: Constraints
) -> tuple[LayerSymmetry, ...]:
    """Every module with tensors of its own, and whatever else made units or scales."""
    groups: dict[str, list[int]] = defaultdict(list)
    scales: dict[str, dict[tuple[str, bool], int]] = defaultdict(lambda: defaultdict(int))
    for group in symmetries.permutations:
        groups[group.layer].append(group.size)
    for freedom in symmetries.scales:
        scales[freedom.layer][freedom.kind, freedom.exact] += freedom.size
    modules = {f"{n} ({type(m).__name__})" if n else type(m).__name__: (n, m) for n, m in net.named_modules()}
    found = []
    for label, (name, module) in modules.items():
        prefix = f"{name}." if name else ""
        own = [n for n in symmetries.shapes if n.startswith(prefix) and "." not in n[len(prefix) :]]
        if not own and label not in groups.keys() | scales.keys():
            continue
        axis = 1 if isinstance(module, nn.modules.conv._ConvTransposeNd) else 0
        written = (g for g in symmetries.permutations for p in g.places if p.name in own and p.axis == axis)
        moves_with = next((group.layer.partition(" (")[0] for group in written), "")
        weight = f"{prefix}weight"
        asked = "if asked" if weight in every.tensors else every.left.get(weight, "")
        found.append(
            LayerSymmetry(
                layer=name or type(net).__name__,
                kind=type(module).__name__,
                units=next((shape[axis] for n in own if len(shape := symmetries.shapes[n]) > axis), 0),
                groups=tuple(groups.get(label, ())),
                moves_with="" if label in groups else moves_with,
                scales=tuple((kind, n, exact) for (kind, exact), n in scales.get(label, {}).items()),
                unit_norm="yes" if weight in free.tensors else asked,
            )
        )
    return tuple(found)


def _remedies(
    symmetries: Symmetries, free: Constraints, every: Constraints, void: Sequence[str]
) -> Iterable[str]:
    kinds = {freedom.kind for freedom in symmetries.scales}
    if free.tensors:
        yield (
            f"Hold the filters of {listing(free.tensors)} at unit length: the norm after them ignores their "
            "lengths, plain SGD does not. unit_norm_parameters(net, example) makes the parameter groups."
        )
    more = [name for name in every.tensors if name not in free.tensors]
    if more:
        yield (
            f"{listing(more)}: unit length costs no function here either, as later layers absorb the factors; start from "
            "with_unit_filters and ask with homogeneous=True."
        )
    if "normalised" in kinds:
        yield (
            "Weight decay on what a norm reads limits no function: it sets the effective rate lr/|w|² (van Laarhoven "
            "2017). On filters of unit length it is void: set weight_decay=0 there."
        )
    if void:
        yield f"{listing(void)}: a norm takes this bias out again, its gradient is zero. Build with bias=False."
    if "affine" in kinds:
        layers = dict.fromkeys(f.layer for f in symmetries.scales if f.kind == "affine")
        yield f"{listing(layers)}: affine=False (elementwise_affine) removes the scales that a learned scale brings back."
    if kinds:
        least = tuple(kind for kind in ("homogeneous", "affine") if kind in kinds)
        yield (
            "Before posteriors are compared or weights averaged, take scales out: canonicalize(params, symmetries)"
            + (f", or the least mass, min_mass(params, symmetries, freedoms={least})." if least else ".")
        )
    if symmetries.permutations:
        yield (
            "Before weights are averaged or joined by a line, match the units: lib.matching.match(reference, others, "
            "symmetries)."
        )


def _remains(symmetries: Symmetries, every: Constraints) -> Iterable[str]:
    """What unit filters leave."""
    if symmetries.permutations:
        yield f"The {_count(count_permutations(symmetries))} permutations of units: no training method removes them."
    free = [freedom for f, freedom in enumerate(symmetries.scales) if f not in every.freedoms]
    for kind, where in (
        ("affine", "of learned scale and shift, unless affine=False"),
        ("normalised", "before a norm, used up by no unit filter: a canonical form chooses them"),
        ("homogeneous", "between layers, used up by no unit filter: a canonical form chooses them"),
    ):
        left = sum(freedom.size for freedom in free if freedom.kind == kind)
        if left:
            yield f"{left:,} scale{'s' if left > 1 else ''} {where}."
    for why in WHY:
        names = [name for name in every.left if every.left[name] == why]
        if names and why != "no freedom":
            yield f"Free filters of {listing(names)}: {WHY[why]}."
    yield NOT_SOUGHT


def _count(permutations: int) -> str:
    """Written out while it is short."""
    return f"{permutations:,}" if permutations < 10**6 else f"10^{math.log10(permutations):,.1f}"


def _fitted(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows in columns; where they are too wide, the widest cells lose their middle."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    while sum(widths) + 2 * (len(widths) - 1) > WIDTH:
        widths[widths.index(max(widths))] -= 1
    return [
        "  ".join(_elided(cell, w).ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _elided(text: str, width: int) -> str:
    head = (width - 1) // 2
    return text if len(text) <= width else f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"
