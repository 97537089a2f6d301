r"""The local learning coefficient of a network at a point, by many chains at once, with its own refusals.

$$ \hat\lambda(w^*) = \beta\,\bigl(\mathrm{E}[n L_n(w)] - n L_n(w^*)\bigr), \qquad
   w \sim \exp\bigl(-\beta n L_n(w) - \tfrac{\gamma}{2} \|w - w^*\|^2\bigr), \qquad \beta = 1 / \log n $$

(Lau, Furman, Wang, Murfet & Wei 2023; the temperature is that of WBIC, Watanabe 2013). Three samplers: Hamiltonian Monte Carlo,
MALA, which is the same with one leapfrog step, and SGLD (Welling & Teh 2011), $w' = w + \tfrac{h^2}{2} g + h\,\xi$ with g the
gradient of a minibatch, enlarged to n β, and no Metropolis step. SGLD's ε is the square of the step h.

Chain p of data set r draws from (seed, r, p, purpose, step) and tunes its own step, so that no chain depends on another one.
What a data set's chains cannot vouch for is NaN, with a sentence of reasons.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lib import randomness
from lib.device import one_thread
from lib.diagnostics import convergence
from lib.free_energy.features import Layers
from lib.free_energy.regression import Regression
from lib.free_energy.targets import Target, Whole, gradient_in_chunks
from lib.free_energy.truths import Truth

METHODS = ("hmc", "mala", "sgld")
CHECKS = (
    20  # states of an SGLD chain at which MALA's acceptance is computed: its mean is then known to about 0.02
)
BLOCK = 64  # transitions whose noise is drawn in one call


@dataclass(frozen=True)
class Options:
    """How the chains run; the defaults are the chapter's quick settings for T1, learner 1-4-1, n = 10,000.

    Attributes:
        method: "hmc", "mala" or "sgld".
        chains: a data set; four are the fewest that R-hat is usually asked of.
        warmup: transitions that are thrown away. HMC and MALA tune their step in them; SGLD has the first half of them made
            by MALA, which tunes the step, and the rest with the step that it keeps.
        draws, thin: kept states, and transitions from one to the next.
        leapfrog: steps of a trajectory (HMC).
        step: where the tuning of h begins, or h itself if ``adapt`` is False.
        adapt: whether the step is tuned in the warm-up, to the wanted ``acceptance``.
        jitter: standard deviation of the log-normal factor of each HMC step, against trajectories that close.
        gamma: the strength of the spring to w*. It must be weak beside the stiffness β n h_i of the directions that count,
            whose share of λ falls from 1/2 to 1/2 β n h_i / (β n h_i + γ), and strong enough to keep chains near w*.
        batch: examples of SGLD's minibatch, drawn with replacement, own ones a chain and step; None for all of them.
    """

    method: str = "hmc"
    chains: int = 4
    warmup: int = 100
    draws: int = 300
    thin: int = 1
    leapfrog: int = 8
    step: float = 0.01
    adapt: bool = True
    acceptance: float = 0.8
    jitter: float = 0.3
    gamma: float = 1.0
    batch: int | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"the method is {self.method!r}: choose one of {', '.join(METHODS)}.")
        if self.chains < 2 or self.draws < 20:
            raise ValueError(
                f"{self.chains} chains of {self.draws} draws cannot be judged: take two chains of twenty draws at least."
            )
        if min(self.warmup, self.gamma) < 0 or min(self.step, self.thin, self.leapfrog) <= 0:
            raise ValueError(
                f"warmup = {self.warmup} and gamma = {self.gamma} must not be negative; step = {self.step}, thin = {self.thin} "
                f"and leapfrog = {self.leapfrog} must be positive: correct the one that is not."
            )
        if self.batch is not None and (self.batch < 1 or self.method != "sgld"):
            raise ValueError(
                f"a minibatch of {self.batch} for {self.method}: only SGLD takes minibatches, of one example or more; "
                "leave batch out."
            )


HMC = Options()
MALA = Options(method="mala", leapfrog=1, jitter=0.0, acceptance=0.6, warmup=500, draws=500, thin=4)
SGLD = Options(
    method="sgld", leapfrog=1, jitter=0.0, acceptance=0.9, warmup=600, draws=200, thin=5, batch=100
)


@dataclass(frozen=True)
class Estimate:
    """The coefficient of each of R data sets, and what speaks for it.

    Attributes:
        value: the estimate, NaN where the chains are refused, (R,).
        standard_error: from the spread of the chains' own estimates, (R,).
        acceptance: mean over the kept transitions, (R, P); for SGLD what MALA would accept of its steps on all examples.
        step: the step h of each chain, (R, P); SGLD's ε is its square.
        trace: n L_n(w) - n L_n(w*) at the kept states, (draws, R, P).
        beta: the inverse temperature.
        rhat, ess: rank-normalised split R-hat and effective sample size of the trace, (R,), NaN where it is not finite.
        drift: second minus first half of the trace in units of the difference's own error, (R,).
        heat: what the noise of SGLD's minibatches adds to the estimate, ε tr(C) / 8 with C the covariance of their gradients,
            (R,): exact for a quadratic energy and small steps; 0 without minibatches.
        reasons: why a data set is refused, a sentence each, by its place.
    """

    value: Float[Tensor, " R"]
    standard_error: Float[Tensor, " R"]
    acceptance: Float[Tensor, "R P"]
    step: Float[Tensor, "R P"]
    trace: Float[Tensor, "draws R P"]
    beta: float
    rhat: Float[Tensor, " R"]
    ess: Float[Tensor, " R"]
    drift: Float[Tensor, " R"]
    heat: Float[Tensor, " R"]
    reasons: dict[int, str]

    @property
    def unchecked(self) -> Float[Tensor, " R"]:
        """The estimates of all data sets, the refused ones too."""
        return self.beta * self.trace.mean((0, 2))


ACCEPTANCE = {
    "hmc": (0.5, 0.98),  # aims at 0.8: below, chains stick at kinks; above, a trajectory is wastefully short
    "mala": (0.3, 0.95),  # aims at 0.6, near the best 0.574 (Roberts & Rosenthal 1998)
    "sgld": (0.7, 0.99),  # the peer's advice is about 0.9: below, ε biases; above, chains have not moved
}


@one_thread()
def estimate(
    target: Target,
    point: Float[Tensor, "*R D"],
    n: int,
    *,
    seed: int,
    options: Options = HMC,
    problem: Regression | None = None,
    beta: float | None = None,
    members: Int64[Tensor, " R"] | None = None,
    acceptance: tuple[float, float] | None = None,
    rhat_max: float = 1.1,  # four chains of some hundred dependent draws: 1.01 would ask for ten times as many
    drift_max: float = 5.0,  # in standard errors of batches' means, which are too small for chains that mix slowly
    heat_max: float = 0.4,  # of the estimate: the tolerance of devinterp's own tests, used up by minibatch noise alone
) -> Estimate:
    """The estimate at ``point``, one for all data sets or one each, with ``n`` examples in each data set.

    ``target`` holds whole networks (``collapsed=False``); ``problem``, the examples behind it, is what minibatches are drawn
    from. ``members`` number the data sets in the random numbers. ``acceptance`` is the range allowed to the mean over chains,
    by default that of `ACCEPTANCE`. Raises ValueError for what cannot be run; data sets whose chains fail are NaN.
    """
    beta = 1 / math.log(n) if beta is None else beta
    if target.collapsed:
        raise ValueError(
            "the target has its output layer integrated out, but w* is a point in all parameters: pass collapsed=False."
        )
    if options.batch is not None and problem is None:
        raise ValueError(
            "minibatches need the examples: pass problem=, the Regression that the target is made of."
        )
    local = _localise(target, point, beta, options, members)
    trace, accepted, step, heat = (_langevin if options.method == "sgld" else _metropolis)(
        local, problem, seed
    )
    low, high = acceptance or ACCEPTANCE[options.method]
    means = beta * trace.mean(0)
    rhat, ess = _meeting(trace)
    drift = drift_of(trace)
    value, reasons = means.mean(1), {}
    for r in range(len(value)):
        why = []
        if not bool(torch.isfinite(trace[:, r]).all()):
            why.append("its chains left the finite numbers (take a smaller step)")
        else:
            mean = float(accepted[r].mean())
            if not low <= mean <= high:
                what = "MALA's acceptance of its step" if options.method == "sgld" else "the acceptance"
                cure = "larger" if mean > high else "smaller"
                why.append(f"{what} is {mean:.4f}, outside {low} to {high} (take a {cure} step)")
            if not rhat[r] <= rhat_max:
                why.append(
                    f"R-hat of the energy is {rhat[r]:.2f}, above {rhat_max} (run longer, or start elsewhere)"
                )
            if not abs(drift[r]) <= drift_max:
                why.append(
                    f"the energy drifts by {drift[r]:.1f} standard errors, more than {drift_max} (lengthen the warm-up)"
                )
            if not heat[r] <= heat_max * value[r].abs():
                why.append(
                    f"minibatch noise alone adds about {heat[r]:.2f} to an estimate of {value[r]:.2f}, more than {heat_max} of it "
                    "(take larger batches, a smaller step, or a smaller beta)"
                )
            if not value[r] >= 0:
                why.append(
                    f"the mean energy lies below that of w*, an estimate of {value[r]:.3g}: w* is no minimum (descend first)"
                )
        if why:
            reasons[r] = f"Data set {r} is refused: " + "; ".join(why) + "."
    refused = torch.zeros(len(value), dtype=torch.bool, device=value.device)
    refused[list(reasons)] = True
    error = means.std(1) / options.chains**0.5
    value = value.masked_fill(refused, math.nan)
    return Estimate(value, error, accepted, step, trace, beta, rhat, ess, drift, heat, reasons)


def _meeting(trace: Tensor) -> tuple[Tensor, Tensor]:
    """R-hat and effective sample size of each data set's trace, NaN where it is not finite or never changes."""
    found = torch.full((2, trace.shape[1]), math.nan, dtype=torch.float64)
    for r, draws in enumerate(trace.transpose(0, 1).cpu()):
        if bool(torch.isfinite(draws).all()) and bool((draws.std(0) > 0).all()):
            one = convergence("energy", draws.numpy())
            found[:, r] = found.new_tensor([one.rhat, one.ess])
    return found.to(trace.device).unbind()


