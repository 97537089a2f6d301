r"""Mean-field variational inference: the best Gaussian with independent weights, by the reparametrisation of activations.

$$ \begin{aligned}
   q(w) &= \prod_j N(w_j; \mu_j, \sigma_j^2), \\
   \mathcal{L} &= n\, E_q[\text{mean loss}] + T\, \mathrm{KL}(q \,\|\, N(0, 1/(n \lambda)))
   \end{aligned} $$

with $\lambda$ the recipe's weight decay and $T$ the weight of the prior's term (Graves 2011; Blundell et al. 2015). The
noise is drawn where it is cheapest and quietest, in the pre-activations (Kingma, Salimans & Welling 2015, eq. 6): given
inputs $h$, those of a linear layer are independent Gaussians,

$$ z = \mu_W h + \mu_b + \varepsilon \odot \sqrt{\sigma_W^2 h^2 + \sigma_b^2}. $$

For a convolution the same formula gives each position its right mean and variance, but draws the positions
independently, which weights shared between positions are not (as in Molchanov et al. 2017): an approximation there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from lib import randomness
from lib.params import Params
from lib.population import stacked
from lib.population.initialise import initial, member_ids
from lib.population.losses import as_targets, derivative
from lib.population.recipe import Constant, Cosine, MultiStep, Recipe
from lib.posteriors.descent import Slope, Stream, by_autograd, chain, descend, mean_loss, outputs_of
from lib.posteriors.draws import Draws
from lib.posteriors.target import ravel


@dataclass(frozen=True)
class MeanField:
    """How the Gaussian is fitted.

    sd: every weight's standard deviation at the start. 0.02: well below initial weights, or noise hides the gradient.
    temperature: T, the weight of the KL term. 1: the posterior that the recipe means; less, as most fits need (Wenzel et al. 2020).
    lr: Adam's rate. 0.03: in a thousand steps 0.01 is far from the lowest loss, and 0.1 leaves noise in the means.
    epochs: None takes the recipe's.
    schedule: Adam's rate falls to nothing, because under a constant one the means keep a noise of their own.
    """

    sd: float | int = 0.02
    temperature: float | int = 1.0
    lr: float | int = 0.03
    epochs: int | None = None
    schedule: Constant | Cosine | MultiStep = field(default_factory=Cosine)

    def __post_init__(self) -> None:
        if not (self.sd > 0 and self.lr > 0 and self.temperature >= 0):
            raise ValueError(
                f"sd = {self.sd}, lr = {self.lr}, temperature = {self.temperature}: the first two must be positive, "
                "and the third not negative."
            )


CANDIDATES = tuple(MeanField(temperature=t) for t in (1.0, 0.1, 0.01))


@dataclass(frozen=True)
class Fit:
    """R factorised Gaussians: means and standard deviations, (R, ...) under the network's names."""

    mean: Params
    sd: Params
    members: Int64[Tensor, " R"]
    record: dict


def fit(
    net: nn.Module,
    inputs: Shaped[Tensor, "N ..."],
    targets: Shaped[Tensor, "N ..."],
    recipe: Recipe,
    options: MeanField | None = None,
    *,
    members: int | range | Tensor,
    seed: int,
    device: str | torch.device = "cpu",
    start: Params | None = None,
) -> Fit:
    """Fit R Gaussians by Adam on batches of the recipe's size; ``start``: their initial means.

    Of ``recipe``: loss, batch size, weight decay (the prior's precision is n times it) and, unless the options say
    otherwise, epochs. Initial means, order of the data and noise are functions of (seed, member, step).
    Raises Diverged, UnsupportedTraining, and ValueError without weight decay: the prior would not be one.
    """
    options = options or MeanField()
    if not recipe.weight_decay > 0:
        raise ValueError(
            f"weight decay {recipe.weight_decay}: the prior N(0, 1 / (n decay)) needs a positive one in the recipe."
        )
    ids, layers, n = member_ids(members).to(device), chain(net), len(inputs)
    named = initial(net, ids, seed) if start is None else start
    shapes = {name: tensor.shape[1:] for name, tensor in named.items()}
    mean = ravel(named).detach().to(device)  # a copy
    log_sd = torch.full_like(mean, math.log(options.sd))
    x = inputs.to(device, mean.dtype)
    y = as_targets(recipe.loss, targets, outputs_of(net), mean.dtype).to(device)
    precision = n * recipe.weight_decay

    noise = {
        name: Stream(randomness.normal, seed, ids, f"mean field/{name}", mean.dtype) for name, _ in layers
    }

    def loss(weights: list[Tensor], x: Tensor, y: Tensor, step: int) -> Tensor:
        centre, variance = (named_of(flat, shapes) for flat in (weights[0], torch.exp(2 * weights[1])))
        return mean_loss(
            recipe.loss, noisy_forward(layers, centre, variance, x, lambda n, s: noise[n](step, s)), y
        )

    by_hand = all(type(layer) in (nn.Linear, *DERIVATIVES) for _, layer in layers)
    data_slope = perceptron_slope(layers, shapes, recipe.loss, noise) if by_hand else by_autograd(loss)

    def slope(weights: list[Tensor], x: Tensor, y: Tensor, step: int) -> tuple[Tensor, list[Tensor]]:
        values, gradients = data_slope(weights, x, y, step)
        for gradient, pull in zip(gradients, kl_slope(*weights, precision), strict=True):
            gradient.add_(pull, alpha=options.temperature / n)
        return values, gradients

    adam = replace(
        recipe,
        lr=options.lr,
        optimiser="adam",
        momentum=0,
        nesterov=False,
        weight_decay=0,  # the prior is in the loss
        schedule=options.schedule,
        epochs=recipe.epochs if options.epochs is None else options.epochs,
    )
    last = descend(slope, [mean, log_sd], x, y, adam, members=ids, seed=seed)
    sd, divergence = log_sd.exp(), kl(mean, log_sd, precision)
    record = asdict(options) | {
        "epochs": adam.epochs,
        "schedule": type(options.schedule).__name__,
        "loss": last.tolist(),  # of the data alone, over the last epoch
        "kl": divergence.tolist(),
        "objective": (last + options.temperature / n * divergence).tolist(),  # L / n
        "median sd": float(sd.median()),
        "prior sd": precision**-0.5,
    }
    return Fit(named_of(mean, shapes), named_of(sd, shapes), ids, record)


