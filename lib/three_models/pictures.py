"""Deep convolutional networks, one after the other on an accelerator, on shifted and mirrored pictures.

As the authors of paper 5 train (their code; Sharma et al. 2024): momentum 0.9, weight decay, a warm-up, then a
cosine or steps, and each epoch every picture mirrored or not and cut out of a frame that is padded by 4. Every draw
is a counter-based function of (seed, member, purpose, epoch), so that a network is the same one whichever others are
trained. On a CPU it is so to the bit; on a GPU cuDNN may add gradients in any order.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from lib.convnets import initial_kaiming
from lib.data import Dataset
from lib.kept import Kept
from lib.params import Params, member, population_size, stack
from lib.population import Cosine, MultiStep, Recipe, member_ids
from lib.randomness import integers, permutation

PADDING = 4  # pixels on every side
Number = float | int


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: full rate after ``warmup`` epochs, then a cosine, or a tenth at each of ``steps``.

    ``steps`` are epochs from the start; ``decay`` of the weights is coupled, as in torch. Without ``shifts`` pictures
    are shown as they are.
    """

    epochs: int
    rate: Number = 0.1
    warmup: Number = 1
    decay: Number = 1e-4
    batch: int = 128
    steps: tuple[int, ...] = ()
    shifts: bool = True

    @property
    def recipe(self) -> Recipe:
        """The same in the words of ``lib.population``."""
        return Recipe(
            lr=self.rate,
            batch_size=self.batch,
            epochs=self.epochs,
            momentum=0.9,
            weight_decay=self.decay,
            schedule=MultiStep(self.steps) if self.steps else Cosine(),
            warmup=self.warmup,
        )


def train_picture_networks(
    net: nn.Module,
    learn: Dataset,
    schedule: Schedule,
    members: int | range | Tensor,
    seed: int,
    device: torch.device,
    checkpoints: Sequence[int] = (),
    masks: Mapping[str, Tensor] | None = None,
    start: Params | None = None,
    kept: Kept | None = None,
    *,
    name: str = "network",
    first: int = 0,
) -> tuple[Params, dict[int, Params]]:
    """The trained population, and the populations after the epochs ``checkpoints``: on the CPU, statistics included.

    ``learn``: pictures (N, C, H, W), standardised, and their classes. ``start`` (P, ...) in place of
    ``initial_kaiming``; ``masks`` of some parameters, True where a weight lives: others begin at zero and stay there.
    ``first``: epochs that are passed over, for networks that are rewound to the end of that epoch (with no momentum).
    One part of ``kept`` a network, called ``name`` and the network's number. A GPU works in bfloat16, with weights,
    statistics and loss in float32.

    Raises ValueError for a checkpoint that is not passed, a mask of no parameter, or another number of networks in
    ``start`` or ``masks``; RuntimeError where a network diverges.
    """
    kept, numbers = kept or Kept(None), member_ids(members).tolist()
    marks = sorted({*checkpoints, schedule.epochs})
    if not first <= marks[0] <= marks[-1] == schedule.epochs:
        raise ValueError(
            f"checkpoints {list(checkpoints)} are not all between epochs {first} and {schedule.epochs}: "
            "choose epochs of the training."
        )
    if unknown := (masks or {}).keys() - dict(net.named_parameters()).keys():
        raise ValueError(f"a mask is given for {min(unknown)!r}, which is no parameter of the network.")
    for what, given in (("start", start), ("masks", masks)):
        if given is not None and population_size(given) != len(numbers):
            raise ValueError(
                f"{what} has {population_size(given)} networks, and {len(numbers)} are trained: "
                "give one for each."
            )
    dtype = next(net.parameters()).dtype
    pictures, classes = learn.inputs.to(device, dtype), learn.targets.to(device)

    def trained(i: int, number: int) -> Params:
        begin = (
            member(initial_kaiming(net, range(number, number + 1), seed), 0)
            if start is None
            else member(start, i)
        )
        living = {} if masks is None else member(masks, i)
        return _trained(net, pictures, classes, schedule, number, seed, begin, living, marks, first)

    parts = [kept.part(f"{name}-{number}", partial(trained, i, number)) for i, number in enumerate(numbers)]

    def after(epoch: int) -> Params:
        return stack([{key: part[f"{epoch}/{key}"] for key in net.state_dict()} for part in parts])

    return after(schedule.epochs), {epoch: after(epoch) for epoch in sorted(set(checkpoints))}


