"""A stack of networks with laws: the flat layout, the start, and the gradient of the whole objective by difference quotients."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from lib import randomness
from lib.matrix_gaussian.gamma import Gammas
from lib.matrix_gaussian.laws import Factorised, Point, RowColumn
from lib.matrix_gaussian.likelihoods import Categorical, Gaussian
from lib.matrix_gaussian.network import Network, prepared
from lib.matrix_gaussian.pseudo_data import LOWEST_LOG_NOISE, PseudoData

SEED = 991
LAWS = {
    "point": Point(),
    "dropped point": Point(0.3),
    "factorised": Factorised(),
    "rows and columns": RowColumn(),
    "pseudo-data": PseudoData(2),
    "per entry": PseudoData(2, 0.3, per_entry=True),
}
WIDTHS, B = (2, 3, 2), 4
each_law = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
each_likelihood = pytest.mark.parametrize(
    "likelihood", [Gaussian(), Categorical()], ids=["numbers", "classes"]
)


def normal(purpose, *shape):
    return randomness.normal(SEED, torch.arange(1), purpose, 0, shape, torch.float64)[0]


def uniform(purpose, *shape):
    return randomness.uniform(SEED, torch.arange(1), purpose, 0, shape, torch.float64)[0]


def anywhere(network, runs, name="flat"):
    """Parameters as training may leave them, noises inside their bounds."""
    flat = 0.5 * normal(name, runs, network.size)
    for layer, law in zip(network.parameters(flat), network.laws, strict=True):
        if isinstance(law, PseudoData):
            layer["pseudo_inputs"] *= 3
            layer["log_noise"].copy_(law.bound - layer["log_noise"].abs())
    return flat


def noise_of(network, runs, batch=B):
    return {
        (i, name): normal(f"noise/{i}/{name}", runs, *shape)
        for i, law in enumerate(network.laws)
        for name, shape in law.noise_shapes(batch, *network.sizes(i)).items()
    }


def targets_of(network, runs, batch=B):
    if isinstance(network.likelihood, Categorical):
        return (uniform("classes", runs, batch) * network.widths[-1]).long()
    return normal("targets", runs, batch, network.widths[-1])


# --------------------------------------------------------------------------------------------------------- the slope


@each_law
@each_likelihood
@pytest.mark.parametrize("hyper_priors", [True, False], ids=["hyper", "fixed"])
@pytest.mark.parametrize("charge", [1.0, 0.1, 0.0])
def test_the_slope_is_a_difference_quotient(law, likelihood, hyper_priors, charge):
    """Of the batch's mean loss plus divergence / N, in every single parameter of two runs with different N and units."""
    network = Network.of(law, WIDTHS, likelihood, hyper_priors, charge)
    counts, unit = torch.tensor([7, 50]), torch.tensor([[1.0, 0.5], [20.0, 3.0]]).double()
    flat, size, step = anywhere(network, 2), network.size, 1e-5
    inputs, targets, noise = normal("x", 2, B, WIDTHS[0]), targets_of(network, 2), noise_of(network, 2)

    def many(x):
        return x.repeat_interleave(2 * size, 0)

    moved = many(flat)  # of each run: every parameter up, then every parameter down
    moved += torch.cat([torch.eye(size), -torch.eye(size)]).double().repeat(2, 1) * step
    terms = network.terms(many(counts), many(unit))
    noises = {key: many(value) for key, value in noise.items()}
    values, _ = network.slope(network.bind(moved), prepared(many(inputs)), many(targets), noises, terms)
    divergence = network.divergence(moved, network.prior(many(unit)))
    up, down = (values + divergence / many(counts)).view(2, 2, size).unbind(1)

    terms = network.terms(counts, unit)
    _, found = network.slope(network.bind(flat), prepared(inputs), targets, noise, terms)
    assert found.shape == flat.shape
    torch.testing.assert_close(
        found, (up - down) / (2 * step), rtol=2e-6, atol=2e-7 * float(found.abs().max())
    )


def test_the_value_is_the_batchs_mean_loss_alone():
    network = Network.of(Point(), WIDTHS, Gaussian())
    flat, inputs, targets = anywhere(network, 2), normal("x", 2, B, 2), normal("y", 2, B, 2)
    terms = network.terms(torch.tensor([9, 9]), torch.ones(2, 2).double())
    value, _ = network.slope(network.bind(flat), prepared(inputs), targets, {}, terms)
    (first, second), q = network.parameters(flat), network.noise_precisions(flat)

    def layer(x, p):
        one = torch.ones(2, B, 1).double()
        return torch.cat([x, one], -1) @ p["mean"] / math.sqrt(x.shape[-1] + 1)

    miss = (layer(layer(inputs, first).clamp(min=0), second) - targets).square()
    each = 0.5 * q.mean[:, None] * miss - 0.5 * q.mean_log[:, None] + 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(value, each.sum(-1).mean(-1))


