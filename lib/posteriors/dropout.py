r"""Monte Carlo dropout: one network, many thinned copies of it.

While training, each example switches hidden units off at random, $h \odot m / (1 - p)$ with $m \sim
\mathrm{Bernoulli}(1 - p)$; afterwards each mask gives one sample of the network (Srivastava et al. 2014; Gal &
Ghahramani 2016, *Dropout as a Bayesian approximation*, eq. 6 to 8). A mask on a layer's inputs is a factor on its
weights' columns,

$$ W\,(h \odot m / (1 - p)) = \big(W \operatorname{diag}(m) / (1 - p)\big)\, h, $$

so a sample is an ordinary parameter vector. **One mask a sample**: the same for all inputs, as for every other
posterior here, where Gal & Ghahramani draw a mask for each input and pass; the mean over masks is the same.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from lib import randomness
from lib.params import Params
from lib.population import stacked
from lib.population.initialise import initial, member_ids
from lib.population.losses import as_targets
from lib.population.recipe import Recipe
from lib.posteriors.descent import Stream, by_autograd, chain, descend, mean_loss, outputs_of
from lib.posteriors.draws import Draws


@dataclass(frozen=True)
class Dropout:
    """How much is dropped, and where.

    p: the chance that a unit is off. 0.1: networks of 16 hidden units have none to spare; 0.5 suits thousands.
    channels: drop whole channels between convolutions too (Tompson et al. 2015). Off: the small networks here have two.
    """

    p: float | int = 0.1
    channels: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.p < 1:
            raise ValueError(f"p = {self.p}: the chance to drop a unit must lie in [0, 1).")


CANDIDATES = tuple(Dropout(p) for p in (0.05, 0.1, 0.2))


@dataclass(frozen=True)
class Site:
    """A layer whose inputs are dropped: its name, how many units or channels, and how often its weights read them.

    ``repeats`` counts a channel's positions in a flattened input; ``groups`` is a convolution's.
    """

    layer: str
    units: int
    repeats: int = 1
    groups: int = 1


@dataclass(frozen=True)
class Fit:
    """R trained networks, the sites of their masks, and their numbers as members."""

    params: Params
    members: Int64[Tensor, " R"]
    sites: tuple[Site, ...]
    options: Dropout
    record: dict


def sites(net: nn.Module, channels: bool) -> tuple[Site, ...]:
    """Where ``net`` is dropped: the inputs of every layer that reads hidden units (or, with ``channels``, channels).

    Raises ValueError where there is nothing to drop, UnsupportedTraining for a network that cannot be stacked.
    """
    found, before = [], None
    for name, layer in chain(net):
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        if isinstance(before, nn.Linear):
            found.append(Site(name, layer.in_features))
        elif before is not None and channels:
            size = before.out_channels
            if isinstance(layer, nn.Conv2d):
                found.append(Site(name, size, groups=layer.groups))
            else:
                found.append(Site(name, size, repeats=layer.in_features // size))
        before = layer
    if not found:
        raise ValueError(
            "the network has no hidden Linear layer whose units could be dropped: give it one, or channels=True."
        )
    return tuple(found)


def fit(
    net: nn.Module,
    inputs: Shaped[Tensor, "N ..."],
    targets: Shaped[Tensor, "N ..."],
    recipe: Recipe,
    options: Dropout | None = None,
    *,
    members: int | range | Tensor,
    seed: int,
    device: str | torch.device = "cpu",
    start: Params | None = None,
) -> Fit:
    """Train R networks by ``recipe``, a fresh mask for each example, unit and step; ``start``: their initial weights.

    Initial weights, order of the data and masks are functions of (seed, member, step): a run does not depend on its
    neighbours. With p = 0 this is ``population.train``. Dropout layers that ``net`` itself contains do nothing here.
    Raises Diverged, UnsupportedTraining, and ValueError where no unit could be dropped.
    """
    options = options or Dropout()
    ids, places, layers = member_ids(members).to(device), sites(net, options.channels), chain(net)
    named = initial(net, ids, seed) if start is None else start
    params = {name: tensor.detach().to(device, copy=True) for name, tensor in named.items()}
    x = inputs.to(device, next(iter(params.values())).dtype)
    y = as_targets(recipe.loss, targets, outputs_of(net), x.dtype).to(device)
    chance = {
        site.layer: Stream(randomness.uniform, seed, ids, f"dropout/{site.layer}", x.dtype) for site in places
    }

    def loss(weights: list[Tensor], x: Tensor, y: Tensor, step: int) -> Tensor:
        masks = {}
        for site in places:
            u = chance[site.layer](step, (x.shape[1], site.units))
            masks[site.layer] = mask_of(u, options.p)
        own = dict(zip(params, weights, strict=True))
        return mean_loss(recipe.loss, thinned(layers, own, x, masks, places), y)

    last = descend(by_autograd(loss), list(params.values()), x, y, recipe, members=ids, seed=seed)
    record = asdict(options) | {"dropped": [site.layer for site in places], "loss": last.tolist()}
    return Fit(params, ids, places, options, record)


def mask_of(u: Float[Tensor, "*shape"], p: float | int) -> Float[Tensor, "*shape"]:
    """0 where the uniform number falls below p, else 1 / (1 - p): a factor of mean 1."""
    return (u >= p).to(u.dtype) / (1 - p)


def thinned(
    layers: list[tuple[str, nn.Module]],
    params: Params,
    x: Shaped[Tensor, "R B ..."],
    masks: dict[str, Float[Tensor, "R B units"]],
    places: tuple[Site, ...],
) -> Float[Tensor, "R B out"]:
    """Outputs with each site's inputs times its mask: every unit, or every channel, of every example its own."""
    at = {site.layer: site for site in places}
    for name, layer in layers:
        if name in at:
            mask = masks[name].repeat_interleave(at[name].repeats, dim=-1)
            x = x * mask.view(*mask.shape, *[1] * (x.ndim - 3))
        x = stacked.apply(layer, stacked.own_of(params, name), x)
    return x


