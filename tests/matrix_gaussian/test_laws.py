"""What every law of a layer's weights must keep: hand-written slopes, the local trick, the divergence, members apart."""

import math

import pytest
import torch

from lib import randomness
from lib.matrix_gaussian import laws
from lib.matrix_gaussian.laws import Factorised, Point, RowColumn
from lib.matrix_gaussian.pseudo_data import JITTER, PseudoData

R, N, INPUTS, OUTPUTS = 3, 4, 6, 3  # members, batch, inputs with the bias, outputs
LAWS = {
    "point": Point(),
    "dropped point": Point(0.3),
    "factorised": Factorised(),
    "narrow": Factorised(-3.0),
    "rows and columns": RowColumn(),
    "pseudo-data": PseudoData(3),
    "per entry": PseudoData(3, 0.01, per_entry=True),
    "noisy": PseudoData(2, 1.0),
    "more than rows": PseudoData(INPUTS + 2),
}
each = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
gaussian = pytest.mark.parametrize(
    "law", [law for law in LAWS.values() if not isinstance(law, Point)], ids=list(LAWS)[2:]
)


def normal(purpose, *shape):
    """Standard normal numbers in float64."""
    return randomness.normal(330, torch.arange(1), purpose, 0, shape, torch.float64)[0]


def noise_of(shapes, *leading):
    return {name: normal(f"noise/{name}", *leading, *shape) for name, shape in shapes.items()}


def case(law, members=R):
    """Parameters as training may leave them, all different, and inputs with the bias."""
    p = {name: 0.6 * normal(name, members, *shape) for name, shape in law.shapes(INPUTS, OUTPUTS).items()}
    if isinstance(law, PseudoData):
        p["pseudo_inputs"] *= 3
        p["log_noise"] = law.bound - p["log_noise"].abs()
    a = normal("inputs", members, N, INPUTS)
    a[..., -1] = 1
    return p, a / math.sqrt(INPUTS)


def agree(found, wanted, tolerance, scale=None):
    """Equal to ``tolerance`` of ``scale``: of the largest number."""
    scale = wanted.abs().max().item() if scale is None else scale
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance * scale)


def precise(law):
    """What rounding leaves: with more pseudo-data than rows, S has eigenvalues of the jitter's size."""
    return 1e-5 if isinstance(law, PseudoData) and law.count >= INPUTS else 1e-10


def plain(law, p, a, noise):
    """The pre-activations again, by the formulas in plain operations that autograd follows."""
    if isinstance(law, Point):
        dropped = torch.distributions.Normal(0.0, 1.0).cdf(noise["mask"]) < law.drop if law.drop else None
        kept = (
            1.0
            if dropped is None
            else torch.cat([(~dropped).double() / (1 - law.drop), torch.ones(R, N, 1)], dim=-1)
        )
        return (a * kept) @ p["mean"]
    if isinstance(law, Factorised):
        return a @ p["mean"] + (a**2 @ torch.exp(2 * p["log_sd"])) ** 0.5 * noise["output"]
    mean, u, t = p["mean"], torch.exp(2 * p["log_row"]).diag_embed(), p["log_column"].exp()[:, None]
    if isinstance(law, RowColumn):
        return a @ mean + (a @ u @ a.mT).diagonal(dim1=1, dim2=2)[..., None] ** 0.5 * t * noise["output"]
    log, m = p["log_noise"], law.count
    if law.per_entry:
        sigma = torch.exp(log[:, :m, None] + log[:, None, m:])
    else:
        sigma = torch.cat([log[:, :1].expand(-1, INPUTS), log[:, 1:].expand(-1, OUTPUTS)], dim=1).exp()[
            :, None
        ]
    data = torch.cat([p["pseudo_inputs"], p["pseudo_outputs"]], dim=-1) * (1 + sigma * noise["pseudo"])
    pseudo, outputs = data[..., :INPUTS] / math.sqrt(INPUTS), data[..., INPUTS:]
    square = pseudo @ u @ pseudo.mT
    jitter = JITTER * square.diagonal(dim1=1, dim2=2).mean(1)
    square = square + jitter[:, None, None] * torch.eye(m)
    gain = torch.linalg.solve(square, pseudo @ u @ a.mT).mT
    left = (a @ u @ a.mT - gain @ pseudo @ u @ a.mT).diagonal(dim1=1, dim2=2)[..., None]
    return a @ mean + gain @ (outputs - pseudo @ mean) + left**0.5 * t * noise["output"]


