"""What the pictures of several chapters share: one sign a method, bands of Student's intervals, maps of correlations, plain ticks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from lib import intervals
from lib.plots import COLOURS, DASHES, INK, MARKERS, PALETTE, Interval

# A method keeps its colour from picture to picture, whatever is drawn beside it: how its name begins, and which sign it has.
OWN = {
    "matrix Gaussian": 0, "pseudo-data": 0, "factorised": 1, "dropout": 2, "diagonal": 2, "deep ensemble": 3, "one network": 3,
    "unit norm": 0, "SGD": 1,
}  # fmt: skip
ROOM = 1.08  # between what is drawn and the edge of a logarithmic axis, a factor


class Sign(NamedTuple):
    """How one curve looks."""

    colour: str
    dash: str
    marker: str


def signs(names: Iterable[str], what: str = "methods") -> dict[str, Sign]:
    """A sign for every name, its own where that is free; raises ValueError for more than four."""
    names = list(names)
    if not 0 < len(names) <= len(COLOURS):
        raise ValueError(
            f"{len(names)} {what} for one figure, which tells one to {len(COLOURS)} apart: pass fewer, or draw two figures."
        )
    free, found = list(range(len(COLOURS))), {}
    for name in names:
        own = next((place for start, place in OWN.items() if name.startswith(start)), None)
        if own in free:
            free.remove(own)
            found[name] = own
    for name in names:
        if name not in found:
            found[name] = free.pop(0)
    return {name: Sign(COLOURS[found[name]], DASHES[found[name]], MARKERS[found[name]]) for name in names}


def student(columns: Iterable[Sequence[float | int] | np.ndarray]) -> Float[np.ndarray, "3 columns"]:
    """Means, lower and upper ends of Student's 95 % intervals, one a column."""
    return np.array([intervals.student(np.asarray(column, np.float64)) for column in columns]).T


def said(interval: Interval | np.ndarray, form: str = ".2f", unit: str = "") -> str:
    """An interval in words."""
    value, low, high = (format(float(x), form) for x in interval)
    return f"{value}{unit} ({low} to {high})"


def beside(interval: Interval | np.ndarray, level: float = 0.0) -> str:
    """Where an interval lies."""
    _, low, high = interval
    return "above" if low > level else "below" if high < level else "across"


def counted(found: Iterable[Interval | np.ndarray], level: float = 0.0, name: str = "zero") -> str:
    """How many intervals lie above a level, below it, and across."""
    where = [beside(each, level) for each in found]
    return f"{where.count('above')} of {len(where)} intervals above {name}, {where.count('below')} below, {where.count('across')} across it"


def curve(
    axes: Any,
    x: Sequence[float | int] | np.ndarray,
    band: np.ndarray,
    sign: Sign,
    label: str,
    every: float | None = None,
) -> None:
    """A mean with its band, (3, points): mean, low and high; with a mark at every point, or one in ``every`` of a diagonal."""
    mean, low, high = band
    axes.fill_between(x, low, high, color=sign.colour, alpha=0.2, lw=0)
    look = {"color": sign.colour, "ls": sign.dash, "marker": sign.marker, "ms": 4.5}
    axes.plot(x, mean, label=label, markevery=every, **look)


def dot(axes: Any, y: float | int, found: Interval | np.ndarray, sign: Sign) -> None:
    """A value at height y with its interval, lying."""
    value, low, high = found
    axes.plot([low, high], [y, y], color=sign.colour, ls="-", lw=1.8, solid_capstyle="butt")
    axes.plot([value], [y], sign.marker, color=sign.colour, ms=6)


def rows(axes: Any, names: Sequence[str]) -> None:
    """Names at the left, the first on top."""
    axes.set(yticks=range(len(names)), yticklabels=names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")


def key(axes: Any, found: dict[str, Sign], columns: int = 2, above: float = 1.0) -> None:
    """Names of dots, in a legend above the axes."""
    for name, sign in found.items():
        axes.plot([], [], sign.marker, color=sign.colour, ms=6, ls="none", label=name)
    axes.legend(loc="lower left", bbox_to_anchor=(0, above), ncols=columns, borderaxespad=0.2)


def logarithmic(axes: Any, direction: str, values: Iterable[Any]) -> bool:
    """A logarithmic axis ("x" or "y") around the values above zero, with plain numbers; whether any are not above zero.

    Student's interval of few numbers can reach zero: what is drawn of it then leaves the picture.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    everything = np.concatenate([np.ravel(v) for v in values])
    shown = everything[everything > 0]
    low, high = shown.min() / ROOM, shown.max() * ROOM
    axes.set(**{f"{direction}scale": "log", f"{direction}lim": (low, high)})
    axis = axes.xaxis if direction == "x" else axes.yaxis
    decades = np.log10(high / low)
    steps = (1.0,) if decades > 3 else (1.0, 3.0) if decades > 1.6 else (1.0, 2.0, 5.0)
    ticks = np.array([step * 10.0**k for k in range(-12, 13) for step in steps])
    if ((ticks >= low) & (ticks <= high)).sum() < 3:
        axis.set_major_locator(MaxNLocator(4))
    else:
        axis.set_major_locator(LogLocator(subs=steps, numticks=20))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(NullLocator())
    return bool(len(shown) < len(everything))


def correlation_map() -> Any:
    """Colours of -1 to 1: orange, the page itself at nought, blue; so it is the same picture on light and on dark paper."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgba

    ends = [(0.0, "orange", 1.0), (0.5, "orange", 0.0), (0.5, "blue", 0.0), (1.0, "blue", 1.0)]
    return LinearSegmentedColormap.from_list(
        "correlation", [(at, to_rgba(PALETTE[name], alpha)) for at, name, alpha in ends], N=511
    )


def heat(axes: Any, values: Float[np.ndarray, "r r"], title: str) -> Any:
    """A map of correlations, rows numbered from one; returns the image, for a colour bar."""
    n = len(values)
    image = axes.imshow(values, cmap=correlation_map(), vmin=-1, vmax=1, interpolation="nearest")
    axes.spines[:].set_visible(True)
    every = max(1, -(-n // 8))
    ticks = range(0, n, every)
    axes.set(title=title, xticks=ticks, yticks=ticks)
    axes.set_xticklabels([t + 1 for t in ticks])
    axes.set_yticklabels([t + 1 for t in ticks])
    return image


def colour_bar(fig: Any, image: Any, axes: Iterable[Any], shrink: float = 0.85) -> None:
    """The scale of a map of correlations."""
    bar = fig.colorbar(image, ax=list(axes), label="correlation", shrink=shrink, ticks=[-1, -0.5, 0, 0.5, 1])
    bar.solids.set_rasterized(True)  # as shapes, half transparent, they would show their seams
    bar.outline.set_edgecolor(INK)


def legend_above(fig: Any, handles: Sequence[Any], labels: Sequence[str], columns: int = 4) -> None:
    """One legend for all panels, above them, where no curve is."""
    fig.legend(handles, labels, loc="outside upper center", ncols=min(columns, len(labels)))


def off_diagonal(matrix: Float[np.ndarray, "r r"]) -> Float[np.ndarray, " pairs"]:
    """The entries beside the diagonal."""
    return matrix[~np.eye(len(matrix), dtype=bool)]
