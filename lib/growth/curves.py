r"""Population free energies F0(n) of networks of many sizes, and what they say about the bound (P2-C1, C2, C4 to C6, C10, C14).

One tempered run gives the curve at every n, for n is the temperature: F0(n) = -log of the prior mean of exp(-n K(w)).
Copies of a run are independent; every interval is Student's over them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lib.claims import Measurement
from lib.device import one_thread
from lib.free_energy import coefficients, truths
from lib.free_energy.evidence import one_unit_free_energy
from lib.free_energy.targets import target
from lib.free_energy.truths import Truth
from lib.growth.sound import interval, sounded
from lib.parallel import side_by_side
from lib.smc import Settings, sample

GAUSSIAN_POINTS = (
    512  # for standard normal inputs, which reach to 7.5: three points a hundredth of the support
)


@dataclass(frozen=True)
class Learner:
    """A network that learns a truth: widths (input, hidden ..., output), and whether inputs are normal instead of uniform."""

    truth: Truth
    widths: tuple[int, ...]
    gaussian: bool = False

    @property
    def name(self) -> str:
        """Such as ``T1: 1-4-1``."""
        text = f"{self.truth.name}: {shape(self.widths)}"
        return f"{text}, normal inputs" if self.gaussian else text

    @property
    def parameters(self) -> int:
        return coefficients.parameter_count(self.widths)


def shape(widths: Sequence[int]) -> str:
    """Widths as the book writes them: ``1-4-1``."""
    return "-".join(map(str, widths))


@dataclass(frozen=True)
class Curve:
    """F0 of one learner at rising n.

    Attributes:
        learner, particles.
        n: (C,).
        free_energy: one column a copy of the run, (C, J).
        local: the local slope n E_n[K], (C, J).
        kept: particles (J, P, D) at the n that were to be kept, by n.
        stages: temperatures that the slowest copy visited.
    """

    learner: Learner
    particles: int
    n: Float[Tensor, " C"]
    free_energy: Float[Tensor, "C J"]
    local: Float[Tensor, "C J"]
    kept: Mapping[float, Tensor]
    stages: int

    def at(self, n: float) -> int:
        """The index of ``n``."""
        return int((self.n.log() - math.log(n)).abs().argmin())

    def slopes(self, decades: int = 1) -> Float[np.ndarray, "decades J"]:
        """Slopes in log n over each of the last decades, the last one last."""
        ends = [self.at(float(self.n[-1]) / 10**d) for d in range(decades, -1, -1)]
        rise = self.free_energy[ends].diff(dim=0)
        return (rise / math.log(10)).cpu().numpy()

    def until(self, n: float) -> Curve:
        """The same curve, cut behind ``n``."""
        end = self.at(n) + 1
        return replace(self, n=self.n[:end], free_energy=self.free_energy[:end], local=self.local[:end])

    @property
    def last(self) -> Float[np.ndarray, " J"]:
        """The last decade's slope of each copy."""
        return self.slopes()[0]


def problem_of(learner: Learner, points: int):
    """The population that the learner sees: ``points`` inputs on each axis."""
    if learner.gaussian:
        return truths.population(learner.truth, GAUSSIAN_POINTS, gaussian=True)
    return truths.population(learner.truth, points)


def climb(
    learner: Learner,
    n: Sequence[float],
    *,
    points: int,
    particles: int,
    copies: int,
    seed: int,
    stream: int,
    device: torch.device,
    keep: Sequence[float] = (),
    file: Path | None = None,
) -> Curve:
    """One learner's curve; ``stream`` numbers the learner, so that no two share random numbers."""
    problem = problem_of(learner, points)[torch.zeros(copies, dtype=torch.int64)].to(device)
    run = sample(
        target(problem, learner.widths),
        n,
        particles=particles,
        seed=seed,
        settings=Settings(),
        members=1000 * stream + torch.arange(copies),
        keep=[list(n).index(value) for value in keep],
        file=file,
    )
    kept = {float(run.t[c, 0]): positions for c, positions in run.particles.items()}
    return Curve(
        learner,
        particles,
        run.t[:, 0].cpu(),
        sounded(run).cpu(),
        run.slope.cpu(),
        kept,
        len(run.stages),
    )


