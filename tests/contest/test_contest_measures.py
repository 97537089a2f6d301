"""From made-up scores to measurements and verdicts: the claims of the fourth chapter on known answers."""

import math

import numpy as np
import pytest
import torch

from lib import claims, intervals
from lib.contest import cost, images, measures, published, toy
from lib.contest.images import Errors
from lib.contest.measures import Contest
from lib.contest.methods import DIAGONAL, DROPOUT, FACTORISED, VMG, Scores
from lib.contest.toy import Bands
from lib.matrix_gaussian.laws import Factorised, Point, RowColumn
from lib.matrix_gaussian.pseudo_data import PseudoData

SPLITS = 20
NOISE = torch.linspace(-0.01, 0.01, SPLITS)


def scores(rmse, ll, early=None, sizes=1):
    """Runs of ``sizes`` sizes, the same numbers but for a little noise over splits."""
    columns = [torch.as_tensor(v, dtype=torch.float32).expand(sizes) for v in (rmse, ll)]
    r, l = (c[None] * (1 + NOISE[:, None]) for c in columns)  # noqa: E741
    at = (early if early is not None else float(columns[0][0])) * (1 + NOISE)
    return Scores(r.flatten(), l.flatten(), l.flatten() + 0.1, r.flatten() / 100, {25: at, 100: r[:, -1]})


def contest(ours, other, name="cubic toy", diagonal=None, sizes=(20,), main=None):
    found = {VMG: [ours], FACTORISED: other, DIAGONAL: [diagonal or other[0]]}
    return Contest(name, SPLITS, sizes, main or max(sizes), 100, found)


def test_the_best_variant_counts_for_each_metric():
    worse, better = scores(4.0, -1.0), scores(3.0, -2.0)
    c = contest(scores(2.0, -0.5), [worse, better])
    assert c.rmse(FACTORISED) == pytest.approx(better.rmse.numpy())
    assert c.log_likelihood(FACTORISED) == pytest.approx(worse.log_likelihood.numpy())
    gain, ll = measures.equal_terms([c])
    assert (gain.name, gain.cell, gain.seeds) == ("rmse_gain", "cubic toy", SPLITS)
    assert gain.value == pytest.approx(1 - 2 / 3)
    assert ll.value == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [((2.0, -0.5), "confirmed"), ((4.0, -2.5), "not confirmed"), ((2.0, -2.5), "not confirmed")],
)
def test_equal_terms_are_judged(ours, verdict):
    two = [contest(scores(*ours), [scores(3.0, -1.0)], name) for name in ("cubic toy", "diabetes")]
    assert claims.judge("P3-C3", "quick", measures.equal_terms(two)).verdict == verdict


def test_equal_terms_stay_open_where_splits_disagree():
    noisy = scores(3.0, -1.0)
    noisy = Scores(
        noisy.rmse + 5 * torch.cos(torch.arange(SPLITS) * 2.0), noisy.log_likelihood, noisy.student, noisy.calibration, noisy.early
    )  # fmt: skip
    two = [contest(noisy, [scores(3.0, -1.5)], name) for name in ("cubic toy", "diabetes")]
    assert claims.judge("P3-C3", "quick", measures.equal_terms(two)).verdict == "unresolved"


@pytest.mark.parametrize(("early", "verdict"), [(2.0, "confirmed"), (2.9, "not confirmed")])
def test_early_gains_are_read_at_a_quarter_of_the_updates(early, verdict):
    two = [
        contest(
            scores(2.0, -1.0, early=early), [scores(2.0, -1.0, early=3.0), scores(1.0, -1.0, early=3.5)], name
        )
        for name in ("cubic toy", "diabetes")
    ]
    (first, _) = measures.early(two)
    assert first.value == pytest.approx(1 - early / 3.0)
    assert claims.judge("P3-C4", "quick", measures.early(two)).verdict == verdict


@pytest.mark.parametrize(("rmse", "verdict"), [(3.01, "confirmed"), (3.6, "not confirmed")])
def test_the_diagonal_law_is_compared_with_the_first_variant(rmse, verdict):
    two = [
        contest(scores(1.0, 0.0), [scores(3.0, -1.0), scores(0.1, 5.0)], name, diagonal=scores(rmse, -1.01))
        for name in ("cubic toy", "diabetes")
    ]
    found = measures.diagonal(two, 0.504)
    assert found[1].value == pytest.approx(rmse / 3 - 1, rel=1e-3)
    assert claims.judge("P3-C5", "quick", found).verdict == verdict


@pytest.mark.parametrize(
    ("rmse", "ll", "verdict"),
    [((1.0, 2.9), (0.0, -0.9), "confirmed"), ((2.9, 1.0), (-0.9, 0.0), "not confirmed")],
)
def test_slopes_in_the_number_of_rows(rmse, ll, verdict):
    sizes = (20, 2_000)
    two = [
        contest(scores(rmse, ll, sizes=2), [scores((3.0, 3.0), (-1.0, -1.0), sizes=2)], name, sizes=sizes)
        for name in ("cubic toy", "diabetes")
    ]
    found = measures.little_data(two)
    span = math.log(sizes[1] / sizes[0])
    assert found[0].value == pytest.approx((rmse[0] - rmse[1]) / 3 / span, rel=1e-3)
    assert claims.judge("X-G1", "quick", found).verdict == verdict


def test_slopes_are_least_squares():
    sizes, gains = (1, 10, 100), np.array([[1.0, 0.0], [3.0, 1.0], [2.0, 5.0]])
    wanted = [np.polyfit(np.log(sizes), column, 1)[0] for column in gains.T]
    assert measures.slopes(sizes, gains) == pytest.approx(wanted)


