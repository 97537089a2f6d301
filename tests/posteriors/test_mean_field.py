"""The factorised Gaussian on cases with known answers: linear regression, the prior alone, no noise at all."""

import math

import pytest
import torch
from torch import nn

from lib import randomness
from lib.networks import optumnist, perceptron
from lib.population import Constant, Recipe, UnsupportedTraining, initial, stacked, train
from lib.posteriors import descent, mean_field
from lib.posteriors.descent import Diverged
from lib.posteriors.mean_field import MeanField

SETS, N, D = 48, 40, 4


def normal(purpose, *shape, member=0):
    return randomness.normal(990, torch.tensor([member]), purpose, 0, shape, torch.float64)[0]


def regression(member):
    """A data set with correlated columns, drawn from the prior N(0, 1) with noise of variance 1/2, and its truth."""
    mix = torch.eye(D).double()
    mix[0, 1:] = 0.5
    design, truth = normal("x", N, D, member=member) @ mix, normal("truth", D, member=member)
    return design, design @ truth + math.sqrt(0.5) * normal("noise", N, member=member), truth


def test_linear_regression_has_the_exact_mean_and_the_inverse_of_the_precisions_diagonal():
    """Over 48 data sets: q's moments, the mean's bias, and how often its intervals cover the truth.

    All data sets are one regression whose design is block diagonal, so that one fit finds them all. A factorised q is
    narrower than the posterior's margins: it must cover as often as that ratio says.
    """
    sets = [regression(member) for member in range(SETS)]
    x, y = torch.block_diag(*(design for design, _, _ in sets)), torch.cat([y for _, y, _ in sets])
    truth = torch.stack([truth for _, _, truth in sets])
    precision = torch.stack(
        [2 * design.T @ design + torch.eye(D) for design, _, _ in sets]
    )  # loss = -log N(y; ., 1/2)
    mean = torch.stack([2 * design.T @ y for design, y, _ in sets])
    mean = torch.linalg.solve(precision, mean)
    margin = torch.linalg.inv(precision).diagonal(dim1=1, dim2=2).sqrt()

    net = nn.Sequential(nn.Linear(SETS * D, 1, bias=False)).double()
    recipe = Recipe(lr=1.0, batch_size=len(x), epochs=400, loss="mse", weight_decay=1 / len(x))
    fit = mean_field.fit(net, x, y, recipe, MeanField(sd=0.3, lr=0.05), members=1, seed=990)

    found, sd = fit.mean["0.weight"].view(SETS, D), fit.sd["0.weight"].view(SETS, D)
    errors, ratios = (found - mean) / margin, sd * precision.diagonal(dim1=1, dim2=2).sqrt()
    assert errors.abs().max() < 0.25  # in posterior standard deviations
    assert errors.mean(0).abs().max() < 0.03
    assert (ratios - 1).abs().max() < 0.12
    assert (ratios.mean(0) - 1).abs().max() < 0.03
    assert (sd / margin).min() < 0.8  # the columns are correlated enough to tell the two widths apart
    covered = ((truth - found).abs() < 1.645 * sd).double().mean()
    expected = torch.erf(1.645 * sd / margin / math.sqrt(2)).mean()
    assert abs(covered - expected) < 3 * math.sqrt(expected * (1 - expected) / truth.numel())


def test_kl_is_that_of_torch_distributions():
    mean, log_sd = normal("mean", 5, 7), normal("log sd", 5, 7)
    q = torch.distributions.Normal(mean, log_sd.exp())
    prior = torch.distributions.Normal(torch.zeros(()).double(), 0.3)
    wanted = torch.distributions.kl_divergence(q, prior).sum(1)
    torch.testing.assert_close(mean_field.kl(mean, log_sd, 0.3**-2), wanted, rtol=1e-12, atol=1e-12)


