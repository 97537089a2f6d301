r"""A perceptron whose layers have laws, for R runs at once: its parameters in one flat tensor, its objective and its gradient.

The paper's objective per example (maximised there, its negative minimised here) is the mean loss of a batch under one draw, plus

$$
\begin{aligned}
\tfrac1N \sum_{\text{layers}} \Big\{ & \mathrm{KL}(q(W) \,\|\, \mathrm{MN}(0, I/\tau_r, I/\tau_c)) \\
& + \mathrm{KL}(q(\tau_r) q(\tau_c) \,\|\, p) + \mathrm{KL}_{\text{pseudo-data}} \Big\} \\
& + \tfrac1N \mathrm{KL}(q(\tau) \,\|\, p(\tau)).
\end{aligned}
$$

With learned prior precisions the factor ρ of the weights' prior becomes Eτ_r Eτ_c, and its logarithm E ln τ_r + E ln τ_c.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from lib.matrix_gaussian import gamma
from lib.matrix_gaussian.gamma import PRECISION_OF_WEIGHTS, Gammas
from lib.matrix_gaussian.laws import Law, Parameters, Point
from lib.matrix_gaussian.likelihoods import Categorical, Likelihood
from lib.matrix_gaussian.pseudo_data import LOWEST_LOG_NOISE, PseudoData


@dataclass(frozen=True)
class Terms:
    """Of R runs: 1/N and charge/N (R, 1), shapes and rates of the Gamma priors, and the constant part of the gradient.

    ``entropy`` (R, D): of -½ ln det Σ; ``of_log`` (R, layers): of the prior's E ln τ_r and E ln τ_c; both charged.
    """

    weight: Tensor
    charged: Tensor
    shape: Tensor
    rate: Tensor
    entropy: Tensor
    of_log: Tensor


@dataclass(frozen=True)
class Bound:
    """A network's parameters as views of one flat tensor, and the exponentials of its logarithms, taken for all layers at once."""

    layers: list[Parameters]
    precisions: Gammas
    logs: Tensor
    sd: Tensor
    variance: Tensor
    bounded: list[tuple[Tensor, float]]

    def refresh(self) -> None:
        """Take the exponentials afresh, after the flat tensor has changed."""
        torch.exp(self.logs, out=self.sd)
        torch.square(self.sd, out=self.variance)

    def clip(self) -> None:
        """Keep the logarithms of the pseudo-data's noise inside their bounds, after every step."""
        for logs, highest in self.bounded:
            logs.clamp_(LOWEST_LOG_NOISE, highest)


