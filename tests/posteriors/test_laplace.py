"""Laplace where it is exact (linear models), its curvature against the true Hessian, and each refusal."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from lib import population, randomness
from lib.params import params_of, stack
from lib.population import Recipe
from lib.posteriors import curvature, laplace
from lib.posteriors.laplace import Laplace
from lib.posteriors.target import ravel, unravel

N = 30


def numbers(purpose, *shape):
    return randomness.normal(2, torch.arange(1), purpose, 0, shape, torch.float64)[0]


def ridge(tau, width=3, outputs=2):
    """A linear model with mean square loss, its recipe (n wd = tau) and its MAP network, by the normal equations."""
    net = nn.Sequential(nn.Linear(width, outputs)).double()
    x = numbers("x", N, width)
    y = x @ numbers("w", width, outputs) + (outputs / 2) ** 0.5 * numbers("noise", N, outputs)
    rows = torch.cat([x, x.new_ones(N, 1)], dim=1)
    precision = 2 / outputs * rows.T @ rows + tau * torch.eye(width + 1, dtype=x.dtype)
    weights = torch.linalg.solve(precision, 2 / outputs * rows.T @ y).T
    start = {"0.weight": weights[None, :, :-1].clone(), "0.bias": weights[None, :, -1].clone()}
    recipe = Recipe(lr=0.1, batch_size=N, epochs=1, loss="mse", weight_decay=tau / N)
    return net, x, y, recipe, start, precision, rows


def covariance_of(fitted, run=0):
    return torch.cholesky_inverse(fitted.factor[run])


def reorder(precision, width, outputs):
    """Covariance in the order of the positions (weights row by row, then biases) of independent outputs."""
    per_output = torch.linalg.inv(precision)
    whole = torch.block_diag(*[per_output] * outputs)
    order = [k * (width + 1) + i for k in range(outputs) for i in range(width)]
    order += [k * (width + 1) + width for k in range(outputs)]
    return whole[order][:, order]


def test_ridge_regression_is_exact():
    """Mean, covariance and evidence of the closed form: noise of variance k/2, since the loss is a mean over k outputs."""
    net, x, y, recipe, start, precision, rows = ridge(tau=0.7)
    fitted = laplace.fit(net, x, y, recipe, Laplace(precision=1), members=1, seed=0, start=start)
    torch.testing.assert_close(fitted.mean, ravel(start))
    torch.testing.assert_close(covariance_of(fitted), reorder(precision, 3, 2))
    marginal = torch.distributions.MultivariateNormal(
        torch.zeros(N, dtype=x.dtype), torch.eye(N, dtype=x.dtype) + rows @ rows.T / 0.7
    )
    exact = marginal.log_prob(y.T).sum()
    constant = 2 * N / 2 * math.log(2 * math.pi)
    assert abs(float(fitted.evidence[0] - (exact + constant))) < 1e-8


def test_draws_have_the_posterior_s_moments():
    net, x, y, recipe, start, precision, _ = ridge(tau=0.7)
    fitted = laplace.fit(net, x, y, recipe, Laplace(precision=1), members=1, seed=0, start=start)
    number = 40_000
    drawn = ravel(laplace.draw(fitted, number, seed=3).params)
    covariance = reorder(precision, 3, 2)
    scale, error = covariance.diag().sqrt(), 5 / number**0.5
    assert ((drawn.mean(0) - fitted.mean[0]) / scale).abs().max() < error
    assert ((drawn.T.cov() - covariance) / (scale[:, None] * scale)).abs().max() < 1.5 * error


@pytest.mark.parametrize("structure", ["full", "diagonal"])
@pytest.mark.parametrize("shift", [1.0, 1e-4, 1e5])
def test_the_tuned_precision_maximises_the_evidence(structure, shift):
    """Wherever n wd lies; the decades grow until the maximum is between them."""
    net, x, y, recipe, start, _, _ = ridge(tau=0.7)
    recipe = replace(recipe, weight_decay=recipe.weight_decay * shift)
    fitted = laplace.fit(net, x, y, recipe, Laplace(structure), members=1, seed=0, start=start)
    g = curvature.full(net, ravel(start), x, "mse")[0]
    g = g.tril() + g.tril(-1).T
    if structure == "diagonal":
        g = g.diag().diag()
    spectrum, norm, size = torch.linalg.eigvalsh(g), fitted.mean.square().sum(), fitted.mean.shape[1]
    tau = torch.logspace(-4, 4, 4_001, dtype=torch.float64)
    evidence = -tau * norm / 2 + size / 2 * tau.log() - (spectrum + tau[:, None]).log().sum(1) / 2
    best = tau[evidence.argmax()]
    assert abs(float((fitted.precision[0] / best).log10())) < 0.1
    loss = N * float(population.evaluate(net, start, x, y, "mse")["loss"])
    assert float(fitted.evidence[0]) > float(evidence.max()) - loss - 0.2


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
def test_gauss_newton_is_the_hessian_of_logistic_regression(loss):
    net = nn.Sequential(nn.Linear(3, 4)).double()
    x, position = numbers("x", N, 3), numbers("position", 16)
    y = torch.arange(N) % 4
    if loss == "binary_cross_entropy":
        y = nn.functional.one_hot(y, 4).double()

    def total(p):
        outputs = functional_call(net, unravel(p, net), (x,))
        return N * getattr(nn.functional, loss + "_with_logits" * (loss[0] == "b"))(outputs, y)

    found = curvature.full(net, position[None], x, loss)[0]
    torch.testing.assert_close(found.tril(), jacrev(jacrev(total))(position).tril(), rtol=1e-10, atol=1e-10)


NETS = {
    "relu": nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)),
    "tanh": nn.Sequential(nn.Flatten(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)),
    "no biases": nn.Sequential(nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, 3, bias=False)),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy", "mse"])
def test_block_by_block_is_the_same_as_by_jacobians(name, loss, monkeypatch):
    net = NETS[name].double()
    monkeypatch.setattr(curvature, "NUMBERS", 2_000)  # many blocks of runs and of examples
    positions = ravel(population.initial(net, 3, seed=1)) * 2
    x = numbers("x", 70, 5)
    for begin in (0, curvature.last_layer(net)):
        fast, slow = (
            curvature.full(net, positions, x, loss, begin=begin, fast=fast).tril() for fast in (True, False)
        )
        torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-10)
        assert float(fast.abs().max()) > 0.1
        for fast in (True, False):
            found = curvature.diagonal(net, positions, x, loss, begin=begin, fast=fast)
            torch.testing.assert_close(found, slow.diagonal(dim1=1, dim2=2), rtol=1e-10, atol=1e-10)


def test_the_last_layer_is_drawn_and_the_others_stay():
    net = NETS["relu"].double()
    x, start = numbers("x", N, 5), population.initial(net, 2, seed=1)
    y = torch.arange(N) % 3
    recipe = Recipe(lr=0.1, batch_size=N, epochs=1, weight_decay=1e-3)
    fitted = laplace.fit(net, x, y, recipe, Laplace("last_layer"), members=2, seed=0, start=start)
    assert fitted.factor.shape == (2, 21, 21)
    drawn = laplace.draw(fitted, 4, seed=0).of(1)
    for name, tensor in drawn.items():
        assert bool((tensor == start[name][1]).all()) == (not name.startswith("4."))


def test_any_network_is_taken_and_a_run_does_not_depend_on_its_neighbours():
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).double()
    x, y = numbers("x", N, 1, 3, 3), torch.arange(N) % 3
    recipe = Recipe(lr=0.1, batch_size=N, epochs=1, weight_decay=1e-3)
    start = population.initial(net, 3, seed=1)
    many = laplace.fit(net, x, y, recipe, members=3, seed=0, start=start)
    assert many.record["structure"] == "full"
    one = laplace.fit(
        net, x, y, recipe, members=range(2, 3), seed=0, start={k: v[2:] for k, v in start.items()}
    )
    for name, tensor in laplace.draw(one, 5, seed=0).of(0).items():
        torch.testing.assert_close(tensor, laplace.draw(many, 5, seed=0).of(2)[name])


def test_large_networks_are_taken_apart():
    wide = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 3))
    assert laplace._choose(wide, "auto") == ("last_layer", 40 * 60 + 60)
    assert laplace._choose(nn.Sequential(nn.Linear(3, 2)), "auto") == ("full", 0)
    assert laplace._choose(nn.Sequential(nn.Linear(300, 10)), "auto") == ("diagonal", 0)
    with pytest.raises(ValueError, match=r"a Hessian of 2643 parameters .* choose structure='diagonal'"):
        laplace._choose(wide, "full")


def test_what_float32_cannot_factorise_float64_can():
    """A curvature of 1e8 beside a prior of 0.01, which its rounding drowns: the first factorisation fails, not the second."""
    direction = numbers("direction", 40, 1).float()
    g = 1e8 * direction @ direction.T
    tau = torch.tensor([1e-2])
    assert int(torch.linalg.cholesky_ex(g + tau * torch.eye(40))[1]) > 0
    factor = laplace._cholesky(g[None], tau)
    spectrum = torch.linalg.eigvalsh((factor[0] @ factor[0].T).double())
    torch.testing.assert_close(spectrum[-1], torch.linalg.eigvalsh(g.double())[-1], rtol=1e-5, atol=0.0)


def test_refusals_say_what_to_do(monkeypatch):
    net, x, y, recipe, start, _, _ = ridge(tau=0.7)
    with pytest.raises(ValueError, match="Laplace starts from trained networks"):
        laplace.fit(net, x, y, recipe, members=1, seed=0)
    with pytest.raises(ValueError, match="give it a decay"):
        laplace.fit(net, x, y, replace(recipe, weight_decay=0), members=1, seed=0, start=start)
    with pytest.raises(ValueError, match="structure 'kfac' is not known"):
        Laplace("kfac")
    with pytest.raises(ValueError, match="above 0"):
        Laplace(precision=0)
    lost = stack([params_of(net), params_of(net)])
    lost["0.bias"][0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"1 of 2 runs \(0\) are not finite"):
        laplace.fit(net, x, y, recipe, members=2, seed=0, start=lost)
    monkeypatch.setattr(curvature, "full", lambda *_, **__: -torch.eye(8, dtype=x.dtype)[None])
    with pytest.raises(ValueError, match=r"not positive definite at prior precision 0\.7"):
        laplace.fit(net, x, y, recipe, Laplace(precision=1), members=1, seed=0, start=start)
