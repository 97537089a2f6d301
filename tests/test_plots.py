"""Figures speak in words too, their colours part for every eye, and the same figure is the same text."""

import re

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from lib import plots

matplotlib.use("Agg")
LIGHT, DARK = "#ffffff", "#121212"  # the site's two papers

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
EYES = {
    "full colour": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}  # fmt: skip


def linear(colour):
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(a, b):
    low, high = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (a, b))
    return (high + 0.05) / (low + 0.05)


def oklab(rgb):
    to_lms = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566], [0.0883024619, 0.2817188376, 0.6299787005]]  # fmt: skip
    to_lab = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099], [0.0259040371, 0.7827717662, -0.8086757660]]  # fmt: skip
    return np.array(to_lab) @ np.cbrt(np.array(to_lms) @ np.clip(rgb, 0, 1))


def drawing(**kwargs):
    fig, axes = plots.figure()
    axes.plot([0, 1], [0, 1], label="a line")
    axes.legend()
    axes.text(0.5, 0.5, "a word")
    return plots.show(fig, **{"alt": "A rising line", **kwargs})


@pytest.mark.parametrize("alt", ["", "   "])
def test_a_figure_without_words_is_refused(alt):
    with pytest.raises(ValueError, match="alternative text is empty"):
        drawing(alt=alt)
    with pytest.raises(TypeError):
        plots.histogram({"a": np.arange(3.0)}, xlabel="x")


def test_the_words_stand_beside_the_picture_and_are_escaped():
    page = drawing(alt='Norms "<" 3')._repr_html_()
    assert 'role="img" aria-label="Norms &quot;&lt;&quot; 3"' in page


@pytest.mark.parametrize("paper", [LIGHT, DARK])
@pytest.mark.parametrize("colour", [*plots.COLOURS, plots.INK])
def test_every_colour_reads_on_light_and_dark(colour, paper):
    assert contrast(colour, paper) >= 3.0  # WCAG 2, graphical objects


@pytest.mark.parametrize("eye", EYES)
def test_every_two_colours_differ_for_every_eye(eye):
    seen = [oklab(np.array(EYES[eye]) @ linear(colour)) for colour in plots.COLOURS]
    for i, a in enumerate(seen):
        for b in seen[:i]:
            assert np.linalg.norm(a - b) > 0.1  # five "just noticeable" steps of 0.02


def test_dash_tells_the_colours_apart_too():
    assert len(set(plots.DASHES[: len(plots.COLOURS)])) == len(plots.COLOURS)


def test_ink_is_the_pages_own():
    page = drawing()._repr_html_()
    assert "currentColor" in page
    for fixed in (plots.INK, "#000000", "#ffffff", "<style", "<script", "http://www.w3.org/1999/xhtml"):
        assert fixed not in page


def test_same_figure_same_text_and_ids_of_its_own():
    assert drawing()._repr_html_() == drawing()._repr_html_()
    ids = [set(re.findall(r'\bid="([^"]+)"', drawing(alt=alt)._repr_html_())) for alt in ("one", "two")]
    assert ids[0]
    assert not ids[0] & ids[1]
    one = drawing(alt="one")._repr_html_()
    assert {m for m in re.findall(r'href="#([^"]+)"', one)} <= ids[0]


def test_panels_stand_apart_and_count_alike():
    points = np.random.default_rng(0).normal(size=(2000, 2))
    shown = plots.hexbin_panels(
        [(points, "raw"), (np.sort(points), "sorted"), (points + 99, "none inside")], alt="Three"
    )
    assert len(shown.drawings) == 3
    assert "3 (faint blue)" in shown.caption


