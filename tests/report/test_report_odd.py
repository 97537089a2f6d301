"""Networks and data that are sound, but not of the usual kind: they are treated rightly, or refused for their own reason."""

import numpy as np
import pytest
import torch
from report_cases import build, digits, models_of, network
from torch import nn
from torch.nn import functional as F

from lib.params import params_of
from lib.report import assess, checkpoints, data_source, everything, fitting, intervals, outputs
from lib.report.__main__ import main
from lib.report.builder import BuilderProblem, builder
from lib.report.data_source import DataProblem, Examples, Halves
from lib.report.page import page
from lib.report.sentences import say
from lib.report.verdicts import OPEN, YES, mergeable
from lib.symmetry import permute, random_log_scales, random_permutations, rescale


def halves(inputs, targets, task="classification") -> Halves:
    return Halves(task, Examples(inputs, targets), Examples(inputs, targets))


def test_an_average_leaves_its_networks_alone():
    ones = {"w": torch.ones(2, dtype=torch.float64)}
    assert outputs.average([ones, ones, ones])["w"].tolist() == [1, 1]
    assert ones["w"].tolist() == [1, 1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_builder_of_another_precision_is_computed_in_single(tmp_path, dtype):
    torch.save(network(0), tmp_path / "a.pt")
    found = checkpoints.read(tmp_path, lambda: build().to(dtype))
    assert f"The builder's network is {str(dtype)[6:]}, and is computed in float32" in found.notes
    assert fitting.check(found.net, found.params, digits()) == 10


class Tied(nn.Module):
    """One matrix under two names."""

    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Linear(8, 8), nn.Linear(8, 8)
        self.out.weight = self.into.weight

    def forward(self, x):
        return self.out(self.into(x).relu())


def test_tied_weights_are_read():
    torch.manual_seed(0)
    nets = [Tied().eval() for _ in range(2)]
    models = models_of(*map(params_of, nets), net=Tied())
    x, y = torch.randn(20, 8), torch.arange(20) % 8
    assert fitting.check(models.net, models.params, halves(x, y)) == 8
    put = outputs.outputs(models.net, params_of(nets[1]), x)
    with torch.no_grad():
        assert torch.equal(put, nets[1](x))


class Features(nn.Module):
    """Random features that no checkpoint holds."""

    def __init__(self, *, saved: bool = False, buffer: bool = True):
        super().__init__()
        self.head = nn.Linear(16, 10)
        if buffer:
            self.register_buffer("drawn", torch.randn(64, 16), persistent=saved)
        else:
            self.drawn = torch.randn(64, 16)


@pytest.mark.parametrize("options", ['{"saved": false}', '{"buffer": false}'])
def test_a_builder_that_draws_what_no_file_holds_is_refused(options):
    with pytest.raises(BuilderProblem, match="'drawn' is another each time"):
        builder(f"{__name__}:Features", options)
    builder(f"{__name__}:Features", '{"saved": true}')


class Noisy(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5)


def test_a_network_that_draws_in_evaluation_mode_is_refused():
    with pytest.raises(DataProblem, match="draws random numbers"):
        fitting.check(Noisy(), {"unused": torch.zeros(1, 1)}, halves(torch.ones(6, 64), torch.arange(6)))


def test_one_logit_is_told_how_to_be_two():
    net = nn.Linear(3, 1)
    models = models_of(params_of(net), net=net)
    with pytest.raises(DataProblem, match="reads a logit a class"):
        fitting.check(net, models.params, halves(torch.ones(6, 3), torch.arange(6) % 2))


class Viewing(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(12, 2)

    def forward(self, x):
        return self.out(x.view(len(x), -1))


def test_inputs_in_fortran_s_order_are_read(tmp_path):
    x = np.asfortranarray(np.random.default_rng(0).normal(size=(20, 3, 4)).astype("f4"))
    np.savez(tmp_path / "data.npz", inputs=x, targets=np.arange(20) % 2)
    found = data_source.draw(data_source.read(tmp_path / "data.npz"))
    net = Viewing()
    assert fitting.check(net, models_of(params_of(net), net=net).params, found) == 2


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(3, 2)

    def forward(self, x):
        return {}["nothing of this kind"]


def test_shapes_are_blamed_only_where_they_are_at_fault():
    net = Broken()
    with pytest.raises(DataProblem, match=r"for another reason than their shape.*KeyError"):
        fitting.check(
            net, models_of(params_of(net), net=net).params, halves(torch.ones(6, 3), torch.arange(6) % 2)
        )


def test_outputs_must_be_finite_on_both_halves():
    known = digits()
    bad = known.calibration.inputs.clone()
    bad[0] = 1e38
    both = Halves("classification", Examples(bad, known.calibration.targets), known.scoring)
    with pytest.raises(ValueError, match=r"0\.pt.* put out NaN or infinite"):
        outputs.predictions(models_of(network(0), network(1)), both)


class Unnormalised(nn.Sequential):
    """BatchNorm by the batch alone, which refuses a batch of one."""

    def __init__(self):
        super().__init__(
            nn.Linear(64, 16), nn.BatchNorm1d(16, track_running_stats=False), nn.ReLU(), nn.Linear(16, 10)
        )


def test_a_norm_of_the_batch_is_planned_for():
    torch.manual_seed(0)
    models = models_of(*(params_of(Unnormalised()) for _ in range(2)), net=Unnormalised())
    found = everything.report(
        models,
        data_source.Source(
            "classification", digits().scoring.targets, lambda rows: digits().scoring.inputs[rows]
        ),
        examples=60,
    )
    assert "plan" not in found.problems
    assert found.ensemble is not None


def test_the_reason_of_a_step_stands_with_all_that_needed_it():
    found = everything.Report(models_of(network(0), network(1)), problems={"plan": "too odd to be planned."})
    assert found.why_not("barriers") == found.why_not("ensemble") == "too odd to be planned."
    assert page(found).count("too odd to be planned.") >= 3


def test_an_alignment_by_activations_is_called_so():
    models = models_of(network(0), network(1), network(2))
    symmetries = assess.structure(models.net, digits().example).symmetries
    found = assess.align(models, symmetries, inputs=digits().calibration.inputs[:100])
    assert "matched by activations" in say(found)[0]
    lines = assess.barriers(models, digits(), symmetries, found, points=3, parted=0)
    assert set(lines.kinds) == {"as they are", "matched by activations"}


def test_a_network_without_hidden_units_is_not_matched():
    nets = [nn.Linear(64, 10) for _ in range(3)]
    models = models_of(*map(params_of, nets), net=nn.Linear(64, 10))
    source = data_source.Source(
        "classification", digits().scoring.targets, lambda rows: digits().scoring.inputs[rows]
    )
    found = everything.report(models, source, examples=60)
    assert "activations" not in found.problems


def test_few_squared_errors_give_no_verdict():
    """With a handful the resampled interval holds the truth half of the time."""
    net = nn.Linear(3, 1)
    models = models_of(*(params_of(nn.Linear(3, 1)) for _ in range(2)), net=net)
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    found = assess.merging(models, halves(x, x.sum(1, keepdim=True), "regression"))
    assert mergeable(found) == OPEN
    assert "30 scoring examples are the least" in say(found)[0]


def test_relative_intervals_hold_the_truth():
    """Two exponential errors whose means differ by a half: the denominator is resampled with the numerator."""
    draws = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(100):
        one, other = (-(1 - torch.rand(500, dtype=torch.float64, generator=draws)).log() for _ in range(2))
        found = intervals.relative(1.5 * one, other)
        held += found.low <= 0.5 <= found.high
    assert 88 <= held <= 99


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (("--seed", "-1"), "from 0 on"),
        (("--examples", "3"), "from 4 on"),
        (("--image-size", "0"), "from 1 on"),
    ],
)
def test_numbers_have_a_least(capsys, option, says):
    with pytest.raises(SystemExit):
        main(["folder", "--builder", "a:b", *option])
    assert says in capsys.readouterr().err


