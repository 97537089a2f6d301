"""The chapter's pictures of learning rates: effective ones, searched ones, and those that are good from bad starts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from lib.drawing import curve, legend_above, logarithmic, rows, said, signs, student
from lib.plots import INK, Shown, figure, show, style
from lib.trial.figures import below, both, cells, epochs, error_axis, without
from lib.trial.images import SCHEDULES, SGD, UNIT, Cell, Followed, Search, Sizes
from lib.trial.starts import MARGIN, STARTS, Sweep

# ------------------------------------------------------------------------------------------------------ effective rates


@style()
def effective_rates(
    found: Mapping[Cell, Followed], depth: int = 2, schedules: Sequence[str] = tuple(SCHEDULES)
) -> Shown:
    """Rate over squared length of every layer's filters, over the searched rate, against epochs; a panel a schedule.

    Raises ValueError for missing trainings, or for more than four layers.
    """
    wanted = cells(found, [(depth, schedule) for schedule in schedules])
    sgd, unit = both().values()
    layers = found[SGD, depth, schedules[0]].effective.shape[2]
    of = [
        sign._replace(colour=sgd.colour)
        for sign in signs([f"layer {k + 1}" for k in range(layers)], "layers").values()
    ]
    fig, axes = figure(8.4, 3.5, columns=len(wanted), sharey=True, squeeze=False)
    words, drawn, left_out = [], [], 0
    for ax, (_, schedule) in zip(axes[0], wanted, strict=True):
        bands, lost = geometric(found[UNIT, depth, schedule])
        left_out += lost
        ax.fill_between(epochs(bands[0]), *bands[0][1:], color=unit.colour, alpha=0.2, lw=0)
        ax.plot(
            epochs(bands[0]), bands[0][0], color=unit.colour, ls="-", lw=2.6, label=f"{UNIT}, every layer"
        )
        drawn.append(bands[0])
        ends = [f"{UNIT} {said(bands[0][:, -1], '.3g')}"]
        bands, lost = geometric(found[SGD, depth, schedule])
        left_out += lost
        for k, (band, sign) in enumerate(zip(bands, of, strict=True)):
            curve(ax, epochs(band), band, sign, f"{SGD}, layer {k + 1}", every=0.12)
            ends.append(f"{SGD}'s layer {k + 1} {said(band[:, -1], '.3g')}")
        drawn += bands
        ax.set(title=schedule, xlabel="epoch")
        words.append(f"{schedule}: {', '.join(ends)}")
    for ax in axes[0]:
        logarithmic(ax, "y", drawn)
    axes[0, 0].set_ylabel("effective rate / searched rate")
    legend_above(fig, *axes[0, 0].get_legend_handles_labels(), columns=5)
    return show(
        fig,
        f"Effective rates of {layers} layers against epochs on a logarithmic axis, a panel a schedule, as multiples of the searched rate. "
        f"After {len(drawn[0].T)} epochs, {'; '.join(words)}.",
        "Effective rate: rate / |w|², mean over a layer's filters. Lines: geometric means over runs; bands: their 95 % intervals. "
        f"Unit norm's lengths are one, so that its line is the schedule itself.{without(left_out)}",
    )


def geometric(run: Followed) -> tuple[list[Float[np.ndarray, "3 E"]], int]:
    """Of every layer the effective rate over the searched one, with intervals of its geometric mean; and how many runs it cannot use."""
    share = run.effective / run.filters[:, None]
    fit = (np.isfinite(share) & (share > 0)).all((0, 2))
    logs = np.log(share[:, fit])
    return [np.exp(student(logs[:, :, k])) for k in range(logs.shape[2])], int((~fit).sum())


# ------------------------------------------------------------------------------------------------------- searched rates


@style()
def rate_grid(search_by_method: Mapping[str, Search], sizes: Sizes) -> Shown:
    """Mean validation error of every pair of rates, a map a method, and how many runs chose the pair.

    Raises ValueError for no method, for more than four, or where the errors do not belong to the sizes' grid.
    """
    of, shape = signs(search_by_method), (len(sizes.rates), len(sizes.ratios))
    for method, found in search_by_method.items():
        if found.errors.shape[1:] != shape:
            raise ValueError(f"the search of {method} has a grid of {found.errors.shape[1:]}, the sizes one of {shape}: pass the sizes that it ran with.")  # fmt: skip
    n, beside = len(of), len(sizes.rates) <= 5
    size = (8.4, 1.3 + 0.5 * shape[1]) if beside else (8.4, n * (1.0 + 0.45 * shape[1]))
    fig, axes = figure(
        *size, rows=1 if beside else n, columns=n if beside else 1, sharex=True, sharey=True, squeeze=False
    )
    means = {method: 100 * found.errors.mean(0).T for method, found in search_by_method.items()}
    most, words = max(float(mean.max()) for mean in means.values()), []
    least = min(float(mean.min()) for mean in means.values())
    for ax, (method, mean) in zip(axes.flat, means.items(), strict=True):
        chosen = _chosen(search_by_method[method], sizes)
        _map(ax, mean, chosen, of[method].colour, (least, most))
        ax.set(title=method)
        ax.set_xticks(range(shape[0]), [f"{rate:.3g}" for rate in sizes.rates])
        ax.set_yticks(range(shape[1]), [f"{ratio:.3g}" for ratio in sizes.ratios])
        r, f = np.unravel_index(mean.argmin(), mean.shape)
        top_r, top_f = np.unravel_index(chosen.argmax(), chosen.shape)
        words.append(
            f"{method}: from {mean.max():.1f} % down to {mean.min():.1f} %, lowest at filters' rate {sizes.rates[f]:.3g} and ratio "
            f"{sizes.ratios[r]:.3g}; {chosen.max()} of {chosen.sum()} runs chose {sizes.rates[top_f]:.3g} and {sizes.ratios[top_r]:.3g}"
        )
    fig.supylabel("classifier's rate / filters'", fontsize=10, color=INK)
    for ax in axes[-1]:
        ax.set_xlabel("filters' rate")
    (runs,) = {len(found.errors) for found in search_by_method.values()}
    return show(
        fig,
        f"A grid of rates with the validation error of every pair, a map a method. {'. '.join(words)}.",
        f"Per cent, mean over {runs} runs; the stronger the colour, the lower. Framed: chosen by runs, × how many; every run takes its own best pair.",
    )


def _map(
    axes: Any, mean: Float[np.ndarray, "q r"], chosen: np.ndarray, colour: str, span: tuple[float, float]
) -> None:
    """One method's map; its colour never hides the page so far that ink could not be read on it, light or dark."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgba
    from matplotlib.patches import Rectangle

    fade = LinearSegmentedColormap.from_list("fade", [to_rgba(colour, 0.65), to_rgba(colour, 0.04)])
    floor = 0.1  # per cent: below, errors are drawn alike
    low, high = (np.log(max(end, floor)) for end in span)
    axes.imshow(
        np.log(np.maximum(mean, floor)), cmap=fade, vmin=low, vmax=max(high, low + 1e-6), aspect="auto", origin="lower",
        interpolation="nearest",
    )  # fmt: skip
    for (i, j), value in np.ndenumerate(mean):
        count = int(chosen[i, j])
        text = f"{value:.1f}" + (f"\n×{count}" if count else "")
        axes.text(j, i, text, ha="center", va="center", fontsize=8.5, color=INK, linespacing=1.1)
        if count:
            axes.add_patch(Rectangle((j - 0.46, i - 0.44), 0.92, 0.88, fill=False, ec=INK, lw=1.1))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _chosen(found: Search, sizes: Sizes) -> np.ndarray:
    """How many runs took each pair of rates, (ratios, rates)."""
    count = np.zeros((len(sizes.ratios), len(sizes.rates)), int)
    for rate, rest in zip(found.filters, found.classifier, strict=True):
        i = np.abs(np.log(np.array(sizes.ratios) / (rest / rate))).argmin()
        count[i, np.abs(np.log(np.array(sizes.rates) / rate)).argmin()] += 1
    return count


