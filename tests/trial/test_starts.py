"""Starts that are one function, bands of rates by hand, tables as classifications, and the claims on made-up sweeps."""

import numpy as np
import pytest
import torch

from lib import claims, intervals
from lib.claims import CONFIRMED, NOT_CONFIRMED, UNRESOLVED
from lib.data import Dataset
from lib.randomness import normal
from lib.trial import images, starts
from lib.trial.images import SGD, UNIT
from lib.trial.starts import (
    BAD,
    MARGIN,
    STARTS,
    Sweep,
    band,
    band_gain,
    begin,
    measure_starts,
    measure_tables,
    on_images,
    on_table,
    rows,
    sweep,
    table,
)
from lib.unit_norm.network import Network, Pass
from lib.unit_norm.training import Examples, train

SEED, CPU, DOUBLE = 991, torch.device("cpu"), torch.float64
NET = Network((5, 8, 6, 3), pool=2)
STREAMS = torch.tensor([3, 0])


# --------------------------------------------------------------------------------------------------------------- starts


def test_filters_are_multiplied_and_the_classifier_stays():
    plain = NET.initial(SEED, STREAMS, DOUBLE)
    for start in STARTS:
        found = begin(NET, start, SEED, STREAMS, DOUBLE)
        assert torch.equal(found[-1], plain[-1])
        for before, after in zip(plain[:-1], found[:-1], strict=True):
            factor = after / before
            torch.testing.assert_close(factor, factor[..., :1].expand_as(factor))  # one a filter
            if start == "mixed":
                assert factor.log10().abs().max() <= 2
                assert len(factor[..., 0].unique()) == factor[..., 0].numel()
            else:
                wanted = {"unit": 1.0, "x 10": 10.0, "x 0.1": 0.1}[start]
                torch.testing.assert_close(factor, torch.full_like(factor, wanted))
    assert BAD == ("x 10", "x 0.1", "mixed")
    assert begin(NET, "mixed", SEED, STREAMS)[0].dtype == torch.float32


def test_mixed_factors_are_spread_over_four_decades_for_every_stream_and_layer():
    wide, streams = Network((2, 100, 100, 2)), torch.arange(3)
    logs = [
        (a / b)[..., 0].log10()
        for a, b in zip(
            begin(wide, "mixed", 1, streams, DOUBLE), wide.initial(1, streams, DOUBLE), strict=True
        )
    ][:-1]
    for each in logs:
        assert each.min() < -1.8
        assert each.max() > 1.8
        assert abs(each.mean()) < 4 * 4 / 12**0.5 / 300**0.5
        assert not torch.allclose(each[0], each[1])
    assert not torch.allclose(logs[0], logs[1])


def test_all_starts_are_one_function_under_norms():
    """In training mode; with torch's own epsilon nearly, without norms not at all."""
    x = normal(SEED, STREAMS, "x", 0, (40, 5), DOUBLE)

    def logits(net, start):
        weights = begin(net, start, SEED, STREAMS, DOUBLE)
        means = [x.new_zeros(2, 1, n) for n in net.widths[1:-1]]
        variances = [x.new_ones(2, 1, n) for n in net.widths[1:-1]]
        return Pass(net, weights, means, variances, 40).forward(x, train=True).clone()

    for start in BAD:
        exactly, nearly, unlike = (
            (logits(net, start) - logits(net, "unit")).abs().max()
            for net in (
                Network(NET.widths, pool=2, eps=1e-100),
                NET,
                Network(NET.widths, pool=2, norm=False),
            )
        )
        assert exactly < 1e-12
        assert nearly > 1e-9
        assert unlike > 0.5


# ----------------------------------------------------------------------------------------------------------------- bands

RATES = np.array([0.01, 0.1, 1.0, 10.0])


