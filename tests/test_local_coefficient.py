"""The local learning coefficient on models whose expectation is known exactly, and every planted fault refused."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import jaxtyping
import pytest
import torch
from torch import Tensor

from lib import local_chains, local_coefficient, randomness
from lib.free_energy.regression import Regression
from lib.free_energy.targets import WholeHinges, target
from lib.free_energy.truths import T1, T2, T3, data
from lib.local_chains import HMC, MALA, SGLD, Options
from lib.local_coefficient import descend, drift_of, estimate, planted

SETS, SIZE, INPUTS = 50, 200, 3


@pytest.fixture(scope="module", autouse=True)
def unwatched():
    """Long chains call small functions so often that checking shapes would be most of the time."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def linear(unwatched):
    """Fifty data sets of y = w.x + b + noise, with the designs and the point that generated them."""
    members = torch.arange(SETS)
    inputs = 2 * randomness.uniform(995, members, "inputs", 0, (SIZE, INPUTS), torch.float64) - 1
    noise = randomness.normal(995, members, "noise", 0, (SIZE, 1), torch.float64)
    point = torch.tensor([0.5, -1.0, 0.2, 0.3], dtype=torch.float64)
    design = torch.cat([inputs, torch.ones_like(inputs[..., :1])], dim=2)
    targets = (design @ point)[..., None] + noise
    problem = Regression(inputs, targets, inputs.new_ones(SETS, SIZE), 0.5 * noise.square().sum((1, 2)))
    return SimpleNamespace(
        problem=problem, target=target(problem, (INPUTS, 1), collapsed=False), design=design, point=point
    )


def expected(linear, beta: float, gamma: float, step: Tensor | None = None) -> Tensor:
    """E[beta (E(w) - E(w*))] of each data set under the Gaussian, or that of unadjusted Langevin with this step a chain."""
    stiff = beta * linear.design.mT @ linear.design
    least = torch.linalg.lstsq(linear.design, linear.problem.targets).solution
    eye = torch.eye(len(linear.point), dtype=torch.float64)
    spring = stiff + gamma * eye
    away = linear.point[:, None] - least
    centre = gamma * torch.linalg.solve(spring, away)  # from the least squares
    fixed = 0.5 * (centre.mT @ stiff @ centre - away.mT @ stiff @ away)[:, 0, 0]
    if step is None:
        return fixed + 0.5 * torch.linalg.solve(spring, stiff).diagonal(dim1=1, dim2=2).sum(1)
    short = eye - 0.25 * step.square()[..., None, None] * spring[:, None]
    wide = torch.linalg.solve(spring[:, None] @ short, stiff[:, None])
    return fixed + 0.5 * wide.diagonal(dim1=2, dim2=3).sum(2).mean(1)


def agrees(found: Tensor, error: Tensor, known: Tensor, bias: float) -> None:
    """The mean lies within ``bias``, and 95 % intervals (Student's t, three degrees of freedom) cover as they should."""
    assert abs(float((found - known).mean())) < bias
    covered = ((found - known).abs() < 3.182 * error).double().mean()
    assert 0.84 <= covered <= 1.0  # 0.95 - 3.6 standard deviations of fifty


@pytest.mark.parametrize(
    "options",
    [replace(HMC, warmup=50, draws=120, leapfrog=4), replace(MALA, warmup=100, draws=200, thin=2)],
    ids=["hmc", "mala"],
)
def test_linear_regression_has_its_closed_form(linear, options):
    for gamma in (1.0, 10.0):
        found = estimate(linear.target, linear.point, SIZE, seed=995, options=replace(options, gamma=gamma))
        assert not found.reasons
        assert found.beta == pytest.approx(1 / torch.tensor(200.0).double().log().item())
        agrees(found.value, found.standard_error, expected(linear, found.beta, gamma), 0.06)
    assert (
        expected(linear, found.beta, 0.0).mean() < 2.0
    )  # below d/2: the point is not the data's own minimum


