"""Conditioning on pseudo-data against brute-force Gaussian conditioning, its noise, and what rounding may not break."""

import math

import pytest
import torch
from scipy import integrate, stats

from lib import randomness
from lib.matrix_gaussian import pseudo_data
from lib.matrix_gaussian.laws import RowColumn
from lib.matrix_gaussian.pseudo_data import JITTER, PseudoData, cholesky

R, N, INPUTS, OUTPUTS = 3, 4, 6, 3  # members, batch, inputs with the bias, outputs
LAWS = {
    "one": PseudoData(1),
    "three": PseudoData(3),
    "per entry": PseudoData(3, 0.01, per_entry=True),
    "noisy": PseudoData(2, 1.0),
}
each = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
both = pytest.mark.parametrize(
    "law", [PseudoData(3), PseudoData(3, 0.01, per_entry=True)], ids=["two", "each"]
)


def normal(purpose, *shape):
    """Standard normal numbers in float64."""
    return randomness.normal(331, torch.arange(1), purpose, 0, shape, torch.float64)[0]


def case(law, members=R, inputs=INPUTS):
    """Parameters as training may leave them, all different, and inputs with the bias."""
    p = {name: 0.6 * normal(name, members, *shape) for name, shape in law.shapes(inputs, OUTPUTS).items()}
    p["pseudo_inputs"] *= 3
    p["log_noise"] = law.bound - p["log_noise"].abs()
    a = normal("inputs", members, N, inputs)
    a[..., -1] = 1
    return p, a / math.sqrt(inputs)


def no_noise(law, members=R, inputs=INPUTS):
    shapes = law.noise_shapes(N, inputs, OUTPUTS) | law.weight_noise_shapes(inputs, OUTPUTS)
    return {name: torch.zeros(members, *shape).double() for name, shape in shapes.items()}


def conditioned(p, inputs, outputs):
    """Mean and covariance of vec W by conditioning all rc numbers at once, without the structure of rows and columns."""
    r, c = p["mean"].shape[-2:]
    prior = torch.diag_embed(
        (torch.exp(2 * p["log_row"])[:, :, None] * torch.exp(2 * p["log_column"])[:, None, :]).flatten(1)
    )
    seen = torch.stack([torch.kron(one, torch.eye(c).double()) for one in inputs])  # rows of (Ã ⊗ I) vec W
    gain = prior @ seen.mT @ torch.linalg.inv(seen @ prior @ seen.mT)
    mean = p["mean"].flatten(1)[..., None]
    mean = mean + gain @ (outputs.flatten(1)[..., None] - seen @ mean)
    return mean.view(-1, r, c), prior - gain @ seen @ prior