@each
class TestSlopes:
    def test_backward_is_forwards_derivative(self, law):
        """Forward against the formulas, and backward against autograd through them: in the inputs and every parameter."""
        p, a = case(law)
        noise, g = noise_of(law.noise_shapes(N, INPUTS, OUTPUTS), R), normal("g", R, N, OUTPUTS)
        leaves = {name: value.clone().requires_grad_() for name, value in p.items()}
        below = a.clone().requires_grad_()
        out = plain(law, leaves, below, noise)
        agree(law.forward(p, a, noise)[0], out.detach(), 0.1 * precise(law))
        wanted = torch.autograd.grad((out * g).sum(), [*leaves.values(), below])
        tolerance = precise(law)
        largest = max(
            slope.abs().max().item() for slope in wanted
        )  # some vanish but for the jitter with m > r
        for inputs in (True, False):
            _, tape = law.forward(p, a, noise)
            found, of_inputs = law.backward(p, tape, g, inputs)
            assert set(found) == set(p)
            for name, slope in zip(p, wanted[:-1], strict=True):
                assert found[name].shape == p[name].shape
                agree(found[name], slope, tolerance, largest if tolerance == 1e-5 else None)
            if inputs:
                agree(of_inputs, wanted[-1], tolerance)
            else:
                assert of_inputs is None

    def test_backward_is_a_difference_quotient(self, law):
        """Without autograd: along one direction in all parameters and inputs at once."""
        p, a = case(law)
        noise, g = noise_of(law.noise_shapes(N, INPUTS, OUTPUTS), R), normal("g", R, N, OUTPUTS)
        along = {name: normal(f"along/{name}", *value.shape) for name, value in p.items()}
        sideways, step = normal("along", *a.shape), 1e-5

        def at(t):
            moved = {name: value + t * along[name] for name, value in p.items()}
            return (law.forward(moved, a + t * sideways, noise)[0] * g).sum((-1, -2))

        found, of_inputs = law.backward(p, law.forward(p, a, noise)[1], g, True)
        slope = sum((found[name] * along[name]).flatten(1).sum(1) for name in p)
        slope = slope + (of_inputs * sideways).sum((-1, -2))
        agree(slope, (at(step) - at(-step)) / (2 * step), 1e-4 if precise(law) == 1e-5 else 1e-7)

    @pytest.mark.parametrize("own", [False, True], ids=["one precision", "a precision each"])
    def test_pull_is_the_divergences_derivative(self, law, own):
        p, _ = case(law)
        precision = torch.tensor([0.4, 1.0, 2.5]).double() if own else 1.7
        leaves = {name: value.clone().requires_grad_() for name, value in p.items()}
        total = 0.5 * (precision * law.squares(leaves) - law.log_det(leaves)).sum()
        wanted = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
        found = laws.pull(law, p, precision)
        for name, slope in zip(p, wanted, strict=True):
            torch.testing.assert_close(found.get(name, torch.zeros_like(slope)), slope)

    def test_add_pull_adds_and_tells_the_squares(self, law):
        """What the training loop calls: factor times half the slope of E‖W‖² on top of what is there."""
        p, _ = case(law)
        factor = torch.tensor([0.4, 1.0, 2.5]).double()
        leaves = {name: value.clone().requires_grad_() for name, value in p.items()}
        total = 0.5 * (factor * law.squares(leaves)).sum()
        wanted = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
        before = {name: normal(f"before/{name}", *value.shape) for name, value in p.items()}
        gradients = {name: value.clone() for name, value in before.items()}
        torch.testing.assert_close(law.add_pull(p, factor, gradients), law.squares(p))
        for name, slope in zip(p, wanted, strict=True):
            torch.testing.assert_close(gradients[name], before[name] + slope)

    def test_what_the_caller_has_exponentiated_is_used(self, law):
        """Exponentials put into the parameters change no number, and stand for the logarithms they came from."""
        p, a = case(law)
        noise, g = noise_of(law.noise_shapes(N, INPUTS, OUTPUTS), R), normal("g", R, N, OUTPUTS)
        drawn = noise_of(law.weight_noise_shapes(INPUTS, OUTPUTS), R)

        def every(p):
            out, tape = law.forward(p, a, noise)
            slopes, below = law.backward(p, tape, g, True)
            numbers = [
                out,
                below,
                *slopes.values(),
                law.weights(p, drawn),
                law.mean_weights(p),
                law.squares(p),
            ]
            if isinstance(law, PseudoData):
                numbers += [law.noise_divergence(p), law.noise_pull(p), law.row_covariance(p)]
            return numbers

        logs = [name for name in p if name.startswith("log_")]
        known = p | {f"{name}.sd": p[name].exp() for name in logs}
        known |= {f"{name}.variance": known[f"{name}.sd"].square() for name in logs}
        lost = known | {name: torch.full_like(p[name], math.nan) for name in logs}
        for numbers in (known, lost):
            for found, wanted in zip(every(numbers), every(p), strict=True):
                agree(found, wanted, precise(law))

    def test_nothing_passed_in_is_changed(self, law):
        p, a = case(law)
        noise, g = noise_of(law.noise_shapes(N, INPUTS, OUTPUTS), R), normal("g", R, N, OUTPUTS)
        drawn = noise_of(law.weight_noise_shapes(INPUTS, OUTPUTS), R)
        kept = [*p.values(), a, *noise.values(), g, *drawn.values()]
        before = [value.clone() for value in kept]
        for inputs in (True, False):
            law.backward(p, law.forward(p, a, noise)[1], g, inputs)
        law.weights(p, drawn), law.mean_weights(p), law.squares(p), law.log_det(p), laws.pull(law, p, 2.0)
        assert all(torch.equal(value, old) for value, old in zip(kept, before, strict=True))

    @pytest.mark.parametrize("silent", [True, False], ids=["inputs of 0", "start"])
    def test_float32_at_the_start_is_finite(self, law, silent):
        p = law.start(INPUTS, OUTPUTS, torch.arange(R), 5, "start")
        a = torch.zeros(R, N, INPUTS) if silent else case(law)[1].float()
        noise = {k: v.float() for k, v in noise_of(law.noise_shapes(N, INPUTS, OUTPUTS), R).items()}
        out, tape = law.forward(p, a, noise)
        found, below = law.backward(p, tape, torch.ones_like(out), True)
        for value in (out, below, *found.values()):
            assert value.dtype == torch.float32
            assert torch.isfinite(value).all()


