"""The trial on a few pixels: its splits, search and pairs; and every claim on it by made-up runs."""

from dataclasses import dataclass
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lib import claims, intervals
from lib.claims import CONFIRMED, NOT_CONFIRMED, UNRESOLVED
from lib.data import Dataset
from lib.kept import Kept
from lib.randomness import normal
from lib.rules import Measurement
from lib.trial import images
from lib.trial.images import (
    DEPTHS,
    SCHEDULES,
    SGD,
    UNIT,
    Followed,
    Search,
    follow,
    gains,
    matched,
    measure_depth,
    measure_gains,
    measure_matched,
    measure_need,
    network,
    rate_fall,
    rows,
    schedule_need,
    search,
    split,
    trial,
)
from lib.unit_norm.network import Network

SEED, PIXELS, CLASSES, LEARN, TEST, VALIDATION = 991, 9, 3, 300, 50, 60
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Few:
    images: str = "few"
    runs: int = 3
    validation: int = VALIDATION
    rates: tuple[float, ...] = (0.1, 1.0)
    ratios: tuple[float, ...] = (0.1, 1.0, 2.0)
    search_epochs: int = 2
    search_schedules: bool = False
    epochs: int = 4


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Noisy images of nine pixels, one brighter for each class, and networks of eight units."""

    def load(name, part, *, flat):
        assert name == "few"
        assert flat
        n, first = (LEARN, 0) if part == "train" else (TEST, LEARN)
        classes = torch.arange(n) % CLASSES
        noise = normal(SEED, torch.arange(first, first + n), "pixels", 0, (PIXELS,))
        bright = torch.eye(PIXELS)[classes]
        return Dataset(noise + 2 * bright, classes, name, part, "made here")

    def small(depth, norm=True):
        return Network((PIXELS, *[8] * depth, CLASSES), pool=2, norm=norm)

    monkeypatch.setattr(images, "load", load)
    monkeypatch.setattr(images, "network", small)
    monkeypatch.setattr(images, "SEARCH_TRAIN", 150)
    monkeypatch.setattr(images, "SEARCH_VALIDATION", 40)
    monkeypatch.setattr(images, "WATCHED", 110)
    monkeypatch.setattr(images, "side_by_side", lambda pieces, device: [piece() for piece in pieces])


def data(runs=3):
    return split("few", runs, VALIDATION, seed=SEED, device=CPU)


def same(first, second):
    for one, other in zip(vars(first).values(), vars(second).values(), strict=True):
        np.testing.assert_array_equal(one, other)


# --------------------------------------------------------------------------------------------------------------- splits


def test_the_network_is_the_claims():
    """784 pixels, layers of 128 filters, a maximum of two, and by default norms with torch's epsilon."""
    assert network(2) == Network((784, 128, 128, 10), pool=2, norm=True, eps=1e-5)
    assert network(4, norm=False) == Network((784, 128, 128, 128, 128, 10), pool=2, norm=False)


def test_every_run_has_images_of_its_own_and_all_the_same_test():
    found = data()
    chosen = {name: examples.rows for name, examples in vars(found).items()}
    assert {name: tuple(table.shape) for name, table in chosen.items()} == {
        "train": (3, LEARN - VALIDATION),
        "validation": (3, VALIDATION),
        "search_train": (3, 150),
        "search_validation": (3, 40),
        "followed": (3, 110),
        "test": (3, TEST),
    }
    for s in range(3):
        of = {name: set(table[s].tolist()) for name, table in chosen.items()}
        assert len(of["train"]) == LEARN - VALIDATION
        assert of["train"] | of["validation"] == set(range(LEARN))
        assert not of["train"] & of["validation"]
        assert of["search_train"] < of["train"]
        assert of["followed"] < of["train"]
        assert of["search_validation"] < of["validation"]
        assert chosen["test"][s].tolist() == list(range(TEST))
    assert len({tuple(sorted(row.tolist())) for row in chosen["validation"]}) == 3
    assert torch.equal(data(5).train.rows[:3], chosen["train"])  # a run is the same whatever runs beside it
    assert not torch.equal(split("few", 3, VALIDATION, seed=1, device=CPU).train.rows, chosen["train"])
    learn, test = images.load("few", "train", flat=True), images.load("few", "test", flat=True)
    for name, examples in vars(found).items():
        part = test if name == "test" else learn
        assert torch.equal(examples.inputs, part.inputs)
        assert torch.equal(examples.targets, part.targets)


