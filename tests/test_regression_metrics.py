"""Metrics of predictive mixtures against SciPy's distributions, on known distributions, and what they must refuse."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

from lib import randomness, regression_metrics
from lib.regression_metrics import LEVELS

RUNS, S, N, K = 3, 5, 11, 2


def normal(purpose, *shape):
    return randomness.normal(71, torch.tensor([0]), purpose, 0, shape, torch.float64)[0]


def uniform(purpose, *shape):
    return randomness.uniform(71, torch.tensor([0]), purpose, 0, shape, torch.float64)[0]


@pytest.fixture(scope="module")
def case():
    """Sampled outputs, targets, shapes and rates of three runs; runs and outputs differ in everything."""
    f, y = normal("f", RUNS, S, N, K), 1.5 * normal("y", RUNS, N, K)
    return f, y, 2 + 5 * uniform("shape", RUNS, K), 1 + 3 * uniform("rate", RUNS, K)


def by_hand(case, density):
    """mean_n ln mean_s Π_k density, in loops."""
    f, y, shape, rate = (x.numpy() for x in case)
    found = []
    for run in range(RUNS):
        each = []
        for n in range(N):
            logs = [
                sum(density(y[run, n, k], f[run, s, n, k], shape[run, k], rate[run, k]) for k in range(K))
                for s in range(S)
            ]
            each.append(np.log(np.mean(np.exp(logs))))
        found.append(np.mean(each))
    return found


def test_rmse_is_of_the_mean_over_samples(case):
    f, y, *_ = case
    wanted = [math.sqrt(((f[run].numpy().mean(0) - y[run].numpy()) ** 2).mean()) for run in range(RUNS)]
    np.testing.assert_allclose(regression_metrics.rmse(f, y), wanted, rtol=1e-13)
    f = torch.tensor([3.0, -1.0])[
        :, None, None
    ]  # two samples whose mean hits the first target and misses the second by 4
    assert regression_metrics.rmse(f.expand(2, 2, 1), torch.tensor([[1.0], [5.0]])) == pytest.approx(8**0.5)


class TestLikelihood:
    def test_one_sample_is_the_expectation_of_the_gaussians_logarithm(self):
        f, y, a, b = 0.4, 1.7, 3.0, 2.0
        of = stats.gamma(a, scale=1 / b)
        wanted, _ = integrate.quad(lambda t: of.pdf(t) * stats.norm.logpdf(y, f, t**-0.5), 0, np.inf)
        args = [torch.tensor(v, dtype=torch.float64) for v in ([[[f]]], [[y]], [a], [b])]
        assert regression_metrics.log_likelihood(*args).item() == pytest.approx(wanted, rel=1e-8)

    def test_mixture_is_the_authors_form(self, case):
        def density(y, f, a, b):
            log_precision = special.digamma(a) - np.log(b)
            return -0.5 * a / b * (y - f) ** 2 + 0.5 * log_precision - 0.5 * np.log(2 * np.pi)

        np.testing.assert_allclose(
            regression_metrics.log_likelihood(*case), by_hand(case, density), rtol=1e-12
        )

    def test_known_precision_gives_the_mixture_of_gaussians(self, case):
        """A Gamma as narrow as 1e-4 about precision 2: both likelihoods are torch's mixture to about 1 / a."""
        f, y, shape, _ = case
        shape = torch.full_like(shape, 1e8)
        parts = torch.distributions.Independent(
            torch.distributions.Normal(f.movedim(-3, -2), math.sqrt(0.5)), 1
        )
        weights = torch.distributions.Categorical(logits=torch.zeros(RUNS, N, S).double())
        wanted = torch.distributions.MixtureSameFamily(weights, parts).log_prob(y).mean(-1)
        for function in (regression_metrics.log_likelihood, regression_metrics.student_log_likelihood):
            torch.testing.assert_close(function(f, y, shape, shape / 2), wanted, rtol=0, atol=1e-6)

    def test_student_is_scipys(self, case):
        def density(y, f, a, b):
            return stats.t.logpdf(y, 2 * a, loc=f, scale=math.sqrt(b / a))

        np.testing.assert_allclose(
            regression_metrics.student_log_likelihood(*case), by_hand(case, density), rtol=1e-12
        )

    def test_integrating_the_precision_out_gains(self, case):
        """Jensen's inequality in general; at y = f the gap is lnΓ(a + 1/2) - lnΓ(a) - ψ(a) / 2, about 1 / 8a."""
        gap = regression_metrics.student_log_likelihood(*case) - regression_metrics.log_likelihood(*case)
        assert (gap > 0).all()
        zero, a = torch.zeros(1, 1, 1).double(), torch.tensor([50.0]).double()
        gap = regression_metrics.student_log_likelihood(zero, zero[0], a, a)
        gap -= regression_metrics.log_likelihood(zero, zero[0], a, a)
        wanted = special.gammaln(50.5) - special.gammaln(50) - special.digamma(50) / 2
        assert gap.item() == pytest.approx(wanted, rel=1e-9)

    def test_far_targets_do_not_underflow(self):
        f = torch.tensor([0.0, 1.0])[:, None, None]
        one = torch.ones(1)
        value = regression_metrics.log_likelihood(f, torch.full((1, 1), 1e3), one, one).item()
        assert value == pytest.approx(
            -0.5 * 999**2 - math.log(2) + 0.5 * special.digamma(1) - 0.5 * math.log(2 * math.pi), rel=1e-6
        )

    def test_float32_keeps_the_constant_of_a_large_shape(self):
        """lnΓ(a + 1/2) - lnΓ(a) in float32 would miss by 1e-2 at a = 2e4."""
        f, y = normal("f", 4, 30, 1), normal("y", 30, 1)
        a, b = torch.tensor([2e4]).double(), torch.tensor([3e4]).double()
        for function in (regression_metrics.log_likelihood, regression_metrics.student_log_likelihood):
            short = function(f.float(), y.float(), a.float(), b.float())
            assert short.dtype == torch.float32
            assert short.item() == pytest.approx(function(f, y, a, b).item(), abs=2e-5)


