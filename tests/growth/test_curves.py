"""Curves with slopes that are known, and what each claim's measurement makes of them; short climbs against quadrature."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from lib.free_energy.truths import T0, T1, T2
from lib.growth import curves
from lib.growth.curves import Curve, Learner

CPU = torch.device("cpu")
LN10 = math.log(10)
SPREAD = torch.tensor([-0.03, -0.01, 0.01, 0.03], dtype=torch.float64)  # of the copies' slopes
HALF = stats.t.ppf(0.975, 3) * float(SPREAD.numpy().std(ddof=1)) / 2  # of the interval that it makes


def curve(widths, free_energy, *, truth=T1, decades=6, particles=500, gaussian=False):
    """Two sizes a decade from 10 on; ``free_energy`` maps log10 n to nats, and copies differ in their slopes."""
    n = 10 ** (torch.arange(2, 2 * decades + 1, dtype=torch.float64) / 2)
    free = torch.stack([free_energy(i) for i in n.log10()])[:, None] + SPREAD * n.log()[:, None]
    learner = Learner(truth, widths, gaussian)
    return Curve(learner, particles, n, free, torch.zeros_like(free), {}, 10)


def line(slope, constant=0.0):
    return lambda decade: slope * decade * LN10 + constant


def broken(*slopes, constant=0.0):
    """Slopes of the last decades, the first of them before those too; ends at n = 1e6."""
    knots = [6.0 - len(slopes) + k + 1 for k in range(len(slopes) - 1)]

    def value(decade):
        total, before = slopes[0] * decade * LN10 + constant, slopes[0]
        for knot, slope in zip(knots, slopes[1:], strict=True):
            total, before = total + (slope - before) * (decade - knot).clamp_min(0) * LN10, slope
        return total

    return value


def by_name(measurements):
    names = [(m.name, m.cell) for m in measurements]
    assert len(set(names)) == len(names)
    return dict(zip(names, measurements, strict=True))


def check(measurement, value, half=HALF, particles=500):
    """Value and interval, and what they rest on."""
    assert measurement.value == pytest.approx(value, abs=1e-9)
    assert measurement.low == pytest.approx(value - half, abs=1e-9)
    assert measurement.high == pytest.approx(value + half, abs=1e-9)
    assert (measurement.n, measurement.seeds) == (particles, 4)


class TestCurve:
    def test_slopes_are_those_of_the_line(self):
        one = curve((1, 2, 1), line(1.7, 3.0))
        np.testing.assert_allclose(one.slopes(3), 1.7 + SPREAD.expand(3, -1), rtol=1e-9)
        np.testing.assert_allclose(one.last, 1.7 + SPREAD, rtol=1e-9)

    def test_decades_are_told_apart(self):
        one = curve((1, 2, 1), broken(2.5, 1.9, 1.6))
        np.testing.assert_allclose(one.slopes(4).mean(1), [2.5, 2.5, 1.9, 1.6], rtol=1e-9)

    def test_sizes_are_found_by_their_ratio(self):
        one = curve((1, 2, 1), line(1.0))
        assert [one.at(n) for n in (10.0, 31.0, 32.0, 99.9, 1e6, 1e9)] == [0, 1, 1, 2, 10, 10]

    def test_a_curve_is_cut_behind_a_size(self):
        one = curve((1, 2, 1), broken(2.5, 1.9, 1.6))
        cut = one.until(1e5)
        assert float(cut.n[-1]) == pytest.approx(1e5)
        assert len(cut.n) == len(cut.free_energy) == len(cut.local) == 9
        np.testing.assert_allclose(cut.last.mean(), 1.9)
        assert torch.equal(one.until(1e6).n, one.n)

    def test_names(self):
        assert Learner(T1, (1, 4, 4, 1)).name == "T1: 1-4-4-1"
        assert Learner(T2, (2, 3, 1), gaussian=True).name == "T2: 2-3-1, normal inputs"
        assert Learner(T1, (1, 4, 1)).parameters == 13


class TestUpperBound:
    def test_is_the_slope_less_half_the_truths_parameters(self):
        found = by_name(curves.upper_bound([curve((1, 2, 1), line(1.7)), curve((1, 4, 1), line(1.9))]))
        check(found["slope_excess", "T1: 1-2-1"], 1.7 - 2)
        check(found["slope_excess", "T1: 1-4-1"], 1.9 - 2)
        assert len(found) == 2

    def test_wide_learners_go_by_a_name_of_their_own(self):
        found = curves.upper_bound([curve((1, 5, 1), line(2.2)), curve((1, 2, 3, 1), line(1.0))])
        assert [m.name for m in found] == ["wide_slope_excess"] * 2
        (plane,) = curves.upper_bound([curve((2, 5, 1), line(5.0), truth=T2)])
        assert plane.name == "slope_excess"
        assert plane.value == pytest.approx(0.5)


class TestStillFalling:
    COST = 4 * math.log(4)  # four redundant units, each dead with probability 1/4

    def small(self, one):
        return {one.learner.name: line(1.5, 2.0)(one.n.log10())}

    def test_embedding_trend_and_headroom(self):
        one = curve((1, 5, 1), broken(1.9, 2.3, 2.1, constant=2.0))
        found = by_name(curves.still_falling([one], self.small(one)))
        over = 0.4 * 4 + 0.8 + 0.6  # F_big - F_small at n = 1e6, in log 10
        half = HALF * 6 * LN10
        check(found["embedding_excess", "T1: 1-5-1"], over * LN10 - self.COST, half)
        check(found["wide_slope_trend", "T1: 1-5-1"], 2.1 - 2.3, 0)
        headroom = self.COST - over * LN10
        check(found["headroom_deficit", "T1: 1-5-1"], 0.1 * LN10 - headroom, HALF * 7 * LN10)

    def test_the_worst_size_counts_not_the_last(self):
        """F_big - F_small rises to its top at 1e5 and falls by half a decade's nats from there."""
        one = curve((1, 5, 1), broken(1.9, 1.0, constant=2.0))
        found = by_name(curves.still_falling([one], self.small(one)))
        assert found["embedding_excess", "T1: 1-5-1"].value == pytest.approx(0.4 * 5 * LN10 - self.COST)
        assert found["headroom_deficit", "T1: 1-5-1"].value == pytest.approx(
            -LN10 - self.COST + (0.4 * 5 - 0.5) * LN10
        )

    def test_a_planted_violation_is_above_any_tolerance(self):
        one = curve((1, 5, 1), line(2.0, 3.0 + self.COST))
        found = by_name(curves.still_falling([one], self.small(one)))
        assert found["embedding_excess", "T1: 1-5-1"].low > 0.2
        assert found["headroom_deficit", "T1: 1-5-1"].low > 0

    def test_is_for_wide_learners_of_one_hidden_layer(self):
        assert curves.still_falling([curve((1, 4, 1), line(1)), curve((1, 4, 4, 1), line(1))], {}) == []


