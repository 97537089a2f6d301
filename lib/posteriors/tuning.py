"""Choosing a method's option with the same stated budget for every method: the validation NLL of its averaged predictive."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any


class NothingChosen(ValueError):
    """No candidate has a finite score."""


@dataclass(frozen=True)
class Tuned:
    """The chosen option and what was tried.

    Attributes:
        option: the candidate of the lowest finite score, the first of several.
        candidates: all that were tried, in order.
        scores: one a candidate, lower is better; not finite for one that lost by failing.
        refusals: why a candidate has no score, by its place.
        runs: runs of the method behind each score, where said.
    """

    option: Any
    candidates: tuple[Any, ...]
    scores: tuple[float, ...]
    refusals: dict[int, str]
    runs: int | None

    def record(self) -> dict:
        """Plain numbers and words: the budget, every candidate with its score (None where it failed), the choice."""
        record = {
            "candidates": [_plain(candidate) for candidate in self.candidates],
            "scores": [score if math.isfinite(score) else None for score in self.scores],
            "chosen": next(i for i, candidate in enumerate(self.candidates) if candidate is self.option),
            "failed": sum(not math.isfinite(score) for score in self.scores),
            "refusals": {str(place): why for place, why in self.refusals.items()},
        }
        return (
            record
            if self.runs is None
            else record | {"runs": self.runs, "fits": self.runs * len(self.scores)}
        )


def choose(
    candidates: Iterable[Any], score: Callable[[Any], float | int], *, runs: int | None = None
) -> Tuned:
    """Score every candidate and take the lowest; ties go to the first.

    A score that is not finite loses, and so does a candidate that ``score`` refuses with a ValueError or
    ArithmeticError (diverged runs): its sentence is kept. ``runs`` is how many runs of the method stand behind a score,
    for the record. Raises NothingChosen without candidates, or where every one fails.
    """
    candidates = tuple(candidates)
    scores, refusals = [], {}
    for place, candidate in enumerate(candidates):
        try:
            scores.append(float(score(candidate)))
        except (ValueError, ArithmeticError) as error:
            scores.append(math.nan)
            refusals[place] = f"{type(error).__name__}: {error}"
            continue
        if not math.isfinite(scores[-1]):
            refusals[place] = f"its score is {scores[-1]}."
    finite = [place for place, value in enumerate(scores) if math.isfinite(value)]
    if not finite:
        why = "; ".join(f"{candidates[place]}: {reason}" for place, reason in refusals.items())
        raise NothingChosen(
            f"none of {len(candidates)} candidates has a finite score ({why or 'there are none'}): try others."
        )
    best = min(finite, key=lambda place: scores[place])
    return Tuned(candidates[best], candidates, tuple(scores), refusals, runs)


def _plain(candidate: Any) -> Any:
    if is_dataclass(candidate):
        return {
            name: value if isinstance(value, bool | int | float | str | None) else repr(value)
            for name, value in asdict(candidate).items()
        }
    return candidate if isinstance(candidate, bool | int | float | str) else repr(candidate)