def _trained(
    net: nn.Module,
    pictures: Tensor,
    classes: Tensor,
    schedule: Schedule,
    number: int,
    seed: int,
    start: Params,
    masks: Params,
    marks: Sequence[int],
    first: int,
) -> Params:
    """One network after some epochs: its tensors on the CPU, called epoch/name."""
    device, recipe, steps = pictures.device, schedule.recipe, schedule.recipe.steps_per_epoch(len(pictures))
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    own = copy.deepcopy(net)
    own.load_state_dict(start)
    own.to(device, memory_format=layout).train()
    weights = list(own.parameters())
    masked = [i for i, (name, _) in enumerate(own.named_parameters()) if name in masks]
    living = [masks[name].to(device, weights[0].dtype) for name, _ in own.named_parameters() if name in masks]
    with torch.no_grad():
        for i, mask in zip(masked, living, strict=True):
            weights[i].mul_(mask)
    moments = recipe.moments(weights)
    found = _named(own, first) if first in marks else {}
    # allowed to try, cuDNN finds faster kernels than it would guess
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):
        for epoch in range(first, schedule.epochs):
            total = torch.zeros((), device=device)
            for k, (rows, shown) in enumerate(batches(pictures, schedule, number, seed, epoch)):
                with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                    outputs = own(shown.contiguous(memory_format=layout))
                loss = F.cross_entropy(outputs.to(weights[0].dtype), classes[rows])
                gradients = list(torch.autograd.grad(loss, weights))
                step = epoch * steps + k
                with torch.no_grad():
                    if masked:
                        torch._foreach_mul_([gradients[i] for i in masked], living)
                    recipe.update(weights, gradients, moments, step, recipe.rate(step, steps))
                total += loss.detach()
            if not all(bool(tensor.isfinite().all()) for tensor in (total, *weights)):
                raise RuntimeError(
                    f"network {number} diverged in epoch {epoch + 1}: lower the rate of the schedule."
                )
            if epoch + 1 in marks:
                found |= _named(own, epoch + 1)
    return found


def batches(
    pictures: Float[Tensor, "N C H W"], schedule: Schedule, number: int, seed: int, epoch: int
) -> Iterator[tuple[Int64[Tensor, " B"], Float[Tensor, "B C H W"]]]:
    """What network ``number`` sees in an epoch: every picture once, as rows and as it is shown."""
    n, ids = len(pictures), torch.tensor([number], device=pictures.device)
    order = permutation(seed, ids, "order", epoch, n)[0]
    if schedule.shifts:
        shift = integers(seed, ids, "pictures/shift", epoch, 2 * PADDING + 1, (n, 2))[0]
        mirror = integers(seed, ids, "pictures/mirror", epoch, 2, (n,))[0].bool()
    for rows in order.split(schedule.batch):
        shown = pictures[rows]
        yield rows, shifted(shown, shift[rows], mirror[rows]) if schedule.shifts else shown


def shifted(
    pictures: Float[Tensor, "B C H W"], shift: Int64[Tensor, "B 2"], mirror: Bool[Tensor, " B"]
) -> Float[Tensor, "B C H W"]:
    """Each picture in a frame of ``PADDING`` zeros, cut to its size at ``shift``, then mirrored or not."""
    each, height, width = (torch.arange(size, device=pictures.device) for size in pictures[:, 0].shape)
    rows, columns = shift[:, :1] + height, shift[:, 1:] + width
    columns = torch.where(mirror[:, None], columns.flip(1), columns)
    framed = F.pad(pictures, [PADDING] * 4)
    return framed[each[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def _named(net: nn.Module, epoch: int) -> Params:
    plain = {"copy": True, "memory_format": torch.contiguous_format}
    return {
        f"{epoch}/{name}": tensor.detach().to("cpu", **plain) for name, tensor in net.state_dict().items()
    }