@pytest.mark.parametrize(
    ("errors", "threshold", "wanted"),
    [
        ([9.0, 9, 9, 9], 5.0, 0.0),
        ([1.0, 2, 3, 4], 5.0, 3.0),
        ([5.0, 5, 5, 5], 5.0, 3.0),  # flat at the threshold: within
        ([9.0, 5, 5, 9], 5.0, 1.0),
        ([9.0, 5, 9, 9], 5.0, 0.0),  # one point has no length
        ([9.0, 1, 9, 9], 5.0, 1.0),  # half of the decade on either side
        ([6.0, 2, 2, 10], 5.0, 0.75 + 1 + 0.375),
        ([2.0, 6, 6, 2], 3.0, 0.25 + 0.25),  # two bands
        ([4.0, 6, 6, 6], 5.0, 0.5),  # one crossing, between two rates
        ([6.0, 6, 6, 4], 5.0, 0.5),
        ([6.0, 6, 4, 4], 4.0, 1.0),
    ],
)
def test_bands_by_hand(errors, threshold, wanted):
    found = band(RATES, np.array([errors]), np.array([threshold]))
    np.testing.assert_allclose(found, [wanted], atol=1e-12)


def test_bands_are_read_in_logarithmic_rates():
    """A grid of unequal steps: the crossing lies a third of the way between 0.1 and 100, at one."""
    found = band(np.array([0.01, 0.1, 100.0]), np.array([[2.0, 2.0, 8.0]]), np.array([4.0]))
    np.testing.assert_allclose(found, [1 + 1.0])


def test_every_run_has_a_threshold_of_its_own():
    errors = np.array([[9.0, 1, 1, 9], [8.0, 4, 4, 8], [99.0, 98, 97, 96]])
    np.testing.assert_allclose(band(RATES, errors, np.array([1.0, 8.0, 6.0])), [1, 3, 0])


def made(sgd, unit, rates=RATES):
    """Errors by start (one list for all runs, or (S, rates)), "unit" for those that are not named."""
    around = {start: np.atleast_2d(np.asarray(sgd.get(start, sgd["unit"]), float)) for start in STARTS}
    return Sweep(rates, around, np.atleast_2d(np.asarray(unit, float)))


def test_a_band_is_measured_from_sgds_best_of_the_unit_start():
    found = made(
        {"unit": [[7.0, 3, 3, 7], [5.0, 1, 1, 5]], "x 10": [[2.0, 9, 9, 9]] * 2}, [[5.0] * 4, [5.0] * 4]
    )
    np.testing.assert_array_equal(found.best("unit"), [3, 1])
    np.testing.assert_array_equal(found.best("x 10"), [2, 2])
    np.testing.assert_allclose(found.band(found.unit, 2.0), [3, 0])
    np.testing.assert_allclose(found.band(found.sgd["unit"], 1.0), [1.5, 1.5])


# ---------------------------------------------------------------------------------------------------------------- sweeps


def problem(streams=2, n=60, dtype=torch.float32):
    """Three classes, one pixel brighter for each."""
    classes = torch.arange(n) % 3
    inputs = normal(SEED, torch.arange(n), "inputs", 0, (5,), dtype) + 2 * torch.eye(5, dtype=dtype)[classes]
    order = torch.stack([torch.arange(n).roll(7 * s) for s in range(streams)])
    return Examples(inputs, classes, order[:, : n - 20]), Examples(inputs, classes, order[:, n - 20 :])


GRID = (0.01, 0.1, 1.0)


def test_a_sweep_is_a_training_for_every_start_and_rate():
    learn, test = problem()
    found = sweep(NET, learn, test, GRID, seed=SEED, epochs=3, batch=10)
    np.testing.assert_array_equal(found.rates, GRID)
    assert set(found.sgd) == set(STARTS)
    streams = torch.arange(2)

    def alone(method, start, r):
        done = train(
            NET, method, learn, torch.full((2, 1), GRID[r]), seed=SEED, streams=streams, epochs=3, batch=10,
            start=begin(NET, start, SEED, streams), watch={"test": test},
        )  # fmt: skip
        return 100 * done.errors["test"][-1, :, 0].numpy()

    for r in range(3):
        for start in STARTS:
            np.testing.assert_allclose(found.sgd[start][:, r], alone(SGD, start, r), atol=1e-4)
            np.testing.assert_allclose(found.unit[:, r], alone(UNIT, start, r), atol=1e-4)  # any start
    assert found.unit.shape == (2, 3)
    tables = [*found.sgd.values()]
    assert all(not np.array_equal(a, b) for i, a in enumerate(tables) for b in tables[:i])
    assert found.sgd["unit"].max() > 20  # points


