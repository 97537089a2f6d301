"""Pieces side by side: in order, each in a process of its own with one thread, and the caller's threads as before."""

from __future__ import annotations

import os
import platform
import time
import warnings

import numpy as np
import pytest
import torch

from lib.device import no_denormals
from lib.parallel import side_by_side

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("two_threads")


def test_results_come_in_the_order_of_the_pieces(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)

    def piece(i):
        time.sleep(0.05 * (3 - i))
        return i

    assert side_by_side([lambda i=i: piece(i) for i in range(4)], CPU) == [0, 1, 2, 3]
    assert side_by_side([], CPU) == []


def test_pieces_on_a_cpu_run_together_in_processes_of_their_own(monkeypatch, tmp_path):
    """Each waits for the other's sign: one after the other they would wait in vain."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)

    def piece(mine, other):
        (tmp_path / mine).touch()
        end = time.monotonic() + 60
        while not (tmp_path / other).exists():
            assert time.monotonic() < end, "the other piece never came"
            time.sleep(0.01)
        return os.getpid()

    found = side_by_side([lambda: piece("a", "b"), lambda: piece("b", "a")], CPU)
    assert len({os.getpid(), *found}) == 3


@pytest.mark.parametrize(("device", "cores"), [("meta", 4), ("cpu", 1), ("cpu", None)])
def test_an_accelerator_and_a_single_core_take_one_after_the_other_here(monkeypatch, device, cores):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert side_by_side([os.getpid] * 3, torch.device(device)) == [os.getpid()] * 3


@pytest.mark.parametrize("cores", [1, 2])
def test_every_piece_has_one_thread_and_the_caller_keeps_his(monkeypatch, cores):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert side_by_side([torch.get_num_threads] * 3, CPU) == [1, 1, 1]
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("cores", [1, 2])
def test_a_piece_that_fails_is_heard_and_the_threads_come_back(monkeypatch, cores):
    monkeypatch.setattr("os.cpu_count", lambda: cores)

    def broken():
        raise RuntimeError("this piece is broken")

    with pytest.raises(RuntimeError, match="this piece is broken"):
        side_by_side([lambda: 1, broken], CPU)
    assert torch.get_num_threads() == 2


def _grow(i):
    _KEPT.append(np.ones(5 * 10**7))  # 400 MB that the worker never gives back
    time.sleep(1.1)  # joblib looks at a worker's memory once a second
    return i


_KEPT: list[np.ndarray] = []


def test_a_worker_that_grew_is_replaced_without_a_word(monkeypatch):
    """Whether joblib remarks on it depends on the machine's memory; a page must print the same everywhere."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        assert side_by_side([lambda i=i: _grow(i) for i in range(6)], CPU) == [0, 1, 2, 3, 4, 5]
    assert not heard


def test_without_denormals_the_smallest_numbers_are_nought_and_come_back():
    tiny = torch.tensor([1e-39, 1.0])
    with no_denormals():
        inside = tiny * torch.tensor([1.0, 1.0])
    outside = tiny * torch.tensor([1.0, 1.0])
    assert outside[0] > 0
    assert inside[0] == 0 or platform.machine() not in ("x86_64", "AMD64")
