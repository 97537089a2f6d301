"""The chapter's pictures of the contests: regressions, the cubic toy, digits, and the published tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from lib.contest import measures, published
from lib.contest.images import Errors
from lib.contest.measures import Contest
from lib.contest.methods import FACTORISED, VMG
from lib.contest.problems import REACH
from lib.contest.toy import FAR, Bands, widest
from lib.data import Dataset
from lib.drawing import (
    counted,
    curve,
    dot,
    key,
    legend_above,
    logarithmic,
    rows,
    said,
    signs,
    student,
)
from lib.plots import INK, Shown, figure, show, style

WIDTH = 3.0  # standard deviations of the toy's bands
HEIGHTS = (2 * REACH**3, 1.2 * FAR**3)  # least and greatest of the toy's picture


@style()
def bands(found: Mapping[str, Sequence[Bands]], training: Dataset, run: int = 0) -> Shown:
    """The cubic toy, a panel a method: truth, the training points of one data draw, and its mean ± three standard deviations.

    Args:
        found: of up to four methods; of several variants the one whose spread grows most is drawn.
        training: the rows that training ``run`` has seen (`problems.cubic_rows` of the same split).
        run: which training.
    """
    of, chosen = signs(found), {name: widest(each) for name, each in found.items()}
    x, y = training.inputs[:, 0].numpy(), training.targets[:, 0].numpy()
    columns = min(2, len(chosen))
    fig, axes = figure(
        8.4 if columns > 1 else 5.0,
        2.6 * math.ceil(len(chosen) / columns) + 0.4,
        rows=math.ceil(len(chosen) / columns),
        columns=columns,
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    # as high as the bands, within reason: very wide ones, and the truth far out, leave the picture, or the data would be a line
    wide = max(float((each.mean[run].abs() + WIDTH * each.sd[run]).max()) for each in chosen.values())
    limit, words = float(np.clip(wide, *HEIGHTS)), []
    for place, (ax, (name, each)) in enumerate(zip(axes.flat, chosen.items(), strict=False)):
        grid, mean, sd = each.x.numpy(), each.mean[run].numpy(), each.sd[run].numpy()
        truth, low, high = grid**3, mean - WIDTH * sd, mean + WIDTH * sd
        for ends in ((-FAR, -REACH), (REACH, FAR)):
            ax.axvspan(*ends, color=INK, alpha=0.13, lw=0)
        ax.fill_between(grid, low, high, color=of[name].colour, alpha=0.32, lw=0)
        ax.plot(grid, mean, color=of[name].colour, ls="-")
        ax.plot(grid, truth, color=INK, ls="--", lw=1.2)
        ax.plot(x, y, "o", color=INK, ms=3.2)
        ax.set(title=name, xlim=(-FAR, FAR), ylim=(-limit, limit))
        if place >= len(chosen) - columns:
            ax.set_xlabel("x")
        if place % columns == 0:
            ax.set_ylabel("y")
        inside = np.abs(grid) <= REACH
        held = (low <= truth) & (truth <= high)
        words.append(
            f"{name}: deviation {sd[inside].mean():.3g} on average among the data and {sd[[0, -1]].mean():.3g} at ± {FAR:g}; "
            f"the truth lies in the band on {held[inside].mean():.0%} of the data's range and {held[~inside].mean():.0%} outside"
        )
    for ax in axes.flat[len(chosen) :]:
        ax.set_visible(False)
    legend_above(fig, *_toy_key())
    return show(
        fig,
        f"A cubic function, {len(x)} points near it between {-REACH:g} and {REACH:g}, and for each method a mean in a band. {'; '.join(words)}.",
        f"One of {next(iter(chosen.values())).mean.shape[0]} data draws. Band: three predictive standard deviations, noise included. "
        "Grey: no data there. Of a method's variants, the one whose spread grows most."
        + " The cubic goes on beyond the picture." * (limit < FAR**3)
        + " So do bands that reach its edge." * (limit < wide),
    )


def _toy_key() -> tuple[list, list[str]]:
    """Signs of the toy's panels in ink, since every panel has its own colour; and what they are."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    lines = [Line2D([], [], color=INK, lw=lw, ls=ls) for lw, ls in ((1.8, "-"), (1.2, "--"))]
    points = Line2D([], [], color=INK, marker="o", ms=3.2, ls="none")
    band = Patch(color=INK, alpha=0.32, lw=0)
    return [lines[0], band, lines[1], points], [
        "predictive mean",
        f"± {WIDTH:g} deviations",
        "x³",
        "training points",
    ]


