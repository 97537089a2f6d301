"""Findings in pictures: one function, ``draw``, for what has one. Each comes with words for those who do not see it."""

from __future__ import annotations

from functools import singledispatch

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from lib.connectivity import Lines
from lib.drawing import Sign, curve, dot, legend_above, rows, signs
from lib.plots import COLOURS, DASHES, INK, MARKERS, Shown, figure, interval_plot, show, style
from lib.report.barriers import AGAIN, BY_ACTIVATIONS, MATCHED, PLAIN, Barriers
from lib.report.ensemble import Ensemble
from lib.report.intervals import Interval, over_pairs
from lib.report.merging import Merging
from lib.report.structure import Mass

MOST = 40  # rows of one picture


@singledispatch
def draw(found: object) -> Shown | None:
    """The picture of a finding, or None where a table says it all."""
    return None


@draw.register(Mass)
def _(found: Mass) -> Shown | None:
    if not found.kinds:
        return None
    values = found.excess.tolist()[:MOST]
    names = found.names[:MOST]
    said = "; ".join(f"{name} {value:.3g} %" for name, value in zip(names, values, strict=True))
    alt = f"Excess mass of each network in percent: {said}."
    caption = f"What each network has beyond the least mass along the scales used{_first(found.names)}"
    return _dots(names, values, alt, "excess mass (%)", caption)


@draw.register(Barriers)
@style()
def _(found: Barriers) -> Shown | None:
    kinds = _shown(found)
    of = signs(kinds, "kinds of lines")
    points = found.task == "classification"
    fig, axes = figure(8.4, 3.4, columns=2)
    scale, label = (100, "error (points)") if points else (1, "root mean squared error")
    words = []
    for ax, (what, name, by) in zip(axes, (("loss", "loss", 1), ("error", label, scale)), strict=True):
        for kind, lines in kinds.items():
            band = _band(by * lines.excess(what), found)
            curve(ax, lines.alphas.numpy(), band, of[kind], kind)
            top = int(band[0].argmax())
            words.append(f"{kind}: at most {band[0, top]:.3g} in {name}, at {lines.alphas[top]:.2f}")
        ax.axhline(0, color=INK, lw=1, ls="--", zorder=0)
        ax.set(xlabel="place on the line, α", ylabel=f"{name} above the ends")
    legend_above(fig, *axes[0].get_legend_handles_labels(), columns=2)
    each = found.barrier(found.best)
    note = f"bands: 95 % intervals over {each.over}" if each.known else "too few networks for intervals"
    return show(
        fig,
        f"Loss and error above the straight line between two networks, against the place on the line. {'; '.join(words)}.",
        f"Means over {len(found.pairs)} pairs; {note}.",
    )


@draw.register(Merging)
def _(found: Merging) -> Shown | None:
    points = found.task == "classification"
    scale = 100 if points else 1
    unit = "error (%)" if points else "mean squared error"
    bars = [(name, *_ends(found.score(name), scale)) for name in found.error]
    said = "; ".join(f"{name} {value:.3g}" for name, value, _, _ in bars)
    return interval_plot(
        bars,
        alt=f"{unit} of single networks, means and ensemble, with intervals over examples: {said}.",
        xlabel=unit,
        caption="95 % intervals over examples.",
    )


@draw.register(Ensemble)
def _(found: Ensemble) -> Shown | None:
    if len(found.names) < 2:
        return None
    points = found.task == "classification"
    scale, unit = (100, "error (%)") if points else (1, "mean squared error")
    together = next(iter(found.scores.values())).get("ensemble")
    values = (scale * found.alone).tolist()[:MOST]
    said = "; ".join(f"{name} {value:.3g}" for name, value in zip(found.names, values, strict=False))
    return _dots(
        found.names[:MOST],
        values,
        f"{unit} of each network: {said}; of the ensemble {scale * together.value:.3g}, the dashed line.",
        unit,
        f"Each network alone; the dashed line is the ensemble{_first(found.names)}",
        scale * together.value,
    )


def _first(names: tuple[str, ...]) -> str:
    """The end of a caption, which says where not all are drawn."""
    return "." if len(names) <= MOST else f"; the first {MOST} of {len(names)}."


@style()
def _dots(
    names: tuple[str, ...],
    values: list[float],
    alt: str,
    xlabel: str,
    caption: str,
    reference: float | None = None,
) -> Shown:
    fig, axes = figure(6.4, 0.9 + 0.3 * len(names))
    sign = Sign(COLOURS[0], DASHES[0], MARKERS[0])
    for y, value in enumerate(values):
        dot(axes, y, np.array([value, value, value]), sign)
    if reference is not None:
        axes.axvline(reference, color=INK, lw=1, ls="--")
    rows(axes, names)
    axes.set(xlabel=xlabel)
    left, right = axes.get_xlim()
    axes.set_xlim(min(left, 0.0), right)
    return show(fig, alt, caption)


def _shown(found: Barriers) -> dict[str, Lines]:
    """At most four kinds, which four signs tell apart: with BatchNorm, of matched networks alone those that are not recalibrated."""
    if len(found.kinds) <= len(COLOURS):
        return dict(found.kinds)
    kept = (PLAIN + AGAIN, MATCHED, MATCHED + AGAIN, BY_ACTIVATIONS + AGAIN)
    return {kind: found.kinds[kind] for kind in kept}


def _band(values: Float64[Tensor, "K points"], found: Barriers) -> np.ndarray:
    """(3, points): means over pairs, and their intervals or nothing."""
    each = [over_pairs(column, found.pairs, len(found.names)) for column in values.unbind(1)]
    ends = [(i.value, i.low, i.high) if i.known else (i.value, i.value, i.value) for i in each]
    return torch.tensor(ends, dtype=torch.float64).T.numpy()


def _ends(found: Interval, scale: float | int) -> tuple[float, float, float]:
    if not found.known:
        return (scale * found.value,) * 3
    return scale * found.value, scale * found.low, scale * found.high
