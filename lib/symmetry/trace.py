"""Run a network on shapes alone, and write down which units each tensor holds and who writes and reads them.

Every entry of an activation carries a name (``names``). Two partitions of the labels grow on the way: labels of one
*unit* are permuted together, labels of one *scale* are rescaled together. What each operation does to them is in
``rules``; what follows from the ledger is in ``groups``. The run is on PyTorch's ``meta`` device (no arithmetic) under
a ``TorchFunctionMode``, which sees modules and functional forms alike, and every attempt to read a value in Python.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from lib.symmetry.ledger import FROZEN, ZERO, Factor, Ledger, Seat
from lib.symmetry.names import MOVES, along, move, present, unit_axes


class UnsupportedNetwork(Exception):
    """``find_symmetries`` cannot treat this network: ``layer`` is where, ``reason`` is why."""

    def __init__(self, layer: str, reason: str) -> None:
        self.layer, self.reason = layer, reason
        super().__init__(f"layer {layer!r}: {reason}")


@dataclass(frozen=True, eq=False)
class Weight:
    """A parameter (or buffer) met in the run, or a view of it: then ``index`` numbers the entries that it shows."""

    name: str
    shape: torch.Size
    buffer: bool
    index: Tensor | None = None
    computed: bool = False  # by arithmetic: no view

    def entries(self) -> Tensor:
        """The numbers of the entries that this view shows."""
        return torch.arange(math.prod(self.shape)).view(self.shape) if self.index is None else self.index


class Trace(TorchFunctionMode):
    """Watches one run of a copy of ``net`` on the meta device; ``ledger`` is the result."""

    def __init__(self, net: nn.Module, rules: dict[str, Callable]) -> None:
        super().__init__()
        self.rules, self.ledger, self.padded = rules, Ledger(), False
        self.ledger.new(2, "the input")
        self.ledger.units.join(FROZEN, ZERO)
        self.ledger.scales.join(FROZEN, ZERO)
        self._names: dict[int, tuple[Tensor, Tensor]] = {}  # id -> (the tensor, so that it lives; its names)
        self._weights: dict[int, tuple[Tensor, Weight]] = {}
        self._constants: dict[int, Tensor] = {}
        self._readers: dict[str, str] = {}
        self._layers: list[str] = []
        self.net = twin(net, torch.device("meta"))
        self._know_tensors()
        for name, module in self.net.named_modules():
            label = f"{name} ({type(module).__name__})" if name else type(module).__name__
            module.register_forward_pre_hook(lambda *_, label=label: self._layers.append(label))
            module.register_forward_hook(lambda *_: self._layers.pop() and None)

    def run(self, inputs: tuple[Tensor, ...]) -> Ledger:
        """Trace the network on meta copies of ``inputs``; inputs and outputs keep their places."""
        inputs = tuple(_double(x.detach().to("meta")) for x in inputs)
        for x in inputs:
            self._names[id(x)] = (x, torch.zeros((), dtype=torch.int64).expand(x.shape))
        with torch.no_grad(), self:
            outputs = self.net(*inputs)
        for leaf in tree_leaves(outputs):
            if isinstance(leaf, Tensor):
                labels = present(self.names(leaf))
                self.freeze_units(labels)
                self.freeze_scales(labels)
        return self.ledger

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = _called(func)
        if name in _SHAPE_ONLY:
            return func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if name in _VALUES and tensors:
            self.refuse("data-dependent control flow: its forward reads the value of a tensor in Python.")
        if name in _RANDOM:
            self.refuse(f"it draws random numbers ({name}) in evaluation mode.")
        signals = any(map(self.is_signal, tensors))
        if signals and name not in self.rules:
            known = next((why for key, why in _KNOWN_REFUSALS.items() if key in name), None)
            self.refuse(known or f"the operation {name!r} is not one whose symmetries are known.")
        try:
            with torch.device("meta"):
                out = func(*args, **kwargs)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            self.refuse(f"{name!r} does not run on the example's shapes: {str(error).splitlines()[0]}")
        if name in _CASTS and isinstance(out, Tensor):
            out = _double(out)  # the weights are traced in float64, whatever a network casts its inputs to
        if signals:
            self._write(out, self.rules[name](self, out, *args, **kwargs))
        elif any(id(t) in self._weights for t in tensors):
            self._derive(name, out, tensors, args, kwargs)
        else:
            self._constants.update((id(t), t) for t in tree_leaves(out) if isinstance(t, Tensor))
        return out

    @property
    def layer(self) -> str:
        """The module that is running."""
        return self._layers[-1] if self._layers else type(self.net).__name__

    def refuse(self, reason: str) -> NoReturn:
        """Raise UnsupportedNetwork for the layer that is running."""
        raise UnsupportedNetwork(self.layer, reason)

    # what a tensor is

    def is_signal(self, x: object) -> bool:
        """Is it an activation (computed from the input)?"""
        return id(x) in self._names

    def names(self, x: Tensor) -> Tensor:
        """Names of the entries of an activation."""
        if id(x) not in self._names:
            self.refuse("it has a constant, or a tensor of unknown origin, where an activation is needed.")
        return self._names[id(x)][1]

    def unit_axes(self, x: Tensor) -> list[int]:
        """Axes of an activation along which its units lie."""
        return unit_axes(self.names(x))

    def along(self, x: Tensor, axis: int, verb: str) -> tuple[Tensor, Tensor]:
        """Labels and offsets of an activation along ``axis``, which must be where its units lie."""
        found = along(self.names(x), axis)
        if found is None:
            self.refuse(
                f"it {verb} axis {axis % x.ndim}, but the units lie elsewhere (a reshape before it?)."
            )
        return found

    def weight(self, x: Tensor) -> Weight | None:
        """The parameter or buffer that ``x`` is, None for a constant; each may be read once only."""
        if id(x) in self._constants:
            return None
        if id(x) not in self._weights:
            self.refuse("it uses a tensor of unknown origin: neither a parameter nor made in forward.")
        weight = self._weights[id(x)][1]
        if weight.computed:
            self.refuse(
                f"it uses a tensor computed from the parameter {weight.name!r}, not the parameter itself."
            )
        if weight.name in self._readers:
            self.refuse(
                f"tied weights: {weight.name!r} has already been read in {self._readers[weight.name]!r}."
            )
        self._readers[weight.name] = self.layer
        return weight

    def axes(self, weight: Weight) -> list[int | None]:
        """For each axis of a view of a parameter, the parameter's axis that it runs along (None: none, size 1)."""
        if weight.index is None:
            return list(range(len(weight.shape)))
        index = weight.index
        strides = [math.prod(weight.shape[a + 1 :]) for a in range(len(weight.shape))]
        single = iter([a for a, n in enumerate(weight.shape) if n == 1])
        axes: list[int | None] = []
        straight = torch.zeros((), dtype=torch.int64)
        for d, size in enumerate(index.shape):
            if size == 1:
                axes.append(next(single, None))
                continue
            step = int(index.select(d, 1).flatten()[0] - index.flatten()[0])
            axes.append(
                next((a for a, n in enumerate(weight.shape) if n == size and strides[a] == step), None)
            )
            straight = straight + step * torch.arange(size).view(-1, *(1,) * (index.ndim - d - 1))
        missing = any(axis is None and size > 1 for axis, size in zip(axes, index.shape, strict=True))
        if missing or not torch.equal(straight.expand(index.shape), index):
            self.refuse(
                f"it uses a part or a reshape of the parameter {weight.name!r} that does not keep its axes."
            )
        return axes

    # what the rules write down

    def freeze_units(self, labels: Tensor) -> None:
        """These units may not move."""
        self.ledger.units.join_all(labels, torch.full_like(labels, FROZEN))

    def freeze_scales(self, labels: Tensor) -> None:
        """These units may not be rescaled."""
        self.ledger.scales.join_all(labels, torch.full_like(labels, FROZEN))

    def seat(self, weight: Weight, axis: int, labels: Tensor, offsets: Tensor | None = None) -> None:
        """Position i along the parameter's ``axis`` moves with the unit of ``labels[i]``."""
        offsets = torch.zeros_like(labels) if offsets is None else offsets
        self.ledger.seats.append(Seat(weight.name, axis, labels, torch.arange(len(labels)), offsets))

    def factor(
        self,
        weight: Weight,
        axis: int,
        labels: Tensor,
        exponent: int,
        role: str,
        rows: Tensor | None = None,
    ) -> None:
        """Position i along the parameter's ``axis`` follows the scale of ``labels[i]``; a fixed filter cannot follow."""
        if weight.buffer and role != "statistic":
            self.freeze_scales(labels)
        else:
            positions = torch.arange(len(labels))
            self.ledger.factors.append(Factor(weight.name, axis, labels, positions, exponent, role, rows))

    # bookkeeping

    def _know_tensors(self) -> None:
        for name, tensor in self.net.state_dict(keep_vars=True).items():
            if not isinstance(tensor, Tensor):
                continue
            if id(tensor) in self._weights:
                other = self._weights[id(tensor)][1].name
                raise UnsupportedNetwork(name, f"tied weights: it is the same tensor as {other!r}.")
            buffer = not isinstance(tensor, nn.Parameter)
            self._weights[id(tensor)] = (tensor, Weight(name, tensor.shape, buffer))
        for module in self.net.modules():
            self._constants.update((id(t), t) for t in _tensors_of(module) if id(t) not in self._weights)

    def _write(self, out: object, names: object) -> None:
        several = isinstance(out, (tuple, list))
        for tensor, name in zip(out, names, strict=True) if several else [(out, names)]:
            if tensor.shape != name.shape:
                self.refuse(f"it reshapes a tensor to {tuple(tensor.shape)} in a way that is not known.")
            self._names[id(tensor)] = (tensor, name)

    def _derive(self, name: str, out: object, tensors: list[Tensor], args: tuple, kwargs: dict) -> None:
        owner = next(self._weights[id(t)][1] for t in tensors if id(t) in self._weights)
        view = name in MOVES and len(tensors) == 1 and not owner.computed and isinstance(out, Tensor)
        index = move(name, owner.entries(), args, kwargs) if view else None
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._weights[id(tensor)] = (tensor, replace(owner, index=index, computed=not view))


