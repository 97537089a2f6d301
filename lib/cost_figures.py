"""Pictures of the kernels' growth: core-seconds against size, both logarithmic, with the fitted law and its band."""

from __future__ import annotations

import html
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import numpy as np

from lib.cost_series import Growth, Series
from lib.drawing import logarithmic, said
from lib.plots import COLOURS, INK, Shown, figure, show

ON = 3.0  # the law is drawn this factor beyond the largest size
ROOM = 1.15  # between the first dot and the axes
POINTS = 40  # of a drawn law


def figures(growth: Growth) -> Iterator[Shown]:
    """One picture a kernel, a panel a variable."""
    for kernel, group in groupby(growth.series, key=lambda series: series.kernel):
        together = list(group)
        told = "; ".join(map(_in_words, together))
        fixed = "; ".join(f"against {series.variable}: {series.fixed}" for series in together)
        caption = f"<code>{kernel}</code>, {html.escape(fixed)}."
        alt = f"Core-seconds of {kernel} on logarithmic axes: {told}."
        yield show([_panel(series) for series in together], alt, caption)


def _in_words(series: Series) -> str:
    seconds = series.core_seconds
    return (
        f"against {series.variable}, from {seconds[0]:.2g} s at {series.sizes[0]:,} to {seconds[-1]:.2g} s at "
        f"{series.sizes[-1]:,}, exponent {_exponent(series)}"
    )


def _panel(series: Series) -> Any:
    fig, axes = figure(3.3, 2.7)
    x, y = np.array(series.sizes, np.float64), series.core_seconds
    line = np.geomspace(x[0], ON * x[-1], POINTS)
    value, low, high = np.array([series.core_seconds_at(at / x[-1]) for at in line]).T
    axes.fill_between(line, low, high, color=COLOURS[0], alpha=0.2, lw=0)
    axes.plot(line, value, color=COLOURS[0], ls="-", lw=1.6)
    axes.plot(line, [series.law.at(at)[0] - series.law.overhead for at in line], color=INK, ls="--", lw=1)
    axes.plot(x, y, "o", color=COLOURS[1], ms=5.5)
    units = {"width": "width (units)"}
    label = units.get(series.variable, f"{series.variable} (number)")
    axes.set(xlabel=label, ylabel="core-seconds (s)", title=f"exponent {_exponent(series)}")
    logarithmic(axes, "x", [line, [x[0] / ROOM]])
    logarithmic(axes, "y", [y, value, [y[0] / ROOM]])
    axes.grid(color=INK, alpha=0.25)
    return fig


def _exponent(series: Series) -> str:
    return said((series.law.exponent, series.law.low, series.law.high))
