"""Every move leaves its target as it is, and a fault in any of them is seen.

The simulator is that of Geweke (2004): parameters from the prior, data from the parameters; any number of moves that leave
the posterior of these data unchanged then leave parameters and data jointly distributed as they were. So the parameters
are still standard normal, and the residuals of the network still noise. Each of 1,200 problems has its own data and one
particle: all values are independent, and the tests' p-values are exact but for the t-test's normality.

All checks of a move together raise a false alarm with a probability below 1e-4 (Bonferroni); the seeds are fixed.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats

from lib import randomness
from lib.free_energy.features import Layers
from lib.free_energy.regression import Regression
from lib.free_energy.targets import target
from lib.smc import moves
from lib.smc.moves import State, at
from lib.smc.units import Units, units_of

FALSE_ALARM, SEEN = 1e-4, 1e-6
PROBLEMS, POINTS = 1_200, 8
SHALLOW, DEEP = (1, 2, 1), (2, 3, 2, 1)


def numbers(kind, purpose, step, *shape):
    draw = getattr(randomness, kind)
    return draw(5, torch.arange(PROBLEMS), purpose, step, shape, torch.float64)


@dataclass(frozen=True)
class Joint:
    """Exact draws of parameters and data: the target of every data set, and the state that made it."""

    target: object
    t: torch.Tensor
    state: State
    units: Units


def joint(widths, collapsed, temperatures=(0.5, 1.0, 4.0)):
    """At temperature t the likelihood is that of noise with variance 1 / t; a third of the problems has each."""
    layers = Layers(widths)
    t = torch.tensor(temperatures, dtype=torch.float64)[torch.arange(PROBLEMS) % len(temperatures)][:, None]
    theta = numbers("normal", "theta", 0, 1, layers.dimension)
    inputs = 2 * numbers("uniform", "x", 0, POINTS, widths[0]) - 1
    values = layers.forward(theta, inputs, last=False)[-1][:, 0].mT
    targets = values + numbers("normal", "noise", 0, POINTS, 1) / t[..., None].sqrt()
    zero = torch.zeros(PROBLEMS, dtype=torch.float64)
    problem = Regression(inputs, targets, torch.ones(PROBLEMS, POINTS, dtype=torch.float64), zero)
    known = target(problem, widths, collapsed=collapsed)
    state = at(theta[..., : known.layers.dimension].contiguous(), known, t)
    return Joint(known, t, state, units_of(known.layers, collapsed))


CASES = {
    f"{'-'.join(map(str, widths))}{', collapsed' if collapsed else ''}": joint(widths, collapsed)
    for widths in (SHALLOW, DEEP)
    for collapsed in (False, True)
}
WHOLE = [name for name in CASES if "collapsed" not in name]


def hmc(case, state, i, step=0.25, leapfrog=4):
    sizes = step * moves.step_factors(0.5, numbers("normal", "jitter", i, 1))
    momentum = numbers("normal", "momentum", i, 1, state.position.shape[2])
    return moves.hmc(
        state, case.target, case.t, sizes, leapfrog, momentum, numbers("uniform", "chance", i, 1)
    )


def redraw(case, state, i):
    fresh = numbers("normal", "fresh", i, 1, state.position.shape[2])
    choice, chance = numbers("uniform", "choice", i, 1), numbers("uniform", "chance", i, 1)
    return moves.redraw(state, case.target, case.t, case.units, fresh, choice, chance)


def rescale(case, state, i):
    choice, chance = numbers("uniform", "choice", i, 1), numbers("uniform", "chance", i, 1)
    normal = numbers("normal", "log c", i, 1)
    return moves.rescale(state, case.target, case.t, case.units, choice, normal, chance)


def refresh_dead(case, state, i):
    fresh = numbers("normal", "fresh", i, 1, state.position.shape[2])
    return moves.refresh_dead(state, case.target, case.units, fresh)


def permute(case, state, i):
    return moves.permute(state, case.units, numbers("uniform", "choice", i, 1))


def after(case, move, times):
    """The state after many moves, and the mean acceptance probability."""
    state, accepted = case.state, []
    for i in range(times):
        state, probability = move(case, state, i)
        accepted.append(float(probability.mean()))
    return state, sum(accepted) / times


def p_value(case, state):
    """The smallest p-value of all checks, times their number."""
    known = case.target
    z = state.position[:, 0] / known.scale
    if not z.isfinite().all():
        return 0.0
    found = [stats.kstest(column, "norm").pvalue for column in z.T.numpy()]
    found += [stats.ttest_1samp(column.square(), 1).pvalue for column in z.T]
    value = at(state.position, known, case.t).log_likelihood
    rise = (value - case.state.log_likelihood)[:, 0].numpy()  # its mean is zero: both are draws of one law
    if rise.std() > 1e-9:
        found.append(stats.ttest_1samp(rise, 0).pvalue)
    if not known.collapsed:  # t times the squared residuals are squared normal numbers
        found.append(stats.kstest(-2 * value[:, 0].numpy(), stats.chi2(POINTS).cdf).pvalue)
    return min(found) * len(found)


MOVES = {"hmc": (hmc, 12), "redraw": (redraw, 30), "rescale": (rescale, 30)}


class TestInvariance:
    @pytest.mark.parametrize("name", CASES)
    def test_the_simulator_itself(self, name):
        assert p_value(CASES[name], CASES[name].state) > FALSE_ALARM

    @pytest.mark.parametrize("name", CASES)
    @pytest.mark.parametrize("move", MOVES)
    def test_metropolis_moves(self, move, name):
        case = CASES[name]
        state, accepted = after(case, *MOVES[move])
        assert 0.1 < accepted < 0.97  # neither idle nor unchecked
        assert (state.position != case.state.position).any(2).double().mean() > 0.8
        assert p_value(case, state) > FALSE_ALARM
        renewed = at(state.position, case.target, case.t).log_likelihood
        torch.testing.assert_close(state.log_likelihood, renewed, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("name", CASES)
    @pytest.mark.parametrize("move", [refresh_dead, permute])
    def test_gibbs_moves_and_exchanges(self, move, name):
        case = CASES[name]
        state, accepted = after(case, move, 5)
        assert accepted == 1
        nothing_leaves = move is refresh_dead and not case.units.outgoing.any()
        changed = (state.position != case.state.position).any(2).double().mean()
        assert changed == 0 if nothing_leaves else changed > 0.15
        assert p_value(case, state) > FALSE_ALARM
        renewed = at(state.position, case.target, case.t).log_likelihood
        torch.testing.assert_close(state.log_likelihood, renewed, rtol=1e-9, atol=1e-9)


def always(self, new, chance, probability):
    return new


FACTOR = torch.tensor(
    [[1.3, 0.0, 0.0, 0.0], [0.5, 0.7, 0.0, 0.0], [-0.3, 0.2, 1.0, 0.0], [0.1, -0.6, 0.4, 0.8]],
    dtype=torch.float64,
).expand(PROBLEMS, -1, -1)


class TestMass:
    """HMC whose inverse mass is LL'."""

    CASE = CASES["1-2-1, collapsed"]

    def hmc(self, case, state, i, step=0.25):
        sizes = torch.full((PROBLEMS, 1), step, dtype=torch.float64)
        momentum, chance = numbers("normal", "momentum", i, 1, 4), numbers("uniform", "chance", i, 1)
        return moves.hmc(state, case.target, case.t, sizes, 4, momentum, chance, FACTOR)

    def test_leaves_the_target_as_it_is(self):
        state, accepted = after(self.CASE, self.hmc, 12)
        assert 0.1 < accepted < 0.97
        assert p_value(self.CASE, state) > FALSE_ALARM

    def test_is_leapfrog_in_round_coordinates(self, monkeypatch):
        monkeypatch.setattr(State, "accept", always)
        case, p = self.CASE, numbers("normal", "momentum", 0, 1, 4)
        z = case.state.position
        for _ in range(4):
            for half in (True, False):
                p = p + 0.125 * (case.target.gradient(z, case.t)[1] - z) @ FACTOR
                z = z + 0.25 * p @ FACTOR.mT if half else z
        found, _ = self.hmc(case, case.state, 0)
        torch.testing.assert_close(found.position, z, rtol=1e-9, atol=1e-9)

    def test_the_spread_of_particles_is_the_factor_of_their_covariance(self):
        scale = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
        position = numbers("normal", "theta", 0, 50, 3)[:2]
        position[..., 1] += position[..., 0]
        found = moves.spread(position, scale)
        covariance = np.stack([np.cov((p / scale).T.numpy(), ddof=0) for p in position])
        extra = 1e-3 * np.trace(covariance, axis1=1, axis2=2)[:, None, None] / 3 * np.eye(3)
        np.testing.assert_allclose(found @ found.mT, covariance + extra, rtol=1e-6)
        assert (found.triu(1) == 0).all()
        assert torch.isfinite(
            moves.spread(position[:, :1].expand(-1, 5, -1), scale)
        ).all()  # copies of one draw


