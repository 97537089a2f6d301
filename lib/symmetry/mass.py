"""The mass of a network and its minimum over all rescalings that leave the function unchanged.

The mass is the sum of squared weights (Laurent et al. 2024, Definition 3.3; biases excluded, as in the authors' code).
Over log-scales u it is a sum of exponentials of affine functions, hence convex; coordinate descent has the closed form
u_i ← u_i + ¼ log(out_i / in_i), with in_i and out_i the squared norms of what enters and leaves unit i.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from lib.params import Params
from lib.symmetry.act import members_of, precise, rescale
from lib.symmetry.balance import balance, peel
from lib.symmetry.scale_graph import GROUND, ScaleGraph, chosen_freedoms, is_counted, scale_graph
from lib.symmetry.structure import Symmetries


class UnattainedInfimum(Exception):
    """The mass has no minimum on the orbit: some scale lowers it for ever."""


@dataclass(frozen=True, eq=False)
class MinMass:
    """The minimum mass of each network, with its certificate. ``*P`` is (P,) for a population, () for one network.

    mass        the minimum m*; the infimum where ``attained`` is False
    log_scales  one (*P, size) tensor a freedom, those of the minimum; 0 at dead units and at freedoms not used
    params      the network rescaled by them, in its own dtype (computed when it is asked for)
    gap         (m − m*) / m is at most this: proved by weak duality for every member, whatever the solver did
    sweeps      coordinate-descent sweeps over all freedoms
    attained    False where a dead unit still has weights on one side, which shrink for ever without reaching 0
    strict      True where the minimum is unique: no dead unit
    dead        one (*P, size) mask a freedom: units that no path of nonzero weights joins to both input and output
    """

    mass: Float64[Tensor, "*P"]
    log_scales: tuple[Tensor, ...]
    gap: Float64[Tensor, "*P"]
    sweeps: Int64[Tensor, "*P"]
    attained: Bool[Tensor, "*P"]
    strict: Bool[Tensor, "*P"]
    dead: tuple[Tensor, ...]
    rescaled: Callable[[], Params] = field(repr=False)

    @cached_property
    def params(self) -> Params:
        return self.rescaled()


def mass(params: Mapping[str, Tensor], symmetries: Symmetries, biases: bool = False) -> Float64[Tensor, "*P"]:
    """Sum of squares of all weights of layers and norms; of the biases too where ``biases`` is True. Float64."""
    lead = members_of(params, symmetries) is not None
    parts = [
        precise(params[name]).square().flatten(int(lead)).sum(-1)
        for name in symmetries.shapes
        if is_counted(name, biases)
    ]
    return torch.stack(parts).sum(0)


def min_mass(
    params: Mapping[str, Tensor],
    symmetries: Symmetries,
    *,
    biases: bool = False,
    freedoms: str | Sequence[str] | None = None,
    tolerance: float = 1e-12,
    max_sweeps: int = 10_000,
    start: Sequence[Tensor] | None = None,
) -> MinMass:
    """The smallest mass among the rescalings of each network (Laurent et al. 2024, Definition 3.3, Proposition 2).

    Coordinate descent, all members at once, in float64; a member rests once its certified relative gap is at most
    ``tolerance``. One hidden layer takes one sweep (m* = 2 Σ √(in·out)). ``freedoms`` restricts the kinds of scales
    ("homogeneous", "affine", "normalised"; all by default); ``start`` gives log-scales to begin from. Members with
    NaN or infinite weights get mass and gap NaN and are left alone. Raises UnattainedInfimum where a scale only ever
    multiplies (or only divides) what is counted, as the weights before a BatchNorm.
    """
    members = members_of(params, symmetries)
    batched = dict(params) if members is not None else {name: tensor[None] for name, tensor in params.items()}
    graph = scale_graph(batched, symmetries, chosen_freedoms(symmetries, freedoms), biases)
    _refuse_unattained(graph, symmetries)
    finite = torch.isfinite(graph.total())
    graph, dead, attained = peel(graph)
    scales, gap, sweeps = balance(graph, _start(graph, dead, symmetries, start), tolerance, max_sweeps)
    nan = torch.where(finite, 0.0, torch.nan)

    def single(tensor: Tensor) -> Tensor:
        return tensor if members is not None else tensor[0]

    unused = [finite.new_zeros(len(finite), freedom.size) for freedom in symmetries.scales]
    lost = [dead.get(f, none) for f, none in enumerate(unused)]
    moved = [scales[f].log() / 2 if f in scales else none.double() for f, none in enumerate(unused)]
    log_scales = tuple(single(torch.where(finite[:, None], u, 0.0)) for u in moved)
    return MinMass(
        mass=single(graph.total(scales) + nan),
        log_scales=log_scales,
        gap=single(gap + nan),
        sweeps=single(sweeps),
        attained=single(attained & finite),
        strict=single(~torch.cat([*lost, ~finite[:, None]], 1).any(1)),
        dead=tuple(single(mask) for mask in lost),
        rescaled=partial(rescale, params, symmetries, log_scales),
    )


@dataclass(frozen=True, eq=False)
class LogScaleObjective:
    """The mass of one network as a function of its log-scales, mass(u) = Σ_k c_k exp(2 a_k · u): differentiable.

    ``coefficients`` c (T,) > 0 and ``exponents`` a (T, n), float64, for any convex solver; n = the number of scales.
    """

    coefficients: Float64[Tensor, " T"]
    exponents: Float64[Tensor, "T n"]
    sizes: tuple[int, ...]

    def __call__(self, u: Float64[Tensor, "*K n"]) -> Float64[Tensor, "*K"]:
        return (2 * u @ self.exponents.T).exp() @ self.coefficients

    def hessian(self, u: Float64[Tensor, "*K n"]) -> Float64[Tensor, "*K n n"]:
        """Second derivatives, 4 Σ_k t_k a_k a_kᵀ with t_k the terms at u: positive definite where all units live."""
        terms = (2 * u @ self.exponents.T).exp() * self.coefficients
        return 4 * torch.einsum("...t,tm,tn->...mn", terms, self.exponents, self.exponents)

    def split(self, u: Float64[Tensor, "*K n"]) -> tuple[Tensor, ...]:
        """The concatenated log-scales as one tensor a freedom, as ``rescale`` takes them."""
        return u.split(self.sizes, dim=-1)


def log_scale_objective(
    params: Mapping[str, Tensor], symmetries: Symmetries, *, biases: bool = False
) -> LogScaleObjective:
    """The mass of a single network over the concatenated log-scales of all its freedoms, batched: (K, n) -> (K,).

    For experiments with convexity, Hessians and other solvers; ``min_mass`` is the solver. Raises ValueError for a
    population.
    """
    if members_of(params, symmetries) is not None:
        raise ValueError(
            "log_scale_objective takes one network: choose one with lib.params.member(params, i)."
        )
    everything = range(len(symmetries.scales))
    graph = scale_graph({k: v[None] for k, v in params.items()}, symmetries, everything, biases)
    starts = {f: sum(s.size for s in symmetries.scales[:f]) for f in everything}
    total = sum(freedom.size for freedom in symmetries.scales)
    coefficients, exponents = [], []
    for (tail, head), block in graph.blocks.items():
        t, h = block[0].nonzero(as_tuple=True)
        rows = block.new_zeros(len(t), total)
        each = torch.arange(len(t), device=block.device)
        for end, units, sign in ((tail, t, -1.0), (head, h, 1.0)):
            if end != GROUND:
                rows[each, starts[end] + units] += sign
        coefficients.append(block[0, t, h])
        exponents.append(rows)
    sizes = tuple(freedom.size for freedom in symmetries.scales)
    return LogScaleObjective(torch.cat(coefficients), torch.cat(exponents), sizes)


def _refuse_unattained(graph: ScaleGraph, symmetries: Symmetries) -> None:
    for f in graph.sizes:
        heads, tails = {h for _, h in graph.blocks}, {t for t, _ in graph.blocks}
        if f not in heads or f not in tails:
            freedom = symmetries.scales[f]
            others = sorted({s.kind for s in symmetries.scales} - {freedom.kind})
            raise UnattainedInfimum(
                f"the scales of {freedom.layer!r} ({freedom.kind}) change the mass in one direction only: it falls for "
                f"ever as those weights shrink, its infimum is not attained, and no minimum mass exists. "
                f"Restrict the scales, for example freedoms={tuple(others)!r}."
            )


def _start(
    graph: ScaleGraph, dead: Mapping[int, Tensor], symmetries: Symmetries, start: Sequence[Tensor] | None
) -> dict[int, Tensor]:
    """Scales exp(2u), (P, size) by freedom: those of ``start``, 1 at dead units and on the ground."""
    scales = graph.ones()
    if start is None:
        return scales
    if [tuple(tensor.shape[-1:]) for tensor in start] != [(freedom.size,) for freedom in symmetries.scales]:
        raise ValueError(
            f"start has sizes {[tuple(t.shape) for t in start]}: give one tensor of log-scales a freedom, of sizes "
            f"{[freedom.size for freedom in symmetries.scales]}."
        )
    for f in graph.sizes:
        given = (2 * start[f].to(scales[f])).exp() * scales[f]
        scales[f] = torch.where(dead[f], scales[f], given)
    return scales