def test_prepared_adds_the_bias_and_divides_by_the_root():
    torch.testing.assert_close(
        prepared(torch.tensor([[3.0, 6.0, 9.0]])), torch.tensor([[1.5, 3.0, 4.5, 0.5]])
    )


# ----------------------------------------------------------------------------------------------------- the divergence


@pytest.mark.parametrize("law", [Factorised(), RowColumn()], ids=["factorised", "rows and columns"])
def test_the_divergence_of_a_law_is_that_of_its_normals(law):
    network = Network.of(law, WIDTHS, Categorical(), hyper_priors=False)
    flat, wanted = anywhere(network, 3), torch.zeros(3).double()
    for p in network.parameters(flat):
        sd = p["log_sd"] if "log_sd" in p else p["log_row"][..., None] + p["log_column"][..., None, :]
        wanted += kl_divergence(Normal(p["mean"], sd.exp()), Normal(0.0, 1.0)).sum((1, 2))
    torch.testing.assert_close(network.divergence(flat, network.prior(torch.ones(3, 1).double())), wanted)


def test_with_learned_precisions_it_is_the_mean_over_them():
    """E over τ_r and τ_c, on a grid of both, of the divergence from N(0, 1 / τ_r τ_c); and the divergences of the Gammas."""
    network = Network.of(Factorised(), (1, 2), Gaussian(prior_scale="standardised"))
    flat = anywhere(network, 1)
    q, (p,) = network.precisions(flat), network.parameters(flat)
    laws = torch.distributions.Gamma(q.shape[0], q.rate[0])  # τ_r, τ_c, and the noises of two outputs
    log = torch.linspace(-25, 6, 500).double()[:, None]
    density = torch.exp(laws.log_prob(log.exp()) + log) * (log[1] - log[0])
    torch.testing.assert_close(density.sum(0)[:2], torch.ones(2).double(), rtol=1e-4, atol=0)
    weight = density[:, None, 0] * density[None, :, 1]
    prior = Normal(0.0, torch.exp(-0.5 * (log + log[:, 0])))
    posterior = zip(p["mean"].flatten(), p["log_sd"].exp().flatten(), strict=True)
    wanted = sum((weight * kl_divergence(Normal(*one), prior)).sum() for one in posterior)
    shape, rate = torch.tensor([1.0, 1.0, 6.0, 6.0]).double(), torch.tensor([0.5, 0.5, 6.0, 6.0]).double()
    wanted = wanted + kl_divergence(laws, torch.distributions.Gamma(shape, rate)).sum()
    found = network.divergence(flat, network.prior(torch.ones(1, 2).double()))
    torch.testing.assert_close(found[0], wanted, rtol=1e-4, atol=0)


def test_a_points_entry_is_minus_the_priors_log_density():
    network = Network.of(Point(), WIDTHS, Categorical(), hyper_priors=False)
    flat = anywhere(network, 3)
    density = Normal(0.0, 1.0).log_prob(flat).sum(1) + 0.5 * network.size * math.log(2 * math.pi)
    torch.testing.assert_close(network.divergence(flat, network.prior(torch.ones(3, 1).double())), -density)


@each_law
def test_the_charge_weighs_the_weights_alone(law):
    found = []
    for charge in (0.0, 0.1, 1.0):
        network = Network.of(law, WIDTHS, Gaussian(), charge=charge)
        flat, prior = anywhere(network, 2), network.prior(torch.ones(2, 2).double())
        found.append(network.divergence(flat, prior))
    q = Gammas(*(x for x in (network.precisions(flat).log_shape, network.precisions(flat).log_rate)))
    gammas = kl_divergence(torch.distributions.Gamma(q.shape, q.rate), torch.distributions.Gamma(*prior)).sum(
        1
    )
    torch.testing.assert_close(found[0], gammas)
    torch.testing.assert_close(found[1], 0.9 * found[0] + 0.1 * found[2])
    assert (found[2] - found[0]).abs().min() > 0.1


