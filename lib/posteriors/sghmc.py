r"""Stochastic-gradient Hamiltonian Monte Carlo, chains by the hundred (Chen, Fox & Guestrin 2014).

With U(θ) = n (mean loss + wd/2 |θ|²), a batch's estimate of its gradient, η = lr / n and the friction α, their equation 15
(with no estimate of the batch's own noise, β̂ = 0) reads v ← (1 - α) v - η ∇U + N(0, 2 α η T), θ ← θ + v. In the
units of SGD with momentum, v = -lr m,

$$ m \leftarrow (1 - \alpha)\, m + \nabla(\text{batch loss}) + \text{wd}\, \theta
     + N\!\Big(0, \frac{2 \alpha T}{n\, \text{lr}}\Big), \qquad \theta \leftarrow \theta - \text{lr}\, m $$

so that at a constant rate temperature T = 0 is SGD with momentum 1 - α to the bit, and T = 1 samples the posterior of the recipe. On a quadratic
U of curvature λ and with exact gradients the stationary variances are known,

$$ \mathrm{Var}\,\theta = \frac{T/\lambda}{1 - \eta\lambda / (4 - 2\alpha)}, \qquad
   T_{kin} := n\, \text{lr}\, \mathrm{Var}\, m = \frac{T}{1 - \alpha/2 - \eta\lambda/4}, $$

and the gradients of batches heat the chains further. The kinetic temperature is therefore measured, reported, and where
it is far from T, the sample is refused. No Metropolis correction: the bias is of the order of the step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from lib import randomness
from lib.params import Params
from lib.population import Constant, Cosine, Recipe, walk
from lib.population.initialise import member_ids
from lib.posteriors.draws import Draws
from lib.posteriors.hmc import thin
from lib.posteriors.target import prior_precision, ravel, refuse_lost, unravel


@dataclass(frozen=True)
class Cyclical(Cosine):
    """A rate that falls from 1 to ``floor`` along half a cosine in each cycle, then starts again (Zhang et al. 2020, equation 1).

    The first share ``explore`` of a cycle only optimises (no noise); samples are taken in the rest.
    """

    cycles: int = 4
    explore: float | int = 0.8  # the authors' own (their section 3)

    def factor(self, epoch: float | int, epochs: float | int) -> float:
        return super().factor(self.phase(epoch, epochs), 1)

    def phase(self, epoch: float | int, epochs: float | int) -> float | int:
        """How far its cycle has come, in [0, 1)."""
        return epoch * self.cycles / epochs % 1


@dataclass(frozen=True)
class Sghmc:
    """How long the chains are, how they move, and which moments are kept."""

    rate: float | int = 1  # of the recipe's first learning rate
    friction: float | int = 0.1  # momentum 0.9, the usual one
    temperature: float | int = 1  # the posterior of the recipe; colder is another distribution
    burn_in: int = 20  # epochs
    epochs: int = 40  # in all
    keep: int = 50  # snapshots: one every ten steps of the quick study
    schedule: Constant | Cyclical = field(default_factory=Constant)


# All sample the same posterior: colder chains would score better, but of another distribution.
CANDIDATES = (Sghmc(rate=0.3), Sghmc(), Sghmc(rate=2))


@dataclass(frozen=True)
class Fit:
    """Snapshots of R chains, in order (R, K, D), and the kinetic temperature of each chain (R,)."""

    net: nn.Module
    snapshots: Float[Tensor, "R K D"]
    temperature: Float[Tensor, " R"]
    record: dict[str, float | int]


def fit(
    net: nn.Module,
    inputs: Shaped[Tensor, "n ..."],
    targets: Shaped[Tensor, "n ..."],
    recipe: Recipe,
    options: Sghmc | None = None,
    *,
    members: int | range | Tensor,
    seed: int,
    device: str | torch.device = "cpu",
    start: Params | None = None,
) -> Fit:
    """Run a chain for every member, from ``start`` (R, ...) or from initial weights, and keep evenly spaced snapshots.

    Raises ValueError for fewer than two snapshots or fewer steps than snapshots, for chains that left the finite
    numbers, and for chains whose kinetic temperature is more than ten times too high or too low.
    """
    options, members = options or Sghmc(), member_ids(members)
    n = len(inputs)
    plan = replace(
        recipe,
        lr=options.rate * recipe.lr,
        epochs=options.epochs,
        schedule=options.schedule,
        warmup=0,
        momentum=0,
        nesterov=False,
        optimiser="sgd",
    )
    per_epoch = plan.steps_per_epoch(n)
    noisy, kept = _calendar(options, per_epoch)
    prior_precision(recipe, n)
    rule = _Rule(recipe.weight_decay, options, seed, n, noisy)
    snapshots, heat, wanted = [], 0.0, set(kept)
    for moment in walk(
        net,
        inputs,
        targets,
        plan,
        members=members,
        seed=seed,
        device=device,
        start=start,
        update=rule,
    ):
        if moment.step in wanted:
            now = moment.params
            snapshots.append(ravel({name: now[name] for name, _ in net.named_parameters()}))
            heat = heat + rule.kinetic(moment.rate)[moment.place] / len(kept)
    positions = torch.stack(snapshots, dim=1)
    refuse_lost(positions, "the snapshots", "lower SGHMC's rate")
    _refuse_hot(heat, options.temperature, numbers=positions[0].numel())
    record = {
        "snapshots": len(kept),
        "steps": options.epochs * per_epoch,
        "lr": plan.lr,
        "kinetic temperature": float(heat.mean()),
        "hottest chain": float(heat.max()),
    }
    return Fit(net, positions, heat, record)


def draw(fit: Fit, draws: int, *, seed: int) -> Draws:
    """``draws`` of each chain's snapshots, evenly spaced; raises ValueError where there are not so many."""
    kept = thin(fit.snapshots.shape[1], draws).to(fit.snapshots.device)
    chosen = fit.snapshots[:, kept]
    return Draws(unravel(chosen.flatten(0, 1), fit.net), len(chosen), draws)