def moments(law, p, pseudo):
    """Mean (R, rc) and covariance (R, rc, rc) of the weights, exact: a draw is affine in its noise, given the pseudo-data's."""
    still = {"weight": torch.zeros(R, INPUTS, OUTPUTS).double(), **pseudo}
    base = law.weights(p, still)
    units = torch.eye(INPUTS * OUTPUTS).double().view(-1, INPUTS, OUTPUTS)
    columns = [law.weights(p, still | {"weight": unit.expand(R, -1, -1)}) - base for unit in units]
    root = torch.stack([column.flatten(1) for column in columns], dim=-1)
    return base, root @ root.mT


@gaussian
class TestGaussians:
    def test_divergence_is_torchs_of_the_full_covariance(self, law):
        """Of the law before it is conditioned, where there are pseudo-data."""
        p, _ = case(law)
        mean, covariance = moments(RowColumn() if isinstance(law, PseudoData) else law, p, {})
        precision, d = 1.7, INPUTS * OUTPUTS
        q = torch.distributions.MultivariateNormal(mean.flatten(1), covariance)
        prior = torch.distributions.MultivariateNormal(
            torch.zeros(d).double(), torch.eye(d).double() / precision
        )
        wanted = torch.distributions.kl_divergence(q, prior)
        found = 0.5 * (precision * law.squares(p) - law.log_det(p) - d - d * math.log(precision))
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=0)
        trace = covariance.diagonal(dim1=1, dim2=2).sum(1)
        torch.testing.assert_close(law.squares(p), mean.square().sum((1, 2)) + trace)
        torch.testing.assert_close(law.log_det(p), torch.logdet(covariance))

    def test_local_moments_are_those_of_the_weights(self, law):
        """Exact, for the same noise of the pseudo-data: mean aE[W], variance that of each aW_j; both to the jitter."""
        p, a = case(law)
        noise = noise_of(law.noise_shapes(N, INPUTS, OUTPUTS), R)
        pseudo = {name: value for name, value in noise.items() if name == "pseudo"}
        mean, covariance = moments(law, p, pseudo)
        centre, _ = law.forward(p, a, noise | {"output": torch.zeros(R, N, OUTPUTS).double()})
        shifted, _ = law.forward(p, a, noise | {"output": torch.ones(R, N, OUTPUTS).double()})
        wanted = torch.einsum(
            "rni,rijkj,rnk->rnj", a, covariance.view(R, INPUTS, OUTPUTS, INPUTS, OUTPUTS), a
        )
        tolerance = 1e-4 if isinstance(law, PseudoData) else 1e-12
        agree(centre, a @ mean, tolerance)
        whole = wanted.max()
        if isinstance(
            law, PseudoData
        ):  # the jitter's error is relative to what it would be without pseudo-data
            whole = (
                a.square() @ torch.exp(2 * p["log_row"])[..., None] * torch.exp(2 * p["log_column"])[:, None]
            ).max()
        torch.testing.assert_close((shifted - centre).square(), wanted, rtol=0, atol=tolerance * whole.item())
        # every number of noise moves its own pre-activation and in proportion
        torch.testing.assert_close(law.forward(p, a, noise)[0], centre + (shifted - centre) * noise["output"])


