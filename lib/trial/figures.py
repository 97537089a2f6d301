"""The chapter's pictures of the update itself: its geometry, two starts of one function, what a step costs; and what all share.

Those of rates are in `lib.trial.rate_figures`, those of scores in `lib.trial.score_figures`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from lib.drawing import Sign, dot, legend_above, logarithmic, rows, said, signs, student
from lib.plots import INK, Interval, Shown, figure, show, style
from lib.trial.cost import Times
from lib.trial.exact import Curves, gap
from lib.trial.images import SGD, UNIT, Cell, Followed

ANGLE = 115.0  # of the drawn filter, in degrees
TANGENT, RADIAL = 1.25, 0.4  # of its negative gradient: along the circle, outwards
BESIDE = (0.85, 0.97)  # where words on the right of the circle begin
LOWEST = 0.6  # of the lowest mean error: where an axis of errors ends at the latest


def both() -> dict[str, Sign]:
    """The signs of SGD and of unit norm, in this order."""
    return signs((SGD, UNIT))


def cells(found: Mapping[Cell, Followed], wanted: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """``wanted`` depths and schedules, if both methods are there; raises ValueError for none, or where one is missing."""
    if not wanted:
        raise ValueError(
            "no depth and schedule is asked for, so there is nothing to draw: name one at least."
        )
    missing = [(m, *cell) for cell in wanted for m in (SGD, UNIT) if (m, *cell) not in found]
    if missing:
        method, depth, schedule = missing[0]
        raise ValueError(f"{len(missing)} trainings are missing, the first {method}, {depth} layers, {schedule}: run them, or draw others.")  # fmt: skip
    return list(wanted)


def epochs(band: Float[np.ndarray, "k E"]) -> Float[np.ndarray, " E"]:
    """1, 2, ..."""
    return np.arange(1.0, band.shape[1] + 1)


def without(count: int) -> str:
    """A caption's word on runs that diverged."""
    return (
        f" Left out: {count} {'run' if count == 1 else 'runs'} whose numbers are not finite." if count else ""
    )


def below(cut: bool) -> str:
    """A caption's word on a logarithmic axis that cannot show all."""
    return " What reaches the lower edge goes on below it." if cut else ""


def error_axis(axes: Any, bands: Sequence[Float[np.ndarray, "3 _"]]) -> bool:
    """A logarithmic axis of errors in per cent around the means; whether a band goes on below it.

    A few runs' interval may reach nearly to zero, and would draw the axis with it.
    """
    means = np.concatenate([band[0] for band in bands])
    least = LOWEST * means[means > 0].min()
    logarithmic(axes, "y", [np.clip(band, least, 100.0) for band in bands])
    return any(bool((band < least).any()) for band in bands)


# ------------------------------------------------------------------------------------------------------------- geometry