# --------------------------------------------------------------------------------------------------------------- search


def pretended(monkeypatch, errors, losses):
    """Trainings that end with these validation errors and losses, (S, R) each, after an epoch with the reverse."""
    errors, losses, seen = torch.tensor(errors), torch.tensor(losses), []

    def train(net, method, examples, rates, **options):
        seen.append((net, method, examples, rates, options))
        series = (
            {"validation": torch.stack([1 - errors, errors])},
            {"validation": torch.stack([-losses, losses])},
        )
        return SimpleNamespace(errors=series[0], losses=series[1])

    monkeypatch.setattr(images, "train", train)
    return seen


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("errors", "losses", "wanted"),
    [
        ([0.5, 0.4, 0.3, 0.2, 0.3, 0.4], [1.0] * 6, 3),
        ([0.2, 0.3, 0.3, 0.3, 0.2, 0.2], [0.9, 0.1, 0.1, 0.1, 0.8, 0.85], 4),  # a tie falls to the loss
        ([0.2, 0.3, 0.2, 0.3, 0.3, 0.3], [NAN, 0.1, 7.0, 0.1, 0.1, 0.1], 2),
        ([1.0] * 6, [NAN, INF, NAN, NAN, 900.0, NAN], 4),
        (
            [0.202, 0.2, 0.3, 0.3, 0.3, 0.3],
            [0.0, 5e30, 0.1, 0.1, 0.1, 0.1],
            1,
        ),  # the error first, whatever the loss
    ],
)
def test_the_search_takes_the_lowest_error_and_then_the_lowest_loss(errors, losses, wanted, monkeypatch):
    pretended(monkeypatch, [errors, errors[::-1]], [losses, losses[::-1]])
    found = search(SGD, 2, "constant", Few(runs=2), data(2), seed=SEED)
    grid = np.array([(rate, rate * ratio) for rate in Few.rates for ratio in Few.ratios])
    np.testing.assert_allclose(found.filters, grid[[wanted, 5 - wanted], 0], rtol=1e-6)
    np.testing.assert_allclose(found.classifier, grid[[wanted, 5 - wanted], 1], rtol=1e-6)
    np.testing.assert_allclose(found.errors, np.reshape([errors, errors[::-1]], (2, 2, 3)), rtol=1e-6)


def test_the_search_tries_every_pair_on_its_own_images(monkeypatch):
    seen, given = pretended(monkeypatch, np.full((3, 6), 0.5).tolist(), np.ones((3, 6)).tolist()), data()
    search(UNIT, 4, "bold driver", Few(), given, seed=SEED)
    ((net, method, examples, rates, options),) = seen
    assert (net.widths, method) == ((PIXELS, 8, 8, 8, 8, CLASSES), UNIT)
    assert examples is given.search_train
    assert options["watch"] == {"validation": given.search_validation}
    assert options["schedule"] == SCHEDULES["bold driver"]
    assert (options["epochs"], options["seed"], options["streams"].tolist()) == (2, SEED, [0, 1, 2])
    pairs = torch.stack([rates, options["classifier_rates"]], 2)
    wanted = torch.tensor([(rate, rate * ratio) for rate in Few.rates for ratio in Few.ratios])
    torch.testing.assert_close(pairs, wanted.expand(3, -1, -1))


def test_a_search_by_training():
    found = search(SGD, 2, "constant", Few(), data(), seed=SEED)
    assert found.errors.shape == (3, 2, 3)
    for s in range(3):
        r, q = np.unravel_index(found.errors[s].argmin(), (2, 3))
        if (found.errors[s] == found.errors[s].min()).sum() == 1:
            assert found.filters[s] == pytest.approx(Few.rates[r], rel=1e-6)
            assert found.classifier[s] == pytest.approx(Few.rates[r] * Few.ratios[q], rel=1e-6)
    assert all(len(np.unique(grid)) > 1 for grid in found.errors)


# ---------------------------------------------------------------------------------------------------------------- runs


def chosen(filters, classifier):
    return Search(np.full((3, 2, 3), 0.5), np.array(filters), np.array(classifier))