@each
def test_local_pre_activations_have_the_mean_and_variance_of_drawn_weights(law):
    """Monte Carlo over all noise, the pseudo-data's too: within 4.5 standard errors, for each example and output."""
    draws = 30_000
    p, a = case(law)
    p = {name: value[:1].expand(draws, *value.shape[1:]) for name, value in p.items()}
    if isinstance(law, PseudoData) and law.noise == 1:
        p["log_noise"] = p["log_noise"] - 1.5  # at the bound the variance has heavy tails
    a = a[:1].expand(draws, -1, -1)
    local, _ = law.forward(p, a, noise_of(law.noise_shapes(N, INPUTS, OUTPUTS), draws))
    drawn = {
        name: normal(f"weights/{name}", draws, *shape)
        for name, shape in law.weight_noise_shapes(INPUTS, OUTPUTS).items()
    }
    product = a @ law.weights(p, drawn)
    assert local.shape == product.shape
    for power in (1, 2):
        samples = [x if power == 1 else (x - x.mean(0)).square() for x in (local, product)]
        error = sum(x.var(0) / draws for x in samples).sqrt()
        gap = (samples[0].mean(0) - samples[1].mean(0)).abs()
        assert (gap <= 4.5 * error + 1e-9).all(), (power, gap / error)


@each
class TestMembers:
    def functions(self, law):
        """Every function of a law, as one of parameters, inputs, noise and the gradient of the outputs."""

        def backward(p, a, noise, g):
            found, below = law.backward(p, law.forward(p, a, noise)[1], g, True)
            return [*found.values(), below]

        yield lambda p, a, noise, g: [law.forward(p, a, noise)[0]]
        yield backward
        yield lambda p, a, noise, g: list(laws.pull(law, p, 2.0).values())
        yield lambda p, a, noise, g: [law.mean_weights(p), law.squares(p), law.log_det(p)]
        if isinstance(law, PseudoData):
            yield lambda p, a, noise, g: [
                law.noise_divergence(p),
                law.noise_pull(p),
                law.row_covariance(p),
            ]

    def test_do_not_touch_each_other(self, law):
        """A member alone gives the numbers it gives beside others, one of them diverged."""
        p, a = case(law)
        noise, g = noise_of(law.noise_shapes(N, INPUTS, OUTPUTS), R), normal("g", R, N, OUTPUTS)
        for value in p.values():
            value[0] = math.nan
        for function in self.functions(law):
            together = function(p, a, noise, g)
            for m in range(1, R):
                own = [
                    {name: value[m : m + 1] for name, value in group.items()} if isinstance(group, dict) else group[m : m + 1]
                    for group in (p, a, noise, g)
                ]  # fmt: skip
                for both, alone in zip(together, function(*own), strict=True):
                    assert torch.isfinite(both[m]).all()
                    agree(both[m], alone[0], 0.1 * precise(law))

    def test_weights_of_a_member_alone(self, law):
        p, _ = case(law)
        noise = noise_of(law.weight_noise_shapes(INPUTS, OUTPUTS), R)
        together = law.weights(p, noise)
        assert together.shape == (R, INPUTS, OUTPUTS)
        for m in range(R):
            alone = law.weights(*({k: v[m : m + 1] for k, v in group.items()} for group in (p, noise)))
            agree(together[m], alone[0], 0.1 * precise(law))

    def test_start_where_their_number_says(self, law):
        members = torch.tensor([0, 4, 9])
        together = law.start(INPUTS, OUTPUTS, members, 7, "start")
        shapes = law.shapes(INPUTS, OUTPUTS)
        assert {name: tuple(value.shape) for name, value in together.items()} == {
            name: (3, *shape) for name, shape in shapes.items()
        }
        alone = law.start(INPUTS, OUTPUTS, members[1:2], 7, "start")
        for other in (
            law.start(INPUTS, OUTPUTS, members, 8, "start"),
            law.start(INPUTS, OUTPUTS, members, 7, "b"),
        ):
            assert not torch.equal(other["mean"], together["mean"])
        for name, value in together.items():
            assert torch.equal(value[1:2], alone[name])
            assert name == "log_noise" or not torch.equal(value[0, :-1], value[1, :-1])


