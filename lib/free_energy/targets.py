r"""What a tempered sampler needs to know of a network and its problems: the likelihood at any temperature.

A *target* is a family of densities $\pi_t(\theta) \propto N(\theta; 0, \mathrm{scale}^2)\, \ell_t(\theta)$ over positions
(R problems, P particles, D), from the prior ($t = 0$) on. Three of them share their verbs:

``statistics(position)``            what of a position matters at every temperature (computed once);
``log_likelihood(statistics, t)``   log ell_t, (R, P); t is (R, 1);
``energy(statistics, t)``           minus its derivative in t: the energy E, or its mean where output weights are integrated out;
``spread(statistics, t)``           the variance of E that is integrated out (0 where nothing is);
``gradient(position, t)``           log ell_t and its gradient in the position;
``dead(position)``                  which hidden units are zero at every point that counts;
``footprint``                       about how many numbers one gradient of one network touches (for chunks that fit a cache).

`Whole` keeps all parameters of any network, so that log ell_t = -t E. `Collapsed` integrates the output layer out: fewer
dimensions, no stiff output scale, and energies with less noise. Networks with one input and one hidden layer take their
moments from `lib.free_energy.hinges`, others visit the points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib.free_energy import ridge
from lib.free_energy.features import Layers, moments_on_points, through
from lib.free_energy.hinges import Hinges, Tables, active, hinges, tables
from lib.free_energy.regression import Regression


@runtime_checkable
class Target(Protocol):
    """The verbs above, with the prior's scale (D,) and the number of problems R."""

    layers: Layers
    scale: Float[Tensor, " D"]
    problems: int
    collapsed: bool
    footprint: int

    def statistics(self, position: Float[Tensor, "R P D"]) -> Any: ...

    def log_likelihood(self, statistics: Any, t: Float[Tensor, "R 1"]) -> Float[Tensor, "R P"]: ...

    def energy(self, statistics: Any, t: Float[Tensor, "R 1"]) -> Float[Tensor, "R P"]: ...

    def spread(self, statistics: Any, t: Float[Tensor, "R 1"]) -> Float[Tensor, "R P"]: ...

    def gradient(
        self, position: Float[Tensor, "R P D"], t: Float[Tensor, "R 1"]
    ) -> tuple[Tensor, Tensor]: ...

    def dead(self, position: Float[Tensor, "R P D"]) -> Bool[Tensor, "R P U"]: ...


# Numbers that one piece of work may touch at a time: a core's second-level cache, a card.
CACHE = {"cpu": 1 << 17, "cuda": 1 << 28}


