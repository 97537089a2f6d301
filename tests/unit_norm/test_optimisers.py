"""The optimisers against geoopt on the manifold and torch off it; every switch of torch's, and what a training may do to them."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Iterable

import pytest
import torch
import torch.nn.functional as F
from peers import geoopt, pymanopt
from torch import Tensor, nn

from lib.randomness import normal
from lib.unit_norm import (
    UnitNormAdam,
    UnitNormSGD,
    UnitNormWarning,
    ZeroFilter,
    optimisers,
    unit_norm_parameters,
)

DOUBLE = torch.float64
BOTH = pytest.mark.parametrize("optimiser", [UnitNormSGD, UnitNormAdam])
SGD = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "dampening": {"momentum": 0.8, "dampening": 0.3},
}
ADAM = {
    "plain": {},
    "amsgrad": {"amsgrad": True, "betas": (0.9, 0.5)},
    "betas": {"betas": (0.5, 0.7), "eps": 1e-2},
}
EVERY = [(UnitNormSGD, s) for s in SGD.values()] + [(UnitNormAdam, s) for s in ADAM.values()]
every = pytest.mark.parametrize(
    ("optimiser", "switches"), EVERY, ids=[f"SGD-{s}" for s in SGD] + [f"Adam-{s}" for s in ADAM]
)


def draw(name: str, *shape: int, dtype: torch.dtype = DOUBLE) -> Tensor:
    return normal(43, torch.arange(1), name, 0, shape, DOUBLE)[0].to(dtype)


def leaf(*shape: int, name: str = "w", dtype: torch.dtype = DOUBLE) -> nn.Parameter:
    return nn.Parameter(draw(name, *shape, dtype=dtype))


def unit(w: Tensor) -> Tensor:
    return F.normalize(w.detach().flatten(1), dim=1).view_as(w)


def steps(optimiser: torch.optim.Optimizer, count: int, first: int = 0) -> None:
    """Gradients that depend on the weights, on the step and on the place among the parameters, and on nothing else."""
    for i in range(first, first + count):
        for j, p in enumerate(p for group in optimiser.param_groups for p in group["params"]):
            if p.requires_grad:
                pull = draw(f"pull{i}/{j}", *p.shape, dtype=p.dtype)
                p.grad = (pull + p.detach() * p.detach().abs()).contiguous()
        optimiser.step()


def lengths(p: Tensor) -> Tensor:
    return p.detach().double().flatten(1).norm(dim=1)


def is_unit(p: Tensor, tolerance: float = 1e-14) -> bool:
    return bool((lengths(p) - 1).abs().max() <= tolerance)


def close(found: Tensor, right: Tensor, tolerance: float = 1e-12) -> None:
    assert found.shape == right.shape
    assert (found.detach() - right.detach()).abs().max() <= tolerance


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5),
        nn.ReLU(), nn.Linear(5, 3),
    )  # fmt: skip


def groups(net: nn.Module) -> list[dict]:
    """By hand: the filters before norms, and all else."""
    filters = [p for n, p in net.named_parameters() if p.ndim > 1 and not n.startswith("6.")]
    rest = [p for p in net.parameters() if all(p is not f for f in filters)]
    return [{"params": filters}, {"params": rest, "unit_norm": False}]


def blobs(n: int = 90) -> tuple[Tensor, Tensor]:
    y = torch.arange(n) % 3
    return draw("blobs", n, 4, dtype=torch.float32) + 2 * F.one_hot(y, 4), y


def learn(net: nn.Module, optimiser: torch.optim.Optimizer, count: int) -> list[float]:
    x, y = blobs()
    values = []
    for _ in range(count):
        optimiser.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimiser.step()
        values.append(float(loss.detach()))
    return values


def rate(switches: dict, optimiser: type) -> float:
    """One that learns ``blobs``."""
    return 0.3 if optimiser is UnitNormSGD and (not switches or "dampening" in switches) else 0.03


# ----------------------------------------------------------------------------------------------- peers on the manifold


@every
@pytest.mark.parametrize("maximize", [False, True])
def test_geoopt_takes_the_same_steps(optimiser, switches, maximize):
    """geoopt starts its momentum from the gradient and adds the gradient again, hence the zeros put there (τ = 0 for step 1)."""
    ours, theirs = leaf(5, 4), geoopt.ManifoldParameter(unit(leaf(5, 4)), manifold=geoopt.Sphere())
    peer = {UnitNormSGD: geoopt.optim.RiemannianSGD, UnitNormAdam: geoopt.optim.RiemannianAdam}[optimiser]
    a, b = optimiser([ours], lr=0.1, maximize=maximize, **switches), peer([theirs], lr=0.1, **switches)
    if switches.get("momentum"):
        b.state[theirs].update(step=0, momentum_buffer=torch.zeros_like(theirs))
    for i in range(12):
        theirs.grad = draw(f"g{i}", 5, 4)
        ours.grad = -theirs.grad if maximize else theirs.grad.clone()
        if switches.get("dampening"):
            b.param_groups[0]["dampening"] = switches["dampening"] if i else 0
        a.step()
        b.step()
        close(ours, theirs)
    assert (ours - unit(leaf(5, 4))).norm() > 0.3


def test_pymanopt_takes_the_same_step():
    p, oblique = leaf(5, 4), pymanopt.manifolds.Oblique(4, 5)
    point, g = unit(p).T.numpy(), draw("g", 5, 4)
    right = oblique.retraction(point, -0.7 * oblique.euclidean_to_riemannian_gradient(point, g.T.numpy()))
    optimiser = UnitNormSGD([p], lr=0.7)
    p.grad = g
    optimiser.step()
    close(p, torch.from_numpy(right.T.copy()))


@every
def test_moments_stay_tangent(optimiser, switches):
    p = leaf(5, 3, 2)
    steps(a := optimiser([p], lr=0.1, **switches), 7)
    for name in ("momentum_buffer", "exp_avg"):
        if name in a.state[p]:
            assert a.state[p][name].shape == p.shape
            assert (a.state[p][name] * p.detach()).sum((1, 2)).abs().max() < 1e-14
            assert a.state[p][name].norm() > 0.1


# --------------------------------------------------------------------------------------------- torch's own, off it


@every
@pytest.mark.parametrize(
    "more", [{}, {"weight_decay": 0.1}, {"maximize": True}, {"foreach": True}, {"foreach": False}], ids=str
)
def test_the_rest_takes_torchs_own_steps_to_the_bit(optimiser, switches, more):
    peer = {UnitNormSGD: torch.optim.SGD, UnitNormAdam: torch.optim.Adam}[optimiser]
    shapes = [(5, 4), (5,), (), (2, 3, 2, 2)]
    ours, theirs = ([leaf(*s, dtype=torch.float32) for s in shapes] for _ in range(2))
    a = optimiser([{"params": ours, "unit_norm": False}], lr=0.1, **switches, **more)
    b = peer(theirs, lr=0.1, **switches, **more)
    for i in range(3):
        steps(a, 3, 3 * i)
        steps(b, 3, 3 * i)
        assert all(torch.equal(x, y) for x, y in zip(ours, theirs, strict=True))
    assert not torch.equal(ours[0], leaf(5, 4, dtype=torch.float32))


@every
def test_foreach_changes_nothing(optimiser, switches):
    found = []
    for foreach in (True, False, None):
        parameters = [leaf(5, 4), leaf(3, 2, 2, name="v"), leaf(7, name="b")]
        a = optimiser(
            [{"params": parameters[:2]}, {"params": parameters[2:], "unit_norm": False}],
            lr=0.1,
            foreach=foreach,
            **switches,
        )
        steps(a, 5)
        found.append(parameters)
    for other in found[1:]:
        assert all(torch.equal(x, y) for x, y in zip(found[0], other, strict=True))


@every
def test_groups_have_rates_of_their_own(optimiser, switches):
    """Every group moves as it would alone."""

    def three() -> list[nn.Parameter]:
        return [leaf(5, 4), leaf(3, 4, name="v"), leaf(3, name="b")]

    together, alone = three(), three()
    settings = [{"lr": 0.1}, {"lr": 0.01}, {"lr": 0.3, "unit_norm": False}]
    a = optimiser([{"params": [p], **s} for p, s in zip(together, settings, strict=True)], lr=7.0, **switches)
    for i in range(4):
        pulls = [draw(f"pull{i}", *p.shape) for p in together]
        for p, pull in zip(together, pulls, strict=True):
            p.grad = pull.clone()
        a.step()
    for p, s, j in zip(alone, settings, range(3), strict=True):
        b = optimiser([{"params": [p], **s}], **switches)
        for i in range(4):
            p.grad = draw(f"pull{i}", *p.shape)
            b.step()
        assert torch.equal(p, together[j])
    still = leaf(5, 4)
    optimiser([still], lr=0.0, **switches)
    assert torch.equal(still, unit(leaf(5, 4)))


@every
def test_a_rate_may_be_a_tensor(optimiser, switches):
    found = []
    for lr in (0.1, torch.tensor(0.1, dtype=DOUBLE)):
        p, q = leaf(5, 4), leaf(5, name="b")
        steps(
            optimiser(
                [{"params": [p]}, {"params": [q], "unit_norm": False}], lr=lr, foreach=False, **switches
            ),
            4,
        )
        found.append((p, q))
    close(found[0][0], found[1][0])
    close(found[0][1], found[1][1])


SCHEDULERS = {
    "step": lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 8),
    "one cycle, with momentum": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, [0.3, 0.1], total_steps=9),
    "warm-up": lambda o: torch.optim.lr_scheduler.LambdaLR(o, [lambda i: i / 4, lambda i: 1.0]),
    "plateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("optimiser", [UnitNormSGD, UnitNormAdam])
def test_torchs_schedulers_drive_every_group(scheduler, optimiser):
    """The same rates as torch's own optimiser is given, and steps of that rate: one by hand after each."""
    switches = {"momentum": 0.9} if optimiser is UnitNormSGD else {}
    peer = {UnitNormSGD: torch.optim.SGD, UnitNormAdam: torch.optim.Adam}[optimiser]
    p, q = leaf(5, 4), leaf(5, name="b")
    ours = optimiser([{"params": [p]}, {"params": [q], "unit_norm": False, "lr": 0.05}], lr=0.2, **switches)
    theirs = peer([{"params": [leaf(5, 4)]}, {"params": [leaf(5, name="b")], "lr": 0.05}], lr=0.2, **switches)
    a, b = scheduler(ours), scheduler(theirs)
    told = []
    for _ in range(6):
        steps(ours, 1)
        steps(theirs, 1)
        for s in (a, b):
            s.step(*[1.0] * isinstance(s, torch.optim.lr_scheduler.ReduceLROnPlateau))
        for name in ("lr", *(n for n in ("momentum", "betas") if n in ours.param_groups[0])):
            found, right = ([g[name] for g in o.param_groups] for o in (ours, theirs))
            assert found == right
        told.append([g["lr"] for g in ours.param_groups])
    assert len({t[0] for t in told}) > 1
    for group in ours.param_groups:  # and a rate of zero moves nothing
        group["lr"] = 0.0
    before = p.detach().clone(), q.detach().clone()
    steps(ours, 1)
    close(p, before[0], 1e-15)
    assert torch.equal(q, before[1])


