"""Errors on images of networks that are known, orders and widths from made-up errors, and the training behind them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lib import claims, data, intervals
from lib.contest import images
from lib.contest.images import Digits, Errors, by_width, contest, errors, laws, load, order, train
from lib.contest.methods import COLD, DROPOUT, FACTORISED, POINT, VMG
from lib.data import Dataset
from lib.kept import Kept
from lib.matrix_gaussian.laws import Factorised, Point
from lib.matrix_gaussian.likelihoods import Categorical
from lib.matrix_gaussian.network import Network
from lib.matrix_gaussian.pseudo_data import PseudoData
from lib.matrix_gaussian.training import Fit, Schedule
from lib.profile import QUICK

SEED, METHODS = 991, (VMG, FACTORISED, COLD, DROPOUT, POINT)


def digits(rows=40, tests=12, classes=3):
    """A pixel a class, which is bright where the class is."""
    labels, answers = torch.arange(rows) % classes, torch.arange(tests) % classes
    return Digits(*(x for y in (labels, answers) for x in (torch.eye(classes)[y] * 0.9 + 0.05, y)))


def of_classes(*tables, looks=None, classes=3):
    """A one-layer network a run that names ``table[bright pixel]``, by a margin of ten nats."""
    network = Network.of(Point(), (classes, classes), Categorical(), hyper_priors=False, charge=0.0)
    flat = torch.zeros(len(tables), network.size)
    (p,) = network.parameters(flat)
    for run, table in enumerate(tables):
        p["mean"][run, :-1] = torch.eye(classes)[torch.tensor(table)] * 10 * (classes + 1) ** 0.5 / 0.9
    runs = torch.arange(len(tables))
    return Fit(network, flat, looks or {1: flat}, torch.zeros(len(tables)), runs, torch.ones(len(tables), 1))


def made(*looks):
    mean = torch.tensor(looks)
    return Errors(torch.arange(len(looks)), mean, mean[-1], mean[-1], mean[-1])


# -------------------------------------------------------------------------------------------------------------- errors


def test_errors_of_a_network_that_is_known():
    """Runs that are right, that mix up two classes of three, and that name one class always."""
    known = of_classes((0, 1, 2), (1, 0, 2), (0, 0, 0))
    wrong = torch.tensor([0.0, 200 / 3, 200 / 3])
    found = errors(known, digits(), draws=2, seed=SEED)
    torch.testing.assert_close(found.mean, wrong[None])
    torch.testing.assert_close(found.averaged, wrong)
    torch.testing.assert_close(found.voted, wrong)
    for run, (wrongly, margin) in enumerate(((0, 10), (2 / 3, 10), (2 / 3, 10 * 1.05 / 0.9))):
        wanted = np.log(1 + 2 * np.exp(-margin)) + wrongly * margin
        assert float(found.nll[run]) == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_every_look_is_scored_as_it_stood():
    now, before = of_classes((0, 1, 2), (0, 1, 2)), of_classes((1, 0, 2), (0, 1, 1))
    known = replace(now, looks={5: before.flat, 9: now.flat})
    found = errors(known, digits(), draws=1, seed=SEED)
    assert found.updates.tolist() == [5, 9]
    torch.testing.assert_close(found.mean, torch.tensor([[200 / 3, 100 / 3], [0.0, 0.0]]))
    torch.testing.assert_close(found.averaged, torch.zeros(2))


def test_averages_and_votes_are_over_the_draws(monkeypatch):
    """Two of three draws name a wrong class narrowly, one the right one clearly."""
    logits = torch.tensor([[0.1, 0.0, -9.0], [0.1, 0.0, -9.0], [0.0, 9.0, 0.0]])[:, None]
    asked = []

    def sampled(trained, inputs, draws, *, seed, first):
        asked.append((draws, seed, first))
        return logits[first].expand(1, 1, inputs.shape[1], 3)

    monkeypatch.setattr(images, "sampled", sampled)
    known, all_one = of_classes((0, 1, 2)), replace(digits(), answers=torch.ones(12, dtype=torch.int64))
    found = errors(known, all_one, draws=3, seed=SEED)
    assert asked == [(1, SEED, k) for k in range(3)]
    assert (float(found.averaged), float(found.voted)) == pytest.approx((0, 100))
    p = torch.softmax(logits, -1)[:, 0, 1].mean()
    assert float(found.nll) == pytest.approx(-float(p.log()), rel=1e-5)


def test_the_last_looks_count_together():
    found = made([9.0, 8.0], [1.0, 2.0], [3.0, 6.0])
    np.testing.assert_allclose(found.last(1), [3, 6])
    np.testing.assert_allclose(found.last(2), [2, 4])


# ----------------------------------------------------------------------------------------------- order and width (P3-C8)


@pytest.mark.parametrize(
    ("factorised", "dropout", "spread", "wanted"),
    [
        (1.0, 2.0, 0.0, claims.CONFIRMED),
        (-1.0, 2.0, 0.0, claims.NOT_CONFIRMED),
        (1.0, -2.0, 0.0, claims.NOT_CONFIRMED),
        (1.0, 2.0, 3.0, claims.UNRESOLVED),
    ],
)
def test_the_order_is_judged_training_by_training(factorised, dropout, spread, wanted):
    ours = np.array([5.0, 7.0, 9.0])
    apart = spread * np.array([-1.0, 0.0, 1.0])
    found = order(
        {
            VMG: made([0.0] * 3, ours.tolist()),
            FACTORISED: made([0.0] * 3, (ours + factorised + apart).tolist()),
            DROPOUT: made([0.0] * 3, (ours + dropout + apart).tolist()),
        }
    )
    assert [(m.name, m.cell, m.n, m.seeds) for m in found] == [
        ("order_factorised", "3x150", 3, 3),
        ("order_dropout", "3x150", 3, 3),
    ]
    assert [m.value for m in found] == pytest.approx([factorised, dropout])
    assert found[0].low == pytest.approx(intervals.student(factorised + apart)[1])
    assert claims.judge("P3-C8", "quick", found).verdict == wanted


@pytest.mark.parametrize(
    ("narrow", "wide", "spread", "wanted"),
    [
        (1.2, 1.0, 0.0, claims.CONFIRMED),
        (1.4, 1.0, 0.0, claims.NOT_CONFIRMED),
        (1.2, 1.25, 0.0, claims.NOT_CONFIRMED),
        (1.2, 1.0, 0.3, claims.UNRESOLVED),
    ],
)
def test_the_width_is_judged_over_ten_looks(narrow, wide, spread, wanted):
    """One lucky epoch does not count."""
    apart = spread * np.array([-1.0, 0.0, 1.0])

    def looks(value):
        return made(
            *[[90.0] * 3] * 5,
            *[(value + 0.1 * (-1) ** k + apart).tolist() for k in range(9)],
            [value - 0.1] * 3,
        )

    found = by_width({150: looks(narrow), 750: looks(wide - 0.0), 250: looks(9.0)})
    assert [(m.name, m.cell) for m in found] == [("error_150", "3x150"), ("width_gain", "3x750")]
    assert [m.value for m in found] == pytest.approx([narrow, narrow - wide], abs=1e-5)
    if spread:
        found = [replace(m, low=m.value - spread, high=m.value + spread) for m in found]
    assert claims.judge("P3-C8", "full", found).verdict == wanted


def test_rows_for_the_page():
    each = Errors(
        torch.arange(1), torch.tensor([[1.0, 3.0]]), *(torch.tensor([x, x + 2]) for x in (4.0, 5.0, 0.5))
    )
    ((name, *cells),) = images.rows({VMG: each})
    assert name == VMG
    assert [cell.split(" ")[0] for cell in cells] == ["2.00", "5.00", "6.00", "1.500"]


# ----------------------------------------------------------------------------------------------------------- training


def test_methods_have_the_papers_laws():
    assert laws(50) == {
        VMG: PseudoData(50, 0.01, per_entry=True),
        FACTORISED: Factorised(-3.0),
        COLD: Factorised(-3.0),
        DROPOUT: Point(0.5),
        POINT: Point(),
    }


@pytest.mark.parametrize("name", METHODS)
def test_trainings_stand_side_by_side(name):
    given = digits(30)
    found = train(name, 6, given, Schedule(2, 10, looks=(1,)), pseudo=2, trainings=3, seed=SEED, layers=2)
    network = found.network
    assert network.widths == (3, 6, 6, 3)
    assert not network.hyper_priors
    assert network.charge == {DROPOUT: 0.0, POINT: 0.0, COLD: 0.1}.get(name, 1.0)
    assert network.laws[1:] == (laws(2)[name],) * 2
    assert network.laws[0] == (Point() if name == DROPOUT else laws(2)[name])
    assert found.members.tolist() == [0, 1, 2]
    assert (found.flat[0] - found.flat[1]).abs().max() > 0.1
    if name == FACTORISED:
        logs = torch.cat([p["log_sd"][:, :-1].flatten() for p in network.parameters(found.flat)])
        assert float(logs.mean()) == pytest.approx(-3, abs=0.05)


def test_training_learns():
    found = train(
        POINT, 8, digits(), Schedule(60, 20, 0.05, 0.9, (60,)), pseudo=2, trainings=2, seed=SEED, layers=1
    )
    assert errors(found, digits(), draws=1, seed=SEED).mean.max() == 0


SIZES = replace(
    QUICK.matrix_gaussian, image_updates=20, image_looks=3, image_trainings=2, image_pseudo=2, image_draws=2
)


def test_a_contest_gives_every_method_its_own_rate_and_looks(monkeypatch, tmp_path):
    """In the methods' order, the same with and without a folder; finished ones are read and not made."""
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    seen, right = [], images.train

    def spy(name, width, digits, schedule, **options):
        seen.append((name, width, schedule, options))
        return right(name, width, digits, schedule, layers=1, **options)

    monkeypatch.setattr(images, "train", spy)
    given, names = digits(100), (VMG, FACTORISED, POINT)
    found = contest(names, 5, given, SIZES, SEED)
    assert tuple(found) == names
    options = {"pseudo": 2, "trainings": 2, "seed": SEED}
    for name, width, schedule, had in seen:
        assert (width, had) == (5, options)
        assert (schedule.updates, schedule.batch, schedule.average) == (20, 100, SIZES.image_average)
        assert schedule.rate == (0.005 if name == VMG else 0.05)
        assert schedule.looks == (2, 4, 6, 8, 10, 12, 14, 16, 18, 19, 20)
    assert {name for name, *_ in seen} == {*names}
    assert found[VMG].updates.tolist() == list(seen[0][2].looks)
    alone = images.piece(VMG, 5, given, SIZES, SEED, Kept(None))
    torch.testing.assert_close(alone.nll, found[VMG].nll)  # under its own name
    torch.testing.assert_close(alone.mean, found[VMG].mean)

    for made in (3, 0):
        seen.clear()
        again = contest(names, 5, given, SIZES, SEED, tmp_path)
        assert len(seen) == made
        for name in names:
            for one, other in zip(vars(found[name]).values(), vars(again[name]).values(), strict=True):
                torch.testing.assert_close(one, other)
    other = images.piece(VMG, 6, given, SIZES, SEED, Kept(tmp_path))  # another width is another part
    assert len(seen) == 1
    assert not torch.equal(other.nll, found[VMG].nll)


