r"""A linear layer whose weights have a law, in place of ``nn.Linear``: any law of ``laws`` and ``pseudo_data``.

$$
\begin{aligned}
y &= [x, 1]\, W / \sqrt{r}, \quad W \sim q, \\
\text{loss} &= \text{nll.mean()} + \mathrm{KL}(q \,\|\, p) / N,
\end{aligned}
$$

with N the size of the training set and r the inputs of W, the bias included (Louizos & Welling 2016, in the authors' scaling). In training a pass
is noisy; in evaluation it takes the posterior mean and is deterministic, unless under ``with sampling(net):``. ::

    first = MatrixGaussianLinear(784, 150, seed=0)
    net = nn.Sequential(first, nn.ReLU(), MatrixGaussianLinear(150, 10, seed=1))
    loss = F.cross_entropy(net(x), y) + divergence(net) / N

Noise is a function of (seed, purpose, training or sampling, number of the draw) only: ``passes.generator_of``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.matrix_gaussian import gamma
from lib.matrix_gaussian.laws import Law, Parameters, Point, RowColumn, Shapes
from lib.matrix_gaussian.passes import Divergence, LocalPass, generator_of, refuse_not_finite
from lib.matrix_gaussian.pseudo_data import LOWEST_LOG_NOISE, PseudoData


class DeterministicLayer(UserWarning):
    """A layer with as many pseudo-data as inputs: given them, nothing of its weights is random."""


class MatrixGaussianLayer(nn.Module):
    """What linear and convolutional layers share: W (r x c) under a law, its noise and its divergence.

    Attributes:
        sampling: whether passes are noisy in evaluation too (see ``sampling``). draws: how many draws were made
        in training and in evaluation. It is saved with the state, so that a loaded
            layer goes on where the saved one stopped; evaluating does not shift the noise of training.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        *,
        law: Law | None,
        hyper_priors: bool,
        local: bool,
        seed: int,
        purpose: str,
    ) -> None:
        super().__init__()
        r = inputs + bias
        if min(inputs, outputs) < 1:
            raise ValueError(
                f"a layer of {inputs} inputs and {outputs} outputs: it needs one of each at least."
            )
        law = default_law(r) if law is None else law
        if not bias and isinstance(law, Point) and law.drop:
            raise ValueError(
                "Point(drop=...) never drops a layer's last row, the bias, and this layer has none: "
                "give it bias=True, or put nn.Dropout before a layer with Point()."
            )
        if isinstance(law, PseudoData) and law.count >= r:
            warnings.warn(
                f"layer {purpose!r} has {law.count} pseudo-data for {r} inputs (bias included): given as many, "
                f"weights are fixed but for the pseudo-data's noise. Take fewer than {r}, or RowColumn().",
                DeterministicLayer,
                stacklevel=3,
            )
        self.law, self.local, self.seed, self.purpose = law, local, seed, purpose
        self.r, self.c, self.has_bias, self.sampling = r, outputs, bias, False
        self.names = tuple(law.shapes(r, outputs))
        options = {"device": device, "dtype": dtype}
        for name, shape in law.shapes(r, outputs).items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape, **options)))
        if hyper_priors:  # of the precisions of rows and columns
            self.log_shape = nn.Parameter(torch.empty(2, **options))
            self.log_rate = nn.Parameter(torch.empty(2, **options))
        self.hyper_priors = hyper_priors
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The law's start, a function of (seed, purpose); precisions start at their prior, draws at 0."""
        start = self.law.start(self.r + (not self.has_bias), self.c, torch.arange(1), self.seed, self.purpose)
        for name in self.names:  # laws treat the last row as the bias: without one it is cut off
            own = getattr(self, name)
            own.copy_(start[name][0][tuple(slice(size) for size in own.shape)])
        if self.hyper_priors:
            shape, rate = gamma.PRECISION_OF_WEIGHTS
            self.log_shape.fill_(math.log(shape))
            self.log_rate.fill_(math.log(rate))
        self.draws = {"training": 0, "sampling": 0}

    @torch.no_grad()
    def set_mean(self, weight: Float[Tensor, "c ..."], bias: Float[Tensor, " c"] | None) -> None:
        """Put the posterior mean at the weights of an ordinary layer; pseudo-outputs then agree with it."""
        self.mean[: self.r - self.has_bias] = weight.flatten(1).T * math.sqrt(self.r)
        if self.has_bias:
            self.mean[-1] = 0 if bias is None else bias * math.sqrt(self.r)
        if isinstance(self.law, PseudoData):
            self.pseudo_outputs.copy_(self.law.still(self.parameters_of())[0][0] @ self.mean)

    def get_extra_state(self) -> Tensor:
        return torch.tensor(list(self.draws.values()))  # a tensor, as all of a state dict is

    def set_extra_state(self, state: Tensor) -> None:
        self.draws = dict(zip(self.draws, state.tolist(), strict=True))

    def extra_repr(self) -> str:
        flags = f"hyper_priors={self.hyper_priors}, local={self.local}"
        return f"{self.r - self.has_bias}, {self.c}, bias={self.has_bias}, law={self.law}, {flags}"

    # -------------------------------------------------------------------------------- the pass

    def parameters_of(self) -> Parameters:
        """The law's parameters with the leading axis that laws expect."""
        return {name: value[None] for name, value in zip(self.names, self.own(), strict=True)}

    def own(self) -> list[Tensor]:
        """The law's parameters, in the order of ``names``, with logarithms of noise clipped.

        The authors clip after each step of the optimiser. Here every use clips, so that nobody can forget it; through
        ``.data``, because a value in range stays as it is, and a graph already built stays valid.
        """
        if "log_noise" in self.names:
            self.log_noise.data.clamp_(LOWEST_LOG_NOISE, self.law.bound)
        return [self._parameters[name] for name in self.names]

    def noise(self, shapes: Shapes) -> Parameters:
        """The next draw's standard normal numbers, (1, *shape), from one call of one generator."""
        kind = "training" if self.training else "sampling"
        sizes = [math.prod(shape) for shape in shapes.values()]
        if not sizes:
            return {}
        generator = generator_of(self.seed, f"{self.purpose}/{kind}", self.draws[kind], self.mean.device)
        self.draws[kind] += 1
        flat = torch.randn(sum(sizes), generator=generator, dtype=self.mean.dtype, device=self.mean.device)
        return {
            name: part.view(1, *shape)
            for (name, shape), part in zip(shapes.items(), flat.split(sizes), strict=True)
        }

    def weights(self, drawn: bool = False) -> tuple[Tensor, Tensor | None]:
        """Weight (c, inputs) and bias (c,) of an ordinary layer: the posterior mean, or a draw."""
        p = self.parameters_of()
        if drawn:
            w = self.law.weights(p, self.noise(self.law.weight_noise_shapes(self.r, self.c)))
        else:
            w = self.law.mean_weights(p)
        w = w[0] * self.r**-0.5
        return (w[:-1].T, w[-1]) if self.has_bias else (w.T, None)

    def noisy_rows(self, x: Float[Tensor, "N inputs"]) -> Float[Tensor, "N c"]:
        """Pre-activations by the local reparametrisation, every row with noise of its own."""
        noise = self.noise(self.law.noise_shapes(len(x), self.r, self.c))
        return LocalPass.apply(self.law, noise, self.has_bias, self.names, x, *self.own())

    def apply_weights(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError

    def apply_noisy(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Float[Tensor, ...]) -> Float[Tensor, ...]:
        """Noisy in training and under ``sampling``, else of the mean weights. Raises NotFinite, ValueError."""
        if x.dtype != self.mean.dtype:
            raise ValueError(
                f"inputs of {x.dtype} for a layer of {self.mean.dtype}: convert one of the two, "
                "x.to(...) or layer.to(...)."
            )
        if not (self.training or self.sampling):
            out = self.apply_weights(x, *self.weights())
        elif self.local:
            out = self.apply_noisy(x)
        else:
            out = self.apply_weights(x, *self.weights(drawn=True))
        refuse_not_finite(out.detach(), x, self.purpose)
        return out

    # -------------------------------------------------------------------------------- the divergence

    def divergence(self) -> Float[Tensor, ""]:
        r"""KL of the layer from its prior in nats, differentiable once; divide it by N beside a mean loss.

        $\tfrac12 (\rho E\|W\|^2 - \ln\det\Sigma - rc - rc\, E \ln \tau_r \tau_c)$ and that of the pseudo-data's
        noise. The prior is MN(0, I, I), or with ``hyper_priors`` MN(0, I/τ_r, I/τ_c): then $\rho = E\tau_r\,
        E\tau_c$, and the KL of both precisions are in it. With pseudo-data it charges the law before it is
        conditioned: the paper's objective, not a bound.
        """
        size, own = self.r * self.c, self.own()
        if not self.hyper_priors:
            return Divergence.apply(self.law, self.names, self.mean.new_ones(()), *own) - 0.5 * size
        q = gamma.Gammas(self.log_shape, self.log_rate)
        shape, rate = self.log_shape.new_tensor(gamma.PRECISION_OF_WEIGHTS)
        of_weights = Divergence.apply(self.law, self.names, q.mean.prod(), *own)
        return of_weights - 0.5 * size * (1 + q.mean_log.sum()) + gamma.kl(q, shape, rate).sum()


class MatrixGaussianLinear(MatrixGaussianLayer):
    """``nn.Linear`` with a law of its weights; inputs (..., in_features), of any leading shape.

    Args:
        law: of W. None: ``default_law``.
        hyper_priors: learn the precisions of the prior, τ_r and τ_c, under Gamma(1, 0.5) each.
        local: noise in the pre-activations, row by row; False: one draw of W a batch.
        seed, purpose: of start and noise; two layers of a network must differ in one of them.
    Warns DeterministicLayer. Raises ValueError.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        law: Law | None = None,
        hyper_priors: bool = False,
        local: bool = True,
        seed: int,
        purpose: str = "layer",
    ) -> None:
        super().__init__(
            in_features, out_features, bias, device, dtype,
            law=law, hyper_priors=hyper_priors, local=local, seed=seed, purpose=purpose,
        )  # fmt: skip
        self.in_features, self.out_features = in_features, out_features

    def apply_weights(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return nn.functional.linear(self._checked(x), weight, bias)

    def apply_noisy(self, x: Tensor) -> Tensor:
        if self._checked(x).ndim == 2:
            return self.noisy_rows(x)
        return self.noisy_rows(x.reshape(-1, self.in_features)).view(*x.shape[:-1], self.c)

    def _checked(self, x: Tensor) -> Tensor:
        if x.ndim < 1 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"inputs of shape {tuple(x.shape)} for a layer of {self.in_features} inputs: "
                f"their last axis must have length {self.in_features}."
            )
        return x


def default_law(r: int) -> Law:
    """Five pseudo-data, as in the authors' regression, but at most half of the inputs: half of W stays free."""
    return PseudoData(min(5, r // 2)) if r > 1 else RowColumn()


def layers_of(net: nn.Module) -> dict[str, MatrixGaussianLayer]:
    """The matrix Gaussian layers by name, each once. Raises ValueError where two share their noise."""
    found = {name: m for name, m in net.named_modules() if isinstance(m, MatrixGaussianLayer)}
    first: dict[tuple[int, str], str] = {}
    for name, layer in found.items():
        other = first.setdefault((layer.seed, layer.purpose), name)
        if other != name:
            raise ValueError(
                f"layers {other!r} and {name!r} have the same seed {layer.seed} and purpose {layer.purpose!r}, "
                "hence the same noise: give one another seed or purpose."
            )
    return found


def divergence(net: nn.Module) -> Float[Tensor, ""]:
    """The sum of the layers' divergences in nats: loss = nll.mean() + divergence(net) / N, N the training set's

    Raises ValueError for a network without such layers, and where two layers share their noise.
    """
    layers = layers_of(net).values()
    if not layers:
        raise ValueError(f"{type(net).__name__} has no matrix Gaussian layer: call bayesianize(net).")
    return torch.stack([layer.divergence() for layer in layers]).sum()


@contextmanager
def sampling(net: nn.Module) -> Iterator[nn.Module]:
    """Within it passes are noisy in evaluation too: ``torch.stack([net(x) for _ in range(100)])`` predicts.

    With ``local`` layers different examples have independent noise: right for each, no common function of x.
    """
    layers = layers_of(net).values()
    before = [layer.sampling for layer in layers]
    try:
        for layer in layers:
            layer.sampling = True
        yield net
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer.sampling = was
