"""Any feed-forward module by the thousand: torch.func's vmap over members of grad over parameters.

Dropout layers read masks drawn by counter.  BatchNorm layers move each member's own running statistics, as torch does;
InstanceNorm with running statistics is refused by name.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from lib import randomness
from lib.params import Params
from lib.population import losses


class UnsupportedTraining(ValueError):
    """A network that a population cannot train, with the layer and the reason."""


class Masked(nn.Module):
    """Stands in for a dropout layer: multiplies by a mask that the caller supplies."""

    def __init__(self, p: float, channels: bool) -> None:
        super().__init__()
        self.p, self.channels = p, channels
        self.register_buffer("mask", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask


DROPOUTS = {nn.Dropout: False, nn.Dropout1d: True, nn.Dropout2d: True, nn.Dropout3d: True}


def running(net: nn.Module) -> list[str]:
    """Names of the running statistics that the network's BatchNorm layers move in training."""
    layers = net.named_modules(remove_duplicate=False)
    norms = (
        (name, layer) for name, layer in layers if isinstance(layer, _BatchNorm) and layer.track_running_stats
    )
    return [buffer for name, layer in norms for buffer, _ in layer.named_buffers(name, recurse=False)]


def cumulative(layer: _BatchNorm, x: Tensor) -> Tensor:
    """The training pass of a BatchNorm with momentum=None, whose count torch reads as a number: here it is a member's."""
    layer._check_input_dim(x)
    mean, var = torch.zeros_like(layer.running_mean), torch.zeros_like(layer.running_var)
    y = F.batch_norm(x, mean, var, layer.weight, layer.bias, True, 1.0, layer.eps)  # leaves the batch's own
    layer.num_batches_tracked.add_(1)
    share = layer.num_batches_tracked.to(mean.dtype).reciprocal()
    layer.running_mean.mul_(1 - share).add_(share * mean)
    layer.running_var.mul_(1 - share).add_(share * var)
    return y


