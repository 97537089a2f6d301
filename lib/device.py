"""The one place that chooses a device."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


def pick(name: str | None = None) -> torch.device:
    """The device called ``name`` (``auto``, ``cpu``, ``cuda``, ``mps``); by default what BOOK_DEVICE says, else ``auto``.

    ``auto`` takes CUDA where there is one and the CPU otherwise. MPS is taken only when named: it has no
    float64, which the canonical forms use. Raises ValueError for an unknown name and RuntimeError for a
    device that this machine lacks.
    """
    name = name or os.environ.get("BOOK_DEVICE", "auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    present = {
        "cpu": lambda: True,
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
    }
    if name not in present:
        raise ValueError(f"there is no device called {name!r}: choose one of auto, {', '.join(present)}.")
    if not present[name]():
        raise RuntimeError(f"this machine has no {name} device: use --device auto, or --device cpu.")
    return torch.device(name)


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside the block torch's CPU operators use one thread.

    Where thousands of small operations follow each other, a second thread gains little, and costs much on a
    machine that does something else besides: each operation then waits for the slower of the two.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def no_denormals() -> Iterator[None]:
    """Inside the block numbers below the smallest normal one count as 0, on this thread and where the processor can.

    Probabilities of classes that a network has ruled out are such numbers; every product with them takes many times as long.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextmanager
def worker_pool(device: torch.device, single: bool = True) -> Iterator[tuple[int, Callable]]:
    """(how many, a map over pieces of work): one single-threaded worker for each of torch's threads, or the plain loop.

    The loop is taken off a CPU, and with ``single=False``, for pieces that use torch's threads themselves.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or not single:
        yield 1, map
        return
    with one_thread(), ThreadPoolExecutor(threads) as pool:
        yield threads, pool.map