class TestPlantedFaults:
    """What the checks above are worth: each fault lowers the p-value a hundred times below the false-alarm probability."""

    @pytest.mark.parametrize("name", CASES)
    @pytest.mark.parametrize("move", ["hmc", "redraw"])
    def test_without_the_metropolis_step(self, monkeypatch, move, name):
        monkeypatch.setattr(State, "accept", always)
        coarse = {"hmc": lambda *of: hmc(*of, step=0.8), "redraw": redraw}[move]
        state, _ = after(CASES[name], coarse, MOVES[move][1])
        assert p_value(CASES[name], state) < SEEN

    @pytest.mark.parametrize("name", CASES)
    @pytest.mark.parametrize("error", [-1.0, 1.0])
    def test_a_wrong_power_in_the_jacobian(self, monkeypatch, name, error):
        """The acceptance of c to one power more or less."""
        honest = moves._probability
        logs = iter([moves.SPREAD * numbers("normal", "log c", i, 1) for i in range(30)])
        monkeypatch.setattr(moves, "_probability", lambda ratio: honest(ratio + error * next(logs)))
        state, _ = after(CASES[name], rescale, 30)
        assert p_value(CASES[name], state) < SEEN

    @pytest.mark.parametrize("name", [name for name in CASES if "collapsed" in name])
    def test_a_rescaling_that_forgets_that_the_output_layer_is_integrated_out(self, name):
        case = CASES[name]
        tables = case.units
        blind = Units(tables.exponents, tables.incoming, tables.outgoing, tables.exchanges, False)
        state, _ = after(Joint(case.target, case.t, case.state, blind), rescale, 60)
        assert p_value(case, state) < SEEN

    @pytest.mark.parametrize("name", WHOLE)
    def test_a_refreshed_unit_that_is_not_dead(self, monkeypatch, name):
        case = CASES[name]
        honest = type(case.target).dead
        monkeypatch.setattr(
            type(case.target), "dead", lambda self, position: honest(self, position) | (position[..., :1] > 0)
        )
        state, _ = after(case, refresh_dead, 1)
        assert p_value(case, state) < SEEN

    @pytest.mark.parametrize("name", CASES)
    def test_an_exchange_of_half_the_parameters(self, name):
        """Only what enters the units is exchanged, not what leaves them (collapsed: the weights without the biases)."""
        case, tables = CASES[name], CASES[name].units
        half = tables.exchanges.clone()
        last = slice(4, None) if name.startswith("1") else slice(9, None)
        last = slice(2, None) if name == "1-2-1, collapsed" else last
        half[..., last] = torch.arange(half.shape[1])[last]
        wrong = Units(tables.exponents, tables.incoming, tables.outgoing, half, tables.collapsed)
        state, _ = after(Joint(case.target, case.t, case.state, wrong), permute, 15)
        assert p_value(case, state) < SEEN

    @pytest.mark.parametrize("name", WHOLE)
    def test_the_temperature_of_another_stage(self, name):
        case = CASES[name]
        warmer = Joint(
            case.target, 0.5 * case.t, at(case.state.position, case.target, 0.5 * case.t), case.units
        )
        state, _ = after(warmer, hmc, 20)
        assert p_value(case, State(state.position, case.state.log_likelihood)) < SEEN