@each
def test_mean_weights_are_the_mean_without_noise(law):
    p, _ = case(law)
    noise = {
        name: torch.zeros(R, *shape).double()
        for name, shape in law.weight_noise_shapes(INPUTS, OUTPUTS).items()
    }
    if (
        isinstance(law, Point) and law.drop
    ):  # its noise is a mask: the mean over masks, each input kept and dropped
        kept, dropped = (
            law.weights(p, {"mask": torch.full((R, INPUTS - 1), v).double()}) for v in (9.0, -9.0)
        )
        mean = (1 - law.drop) * kept + law.drop * dropped
    else:
        mean = law.weights(p, noise)
    torch.testing.assert_close(law.mean_weights(p), mean)


class TestStart:
    R, INPUTS, OUTPUTS = 4, 101, 60

    @each
    def test_means(self, law):
        """Of many small layers, where it matters that the bias is no input: 4 inputs and 2 outputs have variance 4/6."""
        mean = law.start(5, 2, torch.arange(4000), 3, "start")["mean"]
        assert (mean[:, -1] == 0).all()
        count, wanted = mean[:, :-1].numel(), math.sqrt(4 / 6)
        assert abs(mean[:, :-1].mean()) < 4 * wanted / math.sqrt(count)
        assert mean[:, :-1].std().item() == pytest.approx(wanted, rel=4 / math.sqrt(2 * count))

    @pytest.mark.parametrize(
        ("law", "name", "centre"),
        [
            (Factorised(), "log_sd", 0.0),
            (Factorised(-3.0), "log_sd", -3.0),
            (RowColumn(), "log_row", 0.0),
            (PseudoData(2), "log_row", 0.0),
        ],
        ids=str,
    )
    def test_standard_deviations_lie_about_the_priors_but_the_biass(self, law, name, centre):
        log_sd = law.start(self.INPUTS, self.OUTPUTS, torch.arange(self.R), 3, "start")[name]
        assert (log_sd[:, -1] == -4).all()
        assert log_sd[:, :-1].mean().item() == pytest.approx(centre, abs=0.002)
        assert log_sd[:, :-1].std().item() == pytest.approx(0.01, rel=0.15)

    @pytest.mark.parametrize("law", [RowColumn(), PseudoData(2)], ids=str)
    def test_columns_have_no_bias(self, law):
        log_column = law.start(self.INPUTS, self.OUTPUTS, torch.arange(self.R), 3, "start")["log_column"]
        assert log_column.abs().max() < 0.05
        assert log_column.std().item() == pytest.approx(0.01, rel=0.2)


