"""A population trained shard by shard, on one process, several, or several machines: same members, same numbers.

The members are cut into shards of a fixed size, and ``joblib.Parallel`` trains the shards wherever the caller says::

    with parallel_config("loky", n_jobs=4):  # or dask
        population = train_sharded(
            net, inputs, targets, recipe,
            members=8192, seed=0, shard=512,
            folder="run",
        )

Other backends of ``joblib.parallel_config`` are "threading", "multiprocessing" and, once a ``distributed.Client`` (of a
``LocalCluster`` or of a scheduler elsewhere) exists, "dask"; the call stays the same.

Ray is not among the pins; where it is installed, ``ray.util.joblib.register_ray()`` makes the backend "ray" with
``n_jobs=-1`` do the same.  joblib runs in this process what has only one worker (``n_jobs=1``, a cluster of one thread).

Since every random number is a function of seed and member (``lib.randomness``), a perceptron has the same bits in any shard,
process or order, on one CPU build; other modules agree as in ``train``.  A worker that is lost costs the shards that it
had under way: Dask gives them to another worker, and for what a backend does not survive there is a second attempt.
(A ``multiprocessing`` pool never notices that a worker was killed: do not use it where that can happen.)
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from lib.params import Params, population_size, select
from lib.population import archive, training
from lib.population.initialise import initial, member_ids
from lib.population.members import Population, join
from lib.population.recipe import Recipe

ATTEMPTS = 3  # Dask's own limit on a task whose workers die
WAVE = 4  # shards a worker gets at a time where finished ones do not come back one by one
OWN = ("checkpoint", "every", "progress")  # options of train that have another meaning here


class ShardError(RuntimeError):
    """Some shards were not trained: ``members`` are theirs, ``finished`` is the population of the others (or None)."""

    def __init__(self, sentence: str, members: Tensor, finished: Population | None) -> None:
        super().__init__(sentence)
        self.members, self.finished = members, finished


def train_sharded(
    net: nn.Module,
    inputs: Shaped[Tensor, "N ..."],
    targets: Shaped[Tensor, "N ..."],
    recipe: Recipe,
    *,
    members: int | range | Tensor,
    seed: int,
    shard: int,
    device: str | torch.device = "cpu",
    folder: str | Path | None = None,
    progress: bool = False,
    **options,
) -> Population:
    """Train every member, ``shard`` of them at a time, as the surrounding ``joblib.parallel_config`` says.

    Without one the shards are trained one after the other, each with all of torch's threads; in parallel, the workers
    of a machine share its cores.  ``options`` are those of ``train`` (``start``, ``fast``).  Shards of a multiple of 16
    consecutive members waste nothing.  The result lies on ``device``, or on the CPU where this process has no such device.

    With ``folder``, each finished shard is written there at once, as an archive that ``load`` reads: a later call of the
    same run (recipe, seed, members, network, data, device, shard size) takes those that it finds and trains the rest; a
    damaged file is trained again.  The files stay until you delete them.

    Raises ValueError (and UnsupportedTraining) as ``train`` does, before any shard is trained, and ValueError where the
    folder holds another run.  Where shards fail, all others are trained first; then ShardError names the members, and
    carries the finished ones.
    """
    ids = member_ids(members).cpu()
    start = options.pop("start", None)
    run = _Run(net, recipe, seed, str(device), shard, options)
    _refuse_early(run, inputs, targets, ids, start)
    shards = dict(enumerate(ids.split(shard)))
    finished, failures, lost = {}, {}, None
    if folder is not None:
        print_of_run = _fingerprint(run, ids, start, inputs, targets)
        files = {k: Path(folder) / f"shard-{k:05d}.safetensors" for k in shards}
        finished = _stored(files, print_of_run)

    threads, bar = torch.get_num_threads(), _bar(progress, len(shards), len(finished))
    for _ in range(ATTEMPTS):
        waiting = {k: shards[k].tolist() for k in shards if k not in finished and k not in failures}
        try:
            for k, result in _each(run, waiting, start, inputs, targets):
                bar()
                if isinstance(result, str):
                    failures[k] = result
                    continue
                finished[k] = result
                if folder is not None:
                    tensors, index = archive.pack(result)
                    archive.write(files[k], tensors, index | {"run": print_of_run})
            break
        except (
            Exception
        ) as error:  # a worker took its backend with it: what has not come back is trained again
            lost = error
        finally:
            torch.set_num_threads(threads)  # shards that ran as threads of this process have set it
    if len(finished) < len(shards):
        raise _error(shards, finished, failures, lost, folder) from lost
    return join([finished[k] for k in shards]).to(_home(device))


# ------------------------------------------------------------------------------------------------ before


@dataclass(frozen=True)
class _Run:
    net: nn.Module
    recipe: Recipe
    seed: int
    device: str
    shard: int
    options: dict


def _refuse_early(run: _Run, inputs: Tensor, targets: Tensor, ids: Tensor, start: Params | None) -> None:
    """Raise what ``train`` would raise in every shard, by beginning with one member and no step."""
    if run.shard < 1:
        raise ValueError(f"shard = {run.shard}: a shard has at least one member.")
    if own := [name for name in run.options if name in OWN]:
        raise TypeError(f"train_sharded takes no {own[0]}: with folder= every finished shard is kept.")
    inspect.signature(training.train).bind(
        run.net, inputs, targets, run.recipe, members=ids, seed=run.seed, **run.options
    )
    if len(torch.unique(ids)) != len(ids):
        raise ValueError("member ids must be distinct: a member occurs once in a population.")
    if start is not None and population_size(start) != len(ids):
        raise ValueError(
            f"start holds {population_size(start)} networks for {len(ids)} members: give one for each."
        )
    one = None if start is None else select(start, slice(0, 1))
    fast = run.options.get("fast", True)
    training._begin(run.net, inputs, targets, run.recipe, ids[:1], run.seed, "cpu", one, fast)


def _fingerprint(run: _Run, ids: Tensor, start: Params | None, inputs: Tensor, targets: Tensor) -> str:
    """The hash of all that decides the shards' contents; the initial values of one member stand for the network."""
    more = {
        "network": repr(run.net),
        "shard": run.shard,
        "device": torch.device(run.device).type,
        "options": repr(sorted(run.options.items())),
    }
    weights = start or initial(run.net, ids[:1], run.seed)
    plain = run.recipe.to_dict() | more | {"names": list(weights)}
    return archive.fingerprint(plain, run.seed, ids, list(weights.values()), inputs, targets)


