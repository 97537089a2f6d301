"""Sampled functions have the law's mean and variance, are functions, and depend on (seed, member, number of the draw) alone."""

import math

import pytest
import torch

from lib import randomness
from lib.matrix_gaussian import prediction
from lib.matrix_gaussian.laws import Factorised, Point, RowColumn
from lib.matrix_gaussian.likelihoods import Categorical, Gaussian
from lib.matrix_gaussian.network import Network, prepared
from lib.matrix_gaussian.prediction import noise_precision, of_mean, sampled
from lib.matrix_gaussian.pseudo_data import JITTER, PseudoData
from lib.matrix_gaussian.training import Fit

SEED = 991
LAWS = {
    "point": Point(),
    "dropped point": Point(0.3),
    "factorised": Factorised(),
    "rows and columns": RowColumn(),
    "pseudo-data": PseudoData(2, 0.3),
}
each_law = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)


def normal(purpose, *shape):
    return randomness.normal(SEED, torch.arange(1), purpose, 0, shape, torch.float64)[0]


def trained(law, widths, members=(0, 1, 2), likelihood=None, unit=None):
    """What training may leave."""
    network, runs = Network.of(law, widths, likelihood or Gaussian()), len(members)
    flat = 0.5 * normal("flat", runs, network.size)
    for layer in network.parameters(flat):
        if "log_noise" in layer:
            layer["pseudo_inputs"] *= 3
            layer["log_noise"] -= 3
    unit = torch.ones(runs, widths[-1]).double() if unit is None else unit
    return Fit(network, flat, {}, torch.zeros(runs).double(), torch.tensor(members), unit)


# ------------------------------------------------------------------------------------------------------------- moments


@pytest.mark.parametrize("law", [Factorised(), RowColumn()], ids=["factorised", "rows and columns"])
def test_one_layers_functions_have_the_laws_mean_and_covariance(law):
    """Over members and draws: a thousand runs alike but for their numbers."""
    fit, x = trained(law, (2, 2), range(1_000)), normal("x", 1, 3, 2)
    fit.flat[:] = fit.flat[:1].clone()
    found, (p,) = sampled(fit, x, 8, seed=SEED).flatten(0, 1), fit.network.parameters(fit.flat[:1])
    a, n = prepared(x)[0], 8_000
    log_sd = p["log_sd"] if "log_sd" in p else p["log_row"][..., None] + p["log_column"][..., None, :]
    covariance = torch.einsum("ni,ik,mi->knm", a, torch.exp(2 * log_sd[0]), a)  # of examples, by output
    sd = covariance.diagonal(dim1=1, dim2=2).sqrt()  # (outputs, examples)
    assert ((found.mean(0) - a @ p["mean"][0]).abs() < 4.5 * sd.mT / math.sqrt(n)).all()
    centred = (found - a @ p["mean"][0]).permute(2, 1, 0)
    error = (centred @ centred.mT / n - covariance).abs()
    assert (error < 4.5 * sd[:, :, None] * sd[:, None] * math.sqrt(2 / n)).all()
    between = (centred[0] * centred[1]).mean(-1) / (sd[0] * sd[1])
    assert (between.abs() < 4.5 / math.sqrt(n)).all()  # outputs do not know each other


@pytest.mark.parametrize(
    "law", [Factorised(), RowColumn(), PseudoData(2, 0.3)], ids=["factorised", "rows", "pseudo-data"]
)
def test_a_draw_is_a_function(law):
    """One layer's functions are straight lines: no example has noise of its own."""
    x = torch.linspace(-2, 2, 5).double().view(1, 5, 1)
    found = sampled(trained(law, (1, 1)), x, 20, seed=SEED)[..., 0]
    bend = found[..., 2:] - 2 * found[..., 1:-1] + found[..., :-2]
    assert bend.abs().max() < 1e-12
    assert found[..., 0].std(1).min() > 1e-3


def test_pseudo_data_without_noise_are_passed_through():
    fit = trained(PseudoData(2), (4, 3))
    (p,) = fit.network.parameters(fit.flat)
    p["pseudo_inputs"][..., -1] = 1  # where the bias is
    p["log_noise"].fill_(-40)
    for found in (
        sampled(fit, p["pseudo_inputs"][..., :-1], 7, seed=SEED),
        of_mean(fit, p["pseudo_inputs"][..., :-1])[:, None],
    ):
        wanted = p["pseudo_outputs"][:, None].expand_as(found)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_dropped_units_are_switched_off_and_the_others_made_up_for():
    """One hidden unit: what it adds is nothing in p of the draws and 1 / (1 - p) of it in the others; the bias stays."""
    fit = trained(Point(0.3), (1, 1, 1), range(1_000))
    first, last = fit.network.parameters(fit.flat)
    first["mean"].fill_(1)
    last["mean"].copy_(torch.tensor([[3.0], [7.0]]))
    x = torch.linspace(0, 1, 3).double().view(1, 3, 1)
    found = (sampled(fit, x, 4, seed=SEED) - 7 / math.sqrt(2)).flatten(0, 1)[..., 0]
    whole = 3 / math.sqrt(2) * (x[0, :, 0] + 1) / math.sqrt(2)
    off = found.abs().amax(1) < 1e-12
    torch.testing.assert_close(found[~off], (whole / 0.7).expand(int((~off).sum()), 3))
    assert abs(float(off.double().mean()) - 0.3) < 4.5 * math.sqrt(0.21 / 4_000)


