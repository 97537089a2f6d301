"""A sample's plain forward pass is the masked one; training is that of nn.Dropout; without dropping, that of a population."""

import pytest
import torch
from torch import nn

from lib import randomness
from lib.networks import optumnist, perceptron
from lib.params import select
from lib.population import Recipe, UnsupportedTraining, initial, predict, stacked, train
from lib.posteriors import descent, dropout
from lib.posteriors.descent import Diverged
from lib.posteriors.dropout import Dropout

RECIPE = Recipe(lr=0.1, batch_size=8, epochs=2, weight_decay=1e-3)


def grouped():
    """Channels into a grouped convolution, and through a flattening into a linear layer: blocks of four positions."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 5),
        nn.Tanh(),
        nn.Linear(5, 3),
    )


NETS = {
    "perceptron": (perceptron([6, 5, 4, 3]), False, (6,), ["2", "4"]),
    "optumnist": (optumnist(), False, (1, 28, 28), ["9"]),
    "optumnist, channels": (optumnist(), True, (1, 28, 28), ["3", "7", "9"]),
    "grouped, channels": (grouped(), True, (1, 8, 8), ["2", "6", "8"]),
}


def data(shape=(6,), n=24, dtype=torch.float64):
    inputs = randomness.normal(1, torch.arange(1), "inputs", 0, (n, *shape), dtype)[0]
    return inputs, (inputs.flatten(1).sum(1) > 0).long()


def fit_of(net, channels, p, shape=(6,)):
    params = initial(net, 3, 990)
    params = {name: tensor.double() for name, tensor in params.items()}
    return dropout.Fit(params, torch.arange(3), dropout.sites(net, channels), Dropout(p, channels), {})


def masked_forward(net, params, masks, x):
    """Hooks on the module itself: every layer's inputs times that layer's mask, member after member."""
    outputs = []
    for i in range(len(next(iter(params.values())))):
        handles = []
        for name, mask in masks.items():

            def hook(layer, inputs, mask=mask[i]):
                (h,) = inputs
                blocks = h.shape[1] // len(mask) if isinstance(layer, nn.Linear) else 1
                return h * mask.repeat_interleave(blocks).view(1, -1, *[1] * (h.ndim - 2))

            handles.append(net.get_submodule(name).register_forward_pre_hook(hook))
        outputs.append(torch.func.functional_call(net, {k: v[i] for k, v in params.items()}, (x,)))
        for handle in handles:
            handle.remove()
    return torch.stack(outputs)


@pytest.mark.parametrize("name", NETS)
def test_a_sample_is_the_network_with_one_mask(name):
    net, channels, shape, expected = NETS[name]
    fit = fit_of(net, channels, 0.3)
    assert [site.layer for site in fit.sites] == expected
    drawn, masks = dropout.draw(fit, 4, seed=7), dropout.masks_of(fit, 4, 7)
    everyone = {key: tensor.repeat_interleave(4, dim=0) for key, tensor in fit.params.items()}
    x = data(shape)[0]
    with torch.no_grad():
        wanted = masked_forward(net, everyone, masks, x)
        torch.testing.assert_close(predict(net, drawn.params, x), wanted, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(stacked.forward(net, drawn.params, x), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NETS)
def test_the_masks_of_training_are_those_of_the_samples(name):
    net, channels, shape, _ = NETS[name]
    fit, x = fit_of(net, channels, 0.3), data(shape, n=4)[0]
    masks = dropout.masks_of(fit, 4, 7)
    examples = {site: mask.unflatten(0, (3, 4)) for site, mask in masks.items()}  # mask s falls on example s
    batches = x.expand(3, *x.shape)
    found = dropout.thinned(stacked.layers(net), fit.params, batches, examples, fit.sites)
    everybody = stacked.forward(net, dropout.draw(fit, 4, seed=7).params, x).unflatten(0, (3, 4))
    wanted = everybody[:, torch.arange(4), torch.arange(4)]
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_at_one_half_the_sample_is_exactly_the_masked_network():
    net, channels, shape, _ = NETS["perceptron"]
    fit = fit_of(net, channels, 0.5)  # the factor 2 is exact
    drawn, masks = dropout.draw(fit, 4, seed=7), dropout.masks_of(fit, 4, 7)
    everyone = {key: tensor.repeat_interleave(4, dim=0) for key, tensor in fit.params.items()}
    x = data(shape)[0]
    same = {site: mask[:, None].expand(-1, len(x), -1) for site, mask in masks.items()}
    masked = dropout.thinned(stacked.layers(net), everyone, x.expand(12, *x.shape), same, fit.sites)
    assert torch.equal(stacked.forward(net, drawn.params, x.expand(12, *x.shape)), masked)
    assert (masks["2"] == 0).any()


def test_masks_keep_the_mean_and_drop_the_share():
    fit = fit_of(perceptron([6, 5, 4, 3]), False, 0.2)
    masks = dropout.masks_of(fit, 4000, 1)
    off = torch.cat([(mask == 0).double().flatten() for mask in masks.values()])
    assert abs(off.mean() - 0.2) < 4 * (0.16 / len(off)) ** 0.5
    mean = dropout.draw(fit, 4000, seed=1).of(1)["2.weight"].mean(0)
    weight = fit.params["2.weight"][1]
    assert ((mean - weight).abs() < 5 * weight.abs() * (0.25 / 4000) ** 0.5 + 1e-12).all()
    assert torch.equal(dropout.draw(fit, 5, seed=1).of(1)["0.weight"][3], fit.params["0.weight"][1])


def test_training_is_that_of_dropout_layers(monkeypatch):
    """Against the population's generic path, which reads an nn.Dropout layer and grows by vmap."""
    monkeypatch.setattr(descent, "BLOCK", 1)  # a draw a step, as there
    net = perceptron([6, 5, 3]).double()
    layered = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Dropout(0.4), nn.Linear(5, 3)).double()
    start = initial(net, 3, 4)
    renamed = {name.replace("2.", "3."): tensor for name, tensor in start.items()}
    reference = train(
        layered, *data(), RECIPE, members=3, seed=4, start=renamed
    )  # masks "dropout/2", as here
    fitted = dropout.fit(net, *data(), RECIPE, Dropout(0.4), members=3, seed=4)
    for name, tensor in fitted.params.items():
        torch.testing.assert_close(tensor, reference.params[name.replace("2.", "3.")], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(
        torch.tensor(fitted.record["loss"]).double(), reference.loss, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", ["perceptron", "optumnist, channels"])
def test_dropping_nothing_is_the_ordinary_training(name):
    net, channels, shape, _ = NETS[name]
    inputs, targets = data(shape, dtype=torch.float32)
    reference = train(net, inputs, targets, RECIPE, members=3, seed=4)
    fitted = dropout.fit(net, inputs, targets, RECIPE, Dropout(0, channels), members=3, seed=4)
    for key, tensor in fitted.params.items():
        torch.testing.assert_close(tensor, reference.params[key], rtol=1e-4, atol=1e-6)
        assert torch.equal(dropout.draw(fitted, 2, seed=1).params[key][::2], tensor)


def test_a_run_does_not_depend_on_its_neighbours():
    net = perceptron([6, 5, 3]).double()
    many = dropout.fit(net, *data(), RECIPE, Dropout(0.3), members=6, seed=4)
    one = dropout.fit(net, *data(), RECIPE, Dropout(0.3), members=range(4, 5), seed=4)
    for name, tensor in one.params.items():
        torch.testing.assert_close(tensor, many.params[name][4:5], rtol=1e-10, atol=1e-12)
    together, alone = dropout.draw(many, 5, seed=1), dropout.draw(one, 3, seed=1)
    for name, tensor in alone.params.items():
        torch.testing.assert_close(tensor, together.of(4)[name][:3], rtol=1e-10, atol=1e-12)
    assert not torch.equal(together.of(0)["2.weight"] == 0, together.of(1)["2.weight"] == 0)


def test_a_streams_numbers_depend_on_member_step_and_shape_alone():
    def stream(members):
        return descent.Stream(randomness.uniform, 1, torch.tensor(members), "test", torch.float32)

    many, one = stream([0, 1, 2]), stream([1])
    numbers = [many(step, (7, 3)) for step in range(2000)]  # 780 steps a call
    assert all(torch.equal(numbers[step][1:2], one(step, (7, 3))) for step in (1999, 0, 780, 5))
    assert torch.equal(one(5, (2, 3)), stream([1])(5, (2, 3)))  # a last, smaller batch in between
    assert len(torch.unique(torch.cat([n.flatten() for n in numbers]))) > 0.99 * 2000 * 63
    assert one(3, (1 << 15,)).shape == (1, 1 << 15)


def test_runs_of_infinite_weights_or_losses_are_named():
    weights, losses = [torch.ones(4, 2), torch.ones(4)], torch.ones(4)
    ids = torch.arange(10, 14)
    descent.refuse_diverged(weights, ids, losses)
    weights[1][3], losses[0] = torch.inf, torch.nan
    with pytest.raises(Diverged, match=r"2 of 4 runs diverged \(run 10, 13\)"):
        descent.refuse_diverged(weights, ids, losses)


def test_start_gives_the_initial_weights_and_stays_as_it_is():
    net = perceptron([6, 5, 3]).double()
    start = initial(net, range(7, 9), 1)
    kept = {name: tensor.clone() for name, tensor in start.items()}
    still = Recipe(lr=0.0, batch_size=8, epochs=1)
    fitted = dropout.fit(net, *data(), still, Dropout(), members=2, seed=0, start=start)
    trained = dropout.fit(net, *data(), RECIPE, Dropout(), members=2, seed=0, start=start)
    for name in start:
        assert torch.equal(fitted.params[name], kept[name])
        assert torch.equal(start[name], kept[name])
        assert not torch.equal(trained.params[name], kept[name])


def test_refusals():
    inputs, targets = data()
    with pytest.raises(ValueError, match=r"p = 1: .* \[0, 1\)"):
        Dropout(1)
    with pytest.raises(ValueError, match="no hidden Linear layer"):
        dropout.fit(nn.Sequential(nn.Linear(6, 3)), inputs, targets, RECIPE, Dropout(), members=1, seed=0)
    normed = perceptron([6, 5, 3], norm=nn.LayerNorm)
    with pytest.raises(UnsupportedTraining, match="'1' is a LayerNorm"):
        dropout.fit(normed, inputs, targets, RECIPE, Dropout(), members=1, seed=0)
    net = perceptron([6, 5, 3])
    start = select(initial(net, 3, 0), slice(None))
    start["0.weight"][1] = torch.nan
    with pytest.raises(Diverged, match=r"1 of 3 runs diverged \(run 6\)"):
        dropout.fit(net, inputs, targets, RECIPE, Dropout(), members=range(5, 8), seed=0, start=start)