def test_every_run_is_trained_by_its_own_rates(monkeypatch):
    seen, right, given = [], images.train, data()

    def spy(net, method, examples, rates, **options):
        seen.append((net, method, examples, rates, options, right(net, method, examples, rates, **options)))
        return seen[-1][-1]

    monkeypatch.setattr(images, "train", spy)
    found = follow(
        UNIT, 2, "exponential decay", chosen([0.1, 0.2, 0.4], [1, 2, 3.0]), Few(), given, seed=SEED
    )
    ((net, method, examples, rates, options, trained),) = seen
    assert (net.widths, method) == ((PIXELS, 8, 8, CLASSES), UNIT)
    assert examples is given.train
    assert options["watch"] == {"test": given.test, "train": given.followed}
    assert options["schedule"] == SCHEDULES["exponential decay"]
    assert (options["epochs"], options["seed"], options["streams"].tolist()) == (4, SEED, [0, 1, 2])
    torch.testing.assert_close(rates, torch.tensor([[0.1], [0.2], [0.4]]))
    torch.testing.assert_close(options["classifier_rates"], torch.tensor([[1.0], [2.0], [3.0]]))
    np.testing.assert_array_equal(found.errors, trained.errors["test"][:, :, 0])
    np.testing.assert_array_equal(found.losses, trained.losses["train"][:, :, 0])
    assert found.errors.shape == found.losses.shape == (4, 3)
    assert found.effective.shape == (4, 3, 2)
    wanted = np.array([0.1, 0.2, 0.4]) * 0.95 ** np.arange(4)[:, None]  # unit filters: the rate itself
    np.testing.assert_allclose(found.effective, wanted[:, :, None].repeat(2, 2), rtol=1e-5)
    np.testing.assert_array_equal(found.last, 100 * found.errors[-1])
    same(found.search, chosen([0.1, 0.2, 0.4], [1, 2, 3.0]))


def test_both_methods_share_start_and_batches():
    """At rates so small that they take the same steps, errors agree and losses nearly; other batches would tell."""
    given, tiny = data(), chosen([1e-4] * 3, [1e-4] * 3)
    one, other = (follow(m, 2, "constant", tiny, Few(), given, seed=SEED) for m in (SGD, UNIT))
    np.testing.assert_array_equal(one.errors, other.errors)
    np.testing.assert_allclose(one.losses, other.losses, rtol=1e-5)
    assert np.ptp(one.losses, axis=0).min() > 1e-3  # by running averages of the batches
    unlike = follow(SGD, 2, "constant", tiny, Few(), given, seed=SEED + 1)
    assert np.abs(unlike.losses - one.losses).min() > 1e-3


def counted(monkeypatch, name):
    calls, right = [], getattr(images, name)

    def spy(method, depth, schedule, *rest, **options):
        calls.append((method, depth, schedule))
        return right(method, depth, schedule, *rest, **options)

    monkeypatch.setattr(images, name, spy)
    return calls


CELLS = list(product((SGD, UNIT), DEPTHS, SCHEDULES))


def test_a_trial_whose_parts_are_taken_up_again(monkeypatch, tmp_path):
    searched, followed = counted(monkeypatch, "search"), counted(monkeypatch, "follow")
    found = trial(Few(), seed=SEED, device=CPU, kept=Kept(tmp_path))
    assert set(found) == set(followed) == set(CELLS)
    assert len(followed) == len(CELLS)
    assert sorted(searched) == sorted(
        product((SGD, UNIT), DEPTHS, ["constant"])
    )  # one search for all schedules
    for (method, depth, schedule), each in found.items():
        assert each.errors.shape == each.losses.shape == (4, 3)
        assert each.effective.shape == (4, 3, depth)
        assert each.grid.shape == (3, 2, 3)
        np.testing.assert_array_equal(each.filters, found[method, depth, "constant"].filters)
        assert (each.losses == found[method, depth, "constant"].losses).all() == (schedule == "constant")
    assert (found[SGD, 2, "constant"].losses != found[UNIT, 2, "constant"].losses).all()
    followed.clear()
    again = trial(Few(), seed=SEED, device=CPU, kept=Kept(tmp_path))
    assert followed == []
    for cell in CELLS:
        same(again[cell], found[cell])
    (tmp_path / "trial-unit-norm-4-bold-driver.pt").unlink()
    once_more = trial(Few(), seed=SEED, device=CPU, kept=Kept(tmp_path))
    assert followed == [(UNIT, 4, "bold driver")]
    same(once_more[UNIT, 4, "bold driver"], found[UNIT, 4, "bold driver"])


