"""The manifold of unit rows: its verbs, on filters of any shape.

M = {W : ‖w_i‖ = 1 for every filter i} is a product of spheres, the oblique manifold of Absil & Gallivan (2006), transposed.
A filter is one entry of the leading axes, all that follows flattened: ``lead = 1`` reads a weight as torch keeps it, (out,
in) or (out, in, k, k); ``lead = 2`` reads a stack of P networks, (P, out, in, ...). Source: Badrinarayanan, Mishra & Cipolla
2015 (arXiv 1511.01029); notation of the notes, section 1.4.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


class ZeroFilter(ValueError):
    """A filter of length zero, which has no direction to keep."""


def norms(weight: Float[Tensor, "*filters"], lead: int = 1) -> Float[Tensor, "*ones"]:
    """Length of every filter, with axes of length 1 in place of the flattened ones, so that it divides the weight."""
    return torch.linalg.vector_norm(weight, dim=_inside(weight, lead), keepdim=True)


def inner(
    first: Float[Tensor, "*filters"], second: Float[Tensor, "*filters"], lead: int = 1
) -> Float[Tensor, "*ones"]:
    """Inner product of every filter of ``first`` with the same filter of ``second``; shape as ``norms``."""
    return (first * second).sum(dim=_inside(first, lead), keepdim=True)


def normalise(weight: Float[Tensor, "*filters"], lead: int = 1) -> Float[Tensor, "*filters"]:
    """The nearest point of the manifold: every filter divided by its length. Raises ZeroFilter where one has none."""
    lengths = norms(weight, lead)
    if bool((lengths == 0).any()):
        first = int((lengths.flatten() == 0).nonzero()[0])
        raise ZeroFilter(
            f"filter {first} of a weight of shape {tuple(weight.shape)} is zero and has no direction: "
            "give it a random start, or leave this weight unconstrained."
        )
    return weight / lengths


def project(
    weight: Float[Tensor, "*filters"], vector: Float[Tensor, "*filters"], lead: int = 1
) -> Float[Tensor, "*filters"]:
    """The part of ``vector`` in the tangent space at unit ``weight``: v - ⟨v, w⟩ w for every filter."""
    return vector - inner(vector, weight, lead) * weight


def retract(
    weight: Float[Tensor, "*filters"], step: Float[Tensor, "*filters"], lead: int = 1
) -> Float[Tensor, "*filters"]:
    """Back on the manifold after a tangent step: (w + z) / ‖w + z‖, equal to the exponential map up to order ‖z‖³."""
    moved = weight + step
    return moved / norms(moved, lead)


def exponential(
    weight: Float[Tensor, "*filters"], step: Float[Tensor, "*filters"], lead: int = 1
) -> Float[Tensor, "*filters"]:
    """Along the great circle that starts in the direction z, as far as ‖z‖: cos‖z‖ w + sin‖z‖ z/‖z‖."""
    length = norms(step, lead)
    return length.cos() * weight + _sinc(length) * step


def logarithm(
    weight: Float[Tensor, "*filters"], other: Float[Tensor, "*filters"], lead: int = 1
) -> Float[Tensor, "*filters"]:
    """The tangent step whose exponential is ``other`` (not its antipode): the inverse of ``exponential``."""
    tangent = project(weight, other, lead)
    sine = norms(tangent, lead)
    angle = torch.atan2(sine, inner(weight, other, lead))
    return tangent * torch.where(sine > 0, angle / sine, 1.0)


def distance(
    weight: Float[Tensor, "*filters"], other: Float[Tensor, "*filters"], lead: int = 1
) -> Float[Tensor, "*ones"]:
    """The angle between the filters, in radians; shape as ``norms``."""
    return torch.atan2(norms(project(weight, other, lead), lead), inner(weight, other, lead))


def transport(
    there: Float[Tensor, "*filters"], vector: Float[Tensor, "*filters"], lead: int = 1
) -> Float[Tensor, "*filters"]:
    """A tangent vector carried to ``there`` by projection: the transport that belongs to ``retract``."""
    return project(there, vector, lead)


def parallel_transport(
    weight: Float[Tensor, "*filters"],
    step: Float[Tensor, "*filters"],
    vector: Float[Tensor, "*filters"],
    lead: int = 1,
) -> Float[Tensor, "*filters"]:
    """``vector`` carried along the great circle from ``weight`` in the direction ``step``: lengths and angles are kept."""
    length = norms(step, lead)
    along = inner(vector, step, lead)
    turn = -_sinc(length / 2).square() / 2  # (cos x - 1) / x², without its difference of nearly equal numbers
    return vector + along * (turn * step - _sinc(length) * weight)


def _inside(weight: Tensor, lead: int) -> tuple[int, ...]:
    """The axes that make one filter. Raises ValueError where there are none."""
    if weight.ndim <= lead:
        raise ValueError(
            f"a tensor of shape {tuple(weight.shape)} has no filters after {lead} leading "
            f"{'axis' if lead == 1 else 'axes'}: a bias or a scale is no filter, leave it unconstrained."
        )
    return tuple(range(lead, weight.ndim))


def _sinc(length: Tensor) -> Tensor:
    """sin(x) / x, 1 at 0."""
    return torch.sinc(length / torch.pi)
