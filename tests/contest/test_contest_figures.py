"""The chapter's pictures: what is drawn is what was passed, and the words beside it follow from it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lib import drawing, intervals
from lib.contest import cost, figures, published, score_figures
from lib.contest.bound import Excess, Result
from lib.contest.cost import DETERMINISTIC, Times
from lib.contest.images import Errors
from lib.contest.measures import Contest
from lib.contest.methods import DROPOUT, ENSEMBLE, FACTORISED, POINT, VMG, Scores
from lib.contest.problems import REACH, cubic_rows
from lib.contest.toy import FAR, GRID, Bands
from lib.plots import COLOURS, PALETTE

SEED, SPLITS, SIZES, LOOKS = 991, 5, (20, 80), (250, 500, 1000, 2000)
METHODS = (VMG, FACTORISED, DROPOUT, ENSEMBLE)
X = np.linspace(-FAR, FAR, GRID)


@pytest.fixture
def seen(handed_over):
    """The figures that are handed over."""
    return handed_over(figures, score_figures)


def noise(*size: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=SEED)).standard_normal(size)


def scores(rmse: float, ll: float, early: list[float], sizes: int = len(SIZES)) -> Scores:
    """Splits around a mean, 0.96 to 1.04 of it; with the gains of few rows twice as large."""
    around = np.linspace(0.96, 1.04, SPLITS)
    both = torch.tensor(np.outer(around, [0.5, 1.0][-sizes:]) * rmse).flatten()
    level = torch.tensor(np.add.outer(around, [0.5, 0.0][-sizes:]) + ll).flatten()
    of_run = np.repeat(around, sizes)
    looks = {look: torch.tensor(of_run * value) for look, value in zip(LOOKS, early, strict=True)}
    return Scores(both, level, level, both, looks)


def contest(name: str = "diabetes", ours: float = 50.0, sizes: tuple[int, ...] = SIZES) -> Contest:
    k = len(sizes)
    other = [scores(80.0, -5.0, [70, 66, 64, 62], k), scores(60.0, -5.5, [90, 65, 61, 60], k)]
    found = {VMG: [scores(ours, -4.8, [80, 60, 55, ours], k)], FACTORISED: other}
    found |= {
        m: [scores(rmse, -6.0, [85, 70, 60, rmse], 1)] for m, rmse in ((DROPOUT, 58.0), (ENSEMBLE, 59.0))
    }
    return Contest(name, SPLITS, sizes, max(sizes), LOOKS[-1], found)


def bands(inside: float | int, outside: float | int) -> list[Bands]:
    sd = np.where(np.abs(X) <= REACH, float(inside), float(outside))
    means = [np.clip(X**3, -64, 64), np.clip(X**3, -64, 64) + 1]
    return [Bands(torch.tensor(X), torch.tensor(np.stack(means)), torch.tensor(np.stack([sd, sd])))]


def errors(*looks: tuple[float, ...]) -> Errors:
    mean = torch.tensor(looks)
    return Errors(torch.arange(1, len(looks) + 1) * 100, mean, mean[-1], mean[-1], mean[-1])


def judged(*values: float) -> Excess:
    return Excess(torch.tensor(values), torch.zeros(len(values)))


def result(first: float = 3.0) -> Result:
    proper = {"diagonal matrix Gaussian": judged(-0.4, -0.2), "factorised": judged(-0.5, -0.3)}
    paper = {1: judged(first - 0.01, first + 0.01), 2: judged(6.9, 7.1), 5: judged(18.0, 20.0)}
    return Result(proper, paper, torch.tensor([19.0, 21.0]), torch.tensor([-0.4, -0.3]))


def times(slow: float = 4.0) -> Times:
    base = np.array([1.0, 2.0, 4.0])
    spread = np.array([0.9, 1.0, 1.1])
    return Times("784-150", {DETERMINISTIC: base, FACTORISED: 0.5 * base, VMG: slow * spread * base})


def correlations(off: float) -> np.ndarray:
    return np.full((4, 4), off) + (1 - off) * np.eye(4)


PICTURES = {
    "kronecker": lambda: figures.kronecker(SEED),
    "rows": lambda: figures.row_correlations({"none": correlations(0.0), "five": correlations(-0.2)}),
    "functions": lambda: figures.functions(X, noise(5, GRID).cumsum(1), noise(5, GRID)),
    "gradients": lambda: figures.gradient_variance({"factorised": np.exp(noise(900))}),
    "times": lambda: figures.step_times([times(), times(0.5)]),
    "parameters": figures.parameters,
    "excess": lambda: figures.excess(result()),
    "bands": lambda: score_figures.bands({VMG: bands(3, 60), POINT: bands(3, 3)}, toy()),
    "learning": lambda: score_figures.learning_curves([contest(), contest("wine")], METHODS),
    "gains": lambda: score_figures.gains([contest(), contest("wine", 70.0)]),
    "sizes": lambda: score_figures.gain_by_size([contest(), contest("wine")]),
    "images": lambda: score_figures.image_errors({VMG: errors((9.0, 8.0), (4.0, 3.0))}),
    "table": lambda: score_figures.against_the_table([contest("boston", 2.8), contest("wine", 0.6)]),
}


def toy():
    return cubic_rows(SEED, 0, 20, "train")


@pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES)
def test_every_picture_is_a_page_with_words(draw):
    shown = draw()
    assert "<svg" in shown._repr_html_()
    assert len(shown.alt) > 60
    assert "nan" not in shown.alt
    assert shown.caption


@pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES)
def test_every_axis_has_a_name(draw, seen):
    draw()
    visible = [axes for axes in seen[0].axes if axes.get_visible()]
    assert any(axes.get_xlabel() for axes in visible)
    assert all(axes.get_xlabel() or axes.get_ylabel() or axes.get_title() for axes in visible)
    assert any(axes.get_ylabel() or axes.yaxis.get_ticklabels()[0].get_text() for axes in visible)


def test_a_picture_has_one_form():
    assert PICTURES["gains"]()._repr_html_() == PICTURES["gains"]()._repr_html_()


# ------------------------------------------------------------------------------------------------ what they share


def test_a_method_has_one_colour_wherever_it_stands():
    for names in (METHODS, METHODS[::-1], (VMG,), (POINT, VMG)):
        assert drawing.signs(names)[VMG].colour == PALETTE["blue"]
    of = drawing.signs((DROPOUT, "diagonal matrix Gaussian", "unheard of", FACTORISED))
    assert len({sign.colour for sign in of.values()}) == 4
    assert of[FACTORISED].colour == PALETTE["orange"]
    with pytest.raises(ValueError, match="5 methods"):
        drawing.signs("abcde")


def test_intervals_are_counted_on_either_side_of_a_level():
    found = [(1.0, 0.5, 2.0), (0.0, -1.0, 1.0), (-1.0, -2.0, -0.1), (3.0, 2.0, 4.0)]
    assert drawing.counted(found) == "2 of 4 intervals above zero, 1 below, 1 across it"
    assert drawing.counted(found, 2.5, "x").startswith("0 of 4 intervals above x, 3 below, 1 across")


def test_correlations_fade_into_the_page_at_nought():
    colours = drawing.correlation_map()
    assert max(colours(at)[3] for at in (0.499, 0.5, 0.501)) < 0.01
    np.testing.assert_allclose(colours(0.25)[3], colours(0.75)[3], atol=0.01)
    assert [round(255 * c) for c in colours(0.0)[:3]] == [0xE2, 0x57, 0x14]
    assert [round(255 * c) for c in colours(1.0)[:3]] == [0x31, 0x64, 0x99]


def test_a_logarithmic_axis_says_what_it_cannot_show(seen):
    html = score_figures.image_errors({VMG: errors((9.0, 8.0), (2.0, 0.0))})
    low, high = seen[0].axes[0].get_ylim()
    assert 1 / drawing.ROOM * 0.99 < low <= 1.0
    assert high >= 9
    assert "zero is below" in html.caption
    assert "zero is below" not in PICTURES["images"]().caption


# ----------------------------------------------------------------------------------------------- the laws' pictures


def test_the_covariance_of_all_weights_is_drawn_column_by_column(seen):
    shown = figures.kronecker(SEED)
    u, v, whole = (axes.images[0].get_array().data for axes in seen[0].axes[:3])
    for j in range(3):
        for l in range(3):  # noqa: E741
            block = whole[4 * j : 4 * j + 4, 4 * l : 4 * l + 4]
            np.testing.assert_allclose(block, v[j, l] * u, atol=1e-12)
    np.testing.assert_allclose(np.diag(whole), 1.0)
    assert f"{np.abs(v[~np.eye(3, dtype=bool)]).max():.2f}" in shown.alt
    assert shown.alt != figures.kronecker(SEED + 1).alt


def test_correlations_of_rows_are_drawn_and_told(seen):
    five = correlations(-0.2)
    five[0, 1] = five[1, 0] = 0.7
    shown = figures.row_correlations({"none": correlations(0.0), "five": five})
    np.testing.assert_array_equal(seen[0].axes[1].images[0].get_array().data, five)
    assert seen[0].axes[1].images[0].get_clim() == (-1, 1)
    root = math.sqrt((10 * 0.04 + 2 * 0.49) / 12)
    assert f"five: from -0.20 to 0.70, root mean square {root:.2f}" in shown.alt


@pytest.mark.parametrize("wrong", [np.full((3, 3), np.nan), 2 * np.eye(3), np.ones((1, 1))])
def test_what_is_no_correlation_is_refused(wrong):
    with pytest.raises(ValueError, match="'bad' is no matrix of correlations"):
        figures.row_correlations({"bad": wrong})


def test_functions_and_how_rough_they_are(seen):
    x = np.linspace(0, 1, 11)
    smooth, rough = np.outer(np.arange(1.0, 6), x), np.outer(np.ones(5), (-1.0) ** np.arange(11))
    shown = figures.functions(x, smooth, rough)
    for axes, draws in zip(seen[0].axes, (smooth, rough), strict=True):
        drawn = sorted(tuple(line.get_ydata()) for line in axes.lines)
        assert drawn == sorted(map(tuple, draws))
    assert "moves by 0.3 on average, on the right by 2, 6.67 times" in shown.alt


def test_ratios_are_drawn_as_shares_with_the_ledgers_margin(seen):
    ratios = np.array([np.nan, 0.0, 1.0, 2.0, 4.0, 8.0, 16.0])
    shown = figures.gradient_variance({"factorised": ratios, "diagonal": np.array([0.5, 0.6])})
    curve, median, *_, even, margin = seen[0].axes[0].lines
    np.testing.assert_array_equal(curve.get_xydata(), np.stack([ratios[2:], [0.2, 0.4, 0.6, 0.8, 1]], 1))
    assert median.get_xydata().tolist() == [[4.0, 0.5]]
    assert even.get_xdata() == [1, 1]
    assert margin.get_xdata() == [3.0, 3.0]
    assert "factorised: median 4, and 60% of 5 parameters above 3" in shown.alt
    assert "diagonal: median 0.55, and 0% of 2" in shown.alt
    assert "Left out: 2 " in shown.caption
    with pytest.raises(ValueError, match="no ratio above zero"):
        figures.gradient_variance({"factorised": np.array([np.nan, 0.0])})
    with pytest.raises(ValueError, match="5 laws"):
        figures.gradient_variance({name: np.ones(3) for name in "abcde"})


def test_a_long_distribution_keeps_its_ends_and_its_middle():
    x, share = figures.distribution(np.arange(10_001.0)[::-1])
    assert len(x) == figures.STEPS
    assert (x[0], x[-1], share[-1]) == (0.0, 10_000.0, 1.0)
    np.testing.assert_allclose(share, (x + 1) / 10_001)


def test_times_are_relative_to_the_deterministic_layers(seen):
    shown = figures.step_times([times()])
    dots = [line for line in seen[0].axes[0].lines if len(line.get_xdata()) == 1]
    assert [line.get_xdata()[0] for line in dots] == pytest.approx([0.5, 4.0])
    mean, low, high = intervals.student(np.array([3.6, 4.0, 4.4]))
    assert f"{VMG} {mean:.2f} ({low:.2f} to {high:.2f})" in shown.alt
    assert "1 of 2 intervals above one, 1 below" in shown.alt
    assert "goes on to zero" not in shown.caption
    wide = Times("a", {DETERMINISTIC: np.ones(2), VMG: np.array([1.0, 9.0])})
    assert "goes on to zero" in figures.step_times([wide]).caption


def test_parameters_cross_one_at_the_break_even_point(seen):
    shown = figures.parameters({"6-50": (6, 50), "150-150": (150, 150)})
    axes = seen[0].axes[0]
    curves = [line for line in axes.lines if len(line.get_xdata()) > 10]
    for line, (inputs, c) in zip(curves, ((6, 50), (150, 150)), strict=True):
        m, r = np.asarray(line.get_xdata()), inputs + 1
        np.testing.assert_allclose(line.get_ydata(), (r * c + (r + c) * (m + 2) + m) / (2 * r * c))
        crossing = np.interp(1.0, line.get_ydata(), m)
        assert crossing == pytest.approx(cost.break_even(inputs, c), rel=1e-6)
    marks = [line.get_xydata().tolist() for line in axes.lines if len(line.get_xdata()) == 1]
    assert marks == [[[cost.break_even(*sizes), 1.0]] for sizes in ((6, 50), (150, 150))]
    assert "6-50: as many at 4 pseudo-data, 4.81 times as many at 50" in shown.alt
    assert "6-50" not in figures.parameters({"150-150": (150, 150)}).alt


def test_the_excess_and_the_region_where_no_bound_lies(seen):
    shown = figures.excess(result())
    axes = seen[0].axes[0]
    (curve,) = (line for line in axes.lines if line.get_label() == "the paper's objective")
    np.testing.assert_allclose(curve.get_xydata(), [[1, 3], [2, 7], [5, 19]], rtol=1e-6)
    shaded = axes.patches[0]
    assert shaded.get_y() == 0.0
    assert shaded.get_y() + shaded.get_height() == pytest.approx(axes.get_ylim()[1])
    assert axes.get_ylim()[1] > 20
    assert "m = 1: 3.00" in shown.alt
    assert "above zero" in shown.alt
    assert "ceiling is at 20.00" in shown.alt
    assert "m = 1: -3.00 (-3.13 to -2.87), below zero" in figures.excess(result(-3.0)).alt


# ------------------------------------------------------------------------------------------ the contests' pictures


def test_bands_are_those_of_the_run_and_of_the_widest_variant(seen):
    narrow, wide = bands(3.0, 6.0), bands(3.0, 30.0)
    training = toy()
    shown = score_figures.bands({VMG: narrow, FACTORISED: narrow + wide}, training, run=1)
    left, right = seen[0].axes[:2]
    for axes, sd in ((left, 6.0), (right, 30.0)):
        mean, truth, points = axes.lines
        np.testing.assert_allclose(mean.get_ydata(), np.clip(X**3, -64, 64) + 1)
        np.testing.assert_allclose(truth.get_ydata(), X**3)
        np.testing.assert_allclose(points.get_ydata(), training.targets[:, 0])
        band = axes.collections[0].get_paths()[0].vertices
        assert band[:, 1].max() == pytest.approx(65 + 3 * sd)
        assert band[:, 1].min() == pytest.approx(-63 - 3 * sd)
        assert [span.get_x() for span in axes.patches] == [-FAR, REACH]
    assert left.get_ylim() == right.get_ylim() == pytest.approx((-155, 155))
    assert "The cubic goes on" in shown.caption
    held = np.abs(X**3 - np.clip(X**3, -64, 64) - 1)[np.abs(X) > REACH] <= 90
    assert f"30 at ± 6; the truth lies in the band on 100% of the data's range and {held.mean():.0%} outside" in shown.alt  # fmt: skip


def test_a_band_too_wide_to_draw_leaves_the_picture_and_is_told(seen):
    shown = score_figures.bands({VMG: bands(3.0, 900.0)}, toy())
    assert seen[0].axes[0].get_ylim() == pytest.approx((-1.2 * FAR**3, 1.2 * FAR**3))
    assert "bands that reach its edge" in shown.caption
    with pytest.raises(ValueError, match="5 methods"):
        score_figures.bands({name: bands(1, 1) for name in "abcde"}, toy())


def test_learning_curves_follow_the_variant_that_is_best_at_each_look(seen):
    shown = score_figures.learning_curves([contest(), contest("wine", 61.0)], METHODS)
    axes = seen[0].axes[0]
    drawn = {line.get_label(): line.get_ydata() for line in axes.lines}
    np.testing.assert_allclose(drawn[FACTORISED], [70, 65, 61, 60])
    np.testing.assert_allclose(drawn[VMG], [80, 60, 55, 50])
    assert tuple(axes.lines[0].get_xdata()) == LOOKS
    assert axes.get_xscale() == axes.get_yscale() == "log"
    lowest, highest = intervals.student(np.linspace(0.96, 1.04, SPLITS) * 80)[1:]
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(highest)
    assert lowest in band
    assert f"diabetes: lowest after 250 updates {FACTORISED} (70)" in shown.alt
    assert f"after 2,000 lowest {VMG} (50), highest {FACTORISED} (60). wine" in shown.alt
    assert f"after 2,000 lowest {DROPOUT} (58), highest {VMG} (61)" in shown.alt
    with pytest.raises(ValueError, match="5 methods"):
        score_figures.learning_curves([contest()], [*METHODS, POINT])


def test_gains_are_those_of_the_claim_and_counted(seen):
    shown = score_figures.gains([contest(), contest("wine", 70.0)])
    left, right = ([line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"] for axes in seen[0].axes)  # fmt: skip
    np.testing.assert_allclose(left, [100 * (1 - 50 / 60), 100 * (1 - 70 / 60)])
    np.testing.assert_allclose(right, [0.2, 0.2])
    assert "1 of 2 intervals above zero, 1 below, 0 across it. gain in log" in shown.alt
    assert "diabetes 16.67 (16.67 to 16.67), wine -16.67" in shown.alt


def test_gains_by_size_stand_at_the_numbers_of_rows(seen):
    shown = score_figures.gain_by_size([contest()])
    left, right = (next(line for line in axes.lines if line.get_label() == "diabetes") for axes in seen[0].axes)  # fmt: skip
    np.testing.assert_allclose(left.get_xydata(), [[20, 100 / 6], [80, 100 / 6]])
    np.testing.assert_allclose(right.get_xydata(), [[20, 0.2], [80, 0.2]])
    assert seen[0].axes[0].get_xscale() == "log"
    assert "diabetes from 16.67 (16.67 to 16.67) at 20 rows to" in shown.alt
    with pytest.raises(ValueError, match="wine was learned from 80 rows alone"):
        score_figures.gain_by_size([contest(), contest("wine", sizes=(80,))])
    with pytest.raises(ValueError, match="5 data sets"):
        score_figures.gain_by_size([contest(name) for name in "abcde"])


def test_errors_of_images_have_the_range_of_their_trainings(seen):
    shown = score_figures.image_errors({VMG: errors((9.0, 7.0), (4.0, 3.0)), DROPOUT: errors((6.0, 6.0), (5.0, 5.0))})  # fmt: skip
    axes = seen[0].axes[0]
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[100, 8.0], [200, 3.5]])
    corners = axes.collections[0].get_paths()[0].vertices.tolist()
    for corner in ([100.0, 7.0], [100.0, 9.0], [200.0, 3.0], [200.0, 4.0]):
        assert corner in corners
    assert f"{VMG} from 8.00 % to 3.50 % (3.00 to 4.00); {DROPOUT} from 6.00 %" in shown.alt
    assert "2 trainings" in shown.caption


def test_published_figures_stand_beside_ours_in_units_of_the_table(seen):
    shown = score_figures.against_the_table([contest("boston", 2.97), contest("wine", 0.60)])
    axes = seen[0].axes[0]
    dots = [line for line in axes.lines if line.get_marker() in "os^D" and len(line.get_xdata()) == 1]
    values = [line.get_xdata()[0] for line in dots]
    boston = published.RMSE["boston"]
    others = [getattr(boston, m)[0] / 2.70 for m in ("vi", "pbp", "dropout")]
    np.testing.assert_allclose(values[:4], [1.1, *others])
    assert values[4] == pytest.approx(0.60 / 0.63)
    assert dots[0].get_color() == COLOURS[0]
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["matrix Gaussian: ours", "VI (recalled)", "PBP (recalled)", "dropout (verified)"]
    assert "below the published VI on 2, PBP on 2, dropout on 1 of 2 sets" in shown.alt
    for name in ("naval", "diabetes"):
        with pytest.raises(ValueError, match=f"{name} has no published VMG figure"):
            score_figures.against_the_table([contest(name)])
