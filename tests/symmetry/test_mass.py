"""The minimum mass: right on known answers, never below what its certificate proves, honest where none exists."""

from __future__ import annotations

import handmade
import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from lib.params import member
from lib.symmetry.act import permute, random_log_scales, random_permutations, rescale
from lib.symmetry.mass import UnattainedInfimum, log_scale_objective, mass, min_mass
from lib.symmetry.structure import Place, ScaleFreedom, Symmetries

HOMOGENEOUS = [name for name in handmade.BUILDERS if name != "batch_norm"]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def close(a: torch.Tensor, b: torch.Tensor, relative: float) -> bool:
    return bool(((a - b).abs() <= relative * b.abs()).all())


def by_lbfgs(params: dict, symmetries: Symmetries, start: np.ndarray, biases: bool = False) -> float:
    """An independent minimum: SciPy's L-BFGS on the mass of the rescaled network, through the action itself."""
    single = {name: tensor.clone() for name, tensor in params.items()}
    sizes = [freedom.size for freedom in symmetries.scales]

    def value_and_gradient(u: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.tensor(u, dtype=torch.float64, requires_grad=True)
        value = mass(rescale(single, symmetries, point.split(sizes)), symmetries, biases=biases)
        value.backward()
        return value.item(), point.grad.numpy()

    options = {"ftol": 1e-16, "gtol": 1e-9, "maxiter": 5000, "maxfun": 20000}
    return minimize(value_and_gradient, start, jac=True, method="L-BFGS-B", options=options).fun


def by_cvxpy(params: dict, symmetries: Symmetries) -> float:
    import cvxpy as cp

    objective = log_scale_objective(params, symmetries)
    coefficients, exponents = objective.coefficients.numpy(), objective.exponents.numpy()
    u = cp.Variable(exponents.shape[1])
    problem = cp.Problem(cp.Minimize(cp.log_sum_exp(np.log(coefficients) + 2 * exponents @ u)))
    return float(np.exp(problem.solve(solver=cp.CLARABEL)))


def test_the_mass_is_the_sum_of_squared_weights() -> None:
    net, symmetries = handmade.batch_norm()
    params = handmade.population(net, 3, seed=0)
    counted = ["0.weight", "1.weight", "3.weight"]
    expected = sum(params[name].square().reshape(3, -1).sum(1) for name in counted)
    assert close(mass(params, symmetries), expected, 1e-14)
    with_biases = expected + sum(params[f"{i}.bias"].square().sum(1) for i in (0, 1, 3))
    assert close(mass(params, symmetries, biases=True), with_biases, 1e-14)
    assert mass(member(params, 0), symmetries).shape == ()


@pytest.mark.parametrize("biases", [False, True])
def test_one_hidden_layer_has_a_closed_form(biases: bool) -> None:
    net, symmetries = handmade.mlp(7, 5, 3)
    params = handmade.population(net, 50, seed=1)
    entering = params["0.weight"].square().sum(2) + (params["0.bias"].square() if biases else 0)
    leaving = params["2.weight"].square().sum(1)
    expected = 2 * (entering * leaving).sqrt().sum(1) + (params["2.bias"].square().sum(1) if biases else 0)
    result = min_mass(params, symmetries, biases=biases)
    assert close(result.mass, expected, 1e-13)
    assert close(result.log_scales[0], 0.25 * (leaving / entering).log(), 1e-12)
    assert result.sweeps.max() == 1
    assert result.gap.max() < 1e-15
    assert result.strict.all()


@pytest.mark.parametrize(
    ("name", "biases"), [*((name, False) for name in HOMOGENEOUS), ("mlp", True), ("loop", True)]
)
def test_it_agrees_with_a_general_solver(name: str, biases: bool) -> None:
    net, symmetries = handmade.BUILDERS[name]()
    params = handmade.population(net, 2, seed=2)
    result = min_mass(params, symmetries, biases=biases, tolerance=1e-13)
    n = sum(freedom.size for freedom in symmetries.scales)
    found = torch.tensor(
        [by_lbfgs(member(params, i), symmetries, np.zeros(n), biases) for i in range(2)], dtype=torch.float64
    )
    assert close(result.mass, found, 1e-11)


def test_the_note_s_network_from_many_starts_and_three_solvers() -> None:
    net, symmetries = handmade.mlp(20, 16, 12, 5)
    params = handmade.population(net, 1, seed=3)
    result = min_mass(params, symmetries, tolerance=1e-14)
    draws = np.random.default_rng(0)
    for _ in range(4):
        found = by_lbfgs(member(params, 0), symmetries, draws.normal(size=28))
        assert abs(found / result.mass.item() - 1) < 1e-11
    assert abs(by_cvxpy(member(params, 0), symmetries) / result.mass.item() - 1) < 1e-7
    many = {key: tensor.expand(20, *tensor.shape[1:]) for key, tensor in params.items()}
    started = min_mass(many, symmetries, start=random_log_scales(symmetries, generator(4), 20, spread=2.0))
    assert close(started.mass, result.mass.expand(20), 2e-12)
    for a, b in zip(started.log_scales, result.log_scales, strict=True):
        assert (a - b).abs().max() < 1e-5  # one solution


@pytest.mark.parametrize("name", HOMOGENEOUS)
def test_the_certificate_is_a_bound_at_every_sweep_and_closes(name: str) -> None:
    net, symmetries = handmade.BUILDERS[name]()
    params = handmade.population(net, 100, seed=5)
    best = min_mass(params, symmetries, tolerance=1e-14)
    assert best.gap.max() < 1e-13
    previous = torch.full((100,), torch.inf, dtype=torch.float64)
    for sweeps in range(6):
        here = min_mass(params, symmetries, tolerance=0.0, max_sweeps=sweeps)
        true_gap = (here.mass - best.mass) / here.mass
        assert (true_gap <= here.gap + 1e-13).all()
        assert (here.mass <= previous * (1 + 1e-14)).all()  # every sweep descends
        previous = here.mass
    assert min_mass(params, symmetries, max_sweeps=0).gap.min() > 1e-3  # a bad point is not certified


def test_units_that_feed_one_another_do_not_overshoot() -> None:
    """Two units in a circle, hardly anything else: joint full steps would swap them for ever, at mass 101."""
    net, symmetries = handmade.loop()
    params = member(handmade.population(net, 1, seed=5), 0)
    params = {name: 1e-6 * tensor for name, tensor in params.items()}
    params["block.weight"] = torch.zeros(5, 5, dtype=torch.float64)
    params["block.weight"][0, 1], params["block.weight"][1, 0] = 10.0, 1.0
    result = min_mass(params, symmetries, tolerance=0.0, max_sweeps=3)
    assert abs(result.mass.item() / (2 * 10.0 * 1.0) - 1) < 1e-6


@pytest.mark.parametrize("name", HOMOGENEOUS)
def test_the_minimum_belongs_to_the_orbit(name: str) -> None:
    net, symmetries = handmade.BUILDERS[name]()
    params, inputs = handmade.population(net, 10, seed=6), handmade.example(name, 8, seed=7)
    moved = permute(params, symmetries, random_permutations(symmetries, generator(8), 10))
    moved = rescale(moved, symmetries, random_log_scales(symmetries, generator(9), 10))
    here, there = min_mass(params, symmetries), min_mass(moved, symmetries)
    assert close(there.mass, here.mass, 3e-12)
    assert (here.mass <= mass(params, symmetries)).all()
    assert close(mass(here.params, symmetries), here.mass, 1e-12)
    before, after = handmade.outputs(net, params, inputs), handmade.outputs(net, here.params, inputs)
    assert (before - after).abs().max() < 1e-9 * before.abs().max()


def test_dead_units_are_peeled_layer_by_layer() -> None:
    net, symmetries = handmade.mlp(6, 5, 4, 3)
    params = handmade.population(net, 6, seed=10)
    reference = min_mass(params, symmetries)
    params["0.weight"][1, 2] = 0  # member 1: no incoming weight
    params["2.weight"][2, :, 3] = 0  # member 2: no outgoing weight
    params["0.weight"][3, 0], params["2.weight"][3, :, 0] = 0, 0  # member 3: neither: the mass ignores it
    params["0.weight"][4] = 0  # member 4: the whole layer, so that the next one dies with it
    result = min_mass(params, symmetries)
    assert torch.isfinite(result.mass).all()
    assert result.gap.max() <= 1e-12
    assert result.strict.tolist() == [True, False, False, False, False, True]
    assert result.attained.tolist() == [True, False, False, True, False, True]
    assert [mask.sum(1).tolist() for mask in result.dead] == [[0, 1, 1, 1, 5, 0], [0, 0, 0, 0, 4, 0]]
    assert result.mass[4] == 0
    for i in (0, 5):
        assert result.mass[i] == reference.mass[i]
    for mask, log_scale in zip(result.dead, result.log_scales, strict=True):
        assert (log_scale[mask] == 0).all()
    # the infimum is approached, and not reached, along the dead unit's scale
    towards = [log_scale[1].clone() for log_scale in result.log_scales]
    masses = []
    for push in (2.0, 6.0, 12.0):
        towards[0][2] = push
        masses.append(mass(rescale(member(params, 1), symmetries, towards), symmetries).item())
    excess = [m / result.mass[1].item() - 1 for m in masses]
    assert excess[0] > excess[1] > excess[2] > 0
    assert excess[2] < 1e-9


def test_batch_norm_has_no_minimum_and_says_which_scales_have_one() -> None:
    net, symmetries = handmade.batch_norm()
    params = handmade.population(net, 4, seed=11)
    with pytest.raises(UnattainedInfimum, match=r"'0' \(normalised\).*freedoms=\('affine',\)"):
        min_mass(params, symmetries)
    for kinds in ("affine", ("homogeneous", "affine")):
        result = min_mass(params, symmetries, freedoms=kinds)
        gamma, reading = params["1.weight"].square(), params["3.weight"].square().sum(1)
        expected = params["0.weight"].square().sum((1, 2)) + 2 * (gamma * reading).sqrt().sum(1)
        assert close(result.mass, expected, 1e-13)
        assert (result.log_scales[0] == 0).all()
    inputs = handmade.example("batch_norm", 8, seed=1)
    before, masses = handmade.outputs(net, params, inputs), [mass(params, symmetries)]
    for k in range(1, 7):
        u = [torch.full((6,), -k * np.log(10.0)), torch.zeros(6, dtype=torch.float64)]
        shrunk = rescale(params, symmetries, u)
        assert (handmade.outputs(net, shrunk, inputs) - before).abs().max() < 1e-9 * before.abs().max()
        assert (mass(shrunk, symmetries) < masses[-1]).all()
        masses.append(mass(shrunk, symmetries))
    with pytest.raises(ValueError, match="unknown kind of freedom 'batchnorm'"):
        min_mass(params, symmetries, freedoms="batchnorm")


def test_no_scale_at_all_leaves_the_mass() -> None:
    net, symmetries = handmade.batch_norm()
    params = handmade.population(net, 4, seed=11)
    result = min_mass(params, symmetries, freedoms="homogeneous")
    assert close(result.mass, mass(params, symmetries), 1e-14)
    assert (result.gap == 0).all()


def test_members_do_not_depend_on_their_neighbours() -> None:
    net, symmetries = handmade.mlp(6, 5, 4, 3)
    params = handmade.population(net, 40, seed=12)
    params["0.weight"][7, 0, 0] = torch.nan
    together = min_mass(params, symmetries)
    assert together.mass[7].isnan()
    assert together.gap[7].isnan()
    assert not together.attained[7]
    for i in (0, 3, 39):
        alone = min_mass(member(params, i), symmetries)
        assert alone.mass.shape == ()
        assert alone.sweeps == together.sweeps[i]
        assert close(alone.mass, together.mass[i], 1e-14)
        for a, b in zip(alone.log_scales, together.log_scales, strict=True):
            assert (a - b[i]).abs().max() < 1e-12
    assert torch.isfinite(together.mass[[i for i in range(40) if i != 7]]).all()


def test_the_dtype_stays_and_the_certificate_is_float64() -> None:
    net, symmetries = handmade.mlp(6, 5, 4, 3)
    params = {name: tensor.float() for name, tensor in handmade.population(net, 5, seed=1).items()}
    result = min_mass(params, symmetries)
    assert all(tensor.dtype == torch.float32 for tensor in result.params.values())
    assert result.mass.dtype == torch.float64
    assert result.gap.max() <= 1e-12


@pytest.mark.parametrize("name", handmade.BUILDERS)
def test_the_objective_is_the_mass_of_the_rescaled_network(name: str) -> None:
    net, symmetries = handmade.BUILDERS[name]()
    params = member(handmade.population(net, 1, seed=13), 0)
    for biases in (False, True):
        objective = log_scale_objective(params, symmetries, biases=biases)
        u = torch.cat(random_log_scales(symmetries, generator(14), 30), 1)
        images = rescale(params, symmetries, objective.split(u))
        assert close(objective(u), mass(images, symmetries, biases=biases), 1e-13)


def test_the_objective_is_strictly_convex_and_flat_at_the_minimum() -> None:
    net, symmetries = handmade.mlp(20, 16, 12, 5)
    params = member(handmade.population(net, 1, seed=15), 0)
    objective = log_scale_objective(params, symmetries)
    a, b = torch.randn(2, 10_000, 28, generator=generator(16), dtype=torch.float64)
    assert (objective((a + b) / 2) < (objective(a) + objective(b)) / 2).all()
    best = torch.cat(min_mass(params, symmetries, tolerance=1e-14).log_scales)
    gradient = torch.func.grad(objective)(best)
    assert gradient.abs().max() < 1e-5 * objective(best)
    hessian = objective.hessian(best)
    assert (hessian - torch.func.jacrev(torch.func.grad(objective))(best)).abs().max() < 1e-10
    assert torch.linalg.eigvalsh(hessian).min() > 0
    params["0.weight"][0], params["2.weight"][:, 0] = 0, 0  # a unit on neither side: no longer strict
    assert torch.linalg.eigvalsh(log_scale_objective(params, symmetries).hessian(best)).min().abs() < 1e-12
    with pytest.raises(ValueError, match="takes one network"):
        log_scale_objective({name: tensor[None] for name, tensor in params.items()}, symmetries)


def test_a_weight_that_is_no_edge_is_refused() -> None:
    one, two = handmade.units(2), handmade.units(1, 2)
    shapes = {"a.weight": torch.Size([2, 2]), "b.weight": torch.Size([1, 2])}
    reading = Place("b.weight", 1, one, None, -1.0)
    freedoms = tuple(
        ScaleFreedom(
            index.shape[0],
            "homogeneous",
            True,
            (Place("a.weight", 0, index, None, 1.0), reading)[: 3 - size],
            "a",
        )
        for size, index in ((1, one), (2, two))
    )
    params = {name: torch.ones(shape) for name, shape in shapes.items()}
    with pytest.raises(ValueError, match=r"'a.weight' is scaled by the units of 'a' and by others"):
        min_mass(params, Symmetries((), freedoms, shapes))
    odd = ScaleFreedom(2, "homogeneous", True, (Place("a.weight", 0, one, None, 0.5), reading), "a")
    with pytest.raises(ValueError, match=r"exponent 0\.5"):
        min_mass(params, Symmetries((), (odd,), shapes))
    good = ScaleFreedom(2, "homogeneous", True, (Place("a.weight", 0, one, None, 1.0), reading), "a")
    with pytest.raises(ValueError, match="start has sizes"):
        min_mass(params, Symmetries((), (good,), shapes), start=[torch.zeros(3)])