@style()
def learning_curves(contests: Sequence[Contest], methods: Sequence[str]) -> Shown:
    """Test RMSE against updates, a panel a data set; each method's best variant at each look; bands over splits."""
    of = signs(methods)
    columns = min(3, len(contests))
    lines = math.ceil(len(contests) / columns)
    fig, axes = figure(8.4, 2.6 * lines + 0.5, rows=lines, columns=columns, squeeze=False)
    words, cut = [], False
    for ax, c in zip(axes.flat, contests, strict=False):
        drawn = {m: student([c.early(m, look) for look in c.looks]) for m in methods}
        for name, band in drawn.items():
            curve(ax, c.looks, band, of[name], name)
        cut |= logarithmic(ax, "y", drawn.values())
        ax.set(title=c.name, xscale="log")
        ax.set_xticks(c.looks, [f"{look:,}" for look in c.looks])
        ax.set_xticks([], minor=True)
        first, last = (sorted((float(band[0, at]), name) for name, band in drawn.items()) for at in (0, -1))
        words.append(
            f"{c.name}: lowest after {c.looks[0]:,} updates {first[0][1]} ({first[0][0]:.3g}), highest {first[-1][1]} ({first[-1][0]:.3g}); "
            f"after {c.looks[-1]:,} lowest {last[0][1]} ({last[0][0]:.3g}), highest {last[-1][1]} ({last[-1][0]:.3g})"
        )
    for ax in axes.flat[len(contests) :]:
        ax.set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel("test RMSE (target's unit)")
    for ax in axes.flat[max(0, len(contests) - columns) : len(contests)]:
        ax.set_xlabel("updates")
    legend_above(fig, *axes.flat[0].get_legend_handles_labels())
    return show(
        fig,
        f"{len(contests)} panels of curves on logarithmic axes. {'. '.join(words)}.",
        "Bands: 95 % intervals of the mean over splits. A method with variants is drawn with the best of them at each look."
        + " A band that reaches the lower edge goes on to zero." * cut,
    )


@style()
def gains(contests: Sequence[Contest]) -> Shown:
    """P3-C3: what the matrix Gaussian gains over the factorised one, in RMSE and in log-likelihood, paired over splits."""
    panels = (
        (
            "relative gain in RMSE (%)",
            student([100 * measures.relative_gain(c.rmse(FACTORISED), c.rmse(VMG)) for c in contests]).T,
        ),
        (
            "gain in log-likelihood (nats)",
            student([c.log_likelihood(VMG) - c.log_likelihood(FACTORISED) for c in contests]).T,
        ),
    )
    fig, axes = figure(8.4, 1.1 + 0.4 * len(contests), columns=2, sharey=True)
    (sign,) = signs([VMG]).values()
    words = []
    for ax, (label, found) in zip(axes, panels, strict=True):
        ax.axvline(0, color=INK, lw=1, ls="--", zorder=0)
        for y, interval in enumerate(found):
            dot(ax, y, interval, sign)
        rows(ax, [c.name for c in contests])
        ax.set_xlabel(label)
        each = [f"{c.name} {said(interval)}" for c, interval in zip(contests, found, strict=True)]
        words.append(f"{label}: {', '.join(each)}; {counted(found)}")
    return show(
        fig,
        f"Two panels of dots with intervals beside a line at zero. {'. '.join(words)}.",
        "Right of zero: the matrix Gaussian is better than the best variant of the factorised one. Bars: 95 % intervals over paired splits.",
    )


@style()
def gain_by_size(contests: Sequence[Contest]) -> Shown:
    """X-G1: both gains over the factorised Gaussian against the number of training rows, a curve a data set.

    Raises ValueError for a data set learned at one size alone, or for more than four.
    """
    for c in contests:
        if len(c.sizes) < 2:
            raise ValueError(
                f"{c.name} was learned from {c.sizes[0]} rows alone: a curve needs two sizes, so leave it out here."
            )
    of = signs([c.name for c in contests], "data sets")
    fig, axes = figure(8.4, 3.4, columns=2)
    words = []
    for ax, read, scale, label in (
        (axes[0], measures.rmse_gains, 100, "relative gain in RMSE (%)"),
        (axes[1], measures.ll_gains, 1, "gain in log-likelihood (nats)"),
    ):
        ax.axhline(0, color=INK, lw=1, ls="--", zorder=0)
        each = []
        for c in contests:
            band = student(scale * read(c))
            curve(ax, c.sizes, band, of[c.name], c.name)
            each.append(
                f"{c.name} from {said(band[:, 0])} at {c.sizes[0]:,} rows to {said(band[:, -1])} at {c.sizes[-1]:,}"
            )
        logarithmic(ax, "x", [c.sizes for c in contests])
        ax.set(xlabel="training rows", ylabel=label)
        words.append(f"{label}: {'; '.join(each)}")
    legend_above(fig, *axes[0].get_legend_handles_labels())
    return show(
        fig,
        f"Two panels, a curve a data set, beside a line at zero. {'. '.join(words)}.",
        "Above zero: the matrix Gaussian is better than the best variant of the factorised one. Bands: 95 % intervals over paired splits.",
    )


