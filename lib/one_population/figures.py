"""The chapter's pictures: one population, lens after lens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from lib.drawing import Sign, curve, dot, key, legend_above, logarithmic, rows, said, signs, student
from lib.intervals import jackknife
from lib.one_population.energy import Heat, Local
from lib.one_population.gaussians import ENSEMBLE, LAPLACE, SINGLE, SWAG, Losses, gaussian_name, matrix_name
from lib.one_population.paths import Pairs, Table, level, rank_correlation
from lib.one_population.problem import ALIGNED, RAW, VIEWS
from lib.one_population.starts import STARTS, Begun
from lib.one_population.together import Lenses
from lib.plots import COLOURS, INK, Shown, figure, show, style
from lib.three_models.stars import of_pairs

ONE_RUN, ALL = "one run", "the population"


@style()
def hills(pairs: Mapping[str, Pairs], heat: Heat) -> Shown:
    """Energy on the lines of all pairs over the heat, and the barrier of the test loss, a row a view. Where the chains of the heat
    have not arrived, the energy stands there in nats, compared with nothing."""
    fig, axes = figure(8.4, 2.5, columns=2, sharey=True)
    sign, unit = signs(VIEWS, "views"), "of the heat" if heat.arrived else "nats of energy"
    risen = np.array([_over_heat(pairs[v], heat) if heat.arrived else level(pairs[v].energy) for v in VIEWS])
    walls = np.array([level(pairs[view].loss) for view in VIEWS])
    words = []
    for y, view in enumerate(VIEWS):
        dot(axes[0], y, risen[y], sign[view])
        dot(axes[1], y, walls[y], sign[view])
        words.append(f"{view}: {said(risen[y])} {unit}, {said(walls[y])} nats of test loss")
    rows(axes[0], VIEWS)
    axes[1].tick_params(axis="y", length=0)
    axes[1].grid(axis="x")
    if heat.arrived:
        axes[0].axvline(1, color=INK, lw=1, ls="--", zorder=0)
        room = {"xytext": (-4, 0), "ha": "right"} if risen.max() < 4 else {"xytext": (4, 0), "ha": "left"}
        axes[0].annotate("the heat", (1, 0.02), xycoords=("data", "axes fraction"), textcoords="offset points", **room)  # fmt: skip
        against = "over the heat"
        note = "Left of the dashed line the posterior's own draws stand higher than the hill."
    else:
        against = "in nats"
        note = "The chains of the heat have not arrived, so the rise of the energy is compared with nothing."
    axes[0].set_xlabel(f"rise of the energy on a line, {against}")
    axes[1].set_xlabel("barrier of the test loss (nats)")
    for ax, drawn in zip(axes, (risen, walls), strict=True):
        if drawn.min() >= 0:
            ax.set_xlim(left=0)
    return show(
        fig,
        f"Two panels with a row for each view of the population: rise of the posterior's energy on the line of two networks {against}, "
        f"and barrier of the test loss. {'; '.join(words)}.",
        f"Means over all pairs, 95 % intervals over networks. {note}",
    )


def _over_heat(found: Pairs, heat: Heat) -> Float[np.ndarray, " 3"]:
    """Mean rise of the energy over the heat, with its interval over networks and chains."""
    sizes = [len(found.energy), len(heat.values)]
    return np.ravel(
        jackknife(lambda g: np.array([of_pairs(found.energy, g[0]) / heat.values[g[1]].mean()]), sizes)
    )


@style()
def predictions(losses: Mapping[str, Losses]) -> Shown:
    """The test loss of every method, logarithmic, with Student's intervals over groups."""
    names = [
        ENSEMBLE, SINGLE, SWAG, LAPLACE,
        *(gaussian_name(v) for v in VIEWS[::-1]), *(matrix_name(v) for v in VIEWS[::-1]),
    ]  # fmt: skip
    kinds = {name: ONE_RUN if name in (SINGLE, SWAG, LAPLACE) else ALL for name in names}
    sign = signs((ONE_RUN, ALL), "kinds of methods")
    fig, ax = figure(7.6, 4.4)
    bands = student([losses[name] for name in names])
    for y, name in enumerate(names):
        dot(ax, y, bands[:, y], sign[kinds[name]])
    rows(ax, names)
    logarithmic(ax, "x", [np.clip(bands, 1e-3, None)])
    key(ax, sign)
    ax.set(xlabel="test loss of averaged predictions (nats)")
    words = [f"{name}: {said(bands[:, y], '.3f')}" for y, name in enumerate(names)]
    return show(
        fig,
        f"Test losses, a row a method. {'; '.join(words)}.",
        f"Means over {len(losses[SINGLE])} disjoint groups of networks, 95 % intervals. Every Gaussian's prediction averages the same "
        "number of draws; the ensemble averages its networks.",
    )


