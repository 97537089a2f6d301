"""The chapter's own pictures, drawn with `lib.plots`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from lib.free_energy import coefficients
from lib.growth.curves import Curve, shape
from lib.growth.sound import interval
from lib.plots import COLOURS, DASHES, INK, PALETTE, Shown, figure, show

LEVELS = (0.1, 0.01, 0.001)  # of K, in the picture of volumes


def volumes() -> Shown:
    """Two models of two parameters: where K(w) is below a level, and how fast the prior mass of that set shrinks."""
    fig, (left, middle, right) = figure(8.4, 3.1, columns=3, gridspec_kw={"width_ratios": (1, 1, 1.25)})
    axis = np.linspace(-2, 2, 201)
    a, b = np.meshgrid(axis, axis)
    fills = [PALETTE["blue"], PALETTE["orange"], PALETTE["purple"]]
    for axes, k, title in (
        (left, 0.5 * (a**2 + b**2), "y = a x₁ + b x₂"),
        (middle, 0.5 * (a * b) ** 2, "y = a b x"),
    ):
        for level, colour, alpha in zip(LEVELS, fills, (0.3, 0.6, 1.0), strict=True):
            axes.contourf(a, b, k, levels=[0, level], colors=[colour], alpha=alpha)
        axes.set(title=title, xlabel="a", xticks=[-2, 0, 2], yticks=[-2, 0, 2], aspect="equal")
    left.set_ylabel("b")
    level = np.logspace(-6, -1, 30)
    right.plot(level, 1 - np.exp(-level), color=COLOURS[0], ls=DASHES[0], label="a x₁ + b x₂: λ = 1")
    right.plot(
        level,
        _mass_of_product(np.sqrt(2 * level)),
        color=COLOURS[1],
        ls=DASHES[1],
        label="a b x: λ = 1/2, m = 2",
    )
    right.set(xscale="log", yscale="log", xlabel="level ε of K", ylabel="prior mass of {K < ε}")
    right.legend(loc="lower right")
    return show(
        fig,
        "Left: for a model of two parameters that can be told apart, the sets where K is below 0.1, 0.01 and 0.001 are shrinking "
        "discs. Middle: for the product of two parameters they are crosses along both axes. Right: prior mass against the level "
        "on logarithmic axes; the discs' mass falls with slope one, that of the crosses ever nearer to one half.",
        "Parameters that say almost the same as the truth (zero): K below 0.1 (pale blue), 0.01 (orange) and 0.001 (purple). The "
        "exponent with which their prior mass vanishes is λ.",
    )


def _mass_of_product(width: np.ndarray) -> np.ndarray:
    """P(|ab| < width) for independent standard normal a and b."""
    from scipy.special import erf

    a = np.geomspace(1e-7, 8, 1_001)
    density = np.exp(-0.5 * a**2) * math.sqrt(2 / math.pi)
    return np.trapezoid(density * erf(width[:, None] / (a * math.sqrt(2))), a, axis=1)


def proof() -> Shown:
    """Why redundant units and layers cost nothing: what may move freely, and the function that stays."""
    fig, (left, middle, right) = figure(8.4, 2.8, columns=3)
    x, h = np.linspace(-1, 1, 201), np.linspace(0, 1.4, 100)
    lines = ((COLOURS[1], DASHES[1]), (COLOURS[2], DASHES[2]))
    left.axhspan(-1.6, 0, color=PALETTE["green"], alpha=0.15, lw=0)
    for (slope, bias), (colour, dash) in zip(((0.5, -0.9), (-0.3, -0.6)), lines, strict=True):
        left.plot(x, slope * x + bias, color=colour, ls=dash)
    left.axhline(0, color=INK, lw=1.5)
    left.set(title="a dead unit", xlabel="input x", ylabel="before the ReLU", ylim=(-1.6, 0.5))
    middle.axhspan(0, 2.0, color=PALETTE["green"], alpha=0.15, lw=0)
    for (slope, bias), (colour, dash) in zip(((0.8, 0.2), (1.2, 0.05)), lines, strict=True):
        middle.plot(h, slope * h + bias, color=colour, ls=dash)
    middle.axhline(0, color=INK, lw=1.5)
    middle.set(
        title="an added layer",
        xlabel="what it reads, never negative",
        ylabel="before the ReLU",
        ylim=(-0.4, 2.0),
    )
    hidden = np.maximum(x - 0.1, 0)
    for (slope, bias), (colour, dash) in zip(((0.8, 0.2), (1.2, 0.05)), lines, strict=True):
        right.plot(x, 1.5 / slope * ((slope * hidden + bias) - bias) - 0.3, color=colour, ls=dash, lw=2.4)
    right.set(title="the network, both times", xlabel="input x", ylabel="output")
    return show(
        fig,
        "Left: two settings of a dead unit, straight lines below zero on the whole support. Middle: two settings of an added "
        "layer, lines above zero for all that it can read. Right: the outputs of the networks with either setting, one on top "
        "of the other, flat and then rising from 0.1 on.",
        "Shaded: where the lines may lie. Dashed and dash-dotted are two choices among an open set of them; after the output layer has been "
        "matched, both give the network on the right. Such freedom takes no part in the coefficient of log n.",
    )


def free_energies(curves: Sequence[Curve], bounded: Curve, biggest: Curve) -> Shown:
    """F0 of several learners with two slopes to compare: lambda_ReLU from ``bounded``'s truth, d/2 of ``biggest``."""
    fig, axes = figure(6.4, 4.0)
    for curve, colour, dash in zip(curves, COLOURS, DASHES, strict=False):
        n, rows = curve.n.numpy(), [interval(row) for row in curve.free_energy.numpy()]
        mean, low, high = map(np.array, zip(*rows, strict=True))
        axes.fill_between(n, low, high, color=colour, alpha=0.2, lw=0)
        axes.plot(n, mean, color=colour, ls=dash, label=shape(curve.learner.widths))
    n = bounded.n.numpy()
    start = bounded.free_energy[bounded.at(100.0)].mean().item()
    bound = coefficients.relu_bound(bounded.learner.truth.widths)
    top = 1.25 * max(float(curve.free_energy[-1].mean()) for curve in curves)
    for slope, words, dash in (
        (bound, f"slope λ_ReLU = {bound:g}", (0, (6, 3))),
        (biggest.learner.parameters / 2, f"slope d/2 of {shape(biggest.learner.widths)}", (0, (1, 1))),
    ):
        axes.plot(n, start + slope * np.log(n / 100), color=INK, lw=1.2, ls=dash, label=words)
    axes.set(xscale="log", xlabel="n", ylabel="F₀(n) (nats)", ylim=(0, top))
    axes.legend(loc="lower right")
    names = ", ".join(shape(curve.learner.widths) for curve in curves)
    return show(
        fig,
        f"Population free energy against n on a logarithmic axis for learners {names}: curves that soon become nearly "
        "straight, beside a thin line with the theorem's slope and a far steeper one with half a learner's number of parameters.",
        "Bands (often thinner than the line): 95 % intervals over independent runs. The last two lines are slopes to compare with, drawn from n = 100 on.",
    )