@dataclass(frozen=True)
class Network:
    """Layers of ``widths`` (inputs, hidden ..., outputs), rectified between them, each with its law.

    ``hyper_priors``: every layer learns the precisions of its prior; otherwise the prior is MN(0, I, I). ``charge``: the weight of the
    weights' divergence. 1: the paper's objective; below: a cold posterior (Wenzel et al. 2020); 0: maximum likelihood for a ``Point``.
    """

    widths: tuple[int, ...]
    laws: tuple[Law, ...]
    likelihood: Likelihood
    hyper_priors: bool = True
    charge: float = 1.0

    def __post_init__(self) -> None:
        if len(self.widths) < 2 or len(self.laws) != len(self.widths) - 1:
            raise ValueError(
                f"{len(self.laws)} laws for widths {self.widths}: give one law for each pair of neighbouring widths."
            )

    @staticmethod
    def of(
        law: Law,
        widths: Sequence[int],
        likelihood: Likelihood,
        hyper_priors: bool = True,
        charge: float = 1.0,
    ) -> Network:
        """The same law in every layer; inputs of the first layer are never dropped."""
        laws = [law] * (len(widths) - 1)
        if isinstance(law, Point) and law.drop:
            laws[0] = Point()
        return Network(tuple(widths), tuple(laws), likelihood, hyper_priors, charge)

    # ------------------------------------------------------------------------------------------------ the flat layout

    def sizes(self, layer: int) -> tuple[int, int]:
        """r (with the bias) and c of a layer."""
        return self.widths[layer] + 1, self.widths[layer + 1]

    @cached_property
    def gammas(self) -> int:
        """How many Gamma precisions: two a layer with hyper-priors, and the likelihood's."""
        return 2 * len(self.laws) * self.hyper_priors + self.likelihood.precisions(self.widths[-1])

    @cached_property
    def places(self) -> dict[tuple[int, str] | str, tuple[slice, tuple[int, ...]]]:
        """Where each parameter lies in the flat tensor, and its shape: logarithms behind all others, in them ``"gammas"``."""
        shapes = {
            (i, name): shape
            for i, law in enumerate(self.laws)
            for name, shape in law.shapes(*self.sizes(i)).items()
        }
        plain = [key for key in shapes if not key[1].startswith("log_")]
        logs = [key for key in shapes if key[1].startswith("log_")]
        found, end = {}, 0
        for key in [*plain, *logs, "gammas"]:
            shape = (2, self.gammas) if key == "gammas" else shapes[key]
            found[key] = (slice(end, end + math.prod(shape)), shape)
            end += math.prod(shape)
        return found

    @cached_property
    def logs(self) -> int:
        """Where the logarithms begin."""
        first = next(key for key in self.places if key == "gammas" or key[1].startswith("log_"))
        return self.places[first][0].start

    @property
    def size(self) -> int:
        """Numbers that a run learns."""
        return max(place.stop for place, _ in self.places.values())

    def parameters(self, flat: Float[Tensor, "R D"]) -> list[Parameters]:
        """Each layer's parameters as views of the flat tensor."""
        found: list[Parameters] = [{} for _ in self.laws]
        for (layer, name), (place, shape) in ((k, v) for k, v in self.places.items() if k != "gammas"):
            found[layer][name] = flat[:, place].unflatten(1, shape)
        return found

    def precisions(self, flat: Float[Tensor, "R D"]) -> Gammas:
        """The Gammas: τ_r of every layer, τ_c of every layer, then those of the noise."""
        place, shape = self.places["gammas"]
        return Gammas(*flat[:, place].unflatten(1, shape).unbind(1))

    def noise_precisions(self, flat: Float[Tensor, "R D"]) -> Gammas:
        """q(τ) of the outputs' noise (R, k), in standardised units."""
        every, first = self.precisions(flat), 2 * len(self.laws) * self.hyper_priors
        return Gammas(every.log_shape[:, first:], every.log_rate[:, first:])

    def prior(self, unit: Float[Tensor, "R k"]) -> tuple[Tensor, Tensor]:
        """Shapes and rates (R, G) of all Gamma priors, where the outputs are in units of ``unit`` of the target.

        A precision in raw units is that in standardised ones over unit²: the unit only moves the prior's rate.
        """
        weights = 2 * len(self.laws) * self.hyper_priors
        shape = torch.full((len(unit), self.gammas), PRECISION_OF_WEIGHTS[0]).to(unit)
        rate = torch.full_like(shape, PRECISION_OF_WEIGHTS[1])
        if not isinstance(self.likelihood, Categorical):
            shape[:, weights:], rate[:, weights:] = self.likelihood.prior
            if self.likelihood.prior_scale == "raw":
                rate[:, weights:] /= unit.square()
        return shape, rate

    def start(
        self, members: Int64[Tensor, " R"], unit: Float[Tensor, "R k"], seed: int
    ) -> Float[Tensor, "R D"]:
        """Where training starts: weights by their laws, Gammas at their priors."""
        layers = [law.start(*self.sizes(i), members, seed, f"start/{i}") for i, law in enumerate(self.laws)]
        parts = {
            key: torch.stack([part.log() for part in self.prior(unit)], dim=1)
            if key == "gammas"
            else layers[key[0]][key[1]]
            for key in self.places
        }
        return torch.cat([part.flatten(1).to(unit) for part in parts.values()], dim=1)

    # ------------------------------------------------------------------------------------------------------- the slope

    def terms(self, counts: Int64[Tensor, " R"], unit: Float[Tensor, "R k"]) -> Terms:
        """What of the objective stays the same from step to step."""
        weight = (1 / counts.to(unit))[:, None]
        entropy = torch.zeros(len(unit), self.size).to(unit)
        for i, law in enumerate(self.laws):
            for name, slope in law.log_det_slope(*self.sizes(i)).items():
                entropy[:, self.places[i, name][0]] = -0.5 * slope
        entries = torch.tensor([float(r * c) for r, c in map(self.sizes, range(len(self.laws)))]).to(unit)
        charged = self.charge * weight
        return Terms(weight, charged, *self.prior(unit), entropy * charged, -0.5 * charged * entries)

    def bind(self, flat: Float[Tensor, "R D"]) -> Bound:
        """Views of a flat tensor that is then changed in place."""
        layers, first = self.parameters(flat), self.logs
        sd, variance = torch.empty_like(flat[:, first:]), torch.empty_like(flat[:, first:])
        for (layer, name), (place, shape) in ((k, v) for k, v in self.places.items() if k != "gammas"):
            if place.start >= first:
                where = slice(place.start - first, place.stop - first)
                layers[layer][name + ".sd"] = sd[:, where].unflatten(1, shape)
                layers[layer][name + ".variance"] = variance[:, where].unflatten(1, shape)
        bounded = [
            (layers[i]["log_noise"], law.bound)
            for i, law in enumerate(self.laws)
            if isinstance(law, PseudoData)
        ]
        return Bound(layers, self.precisions(flat), flat[:, first:], sd, variance, bounded)

    def slope(
        self,
        bound: Bound,
        inputs: Float[Tensor, "R B r"],
        targets: Shaped[Tensor, "R B ..."],
        noise: dict[tuple[int, str], Tensor],
        terms: Terms,
    ) -> tuple[Float[Tensor, " R"], Float[Tensor, "R D"]]:
        """Each run's mean loss on its batch, and the gradient of loss + ``divergence`` / N; ``inputs`` are ``prepared``."""
        bound.refresh()
        layers, q, depth = bound.layers, bound.precisions, len(self.laws)
        mean, mean_log = q.mean, q.mean_log
        tapes, activations = [], [inputs]
        for i, (law, p) in enumerate(zip(self.laws, layers, strict=True)):
            drawn = {name: numbers for (layer, name), numbers in noise.items() if layer == i}
            out, tape = law.forward(p, activations[-1], drawn)
            tapes.append(tape)
            if i < depth - 1:
                activations.append(prepared(out.relu_()))
        first = 2 * depth * self.hyper_priors
        value, g, of_mean, of_log = self.likelihood.slope(out, targets, mean[:, first:], mean_log[:, first:])

        factor = terms.charged
        if self.hyper_priors:
            factor = terms.charged * mean[:, :depth] * mean[:, depth:first]
        factors = factor.expand(-1, depth).unbind(1)
        found: dict[tuple[int, str] | str, Tensor] = {}
        squares = []
        for i in reversed(range(depth)):
            law, p = self.laws[i], layers[i]
            gradients, g = law.backward(p, tapes[i], g, i > 0)
            if i > 0:  # through the rectifier and the scaling
                alive = activations[i][..., :-1]
                g = torch.ops.aten.threshold_backward(g[..., :-1], alive, 0).mul_(self.sizes(i)[0] ** -0.5)
            squares.insert(0, law.add_pull(p, factors[i], gradients))
            if isinstance(law, PseudoData):
                gradients["log_noise"].addcmul_(law.noise_pull(p), terms.charged)
            found |= {(i, name): gradient for name, gradient in gradients.items()}
        if self.gammas:
            if self.hyper_priors:
                half = torch.stack(squares, dim=1).mul_(0.5 * terms.charged)
                of_mean = torch.cat([half * mean[:, depth:first], half * mean[:, :depth], of_mean], dim=1)
                of_log = torch.cat([terms.of_log, terms.of_log, of_log], dim=1)
            found["gammas"] = gamma.slope(q, mean, of_mean, of_log, terms.weight, terms.shape, terms.rate)
        gradient = torch.cat([found[key].flatten(1) for key in self.places if key in found], dim=1)
        return value, gradient.add_(terms.entropy)

    def divergence(self, flat: Float[Tensor, "R D"], prior: tuple[Tensor, Tensor]) -> Float[Tensor, " R"]:
        """What the objective charges beside the data, N times its second part, in nats.

        For pseudo-data this is not the divergence of the law that the forward pass uses, see `lib.matrix_gaussian.pseudo_data`.
        A ``Point`` has none: its entry is minus the logarithm of the prior's density.
        """
        layers, q, depth = self.parameters(flat), self.precisions(flat), len(self.laws)
        total = gamma.kl(q, *prior).sum(1)
        mean, mean_log = q.mean, q.mean_log
        for i, (law, p) in enumerate(zip(self.laws, layers, strict=True)):
            r, c = self.sizes(i)
            precision, log = 1.0, 0.0
            if self.hyper_priors:
                precision = mean[:, i] * mean[:, depth + i]
                log = mean_log[:, i] + mean_log[:, depth + i]
            entries = r * c * (not isinstance(law, Point))
            kl = 0.5 * (precision * law.squares(p) - law.log_det(p) - entries - r * c * log)
            if isinstance(law, PseudoData):
                kl = kl + law.noise_divergence(p)
            total = total + self.charge * kl
        return total


def prepared(x: Float[Tensor, "*R N d"]) -> Float[Tensor, "*R N r"]:
    """[x, 1] / √r, what a layer reads."""
    scale = (x.shape[-1] + 1) ** -0.5
    return torch.nn.functional.pad(x * scale, (0, 1), value=scale)
