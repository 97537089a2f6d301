"""Independent pieces of work side by side: on a CPU one process and one thread each, on an accelerator one after the other."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from lib.device import one_thread

T = TypeVar("T")


def side_by_side(pieces: Sequence[Callable[[], T]], device: torch.device) -> list[T]:
    """The results of ``pieces`` in order, by joblib's processes, one a core, which live on for the next call.

    Thousands of small operations gain nothing from a second thread, and threads would wait for Python's lock. The last piece is
    begun first: lists here rise in size, and the longest piece must not wait for the others.
    """
    workers = 1 if device.type != "cpu" else min(len(pieces), os.cpu_count() or 1)
    if workers < 2:
        return [_alone(piece) for piece in pieces]
    import joblib

    with warnings.catch_warnings():
        # joblib replaces a worker that has grown, which loses nothing, and remarks on it whenever it happens to.
        warnings.filterwarnings("ignore", message="A worker stopped while some jobs")
        return joblib.Parallel(n_jobs=workers)(joblib.delayed(_alone)(piece) for piece in pieces[::-1])[::-1]


@one_thread()
def _alone(piece: Callable[[], T]) -> T:
    return piece()