def test_a_sweep_on_images(monkeypatch):
    seen = []

    def load(name, part, *, flat):
        n = 300 if part == "train" else 40
        inputs = normal(SEED, torch.arange(n), part, 0, (5,))
        return Dataset(inputs, torch.arange(n) % 3, name, part, "made here")

    def network(depth):
        seen.append(depth)
        return NET

    def spy(net, examples, test, rates, **options):
        seen.append((net, examples, test, rates, options))
        return right(net, examples, test, rates, **options)

    right = starts.sweep
    monkeypatch.setattr(images, "load", load)
    monkeypatch.setattr(images, "SEARCH_TRAIN", 120)
    monkeypatch.setattr(starts, "network", network)
    monkeypatch.setattr(starts, "sweep", spy)
    for small, n in ((True, 120), (False, 250)):
        found = on_images(
            "few", GRID[:2], runs=2, validation=50, epochs=1, small=small, seed=SEED, device=CPU
        )
        assert found.unit.shape == found.sgd["mixed"].shape == (2, 2)
        depth, (net, examples, test, rates, options) = seen
        assert (depth, net, rates) == (2, NET, GRID[:2])
        data = images.split("few", 2, 50, seed=SEED, device=CPU)
        wanted = data.search_train if small else data.train
        assert torch.equal(examples.rows, wanted.rows)
        assert examples.rows.shape == (2, n)
        assert torch.equal(test.inputs, data.test.inputs)
        assert options == {"seed": SEED, "epochs": 1, "batch": 100}
        seen.clear()


# ---------------------------------------------------------------------------------------------------------------- tables


@pytest.fixture
def tables(monkeypatch):
    """Three inputs whose mean differs from draw to draw; test rows are far away. Targets: classes, or ten times the row."""

    def load(name, split, *, draw):
        n = (90 if split == "train" else 20) + draw
        inputs = normal(SEED + draw, torch.arange(n), split, 0, (3,), DOUBLE) * 4 + 10 * draw
        inputs[:, 2] = 7.0
        rows = torch.arange(n)
        if split == "test":
            inputs = inputs + 100
        targets = rows % 4 if name == "classes" else 10.0 * rows[:, None].double()
        return Dataset(inputs, targets, name, split, "made here")

    monkeypatch.setattr(starts, "load", load)
    return load


def test_tables_are_stacks_of_splits(tables):
    """Every run has its own rows of one table; the smallest split decides how many."""
    learn, test = table("classes", 3, device=CPU)
    assert learn.rows.tolist() == torch.arange(270).view(3, 90).tolist()
    assert test.rows.tolist() == torch.arange(60).view(3, 20).tolist()
    for run in range(3):
        raw = tables("classes", "train", draw=run)
        mean, std = raw.inputs.mean(0), raw.inputs.std(0, correction=0)
        std[2] = 1.0  # a constant column is only centred
        x = learn.inputs[learn.rows[run]]
        torch.testing.assert_close(x, ((raw.inputs - mean) / std)[:90].float())
        far = ((tables("classes", "test", draw=run).inputs - mean) / std)[
            :20
        ].float()  # by training rows only
        torch.testing.assert_close(test.inputs[test.rows[run]], far)
        assert far[:, :2].min() > 10
        assert torch.equal(learn.targets[learn.rows[run]], raw.targets[:90])
    assert learn.inputs.dtype == torch.float32


def test_numbers_become_the_thirds_of_the_training_rows(tables):
    learn, test = table("numbers", 2, device=CPU)
    for run in range(2):
        n = 90 + run
        classes = learn.targets[learn.rows[run]]
        cuts = (n - 1) / 3, 2 * (n - 1) / 3
        wanted = [(row > cuts[0]) + (row > cuts[1]) for row in range(90)]
        assert classes.tolist() == wanted
        assert torch.bincount(classes).tolist() == ([30, 30, 30] if run == 0 else [31, 30, 29])
        assert test.targets[test.rows[run]].tolist() == [0] * 20  # rows 0 to 19: the lowest third in training
    assert classes.dtype == torch.int64


