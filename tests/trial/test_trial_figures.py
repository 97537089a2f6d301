"""The chapter's pictures of the update and of the scores: what is drawn is what was passed, and the words follow from it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from synthetic import AROUND, EPOCHS, RUNS, curves, followed, search, sweep, times, trial
from synthetic import Sizes as SIZES

from lib import intervals
from lib.drawing import student
from lib.plots import INK, PALETTE
from lib.trial import figures, images, rate_figures, score_figures
from lib.trial.images import DEPTHS, SCHEDULES, SGD, UNIT, Followed

PICTURES = {
    "geometry": figures.geometry,
    "two starts": lambda: figures.two_starts([curves(), curves(0.2)]),
    "times": lambda: figures.step_times([times(), times("convolutional")]),
    "epochs": lambda: score_figures.errors_by_epoch(trial()),
    "gains": lambda: score_figures.gains(trial()),
    "matched": lambda: score_figures.matched(trial()),
    "effective": lambda: rate_figures.effective_rates(trial()),
    "grid": lambda: rate_figures.rate_grid({SGD: search(8.0), UNIT: search(7.0)}, SIZES),
    "starts": lambda: rate_figures.starts(sweep()),
    "bands": lambda: rate_figures.good_bands({"MNIST": sweep(), "wine": sweep(0.2)}),
}


@pytest.fixture
def seen(handed_over):
    """The figures that are handed over."""
    return handed_over(figures, score_figures)


def line(axes, label: str):
    (found,) = (each for each in axes.lines if each.get_label() == label)
    return found


def coloured(axes, name: str) -> list:
    return [each for each in axes.lines if each.get_color() == PALETTE[name]]


@pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES)
def test_every_picture_is_a_page_with_words_and_named_axes(draw, monkeypatch):
    handed = []
    for module in (figures, score_figures, rate_figures):
        own = module.show
        monkeypatch.setattr(
            module, "show", lambda fig, *words, own=own: handed.append(fig) or own(fig, *words)
        )
    shown = draw()
    assert "<svg" in shown._repr_html_()
    assert len(shown.alt) > 60
    assert "nan" not in shown.alt
    assert shown.caption.endswith(".")
    fig = handed[0]
    assert all(axes.get_xlabel() for axes in fig.axes[-2:] if axes.get_visible())
    named = (axes.get_ylabel() or any(t.get_text() for t in axes.get_yticklabels()) for axes in fig.axes)
    assert fig.get_supylabel() or any(named)


# --------------------------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize("rate", [0.3, 0.6, 1.0])
def test_only_unit_norm_ends_on_the_circle(rate, seen):
    shown = figures.geometry(rate)
    axes = seen[0].axes[0]
    assert axes.get_aspect() == 1
    (sgd,) = (each.get_xydata()[0] for each in coloured(axes, "orange") if each.get_marker() == "s")
    (unit,) = (each.get_xydata()[0] for each in coloured(axes, "blue") if each.get_marker() == "o")
    at = np.deg2rad(figures.ANGLE)
    w, along = np.array([np.cos(at), np.sin(at)]), np.array([np.sin(at), -np.cos(at)])
    np.testing.assert_allclose(sgd, w + rate * (figures.RADIAL * w + figures.TANGENT * along))
    assert np.linalg.norm(unit) == pytest.approx(1.0)
    assert np.arccos(unit @ w) == pytest.approx(np.arctan(rate * figures.TANGENT))
    length = np.hypot(1 + rate * figures.RADIAL, rate * figures.TANGENT)
    assert f"SGD's step, rate {rate:g}, ends outside the circle, at length {length:.2f}" in shown.alt
    assert f"turned by {np.rad2deg(np.arctan(rate * figures.TANGENT)):.0f} degrees." in shown.alt
    assert any(f"length {length:.2f}" in text.get_text() for text in axes.texts)


def test_arrows_begin_where_steps_begin(seen):
    figures.geometry(0.5)
    arrows = [each for each in seen[0].axes[0].texts if each.arrow_patch and not each.get_text()]
    at = np.deg2rad(figures.ANGLE)
    starts = np.array([each.xyann for each in arrows])
    assert (np.abs(starts - [np.cos(at), np.sin(at)]).max(1) < 1e-12).sum() == 4
    steps = {each.arrow_patch.get_edgecolor() for each in arrows}
    assert len(steps) == 3  # ink, orange, blue


@pytest.mark.parametrize("rate", [0.0, -1.0, 1.1])
def test_a_rate_off_the_arrows_is_refused(rate):
    with pytest.raises(ValueError, match="off the drawn arrows"):
        figures.geometry(rate)


# ------------------------------------------------------------------------------------------------------- two starts


def test_both_starts_are_drawn_even_where_they_are_equal(seen):
    found = [curves(0.3), curves(0.25)]
    shown = figures.two_starts(found, seed=1)
    for axes, method in zip(seen[0].axes, (SGD, UNIT, "scaled metric"), strict=True):
        first, second = axes.lines
        np.testing.assert_array_equal(first.get_ydata(), found[1].unit[method])
        np.testing.assert_array_equal(second.get_ydata(), found[1].scaled[method])
        assert (first.get_marker(), second.get_marker()) == ("None", "o")
        assert second.get_color() == INK != first.get_color()
        assert 10 <= len(range(0, len(first.get_ydata()), second.get_markevery())) <= 30
    assert seen[0].axes[0].get_title("left") == "SGD\ngap 0.25"
    assert "largest gap 0.25; unit norm: from the unit start 2.30" in shown.alt
    assert "at most 0.3 (SGD), 1" in shown.caption


def test_starts_can_be_drawn_for_four_methods_and_no_more(seen):
    figures.two_starts([curves()], methods=tuple(curves().unit))
    assert len({axes.lines[0].get_color() for axes in seen[0].axes}) == 4
    with pytest.raises(ValueError, match="5 methods"):
        figures.two_starts([curves()], methods="abcde")
    with pytest.raises(ValueError, match="no curves"):
        figures.two_starts([])


# ------------------------------------------------------------------------------------------------------------- cost


def test_times_are_milliseconds_from_nought(seen):
    found = times(ratio=1.25)
    shown = figures.step_times([found])
    for axes, place in zip(seen[0].axes, (found.whole, found.alone), strict=True):
        assert axes.get_xlim()[0] == 0
        assert axes.get_xlim()[1] > 1e3 * place[UNIT].max()
        for name, method in (("orange", SGD), ("blue", UNIT)):
            repeats, bar, mean = coloured(axes, name)
            np.testing.assert_allclose(repeats.get_xdata(), 1e3 * place[method])
            np.testing.assert_allclose(
                [*mean.get_xdata(), *bar.get_xdata()], intervals.student(1e3 * place[method])
            )
    assert "dense, whole step: SGD 6.5 (" in shown.alt
    assert "ratio 1.25 (1.25 to 1.25). dense, optimiser alone: SGD 0.65" in shown.alt
    assert [text.get_text()[:6] for axes in seen[0].axes for text in axes.texts] == ["× 1.25", "× 3.00"]
    assert "Faint: 5 repeats" in shown.caption
    with pytest.raises(ValueError, match="no timings"):
        figures.step_times([])


# ----------------------------------------------------------------------------------------------------------- scores


def test_errors_are_drawn_in_per_cent_with_intervals_over_runs(seen):
    found = trial()
    shown = score_figures.errors_by_epoch(found)
    order = itertools.product(DEPTHS, ("bold driver", "exponential decay"))
    for axes, (depth, schedule) in zip(seen[0].axes, order, strict=True):
        assert axes.get_title("left") == f"{depth} layers, {schedule}"
        for method, dash, band in zip((SGD, UNIT), ("--", "-"), axes.collections, strict=True):
            expected = student(100 * found[method, depth, schedule].errors)
            drawn = line(axes, method)
            assert drawn.get_linestyle() == dash
            np.testing.assert_array_equal(drawn.get_xdata(), np.arange(1, EPOCHS + 1))
            np.testing.assert_allclose(drawn.get_ydata(), expected[0])
            heights = band.get_paths()[0].vertices[:, 1]
            np.testing.assert_allclose([heights.min(), heights.max()], [expected[1].min(), expected[2].max()])
    last = student([100 * found[UNIT, 4, "exponential decay"].errors[-1]])[:, 0]
    assert f"4 layers, exponential decay: SGD from {5 + 4 * np.exp(-1 / 3):.2f} %" in shown.alt
    assert "unit norm from 7.67 % to {:.2f} ({:.2f} to {:.2f}).".format(*last) in shown.alt
    assert "over 5 runs" in shown.caption
    assert "goes on below" not in shown.caption


def test_a_wide_band_does_not_draw_the_axis_with_it(seen):
    found = trial()
    wild = found[SGD, 2, "bold driver"]
    errors = wild.errors.copy()
    errors[-1] = 0.05 + 0.048 * AROUND
    found[SGD, 2, "bold driver"] = Followed(**{**vars(wild), "errors": errors})
    assert student(errors)[1].min() < 0.005
    shown = score_figures.errors_by_epoch(found)
    assert seen[0].axes[0].get_ylim()[0] > 0.5 * 4.9
    assert "goes on below" in shown.caption


@pytest.mark.parametrize("draw", [score_figures.errors_by_epoch, score_figures.gains, score_figures.matched])
def test_missing_trainings_are_named(draw):
    found = trial()
    del found[UNIT, 4, "exponential decay"]
    with pytest.raises(
        ValueError, match="1 trainings are missing, the first unit norm, 4 layers, exponential"
    ):
        draw(found)
    with pytest.raises(ValueError, match="trainings are missing"):
        draw({})


def test_no_schedule_is_nothing_to_draw():
    with pytest.raises(ValueError, match="nothing to draw"):
        score_figures.errors_by_epoch(trial(), ())


@pytest.mark.parametrize(
    ("gain", "side"), [(0.3, "6 of 6 intervals above"), (-0.3, "6 below"), (0.0, "6 across")]
)
def test_gains_lie_on_the_side_of_the_better_method(gain, side, seen):
    noise = iter(np.random.Generator(np.random.Philox(key=991)).permuted(np.tile(AROUND, (12, 1)), axis=1))
    found = {
        cell: Followed(**{**vars(each), "errors": each.errors + 1e-4 * next(noise)})
        for cell, each in trial(gain).items()
    }
    shown = score_figures.gains(found)
    (axes,) = seen[0].axes
    rows = list(itertools.product(SCHEDULES, DEPTHS))
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"{s}, {d} layers" for s, d in rows]
    for y, (schedule, depth) in enumerate(rows):
        values = images.gains(found, depth, schedule)
        dots, bar, mean = [each for each in coloured(axes, "blue") if round(each.get_ydata()[0]) == y]
        np.testing.assert_allclose(np.sort(dots.get_xdata()), np.sort(values))
        np.testing.assert_allclose([*mean.get_xdata(), *bar.get_xdata()], intervals.student(values))
        text = "{:.2f} ({:.2f} to {:.2f})".format(*intervals.student(values))
        assert f"{schedule}, {depth} layers: {text}" in shown.alt
    assert side in shown.alt
    low, high = axes.get_xlim()
    assert low == -high
    _, direction = axes.get_xlabel().split("\n")
    assert direction.index("SGD better") < direction.index("unit norm better")


def test_errors_are_read_at_common_training_losses(seen):
    found = trial()
    shown = score_figures.matched(found)
    assert len(seen[0].axes) == len(DEPTHS)
    for axes, depth in zip(seen[0].axes, DEPTHS, strict=True):
        low, high = axes.get_xlim()
        assert low > high  # losses fall to the right
        assert axes.get_xscale() == axes.get_yscale() == "log"
        losses = found[SGD, depth, "exponential decay"].losses
        thick = line(axes, SGD), line(axes, UNIT)
        for drawn in thick:
            at = drawn.get_xdata()
            np.testing.assert_allclose([at[0], at[-1]], [losses[-1].max(), losses[0].min()])
        np.testing.assert_allclose(thick[0].get_ydata() - thick[1].get_ydata(), 0.2)
        run = found[UNIT, depth, "exponential decay"]
        thin = [each for each in coloured(axes, "blue") if each.get_linewidth() < 1]
        assert len(thin) == RUNS
        for k, each in enumerate(thin):
            np.testing.assert_allclose(each.get_xdata()[::-1], run.losses[:, k])
            np.testing.assert_allclose(each.get_ydata()[::-1], 100 * run.errors[:, k])
    assert "paired gain of unit norm 0.20 (0.20 to 0.20) points" in shown.alt
    assert "falling to the right" in seen[0].axes[0].get_xlabel()


def test_a_run_that_diverged_is_left_out_and_said(seen):
    found = trial()
    run = found[SGD, 2, "exponential decay"]
    losses = run.losses.copy()
    losses[:, 0] = np.nan
    found[SGD, 2, "exponential decay"] = Followed(**{**vars(run), "losses": losses})
    shown = score_figures.matched(found)
    for name in ("orange", "blue"):
        assert sum(each.get_linewidth() < 1 for each in coloured(seen[0].axes[0], name)) == RUNS - 1
    assert "Left out: 1 run whose" in shown.caption


def test_methods_without_a_common_loss_have_no_mean(seen):
    found = trial()
    run = followed(UNIT, 2, "exponential decay")
    found[UNIT, 2, "exponential decay"] = Followed(**{**vars(run), "losses": 1e3 * run.losses})
    shown = score_figures.matched(found)
    assert not [each for each in seen[0].axes[0].lines if each.get_label() == UNIT]
    assert line(seen[0].axes[1], UNIT)
    assert "2 layers: no training loss that all runs passed through" in shown.alt
    assert "no mean is drawn" in shown.caption
    assert "no mean" not in score_figures.matched(trial()).caption
