"""Units counted on particles whose units are known, and the measurements on made-up counts."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from lib import randomness
from lib.free_energy import targets, truths
from lib.free_energy.truths import T1
from lib.growth import mechanism
from lib.growth.curves import Curve, Learner
from lib.growth.mechanism import Units

POINTS = 64
N = (100.0, 1000.0, 10000.0)


def curve(widths, kept):
    """A curve of which only the particles matter, two copies."""
    n = torch.tensor(N, dtype=torch.float64)
    nothing = torch.zeros(3, 2, dtype=torch.float64)
    return Curve(Learner(T1, widths), 500, n, nothing, nothing, kept, 1)


# weight and bias of a unit on [-1, 1]
DEAD, DEAD_FALLING, ON, KINKED = (1.0, -1.5), (-0.4, -0.5), (0.5, 2.0), (-1.0, 0.3)


def particles(*networks, copies=2):
    """Positions of networks with three units each, the same in every copy."""
    rows = [[unit[0] for unit in network] + [unit[1] for unit in network] for network in networks]
    return torch.tensor(rows, dtype=torch.float64).expand(copies, -1, -1).contiguous()


PLANTED = {
    10000.0: particles((DEAD, DEAD_FALLING, KINKED), (DEAD, ON, KINKED)),
    100.0: particles((ON, KINKED, KINKED), (DEAD, KINKED, KINKED)),
    1000.0: particles((DEAD, KINKED, ON), (KINKED, DEAD, DEAD_FALLING)),
}


def numpy_posterior(position, n):
    """Mean and covariance of the output layer of a network with one hidden layer, given the population at n."""
    x = truths.grid(POINTS).numpy()
    y = T1(truths.grid(POINTS)[None])[0, :, 0].numpy()
    half = len(position) // 2

    def features(at):
        return np.concatenate(
            [np.maximum(at * position[:half] + position[half:], 0), np.ones((len(at), 1))], 1
        )

    phi = features(x)
    covariance = np.linalg.inv(np.eye(half + 1) + n / POINTS * phi.T @ phi)
    return n / POINTS * covariance @ phi.T @ y, covariance, features


class TestLook:
    FOUND = mechanism.look(curve((1, 3, 1), PLANTED), POINTS, 1)

    def test_shares_of_each_kind_of_unit(self):
        assert self.FOUND.n.tolist() == list(N)
        for values, expected in (
            (self.FOUND.dead, [1, 3, 3]),
            (self.FOUND.always_on, [1, 1, 1]),
            (self.FOUND.kinked, [4, 2, 2]),
        ):
            np.testing.assert_allclose(values, np.array(expected)[:, None] / 6 * np.ones(2), atol=1e-12)

    def test_the_dead_share_is_one_of_redundant_units(self):
        """Three units learn a truth of one: two are redundant."""
        np.testing.assert_allclose(self.FOUND.dead_share[:, 0], np.array([1, 3, 3]) / 4)

    def test_spread_of_the_function_at_the_probes(self):
        """Variance of the two particles' means, and the mean of their variances."""
        probes = np.array(mechanism.PROBES)[:, None]
        for i, n in enumerate(N):
            means, variances = [], []
            for position in PLANTED[n][0].numpy():
                mean, covariance, features = numpy_posterior(position, n)
                means.append(features(probes) @ mean)
                variances.append(((features(probes) @ covariance) * features(probes)).sum(1))
            expected = np.sqrt(np.var(means, axis=0, ddof=1) + np.mean(variances, axis=0))
            np.testing.assert_allclose(self.FOUND.spread[i, 0], expected, rtol=1e-6)

    def test_outgoing_weights_of_dead_units_have_the_law_of_the_prior(self):
        """At the largest n three dead units, 32 draws each: Kolmogorov's 1e-4 quantile is 2.2 over the root of their number."""
        assert self.FOUND.draws == 3 * mechanism.OUTPUT_DRAWS
        assert (self.FOUND.outgoing < 2.2 / math.sqrt(self.FOUND.draws)).all()
        many = particles(*[(DEAD, ON, KINKED)] * 400)
        found = mechanism.look(curve((1, 3, 1), PLANTED | {10000.0: many}), POINTS, 1)
        assert found.draws == 400 * mechanism.OUTPUT_DRAWS
        assert (found.outgoing < 2.2 / math.sqrt(found.draws)).all()
        assert found.outgoing[0] != found.outgoing[1]  # copies have numbers of their own

    def test_live_units_counted_as_dead_are_seen(self, monkeypatch):
        honest = targets.CollapsedHinges.dead
        many = particles(*[(DEAD, ON, KINKED)] * 400)
        monkeypatch.setattr(targets.CollapsedHinges, "dead", lambda self, p: honest(self, p).roll(1, 2))
        found = mechanism.look(curve((1, 3, 1), PLANTED | {10000.0: many}), POINTS, 1)
        assert (found.outgoing > 0.2).all()

    def test_deeper_networks_count_all_layers_but_no_always_on_units(self):
        """1-1-1-1: a dead first unit feeds a second that is positive by its bias; then the other way round."""
        first_dead = [DEAD[0], DEAD[1], 1.0, 0.5]
        second_dead = [KINKED[0], KINKED[1], -1.0, -0.5]
        position = torch.tensor([first_dead, second_dead, second_dead], dtype=torch.float64).expand(2, -1, -1)
        found = mechanism.look(curve((1, 1, 1, 1), {10000.0: position.contiguous()}), POINTS, 1)
        np.testing.assert_allclose(found.dead, [[0.5, 0.5]])
        assert found.always_on.isnan().all()
        assert found.draws == 2 * mechanism.OUTPUT_DRAWS  # of the last layer alone