def test_from_its_own_minimum_a_regular_model_has_half_its_parameters(linear):
    least = torch.linalg.lstsq(linear.design, linear.problem.targets).solution[..., 0]
    found = descend(linear.target, linear.point)
    torch.testing.assert_close(found, least, rtol=0, atol=1e-5)
    options = replace(HMC, warmup=50, draws=120, leapfrog=4, gamma=0.01)
    result = estimate(linear.target, found, SIZE, seed=995, options=options)
    agrees(result.value, result.standard_error, torch.full((SETS,), 2.0).double(), 0.06)


def test_langevin_has_the_closed_form_of_its_own_bias(linear):
    options = replace(SGLD, batch=None, warmup=200, draws=200, thin=4)
    found = estimate(linear.target, linear.point, SIZE, seed=995, options=options)
    assert not found.reasons
    assert not found.heat.any()
    known = expected(linear, found.beta, options.gamma, found.step)
    agrees(found.value, found.standard_error, known, 0.06)
    assert (known - expected(linear, found.beta, options.gamma)).mean() > 0.12  # a bias that can be seen


def test_minibatches_add_what_their_heat_says(linear):
    options = replace(SGLD, batch=10, warmup=200, draws=200, thin=4)
    found = estimate(linear.target, linear.point, SIZE, seed=995, options=options, problem=linear.problem)
    excess = found.unchecked - expected(linear, found.beta, options.gamma, found.step)
    assert excess.mean() > 0.2
    assert float(excess.mean() / found.heat.mean()) == pytest.approx(1.0, abs=0.2)
    strict = estimate(
        linear.target, linear.point, SIZE, seed=995, options=options, problem=linear.problem, heat_max=0.01
    )
    assert len(strict.reasons) == SETS
    assert all("minibatch noise" in reason for reason in strict.reasons.values())