@style()
def starts(sweep: Sweep) -> Shown:
    """Test error against the learning rate: SGD from its four starts, unit norm, and the threshold of a good rate."""
    of = signs([f"{SGD}, {start} start" for start in STARTS])
    limit = threshold(sweep)
    fig, axes = figure(8.4, 4.0)
    drawn, words = [], []
    for start in STARTS:
        name, band = f"{SGD}, {start} start", student(sweep.sgd[start].T)
        curve(axes, sweep.rates, band, of[name], name)
        drawn.append(band)
        words.append(_lowest(name, sweep.rates, band))
    band = student(sweep.unit.T)
    name = f"{UNIT}, any start"
    axes.fill_between(sweep.rates, *band[1:], color=INK, alpha=0.15, lw=0)
    axes.plot(sweep.rates, band[0], color=INK, ls=(0, (5, 2)), lw=2.4, label=name)
    drawn.append(band)
    words.append(_lowest(name, sweep.rates, band))
    axes.axhline(limit, color=INK, lw=0.9, ls=":", label="a good rate is below")
    logarithmic(axes, "x", [sweep.rates])
    cut = error_axis(axes, [*drawn, np.full((3, 1), limit)])
    axes.set(xlabel="learning rate (filters and classifier)", ylabel="test error (%)")
    legend_above(fig, *axes.get_legend_handles_labels(), columns=3)
    return show(
        fig,
        f"Five curves of test error against the learning rate, both axes logarithmic. {'; '.join(words)}. A rate is good below {limit:.2f} %.",
        f"Bands: 95 % intervals of the mean over {len(sweep.unit)} runs. Dotted: {MARGIN:g} points above the mean of SGD's best errors from the "
        "unit start. Colours tell starts apart; unit norm is in ink." + below(cut),
    )