def outputs(widths, position):
    x = numbers("normal", "probes", 0, 30, widths[0])[: len(position)]
    return Layers(widths).forward(position, x, last=False)[-1]


@pytest.mark.parametrize("widths", [SHALLOW, DEEP])
@pytest.mark.parametrize("move", [rescale, permute])
def test_symmetries_keep_the_function_of_whole_networks(monkeypatch, move, widths):
    monkeypatch.setattr(State, "accept", always)
    case = CASES["-".join(map(str, widths))]
    for i in range(5):
        state, _ = move(case, case.state, i)
        moved = (state.position != case.state.position).any(2).double().mean()
        assert moved == 1
        before, now = outputs(widths, case.state.position), outputs(widths, state.position)
        assert ((now - before).abs() <= 1e-12 * (1 + before.abs().amax((1, 2, 3), keepdim=True))).all()


def test_refreshing_keeps_the_values_at_the_points_and_nothing_else():
    case = CASES["2-3-2-1"]
    state, _ = refresh_dead(case, case.state, 0)
    layers, problem = case.target.layers, case.target.problem
    before, now = (
        layers.forward(s.position, problem.inputs, last=False)[-1][..., 0, :] for s in (case.state, state)
    )
    torch.testing.assert_close(now, before, rtol=0, atol=1e-12)
    dead = case.target.dead(case.state.position)[:, 0]
    hand = [[9 + j, 12 + j] for j in range(3)] + [[17], [18]]  # what leaves each unit
    allowed = torch.zeros(PROBLEMS, 20, dtype=torch.bool)
    for unit, places in enumerate(hand):
        allowed[:, places] |= dead[:, unit, None]
    assert torch.equal(state.position[:, 0] != case.state.position[:, 0], allowed)
    fresh = numbers("normal", "fresh", 0, 1, 20)
    assert torch.equal(state.position[:, 0][allowed], fresh[:, 0][allowed])


