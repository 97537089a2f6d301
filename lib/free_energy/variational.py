r"""What Gaussians say of the free energy: two variational bounds and Laplace's approximation, for R problems at once.

With $q$ a Gaussian over all parameters of a network (Hinton & van Camp 1993; Opper & Archambeau 2009),

$$ F_n - n S_n \;\le\; E_q[E(w) - E(w^*)] + \mathrm{KL}(q \,\|\, N(0, \mathrm{scale}^2)) , $$

with equality only where q is the posterior. `fit_mean_field` and `fit_full_gaussian` minimise the right-hand side over Gaussians
with independent coordinates, and over all Gaussians. `fit_laplace` expands about the best maximum of the joint density instead
and bounds nothing. All is computed in units of the prior's standard deviations, $z = w / \mathrm{scale}$.

**The descent** follows the natural gradient in coordinates that move with q: $z = \mu + L\varepsilon$, $\mu \to \mu + L\delta$,
$L \to L(I + A)$ with A lower triangular, where the Fisher metric is 1 (2 on the diagonal of A) and one rate suits stiff and
free directions alike (Lin, Nielsen, Khan & Schmidt 2021). With $h(z) = E + \tfrac12|z|^2$ the gradients are the means of

$$ u = L^\top \nabla h(z) - \varepsilon \quad (\text{in } \delta), \qquad \mathrm{tril}(u\, \varepsilon^\top) \quad (\text{in } A). $$

The $-\varepsilon$ is the entropy's share along a sample's path: its mean is that of the closed form, and u is zero for every
sample where q is the posterior (Roeder, Wu & Duvenaud 2017). Independent coordinates are the case of a diagonal A.

**Starts.** A Gaussian cannot follow a symmetry and settles on one of many optima. The book starts inside the true posterior, at
particles of a converged run of `lib.smc`, with dead units moved to the middle of their region, where the best optima have them:
a remaining gap is then the family's and not that of a bad start. Starts far away need more steps than the quick settings'.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lib import randomness
from lib.free_energy.features import Layers
from lib.free_energy.targets import Target, Whole

CHUNK = 256  # samples of fresh noise at a time: what they need stays in the cache
ASLEEP = -1.25  # bias of a sleeping unit in prior deviations: where the optima of T1 have theirs
Starts = Float[Tensor, "R K D"]
Members = Int64[Tensor, " R"] | None
Shape = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Options:
    """How a Gaussian is found. The reasons are pilots on T1 with 1, 2 and 4 units at n = 100 and 1000.

    Attributes:
        screen: starts that are looked at, half for their dead units, half for their joint density.
        rounds: (starts left, samples, steps). Many samples at the end: rare ones that wake a sleeping unit weigh heavily.
        rates: of the natural gradient, first and last, falling geometrically: 0.3 loses an e-th of an error in three steps.
        reach: longest step in the Fisher metric, against samples far out.
        width: first deviations in units of Gauss-Newton's: wide Gaussians leave the region where those were computed.
        averaged: last share of a round's steps whose Gaussians are averaged (Polyak & Juditsky 1992): worth ten times the steps.
        judge: energies a problem that each choice between starts may cost, on common random numbers.
        fresh: samples of the reported bound.
        climbs, polish: starts that Laplace's method climbs from, and Gauss-Newton steps of each.
    """

    screen: int = 16
    rounds: tuple[tuple[int, int, int], ...] = ((6, 8, 25), (2, 32, 25), (1, 128, 70))
    rates: tuple[float, float] = (0.3, 0.02)
    reach: float = 1.0
    width: float = 0.5
    averaged: float = 0.5
    judge: int = 1024
    fresh: int = 2048
    climbs: int = 8
    polish: int = 60

    def __post_init__(self) -> None:
        samples = [samples for _, samples, _ in self.rounds]
        if not samples or any(number < 2 or number % 2 for number in (*samples, self.fresh)):
            raise ValueError(
                f"rounds = {self.rounds}, fresh = {self.fresh}: samples come in pairs of opposite sign, so that their number "
                "must be even, and one round is needed at least."
            )


@dataclass(frozen=True)
class Gaussians:
    """K Gaussians for each of R problems in units of the prior's scale: their means and lower triangular factors."""

    mean: Float[Tensor, "R K D"]
    factor: Float[Tensor, "R K D D"]

    def keep(self, chosen: Int64[Tensor, "R k"]) -> Gaussians:
        """The chosen ones of each problem."""
        return Gaussians(_take(self.mean, chosen), _take(self.factor, chosen))

    def place(self, noise: Float[Tensor, "R S D"]) -> Float[Tensor, "R K S D"]:
        """mean + factor noise: all Gaussians of a problem see the same noise."""
        return self.mean[:, :, None] + noise[:, None] @ self.factor.mT


