"""Pieces side by side: order, one thread each, and the threads of before whatever happens."""

import threading
import time

import pytest
import torch

from lib.growth.parallel import side_by_side

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_pieces(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    done = []

    def piece(i):
        time.sleep(0.05 * (3 - i))
        done.append(i)
        return i

    assert side_by_side([lambda i=i: piece(i) for i in range(4)], CPU) == [0, 1, 2, 3]
    assert sorted(done) == [0, 1, 2, 3]


def test_pieces_on_a_cpu_run_together(monkeypatch):
    """Each waits for the other: one after the other they would wait in vain."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    barrier = threading.Barrier(2, timeout=30)
    assert sorted(side_by_side([barrier.wait, barrier.wait], CPU)) == [0, 1]


@pytest.mark.parametrize(("device", "cores"), [("meta", 4), ("cpu", 1), ("cpu", None)])
def test_an_accelerator_and_a_single_core_take_one_after_the_other(monkeypatch, device, cores):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    running, most = [], []

    def piece():
        running.append(1)
        most.append(len(running))
        time.sleep(0.02)
        running.pop()

    side_by_side([piece] * 3, torch.device(device))
    assert most == [1, 1, 1]


def test_every_piece_has_one_thread_and_the_caller_keeps_his():
    assert side_by_side([torch.get_num_threads] * 3, CPU) == [1, 1, 1]
    assert torch.get_num_threads() == 2


def test_a_piece_that_fails_is_heard_and_the_threads_come_back():
    def broken():
        raise RuntimeError("this piece is broken")

    with pytest.raises(RuntimeError, match="this piece is broken"):
        side_by_side([lambda: 1, broken], CPU)
    assert torch.get_num_threads() == 2
