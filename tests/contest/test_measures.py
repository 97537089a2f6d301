"""From scores to verdicts: every measurement on made-up scores with known answers, every claim on made-up measurements."""

import math
import re

import numpy as np
import pytest
import torch
from scipy import optimize, special

from lib import claims, intervals
from lib.contest import measures, published
from lib.contest.measures import Contest
from lib.contest.methods import DIAGONAL, FACTORISED, POINT, VMG, Scores

SPLITS = 10
AROUND = np.linspace(-1, 1, SPLITS)  # what makes splits differ, with mean 0


def scores(rmse, ll=0.0, sizes=1, early=None, student=None, calibration=None):
    """Runs of every split and size: numbers, or tables (splits, sizes)."""

    def table(values):
        return torch.tensor(np.broadcast_to(values, (SPLITS, sizes)).reshape(-1).copy(), dtype=torch.float64)

    looks = {k: torch.tensor(np.broadcast_to(v, SPLITS).copy()) for k, v in (early or {}).items()}
    student, calibration = (ll if x is None else x for x in (student, calibration))
    return Scores(table(rmse), table(ll), table(student), table(calibration), looks)


def column(values):
    """A value a split, as a column of a table."""
    return np.asarray(values)[:, None]


def contest(ours, factorised, name="made", sizes=(100,), main=None, updates=400, **more):
    return Contest(
        name, SPLITS, sizes, main or max(sizes), updates, {VMG: [ours], FACTORISED: factorised, **more}
    )


def verdict(claim, found, profile="quick"):
    return claims.judge(claim, profile, found).verdict


def by_cell(found):
    return {(m.name, m.cell): m for m in found}


# ------------------------------------------------------------------------------------------------------------- reading


def test_runs_are_read_by_split_and_size():
    table = np.arange(30.0).reshape(SPLITS, 3)
    c = contest(scores(table, -table, sizes=3), [scores(1.0)], sizes=(20, 80, 353), main=80)
    np.testing.assert_array_equal(c.rmse(VMG), table[:, 1])  # the main size
    np.testing.assert_array_equal(c.rmse(VMG, 353), table[:, 2])
    np.testing.assert_array_equal(c.log_likelihood(VMG, 20), -table[:, 0])
    assert c.rmse(VMG).dtype == np.float64
    one = contest(scores(column(AROUND)), [scores(1.0)], sizes=(20, 80, 353), main=80)
    np.testing.assert_array_equal(one.rmse(VMG), AROUND)  # trained at the main size alone


def test_the_best_variant_is_chosen_by_its_mean_for_each_metric_and_size():
    low = scores([[1.0, 5.0]], [[-3.0, -1.0]], sizes=2)
    high = scores([[2.0, 4.0]], [[-2.0, -2.0]], sizes=2)
    spread = scores(column(1.2 + AROUND) * [[1.0, 9.0]], -9.0, sizes=2)  # often the smallest, on average not
    c = contest(low, [low, high, spread], sizes=(20, 80))
    assert (c.rmse(FACTORISED, 20) == 1).all()
    assert (c.rmse(FACTORISED, 80) == 4).all()
    assert (c.log_likelihood(FACTORISED, 20) == -2).all()
    assert (c.log_likelihood(FACTORISED, 80) == -1).all()
    assert (c.best(FACTORISED, lambda s: s.student, 80, sign=-1) == -1).all()


def test_early_looks_take_the_variant_that_is_best_then():
    first, second = scores(1.0, early={100: 3.0, 400: 1.0}), scores(2.0, early={100: 2.5, 400: 2.0})
    c = contest(first, [first, second])
    assert c.looks == (100, 400)
    assert c.early(FACTORISED, 100).tolist() == [2.5] * SPLITS
    assert c.early(FACTORISED, 400).tolist() == [1.0] * SPLITS


# ------------------------------------------------------------------------------------------- each claim's measurements