def climb_all(
    learners: Sequence[Learner],
    *,
    last: Mapping[Learner, float],
    points: int,
    particles: int,
    copies: int,
    seed: int,
    device: torch.device,
    keep: Mapping[Learner, Sequence[float]] | None = None,
    folder: Path | None = None,
) -> dict[str, Curve]:
    """The curves of many learners by name, each up to its ``last`` n, two sizes a decade from n = 10 on.

    With ``folder``, a run that was interrupted goes on where it stopped.
    """

    def piece(stream: int, learner: Learner):
        sizes = [10 ** (i / SIZES_A_DECADE) for i in range(SIZES_A_DECADE, 1 + _steps(last[learner]))]
        name = f"{learner.truth.name}-{shape(learner.widths)}{'-normal' if learner.gaussian else ''}.pt"
        return lambda: climb(
            learner,
            sizes,
            points=points,
            particles=particles,
            copies=copies,
            seed=seed,
            stream=stream,
            device=device,
            keep=[sizes[_steps(n) - SIZES_A_DECADE] for n in (keep or {}).get(learner, ())],
            file=folder / name if folder else None,
        )

    order = sorted(enumerate(learners), key=lambda entry: entry[1].parameters)
    found = side_by_side([piece(stream, learner) for stream, learner in order], device)
    curves = {curve.learner.name: curve for curve in found}
    return {learner.name: curves[learner.name] for learner in learners}


SIZES_A_DECADE = 2


def _steps(n: float) -> int:
    return round(SIZES_A_DECADE * math.log10(n))


@one_thread()
def exact(
    learner: Learner, n: Sequence[float] | Tensor, points: int, device: torch.device
) -> Float[Tensor, " C"]:
    """F0 of a 1-1-1 learner at each n by quadrature."""
    n = torch.as_tensor(n, dtype=torch.float64, device=device)
    problem = problem_of(learner, points)[torch.zeros(len(n), dtype=torch.int64)].to(device)
    return one_unit_free_energy(target(problem, learner.widths), n[:, None], angles=128, refinements=4).cpu()


# ----------------------------------------------------------------------------------------- what the rules are judged on


def measured(name: str, cell: str, values: np.ndarray, particles: int) -> Measurement:
    """A measurement from independent runs: mean and Student's 95 % interval."""
    return Measurement(name, cell, *interval(values), n=particles, seeds=len(values))


def redundant(learner: Learner) -> int:
    """Hidden units beyond those of the truth."""
    return coefficients.redundant_units(learner.widths, learner.truth.widths)


def upper_bound(curves: Sequence[Curve]) -> list[Measurement]:
    """P2-C1: the last decade's slope minus lambda_ReLU; learners with more than three redundant units apart."""
    found = []
    for curve in curves:
        bound = coefficients.relu_bound(curve.learner.truth.widths)
        wide = "wide_" if redundant(curve.learner) > 3 else ""
        found.append(measured(f"{wide}slope_excess", curve.learner.name, curve.last - bound, curve.particles))
    return found


def still_falling(curves: Sequence[Curve], small: Mapping[str, Tensor]) -> list[Measurement]:
    """P2-C1, wide learners: what makes 'pre-asymptotic' a computed property.

    ``small`` holds the exact F0 of the truth-sized learner at the n of each wide one. The embedding bound leaves
    F_big - F_small a headroom; a slope excess that the next decade could not pay from it, or that rises, refutes.
    """
    found = []
    for curve in curves:
        learner = curve.learner
        if redundant(learner) <= 3 or len(learner.widths) != 3:
            continue
        cost = coefficients.embedding_cost(learner.widths, learner.truth.widths)
        over = (curve.free_energy - small[learner.name][:, None]).numpy()
        before, last = curve.slopes(2)
        excess = (last - coefficients.relu_bound(learner.truth.widths)) * math.log(10)
        worst = over.mean(1).argmax()
        for name, values in (
            ("embedding_excess", over[worst] - cost),
            ("wide_slope_trend", last - before),
            ("headroom_deficit", excess - (cost - over[-1])),
        ):
            found.append(measured(name, learner.name, values, curve.particles))
    return found


