"""What lies on the straight lines between networks, as they are and in one order of units, and what the barrier is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from lib.connectivity import Lines, Parts
from lib.connectivity import repair as mend
from lib.connectivity.decomposition import aligned as remedied
from lib.params import Params, member
from lib.report.checkpoints import Models
from lib.report.data_source import Examples, Halves
from lib.report.finding import Finding
from lib.report.intervals import Interval, over_pairs
from lib.report.outputs import norms, one_by_one, outputs, recalibrated, score
from lib.report.structure import Alignment
from lib.symmetry import Symmetries
from lib.table import Table

PLAIN, MATCHED, BY_ACTIVATIONS = "as they are", "matched by weights", "matched by activations"
AGAIN = ", recalibrated"
ORDER = "permutation, then rescaling, then statistics"


@dataclass(frozen=True, eq=False, repr=False)
class Barriers(Finding):
    """Lines of K pairs of n networks, by kind: "as they are", "matched by weights" (or "by activations"), each with BatchNorm also
    ", recalibrated".

    kinds   each kind's lines: loss, and error (a share; in regression the root mean squared error), (K, points)
    parts   of the loss barrier of the first pairs, in the order of ``ORDER``; None where there are no symmetries, or for the reason
            in ``why_whole``
    every   whether all pairs were measured; else each with the first network
    norms   whether the network has BatchNorm with running statistics
    """

    task: str
    names: tuple[str, ...]
    pairs: Int64[Tensor, "K 2"]
    kinds: Mapping[str, Lines]
    parts: Parts | None
    why_whole: str
    examples: int
    calibration: int
    norms: bool
    every: bool

    def barrier(self, kind: str, what: str = "loss") -> Interval:
        """The mean barrier over pairs, in loss or error, with its interval over networks, which a barrier keeps above 0."""
        return over_pairs(self.kinds[kind].barrier(what), self.pairs, len(self.names)).within(0.0)

    @property
    def best(self) -> str:
        """The kind of lines with the lowest loss barrier."""
        return min(self.kinds, key=lambda kind: self.barrier(kind).value)

    def table(self) -> Table:
        """A row a kind of lines."""
        unit = "points" if self.task == "classification" else "root mean squared"
        scale = 100 if self.task == "classification" else 1
        rows = [
            (
                kind,
                self.barrier(kind).text(),
                self.barrier(kind, "error").text(".2f" if scale > 1 else ".4f", scale),
            )
            for kind in self.kinds
        ]
        return Table(
            ("lines", "loss barrier", f"error barrier ({unit})"),
            rows,
            f"Barriers, means over {len(self.pairs)} pairs",
        )

    def parts_table(self) -> Table:
        """What each remedy takes off the barrier."""
        rows = []
        if self.parts is not None:
            named = {"barrier as they are": self.parts.plain, **self.parts.parts}
            rows = [(name, self.part(values).text(".4f")) for name, values in named.items()]
        return Table(("part", "of the loss barrier"), rows, f"The barrier in parts: {ORDER}, and the rest")

    def part(self, values: Float64[Tensor, " k"]) -> Interval:
        """The mean of a part over the first pairs, with an interval where they all share their first network."""
        pairs = self.pairs[: len(values)]
        star = bool((pairs[:, 0] == pairs[0, 0]).all())
        return over_pairs(values, pairs, len(values) + 1) if star else Interval(float(values.mean()))

    def mended(self, kind: str) -> Interval:
        """By how much the barrier of a kind of lines falls when BatchNorm's statistics are read anew, pair by pair."""
        stale, fresh = (self.kinds[name].barrier() for name in (kind, kind + AGAIN))
        return over_pairs(stale - fresh, self.pairs, len(self.names))


def barriers(
    models: Models,
    data: Halves,
    symmetries: Symmetries | None = None,
    alignment: Alignment | None = None,
    *,
    activations: Alignment | None = None,
    points: int = 11,
    pairs: Int64[Tensor, "K 2"] | None = None,
    calibration: int = 512,
    parted: int = 4,
) -> Barriers:
    """The lines of the pairs of ``alignment`` (without one: of ``pairs``, all by default), two networks in memory at a time.

    ``activations``: a second alignment of the same pairs, whose lines are drawn too.
    Scores are those of the scoring half; BatchNorm statistics are read from the first ``calibration`` examples of the other half
    at every point between the ends, while the ends stay as they are. Raises ValueError for fewer than two networks or three points.
    """
    n = len(models)
    if n < 2 or points < 3:
        raise ValueError(
            f"{n} networks, {points} points: a barrier needs two networks, and three points on the line between them."
        )
    if alignment is not None:
        pairs = alignment.pairs
    pairs = torch.combinations(torch.arange(n)) if pairs is None else pairs
    every = len(pairs) == n * (n - 1) // 2
    alphas = torch.linspace(0, 1, points, dtype=torch.float64)
    lines = _Lines(models, data, alphas, data.calibration.inputs[:calibration])
    found: dict[str, list[Tensor]] = {}
    for k, (i, j) in enumerate(pairs.tolist()):
        ends = {PLAIN: (member(models.params, i), member(models.params, j))}
        for way in (alignment, activations):
            if way is not None and symmetries is not None:
                ends[f"matched by {way.by}"] = way.pair(symmetries, k)
        for kind, (first, second) in ends.items():
            for name, line in lines.between(first, second, (i, j)).items():
                found.setdefault(kind + name, []).append(line)
    kinds = {kind: _stacked(alphas, each) for kind, each in found.items()}
    parts, why = None, ""
    if symmetries is not None and parted:
        try:
            parts = _parts(lines, symmetries, pairs[:parted], kinds[PLAIN].barrier()[:parted])
        except (ValueError, RuntimeError) as problem:  # an architecture whose statistics cannot be mended
            why = str(problem)
    return Barriers(
        data.task, models.names, pairs, kinds, parts, why, len(data.scoring), len(lines.statistics), lines.norms, every
    )  # fmt: skip