def test_a_search_for_every_schedule_where_asked(monkeypatch):
    searched = counted(monkeypatch, "search")
    nothing = np.zeros((1, 3))

    def follow(method, depth, schedule, chosen, sizes, data, *, seed):
        assert searched[-1] == (method, depth, schedule)
        return Followed(
            nothing, nothing, nothing[:, :, None], chosen.filters, chosen.classifier, chosen.errors
        )

    monkeypatch.setattr(images, "follow", follow)
    found = trial(Few(search_schedules=True, search_epochs=1), seed=SEED, device=CPU)
    assert sorted(searched) == sorted(CELLS)
    assert set(found) == set(CELLS)


def test_without_norms_every_rate_is_tried(monkeypatch):
    found = images.without_norm(Few(), seed=SEED, device=CPU)
    assert set(found) == {SGD, UNIT, "scaled metric"}
    for each in found.values():
        assert not each.net.norm
        assert each.errors["test"].shape == (2, 3, 2)
        torch.testing.assert_close(each.rates, torch.tensor(Few.rates).expand(2, 3, -1))
    lengths = {m: found[m].weights[0].norm(dim=3) for m in found}
    torch.testing.assert_close(lengths[UNIT], torch.ones(3, 2, 8))
    assert (lengths[SGD] - 1).abs().max() > 1e-3


# -------------------------------------------------------------------------------------------------- numbers of made runs

RUNS = 5
AROUND = np.linspace(-1, 1, RUNS)


def made(last, runs=RUNS, fall=0.5, losses=None, errors=None):
    """A run that ends with these test errors (points), its effective rates having fallen to a share."""
    errors = np.stack([np.full(runs, 90.0), np.broadcast_to(last, runs)]) if errors is None else errors
    filters = np.array([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 1.0, 1.0, 1.0])[:runs]
    effective = np.ones((len(errors), runs, 2)) * filters[:, None]
    effective[0] *= 0.9  # the first epoch has its fall too
    effective[-1] *= np.stack([0.5 * np.broadcast_to(fall, runs), 1.5 * np.broadcast_to(fall, runs)], 1)
    losses = np.ones(errors.shape) if losses is None else losses
    return Followed(errors / 100, losses, effective, filters, filters, np.zeros((runs, 1, 1)))


def lasts(of, runs=RUNS, **more):
    """A trial by its last errors: ``of(method, depth, schedule)``."""
    return {cell: made(of(*cell), runs, **more) for cell in CELLS}


def around(runs=RUNS):
    return np.linspace(-1, 1, runs)


def gaining(by_cell, spread=0.0, runs=RUNS):
    """Unit norm gains so much in (schedule, depth); runs differ much among themselves, which pairs undo."""

    def of(method, depth, schedule):
        gain = by_cell.get((schedule, depth), 0.0) + spread * around(runs)
        return 50 + 20 * around(runs) + (gain if method == SGD else 0)

    return lasts(of, runs)


BOTH = [(s, d) for s in ("bold driver", "exponential decay") for d in DEPTHS]


def verdict(claim, found, profile="quick"):
    return claims.judge(claim, profile, found).verdict


def numbers(m):
    return m.value, m.low, m.high


def test_gains_are_paired_points_of_the_last_epoch():
    found = gaining({("bold driver", 4): 0.7}, spread=0.1)
    np.testing.assert_allclose(gains(found, 4, "bold driver"), 0.7 + 0.1 * AROUND)
    np.testing.assert_allclose(gains(found, 2, "bold driver"), 0.1 * AROUND)
    by_cell = {m.cell: m for m in measure_gains(found)}
    assert set(by_cell) == {f"{s}, {d} layers" for s, d in BOTH}
    m = by_cell["bold driver, 4 layers"]
    assert numbers(m) == pytest.approx(intervals.student(0.7 + 0.1 * AROUND))
    assert (m.name, m.n, m.seeds) == ("error_gain", RUNS, RUNS)


