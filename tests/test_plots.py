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


def test_more_samples_than_colours_are_refused():
    with pytest.raises(ValueError, match="two figures"):
        plots.histogram({str(i): np.arange(3.0) for i in range(5)}, alt="Too many", xlabel="x")


def test_style_gives_the_callers_settings_back():
    before = matplotlib.rcParams["axes.spines.top"]
    with plots.style():
        assert matplotlib.rcParams["axes.spines.top"] is False
    assert matplotlib.rcParams["axes.spines.top"] == before
