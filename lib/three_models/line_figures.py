"""The chapter's pictures of lines and triangles: the hill between two networks, the triangle of three, barriers against width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from lib.connectivity import Lines
from lib.drawing import curve, legend_above, logarithmic, said, signs
from lib.intervals import jackknife
from lib.plots import INK, Shown, density_map, figure, show, style
from lib.three_models.stars import MATCHINGS, WEIGHTS, of_pairs
from lib.three_models.widths import Width, level, pair_barrier, third_barrier


@style()
def hill(found: Mapping[str, Lines], members: int) -> Shown:
    """Excess loss and error along the lines of all pairs (of ``members`` networks, in ``torch.combinations`` order), one curve a kind."""
    of = signs(found, "kinds of lines")
    fig, axes = figure(8.4, 3.4, columns=2)
    words = []
    for ax, (what, label, scale) in zip(
        axes, (("loss", "loss (nats)", 1), ("error", "error (points)", 100)), strict=True
    ):
        for kind, each in found.items():
            band = _over_pairs(scale * each.excess(what).numpy(), members)
            curve(ax, each.alphas.numpy(), band, of[kind], kind)
            top = int(band[0].argmax())
            words.append(f"{kind}: at most {said(band[:, top])} {label}")
        ax.axhline(0, color=INK, lw=1, ls="--", zorder=0)
        ax.set(xlabel="place on the line, α", ylabel=f"test {label} above the ends")
    legend_above(fig, *axes[0].get_legend_handles_labels())
    return show(
        fig,
        f"Two panels, test loss and error above the straight line between the ends, against the place on the line. {'; '.join(words)}.",
        f"Means over all {members * (members - 1) // 2} pairs of {members} networks; bands: 95 % intervals over networks.",
    )


@style()
def triangles(found: Mapping[str, tuple[Float[np.ndarray, "K 3"], Float[np.ndarray, " K"]]]) -> Shown:
    """The loss over the triangle of three networks, a panel each: (weights, loss) on a barycentric grid, on one scale of colours."""
    from matplotlib.colors import LogNorm
    from matplotlib.tri import Triangulation

    low = min(float(loss.min()) for _, loss in found.values())
    high = max(float(loss.max()) for _, loss in found.values())
    fig, axes = figure(8.4, 3.4, columns=len(found), squeeze=False)
    words, drawn = [], None
    for ax, (name, (weights, loss)) in zip(axes[0], found.items(), strict=True):
        x, y = weights[:, 1] + weights[:, 2] / 2, weights[:, 2] * np.sqrt(3) / 2
        drawn = ax.tripcolor(
            Triangulation(x, y),
            loss,
            shading="gouraud",
            norm=LogNorm(low, high),
            cmap=density_map(),
            rasterized=True,
        )
        for place, at in (("A", (0, 0)), ("B", (1, 0)), ("C", (0.5, np.sqrt(3) / 2))):
            ax.annotate(place, at, ha="center", va="bottom" if place == "C" else "top", xytext=(0, 3 if place == "C" else -3), textcoords="offset points")  # fmt: skip
        corners, centre = weights.max(1) == 1, np.abs(weights - 1 / 3).max(1).argmin()
        ax.plot(x[centre], y[centre], "+", color=INK, ms=9)
        ax.set(
            title=f"{name}\ncentre {loss[centre]:.3f}",
            aspect="equal",
            xticks=[],
            yticks=[],
            xlim=(-0.08, 1.08),
            ylim=(-0.12, 1.0),
        )
        ax.spines[:].set_visible(False)
        ax.grid(False)
        words.append(
            f"{name}: {loss[corners].mean():.3f} at the corners, {loss[centre]:.3f} at the centre, {loss.max():.3f} at most"
        )
    bar = fig.colorbar(drawn, ax=list(axes[0]), label="test loss (nats)", shrink=0.85)
    bar.solids.set_rasterized(True)
    return show(
        fig,
        f"{len(found)} triangles coloured by test loss, a network at each corner. {'; '.join(words)}.",
        "Every point is a weighted mean of the three networks' weights; the cross is their average. One scale for all.",
    )


@style()
def by_width(found: Sequence[Width], what: str = "loss") -> Shown:
    """Barriers against width, a panel a matching: none, random, direct, through a third; "loss", "error" or "calibrated"."""
    label = {
        "loss": "loss barrier (nats)",
        "error": "error barrier (points)",
        "calibrated": "calibrated loss barrier (nats)",
    }[what]
    scale = 100 if what == "error" else 1
    names = ("no permutation", "random permutation", "direct", "through a third")
    of, x = signs(names), [each.width for each in found]
    fig, axes = figure(8.4, 3.6, columns=2, sharey=True)
    words = []
    everything = []
    for ax, matching in zip(axes, MATCHINGS, strict=True):
        bands = {
            names[0]: [level(each, "plain", what) for each in found],
            names[1]: [level(each, "random", what) for each in found],
            names[2]: [level(each, matching, what) for each in found],
            names[3]: [level(each, matching, what, indirect=True) for each in found],
        }
        for name, rows in bands.items():
            band = scale * np.array(rows).T
            curve(ax, x, band, of[name], name)
            everything.append(band)
            words.append(
                f"{matching}, {name}: {said(band[:, 0])} at width {x[0]}, {said(band[:, -1])} at width {x[-1]}"
            )
        ax.set(title=matching, xlabel="width", xscale="log")
        ax.set_xticks(x, [str(w) for w in x])
        ax.minorticks_off()
    axes[0].set_ylabel(label)
    logarithmic(axes[0], "y", everything)
    legend_above(fig, *axes[0].get_legend_handles_labels())
    return show(
        fig,
        f"Two panels of the {label} against width, on logarithmic axes. {'; '.join(words)}.",
        "Means over all pairs (and all thirds); bands: 95 % intervals over the networks of each width. A band that reaches the lower "
        "edge goes on below it.",
    )


@style()
def ratios(found: Sequence[Width]) -> Shown:
    """Indirect over unaligned barrier against width, weight matching: of the loss, and of the temperature-calibrated loss."""
    of, x = signs(("loss", "calibrated loss")), [each.width for each in found]
    fig, ax = figure(5.6, 3.4)
    words, everything = [], []
    for name, what in (("loss", "loss"), ("calibrated loss", "calibrated")):

        def ratio(groups: Sequence[np.ndarray], what=what) -> np.ndarray:
            pairs = zip(found, groups, strict=True)
            return np.array(
                [third_barrier(e, WEIGHTS, what, g) / pair_barrier(e, "plain", what, g) for e, g in pairs]
            )

        band = np.stack(jackknife(ratio, [each.members for each in found]))
        curve(ax, x, band, of[name], name)
        everything.append(band)
        words.append(f"{name}: {said(band[:, 0])} at width {x[0]}, {said(band[:, -1])} at width {x[-1]}")
    ax.set(xlabel="width", xscale="log", ylabel="barrier, through a third / unaligned", ylim=(0, None))
    ax.set_xticks(x, [str(w) for w in x])
    ax.minorticks_off()
    ax.legend()
    return show(
        fig,
        f"Ratio of the barrier through a third network to the unaligned one against width, weight matching. {'; '.join(words)}.",
        "Were width alone the cause, the ratio would stay; bands: 95 % intervals over networks.",
    )


def _over_pairs(values: Float[np.ndarray, "pairs A"], members: int) -> Float[np.ndarray, "3 A"]:
    a, b = np.triu_indices(members, 1)
    table = np.full((values.shape[1], members, members), np.nan)
    table[:, a, b] = table[:, b, a] = values.T
    return np.stack(jackknife(lambda g: np.array([of_pairs(t, g[0]) for t in table]), [members]))


@style()
def strengths() -> Shown:
    """The three strengths as sketches: a pair, two sequences, a triangle."""
    fig, axes = figure(8.4, 2.5, columns=3)
    titles = ("weak: one P a pair", "simultaneous: one P for all", "strong: one P a network")
    rise = np.linspace(0.1, 0.9, 4)
    drawn = (
        [((0.15, 0.5), (0.85, 0.5))],
        [((x, 0.8), (x, 0.2)) for x in rise],
        [((0.15, 0.2), (0.85, 0.2)), ((0.15, 0.2), (0.5, 0.85)), ((0.85, 0.2), (0.5, 0.85))],
    )
    names = (
        (("A", 0.15, 0.5), ("P[B]", 0.85, 0.5)),
        (
            *((f"$A_{k + 1}$", x, 0.8) for k, x in enumerate(rise)),
            *((f"$P[B_{k + 1}]$", x, 0.2) for k, x in enumerate(rise)),
        ),
        (("$P_A[A]$", 0.15, 0.2), ("$P_B[B]$", 0.85, 0.2), ("$P_C[C]$", 0.5, 0.85)),
    )
    colour = signs(("line",))["line"].colour
    for ax, title, links, places in zip(axes, titles, drawn, names, strict=True):
        for (x0, y0), (x1, y1) in links:
            ax.plot([x0, x1], [y0, y1], color=colour, lw=1.6)
        for name, x, y in places:
            ax.plot([x], [y], "o", color=colour, ms=5)
            ax.annotate(name, (x, y), ha="center", va="bottom" if y > 0.4 else "top", xytext=(0, 5 if y > 0.4 else -5), textcoords="offset points")  # fmt: skip
        ax.set(title=title, xlim=(-0.05, 1.05), ylim=(0, 1.1), xticks=[], yticks=[])
        ax.title.set_fontsize(10)
        ax.spines[:].set_visible(False)
        ax.grid(False)
    return show(
        fig,
        "Three sketches: two networks joined by a line; two sequences of four networks, each joined with its partner under one "
        "permutation; three networks, all joined with each other.",
        "Lines stand for low barriers.",
    )