@pytest.mark.parametrize(
    ("won", "lost", "spread", "runs", "wanted"),
    [
        (BOTH, [], 0.1, 5, CONFIRMED),
        (BOTH[:3], BOTH[3:], 0.1, 5, CONFIRMED),  # three of four
        (BOTH[:2], BOTH[2:], 0.1, 5, NOT_CONFIRMED),
        ([], BOTH, 0.1, 5, NOT_CONFIRMED),
        (BOTH, [], 3.0, 5, UNRESOLVED),
        (BOTH, [], 0.1, 4, UNRESOLVED),
    ],
)
def test_verdicts_on_the_test_error(won, lost, spread, runs, wanted):
    found = measure_gains(gaining(dict.fromkeys(won, 1.0) | dict.fromkeys(lost, -1.0), spread, runs))
    assert verdict("P4-C4", found) == wanted
    more = measure_gains(gaining(dict.fromkeys(won, 1.0) | dict.fromkeys(lost, -1.0), spread, 10))
    assert verdict("P4-C4", more, "full") == (CONFIRMED if runs == 4 else wanted)


def test_depth_gains_are_four_layers_minus_two():
    found = gaining({("bold driver", 4): 0.7, ("bold driver", 2): 0.2, ("exponential decay", 2): 0.3})
    first, second = measure_depth(found)
    assert [(m.name, m.cell, m.n, m.seeds) for m in (first, second)] == [
        ("depth_gain", "bold driver", RUNS, RUNS),
        ("depth_gain", "exponential decay", RUNS, RUNS),
    ]
    assert (first.value, second.value) == pytest.approx((0.5, -0.3))


@pytest.mark.parametrize(
    ("deep", "spread", "runs", "wanted"),
    [
        ((0.9, 0.8), 0.0, 5, CONFIRMED),
        ((0.9, 0.2), 0.0, 5, NOT_CONFIRMED),  # both schedules are asked
        ((0.1, 0.2), 0.0, 5, NOT_CONFIRMED),
        ((0.9, 0.8), 3.0, 5, UNRESOLVED),
        ((0.9, 0.8), 0.0, 4, UNRESOLVED),
    ],
)
def test_verdicts_on_depth(deep, spread, runs, wanted):
    def of(method, depth, schedule):
        if method == UNIT or schedule == "constant":
            return 50 + 0 * around(runs)
        if depth == 2:
            return 50.5 + 0 * around(runs)
        return 50 + deep[schedule == "exponential decay"] + spread * around(runs)

    assert verdict("P4-C5", measure_depth(lasts(of, runs))) == wanted


def needing(unit, sgd, spread=0.0, runs=RUNS, fall=0.3):
    """Schedules (bold driver, exponential decay) that gain so much with either method, at two layers."""

    def of(method, depth, schedule):
        gain = dict(zip(("bold driver", "exponential decay"), unit if method == UNIT else sgd, strict=True))
        level = 50 + 20 * around(runs) - gain.get(schedule, 0.0) * (depth == 2)
        return level - spread * around(runs) * (method == UNIT and schedule == "bold driver" and depth == 2)

    return lasts(of, runs, fall=fall)


def test_the_need_of_a_schedule_is_a_mean_over_both():
    found = needing((2.0, 1.0), (0.5, -0.5), spread=0.2, fall=0.3 + 0.1 * AROUND)
    np.testing.assert_allclose(schedule_need(found), 1.5 + 0.1 * AROUND)
    np.testing.assert_allclose(schedule_need(found, 4), 0, atol=1e-12)
    np.testing.assert_allclose(rate_fall(found), 0.3 + 0.1 * AROUND)
    need, fall = measure_need(found)
    assert (need.name, fall.name, need.n, fall.seeds) == ("schedule_need", "rate_fall", RUNS, RUNS)
    assert need.cell == fall.cell == "2 layers"
    assert numbers(need) == pytest.approx(intervals.student(1.5 + 0.1 * AROUND))
    assert numbers(fall) == pytest.approx(intervals.student(0.3 + 0.1 * AROUND))