class TestPoint:
    def test_a_point_has_squares_and_no_volume(self):
        p, _ = case(Point())
        torch.testing.assert_close(Point().squares(p), p["mean"].square().flatten(1).sum(1))
        assert torch.equal(Point().log_det(p), torch.zeros(R).double())
        assert Point().noise_shapes(N, INPUTS, OUTPUTS) == Point().weight_noise_shapes(INPUTS, OUTPUTS) == {}

    @pytest.mark.parametrize("drop", [0.1, 0.5, 0.8])
    def test_inputs_are_dropped_as_often_as_said_and_the_bias_never(self, drop):
        mask = Point(drop).mask(normal("mask", 200_000, 2))
        assert (mask[:, -1] == 1).all()
        inputs = mask[:, :-1]
        assert set(inputs.unique().tolist()) == {0.0, 1 / (1 - drop)}
        error = math.sqrt(drop * (1 - drop) / inputs.numel())
        assert (inputs == 0).double().mean().item() == pytest.approx(drop, abs=4 * error)

    def test_one_mask_a_draw_and_one_an_example(self):
        """Weights lose whole rows; a batch loses inputs example by example."""
        law = Point(0.3)
        p, a = case(law)
        rows = law.weights(p, {"mask": torch.tensor([1.0, -9, 1, 1, -9]).double().expand(R, -1)}) / p["mean"]
        wanted = torch.tensor([1 / 0.7, 0, 1 / 0.7, 1 / 0.7, 0, 1]).double()
        torch.testing.assert_close(rows, wanted[:, None].expand(R, INPUTS, OUTPUTS))
        noise = torch.full((R, N, INPUTS - 1), 9.0).double()
        noise[:, 0] = -9  # nothing but the bias is left of the first example
        out, _ = law.forward(p, a, {"mask": noise})
        torch.testing.assert_close(out[:, 0], a[:, 0, -1:] * p["mean"][:, -1])

    @pytest.mark.parametrize("drop", [-0.1, 1.0, 1.5, math.nan])
    def test_impossible_chances_are_refused(self, drop):
        with pytest.raises(ValueError, match="the chance to drop an input must lie in"):
            Point(drop)


def test_rows_and_columns_are_a_factorised_gaussian_of_rank_one():
    """The same law, written twice; and its scale can move from rows to columns."""
    p, a = case(RowColumn())
    noise = noise_of(RowColumn().noise_shapes(N, INPUTS, OUTPUTS), R)
    flat = {"mean": p["mean"], "log_sd": p["log_row"][:, :, None] + p["log_column"][:, None, :]}
    moved = p | {"log_row": p["log_row"] + 0.8, "log_column": p["log_column"] - 0.8}
    for function in (
        lambda law, p: law.forward(p, a, noise)[0],
        lambda law, p: law.weights(p, noise_of(law.weight_noise_shapes(INPUTS, OUTPUTS), R)),
        lambda law, p: law.squares(p),
        lambda law, p: law.log_det(p),
    ):
        torch.testing.assert_close(function(RowColumn(), p), function(Factorised(), flat))
        torch.testing.assert_close(function(RowColumn(), moved), function(RowColumn(), p))


@pytest.mark.parametrize(
    ("law", "r", "c", "wanted"),
    [
        (Point(), 785, 150, 117_750),
        (Factorised(), 785, 150, 235_500),
        (RowColumn(), 785, 150, 118_685),
        (PseudoData(50, 0.01, per_entry=True), 785, 150, 166_420),
        (PseudoData(5, per_entry=True), 7, 50, 754),
        (PseudoData(5), 7, 50, 694),
    ],
    ids=str,
)
def test_numbers_learned_are_the_papers(law, r, c, wanted):
    assert sum(math.prod(shape) for shape in law.shapes(r, c).values()) == wanted