# --------------------------------------------------------------------------------------- what torch's users expect


@BOTH
def test_a_closure_is_called_with_gradients_and_its_value_returned(optimiser):
    p, calls = leaf(5, 4), []
    a = optimiser([p], lr=0.1)

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        a.zero_grad()
        loss = (p * draw("g", 5, 4)).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        first = a.step(closure)
    second = a.step(closure)
    assert calls == [True, True]
    assert first > second
    assert a.step() is None


@BOTH
def test_hooks_and_zero_grad_are_torchs(optimiser):
    p, seen = leaf(5, 4), []
    a = optimiser([p], lr=0.1)
    a.register_step_pre_hook(lambda *_: seen.append("before"))
    a.register_step_post_hook(lambda *_: seen.append("after"))
    steps(a, 1)
    a.zero_grad()
    assert seen == ["before", "after"]
    assert p.grad is None


@BOTH
def test_names_and_generators_as_torch_takes_them(optimiser):
    net = network()
    filters = ((n, p) for n, p in net.named_parameters() if p.ndim > 1)
    a = optimiser(filters, lr=0.1)
    assert a.param_groups[0]["param_names"] == ["0.weight", "3.weight", "6.weight"]
    assert all(is_unit(p, 1e-6) for p in a.param_groups[0]["params"])
    rest = [(n, p) for n, p in net.named_parameters() if p.ndim < 2]
    a.add_param_group({"params": rest, "unit_norm": False})
    assert a.state_dict()["param_groups"][1]["param_names"][-1] == "6.bias"


