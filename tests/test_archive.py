"""Checkpoint sets: what comes back, in whole or in part, what is published of them, and every refusal by a planted fault."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from lib import results
from lib.population import (
    MultiStep,
    Population,
    Recipe,
    archive,
    describe_archive,
    initial,
    join,
    load,
    predict,
    record,
    save,
)
from tests.test_population import assert_same_bits, perceptron

RECIPE = Recipe(lr=0.1, batch_size=32, epochs=40, schedule=MultiStep((15, 30), 0.5), weight_decay=2e-4)
NET = perceptron(6, 5, 4)


def population(ids=(5, 9, 7, 30), diverged=(), dtype=torch.float32) -> Population:
    """Members with known rows: loss = id / 100, accuracy = id / 400."""
    members = torch.tensor(ids)
    at = torch.where(torch.isin(members, torch.tensor(diverged, dtype=torch.int64)), 12, -1)
    params = {name: tensor.to(dtype) for name, tensor in initial(NET, members, 3).items()}
    return Population(params, members, 3, RECIPE, members / 100, at, members / 400)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "nets.safetensors"


def test_everything_comes_back(path):
    saved = population(diverged=[7])
    save(path, saved, note="of the test examples")
    loaded = load(path, NET)
    assert_same_bits(loaded, saved)
    assert (loaded.seed, loaded.recipe, loaded.members.tolist()) == (3, RECIPE, [5, 9, 7, 30])
    assert torch.equal(loaded.accuracy, saved.accuracy)
    assert list(loaded.params) == list(saved.params)


def test_every_row_says_its_seed(path):
    save(path, population())
    tensors, _ = archive.read(path)
    assert tensors["seeds"].tolist() == [3] * 4


def test_an_accuracy_given_stands_before_the_populations_own(path):
    save(path, replace(population(), accuracy=None))
    assert load(path).accuracy is None
    save(path, population(), accuracy=torch.tensor([0.0, 1.0, 0.5, 0.25]))
    assert load(path).accuracy.tolist() == [0, 1, 0.5, 0.25]


def test_some_members_come_back_in_the_order_asked_for(path):
    saved = population()
    save(path, saved)
    for members, rows in (
        ([7, 5], [2, 0]),
        (torch.tensor([30]), [3]),
        (range(5, 10, 4), [0, 1]),
    ):
        some = load(path, NET, members=members)
        assert_same_bits(some, saved.where(torch.tensor(rows)))
        assert some.members.tolist() == list(members)
        assert torch.equal(some.accuracy, saved.accuracy[rows])
    first = population(range(20))
    save(path, first)
    assert_same_bits(load(path, members=8), first.where(torch.arange(8)))


def test_some_members_are_read_without_the_others(path, monkeypatch):
    """A fault in the weights of another member does not show, while a whole reading finds it."""
    save(path, population(range(50)))
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(archive.Damaged, match="not those that were written"):
        load(path)
    good = population(range(50)).where(torch.tensor([0, 1]))
    assert_same_bits(load(path, members=2), good)
    monkeypatch.setattr(archive, "_everything", None)
    assert len(load(path, members=[3])) == 1


def test_members_that_are_not_there_are_named(path):
    save(path, population())
    with pytest.raises(ValueError, match=r"has no member 6, 8 \(2 of those .* holds 4 members from 5 to 30"):
        load(path, members=[5, 6, 8])
    with pytest.raises(ValueError, match=r"has no member 31 "):
        load(path, members=[31])


def test_diverged_members_are_kept_and_marked_or_left_out(path):
    save(path, population(diverged=[9, 30]))
    assert load(path).finite.tolist() == [True, False, True, False]
    assert load(path, finite=True).members.tolist() == [5, 7]
    assert load(path, members=[30, 7], finite=True).members.tolist() == [7]
    assert len(load(path, members=[30], finite=True)) == 0
    assert record(path)["diverged"] == 2


def test_the_same_population_gives_the_same_bytes(tmp_path):
    hashes = set()
    for k in range(6):
        save(tmp_path / f"{k}", population(), note="a note", dtype=torch.float16)
        hashes.add(hashlib.sha256((tmp_path / f"{k}").read_bytes()).hexdigest())
    assert len(hashes) == 1
    save(tmp_path / "other", population(), note="another note", dtype=torch.float16)
    assert record(tmp_path / "other")["sha256"] not in hashes


def test_half_precision_costs_what_its_docstring_says(path):
    generator = torch.Generator().manual_seed(0)
    saved = population(range(200))
    save(path, saved)
    full = path.stat().st_size
    save(path, saved, dtype=torch.float16)
    loaded = load(path, NET)
    assert path.stat().st_size < 0.65 * full
    for name, tensor in saved.params.items():
        read = loaded.params[name]
        assert read.dtype == torch.float32
        error = (read - tensor).abs()
        assert bool((error <= 2.0**-11 * tensor.abs().clamp_min(2.0**-14)).all())
        assert bool((error[tensor.abs() < 6.1e-5] <= 3e-8).all())
        assert not torch.equal(read, tensor)
    x = torch.randn(50, 6, generator=generator)
    moved = (predict(NET, loaded.params, x) - predict(NET, saved.params, x)).abs()
    assert 0 < float(moved.max()) < 5e-3
    assert torch.equal(loaded.loss, saved.loss)
    assert torch.equal(load(path, members=[7]).params["0.weight"][0], loaded.params["0.weight"][7])


def test_half_precision_of_doubles_and_of_counters(path):
    """What is no number of a network (a counter of batches) stays what it is."""
    saved = population(dtype=torch.float64)
    saved.params["counter"] = torch.arange(4)
    save(path, saved, dtype=torch.float16)
    loaded = load(path)
    assert {t.dtype for t in loaded.params.values()} == {torch.float32, torch.int64}
    save(path, saved)
    assert_same_bits(load(path), saved)
    half = population(dtype=torch.float16)
    save(path, half)
    assert_same_bits(load(path), half)


def test_weights_beyond_half_precision_are_refused(path):
    wild = population()
    wild.params["2.bias"][1, 0] = 7e4
    with pytest.raises(ValueError, match=r"65,504, and 2\.bias of member 9 \(1 in all\)"):
        save(path, wild, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"not with torch\.bfloat16"):
        save(path, population(), dtype=torch.bfloat16)
    assert not path.exists()
    save(path, wild)
    assert float(load(path).params["2.bias"][1, 0]) == 7e4


def test_an_accuracy_that_is_none_is_refused(path):
    with pytest.raises(ValueError, match="3 accuracies for 4 members"):
        save(path, population(), accuracy=torch.ones(3))
    for value in (97.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="a share of right answers"):
            save(path, population(), accuracy=torch.full((4,), value))
    assert not path.exists()


@pytest.mark.parametrize("whole", [True, False])
def test_other_networks_are_refused(path, whole):
    save(path, population())
    options = {} if whole else {"members": [5]}
    with pytest.raises(ValueError, match=r"another network: 0\.weight is \(5, 6\) there and \(7, 6\) here"):
        load(path, perceptron(6, 7, 4), **options)
    with pytest.raises(ValueError, match=r"2\.bias is \(4,\) there and absent here"):
        load(path, nn.Sequential(*NET[:2], nn.Linear(5, 4, bias=False)), **options)
    with pytest.raises(ValueError, match=r"4\.weight is absent there"):
        load(path, perceptron(6, 5, 4, 4), **options)


READERS = {
    "load": load,
    "some": lambda p: load(p, members=[5]),
    "describe": describe_archive,
    "record": record,
}


@pytest.mark.parametrize("reader", READERS)
def test_files_that_were_cut_or_are_no_archives_are_refused(path, reader):
    read = READERS[reader]
    save(path, population())
    whole = path.read_bytes()
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(archive.Damaged, match="damaged or cut short"):
            read(path)
    for foreign in (b"\x89PNG\r\n\x1a\n" + bytes(1000), b"PK\x03\x04 a zip", b"hello"):
        path.write_bytes(foreign)
        with pytest.raises(ValueError, match="or no such archive at all"):
            read(path)
    for metadata in (None, {"index": "no JSON"}, {"index": "[1]"}, {"index": "{}"}, {"made": "elsewhere"}):
        archive.save_file({"a": torch.zeros(3)}, path, metadata=metadata)
        with pytest.raises(ValueError, match="not written by this package"):
            read(path)
    archive.write(path, {"a": torch.zeros(3)}, {"kind": "checkpoint"})
    with pytest.raises(ValueError, match="holds a checkpoint, not a population"):
        read(path)
    with pytest.raises(FileNotFoundError):
        read(path.with_name("absent"))


def test_archives_of_the_first_format_are_read_and_later_ones_refused(path):
    saved = replace(population(), accuracy=None)
    tensors, index = archive.pack(saved)
    del tensors["seeds"]
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    archive.save_file(tensors, path, metadata={"index": json.dumps(index | {"format": 1})})
    assert_same_bits(load(path, NET), saved)
    assert record(path)["note"] == ""
    archive.save_file(tensors, path, metadata={"index": json.dumps(index | {"format": 3})})
    with pytest.raises(ValueError, match="has format 3, and this version reads 1 and 2"):
        load(path)


def test_the_description_is_what_the_file_is(path, tmp_path):
    save(path, population(diverged=[7]), note="of the test examples", dtype=torch.float16)
    told = describe_archive(path)
    assert told["bytes"] == path.stat().st_size
    assert told["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (told["members"], told["ids"], told["diverged"], told["seed"]) == (4, [5, 30], 1, 3)
    assert told["parameters"] == 6 * 5 + 5 + 5 * 4 + 4
    assert told["shapes"]["0.weight"] == [5, 6]
    assert told["dtype"] == ["F16"]
    assert Recipe.from_dict(told["recipe"]) == RECIPE
    assert told["accuracy"]["least"] == 5 / 400
    assert told["accuracy"]["median"] == pytest.approx(8 / 400)
    assert told["accuracy"]["greatest"] == 30 / 400
    assert told["note"] == "of the test examples"
    assert str(path.parent) not in str(told), "a published record names no folder of this machine"
    assert told["sha256"] in str(told)
    assert len(str(told).splitlines()) == len(told)
    save(path, replace(population(), accuracy=None))
    assert describe_archive(path)["accuracy"] is None


def test_the_record_goes_among_the_tables_of_results(path, tmp_path):
    save(path, population())
    kept = record(path)
    assert json.loads(json.dumps(kept)) == kept
    results.save("posteriors", "quick", 990, [], {"checkpoints": kept}, digest="0" * 64, root=tmp_path)
    assert results.load("posteriors", "quick", tmp_path)["tables"]["checkpoints"] == kept


def test_parts_are_joined_in_their_order():
    saved = population()
    parts = [saved.where(torch.tensor(rows)) for rows in ([0, 1], [2], [3])]
    assert_same_bits(join(parts), saved)
    assert torch.equal(join(parts).accuracy, saved.accuracy)
    assert join(parts[::-1]).members.tolist() == [30, 7, 5, 9]
    assert join([parts[0], replace(parts[1], accuracy=None)]).accuracy is None
    moved = saved.to("cpu")
    assert_same_bits(moved, saved)
    for fault, sentence in (
        ([], "nothing to join"),
        ([parts[0], parts[0]], "a member occurs in two"),
        ([parts[0], replace(parts[1], seed=4)], "another seed"),
        ([parts[0], replace(parts[1], recipe=replace(RECIPE, lr=0.2))], "another recipe"),
        ([parts[0], replace(parts[1], params={"w": torch.zeros(1, 2)})], "different networks"),
    ):
        with pytest.raises(ValueError, match=sentence):
            join(fault)


def test_the_five_lines_of_the_docstring(path):
    """What the module's docstring tells a colleague to type works."""
    x, y = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 4
    save(path, population(range(120), diverged=[50]))
    code = archive.__doc__.split("::\n")[1]
    lines = "\n".join(line.strip() for line in code.splitlines())
    here = {"net": NET, "inputs": x, "targets": y}
    exec(lines.replace('"mnist.safetensors"', repr(str(path))), here)
    assert len(here["some"]) == 99
    assert here["best"].members.tolist() == [99, 98, 97, 96, 95, 94, 93, 92, 91, 90]


def test_empty_and_scalar_tensors_are_written(path):
    archive.write(
        path,
        {"nothing": torch.empty(0, 3), "one": torch.tensor(2.5), "yes": torch.tensor([True])},
        {"kind": "x"},
    )
    tensors, _ = archive.read(path)
    assert (tensors["nothing"].shape, tensors["one"].item(), tensors["yes"].tolist()) == ((0, 3), 2.5, [True])
