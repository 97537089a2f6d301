"""Which learners a profile asks for, and which curves belong to which claim."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lib.free_energy.truths import T0, T1, T2, T3, Truth
from lib.growth.curves import Curve, Learner
from lib.profile import FreeEnergy, Widths

OF_TRUTH = {T0: "constant", T2: "two", T3: "three"}


def widths(truth: Truth, hidden: Widths) -> tuple[int, ...]:
    """Hidden widths between the truth's inputs and outputs."""
    return (truth.widths[0], *hidden, truth.widths[-1])


def learners(sizes: FreeEnergy) -> list[Learner]:
    """Every learner whose population curve is climbed."""
    found = [Learner(T1, widths(T1, hidden)) for hidden in (*sizes.wide, *sizes.deep)]
    found += [Learner(T1, widths(T1, hidden), gaussian=True) for hidden in sizes.normal]
    for truth, name in OF_TRUTH.items():
        found += [Learner(truth, widths(truth, hidden)) for hidden in getattr(sizes, name)]
    return found


def last(all_learners: Sequence[Learner], sizes: FreeEnergy) -> dict[Learner, float]:
    """Where each curve ends: farther where widths and inputs are compared."""
    far = {widths(T1, hidden) for hidden in (*sizes.wide, *sizes.normal)}
    return {
        learner: sizes.far if learner.truth == T1 and learner.widths in far else sizes.last
        for learner in all_learners
    }


def keep(all_learners: Sequence[Learner], sizes: FreeEnergy) -> dict[Learner, list[float]]:
    """The n, a decade apart from 10 on, whose particles are kept of the learners that are watched."""
    watched = {widths(T1, hidden) for hidden in sizes.watched}
    decades = [10.0**k for k in range(1, 1 + round(math.log10(sizes.last)))]
    return {
        learner: decades
        for learner in all_learners
        if learner.truth == T1 and not learner.gaussian and learner.widths in watched
    }


def of(
    curves: Mapping[str, Curve],
    truth: Truth,
    hidden: Sequence[Widths],
    *,
    until: float,
    gaussian: bool = False,
) -> list[Curve]:
    """The curves of some learners of one truth, cut behind ``until``."""
    return [curves[Learner(truth, widths(truth, h), gaussian).name].until(until) for h in hidden]


def realising(curves: Mapping[str, Curve], sizes: FreeEnergy) -> list[Curve]:
    """Every curve of a learner that realises its truth, uniform inputs, the constant truth left out."""
    large = [h for h in sizes.two if h[0] >= T2.widths[1]]
    return [
        *of(curves, T1, (*sizes.wide, *sizes.deep), until=sizes.last),
        *of(curves, T2, large, until=sizes.last),
        *of(curves, T3, sizes.three, until=sizes.last),
    ]


def deep_pairs(curves: Mapping[str, Curve], sizes: FreeEnergy) -> list[tuple[Curve, Curve]]:
    """Each deeper learner with the learner of the truth's depth and the same width; those in the claim's scope (widths 1, 2)."""
    inside = [h for h in sizes.deep if h[0] <= 2]
    deep = of(curves, T1, inside, until=sizes.last)
    shallow = of(curves, T1, [h[:1] for h in inside], until=sizes.last)
    return list(zip(deep, shallow, strict=True))


def input_pairs(curves: Mapping[str, Curve], sizes: FreeEnergy) -> list[tuple[Curve, Curve]]:
    """Each learner of normal inputs with the same learner of uniform ones."""
    normal = of(curves, T1, sizes.normal, until=sizes.far, gaussian=True)
    return list(zip(normal, of(curves, T1, sizes.normal, until=sizes.far), strict=True))