class Vmapped:
    """The generic way: a copy of the network, called with each member's parameters and running statistics."""

    def __init__(self, net: nn.Module, loss: str, seed: int, example: Tensor, device: torch.device) -> None:
        self.net, self.loss, self.seed = copy.deepcopy(net).to(device).train(), loss, seed
        self.names = [name for name, _ in self.net.named_parameters()]
        self.running = running(self.net)
        self.buffers = {name: buffer.detach().clone() for name, buffer in self.net.named_buffers()}
        known = {*self.names, *self.buffers}  # a buffer that layers share is known by its first name
        self.order = [name for name in {**self.net.state_dict(), **self.buffers} if name in known]
        self._refuse()
        self.dropouts = self._replace_dropout()
        for layer in self.net.modules():
            if isinstance(layer, _BatchNorm) and layer.track_running_stats and layer.momentum is None:
                layer.forward = partial(cumulative, layer)
        self.dtype = next(self.net.parameters()).dtype
        self._probe(example[:2].to(device, self.dtype))

    def _refuse(self) -> None:
        shared = len(self.names) != sum(1 for _ in self.net.named_parameters(remove_duplicate=False))
        if shared or not set(self.running) <= set(self.buffers):
            raise UnsupportedTraining(
                "two layers of the network share one parameter, or one set of running statistics: members are trained "
                "from named tensors of their own."
            )
        for name, layer in self.net.named_modules():
            if isinstance(layer, _InstanceNorm) and layer.track_running_stats:
                raise UnsupportedTraining(
                    f"layer {name!r} is a {type(layer).__name__} with running statistics, which a population trains for "
                    "BatchNorm only: use BatchNorm, GroupNorm or LayerNorm, or track_running_stats=False."
                )

    def _replace_dropout(self) -> dict[str, Masked]:
        found = {}
        for name, layer in list(self.net.named_modules()):
            if type(layer) in DROPOUTS and layer.p > 0:
                if layer.p >= 1:
                    raise UnsupportedTraining(
                        f"layer {name!r} drops everything (p = {layer.p}): choose p below 1."
                    )
                parent, _, child = name.rpartition(".")
                found[name] = Masked(layer.p, DROPOUTS[type(layer)])
                setattr(self.net.get_submodule(parent), child, found[name])
        return found

    def _probe(self, x: Tensor) -> None:
        """One forward pass of the examples x: the outputs, the sizes of all activations and of the masks."""
        sizes, self.masks = [], {}

        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            sizes.append(output.numel() // len(x) if isinstance(output, Tensor) else 0)
            if isinstance(module, Masked):
                name = next(name for name, layer in self.dropouts.items() if layer is module)
                if name in self.masks:
                    raise UnsupportedTraining(
                        f"dropout layer {name!r} is called twice: give each call its own layer."
                    )
                shape = output.shape[1:]
                self.masks[name] = (shape[0], *(1 for _ in shape[1:])) if module.channels else tuple(shape)

        def alone(name: str, layer: nn.Module, inputs: tuple) -> None:
            if len(inputs[0]) == 1 and inputs[0].numel() == layer.num_features:
                raise UnsupportedTraining(
                    f"layer {name!r} is a {type(layer).__name__}, and a batch of one example gives it one number a "
                    "channel, of which there is no variance: choose another batch_size, or drop_last=True."
                )

        handles = [layer.register_forward_hook(hook) for layer in self.net.modules()]
        for name, layer in self.net.named_modules():
            if isinstance(layer, _BatchNorm):
                handles.append(layer.register_forward_pre_hook(partial(alone, name)))
        with torch.no_grad():
            output = self.net(x)
        for handle in handles:
            handle.remove()
        if output.ndim != 2:
            raise UnsupportedTraining(
                f"the network's output has shape {tuple(output.shape)}: (examples, numbers) is read."
            )
        self.outputs, self.activations = output.shape[1], sum(sizes) + x[0].numel()

    def bytes_per_member(self, batch: int) -> int:
        """About what one member's step touches."""
        numbers = 3 * sum(p.numel() for p in self.net.parameters()) + 2 * batch * self.activations
        return numbers * self.dtype.itemsize

    def lanes(self, batches: set[int]) -> int:
        """No arrangement of members: here they agree to rounding, not to the bit."""
        return 1

    def pack(self, params: Params) -> list[Tensor]:
        """A population's trained tensors and then its running statistics (the network's, where absent), as a list."""
        size = len(next(iter(params.values())))
        own = [
            params[name].clone() if name in params else self._repeated(name, size) for name in self.running
        ]
        return [params[name].clone() for name in self.names] + own

    def unpack(self, tensors: list[Tensor]) -> Params:
        """The inverse of ``pack``, with the network's constant buffers repeated for each member."""
        named = dict(zip([*self.names, *self.running], tensors, strict=True))
        constant = {name: self._repeated(name, len(tensors[0])) for name in self.buffers if name not in named}
        return {name: (named | constant)[name] for name in self.order}

    def _repeated(self, name: str, members: int) -> Tensor:
        return self.buffers[name].expand(members, *self.buffers[name].shape).clone()

    def table(self, inputs: Tensor) -> Tensor:
        return inputs.to(self.dtype)

    def step(self, tensors: list[Tensor], batch: int) -> VmappedStep:
        trained = len(self.names)
        return VmappedStep(self, tensors[:trained], tensors[trained:])

    def draw_masks(self, members: Tensor, step: int, batch: int) -> dict[str, Tensor]:
        """Each member's dropout masks for one step: 0, or 1 / (1 - p)."""
        masks = {}
        for name, shape in self.masks.items():
            p, shape = self.dropouts[name].p, (batch, *shape)
            draw = randomness.uniform(self.seed, members, f"dropout/{name}", step, shape, self.dtype)
            masks[f"{name}.mask"] = (draw >= p).to(self.dtype) / (1 - p)
        return masks

    @cached_property
    def gradient_of_members(self):
        names = [*self.names, *self.running]

        def mean_loss(
            weights: list[Tensor], statistics: list[Tensor], masks: dict[str, Tensor], x: Tensor, y: Tensor
        ):
            moved = [tensor.clone() for tensor in statistics]  # changed in place by the forward pass
            named = dict(zip(names, [*weights, *moved], strict=True))
            values = losses.per_example(self.loss, functional_call(self.net, named | masks, (x,)), y)
            return values.mean(), (values, moved)

        return vmap(grad(mean_loss, has_aux=True))


@dataclass(frozen=True)
class VmappedStep:
    """One training step of C members, whose running statistics it moves in place."""

    model: Vmapped
    weights: list[Tensor]
    statistics: list[Tensor]

    def gradients(
        self, table: Tensor, targets: Tensor, rows: Tensor, want_losses: bool, members: Tensor, step: int
    ) -> tuple[list[Tensor], Tensor | None]:
        """The gradients of the batch's mean loss, and the losses (C, B) before the step."""
        masks = self.model.draw_masks(members, step, rows.shape[1])
        gradients, (values, moved) = self.model.gradient_of_members(
            self.weights, self.statistics, masks, table[rows], targets[rows]
        )
        for statistic, new in zip(self.statistics, moved, strict=True):
            statistic.copy_(new)
        return list(gradients), values
