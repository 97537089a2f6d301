"""One checkpoint file to named tensors, without running any code that it carries, or a sentence that says why not."""

from __future__ import annotations

import pickletools
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

SAFE, PICKLED = (".safetensors",), (".pt", ".pth", ".bin", ".ckpt")
SUFFIXES = (*SAFE, *PICKLED)
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "module",
    "params",
)  # where training scripts keep it
AVERAGES = (
    "model_ema",
    "ema",
    "ema_state_dict",
)  # and its running average, which is read where it stands alone
KNOWN = re.compile(
    r"collections\.OrderedDict|torch\.\w+Storage|torch\.(storage|_utils|_tensor)\.\w+|torch\.\w+"
)
WAY_OUT = "save torch.save(net.state_dict(), file), or a safetensors file"


class Unreadable(ValueError):
    """A file that gives no state_dict; the text goes on from the file's name."""


def tensors_of(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a file by name, on the CPU in the types that they have, and notes on what was unwrapped.

    Raises Unreadable: a file that is empty, damaged, no checkpoint, or that would run code.
    """
    if path.stat().st_size == 0:
        raise Unreadable("is empty: its writing was cut short; write it again.")
    found = _safe(path) if path.suffix in SAFE else _pickled(path)
    return _unwrapped(found)


def _safe(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, KeyError, ValueError) as error:
        raise Unreadable(
            f"is damaged, cut short, or no safetensors file ({_first_line(error)}): write or fetch it again."
        ) from None


def _pickled(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old formats bring torch's own remarks
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a foreign file makes of a reader
        why = str(error)
    if "TorchScript" in why:
        raise Unreadable(f"is a TorchScript archive, which holds code: {WAY_OUT}.")
    called = _called(path)
    if called is None:
        raise Unreadable("is damaged, cut short, or no checkpoint at all: write or fetch it again.")
    foreign = [name for name in called if not KNOWN.fullmatch(name)]
    if foreign:
        raise Unreadable(
            f"holds more than tensors: to open it would run code (it calls {foreign[0]}), so it was not opened; {WAY_OUT}."
        )
    raise Unreadable(f"cannot be read as tensors ({_first_line(why)}): {WAY_OUT}.")


def _called(path: Path) -> list[str] | None:
    """The names that a pickle would import and call, read off its opcodes without following any; None if it is none."""
    strings: list[str] = []
    memo: dict[int, str] = {}
    names: list[str] = []
    try:
        for code, argument, _ in pickletools.genops(_opcodes(path)):
            if code.name in ("GLOBAL", "INST"):
                names.append(str(argument).replace(" ", "."))
            elif code.name == "STACK_GLOBAL":
                names.append(".".join(strings[-2:]))
            elif "UNICODE" in code.name:
                strings.append(argument)
            elif code.name == "MEMOIZE":
                memo[len(memo)] = strings[-1] if strings else ""
            elif code.name in ("BINGET", "LONG_BINGET") and argument in memo:
                strings.append(memo[argument])
    except Exception:  # no pickle, or half of one
        return None
    return names


def _opcodes(path: Path) -> bytes:
    if not zipfile.is_zipfile(path):
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def _unwrapped(found: Any) -> tuple[dict[str, Tensor], list[str]]:
    notes: list[str] = []
    while isinstance(found, dict):
        inner = next((key for key in (*WRAPPERS, *AVERAGES) if isinstance(found.get(key), dict)), None)
        if inner is None or all(isinstance(value, Tensor) for value in found.values()):
            break
        others = [str(key) for key in found if key != inner]
        rest = f", beside {', '.join(others[:4])}{' …' if len(others) > 4 else ''}" if others else ""
        notes.append(f"the weights stood under {inner!r}{rest}")
        if inner in WRAPPERS and (
            average := next((key for key in AVERAGES if isinstance(found.get(key), dict)), None)
        ):
            notes.append(
                f"the running average under {average!r} was left alone: save it by itself to have it read"
            )
        found = found[inner]
    if not isinstance(found, dict):
        raise Unreadable(f"holds {_a(type(found).__name__)}, no state_dict: {WAY_OUT}.")
    if not found:
        raise Unreadable(f"holds no tensors at all: {WAY_OUT}.")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise Unreadable(
                f"holds {_a(type(value).__name__)} under {name!r}, where a tensor belongs: {WAY_OUT}."
            )
        if value.layout != torch.strided or value.is_quantized or value.is_complex():
            raise Unreadable(f"holds a sparse, quantised or complex tensor, {name!r}: save dense real ones.")
    return {name: tensor.detach() for name, tensor in found.items()}, notes


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'AEIOUaeiou' else 'a'} {noun}"


def _first_line(error: Exception | str) -> str:
    text = " ".join(str(error).split())
    return f"{text[:117]}…" if len(text) > 118 else text or "no reason given"