def _calendar(options: Sghmc, per_epoch: int) -> tuple[list[bool], list[int]]:
    """At which steps noise is added, and after which a snapshot is kept."""
    steps, schedule = options.epochs * per_epoch, options.schedule
    noisy, usable = [True] * steps, list(range(options.burn_in * per_epoch, steps))
    if isinstance(schedule, Cyclical):
        phases = [schedule.phase(step / per_epoch, options.epochs) for step in range(steps)]
        noisy = [phase >= schedule.explore for phase in phases]
        usable = [step for step in usable if noisy[step]]
    if options.keep < 2 or len(usable) < options.keep:
        raise ValueError(
            f"{len(usable)} steps after the burn-in give no {options.keep} snapshots, and a variance needs two: "
            "give SGHMC more epochs, or keep fewer."
        )
    return noisy, [usable[i] for i in thin(len(usable), options.keep).tolist()]


def _refuse_hot(heat: Float[Tensor, " R"], temperature: float | int, numbers: int) -> None:
    """Refuse chains ten times off (and three standard errors more, where a temperature is the mean of few numbers)."""
    if temperature == 0:
        return
    factor = 10 * (1 + 3 * math.sqrt(2 / numbers))
    wrong = (heat > factor * temperature) | (heat < temperature / factor)
    if bool(wrong.any()):
        worst = heat[(heat / temperature).log().abs().argmax()]
        raise ValueError(
            f"{int(wrong.sum())} of {len(heat)} chains have a kinetic temperature more than ten times off the wanted "
            f"{temperature:g} (the worst: {float(worst):.3g}): the step is too large or the batch too noisy, so lower "
            "SGHMC's rate or raise its friction."
        )


class _Rule:
    """The update above for ``population.walk``; it carries the momenta of all chains as one matrix."""

    def __init__(self, decay: float | int, options: Sghmc, seed: int, n: int, noisy: list[bool]) -> None:
        self.decay, self.options, self.seed, self.n, self.noisy = decay, options, seed, n, noisy
        self.momenta: list[Tensor] = []
        self.rate = 0.0

    def __call__(
        self, weights: list[Tensor], gradients: list[Tensor], ids: Tensor, step: int, rate: float | int
    ) -> None:
        if not self.momenta:
            self.momenta = [torch.zeros_like(weight) for weight in weights]
        elif rate != self.rate:  # m is in units of 1 / sqrt(lr): keep the temperature
            torch._foreach_mul_(self.momenta, math.sqrt(self.rate / rate))
        self.rate = rate
        torch._foreach_add_(gradients, weights, alpha=self.decay)
        torch._foreach_mul_(self.momenta, 1 - self.options.friction)
        torch._foreach_add_(self.momenta, gradients)
        if self.options.temperature and self.noisy[step]:
            scale = math.sqrt(2 * self.options.friction * self.options.temperature / (self.n * rate))
            size = sum(weight[0].numel() for weight in weights)
            drawn = noise(self.seed, ids, step, size).to(weights[0].dtype)
            parts = drawn.split([weight[0].numel() for weight in weights], dim=1)
            torch._foreach_add_(
                self.momenta, [p.view_as(w) for p, w in zip(parts, weights, strict=True)], alpha=scale
            )
        torch._foreach_add_(weights, self.momenta, alpha=-rate)

    def kinetic(self, rate: float | int) -> Float[Tensor, " C"]:
        """Each chain's kinetic temperature at this moment, n lr |m|² / D."""
        square = sum(m.flatten(1).square().sum(1) for m in self.momenta)
        return self.n * rate * square / sum(m[0].numel() for m in self.momenta)


BITS = 15


@lru_cache(maxsize=8)
def _quantiles(device: torch.device) -> Float[Tensor, " levels"]:
    """The normal quantiles of 2^15 equal shares, at variance 1 exactly."""
    levels = 1 << BITS
    middle = (torch.arange(levels, dtype=torch.float64) + 0.5) / levels
    values = torch.special.ndtri(middle)
    return (values / values.square().mean().sqrt()).to(device, torch.float32)


def noise(seed: int, members: Int64[Tensor, " R"], step: int, n: int) -> Float[Tensor, "R n"]:
    """Normal numbers by a table of 32,768 quantiles, two from one word: a third of the price of exact ones.

    The tails end at 4.2 standard deviations, and nothing is lost: the momentum adds up dozens of these, and weak
    first-order schemes ask for the first moments of the noise alone (Kloeden & Platen 1992, section 14.1).
    """
    words = randomness.integers(seed, members, "sghmc noise", step, 1 << 2 * BITS, (-(-n // 2),))
    both = torch.stack([words >> BITS, words & (1 << BITS) - 1], dim=-1).flatten(1)[:, :n]
    return _quantiles(members.device).index_select(0, both.flatten()).view(both.shape)
