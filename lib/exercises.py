"""Check a reader's answer to an exercise: not attempted, correct, or what is still wrong."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor


def check(answer: Callable, *cases: tuple[tuple, object], tolerance: float = 1e-6) -> None:
    """Print the state of an exercise: call ``answer`` on each case's arguments and compare with what is expected.

    A stub returns None and counts as not attempted. Numbers, tensors and dicts of tensors are compared to
    ``tolerance``, relative and absolute; an exception in the answer is shown, since the reader is still writing it.
    """
    for arguments, expected in cases:
        try:
            found = answer(*arguments)
        except Exception as error:
            print(f"not yet: your function raised {type(error).__name__}: {error}")
            return
        if found is None:
            print("not attempted")
            return
        problem = _difference(found, expected, tolerance)
        if problem:
            print(f"not yet: {problem}")
            return
    print("correct")


def _difference(found: object, expected: object, tolerance: float) -> str:
    if isinstance(expected, dict):
        if not isinstance(found, dict) or found.keys() != expected.keys():
            return f"a dict with the keys {sorted(expected)} is wanted."
        parts = (_difference(found[key], expected[key], tolerance) for key in expected)
        return next((f"{key}: {part}" for key, part in zip(expected, parts, strict=True) if part), "")
    a, b = (
        np.asarray(x.detach().cpu() if isinstance(x, Tensor) else x, dtype=float) for x in (found, expected)
    )
    if a.shape != b.shape:
        return f"the shape is {a.shape}, {b.shape} is wanted."
    if not np.allclose(a, b, rtol=tolerance, atol=tolerance):
        return f"the largest difference from what is wanted is {np.abs(a - b).max():.3g}."
    return ""
