"""Costs: the notes' table of parameters, break-even by counting, and verdicts on times."""

import numpy as np
import pytest
import torch

from lib import claims
from lib.contest import cost
from lib.contest.cost import (
    DETERMINISTIC,
    LAYERS,
    NETWORKS,
    Times,
    break_even,
    measure,
    of_network,
    parameters,
)
from lib.contest.methods import DIAGONAL, FACTORISED, VMG
from lib.matrix_gaussian.layer import MatrixGaussianLinear
from lib.matrix_gaussian.pseudo_data import PseudoData

METHODS = (DETERMINISTIC, FACTORISED, DIAGONAL, VMG)
TABLE = {  # of the notes, section 1: rows with the bias
    (785, 150): (117_750, 235_500, 118_685, 166_420),
    (151, 150): (22_650, 45_300, 22_951, 38_352),
    (151, 10): (1_510, 3_020, 1_671, 9_932),
    (751, 750): (563_250, 1_126_500, 564_751, 641_352),
    (7, 50): (350, 700, 407, 754),  # five pseudo-data
}


@pytest.mark.parametrize(("r", "c"), TABLE, ids=[f"{r} x {c}" for r, c in TABLE])
def test_parameters_are_those_of_the_notes(r, c):
    of = cost.laws(5) if r == 7 else cost.laws()
    assert tuple(of) == METHODS
    assert tuple(parameters(law, r - 1, c) for law in of.values()) == TABLE[r, c]


def test_parameters_are_those_of_a_layer_that_exists():
    for law in cost.laws(3).values():
        layer = MatrixGaussianLinear(6, 4, law=law, seed=991)
        assert sum(p.numel() for p in layer.parameters()) == parameters(law, 6, 4)


@pytest.mark.parametrize(
    ("name", "factorised", "vmg", "ratio"),
    [
        ("3x150", 329_120, 253_056, 0.77),
        ("2x400", 956_820, 603_204, 0.63),
        ("3x750", 3_445_520, 1_998_456, 0.58),
    ],
)
def test_whole_networks_are_those_of_the_notes(name, factorised, vmg, ratio):
    of = cost.laws()
    assert of_network(of[FACTORISED], NETWORKS[name]) == factorised
    assert of_network(of[VMG], NETWORKS[name]) == vmg
    assert round(vmg / factorised, 2) == ratio


@pytest.mark.parametrize(("inputs", "outputs"), [(784, 150), (150, 150), (150, 10), (750, 750), (30, 20)])
def test_break_even_is_where_a_count_says(inputs, outputs):
    """The first number of pseudo-data that costs more, by counting."""
    limit = parameters(cost.laws()[FACTORISED], inputs, outputs)
    count = next(
        m for m in range(1, 2_000) if parameters(PseudoData(m, per_entry=True), inputs, outputs) > limit
    )
    assert count - 1 <= break_even(inputs, outputs) < count


def test_the_table_for_the_page():
    rows = {name: rest for name, *rest in cost.parameter_table()}
    assert rows["784-150"] == [
        "117,750",
        "235,500",
        "118,685",
        "166,420",
        "0.71",
        f"{break_even(784, 150):.0f}",
    ]
    assert rows["150-10"][-2] == f"{9_932 / 3_020:.2f}"
    assert rows["784-3x750-10"][3:] == ["1,998,456", "0.58", "–"]
    assert list(rows) == [
        "784-150",
        "150-150",
        "150-10",
        "750-750",
        "6-50",
        *(f"784-{n}-10" for n in NETWORKS),
    ]


# ------------------------------------------------------------------------------------------------------------- times


def times(layer, ratio, spread=0.0):
    """VMG over factorised, repeat by repeat on a machine that is at times ten times as slow."""
    base = np.array([1.0, 10.0, 1.0, 2.0, 1.0])
    own = ratio * (1 + spread * np.array([-1.0, -0.5, 0.0, 0.5, 1.0]))
    return Times(layer, {DETERMINISTIC: base, FACTORISED: 2 * base, VMG: 2 * own * base})


def test_ratios_are_of_the_same_repeat():
    np.testing.assert_allclose(times("784-150", 3.0).ratio(VMG, FACTORISED), 3.0)
    np.testing.assert_allclose(times("784-150", 3.0).ratio(VMG), 6.0)


@pytest.mark.parametrize(
    ("ratios", "spread", "wanted"),
    [
        ((0.5, 0.9, 0.8), 0.0, claims.CONFIRMED),
        ((0.5, 1.5, 0.8), 0.0, claims.NOT_CONFIRMED),
        ((0.5, 0.9, 0.95), 0.5, claims.UNRESOLVED),
    ],
)
def test_verdicts(ratios, spread, wanted):
    found = measure([times(layer, ratio, spread) for layer, ratio in zip(LAYERS, ratios, strict=True)])
    by_cell = {(m.name, m.cell): m for m in found}
    assert by_cell["time_ratio", "784-150"].value == pytest.approx(0.5)
    assert by_cell["time_ratio", "784-150"].seeds == 5
    assert by_cell["parameter_ratio", "2x400"].value == 603_204 / 956_820
    for profile in claims.PROFILES:
        assert claims.judge("P3-C10", profile, found).verdict == wanted


def test_steps_are_timed_in_turns_after_one_that_warms_up(monkeypatch):
    """The clock pretended: the k-th call of all takes k seconds, and of every round the median counts."""
    calls = []

    def seconds(run, device):
        run()
        calls.append(run)
        return float(len(calls))

    monkeypatch.setattr(cost, "_seconds", seconds)
    monkeypatch.setitem(cost.LAYERS, "tiny", (60, 3))
    found = cost.step_times("tiny", repeats=2, steps=3, seed=991, device=torch.device("cpu"), batch=5)
    assert len(calls) == 3 * 4 * 3  # rounds, methods, steps
    for place, name in enumerate(METHODS):
        first = 12 + 3 * place + 2  # the middle one of three calls
        assert found.seconds[name].tolist() == [first, first + 12]
    assert found.layer == "tiny"


def test_a_step_computes_every_gradient():
    law = PseudoData(3, 0.01, per_entry=True)
    layer = MatrixGaussianLinear(4, 3, law=law, seed=991)
    cost._step(layer, torch.ones(5, 4), torch.ones(5, 3))()
    assert all(p.grad.abs().max() > 0 for p in layer.parameters())
    assert cost._seconds(lambda: None, torch.device("cpu")) >= 0


def test_a_step_pays_for_its_divergence(monkeypatch):
    """One that pulls every mean by a thousand, per example of fifty thousand."""
    layer = MatrixGaussianLinear(4, 3, seed=991)
    monkeypatch.setattr(cost, "divergence", lambda module: 50_000 * 1_000 * module.mean.sum())
    cost._step(layer, torch.zeros(5, 4), torch.zeros(5, 3))()
    torch.testing.assert_close(layer.mean.grad[:4], torch.full((4, 3), 1_000.0), rtol=1e-3, atol=0)


def test_every_methods_steps_take_time():
    """By the real clock, on the smallest layer of the claim."""
    found = cost.step_times("150-150", repeats=2, steps=1, seed=991, device=torch.device("cpu"))
    assert tuple(found.seconds) == METHODS
    for seconds in found.seconds.values():
        assert seconds.shape == (2,)
        assert (seconds > 0).all()