class TestSpread:
    def test_one_sample_has_the_standard_deviation_that_the_precision_says(self):
        f, a, b = torch.zeros(1, 1, 1).double(), torch.tensor([3.0]).double(), torch.tensor([5.0]).double()
        assert regression_metrics.predictive_sd(f, a, b).item() == pytest.approx((5 / 3) ** 0.5, rel=1e-12)

    def test_mixture_adds_the_samples_variance(self):
        f = torch.tensor([1.0, 5.0]).double()[:, None, None]  # variance 4
        sd = regression_metrics.predictive_sd(f, torch.tensor([2.0]).double(), torch.tensor([10.0]).double())
        assert sd.item() == pytest.approx(3.0)

    def test_a_shape_below_one_has_a_spread_too(self, case):
        f, _, shape, rate = case
        assert regression_metrics.predictive_sd(f, 0.5 * torch.ones_like(shape), rate).isfinite().all()


def quantiles(n, sd=1.0):
    """n targets that lie as evenly as possible in N(0, sd²)."""
    return sd * torch.special.ndtri((torch.arange(n).double() + 0.5) / n)[:, None]


def gaussian(sd):
    """One sample at 0 with noise of standard deviation ``sd``."""
    return torch.tensor([4.0]).double(), torch.tensor([4.0 * sd**2]).double()


