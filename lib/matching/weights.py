"""Weight matching: bring networks as near to a reference as permuting their units can.

Maximises the inner product of all weights, biases and norm parameters with the reference's, which is to minimise their
distance, since permutations keep the norm (Ainsworth, Hayase & Srinivasa, *Git Re-Basin*, ICLR 2023, section 3.2). One
layer's units, all others held, are a linear assignment problem; layers take turns until none of them changes. With one
hidden layer that is the optimum, with several a local one.

Wide layers take ``lib.matching.ascent``, a network at a time; narrow ones, and units inside exchangeable blocks,
``lib.matching.blocks``, all networks at once. Which of the two is a matter of the architecture alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from lib.device import one_thread
from lib.matching.ascent import Ascent, Seat, inner, seats
from lib.matching.assignment import Solver, solver
from lib.matching.blocks import Climb
from lib.matching.units import compared, refuse_broken
from lib.params import Params, member
from lib.symmetry import Symmetries, canonicalize, members_of, permute
from lib.symmetry.canonical import Scale

WIDE = 48  # units of the largest group from which networks are matched one at a time


@dataclass(frozen=True, eq=False)
class Matched:
    """Networks matched to a reference: params = permute(others, symmetries, perms), the same functions.

    ``perms`` one (*P, size) int64 tensor a group. ``objective`` (1 + sweeps, *P) float64: the inner product of each
    network's weights with the reference's, before the first sweep over the groups and after each: the first takes the
    layers from the input on, the last found nothing to change. ``solves`` counts assignment problems, ``seconds`` time.
    """

    params: Params
    perms: tuple[Tensor, ...]
    objective: Tensor
    solves: int
    seconds: float

    @property
    def sweeps(self) -> int:
        """How often all groups were gone through."""
        return len(self.objective) - 1


def match(
    reference: Mapping[str, Tensor],
    others: Mapping[str, Tensor],
    symmetries: Symmetries,
    by: str = "weights",
    *,
    kernel: str = "product",
    assignment: str = "scipy",
) -> Matched:
    """Each of ``others`` (P, ...), or the single network that it is, with its units in the order nearest to ``reference``.

    ``reference`` is one network, or a population of the same P: network i is then matched to reference i. Coordinate
    ascent over the permutation groups, from the order that the units have; a network does not depend on its neighbours.
    ``kernel``: the inner "product" of all tensors, or the "cosine", each tensor first divided by its norm, so that all count
    alike. ``assignment``: a solver of ``lib.matching.assignment``. The objective is computed in float64, and never falls.

    Raises ValueError for populations of different sizes, another architecture, weights that are not finite, or another
    ``by``, ``kernel`` or ``assignment`` than is known. (Activations take more than weights: ``match_activations``.)
    """
    if by != "weights":
        raise ValueError(
            f"matching by {by!r} is not known here: networks are matched by 'weights', and by what they compute in "
            "lib.matching.match_activations, which takes the networks' inputs."
        )
    if kernel not in ("product", "cosine"):
        raise ValueError(f"there is no kernel {kernel!r}: choose 'product' or 'cosine'.")
    started, chosen = time.perf_counter(), solver(assignment)
    members, references = members_of(others, symmetries), members_of(reference, symmetries)
    if references is not None and references != members:
        raise ValueError(
            f"{references} references for {'a single network' if members is None else f'{members} networks'}: give one "
            "reference (say member(params, 0)), or one for each network."
        )
    names = compared(symmetries)
    batch = {name: wide_enough(others[name] if members is not None else others[name][None]) for name in names}
    aims = {
        name: wide_enough(reference[name] if references is not None else reference[name][None])
        for name in names
    }
    refuse_broken(batch, names)
    refuse_broken(aims, names, "network" if references is not None else "the reference")
    if kernel == "cosine":
        batch, aims = _alike(batch), _alike(aims)
    with one_thread():
        perms, objective, solves = _matched(aims, batch, symmetries, chosen)
    if members is None:
        perms, objective = tuple(perm[0] for perm in perms), objective[:, 0]
    seconds = time.perf_counter() - started
    return Matched(permute(others, symmetries, perms), perms, objective, solves, seconds)


def canonical_by_matching(
    params: Mapping[str, Tensor],
    symmetries: Symmetries,
    reference: Mapping[str, Tensor],
    scale: Scale = "unit_norm",
    *,
    freedoms: str | Sequence[str] | None = None,
) -> Params:
    """The third canonicalisation: scales removed from ``params`` and from ``reference`` alike, then units matched to it.

    ``scale`` and ``freedoms`` as in ``canonicalize``. Unlike a sort, the form depends on the reference network.
    """
    scaled, aim = (canonicalize(x, symmetries, scale, None, freedoms=freedoms) for x in (params, reference))
    return match(aim, scaled, symmetries).params


Found = tuple[
    tuple[Int64[Tensor, "P _"], ...], Tensor, int
]  # perms, objective (1 + sweeps, P), problems solved


def _matched(aims: Params, batch: Params, symmetries: Symmetries, chosen: Solver) -> Found:
    """Each network of the batch to its aim, or to the one that there is."""
    sizes = [group.size for group in symmetries.permutations]
    plain = seats(symmetries) if max(sizes, default=0) >= WIDE else None
    members, alone = len(next(iter(batch.values()))), len(next(iter(aims.values()))) == 1
    if plain is None and alone:
        return _climbed(member(aims, 0), batch, symmetries, chosen)
    found: list[Found] = []
    for i in range(members):
        aim, one = (
            member(aims, 0 if alone else i),
            {name: tensor[i : i + 1] for name, tensor in batch.items()},
        )
        if plain is None:
            found.append(_climbed(aim, one, symmetries, chosen))
            continue
        ascent, history = ascend(aim, member(one, 0), plain, chosen)
        found.append(
            (
                tuple(perm[None] for perm in ascent.perms),
                torch.tensor(history, dtype=torch.float64)[:, None],
                ascent.solves,
            )
        )
    longest = max(len(history) for _, history, _ in found)
    objective = [torch.cat([h, h[-1:].expand(longest - len(h), -1)]) for _, h, _ in found]
    perms = tuple(torch.cat(group) for group in zip(*(perms for perms, _, _ in found), strict=True))
    return perms, torch.cat(objective, 1), sum(solves for _, _, solves in found)


def ascend(aim: Params, other: Params, plain: list[list[Seat]], chosen: Solver) -> tuple[Ascent, list[float]]:
    """One wide network to its reference, from the better of two starts; with the objective after each sweep."""
    ascent = Ascent(aim, other, plain, chosen)
    first = inner(other, aim)
    ascent.from_input()
    if ascent.gained <= 0:
        ascent = Ascent(aim, other, plain, chosen)
    return ascent, [first, *(first + gained for gained in ascent.up())]


def toward(
    aim: Params,
    own: Params,
    symmetries: Symmetries,
    plain: list[list[Seat]] | None,
    chosen: Solver,
    rounds: int | None = None,
) -> tuple[tuple[Int64[Tensor, " _"], ...] | None, int]:
    """One network towards an aim from where it stands: the step, or None if it stands best, and the problems solved.

    ``rounds`` over the groups at most; all that it takes where units lie in blocks.
    """
    if plain is not None:
        ascent = Ascent(aim, own, plain, chosen)
        ascent.up(rounds)
        return (tuple(ascent.perms) if ascent.gained > 0 else None), ascent.solves
    climb = Climb(aim, {name: tensor[None] for name, tensor in own.items()}, symmetries, chosen)
    best, values = climb.up(
        climb.start(), [g for g, x in enumerate(symmetries.permutations) if x.inside is None]
    )
    moved = bool(values[-1] > values[0])
    return (tuple(perm[0] for perm in best.perms) if moved else None), climb.count[0]


def _climbed(aim: Params, batch: Params, symmetries: Symmetries, chosen: Solver) -> Found:
    """All networks of the batch at once."""
    top = [g for g, group in enumerate(symmetries.permutations) if group.inside is None]
    climb = Climb(aim, batch, symmetries, chosen)
    own = climb.start()
    best, values = climb.up(climb.better(own, climb.from_input(top)), top)
    return best.perms, torch.stack([own.value, *values]), climb.count[0]


def _alike(networks: Params) -> Params:
    """Each tensor of each network divided by its norm."""
    norms = {
        name: t.flatten(1).norm(dim=1).clamp(min=torch.finfo(t.dtype).tiny) for name, t in networks.items()
    }
    return {name: t / norms[name].view(-1, *[1] * (t.ndim - 1)) for name, t in networks.items()}


def wide_enough(tensor: Tensor) -> Tensor:
    """At least float32: half precision holds no sums."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor
