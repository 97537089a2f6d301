"""Two and three networks at every width, with both matchings and their controls (P5-C1, C2, C3, C3b).

Networks of different widths are independent (members of their own); at one width all pairs and all triples are used, and the
intervals leave out networks, never pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lib.intervals import jackknife
from lib.kept import Kept
from lib.parallel import side_by_side
from lib.params import Params
from lib.population import evaluate
from lib.rules import Measurement
from lib.three_models.problem import problem_of, recipe, trained
from lib.three_models.stars import (
    ACTIVATIONS,
    MATCHINGS,
    WEIGHTS,
    Barriers,
    between_pairs,
    direct,
    in_stars,
    of_pairs,
    random_table,
    table,
    through_third,
)

MEMBERS = 1000  # member numbers between one width and the next


@dataclass(frozen=True, eq=False)
class Width:
    """The barriers at one width: of pairs as they are and randomly permuted, (n, n); in all stars of a matching, (n, n, n)."""

    name: str
    width: int
    test_error: Float[np.ndarray, " n"]
    plain: Barriers
    random: Barriers
    stars: Mapping[str, Barriers]

    @property
    def members(self) -> int:
        """How many networks there are."""
        return len(self.test_error)


def networks(
    setting: str,
    widths: Sequence[int],
    count: int,
    epochs: int,
    *,
    seed: int,
    device: torch.device,
    kept: Kept | None = None,
) -> dict[int, Params]:
    """``count`` networks of each width."""
    kept = kept or Kept(None)
    return {
        width: kept.part(
            f"{setting.replace('/', '-')}-{width}-networks",
            lambda k=k, w=width: trained(
                problem_of(setting, w, device), recipe(epochs), range(MEMBERS * k, MEMBERS * k + count), seed
            ),
        )
        for k, width in enumerate(widths)
    }


def pictures(
    settings: Sequence[tuple[str, int]],
    count: int,
    epochs: int,
    alphas: int,
    *,
    seed: int,
    device: torch.device,
    kept: Kept | None = None,
) -> list[Width]:
    """The same for convolutional networks, each a (setting, width)."""
    found = []
    for setting, width in settings:
        nets = networks(setting, (width,), count, epochs, seed=seed, device=device, kept=kept)
        found += look(setting, nets, alphas, seed=seed, device=device, kept=kept)
    return found


def look(
    setting: str,
    populations: Mapping[int, Params],
    alphas: int,
    *,
    seed: int,
    device: torch.device,
    kept: Kept | None = None,
) -> list[Width]:
    """Match and join the networks of each width; on a CPU widths and matchings side by side, a process each."""
    kept = kept or Kept(None)
    pieces = [
        lambda w=width, m=matching, p=params: _piece(setting, w, p, m, alphas, seed, device, kept)
        for width, params in populations.items()
        for matching in MATCHINGS
    ]
    found = iter(side_by_side(pieces, device))
    return [
        _width(setting, width, dict(zip(MATCHINGS, (next(found), next(found)), strict=True)))
        for width in populations
    ]


def _piece(
    setting: str,
    width: int,
    params: Params,
    matching: str,
    alphas: int,
    seed: int,
    device: torch.device,
    kept: Kept,
) -> dict[str, Tensor]:
    return kept.part(
        f"{setting.replace('/', '-')}-{width}-{matching.replace(' ', '-')}",
        lambda: _barriers(setting, width, params, matching, alphas, seed, device),
    )


def _barriers(
    setting: str, width: int, params: Params, matching: str, alphas: int, seed: int, device: torch.device
) -> dict[str, Tensor]:
    """All stars of one matching; the quicker one also does what no matching is needed for."""
    problem = problem_of(setting, width, device=device)
    calibrate = matching == WEIGHTS  # read for that matching alone
    found = {"stars": in_stars(problem, params, table(problem, params, matching), alphas, calibrate)}
    parts: dict[str, np.ndarray] = {}
    if matching == ACTIVATIONS:
        members = len(next(iter(params.values())))
        found["plain"] = between_pairs(problem, params, None, alphas, calibrate=True)
        found["random"] = between_pairs(problem, params, random_table(problem, members, seed), alphas)
        scores = evaluate(problem.net, params, problem.test.inputs, problem.test.targets)
        parts["test_error"] = 1 - scores["accuracy"].double().cpu().numpy()
    parts |= {f"{kind}/{name}": values for kind, b in found.items() for name, values in vars(b).items()}
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in parts.items()}


def _width(setting: str, width: int, parts: Mapping[str, Mapping[str, Tensor]]) -> Width:
    def read(matching: str, kind: str) -> Barriers:
        names = ("loss", "error", "calibrated")
        return Barriers(*(parts[matching][f"{kind}/{name}"].numpy() for name in names))

    network = setting.partition("/")[2]
    return Width(
        f"{network}, width {width}" if network else f"width {width}",
        width,
        parts[ACTIVATIONS]["test_error"].numpy(),
        read(ACTIVATIONS, "plain"),
        read(ACTIVATIONS, "random"),
        {matching: read(matching, "stars") for matching in MATCHINGS},
    )


# ------------------------------------------------------------------------------------------------------- measurements


Interval = tuple[float, float, float]


def pair_barrier(found: Width, kind: str, what: str, some: np.ndarray) -> float:
    """Mean barrier of some networks' pairs: ``kind`` "plain", "random" or a matching (direct); ``what`` a field of Barriers."""
    if kind in ("plain", "random"):
        return of_pairs(getattr(getattr(found, kind), what), some)
    return of_pairs(direct(getattr(found.stars[kind], what)), some)


