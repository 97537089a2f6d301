"""Maximum mean discrepancy between two samples of parameters, with the twenty kernels of the first paper.

Ten Laplace kernels exp(-|x - y|₁ / b) and ten Gaussian ones exp(-(|x - y|₂ / b)²), whose bandwidths b come from the data
(Schrab et al., *MMD aggregated two-sample test*, JMLR 2023); for each the unbiased U-statistic, which can be slightly
negative. The figure that is used is the mean of the twenty. It has no unit of its own and depends on the bandwidths, so
a value stands beside its floor (two halves of the reference) and its ceiling (initial weights): `floor_and_ceiling`.

**Distances by direct differences**, not by |x|² + |y|² - 2 x·y: samples of one mode differ in the fourth digit, and what
that formula subtracts has then lost most of its digits. One difference serves both norms and stays in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from lib import blocks, randomness

KERNELS = 10  # bandwidths of each of the two kinds
ROWS, COLUMNS = (
    64,
    512,
)  # of a block of pairs on a CPU: small enough that two threads share 500 x 100 pairs evenly
DEVICE_ROWS, DEVICE_COLUMNS = 1024, 1024  # on an accelerator
TILE, DEVICE_TILE = (
    1 << 20,
    1 << 26,
)  # differences held at a time: 4 MB of the cache; 256 MB of an accelerator

Block = tuple[int, slice, slice]


@dataclass(frozen=True)
class Bandwidths:
    """The bandwidths of the Laplace kernels (in L1 distance) and of the Gaussian ones (in L2 distance), ascending."""

    laplace: Float[Tensor, " B"]
    gaussian: Float[Tensor, " B"]

    def __post_init__(self) -> None:
        for name in ("laplace", "gaussian"):
            values = getattr(self, name)
            if not (torch.isfinite(values) & (values > 0)).all():
                raise ValueError(
                    f"the {name} bandwidths are {values.tolist()}: they must be positive numbers."
                )


def bandwidths(x: Float[Tensor, "m D"], y: Float[Tensor, "n D"], first: int = 500) -> Bandwidths:
    """The paper's bandwidths for samples x and y, for each norm a geometric grid of ten from d_min / 2 to 2 d_max.

    d are the distances between the ``first`` samples of x and those of y. Where d_min is below 0.1, it becomes the 5 %
    quantile or 0.1, whichever is greater; d_max is at least 0.3 (the rule of the authors' code, absolute numbers and all).
    """
    return _paper_rule(x, y, first)


def _paper_rule(x: Tensor, y: Tensor, first: int = 500) -> Bandwidths:
    x, y = _samples(x, y)
    return Bandwidths(*(_grid(d.flatten()) for d in distances(x[:first], y[:first])))


def _grid(d: Tensor) -> Tensor:
    low, high = d.min().item(), max(d.max().item(), 0.3)
    if low < 0.1:
        low = max(d.sort().values[int(0.05 * len(d))].item(), 0.1)
    steps = torch.arange(KERNELS, dtype=torch.float64, device=d.device) / (KERNELS - 1)
    return low / 2 * (4 * high / low) ** steps


def distances(
    x: Float[Tensor, "m D"], y: Float[Tensor, "n D"]
) -> tuple[Float[Tensor, "m n"], Float[Tensor, "m n"]]:
    """L1 and L2 distances of all pairs."""
    one, two = (torch.empty(len(x), len(y), dtype=x.dtype, device=x.device) for _ in range(2))

    def fill(block: Block) -> None:
        _, rows, columns = block
        one[rows, columns], two[rows, columns] = _norms(x[rows], y[columns])

    blocks.each(fill, _blocks(0, len(x), len(y), x, symmetric=False), x.device)
    return one, two.sqrt_()


def mmd2(
    x: Float[Tensor, "m D"], y: Float[Tensor, "n D"], bandwidths: Bandwidths | None = None
) -> Float[Tensor, " B2"]:
    """Unbiased estimate of MMD² between the laws of x and y for each kernel, the Laplace ones first, in float64.

    S_xx / (m (m - 1)) + S_yy / (n (n - 1)) - 2 S_xy / (m n), S the sums of the kernel over pairs, without the diagonal.
    Pairs are visited in blocks: what is held at a time does not grow with m and n. ``bandwidths`` are by
    default those of x and y. Raises ValueError for fewer than two samples, other dimensions, or numbers not finite.
    """
    return Reference(x, _paper_rule(x, y) if bandwidths is None else bandwidths).mmd2(y)


@dataclass(frozen=True)
class Scale:
    """Two points of comparison, for each kernel: ``floors`` between random halves of the reference, ``ceiling`` to
    initial weights. The mean over kernels, which values are read on, is `floor` and `top`.
    """

    floors: Float[Tensor, "splits B2"]
    ceiling: Float[Tensor, " B2"]

    @property
    def floor(self) -> float:
        """Mean over splits and kernels. Its expectation over all splits is exactly 0; see ``spread`` for the noise."""
        return self.floors.mean().item()

    @property
    def spread(self) -> float:
        """Standard deviation over splits of the mean over kernels: the noise of a value between two half references."""
        return self.floors.mean(1).std().item()

    @property
    def top(self) -> float:
        """The ceiling's mean over kernels."""
        return self.ceiling.mean().item()

    def scaled(self, value: Float[Tensor, "*any"] | float) -> Float[Tensor, "*any"] | float:
        """A mean over kernels on the scale where the split halves are 0 and initial weights 1."""
        return scaled(value, self.floor, self.top)


@dataclass(frozen=True)
class Reference:
    """One sample with which many others are compared: its own part of the statistic is computed once.

    ``within`` is S_xx / (m (m - 1)) for each kernel.
    """

    x: Float[Tensor, "m D"]
    bandwidths: Bandwidths
    within: Tensor = field(init=False)

    def __post_init__(self) -> None:
        x, _ = _samples(self.x, self.x)
        object.__setattr__(self, "x", x)
        object.__setattr__(self, "within", _sums([(x, None)], self.bandwidths)[0] / _pairs(len(x)))

    def mmd2(self, y: Float[Tensor, "*runs n D"]) -> Float[Tensor, "*runs B2"]:
        """As `mmd2`, for one sample or for one sample a run; costs the pairs with y only, and those within y."""
        runs = y.flatten(0, -3) if y.ndim > 2 else y[None]
        both = [_samples(self.x, run) for run in runs]
        sums = _sums([*both, *((run, None) for _, run in both)], self.bandwidths)
        between, own = sums.split(len(both))
        m, n = len(self.x), y.shape[-2]
        found = self.within + own / _pairs(n) - 2 * between / (m * n)
        return found.unflatten(0, y.shape[:-2]) if y.ndim > 2 else found[0]

    def scale(self, initial: Float[Tensor, "n D"], *, splits: int = 20, seed: int) -> Scale:
        """The two points of comparison: random halves of the reference, and initial weights.

        All splits come from one pass over the pairs: a split only says which of them lie within a half, and which
        across. Raises ValueError for fewer than four reference networks or fewer than two splits.
        """
        x, m = self.x, len(self.x)
        if m < 4 or splits < 2:
            raise ValueError(
                f"{m} samples, {splits} splits: halves need 4 samples, and their noise 2 splits."
            )
        half, rest = m // 2, m - m // 2
        order = randomness.permutation(seed, torch.arange(splits, device=x.device), "mmd/halves", 0, m)
        chosen = torch.zeros(splits, m, dtype=x.dtype, device=x.device).scatter_(1, order[:, :half], 1.0)

        def work(block: Block) -> Tensor:
            _, rows, columns = block
            found = []
            for values in _kernels(x, x, rows, columns, self.bandwidths, symmetric=True):
                one, other = ((a[:, rows] @ values * a[:, columns]).sum(1) for a in (chosen, 1 - chosen))
                found.append(torch.stack([one, other, values.sum().expand(splits)]))
            return torch.stack(found).double()  # kernels, parts, splits

        parts = blocks.each(work, _blocks(0, m, m, x, symmetric=True), x.device)
        one, other, total = torch.stack(parts).sum(0).unbind(1)
        floors = 2 * (one / _pairs(half) + other / _pairs(rest) - (total - one - other) / (half * rest))
        return Scale(floors.T.contiguous(), self.mmd2(initial))


def floor_and_ceiling(
    x: Float[Tensor, "m D"],
    initial: Float[Tensor, "n D"],
    bandwidths: Bandwidths,
    *,
    splits: int = 20,
    seed: int,
) -> Scale:
    """What a value of MMD² to the reference x is compared with; see `Reference.scale`."""
    return Reference(x, bandwidths).scale(initial, splits=splits, seed=seed)


def scaled(
    value: Float[Tensor, "*any"] | float, floor: float | int, ceiling: float | int
) -> Float[Tensor, "*any"] | float:
    """(value - floor) / (ceiling - floor). Raises ValueError where the ceiling is not above the floor."""
    if not ceiling > floor:
        raise ValueError(
            f"the ceiling {ceiling:.3g} is not above the floor {floor:.3g}: initial weights cannot be told from the "
            "reference, so nothing can be scaled by them; take more samples, or look at the bandwidths."
        )
    return (value - floor) / (ceiling - floor)


def _samples(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both samples in one floating type of at least 32 bits, on the device of x; refuses what has no MMD."""
    for sample in (x, y):
        if len(sample) < 2:
            raise ValueError("a sample of one network has no pairs: the unbiased MMD needs two on each side.")
        if not torch.isfinite(sample).all():
            bad = int((~torch.isfinite(sample).all(1)).sum())
            raise ValueError(f"{bad} of {len(sample)} networks are not finite: drop diverged members first.")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"one sample has {x.shape[1]} parameters, the other {y.shape[1]}: they must agree.")
    common = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    return x.to(common).contiguous(), y.to(x.device, common).contiguous()


def _pairs(n: int) -> int:
    return n * (n - 1)


def _blocks(which: int, m: int, n: int, like: Tensor, *, symmetric: bool) -> list[Block]:
    """Rows and columns of the blocks that cover m x n pairs; those of i < j where x is compared with itself."""
    on_cpu = like.device.type == "cpu"
    tall, wide = (ROWS, COLUMNS) if on_cpu else (DEVICE_ROWS, DEVICE_COLUMNS)
    return [
        (which, slice(top, min(top + tall, m)), slice(left, min(left + wide, n)))
        for top in range(0, m, tall)
        for left in range(top if symmetric else 0, n, wide)
    ]


def _norms(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """|x - y|₁ and |x - y|₂² of one block of pairs, tile by tile through one buffer."""
    tile = TILE if x.device.type == "cpu" else DEVICE_TILE
    wide = min(len(y), max(1, tile // max(1, x.shape[1])))
    tall = min(len(x), max(1, tile // max(1, wide * x.shape[1])))
    one, two = (torch.empty(len(x), len(y), dtype=x.dtype, device=x.device) for _ in range(2))
    buffer = torch.empty(tall * wide * x.shape[1], dtype=x.dtype, device=x.device)
    for top in range(0, len(x), tall):
        for left in range(0, len(y), wide):
            rows, columns = x[top : top + tall, None], y[left : left + wide]
            held = buffer[: len(rows) * columns.numel()].view(len(rows), *columns.shape)
            torch.sub(rows, columns, out=held)
            place = (slice(top, top + tall), slice(left, left + wide))
            one[place] = held.abs_().sum(-1)
            two[place] = held.square_().sum(-1)
    return one, two


def _kernels(x: Tensor, y: Tensor, rows: slice, columns: slice, widths: Bandwidths, *, symmetric: bool):
    """The kernels' values on one block, one kernel after the other in the same memory; pairs i >= j of x are 0."""
    one, two = _norms(x[rows], y[columns])
    if symmetric and columns.start < rows.stop:
        past = torch.ones_like(one, dtype=torch.bool).tril(rows.start - columns.start)
        one.masked_fill_(past, torch.inf)
        two.masked_fill_(past, torch.inf)
    values = torch.empty_like(one)
    for distance, rates in ((one, -1 / widths.laplace), (two, -1 / widths.gaussian**2)):
        for rate in rates.tolist():
            yield torch.mul(distance, rate, out=values).exp_()


def _sums(samples: list[tuple[Tensor, Tensor | None]], widths: Bandwidths) -> Tensor:
    """Sum of each kernel over all pairs (x, y), or over the pairs of distinct members of x where y is None."""

    def work(block: Block) -> Tensor:
        which, rows, columns = block
        x, y = samples[which]
        found = _kernels(x, x if y is None else y, rows, columns, widths, symmetric=y is None)
        return torch.stack([values.sum(1).double().sum() for values in found])

    work_list = [
        block
        for which, (x, y) in enumerate(samples)
        for block in _blocks(which, len(x), len(x if y is None else y), x, symmetric=y is None)
    ]
    parts = blocks.each(work, work_list, samples[0][0].device)
    total = torch.zeros(len(samples), len(parts[0]), dtype=torch.float64, device=parts[0].device)
    for (which, *_), part in zip(work_list, parts, strict=True):
        total[which] += part * (2 if samples[which][1] is None else 1)
    return total