@BOTH
def test_groups_of_a_network_found_by_its_symmetries(optimiser):
    net = network().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnitNormWarning)  # of the norms' learned scales
        found = unit_norm_parameters(net, torch.zeros(2, 4), filters_lr=0.1, rest_lr=0.01)
    a = optimiser(found)
    assert [(g["unit_norm"], g["lr"]) for g in a.param_groups] == [(True, 0.1), (False, 0.01)]
    learn(net.train(), a, 3)
    assert [n for n, p in net.named_parameters() if p.ndim > 1 and is_unit(p, 1e-6)] == [
        "0.weight",
        "3.weight",
    ]


@every
def test_a_group_added_later_is_normalised_and_joins(optimiser, switches):
    p, q = leaf(5, 4), leaf(3, 4, name="v")
    a = optimiser([p], lr=0.1, **switches)
    steps(a, 2)
    a.add_param_group({"params": [q], "lr": 0.2})
    assert is_unit(q)
    assert torch.equal(q, unit(leaf(3, 4, name="v")))
    steps(a, 2)
    assert is_unit(q)
    assert (q - unit(leaf(3, 4, name="v"))).norm() > 0.1


@BOTH
def test_a_parameter_without_gradient_stays_and_has_no_state(optimiser):
    p, frozen, rest = (
        leaf(5, 4),
        leaf(3, 4, name="v").requires_grad_(False),
        leaf(4, name="b").requires_grad_(False),
    )
    a = optimiser([{"params": [p, frozen]}, {"params": [rest], "unit_norm": False}], lr=0.1)
    before = frozen.detach().clone(), rest.detach().clone()
    steps(a, 2)
    assert torch.equal(frozen, before[0])
    assert torch.equal(rest, before[1])
    assert not a.state.get(frozen)
    optimiser([p], lr=0.1).step()  # no gradient anywhere: nothing to do


