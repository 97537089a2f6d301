"""A user's examples: read as they are, split in halves that never meet, and refused in sentences."""

import numpy as np
import pytest
import torch
from report_cases import build, digits, models_of, network, picture_folder

from lib.report import data_source, fitting
from lib.report.data_source import DataProblem


def written(path, **arrays):
    np.savez(path / "data.npz", **arrays)
    return path / "data.npz"


def test_halves_never_meet_and_depend_on_the_seed_alone(tmp_path):
    path = written(tmp_path, x=np.arange(40.0).reshape(20, 2), y=np.arange(20) % 3)
    source = data_source.read(path)
    halves = data_source.draw(source, 11, seed=4)
    a, b = halves.calibration.inputs[:, 0].tolist(), halves.scoring.inputs[:, 0].tolist()
    assert (len(a), len(b), halves.left_out) == (5, 6, 9)
    assert not set(a) & set(b)
    assert halves.scoring.targets.tolist() == [int(x / 2) % 3 for x in b]
    again, other = (data_source.draw(source, 11, seed=s).scoring.inputs for s in (4, 5))
    assert torch.equal(again, halves.scoring.inputs)
    assert not torch.equal(other, halves.scoring.inputs)
    assert halves.scoring.inputs.dtype == torch.float32
    assert "converted from float64 to float32" in halves.notes[0]


def test_whole_numbers_stay_what_they_are(tmp_path):
    path = written(
        tmp_path, X=np.full((4, 3), 255, dtype=np.uint8), targets=np.zeros((4, 1), dtype=np.float32)
    )
    source = data_source.read(path)
    assert source.example.max() == 255
    assert "uint8, 255 to 255" in source.notes[0]
    assert source.targets.dtype == torch.int64
    assert source.targets.shape == (4,)


@pytest.mark.parametrize("dtype", [">f8", "f2", "g", "?", ">u4"])
def test_numbers_of_any_machine_are_read(tmp_path, dtype):
    values = np.array([[0, 1], [1, 0]]).astype(dtype)
    source = data_source.read(written(tmp_path, x=values, y=np.zeros(2, dtype=">i8")))
    assert source.example.tolist() == [[0, 1], [1, 0]]


def test_regression_takes_numbers(tmp_path):
    path = written(tmp_path, inputs=np.ones((5, 3)), targets=np.linspace(0, 1, 5))
    assert data_source.read(path, "regression").targets.dtype == torch.float32


OBJECTS = np.array([{"a": 1}, {"b": 2}], dtype=object)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"inputs": np.ones((4, 2))}, "it needs inputs (or x) and targets (or y)"),
        ({"inputs": np.ones((4, 2)), "targets": np.ones(3)}, "first axes must be of one length"),
        ({"inputs": np.ones((0, 2)), "targets": np.ones(0)}, "no examples at all"),
        ({"inputs": np.ones((4, 2)), "targets": np.full(4, 0.5)}, "not whole labels"),
        ({"inputs": np.ones((4, 2)), "targets": np.ones((4, 3), dtype=int)}, "not whole labels"),
        ({"inputs": np.array(["a", "b"]), "targets": np.ones(2, dtype=int)}, "give numbers"),
        ({"inputs": OBJECTS, "targets": np.ones(2, dtype=int)}, "to open them would run code"),
    ],
)
def test_what_an_npz_lacks_is_said(tmp_path, arrays, said):
    with pytest.raises(DataProblem) as caught:
        data_source.read(written(tmp_path, **arrays))
    assert said in str(caught.value)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "words.npz").write_text("words")
    np.save(tmp_path / "bare.npy", np.ones(3))
    with pytest.raises(DataProblem, match=r"cannot be read as an \.npz"):
        data_source.read(tmp_path / "words.npz")
    with pytest.raises(DataProblem, match="one bare array"):
        data_source.read(tmp_path / "bare.npy")
    with pytest.raises(DataProblem, match="no file or folder"):
        data_source.read(tmp_path / "nowhere.npz")
    with pytest.raises(DataProblem, match="there is no task 'ranking'"):
        data_source.read(tmp_path / "words.npz", "ranking")


