"""The stacked passes against autograd on the same network as a torch module, run by run."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.population import losses
from lib.randomness import integers, normal
from lib.unit_norm import network
from lib.unit_norm.network import Network, Pass, evaluate

DOUBLE = torch.float64
S, R, B = 2, 3, 9
NETS = {
    "norm": Network((5, 6, 4)),
    "norm, deeper": Network((5, 6, 8, 4, 3)),
    "norm, pools": Network((5, 6, 8, 3), pool=2, eps=1e-3),
    "free": Network((5, 6, 3), norm=False),
    "free, pools, deeper": Network((5, 6, 6, 9, 4), pool=3, norm=False),
}
each_net = pytest.mark.parametrize("net", NETS.values(), ids=NETS)


def draw(name: str, *shape: int) -> Tensor:
    return normal(47, torch.arange(1), name, 0, shape, DOUBLE)[0]


class Stack:
    """Weights, statistics and a batch of S streams of R runs."""

    def __init__(self, net: Network, batch: int = B) -> None:
        self.net = net
        self.weights = [draw(f"w{i}", S, R, n, k) for i, (n, k) in enumerate(net.shapes)]
        self.means = [draw(f"m{i}", S, R, n) for i, n in enumerate(net.widths[1:-1])]
        self.variances = [draw(f"v{i}", S, R, n).exp() for i, n in enumerate(net.widths[1:-1])]
        self.x = draw("x", S, batch, net.widths[0])
        self.y = integers(47, torch.arange(S), "y", 0, net.widths[-1], (batch,))

    @property
    def state(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        return self.weights, self.means, self.variances

    def modules(self) -> dict[tuple[int, int], nn.Sequential]:
        """Every run as a module of its own."""
        return {(s, r): self.module(s, r) for s in range(S) for r in range(R)}

    def module(self, s: int, r: int) -> nn.Sequential:
        module = self.net.module().to(DOUBLE)
        norms = [layer for layer in module if isinstance(layer, nn.BatchNorm1d)]
        dense = [layer for layer in module if isinstance(layer, nn.Linear)]
        assert len(norms) == (len(self.means) if self.net.norm else 0)
        with torch.no_grad():
            for layer, w in zip(dense, self.weights, strict=True):
                layer.weight.copy_(w[s, r])
            for layer, m, v in zip(norms, self.means, self.variances, strict=False):
                layer.running_mean.copy_(m[s, r])
                layer.running_var.copy_(v[s, r])
        return module


def close(found: Tensor, right: Tensor, tolerance: float = 1e-12) -> None:
    assert found.shape == right.shape
    assert (found - right).abs().max() <= tolerance * (1 + right.abs().max())


# ---------------------------------------------------------------------------------------------------------- passes


@each_net
@pytest.mark.parametrize("train", [True, False])
def test_logits_and_running_statistics_are_the_modules(net, train):
    stack = Stack(net)
    modules, before = stack.modules(), [t.clone() for t in (*stack.means, *stack.variances)]
    logits = Pass(net, *stack.state, B).forward(stack.x, train).view(S, R, -1, B)
    for (s, r), module in modules.items():
        close(logits[s, r].T, module.train(train)(stack.x[s]).detach())
        norms = [layer for layer in module if isinstance(layer, nn.BatchNorm1d)]
        for layer, m, v in zip(norms, stack.means, stack.variances, strict=False):
            close(m[s, r], layer.running_mean)
            close(v[s, r], layer.running_var)
    same = [torch.equal(a, b) for a, b in zip(before, (*stack.means, *stack.variances), strict=True)]
    assert not any(same) if train and net.norm else all(same)


@each_net
def test_gradients_are_autograds(net):
    stack = Stack(net)
    modules, work = stack.modules(), Pass(net, *stack.state, B)
    for _ in range(2):  # its arrays are used again: the second time must not see the first
        logits = work.forward(stack.x, train=True)
        slope = draw("slope", S * R, net.widths[-1], B)
        gradients = work.backward(slope.clone())
    for s, r in modules:
        module = stack.module(s, r).train()
        outputs = module(stack.x[s])
        outputs.backward(slope.view(S, R, -1, B)[s, r].T)
        close(logits.view(S, R, -1, B)[s, r].T, outputs.detach())
        for found, layer in zip(gradients, (m for m in module if isinstance(m, nn.Linear)), strict=True):
            close(found[s, r], layer.weight.grad)
            assert layer.weight.grad.abs().max() > 0


@each_net
def test_a_whole_step_of_the_loss_is_the_modules(net):
    stack = Stack(net)
    work, targets = Pass(net, *stack.state, B), stack.y[:, None].expand(S, R, B).reshape(S * R, B)
    logits = work.forward(stack.x, train=True)
    values = losses.per_example("cross_entropy", logits, targets, axis=1).mean(1).view(S, R)
    slope = losses.derivative("cross_entropy", logits, targets, torch.empty_like(logits), axis=1)
    gradients = work.backward(slope / B)
    for (s, r), module in stack.modules().items():
        loss = F.cross_entropy(module.train()(stack.x[s]), stack.y[s])
        loss.backward()
        close(values[s, r], loss.detach())
        for found, layer in zip(gradients, (m for m in module if isinstance(m, nn.Linear)), strict=True):
            close(found[s, r], layer.weight.grad)


def test_under_norms_a_gradient_is_orthogonal_to_its_filter():
    stack = Stack(Network((5, 6, 8, 3), pool=2, eps=1e-30))
    work = Pass(stack.net, *stack.state, B)
    work.forward(stack.x, train=True)
    *filters, classifier = work.backward(draw("slope", S * R, 3, B))
    for w, g in zip(stack.weights, filters, strict=False):
        assert (w * g).sum(3).abs().max() < 1e-12 * g.norm()
    assert (stack.weights[-1] * classifier).sum(3).abs().max() > 0.1


# ------------------------------------------------------------------------------------------------------ evaluation


@each_net
@pytest.mark.parametrize("block", [1, 4, 23, 500])
def test_evaluation_is_torchs_loss_and_accuracy_in_blocks(net, block, monkeypatch):
    stack = Stack(net, 23)
    monkeypatch.setattr(network, "BLOCK", block)
    loss, error = evaluate(net, *stack.state, stack.x, stack.y)
    assert 0 < error.min() < error.max() <= 1
    for (s, r), module in stack.modules().items():
        logits = module.eval()(stack.x[s]).detach()
        close(loss[s, r], F.cross_entropy(logits, stack.y[s]))
        close(error[s, r], (logits.argmax(1) != stack.y[s]).double().mean())


def test_examples_that_all_streams_share_need_no_copy():
    stack = Stack(NETS["norm"], 23)
    shared = stack.x[:1].expand(S, -1, -1), stack.y[:1].expand(S, -1)
    copied = [t.contiguous() for t in shared]
    for found, right in zip(
        evaluate(stack.net, *stack.state, *shared), evaluate(stack.net, *stack.state, *copied), strict=True
    ):
        close(found, right)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_run_whose_weights_are_no_numbers_is_all_wrong_and_alone(bad):
    """Even where the class that ``argmax`` answers to it is right."""
    stack = Stack(NETS["norm, pools"], 23)
    right = evaluate(stack.net, *stack.state, stack.x, stack.y)
    stack.weights[1][0, 2, 3] = bad
    for y in (torch.zeros_like(stack.y), stack.y):
        loss, error = evaluate(stack.net, *stack.state, stack.x, y)
        assert error[0, 2] == 1
        assert not loss[0, 2].isfinite()
    others = torch.ones(S, R, dtype=torch.bool)
    others[0, 2] = False
    close(loss[others], right[0][others])
    close(error[others], right[1][others])


# ----------------------------------------------------------------------------------------------------------- shapes


def test_shapes_and_counts_by_hand():
    net = Network((784, 128, 64, 10), pool=2)
    assert net.shapes == ((128, 784), (64, 64), (10, 32))
    assert net.numbers == 128 * 784 + 64 * 64 + 10 * 32
    assert net.multiplications(100) == 100 * (2 * 128 * 784 + 3 * (64 * 64 + 10 * 32))
    assert [tuple(layer.weight.shape) for layer in net.module() if isinstance(layer, nn.Linear)] == list(
        net.shapes
    )
    kinds = [type(layer).__name__ for layer in Network((4, 6, 2), pool=3).module()]
    assert kinds == ["Linear", "BatchNorm1d", "Unflatten", "MaxPool1d", "Flatten", "ReLU", "Linear"]
    assert [type(layer).__name__ for layer in Network((4, 6, 2), norm=False).module()] == [
        "Linear",
        "ReLU",
        "Linear",
    ]
    norm = Network((4, 6, 2), eps=1e-3).module()[1]
    assert (norm.eps, norm.affine, norm.momentum) == (1e-3, False, 0.1)
    assert all(layer.bias is None for layer in net.module() if isinstance(layer, nn.Linear))


def test_initial_weights_are_unit_rows_of_their_stream_and_layer_alone():
    net, streams = Network((5, 6, 6, 3)), torch.tensor([4, 0, 9])
    weights = net.initial(1, streams, DOUBLE)
    assert [tuple(w.shape) for w in weights] == [(3, 1, n, k) for n, k in net.shapes]
    for w in weights:
        close(w.norm(dim=3), torch.ones(w.shape[:3], dtype=DOUBLE))
    for alone, w in zip(net.initial(1, streams[2:], DOUBLE), weights, strict=True):
        assert torch.equal(alone[0], w[2])
        assert not torch.equal(w[0], w[1])
    assert not torch.equal(net.initial(2, streams, DOUBLE)[0], weights[0])
    first, second, _ = Network((6, 6, 6, 3)).initial(1, streams, DOUBLE)
    assert not torch.equal(first, second)
    flat = torch.cat([w.flatten() for w in net.initial(0, torch.arange(200), DOUBLE)[:1]])
    assert abs(flat.mean()) < 4 / (5 * len(flat)) ** 0.5
    assert net.initial(1, streams)[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"widths": (5, 3)}, r"widths \(5, 3\): name the inputs, at least one layer, and the classes"),
        ({"widths": (5, 7, 4, 3), "pool": 2}, "7 filters are no whole number of pools of 2 units"),
        ({"widths": (5, 6, 4, 3), "pool": 3}, "4 filters are no whole number of pools of 3 units"),
    ],
)
def test_networks_that_cannot_be_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Network(**settings)
