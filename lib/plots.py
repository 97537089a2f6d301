"""Figures of one style: colours apart for every eye, ink that follows the page's light or dark, words beside each picture.

Draw with :func:`figure`, hand over with :func:`show`, which asks for the alternative text. A shown figure is an
inline SVG whose ink is the page's own text colour; nothing in it depends on the time or the machine, so that an
executed notebook compares equal to its second execution. Matplotlib is imported when the first figure is drawn.
"""

from __future__ import annotations

import hashlib
import html
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

# Matplotlib's Figure: its name cannot stand in a signature before matplotlib is imported.
Figure = Any
Interval = tuple[float, float, float]  # a value, and the ends of its interval

# Four hues near Okabe and Ito's, moved until each reads at 3:1 on white and on near-black, and any two stay apart for
# every kind of colour vision (tests/test_plots.py measures both).
PALETTE = {"blue": "#316499", "orange": "#e25714", "green": "#039975", "purple": "#aa7fd0"}
COLOURS = tuple(PALETTE.values())
DASHES = ("-", "--", "-.", ":")  # a second sign beside the colour
MARKERS = ("o", "s", "^", "D")
INK = "#747576"  # replaced by the page's text colour in the SVG

_STYLE: dict[str, Any] = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "figure.constrained_layout.use": True,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.grid": False,
    "grid.color": INK,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture on every machine
    "mathtext.fontset": "dejavusans",
    "svg.fonttype": "path",
    "image.composite_image": False,
}


@contextmanager
def style() -> Iterator[None]:
    """The book's matplotlib settings, inside a ``with`` block; the caller's own settings come back after it."""
    import matplotlib as mpl
    from cycler import cycler

    with mpl.rc_context({**_STYLE, "axes.prop_cycle": cycler(color=COLOURS, linestyle=DASHES)}):
        yield


def figure(
    width: float = 6.4, height: float = 3.6, rows: int = 1, columns: int = 1, **subplots: Any
) -> tuple[Figure, Any]:
    """A figure of ``rows`` × ``columns`` axes in the book's style; width and height in inches.

    Returns (figure, axes) as ``matplotlib.pyplot.subplots`` does, but leaves pyplot and its state alone.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    with style():
        fig = Canvas(figsize=(width, height))
        FigureCanvasSVG(fig)
        return fig, fig.subplots(rows, columns, **subplots)


def density_map() -> Any:
    """Colours for counts, few to many: faint blue to full orange, seen on light and on dark paper alike."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgba

    stops = [
        (0.0, to_rgba(PALETTE["blue"], 0.30)),
        (0.35, to_rgba(PALETTE["blue"], 0.95)),
        (0.7, to_rgba(PALETTE["purple"], 1.0)),
        (1.0, to_rgba(PALETTE["orange"], 1.0)),
    ]
    return LinearSegmentedColormap.from_list("book", stops)


@dataclass(frozen=True)
class Shown:
    """What a cell displays: one or more drawings with the words for those who do not see them.

    Attributes:
        drawings: SVG documents without XML heads.
        alt: the alternative text, which the page gives to a screen reader.
        caption: shown below, may hold simple HTML; "" for none.
    """

    drawings: tuple[str, ...]
    alt: str
    caption: str = ""

    def _repr_html_(self) -> str:
        kind = "book-figure book-panels" if len(self.drawings) > 1 else "book-figure"
        caption = f"<figcaption>{self.caption}</figcaption>" if self.caption else ""
        # The style attributes serve a notebook, where the site's stylesheet is not at hand.
        grid = "display:flex;flex-wrap:wrap;gap:0.75rem;justify-content:center"
        body = "".join(self.drawings)
        return (
            f'<figure class="{kind}" style="margin:1rem 0">'
            f'<div role="img" aria-label="{html.escape(self.alt)}" style="{grid}">{body}</div>{caption}</figure>'
        )

    def __repr__(self) -> str:
        return f"Figure: {self.alt}"