@pytest.mark.parametrize("what", ["inputs", "targets"])
def test_numbers_that_are_none_are_refused(tmp_path, what):
    arrays = {"inputs": np.ones((6, 2)), "targets": np.ones(6)}
    arrays[what].flat[3] = np.nan
    source = data_source.read(written(tmp_path, **arrays), "regression")
    with pytest.raises(DataProblem, match=f"the {what} of 1 of 6 examples are NaN"):
        data_source.draw(source)


def test_too_few_examples_make_no_halves(tmp_path):
    source = data_source.read(written(tmp_path, x=np.ones((9, 2)), y=np.zeros(9, dtype=int)))
    with pytest.raises(DataProblem, match="3 examples are too few"):
        data_source.draw(source, 3)


def test_network_and_data_must_fit():
    models = models_of(network(0))
    inputs, targets = digits().scoring.inputs, digits().scoring.targets

    def halves(x, y, task="classification"):
        half = data_source.Examples(x, y)
        return data_source.Halves(task, half, half)

    assert fitting.check(models.net, models.params, halves(inputs, targets)) == 10
    for x, y, task, said in (
        (inputs[:, :8], targets, "classification", r"refuses inputs of shape \(8,\).*takes 64 features"),
        (inputs, targets + 1, "classification", "labels run from 1 to 10, but the network has 10 outputs"),
        (inputs, targets - 1, "classification", "labels run from -1"),
        (inputs, targets.float(), "regression", "1 targets an example, but the network has 10 outputs"),
    ):
        with pytest.raises(DataProblem, match=said):
            fitting.check(models.net, models.params, halves(x, y, task))

    soft = torch.nn.Sequential(*build(), torch.nn.Softmax(1))
    with pytest.raises(DataProblem, match="puts out probabilities"):
        fitting.check(soft, models.params, halves(inputs, targets))

    class Two(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x), x

    odd = Two(64, 10)
    own = {k: v[None] for k, v in odd.state_dict().items()}
    with pytest.raises(DataProblem, match="returns a tuple"):
        fitting.check(odd, own, halves(inputs, targets))


def test_a_shape_is_guessed_or_asked_for():
    assert fitting.example_for(build()).shape == (2, 64)
    picture = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 26**2, 2))
    assert fitting.example_for(picture).shape == (2, 3, 28, 28)
    assert fitting.example_for(build(), (5, 64)).shape == (2, 5, 64)
    odd = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 10**2, 2))
    with pytest.raises(DataProblem, match=r"'0' \(Conv2d\), takes 3 channels.*--input-shape"):
        fitting.example_for(odd)


def test_a_folder_of_pictures(tmp_path):
    source = data_source.read(picture_folder(tmp_path), image_size=16)
    assert source.targets.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.classes == ("cats", "dogs")
    x = source.take(np.array([4]))
    assert x.shape == (1, 3, 16, 16)
    assert torch.allclose(x[0].mean((1, 2)), torch.tensor([200, 10, 255]) / 255)
    assert "resized to 16 x 16" in source.notes[0]
    assert "not normalised" in source.notes[0]
    scaled = data_source.read(tmp_path, image_size=16, normalise="imagenet")
    wanted = (200 / 255 - 0.485) / 0.229
    assert float(scaled.take(np.array([4]))[0, 0].mean()) == pytest.approx(wanted, rel=1e-5)
    assert len(data_source.draw(source).scoring) == 3


def test_a_folder_without_classes_or_with_broken_pictures(tmp_path):
    with pytest.raises(DataProblem, match="one subfolder a class"):
        data_source.read(tmp_path)
    (tmp_path / "cats").mkdir()
    for i in range(4):
        (tmp_path / "cats" / f"{i}.png").write_bytes(b"no picture")
    with pytest.raises(DataProblem, match="cannot be read"):
        data_source.draw(data_source.read(tmp_path))
    with pytest.raises(DataProblem, match=r"for regression give an \.npz"):
        data_source.read(tmp_path, "regression")
    with pytest.raises(DataProblem, match="no normalisation 'mine'"):
        data_source.read(tmp_path, normalise="mine")