def test_a_redraw_takes_one_unit_from_the_prior(monkeypatch):
    monkeypatch.setattr(State, "accept", always)
    case = CASES["2-3-2-1"]
    state, _ = redraw(case, case.state, 0)
    fresh, unit = numbers("normal", "fresh", 0, 1, 20), case.units.pick(numbers("uniform", "choice", 0, 1))
    hand = [[2 * j, 2 * j + 1, 6 + j] for j in range(3)] + [[9, 10, 11, 15], [12, 13, 14, 16]]
    chosen = torch.zeros(PROBLEMS, 20, dtype=torch.bool)
    for r, u in enumerate(unit[:, 0].tolist()):
        chosen[r, hand[u]] = True
    expected = torch.where(chosen, fresh[:, 0], case.state.position[:, 0])
    assert torch.equal(state.position[:, 0], expected)


def test_the_prior_scale_is_that_of_the_target():
    """Weights of scale 3 and biases of scale 0.5: redrawn, refreshed and rescaled parameters follow it."""
    zero = torch.zeros(PROBLEMS, dtype=torch.float64)
    nothing = Regression(
        torch.zeros(PROBLEMS, 1, 1, dtype=torch.float64),
        zero[:, None, None],
        zero[:, None],  # points of weight zero: the posterior is the prior
        zero,
    )
    known = target(nothing, (1, 1, 1, 1), collapsed=False, weight_scale=3.0, bias_scale=0.5)
    t = torch.ones(PROBLEMS, 1, dtype=torch.float64)
    first = at(numbers("normal", "theta", 0, 1, 6) * known.scale, known, t)
    case = Joint(known, t, first, units_of(known.layers, False))
    for move in (redraw, rescale, refresh_dead, hmc):
        state, _ = after(case, move, 30)
        assert not torch.equal(state.position, first.position)
        z = (state.position[:, 0] / known.scale).T.numpy()
        assert min(stats.kstest(column, "norm").pvalue for column in z) > FALSE_ALARM / len(z)
    assert refresh_dead(case, first, 0)[0].position[:, 0, 2].std() > 2.5  # all units are dead here


class TestRatio:
    """Acceptance probabilities against formulas written out."""

    @pytest.mark.parametrize(("choice", "power"), [(0.1, 1), (0.5, 1), (0.7, 3), (0.9, 3)])
    def test_a_rescaling_counts_what_enters_and_what_leaves(self, choice, power):
        """2-3-2-1: three enter and two leave a unit of the first layer, four and one of the second."""
        case = CASES["2-3-2-1"]
        enter, leave = (
            (
                [2 * int(5 * choice), 2 * int(5 * choice) + 1, 6 + int(5 * choice)],
                [9 + int(5 * choice), 12 + int(5 * choice)],
            )
            if choice < 0.6
            else (
                [9 + 3 * (choice > 0.8) + i for i in range(3)] + [15 + (choice > 0.8)],
                [17 + (choice > 0.8)],
            )
        )
        log_c = 0.7 * numbers("normal", "log c", 0, 1)
        _, probability = moves.rescale(
            case.state,
            case.target,
            case.t,
            case.units,
            torch.full_like(log_c, choice),
            log_c / moves.SPREAD,
            torch.zeros_like(log_c),
        )
        old, c = case.state.position[:, 0], log_c.exp()
        new = old.clone()
        new[:, enter] *= c
        new[:, leave] /= c
        ratio = stats.norm.logpdf(new).sum(1) - stats.norm.logpdf(old).sum(1) + power * log_c[:, 0].numpy()
        np.testing.assert_allclose(probability[:, 0], np.exp(np.minimum(0, ratio)), rtol=1e-10)

    def test_a_redraw_counts_the_likelihood_alone(self):
        case = CASES["1-2-1"]
        _, probability = redraw(case, case.state, 0)
        old, fresh = case.state.position[:, 0], numbers("normal", "fresh", 0, 1, 7)[:, 0]
        second = numbers("uniform", "choice", 0, 1) >= 0.5
        new = torch.where(
            second,
            torch.where(torch.arange(7) % 2 == 1, fresh, old),
            torch.where(torch.arange(7) % 2 == 0, fresh, old),
        )
        new[:, 4:] = old[:, 4:]
        ratio = at(new[:, None], case.target, case.t).log_likelihood - case.state.log_likelihood
        torch.testing.assert_close(probability, ratio.clamp_max(0).exp(), rtol=1e-9, atol=1e-12)


