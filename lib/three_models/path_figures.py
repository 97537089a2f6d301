"""The chapter's pictures of trainings, prunings, chains and groups of networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lib.connectivity import PARTS, Parts
from lib.drawing import curve, dot, legend_above, rows, said, signs, student
from lib.plots import COLOURS, INK, Shown, figure, show, style
from lib.three_models import pruned
from lib.three_models.pruned import DENSITIES, TRANSPORTS, Pruned, over_ring
from lib.three_models.several import METHODS, Groups
from lib.three_models.stars import MATCHINGS
from lib.three_models.trajectories import Followed, over_time


@style()
def trajectories(found: Mapping[str, Followed]) -> Shown:
    """Error barriers: the final permutation at each epoch (left), and each epoch's permutation at the end (right); a row a training."""
    fig, axes = figure(8.4, 5.6, rows=len(found), columns=2, sharex=True, squeeze=False, sharey="row")
    names = ("no permutation", *MATCHINGS)
    of, words = signs(names), []
    for line, (kind, each) in zip(axes, found.items(), strict=True):
        plain = 100 * over_time(each.plain)
        ends = np.repeat(plain[:, -1:], plain.shape[1], 1)
        for ax, none, what, title in (
            (line[0], plain, each.late, "the last permutation, at each epoch"),
            (line[1], ends, each.early, "each epoch's permutation, at the end"),
        ):
            curve(ax, each.epochs, none, of[names[0]], names[0])
            for matching in MATCHINGS:
                band = 100 * over_time(what[matching])
                curve(ax, each.epochs, band, of[matching], matching)
                words.append(
                    f"{kind}, {title}, {matching}: {said(band[:, 0], '.1f')} at epoch {each.epochs[0]}, "
                    f"{said(band[:, -1], '.1f')} at epoch {each.epochs[-1]}"
                )
            ax.set(title=title, ylim=(0, None))
            ax.title.set_fontsize(10)
        line[0].set_ylabel(f"{kind}\nerror barrier (points)")
    for ax in axes[-1]:
        ax.set_xlabel("epoch")
    legend_above(fig, *axes[0, 0].get_legend_handles_labels())
    return show(
        fig,
        f"{axes.size} panels of error barriers against epochs. {'. '.join(words)}.",
        "Means over pairs; bands: 95 % intervals over networks.",
    )


@style()
def agreement(found: Followed) -> Shown:
    """The share of units that each permutation puts where the last one of weight matching does."""
    of = signs(MATCHINGS)
    fig, ax = figure(5.6, 3.2)
    words = []
    for matching in MATCHINGS:
        band = over_time(found.equal[matching])
        curve(ax, found.epochs, band, of[matching], matching)
        words.append(
            f"{matching}: {said(band[:, 0])} at epoch {found.epochs[0]}, {said(band[:, -1])} at epoch {found.epochs[-1]}"
        )
    ax.set(xlabel="epoch of the permutation", ylabel="share of equal positions", ylim=(0, 1.05))
    ax.legend()
    return show(
        fig,
        f"Share of positions equal to those of the last weight matching, against the epoch. {'; '.join(words)}.",
        "Units dead in either network are left out; bands: 95 % intervals over networks.",
    )


@style()
def levels(found: Pruned) -> Shown:
    """Error barriers against density, under no permutation, the dense one, and each level's own."""
    names = {"plain": "no permutation", "dense": "the dense networks' permutation", "own": "each level's own"}
    of = signs(names.values())
    fig, ax = figure(6.2, 3.5)
    words = []
    for kind, name in names.items():
        band = 100 * pruned.level_bands(found, kind)
        curve(ax, 100 * found.density, band, of[name], name)
        words.append(
            f"{name}: {said(band[:, 0], '.1f')} dense, {said(band[:, -1], '.1f')} at {found.density[-1]:.0%}"
        )
    ax.set(
        xscale="log",
        xlabel="weights left (%), pruning to the right →",
        ylabel="error barrier (points)",
        ylim=(0, None),
    )
    ticks = [100, 50, 20, 10, 5, 2, 1]
    shown = [t for t in ticks if 100 * found.density.min() * 0.9 <= t]
    ax.set_xticks(shown, [str(t) for t in shown])
    ax.minorticks_off()
    ax.invert_xaxis()
    ax.legend()
    return show(
        fig,
        f"Error barriers against density. {'; '.join(words)}.",
        "Means over ten pairs in a ring; bands: 95 % intervals over networks.",
    )


