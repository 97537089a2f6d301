"""The network behind the checkpoints: a function named on the command line, "module:function", that returns an nn.Module."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from lib.torchvision_guard import import_torchvision


class BuilderProblem(ValueError):
    """The builder gives no network; the text says why and how it would."""


def builder(spec: str, arguments: str = "{}") -> Callable[[], nn.Module]:
    """A function of no arguments that builds the network; ``spec`` is ``module:function``, say ``torchvision.models:resnet18``.

    The module is looked for in the current directory and among the installed packages; ``arguments`` is a JSON object of
    keywords, say ``{"num_classes": 10}``.
    It is tried twice here: what no checkpoint can hold must not be drawn anew each time. Raises BuilderProblem.
    """
    name, colon, function = spec.partition(":")
    if not (name and colon and function):
        raise BuilderProblem(
            f"--builder {spec!r} names no function: write module:function, say my_code.nets:build."
        )
    options = _options(arguments)
    found: Any = _imported(name, spec)
    for part in function.split("."):
        if not hasattr(found, part):
            raise BuilderProblem(
                f"--builder {spec!r}: the module {name!r} has no {function!r}{_near(found, part)}. Name a function of it."
            )
        found = getattr(found, part)
    if not callable(found):
        raise BuilderProblem(
            f"--builder {spec!r} is a {type(found).__name__}, no function: name one that returns the network."
        )
    build = partial(_built, found, options, spec)
    if drawn := _beside(build(), build()):
        raise BuilderProblem(
            f"--builder {spec!r} gives a network whose {drawn[0]!r} is another each time, and no state_dict holds it: register it as "
            "a buffer (persistent), or draw it from a seed of its own."
        )
    return build


def _beside(one: nn.Module, other: nn.Module) -> list[str]:
    """Names of tensors that two networks hold outside their state_dict, and that differ."""
    saved, differ = set(one.state_dict()), []
    for (place, module), twin in zip(one.named_modules(), other.modules(), strict=True):
        held = {**module._buffers, **{k: v for k, v in vars(module).items() if isinstance(v, Tensor)}}
        for name, tensor in held.items():
            full = f"{place}.{name}" if place else name
            again = getattr(twin, name, None)
            if tensor is not None and full not in saved and not _alike(tensor, again):
                differ.append(full)
    return differ


def _alike(one: Tensor, other: object) -> bool:
    return isinstance(other, Tensor) and one.shape == other.shape and bool(torch.equal(one, other))


def _built(function: Callable[..., Any], options: dict[str, Any], spec: str) -> nn.Module:
    try:
        net = function(**options)
    except Exception as error:
        raise BuilderProblem(
            f"--builder {spec!r} raised {type(error).__name__}: {error}. Call it by hand with {options or 'no arguments'}, and "
            "give what it needs as --builder-args, a JSON object."
        ) from error
    if not isinstance(net, nn.Module):
        raise BuilderProblem(
            f"--builder {spec!r} returned a {type(net).__name__}: it must return a torch.nn.Module."
        )
    return net


def _options(arguments: str) -> dict[str, Any]:
    try:
        found = json.loads(arguments)
    except json.JSONDecodeError as error:
        raise BuilderProblem(
            f"--builder-args {arguments!r} is no JSON ({error}): write '{{\"num_classes\": 10}}'."
        ) from None
    if not isinstance(found, dict):
        raise BuilderProblem(
            f"--builder-args {arguments!r} is no JSON object: write '{{\"num_classes\": 10}}'."
        )
    return found


def _imported(name: str, spec: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        if name.partition(".")[0] == "torchvision":
            import_torchvision()
        return _import(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise BuilderProblem(
                f"--builder {spec!r}: there is no module {error.name!r} in {here} or among the installed packages. Run from the "
                "folder that holds it, or install it."
            ) from None
        raise BuilderProblem(
            f"--builder {spec!r}: the module {name!r} needs {error.name!r}, which is not installed."
        ) from error
    except Exception as error:
        raise BuilderProblem(
            f"--builder {spec!r}: importing {name!r} raised {type(error).__name__}: {error}. Mend the module first."
        ) from error


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        import_torchvision()  # the user's module imports it, beside a torch that its operators do not match
        return importlib.import_module(name)


def _near(module: Any, name: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, dir(module), 3)
    return f" (did you mean {', '.join(near)}?)" if near else ""