@every
def test_a_layer_used_twice_takes_one_step_by_its_whole_gradient(optimiser, switches):
    layer, x = nn.Linear(4, 4, bias=False, dtype=DOUBLE), draw("x", 6, 4)
    net = nn.Sequential(layer, nn.Tanh(), layer)
    alone = copy.deepcopy(layer.weight)
    a, b = optimiser(net.parameters(), lr=0.1, **switches), optimiser([alone], lr=0.1, **switches)
    assert len(a.param_groups[0]["params"]) == 1
    for _ in range(3):
        a.zero_grad()
        net(x).square().sum().backward()
        alone.grad = layer.weight.grad.clone()
        a.step()
        b.step()
        assert torch.equal(layer.weight, alone)
    assert is_unit(layer.weight)


# ------------------------------------------------------------------------------------------ shapes, memory, precision


def pairs(p: nn.Parameter, optimiser: type, switches: dict) -> Iterable[tuple[Tensor, Tensor]]:
    """The parameter, and its filters as the rows of a plain contiguous matrix, through the same steps."""
    flat = nn.Parameter(p.detach().flatten(1).contiguous().clone())
    a, b = optimiser([p], lr=0.1, **switches), optimiser([flat], lr=0.1, **switches)
    for i in range(4):
        pull = draw(f"pull{i}", *p.shape, dtype=p.dtype)
        p.grad, flat.grad = torch.empty_like(p).copy_(pull), pull.flatten(1).contiguous()
        a.step()
        b.step()
        yield p.detach().flatten(1), flat.detach()


