"""Every verb against the law it must obey, at random points of every shape; and against geoopt and pymanopt."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import geoopt, pymanopt
from torch import Tensor

from lib.randomness import normal
from lib.unit_norm import manifold
from lib.unit_norm.manifold import ZeroFilter

VERBS = ("norms", "normalise", "project", "retract", "exponential", "logarithm", "distance", "transport")


class Case:
    """A point, another, two vectors and a tangent step, all drawn from one seed."""

    def __init__(self, seed: int, shape: tuple[int, ...], lead: int = 1, length: float = 1.0) -> None:
        self.seed, self.shape, self.lead = seed, shape, lead
        self.w, self.other = (manifold.normalise(self.draw(name), lead) for name in ("w", "other"))
        self.u, self.v = self.draw("u"), self.draw("v")
        step = manifold.project(self.w, self.draw("step"), lead)
        self.step = length * step / manifold.norms(step, lead).amax()

    def draw(self, name: str) -> Tensor:
        return normal(self.seed, torch.arange(1), name, 0, self.shape, torch.float64)[0]

    def __repr__(self) -> str:
        return f"Case({self.seed}, {self.shape}, {self.lead})"


SHAPES = [
    ((5, 3), 1),
    ((1, 2), 1),
    ((4, 3, 2), 1),
    ((3, 2, 3, 3), 1),
    ((2, 1, 2, 2, 2), 1),
    ((4, 5, 3), 2),
    ((2, 3, 2, 3), 2),
]
drawn = st.tuples(st.integers(0, 2**31), st.sampled_from(SHAPES), st.floats(1e-6, 3.0))


def law(test: Callable[[Case], None]) -> Callable[[], None]:
    """The test at many cases. They are made inside it: making them calls ``lib``, whose checks use Python's generator."""

    def at(case: tuple) -> None:
        seed, (shape, lead), length = case
        test(Case(seed, shape, lead, length))

    at.__name__, at.__doc__ = test.__name__, test.__doc__
    return settings(max_examples=25, deadline=None)(given(drawn)(at))


def lengths(x: Tensor, lead: int) -> Tensor:
    """Written otherwise than in the module."""
    return x.flatten(lead).square().sum(-1).sqrt()


def dots(x: Tensor, y: Tensor, lead: int) -> Tensor:
    return torch.einsum("...k,...k", x.flatten(lead), y.flatten(lead))


def close(found: Tensor, right: Tensor, tolerance: float = 1e-12) -> None:
    assert found.shape == right.shape
    assert (found - right).abs().max() <= tolerance


def on_manifold(w: Tensor, lead: int) -> None:
    close(lengths(w, lead), torch.ones(w.shape[:lead], dtype=w.dtype), 1e-14)


def tangent(w: Tensor, v: Tensor, lead: int) -> None:
    close(dots(w, v, lead), torch.zeros(w.shape[:lead], dtype=w.dtype))


# --------------------------------------------------------------------------------------------------- laws of verbs


@law
def test_normalise_lands_on_the_manifold_keeps_directions_and_is_idempotent(c):
    scale = 10.0 ** (c.seed % 13 - 6)
    long = scale * c.v
    unit = manifold.normalise(long, c.lead)
    on_manifold(unit, c.lead)
    close(dots(unit, long, c.lead), lengths(long, c.lead), 1e-12 * scale)
    close(manifold.normalise(unit, c.lead), unit, 1e-15)


@law
def test_normalise_finds_the_nearest_point(c):
    nearest, lead = manifold.normalise(c.v, c.lead), c.lead
    assert (lengths(c.v - nearest, lead) <= lengths(c.v - c.other, lead) + 1e-14).all()
    assert (lengths(c.v - nearest, lead) <= lengths(c.v - c.w, lead) + 1e-14).all()


@law
def test_norms_and_inner_are_those_of_flattened_filters(c):
    ones = c.shape[: c.lead] + (1,) * (len(c.shape) - c.lead)
    close(manifold.norms(c.v, c.lead), lengths(c.v, c.lead).view(ones))
    close(manifold.inner(c.u, c.v, c.lead), dots(c.u, c.v, c.lead).view(ones))


@law
def test_project_is_the_orthogonal_projection_on_the_tangent_space(c):
    p = manifold.project(c.w, c.v, c.lead)
    tangent(c.w, p, c.lead)
    close(manifold.project(c.w, p, c.lead), p)
    close(dots(manifold.project(c.w, c.u, c.lead), c.v, c.lead), dots(c.u, p, c.lead))
    close(manifold.project(c.w, c.step, c.lead), c.step)