def test_the_fall_is_sgds_at_a_constant_rate_and_the_depth_asked_for():
    found = needing((0, 0), (0, 0))
    for cell in CELLS:
        found[cell] = made(
            50.0, fall=0.1 if cell == (SGD, 2, "constant") else 0.2 if cell == (SGD, 4, "constant") else 0.9
        )
    np.testing.assert_allclose(rate_fall(found), 0.1)
    np.testing.assert_allclose(rate_fall(found, 4), 0.2)


@pytest.mark.parametrize(
    ("unit", "sgd", "fall", "spread", "runs", "wanted"),
    [
        ((2.0, 1.0), (0.5, 0.5), 0.3, 0.0, 5, CONFIRMED),
        ((0.5, 0.5), (2.0, 1.0), 0.3, 0.0, 5, NOT_CONFIRMED),
        ((2.0, 1.0), (0.5, 0.5), 0.95, 0.0, 5, NOT_CONFIRMED),
        ((2.0, 1.0), (0.5, 0.5), 0.3, 5.0, 5, UNRESOLVED),
        ((2.0, 1.0), (0.5, 0.5), 0.3, 0.0, 4, UNRESOLVED),
        ((2.0, 1.0), (0.5, 0.5), 0.85 + 0.1 * AROUND, 0.0, 5, UNRESOLVED),
        (
            (2.0, 1.0),
            (0.5, 0.5),
            np.array([0.3, 0.3, NAN, 0.3, 0.3]),
            0.0,
            5,
            UNRESOLVED,
        ),  # a run that diverged
    ],
)
def test_verdicts_on_the_need_of_a_schedule(unit, sgd, fall, spread, runs, wanted):
    identity = Measurement("identity_error", "SGD", 1e-15, 1e-16, 1e-15, 60, 3)
    found = measure_need(needing(unit, sgd, spread, runs, fall))
    assert verdict("P4-X2", [*found, identity]) == wanted


# ---------------------------------------------------------------------------------------------- at equal training loss


def curve(losses, errors):
    """Runs with losses and errors (points), (E,) or (E, S)."""
    losses, errors = (np.atleast_2d(np.asarray(x, float).T).T for x in (losses, errors))
    return made(None, errors.shape[1], losses=losses, errors=errors)


def test_parallel_curves_are_apart_by_their_distance():
    """Errors linear in the logarithmic loss, read at epochs of other losses."""
    sgd, unit = np.exp([-0.1, -1.3, -2.9, -4.0]), np.exp([0.0, -0.7, -3.1, -3.6, -5.0])
    first, second = curve(sgd, 20 + 3 * np.log(sgd)), curve(unit, 18.5 + 3 * np.log(unit))
    np.testing.assert_allclose(matched(first, second), [1.5])
    np.testing.assert_allclose(matched(second, first), [-1.5])


def test_matched_errors_by_hand():
    """Log losses 0, -2, -4 and -1, -3, -5: shared from -4 to -1."""
    first = curve(np.exp([0.0, -2, -4]), [10.0, 8.0, 4.0])
    second = curve(np.exp([-1.0, -3, -5]), [5.0, 7.0, 1.0])
    at = [(4.0, 4.0), (6.0, 7.0), (8.0, 6.0), (9.0, 5.0)]  # log loss -4, -3, -2, -1
    np.testing.assert_allclose(matched(first, second, levels=4), [np.mean([a - b for a, b in at])])
    np.testing.assert_allclose(matched(first, second, levels=2), [((4 - 4) + (9 - 5)) / 2])


def test_epochs_without_a_new_lowest_loss_are_left_out():
    log = np.array([0.0, -1, -0.5, -1, -2])
    errors = np.array([10.0, 9.0, 77.0, 55.0, 8.0])
    straight = curve(np.exp([0.0, -2]), [9.0, 7.0])
    np.testing.assert_allclose(matched(curve(np.exp(log), errors), straight), [1.0])


