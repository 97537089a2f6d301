"""How a population is trained: one frozen recipe, its learning-rate schedule and its update rule, in torch's conventions."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

LOSSES = ("cross_entropy", "binary_cross_entropy", "mse")


@dataclass(frozen=True)
class Constant:
    """The learning rate stays as it is."""

    def factor(self, epoch: float, epochs: float | int) -> float | int:
        return 1.0


@dataclass(frozen=True)
class MultiStep:
    """Multiply the rate by ``gamma`` when each milestone (in epochs from the start) is reached."""

    milestones: tuple[float | int, ...]
    gamma: float = 0.1

    def factor(self, epoch: float, epochs: float | int) -> float | int:
        return self.gamma ** sum(epoch >= milestone for milestone in self.milestones)


@dataclass(frozen=True)
class Cosine:
    """Half a cosine, step by step, from the full rate after the warm-up to ``floor`` times the rate at the end."""

    floor: float | int = 0.0

    def factor(self, epoch: float, epochs: float | int) -> float | int:
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * epoch / epochs)) / 2


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run, beside the network, the data, the members and the seed.

    ``warmup`` is a number of epochs over which the rate grows linearly from one step's share to ``lr``; a cosine then
    spans the epochs that remain, milestones count from the start.  ``loss`` is a mean over the batch; with outputs of
    several numbers, binary cross-entropy and mse are means over those too.
    """

    lr: float | int
    batch_size: int
    epochs: int
    loss: str = "cross_entropy"
    optimiser: str = "sgd"
    momentum: float | int = 0
    nesterov: bool = False
    weight_decay: float | int = 0
    betas: tuple[float | int, float | int] = (0.9, 0.999)
    eps: float = 1e-8
    schedule: Constant | MultiStep | Cosine = field(default_factory=Constant)
    warmup: float | int = 0
    drop_last: bool = False

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss {self.loss!r} is not known: use one of {', '.join(LOSSES)}.")
        if self.optimiser not in ("sgd", "adam"):
            raise ValueError(f"optimiser {self.optimiser!r} is not known: use 'sgd' or 'adam'.")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov = True needs a momentum above zero.")
        if self.batch_size < 1 or self.epochs < 0:
            raise ValueError("batch_size must be at least 1 and epochs at least 0.")

    def steps_per_epoch(self, n: int) -> int:
        """How many batches an epoch over n examples has."""
        steps = n // self.batch_size if self.drop_last else -(-n // self.batch_size)
        if steps == 0:
            raise ValueError(
                f"{n} examples fill no batch of {self.batch_size}, and drop_last drops the rest."
            )
        return steps

    def rate(self, step: int, steps_per_epoch: int) -> float | int:
        """The learning rate of a step, counted from 0."""
        warmup = round(self.warmup * steps_per_epoch)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        start = warmup if isinstance(self.schedule, Cosine) else 0
        remaining = self.epochs - start / steps_per_epoch
        return self.lr * self.schedule.factor((step - start) / steps_per_epoch, remaining)

    def moments(self, weights: list[Tensor]) -> list[list[Tensor]]:
        """The optimiser's memory before the first step: none, momentum, or Adam's two moments."""
        count = 2 if self.optimiser == "adam" else int(self.momentum != 0)
        return [[torch.zeros_like(weight) for weight in weights] for _ in range(count)]

    def update(
        self,
        weights: list[Tensor],
        gradients: list[Tensor],
        moments: list[list[Tensor]],
        step: int,
        rate: float,
    ) -> None:
        """One step of torch.optim.SGD or torch.optim.Adam, in place; the gradients are used up.

        Each member's update is elementwise, so a population steps as one tensor.  Weight decay is coupled (added to
        the gradient), as in torch; Adam follows Kingma & Ba (2015), algorithm 1.
        """
        if self.weight_decay:
            torch._foreach_add_(gradients, weights, alpha=self.weight_decay)
        if self.optimiser == "adam":
            (first, second), (beta1, beta2) = moments, self.betas
            torch._foreach_lerp_(first, gradients, 1 - beta1)
            torch._foreach_mul_(second, beta2)
            torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
            scale = torch._foreach_sqrt(second)
            torch._foreach_div_(scale, math.sqrt(1 - beta2 ** (step + 1)))
            torch._foreach_add_(scale, self.eps)
            torch._foreach_addcdiv_(weights, first, scale, -rate / (1 - beta1 ** (step + 1)))
            return
        if self.momentum:
            (velocity,) = moments
            torch._foreach_mul_(velocity, self.momentum)
            torch._foreach_add_(velocity, gradients)
            if self.nesterov:
                torch._foreach_add_(gradients, velocity, alpha=self.momentum)
            else:
                gradients = velocity
        torch._foreach_add_(weights, gradients, alpha=-rate)

    def to_dict(self) -> dict:
        """A plain dictionary for JSON; ``from_dict`` reads it back."""
        return asdict(self) | {"schedule": {"kind": type(self.schedule).__name__} | asdict(self.schedule)}

    @staticmethod
    def from_dict(plain: dict) -> Recipe:
        """The recipe that ``to_dict`` wrote."""
        schedule = dict(plain["schedule"])
        kind = {"Constant": Constant, "MultiStep": MultiStep, "Cosine": Cosine}[schedule.pop("kind")]
        schedule = {name: tuple(v) if isinstance(v, list) else v for name, v in schedule.items()}
        return Recipe(**plain | {"schedule": kind(**schedule), "betas": tuple(plain["betas"])})