# --------------------------------------------------------------------------------------------------- several layers


@each_law
def test_the_network_of_mean_weights(law):
    """Layer by layer, written out."""
    fit, x = trained(law, (2, 4, 3)), normal("x", 3, 5, 2)
    h = x
    for i, p in enumerate(fit.network.parameters(fit.flat)):
        h = torch.cat([h.clamp(min=0) if i else h, torch.ones(3, 5, 1).double()], -1) / math.sqrt(
            h.shape[-1] + 1
        )
        weights = p["mean"]
        if isinstance(law, PseudoData):
            pseudo, u = p["pseudo_inputs"] / math.sqrt(h.shape[-1]), torch.exp(2 * p["log_row"])[:, None]
            square = pseudo * u @ pseudo.mT
            square += JITTER * square.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(2)
            gain = torch.linalg.solve(square, pseudo * u).mT
            weights = weights + gain @ (p["pseudo_outputs"] - pseudo @ weights)
        h = h @ weights
    torch.testing.assert_close(
        of_mean(fit, x), h, rtol=1e-7, atol=1e-7 if isinstance(law, PseudoData) else 1e-12
    )


@pytest.mark.parametrize("law", [Factorised(), RowColumn()], ids=["factorised", "rows and columns"])
def test_narrow_laws_sample_the_network_of_mean_weights(law):
    fit, x = trained(law, (2, 4, 3)), normal("x", 1, 5, 2)
    for p in fit.network.parameters(fit.flat):
        for name in p:
            if name.startswith("log_"):
                p[name].fill_(-30)
    found = sampled(fit, x, 3, seed=SEED)
    torch.testing.assert_close(found, of_mean(fit, x)[:, None].expand_as(found))


def test_points_are_sampled_as_they_are():
    fit, x = trained(Point(), (2, 4, 3)), normal("x", 3, 5, 2)
    found = sampled(fit, x, 2, seed=SEED)
    assert found.shape == (3, 2, 5, 3)
    torch.testing.assert_close(found, of_mean(fit, x)[:, None].expand_as(found))


@each_law
def test_a_set_for_all_runs_is_that_set_for_each(law):
    fit, x = trained(law, (2, 4, 3)), normal("x", 1, 5, 2)
    each = x.expand(3, -1, -1)
    torch.testing.assert_close(
        sampled(fit, x, 3, seed=SEED), sampled(fit, each, 3, seed=SEED), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(of_mean(fit, x), of_mean(fit, each), rtol=1e-12, atol=1e-12)


# --------------------------------------------------------------------------------------------------------- the draws


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@each_law
def test_a_draw_is_known_by_seed_member_and_number(law, monkeypatch):
    fit, x = trained(law, (2, 4, 3), (3, 8, 3)), normal("x", 1, 5, 2)
    found = sampled(fit, x, 6, seed=SEED)
    close(sampled(fit, x, 2, seed=SEED, first=3), found[:, 3:5])
    close(sampled(fit.select(slice(1, 2)), x, 6, seed=SEED), found[1:2])  # without its neighbours
    monkeypatch.setattr(prediction, "HELD", 2 * 3 * 4 * 5)  # two draws at a time
    close(sampled(fit, x, 5, seed=SEED, first=1), found[:, 1:])
    if law == Point():
        return
    assert (found[:, 1:] - found[:, :-1]).abs().amax((0, 2, 3)).min() > 1e-3  # each number a draw of its own
    assert (sampled(fit, x, 6, seed=SEED + 1) - found).abs().amax((0, 2, 3)).min() > 1e-3
    fit.flat[:] = fit.flat[:1].clone()  # members alike but for their numbers
    alike = sampled(fit, x, 6, seed=SEED)
    close(alike[2], alike[0])
    assert (alike[1] - alike[0]).abs().amax((1, 2)).min() > 1e-3


def test_every_noise_of_every_layer_is_its_own():
    """Two layers of the same size, two kinds of noise each: no number comes twice."""
    drawn = []

    class Spy(PseudoData):
        def weights(self, p, noise):
            drawn.extend(noise.values())
            return super().weights(p, noise)

    sampled(trained(Spy(2, 0.3), (3, 3, 3)), normal("x", 1, 2, 3), 4, seed=SEED)
    assert [tuple(x.shape) for x in drawn] == [(3, 4, 4, 3), (3, 4, 2, 7)] * 2
    numbers = torch.cat([x.flatten() for x in drawn])
    assert len(numbers.unique()) == len(numbers)


# ----------------------------------------------------------------------------------------------------------- the noise


def test_the_noises_precision_is_in_the_targets_unit():
    """Standardised by 10, a precision of 5 is one of 5 / 100, as uncertain as before."""
    unit = torch.tensor([[10.0, 1.0], [0.1, 2.0]]).double()
    fit = trained(RowColumn(), (2, 2), (0, 1), unit=unit)
    inner = fit.network.noise_precisions(fit.flat)
    shape, rate = noise_precision(fit)
    torch.testing.assert_close(shape, inner.shape)
    torch.testing.assert_close(shape / rate, inner.mean / unit.square())


def test_classes_have_no_noise():
    fit = trained(RowColumn(), (2, 3), likelihood=Categorical(), unit=torch.ones(3, 1).double())
    assert [x.shape for x in noise_precision(fit)] == [(3, 0), (3, 0)]