def test_the_other_plots_draw(recwarn):
    rng = np.random.default_rng(0)
    chains = rng.normal(size=(8, 200))
    rows = [("raw", 0.5, 0.45, 0.55), ("not run", float("nan"), float("nan"), float("nan"))]
    plots.interval_plot(rows, alt="Intervals", xlabel="ratio", margin=(0.4, 0.6), reference=0.5)
    plots.interval_plot([("gap", 1e-12, 1e-13, 1e-11)], alt="Gaps", xlabel="gap", log=True)
    plots.rank_plot([(chains, "prediction")], alt="Ranks")
    plots.trace_plot([(chains, "prediction")], alt="Traces")
    plots.histogram({"a": chains[0], "b": np.append(chains[1], np.nan)}, alt="Norms", xlabel="norm")
    plots.histogram({"constant": np.ones(9)}, alt="Constant", xlabel="norm", log=True)
    assert not recwarn.list


def cloud(seed=0, n=300):
    return np.exp(np.random.default_rng(seed).normal(size=(n, 2)))


def scatter(**kwargs):
    panels = [(cloud(), "raw"), ({"one": cloud(1), "two": cloud(2)}, "cleaned")]
    return plots.scatter_panels(
        panels, **{"alt": "Two clouds", "labels": ("x", "y"), "diagonal": True, **kwargs}
    )


def lines(**kwargs):
    x = np.arange(1.0, 6.0)
    series = {"a": (x, x), "b": (x, 2 * x, x, 3 * x), "c": (x, x**2), "d": (x, x**0)}
    return plots.line_plot(series, **{"alt": "Four curves", "xlabel": "x", "ylabel": "y", **kwargs})


def bars(**kwargs):
    counts = {"independent": np.array([5, 6, 5, 4]), "one chain": np.array([0, 20, 0, 0])}
    return plots.bar_counts(counts, **{"alt": "Counts", "xlabel": "unit", **kwargs})


def dumbbells(**kwargs):
    rows = [("SWAG", (1.0, 0.8, 1.2), (0.5, 0.4, 0.6)), ("Laplace", (np.nan,) * 3, (0.7, 0.6, 0.8))]
    return plots.dumbbell_plot(rows, **{"alt": "Gains", "xlabel": "Brier score", **kwargs})


NEW = [scatter, lines, bars, dumbbells]


@pytest.mark.parametrize("draw", NEW)
def test_each_plot_asks_for_words_and_repeats_itself(draw):
    with pytest.raises(ValueError, match="alternative text is empty"):
        draw(alt=" ")
    assert draw()._repr_html_() == draw()._repr_html_()
    assert draw(alt="Other words")._repr_html_() != draw()._repr_html_()


@pytest.mark.parametrize("draw", NEW)
def test_each_plot_uses_the_books_colours_and_the_pages_ink_alone(draw):
    page = draw()._repr_html_()
    drawn = re.sub(r'xlink:href="data:image/png;base64,[^"]*"', "", page)
    assert set(re.findall(r"#[0-9a-fA-F]{6}\b", drawn)) <= set(plots.COLOURS)
    assert "currentColor" in page


@pytest.mark.parametrize(
    ("draw", "options"),
    [
        (scatter, {"log": True}),
        (scatter, {"limits": ((0.0, 3.0), (0.0, 3.0)), "equal": True, "reference": 1.0}),
        (scatter, {"shared": False}),
        (lines, {"log": (True, True), "markers": True}),
        (lines, {"marks": [(2.0, "rate halved"), (3.0, "")], "ends": True, "reference": 1.0}),
        (bars, {"names": ["a", "b", "c", "d"]}),
        (dumbbells, {"reference": 0.6, "log": True}),
    ],
)
def test_each_plot_draws_with_its_options(draw, options):
    assert draw(**options)._repr_html_() != draw()._repr_html_()


def test_curves_differ_in_dash_and_bands_show():
    page = lines(markers=True)._repr_html_()
    assert len(set(re.findall(r"stroke-dasharray: ([^;\"]+)", page))) >= 3
    assert page.count("opacity: 0.2") == 1  # one curve has a band


@pytest.fixture
def axes_of(monkeypatch):
    """Draws, and gives the matplotlib axes of each panel."""
    kept = []
    monkeypatch.setattr(plots, "_svg", lambda fig, _: kept.append(fig) or "<svg/>")

    def drawn(draw, **options):
        kept.clear()
        draw(**options)
        return [fig.axes[0] for fig in kept]

    return drawn