def headroom(curves: Sequence[Curve], small: Mapping[str, Tensor]) -> Shown:
    """F_H - F_1 of the truth's depth against n, with the height that no n can lift it above."""
    fig, axes = figure(6.4, 3.6)
    for curve, colour, dash in zip(curves, COLOURS[1:], DASHES[1:], strict=False):
        learner = curve.learner
        over = (curve.free_energy - small[learner.name][:, None]).numpy()
        mean, low, high = map(np.array, zip(*map(interval, over), strict=True))
        cost = coefficients.embedding_cost(learner.widths, learner.truth.widths)
        axes.fill_between(curve.n, low, high, color=colour, alpha=0.2, lw=0)
        axes.plot(curve.n, mean, color=colour, ls=dash, label=shape(learner.widths))
        axes.axhline(cost, color=colour, ls=dash, lw=1, alpha=0.8)
        axes.annotate(
            f"bound of {shape(learner.widths)}",
            (float(curve.n[0]), cost),
            (2, 3),
            textcoords="offset points",
            color=INK,
            fontsize=9,
        )
    axes.axhline(0, color=INK, lw=0.8)
    axes.set(xscale="log", xlabel="n", ylabel="F₀ above that of 1-1-1 (nats)")
    axes.legend(loc="upper left", bbox_to_anchor=(0.02, 0.88))
    return show(
        fig,
        "Free energy of wider learners minus that of the truth-sized one against n, each below its own horizontal bound.",
        "No curve may cross its horizontal line at any n; what is left below the line is all that the wider learner can still "
        "lose against the smaller one.",
    )


def slope_series(curves: Sequence[Curve], decades: int) -> dict[str, tuple[np.ndarray, ...]]:
    """For a figure: the slope of each of the last decades at its geometric middle, with intervals."""
    series = {}
    for curve in curves:
        ends = [float(curve.n[-1]) / 10**d for d in range(decades, 0, -1)]
        rows = [interval(values) for values in curve.slopes(decades)]
        mean, low, high = map(np.array, zip(*rows, strict=True))
        series[shape(curve.learner.widths)] = (np.array(ends) * math.sqrt(10), mean, low, high)
    return series