@each
class TestConditioning:
    def test_mean_and_covariance_are_brute_forces(self, law):
        p, _ = case(law)
        mean, covariance = conditioned(p, p["pseudo_inputs"] / math.sqrt(INPUTS), p["pseudo_outputs"])
        torch.testing.assert_close(law.mean_weights(p), mean, rtol=0, atol=1e-4)
        columns = torch.diag_embed(torch.exp(2 * p["log_column"]))
        structured = torch.stack(
            [torch.kron(u, v) for u, v in zip(law.row_covariance(p), columns, strict=True)]
        )
        torch.testing.assert_close(structured, covariance, rtol=0, atol=1e-4)

    def test_local_moments_are_brute_forces(self, law):
        """With the noise of one draw: the mean of aW and the variance of each of its columns."""
        p, a = case(law)
        noise = no_noise(law) | {"pseudo": normal("pseudo", R, law.count, INPUTS + OUTPUTS)}
        pseudo, outputs, *_ = law.noisy(p, noise)
        mean, covariance = conditioned(p, pseudo, outputs)
        centre, _ = law.forward(p, a, noise)
        shifted, _ = law.forward(p, a, noise | {"output": torch.ones(R, N, OUTPUTS).double()})
        torch.testing.assert_close(centre, a @ mean, rtol=0, atol=1e-4)
        wanted = torch.einsum(
            "rni,rijkj,rnk->rnj", a, covariance.view(R, INPUTS, OUTPUTS, INPUTS, OUTPUTS), a
        )
        torch.testing.assert_close((shifted - centre).square(), wanted, rtol=0, atol=1e-4)

    def test_row_covariance_has_rank_r_minus_m(self, law):
        """m eigenvalues are the jitter's, the others no smaller than the least of U; pseudo-inputs span the null space."""
        p, _ = case(law)
        found = law.row_covariance(p)
        values = torch.linalg.eigvalsh(found)
        least = torch.exp(2 * p["log_row"]).amin(-1)
        m = law.count
        assert (values[:, :m].abs() < 1e-4 * values[:, -1:]).all()
        assert (
            values[:, m] >= 0.99 * least
        ).all()  # interlacing: no eigenvalue lies below those of U by more than m places
        assert (found @ p["pseudo_inputs"].mT).abs().max() < 1e-4
        off = found - torch.diag_embed(found.diagonal(dim1=1, dim2=2))
        assert off.abs().amax((1, 2)).min() > 1e-2  # what the diagonal law lacks
        torch.testing.assert_close(found, found.mT)

    def test_draws_agree_with_their_pseudo_data_to_the_jitter(self, law):
        """ÃW - B̃ is -j (S + jI)⁻¹ (B̃ - ÃW₀) exactly, W₀ the draw before: nothing but the jitter j is missing."""
        p, _ = case(law)
        noise = {
            name: normal(f"draw/{name}", R, *shape)
            for name, shape in law.weight_noise_shapes(INPUTS, OUTPUTS).items()
        }
        inputs, outputs, *_ = law.noisy(p, noise)
        before = outputs - inputs @ RowColumn().weights(p, noise)
        left = outputs - inputs @ law.weights(p, noise)
        square = inputs * torch.exp(2 * p["log_row"])[:, None] @ inputs.mT
        jitter = JITTER * square.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        wanted = jitter * torch.linalg.solve(square + jitter * torch.eye(law.count), before)
        torch.testing.assert_close(left, wanted, rtol=1e-4, atol=1e-13)
        assert left.abs().max() < 1e-3 * before.abs().max()

    def test_pseudo_inputs_are_answered_with_pseudo_outputs(self, law):
        """A batch of the pseudo-inputs themselves, scaled as inputs are: outputs B̃, without variance."""
        p, _ = case(law)
        noise = no_noise(law)
        noise["output"] = torch.ones(R, law.count, OUTPUTS).double()
        out, tape = law.forward(p, p["pseudo_inputs"] / math.sqrt(INPUTS), noise)
        torch.testing.assert_close(out, p["pseudo_outputs"], rtol=0, atol=2e-2)
        noise["output"] = torch.zeros_like(noise["output"])
        out, _ = law.forward(p, p["pseudo_inputs"] / math.sqrt(INPUTS), noise)
        torch.testing.assert_close(out, p["pseudo_outputs"], rtol=0, atol=1e-4)
        assert torch.isfinite(law.backward(p, tape, torch.ones_like(out), True)[1]).all()


def test_with_as_many_pseudo_data_as_rows_nothing_is_left():
    """m = r: every draw of the weights solves the same system, the mean weights with it."""
    law = PseudoData(INPUTS)
    p, a = case(law)
    noise = no_noise(law) | {"weight": normal("weight", R, INPUTS, OUTPUTS)}
    wanted = torch.linalg.solve(p["pseudo_inputs"] / math.sqrt(INPUTS), p["pseudo_outputs"])
    for found in (law.weights(p, noise), law.mean_weights(p)):
        torch.testing.assert_close(found, wanted, rtol=0, atol=2e-2 * wanted.abs().max().item())
    noise["output"] = torch.ones(R, N, OUTPUTS).double()
    moved = law.forward(p, a, noise)[0] - law.forward(p, a, no_noise(law))[0]
    without = a.square() @ torch.exp(2 * p["log_row"])[..., None] * torch.exp(2 * p["log_column"])[:, None]
    assert (moved.square() < 1e-3 * without).all()