@style()
def masks(found: Pruned) -> Shown:
    """Accuracy of networks trained again under masks of several kinds, against density."""
    of = signs(TRANSPORTS)
    fig, ax = figure(6.2, 3.5)
    words = []
    for kind in TRANSPORTS:
        values = found.transported[kind]
        band = np.stack(over_ring(lambda pairs, v=values: v[:, pairs].mean(1), found.members))
        curve(ax, [100 * d for d in DENSITIES], band, of[kind], kind)
        words.append(
            f"{kind}: " + ", ".join(f"{said(band[:, k], '.1f')} at {d:.0%}" for k, d in enumerate(DENSITIES))
        )
    ax.set(xscale="log", xlabel="weights left (%), pruning to the right →", ylabel="test accuracy (%)")
    ax.set_xticks([100 * d for d in DENSITIES], [f"{100 * d:.0f}" for d in DENSITIES])
    ax.minorticks_off()
    ax.invert_xaxis()
    ax.legend()
    return show(
        fig,
        f"Test accuracy against density under four kinds of masks. {'; '.join(words)}.",
        f"Means over {found.members} networks; bands: 95 % intervals over networks.",
    )


@style()
def barriers(found: Mapping[str, tuple[float, float, float]], label: str, zero: float = 0.0) -> Shown:
    """Error barriers of several kinds, in points, as dots with intervals, the first on top."""
    fig, ax = figure(6.4, 1.2 + 0.36 * len(found))
    sign = signs(("barrier",))["barrier"]
    ax.axvline(zero, color=INK, lw=1, ls="--", zorder=0)
    for y, interval in enumerate(found.values()):
        dot(ax, y, 100 * np.array(interval), sign)
    rows(ax, list(found))
    ax.set(xlabel=label)
    words = [f"{name}: {said(100 * np.array(interval), '.1f')}" for name, interval in found.items()]
    return show(
        fig, f"Dots with intervals, {label}. {'; '.join(words)}.", "Bars: 95 % intervals over networks."
    )


@style()
def together(found: Sequence[Groups]) -> Shown:
    """n networks at once: pairwise barrier, and the average's loss above the mean loss, against n, a curve a method."""
    methods = [m for m in METHODS if m in found[0].pairwise]
    of, x = signs([m.replace("_", " ") for m in methods]), [each.n for each in found]
    fig, axes = figure(8.4, 3.4, columns=2)
    words = []
    for ax, (what, label) in zip(axes, (("pairwise", "pairwise loss barrier (nats)"), ("centroid", "average's loss − mean loss (nats)")), strict=True):  # fmt: skip
        for method in methods:
            name = method.replace("_", " ")
            band = student([getattr(each, what)[method] for each in found])
            curve(ax, x, band, of[name], name)
            words.append(
                f"{label}, {name}: "
                + ", ".join(f"{said(band[:, k], '.3f')} for {n}" for k, n in enumerate(x))
            )
        ax.set(xlabel="networks aligned at once", ylabel=label, xticks=x, ylim=(0, None))
        ax.yaxis.label.set_fontsize(9)
    legend_above(fig, *axes[0].get_legend_handles_labels())
    return show(
        fig,
        f"Two panels against the number of networks. {'; '.join(words)}.",
        "Means over disjoint groups; bands: 95 % intervals over groups. Unaligned networks are far above both panels.",
    )


@style()
def parts(found: Parts) -> Shown:
    """The parts of the loss barrier between two networks, as bars of means with intervals over a ring of pairs."""
    members = len(found.plain)
    fig, ax = figure(6.4, 2.7)
    shares = {
        name: np.array(over_ring(lambda pairs, v=values: np.array([v.numpy()[pairs].mean()]), members))[:, 0]
        for name, values in found.parts.items()
    }
    for y, (name, colour) in enumerate(zip(PARTS, COLOURS, strict=True)):
        value, low, high = shares[name]
        ax.barh(y, value, color=colour, alpha=0.8)
        ax.plot([low, high], [y, y], color=INK, lw=1.8)
    ax.axvline(0, color=INK, lw=1)
    rows(ax, list(PARTS))
    ax.set(xlabel="part of the loss barrier (nats)")
    words = [f"{name}: {said(value, '.3f')}" for name, value in shares.items()]
    return show(
        fig,
        f"Bars: what each remedy takes off the loss barrier, and what is left. {'; '.join(words)}.",
        f"Means over {members} pairs; lines: 95 % intervals over networks. The parts sum to the unaligned barrier.",
    )