@every
@pytest.mark.parametrize(
    "shape", [(5, 3, 4), (5, 3, 2, 3), (4, 2, 2, 3, 2), (6, 1, 3, 3), (1, 3, 1, 1), (5, 1)], ids=str
)
def test_filters_of_any_shape_are_rows(optimiser, switches, shape):
    for found, right in pairs(leaf(*shape), optimiser, switches):
        close(found, right)
        assert is_unit(found)


MEMORY: dict[str, Callable[[Tensor], Tensor]] = {
    "channels last": lambda w: w.to(memory_format=torch.channels_last),
    "filters last": lambda w: w.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "every other": lambda w: torch.stack([w, w], 4)[..., 0],
    "part of a table": lambda w: F.pad(w, (1, 1, 0, 2))[..., :-2, 1:-1],
    "kernel turned": lambda w: w.mT.contiguous().mT,
}


@every
@pytest.mark.parametrize("memory", MEMORY.values(), ids=MEMORY)
@pytest.mark.parametrize("dtype", [DOUBLE, torch.bfloat16])
def test_memory_formats_change_nothing(optimiser, switches, memory, dtype):
    p = nn.Parameter(memory(draw("w", 6, 3, 2, 4, dtype=dtype)))
    assert not p.is_contiguous()
    place, stride = p.data_ptr(), p.stride()
    for found, right in pairs(p, optimiser, switches):
        close(found.double(), right.double(), 1e-12 if dtype == DOUBLE else 2e-2)
    assert (p.data_ptr(), p.stride()) == (place, stride)


def test_channels_last_filters_are_stepped_where_they_lie():
    """Without a copy: the rows are a view of the parameter's own memory."""
    p = nn.Parameter(draw("w", 6, 3, 2, 4).to(memory_format=torch.channels_last))
    rows = optimisers._rows(p, p)
    assert rows.data_ptr() == p.data_ptr()
    assert rows.shape == (6, 24)
    assert torch.equal(optimisers._rows(draw("w", 6, 3, 2, 4), p), rows)


@every
def test_a_change_of_memory_format_between_steps_changes_nothing(optimiser, switches):
    net, other = (nn.Conv2d(3, 4, 3, bias=False, dtype=DOUBLE) for _ in range(2))
    other.load_state_dict(net.state_dict())
    a, b = (optimiser(n.parameters(), lr=0.1, **switches) for n in (net, other))
    for formats in (torch.contiguous_format, torch.channels_last, torch.contiguous_format):
        other.to(memory_format=formats)
        steps(a, 2)
        steps(b, 2)
        close(net.weight, other.weight)


@every
def test_bfloat16_filters_are_stepped_in_float32_and_rounded_once(optimiser, switches):
    p = leaf(5, 40, dtype=torch.bfloat16)
    a = optimiser([p], lr=0.1, **switches)
    wide = nn.Parameter(p.detach().float())
    right = nn.Parameter(wide.detach().clone())
    b = optimiser([right], lr=0.1, **switches)
    with torch.no_grad():
        right.copy_(wide)  # not unit to float32's precision, but to bfloat16's
    p.grad = draw("g", 5, 40, dtype=torch.bfloat16)
    right.grad = p.grad.float()
    a.step()
    b.step()
    assert p.dtype == torch.bfloat16
    assert torch.equal(p, right.bfloat16())
    for value in a.state[p].values():
        assert value.dtype == torch.float32
    steps(a, 5)
    assert is_unit(p, 4e-3)


@every
def test_autocast_with_a_scaler_skips_steps_that_overflow(optimiser, switches):
    net = network()
    a = optimiser(groups(net), lr=rate(switches, optimiser), **switches)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    x, y = blobs()
    losses = []
    for i in range(25):
        a.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(net(x), y)
        scaler.scale(loss).backward()
        before = [p.detach().clone() for p in net.parameters()]
        if i == 3:
            net[0].weight.grad[0, 0] = float("inf")
        scaler.step(a)
        scaler.update()
        kept = [torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True)]
        assert all(kept) == (i == 3)
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert scaler.get_scale() == 2.0**7
    assert is_unit(net[0].weight, 1e-6)