def below_bic(curves: Sequence[Curve]) -> list[Measurement]:
    """P2-C2: slope over d/2 of the learners with d at least 4 d*, and its change from one learner to the next larger."""
    ordered = sorted(curves, key=lambda curve: curve.learner.parameters)
    found, before = [], None
    for curve in ordered:
        learner = curve.learner
        ratio = curve.last / (learner.parameters / 2)
        if learner.parameters >= 4 * coefficients.parameter_count(learner.truth.widths):
            found.append(measured("bic_ratio", learner.name, ratio, curve.particles))
            if before is not None:
                found.append(measured("bic_ratio_step", learner.name, ratio - before, curve.particles))
        before = ratio
    return found


def saturation(curves: Sequence[Curve], small: Mapping[str, Tensor]) -> list[Measurement]:
    """P2-C4: the growth of F_H - F_H* over the last decade as a share of BIC's, and how that growth changes a decade.

    The trend is the least-squares slope of the growth over the last three decades, so that no single decade decides.
    """
    found = []
    for curve in curves:
        learner = curve.learner
        growth = curve.slopes(3) * math.log(10)
        ends = [curve.at(float(curve.n[-1]) / 10**d) for d in (3, 2, 1, 0)]
        growth = growth - small[learner.name][ends].diff()[:, None].numpy()
        bic = (learner.parameters - coefficients.parameter_count(learner.truth.widths)) / 2 * math.log(10)
        found.append(measured("increase_share", learner.name, growth[-1] / bic, curve.particles))
        found.append(measured("increase_trend", learner.name, (growth[-1] - growth[0]) / 2, curve.particles))
    return found


def difference(name: str, pairs: Sequence[tuple[Curve, Curve]]) -> list[Measurement]:
    """P2-C5 and P2-C10: the first curve's last slope minus the second's, one cell a pair."""
    return [
        measured(
            name,
            f"{a.learner.name} − {shape(b.learner.widths)}",
            a.last - b.last,
            min(a.particles, b.particles),
        )
        for a, b in pairs
    ]


def sharp(curves: Sequence[Curve], constant: Sequence[Curve]) -> list[Measurement]:
    """P2-C6: truth-sized learners against (d* - h*)/2, and learners of a constant against 1/2."""
    found = []
    for curve in curves:
        value = coefficients.sharp_bound(curve.learner.truth.widths)
        found.append(measured("sharp_error", curve.learner.truth.name, curve.last - value, curve.particles))
    for curve in constant:
        before, last = curve.slopes(2)
        found.append(measured("constant_error", curve.learner.name, last - 0.5, curve.particles))
        found.append(measured("constant_trend", curve.learner.name, last - before, curve.particles))
    return found


def control(curve: Curve) -> list[Measurement]:
    """P2-C14: the exponent of F0 in n over the last decade, for a learner that cannot realise the truth."""
    a, b = curve.free_energy[curve.at(float(curve.n[-1]) / 10)], curve.free_energy[-1]
    exponent = (b / a).log().numpy() / math.log(10)
    return [measured("growth_exponent", curve.learner.name, exponent, curve.particles)]


def slope_table(curves: Sequence[Curve]) -> list[tuple]:
    """For a table: learner, d, F0 at the largest n, slope of each of the last three decades with its interval, d/2."""
    rows = []
    for curve in curves:
        cells = ["{:.2f} ({:.2f} to {:.2f})".format(*interval(values)) for values in curve.slopes(3)]
        last = "{:.2f} ({:.2f} to {:.2f})".format(*interval(curve.free_energy[-1].numpy()))
        rows.append(
            (curve.learner.name, curve.learner.parameters, last, *cells, curve.learner.parameters / 2)
        )
    return rows
