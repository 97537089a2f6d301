"""A folder of checkpoints to one population: what fits the architecture is stacked, what does not is named with the reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor, nn

from lib.params import Params, params_of
from lib.report.files import SUFFIXES, Unreadable, tensors_of
from lib.report.finding import Finding
from lib.table import Table

PREFIXES = ("module.", "_orig_mod.", "model.", "net.")  # DataParallel, torch.compile, Lightning
COUNTER = "num_batches_tracked"  # old files lack it, and no prediction reads it


class NothingReadable(ValueError):
    """No file of the folder could be read; the text lists every file with its reason."""


@dataclass(frozen=True)
class Refused:
    """A file that is left out, and why: ``reason`` goes on from the name."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} {self.reason}"


@dataclass(frozen=True, eq=False, repr=False)
class Models(Finding):
    """n networks of one architecture, in the order of their names.

    net        the module that the builder gave, in evaluation mode, with the weights of the first network
    params     its state_dict's tensors, each with a leading axis n, in the builder's types
    names      (n,) of the files
    notes      what was done to a file before it fitted, one sentence each
    refused    files that were left out
    passed     files whose names are not those of checkpoints
    balanced   whether the networks stand at the least mass of their orbits, and not as they were read
    """

    net: nn.Module = field(repr=False)
    params: Params = field(repr=False)
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    refused: tuple[Refused, ...] = ()
    passed: tuple[str, ...] = ()
    balanced: bool = False

    def __len__(self) -> int:
        return len(self.names)

    @property
    def weights(self) -> int:
        """Numbers in one network's state_dict."""
        return sum(tensor[0].numel() for tensor in self.params.values())

    def to(self, device: torch.device) -> Models:
        """The same on a device, where all passes are then made."""
        params = {name: tensor.to(device) for name, tensor in self.params.items()}
        return replace(self, net=self.net.to(device), params=params)

    def table(self) -> Table:
        """Every file and what became of it."""
        rows = [(name, "read", "; ".join(_of(name, self.notes)) or "as it is") for name in self.names]
        rows += [(each.name, "refused", each.reason) for each in self.refused]
        return Table(("file", "", "what was done, or why not"), rows, "Checkpoints")


def read(source: str | Path | Sequence[str | Path], build: Callable[[], nn.Module]) -> Models:
    """The checkpoints of a folder (or the files named), loaded as data, in the order of their names.

    ``build()`` gives the module whose state_dict they must fit. Raises FileNotFoundError, or NothingReadable with a line a file.
    """
    net = build().eval()
    notes: list[str] = []
    kinds = sorted({str(p.dtype)[6:] for p in net.parameters() if p.is_floating_point()} - {"float32"})
    if kinds:
        net = (
            net.float()
        )  # half precision is too coarse for means and lines of weights, and examples are float32
        notes.append(f"The builder's network is {' and '.join(kinds)}, and is computed in float32")
    wanted = params_of(net)
    files, passed = _listed(source)
    found: list[Params] = []
    names: list[str] = []
    refused: list[Refused] = []
    first_with: dict[str, str] = {}
    several = len({path.name for path in files}) < len(files)  # folders may hold files of one name
    for path in files:
        name = str(path) if several else path.name
        try:
            tensors, said = tensors_of(path)
            tensors, more = fitted(tensors, wanted)
        except Unreadable as why:
            refused.append(Refused(name, str(why)))
            continue
        notes += [f"{name}: {note}" for note in (*said, *more)]
        twin = first_with.setdefault(_digest(tensors), name)
        if twin != name:
            notes.append(f"{name}: holds the same weights as {twin}, so their distance is zero")
        found.append(tensors)
        names.append(name)
    if not found:
        raise NothingReadable(_nothing(source, refused, passed))
    net.load_state_dict(found[0])
    params = {name: torch.stack([tensors.pop(name) for tensors in found]) for name in wanted}
    return Models(net, params, tuple(names), tuple(notes), tuple(refused), tuple(passed))