def test_pseudo_data_pay_for_the_unconditioned_law_and_for_their_noise():
    law, plain = PseudoData(2), Network.of(RowColumn(), (2, 3), Categorical(), hyper_priors=False)
    network = Network.of(law, (2, 3), Categorical(), hyper_priors=False)
    flat, one = anywhere(network, 2), torch.ones(2, 1).double()
    (p,), bare = network.parameters(flat), torch.empty(2, plain.size).double()
    for name, value in plain.parameters(bare)[0].items():
        value.copy_(p[name])
    noise = network.divergence(flat, network.prior(one)) - plain.divergence(bare, plain.prior(one))
    torch.testing.assert_close(noise, law.noise_divergence(p))
    assert (noise > 0).all()


# --------------------------------------------------------------------------------------------------- the flat layout


@each_law
@each_likelihood
@pytest.mark.parametrize("hyper_priors", [True, False], ids=["hyper", "fixed"])
def test_every_number_has_one_place(law, likelihood, hyper_priors):
    network = Network.of(law, (2, 3, 4, 2), likelihood, hyper_priors)
    places = [i for place, _ in network.places.values() for i in range(place.start, place.stop)]
    assert places == list(range(network.size))
    flat = torch.arange(2 * network.size).double().view(2, -1)
    named = {(i, name): value for i, p in enumerate(network.parameters(flat)) for name, value in p.items()}
    assert {*named, "gammas"} == {*network.places}
    q = network.precisions(flat)
    each = [named[key].flatten(1) for key in network.places if key != "gammas"] + [q.log_shape, q.log_rate]
    assert torch.equal(torch.cat(each, 1), flat)
    for (i, name), value in named.items():
        assert value.shape[1:] == network.laws[i].shapes(*network.sizes(i))[name]
        assert (network.places[i, name][0].start >= network.logs) is name.startswith("log_")
    flat += 1  # views, no copies
    assert all(
        torch.equal(value, flat[:, network.places[key][0]].view_as(value)) for key, value in named.items()
    )


@pytest.mark.parametrize(("r", "c"), [(785, 150), (151, 10), (7, 50)])
def test_sizes_are_the_papers(r, c):
    """Its counts of a layer; then two numbers a Gamma precision: two precisions a layer and one an output."""
    counts = {
        Point(): r * c,
        Factorised(): 2 * r * c,
        RowColumn(): r * c + r + c,
        PseudoData(5): r * c + r + c + 5 * (r + c) + 2,
        PseudoData(50, per_entry=True): r * c + r + c + 50 * (r + c) + r + c + 50,
    }
    for law, count in counts.items():
        assert Network.of(law, (r - 1, c), Categorical(), hyper_priors=False).size == count
        assert Network.of(law, (r - 1, c), Categorical()).size == count + 4
        assert Network.of(law, (r - 1, c), Gaussian(), hyper_priors=False).size == count + 2 * c
        two = Network.of(law, (r - 1, r - 1, c), Gaussian()).size
        wide = Network.of(law, (r - 1, r - 1), Categorical(), hyper_priors=False).size
        assert two == wide + count + 8 + 2 * c


def test_noise_precisions_stand_behind_those_of_the_layers():
    network = Network.of(Point(), WIDTHS, Gaussian())
    flat = torch.zeros(2, network.size).double()
    flat[:, network.places["gammas"][0]] = torch.arange(12).double()  # six shapes, then six rates
    q = network.noise_precisions(flat)
    assert q.log_shape.tolist() == [[4.0, 5.0]] * 2
    assert q.log_rate.tolist() == [[10.0, 11.0]] * 2


def test_bound_exponentials_follow_the_flat_tensor():
    network = Network.of(RowColumn(), WIDTHS, Gaussian())
    flat = anywhere(network, 2)
    bound = network.bind(flat)
    flat *= 2
    bound.refresh()
    for p in bound.layers:
        for name in ("log_row", "log_column"):
            torch.testing.assert_close(p[name + ".sd"], p[name].exp())
            torch.testing.assert_close(p[name + ".variance"], torch.exp(2 * p[name]))


def test_noises_are_clipped_and_nothing_else():
    network = Network((2, 3, 2), (PseudoData(2, 0.01), RowColumn()), Gaussian())
    flat = 10 * normal("far", 3, network.size)
    before, bound = flat.clone(), network.bind(flat)
    bound.clip()
    place, _ = network.places[0, "log_noise"]
    wanted = before.clone()
    wanted[:, place] = before[:, place].clamp(LOWEST_LOG_NOISE, 0.5 * math.log(0.01))
    assert torch.equal(flat, wanted)
    assert not torch.equal(flat, before)


