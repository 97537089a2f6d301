"""A folder to try the report on: eight small networks on handwritten digits in the dress of many tools, and three bad files.

python -c "from lib.report.demonstration import make; make('demonstration')"
python -m lib.report demonstration/checkpoints --builder lib.report.demonstration:build --data demonstration/data.npz
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lib.data import load
from lib.networks import perceptron
from lib.params import Params, member
from lib.population import Cosine, Recipe, train

WIDTHS = (64, 32, 32, 10)
MEMBERS = 8
LEARN = 700  # examples; the other 1,097 judge, so that a point of error can be told
BUILDER = "lib.report.demonstration:build"


@dataclass(frozen=True)
class Demonstration:
    """Where the parts lie, and how the network is named on the command line."""

    checkpoints: Path
    data: Path
    builder: str = BUILDER


def build() -> nn.Sequential:
    """The network of the good files."""
    return perceptron(WIDTHS)


def make(folder: str | Path, *, seed: int = 0, epochs: int = 15) -> Demonstration:
    """Train and write everything, the same files for the same seed, in a few seconds.

    Checkpoints: two plain, two safetensors, one with DataParallel's prefix, one inside a training script's dict, one in half
    precision, one bfloat16; and one of another architecture, one that would run code (it would print a line), one cut short.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    place = folder / "checkpoints"
    place.mkdir(parents=True, exist_ok=True)
    learn, test = load("digits", "train"), load("digits", "test")
    kept = learn.inputs[LEARN:], learn.targets[LEARN:]
    recipe = Recipe(lr=0.1, batch_size=32, epochs=epochs, momentum=0.9, schedule=Cosine())
    population = train(
        build(), learn.inputs[:LEARN], learn.targets[:LEARN], recipe, members=MEMBERS, seed=seed
    )
    networks = [member(population.params, i) for i in range(MEMBERS)]

    for i, name in enumerate(("a_plain.pt", "b_plain.pth")):
        torch.save(networks[i], place / name)
    for i, name in enumerate(("c_safe.safetensors", "d_safe.safetensors"), start=2):
        save_file({key: tensor.contiguous() for key, tensor in networks[i].items()}, place / name)
    torch.save({f"module.{key}": tensor for key, tensor in networks[4].items()}, place / "e_data_parallel.pt")
    script = {"model_state_dict": networks[5], "epoch": epochs, "loss": float(population.loss[5])}
    torch.save(script, place / "f_training_script.pt")
    torch.save({key: tensor.half() for key, tensor in networks[6].items()}, place / "g_half.bin")
    torch.save({key: tensor.bfloat16() for key, tensor in networks[7].items()}, place / "h_bfloat.pt")
    _bad(place, networks[0], seed)
    inputs, targets = (
        torch.cat(both).numpy() for both in zip(kept, (test.inputs, test.targets), strict=True)
    )
    np.savez(folder / "data.npz", inputs=inputs, targets=targets)
    return Demonstration(place, folder / "data.npz")


class _Harmless:
    """Pickled as a call of ``print``: a file that runs code when it is opened, and does no harm."""

    def __reduce__(self) -> tuple:
        return print, ("A checkpoint ran code in your name.",)


def _bad(place: Path, network: Params, seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.save(perceptron((64, 48, 10)).state_dict(), place / "x_other_architecture.pt")
    (place / "y_runs_code.pt").write_bytes(
        pickle.dumps({"0.bias": network["0.bias"].tolist(), "hook": _Harmless()})
    )
    whole = (place / "a_plain.pt").read_bytes()
    (place / "z_damaged.pt").write_bytes(whole[: len(whole) // 2])
