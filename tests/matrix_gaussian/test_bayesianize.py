"""What is replaced, what stays and why, and that posterior means can stand where the weights were."""

import copy

import pytest
import torch
from torch import nn

from lib.matrix_gaussian.bayesianize import LeftAsItWas, bayesianize
from lib.matrix_gaussian.convolution import MatrixGaussianConv2d
from lib.matrix_gaussian.laws import Factorised, Point, RowColumn
from lib.matrix_gaussian.layer import MatrixGaussianLinear, divergence, layers_of, sampling
from lib.matrix_gaussian.pseudo_data import PseudoData


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3, bias=False)).double()


def pictures():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)
    ).double()


def inputs(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("law", [Point(), Factorised(-2.0), RowColumn(), PseudoData(3), None], ids=str)
@pytest.mark.parametrize(
    ("build", "shape"), [(perceptron, (5, 6)), (pictures, (5, 3, 5, 5))], ids=["perceptron", "pictures"]
)
def test_kept_means_compute_what_the_network_did(build, shape, law):
    net, x = build().eval(), inputs(*shape)
    before = copy.deepcopy(net.state_dict())
    new = bayesianize(net, law, means="keep", convolutions=True)
    torch.testing.assert_close(new(x), net(x), rtol=1e-6, atol=1e-8)
    assert not torch.allclose(bayesianize(net, law, convolutions=True)(x), net(x))
    assert all(
        torch.equal(value, before[name]) for name, value in net.state_dict().items()
    )  # the original stays
    kinds = [type(layer) for layer in net]
    assert kinds in ([nn.Linear, nn.ReLU, nn.Linear], [nn.Conv2d, nn.ReLU, nn.Flatten, nn.Linear])


def test_options_reach_every_layer_and_names_are_purposes():
    net = nn.Sequential(perceptron(), pictures()).double()
    new = bayesianize(net, RowColumn(), hyper_priors=True, local=False, seed=7, convolutions=True)
    layers = layers_of(new)
    assert list(layers) == ["0.0", "0.2", "1.0", "1.3"]
    for name, layer in layers.items():
        assert (layer.purpose, layer.seed, layer.local, layer.hyper_priors) == (name, 7, False, True)
        assert layer.mean.dtype == torch.float64
    assert [layer.has_bias for layer in layers.values()] == [True, False, False, True]
    assert isinstance(new[1][0], MatrixGaussianConv2d)
    assert new[1][0].stride == (2, 2)
    assert isinstance(bayesianize(net, RowColumn())[1][0], nn.Conv2d)  # left without convolutions=True


def test_a_function_chooses_laws_by_name_and_layer():
    laws = {"0": PseudoData(2), "2": None}
    new = bayesianize(perceptron(), lambda name, layer: laws[name])
    assert new[0].law == PseudoData(2)
    assert type(new[2]) is nn.Linear
    wide = bayesianize(perceptron(), lambda name, layer: RowColumn() if layer.out_features > 3 else None)
    assert list(layers_of(wide)) == ["0"]


def test_training_and_evaluation_modes_are_kept():
    net = perceptron()
    net[2].eval()
    new = bayesianize(net, RowColumn())
    assert (new[0].training, new[2].training) == (True, False)


def test_a_shared_module_stays_shared():
    layer = nn.Linear(4, 4)
    net = nn.ModuleDict({"a": layer, "b": nn.Sequential(layer, nn.Linear(4, 4))})
    new = bayesianize(net, RowColumn())
    assert new["a"] is new["b"][0]
    assert isinstance(new["a"], MatrixGaussianLinear)
    assert list(layers_of(new)) == ["a", "b.1"]
    torch.testing.assert_close(divergence(new), new["a"].divergence() + new["b"][1].divergence())


def test_a_bare_layer_is_replaced_itself():
    new = bayesianize(nn.Linear(3, 2), RowColumn())
    assert isinstance(new, MatrixGaussianLinear)
    assert new.purpose == "layer"


def test_subclasses_are_left_with_a_reason_unless_that_was_meant():
    torch.manual_seed(0)
    net = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2), "head": nn.Linear(4, 1)})
    with pytest.warns(LeftAsItWas, match=r"attention.out_proj \(a NonDynamicallyQuantizableLinear"):
        new = bayesianize(net, RowColumn())
    assert list(layers_of(new)) == ["head"]
    new["attention"](*[torch.ones(3, 1, 4)] * 3)  # it still works
    bayesianize(net, lambda name, layer: RowColumn() if name == "head" else None)  # without a warning


def test_grouped_convolutions_are_left_with_a_reason():
    net = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3))
    with pytest.warns(LeftAsItWas, match="0 \\(a convolution of 2 groups\\)"):
        new = bayesianize(net, RowColumn(), convolutions=True)
    assert list(layers_of(new)) == ["1"]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # of the original's fast path
def test_a_transformer_goes_through_its_new_layers_in_evaluation():
    """Its fast path reads linear1.weight in evaluation, which these layers lack, and would skip their noise."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=8, batch_first=True, dropout=0.0)
    net = nn.TransformerEncoder(layer, 2).double().eval()
    x, padding = inputs(2, 3, 4), torch.tensor([[False, False, True], [False, False, False]])
    new = bayesianize(
        net, lambda name, layer: None if "out_proj" in name else RowColumn(), means="keep"
    ).eval()
    with torch.no_grad():
        still = new(x, src_key_padding_mask=padding)
        torch.testing.assert_close(still[~padding], net(x, src_key_padding_mask=padding)[~padding])
        with sampling(new):
            assert not torch.allclose(new(x, src_key_padding_mask=padding), still)


def test_refusals_are_sentences():
    with pytest.raises(ValueError, match="Sequential has no layer to replace"):
        bayesianize(nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match="or convolutions=True"):
        bayesianize(nn.Sequential(nn.Conv2d(1, 1, 1)))
    with pytest.raises(ValueError, match="has no layer to replace"):
        bayesianize(perceptron(), lambda name, layer: None)
    with pytest.raises(ValueError, match="means = 'same': choose one of fresh, keep"):
        bayesianize(perceptron(), means="same")
    tied = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match="layer '1' shares a weight with '0'"):
        bayesianize(tied, RowColumn())
    hooked = perceptron()
    hooked[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="layer '0' has hooks"):
        bayesianize(hooked, RowColumn())