# ----------------------------------------------------------------------------------------------------------- the start


@each_law
def test_training_starts_where_the_paper_says(law):
    network = Network.of(law, (40, 60, 2), Gaussian())
    unit = torch.tensor([[2.0, 1.0], [0.5, 10.0], [1.0, 1.0]]).double()
    flat = network.start(torch.tensor([3, 8, 3]), unit, SEED)
    assert flat.dtype == torch.float64
    q = network.precisions(flat)
    torch.testing.assert_close(q.shape, torch.tensor([[1.0] * 4 + [6.0] * 2] * 3).double())
    torch.testing.assert_close(q.rate[:, :4], torch.full((3, 4), 0.5).double())
    torch.testing.assert_close(
        q.rate[:, 4:], 6 / unit.square()
    )  # τ of the target in its own unit is Gamma(6, 6)
    for (inputs, outputs), p in zip(((40, 60), (60, 2)), network.parameters(flat), strict=True):
        mean = p["mean"]
        assert (mean[:, -1] == 0).all()
        spread = mean[0, :-1].square().mean().sqrt()
        assert float(spread) == pytest.approx(math.sqrt(4 / (inputs + outputs)), rel=0.2)
        for name in ("log_sd", "log_row"):
            if name in p:
                assert (p[name][:, -1] == -4).all()
        for name in ("log_sd", "log_row", "log_column"):
            if name in p:
                free = p[name][:, :-1] if name != "log_column" else p[name]
                assert 0 < free.abs().max() < 0.06
        assert torch.equal(mean[0], mean[2])
        assert not torch.equal(mean[0], mean[1])
    first, second = (
        p["mean"][0].flatten()[:2] for p in network.parameters(flat)
    )  # numbers of its own for every layer
    assert (first / math.sqrt(4 / 100) - second / math.sqrt(4 / 62)).abs().min() > 1e-3


def test_in_standardised_units_the_prior_does_not_know_the_unit():
    network = Network.of(
        Point(), (2, 1), Gaussian(prior=(3.0, 4.0), prior_scale="standardised"), hyper_priors=False
    )
    shape, rate = network.prior(torch.tensor([[1.0], [1e3]]))
    assert (shape.tolist(), rate.tolist()) == ([[3.0], [3.0]], [[4.0], [4.0]])


def test_a_raw_prior_is_one_on_the_precision_in_raw_units():
    """The objective in the targets' own unit, written out there, is the standardised one and the logarithm of the unit."""
    unit, n = torch.tensor([[0.03], [250.0]]).double(), 20
    network = Network.of(Point(), (2, 1), Gaussian(), hyper_priors=False, charge=0.0)
    flat, inputs, y = anywhere(network, 2), normal("x", 2, n, 2), normal("y", 2, n, 1)
    value, _ = network.slope(
        network.bind(flat), prepared(inputs), y, {}, network.terms(torch.tensor([n, n]), unit)
    )
    found = n * value + network.divergence(flat, network.prior(unit))

    q, (p,) = network.noise_precisions(flat), network.parameters(flat)
    raw = torch.distributions.Gamma(q.shape, q.rate * unit**2)
    miss = unit[:, None] * (prepared(inputs) @ p["mean"] - y)
    mean_log = torch.digamma(raw.concentration) - raw.rate.log()
    loss = 0.5 * (raw.mean * miss.square().sum(1) - n * mean_log + n * math.log(2 * math.pi))
    kl = kl_divergence(raw, torch.distributions.Gamma(*torch.tensor([6.0, 6.0]).double()))
    torch.testing.assert_close(found + n * unit[:, 0].log(), (loss + kl)[:, 0])


# -------------------------------------------------------------------------------------------------------------- making


def test_the_first_layers_inputs_are_never_dropped():
    assert Network.of(Point(0.2), (2, 3, 4, 1), Gaussian()).laws == (Point(), Point(0.2), Point(0.2))
    assert Network.of(RowColumn(), [2, 3, 1], Gaussian()).laws == (RowColumn(), RowColumn())


@pytest.mark.parametrize(("widths", "laws"), [((2, 3, 1), 1), ((2, 3), 2), ((2,), 0)])
def test_one_law_for_each_pair_of_widths(widths, laws):
    with pytest.raises(ValueError, match="give one law for each pair of neighbouring widths"):
        Network(widths, (Point(),) * laws, Gaussian())
