"""What networks put out, one at a time: nothing is stacked but their outputs, so that ten large networks fit a laptop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from lib.device import one_thread
from lib.params import Params, member, population_size
from lib.report.checkpoints import Models
from lib.report.data_source import Halves

BATCH = 512 << 20  # bytes of inputs and activations aimed at in one pass
SMALL = 2e8  # weights times examples (in convolutions times pixels)


def batch_of(inputs: Tensor) -> int:
    """How many examples go through a network at a time; by their size alone, so that it is the same everywhere."""
    return max(1, min(4096, BATCH // (24 * inputs[0].numel() * inputs.element_size())))


def outputs(
    net: nn.Module, params: Mapping[str, Tensor], inputs: Shaped[Tensor, "N ..."]
) -> Float[Tensor, "N out"]:
    """Of one network in evaluation mode, float32 on the CPU."""
    was = net.training
    net.eval()
    device = next(iter(params.values())).device
    try:
        with torch.no_grad(), threads(net, inputs):
            parts = [
                functional_call(net, dict(params), (x.to(device),), tie_weights=False).float().cpu()
                for x in inputs.split(batch_of(inputs))
            ]
    finally:
        net.train(was)
    put = torch.cat(parts)
    return put[:, None] if put.ndim == 1 else put


def threads(net: nn.Module, inputs: Shaped[Tensor, "N ..."]) -> AbstractContextManager[None]:
    """One thread for a pass so small that a second would only be waited for."""
    weights = sum(p.numel() for p in net.parameters())
    convolves = any(isinstance(layer, nn.modules.conv._ConvNd) for layer in net.modules())
    return one_thread() if weights * (inputs.numel() if convolves else len(inputs)) < SMALL else nullcontext()


def everyones(
    net: nn.Module, params: Mapping[str, Tensor], inputs: Shaped[Tensor, "N ..."]
) -> Float[Tensor, "n N out"]:
    """Of a population, network after network."""
    return torch.stack([outputs(net, each, inputs) for each in one_by_one(params)])


@dataclass(frozen=True, eq=False)
class Predictions:
    """What n networks put out for the examples of both halves."""

    scoring: Float[Tensor, "n N out"]
    calibration: Float[Tensor, "n M out"]


def predictions(models: Models, data: Halves) -> Predictions:
    """Of every network on both halves, which merging and ensemble both read.

    Raises ValueError, with their names, for networks that put out numbers that are not finite.
    """
    halves = (data.scoring, data.calibration)
    found = Predictions(*(everyones(models.net, models.params, half.inputs) for half in halves))
    each = zip(models.names, found.scoring, found.calibration, strict=True)
    broken = [name for name, *put in each if not all(bool(half.isfinite().all()) for half in put)]
    if broken:
        raise ValueError(
            f"{', '.join(broken)} put out NaN or infinite numbers on these examples: leave them out, or look at the data."
        )
    return found


def one_by_one(params: Mapping[str, Tensor]) -> Iterator[Params]:
    """The members of a population."""
    return (member(params, i) for i in range(population_size(dict(params))))


def average(members: Iterable[Mapping[str, Tensor]]) -> Params:
    """The mean of networks, summed in float64 one after the other; whole numbers (a count of batches) are the first one's."""
    members = iter(members)
    first = dict(next(members))
    total, count = (
        {name: t.to(torch.float64, copy=True) if t.is_floating_point() else t for name, t in first.items()},
        1,
    )
    for each in members:
        count += 1
        for name, tensor in each.items():
            if tensor.is_floating_point():
                total[name] += tensor
    return {
        name: (t / count).to(first[name].dtype) if t.is_floating_point() else t for name, t in total.items()
    }


def losses(
    task: str, outputs: Float[Tensor, "*n N out"], targets: Shaped[Tensor, "N ..."]
) -> Float64[Tensor, "*n N"]:
    """Each example's loss: cross-entropy in nats, or the squared error, summed over outputs."""
    if task == "regression":
        return (outputs.double() - targets.view(len(targets), -1).double()).square().sum(-1)
    with one_thread():  # small beside the passes, and called a thousand times
        chances = outputs.double().log_softmax(-1)
    return -chances.gather(-1, targets.expand(chances.shape[:-1])[..., None])[..., 0]


def wrong(outputs: Float[Tensor, "*n N classes"], targets: Shaped[Tensor, " N"]) -> Float64[Tensor, "*n N"]:
    """1 where the most probable class is not the label."""
    return (outputs.argmax(-1) != targets).double()


def constant_error(labels: Int64[Tensor, " N"]) -> float:
    """The share of wrong classes of who always names the commonest."""
    return 1 - float(labels.bincount().max()) / len(labels)


def score(
    task: str, outputs: Float[Tensor, "N out"], targets: Shaped[Tensor, "N ..."]
) -> tuple[float, float]:
    """Mean loss, and the error: the share of wrong classes, or the root of the mean squared error in the targets' unit."""
    loss = float(losses(task, outputs, targets).mean())
    return loss, loss**0.5 if task == "regression" else float(wrong(outputs, targets).mean())


def norms(net: nn.Module) -> list[str]:
    """Names of the BatchNorm layers that keep running statistics."""
    return [
        name
        for name, layer in net.named_modules()
        if isinstance(layer, _BatchNorm) and layer.track_running_stats
    ]


def recalibrated(net: nn.Module, params: Mapping[str, Tensor], inputs: Shaped[Tensor, "N ..."]) -> Params:
    """One network whose BatchNorm layers hold the means and variances of ``inputs``, each layer after those before it.

    As ``lib.connectivity.recalibrate`` has it, in one ordinary pass: large networks take half the time of a vectorised one.
    """
    own = {name: tensor.clone() for name, tensor in params.items() if name.rpartition(".")[0] in norms(net)}
    with torch.no_grad(), threads(net, inputs), _watching(net) as sizes:
        inputs = inputs.to(next(iter(params.values())).device)
        functional_call(net, dict(params) | own, (inputs,), tie_weights=False)
    found = dict(params)
    for name, size in sizes.items():
        found[f"{name}.running_mean"] = own[f"{name}.running_mean"]
        found[f"{name}.running_var"] = own[f"{name}.running_var"] * (1 - 1 / size)  # torch divides by n - 1
    return found


@contextmanager
def _watching(net: nn.Module) -> Iterator[dict[str, int]]:
    """BatchNorm layers take the statistics of the one pass inside; how many numbers a channel each has seen."""
    sizes: dict[str, int] = {}
    layers = {name: net.get_submodule(name) for name in norms(net)}
    was, moments = net.training, {name: layer.momentum for name, layer in layers.items()}

    def seen(name: str, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        sizes[name] = args[0].numel() // args[0].shape[1]

    net.eval()
    hooks = []
    try:
        for name, layer in layers.items():
            layer.train()
            layer.momentum = 1.0
            hooks.append(layer.register_forward_pre_hook(partial(seen, name)))
        yield sizes
    finally:
        for hook in hooks:
            hook.remove()
        for name, layer in layers.items():
            layer.momentum = moments[name]
        net.train(was)
