"""Populations trained shard by shard: the same bits on every backend, with workers killed and folders resumed."""

from __future__ import annotations

import json
import os
import signal
import time
import warnings
from contextlib import suppress
from dataclasses import replace
from functools import wraps
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from torch import nn

from lib.population import (
    Recipe,
    ShardError,
    UnsupportedTraining,
    archive,
    initial,
    load,
    shards,
    train,
    train_sharded,
    training,
)
from tests.test_population import assert_same_bits, convolutional, perceptron, problem

RECIPE = Recipe(lr=0.1, batch_size=32, epochs=3, momentum=0.9, weight_decay=1e-3)
SEED = 3


class Tap:
    """A hook of the network that notes which worker begins a shard, and sends itself SIGKILL when told to.

    It is called twice a shard, and adds a line to ``log`` wherever that is another process than the one that made it.
    For each number in ``kills`` one worker dies: at 0 the first that begins a shard, later one that begins while so many
    shards were finished (it waits until they are written), which it notes in a file ``victim``.
    """

    def __init__(self, folder: Path, *kills: int) -> None:
        self.folder, self.kills, self.parent = folder, kills, os.getpid()

    def __call__(self, module, prefix, keep_vars) -> None:
        if os.getpid() == self.parent:
            return
        with open(self.folder / "log", "a") as log:
            log.write(f"{os.getpid()} {torch.get_num_threads()}\n")
        for kill in self.kills:
            if kill and len(self.log()) < 2 * (
                kill + 2
            ):  # two workers: at least ``kill`` shards are finished then
                continue
            with suppress(FileExistsError), self.victim(kill).open("x") as victim:
                while len(kept := written(self.folder)) < kill:
                    time.sleep(0.01)
                json.dump(kept, victim)
                victim.flush()
                os.kill(os.getpid(), signal.SIGKILL)

    def log(self) -> list[list[int]]:
        """Process and number of threads at every beginning."""
        return [[int(x) for x in line.split()] for line in (self.folder / "log").read_text().splitlines()]

    def victim(self, kill: int) -> Path:
        """The file that says which archives lay in the folder, and of what time, when a worker died."""
        return self.folder / f"victim-{kill}"


def written(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in sorted(folder.glob("*.safetensors"))}


def tapped(tap: Tap) -> nn.Sequential:
    net = perceptron(6, 5, 4)
    net.register_state_dict_pre_hook(tap)
    return net


def run(net=None, folder=None, members=70, shard=16, **changes):
    x, y = problem()
    arguments = {"inputs": x, "targets": y, "recipe": RECIPE, "seed": SEED} | changes
    net = net or perceptron(6, 5, 4)
    return train_sharded(net, members=members, shard=shard, folder=folder, **arguments)


def counted(monkeypatch, breaks_at=None) -> list[list[int]]:
    """The members of every shard that is trained from now on; the one that starts with a certain member fails."""
    seen, original = [], training.train

    @wraps(original)
    def counts(*arguments, members, **options):
        seen.append(members.tolist())
        if members[0] == breaks_at:
            raise ArithmeticError("a planted fault")
        return original(*arguments, members=members, **options)

    monkeypatch.setattr(training, "train", counts)
    return seen


@pytest.fixture(scope="module")
def whole():
    return train(perceptron(6, 5, 4), *problem(), RECIPE, members=70, seed=SEED)


@pytest.fixture(scope="module")
def cluster():
    """Two Dask workers in processes of their own, watched by nannies."""
    from dask.distributed import Client, LocalCluster

    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "silence_logs": 60}
    with LocalCluster(**options) as local, Client(local) as client:
        yield client


def test_dask_workers_are_killed_in_mid_run_and_nothing_is_lost(cluster, whole, tmp_path):
    """The first to begin, which alone was sent the examples, and one after two shards: there are two workers."""
    tap = Tap(tmp_path, 0, 2)
    with joblib.parallel_config(backend="dask"):
        result = run(tapped(tap), tmp_path)
    assert_same_bits(result, whole)
    assert torch.equal(result.members, whole.members)
    assert json.loads(tap.victim(0).read_text()) == {}
    finished_before, in_the_end = json.loads(tap.victim(2).read_text()), written(tmp_path)
    assert len(finished_before) >= 2
    assert len(in_the_end) == 5
    assert finished_before.items() <= in_the_end.items(), "what was finished was made again"
    assert len({process for process, _ in tap.log()}) >= 3
    assert {threads for _, threads in tap.log()} == {1}