class TestCalibration:
    def test_place_in_a_gaussian(self):
        y = torch.tensor([-1.644853627, 0.0, 1.0, 1.959963985]).double()[:, None] * 3
        places = regression_metrics.pit(torch.zeros(1, 4, 1).double(), y, *gaussian(3.0))
        torch.testing.assert_close(places[:, 0], torch.tensor([0.05, 0.5, stats.norm.cdf(1), 0.975]).double())

    def test_place_in_a_mixture(self, case):
        f, y, shape, rate = case
        scale = (rate / shape).sqrt().numpy()[:, None, None, :]
        wanted = stats.norm.cdf(y.numpy()[:, None], loc=f.numpy(), scale=scale).mean(1)
        np.testing.assert_allclose(regression_metrics.pit(*case), wanted, rtol=1e-9, atol=1e-14)

    def test_calibrated_targets(self):
        """Targets at the quantiles of a Gaussian: coverage is nominal to one target, the error to that."""
        n = 1000
        f, y = torch.zeros(1, n, 1).double(), quantiles(n, 2.5)
        for level in LEVELS:
            assert regression_metrics.coverage(f, y, *gaussian(2.5), level).item() == pytest.approx(
                level, abs=2 / n
            )
        assert regression_metrics.calibration_error(regression_metrics.pit(f, y, *gaussian(2.5))) < 2 / n

    def test_drawn_from_the_mixture(self):
        """Targets drawn from their mixtures: uniform places by Kolmogorov and Smirnov, errors as large as chance makes them."""
        runs, n = 20, 2000
        f = 2 * normal("centres", S, n, 1)
        chosen = (uniform("which", runs, n) * S).long()[..., None]  # a component for each target
        y = f.expand(runs, S, n, 1).gather(1, chosen[:, None]).squeeze(1) + 0.7 * normal("noise", runs, n, 1)
        shape, rate = (v.expand(runs, 1) for v in gaussian(0.7))
        places = regression_metrics.pit(f.expand(runs, S, n, 1), y, shape, rate)
        assert stats.kstest(places.flatten().numpy(), "uniform").pvalue > 0.01
        errors = regression_metrics.calibration_error(places)
        # E|X| of each level's coverage, a share of n with variance p (1 - p) / n
        chance = np.mean([math.sqrt(2 / math.pi * p * (1 - p) / n) for p in LEVELS])
        assert errors.mean().item() == pytest.approx(chance, rel=0.35)
        wrong = regression_metrics.pit(f.mean(0, keepdim=True).expand(runs, 1, n, 1), y, shape, rate)
        assert (
            regression_metrics.calibration_error(wrong).min() > 5 * errors.max()
        )  # the mean alone is overconfident

    @pytest.mark.parametrize("excess", [0.5, 2.0], ids=["too wide", "too narrow"])
    def test_wrong_width(self, excess):
        """Targets ``excess`` times as wide as said: the interval ± z covers 2 Φ(z / excess) - 1."""
        n = 4000
        f, y = torch.zeros(1, n, 1).double(), quantiles(n, 0.3 * excess)
        true = {level: 2 * stats.norm.cdf(stats.norm.ppf((1 + level) / 2) / excess) - 1 for level in LEVELS}
        for level, share in true.items():
            assert regression_metrics.coverage(f, y, *gaussian(0.3), level).item() == pytest.approx(
                share, abs=2 / n
            )
        places = regression_metrics.pit(f, y, *gaussian(0.3))
        wanted = np.mean([abs(share - level) for level, share in true.items()])
        assert regression_metrics.calibration_error(places).item() == pytest.approx(wanted, abs=2 / n)
        one = regression_metrics.calibration_error(places, [0.9]).item()
        assert one == pytest.approx(abs(true[0.9] - 0.9), abs=2 / n)

    def test_a_shift_is_seen(self):
        f, y = torch.zeros(1, 500, 1).double(), quantiles(500) + 1
        share = stats.norm.cdf(stats.norm.ppf(0.75) - 1) - stats.norm.cdf(-stats.norm.ppf(0.75) - 1)
        assert regression_metrics.coverage(f, y, *gaussian(1.0), 0.5).item() == pytest.approx(share, abs=4e-3)


FUNCTIONS = {
    "rmse": lambda f, y, a, b: regression_metrics.rmse(f, y),
    "log_likelihood": regression_metrics.log_likelihood,
    "student_log_likelihood": regression_metrics.student_log_likelihood,
    "predictive_sd": lambda f, y, a, b: regression_metrics.predictive_sd(f, a, b),
    "pit": regression_metrics.pit,
    "coverage": lambda f, y, a, b: regression_metrics.coverage(f, y, a, b, 0.5),
}
OF_TARGETS = [name for name in FUNCTIONS if name != "predictive_sd"]


