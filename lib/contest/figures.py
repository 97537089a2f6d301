"""The chapter's pictures of the laws themselves: their correlations, draws and gradients, what they cost, and their bound.

Those of the contests are in `lib.contest.score_figures`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float

from lib import randomness
from lib.contest import cost
from lib.contest.bound import Result
from lib.contest.cost import DETERMINISTIC, PSEUDO, Times
from lib.contest.methods import FACTORISED, VMG
from lib.drawing import (
    Sign,
    beside,
    colour_bar,
    counted,
    curve,
    dot,
    heat,
    key,
    legend_above,
    logarithmic,
    off_diagonal,
    rows,
    said,
    signs,
    student,
)
from lib.plots import COLOURS, INK, MARKERS, PALETTE, Shown, figure, show, style

MARGIN = 3.0  # of P3-C11
STEPS = 400  # of an empirical distribution, at most: more cannot be seen
ROWS, COLUMNS = 4, 3  # of the example
SMALL = {"6-50": (6, 50)}  # a layer of the regressions, beside those of the timings


@style()
def kronecker(seed: int) -> Shown:
    """cov vec(W) = V ⊗ U for an example of four rows and three columns: the two factors, and the whole."""
    a = randomness.normal(seed, torch.arange(1), "contest/kronecker", 0, (ROWS + COLUMNS, 2), torch.float64)
    u, v = (correlation(part @ part.T + 0.5 * np.eye(len(part))) for part in np.split(a[0].numpy(), [ROWS]))
    whole = np.kron(v, u)
    fig, axes = figure(8.4, 3.5, columns=3, gridspec_kw={"width_ratios": (1, 1, 1.75)})
    heat(axes[0], u, "U, of the rows")
    heat(axes[1], v, "V, of the columns")
    image = heat(axes[2], whole, "V ⊗ U, of all weights")
    axes[0].set(xlabel="row of W", ylabel="row of W")
    axes[1].set(xlabel="column of W", ylabel="column of W")
    middles = np.arange(COLUMNS) * ROWS + (ROWS - 1) / 2
    for set_ticks in (axes[2].set_xticks, axes[2].set_yticks):
        set_ticks(middles, [f"column {j + 1}" for j in range(COLUMNS)])
    axes[2].set_yticklabels(axes[2].get_yticklabels(), rotation=90, va="center")
    axes[2].tick_params(length=0)
    axes[2].set(xlabel="entry of vec(W), four rows a column")
    for edge in np.arange(1, COLUMNS) * ROWS - 0.5:
        axes[2].axhline(edge, color=INK, lw=0.8)
        axes[2].axvline(edge, color=INK, lw=0.8)
    colour_bar(fig, image, axes)
    i, j = max(((i, j) for i in range(COLUMNS) for j in range(i)), key=lambda at: abs(v[at]))
    return show(
        fig,
        f"Three maps of correlations. Rows, {ROWS} by {ROWS}: beside the diagonal {_span(off_diagonal(u))}. Columns, {COLUMNS} by "
        f"{COLUMNS}: {_span(off_diagonal(v))}. All {ROWS * COLUMNS} weights: {COLUMNS} by {COLUMNS} blocks, those on the diagonal equal to "
        f"the map of the rows, the others that map times an entry of the columns'; the strongest of these, of columns {j + 1} and {i + 1}, "
        f"is the rows' map times {v[i, j]:.2f}.",
        f"A matrix Gaussian in one picture, an example with unit variances: every block is U times one entry of V. {_count(u, v)}",
    )


def _count(u: np.ndarray, v: np.ndarray) -> str:
    """How many numbers the factors have, and the whole."""
    free = [n * (n + 1) // 2 for n in (len(u), len(v), len(u) * len(v))]
    return f"Two symmetric matrices of {free[0]} and {free[1]} numbers stand for one of {free[2]}."


def correlation(covariance: Float[np.ndarray, "r r"]) -> Float[np.ndarray, "r r"]:
    """C_ij / sqrt(C_ii C_jj)."""
    sd = np.sqrt(np.diag(covariance))
    return covariance / np.outer(sd, sd)


@style()
def row_correlations(panels: Mapping[str, Float[np.ndarray, "r r"]]) -> Shown:
    """Correlations of a layer's rows of weights, one map a law, side by side; raises ValueError for what is no correlation."""
    for name, matrix in panels.items():
        if (
            len(matrix) < 2 or not np.isfinite(matrix).all() or np.abs(matrix).max() > 1 + 1e-3
        ):  # float32 sums
            raise ValueError(
                f"the panel {name!r} is no matrix of correlations of two rows or more: its entries must be finite and "
                "within [-1, 1]. Where pseudo-data fix all rows, nothing varies and there is none to draw."
            )
    fig, axes = figure(1.2 + 2.4 * len(panels), 3.0, columns=len(panels), squeeze=False)
    words = []
    for place, (ax, (name, matrix)) in enumerate(zip(axes[0], panels.items(), strict=True)):
        image = heat(ax, matrix, name)
        ax.set(xlabel="row of W", ylabel="" if place else "row of W")
        off = off_diagonal(matrix)
        words.append(f"{name}: {_span(off)}, root mean square {np.sqrt(np.mean(off**2)):.2f}")
    colour_bar(fig, image, axes[0])
    return show(
        fig,
        f"{len(panels)} maps of correlations between rows of weights; beside the diagonal, {'; '.join(words)}.",
        "A row holds the weights of one input. The diagonal is one by definition; beside it, nought is the page's own colour.",
    )