@law
def test_retraction_and_exponential_land_on_the_manifold(c):
    on_manifold(manifold.retract(c.w, c.step, c.lead), c.lead)
    on_manifold(manifold.exponential(c.w, c.step, c.lead), c.lead)


@law
def test_retraction_and_exponential_agree_to_third_order(c):
    """Their angle differs by x - arctan x = x³/3 + O(x⁵)."""
    for size in (1e-1, 1e-2, 1e-3):
        step = size * c.step / manifold.norms(c.step, c.lead)
        gap = manifold.retract(c.w, step, c.lead) - manifold.exponential(c.w, step, c.lead)
        close(
            lengths(gap, c.lead), torch.full(c.shape[: c.lead], size**3 / 3, dtype=gap.dtype), size**5 + 1e-15
        )


@law
def test_exponential_goes_as_far_as_the_step_is_long_in_its_direction(c):
    end = manifold.exponential(c.w, c.step, c.lead)
    close(manifold.distance(c.w, end, c.lead), manifold.norms(c.step, c.lead))
    near = manifold.exponential(c.w, 1e-6 * c.step, c.lead)
    close((near - c.w) / 1e-6, c.step, 1e-5)


@law
def test_logarithm_inverts_the_exponential(c):
    close(manifold.logarithm(c.w, manifold.exponential(c.w, c.step, c.lead), c.lead), c.step, 1e-11)
    z = manifold.logarithm(c.w, c.other, c.lead)
    tangent(c.w, z, c.lead)
    close(manifold.exponential(c.w, z, c.lead), c.other)


@law
def test_distance_is_the_length_of_the_logarithm_and_a_metric(c):
    d = manifold.distance(c.w, c.other, c.lead)
    close(d, manifold.norms(manifold.logarithm(c.w, c.other, c.lead), c.lead))
    close(d, manifold.distance(c.other, c.w, c.lead))
    close(d.flatten(), dots(c.w, c.other, c.lead).clamp(-1, 1).acos().flatten(), 1e-7)
    between = manifold.normalise(c.v, c.lead)
    assert (
        d <= manifold.distance(c.w, between, c.lead) + manifold.distance(between, c.other, c.lead) + 1e-14
    ).all()


@law
def test_transport_is_tangent_where_it_arrives(c):
    start = manifold.project(c.w, c.v, c.lead)
    there = manifold.transport(c.other, start, c.lead)
    tangent(c.other, there, c.lead)
    tangent(
        c.other,
        (start - there) - dots(start, c.other, c.lead).view(manifold.norms(start, c.lead).shape) * c.other,
        c.lead,
    )


@law
def test_parallel_transport_keeps_inner_products_and_the_geodesics_velocity(c):
    u, v = (manifold.project(c.w, x, c.lead) for x in (c.u, c.v))
    end = manifold.exponential(c.w, c.step, c.lead)
    u_there, v_there, step_there = (
        manifold.parallel_transport(c.w, c.step, x, c.lead) for x in (u, v, c.step)
    )
    for x in (u_there, v_there, step_there):
        tangent(end, x, c.lead)
    close(dots(u_there, v_there, c.lead), dots(u, v, c.lead))
    h = 1e-5
    ahead, behind = (manifold.exponential(c.w, (1 + s) * c.step, c.lead) for s in (h, -h))
    close((ahead - behind) / (2 * h), step_there, 1e-8)