class TestHMC:
    @staticmethod
    def leapfrog(case, z, p, step, times):
        """Three lines a step, in the order of the textbook."""

        def force(z):
            return case.target.gradient(z * case.target.scale, case.t)[1] * case.target.scale - z

        for _ in range(times):
            p = p + 0.5 * step * force(z)
            z = z + step * p
            p = p + 0.5 * step * force(z)
        return z, p

    @staticmethod
    def raw(case, position, momentum, step, leapfrog):
        state = at(position, case.target, case.t)
        chance = torch.zeros_like(state.log_likelihood)
        sizes = torch.full_like(chance, step)
        return moves.hmc(state, case.target, case.t, sizes, leapfrog, momentum, chance)

    @pytest.mark.parametrize("name", CASES)
    def test_is_reversible(self, monkeypatch, name):
        monkeypatch.setattr(State, "accept", always)
        case = CASES[name]
        z, p = case.state.position, numbers("normal", "momentum", 0, *case.state.position.shape[1:])
        there, probability = self.raw(case, z, p, 0.1, 7)
        expected, turned = self.leapfrog(case, z, p, 0.1, 7)
        torch.testing.assert_close(there.position, expected, rtol=1e-9, atol=1e-9)
        energy = 0.5 * (z.square() + p.square() - expected.square() - turned.square()).sum(2)
        rise = at(expected, case.target, case.t).log_likelihood - case.state.log_likelihood + energy
        torch.testing.assert_close(probability, rise.clamp_max(0).exp(), rtol=1e-7, atol=1e-9)
        back, again = self.raw(case, there.position, -turned, 0.1, 7)
        away = (back.position - z).abs().amax((1, 2))
        # rounding may put a point on the other side of a kink: in a few networks of a thousand
        assert (away < 1e-9).double().mean() > 0.99
        both = (away < 1e-9)[:, None] & (probability < 1)
        assert (again[both] == 1).all()

    def test_the_error_of_the_energy_falls_with_the_square_of_the_step(self):
        """Linear regression has no kinks: half the step leaves a quarter of the error."""
        x, zero = numbers("normal", "x", 0, POINTS, 3), torch.zeros(PROBLEMS, dtype=torch.float64)
        y = numbers("normal", "y", 0, POINTS, 1)
        problem = Regression(x, y, torch.ones(PROBLEMS, POINTS, dtype=torch.float64), zero)
        known = target(problem, (3, 1), collapsed=False, bias=False, weight_scale=0.7)
        t = torch.ones(PROBLEMS, 1, dtype=torch.float64)
        case = Joint(known, t, at(0.7 * numbers("normal", "w", 0, 1, 3), known, t), None)
        p = numbers("normal", "momentum", 0, 1, 3)
        errors = []
        for steps in (16, 32, 64):
            _, probability = self.raw(case, case.state.position, p, 0.8 / steps, steps)
            errors.append(float((1 - probability).mean()))
        for coarse, fine in pairwise(errors):
            assert coarse / fine == pytest.approx(4, rel=0.1)
        assert 1e-5 < errors[-1] < 1e-2


