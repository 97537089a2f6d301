"""What a barrier is made of: permutation, rescaling, activation statistics, and the rest (ours; the popular article asks for it).

Three remedies, one after the other, each given what the last one left: the second network's units are *permuted* into the order of
the first (matched by canonical forms, which scales do not disturb); *rescaled* to the first one's scales; and along the line
*activation statistics* are mended. What each takes off the loss barrier is its part; a part can be negative, where a remedy
harms. Parts depend on the order. This one is that in which a planted cause comes out as itself: rescaling the wrong units, or
mending the statistics of unaligned ones, would take off something too, and be given credit that is not theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float64, Int64, Shaped
from torch import Tensor, nn

from lib.connectivity.lines import between, points
from lib.connectivity.statistics import repair
from lib.matching import match
from lib.params import Params, population_size
from lib.population import evaluate
from lib.symmetry import Symmetries, permute, rescale
from lib.symmetry.canonical import canonical_form

PAIRS = 16  # whose mended networks are held at once
PARTS = ("permutation", "rescaling", "statistics", "rest")


@dataclass(frozen=True, eq=False)
class Parts:
    """Loss barriers of P pairs: as they are, permuted, rescaled too, with mended statistics too; (P,) each, float64."""

    plain: Float64[Tensor, " P"]
    permuted: Float64[Tensor, " P"]
    rescaled: Float64[Tensor, " P"]
    mended: Float64[Tensor, " P"]

    @property
    def parts(self) -> dict[str, Float64[Tensor, " P"]]:
        """What each remedy takes off, and what is left: they sum to the barrier."""
        stages = (self.plain, self.permuted, self.rescaled, self.mended)
        falls = [before - after for before, after in pairwise(stages)]
        return dict(zip(PARTS, [*falls, self.mended], strict=True))


def decompose(
    net: nn.Module,
    symmetries: Symmetries,
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    inputs: Shaped[Tensor, "N ..."],
    targets: Int64[Tensor, " N"],
    calibration: Shaped[Tensor, "M ..."],
    alphas: int = 11,
) -> Parts:
    """The barrier between each network of ``first`` (P, ...) and its partner in ``second``; statistics from ``calibration`` inputs."""
    if alphas < 3:
        raise ValueError(
            f"{alphas} points of a line have none between its ends: the barrier's parts need three at least."
        )
    permuted, rescaled = aligned(symmetries, first, second)
    plain, moved, scaled = (
        between(net, first, other, inputs, targets, alphas).barrier()
        for other in (second, permuted, rescaled)
    )
    return Parts(plain, moved, scaled, _mended(net, first, rescaled, inputs, targets, calibration, alphas))


def aligned(
    symmetries: Symmetries, first: Mapping[str, Tensor], second: Mapping[str, Tensor]
) -> tuple[Params, Params]:
    """``second`` with its units permuted to match ``first``, and then also with the scales of ``first``."""
    if not symmetries.scales:
        moved = match(first, second, symmetries).params
        return moved, moved
    ours, theirs = (canonical_form(x, symmetries, "unit_norm", None) for x in (first, second))
    found = match(ours.params, theirs.params, symmetries)
    back = [-scale for scale in ours.log_scales]
    return permute(second, symmetries, found.perms), rescale(found.params, symmetries, back)


def _mended(
    net: nn.Module,
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    inputs: Tensor,
    targets: Tensor,
    calibration: Tensor,
    alphas: int,
) -> Float64[Tensor, " P"]:
    """The barrier on lines whose statistics are mended at every point between the ends; the ends stay as they are."""
    at = points(alphas)
    members, inner = population_size(dict(first)), at[1:-1]
    both = {name: torch.cat([first[name], second[name]]) for name in first}
    ends = evaluate(net, both, inputs, targets)["loss"].double().cpu().view(2, members)
    device = next(iter(both.values())).device
    index = torch.arange(2 * members, device=device).view(2, members).T
    weights = torch.stack([1 - inner, inner], 1).to(device).expand(members, -1, -1)
    middle = torch.cat(
        [
            evaluate(net, repair(net, both, index[rows], weights[rows], calibration), inputs, targets)["loss"]
            for rows in torch.arange(members).split(PAIRS)
        ]
    )
    straight = (1 - inner) * ends[0][:, None] + inner * ends[1][:, None]
    return (middle.double().cpu().view(members, -1) - straight).amax(1).clamp(min=0)
