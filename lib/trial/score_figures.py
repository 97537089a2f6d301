"""The chapter's pictures of the scores: errors and gains of the fair trial, and errors at equal training loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lib.drawing import counted, curve, dot, legend_above, logarithmic, rows, said, student
from lib.plots import INK, Shown, figure, show, style
from lib.trial import images
from lib.trial.figures import below, both, cells, epochs, error_axis, without
from lib.trial.images import DEPTHS, SCHEDULES, SGD, UNIT, Cell, Followed

SCHEDULED = ("bold driver", "exponential decay")


@style()
def errors_by_epoch(found: Mapping[Cell, Followed], schedules: Sequence[str] = SCHEDULED) -> Shown:
    """Test error against epochs, both methods, a row of panels a depth and a column a schedule, bands over runs.

    Raises ValueError for missing trainings.
    """
    cells(found, [(depth, schedule) for depth in DEPTHS for schedule in schedules])
    of = both()
    fig, axes = figure(
        8.4, 5.2, rows=len(DEPTHS), columns=len(schedules), sharex=True, sharey="row", squeeze=False
    )
    words, cut = [], False
    for line, depth in zip(axes, DEPTHS, strict=True):
        drawn = []
        for ax, schedule in zip(line, schedules, strict=True):
            ends = []
            for method, sign in of.items():
                band = student(100 * found[method, depth, schedule].errors)
                curve(ax, epochs(band), band, sign, method, every=0.1)
                drawn.append(band)
                ends.append(f"{method} from {band[0, 0]:.2f} % to {said(band[:, -1])}")
            ax.set(title=f"{depth} layers, {schedule}")
            words.append(f"{depth} layers, {schedule}: {', '.join(ends)}")
        cut |= any([error_axis(ax, drawn) for ax in line])
        line[0].set_ylabel("test error (%)")
    for ax in axes[-1]:
        ax.set_xlabel("epoch")
    legend_above(fig, *axes[0, 0].get_legend_handles_labels())
    return show(
        fig,
        f"{axes.size} panels of test error against epochs, on logarithmic axes, two curves each. {'. '.join(words)}.",
        f"Bands: 95 % intervals of the mean over {_runs(found)} runs, each with searched rates of its own. Paired differences have a "
        "figure of their own." + below(cut),
    )


@style()
def gains(found: Mapping[Cell, Followed]) -> Shown:
    """Paired gains in test error, SGD minus unit norm, a row a schedule and depth; raises ValueError for missing trainings."""
    wanted = cells(found, [(depth, schedule) for schedule in SCHEDULES for depth in DEPTHS])
    unit = both()[UNIT]
    each = [images.gains(found, *cell) for cell in wanted]
    drawn = student(each).T
    names = [f"{schedule}, {depth} layers" for depth, schedule in wanted]
    fig, axes = figure(6.8, 1.3 + 0.42 * len(names))
    axes.axvline(0, color=INK, lw=1, ls="--", zorder=0)
    for y, (values, interval) in enumerate(zip(each, drawn, strict=True)):
        axes.plot(values, np.full(len(values), y + 0.25), ".", color=unit.colour, alpha=0.8, ms=5, mew=0)
        dot(axes, y, interval, unit)
    rows(axes, names)
    far = 1.08 * max(float(np.abs(drawn).max()), *(float(np.abs(values).max()) for values in each), 1e-3)
    axes.set(
        xlim=(-far, far),
        xlabel="gain in test error, SGD − unit norm (points)\n← SGD better          unit norm better →",
    )
    words = [f"{name}: {said(interval)}" for name, interval in zip(names, drawn, strict=True)]
    return show(
        fig,
        f"Dots with intervals beside a line at zero, points of test error that unit norm gains. {'; '.join(words)}; {counted(drawn)}.",
        f"Bars: 95 % intervals of the mean over {_runs(found)} pairs of runs (faint dots), which share images, start and order of batches.",
    )


@style()
def matched(found: Mapping[Cell, Followed], schedule: str = "exponential decay", levels: int = 20) -> Shown:
    """Test error against training loss, a panel a depth: every run thin, the mean over runs at common losses thick.

    Raises ValueError for missing trainings.
    """
    wanted = cells(found, [(depth, schedule) for depth in DEPTHS])
    of = both()
    fig, axes = figure(8.4, 3.7, columns=len(wanted), squeeze=False)
    words, left_out, bare, cut = [], 0, False, False
    for ax, (depth, _) in zip(axes[0], wanted, strict=True):
        every = {m: by_loss(found[m, depth, schedule]) for m in of}
        fit = [k for k in range(_runs(found)) if all(len(curves[k][0]) > 1 for curves in every.values())]
        left_out += _runs(found) - len(fit)
        curves = {m: [every[m][k] for k in fit] for m in of}
        flat = [each for m in of for each in curves[m]]
        low, high = max((x[0] for x, _ in flat), default=0.0), min((x[-1] for x, _ in flat), default=0.0)
        at, drawn = np.linspace(low, high, levels), []
        for method, sign in of.items():
            for x, error in curves[method]:
                ax.plot(np.exp(x), error, color=sign.colour, ls="-", lw=0.7, alpha=0.4)
            drawn += [error for _, error in curves[method]]
            if low < high and len(fit) > 1:
                band = student(np.array([np.interp(at, *each) for each in curves[method]]).T)
                curve(ax, np.exp(at), band, sign, method, every=0.15)
        if flat:
            cut |= logarithmic(ax, "y", drawn)
            logarithmic(ax, "x", [np.exp(x) for x, _ in flat])
        ax.invert_xaxis()
        ax.set(title=f"{depth} layers, {schedule}", xlabel="training loss (nats), falling to the right →")
        bare |= not low < high
        words.append(f"{depth} layers: " + _matched_words(found, depth, schedule, curves, (low, high)))
    axes[0, 0].set_ylabel("test error (%)")
    legend_above(fig, *_thick())
    return show(
        fig,
        f"Test error against training loss, both logarithmic, the loss falling to the right; one panel a depth. {'. '.join(words)}.",
        f"Thin: {_runs(found)} runs a method. Thick: their mean over losses that all of them passed through, with its 95 % interval."
        + " Where there are none, no mean is drawn." * bare
        + without(left_out)
        + below(cut),
    )


def by_loss(run: Followed) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of every run log training losses, increasing, and test errors in per cent there, as `images.matched` reads them."""
    found = []
    for losses, errors in zip(run.losses.T, 100 * run.errors.T, strict=True):
        fit = np.isfinite(losses)
        found.append(
            images.by_loss_of_run(losses[fit], errors[fit]) if fit.any() else (np.empty(0), np.empty(0))
        )
    return found


def _matched_words(
    found: Mapping[Cell, Followed], depth: int, schedule: str, curves: dict, span: tuple[float, float]
) -> str:
    low, high = span
    if not low < high:
        return "no training loss that all runs passed through"
    ends = []
    for method, each in curves.items():
        first, last = (np.mean([np.interp(at, *one) for one in each]) for at in (high, low))
        ends.append(f"{method} from {first:.2f} % to {last:.2f} %")
    values = images.matched(found[SGD, depth, schedule], found[UNIT, depth, schedule])
    values = values[np.isfinite(values)]
    gain = f"; paired gain of unit norm {said(student([values])[:, 0])} points" if len(values) > 1 else ""
    return f"between losses {np.exp(high):.2g} and {np.exp(low):.2g}, {' and '.join(ends)}{gain}"


def _thick() -> tuple[list, list[str]]:
    from matplotlib.lines import Line2D

    of = both()
    return [Line2D([], [], color=s.colour, ls=s.dash, marker=s.marker, ms=4.5) for s in of.values()], list(of)


def _runs(found: Mapping[Cell, Followed]) -> int:
    return next(iter(found.values())).errors.shape[1]