@style()
def geometry(rate: float = 0.6) -> Shown:
    """One filter of two weights on the unit circle: its negative gradient, the tangent part, and the steps of both methods.

    Raises ValueError for a rate that is not between 0 and 1, where the steps would not lie on the arrows.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"a rate of {rate:g} leads off the drawn arrows: take one above 0 and at most 1.")
    at = np.deg2rad(ANGLE)
    w, along = np.array([np.cos(at), np.sin(at)]), np.array([np.sin(at), -np.cos(at)])
    down = TANGENT * along + RADIAL * w
    free, stepped = w + rate * down, w + rate * TANGENT * along
    kept = stepped / np.linalg.norm(stepped)
    sgd, unit = both().values()
    fig, axes = figure(6.4, 3.9)
    around = np.linspace(0, 2 * np.pi, 361)
    axes.plot(np.cos(around), np.sin(around), color=INK, ls="-", lw=1.0)
    axes.plot([0], [0], "+", color=INK, ms=7)
    _arrow(axes, (0, 0), w, INK, 1.4)
    _arrow(axes, w, w + down, INK, 1.0, "--")
    _arrow(axes, w, w + TANGENT * along, INK, 1.0, "--")
    axes.plot(*zip((0, 0), free, strict=True), color=sgd.colour, ls=":", lw=1.4)
    axes.plot(*zip((0, 0), kept, strict=True), color=unit.colour, ls=":", lw=1.4)
    _arrow(axes, w, free, sgd.colour, 2.6)
    _arrow(axes, w, stepped, unit.colour, 2.6)
    _arrow(axes, stepped, kept, unit.colour, 1.6)
    axes.plot(*free, sgd.marker, color=sgd.colour, ms=7)
    axes.plot(*kept, unit.marker, color=unit.colour, ms=7)
    axes.plot(*w, "o", color=INK, ms=6)
    length, under = np.linalg.norm(free), np.linalg.norm(stepped)
    words = {
        "filter w, length 1": (w, (-7, 3), "right"),
        "negative gradient": (w + down, (6, 2), "left"),
        "its tangent part": (w + TANGENT * along, (6, 0), "left"),
        f"SGD's step: length {length:.2f}": (free, (-8, 8), "right"),
        "unit circle": (np.array([np.cos(2.9), np.sin(2.9)]), (-6, 0), "right"),
    }
    for text, (place, offset, side) in words.items():
        axes.annotate(text, place, offset, textcoords="offset points", ha=side, va="center", fontsize=9)
    axes.annotate(
        "unit norm's step: along the tangent,\nthen back to the circle, length 1",
        kept,
        BESIDE,
        va="center",
        fontsize=9,
        arrowprops={"arrowstyle": "-", "color": unit.colour, "lw": 0.8, "shrinkB": 5},
    )
    axes.set(
        xlim=(-1.6, 2.2), ylim=(-0.2, 1.95), aspect="equal", xlabel="first weight", ylabel="second weight"
    )
    turned = [np.rad2deg(np.arccos(w @ end / np.linalg.norm(end))) for end in (free, kept)]
    return show(
        fig,
        f"A filter of two weights, an arrow from the centre to a unit circle. From its end the negative gradient points off the circle, its "
        f"tangent part along it. SGD's step, rate {rate:g}, ends outside the circle, at length {length:.2f}, turned by {turned[0]:.0f} degrees. "
        f"Unit norm's follows the tangent, to length {under:.2f}, then returns along the ray to the circle: length 1, turned by {turned[1]:.0f} degrees.",
        "A filter of two weights. Behind batch normalisation with epsilon 0 the gradient is its own tangent part; any other part is projected "
        "out. A longer filter turns less: SGD's effective rate is rate / |w|².",
    )


def _arrow(axes: Any, start: Any, end: Any, colour: str, width: float, dash: str = "-") -> None:
    look = {
        "arrowstyle": "-|>",
        "color": colour,
        "lw": width,
        "ls": dash,
        "shrinkA": 0,
        "shrinkB": 0,
        "mutation_scale": 9 + 2 * width,
    }
    axes.annotate("", end, start, arrowprops=look)


# ----------------------------------------------------------------------------------------------------------- two starts


@style()
def two_starts(
    curves: Sequence[Curves], seed: int = 0, methods: Sequence[str] = (SGD, UNIT, "scaled metric")
) -> Shown:
    """The loss of every batch from two starts that are one function, a panel a method; ``seed``: which of the curves.

    Raises ValueError for no curves, or for more than four methods.
    """
    if not curves:
        raise ValueError("there are no curves to draw: pass those of one seed at least.")
    of, each = signs(methods), curves[seed]
    fig, axes = figure(8.4, 3.3, columns=len(methods), sharey=True, squeeze=False)
    words = []
    for ax, method in zip(axes[0], methods, strict=True):
        unit, scaled = each.unit[method], each.scaled[method]
        steps, apart = np.arange(1, len(unit) + 1), gap(unit, scaled)
        ax.plot(steps, unit, color=of[method].colour, ls="-", lw=2.6, alpha=0.75)
        look = {"ls": (0, (2, 2)), "lw": 0.9, "marker": "o", "ms": 4.0, "mfc": "none", "mew": 1.0}
        ax.plot(steps, scaled, color=INK, markevery=max(1, len(unit) // 15), **look)
        ax.set(title=f"{method}\ngap {apart:.2g}", xlabel="step")
        words.append(
            f"{method}: from the unit start {unit[0]:.2f} to {unit[-1]:.2f}, from the rescaled one {scaled[0]:.2f} to {scaled[-1]:.2f}, "
            f"largest gap {apart:.2g}"
        )
    axes[0, 0].set_ylabel("loss of the batch (nats)")
    legend_above(fig, *_starts_key())
    largest = [max(gap(c.unit[m], c.scaled[m]) for c in curves) for m in methods]
    return show(
        fig,
        f"Loss against step, {len(methods)} panels, each with the curve from a start of unit filters and circles from the rescaled start. {'; '.join(words)}.",
        f"One seed of {len(curves)}, the same batches throughout. Both starts are one function; the second has every filter multiplied by a "
        "factor of its own, 10^U(−2, 2). Gap: largest distance of the two curves; over all seeds at most "
        + ", ".join(f"{value:.2g} ({m})" for m, value in zip(methods, largest, strict=True))
        + ".",
    )


def _starts_key() -> tuple[list, list[str]]:
    """Signs of both starts in ink, since every panel has its own colour; and what they are."""
    from matplotlib.lines import Line2D

    line = Line2D([], [], color=INK, ls="-", lw=2.6, alpha=0.75)
    circles = Line2D([], [], color=INK, ls=(0, (2, 2)), lw=0.9, marker="o", ms=4.0, mfc="none", mew=1.0)
    return [line, circles], ["from unit filters", "from rescaled filters, the same function"]


# ----------------------------------------------------------------------------------------------------------------- cost


@style()
def step_times(times: Sequence[Times]) -> Shown:
    """Milliseconds of a whole step and of the optimiser alone, a dot a repeat, both methods; a row of panels a network.

    Raises ValueError for no timings.
    """
    if not times:
        raise ValueError("there are no timings to draw: pass those of one network at least.")
    of = both()
    fig, axes = figure(8.4, 0.3 + 1.55 * len(times), rows=len(times), columns=2, squeeze=False)
    words = []
    for line, t in zip(axes, times, strict=True):
        for ax, alone in zip(line, (False, True), strict=True):
            what = "optimiser alone" if alone else "whole step"
            ratio = said(student([t.ratio(alone)])[:, 0])
            each = []
            for y, (method, sign) in enumerate(of.items()):
                values = 1e3 * (t.alone if alone else t.whole)[method]
                interval: Interval = tuple(student([values])[:, 0])
                ax.plot(
                    values, np.full(len(values), y + 0.24), ".", color=sign.colour, alpha=0.7, ms=6, mew=0
                )
                dot(ax, y, interval, sign)
                each.append(f"{method} {said(interval, '.3g')}")
            rows(ax, list(of) if not alone else [""] * len(of))
            ax.set(title=f"{t.network}, {what}", xlim=(0, None))
            ax.text(0.015, 1, f"× {ratio}", transform=ax.get_yaxis_transform(), va="center", fontsize=9)
            words.append(f"{t.network}, {what}: {', '.join(each)}, ratio {ratio}")
    for ax in axes[-1]:
        ax.set_xlabel("time (ms)")
    return show(
        fig,
        f"Milliseconds of a step, two rows of dots a panel. {'. '.join(words)}.",
        f"Faint: {len(next(iter(times[0].whole.values())))} repeats, each a median over steps; large, with bars: mean and 95 % interval. "
        "×: unit norm over SGD, within a repeat.",
    )