def _span(values: np.ndarray) -> str:
    return f"from {values.min():.2f} to {values.max():.2f}"


@style()
def functions(
    x: Float[np.ndarray, " points"],
    joint: Float[np.ndarray, "draws points"],
    independent: Float[np.ndarray, "draws points"],
) -> Shown:
    """Draws of a layer's output along a line of inputs: with one weight matrix each, and with fresh noise for every input."""
    fig, (left, right) = figure(8.4, 3.2, columns=2, sharey=True)
    for axes, draws, title in (
        (left, joint, "one weight matrix a curve"),
        (right, independent, "fresh noise for every input"),
    ):
        for row in draws[1:]:
            axes.plot(x, row, color=COLOURS[0], ls="-", lw=1.1)
        axes.plot(x, draws[0], color=COLOURS[1], ls="-", lw=2.2)
        axes.set(title=title, xlabel="input x")
    left.set_ylabel("output of the layer")
    steps = [float(np.abs(np.diff(draws, axis=1)).mean()) for draws in (joint, independent)]
    spreads = [float(draws.std(axis=0).mean()) for draws in (joint, independent)]
    return show(
        fig,
        f"{len(joint)} curves beside {len(independent)}, one of each set orange and the others blue. From one point to the next a curve on the "
        f"left moves by {steps[0]:.2g} on average, on the right by {steps[1]:.2g}, {steps[1] / steps[0]:.3g} times as much; the curves of a "
        f"set differ at one input by a standard deviation of {spreads[0]:.2g} and {spreads[1]:.2g}.",
        f"{x.size} inputs on a line. Both kinds of draw have the same mean and variance at every single input.",
    )


