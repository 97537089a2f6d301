"""The chapter's pictures of learning rates: what is drawn is what was passed, and the words follow from it."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from synthetic import EPOCHS, RUNS, Sizes, search, sweep, trial

from lib.drawing import student
from lib.plots import INK, PALETTE
from lib.trial import rate_figures
from lib.trial.images import SCHEDULES, SGD, UNIT, Followed
from lib.trial.starts import MARGIN, STARTS, Sweep, band


class Large(Sizes):
    rates = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
    ratios = (0.1, 1.0, 10.0)


@pytest.fixture
def seen(handed_over):
    """The figures that are handed over."""
    return handed_over(rate_figures)


def line(axes, label: str):
    (found,) = (each for each in axes.lines if each.get_label() == label)
    return found


# -------------------------------------------------------------------------------------------------- effective rates


@pytest.mark.parametrize("depth", [2, 4])
def test_effective_rates_are_shares_of_the_searched_rate(depth, seen):
    found = trial()
    shown = rate_figures.effective_rates(found, depth)
    assert [axes.get_title("left") for axes in seen[0].axes] == list(SCHEDULES)
    for axes, schedule in zip(seen[0].axes, SCHEDULES, strict=True):
        assert axes.get_yscale() == "log"
        run = found[SGD, depth, schedule]
        looks = set()
        for k in range(depth):
            drawn = line(axes, f"SGD, layer {k + 1}")
            share = run.effective[:, :, k] / run.filters
            np.testing.assert_allclose(drawn.get_ydata(), np.exp(np.log(share).mean(1)))
            assert drawn.get_color() == PALETTE["orange"]
            looks.add((drawn.get_linestyle(), drawn.get_marker()))
        assert len(looks) == depth
        unit = line(axes, "unit norm, every layer")
        factor = {"constant": 1.0, "bold driver": 1.1, "exponential decay": 0.95}[schedule]
        np.testing.assert_allclose(unit.get_ydata(), factor ** np.arange(1, EPOCHS + 1))
    share = found[SGD, depth, "constant"].effective[-1, :, 0] / found[SGD, depth, "constant"].filters
    ends = "{:.3g} ({:.3g} to {:.3g})".format(*np.exp(student([np.log(share)])[:, 0]))
    assert f"After 10 epochs, constant: unit norm 1 (1 to 1), SGD's layer 1 {ends}" in shown.alt
    assert "Left out" not in shown.caption


def test_one_schedule_is_one_panel_and_a_diverged_run_is_left_out(seen):
    found = trial()
    run = found[SGD, 2, "constant"]
    effective = run.effective.copy()
    effective[3:, 1] = np.nan
    found[SGD, 2, "constant"] = Followed(**{**vars(run), "effective": effective})
    shown = rate_figures.effective_rates(found, 2, ("constant",))
    (axes,) = seen[0].axes
    kept = np.delete(run.effective[:, :, 0] / run.filters, 1, axis=1)
    np.testing.assert_allclose(line(axes, "SGD, layer 1").get_ydata(), np.exp(np.log(kept).mean(1)))
    assert "Left out: 1 run whose" in shown.caption


def test_missing_trainings_and_five_layers_are_refused():
    with pytest.raises(ValueError, match="2 trainings are missing, the first SGD, 3 layers, constant"):
        rate_figures.effective_rates(trial(), 3, ("constant",))
    with pytest.raises(ValueError, match="nothing to draw"):
        rate_figures.effective_rates(trial(), 2, ())
    deep = {
        (m, 2, "constant"): Followed(**{**vars(each), "effective": np.ones((EPOCHS, RUNS, 5))})
        for (m, depth, schedule), each in trial().items()
        if (depth, schedule) == (2, "constant")
    }
    with pytest.raises(ValueError, match="5 layers"):
        rate_figures.effective_rates(deep, 2, ("constant",))


# --------------------------------------------------------------------------------------------------- searched rates


@pytest.mark.parametrize("sizes", [Sizes, Large])
def test_the_grid_says_every_error_and_who_chose_it(sizes, seen):
    found = {SGD: search(8.0, sizes), UNIT: search(7.0, sizes)}
    shown = rate_figures.rate_grid(found, sizes)
    assert len(seen[0].axes) == 2
    for axes, each in zip(seen[0].axes, found.values(), strict=True):
        mean = 100 * each.errors.mean(0)
        np.testing.assert_allclose(np.exp(axes.images[0].get_array().data), mean.T)
        said = {text.get_position(): text.get_text() for text in axes.texts}
        for f in range(len(sizes.rates)):
            for r in range(len(sizes.ratios)):
                count = {(len(sizes.rates) - 2, 0): "\n×3", (len(sizes.rates) - 1, 1): "\n×2"}.get((f, r), "")
                assert said[f, r] == f"{mean[f, r]:.1f}{count}"
        assert [p.get_x() + 0.46 for p in axes.patches] == pytest.approx(
            [len(sizes.rates) - 2, len(sizes.rates) - 1]
        )
    assert {axes.images[0].get_clim() for axes in seen[0].axes} == {seen[0].axes[0].images[0].get_clim()}
    rate = f"{sizes.rates[-2]:.3g}"
    assert (
        f"down to 8.0 %, lowest at filters' rate {rate} and ratio 0.1; 3 of 5 runs chose {rate} and 0.1"
        in shown.alt
    )


def luminance(colour) -> float:
    c = np.array(colour)
    return float(np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722))


@pytest.mark.parametrize(("page", "ink"), [("#ffffff", "#222222"), ("#111111", "#eeeeee")])
def test_numbers_can_be_read_on_the_grid_whatever_the_page(page, ink, seen):
    found = {name: search(8.0 + k) for k, name in enumerate((SGD, UNIT, "third", "fourth"))}
    rate_figures.rate_grid(found, Sizes)
    for axes in seen[0].axes:
        assert all(text.get_color() == INK for text in axes.texts)
        for *colour, alpha in axes.images[0].get_cmap()(np.linspace(0, 1, 9)):
            behind = alpha * np.array(colour) + (1 - alpha) * np.array(to_rgb(page))
            low, high = sorted((luminance(behind), luminance(to_rgb(ink))))
            assert (high + 0.05) / (low + 0.05) >= 4.5


def test_the_best_pair_has_the_strongest_colour(seen):
    rate_figures.rate_grid({SGD: search(8.0)}, Sizes)
    image = seen[0].axes[0].images[0]
    strength = image.to_rgba(image.get_array())[..., 3]
    assert np.unravel_index(strength.argmax(), strength.shape) == (0, 2)


def test_grids_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="the search of SGD has a grid of"):
        rate_figures.rate_grid({SGD: search(8.0, Large)}, Sizes)
    with pytest.raises(ValueError, match="0 methods"):
        rate_figures.rate_grid({}, Sizes)
    with pytest.raises(ValueError, match="5 methods"):
        rate_figures.rate_grid({name: search(8.0) for name in "abcde"}, Sizes)


# ------------------------------------------------------------------------------------------------------- bad starts


def test_errors_from_every_start_stand_beside_unit_norm(seen):
    found = sweep()
    shown = rate_figures.starts(found)
    (axes,) = seen[0].axes
    assert axes.get_xscale() == axes.get_yscale() == "log"
    looks = set()
    for start in STARTS:
        drawn = line(axes, f"SGD, {start} start")
        np.testing.assert_allclose(drawn.get_xydata(), np.stack([found.rates, found.sgd[start].mean(0)], 1))
        looks.add((drawn.get_color(), drawn.get_linestyle(), drawn.get_marker()))
    assert all(len(set(each)) == 4 for each in zip(*looks, strict=True))
    assert line(axes, "SGD, unit start").get_color() == PALETTE["orange"]
    unit = line(axes, "unit norm, any start")
    np.testing.assert_allclose(unit.get_ydata(), found.unit.mean(0))
    assert unit.get_color() == INK
    np.testing.assert_allclose(line(axes, "a good rate is below").get_ydata(), 5.0 + MARGIN)
    assert len(axes.collections) == 5  # a band each
    assert "SGD, x 10 start: lowest 5.00 (4.71 to 5.29) at 10, 33.0 at 0.00316 and 13.0 at 100" in shown.alt
    assert "A rate is good below 7.00 %" in shown.alt


GRID = np.array([0.01, 0.1, 1.0, 10.0, 100.0])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ([4.0, 2.0, 0.0, 2.0, 4.0], [(10**-0.5, 10**0.5)]),  # a valley
        ([0.0, 2.0, 2.0, 2.0, 0.0], [(0.01, 10**-1.5), (10**1.5, 100.0)]),  # two, at the ends
        ([0.0, 0.0, 0.0, 0.0, 0.0], [(0.01, 100.0)]),
        ([0.0, 1.0, 0.5, 1.0, 0.0], [(0.01, 100.0)]),  # touching the limit is good
        ([2.0, 1.0, 2.0, 2.0, 2.0], []),  # a point has no width
        ([2.0, 2.0, 2.0, 2.0, 2.0], []),
        ([2.0, 2.0, 2.0, 1.0, 1.0], [(10.0, 100.0)]),
    ],
)
def test_good_rates_are_intervals_between_crossings(error, expected):
    found = rate_figures.good(GRID, np.array(error), 1.0)
    np.testing.assert_allclose(np.ravel(found), np.ravel(expected))
    (width,) = band(GRID, np.array([error]), np.array([1.0]))
    assert sum(np.log10(high / low) for low, high in found) == pytest.approx(width)


def test_bars_lie_where_the_rates_are_good(seen):
    found = sweep()
    shown = rate_figures.good_bands({"MNIST": found, "wine": sweep(0.0)})
    axes, other = seen[0].axes
    names = [*(f"SGD, {start} start" for start in STARTS), "SGD, worst start", "unit norm, any start"]
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    bars = {}
    for each in axes.lines:
        if each.get_linewidth() > 5:
            bars.setdefault(names[round(each.get_ydata()[0])], []).append(each)
    assert list(bars) == [name for name in names if name != "SGD, worst start"]
    centre = {"unit": -1.0, "x 10": 1.0, "x 0.1": -2.0, "mixed": -0.5}
    for start, at in centre.items():
        (bar,) = bars[f"SGD, {start} start"]
        np.testing.assert_allclose(np.log10(bar.get_xdata()), [at - 0.25, at + 0.25])
        assert bar.get_color() == PALETTE["orange"]
    (bar,) = bars["unit norm, any start"]
    np.testing.assert_allclose(np.log10(bar.get_xdata()), [-0.5 - 2.5 / 3, -0.5 + 2.5 / 3])
    assert bar.get_color() == PALETTE["blue"]
    assert "MNIST (good: at most 7.0 %): SGD, unit start 0.056 to 0.18 (0.50 decades)" in shown.alt
    assert "SGD, worst start nowhere; unit norm, any start 0.046 to 2.2 (1.67 decades)" in shown.alt
    assert "wine (good: at most 7.0 %)" in shown.alt
    assert sum(each.get_linewidth() > 5 for each in other.lines) == 6  # four equal starts are their own worst


def test_the_worst_start_is_taken_run_by_run(seen):
    errors = np.array([[0.0, 9.0, 9.0], [3.0, 9.0, 9.0]])
    rates = np.array([0.1, 1.0, 10.0])
    sgd = {"unit": 0 * errors, "x 10": errors, "x 0.1": errors[::-1], "mixed": 0 * errors}
    shown = rate_figures.good_bands({"made": Sweep(rates, sgd, 0 * errors)})
    assert "SGD, x 10 start 0.1 to 0.12" in shown.alt
    assert "SGD, x 0.1 start 0.1 to 0.12" in shown.alt
    assert "SGD, worst start nowhere" in shown.alt
    assert "SGD, mixed start 0.1 to 10 (2.00 decades)" in shown.alt


@pytest.mark.parametrize(("count", "shape"), [(1, 1), (3, 3), (4, 4), (5, 6)])
def test_data_sets_have_a_panel_each(count, shape, seen):
    rate_figures.good_bands({f"set {k}": sweep() for k in range(count)})
    assert len(seen[0].axes) == shape
    assert sum(axes.get_visible() for axes in seen[0].axes) == count
    with pytest.raises(ValueError, match="no data sets"):
        rate_figures.good_bands({})
