r"""The local learning coefficient of a network at a point, by many chains at once, with its own refusals.

$$ \begin{aligned}
   \hat\lambda(w^*) &= \beta\,\bigl(\mathrm{E}[n L_n(w)] - n L_n(w^*)\bigr), \qquad \beta = 1 / \log n, \\
   w &\sim \exp\bigl(-\beta n L_n(w) - \tfrac{\gamma}{2} \|w - w^*\|^2\bigr)
   \end{aligned} $$

(Lau, Furman, Wang, Murfet & Wei 2023; the temperature is that of WBIC, Watanabe 2013). Three samplers: Hamiltonian Monte Carlo,
MALA, which is the same with one leapfrog step, and SGLD (Welling & Teh 2011), $w' = w + \tfrac{h^2}{2} g + h\,\xi$ with g the
gradient of a minibatch, enlarged to n β, and no Metropolis step. SGLD's ε is the square of the step h.

Chain p of data set r draws from (seed, r, p, purpose, step) and tunes its own step, so that no chain depends on another one.
What a data set's chains cannot vouch for is NaN, with a sentence of reasons.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lib.device import one_thread
from lib.diagnostics import convergence
from lib.free_energy.features import Layers
from lib.free_energy.regression import Regression
from lib.free_energy.targets import Target
from lib.free_energy.truths import Truth
from lib.local_chains import HMC, Options, langevin, localise, metropolis


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
    local = localise(target, point, beta, options, members)
    trace, accepted, step, heat = (langevin if options.method == "sgld" else metropolis)(local, problem, seed)
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
