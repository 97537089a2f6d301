"""The convolution against the linear layer on patches, F.conv2d with its mean weights, and its noise."""

import math

import pytest
import torch
from torch import nn

from lib.matrix_gaussian.convolution import MatrixGaussianConv2d
from lib.matrix_gaussian.laws import Factorised, Point, RowColumn
from lib.matrix_gaussian.layer import MatrixGaussianLinear, divergence, sampling
from lib.matrix_gaussian.pseudo_data import PseudoData

LAWS = (Point(drop=0.2), Factorised(-1.0), RowColumn(), PseudoData(3, 0.3))
GEOMETRIES = (
    {},
    {"stride": (2, 1), "padding": (1, 2)},
    {"dilation": 2, "padding": 1},
    {"kernel_size": (2, 4), "padding": "same"},
    {"padding": 1, "padding_mode": "reflect"},
    {"padding": "valid", "bias": False},
)


def images(n=2, channels=3, height=7, width=6):
    numbers = torch.Generator().manual_seed(5)
    return torch.randn(n, channels, height, width, generator=numbers, dtype=torch.float64)


def layer_of(law, **geometry):
    options = {"kernel_size": 3} | geometry
    return MatrixGaussianConv2d(3, 4, dtype=torch.float64, law=law, seed=1, **options)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # of nn.Conv2d
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_the_mean_is_that_of_an_ordinary_convolution(geometry):
    layer, x = layer_of(RowColumn(), **geometry).eval(), images()
    plain = nn.Conv2d(3, 4, **({"kernel_size": 3} | geometry), dtype=torch.float64)
    weight = layer.mean / math.sqrt(layer.r)
    with torch.no_grad():
        plain.weight.copy_((weight[:-1] if layer.has_bias else weight).T.view_as(plain.weight))
        if layer.has_bias:
            plain.bias.copy_(weight[-1])
    torch.testing.assert_close(layer(x), plain(x))
    torch.testing.assert_close(layer(x[0]), plain(x[0]))
    with torch.no_grad():  # and so is a noisy pass whose noise is nothing
        layer.log_row.fill_(-300.0)
    torch.testing.assert_close(layer.train()(x), plain(x))
    torch.testing.assert_close(layer(x[0]), plain(x[0]))
    assert layer(x).is_contiguous()


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_it_is_the_linear_layer_on_patches(law):
    convolution, x = layer_of(law, stride=2), images()
    linear = MatrixGaussianLinear(27, 4, dtype=torch.float64, law=law, seed=1)
    patches = x.unfold(2, 3, 2).unfold(3, 3, 2).permute(0, 2, 3, 1, 4, 5)  # (N, H, W, channels, 3, 3)
    wanted = linear(patches.flatten(3)).permute(0, 3, 1, 2)
    out = convolution(x)
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(convolution.divergence(), linear.divergence())
    for one in (out, wanted):
        one.square().sum().backward()
    for one, other in zip(convolution.parameters(), linear.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("law", LAWS, ids=str)
def test_with_a_kernel_of_one_it_is_the_linear_layer(law, local):
    options = {"law": law, "seed": 1, "local": local, "dtype": torch.float64}
    convolution, linear, x = (
        MatrixGaussianConv2d(3, 4, 1, **options),
        MatrixGaussianLinear(3, 4, **options),
        images(),
    )
    torch.testing.assert_close(convolution(x), linear(x.movedim(1, -1)).movedim(-1, 1))


def test_gradients_reach_the_images():
    layer, x = layer_of(PseudoData(3, 0.3), stride=2, padding=1), images(1, 3, 4, 4).requires_grad_()

    def outputs(x):
        layer.draws["training"] = 0
        return layer(x)

    assert torch.autograd.gradcheck(outputs, x)


def test_local_noise_has_the_variance_of_drawn_weights_but_not_their_correlation():
    """An image of one value: all positions see the same patch, and one W gives them the same number."""
    x, layer = torch.ones(4_000, 3, 3, 4, dtype=torch.float64), layer_of(RowColumn())
    with torch.no_grad():
        local = layer(x)[..., 0, :]  # two positions
        layer.local = False
        drawn = torch.stack([layer(x[0])[..., 0, :] for _ in range(4_000)])
    true = (2 * layer.log_row).exp().sum() / layer.r * (2 * layer.log_column).exp()
    for sample in (local, drawn):
        ratio = sample.var(0) / true.detach()[:, None]
        assert ((ratio - 1).abs() < 4.5 * math.sqrt(2 / 4_000)).all()
    torch.testing.assert_close(drawn[..., 0], drawn[..., 1])
    assert abs(torch.corrcoef(local[:, 0].T)[0, 1]) < 4.5 / math.sqrt(4_000)


def test_it_trains_and_samples_within_a_network():
    net = nn.Sequential(
        MatrixGaussianConv2d(1, 4, 3, law=PseudoData(3), padding=1, seed=0),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        MatrixGaussianLinear(64, 1, law=RowColumn(), seed=1),
    )
    x = torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    y = x.mean((2, 3))
    adam = torch.optim.Adam(net.parameters(), lr=0.01)
    losses = []
    for _ in range(100):
        adam.zero_grad()
        loss = (net(x) - y).square().mean() + divergence(net) / 100_000
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    net.eval()
    with sampling(net), torch.no_grad():
        assert (torch.stack([net(x) for _ in range(4)]).var(0) > 0).all()


def test_refusals_are_sentences():
    with pytest.raises(ValueError, match="groups = 3: a grouped convolution is 3 matrices"):
        layer_of(RowColumn(), groups=3)
    with pytest.raises(ValueError, match="they must be \\(N, 3, H, W\\)"):
        layer_of(RowColumn())(images(channels=2))
    with pytest.raises(ValueError, match="padding_mode = 'mirror'"):
        layer_of(RowColumn(), padding_mode="mirror")
    with pytest.raises(ValueError, match="with stride 1 only"):
        layer_of(RowColumn(), padding="same", stride=2)
    with pytest.raises(ValueError, match="give a number"):
        layer_of(RowColumn(), padding="some")
