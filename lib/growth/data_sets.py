r"""Free energies and generalisation errors of real, noisy data sets, on the same data for every learner (P2-C3, C7, C8)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lib import randomness
from lib.claims import Measurement
from lib.device import one_thread
from lib.free_energy import coefficients, ridge, truths
from lib.free_energy.evidence import one_unit, one_unit_free_energy
from lib.free_energy.generalisation import collapsed_predictive, predictive_error
from lib.free_energy.regression import Regression, join
from lib.free_energy.targets import Collapsed, target
from lib.free_energy.truths import Truth
from lib.growth.curves import shape
from lib.growth.sound import interval, sounded
from lib.smc import islands, sample
from lib.smc.moves import systematic

TEST_POINTS = 64  # inputs on which a generalisation error is averaged, exactly over the noise


@dataclass(frozen=True)
class Evidence:
    """One learner on B data sets at several n.

    Attributes:
        truth, widths, sizes, particles.
        free_energy: F_n - n S_n, (copies, sizes, B).
        error: n (G_n - S), all copies' particles together, (sizes, B).
        half: mean energy at the temperature 1 / log n (WBIC less n S_n), (copies, sizes, B).
        draws: a few posterior draws of the whole network for each problem, (sizes * B, K, D).
    """

    truth: Truth
    widths: tuple[int, ...]
    sizes: tuple[int, ...]
    particles: int
    free_energy: Float[Tensor, "copies sizes B"]
    error: Float[Tensor, "sizes B"]
    half: Float[Tensor, "copies sizes B"]
    draws: Float[Tensor, "problems K D"]


def problems(truth: Truth, sizes: Sequence[int], sets: int, seed: int) -> Regression:
    """``sets`` data sets at each size, the smaller ones the beginnings of the larger, size after size."""
    return join([truths.data(truth, n, sets, seed) for n in sizes])


def learn(
    truth: Truth,
    widths: tuple[int, ...],
    sizes: Sequence[int],
    *,
    sets: int,
    copies: int,
    particles: int,
    seed: int,
    stream: int,
    device: torch.device,
    draws: int = 8,
) -> Evidence:
    """Climb to the posterior of every data set, ``copies`` times independently; ``stream`` numbers the learner."""
    all_problems = problems(truth, sizes, sets, seed).to(device)
    count = len(all_problems)
    run = sample(
        target(all_problems[islands(count, copies)], widths),
        _half_and_whole(sizes, sets, copies).to(device),
        particles=particles,
        seed=seed,
        members=1_000_000 * (1 + stream) + torch.arange(copies * count),
        keep=[1],
    )
    together = run.particles[1].unflatten(0, (copies, count)).transpose(0, 1).flatten(1, 2)
    error = generalisation(truth, widths, all_problems, together)
    n = torch.tensor(sizes, dtype=torch.float64)[:, None]
    free_energy = sounded(run)[1].view(copies, len(sizes), sets).cpu()
    return Evidence(
        truth,
        widths,
        tuple(sizes),
        particles,
        free_energy,
        (n * error.view(len(sizes), sets).cpu()).where(free_energy.isfinite().all(0), torch.nan),
        run.energy[0].view(copies, len(sizes), sets).cpu(),
        whole_draws(all_problems, widths, together, draws, seed),
    )


def _half_and_whole(sizes: Sequence[int], sets: int, copies: int) -> Float[Tensor, "two R"]:
    n = torch.tensor(sizes, dtype=torch.float64).repeat_interleave(sets).repeat(copies)
    return torch.stack([1 / n.log(), torch.ones_like(n)])


def generalisation(
    truth: Truth, widths: tuple[int, ...], all_problems: Regression, particles: Float[Tensor, "R P D"]
) -> Float[Tensor, " R"]:
    """G_n - S of every problem, a few problems at a time."""
    points = truths.grid(TEST_POINTS, widths[0]).to(particles.device)
    values = truth(points[None])[0, :, 0]
    one = torch.ones(1, 1, dtype=torch.float64, device=particles.device)
    found = []
    for rows in _blocks(len(all_problems)):
        some = all_problems[rows]
        known = target(some, widths)
        on_points = Regression(points.expand(len(some), -1, -1), values[:, None].expand(len(some), -1, 1), one.expand(len(some), len(points)), some.truth)  # fmt: skip
        features = Collapsed(on_points, known.layers, known.scale, one.expand(widths[-2] + 1, 1)).features(
            particles[rows]
        )
        moments = known.statistics(particles[rows])
        mean, variance = collapsed_predictive(moments, features, one.expand(len(some), 1))
        found.append(predictive_error(mean, variance, values))
    return torch.cat(found)


def whole_draws(
    all_problems: Regression,
    widths: tuple[int, ...],
    particles: Float[Tensor, "R P D"],
    draws: int,
    seed: int,
) -> Float[Tensor, "R K all"]:
    """Posterior draws of all parameters: the first particles of each problem, their output layers drawn given the rest."""
    hidden = particles[:, torch.linspace(0, particles.shape[1] - 1, draws).long()]
    moments = target(all_problems, widths).statistics(hidden)
    known = ridge.posterior(moments, torch.ones(1, 1, dtype=torch.float64, device=hidden.device))
    members = torch.arange(len(hidden), device=hidden.device)
    noise = randomness.normal(seed, members, "output layer", 0, (draws, len(known.mean)), torch.float64)
    spread = torch.einsum("jkrp,rpj->rpk", known.whitener, noise)
    return torch.cat([hidden, known.mean[:, 0].permute(1, 2, 0) + spread], dim=2)


@one_thread()
def small_free_energy(truth: Truth, sizes: Sequence[int], sets: int, seed: int) -> Float[Tensor, "sizes B"]:
    """F_n - n S_n of the 1-1-1 learner on the same data sets, by quadrature."""
    every = problems(truth, sizes, sets, seed)
    found = []
    for rows in _blocks(len(every)):
        known = target(every[rows], (1, 1, 1))
        found.append(one_unit_free_energy(known, every.weights.new_ones(known.problems, 1)))
    return torch.cat(found).view(len(sizes), sets)


# ----------------------------------------------------------------------------------------- what the rules are judged on


def embedding(found: Evidence, small: Float[Tensor, "sizes B"], small_error: float = 0.0) -> Measurement:
    """P2-C3: the largest F_big - F_small - log 1/P(dead) over n and data sets, with three standard errors on either side.

    The standard error is that of one free energy, pooled over all problems, since few copies tell little of each; the largest of
    many noisy numbers errs upwards, on the safe side. ``small_error`` is the standard error of the small one's.
    """
    cost = coefficients.embedding_cost(found.widths, found.truth.widths)
    over = found.free_energy.mean(0) - small - cost
    copies = len(found.free_energy)
    pooled = math.sqrt(float(found.free_energy.var(0).mean()) / copies + small_error**2)
    value = float(over.max())
    cell = f"{found.truth.name}: {shape(found.widths)}"
    return Measurement(
        "embedding_excess", cell, value, value - 3 * pooled, value + 3 * pooled, n=over.numel(), seeds=copies
    )


def embeddings(found: Sequence[Evidence], exact: Float[Tensor, "sizes B"]) -> list[Measurement]:
    """`embedding` of every learner that is wider than its truth: against ``exact`` for T1, else against the sampled small one."""
    sized = {one.truth: one for one in found if one.widths == one.truth.widths}
    measured = []
    for one in found:
        if one.widths == one.truth.widths:
            continue
        if one.truth == truths.T1:
            measured.append(embedding(one, exact))
            continue
        small = sized[one.truth].free_energy
        error = math.sqrt(float(small.var(0).mean()) / len(small))
        measured.append(embedding(one, small.mean(0), error))
    return measured


def generalisation_errors(found: Sequence[Evidence]) -> list[Measurement]:
    """P2-C7: n (G_n - S) over lambda_ReLU at each n, and its growth from the truth-sized learner over (d - d*)/2.

    The ratio is asked of learners with at most three redundant units; data sets are paired.
    """
    measured = []
    sized = {one.truth: one for one in found if one.widths == one.truth.widths}
    for one in found:
        first = sized[one.truth]
        bound = coefficients.relu_bound(one.truth.widths)
        few = coefficients.redundant_units(one.widths, one.truth.widths) <= 3
        extra = coefficients.parameter_count(one.widths) - coefficients.parameter_count(first.widths)
        for n, errors, base in zip(one.sizes, one.error.numpy(), first.error.numpy(), strict=True):
            cell = f"{one.truth.name}: {shape(one.widths)}, n = {n}"
            size = {"n": len(errors), "seeds": 1}
            if few:
                measured.append(Measurement("error_ratio", cell, *interval(errors / bound), **size))
            if extra:
                growth = (errors - base) / (extra / 2)
                measured.append(Measurement("size_growth", cell, *interval(growth), **size))
    return measured


NEW_POINTS = 8  # further examples a data set: four strata of x, each with a noise and its negative


@one_thread()
def identity(truth: Truth, n: int, sets: int, seed: int, device: torch.device) -> Measurement:
    """P2-C8: n times the difference of G_n and of the mean increase F_(n+1) - F_n, 1-1-1 networks by quadrature.

    The left side is the loss of the predictive density, averaged exactly over the noise; the right side are evidences of n + 1
    examples, the new one drawn eight times, with what the truth itself loses on it taken off.
    """
    data = truths.data(truth, n, sets, seed).to(device)
    members = torch.arange(sets, device=device)
    gaps = [_gap(truth, data[rows], members[rows], seed) for rows in _blocks(sets)]
    gap = n * torch.cat(gaps).cpu().numpy()
    return Measurement("identity_gap", f"n = {n}", *interval(gap), n=sets, seeds=1)


def _gap(truth: Truth, data: Regression, members: Tensor, seed: int) -> Float[Tensor, " B"]:
    """G_n - S minus the mean rise of F_n - n S_n for each data set."""
    known, sets = target(data, (1, 1, 1)), len(data)
    one = data.weights.new_ones(sets, 1)
    nodes = one_unit(known, one, angles=64, refinements=1, radii=10)
    log_values = known.log_likelihood(known.statistics(nodes.position), one)
    shift = randomness.uniform(seed, members, "nodes", 0, (1,), torch.float64)[:, 0]
    chosen = systematic(log_values + nodes.log_weight, shift, count=POSTERIOR_NODES)
    particles = nodes.position.gather(1, chosen[..., None].expand(-1, -1, 2))
    loss = generalisation(truth, (1, 1, 1), data, particles)

    strata = NEW_POINTS // 2
    places = randomness.uniform(seed, members, "new inputs", 0, (strata,), torch.float64)
    x = 2 * (torch.arange(strata, device=members.device) + places) / strata - 1
    noise = randomness.normal(seed, members, "new noise", 0, (strata,), torch.float64)
    rises, before = [], nodes.log_sum(log_values)
    for k in range(NEW_POINTS):
        new_x, new_noise = x[:, k // 2, None, None], noise[:, k // 2] * (1 if k % 2 else -1)
        longer = Regression(
            torch.cat([data.inputs, new_x], 1),
            torch.cat([data.targets, truth(new_x) + new_noise[:, None, None]], 1),
            torch.cat([data.weights, one], 1),
            data.truth + 0.5 * new_noise.square(),
        )
        after = target(longer, (1, 1, 1))
        rises.append(before - nodes.log_sum(after.log_likelihood(after.statistics(nodes.position), one)))
    return loss - torch.stack(rises).mean(0)


def _blocks(problems: int) -> list[slice]:
    """Ten problems at a time: a quadrature's nodes then stay in the cache."""
    return [slice(a, a + 10) for a in range(0, problems, 10)]


# Nodes, equally spaced in posterior mass, that stand for the posterior in the predictive density.
POSTERIOR_NODES = 512


def table(found: Sequence[Evidence], small: Float[Tensor, "sizes B"]) -> list[tuple]:
    """For a table: learner, n, F_n - n S_n, its excess over 1-1-1, and n (G_n - S), each with its interval over data sets."""
    rows = []
    for one in found:
        for i, n in enumerate(one.sizes):
            free = one.free_energy.mean(0)[i]
            columns = [free.numpy(), (free - small[i]).numpy(), one.error[i].numpy()]
            rows.append(
                (
                    shape(one.widths),
                    n,
                    *("{:.2f} ({:.2f} to {:.2f})".format(*interval(c)) for c in columns),
                )
            )
    return rows