def test_a_target_at_a_cut_and_far_ones(monkeypatch):
    """Training targets 0, 3, 6, 9: thirds at 3 and 6, which belong below."""

    def load(name, split, *, draw):
        targets = torch.tensor([0.0, 3, 6, 9] if split == "train" else [-50.0, 3, 3.1, 6, 6.1, 99])[:, None]
        return Dataset(torch.arange(len(targets))[:, None].double(), targets, name, split, "made here")

    monkeypatch.setattr(starts, "load", load)
    learn, test = table("numbers", 1, device=CPU)
    assert learn.targets.tolist() == [0, 0, 1, 2]
    assert test.targets.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("name", ["classes", "numbers"])
def test_a_run_on_a_table_is_the_mean_of_its_splits(name, tables, monkeypatch):
    seen, right = [], starts.sweep

    def spy(net, learn, test, rates, **options):
        seen.append((net, learn, options))
        found = right(net, learn, test, rates, **options)
        seen.append(found)
        return found

    monkeypatch.setattr(starts, "sweep", spy)
    found = on_table(name, GRID, runs=2, splits=3, updates=8, seed=SEED, device=CPU)
    (net, learn, options), whole = seen
    assert net == Network((3, 32, 32, 4 if name == "classes" else 3))
    assert learn.rows.shape == (6, 90)
    assert options == {
        "seed": SEED,
        "epochs": 3,
        "batch": 25,
    }  # three batches an epoch, at least eight updates
    np.testing.assert_array_equal(found.rates, GRID)
    for mine, each in ((found.unit, whole.unit), *((found.sgd[s], whole.sgd[s]) for s in STARTS)):
        assert each.shape == (6, 3)
        np.testing.assert_allclose(mine, [each[:3].mean(0), each[3:].mean(0)])
    assert np.ptp(whole.unit) > 0


# -------------------------------------------------------------------------------------------------------------- verdicts


def verdict(claim, found, profile="quick"):
    return claims.judge(claim, profile, found).verdict


FINE = 10.0 ** np.arange(-2.5, 2.5, 0.5)  # the quick profile's rates


def flat(least, good, runs, spread=0.0):
    """Errors of ``least`` (points) over ``good`` half decades of rates, 90 elsewhere; runs differ by themselves."""
    errors = np.full((runs, len(FINE)), 90.0) + 5 * np.linspace(-1, 1, runs)[:, None]
    errors[:, : good + 1] = least + np.linspace(-1, 1, runs)[:, None] * (5 + spread)
    return errors


def bad(worse, narrower, runs=4, spread=0.0):
    """A sweep whose bad starts (x 10, x 0.1, mixed) are worse by so much at best, and good over so many half decades less."""
    sgd = {"unit": flat(20.0, 6, runs)}
    for start, points, steps in zip(BAD, worse, narrower, strict=True):
        sgd[start] = flat(20.0 + points, 6 - steps, runs, spread)
    return Sweep(FINE, sgd, flat(20.0, 6, runs))


def test_starts_are_measured_against_the_unit_start():
    """By hand: 2 points above 3 reach 5, at 1 + 2/6 decades; from the bad start, 2 points above the unit start's best."""
    found = made({"unit": [[3.0, 3, 9, 9]] * 2, "x 10": [[9.0, 4, 8, 9], [9.0, 4.5, 8, 9]]}, [[3.0] * 4] * 2)
    by_cell = {(m.name, m.cell): m for m in measure_starts(found)}
    assert set(by_cell) == {(name, start) for name in ("error_worsening", "band_loss") for start in BAD}
    m = by_cell["error_worsening", "x 10"]
    assert (m.value, m.low, m.high) == pytest.approx(intervals.student([1.0, 1.5]))
    assert (m.n, m.seeds) == (2, 2)
    m = by_cell["band_loss", "x 10"]
    lost = [4 / 3 - (1 / 5 + 1 / 4), 4 / 3 - (0.5 / 4.5 + 0.5 / 3.5)]
    assert (m.value, m.low, m.high) == pytest.approx(intervals.student(lost))
    assert by_cell["error_worsening", "mixed"].value == by_cell["band_loss", "mixed"].value == 0