class TestNoise:
    def test_rank_one_or_two_numbers(self):
        """Ã (1 + exp(d_k) exp(d_i) ε) / √r and B̃ (1 + exp(d_k) exp(d_j) ε); or one σ for all of Ã, another for B̃."""
        for law in (PseudoData(2, per_entry=True), PseudoData(2)):
            p, _ = case(law, inputs=3)
            e = normal("e", R, 2, 3 + OUTPUTS)
            inputs, outputs, noise_a, noise_b = law.noisy(p, {"pseudo": e})
            log = p["log_noise"]
            for k in range(2):
                for i in range(3 + OUTPUTS):
                    sigma = log[:, k] + log[:, 2 + i] if law.per_entry else log[:, int(i >= 3)]
                    factor = sigma.exp() * e[:, k, i]
                    found = (
                        (inputs[:, k, i], noise_a[:, k, i])
                        if i < 3
                        else (outputs[:, k, i - 3], noise_b[:, k, i - 3])
                    )
                    centre = (
                        p["pseudo_inputs"][:, k, i] / 3**0.5 if i < 3 else p["pseudo_outputs"][:, k, i - 3]
                    )
                    torch.testing.assert_close(found[0], centre * (1 + factor))
                    torch.testing.assert_close(found[1], factor)

    @both
    def test_divergence_is_zero_at_the_bound_and_positive_below(self, law):
        p, _ = case(law)
        top = p | {"log_noise": torch.full_like(p["log_noise"], law.bound)}
        torch.testing.assert_close(law.noise_divergence(top), torch.zeros(R).double(), rtol=0, atol=1e-11)
        last = 0.0
        for below in (0.01, 0.1, 0.5, 1.0):
            value = law.noise_divergence(top | {"log_noise": top["log_noise"] - below})
            assert (value > last).all()
            last = value.max()
        start = law.start(INPUTS, OUTPUTS, torch.arange(R), 0, "start")
        assert law.noise_divergence(start).abs().max() < 1e-3  # float32

    @both
    def test_divergence_is_positive_for_the_largest_noise_allowed(self, law):
        """λ = 1: α up to 1, where the cubic turns; the divergence still falls all the way."""
        law = PseudoData(3, 1.0, law.per_entry)
        p, _ = case(law)
        values = torch.stack(
            [
                law.noise_divergence(p | {"log_noise": torch.full_like(p["log_noise"], -x)})
                for x in torch.linspace(0, 2, 80).tolist()
            ]
        )
        assert (values.diff(dim=0) > 0).all()

    def test_divergence_is_that_from_the_log_uniform_prior(self):
        """-KL = ½ ln α - E ln|ε| + constant, ε ~ N(1, α): differences by quadrature, to the cubic's 0.03 nats an entry."""

        def minus_kl(alpha):
            sd = alpha**0.5
            parts = [
                integrate.quad(lambda x: stats.norm.pdf(x, 1, sd) * math.log(abs(x)), low, high, limit=200)[0]
                for low, high in ((1 - 12 * sd, -1e-12), (1e-12, 1 + 12 * sd))
                if low < high
            ]
            return 0.5 * math.log(alpha) - sum(parts)

        law = PseudoData(2, 1.0)
        p, _ = case(law)
        for alpha in (0.02, 0.2, 0.6):
            half = torch.full_like(p["log_noise"], 0.5 * math.log(alpha))
            found = law.noise_divergence(p | {"log_noise": half})
            entries = 2 * (INPUTS + OUTPUTS)
            assert found[0].item() / entries == pytest.approx(minus_kl(1.0) - minus_kl(alpha), abs=0.03)

    @both
    def test_pull_is_the_divergences_derivative(self, law):
        p, _ = case(law)
        leaf = p["log_noise"].clone().requires_grad_()
        (wanted,) = torch.autograd.grad(law.noise_divergence(p | {"log_noise": leaf}).sum(), leaf)
        torch.testing.assert_close(law.noise_pull(p), wanted, rtol=1e-10, atol=1e-12)
        assert (wanted < 0).all()

    def test_inputs_and_outputs_have_their_own(self):
        """The two numbers are charged by the entries they serve: m r and m c."""
        law = PseudoData(3)
        p, _ = case(law)
        bound = torch.full_like(p["log_noise"], law.bound)
        values = []
        for i in range(2):
            moved = bound.clone()
            moved[:, i] -= 0.3
            values.append(law.noise_divergence(p | {"log_noise": moved}))
        torch.testing.assert_close(values[0] * OUTPUTS, values[1] * INPUTS)


