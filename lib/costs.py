"""What the book costs: each chapter as its result file says, how the kernels grow, and what that means for larger studies.

Two kinds of files speak here and nothing else: the chapters' results, and ``data/growth.toml`` (``lib.cost_series``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float

from lib.cost_figures import figures
from lib.cost_series import Growth, Series, read
from lib.ledger import CHAPTERS
from lib.power_law import Law
from lib.results import NOT_MEASURED, NOT_PUBLISHED, load
from lib.rules import PROFILES
from lib.table import Table, markdown

WITHOUT_CLAIMS = ("your-models",)  # a chapter that measures what a reader brings
TIMES = (10, 1_000, 100_000)  # how much larger a study may be
QUIET = 0.1  # cores in other hands that count as none
DAY, HOUR, MIB = 86_400.0, 3_600.0, float(1 << 20)
PICTURES = (
    "Dots are medians. Line and band are the fitted law with its 95 % interval, drawn on beyond the largest size (by pieces of it where the work splits); the dashed "
    "line is its power alone, without the overhead."
)
LARGER = (
    "Core-hours of one piece of work, so many times the largest that was measured. Where the work splits, that is so many pieces of the "
    "largest size, whatever the exponent, and a worker's memory is that of one piece. Where it does not, time and memory follow their laws, "
    "the memory at each of the three sizes."
)
STUDY = (
    "Core-hours (wall time times threads, at most). Where the kernel's work splits, so many times the quick run's; elsewhere by the "
    "exponent, with its interval."
)
VAGUELY = "not determined"
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MISSING = (
    "How the kernels grow is not yet measured on this machine: `python -m benchmarks.growth` does that in a few minutes "
    "and writes `data/growth.toml`, from which this page is made."
)
NO_GPU = "not measured"


Results = Mapping[tuple[str, str], dict | None]


def costs_markdown(root: Path | None = None) -> str:
    """The page's tables and figures: chapters as measured, growth of the kernels, larger studies."""
    growth = read(root)
    results = {(c, p): load(c, p, root) for c in (*CHAPTERS, *WITHOUT_CLAIMS) for p in PROFILES}
    blocks = ["## What the chapters cost", _chapters(results), "## How the kernels grow"]
    if growth is None:
        return "\n\n".join((*blocks, MISSING)) + "\n"
    blocks += [_measured_on(growth), _growth(growth), PICTURES]
    blocks += [f"```{{raw}} html\n{shown._repr_html_()}\n```" for shown in figures(growth)]
    blocks += [
        "## The whole study, larger",
        _study(growth, results),
        "## One kernel, larger",
        _larger(growth),
    ]
    return "\n\n".join(blocks) + "\n"


def _chapters(results: Results) -> str:
    """Seconds and memory of every chapter and profile that has been run, as its result file says."""
    rows, total = [], 0.0
    for (chapter, profile), result in results.items():
        if result is None:
            continue
        made = result["provenance"]
        wall, where = (
            made["wall_seconds"],
            f"{made['device']} ({made['device_name']}, {made['threads']} threads)",
        )
        seconds = "not recorded" if wall is None else f"{wall:.0f} s"
        rows.append(
            (f"{chapter}, {profile}", seconds, _bytes(made.get("peak_bytes")), where, made["date"][:10])
        )
        total += (wall or 0.0) if profile == "quick" else 0.0
    parts = (
        [Table(("Chapter, profile", "Wall time", "Peak memory", "Device", "Date"), rows).markdown()]
        if rows
        else []
    )
    parts += [f"All quick chapters that have been run, one after the other: {total:.0f} s."] if total else []
    for profile, what in (("quick", NOT_MEASURED), ("full", NOT_PUBLISHED)):
        if missing := [
            chapter for (chapter, p), result in results.items() if p == profile and result is None
        ]:
            parts.append(f"{profile.capitalize()}: {what}, of {', '.join(missing)}.")
    return "\n\n".join(parts)


def _measured_on(growth: Growth) -> str:
    """Where the growths were measured, and whether the machine was doing something else."""
    memory = f", {growth.memory / 2**30:.0f} GiB" if growth.memory else ""
    return (
        f"Measured on {growth.dates} on {markdown(growth.machine)} ({growth.cores} cores{memory}), {growth.system}, Python "
        f"{growth.python}, torch {growth.torch}, one thread, {growth.rounds} rounds. {_quiet(growth)} Times are medians of "
        f"*processor* seconds of one core, which waiting for a core does not lengthen; a neighbour in the caches still does."
    )


def _quiet(growth: Growth) -> str:
    """Whether other programs ran meanwhile, by what the system counted."""
    waited = max(series.waited for series in growth.series)
    others = [series.others for series in growth.series if series.others >= 0]
    if not others:
        return f"This system does not say what else ran; wall over processor time was at most {waited:.2f}."
    state = ("shared with other work", "shared for a part of it", "quiet")
    word = state[(min(others) <= QUIET) + (max(others) <= QUIET)]
    return (
        f"The machine was {word}: other programs used {min(others):.2f} to {max(others):.2f} cores meanwhile, and the median of "
        f"wall over processor time was at most {waited:.2f} in a series."
    )