@style()
def coefficients(local: Local, moved: Local) -> Shown:
    """Local coefficients against the curvature's trace, and those of permuted copies against the networks' own."""
    ok, few = local.sound, len(moved.value)
    both = ok[:few] & moved.sound
    own, copy = local.value[:few][both], moved.value[both]
    fig, (left, right) = figure(8.4, 3.4, columns=2)
    left.errorbar(
        local.sharpness[ok], local.value[ok], local.error[ok], fmt="o", color=COLOURS[0], ms=4.5, lw=1.2
    )
    left.set(xlabel="trace of the curvature (narrow →)", ylabel="local coefficient")
    right.axline((0, 0), slope=1, color=INK, lw=1, ls="--", zorder=0)
    right.errorbar(
        own, copy, moved.error[both], local.error[:few][both], fmt="s", color=COLOURS[1], ms=4.5, lw=1.2
    )
    right.set(xlabel="of the network", ylabel="of its permuted copy")
    if len(own):
        ends = [min(own.min(), copy.min()) - 1, max(own.max(), copy.max()) + 1]
        right.set(xlim=ends, ylim=ends)
    return show(
        fig,
        f"Left: local coefficients of {int(ok.sum())} networks{_ends(local.value[ok])}, against the trace of the curvature"
        f"{_ends(local.sharpness[ok])}. Right: coefficients of {len(own)} permuted copies{_ends(copy)}, against those of the "
        f"networks{_ends(own)}, around the diagonal.",
        "Bars: one standard error from the spread of four chains; refused chains are left out. On the dashed line both agree.",
    )


def _ends(values: Float[np.ndarray, " R"]) -> str:
    return f", {values.min():.2f} to {values.max():.2f}" if len(values) else ""


@style()
def bounds(found: Begun) -> Shown:
    """Minus the evidence bound against updates, a curve a start, and the test loss at the end."""
    sign = signs(STARTS, "starts")
    fig, (left, right) = figure(8.4, 3.4, columns=2, width_ratios=(3, 2))
    words = []
    places = np.array(found.looks) + 1
    for y, name in enumerate(STARTS):
        band = student(found.bound[name])
        curve(left, places, band, sign[name], name)
        end = student([found.loss[name]])[:, 0]
        dot(right, y, end, sign[name])
        words.append(
            f"{name}: {said(band[:, 0])} at first, {said(band[:, -1])} at the end, test loss {said(end)}"
        )
    logarithmic(left, "x", [places])
    logarithmic(left, "y", found.bound.values())
    left.set(xlabel="updates + 1", ylabel="minus the bound (nats an example)")
    rows(right, STARTS)
    right.set(xlabel="test loss at the end (nats)")
    legend_above(fig, *left.get_legend_handles_labels())
    return show(
        fig,
        f"Left: minus the evidence bound an example against updates, for four starts; right: test loss at the end. {'; '.join(words)}.",
        "Means over groups of networks, 95 % intervals. Low is good on both axes.",
    )


