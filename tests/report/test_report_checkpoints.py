"""Checkpoints in any dress are read as data; what does not fit is refused by name, and nothing that a file carries is run."""

import io
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from report_cases import build, network, trained
from safetensors.torch import save_file

from lib.report import checkpoints
from lib.report.files import Unreadable, tensors_of


def read_with(folder: Path, content: object, name: str = "odd.pt"):
    """A folder with a good file and an odd one; what is said of the odd one."""
    torch.save(network(0), folder / "good.pt")
    if isinstance(content, bytes):
        (folder / name).write_bytes(content)
    else:
        torch.save(content, folder / name)
    found = checkpoints.read(folder, build)
    reasons = [each.reason for each in found.refused if each.name == name]
    return found, (reasons[0] if reasons else "")


def test_every_dress_gives_the_same_network(tmp_path):
    own = network(0)
    torch.save(own, tmp_path / "a.pt")
    save_file(own, tmp_path / "b.safetensors")
    torch.save({f"module.{k}": v for k, v in own.items()}, tmp_path / "c.pth")
    torch.save({"state_dict": {f"_orig_mod.module.{k}": v for k, v in own.items()}}, tmp_path / "d.bin")
    torch.save({"model": own, "epoch": 3}, tmp_path / "e.ckpt")
    torch.save({"model_state_dict": OrderedDict(own)}, tmp_path / "f.pt")
    torch.save({k: v.double() for k, v in own.items()}, tmp_path / "g.pt")
    (tmp_path / "notes.txt").write_text("mine")
    found = checkpoints.read(tmp_path, build)
    assert found.names == ("a.pt", "b.safetensors", "c.pth", "d.bin", "e.ckpt", "f.pt", "g.pt")
    assert found.passed == ("notes.txt",)
    assert not found.refused
    for name, stacked in found.params.items():
        assert stacked.dtype == own[name].dtype
        assert torch.equal(stacked, own[name].expand_as(stacked))
    notes = "\n".join(found.notes)
    for said in (
        "c.pth: the prefix 'module.' was taken off",
        "d.bin: the prefix '_orig_mod.' was taken off",
        "e.ckpt: the weights stood under 'model', beside epoch",
        "g.pt: converted from float64 to float32",
        "b.safetensors: holds the same weights as a.pt, so their distance is zero",
    ):
        assert said in notes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_single(tmp_path, dtype):
    torch.save({k: v.to(dtype) for k, v in network(0).items()}, tmp_path / "half.pt")
    found = checkpoints.read(tmp_path, build)
    assert all(t.dtype == torch.float32 for t in found.params.values())
    assert torch.equal(found.params["0.weight"][0], network(0)["0.weight"].to(dtype).float())
    assert f"converted from {str(dtype)[6:]} to float32" in found.notes[0]


def test_a_builder_in_half_precision_is_computed_in_single(tmp_path):
    torch.save(network(0), tmp_path / "a.pt")
    found = checkpoints.read(tmp_path, lambda: build().half())
    assert found.params["0.weight"].dtype == next(found.net.parameters()).dtype == torch.float32


def test_the_module_has_the_first_network_s_weights(tmp_path):
    """Not the builder's, which are others in every process: what is said of the module's own weights is of a network given."""
    torch.save(network(1), tmp_path / "a.pt")
    torch.save(network(0), tmp_path / "b.pt")
    found = checkpoints.read(tmp_path, build)
    for name, tensor in found.net.state_dict().items():
        assert torch.equal(tensor, network(1)[name]), name


def test_an_average_beside_the_weights_is_named_and_alone_it_is_read(tmp_path):
    both, alone = tmp_path / "both", tmp_path / "alone"
    both.mkdir()
    alone.mkdir()
    torch.save({"model": network(0), "model_ema": network(1)}, both / "a.pt")
    torch.save({"model_ema": network(1), "epoch": 3}, alone / "a.pt")
    found = checkpoints.read(both, build)
    assert torch.equal(found.params["0.weight"][0], network(0)["0.weight"])
    assert "the running average under 'model_ema' was left alone" in found.notes[1]
    assert torch.equal(checkpoints.read(alone, build).params["0.weight"][0], network(1)["0.weight"])


def test_a_network_among_other_tensors_is_found_by_its_prefix(tmp_path):
    """A trainer's module holds it beside a loss with weights of its own."""
    state = {f"net.{name}": tensor for name, tensor in network(0).items()} | {
        "criterion.weight": torch.ones(10)
    }
    torch.save({"state_dict": state}, tmp_path / "a.ckpt")
    found = checkpoints.read(tmp_path, build)
    assert torch.equal(found.params["0.weight"][0], network(0)["0.weight"])
    assert (
        "the prefix 'net.' was taken off, and 1 other tensor left out (criterion.weight)" in found.notes[-1]
    )