def test_loky_loses_its_pool_and_gets_another(whole, tmp_path):
    from joblib.externals.loky import get_reusable_executor

    tap = Tap(tmp_path, 1)
    with joblib.parallel_config(backend="loky", n_jobs=2):
        result = run(tapped(tap), tmp_path)
    get_reusable_executor().shutdown()
    assert_same_bits(result, whole)
    finished_before = json.loads(tap.victim(1).read_text())
    assert finished_before.items() <= written(tmp_path).items()
    assert {threads for _, threads in tap.log()} == {max(1, joblib.cpu_count() // 2)}


@pytest.mark.parametrize("one_by_one", [True, False])
@pytest.mark.usefixtures("two_threads")
def test_bits_do_not_depend_on_the_backend(one_by_one, whole, tmp_path, monkeypatch):
    """Threads, and a backend that gives results all at once, as Ray and multiprocessing do: in waves."""
    monkeypatch.setattr(joblib._parallel_backends.ThreadingBackend, "supports_return_generator", one_by_one)
    monkeypatch.setattr(shards, "WAVE", 1)
    counts, seen = training.train, []

    @wraps(counts)
    def notes(*arguments, **options):
        seen.append(torch.get_num_threads())
        return counts(*arguments, **options)

    monkeypatch.setattr(training, "train", notes)
    half = max(1, joblib.cpu_count() // 2)
    threads = half + 1
    torch.set_num_threads(threads)
    with joblib.parallel_config(backend="threading", n_jobs=2):
        assert_same_bits(run(folder=tmp_path), whole)
    assert seen == [half] * 5
    assert torch.get_num_threads() == threads
    assert len(written(tmp_path)) == 5
    run()
    assert seen[5:] == [threads] * 5, "one after the other, with all threads"


@pytest.mark.parametrize("shard", [1, 7, 16, 1000])
def test_bits_do_not_depend_on_the_shards(shard, whole):
    members = torch.tensor([69, 3, 20, 19, 4, 36, 0])
    result = run(members=members, shard=shard)
    assert_same_bits(result, whole.where(members))
    assert torch.equal(result.members, members)


def test_initial_parameters_go_with_their_members(whole):
    net = perceptron(6, 5, 4)
    start = initial(net, torch.arange(100, 170), 11)
    there = train(net, *problem(), RECIPE, members=70, seed=SEED, start=start)
    assert_same_bits(run(net, start=start), there)
    assert not torch.equal(there.params["0.weight"], whole.params["0.weight"])


def test_any_module_is_trained_in_threads_of_one_process(monkeypatch):
    """torch.func puts the parameters into the module itself, so each shard has a copy of its own."""
    x, y = problem(20, 64, 3)
    x, net = x.view(-1, 1, 8, 8), convolutional()
    recipe = Recipe(lr=0.1, batch_size=20, epochs=1)
    everyone = train(net, x, y, recipe, members=4, seed=SEED)
    nets, original = [net], training.train

    @wraps(original)
    def notes(net, *arguments, **options):
        nets.append(net)
        return original(net, *arguments, **options)

    monkeypatch.setattr(training, "train", notes)
    with joblib.parallel_config(backend="threading", n_jobs=4):
        result = train_sharded(net, x, y, recipe, members=4, seed=SEED, shard=1)
    for name, tensor in everyone.params.items():
        torch.testing.assert_close(result.params[name], tensor, rtol=1e-5, atol=1e-6)
    assert len({id(layer) for each in nets for layer in each.modules()}) == 5 * len(list(net.modules()))


def test_a_failing_shard_is_named_and_the_others_are_kept(whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        seen = counted(patch, breaks_at=32)
        for folder in (None, tmp_path):
            with pytest.raises(
                ShardError, match=r"members 32 to 47: ArithmeticError: a planted fault"
            ) as caught:
                run(folder=folder)
            assert caught.value.members.tolist() == list(range(32, 48))
            others = torch.cat([torch.arange(32), torch.arange(48, 70)])
            assert_same_bits(caught.value.finished, whole.where(others))
            assert "in counts" in caught.value.__notes__[0]
        assert len(seen) == 10
    assert len(written(tmp_path)) == 4
    assert_same_bits(load(tmp_path / "shard-00001.safetensors"), whole.where(torch.arange(16, 32)))
    seen = counted(monkeypatch)
    assert_same_bits(run(folder=tmp_path), whole)
    assert seen == [list(range(32, 48))]


def test_every_shard_may_fail(monkeypatch):
    counted(monkeypatch, breaks_at=0)
    with pytest.raises(ShardError, match=r"1 of 1 shards .* members 0 to 3: ") as caught:
        run(members=4)
    assert caught.value.finished is None


def test_workers_that_are_lost_again_and_again_end_the_run(whole, monkeypatch):
    original = shards._each

    def each(*arguments):
        yield next(original(*arguments))
        raise ConnectionError("the worker is gone")

    monkeypatch.setattr(shards, "_each", each)
    with pytest.raises(
        ShardError, match=r"2 of 5 .* members 48 to 63: 3 attempts .* the worker is gone"
    ) as caught:
        run()
    assert_same_bits(caught.value.finished, whole.where(torch.arange(48)))
    assert isinstance(caught.value.__cause__, ConnectionError)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": SEED + 1},
        {"recipe": replace(RECIPE, lr=0.2)},
        {"members": range(1, 71)},
        {"shard": 32},
        {"inputs": problem()[0] + 1},
        {"targets": 3 - problem()[1]},
        {"net": perceptron(6, 5, 4, activation=nn.Tanh)},
        {"net": perceptron(6, 7, 4)},
        {"fast": False},
        {"start": initial(perceptron(6, 5, 4), 70, 1)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_folder_of_another_run_is_refused(change, tmp_path, monkeypatch):
    quick = replace(RECIPE, epochs=1)
    run(folder=tmp_path, recipe=quick)
    before, seen = written(tmp_path), counted(monkeypatch)
    with pytest.raises(ValueError, match=r"shard-00000.* is a shard of another run .* name another folder"):
        run(folder=tmp_path, **{"recipe": quick} | change)
    assert (written(tmp_path), seen) == (before, [])


def test_a_damaged_shard_is_trained_again(whole, tmp_path, monkeypatch):
    run(folder=tmp_path)
    cut, changed, other = (tmp_path / f"shard-0000{k}.safetensors" for k in (0, 2, 4))
    cut.write_bytes(cut.read_bytes()[:-9])
    bytes_ = bytearray(changed.read_bytes())
    bytes_[-100] ^= 1
    changed.write_bytes(bytes_)
    other.write_text("not an archive")
    seen = counted(monkeypatch)
    assert_same_bits(run(folder=tmp_path), whole)
    assert [members[0] for members in seen] == [0, 32, 64]
    assert_same_bits(run(folder=tmp_path), whole)
    assert len(seen) == 3


def test_a_file_of_somebody_else_is_not_overwritten(tmp_path):
    archive.save_file({"a": torch.zeros(3)}, tmp_path / "shard-00001.safetensors")
    with pytest.raises(ValueError, match="not written by this package"):
        run(folder=tmp_path)


def test_what_train_refuses_is_refused_before_any_shard(tmp_path, monkeypatch):
    seen = counted(monkeypatch)
    with pytest.raises(ValueError, match=r"\[0, 4\)"):
        run(targets=problem()[1] + 1)
    with pytest.raises(UnsupportedTraining, match="InstanceNorm1d"):
        run(nn.Sequential(nn.Linear(6, 5), nn.InstanceNorm1d(5, track_running_stats=True), nn.Linear(5, 4)))
    with pytest.raises(ValueError, match="distinct"):
        run(members=torch.tensor([1, 2, 1]), shard=2)
    with pytest.raises(ValueError, match="at least one member"):
        run(shard=0)
    with pytest.raises(ValueError, match="start holds 3 networks for 70 members"):
        run(start=initial(perceptron(6, 5, 4), 3, 0))
    with pytest.raises(TypeError, match="takes no checkpoint: with folder="):
        run(checkpoint=tmp_path / "here")
    with pytest.raises(TypeError, match="unexpected"):
        run(speed=11)
    assert seen == []


def test_the_progress_bar_counts_shards(tmp_path, capfd):
    run(folder=tmp_path)
    assert capfd.readouterr().err == ""
    (tmp_path / "shard-00003.safetensors").unlink()
    run(folder=tmp_path, progress=True)
    assert "5/5" in capfd.readouterr().err


def test_arrays_that_arrive_read_only_are_taken_quietly():
    array = np.arange(6.0)
    array.flags.writeable = False
    assert torch.equal(shards._tensor(array), torch.arange(6.0, dtype=torch.float64))
    half = torch.ones(2, dtype=torch.bfloat16)
    assert shards._tensor(shards._array(half)) is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shards._tensor(array)


def test_the_result_lies_where_it_was_asked_for_or_on_the_cpu():
    assert shards._home("cpu") == torch.device("cpu")
    absent = "mps" if not torch.backends.mps.is_available() else "cuda"
    assert shards._home(absent) == torch.device("cpu")