class TestBelowBIC:
    def test_ratio_and_step_of_large_learners(self):
        """d = 7, 25, 33 against d* = 4: the first is no large learner, but the second is compared with it."""
        given = [curve((1, h, 1), line(s)) for h, s in ((8, 2.5), (2, 1.4), (4, 1.6))]
        given += [curve((1, 4, 4, 1), line(1.65))]
        found = by_name(curves.below_bic(given))
        check(found["bic_ratio", "T1: 1-8-1"], 2.5 / 12.5, HALF / 12.5)
        check(found["bic_ratio", "T1: 1-4-4-1"], 1.65 / 16.5, HALF / 16.5)
        check(found["bic_ratio_step", "T1: 1-8-1"], 2.5 / 12.5 - 1.6 / 6.5, HALF * (1 / 6.5 - 1 / 12.5))
        check(found["bic_ratio_step", "T1: 1-4-4-1"], 0.1 - 0.2, HALF * (1 / 12.5 - 1 / 16.5))
        assert len(found) == 4

    def test_sixteen_parameters_are_enough_and_the_first_has_no_step(self):
        (found,) = curves.below_bic([curve((1, 5, 1), line(4.0))])
        assert (found.name, found.value) == ("bic_ratio", pytest.approx(0.5))


class TestSaturation:
    def test_share_and_trend(self):
        one = curve((1, 4, 1), broken(1.5, 1.9, 1.8, 1.6))
        small = {"T1: 1-4-1": line(1.5, 7.0)(one.n.log10())}
        found = by_name(curves.saturation([one], small))
        bic = (13 - 4) / 2
        check(found["increase_share", "T1: 1-4-1"], 0.1 / bic, HALF / bic)
        check(found["increase_trend", "T1: 1-4-1"], (0.1 - 0.4) * LN10 / 2, 0)

    def test_what_the_small_learner_does_is_taken_off(self):
        one = curve((1, 2, 1), broken(1.5, 1.5, 1.5, 2.5))
        same = {"T1: 1-2-1": broken(1.5, 1.5, 1.5, 2.5)(one.n.log10())}
        found = by_name(curves.saturation([one], same))
        assert found["increase_share", "T1: 1-2-1"].value == pytest.approx(0, abs=1e-9)
        assert found["increase_trend", "T1: 1-2-1"].value == pytest.approx(0, abs=1e-9)

    def test_growth_like_bic_is_seen(self):
        one = curve((1, 4, 1), line(1.5 + 4.5))
        found = by_name(curves.saturation([one], {"T1: 1-4-1": line(1.5)(one.n.log10())}))
        assert found["increase_share", "T1: 1-4-1"].value == pytest.approx(1)


