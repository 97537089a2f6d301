"""Populations on disk: safetensors with an index in the header, written atomically, refused when damaged or foreign."""

from __future__ import annotations

import json
import os
from hashlib import blake2b
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lib.population.members import Population
from lib.population.recipe import Recipe

FORMAT = 1


def write(path: str | Path, tensors: dict[str, Tensor], index: dict) -> None:
    """Write tensors and a JSON index to ``path``: a reader sees the old file or the new one, never half of one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(on_cpu, partial, metadata={"index": json.dumps({"format": FORMAT} | index)})
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors and index of a file that ``write`` made; raises ValueError for a damaged or a foreign one."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or cut short ({error}): delete it and make it again.") from error
    if "index" not in metadata:
        raise ValueError(f"{path} has no index: it was not written by this package.")
    index = json.loads(metadata["index"])
    if index["format"] != FORMAT:
        raise ValueError(
            f"{path} has format {index['format']}, and this version reads {FORMAT}: make it again."
        )
    return tensors, index


def save(path: str | Path, population: Population) -> None:
    """Save a population: its parameters, and an index with seed, recipe and number of members."""
    tensors = {f"params/{name}": tensor for name, tensor in population.params.items()}
    tensors |= {name: getattr(population, name) for name in ("members", "loss", "diverged_at")}
    index = {"kind": "population", "seed": population.seed, "recipe": population.recipe.to_dict()}
    index["names"] = list(population.params)
    write(path, tensors, index)


def load(path: str | Path, net: nn.Module | None = None) -> Population:
    """Load a population, on the CPU; with ``net``, refuse one of another architecture.

    Raises FileNotFoundError, or ValueError for a damaged file, another kind of file, or other names or shapes.
    """
    tensors, index = read(path)
    if index.get("kind") != "population":
        raise ValueError(f"{path} holds a {index.get('kind')}, not a population.")
    params = {name: tensors[f"params/{name}"] for name in index["names"]}
    if net is not None:
        here = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
        there = {name: tuple(tensor.shape[1:]) for name, tensor in params.items()}
        for name in [*here, *there]:
            if here.get(name) != there.get(name):
                raise ValueError(
                    f"{path} holds another network: {name} is {there.get(name, 'absent')} there and "
                    f"{here.get(name, 'absent')} here."
                )
    others = {name: tensors[name] for name in ("members", "loss", "diverged_at")}
    return Population(params=params, seed=index["seed"], recipe=Recipe.from_dict(index["recipe"]), **others)


def fingerprint(
    recipe: dict, seed: int, slots: Tensor, weights: list[Tensor], inputs: Tensor, targets: Tensor
) -> str:
    """What a run depends on, as a hash: a checkpoint continues only the run that wrote it."""
    digest = blake2b(
        json.dumps([recipe, seed, str(weights[0].dtype)], sort_keys=True).encode(), digest_size=16
    )
    for tensor in (slots, inputs, targets, *weights):
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def store(path: str | Path, run: str, epochs: int, tensors: dict[str, Tensor]) -> None:
    """Write the state of a run after some epochs."""
    write(path, tensors, {"kind": "checkpoint", "run": run, "epochs": epochs})


def restore(path: str | Path, run: str, tensors: dict[str, Tensor]) -> int:
    """Copy a checkpoint's state into ``tensors`` and return its epochs; 0 where there is no checkpoint."""
    if not Path(path).exists():
        return 0
    stored, index = read(path)
    if index.get("run") != run:
        raise ValueError(
            f"{path} is the checkpoint of another run (other data, members, seed, recipe or network): "
            "name another file, or delete this one."
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(stored[name])
    return index["epochs"]