def third_barrier(found: Width, matching: str, what: str, some: np.ndarray) -> float:
    """Mean barrier of pairs that were aligned through a third network."""
    return through_third(getattr(found.stars[matching], what), some)


def over(part: float, whole: float) -> float:
    """A ratio of barriers; not a number where there is no barrier to compare with."""
    return part / whole if whole > 0 else np.nan


def level(found: Width, kind: str, what: str, indirect: bool = False) -> Interval:
    """A mean barrier with its interval over networks, for figures and tables."""
    mean = third_barrier if indirect else pair_barrier
    value, low, high = jackknife(lambda g: np.array([mean(found, kind, what, g[0])]), [found.members])
    return float(value[0]), float(low[0]), float(high[0])


def measure_one_permutation(found: Sequence[Width]) -> list[Measurement]:
    """P5-C1: direct over plain, one cell a width and matching; and the control."""
    measured = []
    for each in found:
        for matching in MATCHINGS:
            measured.append(
                _measured(
                    "aligned_ratio",
                    f"{each.name}, {matching}",
                    [each],
                    lambda g, e=each, m=matching: over(
                        pair_barrier(e, m, "loss", g[0]), pair_barrier(e, "plain", "loss", g[0])
                    ),
                )
            )
        measured.append(
            _measured(
                "random_ratio",
                each.name,
                [each],
                lambda g, e=each: over(
                    pair_barrier(e, "random", "loss", g[0]), pair_barrier(e, "plain", "loss", g[0])
                ),
            )
        )
    return measured


def measure_third(found: Sequence[Width], most: int = 256) -> list[Measurement]:
    """P5-C2: error barrier, indirect minus direct, weight matching; perceptrons to width ``most``, and all convolutional networks."""
    return [
        _measured(
            "indirect_excess",
            each.name,
            [each],
            lambda g, e=each: (
                third_barrier(e, WEIGHTS, "error", g[0]) - pair_barrier(e, WEIGHTS, "error", g[0])
            ),
        )
        for each in found
        if each.width <= most or each.name != f"width {each.width}"
    ]


def measure_slopes(found: Sequence[Width]) -> list[Measurement]:
    """P5-C3: slope of the logarithmic indirect loss barrier in the logarithmic width."""
    x = np.log([each.width for each in found])

    def slope(groups: Sequence[np.ndarray], matching: str) -> float:
        y = [third_barrier(e, matching, "loss", g) for e, g in zip(found, groups, strict=True)]
        return float(np.polyfit(x, np.log(y), 1)[0]) if min(y) > 0 else np.nan

    return [
        _measured("width_slope", matching, found, lambda g, m=matching: slope(g, m)) for matching in MATCHINGS
    ]


def measure_control(found: Sequence[Width], what: str = "loss") -> list[Measurement]:
    """P5-C3b: indirect over plain, weight matching, and the slope of that ratio a doubling of width."""
    x = np.log2([each.width for each in found])

    def ratio(each: Width, some: np.ndarray) -> float:
        return over(third_barrier(each, WEIGHTS, what, some), pair_barrier(each, "plain", what, some))

    measured = [
        _measured("barrier_ratio", each.name, [each], lambda g, e=each: ratio(e, g[0])) for each in found
    ]

    def slope(groups: Sequence[np.ndarray]) -> float:
        y = [ratio(e, g) for e, g in zip(found, groups, strict=True)]
        return float(np.polyfit(x, y, 1)[0]) if np.isfinite(y).all() else np.nan

    return [*measured, _measured("ratio_slope", "weight matching", found, slope)]


def strong(found: Width, matching: str) -> bool:
    """'Strong connectivity reached': indirect error barrier below 1 %, loss barrier below a tenth of the unaligned one, as means."""
    everyone = np.arange(found.members)
    error = third_barrier(found, matching, "error", everyone)
    loss = third_barrier(found, matching, "loss", everyone)
    return error < 0.01 and loss < 0.1 * pair_barrier(found, "plain", "loss", everyone)


def rows(found: Sequence[Width]) -> list[tuple[str, ...]]:
    """For a page: width and test error, and loss barriers: no permutation, and each matching direct and through a third."""
    text = "{:.3f} ({:.3f} to {:.3f})"
    table = []
    for each in found:
        cells = [level(each, "plain", "loss")]
        for matching in MATCHINGS:
            cells += [level(each, matching, "loss"), level(each, matching, "loss", indirect=True)]
        table.append(
            (f"{each.name} ({100 * each.test_error.mean():.1f} %)", *(text.format(*c) for c in cells))
        )
    return table


def numbers(found: Sequence[Width]) -> dict[str, dict[str, Interval | list[float]]]:
    """For a result file: the loss barriers of all kinds of lines with intervals, and the test errors."""
    table = {}
    for each in found:
        kinds = {kind: level(each, kind, "loss") for kind in ("plain", "random", *MATCHINGS)}
        thirds = {f"{kind}, third": level(each, kind, "loss", indirect=True) for kind in MATCHINGS}
        table[each.name] = {**kinds, **thirds, "test errors": each.test_error.tolist()}
    return table


def _measured(name: str, cell: str, found: Sequence[Width], statistic) -> Measurement:
    sizes = [each.members for each in found]
    value, low, high = (x[0] for x in jackknife(lambda groups: np.array([statistic(groups)]), sizes))
    value, low, high = (x if np.isfinite((value, low, high)).all() else None for x in (value, low, high))
    return Measurement(name, cell, value, low, high, n=min(sizes), seeds=min(sizes))
