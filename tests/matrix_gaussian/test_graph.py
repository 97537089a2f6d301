"""Captured steps, with a pretended CUDA whose graphs keep its rules: capturing runs nothing, replaying reads the tensors captured."""

from contextlib import contextmanager, nullcontext

import pytest
import torch

from lib.matrix_gaussian.graph import NoGraph, captured
from lib.matrix_gaussian.laws import RowColumn
from lib.matrix_gaussian.likelihoods import Gaussian
from lib.matrix_gaussian.network import Network
from lib.matrix_gaussian.training import Examples, Schedule, fit


class Waiting:
    def wait_stream(self, other):
        pass


class Graph:
    """Holds what was launched while it listened."""

    def __init__(self):
        self.launched, self.replays = [], 0

    def replay(self):
        self.replays += 1
        for work in self.launched:
            work()


class Machine:
    """A running sum, a step that adds to it, and what a step costs: how often it is called."""

    def __init__(self, monkeypatch, fails=False):
        self.listening, self.graphs, self.calls, self.fails = None, [], 0, fails
        self.state = [torch.tensor([1.0, 2.0]), torch.tensor([5.0])]
        self.out = torch.zeros(1)
        for name, value in {
            "CUDAGraph": self.make,
            "Stream": Waiting,
            "current_stream": Waiting,
            "stream": lambda stream: nullcontext(),
            "graph": self.listen,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def make(self):
        self.graphs.append(Graph())
        return self.graphs[-1]

    @contextmanager
    def listen(self, graph):
        self.listening = graph
        yield
        self.listening = None
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")

    def step(self, x, y, factors, noise):
        self.calls += 1
        total, count = self.state

        def work():
            total.add_(x * factors[0] + y * noise["a"])
            count.add_(1)
            self.out.copy_(total.sum()[None])

        if self.listening is None:
            work()
        else:
            self.listening.launched.append(work)
        return self.out


def arguments(k):
    return (
        torch.tensor([1.0, k]),
        torch.tensor([2.0, -k]),
        torch.tensor([0.5 * k]),
        {"a": torch.tensor([k, 3.0])},
    )


def run(machine, step, steps=4):
    """States and values after each step; all arguments are the caller's as before."""
    found, given = [], [arguments(float(k)) for k in range(1, steps + 1)]
    for one in given:
        value = step(*one)
        found.append([x.clone() for x in (*machine.state, value)])
    for k, (*tensors, noise) in enumerate(given, 1):
        *before, other = arguments(float(k))
        assert all(
            torch.equal(a, b) for a, b in zip((*tensors, noise["a"]), (*before, other["a"]), strict=True)
        )
    return found


def equal(found, wanted):
    return all(
        torch.equal(a, b) for f, w in zip(found, wanted, strict=True) for a, b in zip(f, w, strict=True)
    )


def test_replays_are_the_steps_themselves(monkeypatch):
    plain, machine = Machine(monkeypatch), Machine(monkeypatch)
    wanted = run(plain, plain.step)
    found = run(machine, captured(machine.step, machine.state))
    assert equal(found, wanted)
    (graph,) = machine.graphs
    assert (graph.replays, len(graph.launched)) == (4, 1)
    assert machine.calls == 4  # three to warm up and one to capture, whose traces are gone


def test_nothing_is_captured_before_the_first_step(monkeypatch):
    machine = Machine(monkeypatch)
    captured(machine.step, machine.state)
    assert (machine.calls, machine.graphs) == (0, [])


def test_where_capturing_fails_the_step_runs_as_it_is(monkeypatch):
    plain, machine = Machine(monkeypatch), Machine(monkeypatch, fails=True)
    wanted = run(plain, plain.step)
    with pytest.warns(NoGraph, match=r"could not be captured .*not permitted.*: it runs slower") as warned:
        found = run(machine, captured(machine.step, machine.state))
    assert equal(found, wanted)
    assert len(warned) == len(machine.graphs) == 1  # and is not tried again
    assert machine.graphs[0].replays == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_device_trains_as_a_cpu_does():
    x = torch.linspace(-1, 1, 12).double().view(1, 12, 1)
    network, fits = Network.of(RowColumn(), (1, 5, 1), Gaussian()), []
    for device in ("cpu", "cuda"):
        given = (x, x**3, torch.tensor([12, 7]), torch.ones(2, 1).double())
        examples = Examples(*(value.to(device) for value in given))
        fits.append(fit(network, examples, Schedule(20, 4), seed=991))
    torch.testing.assert_close(fits[1].flat.cpu(), fits[0].flat, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fits[1].loss.cpu(), fits[0].loss, rtol=1e-6, atol=1e-6)