@dataclass(frozen=True)
class Fit:
    """The best Gaussian of each of R problems, and what it says of F_n - n S_n.

    Attributes:
        free_energy: (R,), not a number where the fit was refused; the reason is in ``record["refused"]``.
        standard_error: of its Monte Carlo mean, (R,); zero for Laplace's method.
        start: which of the given starts it came from, (R,).
        position: mean of the Gaussian (or the maximum), in units of the parameters, (R, D).
        factor: lower triangular factor of its covariance, likewise, (R, D, D).
        record: ``refused``, a sentence by problem; ``trace``, the best bound before each round (rounds, R); ``slope``, for
            Laplace's method, the length of the gradient at the maximum in the Gaussian's own metric (R,).
    """

    free_energy: Float[Tensor, " R"]
    standard_error: Float[Tensor, " R"]
    start: Int64[Tensor, " R"]
    position: Float[Tensor, "R D"]
    factor: Float[Tensor, "R D D"]
    record: dict[str, Any]


def fit_mean_field(
    target: Target, starts: Starts, options: Options | None = None, *, seed: int, members: Members = None
) -> Fit:
    """The least upper bound of F_n - n S_n by Gaussians with independent coordinates; ``members`` number the problems."""
    return _descend(target, starts, options or Options(), seed, members, _diagonal)


def fit_full_gaussian(
    target: Target, starts: Starts, options: Options | None = None, *, seed: int, members: Members = None
) -> Fit:
    """The least upper bound of F_n - n S_n by Gaussians with any covariance; ``members`` number the problems."""
    return _descend(target, starts, options or Options(), seed, members, torch.tril)


