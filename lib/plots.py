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