def test_pictures_have_a_size(tmp_path):
    with pytest.raises(DataProblem, match="--image-size 1 or more"):
        data_source.read(tmp_path, image_size=0)


def test_permuted_and_rescaled_copies_merge_into_the_original():
    """Each is brought to the least mass before units are compared: neither order nor scales keep copies apart."""
    symmetries = assess.structure(build(), digits().example).symmetries
    draws = torch.Generator().manual_seed(0)
    orders = random_permutations(symmetries, draws, 4)
    scales = random_log_scales(symmetries, draws, 4)
    copies = [
        permute(
            rescale(network(0), symmetries, [each[i] for each in scales]),
            symmetries,
            [each[i] for each in orders],
        )
        for i in range(4)
    ]
    test = digits().scoring
    source = data_source.Source("classification", test.targets, lambda rows: test.inputs[rows])
    found = everything.report(models_of(network(0), *copies), source, examples=600)
    assert found.verdict == YES
    assert float(found.merging.gap().value) == pytest.approx(0, abs=1e-9)
    assert any(step.action == "Count permuted copies once" for step in found.advice)


def test_an_output_without_a_second_axis_is_one_number_an_example():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(3, 1)

        def forward(self, x):
            return self.out(x)[:, 0]

    net, x = Flat(), torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    models = models_of(*(params_of(Flat()) for _ in range(2)), net=net)
    assert fitting.check(net, models.params, halves(x, x.sum(1), "regression")) == 1
    assert assess.merging(models, halves(x, x.sum(1), "regression")).gap().known