@dataclass(eq=False)
class _Lines:
    """Scores of lines; each end's are measured once."""

    models: Models
    data: Halves
    alphas: Float64[Tensor, " points"]
    statistics: Tensor
    ends: dict[int, tuple[float, float]] = field(default_factory=dict)

    @property
    def norms(self) -> bool:
        return bool(norms(self.models.net))

    def at(self, params: Mapping[str, Tensor]) -> tuple[float, float]:
        """Loss and error of one network on the scoring half."""
        test: Examples = self.data.scoring
        return score(self.data.task, outputs(self.models.net, params, test.inputs), test.targets)

    def end(self, i: int) -> tuple[float, float]:
        if i not in self.ends:
            self.ends[i] = self.at(member(self.models.params, i))
        return self.ends[i]

    def between(
        self, first: Params, second: Params, ends: tuple[int, int], *, anew: bool = True
    ) -> dict[str, Tensor]:
        """(points, 2) loss and error: with statistics mixed like weights, and, with ``anew``, read anew where there are any."""
        ways: dict[str, Callable[[Params], Params]] = {"": lambda middle: middle}
        if anew and self.norms:
            ways[AGAIN] = lambda middle: recalibrated(self.models.net, middle, self.statistics)
        values: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for alpha in self.alphas[1:-1].tolist():
            middle = mixed(first, second, alpha)
            for name, way in ways.items():
                values[name].append(self.at(way(middle)))
        return {name: self.line(inner, ends) for name, inner in values.items()}

    def mended(self, first: Params, second: Params, ends: tuple[int, int]) -> Float64[Tensor, "points 2"]:
        """The same with the statistics of hidden units set to those of the ends' mixture, by REPAIR."""
        both = {name: torch.stack([t, second[name]]) for name, t in first.items()}
        device, inner = next(iter(first.values())).device, self.alphas[1:-1].float()
        weights = torch.stack([1 - inner, inner], 1)[None].to(device)
        index = torch.tensor([[0, 1]], device=device)
        found = mend(self.models.net, both, index, weights, self.statistics)
        return self.line([self.at(each) for each in one_by_one(found)], ends)

    def line(self, inner: list[tuple[float, float]], ends: tuple[int, int]) -> Float64[Tensor, "points 2"]:
        a, b = (self.end(i) for i in ends)
        return torch.tensor([a, *inner, b], dtype=torch.float64)


def mixed(first: Mapping[str, Tensor], second: Mapping[str, Tensor], alpha: float) -> Params:
    """(1 - alpha) first + alpha second; whole numbers are the first one's."""
    return {
        name: torch.lerp(t, second[name], alpha) if t.is_floating_point() else t for name, t in first.items()
    }


def _stacked(alphas: Tensor, lines: list[Tensor]) -> Lines:
    both = torch.stack(lines)
    return Lines(alphas, both[..., 0].contiguous(), both[..., 1].contiguous())


def _parts(lines: _Lines, symmetries: Symmetries, pairs: Tensor, plain: Tensor) -> Parts:
    """As ``lib.connectivity.decompose``, for either task, a pair at a time."""
    stages: list[list[Tensor]] = []
    for i, j in pairs.tolist():
        first, second = ({name: t[k : k + 1] for name, t in lines.models.params.items()} for k in (i, j))
        permuted, rescaled = (_single(each) for each in remedied(symmetries, first, second))
        one, ends = _single(first), (i, j)
        moved = lines.between(one, permuted, ends, anew=False)[""]
        scaled = lines.between(one, rescaled, ends)
        mended = scaled[AGAIN] if lines.norms else lines.mended(one, rescaled, ends)
        stages.append([_stacked(lines.alphas, [line]).barrier()[0] for line in (moved, scaled[""], mended)])
    permuted, rescaled, mended = (torch.stack(stage) for stage in zip(*stages, strict=True))
    return Parts(plain, permuted, rescaled, mended)


def _single(params: Mapping[str, Tensor]) -> Params:
    return {name: tensor[0] for name, tensor in params.items()}
