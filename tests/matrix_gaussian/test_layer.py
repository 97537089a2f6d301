"""The layer against autograd through slow formulas, its noise against its law, draws against their counter."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from lib.matrix_gaussian import gamma
from lib.matrix_gaussian.laws import Factorised, Point, RowColumn
from lib.matrix_gaussian.layer import (
    DeterministicLayer,
    MatrixGaussianLinear,
    default_law,
    divergence,
    layers_of,
    sampling,
)
from lib.matrix_gaussian.passes import NotFinite, generator_of
from lib.matrix_gaussian.pseudo_data import JITTER, PseudoData

LAWS = (
    Point(),
    Point(drop=0.3),
    Factorised(-1.0),
    RowColumn(),
    PseudoData(2, 0.3),
    PseudoData(2, 0.3, per_entry=True),
)
NAMES = ("point", "dropout", "factorised", "row and column", "pseudo-data", "pseudo-data per entry")
each_law = pytest.mark.parametrize("law", LAWS, ids=NAMES)


def layer_of(law, inputs=4, outputs=3, spread=0.3, **options):
    """A layer in float64, its parameters moved away from their special starting values."""
    layer = MatrixGaussianLinear(inputs, outputs, dtype=torch.float64, law=law, **{"seed": 1, **options})
    numbers = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, p in layer.named_parameters():
            sign = -1 if name == "log_noise" else 1  # noise stays under its bound
            p += sign * spread * torch.randn(p.shape, generator=numbers, dtype=p.dtype).abs()
        layer.parameters_of()
    return layer


def rows(count=5, inputs=4, seed=3):
    return torch.randn(count, inputs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow(layer, x, noise):
    """Pre-activations by explicit Gaussian conditioning, for autograd: from the paper, not from the laws."""
    law, r, c = layer.law, layer.r, layer.c
    a = torch.cat([x, x.new_ones(len(x), 1)], 1)[:, :r] / math.sqrt(r)
    if isinstance(law, Point):
        if law.drop:
            kept = torch.special.ndtr(noise["mask"][0]) > law.drop
            a = torch.cat([a[:, :-1] * kept / (1 - law.drop), a[:, -1:]], 1)
        return a @ layer.mean
    if isinstance(law, Factorised):
        return a @ layer.mean + (a**2 @ layer.log_sd.exp() ** 2).sqrt() * noise["output"][0]
    u, t = torch.diag((2 * layer.log_row).exp()), layer.log_column.exp()
    mean, covariance = a @ layer.mean, a @ u @ a.T
    if isinstance(law, PseudoData):
        m, log = law.count, layer.log_noise
        e_a, e_b = noise["pseudo"][0].split([r, c], 1)
        if law.per_entry:
            log_a, log_b = log[:m, None] + log[m : m + r], log[:m, None] + log[m + r :]
        else:
            log_a, log_b = log
        inputs = layer.pseudo_inputs * (1 + log_a.exp() * e_a) / math.sqrt(r)
        outputs = layer.pseudo_outputs * (1 + log_b.exp() * e_b)
        s = inputs @ u @ inputs.T
        s = s + JITTER * s.diagonal().mean() * torch.eye(m, dtype=s.dtype)
        cross = a @ u @ inputs.T @ torch.linalg.inv(s)
        mean = mean + cross @ (outputs - inputs @ layer.mean)
        covariance = covariance - cross @ inputs @ u @ a.T
    return mean + covariance.diagonal().sqrt()[:, None] * t * noise["output"][0]


# -------------------------------------------------------------------------------- passes and derivatives


@each_law
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_the_pass_and_all_its_gradients_are_those_of_the_slow_formula(law, bias):
    if not bias and law == Point(drop=0.3):
        pytest.skip("refused")
    layer, x = layer_of(law, bias=bias), rows().requires_grad_()
    twin = copy.deepcopy(layer)
    noise = twin.noise(law.noise_shapes(len(x), layer.r, layer.c))
    mine, theirs = layer(x), slow(layer, x, noise)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
    weight = rows(5, 3, seed=4)
    inputs = [x, *layer.parameters()]
    found, wanted = (torch.autograd.grad((out * weight).sum(), inputs) for out in (mine, theirs))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


@each_law
def test_gradcheck_of_the_pass(law):
    layer = layer_of(law)

    def outputs(x, *own):
        return torch.func.functional_call(at_first_draw(layer), dict(zip(layer.names, own, strict=True)), x)

    values = [getattr(layer, name).detach().clone().requires_grad_() for name in layer.names]
    assert torch.autograd.gradcheck(outputs, (rows(3).requires_grad_(), *values))


def at_first_draw(layer):
    layer.draws["training"] = 0
    return layer


@each_law
@pytest.mark.parametrize("hyper_priors", [False, True])
def test_gradcheck_of_the_divergence(law, hyper_priors):
    layer = layer_of(law, hyper_priors=hyper_priors)
    names, values = zip(
        *[(n, p.detach().clone().requires_grad_()) for n, p in layer.named_parameters()], strict=True
    )

    class Charged(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self):
            return self.layer.divergence()

    charged, names = Charged(), [f"layer.{name}" for name in names]

    def value(*own):
        return torch.func.functional_call(charged, dict(zip(names, own, strict=True)), ())

    assert torch.autograd.gradcheck(value, values)


@pytest.mark.parametrize("hyper_priors", [False, True])
def test_the_divergence_is_that_of_torch_distributions(hyper_priors):
    layer = layer_of(RowColumn(), hyper_priors=hyper_priors)
    sd = layer.log_row.exp()[:, None] * layer.log_column.exp()
    q = torch.distributions.Normal(layer.mean, sd)
    if not hyper_priors:
        wanted = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum()
    else:
        a, b = layer.log_shape.exp(), layer.log_rate.exp()
        precision, own = (
            torch.distributions.Gamma(a, b),
            torch.distributions.Gamma(*gamma.PRECISION_OF_WEIGHTS),
        )
        mean_log = (torch.digamma(a) - b.log()).sum()  # E ln of the product of both precisions
        cross = 0.5 * (math.log(2 * math.pi) - mean_log + (a / b).prod() * (layer.mean**2 + sd**2))
        wanted = (cross - q.entropy()).sum() + torch.distributions.kl_divergence(precision, own).sum()
    torch.testing.assert_close(layer.divergence(), wanted, rtol=1e-12, atol=0)


def test_the_pass_is_differentiable_once_and_says_so():
    layer, x = layer_of(RowColumn()), rows().requires_grad_()
    (slope,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_two_passes_of_one_layer_and_an_in_place_activation_share_a_graph():
    net = nn.Sequential(layer_of(PseudoData(2, 0.3)), nn.ReLU(inplace=True))
    x = rows()
    both = net(x).sum() + net(x).sum()
    both.backward()
    together = net[0].mean.grad.clone()
    net.zero_grad()
    at_first_draw(net[0])
    net(x).sum().backward()
    net(x).sum().backward()
    torch.testing.assert_close(net[0].mean.grad, together)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), (0, 4)], ids=str)
def test_any_leading_shape_passes(shape):
    layer = layer_of(PseudoData(2))
    x = torch.ones(shape, dtype=torch.float64)
    assert layer(x).shape == (*shape[:-1], 3)
    flat = at_first_draw(layer)(x.reshape(-1, 4))
    assert torch.equal(at_first_draw(layer)(x).reshape(-1, 3), flat)


# ---------------------------------------------------------------------------------- the law of pre-activations


@each_law
def test_local_noise_and_drawn_weights_give_the_same_mean_and_variance(law):
    n, draws = 2, 20_000
    x, layer = rows(n), layer_of(law)
    with torch.no_grad():
        local = layer(x.repeat(draws, 1)).view(draws, n, 3)
        if isinstance(law, PseudoData):  # their noise is common to a batch: it takes more passes
            draws = 1_000
            local = torch.stack([layer(x) for _ in range(draws)])
        layer.local = False
        shapes = law.weight_noise_shapes(layer.r, layer.c)
        p = {name: value.expand(draws, *value.shape[1:]) for name, value in layer.parameters_of().items()}
        noise = {name: torch.randn(draws, *size, generator=torch.Generator().manual_seed(i), dtype=x.dtype)
                 for i, (name, size) in enumerate(shapes.items())}  # fmt: skip
        a = torch.cat([x, torch.ones_like(x[:, :1])], 1) / math.sqrt(layer.r)
        drawn = a @ law.weights(p, noise)
    for moment in (lambda z: z, lambda z: (z - z.mean(0)).square()):
        one, other = moment(local), moment(drawn).expand(draws, n, 3)
        error = ((one.var(0) + other.var(0)) / draws).sqrt()
        assert ((one.mean(0) - other.mean(0)).abs() < 4.5 * error + 1e-9).all()


def test_drawn_weights_are_common_to_a_batch_and_local_noise_is_not():
    x = rows(1).repeat(2, 1)
    for local in (True, False):
        one, other = layer_of(RowColumn(), local=local)(x)
        assert torch.equal(one, other) is not local


# --------------------------------------------------------------------------------------- evaluation and draws


@each_law
def test_evaluation_is_the_mean_network_and_deterministic(law):
    layer, x = layer_of(law).eval(), rows()
    assert torch.equal(layer(x), layer(x))
    weight, bias = layer.weights()
    torch.testing.assert_close(layer(x), x @ weight.T + bias)
    a = torch.cat([x, torch.ones_like(x[:, :1])], 1) / math.sqrt(layer.r)
    torch.testing.assert_close(layer(x), a @ law.mean_weights(layer.parameters_of())[0])


def test_sampling_makes_evaluation_noisy_and_ends():
    net = nn.Sequential(layer_of(RowColumn()), nn.ReLU()).eval()
    x = rows()
    still = net(x)
    with sampling(net) as noisy:
        one, other = noisy(x), net(x)
    assert not torch.equal(one, other)
    assert torch.equal(net(x), still)
    assert net[0].draws == {"training": 0, "sampling": 2}  # evaluating does not move the noise of training


def test_draws_are_a_function_of_seed_purpose_and_number():
    x = rows()
    first = layer_of(RowColumn())
    one = [first(x) for _ in range(3)]
    torch.manual_seed(0)  # the global generator has no say
    again = layer_of(RowColumn())
    torch.manual_seed(99)
    assert all(torch.equal(again(x), out) for out in one)
    assert not torch.equal(one[0], one[1])
    again.draws["training"] = 1
    assert torch.equal(again(x), one[1])
    for options in ({"seed": 2}, {"purpose": "other"}):
        other = layer_of(RowColumn(), **options)
        other.load_state_dict(layer_of(RowColumn()).state_dict())  # the same parameters
        assert not torch.equal(other(x), one[0])


def test_numbers_of_draws_never_share_a_generator():
    """Torch's CPU generator reads 32 bits of a seed: what is mixed in must keep all numbers apart there."""
    seeds = {generator_of(3, "a", number, "cpu").initial_seed() for number in range(5_000)}
    assert len(seeds) == 5_000
    assert max(seeds) < 1 << 32
    assert len(seeds & {generator_of(3, "b", number, "cpu").initial_seed() for number in range(100)}) < 3