def test_one_hot_targets_are_told_to_be_numbers(tmp_path):
    np.savez(
        tmp_path / "data.npz",
        inputs=np.ones((6, 2)),
        targets=np.eye(6)[:, :3].repeat(1, 0)[[0, 1, 2, 0, 1, 2]],
    )
    with pytest.raises(DataProblem, match=r"one-hot.*argmax\(1\)"):
        data_source.read(tmp_path / "data.npz")


def test_a_temperature_at_the_end_of_the_search_is_none():
    """Networks without an error on the half that fits it would be sharpened for ever."""
    known = digits()
    logits = 5.0 * F.one_hot(known.scoring.targets, 10).float()
    held = 5.0 * F.one_hot(known.calibration.targets, 10).float()
    put = outputs.Predictions(torch.stack([logits, logits]), torch.stack([held, held]))
    found = assess.ensemble(models_of(network(0), network(1)), known, predictions=put)
    assert found.temperature == {}
    assert not any("temperature" in who for who in found.scores["NLL (nats)"])
    assert any("No temperature" in sentence for sentence in say(found))


def test_a_merged_file_that_cannot_be_written_costs_no_page(tmp_path, capsys):
    for i in range(2):
        torch.save(network(i), tmp_path / f"{i}.pt")
    np.savez(
        tmp_path / "data.npz", inputs=digits().scoring.inputs[:60], targets=digits().scoring.targets[:60]
    )
    out = tmp_path / "report.html"
    asked = [
        str(tmp_path),
        "--builder",
        "report_cases:build",
        "--data",
        str(tmp_path / "data.npz"),
        "--out",
        str(out),
    ]
    assert main([*asked, "--merged", str(tmp_path)]) == 0
    assert out.is_file()
    assert "No merged network was saved" in capsys.readouterr().out


class Reader(nn.Module):
    """Words by number, their mean, and a layer."""

    def __init__(self):
        super().__init__()
        self.words, self.out = nn.Embedding(30, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(self.words(x).mean(1).relu())


@pytest.mark.parametrize(("dtype", "read"), [("i4", True), ("f4", False)])
def test_whole_numbers_stay_whole_for_an_embedding(tmp_path, dtype, read):
    torch.manual_seed(0)
    models = models_of(*(params_of(Reader()) for _ in range(3)), net=Reader())
    draws = np.random.default_rng(0)
    np.savez(
        tmp_path / "data.npz",
        inputs=draws.integers(0, 30, (80, 7)).astype(dtype),
        targets=draws.integers(0, 3, 80),
    )
    found = everything.report(models, data_source.read(tmp_path / "data.npz"))
    assert (found.ensemble is not None) is read
    if read:
        assert any("looked up" in note for note in found.halves.notes)
        put = outputs.outputs(models.net, params_of(models.net), found.halves.scoring.inputs)
        assert put.shape == (40, 3)
    else:
        assert "give inputs of an integer type" in found.problems["data"]