def test_equal_terms():
    """Gains are paired: splits that differ much by themselves do not widen the interval."""
    base = column(10 + 5 * AROUND)
    c = contest(scores(0.8 * base, -1 + column(AROUND)), [scores(base, -1.5 + column(AROUND))])
    found = by_cell(measures.equal_terms([c]))
    for name, wanted in (("rmse_gain", 0.2), ("ll_gain", 0.5)):
        m = found[name, "made"]
        assert (m.value, m.low, m.high) == pytest.approx((wanted,) * 3)
        assert (m.n, m.seeds) == (SPLITS, SPLITS)
    noisy = contest(scores(base * (0.8 + 0.1 * column(AROUND)), 0.0), [scores(base, column(AROUND))])
    found = by_cell(measures.equal_terms([noisy]))
    assert found["rmse_gain", "made"].low == pytest.approx(intervals.student(0.2 - 0.1 * AROUND)[1])
    assert found["ll_gain", "made"].high == pytest.approx(intervals.student(-AROUND)[2])


def test_early_gains_are_those_at_a_quarter():
    early = {50: 9.0, 100: 6.0, 200: 1.0, 400: 1.0}
    others = [
        scores(1.0, early={k: 8.0 * (1 + (k > 100)) for k in early}),
        scores(1.0, early=dict.fromkeys(early, 12.0)),
    ]
    (m,) = measures.early([contest(scores(1.0, early=early), others)])
    assert (m.name, m.cell, m.value) == ("early_gain", "made", pytest.approx(1 - 6 / 8))


def test_the_diagonal_is_compared_with_the_variant_that_starts_as_it_does():
    same, better = scores(column(10 + AROUND), -2.0), scores(5.0, -1.0)
    ours = scores(1.02 * column(10 + AROUND), column(-2.03 + 0.01 * AROUND))
    c = contest(scores(1.0), [same, better], **{DIAGONAL: [ours]})
    found = by_cell(measures.diagonal([c], 118_685 / 235_500))
    assert found["rmse_difference", "made"].value == pytest.approx(0.02)
    ll = found["ll_difference", "made"]
    assert (ll.value, ll.low, ll.high) == pytest.approx(intervals.student(-0.03 + 0.01 * AROUND))
    ratio = found["parameter_ratio", "785 x 150"]
    assert (ratio.value, ratio.low, ratio.high) == (118_685 / 235_500,) * 3


def test_slopes_are_those_of_straight_lines_in_log_n():
    sizes, slope = (20, 80, 353), 0.1 * AROUND - 0.2
    gains = 3 + np.log(np.array(sizes))[:, None] * slope
    np.testing.assert_allclose(measures.slopes(sizes, gains), slope)
    bent = np.array([[0.0], [1.0], [0.0]])
    x = np.log(sizes) - np.log(sizes).mean()
    np.testing.assert_allclose(measures.slopes(sizes, bent), [x[1] / (x @ x)])


def test_little_data():
    """Gains that fall by known slopes, split by split."""
    sizes, log = (20, 80, 353), np.log([20, 80, 353])
    fall = column(0.05 + 0.02 * AROUND)
    ours = scores(10 * (0.5 + fall * log), 4 - 2 * fall * log, sizes=3)
    c = contest(ours, [scores(10.0, 1.0, sizes=3), scores(11.0, 0.0, sizes=3)], sizes=sizes)
    found = by_cell(measures.little_data([c]))
    rmse, ll = found["rmse_slope", "made"], found["ll_slope", "made"]
    assert (rmse.value, rmse.low, rmse.high) == pytest.approx(intervals.student(-fall[:, 0]))
    assert (ll.value, ll.low, ll.high) == pytest.approx(intervals.student(-2 * fall[:, 0]))
    np.testing.assert_allclose(measures.rmse_gains(c), (0.5 - fall * log).T)
    np.testing.assert_allclose(measures.ll_gains(c), (3 - 2 * fall * log).T)


