"""Optimisers on the unit-norm manifold, with torch's own signatures: they drop in for SGD and Adam.

    groups = unit_norm_parameters(net, example)
    optimiser = UnitNormSGD(groups, lr=0.1, momentum=0.9)

In a group with ``unit_norm=True`` every filter (first axis; all others flattened, whatever their memory format) stays on the
unit sphere; any other group takes torch's own step. Each group may have its own rates; schedulers, closures and
``state_dict`` work as with torch. Source: Badrinarayanan et al. 2015; momentum and Adam as in Bécigneul & Ganea 2019
("Riemannian adaptive optimization methods"), with one second moment a filter, so that directions stay tangent.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from lib.unit_norm import manifold, steps
from lib.unit_norm.constrain import UnitNormWarning, void_weight_decay

_SMALL = (torch.float16, torch.bfloat16)  # filters kept in these are stepped in float32


class _UnitNorm(Optimizer):
    """What both optimisers share: the groups, and the way onto the manifold."""

    _complete = True  # False while the first groups come in: nothing is changed before all are good

    def __init__(self, params: Iterable, defaults: dict[str, Any]) -> None:
        self._complete = False
        super().__init__(params, defaults)
        self._complete = True
        self.normalise()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; a group with ``unit_norm=True`` (the default) takes filters only, and normalises them."""
        super().add_param_group(param_group)
        try:
            _check(self.param_groups[-1])
            if self._complete:
                _normalise(self.param_groups[-1])
        except BaseException:
            self.param_groups.pop()
            raise

    def normalise(self) -> None:
        """Put every filter of the unit-norm groups on the manifold (again), as after weights were loaded or changed by hand."""
        for group in self.param_groups:
            _normalise(group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch. Settings that an older version did not save keep their values here; filters are put at unit norm."""
        saved = list(state_dict["param_groups"])
        if len(saved) == len(self.param_groups):
            own = [{key: group[key] for key in self.defaults} for group in self.param_groups]
            saved = [settings | dict(group) for settings, group in zip(own, saved, strict=True)]
        super().load_state_dict({**state_dict, "param_groups": saved})
        for key, parameter in zip(
            (key for group in saved for key in group["params"]),
            (parameter for group in self.param_groups for parameter in group["params"]),
            strict=True,
        ):
            if parameter.dtype in _SMALL:  # torch cast what it had of them to the parameter's own dtype
                for name, value in state_dict["state"].get(key, {}).items():
                    self.state[parameter][name] = value.to(parameter.device)
        self.normalise()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; ``closure`` re-evaluates the loss with gradients, and its value is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moved = [(i, p) for i, p in enumerate(group["params"]) if p.grad is not None]
            for i, parameter in moved:
                if parameter.grad.is_sparse:
                    raise RuntimeError(
                        f"{_name(group, i)} has a sparse gradient, which {type(self).__name__} does not take: "
                        "make the layer with sparse=False."
                    )
            if moved:
                take = self._step_filters if group["unit_norm"] else self._step_rest
                take(group, [parameter for _, parameter in moved])
        return loss

    def _step_filters(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        raise NotImplementedError

    def _step_rest(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        raise NotImplementedError


class UnitNormSGD(_UnitNorm):
    """torch.optim.SGD, on the unit-norm manifold where a group says so.

    For a filter w with gradient g: b ← μ b + (1 - τ) P_w(g), d = b (or P_w(g) + μ b with ``nesterov``),
    w ← (w - lr d) / ‖w - lr d‖, and b is carried to the new w by projection. Without momentum this is the step of
    Badrinarayanan et al. 2015. Raises ValueError for settings out of range, for a parameter of one dimension, and (as
    ZeroFilter) for a filter of length zero.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        unit_norm: bool = True,
    ) -> None:
        if momentum < 0:
            raise ValueError(f"momentum = {momentum}: it must be at least 0.")
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("nesterov = True needs a momentum above zero and no dampening.")
        settings = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        settings |= {"nesterov": nesterov, "maximize": maximize, "foreach": foreach, "unit_norm": unit_norm}
        super().__init__(params, settings)

    def _step_filters(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        rate, sign = float(group["lr"]), -1 if group["maximize"] else 1
        for parameter in parameters:
            w, g = _rows(parameter, parameter), _rows(parameter.grad, parameter)
            if not group["momentum"]:
                steps.unit_norm(w, g, sign * rate)
            else:
                self._with_momentum(group, parameter, w, sign * g, rate)
            _write_back(parameter, w, parameter)

    def _with_momentum(
        self, group: dict[str, Any], parameter: Tensor, w: Tensor, g: Tensor, rate: float
    ) -> None:
        momentum, tangent, state = group["momentum"], manifold.project(w, g), self.state[parameter]
        first = state.get("momentum_buffer") is None
        if first:
            state["momentum_buffer"] = _zeros(parameter)
        buffer = _rows(state["momentum_buffer"], parameter)
        buffer.mul_(momentum).add_(tangent, alpha=1 if first else 1 - group["dampening"])
        direction = tangent.add_(buffer, alpha=momentum) if group["nesterov"] else buffer
        w.add_(direction, alpha=-rate)
        w.div_(manifold.norms(w))
        buffer.sub_(manifold.inner(buffer, w) * w)
        _write_back(state["momentum_buffer"], buffer, parameter)

    def _step_rest(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        buffers = [self.state[parameter].get("momentum_buffer") for parameter in parameters]
        sgd(
            parameters,
            [parameter.grad for parameter in parameters],
            buffers,
            foreach=group["foreach"],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
        )
        if group["momentum"]:
            for parameter, buffer in zip(parameters, buffers, strict=True):
                self.state[parameter]["momentum_buffer"] = buffer


class UnitNormAdam(_UnitNorm):
    """torch.optim.Adam, on the unit-norm manifold where a group says so.

    For a filter w with tangent gradient z = P_w(g): m ← β₁ m + (1 - β₁) z, v ← β₂ v + (1 - β₂) ‖z‖² (one number a filter),
    w ← (w - lr m̂ / (√v̂ + ε)) / ‖·‖, and m is carried along by projection. Raises as ``UnitNormSGD`` does.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        unit_norm: bool = True,
    ) -> None:
        for i, beta in enumerate(betas):
            if not 0 <= beta < 1:
                raise ValueError(f"betas[{i}] = {beta}: it must be at least 0 and below 1.")
        if eps < 0:
            raise ValueError(f"eps = {eps}: it must be at least 0.")
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad}
        settings |= {"foreach": foreach, "maximize": maximize, "unit_norm": unit_norm}
        super().__init__(params, settings)

    def _step_filters(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        (beta1, beta2), sign = group["betas"], -1 if group["maximize"] else 1
        for parameter in parameters:
            w, g = _rows(parameter, parameter), _rows(parameter.grad, parameter)
            state, tangent = self.state[parameter], manifold.project(w, sign * g)
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"], state["exp_avg_sq"] = _zeros(parameter), w.new_zeros(len(w), 1)
                if group["amsgrad"]:
                    state["max_exp_avg_sq"] = torch.zeros_like(state["exp_avg_sq"])
            state["step"] += 1
            count = int(state["step"])
            first, second = _rows(state["exp_avg"], parameter), state["exp_avg_sq"]
            first.lerp_(tangent, 1 - beta1)
            second.lerp_(manifold.inner(tangent, tangent), 1 - beta2)
            if group["amsgrad"]:
                second = torch.maximum(state["max_exp_avg_sq"], second, out=state["max_exp_avg_sq"])
            scale = (second / (1 - beta2**count)).sqrt_().add_(group["eps"])
            w.addcdiv_(first, scale, value=-float(group["lr"]) / (1 - beta1**count))
            w.div_(manifold.norms(w))
            first.sub_(manifold.inner(first, w) * w)
            _write_back(state["exp_avg"], first, parameter)
            _write_back(parameter, w, parameter)

    def _step_rest(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")[: 3 if group["amsgrad"] else 2]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] |= {name: torch.zeros_like(parameter) for name in names}
                self.state[parameter]["step"] = torch.zeros((), dtype=torch.float32)
        of = {name: [self.state[p][name] for p in parameters] for name in (*names, "step")}
        adam(
            parameters,
            [parameter.grad for parameter in parameters],
            of["exp_avg"],
            of["exp_avg_sq"],
            of.get("max_exp_avg_sq", []),
            of["step"],
            foreach=group["foreach"],
            amsgrad=group["amsgrad"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )


def _check(group: dict[str, Any]) -> None:
    """Raises ValueError for rates out of range and for what has no filters; warns of weight decay."""
    if not 0 <= float(group["lr"]) < math.inf:
        raise ValueError(f"lr = {group['lr']}: a learning rate is a finite number of at least 0.")
    if group["weight_decay"] < 0:
        raise ValueError(f"weight_decay = {group['weight_decay']}: it must be at least 0.")
    if not group["unit_norm"]:
        return
    for i, parameter in enumerate(group["params"]):
        if parameter.ndim < 2:
            raise ValueError(
                f"{_name(group, i)} has {parameter.ndim} dimension{'s' * (parameter.ndim != 1)} and no filters to keep at "
                'unit norm: put it in a group with "unit_norm": False (lib.unit_norm.unit_norm_parameters sorts a network).'
            )
        if not parameter.is_floating_point():
            raise ValueError(f"{_name(group, i)} is of {parameter.dtype}: unit filters are real numbers.")
    if (sentence := void_weight_decay(group)) is not None:
        warnings.warn(sentence, UnitNormWarning, stacklevel=4)


@torch.no_grad()
def _normalise(group: dict[str, Any]) -> None:
    """Every filter of a unit-norm group divided by its length; those that have length one up to rounding keep their bits."""
    for i, parameter in enumerate(group["params"] * group["unit_norm"]):
        wide = parameter.float() if parameter.dtype in _SMALL else parameter
        try:
            unit = manifold.normalise(wide)
        except manifold.ZeroFilter as error:
            raise manifold.ZeroFilter(f"{_name(group, i)}: {error}") from None
        rounding = 16 * torch.finfo(wide.dtype).eps + torch.finfo(parameter.dtype).eps
        off = (manifold.norms(wide) - 1).abs() > rounding
        parameter.copy_(torch.where(off, unit, wide))


def _name(group: dict[str, Any], i: int) -> str:
    """How messages call the parameter ``i`` of a group."""
    names = group.get("param_names")
    return (
        f"parameter {names[i]!r}" if names else f"parameter {i}, of shape {tuple(group['params'][i].shape)},"
    )


def _rows(tensor: Tensor, like: Tensor) -> Tensor:
    """Filters as rows (n, k): a view of ``like`` itself where its memory allows, whatever its memory format.

    The entries of a filter come in the order in which ``like`` holds them in memory, so that a gradient's rows match.
    """
    order = sorted(range(1, like.ndim), key=like.stride, reverse=True)
    flat = tensor.detach().permute(0, *order).reshape(len(tensor), -1)
    return flat.float() if like.dtype in _SMALL else flat


def _write_back(tensor: Tensor, rows: Tensor, like: Tensor) -> None:
    """The stepped ``_rows(tensor, like)`` into the tensor, where they are no view of it."""
    if rows.data_ptr() == tensor.data_ptr():
        return
    order = sorted(range(1, like.ndim), key=like.stride, reverse=True)
    shape = [len(like), *(like.shape[axis] for axis in order)]
    back = [0, *(order.index(axis) + 1 for axis in range(1, like.ndim))]
    tensor.copy_(rows.view(shape).permute(back))


def _zeros(parameter: Tensor) -> Tensor:
    """What a filter's moment starts from, in the parameter's own shape and memory format."""
    return torch.zeros_like(parameter, dtype=torch.float32 if parameter.dtype in _SMALL else None)