def test_noise_in_the_activations_has_the_gradient_of_noise_in_the_weights_and_is_quieter():
    net, noises = perceptron([3, 4, 2]).double(), 20_000
    x, y = normal("inputs", 1, 6, 3), torch.tensor([[0, 1, 1, 0, 1, 0]])
    centre = {name: normal(name, 1, *p.shape) for name, p in net.named_parameters()}
    shapes = {name: p.shape for name, p in net.named_parameters()}
    ids = torch.arange(noises)

    def gradients(forward):
        mean = (
            torch.cat([t.flatten(1) for t in centre.values()], 1).expand(noises, -1).clone().requires_grad_()
        )
        log_sd = torch.full_like(mean, math.log(0.4)).requires_grad_()
        outputs = forward(mean_field.named_of(mean, shapes), mean_field.named_of(log_sd, shapes))
        targets = y.expand(noises, -1)
        loss = nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none")
        loss = loss.view(noises, -1).mean(1).sum()
        return torch.cat(torch.autograd.grad(loss, (mean, log_sd)), dim=1)

    def by_activations(mean, log_sd):
        variance = {name: torch.exp(2 * value) for name, value in log_sd.items()}
        batch = x.expand(noises, -1, -1)
        return mean_field.noisy_forward(stacked.layers(net), mean, variance, batch, noise_of(ids))

    def by_weights(mean, log_sd):
        drawn = {}
        for name, value in mean.items():
            noise = randomness.normal(1, ids, f"direct/{name}", 0, tuple(value.shape[1:]), torch.float64)
            drawn[name] = value + log_sd[name].exp() * noise
        return stacked.forward(net, drawn, x[0])

    local, direct = gradients(by_activations), gradients(by_weights)
    error = ((local.var(0) + direct.var(0)) / noises).sqrt()
    assert ((local.mean(0) - direct.mean(0)).abs() < 4.5 * error).all()
    assert local.var(0).sum() < 0.5 * direct.var(0).sum()
    assert (local.mean(0).abs() > 10 * error).any()  # there is a gradient to agree on


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy", "mse"])
@pytest.mark.parametrize("kind", ["relu", "tanh", "no biases"])
def test_the_gradient_by_hand_is_that_of_autograd(kind, loss):
    activation, biased = nn.Tanh() if kind == "tanh" else nn.ReLU(), kind != "no biases"
    net = nn.Sequential(nn.Linear(5, 4, bias=biased), activation, nn.Linear(4, 3, bias=biased), activation)
    net.append(nn.Linear(3, 2, bias=biased))
    shapes, layers = {name: p.shape for name, p in net.named_parameters()}, stacked.layers(net)
    size = sum(p.numel() for p in net.parameters())
    weights = [0.5 * normal("mean", 3, size), normal("log sd", 3, size) - 2]
    x, y = normal("x", 3, 7, 5), normal("y", 3, 7, 2).sigmoid()
    y = y.argmax(-1) if loss == "cross_entropy" else y
    x[0, 0] = 0  # all inputs of a unit
    ids = torch.arange(3)
    noise = {name: descent.Stream(randomness.normal, 1, ids, name, torch.float64) for name, _ in layers}

    def by_layers(weights, x, y, step):
        mean, variance = (mean_field.named_of(w, shapes) for w in (weights[0], torch.exp(2 * weights[1])))
        outputs = mean_field.noisy_forward(layers, mean, variance, x, lambda n, s: noise[n](step, s))
        return descent.mean_loss(loss, outputs, y)

    values, gradients = mean_field.perceptron_slope(layers, shapes, loss, noise)(weights, x, y, 4)
    wanted_values, wanted = descent.by_autograd(by_layers)(weights, x, y, 4)
    torch.testing.assert_close(values, wanted_values, rtol=1e-12, atol=1e-12)
    for found, expected in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_the_pull_of_the_prior_is_the_gradient_of_the_kl():
    mean, log_sd = normal("mean", 5, 7).requires_grad_(), normal("log sd", 5, 7).requires_grad_()
    wanted = torch.autograd.grad(mean_field.kl(mean, log_sd, 0.3).sum(), (mean, log_sd))
    for found, expected in zip(mean_field.kl_slope(mean.detach(), log_sd.detach(), 0.3), wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_convolutions_activations_have_the_mean_and_variance_of_random_weights():
    layer = nn.Conv2d(2, 4, 3, groups=2, padding=1)
    net = nn.Sequential(layer, nn.Flatten())
    shapes = {name: tuple(p.shape) for name, p in net.named_parameters()}
    mean = {name: normal(name, 1, *shape) for name, shape in shapes.items()}
    variance = {name: normal(f"v{name}", 1, *shape).square() for name, shape in shapes.items()}
    x, noises = normal("image", 1, 1, 2, 5, 5), 4000
    ids = torch.arange(noises)
    many = {name: value.expand(noises, *shapes[name]) for name, value in mean.items()}
    vary = {name: value.expand(noises, *shapes[name]) for name, value in variance.items()}
    drawn = {
        name: value + vary[name].sqrt() * randomness.normal(2, ids, name, 0, shapes[name], torch.float64)
        for name, value in many.items()
    }
    images = x.expand(noises, -1, -1, -1, -1)
    local = mean_field.noisy_forward(stacked.layers(net), many, vary, images, noise_of(ids))
    direct = stacked.forward(net, drawn, x[0])
    error = ((local.var(0) + direct.var(0)) / noises).sqrt()
    assert ((local.mean(0) - direct.mean(0)).abs() < 4.5 * error).all()
    assert ((local.var(0) / direct.var(0)).log().abs() < 5 * math.sqrt(4 / noises)).all()


def test_without_data_the_gaussian_is_the_prior_and_one_point_moves_what_it_sees():
    net = nn.Sequential(nn.Linear(3, 1, bias=False)).double()
    recipe = Recipe(lr=1.0, batch_size=1, epochs=300, loss="mse", weight_decay=4.0)
    options = MeanField(sd=0.1, lr=0.1)
    blank, one = torch.zeros(1, 3).double(), torch.tensor([[1.0, 0.0, 0.0]]).double()
    target = torch.tensor([2.0]).double()
    prior = mean_field.fit(net, blank, target, recipe, options, members=64, seed=990)
    assert prior.mean["0.weight"].abs().max() < 1e-3
    assert (prior.sd["0.weight"] - 0.5).abs().max() < 1e-3
    assert max(prior.record["kl"]) < 1e-4

    seen = mean_field.fit(net, one, target, recipe, options, members=64, seed=990)
    means, sds = seen.mean["0.weight"][:, 0], seen.sd["0.weight"][:, 0]
    exact_mean, exact_sd = 2 * 2.0 / (2 + 4), 6**-0.5  # precision 2 of the datum and 4 of the prior
    assert means[:, 1:].abs().max() < 1e-3
    assert (sds[:, 1:] - 0.5).abs().max() < 1e-3
    assert abs(means[:, 0].mean() - exact_mean) < 0.03 * exact_sd
    assert abs(sds[:, 0].mean() / exact_sd - 1) < 0.02


def noise_of(ids):
    return lambda name, shape: randomness.normal(1, ids, f"noise/{name}", 0, shape, torch.float64)


def image_data(shape, dtype, n=24):
    inputs = randomness.normal(1, torch.arange(1), "inputs", 0, (n, *shape), dtype)[0]
    return inputs, (inputs.flatten(1).sum(1) > 0).long()


@pytest.mark.parametrize(("net", "shape"), [(perceptron([6, 5, 3]), (6,)), (optumnist(), (1, 28, 28))])
def test_with_next_to_no_noise_the_means_descend_like_a_population(net, shape):
    """The prior's pull on the means is the recipe's weight decay: Adam with decay, in the same order of the data."""
    inputs, targets = image_data(shape, torch.float32)
    adam = Recipe(lr=0.01, batch_size=8, epochs=2, weight_decay=0.05, optimiser="adam")
    reference = train(net, inputs, targets, adam, members=3, seed=4)
    options = MeanField(sd=1e-9, lr=0.01, schedule=Constant())
    fitted = mean_field.fit(net, inputs, targets, adam, options, members=3, seed=4)
    for name, tensor in fitted.mean.items():
        torch.testing.assert_close(tensor, reference.params[name], rtol=1e-3, atol=2e-5)


def test_a_blank_image_has_a_finite_gradient():
    inputs, targets = torch.zeros(8, 1, 28, 28), torch.zeros(8, dtype=torch.int64)
    recipe = Recipe(lr=0.1, batch_size=4, epochs=2, weight_decay=1e-3)
    fitted = mean_field.fit(optumnist(), inputs, targets, recipe, MeanField(), members=2, seed=0)
    assert all(tensor.isfinite().all() for tensor in (*fitted.mean.values(), *fitted.sd.values()))


def test_samples_have_the_gaussians_moments_and_runs_are_independent():
    net = perceptron([6, 5, 3]).double()
    recipe = Recipe(lr=0.1, batch_size=8, epochs=2, weight_decay=1e-3)
    data = image_data((6,), torch.float64)
    many = mean_field.fit(net, *data, recipe, MeanField(sd=0.3), members=6, seed=4)
    one = mean_field.fit(net, *data, recipe, MeanField(sd=0.3), members=range(4, 5), seed=4)
    drawn, few = mean_field.draw(many, 3000, seed=2), mean_field.draw(one, 10, seed=2)
    for name, mean in many.mean.items():
        torch.testing.assert_close(one.mean[name], mean[4:5], rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(few.params[name], drawn.of(4)[name][:10], rtol=1e-9, atol=1e-11)
        sample = drawn.of(1)[name]
        assert ((sample.mean(0) - mean[1]).abs() < 5 * many.sd[name][1] / 3000**0.5).all()
        assert ((sample.std(0) / many.sd[name][1]).log().abs() < 5 / 6000**0.5).all()
    assert not torch.equal(
        drawn.of(0)["0.bias"] - many.mean["0.bias"][0], drawn.of(1)["0.bias"] - many.mean["0.bias"][1]
    )


def test_start_gives_the_initial_means_and_stays_as_it_is():
    net = perceptron([6, 5, 3]).double()
    start = initial(net, range(7, 9), 1)
    kept = {name: tensor.clone() for name, tensor in start.items()}
    recipe = Recipe(lr=0.1, batch_size=24, epochs=1, weight_decay=1e-3)
    fitted = mean_field.fit(
        net, *image_data((6,), torch.float64), recipe, MeanField(lr=1e-12), members=2, seed=0, start=start
    )
    for name in start:
        torch.testing.assert_close(fitted.mean[name], kept[name], rtol=0, atol=1e-10)
        assert torch.equal(start[name], kept[name])


def test_refusals():
    data = image_data((6,), torch.float32)
    recipe = Recipe(lr=0.1, batch_size=8, epochs=1, weight_decay=1e-3)
    for wrong in ({"sd": 0}, {"lr": 0}, {"temperature": -1}):
        with pytest.raises(ValueError, match="must be positive"):
            MeanField(**wrong)
    with pytest.raises(ValueError, match="weight decay 0: the prior"):
        mean_field.fit(
            perceptron([6, 3]), *data, Recipe(lr=0.1, batch_size=8, epochs=1), MeanField(), members=1, seed=0
        )
    with pytest.raises(UnsupportedTraining, match="'1' is a LayerNorm"):
        mean_field.fit(
            perceptron([6, 5, 3], norm=nn.LayerNorm), *data, recipe, MeanField(), members=1, seed=0
        )
    start = initial(perceptron([6, 3]), 3, 0)
    start["0.weight"][1] = torch.nan
    with pytest.raises(Diverged, match=r"1 of 3 runs diverged \(run 6\)"):
        mean_field.fit(
            perceptron([6, 3]), *data, recipe, MeanField(), members=range(5, 8), seed=0, start=start
        )
