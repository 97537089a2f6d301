"""Lines, triangles and simplices between trained networks, and the barrier on them.

The barrier is the paper's: the largest excess, over the line from a to b, of the loss (or the error) above the straight line
between the two END values (Sharma et al. 2024; Entezari et al. 2022). ``ends="mean"`` subtracts the flat mean of the ends, as Git
Re-Basin's plots do. On a grid with both ends the first is never negative.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor, nn

from lib.connectivity.mixtures import scores
from lib.params import population_size
from lib.randomness import uniform


@dataclass(frozen=True, eq=False)
class Lines:
    """K lines at A points: ``alphas`` (A,), 0 at the first network and 1 at the second; loss, error and, if asked, the
    temperature-calibrated loss, (K, A) each."""

    alphas: Float64[Tensor, " A"]
    loss: Float64[Tensor, "K A"]
    error: Float64[Tensor, "K A"]
    calibrated: Float64[Tensor, "K A"] | None = None

    def barrier(self, what: str = "loss", ends: str = "linear") -> Float64[Tensor, " K"]:
        """The barrier of each line in its "loss", "error" or "calibrated" loss."""
        return self.excess(what, ends).amax(1)

    def excess(self, what: str = "loss", ends: str = "linear") -> Float64[Tensor, "K A"]:
        """What lies above the straight line between the ends ("linear"), or above their mean ("mean")."""
        values = {"loss": self.loss, "error": self.error, "calibrated": self.calibrated}.get(what)
        if values is None:
            raise ValueError(f"these lines have no {what!r}: ask for 'loss', 'error', or pass calibrate=.")
        first, last = values[:, :1], values[:, -1:]
        if ends == "linear":
            return values - ((1 - self.alphas) * first + self.alphas * last)
        if ends == "mean":
            return values - (first + last) / 2
        raise ValueError(f"ends are 'linear' or 'mean', not {ends!r}.")


def lines(
    net: nn.Module,
    params: Mapping[str, Tensor],
    pairs: Int64[Tensor, "K 2"],
    inputs: Shaped[Tensor, "N ..."],
    targets: Int64[Tensor, " N"],
    alphas: int | Float[Tensor, " A"] = 11,
    *,
    calibrate: tuple[Tensor, Tensor] | None = None,
) -> Lines:
    """The straight lines between pairs of networks of a population, all at once; each end is evaluated once a network.

    ``alphas``: how many equally spaced points, ends included, or the points themselves: rising, from 0 to 1. ``calibrate`` as
    in ``scores``. Raises ValueError for other points, for fewer than two networks, or no pair.
    """
    alphas = points(alphas)
    if population_size(dict(params)) < 2 or pairs.ndim != 2 or pairs.shape[1] != 2 or not len(pairs):
        raise ValueError(
            f"a line joins two networks: there are {population_size(dict(params))} networks and pairs {tuple(pairs.shape)}; "
            "give at least two networks, and pairs (K, 2)."
        )
    pairs = pairs.cpu()
    used, place = pairs.unique(return_inverse=True)
    inner = alphas[1:-1]
    ends = scores(
        net, params, used[:, None], torch.ones(len(used), 1, 1), inputs, targets, calibrate=calibrate
    )
    middle = None
    if len(inner):
        weights = torch.stack([1 - inner, inner], 1).expand(len(pairs), -1, -1)
        middle = scores(net, params, pairs, weights, inputs, targets, calibrate=calibrate)

    def joined(what: str) -> Tensor | None:
        end = getattr(ends, what)
        if end is None:
            return None
        end = end.cpu()[:, 0][place]
        parts = [end[:, :1], *([getattr(middle, what).cpu()] if middle else []), end[:, 1:]]
        return torch.cat(parts, 1)

    return Lines(alphas, joined("loss"), joined("error"), joined("calibrated"))


def between(
    net: nn.Module,
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    inputs: Shaped[Tensor, "N ..."],
    targets: Int64[Tensor, " N"],
    alphas: int | Float[Tensor, " A"] = 11,
    *,
    calibrate: tuple[Tensor, Tensor] | None = None,
) -> Lines:
    """The line from each network of ``first`` (P, ...) to its partner in ``second`` (P, ...)."""
    members = population_size(dict(first))
    shapes = [{name: tuple(t.shape) for name, t in x.items()} for x in (first, second)]
    if shapes[0] != shapes[1]:
        name = next(n for n in {**shapes[0], **shapes[1]} if shapes[0].get(n) != shapes[1].get(n))
        raise ValueError(
            f"the tensor {name!r} has shape {shapes[0].get(name)} in the first networks and {shapes[1].get(name)} in the "
            "second: lines join networks of one architecture, as many on either side."
        )
    both = {name: torch.cat([first[name], second[name]]) for name in first}
    pairs = torch.arange(2 * members).view(2, -1).T
    return lines(net, both, pairs, inputs, targets, alphas, calibrate=calibrate)


def triangle(
    net: nn.Module,
    params: Mapping[str, Tensor],
    three: tuple[int, int, int],
    inputs: Shaped[Tensor, "N ..."],
    targets: Int64[Tensor, " N"],
    steps: int = 20,
) -> tuple[Float64[Tensor, "K 3"], Float64[Tensor, " K"], Float64[Tensor, " K"]]:
    """All mixtures of three networks on a barycentric grid: their weights, loss (K,) and error (K,)."""
    grid = [(i, j, steps - i - j) for i in range(steps + 1) for j in range(steps + 1 - i)]
    weights = torch.tensor(grid, dtype=torch.float64) / steps
    found = scores(net, params, torch.tensor([three]), weights[None], inputs, targets)
    return weights, found.loss[0].cpu(), found.error[0].cpu()


def simplex(
    net: nn.Module,
    params: Mapping[str, Tensor],
    groups: Int64[Tensor, "G n"],
    inputs: Shaped[Tensor, "N ..."],
    targets: Int64[Tensor, " N"],
    draws: int,
    seed: int,
) -> tuple[Float64[Tensor, " G"], Float64[Tensor, " G"]]:
    """Of each group of n networks the loss of their average above the mean of their losses, and the same at the worst of ``draws``
    points of the simplex (Dirichlet(1, ..., 1), the average among them): L(Σ w θ) - Σ w L(θ)."""
    count, n = groups.shape
    if n < 2:
        raise ValueError("a simplex has at least two corners: give groups of two or more networks.")
    spread = -torch.log1p(-uniform(seed, torch.arange(count), "simplex", 0, (draws, n), torch.float64))
    weights = torch.cat(
        [torch.full((count, 1, n), 1 / n, dtype=torch.float64), spread / spread.sum(-1, keepdim=True)], 1
    )
    corners = torch.eye(n).double().expand(count, -1, -1)
    weights = torch.cat([corners, weights], 1)
    loss = scores(net, params, groups.cpu(), weights, inputs, targets).loss.cpu()
    excess = loss[:, n:] - (weights[:, n:] * loss[:, None, :n]).sum(-1)
    return excess[:, 0], excess.amax(1)


def points(alphas: int | Tensor) -> Float64[Tensor, " A"]:
    """Points of a line, from 0 to 1; raises ValueError for others."""
    if isinstance(alphas, int):
        if alphas < 2:
            raise ValueError(f"{alphas} points make no line: it needs its two ends at least.")
        return torch.linspace(0, 1, alphas, dtype=torch.float64)
    found = alphas.double().cpu()
    rising = found.ndim == 1 and len(found) > 1 and bool((found.diff() > 0).all())
    if not rising or float(found[0]) != 0 or float(found[-1]) != 1:
        raise ValueError(
            f"alphas {found.tolist()!s:.60}: a line's points rise from 0, its first network, to 1, its second."
        )
    return found
