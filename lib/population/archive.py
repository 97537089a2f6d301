"""Populations on disk: safetensors with an index in the header, written atomically, refused when damaged or foreign.

A checkpoint set is one such file: the parameters of all members, and a row for each (its id, seed, training loss,
accuracy, and the step at which it diverged), so that a colleague needs nothing else.  The same population gives the
same bytes, hence the same sha256, which is what is published beside a result (``record``).  Five lines to use one::

    from lib.population import describe_archive, evaluate, load
    print(describe_archive("mnist.safetensors"))             # sha256, size, recipe, accuracies: compare with the record
    some = load("mnist.safetensors", net, members=range(100), finite=True)    # reads those members only
    best = some.where(some.accuracy.argsort(descending=True)[:10])
    print(evaluate(net, best.params, inputs, targets)["accuracy"])
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b, file_digest
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lib.population.initialise import member_ids
from lib.population.members import Population
from lib.population.recipe import Recipe

FORMAT = 2  # 2 brought the digest, the accuracy and half precision; files of format 1 are still read
READ = (1, 2)
QUANTILES = {"least": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "greatest": 1.0}


class Damaged(ValueError):
    """A file that was cut short or changed since it was written."""


# ------------------------------------------------------------------------------------------------ any file of ours


def write(path: str | Path, tensors: dict[str, Tensor], index: dict) -> None:
    """Write tensors and a JSON index to ``path``: a reader sees the old file or the new one, never half of one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        index = {"format": FORMAT, "digest": _digest(on_cpu)} | index
        save_file(on_cpu, partial, metadata={"index": json.dumps(index)})
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors and index of a file that ``write`` made; raises Damaged, or ValueError for a foreign one."""
    with _opened(path) as (file, index):
        return _everything(path, file, index), index


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[safe_open, dict]]:
    """An open file and its index; nothing else is read. Raises Damaged, or ValueError for a foreign file."""
    try:
        with safe_open(path, framework="pt") as file:
            try:
                index = json.loads((file.metadata() or {})["index"])
                version = index["format"]
            except (KeyError, TypeError, json.JSONDecodeError):
                raise ValueError(f"{path} has no index: it was not written by this package.") from None
            if version not in READ:
                raise ValueError(
                    f"{path} has format {version}, and this version reads {' and '.join(map(str, READ))}: "
                    "make it again, or read it with the version that wrote it."
                )
            yield file, index
    except SafetensorError as error:
        raise Damaged(
            f"{path} is damaged or cut short, or no such archive at all ({error}): delete it and make or fetch it again."
        ) from error


def _everything(path: str | Path, file: safe_open, index: dict) -> dict[str, Tensor]:
    """All tensors of an open file, compared with the digest that it carries (from format 2 on)."""
    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if index.get("digest", found := _digest(tensors)) != found:
        raise Damaged(
            f"{path} is damaged: its tensors are not those that were written. Make or fetch it again."
        )
    return tensors


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------ populations


def save(
    path: str | Path,
    population: Population,
    accuracy: Float[Tensor, " P"] | None = None,
    note: str = "",
    dtype: torch.dtype | None = None,
) -> None:
    """Save a population with a row for each member: id, seed, training loss, accuracy, and where it diverged.

    ``accuracy`` (P,) is a share of right answers in [0, 1], by default the population's own; ``note`` says which data it
    was measured on, and whatever else a reader must know.  Diverged members are saved like the others, and marked.
    ``dtype=torch.float16`` halves the file, as the paper published its sets; reading gives float32.  What that costs: at
    most 2^-11 = 4.9e-4 of a weight (of one below 6.1e-5: 3e-8 in all).  Measured on 256 networks 64-16-8 after 40 epochs
    of the digits 0 to 7: logits (2.5 in the median) moved by 0.0009 in the median and 0.006 at most, no network's mean
    test loss by more than 6e-5, and 3 of 128,000 predictions changed.

    Raises ValueError for an accuracy of another length or outside [0, 1], another dtype, or a weight above 65,504 in
    half precision.
    """
    tensors, index = pack(population, accuracy)
    if dtype is not None:
        tensors = _in_half(tensors, dtype, population)
        index["half"] = True
    write(path, tensors, index | {"note": note})


def pack(
    population: Population, accuracy: Float[Tensor, " A"] | None = None
) -> tuple[dict[str, Tensor], dict]:
    """A population as the tensors and the index that ``write`` takes."""
    if accuracy is None:
        accuracy = population.accuracy
    tensors = {f"params/{name}": tensor for name, tensor in population.params.items()}
    tensors |= {name: getattr(population, name) for name in ("members", "loss", "diverged_at")}
    tensors["seeds"] = torch.full_like(population.members, population.seed)
    if accuracy is not None:
        if len(accuracy) != len(population):
            raise ValueError(
                f"{len(accuracy)} accuracies for {len(population)} members: give one for each, in their order."
            )
        if not bool(((accuracy >= 0) & (accuracy <= 1)).all()):
            raise ValueError(
                "an accuracy is a share of right answers, a number in [0, 1]: some of these are not."
            )
        tensors["accuracy"] = accuracy
    index = {"kind": "population", "seed": population.seed, "recipe": population.recipe.to_dict()}
    return tensors, index | {"names": list(population.params)}


def _in_half(tensors: dict[str, Tensor], dtype: torch.dtype, population: Population) -> dict[str, Tensor]:
    if dtype != torch.float16:
        raise ValueError(f"an archive is saved as it is, or with dtype=torch.float16, not with {dtype}.")
    result = dict(tensors)
    for name, tensor in tensors.items():
        if name.startswith("params/") and tensor.is_floating_point():
            result[name] = tensor.to(dtype)
            lost = (result[name].isinf() & tensor.isfinite()).flatten(1).any(dim=1)
            if bool(lost.any()):
                raise ValueError(
                    f"half precision ends at 65,504, and {name.removeprefix('params/')} of member "
                    f"{int(population.members[lost][0])} ({int(lost.sum())} in all) lies beyond: save without dtype=, "
                    "or without such members (population.where(population.finite))."
                )
    return result


def load(
    path: str | Path,
    net: nn.Module | None = None,
    members: int | range | list[int] | Tensor | None = None,
    finite: bool = False,
) -> Population:
    """Load a population, on the CPU; with ``net``, refuse one of another architecture.

    ``members`` (ids, in the order wanted; a number P means 0 … P-1) reads those members only, not the whole file;
    ``finite=True`` leaves out those that diverged in training.  Half precision comes back as float32.
    Raises FileNotFoundError, Damaged, or ValueError for another kind of file, other names or shapes, or ids that
    are not there.  A whole file is compared with its digest; a part is not.
    """
    with _opened(path) as (file, index):
        if index.get("kind") != "population":
            raise ValueError(f"{path} holds a {index.get('kind')}, not a population.")
        if net is not None:
            _check_network(path, net, {name: file.get_slice(f"params/{name}") for name in index["names"]})
        if members is None and not finite:
            return unpack(_everything(path, file, index), index)
        ids = file.get_tensor("members")
        rows = torch.arange(len(ids))
        if members is not None:
            wanted = torch.tensor(members) if isinstance(members, list) else members
            rows = _rows(path, ids, member_ids(wanted).cpu())
        if finite:
            rows = rows[file.get_tensor("diverged_at")[rows] < 0]
        chosen = rows.tolist()
        return unpack({name: file.get_slice(name)[chosen] for name in file.keys()}, index)  # noqa: SIM118


def unpack(tensors: dict[str, Tensor], index: dict) -> Population:
    """The population that ``pack`` took apart."""
    params = {name: tensors[f"params/{name}"] for name in index["names"]}
    if index.get("half"):
        params = {name: t.float() if t.dtype == torch.float16 else t for name, t in params.items()}
    rows = {name: tensors[name] for name in ("members", "loss", "diverged_at")}
    return Population(
        params=params,
        seed=index["seed"],
        recipe=Recipe.from_dict(index["recipe"]),
        accuracy=tensors.get("accuracy"),
        **rows,
    )


def _check_network(path: str | Path, net: nn.Module, slices: dict) -> None:
    here = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    there = {name: tuple(part.get_shape()[1:]) for name, part in slices.items()}
    for name in [*here, *there]:
        if here.get(name) != there.get(name):
            raise ValueError(
                f"{path} holds another network: {name} is {there.get(name, 'absent')} there and "
                f"{here.get(name, 'absent')} here."
            )


def _rows(path: str | Path, ids: Tensor, wanted: Tensor) -> Tensor:
    """Where the members ``wanted`` stand among ``ids``."""
    order = torch.argsort(ids)
    place = torch.searchsorted(ids[order], wanted).clamp_max(len(ids) - 1)
    rows = order[place]
    absent = wanted[ids[rows] != wanted]
    if len(absent):
        raise ValueError(
            f"{path} has no member {', '.join(map(str, absent[:3].tolist()))} ({len(absent)} of those asked for are not "
            f"there): it holds {len(ids)} members from {int(ids.min())} to {int(ids.max())}."
        )
    return rows


# ------------------------------------------------------------------------------------------------ the published record


class Description(dict):
    """What is known of an archive: a dict for JSON, which prints one fact a line."""

    def __str__(self) -> str:
        return "\n".join(f"{key:10s}  {value}" for key, value in self.items())


def describe_archive(path: str | Path) -> Description:
    """What is published of an archive, itself not committed: name, bytes, sha256, members, network, recipe, accuracies.

    Reads the file once for its hash, and of the parameters the shapes only.  Raises as ``load`` does.
    """
    path = Path(path)
    with _opened(path) as (file, index):
        if index.get("kind") != "population":
            raise ValueError(f"{path} holds a {index.get('kind')}, not a population.")
        slices = {name: file.get_slice(f"params/{name}") for name in index["names"]}
        ids, diverged_at = file.get_tensor("members"), file.get_tensor("diverged_at")
        accuracy = file.get_tensor("accuracy") if "accuracy" in file.keys() else None  # noqa: SIM118
    with open(path, "rb") as raw:
        sha256 = file_digest(raw, "sha256").hexdigest()
    shapes = {name: part.get_shape()[1:] for name, part in slices.items()}
    return Description(
        file=path.name,
        bytes=path.stat().st_size,
        sha256=sha256,
        format=index["format"],
        members=len(ids),
        ids=[int(ids.min()), int(ids.max())],
        diverged=int((diverged_at >= 0).sum()),
        seed=index["seed"],
        shapes=shapes,
        parameters=sum(torch.Size(shape).numel() for shape in shapes.values()),
        dtype=sorted({part.get_dtype() for part in slices.values()}),
        recipe=index["recipe"],
        accuracy=None if accuracy is None else _quantiles(accuracy),
        note=index.get("note", ""),
    )


def record(path: str | Path) -> dict:
    """``describe_archive`` as a plain dict: the small record that ``results.save`` keeps among its tables."""
    return dict(describe_archive(path))


def _quantiles(accuracy: Tensor) -> dict[str, float]:
    return {name: round(float(accuracy.double().quantile(q)), 6) for name, q in QUANTILES.items()}


# ------------------------------------------------------------------------------------------------ runs under way


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