def _growth(growth: Growth) -> str:
    """Every series: what grew, how fast, what of it is overhead, and what it took at the largest size."""
    rows = []
    for series in growth.series:
        memory = series.memory_law
        sizes = f"{series.sizes[0]:,} to {series.sizes[-1]:,}"
        time = (_exponent(series.law), f"{series.last_step:.2f}", f"{short(series.law.overhead * 1e3)} ms")
        most = (f"{short(series.core_seconds[-1])} s", _bytes(series.memory_at(1)))
        grown = "no growth seen" if memory is None else VAGUELY if series.vague else _exponent(memory)
        rows.append((series.name, sizes, *time, *most, grown))
    columns = ("Kernel, and what grows", "Sizes", "Exponent", "Last step", "Overhead", "Largest size", "Its peak", "Peak’s exponent")  # fmt: skip
    return Table(columns, rows).markdown()


def _study(growth: Growth, results: Results) -> str:
    """Every chapter, as if all its time were its main kernel's, in core-hours at several sizes."""
    rows, totals = [], np.zeros((len(TIMES) + 1, 3))
    for chapter in CHAPTERS:
        result, series = results[chapter, "quick"], growth.of_chapter(chapter)
        if result is None or result["provenance"]["wall_seconds"] is None or series is None:
            continue
        now = result["provenance"]["wall_seconds"] * result["provenance"]["threads"] / HOUR
        found = series.law
        exponents = np.ones(3) if series.splits else np.array([found.exponent, found.low, found.high])
        hours = now * np.array([1, *TIMES], np.float64)[:, None] ** exponents
        totals += hours
        rows.append((chapter, series.name, *_hours(hours), _gpu(results[chapter, "full"])))
    if not rows:
        return "No chapter has both a quick result with its time and a measured kernel, so that nothing can be said yet."
    rows.append(("all of these", "", *_hours(totals), ""))
    columns = ("Chapter", "Grows like", "Quick run", *(f"{k:,} times" for k in TIMES), "GPU-hours, full run")
    return f"{STUDY}\n\n{Table(columns, rows).markdown()}"


def _hours(hours: Float[np.ndarray, "sizes 3"]) -> list[str]:
    return [short(float(hours[0, 0])), *(_interval(*each) for each in hours[1:].tolist())]


def _gpu(full: Mapping | None) -> str:
    """GPU-hours of a published full run; nothing where there is none, since no growth was measured on a GPU."""
    made = full["provenance"] if full else {"device": "", "wall_seconds": None}
    return short(made["wall_seconds"] / HOUR) if made["device"] == "cuda" and made["wall_seconds"] else NO_GPU


def _larger(growth: Growth) -> str:
    """Each series beyond its largest size: core-hours, the memory of a worker, whether workers share it, and where it ends."""
    rows = []
    for series in growth.series:
        hours = (_interval(*(x / HOUR for x in series.core_seconds_at(k))) for k in TIMES)
        memory = _bytes(series.memory_at(1))
        if not series.splits:
            memory = VAGUELY if series.vague else ", ".join(_bytes(series.memory_at(k)) for k in TIMES)
        name = f"{series.name}; largest measured {series.sizes[-1]:,}"
        rows.append((name, *hours, memory, series.how, _ends(series, growth)))
    columns = ("Kernel, and what grows", *(f"{k:,} times" for k in TIMES), "Memory of a worker", "Splits over workers", "Ends first at")  # fmt: skip
    return f"{LARGER}\n\n{Table(columns, rows).markdown()}"


def _ends(series: Series, growth: Growth) -> str:
    """Where one worker's memory is full, or its piece takes a day."""
    if series.splits:
        return "nowhere: more workers"
    full = math.inf
    if growth.memory and series.memory_law is not None and not series.vague:
        full = series.memory_law.reaches(growth.memory)
    day = series.law.reaches(DAY)
    if min(day, full) > TIMES[-1] * series.sizes[-1]:
        return f"beyond {TIMES[-1]:,} times"
    reason = "memory, all that this machine has" if full < day else "time, a day on one core"
    return f"{short(min(day, full))} ({reason})"


def _exponent(found: Law) -> str:
    return f"{found.exponent:.2f} ({found.low:.2f} to {found.high:.2f})"


def _interval(value: float, low: float, high: float) -> str:
    return f"{short(value)} ({short(low)} to {short(high)})" if low < high else short(value)


def _bytes(count: float | int | None) -> str:
    if not count:
        return "not recorded"
    return f"{short(count / MIB)} MiB" if count < 1024 * MIB else f"{short(count / MIB / 1024)} GiB"


def short(x: float | int) -> str:
    """Two figures, in plain digits up to a million: ``0.013``, ``4,200``, ``3.1 × 10⁸``."""
    if not math.isfinite(x) or x == 0:
        return "∞" if x > 0 else f"{x:g}"
    power = math.floor(math.log10(abs(float(f"{x:.1e}"))))
    if power >= 6 or power < -4:
        return f"{x / 10.0**power:.1f} × 10{str(power).translate(RAISED)}"
    return f"{x:,.{max(0, 1 - power)}f}" if power < 2 else f"{round(x, 1 - power):,.0f}"
