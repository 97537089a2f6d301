"""Stacked layers against one network after the other, in float64: values, gradients, refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from lib.networks import optumnist, perceptron
from lib.params import member
from lib.population import UnsupportedTraining, initial, predict, stacked, training


def one_by_one(net, params, x, own):
    return torch.stack([functional_call(net, member(params, i), (x[i] if own else x,)) for i in range(3)])


def random_params(net, generator):
    """Three members, with norms of random scales, shifts and running statistics."""
    params = initial(net, 3, generator.initial_seed())
    for name, tensor in params.items():
        if tensor.ndim == 2 and tensor.is_floating_point():
            tensor += 0.5 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        if name.endswith("running_var"):
            tensor.abs_()
    return params


def assert_same(net, shape, own, seed=0):
    """Values, and gradients of a random projection by parameters and inputs, of three members."""
    net = net.double().eval()
    generator = torch.Generator().manual_seed(seed)
    params = random_params(net, generator)
    trained = [params[name].requires_grad_() for name, _ in net.named_parameters()]
    x = torch.randn(3 if own else 4, *([4] if own else []), *shape, generator=generator, dtype=torch.float64)
    x.requires_grad_()
    ours, theirs = stacked.forward(net, params, x), one_by_one(net, params, x, own)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    along = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    inputs = [*trained, x]
    for a, b in zip(
        torch.autograd.grad(ours, inputs, along), torch.autograd.grad(theirs, inputs, along), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's own convolution copies its input there
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_convolution_of_any_geometry(data):
    draw = data.draw
    groups, kernel = draw(st.integers(1, 3)), draw(st.tuples(*[st.integers(1, 3)] * 2))
    dilation = draw(st.tuples(*[st.integers(1, 2)] * 2))
    stride = draw(st.tuples(*[st.integers(1, 3)] * 2))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    size = [n + draw(st.integers(0, 4)) for n in reach]
    paddings = st.tuples(*[st.integers(0, 2)] * 2) | st.just("valid")
    padding = draw(paddings | st.just("same") if stride == (1, 1) else paddings)
    channels, out = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 3))
    layer = nn.Conv2d(
        channels, out, kernel, stride, padding, dilation, groups=groups, bias=draw(st.booleans())
    )
    assert_same(nn.Sequential(layer), (channels, *size), draw(st.booleans()), draw(st.integers(0, 99)))


NETS = {
    "optumnist": (optumnist, (1, 28, 28)),
    "perceptron": (lambda: perceptron((6, 5, 4)), (6,)),
    "tanh": (lambda: perceptron((6, 5, 4, 3), nn.Tanh), (6,)),
    "flatten": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 4, bias=False), nn.SiLU()), (2, 3)),
    "pools": (
        lambda: nn.Sequential(
            nn.AvgPool2d(2),
            nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.SiLU(), nn.Dropout(0.5)),
            nn.MaxPool2d(3, 2, padding=1, dilation=2, ceil_mode=True),
            nn.AdaptiveAvgPool2d((2, 3)),
            nn.Flatten(),
            nn.Linear(18, 4),
        ),
        (2, 13, 12),
    ),
    "norms": (
        lambda: nn.Sequential(
            nn.BatchNorm2d(2, momentum=None),
            nn.Conv2d(2, 3, 3, bias=False),
            nn.BatchNorm2d(3, eps=0.1, affine=False),
            nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(18, 5), nn.BatchNorm1d(5), nn.Tanh()),
            nn.Linear(5, 4),
        ),
        (2, 5, 4),
    ),
    "norm of sequences": (
        lambda: nn.Sequential(nn.BatchNorm1d(2, bias=False), nn.Flatten(), nn.Linear(10, 4)),
        (2, 5),
    ),
    "norm before flattening": (
        lambda: nn.Sequential(nn.BatchNorm2d(2, affine=False), nn.Flatten(), nn.Linear(12, 4)),
        (2, 2, 3),
    ),
    "norms by the batch": (
        lambda: nn.Sequential(
            nn.BatchNorm2d(2, affine=False, track_running_stats=False),
            nn.Conv2d(2, 3, 3),
            nn.BatchNorm2d(3, track_running_stats=False),
            nn.Flatten(),
            nn.Linear(18, 5),
            nn.BatchNorm1d(5, eps=0.1, affine=False, track_running_stats=False),
            nn.Linear(5, 4),
        ),
        (2, 5, 4),
    ),
}


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("name", NETS)
def test_whole_networks(name, own):
    make, shape = NETS[name]
    assert stacked.supports(make())
    assert_same(make(), shape, own)


def test_torch_func_goes_through():
    """Each member's Hessian by torch.func, against that of the network alone."""
    from torch.func import jacrev, vmap

    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 1)).double()
    params, x = initial(net, 3, 0), torch.linspace(-1, 1, 18, dtype=torch.float64).view(2, 1, 3, 3)
    weight = params.pop("0.weight")

    def alone(weight, rest):
        return functional_call(net, rest | {"0.weight": weight}, (x,)).square().sum()

    def together(weights):
        return stacked.forward(net, params | {"0.weight": weights}, x).square().sum()

    ours = jacrev(jacrev(together))(weight)
    theirs = vmap(jacrev(jacrev(alone)))(weight, params)
    for i in range(3):
        torch.testing.assert_close(ours[i, ..., i, :, :, :, :], theirs[i])