def drift_of(trace: Float[Tensor, "draws R P"], batches: int = 5) -> Float[Tensor, " R"]:
    """Mean of the second half minus that of the first in units of the error that the second half's batches tell.

    The first half's do not count: the spread of a descent would hide it.
    """
    length = len(trace) // (2 * batches)
    parts = trace[: 2 * batches * length].unflatten(0, (2, batches, length)).mean(2)
    first, last = parts.mean((1, 3))
    spread = (parts[1] - last[:, None]).square().sum((0, 2)) / (batches * trace.shape[2] - 1)
    return (last - first) / (2 * spread / (batches * trace.shape[2])).sqrt()


@dataclass(frozen=True)
class _State:
    """Positions (R, P, D), the log density up to a constant (R, P), its gradient, and n L_n (R, P)."""

    position: Tensor
    log_density: Tensor
    gradient: Tensor
    energy: Tensor

    def accept(self, new: _State, taken: Tensor) -> _State:
        fields = ((getattr(new, name), getattr(self, name)) for name in vars(self))
        return _State(*(torch.where(taken[..., None] if a.ndim == 3 else taken, a, b) for a, b in fields))


@dataclass(frozen=True)
class _Local:
    """The localised, tempered density about w* (R, 1, D), with the numbers (R P,) of its chains in every draw."""

    target: Target
    centre: Float[Tensor, "R 1 D"]
    t: Float[Tensor, "R 1"]
    options: Options
    numbers: Int64[Tensor, " chains"]

    def at(self, position: Float[Tensor, "R P D"]) -> _State:
        value, slope = gradient_in_chunks(self.target, position, self.t)
        away, gamma = position - self.centre, self.options.gamma
        density = value - 0.5 * gamma * away.square().sum(-1)
        return _State(position, density, slope - gamma * away, -value / self.t)

    def start(self) -> _State:
        return self.at(self.centre.expand(-1, self.options.chains, -1).contiguous())

    def noise(self, purpose: str, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Momentum (R, P, D), a normal and a uniform number (R, P) of transition 0, 1, 2, ..."""
        shape = (len(self.centre), self.options.chains)
        for block in count():  # 24 random bits a number are plenty, and half the work of 53
            normal = randomness.normal(
                seed, self.numbers, f"{purpose} momentum", block, (BLOCK, self.centre.shape[2] + 1)
            )
            uniform = randomness.uniform(seed, self.numbers, f"{purpose} chance", block, (BLOCK,))
            normal = normal.to(self.t.dtype).transpose(0, 1).unflatten(1, shape)
            uniform = uniform.to(self.t.dtype).T.unflatten(1, shape)
            yield from zip(normal[..., 1:].contiguous(), normal[..., 0], uniform, strict=True)

    def propose(self, state: _State, step: Tensor, momentum: Tensor, leapfrog: int) -> tuple[_State, Tensor]:
        """The end of a trajectory, and the probability with which it is accepted, 0 where it is not finite."""
        before, new, step = state.log_density - 0.5 * momentum.square().sum(-1), state, step[..., None]
        momentum = momentum + 0.5 * step * state.gradient
        for i in range(leapfrog):
            new = self.at(new.position + step * momentum)
            momentum = momentum + (step if i + 1 < leapfrog else 0.5 * step) * new.gradient
        rise = new.log_density - 0.5 * momentum.square().sum(-1) - before
        return new, torch.exp(rise.clamp_max(0.0)).nan_to_num(0.0)

    def transition(
        self, state: _State, log_step: Tensor, noise: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[_State, Tensor]:
        momentum, normal, chance = noise
        step = torch.exp(log_step + self.options.jitter * normal)
        leapfrog = self.options.leapfrog if self.options.method == "hmc" else 1
        new, probability = self.propose(state, step, momentum, leapfrog)
        return state.accept(new, chance < probability), probability


def _localise(target: Target, point: Tensor, beta: float, options: Options, members: Tensor | None) -> _Local:
    members = torch.arange(target.problems) if members is None else members
    chains = torch.arange(options.chains, device=point.device)
    numbers = (members.to(point.device)[:, None] << 32 | chains).flatten()
    centre = point.expand(target.problems, point.shape[-1])[:, None]
    local = _Local(target, centre, centre.new_full((target.problems, 1), beta), options, numbers)
    if not bool(torch.isfinite(local.start().energy).all()):
        raise ValueError("the energy at w* is not finite: choose another point.")
    return local


def _tuned(local: _Local, state: _State, noise: Iterator, transitions: int) -> tuple[_State, Tensor]:
    """Each chain's log step by Robbins & Monro; the mean over the second half is what stays."""
    options = local.options
    log_step = torch.full_like(state.energy, math.log(options.step))
    seen = []
    for i in range(transitions):
        state, probability = local.transition(state, log_step, next(noise))
        if options.adapt:
            pull = probability - options.acceptance
            if 4 * i < transitions:  # upwards as fast as downwards, while the step may be far off
                pull = torch.where(pull > 0, pull / (1 - options.acceptance), pull)
            log_step = log_step + (i + 1) ** -0.5 * pull
        seen.append(log_step)
    return state, torch.stack(seen[transitions // 2 :]).mean(0) if seen else log_step


def _metropolis(
    local: _Local, problem: Regression | None, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """HMC and MALA: the trace, each chain's mean acceptance, its step, and no heat."""
    options, noise, state = local.options, local.noise("local", seed), local.start()
    baseline, trace, total = state.energy, [], torch.zeros_like(state.energy)
    state, log_step = _tuned(local, state, noise, options.warmup)
    for i in range(options.draws * options.thin):
        state, probability = local.transition(state, log_step, next(noise))
        total += probability
        if (i + 1) % options.thin == 0:
            trace.append(state.energy - baseline)
    return (
        torch.stack(trace),
        total / (options.draws * options.thin),
        log_step.exp(),
        torch.zeros_like(total[:, 0]),
    )


def _langevin(local: _Local, problem: Regression | None, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """SGLD: the trace, what MALA would accept of its steps at `CHECKS` states, its step, and its minibatches' heat."""
    options, noise, state = local.options, local.noise("local", seed), local.start()
    baseline, trace, accepted, heat = state.energy, [], [], torch.zeros_like(state.energy)
    rows = None if options.batch is None else _rows(problem)
    tuning = options.warmup // 2 if options.adapt else 0
    state, log_step = _tuned(local, state, noise, tuning)
    step, position = log_step.exp(), state.position
    away = local.noise("local check", seed)
    for i in range(tuning - options.warmup, options.draws * options.thin):
        check = i >= 0 and i // options.thin * CHECKS // options.draws >= len(accepted)
        now = local.at(position) if rows is None or check else None
        if i >= 0 and i % options.thin == 0:
            energy = (
                local.target.energy(local.target.statistics(position), local.t) if now is None else now.energy
            )
            trace.append(energy - baseline)
        slope = (
            now.gradient if rows is None else _on_minibatch(local, rows, position, seed, i + options.warmup)
        )
        if check:
            accepted.append(local.propose(now, step, next(away)[0], 1)[1])
            heat += (slope - now.gradient).square().sum(-1) * step.square() / 8
        position = position + 0.5 * (step * step)[..., None] * slope + step[..., None] * next(noise)[0]
    mean = torch.stack(accepted).mean(0)
    return torch.stack(trace), mean, step, (heat / len(accepted)).mean(1)


def _rows(problem: Regression) -> Float[Tensor, "rows columns"]:
    """All examples of all data sets, one a row: inputs, targets, weight, so that an example is one place in memory."""
    return torch.cat([problem.inputs, problem.targets, problem.weights[..., None]], dim=2).flatten(0, 1)


def _on_minibatch(
    local: _Local, rows: Tensor, position: Float[Tensor, "R P D"], seed: int, i: int
) -> Float[Tensor, "R P D"]:
    """The localised density's gradient with the sum over examples estimated by a minibatch, each chain's own."""
    sets, chains, batch = *position.shape[:2], local.options.batch
    size, widths = len(rows) // sets, local.target.layers.widths
    chosen = randomness.integers(seed, local.numbers, "local minibatch", i, size, (batch,)).view(sets, -1)
    chosen += size * torch.arange(sets, device=chosen.device)[:, None]
    examples = rows.index_select(0, chosen.flatten()).view(sets * chains, batch, -1)
    inputs, targets, weights = examples.split([widths[0], widths[-1], 1], dim=2)
    small = Regression(
        inputs.contiguous(), targets.contiguous(), weights[..., 0], rows.new_zeros(len(examples))
    )
    target = Whole(small, local.target.layers, local.target.scale)
    t = local.t.repeat_interleave(chains, 0) * (size / batch)
    slope = target.gradient(position.flatten(0, 1)[:, None], t)[1].view_as(position)
    return slope - local.options.gamma * (position - local.centre)


def planted(truth: Truth, width: int, depth: float = 8.0) -> Float[Tensor, " D"]:
    """The point in a learner of one hidden layer that computes the truth: its units, and dead ones behind them.

    A dead unit has no weights in either direction and the bias -``depth``. On inputs in [-1, 1]^M it wakes when weights of
    size ``depth`` / M have grown against the spring γ; at γ = 1 and M = 1 the default is 5.6 standard deviations away.
    Raises ValueError for a truth of another depth and a learner that is too narrow.
    """
    inputs, *hidden, outputs = truth.widths
    if len(hidden) != 1 or width < hidden[0]:
        raise ValueError(
            f"{truth.name} has the widths {truth.widths} and the learner {width} hidden units: the point is known for one "
            "hidden layer at least as wide as the truth's."
        )
    point = torch.zeros(Layers((inputs, width, outputs)).dimension, dtype=torch.float64)
    known = Layers(truth.widths).split(point.new_tensor(truth.parameters))
    (weight, bias), (out, level) = Layers((inputs, width, outputs)).split(point)
    bias.fill_(-depth)
    weight[: hidden[0]], bias[: hidden[0]] = known[0]
    out[:, : hidden[0]] = known[1][0]
    level.copy_(known[1][1])
    return point


@one_thread()
def descend(
    target: Target, point: Float[Tensor, "*R D"], steps: int = 400, rate: float = 0.02
) -> Float[Tensor, "R D"]:
    """The minimum of n L_n that Adam (Kingma & Ba 2015) reaches from a point, its rate falling to zero by half a cosine.

    At a true w* that is not the data's own minimum the estimate is lower by about λ β: n L_n(w*) lies λ above that minimum in
    the mean, and Lau et al. define the coefficient at a minimum. Units without a gradient stay where they are.
    """
    position = point.expand(target.problems, point.shape[-1])[:, None].clone()
    one = position.new_ones(target.problems, 1)
    first, second = torch.zeros_like(position), torch.zeros_like(position)
    for i in range(steps):
        slope = -target.gradient(position, one)[1]
        first = 0.9 * first + 0.1 * slope
        second = 0.99 * second + 0.01 * slope.square()
        size = rate * 0.5 * (1 + math.cos(math.pi * i / steps))
        direction = first / (1 - 0.9 ** (i + 1)) / ((second / (1 - 0.99 ** (i + 1))).sqrt() + 1e-12)
        position = position - size * direction
    return position[:, 0]