def test_images_are_rows_of_pixels(monkeypatch):
    asked = []

    def loaded(name, part, *, flat):
        asked.append((name, part, flat))
        rows = 9 if part == "train" else 4
        return Dataset(torch.rand(rows, 5), torch.arange(rows) % 3, name, part, "made here")

    monkeypatch.setattr(data, "load", loaded)
    few = load("mnist5k", 6)
    assert asked == [("mnist5k", "train", True), ("mnist5k", "test", True)]
    assert [len(x) for x in (few.train, few.labels, few.test, few.answers)] == [6, 6, 4, 4]
    assert len(load("mnist5k").train) == 9
    assert few.to(torch.device("cpu")).answers.tolist() == [0, 1, 2, 0]


def test_intervals_over_trainings_decide_the_width():
    """Trainings that differ alike leave the gain sharp and the error open; those that differ at one width, the reverse."""
    apart = np.array([-0.3, 0.0, 0.3])
    found = by_width({150: made((1.2 + apart).tolist()), 750: made((1.0 + apart).tolist())}, looks=1)
    assert (found[0].low, found[0].high) == pytest.approx(intervals.student(1.2 + apart)[1:])
    assert (found[1].low, found[1].high) == pytest.approx((0.2, 0.2), abs=1e-5)
    assert claims.judge("P3-C8", "full", found).verdict == claims.UNRESOLVED
    found = by_width({150: made([1.2] * 3), 750: made((1.0 + apart).tolist())}, looks=1)
    assert (found[1].low, found[1].high) == pytest.approx(intervals.student(0.2 - apart)[1:], abs=1e-5)
    assert claims.judge("P3-C8", "full", found).verdict == claims.UNRESOLVED
