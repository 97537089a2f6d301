"""Independent pieces of work side by side: on a CPU one thread each, on an accelerator one after the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


def side_by_side(pieces: Sequence[Callable[[], T]], device: torch.device) -> list[T]:
    """The results of ``pieces`` in order. Small tensors gain nothing from a second thread each; whole pieces do."""
    workers = 1 if device.type != "cpu" else min(len(pieces), os.cpu_count() or 1)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(lambda piece: piece(), pieces))
    finally:
        torch.set_num_threads(threads)