class TestStart:
    @each
    def test_pseudo_data_are_small_and_uniform_and_noise_at_its_bound(self, law):
        found = law.start(81, 70, torch.arange(4), 3, "start")
        for name in ("pseudo_inputs", "pseudo_outputs"):
            values = found[name].flatten()
            assert values.abs().max() <= 0.01
            assert values.std().item() == pytest.approx(0.01 / 3**0.5, rel=0.1)
            assert values.mean().item() == pytest.approx(0, abs=0.001)
        assert not torch.equal(found["pseudo_inputs"].flatten()[:50], found["pseudo_outputs"].flatten()[:50])
        assert (found["log_noise"] == 0.5 * torch.tensor(law.noise).log()).all()

    @pytest.mark.parametrize("count", [0, -3])
    def test_no_pseudo_data_are_refused(self, count):
        with pytest.raises(ValueError, match=f"{count} pseudo-data: give one at least, or use RowColumn"):
            PseudoData(count)

    @pytest.mark.parametrize("noise", [0.0, 0.0003, 1.01, -1.0, math.nan, math.exp(-8)])
    def test_a_noise_outside_its_bounds_is_refused(self, noise):
        with pytest.raises(ValueError, match=r"it must lie above 0\.00034 and be at most 1"):
            PseudoData(3, noise)
        assert PseudoData(3, 0.00034).bound > pseudo_data.LOWEST_LOG_NOISE