@pytest.mark.parametrize(
    ("optimiser", "switches"), [EVERY[0], EVERY[2], EVERY[4]], ids=["SGD", "nesterov", "Adam"]
)
def test_rows_are_unit_after_two_thousand_steps_in_float32(optimiser, switches):
    p = leaf(4, 24, dtype=torch.float32)
    a, target = optimiser([p], lr=0.05, **switches), draw("target", 4, 24, dtype=torch.float32)
    for i in range(2000):
        p.grad = torch.roll(target, i % 24, 1)
        a.step()
    assert is_unit(p, 1e-6)
    assert (p - unit(leaf(4, 24, dtype=torch.float32))).norm() > 0.1


# ------------------------------------------------------------------------------------------------ saved and copied


def both_kinds(dtype: torch.dtype = DOUBLE) -> list[dict]:
    return [
        {"params": [leaf(5, 4, dtype=dtype), leaf(3, 2, 2, name="v", dtype=dtype)], "lr": 0.2},
        {"params": [leaf(4, name="b", dtype=dtype)], "unit_norm": False},
    ]


def parameters(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimiser.param_groups for p in group["params"]]


@every
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE, torch.bfloat16])
def test_a_saved_training_goes_on_to_the_bit(optimiser, switches, dtype):
    a = optimiser(both_kinds(dtype), lr=0.1, **switches)
    steps(a, 5)
    file = io.BytesIO()
    torch.save({"weights": [p.detach() for p in parameters(a)], "optimiser": a.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    b = optimiser(both_kinds(dtype))
    with torch.no_grad():
        for p, weight in zip(parameters(b), saved["weights"], strict=True):
            p.copy_(weight)
    b.load_state_dict(saved["optimiser"])
    assert all(torch.equal(p, q) for p, q in zip(parameters(a), parameters(b), strict=True))
    steps(a, 5, 5)
    steps(b, 5, 5)
    assert all(torch.equal(p, q) for p, q in zip(parameters(a), parameters(b), strict=True))


@every
def test_a_new_optimiser_keeps_the_bits_of_filters_that_are_unit(optimiser, switches):
    p = leaf(64, 300, dtype=torch.float32)
    steps(optimiser([p], lr=0.1, **switches), 20)
    before = p.detach().clone()
    optimiser([p]).normalise()
    assert torch.equal(p, before)


@every
def test_a_state_of_an_older_version_loads_and_filters_become_unit(optimiser, switches):
    a, b = (optimiser(both_kinds(), lr=0.1, foreach=False, **switches) for _ in range(2))
    steps(a, 3)
    saved = copy.deepcopy(a.state_dict())
    for group in saved["param_groups"]:
        for name in ("foreach", "maximize", "unit_norm", "weight_decay"):
            del group[name]
        group["lr"] = 0.03
    steps(b, 3)
    with torch.no_grad():
        for p in parameters(b):
            p.mul_(3)
    b.load_state_dict(saved)
    assert [g["lr"] for g in b.param_groups] == [0.03, 0.03]
    assert [g["unit_norm"] for g in b.param_groups] == [True, False]
    assert [g["foreach"] for g in b.param_groups] == [False, False]
    for group in a.param_groups:
        group["lr"] = 0.03
    for p, q in zip(parameters(a), parameters(b), strict=True):
        close(q, p if p.ndim > 1 else 3 * p)
    with torch.no_grad():
        parameters(b)[2].div_(3)
    steps(a, 2, 3)
    steps(b, 2, 3)
    for p, q in zip(parameters(a), parameters(b), strict=True):
        close(q, p)


def test_a_state_of_other_groups_is_refused_as_torch_does():
    a, b = UnitNormSGD(both_kinds()), UnitNormSGD(both_kinds()[:1])
    for saved, other in ((a, b), (b, a)):
        with pytest.raises(ValueError, match="different number of parameter groups"):
            other.load_state_dict(saved.state_dict())
    fewer = a.state_dict()
    fewer["param_groups"][0]["params"] = [0]
    with pytest.raises(ValueError, match="doesn't match the size"):
        a.load_state_dict(fewer)


def test_a_state_of_torchs_own_sgd_loads():
    """A training that goes over to the manifold keeps its momentum; it is made tangent by the first step."""
    p, q = leaf(5, 2, 2), leaf(5, 2, 2)
    steps(theirs := torch.optim.SGD([p], lr=0.1, momentum=0.9), 3)
    ours = UnitNormSGD([q], lr=7.0)
    ours.load_state_dict(theirs.state_dict())
    assert ours.param_groups[0]["momentum"] == 0.9
    assert ours.param_groups[0]["unit_norm"]
    assert torch.equal(ours.state[q]["momentum_buffer"], theirs.state[p]["momentum_buffer"])
    steps(ours, 2)
    assert is_unit(q)


@every
def test_a_deep_copy_goes_its_own_way(optimiser, switches):
    net = network()
    a = optimiser(groups(net), lr=0.1, **switches)
    learn(net, a, 3)
    other, b = copy.deepcopy((net, a))
    first = learn(net, a, 3)
    before = [p.detach().clone() for p in net.parameters()]
    assert learn(other, b, 3) == first
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), other.parameters(), strict=True))
    learn(other, b, 1)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    late = leaf(3, 4)
    b.add_param_group({"params": [late]})
    assert is_unit(late)