@pytest.mark.parametrize("size", [0.0, 5e-324, 1e-200, 1e-162, 1e-30, 1e-9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_of_no_length_go_nowhere_and_make_no_nan(size, dtype):
    w = manifold.normalise(Case(3, (4, 3)).w.to(dtype))
    step = (size * manifold.project(w, Case(4, (4, 3)).v.to(dtype)).double()).to(dtype)
    v = manifold.project(w, Case(5, (4, 3)).v.to(dtype))
    eps = torch.finfo(dtype).eps
    for found, right in (
        (manifold.retract(w, step), w),
        (manifold.exponential(w, step), w),
        (manifold.parallel_transport(w, step, v), v),
        (manifold.logarithm(w, w), torch.zeros_like(w)),
        (manifold.distance(w, w), torch.zeros(4, 1, dtype=dtype)),
    ):
        close(found, right, 8 * eps + 4 * size)


def test_antipodes_are_pi_apart_and_small_angles_keep_their_digits():
    c = Case(7, (6, 4), length=1e-9)
    close(manifold.distance(c.w, -c.w), torch.full((6, 1), math.pi, dtype=torch.float64), 1e-15)
    d, right = manifold.distance(c.w, manifold.exponential(c.w, c.step)), manifold.norms(c.step)
    assert ((d - right).abs() <= 1e-15).all()  # the arc cosine would say 0, or 2e-8


def test_a_stack_is_its_networks_one_by_one():
    c = Case(11, (4, 5, 3), lead=2)
    for verb in VERBS:
        f = getattr(manifold, verb)
        args = {
            "norms": [c.v],
            "normalise": [c.v],
            "logarithm": [c.w, c.other],
            "distance": [c.w, c.other],
        }.get(verb, [c.w, c.step])
        whole = f(*args, lead=2)
        for i in range(4):
            close(whole[i], f(*(a[i] for a in args)), 1e-15)


# -------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(("shape", "lead", "at"), [((4, 3), 1, 2), ((4, 3, 2, 2), 1, 2), ((2, 3, 4), 2, 5)])
def test_a_zero_filter_is_refused_by_its_number(shape, lead, at):
    w = torch.randn(shape)
    w.flatten(0, lead - 1)[at] = 0
    with pytest.raises(
        ZeroFilter, match=f"filter {at} of a weight of shape .* is zero and has no direction: give it"
    ):
        manifold.normalise(w, lead)
    assert issubclass(ZeroFilter, ValueError)


@pytest.mark.parametrize(
    ("shape", "lead", "axes"),
    [((4,), 1, "1 leading axis"), ((), 1, "1 leading axis"), ((4, 3), 2, "2 leading axes")],
)
@pytest.mark.parametrize("verb", VERBS)
def test_what_has_no_filters_is_refused(verb, shape, lead, axes):
    x = torch.ones(shape)
    with pytest.raises(ValueError, match=f"has no filters after {axes}: a bias or a scale is no filter"):
        getattr(manifold, verb)(*[x] * (1 if verb in ("norms", "normalise") else 2), lead=lead)


# ----------------------------------------------------------------------------------------------------------- peers


@pytest.mark.parametrize("shape", [(5, 3), (7, 20), (2, 3, 4)])
def test_geoopts_sphere_agrees(shape):
    c, sphere = Case(13, shape, len(shape) - 1), geoopt.Sphere()
    verb = {"lead": c.lead}
    z = manifold.project(c.w, c.v, **verb)
    close(manifold.normalise(c.v, **verb), sphere.projx(c.v))
    close(z, sphere.proju(c.w, c.v))
    close(manifold.retract(c.w, z, **verb), sphere.retr(c.w, z))
    close(manifold.exponential(c.w, z, **verb), sphere.expmap(c.w, z))
    close(manifold.logarithm(c.w, c.other, **verb), sphere.logmap(c.w, c.other))
    close(manifold.distance(c.w, c.other, **verb), sphere.dist(c.w, c.other, keepdim=True))
    close(manifold.transport(c.other, z, **verb), sphere.transp(c.w, c.other, z))
    close(manifold.inner(c.u, c.v, **verb), sphere.inner(c.w, c.u, c.v, keepdim=True))


@pytest.mark.parametrize("shape", [(5, 3), (7, 20)])
def test_pymanopts_oblique_manifold_agrees(shape):
    """Its filters are columns, and its distance and norm are those of the whole matrix."""
    c, oblique = Case(17, shape), pymanopt.manifolds.Oblique(*reversed(shape))
    w, other, v, z = (x.T.numpy() for x in (c.w, c.other, c.v, c.step))
    whole = {
        name: float(torch.linalg.vector_norm(x))
        for name, x in (("v", c.v), ("d", manifold.distance(c.w, c.other)))
    }
    for found, right in (
        (manifold.project(c.w, c.v), oblique.projection(w, v)),
        (manifold.project(c.w, c.v), oblique.euclidean_to_riemannian_gradient(w, v)),
        (manifold.retract(c.w, c.step), oblique.retraction(w, z)),
        (manifold.exponential(c.w, c.step), oblique.exp(w, z)),
        (manifold.logarithm(c.w, c.other), oblique.log(w, other)),
        (manifold.transport(c.other, c.step), oblique.transport(w, other, z)),
    ):
        close(found, torch.from_numpy(np.ascontiguousarray(right.T)))
    assert whole["d"] == pytest.approx(oblique.dist(w, other), rel=1e-12)
    assert whole["v"] == pytest.approx(oblique.norm(w, v), rel=1e-12)
    assert float(manifold.inner(c.v, c.step).sum()) == pytest.approx(
        oblique.inner_product(w, v, z), abs=1e-12
    )
