"""Balance the flow of squared weights: coordinate descent with a proven optimality gap, all members at once."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lib.symmetry.scale_graph import GROUND, ScaleGraph


def balance(
    graph: ScaleGraph, scales: dict[int, Tensor], tolerance: float, max_sweeps: int
) -> tuple[dict[int, Tensor], Tensor, Tensor]:
    """Minimise ``graph.total(scales)`` from ``scales`` = exp(2u), (P, size) a freedom.

    A member rests once its certified relative gap is at most ``tolerance``. Returns the scales, the gaps (P,) and the
    sweeps (P,) that each member took.
    """
    scales, order = dict(scales), graph.order()
    gap = optimality_gap(graph, scales, order)
    sweeps = torch.zeros_like(gap, dtype=torch.int64)
    for _ in range(max_sweeps):
        active = gap > tolerance  # False for NaN
        if not active.any():
            break
        for f in order or graph.sizes:
            scales[f] = torch.where(active[:, None], _minimised(graph, scales, f), scales[f])
        sweeps += active
        gap = optimality_gap(graph, scales, order)
    return scales, gap, sweeps


def peel(graph: ScaleGraph) -> tuple[ScaleGraph, dict[int, Tensor], Tensor]:
    """Remove dead units, layer by layer: one without incoming weight sends its outgoing ones to 0, and conversely.

    Returns the graph of the living, the dead (P, size) by freedom, and whether nothing nonzero was removed (P,).
    """
    ones, before = graph.ones(), _edges(graph)
    dead = {f: torch.zeros_like(ones[f], dtype=torch.bool) for f in graph.sizes}
    while True:
        found = {f: (graph.inflow(f, ones) == 0) | (graph.outflow(f, ones) == 0) for f in graph.sizes}
        if all(torch.equal(found[f], dead[f]) for f in found):
            return graph, dead, _edges(graph) == before
        graph, dead = graph.without(found), found


def optimality_gap(graph: ScaleGraph, scales: Mapping[int, Tensor], order: list[int] | None) -> Tensor:
    """(P,): a proven bound on (m − m*)/m at these scales, infinite where none was found.

    Weak duality: for squared weights t_k at u, and any flow f ≥ 0 that enters each unit as much as it leaves it,
    m* ≥ Σ f_k (1 + log(t_k/f_k)), since y ≥ f + f log(y/f) and Σ f_k a_k = 0. The flow f_k = t_k ρ_tail(k), with ρ = 1
    on the ground and each unit's ρ such that it passes on what it receives, gives m − m* ≤ Σ_i out_i φ(ρ_i) with
    φ(ρ) = ρ log ρ − ρ + 1: quadratic in the imbalance. ρ follows in one pass from the input (``order``), or, where a
    residual stream closes a cycle, from one linear solve.
    """
    leaving = {f: graph.outflow(f, scales) / scales[f] for f in graph.sizes}
    density = {GROUND: scales[GROUND]}
    if order is None:
        density.update(_stationary(graph, scales, leaving))
    else:
        passed = dict(density)
        for f in order:
            received = graph.inflow(f, passed) * scales[f]
            density[f] = torch.where(leaving[f] > 0, received / leaving[f], 1.0)
            passed[f] = density[f] / scales[f]
    total = graph.total(scales)
    excess = torch.zeros_like(total)
    for f in graph.sizes:
        rho = density[f]
        phi = torch.where(rho > 0, rho * torch.log1p(rho - 1) - (rho - 1), 1.0)
        excess = excess + (leaving[f] * phi.clamp(min=0)).sum(1)
    bound = torch.where(total > 0, excess / total, 0.0)
    return torch.where(torch.isfinite(bound) | ~torch.isfinite(total), bound, torch.inf)


def _minimised(graph: ScaleGraph, scales: Mapping[int, Tensor], f: int) -> Tensor:
    """The scales of freedom f at its own minimum, the others held: u + ¼ log(out/in); dead units stay.

    Where its units also feed one another, that joint step could overshoot: half of it minimises a majorant,
    exp(a − b) ≤ ½ exp(2a) + ½ exp(−2b).
    """
    entering = graph.inflow(f, {g: 1 / s for g, s in scales.items()}) * scales[f]
    leaving = graph.outflow(f, scales) / scales[f]
    alive = (entering > 0) & (leaving > 0)
    ratio = torch.where(alive, leaving, 1.0) / torch.where(alive, entering, 1.0)
    return scales[f] * ratio ** (0.25 if (f, f) in graph.blocks else 0.5)


def _edges(graph: ScaleGraph) -> Tensor:
    """(P,): the number of nonzero edges."""
    return torch.stack([block.count_nonzero((1, 2)) for block in graph.blocks.values()]).sum(0)


def _stationary(
    graph: ScaleGraph, scales: Mapping[int, Tensor], leaving: Mapping[int, Tensor]
) -> dict[int, Tensor]:
    """ρ from out_i ρ_i − Σ_j t_ji ρ_j = flow from the ground into i; infinite where this has no solution ≥ 0."""
    freedoms = list(graph.sizes)
    starts = {f: sum(graph.sizes[g] for g in freedoms[:i]) for i, f in enumerate(freedoms)}
    out = torch.cat([leaving[f] for f in freedoms], 1)
    matrix = torch.diag_embed(torch.where(out > 0, out, 1.0))
    source = torch.where(out > 0, 0.0, 1.0).to(out)  # ρ = 1 at dead units
    for (t, h), block in graph.blocks.items():
        if h == GROUND:
            continue
        flow = block / scales[t][:, :, None] * scales[h][:, None, :]
        heads = slice(starts[h], starts[h] + graph.sizes[h])
        if t == GROUND:
            source[:, heads] += flow[:, 0]
        else:
            matrix[:, heads, starts[t] : starts[t] + graph.sizes[t]] -= flow.mT
    rho, _ = torch.linalg.solve_ex(matrix, source)
    rho = torch.where(torch.isfinite(rho) & (rho >= 0), rho, torch.inf)
    return dict(zip(freedoms, rho.split([graph.sizes[f] for f in freedoms], 1), strict=True))