def uci(factor, ll_gain):
    return [
        contest(
            scores(row.vmg[0] * factor or 1e-9, published.LOG_LIKELIHOOD[name].pbp[0] + ll_gain), [scores(9.0, -9.0)], name
        )
        for name, row in published.RMSE.items()
        if name in published.SETS
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("factor", "gain", "verdict"), [(0.9, 0.5, "confirmed"), (1.6, 0.5, "not confirmed")]
)
def test_the_table_of_the_paper_is_judged(factor, gain, verdict):
    found = measures.against_the_table(uci(factor, gain))
    assert claims.judge("P3-C2", "full", found).verdict == verdict


def test_the_table_counts_its_rounding_and_error():
    (c,) = [c for c in uci(1.0, 0.0) if c.name == "yacht"]
    found = {m.name: m for m in measures.against_the_table([c])}
    mean, _, high = intervals.student(c.rmse(VMG))
    half = math.hypot(high - mean, 1.96 * 0.05) + 0.005
    assert found["rmse_to_table"].high == pytest.approx((mean + half) / 0.71)
    assert found["rmse_gain_vi"].value == pytest.approx((6.89 - mean) / 6.89)
    assert published.RMSE["boston"].figure("dropout", 20)[1] == pytest.approx(0.85 / math.sqrt(20))
    row = next(r for r in measures.published_table(published.RMSE, [c], Contest.rmse) if r[0] == "yacht")
    assert row[1] == "6.89 ± 0.67"
    assert row[-1].startswith("0.71 ± ")


def test_naval_and_its_cap():
    assert measures.cap(10_741) == pytest.approx(2.480, abs=5e-4)
    raw, standardised = (contest(scores(1.0, ll), [scores(1.0, 0.0)], "naval") for ll in (2.4, 4.0))
    assert claims.judge("P3-C6", "full", measures.naval(raw, standardised)).verdict == "confirmed"
    assert (
        claims.judge("P3-C6", "full", measures.naval(standardised, standardised)).verdict == "not confirmed"
    )


# ------------------------------------------------------------------------------------------------- toy, images, cost


def bands(outside):
    x = torch.linspace(-6, 6, 13, dtype=torch.float64)
    sd = torch.where(x.abs() > 4, outside, 1.0).expand(12, -1) * (1 + torch.linspace(0, 0.01, 12)[:, None])
    return Bands(x, (x**3).expand(12, -1) + 2.0, sd)


def test_spread_outside_over_inside():
    assert bands(3.0).ratio == pytest.approx(torch.full((12,), 3.0).numpy(), rel=1e-6)
    assert (bands(3.0).coverage() == 1).all()
    assert (bands(3.0).coverage(1.0) < 1).all()
    found = toy.measure({VMG: [bands(3.0)], FACTORISED: [bands(1.0), bands(2.0)]})
    assert found[1].value == pytest.approx(1.5)  # over the variant whose spread grows most
    assert claims.judge("P3-C9", "quick", found).verdict == "confirmed"
    flat = toy.measure({VMG: [bands(1.0)], FACTORISED: [bands(2.0)]})
    assert claims.judge("P3-C9", "quick", flat).verdict == "not confirmed"


def errors(last):
    mean = torch.tensor([90.0, last])[:, None] + torch.tensor([0.0, 0.1, 0.2])
    return Errors(torch.tensor([10, 20]), mean, mean[-1], mean[-1], mean[-1])


@pytest.mark.parametrize(("ours", "verdict"), [(5.0, "confirmed"), (50.0, "not confirmed")])
def test_the_order_of_image_errors(ours, verdict):
    found = images.order({VMG: errors(ours), FACTORISED: errors(20.0), DROPOUT: errors(8.0)})
    assert found[1].value == pytest.approx(8.0 - ours, rel=1e-5)
    assert claims.judge("P3-C8", "quick", found).verdict == verdict


def test_errors_by_width():
    found = images.by_width({150: errors(1.0), 750: errors(0.5)}, looks=1)
    assert [m.name for m in found] == ["error_150", "width_gain"]
    assert found[1].value == pytest.approx(0.5, rel=1e-5)
    assert errors(1.0).last(2) == pytest.approx(np.array([45.5, 45.6, 45.7]))


def test_parameters_are_those_of_the_notes():
    vmg = PseudoData(50, 0.01, per_entry=True)
    table = {(784, 150): 166_420, (150, 150): 38_352, (150, 10): 9_932, (750, 750): 641_352}
    assert {layer: cost.parameters(vmg, *layer) for layer in table} == table
    assert cost.of_network(vmg, [400, 400]) == 603_204
    assert cost.of_network(Factorised(), [150] * 3) == 329_120
    assert cost.parameters(RowColumn(), 784, 150) == 118_685
    assert cost.parameters(Point(), 784, 150) == 117_750


@pytest.mark.parametrize("layer", [(784, 150), (6, 50), (30, 7)])
def test_break_even_is_where_the_counts_meet(layer):
    even, factorised = cost.break_even(*layer), cost.parameters(Factorised(), *layer)
    below, above = (
        cost.parameters(PseudoData(m, 0.01, per_entry=True), *layer)
        for m in (math.floor(even), math.floor(even) + 1)
    )
    assert below <= factorised < above


def test_step_times_take_turns():
    times = cost.step_times("150-150", repeats=2, steps=1, seed=7, device=torch.device("cpu"))
    assert all((seconds > 0).all() and len(seconds) == 2 for seconds in times.seconds.values())
    assert times.ratio(cost.DETERMINISTIC) == pytest.approx([1.0, 1.0])
    assert {m.cell for m in cost.measure([times]) if m.name == "parameter_ratio"} == {
        "3x150",
        "2x400",
        "3x750",
    }