def twin(net: nn.Module, device: torch.device) -> nn.Module:
    """A copy of ``net`` in evaluation mode: its state on ``meta``, its other tensors in float64 on ``device``."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in net.modules()):
        raise UnsupportedNetwork(
            type(net).__name__, "a scripted module hides its operations: pass the Python module."
        )
    state = {id(t) for t in net.state_dict(keep_vars=True).values() if isinstance(t, Tensor)}
    memo: dict[int, object] = {}
    for module in net.modules():
        for tensor in _tensors_of(module):
            value = _double(tensor.detach().to("meta" if id(tensor) in state else device))
            memo[id(tensor)] = nn.Parameter(value, False) if isinstance(tensor, nn.Parameter) else value
    try:
        return copy.deepcopy(net, memo).eval()
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise UnsupportedNetwork(type(net).__name__, f"the network cannot be copied: {error}") from error


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _called(func: Callable) -> str:
    """The operation's plain name: relu for F.relu, torch.relu_, Tensor.relu; shape for the property of that name."""
    name = getattr(func, "__name__", type(func).__name__)
    if name == "__get__":
        return func.__self__.__name__
    if name == "__float__" or func in (
        torch.batch_norm,
        torch.instance_norm,
    ):  # not Tensor.float, not F.batch_norm
        return f"torch.{name}"
    return {"rsub": "sub"}.get(name.strip("_"), name.strip("_"))