def test_a_shape_that_could_be_both_is_asked_about():
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 2))
    params, x = initial(net, 3, 0), torch.randn(3, 1, 2, 3)
    with pytest.raises(ValueError, match="own=False or True"):
        stacked.forward(net, params, x)
    assert stacked.forward(net, params, x, own=False).shape == (3, 3, 2)
    each = stacked.forward(net, params, x, own=True)
    torch.testing.assert_close(each, one_by_one(net, params, x, own=True))
    assert stacked.forward(net, params, torch.randn(5, 1, 2, 3)).shape == (3, 5, 2)
    assert stacked.forward(net, params, torch.randn(3, 5, 2, 3)).shape == (3, 5, 2)
    images = nn.Sequential(nn.BatchNorm2d(1), *net)  # a norm of images leaves nothing open
    params = initial(images, 3, 0)
    assert stacked.forward(images, params, torch.randn(3, 1, 1, 2, 3)).shape == (3, 1, 2)
    assert stacked.forward(images, params, torch.randn(3, 1, 2, 3)).shape == (3, 3, 2)


@pytest.mark.parametrize("budget", [1, 20_000, 1 << 30])
@pytest.mark.parametrize("name", NETS)
def test_predictions_in_blocks_are_each_members_own(name, budget, monkeypatch):
    make, shape = NETS[name]
    net, x = make().double(), torch.randn(7, *shape, dtype=torch.float64)
    params = random_params(net, torch.Generator().manual_seed(0))
    monkeypatch.setattr(training, "CACHE", budget)
    torch.testing.assert_close(
        predict(net, params, x), one_by_one(net.eval(), params, x, own=False), rtol=1e-11, atol=1e-12
    )


def test_the_numbers_of_an_example():
    assert stacked.numbers(optumnist(), torch.zeros(5, 1, 28, 28)) == 2 * (
        2 * 25 * 25
    )  # around the first ReLU
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 3, 2, padding=1), nn.Flatten())
    assert stacked.numbers(net, torch.zeros(1, 1, 4, 4)) == 32 + 8 * 25 + 75
    norm = nn.BatchNorm2d(1, affine=False)  # whose statistics are each member's own
    assert stacked.numbers(nn.Sequential(norm, *net), torch.zeros(1, 1, 4, 4)) == 32 + 8 * 25 + 75
    by_batch = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, track_running_stats=False))
    assert stacked.numbers(by_batch, torch.zeros(1, 6)) == 10


def test_a_norm_by_the_batch_refuses_one_example():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(ValueError, match="one example gives it one number a channel"):
        predict(net, initial(net, 2, 0), torch.zeros(1, 2))


def test_a_norm_of_other_axes_is_refused_as_torch_does_it():
    net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match="expected 2D or 3D input"):
        predict(net, initial(net, 2, 0), torch.zeros(4, 1, 2, 2))


def test_norms_are_layers_only_for_those_who_ask():
    """A Gaussian over weights, or a dropped unit, has no meaning in a norm's tensors."""
    norm = nn.BatchNorm1d(3)
    assert "'1' is a BatchNorm1d, which has no stacked form" in stacked.refusal(norm, "1")
    assert stacked.refusal(norm, "1", norms=True) is None


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.LayerNorm(2)), "'1' is a LayerNorm"),
        (nn.Sequential(nn.Sequential(nn.Conv2d(1, 1, 1, padding_mode="reflect"))), "'0.0' is a Conv2d .*reflect"),
        (nn.Sequential(nn.Conv2d(1, 1, 1), nn.MaxPool2d(2, return_indices=True)), "indices"),
        (nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(2)), "from axis 2"),
        (nn.Linear(2, 2), "no nn.Sequential"),
        (nn.Sequential(nn.ReLU()), "neither"),
    ],
)  # fmt: skip
def test_what_has_no_stacked_form_is_refused_by_name(net, said):
    assert not stacked.supports(net)
    with pytest.raises(UnsupportedTraining, match=said):
        stacked.forward(net, initial(net, 2, 0), torch.zeros(3, 1, 4, 4))