def test_differences_go_from_copy_to_copy():
    deep, shallow = curve((1, 2, 2, 1), line(1.58), particles=300), curve((1, 2, 1), line(1.55))
    (found,) = curves.difference("slope_difference", [(deep, shallow)])
    assert found.name == "slope_difference"
    assert found.cell.startswith("T1: 1-2-2-1")
    assert found.cell.endswith("1-2-1")
    assert found.n == 300
    assert found.value == pytest.approx(0.03)


class TestSharp:
    def test_truth_sized_learners_and_constants(self):
        found = by_name(
            curves.sharp(
                [curve((1, 1, 1), line(1.52)), curve((2, 2, 1), line(3.4), truth=T2)],
                [curve((1, 4, 1), broken(0.9, 0.8, 0.65), truth=T0)],
            )
        )
        check(found["sharp_error", "T1"], 0.02)
        check(found["sharp_error", "T2"], -0.1)
        check(found["constant_error", "T0: 1-4-1"], 0.15)
        check(found["constant_trend", "T0: 1-4-1"], -0.15, 0)
        assert len(found) == 4


def test_the_control_measures_an_exponent():
    one = curve((1, 1, 1), lambda decade: 0.3 * 10**decade, truth=T2)
    one.free_energy[:] = 0.3 * one.n[:, None] ** (0.9 + SPREAD)
    (found,) = curves.control(one)
    assert found.name == "growth_exponent"
    check(found, 0.9)


def test_the_table_shows_each_decade():
    one = curve((1, 2, 1), broken(2.5, 1.9, 1.6))
    ((name, d, last, first, second, third, half),) = curves.slope_table([one])
    assert (name, d, half) == ("T1: 1-2-1", 7, 3.5)
    assert last.startswith(f"{(2.5 * 4 + 1.9 + 1.6) * LN10:.2f} (")
    assert [text.split()[0] for text in (first, second, third)] == ["2.50", "1.90", "1.60"]
    assert third == f"1.60 ({1.6 - HALF:.2f} to {1.6 + HALF:.2f})"