# ------------------------------------------------------------------------------------------------------- refusals


@BOTH
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"lr": -0.1}, "lr = -0.1: a learning rate is a finite number of at least 0"),
        ({"lr": float("nan")}, "lr = nan: a learning rate"),
        ({"lr": float("inf")}, "lr = inf: a learning rate"),
        ({"lr": torch.tensor(-1.0)}, "a learning rate is a finite number"),
        ({"weight_decay": -1.0}, "weight_decay = -1.0: it must be at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(optimiser, settings, sentence):
    for unit_norm in (True, False):
        with pytest.raises(ValueError, match=sentence):
            optimiser([leaf(5, 4)], unit_norm=unit_norm, **settings)
        with pytest.raises(ValueError, match=sentence):
            optimiser([{"params": [leaf(5, 4)], "unit_norm": unit_norm, **settings}])


@pytest.mark.parametrize(
    ("optimiser", "settings", "sentence"),
    [
        (UnitNormSGD, {"momentum": -0.1}, "momentum = -0.1: it must be at least 0"),
        (UnitNormSGD, {"nesterov": True}, "nesterov = True needs a momentum above zero and no dampening"),
        (UnitNormSGD, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "nesterov = True needs"),
        (UnitNormAdam, {"betas": (1.0, 0.9)}, r"betas\[0\] = 1.0: it must be at least 0 and below 1"),
        (UnitNormAdam, {"betas": (0.9, -0.1)}, r"betas\[1\] = -0.1"),
        (UnitNormAdam, {"eps": -1e-8}, "eps = -1e-08: it must be at least 0"),
    ],
)
def test_settings_of_one_optimiser_out_of_range_are_refused(optimiser, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        optimiser([leaf(5, 4)], **settings)


@BOTH
def test_a_parameter_without_filters_is_refused_by_name_and_nothing_is_changed(optimiser):
    net = network()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(
        ValueError, match=r"parameter '1.weight' has 1 dimension and no filters .*unit_norm_parameters"
    ):
        optimiser(net.named_parameters())
    with pytest.raises(ValueError, match=r"parameter 1, of shape \(6,\), has 1 dimension and"):
        optimiser([{"params": [net[0].weight, net[1].weight]}])
    with pytest.raises(ValueError, match=r"parameter 0, of shape \(\), has 0 dimensions"):
        optimiser([{"params": [net[0].weight]}, {"params": [nn.Parameter(torch.tensor(1.0))]}])
    with pytest.raises(ValueError, match=r"is of torch\.complex64: unit filters are real numbers"):
        optimiser([nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))])
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True))