@style()
def gradient_variance(ratios: Mapping[str, Float[np.ndarray, " parameters"]]) -> Shown:
    """How the ratio of gradient variances, weights sampled over local, is distributed over parameters.

    Values that are not finite or not above zero are left out and counted; raises ValueError where none is left.
    """
    fig, axes = figure(6.4, 3.5)
    kept, left_out, words = {}, 0, []
    for name, values in ratios.items():
        good = values[np.isfinite(values) & (values > 0)]
        if not len(good):
            raise ValueError(f"{name!r} has no ratio above zero: there is nothing to draw.")
        left_out += len(values) - len(good)
        kept[name] = good
    for name, sign in signs(kept, "laws").items():
        x, y = distribution(kept[name])
        axes.plot(x, y, color=sign.colour, ls=sign.dash, label=name, drawstyle="steps-post")
        axes.plot([np.median(kept[name])], [0.5], sign.marker, color=sign.colour, ms=6)
        words.append(
            f"{name}: median {np.median(kept[name]):.3g}, and {np.mean(kept[name] > MARGIN):.0%} of {len(kept[name]):,} parameters above {MARGIN:g}"
        )
    logarithmic(axes, "x", [*kept.values(), [1.0, MARGIN]])
    axes.axvline(1, color=INK, lw=1, ls=":")
    axes.axvline(MARGIN, color=INK, lw=1, ls="--")
    axes.annotate(f"{MARGIN:g}", (MARGIN, 1.0), (3, -2), textcoords="offset points", va="top", fontsize=9)
    axes.set(
        xlabel="variance of the gradient, weights sampled / local trick",
        ylabel="share of parameters below",
        ylim=(0, 1.02),
    )
    axes.legend(loc="lower right")
    note = (
        f" Left out: {left_out:,} (no number, or none above zero; for a parameter without a gradient)."
        if left_out
        else ""
    )
    return show(
        fig,
        f"Cumulative curves over a logarithmic axis. {'; '.join(words)}.",
        f"Marks: medians, which the ledger compares with {MARGIN:g} (dashed). Dotted: equal variances.{note}",
    )


