"""Assignment: both solvers find the largest sum there is, whatever the worths, and agree on problems too large to search."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from lib.matching import assignment
from lib.matching.assignment import LARGE, SOLVERS, solver
from lib.randomness import integers, normal

PROBLEMS = 7


def worths(kind: str, size: int, problems: int = PROBLEMS) -> torch.Tensor:
    """Problems (P, size, size) of one kind, float64."""
    members, shape = torch.arange(problems), (size, size)
    if kind == "ties":
        return integers(1, members, "test/ties", size, 3, shape).double()
    drawn = normal(1, members, "test/worths", size, shape, torch.float64)
    return {
        "normal": drawn,
        "negative": -3 - drawn.abs(),
        "tiny": 1e-200 * drawn,
        "huge": 1e200 * drawn,
        "far from zero": 1e6 + drawn,
        "one good column": drawn + 50 * (torch.arange(size) == 0),
        "products": drawn @ drawn.mT,
        "zeros": torch.zeros_like(drawn),
    }[kind]


def sums(worth: torch.Tensor, perms: torch.Tensor) -> torch.Tensor:
    """(P,): what the permutations are worth; each must be one."""
    size = worth.shape[-1]
    assert perms.dtype == torch.int64
    assert perms.shape == worth.shape[:2]
    assert torch.equal(perms.sort(1).values, torch.arange(size).expand_as(perms))
    return worth.gather(2, perms[..., None]).sum((1, 2))


def best_of_all(worth: torch.Tensor) -> torch.Tensor:
    size = worth.shape[-1]
    orders = torch.tensor(list(itertools.permutations(range(size))))
    return worth[:, torch.arange(size), orders].sum(2).amax(1)


def shortfall(worth: torch.Tensor) -> torch.Tensor:
    """(P,): by how much a sum may differ, for rounding and for what the auction leaves."""
    return 1e-9 * (worth.amax((1, 2)) - worth.amin((1, 2))) + 1e-13 * worth.abs().sum((1, 2))


KINDS = (
    "normal",
    "ties",
    "negative",
    "tiny",
    "huge",
    "far from zero",
    "one good column",
    "products",
    "zeros",
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SOLVERS)
def test_no_order_is_worth_more(name: str, kind: str) -> None:
    for size in range(1, 7):
        worth = worths(kind, size)
        assert ((sums(worth, solver(name)(worth)) - best_of_all(worth)).abs() <= shortfall(worth)).all(), size


@pytest.mark.parametrize("size", [1, 5, 64])
@pytest.mark.parametrize(
    "name",
    [
        "scipy",
        "auction",
    ],
)
def test_equal_worths_are_assigned(name: str, size: int) -> None:
    worth = torch.tensor([0.0, 1.0, -2.0, 100.0]).double()[:, None, None].expand(4, size, size)
    assert torch.equal(sums(worth, solver(name)(worth)), size * worth[:, 0, 0])


@pytest.mark.parametrize(
    ("kind", "size"),
    [*itertools.product(["normal", "ties", "products"], [5, 64]), ("normal", 800), ("products", 800)],
)
def test_both_solvers_agree(kind: str, size: int) -> None:
    worth = worths(kind, size, PROBLEMS if size < LARGE else 1)
    one, other = (sums(worth, solve(worth)) for solve in SOLVERS.values())
    assert ((one - other).abs() <= shortfall(worth)).all()


@pytest.mark.parametrize("kind", ["normal", "ties", "negative", "one good column", "products", "zeros"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_opening_changes_no_sum(kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    worth = worths(kind, 800, 1).to(dtype)
    opened, opening = [], assignment._opening
    monkeypatch.setattr(assignment, "_opening", lambda one: opened.append(len(one)) or opening(one))
    found = sums(worth.double(), assignment.assign(worth))
    exact = torch.from_numpy(linear_sum_assignment(worth[0].double().numpy(), maximize=True)[1])[None]
    tolerance = 800 * torch.finfo(dtype).eps * worth.double().abs().amax()
    assert (sums(worth.double(), exact) - found).abs() <= tolerance
    assert opened == [800]
    assert LARGE <= 800
    assignment.assign(worths("normal", 64))
    assert opened == [800]


def test_the_opening_brings_most_rows_beside_their_columns() -> None:
    worth = worths("normal", 800, 1)[0].numpy()
    column = linear_sum_assignment(worth, maximize=True)[1]
    near = []
    for gains in (worth, worth - assignment._opening(worth)):
        short = gains.max(1) - gains[range(800), column]
        near.append((short <= assignment.STEP * (worth.max() - worth.min())).mean())
    assert near[0] < 0.6 < 0.8 < near[1], near


@pytest.mark.parametrize("name", SOLVERS)
def test_a_problem_does_not_depend_on_its_neighbours(name: str) -> None:
    scales = torch.tensor([1e-6, 1.0, 1e6])[:, None, None].double()
    worth = torch.cat([scales * worths("normal", 20, 3), worths("products", 20, 3)])
    together = solver(name)(worth)
    alone = torch.cat([solver(name)(worth[i : i + 1]) for i in range(len(worth))])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_problems_stay_as_they_are(name: str) -> None:
    worth = worths("normal", 30)
    before = worth.clone()
    solver(name)(worth)
    assert torch.equal(worth, before)


def test_a_planted_order_is_found() -> None:
    planted = torch.rand(4, 50, generator=torch.Generator().manual_seed(2)).argsort(1)
    worth = worths("normal", 50, 4) + 20 * torch.nn.functional.one_hot(planted, 50)
    for name, solve in SOLVERS.items():
        assert torch.equal(solve(worth), planted), name


def test_another_solver_is_not_known() -> None:
    with pytest.raises(
        ValueError, match="no assignment solver called 'greedy': choose one of scipy, auction"
    ):
        solver("greedy")