def named_of(flat: Float[Tensor, "R D"], shapes: dict[str, torch.Size]) -> Params:
    """Views of flat parameters under the network's names; one split, whose gradient is one concatenation."""
    parts = flat.split([shape.numel() for shape in shapes.values()], dim=1)
    return {name: part.unflatten(1, shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def noisy_forward(
    layers: list[tuple[str, nn.Module]],
    mean: Params,
    variance: Params,
    x: Shaped[Tensor, "R B ..."],
    noise: Callable[[str, tuple[int, ...]], Tensor],
) -> Float[Tensor, "R B out"]:
    """Outputs with noise in every pre-activation, its mean and variance those of the random weights.

    ``noise(layer's name, shape)`` gives standard normal numbers (R, *shape).
    """
    for name, layer in layers:
        centre = stacked.own_of(mean, name)
        if not centre:
            x = stacked.apply(layer, {}, x)
            continue
        sd = root(stacked.apply(layer, stacked.own_of(variance, name), x.square()))
        x = torch.addcmul(stacked.apply(layer, centre, x), sd, noise(name, tuple(sd.shape[1:])))
    return x


def root(variance: Float[Tensor, "R B ..."]) -> Float[Tensor, "R B ..."]:
    """The square root, with a derivative where all inputs of a bias-free unit are 0."""
    return variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt()


def perceptron_slope(
    layers: list[tuple[str, nn.Module]], shapes: dict[str, torch.Size], loss: str, noise: dict[str, Stream]
) -> Slope:
    """What autograd makes of ``noisy_forward``, by hand for Linear, ReLU and Tanh: three times faster for small networks.

    With s the root of the variance, g the gradient of a layer's outputs and d = g ε / 2s that of their variance:
    ∂W = gᵀ h, ∂σ²_W = dᵀ h², and ∂h = g W + 2 h (d σ²_W).
    """

    def slope(weights: list[Tensor], x: Tensor, y: Tensor, step: int) -> tuple[Tensor, list[Tensor]]:
        variances = torch.exp(2 * weights[1])
        mean, variance = named_of(weights[0], shapes), named_of(variances, shapes)
        h, tape = x, []
        for name, layer in layers:
            before = h
            if type(layer) is nn.Linear:
                w, b = f"{name}.weight", f"{name}.bias"
                sd = root(stacked.linear(h.square(), variance[w], variance.get(b)))
                numbers = noise[name](step, (h.shape[1], layer.out_features))
                h = stacked.linear(h, mean[w], mean.get(b)).addcmul_(sd, numbers)
                tape.append((before, numbers / sd))
            else:
                h = stacked.apply(layer, {}, h)
                tape.append((h, None))
        values = mean_loss(loss, h, y)
        g = derivative(loss, h, y, out=torch.empty_like(h)).div_(h.shape[1])

        found: dict[str, tuple[Tensor, Tensor]] = {}
        for (name, layer), (h, ratio) in zip(reversed(layers), reversed(tape), strict=True):
            if type(layer) is not nn.Linear:
                g = DERIVATIVES[type(layer)](g, h)
                continue
            w, d = f"{name}.weight", (g * ratio).mul_(0.5)
            found[w] = (g.mT @ h, d.mT @ h.square())
            found[f"{name}.bias"] = (g.sum(1), d.sum(1))
            if name != layers[0][0]:
                g = (g @ mean[w]).addcmul_(h, d @ variance[w], value=2)
        both = [torch.cat([found[name][i].flatten(1) for name in shapes], dim=1) for i in (0, 1)]
        both[1].mul_(variances).mul_(2)  # from the variance to the logarithm of its root
        return values, both

    return slope


DERIVATIVES = {  # from the gradient of an activation's output, and that output, to the gradient of its input
    nn.ReLU: lambda g, h: torch.ops.aten.threshold_backward(g, h, 0),
    nn.Tanh: lambda g, h: torch.ops.aten.tanh_backward(g, h),
}


def kl_slope(
    mean: Float[Tensor, "R D"], log_sd: Float[Tensor, "R D"], precision: float | int
) -> tuple[Float[Tensor, "R D"], Float[Tensor, "R D"]]:
    """The gradients of ``kl``: τ μ, and τ σ² - 1 in the logarithm of σ."""
    return precision * mean, torch.exp(2 * log_sd).mul_(precision).sub_(1)


def kl(
    mean: Float[Tensor, "R D"], log_sd: Float[Tensor, "R D"], precision: float | int
) -> Float[Tensor, " R"]:
    r"""KL(q || N(0, 1 / precision)) of R factorised Gaussians, in nats.

    $\tfrac12 \sum_j [\tau (\mu_j^2 + \sigma_j^2) - 1 - \log(\tau \sigma_j^2)]$ with $\tau$ the precision.
    """
    squares = mean.square().sum(1) + torch.exp(2 * log_sd).sum(1)
    constant = mean.shape[1] * (1 + math.log(precision))
    return 0.5 * (precision * squares - constant) - log_sd.sum(1)


def draw(fit: Fit, draws: int, *, seed: int) -> Draws:
    """``draws`` weight vectors of every Gaussian, mu + sigma * eps with eps drawn by counter."""
    params = {}
    for name, mean in fit.mean.items():
        shape = (draws, *mean.shape[1:])
        noise = randomness.normal(seed, fit.members, f"mean field sample/{name}", 0, shape, mean.dtype)
        params[name] = torch.addcmul(mean[:, None], fit.sd[name][:, None], noise).flatten(0, 1)
    return Draws(params, len(fit.members), draws)