def fake(share, exponent, outgoing, n=N):
    """Units with these dead shares (C, J) of the one redundant unit of 1-2-1 and spreads that are powers of n."""
    n = torch.tensor(n, dtype=torch.float64)
    share = torch.tensor(share, dtype=torch.float64)
    exponent = torch.tensor(exponent, dtype=torch.float64)
    spread = (n[:, None] ** exponent)[..., None] * torch.tensor([1.0, 2.0, 0.3], dtype=torch.float64)
    return Units(curve((1, 2, 1), {}), n, share / 2, 0 * share, spread, np.array(outgoing), 4_000)


class TestMeasure:
    SHARE = ((0.2, 0.4), (0.5, 0.5), (0.45, 0.49), (0.9, 0.8))
    SIZES = (100.0, 1000.0, 10000.0, 100000.0)

    def found(self, least=1e2, sizes=SIZES):
        one = fake(self.SHARE, (-0.5, -0.46), (0.01, 0.03), sizes)
        return {m.name: m for m in mechanism.measure([one], least)}

    def test_known_values(self):
        found = self.found()
        assert {m.cell for m in found.values()} == {"T1: 1-2-1"}
        assert found["dead_share_growth"].value == pytest.approx((0.7 + 0.4) / 2)
        assert found["dead_share_step"].value == pytest.approx((-0.05 - 0.01) / 2)
        assert found["outgoing_distance"].value == pytest.approx(0.02)
        assert found["live_exponent"].value == pytest.approx(-0.48)
        half = stats.t.ppf(0.975, 1) * 0.02
        assert found["live_exponent"].high == pytest.approx(-0.48 + half)
        assert [found[name].n for name in found] == [500, 500, 4_000, 500]
        assert {m.seeds for m in found.values()} == {2}

    def test_shares_count_from_the_least_size_on(self):
        assert self.found(1e3)["dead_share_growth"].value == pytest.approx((0.4 + 0.3) / 2)

    def test_the_exponent_is_that_of_large_sizes(self):
        one = fake(self.SHARE, (-0.5, -0.46), (0.01, 0.03), self.SIZES)
        one.spread[0] *= 7.0
        found = {m.name: m for m in mechanism.measure([one], 1e2)}
        assert found["live_exponent"].value == pytest.approx(-0.48)


def test_the_figure_takes_means_over_copies():
    one = fake(TestMeasure.SHARE, (-0.5, -0.5), (0.0, 0.0), TestMeasure.SIZES)
    found = mechanism.shares(one)
    assert list(found) == ["dead, 1-2-1", "always on, 1-2-1", "kink inside, 1-2-1"]
    n, dead = found["dead, 1-2-1"]
    np.testing.assert_allclose(n, TestMeasure.SIZES)
    np.testing.assert_allclose(dead, np.mean(TestMeasure.SHARE, axis=1) / 2)
    np.testing.assert_allclose(found["kink inside, 1-2-1"][1], 1 - dead)


def test_random_units_are_dead_a_quarter_of_the_time():
    """Prior draws: P(dead) = P(always on) = 1/4, within four standard errors."""
    position = randomness.normal(1, torch.arange(2), "units", 0, (4_000, 6), torch.float64)
    found = mechanism.look(curve((1, 3, 1), {10000.0: position}), 512, 1)
    error = math.sqrt(3 / 16 / 12_000)
    for share in (found.dead, found.always_on):
        assert ((share - 0.25).abs() < 4 * error + 0.002).all()
