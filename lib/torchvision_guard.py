"""Import torchvision beside any build of torch, also one that its compiled operators do not match.

The wheel that the registries carry for Linux is compiled for a CUDA torch. Beside a CPU-only torch its operators do
not load, and ``import torchvision`` then stops at the registration of two of them, ``nms`` and ``qnms``, which no
data set, transform or classification model needs. Declaring the two, only where they are missing, lets the import
pass; calling one of them still fails, with a sentence that says why.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import torch

STUBS = ("nms", "qnms")
_declared: list[torch.library.Library] = []  # a Library undoes its declarations when it is collected


def import_torchvision() -> ModuleType:
    """The module ``torchvision``, with ``datasets``, ``transforms`` and ``models`` usable on every build.

    Safe to call many times. Raises ModuleNotFoundError where torchvision is not installed.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "torchvision is not installed in this environment: run `make env`, or install the version that "
            "requirements.txt names."
        )
    if not all(_exists(name) for name in STUBS):
        _load_operators(Path(spec.submodule_search_locations[0]))
        _declare_missing()
    return importlib.import_module("torchvision")


def stubbed() -> tuple[str, ...]:
    """Names of the operators that had to be declared here; empty where torchvision matches torch."""
    return STUBS if _declared else ()


def _exists(name: str) -> bool:
    return hasattr(torch.ops.torchvision, name)


def _load_operators(folder: Path) -> None:
    """Load torchvision's own operators first, where they match: declaring a stub before them would clash."""
    for library in sorted(folder.glob("_C*")):
        with contextlib.suppress(OSError, RuntimeError):
            torch.ops.load_library(library)


def _declare_missing() -> None:
    missing = [name for name in STUBS if not _exists(name)]
    if not missing:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in missing:
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for key in ("CPU", "CUDA", "MPS"):
            library.impl(name, _refusal(name), key)
    _declared.append(library)


def _refusal(name: str):
    def refuse(dets: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> NoReturn:
        raise RuntimeError(
            f"torchvision::{name} was called, but torchvision's compiled operators do not match this torch "
            f"({torch.__version__}): install a torchvision built for it. Nothing in this book needs {name}."
        )

    return refuse