def chunk_size(target: Target, device: torch.device) -> int:
    """How many particles of each problem make a piece of work that fits the device's cache, sixteen at least."""
    return max(16, CACHE.get(device.type, CACHE["cuda"]) // (target.problems * target.footprint))


def gradient_in_chunks(
    target: Target, position: Float[Tensor, "R P D"], t: Float[Tensor, "R 1"]
) -> tuple[Float[Tensor, "R P"], Float[Tensor, "R P D"]]:
    """``target.gradient``, particles taken a cacheful at a time."""
    parts = [target.gradient(part, t) for part in position.split(chunk_size(target, position.device), dim=1)]
    return torch.cat([value for value, _ in parts], 1), torch.cat([slope for _, slope in parts], 1)


def prior_scale(layers: Layers, weight: float, bias: float) -> Float[Tensor, " D"]:
    """The prior's standard deviation of every parameter of ``layers``; refuses one that is not positive."""
    if not (weight > 0 and bias > 0):
        raise ValueError(
            f"the prior's standard deviations are {weight} (weights) and {bias} (biases): a prior of zero variance leaves "
            "nothing to integrate over; make both positive."
        )
    scale = torch.empty(layers.dimension, dtype=torch.float64)
    for w, b in layers.split(scale):
        w.fill_(weight)
        if b is not None:
            b.fill_(bias)
    return scale


@dataclass(frozen=True)
class Whole:
    """All parameters of a network, its output layer too; log ell_t = -t (E - truth)."""

    problem: Regression
    layers: Layers
    scale: Float[Tensor, " D"]
    collapsed: ClassVar[bool] = False

    @property
    def footprint(self) -> int:
        return sum(self.layers.widths[1:]) * self.problem.inputs.shape[1]

    @property
    def problems(self) -> int:
        return len(self.problem)

    def _residual(self, values: list[Tensor]) -> Tensor:
        return values[-1] - self.problem.targets.mT[:, None]

    def statistics(self, position: Float[Tensor, "R P D"]) -> Float[Tensor, "R P"]:
        residual = self._residual(self.layers.forward(position, self.problem.inputs, last=False))
        weights = self.problem.weights[:, None, None]
        return 0.5 * (weights * residual.square()).sum((2, 3)) - self.problem.truth[:, None]

    def log_likelihood(self, statistics: Tensor, t: Tensor) -> Float[Tensor, "R P"]:
        return -t * statistics

    def energy(self, statistics: Tensor, t: Tensor) -> Float[Tensor, "R P"]:
        return statistics

    def spread(self, statistics: Tensor, t: Tensor) -> Float[Tensor, "R P"]:
        return torch.zeros_like(statistics)

    def gradient(self, position: Float[Tensor, "R P D"], t: Tensor) -> tuple[Tensor, Tensor]:
        values = self.layers.forward(position, self.problem.inputs, last=False)
        residual = self._residual(values)
        weighted = residual * (-t[..., None, None] * self.problem.weights[:, None, None])
        value = 0.5 * (weighted * residual).sum((2, 3)) + t * self.problem.truth[:, None]
        return value, self.layers.backward(position, values, weighted, last=False)

    def dead(self, position: Float[Tensor, "R P D"]) -> Bool[Tensor, "R P U"]:
        return _dead_on_points(self, position, slice(1, -1))


@dataclass(frozen=True)
class WholeHinges:
    """`Whole` for one input, one hidden ReLU layer, one output, in a time that does not depend on the number of points."""

    tables: Tables
    truth: Float[Tensor, "R 1"]
    layers: Layers
    scale: Float[Tensor, " D"]
    collapsed: ClassVar[bool] = False

    @property
    def footprint(self) -> int:
        return 3 * (self.layers.widths[1] + 1) ** 2

    @property
    def problems(self) -> int:
        return len(self.truth)

    def _parts(self, position: Tensor) -> tuple[Hinges, Tensor, Tensor]:
        hidden = self.layers.widths[1]
        units = position.permute(2, 0, 1)
        found = hinges(self.tables, units[:hidden], units[hidden : 2 * hidden])
        output = units[
            2 * hidden :
        ].contiguous()  # output weights, then the output bias: the constant's weight
        return found, output, (found.moments.gram * output[None]).sum(1) - found.moments.cross[:, 0]

    def _energy(self, found: Hinges, output: Tensor, pull: Tensor) -> Tensor:
        misfit = (output * (pull - found.moments.cross[:, 0])).sum(0)
        return 0.5 * (found.moments.power + misfit) - self.truth

    def statistics(self, position: Float[Tensor, "R P D"]) -> Float[Tensor, "R P"]:
        return self._energy(*self._parts(position))

    log_likelihood = Whole.log_likelihood
    energy = Whole.energy
    spread = Whole.spread

    def gradient(self, position: Float[Tensor, "R P D"], t: Tensor) -> tuple[Tensor, Tensor]:
        found, output, pull = self._parts(position)
        weight, bias = found.pull(-0.5 * t * output[:, None] * output[None], t * output[:, None])
        slope = torch.cat([weight, bias, -t * pull]).permute(1, 2, 0)
        return -t * self._energy(found, output, pull), slope

    def dead(self, position: Float[Tensor, "R P D"]) -> Bool[Tensor, "R P U"]:
        return _dead_hinges(self, position)


class OutputIntegrated:
    """What targets share whose statistics are the moments of their features; they hold ``truth`` (R, 1)."""

    collapsed: ClassVar[bool] = True

    def log_likelihood(self, statistics: ridge.Moments, t: Tensor) -> Float[Tensor, "R P"]:
        return ridge.log_evidence(statistics, t) + t * self.truth

    def energy(self, statistics: ridge.Moments, t: Tensor) -> Float[Tensor, "R P"]:
        return ridge.energy(statistics, ridge.posterior(statistics, t)) - self.truth

    def spread(self, statistics: ridge.Moments, t: Tensor) -> Float[Tensor, "R P"]:
        return ridge.energy_variance(statistics, ridge.posterior(statistics, t))


@dataclass(frozen=True)
class Collapsed(OutputIntegrated):
    """Hidden layers of any depth; the output layer (with a bias where the layers have one) is integrated out.

    ``layers`` end at the last hidden layer; ``output_scale`` (k, 1) is the prior's standard deviation of the output weights
    of the k features.
    """

    problem: Regression
    layers: Layers
    scale: Float[Tensor, " D"]
    output_scale: Float[Tensor, "k 1"]

    @property
    def truth(self) -> Float[Tensor, "R 1"]:
        return self.problem.truth[:, None]

    @property
    def footprint(self) -> int:
        return sum(self.layers.widths[1:]) * self.problem.inputs.shape[1]

    @property
    def problems(self) -> int:
        return len(self.problem)

    def features(self, position: Float[Tensor, "R P D"]) -> Float[Tensor, "R P k N"]:
        """The last hidden layer's values and a constant, in units of the output weights' prior."""
        return self._values(position)[1]

    def _values(self, position: Tensor) -> tuple[list[Tensor], Tensor]:
        values = self.layers.forward(position, self.problem.inputs, last=True)
        hidden = values[-1]
        features = hidden.new_ones(*hidden.shape[:2], len(self.output_scale), hidden.shape[3])
        features[:, :, : hidden.shape[2]] = hidden
        return values, features.mul_(self.output_scale)

    def statistics(self, position: Float[Tensor, "R P D"]) -> ridge.Moments:
        gram, cross = moments_on_points(self.features(position), self.problem)
        return ridge.Moments(gram, cross, self.problem.power[:, None])

    def gradient(self, position: Float[Tensor, "R P D"], t: Tensor) -> tuple[Tensor, Tensor]:
        values, features = self._values(position)
        gram, cross = moments_on_points(features, self.problem)
        moments = ridge.Moments(gram, cross, self.problem.power[:, None])
        known = ridge.posterior(moments, t)
        by_gram, by_cross = ridge.slopes(moments, t, known)
        hidden = self.layers.widths[-1]  # the constant behind them has no parameters
        slope = through(2 * by_gram[:hidden].permute(2, 3, 0, 1), features)
        slope += through(by_cross[:hidden].permute(2, 3, 0, 1), self.problem.targets.mT[:, None])
        slope *= self.output_scale[:hidden] * self.problem.weights[:, None, None]
        value = ridge.value(moments, t, known) + t * self.truth
        return value, self.layers.backward(position, values, slope, last=True)

    def dead(self, position: Float[Tensor, "R P D"]) -> Bool[Tensor, "R P U"]:
        return _dead_on_points(self, position, slice(1, None))


@dataclass(frozen=True)
class CollapsedHinges(OutputIntegrated):
    """`Collapsed` for one input, one hidden ReLU layer, one output, in a time that does not depend on the number of points."""

    tables: Tables
    truth: Float[Tensor, "R 1"]
    layers: Layers
    scale: Float[Tensor, " D"]

    @property
    def footprint(self) -> int:
        return 3 * (self.layers.widths[1] + 1) ** 2

    @property
    def problems(self) -> int:
        return len(self.truth)

    def _hinges(self, position: Tensor) -> Hinges:
        units = position.permute(2, 0, 1)
        hidden = self.layers.widths[1]
        return hinges(self.tables, units[:hidden], units[hidden:])

    def statistics(self, position: Float[Tensor, "R P D"]) -> ridge.Moments:
        return self._hinges(position).moments

    def gradient(self, position: Float[Tensor, "R P D"], t: Tensor) -> tuple[Tensor, Tensor]:
        found = self._hinges(position)
        known = ridge.posterior(found.moments, t)
        weight, bias = found.pull(*ridge.slopes(found.moments, t, known))
        value = ridge.value(found.moments, t, known) + t * self.truth
        return value, torch.cat([weight, bias]).permute(1, 2, 0)

    def dead(self, position: Float[Tensor, "R P D"]) -> Bool[Tensor, "R P U"]:
        return _dead_hinges(self, position)


def _dead_on_points(target: Whole | Collapsed, position: Tensor, hidden: slice) -> Tensor:
    """Dead units of all hidden layers, in order."""
    values = target.layers.forward(position, target.problem.inputs, last=target.collapsed)[hidden]
    counts = target.problem.weights > 0
    return torch.cat([~((layer != 0) & counts[:, None, None]).any(-1) for layer in values], dim=2)


def _dead_hinges(target: WholeHinges | CollapsedHinges, position: Tensor) -> Tensor:
    units = position.permute(2, 0, 1)
    hidden = target.layers.widths[1]
    first, end = active(target.tables, units[:hidden], units[hidden : 2 * hidden])
    return (first >= end).permute(1, 2, 0)


def target(
    problem: Regression,
    widths: tuple[int, ...],
    *,
    collapsed: bool = True,
    weight_scale: float = 1.0,
    bias_scale: float = 1.0,
    bias: bool = True,
    activation: str = "relu",
) -> Target:
    """The target of a network with these widths (input, hidden ..., output) under the prior N(0, scale²) on every parameter.

    ``collapsed`` integrates the output layer out, exactly. Raises ValueError for widths that do not fit the problem and for a
    prior of zero variance.
    """
    inputs, outputs = problem.inputs.shape[2], problem.targets.shape[2]
    if (widths[0], widths[-1]) != (inputs, outputs):
        raise ValueError(
            f"the network's widths {widths} do not fit problems with {inputs} inputs and {outputs} outputs: begin with "
            f"{inputs} and end with {outputs}."
        )
    if collapsed and len(widths) < 3:
        raise ValueError(
            "without a hidden layer nothing is left when the output layer is integrated out: pass collapsed=False."
        )
    layers = Layers(tuple(widths[:-1] if collapsed else widths), bias, activation)
    scale = prior_scale(layers, weight_scale, bias_scale).to(problem.inputs)
    by_hinges = len(widths) == 3 and (inputs, outputs) == (1, 1) and bias and activation == "relu"
    if not collapsed:
        if by_hinges:
            return WholeHinges(tables(problem), problem.truth[:, None], layers, scale)
        return Whole(problem, layers, scale)
    if by_hinges and weight_scale == bias_scale == 1.0:
        return CollapsedHinges(tables(problem), problem.truth[:, None], layers, scale)
    output = problem.inputs.new_full((layers.widths[-1] + bias, 1), weight_scale)
    if bias:
        output[-1] = bias_scale
    return Collapsed(problem, layers, scale, output)