@dataclass(frozen=True)
class Monomial:
    """f = w1 w2 x without noise: E = n w1² w2² / 2 for inputs of mean square one. λ = 1/2, m = 2."""

    problems: int
    n: float
    collapsed: bool = False
    layers: None = None
    scale: None = None
    footprint: int = 1

    def statistics(self, position: Tensor) -> Tensor:
        return 0.5 * self.n * position.prod(-1).square()

    def log_likelihood(self, statistics: Tensor, t: Tensor) -> Tensor:
        return -t * statistics

    def energy(self, statistics: Tensor, t: Tensor) -> Tensor:
        return statistics

    def gradient(self, position: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        slope = -(t * self.n * position.prod(-1))[..., None] * position.flip(-1)
        return -t * self.statistics(position), slope


def test_a_monomial_has_the_expectation_of_its_quadrature():
    n = 1000
    axis = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    beta = 1 / torch.tensor(float(n), dtype=torch.float64).log()
    energy = 0.5 * n * (axis[:, None] * axis).square()
    density = torch.exp(-beta * energy - 0.5 * (axis[:, None].square() + axis.square()))
    known = float(beta * (energy * density).sum() / density.sum())
    assert 0.3 < known < 0.5  # below 1/2 by the double pole
    found = estimate(Monomial(50, n), torch.zeros(2).double(), n, seed=995, options=replace(HMC, warmup=60))
    assert len(found.reasons) <= 1
    assert float(found.unchecked.mean()) == pytest.approx(known, abs=0.03)


@pytest.mark.parametrize("width", [1, 4])
def test_one_kink_has_three_halves(width):
    n, sets = 10_000, 50
    problem = data(T1, n, sets, seed=995)
    point = planted(T1, width)
    minima = descend(target(problem, (1, width, 1), collapsed=False), point, steps=200)
    twice = torch.arange(sets).repeat(2)
    learner = target(problem[twice], (1, width, 1), collapsed=False)
    both = torch.cat([point.expand(sets, -1), minima])
    options = replace(HMC, warmup=50, draws=120, leapfrog=6, step=0.03)
    found = estimate(learner, both, n, seed=995, options=options)
    assert len(found.reasons) <= 4  # shorter than the quick settings
    at_truth, at_minimum = (found.unchecked / 1.5).split(sets)
    assert 0.84 < at_truth.mean() < 0.94  # 1 - beta = 0.89
    assert 0.95 < at_minimum.mean() < 1.06
    assert ((at_minimum - 1).abs() < 0.15).double().mean() > 0.85


@pytest.fixture(scope="module")
def kink(unwatched):
    problem = data(T1, 1000, 6, seed=996)
    learner = target(problem, (1, 2, 1), collapsed=False)
    return SimpleNamespace(problem=problem, target=learner, point=descend(learner, planted(T1, 2)))


def run(kink, options: Options, point: Tensor | None = None, **more):
    point = kink.point if point is None else point
    problem = kink.problem if options.batch else None
    return estimate(kink.target, point, 1000, seed=996, options=options, problem=problem, **more)


STEPS = {"hmc": 0.08, "mala": 0.1, "sgld": 0.055, "sgld, all examples": 0.055}  # what the warm-up finds
FAST = {
    "hmc": replace(HMC, leapfrog=4),
    "mala": MALA,
    "sgld": replace(SGLD, batch=200),
    "sgld, all examples": replace(SGLD, batch=None),
}


@pytest.mark.parametrize("factor", [0.01, 0.1, 10, 100])
@pytest.mark.parametrize("name", FAST)
def test_a_wrong_step_is_refused(kink, name, factor):
    options = replace(FAST[name], warmup=10, draws=20, thin=2, adapt=False, step=factor * STEPS[name])
    wrong = run(kink, options)
    assert sorted(wrong.reasons) == list(range(6))
    assert bool(wrong.value.isnan().all())
    cure = "smaller step" if factor > 1 else "larger step"
    assert all(cure in reason for reason in wrong.reasons.values())


@pytest.mark.parametrize("name", FAST)
def test_the_warm_up_finds_the_step(kink, name):
    for start in (0.001, 1.0):
        options = replace(FAST[name], warmup=200 if "sgld" in name else 100, draws=20, thin=1, step=start)
        found = run(kink, options)
        assert float(found.step.log().mean().exp()) == pytest.approx(STEPS[name], rel=0.3)
        low, high = local_coefficient.ACCEPTANCE[options.method]
        assert low < found.acceptance.mean() < high


def test_chains_that_leave_the_finite_numbers_are_refused(kink):
    wrong = run(kink, replace(FAST["sgld"], step=50.0, adapt=False, warmup=50))
    assert all("finite numbers" in reason for reason in wrong.reasons.values())
    assert bool(wrong.rhat.isnan().all())


def test_a_point_that_is_no_minimum_is_refused(kink):
    far = planted(T1, 2)
    far[-1] += 1.0  # the output's level
    wrong = run(kink, replace(HMC, warmup=30, draws=40, leapfrog=4), far)
    assert bool((wrong.unchecked < 0).all())
    assert bool(wrong.value.isnan().all())
    assert all("no minimum" in reason for reason in wrong.reasons.values())


def test_chains_that_still_descend_are_refused_for_their_drift(kink):
    far = planted(T1, 2)
    far[-1] += 1.0
    wrong = run(kink, replace(MALA, step=0.02, adapt=False, warmup=0, draws=100, thin=2), far)
    assert all("drifts by -" in reason for reason in wrong.reasons.values())
    assert len(wrong.reasons) == 6


def test_chains_that_have_not_met_are_refused(kink):
    options = replace(HMC, step=0.001, adapt=False, warmup=0, draws=40, leapfrog=4)
    wrong = run(kink, options, acceptance=(0.0, 1.0))
    assert all("R-hat" in reason for reason in wrong.reasons.values())
    assert len(wrong.reasons) == 6
    assert bool((wrong.rhat > 1.1).all())


def test_drift_is_in_units_of_its_own_error():
    draws = randomness.normal(997, torch.arange(400), "trace", 0, (200, 4), torch.float64).transpose(0, 1)
    still = drift_of(draws)
    assert float(still.std()) == pytest.approx(1.0, abs=0.15)
    assert abs(float(still.mean())) < 0.2
    slope = torch.linspace(0, 1, 200, dtype=torch.float64)[:, None, None]
    assert float(drift_of(draws + slope).mean()) == pytest.approx(0.5 / (4 / 800) ** 0.5, rel=0.15)


@pytest.mark.parametrize("name", FAST)
def test_shapes_hold(kink, name):
    jaxtyping.config.update("jaxtyping_disable", False)
    try:
        found = run(kink, replace(FAST[name], warmup=4, draws=20, thin=1))
        assert found.trace.shape == (20, 6, 4)
        with pytest.raises(jaxtyping.TypeCheckError):
            descend(kink.target, kink.point[0, 0])
    finally:
        jaxtyping.config.update("jaxtyping_disable", True)


def test_a_chain_does_not_know_how_many_others_run(kink):
    for options in (FAST["hmc"], FAST["sgld"]):
        short = replace(options, warmup=10, draws=20, thin=1)
        many = run(kink, short)
        few = run(kink, replace(short, chains=2))
        torch.testing.assert_close(many.trace[:, :, :2], few.trace, rtol=1e-6, atol=1e-6)
    problem = kink.problem[3:4]
    alone = estimate(
        target(problem, (1, 2, 1), collapsed=False),
        kink.point[3],
        1000,
        seed=996,
        options=short,
        problem=problem,
        members=torch.tensor([3]),
    )
    torch.testing.assert_close(many.trace[:, 3:4], alone.trace, rtol=1e-6, atol=1e-6)
    other = many.trace[:, :, 0] - many.trace[:, :, 1]
    assert bool((other.abs().amax(0) > 0).all())


@pytest.mark.parametrize(("truth", "width"), [(T1, 1), (T1, 4), (T2, 5)])
def test_the_planted_point_computes_the_truth_with_dead_units(truth, width):
    problem = data(truth, 100, 2, seed=998)
    learner = target(problem, (truth.widths[0], width, 1), collapsed=False)
    position = planted(truth, width).expand(2, 1, -1).contiguous()
    torch.testing.assert_close(
        learner.statistics(position), torch.zeros(2, 1, dtype=torch.float64), atol=1e-12, rtol=0
    )
    hidden = truth.widths[1]
    assert learner.dead(position)[..., hidden:].all()
    assert not learner.dead(position)[..., :hidden].any()


def test_dead_units_stay_dead_in_a_localised_chain():
    seen = []

    class Watched(WholeHinges):
        def gradient(self, position, t):
            seen.append(self.dead(position)[..., 1:].double().mean())
            return super().gradient(position, t)

    learner = target(data(T1, 10_000, 5, seed=998), (1, 4, 1), collapsed=False)
    learner = Watched(**vars(learner))
    estimate(learner, planted(T1, 4), 10_000, seed=998, options=replace(HMC, warmup=30, draws=60))
    assert float(torch.stack(seen).mean()) > 0.9999


def test_what_cannot_be_run_is_refused_in_words(kink):
    with pytest.raises(ValueError, match="the point is known for one hidden layer"):
        planted(T3, 4)
    with pytest.raises(ValueError, match="at least as wide"):
        planted(T2, 1)
    with pytest.raises(ValueError, match="pass collapsed=False"):
        estimate(target(kink.problem, (1, 2, 1)), kink.point, 1000, seed=0)
    with pytest.raises(ValueError, match="pass problem="):
        estimate(kink.target, kink.point, 1000, seed=0, options=SGLD)
    with pytest.raises(ValueError, match="not finite"):
        estimate(kink.target, kink.point * torch.nan, 1000, seed=0)
    for wrong, reason in (
        ({"method": "nuts"}, "choose one of"),
        ({"chains": 1}, "cannot be judged"),
        ({"draws": 10}, "cannot be judged"),
        ({"step": 0.0}, "must be positive"),
        ({"gamma": -1.0}, "must not be negative"),
        ({"batch": 10}, "only SGLD"),
    ):
        with pytest.raises(ValueError, match=reason):
            Options(**wrong)
    assert set(local_coefficient.ACCEPTANCE) == set(local_chains.METHODS)