def test_against_the_table():
    """Boston: VMG 2.70 ± 0.13, VI 4.32 ± 0.29, PBP 3.01 ± 0.18, dropout 2.97 with a deviation of 0.85 over splits."""
    rmse, ll = 2.8 + 0.1 * AROUND, -2.5 + 0.1 * AROUND
    c = contest(scores(column(rmse), column(ll)), [], name="boston")
    found, half = by_cell(measures.against_the_table([c])), intervals.student(rmse)[2] - 2.8
    ratio = found["rmse_to_table", "boston"]
    wide = math.hypot(half, 1.96 * 0.13) + 0.005
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx(
        (2.8 / 2.7, (2.8 - wide) / 2.7, (2.8 + wide) / 2.7)
    )
    for method, mean, error in (
        ("vi", 4.32, 0.29),
        ("pbp", 3.01, 0.18),
        ("dropout", 2.97, 0.85 / SPLITS**0.5),
    ):
        m, wide = found[f"rmse_gain_{method}", "boston"], math.hypot(half, 1.96 * error) + 0.005
        wanted = [(mean - 2.8 + s * wide) / mean for s in (0, -1, 1)]
        assert (m.value, m.low, m.high) == pytest.approx(wanted)
    for method, mean, error in (
        ("vi", -2.9, 0.07),
        ("pbp", -2.57, 0.09),
        ("dropout", -2.46, 0.25 / SPLITS**0.5),
    ):
        m, wide = found[f"ll_gain_{method}", "boston"], math.hypot(half, 1.96 * error) + 0.005
        assert (m.value, m.low, m.high) == pytest.approx([-2.5 - mean + s * wide for s in (0, -1, 1)])
    assert all((m.n, m.seeds) == (SPLITS, SPLITS) for m in found.values())
    assert len(found) == 7


def test_naval():
    raw, standardised = (contest(scores(1.0, column(x + 0.01 * AROUND)), []) for x in (2.46, 5.0))
    found = by_cell(measures.naval(raw, standardised))
    assert found["ll_raw", "raw"].value == pytest.approx(2.46)
    assert found["ll_standardised", "standardised"].value == pytest.approx(5.0)


def test_the_cap_is_the_papers():
    assert measures.cap(10_741) == pytest.approx(2.480, abs=5e-4)


def test_no_perfect_fit_has_a_likelihood_above_the_cap():
    """The objective of N rows met exactly, maximised over q(τ) by a search, and the test density of rows met exactly."""
    rows, (a0, b0) = 50, (3.0, 2.0)

    def charged(logs):
        a, b = np.exp(logs)
        mean, log = a / b, special.digamma(a) - np.log(b)
        kl = (a - a0) * special.digamma(a) - special.gammaln(a) + special.gammaln(a0) + a0 * np.log(b / b0)
        return kl + mean * b0 - a - rows / 2 * log

    a, b = np.exp(optimize.minimize(charged, np.log([a0, b0]), tol=1e-12).x)
    wanted = 0.5 * (special.digamma(a) - np.log(b) - np.log(2 * np.pi))
    assert measures.cap(rows, (a0, b0)) == pytest.approx(wanted, abs=1e-4)


# ----------------------------------------------------------------------------------------------------------- verdicts


def two(make):
    """The quick profile's two cells."""
    return [make("cubic toy"), make("diabetes")]


def gaining(rmse, ll, spread=0.0):
    """Matrix Gaussians that gain so much."""

    def make(name):
        ours = scores(10 * (1 - rmse - column(spread * AROUND)), column(ll + spread * AROUND))
        return contest(ours, [scores(10.0), scores(20.0, -3.0)], name)

    return measures.equal_terms(two(make))


@pytest.mark.parametrize(
    ("rmse", "ll", "spread", "wanted"),
    [
        (0.1, 0.2, 0.0, claims.CONFIRMED),
        (0.1, -0.2, 0.0, claims.NOT_CONFIRMED),
        (-0.1, 0.2, 0.0, claims.NOT_CONFIRMED),
        (0.1, 0.2, 1.0, claims.UNRESOLVED),
    ],
)
def test_verdicts_on_equal_terms(rmse, ll, spread, wanted):
    assert verdict("P3-C3", gaining(rmse, ll, spread)) == wanted


