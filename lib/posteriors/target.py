"""The log posterior of a network, up to a constant, for many parameter vectors at once.

A target is a function from positions (C, D) to the log densities (C,) and their gradients (C, D). Positions are the
network's parameters laid end to end in the order of ``state_dict()``; `ravel` and `unravel` go there and back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lib.params import Params
from lib.population import losses
from lib.population.recipe import Recipe

Target = Callable[[Tensor], tuple[Tensor, Tensor]]


def ravel(params: Params) -> Float[Tensor, "C D"]:
    """The tensors of a population laid end to end, one row a member."""
    return torch.cat([tensor.flatten(1) for tensor in params.values()], dim=1)


def unravel(positions: Float[Tensor, "*batch D"], net: nn.Module) -> Params:
    """The inverse of `ravel` for the parameters of ``net``; any leading axes are kept."""
    params, start = {}, 0
    for name, tensor in net.named_parameters():
        end = start + tensor.numel()
        params[name] = positions[..., start:end].unflatten(-1, tensor.shape or (1,))
        start = end
    if start != positions.shape[-1]:
        raise ValueError(
            f"positions have {positions.shape[-1]} coordinates, but the network has {start} parameters."
        )
    return params


def trained(
    net: nn.Module, start: Mapping[str, Tensor] | None, runs: int, method: str
) -> Float[Tensor, "R D"]:
    """Positions of the R trained networks ``start`` that ``method`` begins with, in the order of the parameters.

    Raises ValueError where there are none, where they are not ``runs`` networks like ``net``, or not finite.
    """
    if start is None:
        raise ValueError(
            f"{method} starts from trained networks: pass start=population.train(...).params, one a member."
        )
    positions = ravel({name: start[name].detach() for name, _ in net.named_parameters()})
    wanted = (runs, sum(p.numel() for p in net.parameters()))
    if positions.shape != wanted:
        raise ValueError(
            f"{method} is to start from {wanted[0]} networks of {wanted[1]} parameters, and start holds "
            f"{len(positions)} of {positions.shape[1]}: pass the networks of these members."
        )
    refuse_lost(
        positions, f"{method} cannot start: the parameters", "drop the members that diverged in training"
    )
    return positions


def refuse_lost(numbers: Shaped[Tensor, "R ..."], what: str, way_out: str) -> None:
    """Raise ValueError, naming the runs (rows) of ``numbers`` that are not finite, where there are any."""
    lost = (~numbers.reshape(len(numbers), -1).isfinite().all(dim=1)).nonzero().flatten().tolist()
    if lost:
        shown = ", ".join(map(str, lost[:8])) + (", ..." if len(lost) > 8 else "")
        raise ValueError(f"{what} of {len(lost)} of {len(numbers)} runs ({shown}) are not finite: {way_out}.")


def outputs_of(
    net: nn.Module, positions: Float[Tensor, "C D"], inputs: Float[Tensor, "n ..."]
) -> Float[Tensor, "C n outputs"]:
    """The outputs of the C networks at ``positions`` on the same inputs."""
    return vmap(lambda params: functional_call(net, params, (inputs,)))(unravel(positions, net))


def bernoulli(
    outputs: Float[Tensor, "C n 1"], targets: Float[Tensor, " n"]
) -> tuple[Float[Tensor, " C"], Float[Tensor, "C n 1"]]:
    """Log-likelihood of labels 0/1 under the logits ``outputs``, summed over n, and its gradient in the outputs."""
    sign = 2 * targets - 1
    margin = sign * outputs.squeeze(-1)
    return -nn.functional.softplus(-margin).sum(1), (sign * torch.sigmoid(-margin))[..., None]


def gaussian(
    outputs: Float[Tensor, "C n k"], targets: Float[Tensor, "n k"]
) -> tuple[Float[Tensor, " C"], Float[Tensor, "C n k"]]:
    """Log-likelihood of targets with unit noise, summed over n and k, and its gradient in the outputs."""
    residual = targets - outputs
    constant = 0.5 * targets.numel() * math.log(2 * math.pi)
    return -0.5 * (residual**2).sum((1, 2)) - constant, residual


def categorical(
    outputs: Float[Tensor, "C n k"], targets: Int64[Tensor, " n"]
) -> tuple[Float[Tensor, " C"], Float[Tensor, "C n k"]]:
    """Log-likelihood of class labels under the logits ``outputs``, summed over n, and its gradient in the outputs."""
    logits = outputs.mT  # classes before examples: the sums over a few classes run along rows of examples
    logarithms = torch.log_softmax(logits, dim=1)
    label = targets[None, None].expand(len(logits), 1, -1)
    slope = torch.exp(logarithms).neg_()
    slope.scatter_add_(1, label, slope.new_ones(()).expand(label.shape))
    return logarithms.gather(1, label).sum((1, 2)), slope.mT


def by_loss(loss: str) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The log-likelihood, up to a constant, whose mean over examples is minus a recipe's mean ``loss``."""

    def log_likelihood(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        everyone = targets.expand(len(outputs), *targets.shape)
        slope = losses.derivative(loss, outputs, everyone, out=torch.empty_like(outputs))
        return -losses.per_example(loss, outputs, everyone).sum(1), slope.neg_()

    return categorical if loss == "cross_entropy" else log_likelihood


def prior_precision(recipe: Recipe, n: int) -> float:
    """n * wd, the precision of the Gaussian prior that a recipe's weight decay means; refuses a decay of 0."""
    if not recipe.weight_decay > 0:
        raise ValueError(
            "without weight decay the recipe means no posterior (a flat prior on every weight): give it a decay."
        )
    return n * float(recipe.weight_decay)


def of_recipe(
    net: nn.Module, inputs: Shaped[Tensor, "n ..."], targets: Shaped[Tensor, "n ..."], recipe: Recipe
) -> Target:
    """The posterior that a recipe means: log p(θ | data) = -n (mean loss + wd/2 |θ|²) + constant."""
    dtype = next(net.parameters()).dtype
    with torch.no_grad():
        width = net(inputs[:1].to(next(net.parameters()).device, dtype)).shape[-1]
    labels = losses.as_targets(recipe.loss, targets, width, dtype).to(inputs.device)
    sigma = prior_precision(recipe, len(inputs)) ** -0.5
    return log_posterior(net, inputs.to(dtype), labels, sigma=sigma, log_likelihood=by_loss(recipe.loss))


def log_posterior(
    net: nn.Module, inputs: Float[Tensor, "n ..."], targets: Tensor, *, sigma: float, log_likelihood=bernoulli
) -> Target:
    """Target of the posterior p(θ | data) ∝ p(data | θ) N(θ; 0, sigma² I) over all parameters of ``net``.

    Networks that are a chain of Linear and ReLU take gradients by stacked matrix products, others by autograd.
    Raises ValueError for sigma <= 0: a prior of zero variance leaves nothing to sample.
    """
    if not sigma > 0:
        raise ValueError(f"the prior's sigma is {sigma}: it must be positive.")
    chain = isinstance(net, nn.Sequential) and all(isinstance(layer, nn.Linear | nn.ReLU) for layer in net)
    gradient = (_by_chain_rule if chain else _by_autograd)(net, inputs)
    constant = sum(p.numel() for p in net.parameters()) * math.log(sigma * math.sqrt(2 * math.pi))

    def target(positions: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = gradient(positions, lambda outputs: log_likelihood(outputs, targets))
        pull = positions / sigma**2
        return value - 0.5 * (positions * pull).sum(1) - constant, slope - pull

    return target


def _by_autograd(net: nn.Module, inputs: Tensor):
    def gradient(positions: Tensor, log_likelihood) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = positions.detach().requires_grad_()
            outputs = outputs_of(net, leaf, inputs)
            value, slope = log_likelihood(outputs.detach())
            (found,) = torch.autograd.grad(outputs, leaf, slope)
        return value, found

    return gradient


def _by_chain_rule(net: nn.Sequential, inputs: Tensor):
    """Back-propagation through Linear and ReLU, units before examples: activations are (C, units, n)."""
    layers, end = [], 0  # of each layer: where weight and bias lie in a position; None for ReLU
    for layer in net:
        start, middle = end, end
        if isinstance(layer, nn.Linear):
            middle = start + layer.weight.numel()
            end = middle + (layer.bias.numel() if layer.bias is not None else 0)
        layers.append((slice(start, middle), slice(middle, end), layer) if end > start else None)
    below_all = inputs.T.contiguous()

    def gradient(positions: Tensor, log_likelihood) -> tuple[Tensor, Tensor]:
        activations, weights = [below_all], []
        for layer in layers:
            below = activations[-1]
            if layer is None:
                weights.append(None)
                activations.append(below.clamp_min(0))
                continue
            weight, bias, shape = positions[:, layer[0]], positions[:, layer[1]], layer[2].weight.shape
            weights.append(weight.unflatten(1, shape))
            above = weights[-1] @ below
            activations.append(above.add_(bias[..., None]) if bias.shape[1] else above)

        value, slope = log_likelihood(activations.pop().mT)
        slope, found = slope.mT, torch.empty_like(positions)  # (C, outputs, n)
        for i in reversed(range(len(layers))):
            below = activations.pop()
            if layers[i] is None:
                slope = torch.ops.aten.threshold_backward(slope, below, 0)  # slope where below > 0, else 0
                continue
            found[:, layers[i][0]] = (slope @ below.mT).flatten(1)
            if layers[i][1].stop > layers[i][1].start:
                found[:, layers[i][1]] = slope.sum(-1)
            if i:
                slope = weights[i].mT @ slope
        return value, found

    return gradient