@pytest.mark.parametrize("name", FUNCTIONS)
class TestEvery:
    def test_runs_are_apart_and_any_number_of_axes_lead(self, case, name):
        function = FUNCTIONS[name]
        together = function(*case)
        for run in range(RUNS):
            torch.testing.assert_close(
                together[run], function(*(x[run] for x in case)), rtol=1e-13, atol=1e-13
            )
        twice = function(*(torch.stack([x, x.flip(0)]) for x in case))
        torch.testing.assert_close(twice, torch.stack([together, together.flip(0)]), rtol=1e-13, atol=1e-13)

    def test_inputs_are_kept(self, case, name):
        before = [x.clone() for x in case]
        FUNCTIONS[name](*case)
        assert all(torch.equal(x, y) for x, y in zip(before, case, strict=True))

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_diverged_sample_is_refused(self, case, name, value):
        f = case[0].clone()
        f[1, 2, 3, 0] = value
        with pytest.raises(ValueError, match="1 of 330 sampled outputs are not finite"):
            FUNCTIONS[name](f, *case[1:])

    def test_nothing_to_measure_is_refused(self, case, name):
        f, _, shape, rate = case
        with pytest.raises(ValueError, match="nothing to measure"):
            FUNCTIONS[name](f[:, :0], case[1], shape, rate)

    @pytest.mark.parametrize("which", [2, 3], ids=["shape", "rate"])
    def test_no_gamma_is_refused(self, case, name, which):
        if name == "rmse":
            return
        args = list(case)
        for value in (0.0, math.nan):
            args[which] = torch.full_like(case[which], value)
            with pytest.raises(
                ValueError, match=f"{['shape', 'rate'][which - 2]} that is no positive number"
            ):
                FUNCTIONS[name](*args)


@pytest.mark.parametrize("name", OF_TARGETS)
class TestTargets:
    def test_of_all_runs_or_of_each(self, case, name):
        f, y, shape, rate = case
        shared = FUNCTIONS[name](f, y[0], shape, rate)
        torch.testing.assert_close(shared, FUNCTIONS[name](f, y[:1].expand_as(y), shape, rate))
        with pytest.raises(
            ValueError, match=r"targets of shape \(2, 11, 2\) for sampled outputs \(3, 5, 11, 2\)"
        ):
            FUNCTIONS[name](f, y[:2], shape, rate)

    def test_a_target_without_number_is_refused(self, case, name):
        f, y, shape, rate = case
        with pytest.raises(ValueError, match="66 of 66 targets are not finite"):
            FUNCTIONS[name](f, torch.full_like(y, math.nan), shape, rate)

    def test_a_constant_target_is_no_problem(self, case, name):
        f, y, shape, rate = case
        assert torch.isfinite(FUNCTIONS[name](f, torch.zeros_like(y), shape, rate)).all()


def test_calibration_error_keeps_runs_apart_and_refuses_what_has_no_level(case):
    places = regression_metrics.pit(*case)
    together = regression_metrics.calibration_error(places)
    assert together.shape == (RUNS,)
    for run in range(RUNS):
        assert together[run] == regression_metrics.calibration_error(places[run])
    for level in (0, 1, 1.5, math.nan):
        with pytest.raises(
            ValueError, match=r"level = .*: the nominal coverage of an interval must lie between"
        ):
            regression_metrics.coverage(*case, level)
    with pytest.raises(ValueError, match="no levels"):
        regression_metrics.calibration_error(places, [])
    with pytest.raises(ValueError, match="there are no examples"):
        regression_metrics.calibration_error(places[:, :0])
    with pytest.raises(ValueError, match="places in a predictive distribution are no numbers"):
        regression_metrics.calibration_error(places * math.nan)
