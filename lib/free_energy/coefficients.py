"""Coefficients of log n in the Bayesian free energy, and the constant that redundant units add to it.

Of n observations, F_n = n S_n + λ log n - (m - 1) log log n + O_p(1): λ is the real log canonical threshold and m its
multiplicity (Watanabe 2009). A regular model of d parameters has λ = d/2 and m = 1.

Widths are (inputs, hidden..., outputs) of a network that ends linearly. It has ReLUs after each hidden layer and biases
everywhere, except for the linear models that `rlct_reduced_rank` and `rlct_deep_linear` name. The *learner* is fitted
to data of the *truth*, whose quantities carry a star: d* parameters, h* hidden units. A true hidden layer may have
width 0: (1, 0, 1) is the constant function.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import torch

from lib import randomness

DRAWS = 1 << 16  # standard error of log 1/P(dead): 0.0006 nats for two inputs, 0.004 for ten, at equal scales


@dataclass(frozen=True)
class Rlct:
    """Real log canonical threshold λ (``value``) and the order m of the pole that gives it (``multiplicity``)."""

    value: float
    multiplicity: int


@dataclass(frozen=True)
class Probability:
    """A probability and the standard error of its Monte Carlo estimate, 0 where it is exact."""

    value: float
    standard_error: float


def parameter_count(widths: Sequence[int]) -> int:
    """How many weights and biases a network has: the sum over its layers of outputs (inputs + 1).

    Raises ValueError for widths that are no network.
    """
    _check_widths(widths)
    return sum(after * (before + 1) for before, after in pairwise(widths))


def hidden_units(widths: Sequence[int]) -> int:
    """How many hidden units a network has. Raises ValueError for widths that are no network."""
    _check_widths(widths)
    return sum(widths[1:-1])


def relu_bound(true_widths: Sequence[int]) -> float:
    """λ_ReLU = d*/2: E[F_n] <= n S + λ_ReLU log n + C for every learner that can realise the truth.

    Neither the widths nor the depth of the learner enter it; they enter C. Raises ValueError for a truth without a
    hidden layer.

    Source: Nagayasu & Watanabe 2023 (arXiv 2303.15739), main theorem. The formula is recalled, and derived anew in the
    book.
    """
    _check_truth(true_widths)
    return parameter_count(true_widths) / 2


def sharp_bound(true_widths: Sequence[int]) -> float:
    """(d* - h*)/2, a bound on λ below `relu_bound`.

    Multiplying a hidden unit's incoming weights and bias by c > 0 and dividing its outgoing weights by c keeps the
    function: h* directions of the truth cost nothing. Raises ValueError for a truth without a hidden layer.

    Source: derived in the book, not in the paper.
    """
    _check_truth(true_widths)
    return (parameter_count(true_widths) - hidden_units(true_widths)) / 2


def can_realise(widths: Sequence[int], true_widths: Sequence[int]) -> bool:
    """Whether the learner's widths meet the paper's conditions, which suffice for it to realise every such truth.

    They are: inputs and outputs as the truth; at least as many layers; hidden layers at least as wide as the truth's;
    added layers, which come after the last true hidden layer, at least as wide as that one. Raises ValueError for
    widths that are no network and for a truth without a hidden layer.
    """
    return _obstacle(widths, true_widths) is None


def check_realises(widths: Sequence[int], true_widths: Sequence[int]) -> None:
    """Raise ValueError, with the condition that fails, where `can_realise` is False."""
    obstacle = _obstacle(widths, true_widths)
    if obstacle:
        raise ValueError(
            f"a learner of widths {tuple(widths)} need not realise a truth of widths {tuple(true_widths)}: {obstacle}."
        )


def redundant_units(widths: Sequence[int], true_widths: Sequence[int]) -> int:
    """Hidden units of the learner minus those of the truth, added layers included.

    Raises ValueError where the learner need not realise the truth (`check_realises`).
    """
    check_realises(widths, true_widths)
    return hidden_units(widths) - hidden_units(true_widths)


def rlct_reduced_rank(inputs: int, hidden: int, outputs: int, rank: int) -> Rlct:
    """Of reduced-rank regression y = B A x + noise without biases, A (hidden, inputs), B (outputs, hidden).

    ``rank`` is that of the true B A. Raises ValueError for a size below 1 and for a rank that no such B A has.

    Source: Aoyagi & Watanabe 2005, Stochastic complexities of reduced rank regression in Bayesian estimation.
    """
    _check_rank((inputs, hidden, outputs), rank)
    m, h, n, r = inputs, hidden, outputs, rank
    if m + h < n + r:
        return Rlct((h * m - h * r + n * r) / 2, 1)
    if n + h < m + r:
        return Rlct((h * n - h * r + m * r) / 2, 1)
    if m + n < h + r:
        return Rlct(m * n / 2, 1)
    q = 2 * (h + r) * (m + n) + 2 * m * n - (h + r) ** 2 - m**2 - n**2
    odd = (m + h + n + r) % 2
    return Rlct((q + odd) / 8, 1 + odd)


def rlct_deep_linear(widths: Sequence[int], rank: int) -> Rlct:
    """Of a deep linear network y = W_L ... W_1 x + noise without biases, of widths (inputs, hidden..., outputs).

    ``rank`` is that of the true product. Two widths are linear regression, three are `rlct_reduced_rank`. Raises
    ValueError for fewer than two widths, a width below 1 and a rank that no such product has.

    Source: Aoyagi 2024, Consideration on the learning efficiency of multiple-layered neural networks with linear units.
    """
    _check_rank(widths, rank)
    excess = sorted(width - rank for width in widths)
    l = 1  # noqa: E741
    while l + 1 < len(excess) and sum(excess[: l + 1]) >= l * excess[l + 1]:
        l += 1  # noqa: E741
    narrow = excess[: l + 1]  # the widths that matter
    s = sum(narrow)
    a = s - (-(-s // l) - 1) * l
    products = sum(one * other for one, other in combinations(narrow, 2))
    of_rank = rank * (widths[0] + widths[-1]) - rank**2
    value = (2 * l * (of_rank + products) + a * (l - a) - (l - 1) * s**2) / (4 * l)
    return Rlct(value, a * (l - a) + 1)


def rlct_monomial(exponents: Sequence[int]) -> Rlct:
    """Of the regression y = w_1^a_1 ... w_k^a_k x + noise with truth 0, at the origin: λ = 1 / (2 max a).

    The monomial is the function; the divergence K is its square, up to a factor. m is the number of maximal exponents.
    Raises ValueError for no exponents and for one below 1.

    Source: textbook (Watanabe 2009, Algebraic Geometry and Statistical Learning Theory).
    """
    if not exponents or min(exponents) < 1:
        raise ValueError(
            f"exponents {tuple(exponents)} are no monomial's: "
            "each must be 1 or more; leave out variables that do not occur."
        )
    largest = max(exponents)
    return Rlct(1 / (2 * largest), list(exponents).count(largest))


def probability_dead(
    weight_scale: float | int, bias_scale: float | int, inputs: int = 1, *, seed: int = 0, draws: int = DRAWS
) -> Probability:
    """Prior probability that a unit of the first layer is 0 on the whole cube [-1, 1]^inputs.

    Its weights are N(0, weight_scale²) and its bias is N(0, bias_scale²), all independent: it is dead where
    b < -||w||_1. One input is exact, arctan(bias_scale / weight_scale) / π; more are Monte Carlo.

    Args:
        weight_scale: standard deviation of each weight.
        bias_scale: standard deviation of the bias.
        inputs: of the unit.
        seed: of the Monte Carlo.
        draws: of the Monte Carlo.

    Raises:
        ValueError: a scale that is not positive and finite, fewer than one input, fewer than two draws.

    Source: derived in the book.
    """
    for name, scale in (("weight_scale", weight_scale), ("bias_scale", bias_scale)):
        if not (scale > 0 and math.isfinite(scale)):
            raise ValueError(
                f"{name} is {scale}: a prior of zero variance leaves its parameters no freedom, and other values are no "
                "standard deviation. Give a positive, finite one."
            )
    if inputs < 1:
        raise ValueError(f"a unit of {inputs} inputs has no weights: give at least one input.")
    if draws < 2:
        raise ValueError(f"{draws} draws have no standard error: give at least two.")
    if inputs == 1:
        return Probability(math.atan2(bias_scale, weight_scale) / math.pi, 0.0)
    return _dead_by_monte_carlo(weight_scale / bias_scale, inputs, seed, draws)


def embedding_cost(
    widths: Sequence[int],
    true_widths: Sequence[int],
    weight_scale: float | int = 1.0,
    bias_scale: float | int = 1.0,
) -> float:
    """Nats by which the learner's free energy can exceed the truth-sized network's, whatever the data: (H - H*) log 1/P.

    P is the probability that a redundant unit is dead (`probability_dead`; for more than one input it is estimated, and
    the cost has (H - H*) times the relative standard error of P). Then F_H <= F_H* + cost for every data set with
    inputs in the cube and for the population, if both networks have the same prior on each parameter they share.

    Raises ValueError where the learner need not realise the truth, for networks of other than one hidden layer, and for
    scales that are not positive and finite.

    Source: derived in the book.
    """
    extra = redundant_units(widths, true_widths)
    if len(widths) != 3 or len(true_widths) != 3:
        raise ValueError(
            f"learner {tuple(widths)} and truth {tuple(true_widths)}: the inequality is derived for networks of the "
            "same depth with one hidden layer. Give three widths each."
        )
    return -extra * math.log(probability_dead(weight_scale, bias_scale, widths[0]).value)


def _dead_by_monte_carlo(ratio: float, inputs: int, seed: int, draws: int) -> Probability:
    """`probability_dead` for weight_scale / bias_scale = ``ratio``, averaged over the direction of the weights.

    Bias and norm of the weights are integrated out in closed form: for a direction u, b / ||w|| is a multiple of
    Student's t with ``inputs`` degrees of freedom. An average of Φ(-||w||_1 / bias_scale) has the same mean, but sees
    only the few draws of small norm once the unit is rarely dead.
    """
    from scipy.special import stdtr

    z = randomness.normal(seed, torch.arange(draws), "dead unit", 0, (inputs,), torch.float64)
    direction = (z.abs().sum(1) / z.norm(dim=1)).numpy()  # ||u||_1
    dead = stdtr(inputs, -ratio * math.sqrt(inputs) * direction)
    return Probability(float(dead.mean()), float(dead.std(ddof=1)) / math.sqrt(draws))


def _obstacle(widths: Sequence[int], true_widths: Sequence[int]) -> str | None:
    """The first of the paper's conditions that fails, with its way out, or None."""
    _check_widths(widths)
    _check_truth(true_widths)
    for name, end in (("inputs", 0), ("outputs", -1)):
        if widths[end] != true_widths[end]:
            return f"it has {widths[end]} {name} and the truth {true_widths[end]}; give it as many"
    hidden, true = widths[1:-1], true_widths[1:-1]
    if len(hidden) < len(true):
        return f"it has fewer hidden layers ({len(hidden)}) than the truth ({len(true)}); add layers"
    needed = [*true, *[true[-1]] * (len(hidden) - len(true))]
    for k, (width, least) in enumerate(zip(hidden, needed, strict=True)):
        if width < least:
            whose = "the truth's" if k < len(true) else "the truth's last, which an added layer must carry,"
            return f"its hidden layer {k + 1} has {width} units and {whose} {least}; widen it"
    return None


def _check_widths(widths: Sequence[int]) -> None:
    if len(widths) < 2:
        raise ValueError(f"widths {tuple(widths)} are no network: give at least its inputs and its outputs.")
    if widths[0] < 1 or widths[-1] < 1 or min(widths) < 0:
        raise ValueError(
            f"widths {tuple(widths)} are no network: inputs and outputs must be 1 or more, hidden layers 0 or more."
        )


def _check_truth(true_widths: Sequence[int]) -> None:
    _check_widths(true_widths)
    if len(true_widths) < 3:
        raise ValueError(
            f"a truth of widths {tuple(true_widths)} has no hidden layer, and the theorem is about those that have: "
            "give at least three widths."
        )


def _check_rank(widths: Sequence[int], rank: int) -> None:
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"widths {tuple(widths)} are no linear network: give at least two, each 1 or more.")
    if not 0 <= rank <= min(widths):
        raise ValueError(
            f"no product of matrices of widths {tuple(widths)} has rank {rank}: "
            f"give a rank from 0 to {min(widths)}, the smallest width."
        )