def test_networks_of_another_tool(tmp_path):
    """Plain arrays, saved by torch as an ordered dict: five networks that this package never trained."""
    draws = np.random.default_rng(5)
    for i in range(5):
        arrays = {name: draws.normal(size=tensor.shape).astype("f4") for name, tensor in network(0).items()}
        torch.save(OrderedDict((k, torch.from_numpy(v)) for k, v in arrays.items()), tmp_path / f"{i}.pt")
    found = checkpoints.read(tmp_path, build)
    assert len(found) == 5
    assert torch.equal(found.params["2.bias"][4], torch.from_numpy(arrays["2.bias"]))


class Spy:
    """A pickle that leaves a mark when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_pickle_that_runs_code_is_not_run(tmp_path, protocol, zipped):
    mark = tmp_path / "mark"
    content = {**network(0), "hook": Spy(mark)}
    if zipped:
        buffer = io.BytesIO()
        torch.save(content, buffer, pickle_protocol=max(protocol, 2))
        raw = buffer.getvalue()
    else:
        raw = pickle.dumps({"hook": Spy(mark)}, protocol=protocol)
    _, reason = read_with(tmp_path, raw)
    assert "would run code" in reason
    assert "pathlib" in reason or "getattr" in reason
    assert "save torch.save(net.state_dict(), file), or a safetensors file" in reason
    assert not mark.exists()
    if not zipped:
        pickle.loads(raw)  # the mark is real: a plain reader leaves it
        assert mark.exists()


def test_a_whole_module_is_no_state_dict(tmp_path):
    _, reason = read_with(tmp_path, build())
    assert "would run code" in reason
    assert "torch.nn.modules" in reason


def changed(name: str, tensor: torch.Tensor | None) -> dict:
    own = {k: v.clone() for k, v in network(0).items()}
    if tensor is None:
        del own[name]
    else:
        own[name] = tensor
    return own


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (changed("2.bias", None), "'2.bias' is absent in the file and (10,) in the builder's network"),
        (changed("9.weight", torch.ones(3)), "'9.weight' is (3,) in the file and absent in the builder's"),
        (changed("0.weight", torch.ones(8, 64)), "'0.weight' is (8, 64) in the file and (16, 64) in the builder's"),
        (changed("0.bias", torch.full((16,), torch.nan)), "16 weights that are NaN or infinite, the first in '0.bias'"),
        (changed("0.bias", torch.full((16,), torch.inf)), "NaN or infinite"),
        ([torch.ones(3)], "holds a list, no state_dict"),
        (torch.ones(3), "holds a Tensor, no state_dict"),
        ({}, "holds no tensors at all"),
        ({"0.weight": 3.0}, "holds a float under '0.weight'"),
        ({"0.weight": torch.ones(3, dtype=torch.complex64)}, "complex tensor, '0.weight'"),
        (changed("0.bias", torch.full((16,), 1e300, dtype=torch.float64)), "NaN or infinite"),
        (b"", "is empty"),
        (b"these are words, not weights", "damaged, cut short, or no checkpoint"),
        (b"PK\x03\x04 half an archive", "damaged, cut short, or no checkpoint"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(tmp_path, content, said):
    found, reason = read_with(tmp_path, content)
    assert said in reason
    assert found.names == ("good.pt",)
    assert "odd.pt" in str(found.table())


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_file_cut_short_is_refused(tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    if suffix == "pt":
        torch.save(network(0), path)
    else:
        save_file(network(0), path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(Unreadable, match="damaged, cut short"):
        tensors_of(path)


def test_counters_of_batches_may_be_missing(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    own = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(own, tmp_path / "old.pt")
    found = checkpoints.read(tmp_path, lambda: net)
    assert found.params["1.num_batches_tracked"].tolist() == [0]
    assert "num_batches_tracked" in found.notes[0]


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        torch.save(network(0), tmp_path / name / "last.pt")
    found = checkpoints.read([tmp_path / "two", tmp_path / "one"], build)
    assert found.names == (str(tmp_path / "one" / "last.pt"), str(tmp_path / "two" / "last.pt"))
    assert "distance is zero" in found.notes[0]


def test_nothing_readable_lists_every_file(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"")
    (tmp_path / "b.safetensors").write_bytes(b"\x00" * 20)
    (tmp_path / "c.txt").write_text("words")
    with pytest.raises(checkpoints.NothingReadable) as caught:
        checkpoints.read(tmp_path, build)
    text = str(caught.value)
    assert all(
        name in text for name in ("a.pt is empty", "b.safetensors is damaged", "c.txt is no checkpoint")
    )
    (tmp_path / "none").mkdir()
    with pytest.raises(checkpoints.NothingReadable, match="there is no file ending in"):
        checkpoints.read(tmp_path / "none", build)
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        checkpoints.read(tmp_path / "nowhere", build)


def test_files_are_taken_in_the_order_of_their_names(tmp_path):
    for name, i in (("b", 1), ("c", 2), ("a", 0)):
        torch.save({k: v[i] for k, v in trained().items()}, tmp_path / f"{name}.pt")
    found = checkpoints.read([tmp_path / "c.pt", tmp_path / "a.pt", tmp_path / "b.pt"], build)
    assert found.names == ("a.pt", "b.pt", "c.pt")
    assert torch.equal(found.params["0.weight"], trained()["0.weight"][:3])