def _lowest(name: str, rates: np.ndarray, band: Float[np.ndarray, "3 rates"]) -> str:
    k = int(band[0].argmin())
    return f"{name}: lowest {said(band[:, k])} at {rates[k]:.3g}, {band[0, 0]:.1f} at {rates[0]:.3g} and {band[0, -1]:.1f} at {rates[-1]:.3g}"


def threshold(sweep: Sweep) -> float:
    """The margin above the mean of SGD's best errors from the unit start, in points."""
    return float(sweep.best("unit").mean() + MARGIN)


def good(
    rates: Float[np.ndarray, " rates"], error: Float[np.ndarray, " rates"], limit: float
) -> list[tuple[float, float]]:
    """Intervals of rates where one error curve, linear between the grid's logarithmic rates, is within ``limit`` (as `starts.band`)."""
    x, found = np.log10(rates), []
    for k in range(len(x) - 1):
        left, right = error[k : k + 2]
        if min(left, right) > limit:
            continue
        cross = (
            x[k] + (x[k + 1] - x[k]) * (limit - left) / (right - left) if max(left, right) > limit else np.nan
        )
        low, high = (x[k] if left <= limit else cross), (x[k + 1] if right <= limit else cross)
        if found and found[-1][1] == low:
            found[-1] = (found[-1][0], high)
        elif low < high:
            found.append((low, high))
    return [(10**low, 10**high) for low, high in found]


@style()
def good_bands(sweeps: Mapping[str, Sweep]) -> Shown:
    """Where the good rates lie, a panel a data set: SGD from every start, whatever the start, and unit norm.

    Raises ValueError for no data sets.
    """
    if not sweeps:
        raise ValueError("there are no data sets to draw: pass one sweep at least.")
    sgd, unit = both().values()
    columns = len(sweeps) if len(sweeps) <= 3 else 2
    lines = math.ceil(len(sweeps) / columns)
    fig, axes = figure(8.4, 2.9 * lines, rows=lines, columns=columns, sharey=True, squeeze=False)
    words = []
    for ax, (title, sweep) in zip(axes.flat, sweeps.items(), strict=False):
        series = {f"{SGD}, {start} start": sweep.sgd[start] for start in STARTS}
        series[f"{SGD}, worst start"] = np.max([sweep.sgd[start] for start in STARTS], axis=0)
        series[f"{UNIT}, any start"] = sweep.unit
        ends, limit, each = sweep.rates[[0, -1]], threshold(sweep), []
        logarithmic(ax, "x", [ends])
        for y, (name, errors) in enumerate(series.items()):
            found = good(sweep.rates, errors.mean(0), limit)
            sign = unit if name.startswith(UNIT) else sgd
            ax.plot(ends, [y, y], color=INK, ls="-", lw=0.8, alpha=0.5, zorder=0)
            for piece in found:
                ax.plot(piece, [y, y], color=sign.colour, ls="-", lw=7, solid_capstyle="butt")
            each.append(f"{name} {_told(found)}")
        rows(ax, list(series))
        ax.axhline(len(STARTS) - 0.5, color=INK, lw=0.8, ls=":")
        ax.set(title=title, xlabel="learning rate")
        words.append(f"{title} (good: at most {limit:.1f} %): {'; '.join(each)}")
    for ax in axes.flat[len(sweeps) :]:
        ax.set_visible(False)
    return show(
        fig,
        f"Bars along the learning rate where the mean test error is good. {'. '.join(words)}.",
        f"Good: mean test error over runs at most {MARGIN:g} points above SGD's best from the unit start. Thin: the rates tried; a bar that "
        "reaches their end may go on. 'Worst start': the worst of a run's four at each rate. Below the dotted line: what X-U1 compares.",
    )


def _told(found: Sequence[tuple[float, float]]) -> str:
    if not found:
        return "nowhere"
    decades = sum(math.log10(high / low) for low, high in found)
    return " and ".join(f"{low:.2g} to {high:.2g}" for low, high in found) + f" ({decades:.2f} decades)"
