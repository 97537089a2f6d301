"""The theorem and its consequences on small networks in float64, and every exact claim's rule on made-up numbers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from lib import claims
from lib.claims import CONFIRMED, NOT_CONFIRMED, UNRESOLVED
from lib.data import Dataset
from lib.randomness import uniform
from lib.rules import Measurement
from lib.trial import exact
from lib.trial.exact import (
    BATCH,
    RATE,
    Curves,
    Found,
    affine_gap,
    batches,
    convolutional,
    curve,
    curves,
    decay_gap,
    dense,
    gap,
    identity_error,
    look,
    loss_changes,
    measure_affine,
    measure_change,
    measure_curves,
    measure_decay,
    measure_identity,
    update,
)

SEED, STEPS = 991, 8
METHODS = ("SGD", "unit norm", "scaled metric", "normalise after the step")
SIDES = pytest.mark.parametrize("kind", ["dense", "convolutional"])


def few_images(name, split, **options):
    """Noise of MNIST's shape."""
    images = uniform(SEED, torch.arange(250), "images", 0, (1, 28, 28))
    return Dataset(images, torch.arange(250) % 10, name, split, "made here")


@pytest.fixture
def small(monkeypatch):
    """Both networks with few filters, the convolutional one on noise."""

    def make(kind, **options):
        if kind == "dense":
            return dense(hidden=8, **options)
        with monkeypatch.context() as patch:
            patch.setattr(exact, "load", few_images)
            return convolutional(channels=2, **options)

    return make


def gradients(problem, params, rows):
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in params.items()}
    return dict(zip(leaves, torch.autograd.grad(problem.loss(leaves, rows), [*leaves.values()]), strict=True))


def norms(weight):
    return weight.flatten(1).norm(dim=1)


# --------------------------------------------------------------------------------------------------------- the problem


