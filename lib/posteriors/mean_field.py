r"""Mean-field variational inference: the best Gaussian with independent weights, by the reparametrisation of activations.

$$ q(w) = \prod_j N(w_j; \mu_j, \sigma_j^2), \qquad
   \mathcal{L} = n\, E_q[\text{mean loss}] + T\, \mathrm{KL}(q \,\|\, N(0, 1/(n \lambda))) $$

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
from lib.population.losses import as_targets
from lib.population.recipe import Constant, Cosine, MultiStep, Recipe
from lib.posteriors.descent import Stream, chain, descend, mean_loss, outputs_of
from lib.posteriors.draws import Draws
from lib.posteriors.target import ravel


@dataclass(frozen=True)
class MeanField:
    """How the Gaussian is fitted.

    sd: every weight's standard deviation at the start. 0.02: well below initial weights, or noise hides the gradient.
    temperature: T, the weight of the KL term. 1 is the posterior that the recipe means; below it the prior counts less,
        as most Gaussian fits to networks of real size need (Wenzel et al. 2020).
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


CANDIDATES = tuple(MeanField(temperature=t) for t in (1.0, 0.1, 0.03, 0.01))


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
        mean, log_sd = weights
        variance = torch.exp(2 * log_sd)
        outputs = noisy_forward(
            layers, named_of(mean, shapes), named_of(variance, shapes), x, lambda n, s: noise[n](step, s)
        )
        prior = kl(mean, log_sd, precision) * (options.temperature / n)
        return mean_loss(recipe.loss, outputs, y) + prior

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
    last = descend(loss, [mean, log_sd], x, y, adam, members=ids, seed=seed)
    sd = log_sd.exp()
    record = asdict(options) | {
        "epochs": adam.epochs,
        "schedule": type(options.schedule).__name__,
        "loss": last.tolist(),  # mean loss + T KL / n, over the last epoch
        "kl": kl(mean, log_sd, precision).tolist(),
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
        spread = stacked.apply(layer, stacked.own_of(variance, name), x.square())
        # Where all inputs of a bias-free unit are 0 the square root has no derivative.
        sd = spread.clamp_min(torch.finfo(x.dtype).tiny).sqrt()
        x = torch.addcmul(stacked.apply(layer, centre, x), sd, noise(name, tuple(sd.shape[1:])))
    return x


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