@style()
def image_errors(found: Mapping[str, Errors]) -> Shown:
    """Test error of the network of mean weights against updates: mean over trainings, and their range."""
    of = signs(found)
    fig, axes = figure(6.4, 3.6)
    drawn, words = [], []
    for name, each in found.items():
        values = each.mean.double().numpy()
        band = np.stack([values.mean(1), values.min(1), values.max(1)])
        curve(axes, each.updates.numpy(), band, of[name], name, every=0.1)
        drawn.append(band)
        words.append(
            f"{name} from {band[0, 0]:.2f} % to {band[0, -1]:.2f} % ({band[1, -1]:.2f} to {band[2, -1]:.2f})"
        )
    cut = logarithmic(axes, "y", drawn)
    axes.set(xlabel="updates", ylabel="test error (%)")
    axes.legend()
    (trainings,) = {each.mean.shape[1] for each in found.values()}
    return show(
        fig,
        f"Test error against updates on a logarithmic scale of errors: {'; '.join(words)}.",
        f"Lines: means over {trainings} trainings; bands: from the smallest to the largest of them."
        + " An error of zero is below the picture." * cut,
    )


@style()
def against_the_table(contests: Sequence[Contest]) -> Shown:
    """RMSE over the recalled VMG figure, set by set: ours, and the published VI, PBP and dropout.

    Raises ValueError for a set without a figure to divide by.
    """
    for c in contests:
        if c.name not in published.SETS:
            raise ValueError(
                f"{c.name} has no published VMG figure above zero: draw {', '.join(published.SETS)} alone."
            )
    others = ("vi", "pbp", "dropout")
    names = [f"{published.LABELS[m]} ({published.MARKS[m]})" for m in others]
    of = signs(["matrix Gaussian: ours", *names])
    mine, *theirs = of.values()
    tabled = {m.cell: (m.value, m.low, m.high) for m in measures.against_the_table(contests) if m.name == "rmse_to_table"}  # fmt: skip
    fig, axes = figure(6.4, 1.7 + 0.55 * len(contests))
    axes.axvline(1, color=INK, lw=1, ls="--", zorder=0)
    drawn, words = [], []
    for y, c in enumerate(contests):
        row = published.RMSE[c.name]
        unit = row.vmg[0]
        intervals = [tabled[c.name]]
        for method in others:
            mean, error = row.figure(method, c.splits)
            half = 1.96 * (error or 0.0) + published.ROUNDING
            intervals.append((mean / unit, (mean - half) / unit, (mean + half) / unit))
        for k, (interval, sign) in enumerate(zip(intervals, (mine, *theirs), strict=True)):
            dot(axes, y + 0.18 * (k - 1.5), interval, sign)
        drawn += intervals
        words.append(f"{c.name} {said(intervals[0])}")
    rows(axes, [c.name for c in contests])
    logarithmic(axes, "x", [*drawn, [1.0]])
    key(axes, of)
    axes.set_xlabel("test RMSE / published VMG (recalled)")
    found = [tabled[c.name] for c in contests]
    return show(
        fig,
        f"Four dots a data set on a logarithmic axis. Ours over the recalled VMG figure: {', '.join(words)}; {counted(found, 1.0, 'one')}. "
        + _order(contests),
        "Left of one: a smaller error than the table's. Our bars: our splits, the table's error and its rounding; the others': their own error "
        "and rounding alone.",
    )


def _order(contests: Sequence[Contest]) -> str:
    """On how many sets our mean is below each published one."""
    texts = []
    for method in ("vi", "pbp", "dropout"):
        below = sum(c.rmse(VMG).mean() < published.RMSE[c.name].figure(method, c.splits)[0] for c in contests)
        texts.append(f"{published.LABELS[method]} on {below}")
    return f"Our mean is below the published {', '.join(texts)} of {len(contests)} sets."
