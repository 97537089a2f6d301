"""Networks without norms: rescaled images are one function, the chained rule sees that, and its claim's verdicts."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lib import claims
from lib.claims import CONFIRMED, NOT_CONFIRMED, UNRESOLVED
from lib.randomness import normal
from lib.trial import without_norm as module
from lib.trial.exact import batches, gap
from lib.trial.without_norm import Plain, WithoutNorm, measure_without_norm, plain_curve, rows, without_norm
from lib.unit_norm.steps import chained_rates, own_rates

SEED, INPUTS, CLASSES = 991, 6, 3
CELLS = [(layers, pool) for layers in (1, 2, 3) for pool in (1, 2)]
each_cell = pytest.mark.parametrize(("layers", "pool"), CELLS)

X = normal(SEED, torch.arange(230), "inputs", 0, (INPUTS,), torch.float64)
Y = torch.arange(230) % CLASSES


def start(layers, pool, seed=SEED):
    return Plain.start(seed, INPUTS, layers, pool, hidden=8, classes=CLASSES)


def step(network, rule, rate=0.1):
    """One step by the formula w - η f g on all examples."""
    leaves = [weight.clone().requires_grad_() for weight in network.weights]
    slopes = torch.autograd.grad(F.cross_entropy(Plain(leaves, network.pool).outputs(X), Y), leaves)
    factors = rule(network.weights, network.pool) if rule is chained_rates else rule(network.weights)
    moved = [w - rate * f * g for w, f, g in zip(network.weights, factors, slopes, strict=True)]
    return Plain(moved, network.pool)


# ---------------------------------------------------------------------------------------------------------- the network


@each_cell
def test_starts_are_normal_with_variance_two_over_inputs(layers, pool):
    wide = Plain.start(SEED, 50, layers, pool)
    assert [tuple(w.shape) for w in wide.weights] == [
        (32, 50),
        *[(32, 32 // pool)] * (layers - 1),
        (10, 32 // pool),
    ]
    for w in wide.weights:
        spread = (w.square().mean() * w.shape[1] / 2).item()
        assert abs(spread - 1) < 4 * (2 / w.numel()) ** 0.5
        assert w.dtype == torch.float64
    assert not torch.equal(start(layers, pool).weights[0], start(layers, pool, SEED + 1).weights[0])
    assert not any(torch.equal(a, b) for a, b in zip(wide.weights[1:-1], wide.weights[2:-1], strict=False))


@each_cell
def test_outputs_by_loops(layers, pool):
    network = start(layers, pool)
    x = X[4].numpy()
    for weight in network.weights[:-1]:
        z = weight.numpy() @ x
        x = np.array([max(0.0, *z[i : i + pool]) for i in range(0, len(z), pool)])
    np.testing.assert_allclose(network.outputs(X)[4].numpy(), network.weights[-1].numpy() @ x, rtol=1e-13)


@each_cell
def test_a_rescaled_network_is_the_same_function(layers, pool):
    network = start(layers, pool)
    other = network.rescaled(SEED)
    torch.testing.assert_close(other.outputs(X), network.outputs(X), rtol=1e-12, atol=1e-13)
    logs = []
    for before, after in zip(network.weights[:-1], other.weights[:-1], strict=True):
        assert not torch.allclose(after, before, rtol=0.2)
        share = after.norm(dim=1).log10() - before.norm(dim=1).log10()
        ratio = (after / before).unflatten(0, (-1, pool))
        torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))  # one factor a pool
        logs.append(share)
    assert logs[0].abs().max() <= 1  # the first layer's columns keep their scale
    assert logs[0].max() - logs[0].min() > 0.5
    assert (network.rescaled(SEED, 0.1).weights[0] / network.weights[0]).log10().abs().max() <= 0.1
    assert not torch.equal(network.rescaled(SEED + 1).weights[0], other.weights[0])


# ------------------------------------------------------------------------------------------------------------ the rules


@each_cell
def test_theorem_the_chained_rule_is_equivariant(layers, pool):
    """A step and then a rescaling is the rescaling and then the step, by the same factors."""
    network = start(layers, pool)
    here, there = step(network, chained_rates).rescaled(SEED), step(network.rescaled(SEED), chained_rates)
    for before, a, b in zip(network.weights, here.weights, there.weights, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-12)
        assert not torch.allclose(a, before, rtol=0.05)


@each_cell
def test_own_norms_are_equivariant_for_one_layer_only(layers, pool):
    network = start(layers, pool)
    here, there = step(network, own_rates).rescaled(SEED), step(network.rescaled(SEED), own_rates)
    apart = max(float((a / b - 1).abs().max()) for a, b in zip(here.weights, there.weights, strict=True))
    assert apart < 1e-8 if layers == 1 else apart > 1e-2


@pytest.mark.parametrize("pool", [1, 2])
def test_a_curve_of_sgd_is_torchs(pool):
    network = start(2, pool)
    found = plain_curve(network, X, Y, None, seed=SEED, steps=5, rate=0.1)
    leaves = [weight.clone().requires_grad_() for weight in network.weights]
    optimiser, wanted = torch.optim.SGD(leaves, lr=0.1), []
    for chosen in batches(len(X), SEED, 5):
        loss = F.cross_entropy(Plain(leaves, pool).outputs(X[chosen]), Y[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        wanted.append(float(loss.detach()))
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(network.weights, start(2, pool).weights, strict=True))


@pytest.mark.parametrize("rule", [chained_rates, own_rates])
def test_a_curve_goes_by_its_rule(rule):
    network = start(2, 2)
    x, y = X[:100], Y[:100]  # a whole batch, so that the order plays no part
    found = plain_curve(network, x, y, rule, seed=SEED, steps=2, rate=0.1)
    leaves = [weight.clone().requires_grad_() for weight in network.weights]
    before = F.cross_entropy(Plain(leaves, 2).outputs(x), y)
    slopes = torch.autograd.grad(before, leaves)
    factors = rule(network.weights, 2) if rule is chained_rates else rule(network.weights)
    moved = [w - 0.1 * f * g for w, f, g in zip(network.weights, factors, slopes, strict=True)]
    after = F.cross_entropy(Plain(moved, 2).outputs(x), y)
    np.testing.assert_allclose(found, [float(before.detach()), float(after)], rtol=1e-12)


def test_gaps_of_every_depth_and_pool():
    found = without_norm(X, Y, SEED, steps=10, rate=0.05)
    assert list(found.chained) == list(found.own) == list(found.sgd) == CELLS
    for cell in CELLS:
        assert found.chained[cell] < 1e-9
        assert found.own[cell] > 1e-3 if cell[0] > 1 else found.own[cell] < 1e-9
        assert found.sgd[cell] > 1e-3
    network = Plain.start(SEED, INPUTS, 2, 2)
    both = [
        plain_curve(each, X, Y, own_rates, seed=SEED, steps=10, rate=0.05)
        for each in (network, network.rescaled(SEED))
    ]
    assert found.own[2, 2] == gap(*both)


def test_forty_steps_unless_told_otherwise(monkeypatch):
    seen = []

    def spy(*args, steps, **options):
        seen.append(steps)
        return np.zeros(1)

    monkeypatch.setattr(module, "plain_curve", spy)
    without_norm(X, Y, SEED, rate=0.05)
    assert seen == [40] * 36


# ------------------------------------------------------------------------------------------------- measurements, verdicts


def made(chained=1e-14, own=0.1, **at):
    """The same gaps in all cells; ``at``: others in one cell, as l2p1=0.5 for own norms, c2p1=... for the chained rule."""
    found = WithoutNorm(
        dict.fromkeys(CELLS, chained),
        {c: own if c[0] > 1 else 1e-15 for c in CELLS},
        dict.fromkeys(CELLS, 0.7),
    )
    for name, value in at.items():
        place = found.chained if name.startswith("c") else found.own
        place[int(name[1]), int(name[3])] = value
    return found


def test_measurements_are_largest_and_smallest_over_the_seeds():
    found = measure_without_norm([made(c3p2=3e-13, l2p1=0.2), made(1e-15, l2p1=0.4), made()], 40)
    chained = {m.cell: m for m in found if m.name == "chained_gap"}
    own = {m.cell: m for m in found if m.name == "own_norm_gap"}
    assert len(chained) + len(own) == len(found)
    assert list(chained) == [f"{layers} layers, pool {pool}" for layers, pool in CELLS]
    assert list(own) == [f"{layers} layers, pool {pool}" for layers, pool in CELLS if layers > 1]
    m = chained["3 layers, pool 2"]
    assert (m.value, m.low, m.high, m.n, m.seeds) == (3e-13, 1e-15, 3e-13, 40, 3)
    m = own["2 layers, pool 1"]
    assert (m.value, m.low, m.high, m.n, m.seeds) == (0.1, 0.1, 0.4, 40, 3)


@pytest.mark.parametrize(
    ("found", "steps", "wanted"),
    [
        ([made()] * 3, 40, CONFIRMED),
        ([made(c1p2=1e-3)] * 3, 40, NOT_CONFIRMED),
        ([made(own=1e-6)] * 3, 40, NOT_CONFIRMED),
        ([made(l3p1=1e-5)] * 3, 40, NOT_CONFIRMED),
        ([made(l1p1=0.5)] * 3, 40, CONFIRMED),  # one layer is not asked
        ([made(c2p2=1e-3), made(), made()], 40, UNRESOLVED),
        ([made(l2p1=1e-5), made(), made()], 40, UNRESOLVED),
        ([made()] * 2, 40, UNRESOLVED),
        ([made()] * 3, 39, UNRESOLVED),
    ],
)
def test_verdicts(found, steps, wanted):
    for profile in claims.PROFILES:
        assert claims.judge("P4-C10", profile, measure_without_norm(found, steps)).verdict == wanted


def test_rows_for_the_page():
    found = rows([made(c2p1=2e-13), made(l2p1=0.25)])
    assert [row[:2] for row in found] == [(str(layers), str(pool)) for layers, pool in CELLS]
    assert found[2] == ("2", "1", "2.0e-13", "2.5e-01", "7.0e-01")