def fit_matrix_gaussian(
    target: Target, starts: Starts, options: Options | None = None, *, seed: int, members: Members = None
) -> Fit:
    r"""The least upper bound of F_n - n S_n by matrix Gaussians with diagonal covariances, one a layer.

    A layer's weights, with the bias as a last column, have deviations $s_i t_j$: the mean-field family with fewer numbers, so
    that its least bound is no lower. The descent goes on from what `fit_mean_field` found (``record["mean_field"]``), whose
    logarithms of deviations are projected on sums of a row's and a column's number; so is each step, which makes it the
    natural gradient of the smaller family, where the metric is as flat. Both bounds are judged on the same noise.
    """
    options = options or Options()
    mean_field = fit_mean_field(target, starts, options, seed=seed, members=members)
    members = torch.arange(target.problems, device=starts.device) if members is None else members
    shape, dimension = rank_one(target.layers), starts.shape[2]
    logs = (mean_field.factor / target.scale[:, None]).diagonal(dim1=-2, dim2=-1).log()
    q = _from_logs((mean_field.position / target.scale)[:, None], shape(logs[:, None].diag_embed()))

    def noise(purpose: str, k: int, samples: int, times: int = 1) -> Float[Tensor, "times R S D"]:
        size = (times, samples // 2, dimension)
        half = randomness.normal(seed, members, f"variational {purpose}", k, size).double()
        return torch.cat([half, -half], 2).transpose(0, 1)

    (_, samples, steps), (first, last) = options.rounds[-1], options.rates
    averaged, mean, logs = max(1, round(options.averaged * steps)), 0.0, 0.0
    for i, drawn in enumerate(noise("step", len(options.rounds), samples, steps)):
        q = step(target, q, drawn, first * (last / first) ** (i / steps), options.reach, shape)
        if i >= steps - averaged:
            mean, logs = mean + q.mean / averaged, logs + q.factor.diagonal(dim1=-2, dim2=-1).log() / averaged
    q = _from_logs(mean, logs.diag_embed())  # a mean of logarithms stays a sum of rows' and columns'

    sizes = [min(CHUNK, options.fresh - done) for done in range(0, options.fresh, CHUNK)]
    values = [integrand(target, q, noise("fresh", c, size)[0])[:, 0] for c, size in enumerate(sizes)]
    pairs = torch.cat([value.unflatten(1, (2, -1)).mean(1) for value in values], 1)
    error = pairs.std(1) / math.sqrt(pairs.shape[1])
    return _fit(target, q, pairs.mean(1), error, mean_field.start, {"mean_field": mean_field})


def rank_one(layers: Layers) -> Shape:
    """The shape of a diagonal whose entries are, layer by layer, sums a_i + b_j: the nearest to a matrix's diagonal."""

    def shape(matrix: Tensor) -> Tensor:
        diagonal = matrix.diagonal(dim1=-2, dim2=-1).clone()
        for weight, bias in layers.split(diagonal):  # views
            whole = weight if bias is None else torch.cat([weight, bias[..., None]], -1)
            fitted = (
                whole.mean(-1, keepdim=True)
                + whole.mean(-2, keepdim=True)
                - whole.mean((-1, -2), keepdim=True)
            )
            weight.copy_(fitted[..., : weight.shape[-1]])
            if bias is not None:
                bias.copy_(fitted[..., -1])
        return diagonal.diag_embed()

    return shape


def _from_logs(mean: Float[Tensor, "R K D"], logs: Float[Tensor, "R K D D"]) -> Gaussians:
    """Independent coordinates, the logarithms of their deviations on a diagonal."""
    return Gaussians(mean, logs.diagonal(dim1=-2, dim2=-1).exp().diag_embed())


def fit_laplace(target: Target, starts: Starts, options: Options | None = None) -> Fit:
    r"""$E - E(w^*) + \tfrac12|z|^2 + \tfrac12\log|I + SGS|$ at the best maximum of the joint density (MacKay 1992).

    G is the generalised Gauss-Newton matrix $\sum_i q_i J_i^\top J_i$, S the prior's scale. The exact Hessian of a ReLU network
    may be indefinite there, and the maximum may lie in a kink of the density, where no Hessian is. No bound: a unit switched
    off entirely has no curvature and costs nothing.
    """
    options = options or Options()
    _refuse(target, starts)
    z = put_to_sleep(target, starts) / target.scale
    names = _order(_joint(target, z))[:, : options.climbs]
    z = _take(z, names)
    value, length = _joint(target, z), torch.ones_like(z[..., 0])
    for i in range(options.polish):
        if i % 10 == 0:
            factor = _start(target, z, 1.0, torch.tril).factor
        newton = (factor @ (factor.mT @ _slope(target, z)[..., None]))[..., 0]
        new = z - length[..., None] * newton
        reached = _joint(target, new)
        better = reached < value
        z, value = torch.where(better[..., None], new, z), torch.where(better, reached, value)
        length = torch.where(better, (2 * length).clamp_max(1.0), 0.25 * length)
    best = _order(value)[:, :1]
    top = _start(target, _take(z, best), 1.0, torch.tril)
    log_determinant = -2 * top.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    free_energy = (value.gather(1, best) + 0.5 * log_determinant)[:, 0]
    record = {"slope": (top.factor.mT @ _slope(target, top.mean)[..., None])[:, 0, :, 0].norm(dim=-1)}
    return _fit(target, top, free_energy, torch.zeros_like(free_energy), names.gather(1, best)[:, 0], record)


def gauss_newton(target: Target, position: Float[Tensor, "R K D"]) -> Float[Tensor, "R K D D"]:
    """sum_i q_i J_i^T J_i over points and outputs, with J the derivative of an output in the parameters."""
    if isinstance(target, Whole):
        inputs, weights = target.problem.inputs, target.problem.weights
    else:
        inputs = target.tables.points[..., None]
        weights = target.tables.sums[0].view(target.problems, -1).diff(dim=1)
    total = position.new_zeros(*position.shape, position.shape[2])
    for output in range(target.layers.widths[-1]):
        slopes = jacobian(target.layers, position, inputs, output)
        total += (slopes * weights[:, None, None]) @ slopes.mT
    return total


def jacobian(
    layers: Layers, position: Float[Tensor, "R K D"], inputs: Float[Tensor, "R N M"], output: int
) -> Float[Tensor, "R K D N"]:
    """The derivative of one output at every point in every parameter."""
    values, blocks = layers.forward(position, inputs, last=False), []
    slope = torch.zeros_like(values[-1])
    slope[:, :, output] = 1.0
    for i, (weight, _) in reversed(list(enumerate(layers.split(position)))):
        if layers.activation == "relu" and i + 1 < len(layers.widths) - 1:
            slope = slope * (values[i + 1] > 0)
        if layers.bias:
            blocks.append(slope)
        blocks.append((slope[:, :, :, None] * values[i][:, :, None]).flatten(2, 3))
        slope = weight.mT @ slope
    return torch.cat(blocks[::-1], 2)


def put_to_sleep(target: Target, starts: Float[Tensor, "R K D"]) -> Float[Tensor, "R K D"]:
    """The same functions with every dead unit at the middle of its region: no weights in or out, a negative bias."""
    position = starts.clone()
    layers, scales = target.layers.split(position), target.layers.split(target.scale)
    if len(layers) == 1 or not target.layers.bias or target.layers.activation != "relu":
        return position
    dead = target.dead(starts).split(target.layers.widths[1:-1], -1)
    for i, asleep in enumerate(dead):
        (weight, bias), (after, _) = layers[i : i + 2]
        weight.masked_fill_(asleep[..., None], 0.0)
        bias.copy_(torch.where(asleep, ASLEEP * scales[i][1], bias))
        after.masked_fill_(asleep[..., None, :], 0.0)
    return position


def integrand(target: Target, q: Gaussians, noise: Float[Tensor, "R S D"]) -> Float[Tensor, "R K S"]:
    """E - truth + log q - log prior at each sample: its mean is the bound, and its variance is zero for the posterior.

    The mean of log q - log prior is the closed form of KL, but together with E the samples' own vary less.
    """
    z = q.place(noise)
    log_determinant = q.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    energy = target.statistics((z * target.scale).flatten(1, 2)).unflatten(1, z.shape[1:3])
    return energy + 0.5 * (z.square().sum(-1) - noise.square().sum(-1)[:, None]) - log_determinant[..., None]


def step(
    target: Target, q: Gaussians, noise: Float[Tensor, "R S D"], rate: float, reach: float, shape: Shape
) -> Gaussians:
    """One step of the descent above; ``shape`` keeps the part of A that may move, ``reach`` bounds the step's length."""
    z = q.place(noise)
    slope = _slope(target, z.flatten(1, 2)).unflatten(1, z.shape[1:3])
    u = slope @ q.factor - noise[:, None]
    shift, spread = -rate * u.mean(2), shape(u.mT @ noise[:, None]) * (-rate / noise.shape[1])
    diagonal = spread.diagonal(dim1=-2, dim2=-1)
    diagonal *= 0.5
    square = shift.square().sum(-1) + spread.square().sum((-1, -2)) + diagonal.square().sum(-1)
    shrink = (reach * square.rsqrt()).clamp_max(1.0)[..., None]
    shift, spread = shift * shrink, spread * shrink[..., None]
    diagonal = spread.diagonal(dim1=-2, dim2=-1)
    diagonal.copy_(diagonal.exp())  # to first order 1 + A, and never negative
    return Gaussians(q.mean + (q.factor @ shift[..., None])[..., 0], q.factor @ spread)


def _descend(
    target: Target, starts: Starts, options: Options, seed: int, members: Members, shape: Shape
) -> Fit:
    _refuse(target, starts)
    members = torch.arange(target.problems, device=starts.device) if members is None else members
    dimension, (first, last) = starts.shape[2], options.rates

    def noise(purpose: str, k: int, samples: int, times: int = 1) -> Float[Tensor, "times R S D"]:
        size = (times, samples // 2, dimension)
        half = randomness.normal(seed, members, f"variational {purpose}", k, size).double()
        return torch.cat([half, -half], 2).transpose(0, 1)

    def best(q: Gaussians, names: Tensor, k: int, count: int) -> tuple[Gaussians, Tensor, Tensor]:
        pairs = max(1, options.judge // (2 * names.shape[1]))
        value = integrand(target, q, noise("judge", k, 2 * pairs)[0]).mean(2)
        chosen = _order(value)[:, :count]
        return q.keep(chosen), names.gather(1, chosen), value.gather(1, chosen[:, :1])[:, 0]

    q, names = _screen(target, starts, options, shape)
    total, done, trace = sum(steps for _, _, steps in options.rounds), 0, []
    for k, (count, samples, steps) in enumerate(options.rounds):
        q, names, value = best(q, names, k, count)
        trace.append(value)
        drawn, mean, factor = noise("step", k, samples, steps), 0.0, 0.0
        averaged = max(1, round(options.averaged * steps))
        for i in range(steps):
            q = step(target, q, drawn[i], first * (last / first) ** (done / total), options.reach, shape)
            done += 1
            if i >= steps - averaged:
                mean, factor = mean + q.mean / averaged, factor + q.factor / averaged
        q = Gaussians(mean, factor)
    q, names, _ = best(q, names, len(options.rounds), 1)

    sizes = [min(CHUNK, options.fresh - done) for done in range(0, options.fresh, CHUNK)]
    values = [integrand(target, q, noise("fresh", c, size)[0])[:, 0] for c, size in enumerate(sizes)]
    pairs = torch.cat([value.unflatten(1, (2, -1)).mean(1) for value in values], 1)
    error = pairs.std(1) / math.sqrt(pairs.shape[1])
    return _fit(target, q, pairs.mean(1), error, names[:, 0], {"trace": torch.stack(trace)})


def _screen(target: Target, starts: Starts, options: Options, shape: Shape) -> tuple[Gaussians, Tensor]:
    """First Gaussians at the most promising starts, and which these are."""
    z = put_to_sleep(target, starts) / target.scale
    joint = _joint(target, z)
    half = (options.screen // 2) if len(target.layers.widths) > 2 else 0
    sleeping = target.dead(starts).sum(-1) if half else torch.zeros_like(joint)
    asleep = _order(joint.argsort(1).argsort(1).to(joint) - joint.shape[1] * sleeping)[:, :half]
    others = _order(joint.scatter(1, asleep, math.inf))[:, : options.screen - half]
    chosen = torch.cat([asleep, others], 1)[:, : starts.shape[1]]
    return _start(target, _take(z, chosen), options.width, shape), chosen


def _start(target: Target, z: Float[Tensor, "R K D"], width: float, shape: Shape) -> Gaussians:
    """Gaussians about z with the precision I + SGS (or its diagonal), narrowed by ``width``."""
    scale = target.scale
    precision = scale[:, None] * gauss_newton(target, z * scale) * scale
    precision.diagonal(dim1=-2, dim2=-1).add_(1.0)
    if shape is _diagonal:
        return Gaussians(z, width * _diagonal(precision).diagonal(dim1=-2, dim2=-1).rsqrt().diag_embed())
    # precision = U U^T with U upper triangular: its inverse transposed is the covariance's lower factor
    upper, failed = torch.linalg.cholesky_ex(precision.flip(-1, -2))
    upper = torch.where(failed[..., None, None] == 0, upper.flip(-1, -2), math.nan)
    one = torch.eye(len(scale), dtype=z.dtype, device=z.device).expand_as(upper)
    return Gaussians(z, width * torch.linalg.solve_triangular(upper, one, upper=True).mT.contiguous())


def _take(values: Float[Tensor, "R K *rest"], chosen: Int64[Tensor, "R k"]) -> Float[Tensor, "R k *rest"]:
    return values[torch.arange(len(chosen), device=chosen.device)[:, None], chosen]


def _diagonal(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).diag_embed()


def _joint(target: Target, z: Float[Tensor, "R K D"]) -> Float[Tensor, "R K"]:
    """h: minus the logarithm of the joint density, less that of the truth and the prior's constant."""
    return target.statistics(z * target.scale) + 0.5 * z.square().sum(-1)


def _slope(target: Target, z: Float[Tensor, "R K D"]) -> Float[Tensor, "R K D"]:
    one = z.new_ones(len(z), 1)
    return z - target.scale * target.gradient(z * target.scale, one)[1]


def _order(values: Float[Tensor, "R K"]) -> Int64[Tensor, "R K"]:
    """From the lowest; what is not a number comes last."""
    return values.nan_to_num(nan=math.inf, posinf=math.inf).argsort(dim=1, stable=True)


def _refuse(target: Target, starts: Tensor) -> None:
    expected = (target.problems, len(target.scale))
    if target.collapsed or (starts.shape[0], starts.shape[2]) != expected or not starts.shape[1]:
        raise ValueError(
            f"the starts have shape {tuple(starts.shape)} for a {type(target).__name__} of {expected[0]} problems and "
            f"{expected[1]} parameters: build the target with collapsed=False and pass (R, K, D) positions of all parameters."
        )


def _fit(target: Target, q: Gaussians, value: Tensor, error: Tensor, start: Tensor, record: dict) -> Fit:
    """The result in units of the parameters; what is not finite is refused by a sentence."""
    good = value.isfinite() & error.isfinite() & q.mean.isfinite().all(-1)[:, 0]
    refused = {
        r: f"problem {r} has no finite free energy at any start (the best gave {float(value[r])}): look at its data, or pass "
        "starts inside the posterior, a lower rate or more samples."
        for r in (~good).nonzero().flatten().tolist()
    }
    value, error = (torch.where(good, x, math.nan) for x in (value, error))
    position, factor = q.mean[:, 0] * target.scale, target.scale[:, None] * q.factor[:, 0]
    return Fit(value, error, start, position, factor, {"refused": refused} | record)