class TestClimbs:
    SIZES: tuple = (10.0, 100.0, 1000.0)

    def climb(self, widths, **more):
        settings = {"points": 64, "particles": 400, "copies": 6, "seed": 1, "stream": 0, "device": CPU}
        return curves.climb(Learner(T1, widths, more.pop("gaussian", False)), self.SIZES, **settings | more)

    @pytest.mark.parametrize("gaussian", [False, True])
    def test_one_unit_against_quadrature(self, gaussian):
        found = self.climb((1, 1, 1), gaussian=gaussian, keep=[100.0])
        answer = curves.exact(Learner(T1, (1, 1, 1), gaussian), self.SIZES, 64, CPU)
        error = found.free_energy - answer[:, None]
        assert (error.mean(1).abs() < 5.9 * error.std(1) / math.sqrt(6) + 0.01).all()  # Student's 99.9 %: 6.9
        assert float(error.std(1).max()) < 0.2
        assert list(found.kept) == [100.0]
        assert found.kept[100.0].shape == (6, 400, 2)
        assert found.n.tolist() == list(self.SIZES)

    def test_the_local_slope_is_that_of_the_exact_curve(self):
        found = self.climb((1, 1, 1))
        near = torch.tensor([990.0, 1010.0], dtype=torch.float64)
        rise = curves.exact(Learner(T1, (1, 1, 1)), near, 64, CPU).diff() / near.log().diff()
        local = found.local[-1]
        assert abs(float(local.mean()) - float(rise)) < 6.9 * float(local.std()) / math.sqrt(6)
        assert float(local.std()) < 0.2

    def test_the_quadrature_has_the_known_slope(self):
        """T1 learnt by one unit: 3/2, and 2 would be BIC's."""
        n = torch.tensor([1e5, 1e6], dtype=torch.float64)
        rise = curves.exact(Learner(T1, (1, 1, 1)), n, 256, CPU).diff() / LN10
        assert float(rise) == pytest.approx(1.5, abs=0.05)

    def test_redundant_units_cost_no_more_than_the_embedding(self):
        found = self.climb((1, 2, 1))
        over = found.free_energy.mean(1) - curves.exact(Learner(T1, (1, 1, 1)), self.SIZES, 64, CPU)
        assert (over < math.log(4) + 0.2).all()

    def test_many_learners_come_back_in_order_with_numbers_of_their_own(self, tmp_path):
        learners = [Learner(T1, (1, 1, 1)), Learner(T1, (1, 1, 1), gaussian=True), Learner(T1, (1, 1, 1, 1))]
        last = dict(zip(learners, (1e3, 1e2, 10**1.5), strict=True))
        settings = {"points": 16, "particles": 40, "copies": 2, "seed": 1, "device": CPU, "last": last}
        found = curves.climb_all(learners, keep={learners[0]: [1e2, 1e3]}, folder=tmp_path, **settings)
        assert list(found) == [learner.name for learner in learners]
        each = [10 ** (i / curves.SIZES_A_DECADE) for i in range(curves.SIZES_A_DECADE, 99)]
        for learner, one in zip(learners, found.values(), strict=True):
            assert one.learner == learner
            assert one.n.tolist() == pytest.approx([n for n in each if n < 1.001 * last[learner]])
        kept = found[learners[0].name].kept
        assert sorted(kept) == pytest.approx([1e2, 1e3])
        assert len(list(tmp_path.iterdir())) == 3
        again = curves.climb_all(learners, keep={learners[0]: [1e2, 1e3]}, folder=tmp_path, **settings)
        for one, other in zip(found.values(), again.values(), strict=True):
            assert torch.equal(one.free_energy, other.free_energy)

    def test_streams_share_no_random_numbers(self):
        one, other = (self.climb((1, 1, 1), stream=s, particles=40, copies=2).free_energy for s in (0, 1))
        assert not torch.isclose(one, other).any()


def test_the_population_of_normal_inputs_has_their_moments():
    uniform, normal = (curves.problem_of(Learner(T1, (1, 1, 1), g), 100) for g in (False, True))
    for problem, square in ((uniform, 1 / 3), (normal, 1.0)):
        assert float(problem.weights.sum()) == pytest.approx(1)
        assert float((problem.weights * problem.inputs[..., 0].square()).sum()) == pytest.approx(
            square, rel=1e-3
        )
    assert uniform.inputs.shape[1] == 100
    assert normal.inputs.shape[1] == curves.GAUSSIAN_POINTS