def _tensors_of(module: nn.Module) -> list[Tensor]:
    own = [value for name, value in vars(module).items() if name != "_modules"]
    return [leaf for leaf in tree_leaves(own) if isinstance(leaf, Tensor)]


_SHAPE_ONLY = """shape ndim dtype device layout is_cuda is_meta is_sparse is_nested is_quantized requires_grad is_leaf
    grad_fn itemsize nbytes size dim numel nelement ndimension stride is_floating_point is_complex is_contiguous
    element_size len get_device is_tensor hash assert is_mkldnn is_cpu"""
_VALUES = "bool item tolist numpy torch.__float__ int index contains array equal allclose is_nonzero nonzero"
_CASTS = {"float", "half", "bfloat16", "to", "type", "type_as"}
_RANDOM = """rand randn randint randperm bernoulli normal multinomial rand_like randn_like randint_like uniform poisson
    exponential random"""
_SHAPE_ONLY, _VALUES, _RANDOM = (set(names.split()) for names in (_SHAPE_ONLY, _VALUES, _RANDOM))
_KNOWN_REFUSALS = {
    "attention": "attention multiplies activations with each other; its heads' symmetries are not those of units.",
    **dict.fromkeys(
        ("lstm", "gru", "rnn"), "a recurrent layer reads its weights at every step (tied weights)."
    ),
    "embedding": "an embedding reads its weights by index.",
    **dict.fromkeys(
        ("bmm", "einsum", "bilinear"), "it multiplies activations in a way that is not followed."
    ),
}