class TestRounding:
    """float32, where the variance left after conditioning is smaller than its rounding errors."""

    def finite(self, law, p, a, noise):
        p, noise = ({name: value.float() for name, value in group.items()} for group in (p, noise))
        out, tape = law.forward(p, a.float(), noise)
        gradients, below = law.backward(p, tape, torch.ones_like(out), True)
        for value in (out, below, *gradients.values()):
            assert value.dtype == torch.float32
            assert torch.isfinite(value).all()
        assert torch.isfinite(law.weights(p, noise)).all()

    @pytest.mark.parametrize("count", [INPUTS - 1, INPUTS, INPUTS + 2])
    def test_batch_rows_as_pseudo_inputs(self, count):
        """In 300 members: with and without noise of the pseudo-data, as many as rows, and more."""
        law, members = PseudoData(count), 300
        p, a = case(law, members)
        rows = min(count, N)
        p["pseudo_inputs"][:, :rows] = a[:, :rows] * math.sqrt(INPUTS)
        noise = no_noise(law, members)
        noise["output"] = normal("output", members, N, OUTPUTS)
        self.finite(law, p, a, noise)
        self.finite(law, p, a, noise | {"pseudo": normal("pseudo", members, count, INPUTS + OUTPUTS)})

    @pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
    def test_equal_pseudo_inputs_of_any_size(self, scale):
        """S of rank one: only the jitter, which is relative, keeps it positive."""
        law, members = PseudoData(5), 100
        p, a = case(law, members)
        p["pseudo_inputs"] = (scale * p["pseudo_inputs"][:, :1]).expand(-1, 5, -1)
        noise = no_noise(law, members)
        self.finite(law, p, a, noise | {"output": normal("output", members, N, OUTPUTS)})

    def test_a_variance_below_rounding_is_rounding(self):
        """The pseudo-inputs' own rows: a deviation near sqrt(eps), never 0 or more than the jitter leaves."""
        law = PseudoData(3)
        p, _ = case(law)
        p = {name: value.float() for name, value in p.items()}
        noise = {name: value.float() for name, value in no_noise(law).items()}
        noise["output"] = torch.ones(R, law.count, OUTPUTS)
        a = p["pseudo_inputs"] / math.sqrt(INPUTS)
        centre, _ = law.forward(p, a, noise | {"output": torch.zeros(R, law.count, OUTPUTS)})
        moved = (law.forward(p, a, noise)[0] - centre) / torch.exp(p["log_column"])[:, None]
        whole = (a.square() @ torch.exp(2 * p["log_row"])[..., None]).sqrt()
        assert (moved > 0.5 * (8 * torch.finfo(torch.float32).eps) ** 0.5 * whole).all()
        assert (moved < 0.02 * whole).all()

    def test_a_variance_below_rounding_has_no_slope(self):
        """A pseudo-input far larger than the others: as an input its variance is below the floor, which has no derivative."""
        law = PseudoData(5)
        p, a = case(law)
        p["pseudo_inputs"][:, 0] *= 100
        a[:, 0] = p["pseudo_inputs"][:, 0] / math.sqrt(INPUTS)
        p, noise = ({name: value.float() for name, value in group.items()} for group in (p, no_noise(law)))
        slopes = []
        for size in (0.0, 1.0):
            noise["output"] = torch.full((R, N, OUTPUTS), size)
            out, tape = law.forward(p, a.float(), noise)
            slopes.append(law.backward(p, tape, torch.ones_like(out), True)[1])
        gap = (slopes[1] - slopes[0]).abs().amax(-1)
        assert (gap[:, 0] <= 1e-6 * slopes[0][:, 0].abs().amax(-1)).all()
        assert (gap[:, 1:] > 1e-2).all()  # elsewhere the variance has one


class TestCholesky:
    def test_is_the_factor_with_a_relative_jitter(self):
        half = normal("half", R, 4, 6)
        square = half @ half.mT
        jitter = JITTER * square.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(4).double()
        factor = cholesky(square.clone())
        torch.testing.assert_close(factor @ factor.mT, square + jitter, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(factor, factor.tril())
        torch.testing.assert_close(cholesky(1e-12 * square), 1e-6 * factor)  # the same in any unit

    def test_what_is_no_covariance_becomes_no_number_and_its_neighbours_stay(self):
        good = torch.tensor([[2.0, 1.0], [1.0, 2.0]]).double()
        bad = torch.tensor([[1.0, 2.0], [2.0, 1.0]]).double()
        broken = torch.full_like(good, math.nan)
        factor = cholesky(torch.stack([good, bad, broken, good, -good]))
        assert torch.isnan(factor[[1, 2, 4]]).all()
        assert torch.isfinite(factor[[0, 3]]).all()
        torch.testing.assert_close(factor[0], cholesky(good[None].clone())[0])

    def test_a_diverged_member_shows_and_leaves_the_others(self):
        law = PseudoData(3)
        p, a = case(law)
        p["pseudo_inputs"][1, 0, 0] = math.inf
        out, tape = law.forward(p, a, no_noise(law))
        gradients, _ = law.backward(p, tape, torch.ones_like(out), True)
        assert torch.isnan(out[1]).all()
        for value in (out, *gradients.values()):
            assert torch.isfinite(value[[0, 2]]).all()
