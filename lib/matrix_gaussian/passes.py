r"""One pass of a layer by hand, as torch.autograd sees it: its noise, its pre-activations, its divergence.

Both functions call the laws' own forward and backward passes. Their backward passes are no graphs:
differentiable once, and not under torch.func's transformations.

Noise: each draw seeds a ``torch.Generator`` of its own, from (seed, purpose, number). ``randomness.normal``
would give the same numbers on every device, but costs 26 ns a number and so more than the rest of a step; this
noise is reproduced on one kind of device and in one dtype only.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lib import randomness
from lib.matrix_gaussian.pseudo_data import PseudoData


class NotFinite(ValueError):
    """Pre-activations with infinities or NaN."""


def generator_of(seed: int, purpose: str, number: int, device: torch.device | str) -> torch.Generator:
    """A generator for one draw, seeded by a bijection of ``number`` for each key.

    Torch's generator on a CPU reads 32 bits of its seed: of a layer's first 2^32 draws no two are the same.
    """
    low, high = randomness.key_of(seed, purpose)
    return torch.Generator(device).manual_seed(_mixed(_mixed(number + low) ^ high))


def _mixed(word: int) -> int:
    """The finaliser of MurmurHash3 (Appleby 2011), a bijection of 32-bit words."""
    word &= randomness.MASK
    word = (word ^ word >> 16) * 0x85EBCA6B & randomness.MASK
    word = (word ^ word >> 13) * 0xC2B2AE35 & randomness.MASK
    return word ^ word >> 16


class LocalPass(torch.autograd.Function):
    """A law's pass by hand, for one layer. Differentiable once: its backward pass is no graph."""

    @staticmethod
    def forward(ctx, law, noise, bias, names, x, *own):
        p = {name: value.unsqueeze(0) for name, value in zip(names, own, strict=True)}
        n, inputs = x.shape
        scale = (inputs + bias) ** -0.5
        a = x.new_empty(1, n, inputs + bias)
        torch.mul(x, scale, out=a[0, :, :inputs])  # scaled and copied in one go
        a[0, :, inputs:] = scale
        out, tape = law.forward(p, a, noise)
        ctx.save_for_backward(*own)
        ctx.rest = law, names, tape, inputs, scale
        return out.squeeze_(0)  # no view: an activation that works in place may follow

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        law, names, tape, inputs, scale = ctx.rest
        p = {name: value.unsqueeze(0) for name, value in zip(names, ctx.saved_tensors, strict=True)}
        found, below = law.backward(p, tape, g[None], ctx.needs_input_grad[4])
        of_x = None if below is None else below[0, :, :inputs] * scale
        return None, None, None, None, of_x, *(found[name][0] for name in names)


class Divergence(torch.autograd.Function):
    """½ (ρ E‖W‖² - ln det Σ) and the divergence of pseudo-data's noise. Differentiable once, by the laws' pulls."""

    @staticmethod
    def forward(ctx, law, names, precision, *own):
        p = {name: value.unsqueeze(0) for name, value in zip(names, own, strict=True)}
        mean, slopes = p["mean"], law.log_det_slope(*p["mean"].shape[1:])
        # E‖W‖² = ‖M‖² + what no mean changes. The law is asked for the second and its gradients; the first is
        # the long sum: one pass over M here, and one for its gradient in ``backward``
        found = {name: torch.full_like(p[name], -0.5 * slope) for name, slope in slopes.items()}
        none = mean.new_zeros(1, 1, 1)
        spread = law.add_pull(p | {"mean": none}, precision.detach().view(1), found | {"mean": none.clone()})
        squares = torch.dot(mean.view(-1), mean.view(-1)) + spread
        value = 0.5 * (precision * squares - law.log_det(p))
        if isinstance(law, PseudoData):
            value += law.noise_divergence(p)
        ctx.save_for_backward(squares, precision, *own)
        ctx.rest = law, names, found
        return value.view(())

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        law, names, found = ctx.rest
        squares, precision, *own = ctx.saved_tensors
        p = dict(zip(names, own, strict=True))
        pulls = {name: slope[0] * g for name, slope in found.items()}
        pulls["mean"] = p["mean"] * (precision * g)
        if isinstance(law, PseudoData):
            pulls["log_noise"] = (
                law.noise_pull({name: value.unsqueeze(0) for name, value in p.items()})[0] * g
            )
        of_precision = (0.5 * g * squares).view(()) if ctx.needs_input_grad[2] else None
        return None, None, of_precision, *(pulls.get(name) for name in names)


def refuse_not_finite(out: Tensor, x: Tensor, purpose: str) -> None:
    """Raises NotFinite. One sum tells whether any entry is not finite; only then it looks closer."""
    if math.isfinite(out.sum()) or bool(out.isfinite().all()):
        return
    if not bool(x.isfinite().all()):
        raise NotFinite(
            f"layer {purpose!r} was given inputs that are infinite or no numbers: look at the batch."
        )
    raise NotFinite(
        f"layer {purpose!r} gives outputs that are infinite or no numbers from finite inputs: its "
        "parameters have diverged. Start again with a smaller learning rate."
    )
