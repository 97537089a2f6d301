"""A long run in parts: what is finished is kept on disk, and a run that was cut goes on from there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError

import torch

Tensors = dict[str, torch.Tensor]


class Kept:
    """Parts under ``folder``, which names everything that they depend on; None keeps nothing.

    A part is a flat dictionary of tensors. A damaged file is made again.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder

    def part(self, name: str, make: Callable[[], Tensors]) -> Tensors:
        """The part of this name: read, or made and written (whole or not at all)."""
        if self.folder is None:
            return make()
        path = self.folder / f"{name}.pt"
        if path.exists():
            found = _read(path)
            if found is not None:
                return found
        found = make()
        self.folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self.folder, prefix=f".{name}-")
        with os.fdopen(handle, "wb") as file:  # by name, torch refuses some names
            torch.save(found, file)
        os.replace(temporary, path)
        return found


def _read(path: Path) -> Tensors | None:
    try:
        return torch.load(path, weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, UnpicklingError) as error:
        print(f"{path.name} is damaged ({type(error).__name__}): that part is computed again.")
        return None