@SIDES
def test_filters_are_what_the_norms_read_and_start_at_unit_length(small, kind):
    problem = small(kind)
    names = [name for name, layer in problem.net.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    assert problem.filters == tuple(f"{name}.weight" for name in names[:-1])
    start = problem.start(SEED)
    for name in problem.filters:
        assert (norms(start[name]) - 1).abs().max() < 1e-15
    classifier = start[f"{names[-1]}.weight"]
    assert (norms(classifier) - 1).abs().min() > 1e-3
    assert not torch.equal(classifier, problem.start(SEED + 1)[f"{names[-1]}.weight"])
    assert {problem.inputs.dtype, *(t.dtype for t in start.values())} == {torch.float64}


@SIDES
def test_loss_is_torchs(small, kind):
    problem, rows = small(kind), torch.arange(40)
    params = problem.start(SEED)
    problem.net.load_state_dict(params)
    wanted = nn.functional.cross_entropy(problem.net.train()(problem.inputs[:40]), problem.targets[:40])
    assert float(problem.loss(params, rows)) == pytest.approx(float(wanted.detach()), rel=1e-14)


def test_factors_are_those_of_the_kinds_asked_for_within_their_decades():
    problem = dense(hidden=8, affine=True)
    start = problem.start(SEED)
    assert all(torch.equal(start[k], v) for k, v in problem.rescaled(start, SEED, 2.0, ()).items())
    filters = problem.rescaled(start, SEED, 2.0, ("normalised",))
    logs = torch.cat([norms(filters[name]).log10() for name in problem.filters])
    assert logs.abs().max() <= 2
    assert logs.min() < -1 < 1 < logs.max()
    assert torch.equal(filters["1.weight"], start["1.weight"])
    learned = problem.rescaled(start, SEED, 0.5, ("affine",))
    logs = learned["1.weight"].log10()
    assert 0.3 < logs.abs().max() <= 0.5
    torch.testing.assert_close(learned["3.weight"] * learned["1.weight"], start["3.weight"])
    assert torch.equal(learned["0.weight"], start["0.weight"])
    for other in (
        problem.rescaled(start, SEED, 2.0, ("normalised",), 1),
        problem.rescaled(start, SEED + 1, 2.0, ("normalised",)),
    ):
        assert not torch.equal(other["0.weight"], filters["0.weight"])


# --------------------------------------------------------------------------------------------------------- the theorem


@SIDES
def test_theorem_rescaling_filters_leaves_the_loss(small, kind):
    problem, rows = small(kind), torch.arange(100)
    start = problem.start(SEED)
    other = problem.rescaled(start, SEED, 2.0, ("normalised",))
    assert max(float((norms(other[name]) - 1).abs().max()) for name in problem.filters) > 5
    assert float(problem.loss(other, rows)) == pytest.approx(float(problem.loss(start, rows)), rel=1e-12)


@SIDES
def test_theorem_1_gradients_scale_inversely(small, kind):
    problem, rows = small(kind), torch.arange(100)
    start = problem.start(SEED)
    other = problem.rescaled(start, SEED, 2.0, ("normalised",))
    here, there = gradients(problem, start, rows), gradients(problem, other, rows)
    for name, g in here.items():
        assert g.abs().max() > 1e-4
        scaled = there[name].flatten(1)
        if name in problem.filters:
            scaled = scaled * norms(other[name])[:, None]
        torch.testing.assert_close(scaled, g.flatten(1), rtol=0, atol=1e-12 * float(g.abs().max()))


@SIDES
def test_theorem_2_gradients_are_tangent(small, kind):
    problem = small(kind)
    start = problem.rescaled(problem.start(SEED), SEED, 1.0, ("normalised",))
    for name, g in gradients(problem, start, torch.arange(100)).items():
        cosine = (g * start[name]).flatten(1).sum(1) / (norms(g) * norms(start[name]))
        if name in problem.filters:
            assert cosine.abs().max() < 1e-11
        else:
            assert cosine.abs().max() > 0.01


@SIDES
def test_theorem_3_a_step_moves_the_direction_by_the_effective_rate(small, kind):
    """SGD on a filter of length r by rate η: the direction of the unit filter's step by η / r²; and norms by Pythagoras."""
    problem, rows, rate = small(kind), torch.arange(100), 0.3
    start = problem.start(SEED)
    other = problem.rescaled(start, SEED, 1.0, ("normalised",))
    here, there = gradients(problem, start, rows), gradients(problem, other, rows)
    stepped = {name: tensor.clone() for name, tensor in other.items()}
    update(problem, "SGD", rate)(stepped, there)
    for name in problem.filters:
        r = norms(other[name])[:, None]
        wanted = start[name].flatten(1) - rate / r**2 * here[name].flatten(1)
        w = stepped[name].flatten(1)
        torch.testing.assert_close(w / norms(w)[:, None], wanted / norms(wanted)[:, None], rtol=0, atol=1e-12)
        assert norms(w).square() == pytest.approx(
            (norms(other[name]) ** 2 + rate**2 * norms(there[name]) ** 2).tolist(), rel=1e-12
        )


# ------------------------------------------------------------------------------------------------------ steps and curves


@pytest.mark.parametrize("method", METHODS)
def test_the_classifier_takes_a_plain_step_and_the_filters_their_own(method):
    problem, rows = dense(hidden=8), torch.arange(100)
    params = problem.rescaled(problem.start(SEED), SEED, 0.3, ("normalised",))
    slopes, before = gradients(problem, params, rows), {k: v.clone() for k, v in params.items()}
    update(problem, method, 0.5)(params, slopes)
    w, g = before["6.weight"], slopes["6.weight"]
    torch.testing.assert_close(params["6.weight"], w - 0.5 * g, rtol=1e-14, atol=0)
    w, g = before["0.weight"], slopes["0.weight"]
    square = w.square().sum(1, keepdim=True)
    moved = w - 0.5 * g * (square if method == "scaled metric" else 1)
    if method in ("unit norm", "normalise after the step"):
        moved = moved / norms(moved)[:, None]
    torch.testing.assert_close(params["0.weight"], moved, rtol=0, atol=1e-12)


def test_decay_pulls_the_filters_alone():
    problem, rows = dense(hidden=8), torch.arange(100)
    params = problem.start(SEED)
    slopes, plain = gradients(problem, params, rows), {k: v.clone() for k, v in params.items()}
    before = {k: v.clone() for k, v in params.items()}
    update(problem, "SGD", 0.5, 0.1)(params, slopes)
    update(problem, "SGD", 0.5)(plain, slopes)
    for name in params:
        pulled = 0.05 * before[name] if name in problem.filters else 0 * before[name]
        torch.testing.assert_close(plain[name] - params[name], pulled, rtol=0, atol=1e-14)


def test_a_curve_of_sgd_is_torchs():
    """The loss of each batch before its step; the start is left as it was, and steps are seen before they are taken."""
    problem = dense(hidden=8)
    start, seen = problem.start(SEED), []
    kept = {k: v.clone() for k, v in start.items()}
    found = curve(
        problem,
        start,
        update(problem, "SGD", 0.3),
        seed=SEED,
        steps=STEPS,
        watch=lambda params, slopes: seen.append((params["6.weight"].clone(), slopes["6.weight"])),
    )
    problem.net.load_state_dict(start)
    optimiser, wanted = torch.optim.SGD(problem.net.parameters(), lr=0.3), []
    for (weight, slope), rows in zip(seen, batches(len(problem.inputs), SEED, STEPS), strict=True):
        loss = nn.functional.cross_entropy(problem.net(problem.inputs[rows]), problem.targets[rows])
        optimiser.zero_grad()
        loss.backward()
        torch.testing.assert_close(weight, problem.net[6].weight.detach(), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(slope, problem.net[6].weight.grad, rtol=1e-10, atol=1e-12)
        optimiser.step()
        wanted.append(float(loss.detach()))
    np.testing.assert_allclose(found, wanted, rtol=1e-11)
    assert found[-1] < found[0]
    assert all(torch.equal(start[k], v) for k, v in kept.items())


def test_batches_are_whole_and_every_epoch_has_an_order_of_its_own():
    n = 2 * BATCH + 37
    found = batches(n, SEED, 7)
    assert [len(rows) for rows in found] == [BATCH] * 7
    epochs = [torch.cat(found[i : i + 2]) for i in (0, 2, 4)]
    for rows in epochs:
        assert len(set(rows.tolist())) == 2 * BATCH
        assert rows.max() < n
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[1], epochs[2])
    assert not torch.equal(batches(n, SEED + 1, 1)[0], found[0])
    assert torch.equal(batches(n, SEED, 3)[2], found[2])


def test_gaps_are_the_largest_distance():
    assert gap(np.array([1.0, 2.0, 3.0]), np.array([1.1, 1.5, 3.0])) == 0.5


@SIDES
def test_curves_from_two_starts(small, kind):
    """Unit norm and the scaled metric are invariant, SGD is not; and three methods are one."""
    problem = small(kind)
    found = curves(problem, SEED, steps=STEPS, rate=RATE)
    assert set(found.unit) == set(found.scaled) == set(METHODS)
    assert all(c.shape == (STEPS,) for side in (found.unit, found.scaled) for c in side.values())
    for method in METHODS:
        apart = gap(found.unit[method], found.scaled[method])
        assert apart > 1e-2 if method == "SGD" else apart < 1e-9
        assert found.unit[method][0] == pytest.approx(found.scaled[method][0], rel=1e-10)
    for method in METHODS[2:]:
        assert gap(found.unit["unit norm"], found.scaled[method]) < 1e-9


def test_epsilon_breaks_the_scaled_metrics_invariance_and_not_unit_norms():
    found = curves(dense(1e-5, hidden=8), SEED, steps=STEPS, rate=RATE)
    apart = {method: gap(found.unit[method], found.scaled[method]) for method in METHODS}
    assert apart["unit norm"] < 1e-9
    assert apart["scaled metric"] > 1e-6


@pytest.mark.parametrize("affine", [True, False])
def test_a_learned_scale_brings_the_symmetry_back(affine):
    def make(affine):
        return dense(hidden=8, affine=affine)

    found = affine_gap(make, SEED, steps=STEPS, rate=RATE, affine=affine)
    assert found > 1e-3 if affine else found < 1e-9


def test_decay_does_nothing_under_unit_norm():
    problem = dense(hidden=8)
    assert decay_gap(problem, SEED, "unit norm", steps=STEPS, rate=1.0, decay=0.1) < 1e-9
    assert decay_gap(problem, SEED, "SGD", steps=STEPS, rate=1.0, decay=0.1) > 1e-2


def test_norms_grow_by_pythagoras(monkeypatch):
    problem = dense(hidden=8)
    assert identity_error(problem, SEED, steps=STEPS, rate=RATE) < 1e-12
    scaled = exact.STEPS["scaled metric"]
    monkeypatch.setitem(exact.STEPS, "SGD", lambda w, g, rate: scaled(w, g, 2 * rate))
    assert identity_error(problem, SEED, steps=STEPS, rate=RATE) > 1e-5  # a step twice as long


def test_the_identity_is_seen_at_every_step_and_filter(monkeypatch):
    """One filter of the second layer off at the last step alone."""
    problem, calls, right = dense(hidden=8), [], exact.STEPS["SGD"]

    def step(w, g, rate):
        right(w, g, rate)
        calls.append(len(w))
        if len(calls) == 2 * STEPS:
            w[3] *= 1.1

    monkeypatch.setitem(exact.STEPS, "SGD", step)
    found = identity_error(problem, SEED, steps=STEPS, rate=RATE)
    assert found == pytest.approx(1 - 1 / 1.21, rel=1e-6)


def test_changes_of_the_loss():
    def make(eps):
        return dense(eps, hidden=8)

    seeds = [SEED, SEED + 1]
    tiny, usual = (loss_changes(make, seeds, 3, eps) for eps in (exact.TINY, 1e-5))
    assert tiny.shape == usual.shape == (2, 3)
    assert tiny.max() < 1e-10
    assert usual.min() > 1e-6
    assert len(set(usual.flatten().tolist())) == 6  # each seed and factor of its own
    problem = make(1e-5)
    start = problem.start(SEED + 1)
    (rows,), other = (
        batches(len(problem.inputs), SEED + 1, 1),
        problem.rescaled(start, SEED + 1, 2.0, ("normalised",), 2),
    )
    before, after = (float(problem.loss(params, rows)) for params in (start, other))
    assert usual[1, 2] == pytest.approx(abs(after / before - 1))


def test_a_look_holds_what_its_parts_say(monkeypatch):
    def make(**options):
        return dense(hidden=8, **options)

    monkeypatch.setitem(exact.NETWORKS, "small", make)
    found, problem = look("small", SEED, steps=3, decay_steps=4), make()
    short = {"steps": 3, "rate": RATE}
    for side, wanted in zip(
        vars(found.curves).values(), vars(curves(problem, SEED, **short)).values(), strict=True
    ):
        for method in METHODS:
            np.testing.assert_array_equal(side[method], wanted[method])
    assert found.affine == affine_gap(make, SEED, affine=True, **short) > 0
    assert found.plain == affine_gap(make, SEED, affine=False, **short)
    assert found.decay_sgd == decay_gap(problem, SEED, "SGD", steps=4, rate=exact.FAST) > 0
    assert found.decay_unit == max(
        decay_gap(problem, SEED, "unit norm", steps=3, rate=rate) for rate in (RATE, exact.FAST)
    )
    assert found.identity == identity_error(problem, SEED, **short)


# ------------------------------------------------------------------------------------------------------------ verdicts


def verdict(claim, found, profile="quick"):
    return claims.judge(claim, profile, found).verdict


def made(steps=60, **gaps):
    """Curves of constant loss 1: from the unit start, and from the other apart by a gap at one step."""
    unit = {method: np.ones(steps) for method in METHODS}
    scaled = {method: np.ones(steps) for method in METHODS}
    for method, size in gaps.items():
        scaled[method.replace("_", " ")][steps // 2] += size
    return Curves(unit, scaled)


def of(name, values, **options):
    """Curves of as many seeds as there are values, which are one method's gaps."""
    return [made(**{name: value}, **options) for value in values]


FACTORS = 20


def changes(*largest, factors=FACTORS):
    """A tenth of the largest change but for one factor of each seed."""
    table = np.full((len(largest), factors), 0.1) * np.array(largest)[:, None]
    table[:, 3] = largest
    return table


def test_the_change_counts_its_largest_factor_and_seed():
    found = {
        m.name: m for m in measure_change("dense", changes(1e-13, 3e-13, 2e-13), changes(1e-3, 3e-3, 2e-3))
    }
    m = found["loss_change"]
    assert (m.value, m.low, m.high, m.n, m.seeds) == (3e-13, 1e-13, 3e-13, FACTORS, 3)
    m = found["loss_change_epsilon"]
    assert (m.cell, m.value, m.low, m.high) == ("dense", 3e-3, 1e-3, 3e-3)


@pytest.mark.parametrize(
    ("exactly", "usual", "wanted"),
    [
        (changes(1e-13, 3e-13, 2e-13), changes(1e-3, 3e-3, 2e-3), CONFIRMED),
        (changes(1e-8, 3e-8, 2e-8), changes(1e-3, 3e-3, 2e-3), NOT_CONFIRMED),
        (changes(1e-13, 3e-13, 2e-13), changes(1e-9, 1e-8, 2e-8), NOT_CONFIRMED),  # a check that cannot fail
        (changes(1e-13, 3e-8, 2e-13), changes(1e-3, 3e-3, 2e-3), UNRESOLVED),
        (changes(1e-13, 3e-13), changes(1e-3, 3e-3), UNRESOLVED),  # too few seeds
        (changes(*[1e-13] * 3, factors=19), changes(*[1e-3] * 3, factors=19), UNRESOLVED),
    ],
)
def test_verdicts_on_the_loss(exactly, usual, wanted):
    one = measure_change("dense", exactly, usual)
    assert verdict("P4-C1", one) == wanted
    two = one + measure_change("convolutional", exactly, usual)
    assert verdict("P4-C1", two, "full") == wanted


def test_the_full_profile_asks_for_both_networks():
    right = changes(*[1e-13] * 3), changes(*[1e-3] * 3)
    assert verdict("P4-C1", measure_change("dense", *right), "full") == UNRESOLVED
    wrong = measure_change("convolutional", changes(*[1e-5] * 3), right[1])
    assert verdict("P4-C1", measure_change("dense", *right) + wrong, "full") == NOT_CONFIRMED


def test_curves_are_measured_at_their_largest_gap():
    """SGD by its smallest gap over the seeds, the others by their largest; X1 against unit norm from the unit start."""
    found = [
        made(SGD=0.5, unit_norm=1e-12, scaled_metric=3e-12),
        made(SGD=0.2, unit_norm=2e-12, scaled_metric=1e-12),
    ]
    found[0].unit["unit norm"][0] += 0.25
    found[0].scaled["unit norm"][0] += 0.25
    by_claim = {c: {m.cell: m for m in measured} for c, measured in measure_curves(found).items()}

    def read(m):
        return m.name, m.value, m.low, m.high, m.n, m.seeds

    about = pytest.approx
    assert read(by_claim["P4-C2"]["SGD"]) == ("sgd_gap", about(0.2), about(0.2), about(0.5), 60, 2)
    near = {"rel": 1e-3}
    m = by_claim["P4-C3"]["unit norm"]
    assert read(m) == (
        "invariant_gap",
        about(2e-12, **near),
        about(1e-12, **near),
        about(2e-12, **near),
        60,
        2,
    )
    assert by_claim["P4-C3"]["scaled metric"].value == about(3e-12, **near)
    for method in ("scaled metric", "normalise after the step"):
        m = by_claim["P4-X1"][method]
        assert (m.name, m.value, m.n, m.seeds) == ("method_gap", 0.25, 60, 2)
        assert m.low == about(1e-12 if method == "scaled metric" else 0, **near)


@pytest.mark.parametrize(
    ("gaps", "steps", "wanted"),
    [
        ((0.3, 0.2, 0.5), 60, CONFIRMED),
        ((1e-7, 1e-3, 1e-5), 60, NOT_CONFIRMED),
        ((0.3, 0.001, 0.5), 60, UNRESOLVED),
        ((0.3, 0.2), 60, UNRESOLVED),
        ((0.3, 0.2, 0.5), 59, UNRESOLVED),
    ],
)
def test_verdicts_on_sgd(gaps, steps, wanted):
    assert verdict("P4-C2", measure_curves(of("SGD", gaps, steps=steps))["P4-C2"]) == wanted
    several = measure_curves(of("SGD", gaps * 5, steps=steps))["P4-C2"]
    assert verdict("P4-C2", several, "full") == (
        CONFIRMED if wanted == UNRESOLVED and len(gaps) < 3 else wanted
    )


@pytest.mark.parametrize("method", ["unit_norm", "scaled_metric"])
@pytest.mark.parametrize(
    ("gaps", "steps", "wanted"),
    [
        ((1e-15, 1e-12, 1e-13), 60, CONFIRMED),
        ((1e-3, 1e-2, 1e-5), 60, NOT_CONFIRMED),
        ((1e-15, 1e-5, 1e-15), 60, UNRESOLVED),
        ((1e-15, 1e-15), 60, UNRESOLVED),
        ((1e-15, 1e-15, 1e-15), 59, UNRESOLVED),
    ],
)
def test_verdicts_on_invariance(method, gaps, steps, wanted):
    """Whichever of the two methods has the gaps."""
    assert verdict("P4-C3", measure_curves(of(method, gaps, steps=steps))["P4-C3"]) == wanted


@pytest.mark.parametrize("method", ["normalise_after_the_step", "scaled_metric"])
@pytest.mark.parametrize(
    ("gaps", "steps", "wanted"),
    [
        ((1e-15, 1e-12, 1e-13), 60, CONFIRMED),
        ((1e-3, 1e-2, 1e-5), 60, NOT_CONFIRMED),
        ((1e-15, 1e-5, 1e-15), 60, UNRESOLVED),
        ((1e-15, 1e-15), 60, UNRESOLVED),
        ((1e-15, 1e-15, 1e-15), 59, UNRESOLVED),
    ],
)
def test_verdicts_on_one_algorithm(method, gaps, steps, wanted):
    for profile in claims.PROFILES:
        assert verdict("P4-X1", measure_curves(of(method, gaps, steps=steps))["P4-X1"], profile) == wanted


def test_all_methods_apart_from_unit_norm_alike_are_not_one_with_it():
    found = of("SGD", [0.3] * 3)
    for each in found:
        for side in (each.unit, each.scaled):
            for method in METHODS[2:]:
                side[method][5] += 0.1
    assert verdict("P4-C3", measure_curves(found)["P4-C3"]) == CONFIRMED
    assert verdict("P4-X1", measure_curves(found)["P4-X1"]) == NOT_CONFIRMED


@pytest.mark.parametrize(
    ("affine", "plain", "steps", "wanted"),
    [
        ((0.1, 0.2, 0.01), (1e-15, 1e-12, 1e-14), 60, CONFIRMED),
        ((1e-5, 1e-4, 1e-6), (1e-15, 1e-12, 1e-14), 60, NOT_CONFIRMED),
        ((0.1, 0.2, 0.01), (1e-3, 1e-2, 1e-4), 60, NOT_CONFIRMED),
        ((0.1, 0.2, 1e-4), (1e-15, 1e-12, 1e-14), 60, UNRESOLVED),
        ((0.1, 0.2, 0.01), (1e-15, 1e-6, 1e-14), 60, UNRESOLVED),
        ((0.1, 0.2), (1e-15, 1e-12), 60, UNRESOLVED),
        ((0.1, 0.2, 0.01), (1e-15, 1e-12, 1e-14), 59, UNRESOLVED),
    ],
)
def test_verdicts_on_learned_scales(affine, plain, steps, wanted):
    found = measure_affine(affine, plain, steps)
    assert [m.value for m in found] == [min(affine), max(plain)]
    assert verdict("P4-X3", found) == wanted


@pytest.mark.parametrize(
    ("unit", "sgd", "steps", "wanted"),
    [
        ((1e-15, 1e-12, 1e-14), (0.1, 0.2, 0.02), (60, 360), CONFIRMED),
        ((1e-3, 1e-2, 1e-4), (0.1, 0.2, 0.02), (60, 360), NOT_CONFIRMED),
        ((1e-15, 1e-12, 1e-14), (1e-3, 1e-4, 1e-5), (60, 360), NOT_CONFIRMED),
        ((1e-15, 1e-6, 1e-14), (0.1, 0.2, 0.02), (60, 360), UNRESOLVED),
        ((1e-15, 1e-12, 1e-14), (0.1, 0.2, 1e-3), (60, 360), UNRESOLVED),
        ((1e-15, 1e-12), (0.1, 0.2), (60, 360), UNRESOLVED),
        ((1e-15, 1e-12, 1e-14), (0.1, 0.2, 0.02), (59, 360), UNRESOLVED),
        ((1e-15, 1e-12, 1e-14), (0.1, 0.2, 0.02), (60, 59), UNRESOLVED),
    ],
)
def test_verdicts_on_decay(unit, sgd, steps, wanted):
    found = measure_decay(unit, sgd, *steps)
    assert [m.value for m in found] == [max(unit), min(sgd)]
    assert [m.n for m in found] == list(steps)
    assert verdict("P4-X4", found) == wanted


@pytest.mark.parametrize(
    ("errors", "wanted"),
    [
        ((1e-15, 1e-14, 1e-13), CONFIRMED),
        ((1e-3, 1e-2, 1e-4), NOT_CONFIRMED),
        ((1e-15, 1e-2, 1e-15), UNRESOLVED),
        ((1e-15, 1e-15), UNRESOLVED),
    ],
)
def test_verdicts_on_the_norms_identity(errors, wanted):
    """Beside a need of schedules and a fall of the rate that are there."""
    empty = Found(made(), 0.0, 0.0, 0.0, 0.0, 0.0)
    found = measure_identity([replace(empty, identity=error) for error in errors], 60)
    (m,) = found
    assert (m.value, m.low, m.high, m.n, m.seeds) == (max(errors), min(errors), max(errors), 60, len(errors))
    others = [
        Measurement("schedule_need", "2 layers", 1.0, 0.5, 1.5, 5, 5),
        Measurement("rate_fall", "2 layers", 0.3, 0.2, 0.4, 5, 5),
    ]
    assert verdict("P4-X2", found + others) == wanted