def fitted(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> tuple[Params, list[str]]:
    """The tensors under the names, in the shapes and types of ``wanted``, and notes on what that took.

    Raises Unreadable for another architecture, naming the first entry that differs, and for weights that are not finite.
    """
    tensors, notes = _stripped(dict(tensors), wanted)
    if counters := [name for name in wanted if name.endswith(COUNTER) and name not in tensors]:
        tensors |= {name: wanted[name].clone() for name in counters}
        notes.append(f"{len(counters)} counters {COUNTER!r} were missing, and set to the builder's")
    for name in [*wanted, *tensors]:
        here, there = _shape(wanted, name), _shape(tensors, name)
        if here != there:
            raise Unreadable(
                f"is of another architecture: {name!r} is {there} in the file and {here} in the builder's network. Keep it "
                "in a folder of its own, or name the builder that made it."
            )
    kinds = sorted(
        {
            f"{str(t.dtype)[6:]} to {str(wanted[n].dtype)[6:]}"
            for n, t in tensors.items()
            if t.dtype != wanted[n].dtype
        }
    )
    if kinds:
        notes.append(f"converted from {', '.join(kinds)}")
    found = {name: tensors[name].to(like.dtype) for name, like in wanted.items()}
    for name, tensor in found.items():
        broken = int((~tensor.isfinite()).sum()) if tensor.is_floating_point() else 0
        if broken:
            raise Unreadable(
                f"holds {broken:,} weights that are NaN or infinite, the first in {name!r}: its training diverged; take an "
                "earlier checkpoint."
            )
    return found, notes


def _stripped(tensors: Params, wanted: Mapping[str, Tensor]) -> tuple[Params, list[str]]:
    """Without the prefixes that wrappers put before every name, where the builder's names have none."""
    notes: list[str] = []
    while tensors and not tensors.keys() & wanted.keys():
        prefix = next((p for p in PREFIXES if all(name.startswith(p) for name in tensors)), None)
        if prefix is None:
            break
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        notes.append(f"the prefix {prefix!r} was taken off every name")
    if tensors.keys().isdisjoint(wanted):
        tensors, more = _among(tensors, wanted)
        notes += more
    return tensors, notes


def _among(tensors: Params, wanted: Mapping[str, Tensor]) -> tuple[Params, list[str]]:
    """The names that a prefix puts before all of the builder's, as where a trainer's own module holds the network beside others."""
    known = set(wanted)
    if not known:
        return tensors, []
    some = next(iter(wanted))
    for prefix in sorted({name.removesuffix(some) for name in tensors if name.endswith(some)}):
        if {prefix + name for name in known} <= tensors.keys():
            rest = sorted(
                name
                for name in tensors
                if name.removeprefix(prefix) not in known or not name.startswith(prefix)
            )
            note = f"the prefix {prefix!r} was taken off" + (
                f", and {len(rest)} other tensor{'s' if len(rest) > 1 else ''} left out ({', '.join(rest[:3])}{' …' if len(rest) > 3 else ''})"
                if rest
                else ""
            )
            return {name: tensors[prefix + name] for name in wanted}, [note]
    return tensors, []


def _shape(tensors: Mapping[str, Tensor], name: str) -> str:
    return str(tuple(tensors[name].shape)) if name in tensors else "absent"


def _listed(source: str | Path | Sequence[str | Path]) -> tuple[list[Path], list[str]]:
    """Checkpoint files, and the names of other files, sorted."""
    paths = [Path(source)] if isinstance(source, (str, Path)) else [Path(each) for each in source]
    files: list[Path] = []
    passed: list[str] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(
                f"there is no file or folder {str(path)!r}: name the folder that holds the checkpoints."
            )
        inside = [p for p in path.iterdir() if p.is_file() and p.name[0] != "."] if path.is_dir() else [path]
        files += [p for p in inside if p.suffix in SUFFIXES or not path.is_dir()]
        passed += [p.name for p in inside if p.suffix not in SUFFIXES and path.is_dir()]
    return sorted(files, key=lambda p: (p.name, str(p))), sorted(passed)


def _nothing(source: object, refused: Sequence[Refused], passed: Sequence[str]) -> str:
    lines = [f"no checkpoint could be read from {source}:"]
    lines += [f"  {each}" for each in refused]
    lines += [f"  {name} is no checkpoint by its name ({', '.join(SUFFIXES)})." for name in passed]
    return "\n".join(
        lines if len(lines) > 1 else [f"{lines[0]} there is no file ending in {', '.join(SUFFIXES)}."]
    )


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = blake2b(digest_size=16)
    for tensor in tensors.values():
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _of(name: str, notes: Sequence[str]) -> list[str]:
    return [note.removeprefix(f"{name}: ") for note in notes if note.startswith(f"{name}: ")]