def test_runs_are_matched_with_their_own_pair():
    log = np.linspace(0, -3, 4)[:, None] - [0.0, 0.3, 0.6]
    first = curve(np.exp(log), 20 + 2 * log + [1.0, 2.0, 3.0])
    second = curve(np.exp(log - 0.2), 20 + 2 * (log - 0.2))
    np.testing.assert_allclose(matched(first, second), [1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("losses", "why"),
    [
        (np.exp([-3.0, -4, -5]), "ranges that do not meet"),
        (np.exp([-2.0, -4, -5]), "ranges that touch in a point"),
        (np.array([NAN, NAN, NAN]), "diverged in the first epoch"),
        (np.array([INF, INF, INF]), "diverged in the first epoch"),
        (np.exp([-1.0, 0, 1]), "never again lower"),
    ],
)
def test_curves_without_a_range_in_common_give_nothing(losses, why):
    first, second = curve(np.exp([0.0, -1, -2]), [10.0, 9, 8]), curve(losses, [7.0, 6, 5])
    assert np.isnan(matched(first, second)).all()
    assert np.isnan(matched(second, first)).all()
    assert np.isnan(matched(second, second)).all() == (losses[0] < losses[-1] or not np.isfinite(losses[0]))


def test_runs_that_both_begin_beyond_all_numbers_give_nothing():
    both = curve([INF, np.exp(-1), np.exp(-2)], [10.0, 9, 8])
    assert np.isnan(matched(both, both)).all()


def test_a_run_counts_until_it_diverges():
    first = curve(np.exp([0.0, -1, -2]), [10.0, 9, 8])
    second = curve([1.0, np.exp(-1), NAN], [9.0, 8.0, 90.0])
    np.testing.assert_allclose(matched(first, second), [1.0])


def regularised(gain, spread=0.0, runs=RUNS, apart=0, schedule="exponential decay"):
    """Unit norm lower by a gain (two depths) at equal loss; ``apart``: so many runs whose losses do not meet."""
    log = np.linspace(0, -4, 5)[:, None] + 0 * around(runs)

    def of(method, depth):
        mine = log - (0.3 + 9 * (np.arange(runs) < apart)) * (method == UNIT)
        level = 30 + 2 * mine + 5 * around(runs)
        lower = gain[depth == 4] + spread * around(runs)
        return made(None, runs, losses=np.exp(mine), errors=level - lower * (method == UNIT))

    blank = lasts(lambda *cell: 50.0, runs)
    return blank | {(m, d, schedule): of(m, d) for m in (SGD, UNIT) for d in DEPTHS}


def test_matched_gains_leave_out_runs_that_do_not_meet():
    two, four = measure_matched(regularised((0.5, 0.25), spread=0.1, apart=2))
    assert [(m.name, m.cell, m.n, m.seeds) for m in (two, four)] == [
        ("matched_gain", "2 layers", 3, 3),
        ("matched_gain", "4 layers", 3, 3),
    ]
    assert numbers(two) == pytest.approx(intervals.student(0.5 + 0.1 * AROUND[2:]))
    assert four.value == pytest.approx(0.25 + 0.1 * AROUND[2:].mean())
    assert measure_matched(regularised((0.5, 0.25), apart=4)) == []
    other = measure_matched(regularised((0.5, 0.25), schedule="bold driver"), "bold driver")
    assert [m.value for m in other] == pytest.approx([0.5, 0.25])


@pytest.mark.parametrize(
    ("gain", "spread", "apart", "wanted"),
    [
        ((0.5, 0.3), 0.1, 0, CONFIRMED),
        ((0.5, -0.3), 0.1, 0, NOT_CONFIRMED),
        ((-0.5, 0.3), 0.1, 0, NOT_CONFIRMED),
        ((0.5, 0.3), 2.0, 0, UNRESOLVED),
        ((0.5, 0.3), 0.1, 1, UNRESOLVED),  # four runs are too few
        ((0.5, 0.3), 0.1, 5, UNRESOLVED),
    ],
)
def test_verdicts_on_regularisation(gain, spread, apart, wanted):
    assert verdict("P4-C8", measure_matched(regularised(gain, spread, apart=apart))) == wanted


def test_rows_for_the_page():
    found = rows(gaining({("bold driver", 4): 0.5}))
    assert [row[:2] for row in found] == [(s, str(d)) for s in SCHEDULES for d in DEPTHS]
    mean, low, high = intervals.student(50 + 20 * AROUND)
    assert found[3][2:] == (
        f"{mean + 0.5:.2f} ({low + 0.5:.2f} to {high + 0.5:.2f})",
        f"{mean:.2f} ({low:.2f} to {high:.2f})",
        "0.50 (0.50 to 0.50)",
    )
