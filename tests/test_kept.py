"""Parts of a long run: finished ones are read, damaged ones made again, and none is ever half there."""

import pytest
import torch

from lib.kept import Kept


class Maker:
    """Makes a part, and knows how often."""

    def __init__(self, value=1.0):
        self.times, self.value = 0, value

    def __call__(self):
        self.times += 1
        return {"a": torch.full((3,), self.value), "b/0/early/5": torch.arange(4)}


def same(found, value=1.0):
    return torch.equal(found["a"], torch.full((3,), value)) and torch.equal(
        found["b/0/early/5"], torch.arange(4)
    )


def test_a_finished_part_is_not_made_again(tmp_path):
    make, other = Maker(), Maker(2.0)
    kept = Kept(tmp_path / "deep" / "folder")
    assert same(kept.part("cubic-toy-dropout", make))
    assert same(kept.part("cubic-toy-dropout", other))
    assert same(Kept(tmp_path / "deep" / "folder").part("cubic-toy-dropout", other))
    assert (make.times, other.times) == (1, 0)
    assert same(kept.part("diabetes-dropout", other), 2.0)  # of another name


def test_nothing_is_left_beside_the_parts(tmp_path):
    for name in ("a", "images-150-factorised-Gaussian"):
        Kept(tmp_path).part(name, Maker())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "images-150-factorised-Gaussian.pt"]


def test_without_a_folder_every_part_is_made():
    make = Maker()
    assert same(Kept(None).part("a", make))
    assert same(Kept(None).part("a", make))
    assert make.times == 2


DAMAGE = {
    "empty": lambda good: b"",
    "cut": lambda good: good[: len(good) // 2],
    "zeros": lambda good: bytes(len(good)),
    "text": lambda good: b"not a part at all\n" * 20,
    "numbers": lambda good: bytes(range(256)) * 4,
    "changed": lambda good: good[:200] + bytes([good[200] ^ 255]) + good[201:],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_made_again_and_says_so(tmp_path, capsys, damage):
    make, kept = Maker(), Kept(tmp_path)
    kept.part("a", make)
    path = tmp_path / "a.pt"
    path.write_bytes(damage(path.read_bytes()))
    assert same(kept.part("a", make))
    assert make.times == 2
    assert "a.pt is damaged" in capsys.readouterr().out
    assert same(kept.part("a", make))  # and whole from then on
    assert make.times == 2


def test_a_part_that_fails_leaves_no_file(tmp_path):
    def broken():
        raise RuntimeError("the training broke")

    with pytest.raises(RuntimeError, match="the training broke"):
        Kept(tmp_path).part("a", broken)
    assert list(tmp_path.iterdir()) == []
    assert same(Kept(tmp_path).part("a", Maker()))


def test_a_write_that_is_cut_leaves_the_name_free(tmp_path, monkeypatch):
    def cut(found, file):
        file.write(b"half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", cut)
        with pytest.raises(KeyboardInterrupt):
            Kept(tmp_path).part("a", Maker())
    assert not (tmp_path / "a.pt").exists()
    assert same(Kept(tmp_path).part("a", Maker()))
