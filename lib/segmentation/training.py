"""One training after another on one network's memory: the same start and order for both methods and every rate.

On a GPU cuDNN may add gradients in any order: two runs agree in distribution, not to the bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from lib import randomness
from lib.matrix_gaussian.graph import captured
from lib.segmentation.scenes import VOID, Scenes, Split
from lib.segmentation.scores import Scores, class_weights, confusion, scores
from lib.segmentation.segnet import SegNet

SGD, UNIT = METHODS = ("SGD", "unit norm")
Number = float | int


@dataclass(frozen=True)
class Plan:
    """What is trained.

    Attributes:
        rates: learning rates to choose from, of filters and classifier alike.
        seeds: trainings of every method and rate.
        epochs: passes over the training images; images that fill no batch sit an epoch out.
        batch: images a step.
        levels, channels, kernel, affine: of the network, SegNet-Basic's by default.
        decay: the rate's factor after every epoch, by default that of the paper's exponential decay; 1 for none.
        bfloat16: convolutions in bfloat16; weights, statistics and loss stay in float32. Such rounding is relative and meets
            short and long filters alike, so that it favours neither method. It is off (a GPU then multiplies in TF32) because
            a difference of less than a point should not be carried by numbers of eight bits; turn it on to save time.
        frames: test images whose labels are kept for pictures.
    """

    rates: tuple[Number, ...]
    seeds: int
    epochs: int
    batch: int
    levels: int = 4
    channels: int = 64
    kernel: int = 7
    decay: Number = 0.95
    affine: bool = False
    bfloat16: bool = False
    frames: tuple[int, ...] = (30, 120, 200)

    def __post_init__(self) -> None:
        if not self.rates or min(self.rates) <= 0:
            raise ValueError(
                f"rates {self.rates}: a method chooses among learning rates above zero, give one or more."
            )
        if min(self.seeds, self.epochs, self.batch) < 1:
            raise ValueError(
                f"{self.seeds} seeds, {self.epochs} epochs and batches of {self.batch} train nothing: take one or more of each."
            )


@dataclass(frozen=True, eq=False)
class Outcome:
    """One training: mean ``losses`` of its epochs (NaN from where it diverged on), confusion matrices of the validation and
    test images (all zero if it diverged), and what it called the pixels of a few test frames (then void)."""

    losses: Float[Tensor, " epochs"]
    diverged: Bool[Tensor, ""]
    val: Int64[Tensor, "K K"]
    test: Int64[Tensor, "K K"]
    shown: UInt8[Tensor, "frames H W"]

    def scores(self, split: str) -> Scores:
        """Of "val" or "test"; a training that diverged has the worst there are, 0."""
        return Scores(0.0, 0.0, 0.0) if self.diverged else scores({"val": self.val, "test": self.test}[split])


class Trainer:
    """Trains by any method, rate and number, on the device of the scenes; ``graph`` says whether steps are captured.

    One network serves all trainings, each of which starts it anew: its step is then captured once, and whatever kernels a GPU
    chooses, both methods have the same. Raises ValueError for fewer training images than fill a batch, and IndexError for frames
    that the test images lack.
    """

    def __init__(self, scenes: Scenes, plan: Plan, seed: int, *, graph: bool | None = None) -> None:
        if len(scenes.train.images) < plan.batch:
            raise ValueError(
                f"{len(scenes.train.images)} images fill no batch of {plan.batch}: take smaller batches or more images."
            )
        if plan.frames and not 0 <= min(plan.frames) <= max(plan.frames) < len(scenes.test.images):
            raise IndexError(
                f"frames {plan.frames} are not all among the {len(scenes.test.images)} test images."
            )
        self.scenes, self.plan, self.seed = scenes, plan, seed
        self.device = scenes.train.images.device
        sizes = {
            "levels": plan.levels,
            "channels": plan.channels,
            "kernel": plan.kernel,
            "affine": plan.affine,
        }
        self.net = SegNet(len(scenes.classes), **sizes).to(self.device)
        self.weights = class_weights(scenes.train.labels, len(scenes.classes))
        self.step = gradient_step(self.net, plan.bfloat16)
        if self.device.type == "cuda" if graph is None else graph:
            self.step = captured(self.step, list(self.net.buffers()))

    def run(self, method: str, rate: Number, k: int) -> Outcome:
        """Training number ``k`` (from 0) of a method at a rate: its start and its order are functions of (seed, k) alone.

        Both methods start with filters of unit length, as in the paper's protocol, and step without momentum or weight
        decay. Scores are of the network with the running averages of its norms. A training whose loss, weights or
        averages are not finite is stopped and has diverged. Raises ValueError for an unknown method.
        """
        plan, images, labels = self.plan, self.scenes.train.images, self.scenes.train.labels
        with torch.no_grad():
            for name, tensor in start(self.net, self.seed, k).items():
                self.net.get_parameter(name).copy_(tensor)
        for module in self.net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.reset_running_stats()
        stepper = optimiser(self.net, method, rate)
        losses = torch.full((plan.epochs,), torch.nan)
        self.net.train()
        # allowed to try, cuDNN finds faster kernels than it would guess
        with torch.backends.cudnn.flags(enabled=True, benchmark=True):
            for epoch in range(plan.epochs):
                for group in stepper.param_groups:
                    group["lr"] = rate * plan.decay**epoch
                total = torch.zeros((), device=self.device)
                for rows in self.order(k, epoch):
                    total += self.step(images[rows], labels[rows], self.weights, {})
                    stepper.step()
                losses[epoch] = total.cpu() / (len(images) // plan.batch)
                if not losses[epoch].isfinite():
                    break
        return self.outcome(losses)

    def order(self, k: int, epoch: int) -> list[Int64[Tensor, " batch"]]:
        """The batches of an epoch, the same on every device."""
        n, member = len(self.scenes.train.images), torch.tensor([k])
        rows = randomness.permutation(self.seed, member, "segmentation/order", epoch, n)[0].to(self.device)
        return list(rows[: n // self.plan.batch * self.plan.batch].split(self.plan.batch))

    def outcome(self, losses: Float[Tensor, " epochs"]) -> Outcome:
        """What the network is worth as it stands, after epochs of these losses."""
        finite = losses.isfinite().all() and all(x.isfinite().all() for x in self.net.state_dict().values())
        frames, classes = list(self.plan.frames), len(self.scenes.classes)
        if not finite:
            none = torch.zeros(classes, classes, dtype=torch.int64)
            nothing = torch.full_like(self.scenes.test.labels[frames], VOID, dtype=torch.uint8).cpu()
            return Outcome(losses, torch.tensor(True), none, none, nothing)
        val, test = (self.predict(split) for split in (self.scenes.val, self.scenes.test))
        matrices = (
            confusion(split.labels, called, classes).cpu()
            for split, called in ((self.scenes.val, val), (self.scenes.test, test))
        )
        return Outcome(losses, torch.tensor(False), *matrices, test[frames].to(torch.uint8).cpu())

    @torch.no_grad()
    def predict(self, split: Split) -> Int64[Tensor, "N H W"]:
        """The class of every pixel, by running averages, in the precision of the training."""
        self.net.eval()
        with _precision(self.device, self.plan.bfloat16):
            return torch.cat([self.net(part).argmax(1) for part in split.images.split(32)])


def gradient_step(net: SegNet, bfloat16: bool = False) -> Callable[[Tensor, Tensor, Tensor, dict], Tensor]:
    """A function of (images, labels, class weights, {}) that returns the loss and leaves its gradient in every ``grad``.

    The loss is the mean over labelled pixels of the cross-entropy, each pixel weighing as its class does. The gradients keep
    their memory and nothing else changes but the norms' averages, so that it can be captured as a CUDA graph.
    """
    parameters = list(net.parameters())
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)

    def step(images: Tensor, labels: Tensor, weights: Tensor, noise: dict) -> Tensor:
        with _precision(images.device, bfloat16):
            logits = net(images)
        loss = F.cross_entropy(logits.float(), labels, weights, ignore_index=VOID)
        for parameter, slope in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad.copy_(slope)
        return loss.detach()

    return step


def _precision(device: torch.device, bfloat16: bool) -> torch.autocast:
    # no cache: a captured graph must hold the casts of the weights
    return torch.autocast(device.type, torch.bfloat16, enabled=bfloat16, cache_enabled=False)


def start(net: SegNet, seed: int, k: int) -> dict[str, Tensor]:
    """Parameters of training ``k``: weights as He et al. (arXiv 1502.01852) draw them, filters before norms then of unit length.

    Drawn on the CPU, so that every device starts alike.
    """
    found = {}
    for name, parameter in net.named_parameters():
        if parameter.ndim == 4:
            purpose = f"segmentation/{name}"
            drawn = randomness.normal(seed, torch.tensor([k]), purpose, 0, tuple(parameter.shape))[0]
            found[name] = drawn * (2 / drawn[0].numel()) ** 0.5
        else:
            found[name] = torch.full(parameter.shape, float(name.endswith("weight")))
    for name in net.filters():
        found[name] = F.normalize(found[name].flatten(1), dim=1).view_as(found[name])
    return found


def optimiser(net: SegNet, method: str, rate: Number) -> torch.optim.Optimizer:
    """Plain gradient descent, or filters on the unit sphere and the rest by plain gradient descent.

    Which filters may be held there is found by ``unit_norm_parameters`` from the network itself, with values repeated
    instead of put back to their places, which it does not know: both move the values of a channel and nothing more, and
    so let a positive factor of the channel through. Raises ValueError for an unknown method.
    """
    if method == SGD:
        return torch.optim.SGD(net.parameters(), lr=rate)
    if method != UNIT:
        raise ValueError(f"method {method!r} is not known: use one of {', '.join(METHODS)}.")
    from lib.unit_norm import UnitNormSGD, unit_norm_parameters

    twin = copy.copy(net)  # the same modules and parameters
    twin.unpooling = "nearest"
    side = 2 ** len(net.encoder)
    return UnitNormSGD(unit_norm_parameters(twin, torch.zeros(1, 3, side, side)), lr=rate)