def test_panels_share_one_range_unless_told_otherwise(axes_of):
    a, b = axes_of(scatter)
    assert (a.get_xlim(), a.get_ylim()) == (b.get_xlim(), b.get_ylim())
    assert b.get_xlim()[1] >= max(cloud(1)[:, 0].max(), cloud(2)[:, 0].max())
    a, b = axes_of(scatter, shared=False)
    assert a.get_xlim() != b.get_xlim()
    assert all(dots.get_rasterized() for dots in b.collections)
    assert plots._range(np.array([[0.0, 1.0], [2.0, 1.0]]), False) == ((-0.1, 2.1), (0.5, 1.5))


def test_groups_are_named_once_where_all_panels_have_them(axes_of):
    same = {"one": cloud(1), "two": cloud(2)}
    panels = [(same, "raw"), (same, "cleaned"), ({"three": cloud(3), "four": cloud(4)}, "other")]
    drawn = axes_of(lambda: plots.scatter_panels(panels, alt="Groups", labels=("x", "y")))
    assert [axes.get_legend() is not None for axes in drawn] == [True, False, True]


def test_what_a_figure_cannot_show_is_counted():
    points = np.array([[1.0, 2.0], [np.nan, 1.0], [-1.0, 1.0]])
    labels = ("x", "y")
    assert "1 point (not finite)" in plots.scatter_panels([(points, "")], alt="a", labels=labels).caption
    two = plots.scatter_panels([(points, "")], alt="a", labels=labels, log=True, caption="Masses.")
    assert two.caption.startswith("Masses. Left out: 2 points")
    x = np.array([0.0, 1.0, 2.0])
    shown = plots.line_plot({"a": (x, x)}, alt="a", xlabel="x", ylabel="y", log=(True, False))
    assert "1 value" in shown.caption
    assert scatter().caption == ""
    plots.scatter_panels([(points[:0], "none")], alt="a", labels=labels, log=True)


def test_bars_are_shares_of_each_sample(axes_of):
    (axes,) = axes_of(bars)
    heights = np.array([patch.get_height() for patch in axes.patches]).reshape(2, 4)
    assert np.allclose(heights.sum(1), 1)
    assert heights[1].max() == 1
    assert axes.lines[0].get_ydata()[0] == 0.25


def test_dumbbells_stand_where_their_values_are(axes_of):
    (axes,) = axes_of(dumbbells)
    placed = [tuple(line.get_xdata()) for line in axes.lines]
    assert {(1.0, 0.5), (0.8, 1.2), (0.4, 0.6), (1.0,), (0.5,)} <= set(placed)
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first row on top


def test_what_does_not_fit_a_figure_is_refused():
    x = np.arange(3.0)
    five = {str(i): (x, x) for i in range(5)}
    with pytest.raises(ValueError, match="two figures"):
        plots.line_plot(five, alt="a", xlabel="x", ylabel="y")
    with pytest.raises(ValueError, match="two figures"):
        plots.scatter_panels([({k: cloud() for k in five}, "")], alt="a", labels=("x", "y"))
    with pytest.raises(ValueError, match="'a' has parts of shapes"):
        plots.line_plot({"a": (x, x[:2])}, alt="a", xlabel="x", ylabel="y")
    with pytest.raises(ValueError, match="same categories"):
        plots.bar_counts({"a": np.ones(2), "b": np.ones(3)}, alt="a", xlabel="x")
    with pytest.raises(ValueError, match="'a' is empty"):
        plots.bar_counts({"a": np.zeros(2)}, alt="a", xlabel="x")


def test_more_samples_than_colours_are_refused():
    with pytest.raises(ValueError, match="two figures"):
        plots.histogram({str(i): np.arange(3.0) for i in range(5)}, alt="Too many", xlabel="x")


def test_style_gives_the_callers_settings_back():
    before = matplotlib.rcParams["axes.spines.top"]
    with plots.style():
        assert matplotlib.rcParams["axes.spines.top"] is False
    assert matplotlib.rcParams["axes.spines.top"] == before