def distribution(values: Float[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
    """The empirical distribution: sorted values and the share that is not above them, at `STEPS` of them where there are more."""
    x = np.sort(values)
    share = np.arange(1, len(x) + 1) / len(x)
    some = np.unique(np.linspace(0, len(x) - 1, min(len(x), STEPS)).round().astype(int))
    return x[some], share[some]


@style()
def step_times(times: Sequence[Times]) -> Shown:
    """Time of a training step over that of a deterministic layer, by layer and method, with Student's intervals over repeats."""
    methods = [name for name in times[0].seconds if name != DETERMINISTIC]
    found = signs(methods)
    fig, axes = figure(6.4, 1.5 + 0.55 * len(times))
    axes.axvline(1, color=INK, lw=1, ls="--", zorder=0)
    drawn, words = [], []
    for y, each in enumerate(times):
        texts = []
        for k, (name, sign) in enumerate(found.items()):
            (interval,) = student([each.ratio(name)]).T
            dot(axes, y + (k - (len(found) - 1) / 2) * 0.22, interval, sign)
            drawn.append(interval)
            texts.append(f"{name} {said(interval)}")
        words.append(f"{each.layer}: {', '.join(texts)}")
    rows(axes, [each.layer for each in times])
    cut = logarithmic(axes, "x", [*drawn, [1.0]])
    key(axes, found)
    axes.set(xlabel="time of a training step / deterministic layer's", ylabel="inputs-outputs")
    return show(
        fig,
        f"Dots with intervals on a logarithmic axis, {counted(drawn, 1.0, 'one')}. Times over a deterministic layer's: {'; '.join(words)}.",
        "Forward, loss, divergence and backward of one layer, methods in turns; bars: 95 % intervals over repeats."
        + " A bar at the edge goes on to zero." * cut,
    )


@style()
def parameters(layers: Mapping[str, tuple[int, int]] | None = None, most: int = 600) -> Shown:
    """Parameters of a layer with m pseudo-data over those of a factorised one, against m = 1 to ``most``; squares: equal numbers."""
    layers = dict(cost.LAYERS | SMALL if layers is None else layers)
    m = np.unique(np.geomspace(1, most, 60).round().astype(int))
    fig, axes = figure(6.4, 3.8)
    drawn, words = [], []
    for (name, sizes), sign in zip(layers.items(), signs(layers, "layers").values(), strict=True):
        of = cost.laws()
        baseline = cost.parameters(of[FACTORISED], *sizes)
        ratio = np.array([cost.parameters(cost.laws(int(k))[VMG], *sizes) / baseline for k in m])
        even = cost.break_even(*sizes)
        axes.plot(m, ratio, color=sign.colour, ls=sign.dash)
        if 1 <= even <= most:
            axes.plot([even], [1], sign.marker, color=sign.colour, ms=6.5)
        look = {"color": sign.colour, "ls": sign.dash, "marker": sign.marker, "ms": 6.5}
        axes.plot([], [], label=f"{name}: as many at {even:.0f}", **look)
        at = cost.parameters(of[VMG], *sizes) / baseline
        words.append(f"{name}: as many at {even:.0f} pseudo-data, {at:.2f} times as many at {PSEUDO}")
        drawn.append(ratio)
    axes.axhline(1, color=INK, lw=1, ls="--", zorder=0)
    axes.axvline(PSEUDO, color=INK, lw=0.8, ls=":", zorder=0)
    logarithmic(axes, "x", [m])
    logarithmic(axes, "y", drawn)
    axes.set(xlabel="pseudo-data in the layer", ylabel="parameters / factorised layer's")
    axes.legend(title="layer, inputs-outputs", loc="upper left", alignment="left", handlelength=3)
    return show(
        fig,
        f"{len(layers)} rising curves on logarithmic axes, beside a dashed line at one. {'; '.join(words)}.",
        f"An exact count, biases and the rank-one noise of the pseudo-data included. Marks: where both layers have as many. "
        f"Dotted: {PSEUDO} pseudo-data.",
    )


@style()
def excess(result: Result) -> Shown:
    """X-F2: objective minus exact log evidence against the number of pseudo-data, and that of valid laws, which stay below zero."""
    m = np.array(list(result.paper))
    band = student([found.value.numpy() for found in result.paper.values()])
    proper = {name: student([found.value.numpy()])[:, 0] for name, found in result.proper.items()}
    fig, axes = figure(6.4, 3.8)
    everything = [*result.paper.values(), *result.proper.values()]
    top = max(float(result.highest.mean()), *(float(each.value.max()) for each in everything), 1.0)
    bottom = min(float(each.value.min()) for each in everything)
    room = 0.08 * (top - bottom)
    axes.axhspan(0, top + room, color=PALETTE["orange"], alpha=0.1, lw=0)
    axes.axhline(0, color=INK, lw=1)
    axes.axhline(
        float(result.highest.mean()),
        color=INK,
        lw=1,
        ls="--",
        label="the largest likelihood, mean: a ceiling",
    )
    own = Sign(COLOURS[0], "-", MARKERS[0])
    for count, found in result.paper.items():
        axes.plot([count] * len(found.value), found.value, ".", color=own.colour, alpha=0.6, ms=4.5, mew=0)
    curve(axes, m, band, own, "the paper's objective")
    for k, (name, interval) in enumerate(proper.items()):
        colour, marker = COLOURS[2 + k % 2], MARKERS[2 + k % 2]
        place = 0.12 * (2 * k - len(proper) + 1)
        axes.plot([place] * 2, interval[1:], color=colour, ls="-", lw=1.8)
        axes.plot([place], interval[:1], marker, color=colour, ms=6, label=f"{name}, a valid bound")
    axes.annotate("no lower bound lies here", (0, top + room), (0, -4), textcoords="offset points", va="top")
    axes.set(
        xlabel="pseudo-data m (0: a valid law)",
        ylabel="objective − log evidence (nats)",
        xticks=[0, *m],
        ylim=(bottom - room, top + room),
    )
    legend_above(fig, *axes.get_legend_handles_labels(), columns=2)
    words = [f"m = {count}: {said(column)}, {beside(column)} zero" for count, column in zip(m, band.T, strict=True)]  # fmt: skip
    others = [f"{name} {said(interval)}" for name, interval in proper.items()]
    return show(
        fig,
        f"The paper's objective minus the exact log evidence in nats, a curve over the number of pseudo-data beside a shaded region above zero. "
        f"{'; '.join(words)}. At the left, valid laws: {', '.join(others)}. The ceiling is at {float(result.highest.mean()):.2f}.",
        f"{len(result.highest)} data sets (faint dots) of one linear layer, whose evidence is a formula. Band and bars: 95 % intervals of the "
        "mean over data sets.",
    )