@pytest.mark.parametrize(
    ("worse", "narrower", "runs", "spread", "wanted"),
    [
        ((0.5, 0.3, 0.2), (0, 0, 0), 4, 0.0, CONFIRMED),
        ((0.0, 0.0, 0.0), (2, 1, 3), 4, 0.0, CONFIRMED),
        ((0.05, 0.05, 0.05), (0, 0, 0), 4, 0.0, NOT_CONFIRMED),
        ((0.5, -0.3, 0.2), (2, 0, 3), 4, 0.0, NOT_CONFIRMED),  # one start helps
        ((0.5, 0.3, 0.0), (2, 0, 3), 4, 0.0, NOT_CONFIRMED),  # every start by the same measure
        ((0.5, 0.3, 0.2), (0, 0, 0), 4, 2.0, UNRESOLVED),
        ((0.5, 0.3, 0.2), (0, 0, 0), 3, 0.0, UNRESOLVED),
    ],
)
def test_verdicts_on_bad_starts(worse, narrower, runs, spread, wanted):
    assert verdict("P4-C7", measure_starts(bad(worse, narrower, runs, spread))) == wanted
    full = CONFIRMED if runs == 3 else wanted
    assert verdict("P4-C7", measure_starts(bad(worse, narrower, 10, spread)), "full") == full


def test_a_rate_is_good_only_if_it_is_for_every_start():
    found = made(
        {"unit": [[9.0, 3, 3, 3]], "x 10": [[9.0, 9, 3, 3]], "mixed": [[9.0, 3, 3, 9]], "x 0.1": [[3.0] * 4]},
        [[3.0, 3, 3, 9]],
    )
    third = 1 / 3  # of a decade, from 3 to 5 on the way to 9
    np.testing.assert_allclose(band_gain(found), [(2 + third) - 2 * third])


def banded(gain, runs=5, spread=0):
    """Unit norm good over so many half decades more than SGD from its worst start."""
    sgd = {start: flat(20.0, 6 - (start == "mixed") * 3, runs) for start in STARTS}
    more = np.linspace(-spread, spread, runs).round().astype(int)
    unit = np.stack([flat(20.0, 3 + gain + d, runs)[i] for i, d in enumerate(more)])
    return Sweep(FINE, sgd, unit)


@pytest.mark.parametrize(
    ("gains", "runs", "spread", "wanted"),
    [
        ((1, 2), 5, 0, CONFIRMED),
        ((1, 0), 5, 0, NOT_CONFIRMED),
        ((-1, -2), 5, 0, NOT_CONFIRMED),
        ((2, 2), 5, 3, UNRESOLVED),
        ((1, 2), 4, 0, UNRESOLVED),
        ((1,), 5, 0, UNRESOLVED),  # a data set is missing
    ],
)
def test_verdicts_on_tables(gains, runs, spread, wanted):
    found = measure_tables({f"table {i}": banded(gain, runs, spread) for i, gain in enumerate(gains)})
    assert [(m.name, m.cell, m.n, m.seeds) for m in found] == [
        ("band_gain", f"table {i}", runs, runs) for i in range(len(gains))
    ]
    if not spread:
        assert [m.value for m in found] == pytest.approx([gain / 2 for gain in gains])
    assert verdict("X-U1", found) == wanted


def test_all_three_full_tables_are_asked():
    three = {str(i): banded(1, 10) for i in range(3)}
    assert verdict("X-U1", measure_tables(three), "full") == CONFIRMED
    assert verdict("X-U1", measure_tables(three | {"2": banded(0, 10)}), "full") == NOT_CONFIRMED
    del three["2"]
    assert verdict("X-U1", measure_tables(three), "full") == UNRESOLVED


def test_rows_for_the_page():
    assert MARGIN == 2.0
    found = rows(
        made({"unit": [[3.0, 3, 9, 9], [5.0, 5, 11, 11]], "x 10": [[4.0] * 4] * 2}, [[3.0] * 4, [5.0] * 4])
    )
    assert [row[0] for row in found] == [*(f"SGD, {start} start" for start in STARTS), "unit norm, any start"]
    mean, low, high = intervals.student([3.0, 5.0])
    assert found[0][1:] == (f"{mean:.2f} ({low:.2f} to {high:.2f})", "1.33 (1.33 to 1.33)")
    assert found[1][1:] == ("4.00 (4.00 to 4.00)", "3.00 (3.00 to 3.00)")
    assert found[-1][2] == "3.00 (3.00 to 3.00)"