class TestAcceptance:
    def test_what_is_no_number_is_never_taken(self):
        ratios = torch.tensor([math.nan, -math.inf, math.inf, 0.0, math.log(0.5)], dtype=torch.float64)
        assert moves._probability(ratios).tolist() == pytest.approx([0, 0, 1, 1, 0.5])

    @pytest.mark.parametrize("value", [math.nan, -math.inf])
    def test_a_lost_proposal_leaves_the_state(self, monkeypatch, value):
        case = CASES["1-2-1"]
        kind = type(case.target)

        def broken(self, *of):
            found, slope = honest(self, *of)
            return torch.full_like(found, value), slope

        honest = kind.gradient
        monkeypatch.setattr(kind, "gradient", broken)
        monkeypatch.setattr(kind, "log_likelihood", lambda self, s, t: torch.full_like(s, value))
        for move in (hmc, redraw):
            state, probability = move(case, case.state, 0)
            assert torch.equal(state.position, case.state.position)
            assert torch.equal(state.log_likelihood, case.state.log_likelihood)
            assert (probability == 0).all()

    def test_by_the_number_drawn(self):
        old = State(torch.zeros(1, 3, 2, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.float64))
        new = State(old.position + 1, old.log_likelihood - 2)
        chance = torch.tensor([[0.2, 0.5, 0.9]], dtype=torch.float64)
        found = old.accept(new, chance, torch.full_like(chance, 0.5))
        assert found.position[0, :, 0].tolist() == [1, 0, 0]
        assert found.log_likelihood.tolist() == [[-2, 0, 0]]

    def test_single_units_are_exchanged_with_nobody(self):
        one = torch.ones(1, 5, dtype=torch.float64)
        problem = Regression(one[..., None], one[..., None], one, one[:, 0])
        known = target(problem, (1, 1, 1), collapsed=False)
        t = torch.ones(1, 1, dtype=torch.float64)
        state = at(torch.ones(1, 4, 4, dtype=torch.float64), known, t)
        found, probability = moves.permute(
            state, units_of(known.layers, False), 0.5 * torch.ones(1, 4, dtype=torch.float64)
        )
        assert found is state
        assert (probability == 0).all()


class TestSystematic:
    WEIGHTS = torch.tensor([[0.1, 0.0, 0.35, 0.05, 0.5], [0.2, 0.2, 0.2, 0.2, 0.2]], dtype=torch.float64)

    @pytest.mark.parametrize("count", [5, 17])
    def test_every_count_is_the_floor_or_the_ceiling_of_its_expectation(self, count):
        shifts = numbers("uniform", "shift", 0)[:200]
        expected = (count * self.WEIGHTS).numpy()
        for shift in shifts:
            index = moves.systematic(self.WEIGHTS.log(), shift.expand(2), count)
            assert index.shape == (2, count)
            assert (index.diff(dim=1) >= 0).all()
            counts = np.stack([np.bincount(row, minlength=5) for row in index.numpy()])
            assert (counts >= np.floor(expected - 1e-9)).all()
            assert (counts <= np.ceil(expected + 1e-9)).all()

    def test_is_unbiased(self):
        """The mean over equally spaced shifts is the integral over the shift, up to one part in their number."""
        shifts = (torch.arange(4_000, dtype=torch.float64) + 0.5) / 4_000
        index = moves.systematic(self.WEIGHTS[:1].log().expand(4_000, -1), shifts, 7)
        share = np.bincount(index.flatten().numpy(), minlength=5) / 4_000
        np.testing.assert_allclose(share, 7 * self.WEIGHTS[0], atol=2 / 4_000)

    def test_takes_as_many_as_there_are_and_no_notice_of_a_constant(self):
        shift = torch.tensor([0.3, 0.9], dtype=torch.float64)
        one = moves.systematic(self.WEIGHTS.log(), shift)
        assert one.shape == (2, 5)
        assert torch.equal(one, moves.systematic(self.WEIGHTS.log() - 5_000, shift))
        assert one[1].tolist() == [0, 1, 2, 3, 4]  # equal weights: everybody once

    def test_rows_have_their_own_shift(self):
        weights = self.WEIGHTS[:1].expand(2, -1).log()
        together = moves.systematic(weights, torch.tensor([0.05, 0.95], dtype=torch.float64))
        for row, shift in zip(together, (0.05, 0.95), strict=True):
            alone = moves.systematic(weights[:1], torch.tensor([shift], dtype=torch.float64))
            assert torch.equal(row, alone[0])
        assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("jitter", [0.0, 0.7])
def test_step_factors_have_mean_one(jitter):
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    factors = moves.step_factors(jitter, torch.as_tensor(nodes)[None])[0].numpy()
    assert (factors * weights).sum() / weights.sum() == pytest.approx(1, rel=1e-9)
    assert np.log(factors[-1] / factors[0]) == pytest.approx(jitter * (nodes[-1] - nodes[0]))