@pytest.mark.parametrize(
    ("gain", "spread", "wanted"),
    [(0.2, 0.0, claims.CONFIRMED), (0.05, 0.0, claims.NOT_CONFIRMED), (0.12, 0.1, claims.UNRESOLVED)],
)
def test_verdicts_on_the_early_fit(gain, spread, wanted):
    def make(name):
        ours = scores(1.0, early={100: 10 * (1 - gain - spread * AROUND)})
        return contest(ours, [scores(1.0, early={100: 10.0})], name)

    assert verdict("P3-C4", measures.early(two(make))) == wanted


@pytest.mark.parametrize(
    ("rmse", "ll", "ratio", "spread", "wanted"),
    [
        (0.01, -0.02, 0.504, 0.0, claims.CONFIRMED),
        (0.01, -0.02, 0.7, 0.0, claims.NOT_CONFIRMED),
        (0.08, 0.0, 0.504, 0.0, claims.NOT_CONFIRMED),
        (-0.08, 0.0, 0.504, 0.0, claims.NOT_CONFIRMED),
        (0.0, 0.3, 0.504, 0.0, claims.NOT_CONFIRMED),
        (0.0, 0.0, 0.504, 0.2, claims.UNRESOLVED),
    ],
)
def test_verdicts_on_the_diagonal(rmse, ll, ratio, spread, wanted):
    def make(name):
        ours = scores(10 * (1 + rmse + column(spread * AROUND)), column(ll + spread * AROUND))
        return contest(scores(1.0), [scores(10.0), scores(1.0, 9.0)], name, **{DIAGONAL: [ours]})

    assert verdict("P3-C5", measures.diagonal(two(make), ratio)) == wanted


@pytest.mark.parametrize(
    ("rmse", "ll", "spread", "wanted"),
    [
        (-0.02, -0.1, 0.0, claims.CONFIRMED),
        (-0.02, 0.1, 0.0, claims.NOT_CONFIRMED),
        (0.02, -0.1, 0.0, claims.NOT_CONFIRMED),
        (-0.02, -0.02, 0.2, claims.UNRESOLVED),
    ],
)
def test_verdicts_on_little_data(rmse, ll, spread, wanted):
    log = np.log([20, 353])

    def make(name):
        slope = column(spread * AROUND)
        ours = scores(10 * (0.5 - (rmse + slope) * log), (ll + slope) * log, sizes=2)
        return contest(ours, [scores(10.0, sizes=2)], name, sizes=(20, 353))

    assert verdict("X-G1", measures.little_data(two(make))) == wanted


def tabled(rmse, ll, spread=0.0):
    """All eight sets, with errors so many times the recalled VMG's and likelihoods so far above it."""

    def make(name):
        mean, level = published.RMSE[name].vmg[0], published.LOG_LIKELIHOOD[name].vmg[0]
        around = column(spread * AROUND)
        return contest(scores(mean * (rmse + around), level + ll + around), [], name)

    return measures.against_the_table([make(name) for name in published.SETS])


def test_verdicts_on_the_table():
    assert verdict("P3-C2", tabled(0.5, 0.6), "full") == claims.CONFIRMED
    assert verdict("P3-C2", tabled(2.0, 0.6), "full") == claims.NOT_CONFIRMED
    assert verdict("P3-C2", tabled(0.5, -1.0), "full") == claims.NOT_CONFIRMED
    assert verdict("P3-C2", tabled(0.5, 0.6, 3.0), "full") == claims.UNRESOLVED
    assert verdict("P3-C2", [], "quick") == claims.OUT_OF_REACH


