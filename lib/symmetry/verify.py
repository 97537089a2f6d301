"""Try found symmetries on a float64 copy: does a random group element leave the function unchanged?

A symmetry belongs to the architecture, so the copy gets random parameters (a trained or freshly initialised network may
hide a wrong place behind zeros), and BatchNorm's running statistics from a random batch, jittered. Freedoms that hold
only as the norms' epsilon vanishes are tried with every epsilon set to 1e-100, then once more with the true ones.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from lib.params import Params
from lib.symmetry.act import permute, random_log_scales, random_permutations, rescale
from lib.symmetry.structure import Symmetries, Verification
from lib.symmetry.trace import twin

TOLERANCE = 1e-9  # of the largest output, where rounding errors do not grow on the way
_TINY = 1e-100  # stands for epsilon = 0, which PyTorch refuses where statistics come from the batch
_NORMS = {
    f: inspect.signature(f) for f in (F.batch_norm, F.layer_norm, F.group_norm, F.instance_norm, F.rms_norm)
}
_CASTS = {torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16, torch.Tensor.to, torch.Tensor.type}


class VerificationError(RuntimeError):
    """A found symmetry changes the function: an error in ``find_symmetries``, never in the network."""


def verify(net: nn.Module, inputs: tuple[Tensor, ...], symmetries: Symmetries) -> Verification:
    """Try a random cycle through all units of every group, then a random swap in each together with random scales.

    A cycle and a swap generate the symmetric group. ``inputs`` give shapes and types only. Raises VerificationError,
    naming the first group or freedom at fault.
    """
    trial = Trial(net, inputs)
    generator = torch.Generator().manual_seed(0)
    cycles, swaps = _generators(symmetries, generator)
    log_scales = random_log_scales(symmetries, generator, spread=0.5)
    moved = permute(trial.params, symmetries, cycles)
    cycle_error = trial.error(moved)
    moved = rescale(permute(moved, symmetries, swaps), symmetries, log_scales)
    error = trial.error(moved)
    if not trial.passes(max(cycle_error, error)):
        raise VerificationError(_fault(trial, symmetries, (cycles, swaps), log_scales))
    effect = 0.0
    if not all(freedom.exact for freedom in symmetries.scales):
        effect = trial.epsilon_effect(symmetries, log_scales)
    return Verification(cycle_error, error, effect)


def _generators(
    symmetries: Symmetries, generator: torch.Generator
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    cycles, swaps = [], []
    for order in random_permutations(symmetries, generator):
        cycle, swap = torch.empty_like(order), torch.arange(len(order))
        cycle[order] = order.roll(-1)
        swap[order[:2]] = order[:2].flip(0)
        cycles.append(cycle)
        swaps.append(swap)
    return tuple(cycles), tuple(swaps)


def _fault(
    trial: Trial,
    symmetries: Symmetries,
    elements: tuple[tuple[Tensor, ...], ...],
    log_scales: tuple[Tensor, ...],
) -> str:
    """The first group or freedom that changes the function by itself."""
    tried = _one_by_one(trial, symmetries, elements, log_scales)
    together = ("the permutation groups and scale freedoms together", float("inf"))
    what, error = next(((what, error) for what, error in tried if not trial.passes(error)), together)
    return (
        f"internal error of find_symmetries: {what} changes the output by {error:.1e} of its size. "
        "Please report the network; meanwhile no symmetry of it can be trusted."
    )


def _one_by_one(
    trial: Trial,
    symmetries: Symmetries,
    elements: tuple[tuple[Tensor, ...], ...],
    log_scales: tuple[Tensor, ...],
) -> Iterator[tuple[str, float]]:
    for i, group in enumerate(symmetries.permutations):
        what = f"the permutation group {i} of {group.layer!r} ({', '.join(p.name for p in group.places)})"
        for perms in elements:
            alone = [p if j == i else torch.arange(len(p)) for j, p in enumerate(perms)]
            yield what, trial.error(permute(trial.params, symmetries, alone))
    for i, freedom in enumerate(symmetries.scales):
        alone = [s if j == i else torch.zeros_like(s) for j, s in enumerate(log_scales)]
        places = ", ".join(place.name for place in freedom.places)
        what = f"the {freedom.kind} scale freedom {i} of {freedom.layer!r} ({places})"
        yield what, trial.error(rescale(trial.params, symmetries, alone))


class Trial:
    """A float64 copy of the network with random parameters, its random input, and its output there."""

    def __init__(self, net: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.net = twin(net, torch.device("cpu"))
        generator = torch.Generator().manual_seed(1)
        self.inputs = tuple(_input_like(x, generator) for x in inputs)
        self._rounding: float | None = None
        self.state = {k: v for k, v in net.state_dict(keep_vars=True).items() if isinstance(v, Tensor)}
        self.params = {name: _parameter_like(name, tensor, generator) for name, tensor in self.state.items()}
        self.outputs = self.run(self.params, Norms(_TINY, calibrate=generator))
        if not all(
            bool(torch.isfinite(y).all()) for y in self.outputs
        ):  # say, a logarithm: take its own parameters
            self.params = {k: _wide(v.detach().cpu().clone()) for k, v in self.state.items()}
            self.outputs = self.run(self.params, Norms(_TINY, calibrate=generator))

    def run(self, params: Params, norms: Norms) -> list[Tensor]:
        with torch.no_grad(), norms:
            outputs = functional_call(self.net, params, self.inputs)
        return [y for y in tree_leaves(outputs) if isinstance(y, Tensor)]

    def error(self, params: Params) -> float:
        return distance(self.run(params, Norms(_TINY)), self.outputs)

    def passes(self, error: float) -> bool:
        """Is this rounding? Deep networks amplify it: then what a change of 1e-15 in all parameters does is measured."""
        if error <= TOLERANCE:
            return True
        if self._rounding is None:
            generator = torch.Generator().manual_seed(2)
            noisy = {
                k: v + 1e-15 * v * torch.randn(v.shape, generator=generator).to(v)
                for k, v in self.params.items()
            }
            self._rounding = self.error(noisy)
        return error <= min(1000 * self._rounding, 1e-4)

    def epsilon_effect(self, symmetries: Symmetries, log_scales: tuple[Tensor, ...]) -> float:
        """What the scales do to the network as it is: its own parameters, its own epsilons."""
        own = {name: _wide(tensor.detach().cpu()) for name, tensor in self.state.items()}
        return distance(
            self.run(rescale(own, symmetries, log_scales), Norms(None)), self.run(own, Norms(None))
        )


class Norms(TorchFunctionMode):
    """Overrides every norm's epsilon; sets running statistics on the way (``calibrate``); keeps float64 through casts."""

    def __init__(self, eps: float | None, calibrate: torch.Generator | None = None) -> None:
        super().__init__()
        self.eps, self.calibrate = eps, calibrate

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _CASTS:
            out = func(*args, **kwargs)
            if not out.is_floating_point():
                return out
            return args[0] if args[0].dtype == torch.float64 else out.double()
        if func not in _NORMS:
            return func(*args, **kwargs)
        call = _NORMS[func].bind(*args, **kwargs)
        if self.eps is not None:
            call.arguments["eps"] = self.eps
        if self.calibrate is not None and call.arguments.get("running_mean") is not None:
            self._set_statistics(**{k: call.arguments[k] for k in ("input", "running_mean", "running_var")})
        return func(*call.args, **call.kwargs)

    def _set_statistics(self, input: Tensor, running_mean: Tensor, running_var: Tensor) -> None:
        """Random statistics of the size of the signal: mean times U(0, 1), mean squares times U(½, 1½)."""
        channels = input.movedim(1, 0).flatten(1)
        jitter = torch.rand(2, len(channels), dtype=torch.float64, generator=self.calibrate)
        size = channels.square().mean(1)
        size = size + size.mean()  # a channel that is almost silent here must not blow rounding errors up
        running_mean.copy_(channels.mean(1) * jitter[0])
        running_var.copy_(torch.where(size > 0, size, 1.0) * (0.5 + jitter[1]))


def _parameter_like(name: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
    if not isinstance(tensor, nn.Parameter):
        return _wide(tensor.detach().cpu().clone())
    noise = torch.randn(tensor.shape, dtype=torch.float64, generator=generator)
    if tensor.ndim > 1:
        return noise * (2 / max(1, tensor[0].numel())) ** 0.5
    return 0.3 * noise if name.endswith("bias") else 1 + 0.3 * noise.tanh()


def _input_like(x: Tensor, generator: torch.Generator) -> Tensor:
    if x.is_floating_point():
        return torch.randn(x.shape, dtype=torch.float64, generator=generator)
    return x.detach().cpu()


def _wide(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def distance(outputs: list[Tensor], reference: list[Tensor]) -> float:
    """The largest change of an output relative to that output's largest entry; infinite where there is a NaN."""
    worst = 0.0
    for y, z in zip(outputs, reference, strict=True):
        change = float((y - z).abs().max()) if y.numel() else 0.0
        if change != 0:
            relative = change / max(float(z.abs().max()), 1e-300)
            worst = max(worst, relative if relative == relative else float("inf"))
    return worst