def _svg(fig: Figure, salt: str) -> str:
    """One figure as an inline SVG: ids of its own, page's ink, size in its viewBox only."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with style(), mpl.rc_context({"svg.hashsalt": salt}):
        fig.savefig(buffer, format="svg", transparent=True, dpi=200, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    width = float(re.search(r'width="([\d.]+)pt"', text)[1]) * 4 / 3  # in CSS pixels
    # The style element's selector is "*": inline it would restyle the whole page.
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.S)
    text = re.sub(r'(?<=\s)(width|height)="[\d.]+pt"', "", text)
    box = f"width:100%;max-width:{width:.0f}px;height:auto;flex:1 1 {min(width, 300):.0f}px"
    # Matplotlib leaves black fills unsaid; said once here, they become ink too.
    joins = "stroke-linejoin:round;stroke-linecap:butt;fill:currentColor"
    text = text.replace("<svg", f'<svg aria-hidden="true" style="{box};{joins}"', 1).replace(
        INK, "currentColor"
    )
    # Groups are named figure_1, axes_1, ... in every figure; two on one page must not share an id.
    return re.sub(r'(\bid="|href="#|url\(#)', lambda m: f"{m[1]}{salt}-", text).strip()


def show(fig: Figure | Sequence[Figure], alt: str, caption: str = "") -> Shown:
    """Hand a figure, or several that stand side by side where the page is wide, to the notebook and the page.

    Args:
        fig: one figure or a sequence of them.
        alt: what is to be seen, in words; required, since a picture without it is closed to some readers.
        caption: a line below the picture, simple HTML.

    Raises:
        ValueError: an empty alternative text.
    """
    if not alt.strip():
        raise ValueError(
            "the alternative text is empty: say in words what the figure shows, for who cannot see it."
        )
    figures = list(fig) if isinstance(fig, Sequence) else [fig]
    for legend in (axes.get_legend() for one in figures for axes in one.axes):
        if legend is not None:  # made outside the style, it would bring a white box
            legend.set_frame_on(False)
            for label in legend.get_texts():
                label.set_color(INK)
    salt = "f" + hashlib.sha256(alt.encode()).hexdigest()[:8]
    return Shown(
        tuple(_svg(one, f"{salt}{i}") for i, one in enumerate(figures)), " ".join(alt.split()), caption
    )


def hexbin_panels(
    panels: Sequence[tuple[np.ndarray, str]],
    *,
    alt: str,
    caption: str = "",
    limits: float = 4.0,
    gridsize: int = 85,
    min_count: int = 3,
    overlay: int = 1000,
    labels: tuple[str, str] = ("first output weight", "second output weight"),
) -> Shown:
    """Densities of points in the plane, one panel a title, counts in logarithmic colour: the look of P1's Figure 1.

    Args:
        panels: pairs of points (N, 2) and a title.
        limits: each panel shows [-limits, limits] on both axes.
        gridsize: hexagons across.
        min_count: a hexagon with fewer points stays empty.
        overlay: the first so many points are drawn over the hexagons.
        labels: names of the two coordinates.
    """
    from matplotlib.colors import LogNorm

    drawn, largest = [], min_count + 1.0
    extent = (-limits, limits, -limits, limits)
    for points, title in panels:
        points = np.asarray(points, dtype=float)
        fig, axes = figure(3.3, 3.3)
        axes.axline((0, 0), slope=1, color=INK, lw=0.8, ls=(0, (4, 4)), alpha=0.6)
        inside = points[(np.abs(points) <= limits).all(axis=1)]
        # With no point inside there is nothing to bin, and nothing is what the panel shows.
        if len(inside):
            counts = axes.hexbin(
                *inside.T, gridsize=gridsize, mincnt=min_count, extent=extent, cmap=density_map(), norm=LogNorm(),
                linewidths=0, rasterized=True,
            )  # fmt: skip
            largest = max(largest, np.asarray(counts.get_array()).max(initial=0.0))
            drawn.append((fig, counts))
        else:
            drawn.append((fig, None))
        first = points[:overlay]
        axes.scatter(*first.T, s=1.2, color=INK, alpha=0.35, linewidths=0, rasterized=True)
        axes.set(xlim=(-limits, limits), ylim=(-limits, limits), aspect="equal", title=title)
        axes.set(xlabel=labels[0], ylabel=labels[1])
    for _, counts in drawn:
        if counts is not None:
            counts.set_norm(LogNorm(vmin=min_count, vmax=largest))
    note = (
        f"Colour: networks in a hexagon, {min_count} (faint blue) to {largest:.0f} (orange), logarithmic. "
        f"Dots: the first {overlay:,} networks. Dashed: the diagonal, across which a swap reflects."
    )
    return show([fig for fig, _ in drawn], alt, f"{caption} {note}".strip())


def interval_plot(
    rows: Sequence[tuple[str, float, float, float]],
    *,
    alt: str,
    xlabel: str,
    caption: str = "",
    margin: tuple[float, float] | None = None,
    reference: float | None = None,
    log: bool = False,
) -> Shown:
    """Values with their intervals, one a row, first row on top.

    Args:
        rows: (label, value, low, high) each, in the unit that ``xlabel`` names; a value of NaN leaves an empty row.
        margin: a band named beforehand, shaded, which an interval must lie in (or leave) to decide a claim.
        reference: a value to compare with, a dashed line.
        log: logarithmic axis.
    """
    fig, axes = figure(6.4, 0.9 + 0.34 * len(rows))
    if margin is not None:
        axes.axvspan(*margin, color=PALETTE["green"], alpha=0.18, lw=0)
    if reference is not None:
        axes.axvline(reference, color=INK, lw=1, ls="--")
    for y, (_, value, low, high) in enumerate(rows):
        axes.plot([low, high], [y, y], color=PALETTE["blue"], ls="-", lw=2.4, solid_capstyle="butt")
        axes.plot([value], [y], "o", color=PALETTE["blue"], ms=6)
    axes.set(yticks=range(len(rows)), yticklabels=[row[0] for row in rows], xlabel=xlabel)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    if log:
        axes.set_xscale("log")
    axes.margins(x=0.05)
    axes.autoscale(axis="x")
    return show(fig, alt, caption)


def rank_plot(
    panels: Sequence[tuple[np.ndarray, str]], *, alt: str, caption: str = "", bins: int = 20
) -> Shown:
    """Rank histograms of chains: where the chains mix, each chain's ranks among all draws are uniform.

    Args:
        panels: pairs of draws (chains, draws) and a title.
        bins: of the ranks; the grey band holds a uniform chain's bin with probability about 95 % if its draws
            were independent (those of a chain are not: a band to look at, not a test).

    Source: Vehtari, Gelman, Simpson, Carpenter, Bürkner, rank-normalised R-hat.
    """
    from scipy.stats import rankdata

    drawn = []
    for draws, title in panels:
        draws = np.asarray(draws, dtype=float)
        chains, length = draws.shape
        ranks = rankdata(draws, axis=None).reshape(chains, length) / draws.size
        expected = length / bins
        spread = 1.96 * np.sqrt(expected * (1 - 1 / bins))
        fig, axes = figure(3.3, 2.5)
        axes.axhspan(expected - spread, expected + spread, color=INK, alpha=0.18, lw=0)
        edges = np.linspace(0, 1, bins + 1)
        for chain in ranks:
            counts, _ = np.histogram(chain, bins=edges)
            faint = max(0.12, min(0.9, 4 / chains))
            axes.stairs(counts, edges, baseline=None, color=PALETTE["blue"], alpha=faint, lw=1.2)
        axes.axhline(expected, color=INK, lw=1, ls="--")
        axes.set(xlim=(0, 1), xlabel="rank among all draws", ylabel="draws in the bin", title=title)
        axes.set_ylim(bottom=0)
        drawn.append(fig)
    return show(drawn, alt, caption)


def trace_plot(
    panels: Sequence[tuple[np.ndarray, str]], *, alt: str, caption: str = "", chains: int = 4
) -> Shown:
    """The first ``chains`` chains of each panel's draws (chains, draws) against the draw's number."""
    drawn = []
    for draws, title in panels:
        fig, axes = figure(3.3, 2.5)
        for i, chain in enumerate(np.asarray(draws, dtype=float)[:chains]):
            axes.plot(chain, color=COLOURS[i % len(COLOURS)], ls="-", lw=0.6, alpha=0.9, rasterized=True)
        axes.set(xlabel="draw", title=title)
        drawn.append(fig)
    return show(drawn, alt, caption)


def histogram(
    series: dict[str, np.ndarray],
    *,
    alt: str,
    xlabel: str,
    caption: str = "",
    bins: int = 60,
    log: bool = False,
    limits: tuple[float, float] | None = None,
) -> Shown:
    """Densities of one or more samples over shared bins: outlines of different colour and dash, named in a legend.

    Args:
        series: name -> values (N,), at most four; values that are not finite are left out.
        log: bins of equal width in the logarithm.
        limits: range of the bins; default the smallest to the largest value.

    Raises:
        ValueError: more than four samples, which four colours cannot tell apart.
    """
    if len(series) > len(COLOURS):
        raise ValueError(
            f"{len(series)} samples in one histogram, but {len(COLOURS)} colours: draw two figures."
        )
    values = {name: np.asarray(v, dtype=float)[np.isfinite(v)] for name, v in series.items()}
    everything = np.concatenate(list(values.values()))
    low, high = limits or (everything.min(), everything.max())
    if low == high:
        low, high = (low * 0.9, high * 1.1) if log else (low - 0.5, high + 0.5)
    edges = np.geomspace(low, high, bins + 1) if log else np.linspace(low, high, bins + 1)
    fig, axes = figure(6.4, 3.2)
    for (name, sample), colour, dash in zip(values.items(), COLOURS, DASHES, strict=False):
        share, _ = np.histogram(sample, bins=edges, density=False)
        axes.stairs(share / max(len(sample), 1), edges, color=colour, ls=dash, lw=1.8, label=name)
    axes.set(xlabel=xlabel, ylabel="share of the sample in a bin")
    axes.set_ylim(bottom=0)
    if log:
        axes.set_xscale("log")
    if len(values) > 1:
        axes.legend()
    return show(fig, alt, caption)


def scatter_panels(
    panels: Sequence[tuple[np.ndarray | dict[str, np.ndarray], str]],
    *,
    alt: str,
    labels: tuple[str, str],
    caption: str = "",
    diagonal: bool = False,
    reference: float | None = None,
    limits: tuple[tuple[float, float], tuple[float, float]] | None = None,
    shared: bool = True,
    equal: bool = False,
    log: bool = False,
    size: float = 4.0,
) -> Shown:
    """Points in the plane, one panel a title: faint dots, so that a crowd shows as a crowd.

    Args:
        panels: pairs of points (N, 2), or of at most four named groups of them, and a title; groups of the same
            names in all panels are named in the first.
        labels: names of the two coordinates.
        diagonal: draw the line where both coordinates are equal.
        reference: draw a horizontal line at this height.
        limits: ((left, right), (bottom, top)); default the range of the points, of all panels where ``shared``.
        shared: one range for all panels, so that they can be compared by eye.
        equal: one unit is as long on both axes.
        log: both axes logarithmic.
        size: of a dot, in points squared.

    Raises:
        ValueError: more than four groups in a panel, which four colours cannot tell apart.
    """
    groups = [(_groups(points), title) for points, title in panels]
    left_out = 0
    for named, _ in groups:
        for name, points in named.items():
            fit = np.isfinite(points).all(1) & ((points > 0).all(1) if log else True)
            left_out += int((~fit).sum())
            named[name] = points[fit]
    everything = [np.concatenate(list(named.values())) for named, _ in groups]
    ranges = [limits or _range(points, log) for points in everything]
    if shared and limits is None:
        ranges = [_range(np.concatenate(everything), log)] * len(groups)
    count = max((len(points) for points in everything), default=0)
    faint = float(np.clip(30 / max(count, 1) ** 0.5, 0.12, 0.8))
    drawn = []
    for (named, title), (across, up) in zip(groups, ranges, strict=True):
        fig, axes = figure(3.3, 3.3) if len(groups) > 1 else figure(4.6, 4.2)
        if diagonal:
            axes.axline(*((end, end) for end in across), color=INK, lw=1, ls="--", zorder=0)
        if reference is not None:
            axes.axhline(reference, color=INK, lw=1, ls="--", zorder=0)
        for (name, points), colour, marker in zip(named.items(), COLOURS, MARKERS, strict=False):
            dots = axes.scatter(
                *points.T, s=size, c=colour, marker=marker, alpha=faint, linewidths=0, rasterized=True
            )
            dots.set_label(name)
        axes.set(xlabel=labels[0], ylabel=labels[1], title=title, xlim=across, ylim=up)
        if log:
            axes.set(xscale="log", yscale="log", xlim=across, ylim=up)
        if equal:
            axes.set_aspect("equal")
        if len(named) > 1 and (not drawn or list(named) != list(groups[0][0])):
            for handle in axes.legend(markerscale=2).legend_handles:
                handle.set_alpha(1)
        drawn.append(fig)
    return show(drawn, alt, _with_note(caption, left_out, "point", log))


def line_plot(
    series: dict[str, tuple[np.ndarray, ...]],
    *,
    alt: str,
    xlabel: str,
    ylabel: str,
    caption: str = "",
    log: tuple[bool, bool] = (False, False),
    markers: bool = False,
    marks: Sequence[tuple[float, str]] = (),
    reference: float | None = None,
    ends: bool = False,
    limits: tuple[float, float] | None = None,
) -> Shown:
    """Curves, each with a band where one is given.

    Args:
        series: name -> (x, y) or (x, y, low, high), each (N,), at most four; a value of NaN interrupts the line.
        log: logarithmic x, logarithmic y.
        markers: a sign at each value (few values), of another shape for each curve.
        marks: vertical lines (x, words), as for the steps of a learning rate; "" for no words.
        reference: a horizontal line.
        ends: names at the lines' right ends in place of a legend; for curves that end apart.
        limits: of the vertical axis.

    Raises:
        ValueError: more than four curves, or a curve whose parts are not of one length.
    """
    _at_most_four(series, "curves")
    fig, axes = figure(6.4, 3.6)
    left_out = 0
    styles = zip(series.items(), COLOURS, DASHES, MARKERS, strict=False)
    for (name, parts), colour, dash, marker in styles:
        x, y, *band = (np.asarray(part, dtype=float) for part in parts)
        if any(part.shape != x.shape for part in (y, *band)) or len(band) not in (0, 2):
            raise ValueError(
                f"the curve {name!r} has parts of shapes {[part.shape for part in (x, y, *band)]}: "
                "give (x, y) or (x, y, low, high), all of one length."
            )
        if log[0]:
            x = np.where(x > 0, x, np.nan)
        if log[1]:
            y = np.where(y > 0, y, np.nan)
        left_out += int((~(np.isfinite(x) & np.isfinite(y))).sum())
        if band:
            low, high = (np.where(part > 0, part, np.nan) if log[1] else part for part in band)
            axes.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)
        sign = {"marker": marker, "ms": 5} if markers else {}
        axes.plot(x, y, color=colour, ls=dash, label=name, **sign)
        shown = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
        if ends and len(shown):
            axes.annotate(
                name, (x[shown[-1]], y[shown[-1]]), (6, 0), textcoords="offset points", va="center", color=INK
            ).set_annotation_clip(False)
    if log[0]:
        axes.set_xscale("log")
        _few_ticks(axes)
    if log[1]:
        axes.set_yscale("log")
    if reference is not None:
        axes.axhline(reference, color=INK, lw=1, ls="--", zorder=0)
    for x, words in marks:
        axes.axvline(x, color=INK, lw=0.8, ls=":", zorder=0)
        axes.annotate(
            words, (x, 1), (3, -2), xycoords=("data", "axes fraction"), textcoords="offset points",
            va="top", fontsize=9, color=INK,
        )  # fmt: skip
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if limits is not None:
        axes.set_ylim(limits)
    if len(series) > 1 and not ends:
        axes.legend()
    return show(fig, alt, _with_note(caption, left_out, "value", any(log)))


def bar_counts(
    series: dict[str, np.ndarray],
    *,
    alt: str,
    xlabel: str,
    caption: str = "",
    names: Sequence[str] | None = None,
) -> Shown:
    """How often each category occurs in one or more samples, as shares, beside the line of equal shares.

    Args:
        series: name -> counts (K,) of the same K categories, at most four.
        xlabel: what the categories are.
        names: of the categories; default their numbers from 1.

    Raises:
        ValueError: more than four samples, samples of different categories, or an empty sample.
    """
    _at_most_four(series, "samples")
    counts = {name: np.asarray(values, dtype=float) for name, values in series.items()}
    categories = {len(values) for values in counts.values()}
    if len(categories) != 1:
        raise ValueError(
            f"the samples have {sorted(categories)} categories: all must count the same categories."
        )
    for name, values in counts.items():
        if not values.sum() > 0:
            raise ValueError(f"the sample {name!r} is empty: there is nothing to count in it.")
    (k,) = categories
    fig, axes = figure(6.4, 3.2)
    width = 0.8 / len(counts)
    for i, ((name, values), colour) in enumerate(zip(counts.items(), COLOURS, strict=False)):
        centre = np.arange(k) + (i - (len(counts) - 1) / 2) * width
        axes.bar(centre, values / values.sum(), width * 0.9, color=colour, label=name)
    axes.axhline(1 / k, color=INK, lw=1, ls="--", label="equal shares")
    axes.set(xlabel=xlabel, ylabel="share of the sample", xlim=(-0.6, k - 0.4), xticks=range(k))
    axes.set_xticklabels(names if names is not None else range(1, k + 1))
    axes.tick_params(axis="x", length=0)
    axes.legend()
    return show(fig, alt, caption)


def dumbbell_plot(
    rows: Sequence[tuple[str, Interval, Interval]],
    *,
    alt: str,
    xlabel: str,
    names: tuple[str, str] = ("one run", "ten runs"),
    caption: str = "",
    reference: float | None = None,
    log: bool = False,
) -> Shown:
    """Two values a row with their intervals, joined: what a change does to each method. First row on top.

    Args:
        rows: (label, first, second), each a value with its interval (value, low, high); a value of NaN stays empty.
        names: what the first value (a circle) and the second (a square) are.
        reference: a value to compare with, a dashed line.
        log: logarithmic axis.
    """
    fig, axes = figure(6.4, 1.2 + 0.42 * len(rows))
    if reference is not None:
        axes.axvline(reference, color=INK, lw=1, ls="--", zorder=0)
    for y, (_, first, second) in enumerate(rows):
        above, below = y - 0.12, y + 0.12
        axes.plot([first[0], second[0]], [above, below], color=INK, ls="-", lw=1, alpha=0.7, zorder=1)
        pair = zip((first, second), (above, below), COLOURS, MARKERS, strict=False)
        for (value, low, high), height, colour, marker in pair:
            axes.plot([low, high], [height] * 2, color=colour, ls="-", lw=1.8, alpha=0.75, zorder=2)
            axes.plot([value], [height], marker, color=colour, ms=6.5, zorder=3)
    for name, colour, marker in zip(names, COLOURS, MARKERS, strict=False):
        axes.plot([], [], marker, color=colour, ms=6.5, label=name)
    axes.set(yticks=range(len(rows)), yticklabels=[row[0] for row in rows], xlabel=xlabel)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    if log:
        axes.set_xscale("log")
        _few_ticks(axes)
    axes.margins(x=0.05)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
    return show(fig, alt, caption)


def _few_ticks(axes: Any) -> None:
    """Plain numbers at 1, 2 and 5 on a logarithmic axis of few decades, whose usual labels run into each other."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()
    if high / low < 1e3:
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _at_most_four(series: dict[str, Any], what: str) -> None:
    if len(series) > len(COLOURS):
        raise ValueError(f"{len(series)} {what} in one figure, but {len(COLOURS)} colours: draw two figures.")


def _groups(points: np.ndarray | dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    named = points if isinstance(points, dict) else {"": points}
    _at_most_four(named, "groups of points")
    return {name: np.asarray(part, dtype=float).reshape(-1, 2) for name, part in named.items()}


def _range(points: np.ndarray, log: bool) -> tuple[tuple[float, float], tuple[float, float]]:
    """The box around points (N, 2), a little larger."""
    if not len(points):
        return ((0.1, 1.0), (0.1, 1.0)) if log else ((0.0, 1.0), (0.0, 1.0))
    low, high = (np.log(end) if log else end for end in (points.min(0), points.max(0)))
    room = np.where(high > low, 0.05 * (high - low), 0.5)
    ends = np.stack([low - room, high + room], 1)
    (a, b), (c, d) = (np.exp(ends) if log else ends).tolist()
    return (a, b), (c, d)


def _with_note(caption: str, left_out: int, what: str, log: bool) -> str:
    """The caption, and how many values a figure could not show."""
    if not left_out:
        return caption
    why = "not finite, or not above zero on a logarithmic axis" if log else "not finite"
    return f"{caption} Left out: {left_out:,} {what}{'s' if left_out > 1 else ''} ({why}).".strip()
