"""Mixtures of networks: the same numbers as one network at a time, and end points that are the networks themselves."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from lib.connectivity import Scores, mixed, scores
from lib.networks import perceptron
from lib.params import member, params_of, stack

pytestmark = pytest.mark.usefixtures("two_threads")  # blocks are shared among torch's threads


class Skipping(nn.Module):
    """No Sequential: the inputs pass by the hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.hidden(x).tanh() + x)


def convolutional() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 4)
    )  # fmt: skip


def norm_first() -> nn.Sequential:
    """A layer with weights before the first that is affine in them."""
    return nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


NETWORKS = {
    "perceptron": (lambda: perceptron((6, 9, 7, 4)), (6,)),
    "with BatchNorm": (lambda: perceptron((6, 9, 7, 4), norm=nn.BatchNorm1d), (6,)),
    "convolutional": (convolutional, (1, 6, 6)),
    "a norm comes first": (norm_first, (6,)),
    "no Sequential": (Skipping, (6,)),
}


def problem(name: str, dtype: torch.dtype = torch.float64) -> tuple:
    """A network, four members of it, and 30 examples."""
    build, shape = NETWORKS[name]
    net, generator = build().to(dtype).eval(), torch.Generator().manual_seed(1)

    def drawn(key: str, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return torch.randint(1, 90, tensor.shape, generator=generator)
        noise = torch.randn(tensor.shape, generator=generator, dtype=dtype)
        return noise.abs() + 0.5 if key.endswith("running_var") else noise

    params = stack([{k: drawn(k, t) for k, t in params_of(net).items()} for _ in range(4)])
    inputs = torch.randn(30, *shape, generator=generator, dtype=dtype)
    return net, params, inputs, torch.randint(0, 4, (30,), generator=generator)


def groups() -> tuple[torch.Tensor, torch.Tensor]:
    """Three groups of three networks, five mixtures of each: two inside, the corners."""
    index = torch.tensor([[0, 1, 2], [3, 1, 0], [2, 2, 3]])
    inside = torch.rand(3, 2, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    corners = torch.eye(3, dtype=torch.float64).expand(3, -1, -1)
    return index, torch.cat([inside / inside.sum(-1, keepdim=True), corners], 1)


@pytest.mark.parametrize("name", NETWORKS)
def test_each_mixture_scores_as_one_network_alone(name: str) -> None:
    net, params, inputs, targets = problem(name)
    index, weights = groups()
    found = scores(net, params, index, weights, inputs, targets)
    assert isinstance(found, Scores)
    assert found.calibrated is None
    for k in range(3):
        for r in range(5):
            own = {
                key: sum(w * t[i] for w, i in zip(weights[k, r], index[k], strict=True))
                if t.is_floating_point()
                else t[index[k, 0]]
                for key, t in params.items()
            }
            logits = functional_call(net, own, (inputs,))
            assert abs(found.loss[k, r] - F.cross_entropy(logits, targets)) < 1e-12 * (1 + found.loss[k, r])
            assert found.error[k, r] == (logits.argmax(1) != targets).double().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NETWORKS)
def test_corners_are_the_networks_to_the_last_bit(name: str, dtype: torch.dtype) -> None:
    net, params, inputs, targets = problem(name, dtype)
    index, weights = groups()
    alone = scores(
        net, params, torch.arange(4)[:, None], torch.ones(4, 1, 1), inputs, targets, calibrate=(inputs, targets)
    )  # fmt: skip
    found = scores(net, params, index, weights, inputs, targets, calibrate=(inputs, targets))
    for what in ("loss", "error", "calibrated"):
        ours, theirs = getattr(found, what), getattr(alone, what)
        assert ours.dtype == torch.float64
        assert torch.equal(ours[:, 2:], theirs[index, 0]), what


def test_the_mixtures_themselves_and_their_counts() -> None:
    _, params, _, _ = problem("with BatchNorm")
    index, weights = groups()
    population = mixed(params, index, weights)
    for name, tensor in population.items():
        assert tensor.shape == (15, *params[name].shape[1:])
        if not tensor.is_floating_point():
            assert torch.equal(tensor.view(3, 5)[:, 0], params[name][index[:, 0]])
            assert torch.equal(tensor.view(3, 5), tensor.view(3, 5)[:, :1].expand(-1, 5))
    one = weights[1, 0] @ params["0.weight"][index[1]].flatten(1)
    assert torch.allclose(population["0.weight"][5].flatten(), one, rtol=1e-14)


@pytest.mark.parametrize("name", ["perceptron", "no Sequential"])
def test_blocks_of_any_size_give_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, params, inputs, targets = problem(name)
    index, weights = groups()
    whole = scores(net, params, index, weights, inputs, targets, calibrate=(inputs, targets))
    monkeypatch.setattr("lib.connectivity.mixtures.CACHE", 1)
    pieces = scores(net, params, index, weights, inputs, targets, calibrate=(inputs, targets))
    for what in ("loss", "error", "calibrated"):
        assert torch.allclose(getattr(whole, what), getattr(pieces, what), rtol=1e-12, atol=1e-13), what


def calibrated(logits: torch.Tensor, targets: torch.Tensor, held: torch.Tensor, right: torch.Tensor) -> float:
    """The loss of ``logits`` at the temperature that is best for the logits ``held``, by another minimiser."""
    from scipy.optimize import minimize_scalar

    best = minimize_scalar(
        lambda t: float(F.cross_entropy(held / 10**t, right)),
        bounds=(-3, 4),
        method="bounded",
        options={"xatol": 1e-9},
    )
    return float(F.cross_entropy(logits / 10**best.x, targets))


@pytest.mark.parametrize("name", ["perceptron", "no Sequential"])
@pytest.mark.parametrize("size", [0.02, 1.0, 20.0])
def test_each_mixture_is_read_at_its_own_best_temperature(name: str, size: float) -> None:
    net, params, inputs, targets = problem(name)
    head = "4" if name == "perceptron" else "head"
    params = {k: t * size if k.startswith(head) else t for k, t in params.items()}
    index, weights = groups()
    right = functional_call(net, member(params, 0), (inputs,)).argmax(
        1
    )  # classes that the networks know about
    right[::3] = targets[::3]
    found = scores(net, params, index, weights, inputs[:12], right[:12], calibrate=(inputs[12:], right[12:]))
    plain = scores(net, params, index, weights, inputs[:12], right[:12])
    assert torch.allclose(found.loss, plain.loss, rtol=1e-12)
    for k in range(3):
        for r in range(5):
            own = member(mixed(params, index, weights), 5 * k + r)
            logits = functional_call(net, own, (inputs,))
            aim = calibrated(logits[:12], right[:12], logits[12:], right[12:])
            assert abs(found.calibrated[k, r] - aim) < 5e-4 * (1 + aim)


def test_calibration_never_harms_on_its_own_examples() -> None:
    net, params, inputs, targets = problem("perceptron")
    index, weights = groups()
    found = scores(net, params, index, weights, inputs, targets, calibrate=(inputs, targets))
    assert (found.calibrated <= found.loss + 1e-9).all()
    assert (found.calibrated < found.loss - 0.1).any()


def test_misuse_of_mixtures_is_refused() -> None:
    net, params, inputs, targets = problem("perceptron")
    index, weights = groups()
    with pytest.raises(ValueError, match=r"give \(K, m\) and \(K, R, m\), at least one mixture"):
        scores(net, params, index[:0], weights[:0], inputs, targets)
    with pytest.raises(ValueError, match="names network 4, but there are 4"):
        scores(net, params, index + 1, weights, inputs, targets)
    with pytest.raises(ValueError, match="a weight that is not finite"):
        scores(net, params, index, weights.log(), inputs, targets)
    broken = {k: v.clone() for k, v in params.items()}
    broken["2.bias"][3, 0] = torch.nan
    with pytest.raises(ValueError, match=r"network 3 has weights that are not finite \('2.bias'\)"):
        scores(net, broken, index, weights, inputs, targets)