def fold(params: Params, masks: dict[str, Float[Tensor, "P units"]], places: tuple[Site, ...]) -> Params:
    """Networks (P, ...) whose plain forward pass is that with each site's inputs times its mask (P, units)."""
    params = dict(params)
    for site in places:
        name, mask = f"{site.layer}.weight", masks[site.layer]
        weight = params[name]
        columns = mask.repeat_interleave(site.repeats, dim=1)
        if site.groups > 1:  # each group's rows read their own channels
            rows = weight.shape[1] // site.groups
            columns = columns.unflatten(1, (site.groups, -1)).repeat_interleave(rows, dim=1)
        else:
            columns = columns[:, None]
        params[name] = weight * columns.reshape(*columns.shape, *[1] * (weight.ndim - 3))
    return params


def masks_of(fit: Fit, draws: int, seed: int) -> dict[str, Float[Tensor, "RS units"]]:
    """The masks of the first ``draws`` samples of every run: 0 or 1 / (1 - p)."""
    dtype, p = next(iter(fit.params.values())).dtype, fit.options.p
    masks = {}
    for site in fit.sites:
        u = randomness.uniform(
            seed, fit.members, f"dropout sample/{site.layer}", 0, (draws, site.units), dtype
        )
        masks[site.layer] = mask_of(u, p).flatten(0, 1)
    return masks


def draw(fit: Fit, draws: int, *, seed: int) -> Draws:
    """``draws`` thinned networks of every run, each by one mask that is folded into the weights that read the units."""
    repeated = {name: tensor.repeat_interleave(draws, dim=0) for name, tensor in fit.params.items()}
    return Draws(fold(repeated, masks_of(fit, draws, seed), fit.sites), len(fit.members), draws)