@style()
def twins(found: Lenses) -> Shown:
    """Distance of plain and unit-norm networks, a row a view; and the barriers of both, as trained and aligned."""
    fig, (left, right) = figure(8.4, 2.5, columns=2)
    sign, words = signs(VIEWS, "views"), []
    bands = student([found.apart[view] for view in VIEWS])
    for y, view in enumerate(VIEWS):
        dot(left, y, bands[:, y], sign[view])
        words.append(f"{view}: {said(bands[:, y])}")
    rows(left, VIEWS)
    left.axvline(0, color=INK, lw=1, ls="--", zorder=0)
    left.set(xlabel="scaled MMD² (1: initial weights)")
    kinds = {
        "plain, aligned": found.pairs[ALIGNED],
        "unit norm, aligned": found.unit_pairs,
        "plain, raw": found.pairs[RAW],
    }
    neutral = Sign(INK, "-", "D")  # rows of another kind than those at the left
    for y, (name, pairs) in enumerate(kinds.items()):
        band = level(pairs.loss)
        dot(right, y, band, neutral)
        words.append(f"barrier of {name}: {said(band)} nats")
    rows(right, tuple(kinds))
    right.set(xlabel="barrier of the test loss (nats)")
    right.set_xlim(left=0)
    return show(
        fig,
        f"Left: scaled squared discrepancy between plain and unit-norm networks, a row a view; right: mean barriers. {'; '.join(words)}.",
        "0: two halves of the plain networks; 1: initial weights. 95 % intervals, left over groups, right over networks.",
    )


@style()
def against(aligned: Pairs, distance: Table) -> Shown:
    """Aligned barriers of all pairs against the distance of their functions, and against the rise of the posterior's energy."""
    fig, axes = figure(8.4, 3.4, columns=2, sharey=True)
    place = np.triu_indices(len(distance), 1)
    everyone, words = np.arange(len(distance)), []
    for ax, (name, values, colour) in zip(
        axes,
        (
            ("mutual information of the predictions (nats)", distance, COLOURS[0]),
            ("rise of the posterior's energy (nats)", aligned.energy, COLOURS[1]),
        ),
        strict=True,
    ):
        ax.plot(
            values[place], aligned.loss[place], "o", color=colour, ms=3, alpha=0.35, mew=0, rasterized=True
        )
        ax.set(xlabel=name)
        words.append(
            f"against the {name}: rank correlation {rank_correlation(aligned.loss, values, everyone):.2f}"
        )
    axes[0].set(ylabel="aligned barrier (nats)")
    return show(
        fig,
        f"Aligned barriers of the test loss of {len(place[0])} pairs, two scatter plots. {'; '.join(words)}.",
        "Each point is a pair of networks; each network is in many pairs.",
    )


def table_rows(found: Sequence[Lenses]) -> list[tuple[str, ...]]:
    """For a page: each population in numbers, plain and unit norm."""
    lines = []
    for each in found:
        for name, one in (("plain", each.plain), ("unit norm", each.unit)):
            lines.append(
                (
                    f"{each.cell}, {name}",
                    f"{100 * one.accuracy:.1f}",
                    f"{one.loss:.3f}",
                    f"{one.training_loss:.3f}",
                    f"{one.excess:.2g}",
                )
            )
    return lines


def numbers(found: Sequence[Lenses]) -> dict[str, dict]:
    """For a result file: spreads, heat, losses of all methods, bounds, distances and barriers."""
    return {
        each.cell: {
            "mean squared distance of two networks": dict(each.spreads),
            "heat": {"nats": each.heat.values.tolist(), "drift": each.heat.drift},
            "test loss": {
                name: [float(x) for x in student([values])[:, 0]] for name, values in each.losses.items()
            },
            "minus the bound": {name: values.mean(1).tolist() for name, values in each.begun.bound.items()},
            "distance of plain and unit norm": {v: values.tolist() for v, values in each.apart.items()},
            "barrier of the test loss": {view: level(pairs.loss) for view, pairs in each.pairs.items()},
            "refused chains": int((~each.local.sound).sum() + (~each.moved.sound).sum()),
        }
        for each in found
    }