@BOTH
def test_a_refused_group_is_not_taken_in(optimiser):
    p = leaf(5, 4)
    a = optimiser([p], lr=0.1)
    for bad in (
        {"params": [leaf(4, name="b")]},
        {"params": [nn.Parameter(torch.zeros(2, 2))]},
        {"params": [leaf(2, 2)], "lr": -1},
    ):
        with pytest.raises(ValueError, match=r"no filters|no direction|learning rate"):
            a.add_param_group(bad)
    assert parameters(a) == [p]
    steps(a, 1)


@BOTH
def test_a_zero_filter_is_refused_with_its_parameter(optimiser):
    net = network()
    with torch.no_grad():
        net[3].weight[2] = 0
    named = [(n, p) for n, p in net.named_parameters() if p.ndim > 1]
    with pytest.raises(
        ZeroFilter, match=r"parameter '3.weight': filter 2 of a weight of shape \(5, 6\) is zero"
    ):
        optimiser(named)
    a = optimiser([net[0].weight])
    with torch.no_grad():
        net[0].weight[1] = 0
    with pytest.raises(ZeroFilter, match=r"parameter 0, of shape \(6, 4\),: filter 1 of"):
        a.normalise()


@BOTH
def test_a_sparse_gradient_is_refused(optimiser):
    layer = nn.Embedding(5, 3, sparse=True)
    for unit_norm in (True, False):
        a = optimiser([("table", layer.weight)], unit_norm=unit_norm)
        a.zero_grad()
        layer(torch.tensor([1, 2])).sum().backward()
        with pytest.raises(
            RuntimeError, match=f"'table' has a sparse gradient, which {optimiser.__name__} does not take"
        ):
            a.step()


@every
def test_weight_decay_on_filters_warns_and_does_nothing(optimiser, switches):
    p, q = leaf(5, 4), leaf(5, 4)
    with pytest.warns(UnitNormWarning, match=r"weight_decay=0.1 has no effect on filters of unit norm"):
        a = optimiser([p], lr=0.1, weight_decay=0.1, **switches)
    steps(a, 4)
    steps(optimiser([q], lr=0.1, **switches), 4)
    assert torch.equal(p, q)
    optimiser(
        [{"params": [leaf(5, 4)], "weight_decay": 0}, {"params": [leaf(4, name="b")], "unit_norm": False}],
        weight_decay=0.1,
    )


# ------------------------------------------------------------------------------------------------------- they learn


@every
def test_a_network_with_norms_learns(optimiser, switches):
    net = network()
    losses = learn(net, optimiser(groups(net), lr=rate(switches, optimiser), **switches), 60)
    assert losses[-1] < 0.35 * losses[0]
    assert is_unit(net[0].weight, 1e-6)
    assert is_unit(net[3].weight, 1e-6)
    assert not is_unit(net[6].weight, 1e-2)


def test_lengths_of_the_start_do_not_matter_here_and_do_to_torchs_own():
    """Under norms without epsilon the starts compute the same function, and stay together only on the manifold (P4-C3)."""

    def run(make: Callable[[nn.Module], torch.optim.Optimizer], scale: float) -> list[float]:
        net = network()
        for norm in (net[1], net[4]):
            norm.eps = 1e-30  # torch refuses 0
        with torch.no_grad():
            for i in (0, 3):
                net[i].weight.mul_(scale)
        net.double()
        x, y = blobs()
        optimiser, values = make(net), []
        for _ in range(20):
            optimiser.zero_grad()
            loss = F.cross_entropy(net(x.double()), y)
            loss.backward()
            optimiser.step()
            values.append(float(loss.detach()))
        return values

    def gap(make: Callable[[nn.Module], torch.optim.Optimizer]) -> float:
        return max(abs(a - b) for a, b in zip(run(make, 1.0), run(make, 7.0), strict=True))

    assert (
        gap(lambda net: UnitNormSGD(groups(net), lr=0.3, momentum=0.5)) < 1e-6
    )  # the scale by 7 is rounded in float32
    assert gap(lambda net: UnitNormAdam(groups(net), lr=0.03)) < 1e-6
    assert gap(lambda net: torch.optim.SGD(net.parameters(), lr=0.3, momentum=0.5)) > 1e-2
