"""Any feed-forward module by the thousand: torch.func's vmap over members of grad over parameters.

Dropout layers read masks drawn by counter; layers that would carry state from batch to batch are refused by name.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

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


class Vmapped:
    """The generic way: a copy of the network, called with each member's parameters."""

    def __init__(self, net: nn.Module, loss: str, seed: int, example: Tensor, device: torch.device) -> None:
        self.net, self.loss, self.seed = copy.deepcopy(net).to(device).train(), loss, seed
        self.names = [name for name, _ in self.net.named_parameters()]
        self.constants = {name: buffer.detach().clone() for name, buffer in self.net.named_buffers()}
        self._refuse()
        self.dropouts = self._replace_dropout()
        self.dtype = next(self.net.parameters()).dtype
        self._probe(example[:2].to(device, self.dtype))

    def _refuse(self) -> None:
        if len(self.names) != sum(1 for _ in self.net.named_parameters(remove_duplicate=False)):
            raise UnsupportedTraining(
                "two layers of the network share one parameter: members are trained from named tensors of their own."
            )
        for name, layer in self.net.named_modules():
            if isinstance(layer, nn.modules.batchnorm._NormBase) and layer.track_running_stats:
                raise UnsupportedTraining(
                    f"layer {name!r} is a {type(layer).__name__} with running statistics, which a population does not "
                    "train yet: use GroupNorm or LayerNorm, or track_running_stats=False."
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
        """One forward pass of two examples: the outputs, the sizes of all activations and of the masks."""
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

        handles = [layer.register_forward_hook(hook) for layer in self.net.modules()]
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
        """A population's trained tensors, as a list."""
        return [params[name].clone() for name in self.names]

    def unpack(self, tensors: list[Tensor]) -> Params:
        """The inverse of ``pack``, with the network's constant buffers repeated for each member."""
        named = dict(zip(self.names, tensors, strict=True))
        size = len(tensors[0])
        for name, buffer in self.constants.items():
            named[name] = buffer.expand(size, *buffer.shape).clone()
        return {name: named[name] for name in [*self.names, *self.constants]}

    def table(self, inputs: Tensor) -> Tensor:
        return inputs.to(self.dtype)

    def step(self, weights: list[Tensor], batch: int) -> VmappedStep:
        return VmappedStep(self, weights)

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
        def mean_loss(weights: list[Tensor], masks: dict[str, Tensor], x: Tensor, y: Tensor):
            output = functional_call(self.net, dict(zip(self.names, weights, strict=True)) | masks, (x,))
            values = losses.per_example(self.loss, output, y)
            return values.mean(), values

        return vmap(grad(mean_loss, has_aux=True))


@dataclass(frozen=True)
class VmappedStep:
    """One training step of C members."""

    model: Vmapped
    weights: list[Tensor]

    def gradients(
        self, table: Tensor, targets: Tensor, rows: Tensor, want_losses: bool, members: Tensor, step: int
    ) -> tuple[list[Tensor], Tensor | None]:
        """The gradients of the batch's mean loss, and the losses (C, B) before the step."""
        masks = self.model.draw_masks(members, step, rows.shape[1])
        gradients, values = self.model.gradient_of_members(self.weights, masks, table[rows], targets[rows])
        return list(gradients), values