def _stored(files: dict[int, Path], run: str) -> dict[int, Population]:
    """The shards of this run that are there and whole; raises ValueError for those of another run."""
    found = {}
    for k, file in files.items():
        if file.exists():
            try:
                tensors, index = archive.read(file)
            except archive.Damaged:
                continue
            if index.get("run") != run:
                raise ValueError(
                    f"{file} is a shard of another run (other data, members, seed, recipe, network, device or shard "
                    "size): name another folder, or delete this one."
                )
            found[k] = archive.unpack(tensors, index)
    return found


# ------------------------------------------------------------------------------------------------ under way


def _each(
    run: _Run, shards: dict[int, list[int]], start: Params | None, inputs: Tensor, targets: Tensor
) -> Iterator[tuple[int, Population | str]]:
    """Number and population of each shard, or what went wrong in it, as they are finished."""
    from joblib import Parallel, cpu_count, delayed, effective_n_jobs
    from joblib.parallel import get_active_backend

    if not shards:
        return
    (backend, _), jobs = get_active_backend(), effective_n_jobs(None)
    client, threads, data = getattr(backend, "client", None), None, [inputs, targets]
    if jobs > 1:
        threads = backend.inner_max_num_threads or max(1, cpu_count() // jobs)
        if not getattr(backend, "supports_sharedmem", False):
            data = [_array(tensor) for tensor in data]
        if client is not None:  # one thread of a Dask worker is one core of its machine
            threads, data = 1, _held(client, data)
    tasks = [
        delayed(_train)(
            run, k, ids, start and select(start, slice(k * run.shard, (k + 1) * run.shard)), data, threads
        )
        for k, ids in shards.items()
    ]
    # "c": arrays that loky puts into shared files arrive writable, as torch wants them, and stay as they were
    if backend.supports_return_generator:
        yield from Parallel(batch_size=1, return_as="generator_unordered", mmap_mode="c")(tasks)
        return
    wave = WAVE * jobs  # a pool of multiprocessing or Ray gives the results of a call all at once
    for first in range(0, len(tasks), wave):
        yield from Parallel(batch_size=1, mmap_mode="c")(tasks[first : first + wave])


def _held(client, data: list):
    """The examples as the result of a Dask task, sent once, and made again if the worker that has them is lost.

    What joblib itself would scatter lies on one worker and dies with it, and the shards that wait for it with it.
    """
    import dask

    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TiB"}):
        return client.submit(_itself, data, pure=False)


def _itself(data: list) -> list:
    return data


def _array(tensor: Tensor) -> np.ndarray | Tensor:
    """The tensor as an array, which joblib shares through a file and Dask sends without a copy, where NumPy has its type."""
    tensor = tensor.detach().cpu()
    return tensor if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _tensor(array: np.ndarray | Tensor) -> Tensor:
    if isinstance(array, Tensor):
        return array
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _train(
    run: _Run, k: int, ids: list[int], start: Params | None, data, threads: int | None
) -> tuple[int, Population | str]:
    """One shard, wherever this runs; an error is a text, so that it stops no other shard."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads or before)
        inputs, targets = map(_tensor, data.result() if hasattr(data, "result") else data)
        net = deepcopy(run.net)  # torch.func puts parameters into it, and shards may be threads
        arguments = {"members": torch.tensor(ids), "seed": run.seed, "device": run.device, "start": start}
        return k, training.train(net, inputs, targets, run.recipe, **arguments, **run.options).to("cpu")
    except Exception:
        return k, traceback.format_exc()
    finally:
        torch.set_num_threads(before)


def _bar(show: bool, shards: int, done: int):
    """What to call for each finished shard."""
    if not show:
        return lambda: None
    from tqdm.auto import tqdm

    return tqdm(total=shards, initial=done, desc="training", unit="shard").update


# ------------------------------------------------------------------------------------------------ after


def _home(device: str | torch.device) -> torch.device:
    """``device``, or the CPU where this process has no such device (its workers had)."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError):
        return torch.device("cpu")


def _error(
    shards: dict[int, Tensor],
    finished: dict[int, Population],
    failures: dict[int, str],
    lost: Exception | None,
    folder: str | Path | None,
) -> ShardError:
    absent = [k for k in shards if k not in finished]
    first = next(iter(failures), absent[0])
    if failures:
        reason = failures[first].strip().splitlines()[-1]
    else:
        reason = f"{ATTEMPTS} attempts ended early, the last with {type(lost).__name__}: {lost}"
    kept = (
        f"are in {folder}"
        if folder is not None
        else "are in this error's .finished (folder= keeps them on disk)"
    )
    error = ShardError(
        f"{len(absent)} of {len(shards)} shards were not trained, among them members {_named(shards[first])}: {reason}. "
        f"The finished shards {kept}; remove the cause and call again.",
        torch.cat([shards[k] for k in absent]),
        join([finished[k] for k in shards if k in finished]) if finished else None,
    )
    for k, text in failures.items():
        told = text if k == first else text.strip().splitlines()[-1]
        error.add_note(f"members {_named(shards[k])}: {told}")
    return error


def _named(ids: Tensor) -> str:
    first, last = int(ids[0]), int(ids[-1])
    if torch.equal(ids, torch.arange(first, last + 1)):
        return f"{first} to {last}" if last > first else f"{first}"
    return ", ".join(map(str, ids[:5].tolist())) + (f" … ({len(ids)} in all)" if len(ids) > 5 else "")