@pytest.mark.parametrize(
    ("raw", "standardised", "spread", "wanted"),
    [
        (2.46, 5.0, 0.0, claims.CONFIRMED),
        (2.6, 5.0, 0.0, claims.NOT_CONFIRMED),
        (2.46, 3.0, 0.0, claims.NOT_CONFIRMED),
        (2.46, 5.0, 9.0, claims.UNRESOLVED),
    ],
)
def test_verdicts_on_naval(raw, standardised, spread, wanted):
    pair = (contest(scores(1.0, column(x + spread * AROUND)), []) for x in (raw, standardised))
    assert verdict("P3-C6", measures.naval(*pair), "full") == wanted


# ------------------------------------------------------------------------------------------------------ for the page


def test_tables_hold_the_best_variants():
    first = scores(3.0, -4.0, sizes=2, student=-3.0, calibration=0.2)
    second = scores(2.0, -5.0, sizes=2, student=-6.0, calibration=0.1)
    c = contest(scores(1.0, -1.0, sizes=2), [first, second], sizes=(20, 80), **{POINT: [first]})
    ours, theirs, _ = measures.table(c, (VMG, FACTORISED, POINT))
    assert theirs[0] == FACTORISED
    assert [cell.split(" ")[0] for cell in theirs[1:]] == ["2", "-4", "-3", "0.1"]
    assert ours[1] == "1 (1 to 1)"
    rows = measures.size_table([c])
    assert [row[:2] for row in rows] == [("made", "20"), ("made", "80")]
    assert [cell.split(" ")[0] for cell in rows[0][2:]] == ["1", "2", "-1", "-4", "-1", "0.1"]


def test_what_is_said_of_values():
    mean, low, high = intervals.student(AROUND)
    assert measures.said(AROUND, ".2f") == f"{mean:.2f} ({low:.2f} to {high:.2f})"


def test_published_figures_stand_beside_ours():
    rmse = 2.8 + AROUND
    c = contest(scores(column(rmse)), [], name="boston")
    rows = {row[0]: row for row in measures.published_table(published.RMSE, [c], Contest.rmse)}
    assert rows["boston"][1:] == (
        "4.32 ± 0.29",
        "3.01 ± 0.18",
        "2.97 ± 0.19",
        "2.70 ± 0.13",
        "2.90 ± 0.18",
        f"2.8 ± {rmse.std(ddof=1) / SPLITS**0.5:.2g}",
    )
    assert rows["yacht"][-1] == "not run"
    assert rows["kin8nm"][-2] == "0.08"  # no error is given
    assert rows["protein"][3] == f"4.36 ± {0.04 / 5**0.5:.2f}"


def test_published_figures_are_the_ledgers():
    """Those that the ledger quotes, in its order VI / PBP / dropout / VMG."""
    figure = claims.ledger()["P3-C2"].figure
    of_rmse, of_ll = figure.split("; log-likelihood ")
    for table, text in ((published.RMSE, of_rmse), (published.LOG_LIKELIHOOD, of_ll)):
        quoted = re.findall(r"(\w+) ((?:-?[\d.]+ / ){3}-?[\d.]+)", text)
        assert len(quoted) == {of_rmse: 4, of_ll: 1}[text]
        for name, values in quoted:
            row = table[name.lower()]
            assert [mean for mean, _ in (row.vi, row.pbp, row.dropout, row.vmg)] == [
                float(value) for value in values.split(" / ")
            ]
    naval = published.LOG_LIKELIHOOD["naval"]
    assert claims.ledger()["P3-C6"].figure == (
        f"naval log-likelihood: VMG {naval.vmg[0]:.2f}, dropout {naval.dropout[0]:.2f}"
    )
    images = claims.ledger()["P3-C8"].figure
    assert all(f"{width} {error:.2f}" in images for width, error in published.MNIST.items())
    assert f"{published.MNIST_LOG} %" in images
    assert naval.vmg[0] < measures.cap(10_741)  # the published figure lies below the cap
    assert "naval" not in published.SETS
    assert len(published.SETS) == 8