@each_law
def test_a_saved_layer_goes_on_where_it_stopped(law, tmp_path):
    layer, x = layer_of(law, hyper_priors=True), rows()
    layer(x)
    torch.save(layer.state_dict(), tmp_path / "state.pt")
    loaded = layer_of(law, hyper_priors=True, spread=0.1)
    loaded.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    copies = [loaded, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    wanted = layer(x)
    assert all(torch.equal(other(x), wanted) for other in copies)
    assert all(torch.equal(other.divergence(), layer.divergence()) for other in copies)


# ---------------------------------------------------------------------- training, bounds, refusals


def test_training_lowers_the_loss():
    x = torch.linspace(-1, 1, 64)[:, None]
    y = torch.sin(3 * x)
    net = nn.Sequential(
        MatrixGaussianLinear(1, 20, law=PseudoData(1), seed=0), nn.Tanh(), MatrixGaussianLinear(20, 1, seed=1)
    )
    adam = torch.optim.Adam(net.parameters(), lr=0.02)

    def loss():
        nll = 0.5 * (net(x) - y).square() / 0.01
        return nll.mean() + divergence(net) / 10_000

    losses = []
    for _ in range(150):
        adam.zero_grad()
        value = loss()
        value.backward()
        adam.step()
        losses.append(value.item())
    assert sum(losses[-20:]) < 0.3 * sum(losses[:20])
    net.eval()
    assert (net(x) - y).square().mean() < 0.1 * y.var()


def test_the_noise_stays_under_its_bound_whatever_a_step_does():
    law = PseudoData(2, 0.1)
    layer = layer_of(law)
    for use in (lambda: layer(rows()), layer.divergence):
        with torch.no_grad():
            layer.log_noise.copy_(torch.tensor([3.0, -9.0]))
        use()
        torch.testing.assert_close(layer.log_noise.detach(), torch.tensor([law.bound, -4.0]).double())


def test_as_many_pseudo_data_as_inputs_warn():
    with pytest.warns(DeterministicLayer, match="layer 'layer' has 4 pseudo-data for 4 inputs"):
        MatrixGaussianLinear(3, 2, law=PseudoData(4), seed=0)
    MatrixGaussianLinear(3, 2, law=PseudoData(3), seed=0)
    for inputs in range(1, 12):  # the default never warns
        MatrixGaussianLinear(inputs, 2, bias=inputs % 2 == 0, seed=0)
    assert default_law(785) == PseudoData(5)


def test_what_is_no_number_is_refused():
    layer, x = layer_of(RowColumn()), rows()
    x[1, 2] = math.nan
    for training in (True, False):
        with pytest.raises(NotFinite, match="look at the batch"):
            layer.train(training)(x)
    with torch.no_grad():
        layer.mean[0, 0] = math.inf
    with pytest.raises(NotFinite, match="have diverged"):
        layer(rows())


def test_refusals_are_sentences():
    layer = layer_of(RowColumn())
    with pytest.raises(ValueError, match="must have length 4"):
        layer(rows(inputs=5))
    with pytest.raises(ValueError, match="convert one of the two"):
        layer(rows().float())
    with pytest.raises(ValueError, match="never drops a layer's last row"):
        MatrixGaussianLinear(3, 2, bias=False, law=Point(drop=0.5), seed=0)
    with pytest.raises(ValueError, match="one of each at least"):
        MatrixGaussianLinear(0, 2, seed=0)
    with pytest.raises(ValueError, match="no matrix Gaussian layer"):
        divergence(nn.Linear(2, 2))


def test_layers_that_would_share_their_noise_are_refused_and_a_shared_layer_counts_once():
    one, twin, other = (layer_of(RowColumn(), 3, seed=s) for s in (1, 1, 2))
    with pytest.raises(ValueError, match="'0' and '1' have the same seed 1"):
        divergence(nn.Sequential(one, twin))
    torch.testing.assert_close(
        divergence(nn.Sequential(one, other, one)), one.divergence() + other.divergence()
    )
    assert list(layers_of(nn.Sequential(one, other, one))) == ["0", "1"]
