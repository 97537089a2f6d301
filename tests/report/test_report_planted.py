"""Planted cases with known answers: permuted copies, rescaled copies, equal networks, and the library's own functions."""

import numpy as np
import pytest
import torch
from report_cases import build, digits, models_of, network, trained

from lib import metrics
from lib.connectivity import between, decompose, recalibrate
from lib.matching import match_many
from lib.networks import perceptron
from lib.params import member, select
from lib.population import evaluate
from lib.report import assess, outputs
from lib.report.barriers import AGAIN, BY_ACTIVATIONS, MATCHED, PLAIN
from lib.report.data_source import Examples, Halves
from lib.report.ensemble import ENSEMBLE, SINGLE
from lib.report.everything import Report
from lib.report.intervals import Interval, difference, over_pairs, share
from lib.report.merging import BEST, MEAN, MERGED
from lib.report.page import page
from lib.report.verdicts import NO, OPEN, YES, mergeable, shifted, within
from lib.symmetry import find_symmetries, permute, random_log_scales, random_permutations, rescale


@pytest.fixture(scope="module")
def symmetries():
    return find_symmetries(build(), digits().example)


@pytest.fixture(scope="module")
def copies(symmetries):
    """One network in five orders of its units."""
    draws = torch.Generator().manual_seed(0)
    orders = random_permutations(symmetries, draws, 4)
    others = [permute(network(0), symmetries, [perm[i] for perm in orders]) for i in range(4)]
    return models_of(network(0), *others)


def test_permuted_copies_have_no_barrier_and_merge_into_the_original(copies, symmetries, tmp_path):
    alignment = assess.align(copies, symmetries)
    assert alignment.before.min() > 0.1
    assert alignment.after.max() < 1e-6
    found = assess.barriers(copies, digits(), symmetries, alignment, points=5, parted=2)
    assert found.barrier(PLAIN).value > 0.2
    assert found.barrier(MATCHED).value == pytest.approx(0, abs=1e-6)
    assert float(found.parts.parts["permutation"].mean()) == pytest.approx(
        float(found.parts.plain.mean()), abs=1e-5
    )
    merged = assess.merging(copies, digits(), symmetries, alignment)
    assert merged.chosen == MERGED
    assert mergeable(merged) == YES
    assert merged.gap().value == pytest.approx(0, abs=1e-12)
    assert mergeable(merged) != NO
    put = outputs.outputs(copies.net, merged.merged, digits().scoring.inputs)
    assert torch.allclose(put, outputs.outputs(copies.net, network(0), digits().scoring.inputs), atol=1e-4)
    from safetensors.torch import load_file

    net = build()
    net.load_state_dict(load_file(merged.save(tmp_path / "deep" / "merged.safetensors")))
    with torch.no_grad():
        assert torch.allclose(net(digits().scoring.inputs), put, atol=1e-6)


def test_permuted_copies_are_found_by_activations(copies, symmetries):
    by_weights = assess.align(copies, symmetries)
    by_activations = assess.align(copies, symmetries, by_weights.pairs, inputs=digits().calibration.inputs)
    assert by_activations.by == "activations"
    assert by_activations.after.max() < 0.1 * by_activations.before.min()  # dead units stay where they are
    found = assess.barriers(
        copies, digits(), symmetries, by_weights, activations=by_activations, points=3, parted=0
    )
    assert found.barrier(BY_ACTIVATIONS).value == pytest.approx(0, abs=1e-6)
    put = outputs.outputs(copies.net, by_activations.aligned(symmetries, 3), digits().scoring.inputs)
    assert torch.allclose(put, outputs.outputs(copies.net, network(0), digits().scoring.inputs), atol=1e-4)


def test_a_network_without_hidden_units_has_nothing_to_match():
    nets = [torch.nn.Linear(64, 10) for _ in range(3)]
    models = models_of(*(net.state_dict() for net in nets), net=nets[0])
    own = find_symmetries(nets[0], digits().example)
    assert not own.permutations
    alignment = assess.align(models, own)
    assert torch.equal(alignment.before, alignment.after)
    found = assess.barriers(models, digits(), own, alignment, points=3, parted=2)
    assert torch.equal(found.kinds[PLAIN].loss, found.kinds[MATCHED].loss)
    assert assess.merging(models, digits(), own, alignment).chosen == MEAN
    assert assess.mass(models, own).kinds == ()


def test_equal_networks_differ_in_nothing(symmetries):
    twins = models_of(*[network(0)] * 4)
    found = assess.ensemble(twins, digits())
    for measure in found.diversity.values():
        assert measure.value == pytest.approx(0, abs=1e-12)
    assert found.gain.value == 0
    assert assess.align(twins, symmetries).before.max() == 0


def test_a_rescaled_copy_has_excess_mass_and_the_same_function(symmetries):
    moved = rescale(network(0), symmetries, random_log_scales(symmetries, torch.Generator().manual_seed(1)))
    found = assess.mass(models_of(network(0), moved), symmetries)
    assert found.minimum[0] == pytest.approx(float(found.minimum[1]), rel=1e-5)
    assert found.excess[1] > 10 * found.excess[0] > 0
    assert found.kinds == ("homogeneous",)
    assert not found.mean_excess.known


def test_mass_leaves_out_scales_that_have_no_minimum():
    net = torch.nn.Sequential(
        torch.nn.Linear(5, 6), torch.nn.BatchNorm1d(6), torch.nn.ReLU(), torch.nn.Linear(6, 2)
    )
    own = net.state_dict()
    found = assess.mass(models_of(own, net=net), find_symmetries(net, torch.randn(2, 5)))
    assert found.left_out == ("normalised",)
    assert found.kinds == ("affine",)
    assert 0 < found.minimum[0] <= found.mass[0]


def test_lines_are_those_of_the_library(symmetries):
    models = models_of(*(network(i) for i in range(4)))
    alignment = assess.align(models, symmetries)
    found = assess.barriers(models, digits(), symmetries, alignment, points=5)
    test = digits().scoring
    first, second = alignment.pairs.T
    reference = between(
        build(), select(models.params, first), select(models.params, second), test.inputs, test.targets, 5
    )
    assert torch.allclose(found.kinds[PLAIN].loss, reference.loss, atol=1e-5)
    assert torch.allclose(found.kinds[PLAIN].error, reference.error, atol=1e-9)
    assert found.barrier(PLAIN).value == pytest.approx(float(reference.barrier().mean()), abs=1e-5)
    assert found.barrier(PLAIN).known
    assert found.every
    assert found.barrier(MATCHED).value < found.barrier(PLAIN).value


def batch_normed():
    return perceptron((64, 12, 10), norm=torch.nn.BatchNorm1d)


@pytest.fixture(scope="module")
def normed():
    """Three networks with BatchNorm, briefly trained."""
    from lib.data import load
    from lib.population import Recipe, train

    learn = load("digits", "train")
    recipe = Recipe(lr=0.1, batch_size=64, epochs=2, momentum=0.9)
    params = train(batch_normed(), learn.inputs, learn.targets, recipe, members=3, seed=0).params
    return models_of(*(member(params, i) for i in range(3)), net=batch_normed())


@pytest.mark.parametrize("kind", ["plain", "normed"])
def test_parts_are_those_of_the_library(kind, symmetries, normed):
    models = normed if kind == "normed" else models_of(network(0), network(1))
    own = find_symmetries(models.net, digits().example)
    held, test = digits().calibration.inputs, digits().scoring
    found = assess.barriers(
        models, digits(), own, assess.align(models, own), points=5, parted=1, calibration=90
    )
    pair = [select(models.params, slice(i, i + 1)) for i in range(2)]
    reference = decompose(models.net, own, *pair, test.inputs, test.targets, held[:90], 5)
    for stage in ("plain", "permuted", "rescaled", "mended"):
        assert torch.allclose(getattr(found.parts, stage), getattr(reference, stage), atol=1e-4), stage


class Rows(torch.nn.Module):
    """Layers on rows of three axes, whose statistics no mending knows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(8, 6), torch.nn.Linear(48, 10)

    def forward(self, x):
        return self.last(self.first(x.view(-1, 8, 8)).relu().flatten(1))


def test_a_barrier_that_cannot_be_taken_apart_is_reported_whole():
    nets = [Rows() for _ in range(2)]
    models = models_of(*(net.state_dict() for net in nets), net=nets[0])
    own = find_symmetries(nets[0], digits().example)
    found = assess.barriers(models, digits(), own, assess.align(models, own), points=3)
    assert found.parts is None
    assert "along the last of three axes" in found.why_whole
    assert any("could not be taken apart" in sentence for sentence in found.sentences())
    assert found.parts_table().rows == []


def test_recalibration_is_that_of_the_library(normed):
    inputs = digits().calibration.inputs
    reference = recalibrate(normed.net, normed.params, inputs)
    for i in range(3):
        found = outputs.recalibrated(normed.net, member(normed.params, i), inputs)
        for name, tensor in member(reference, i).items():
            assert torch.allclose(found[name], tensor, atol=1e-5), name
    assert normed.net[1].momentum == 0.1


def test_batch_norm_has_lines_of_both_kinds(normed):
    own = find_symmetries(normed.net, digits().example)
    found = assess.barriers(normed, digits(), own, assess.align(normed, own), points=3)
    assert list(found.kinds) == [PLAIN, PLAIN + AGAIN, MATCHED, MATCHED + AGAIN]
    assert found.norms
    assert not found.barrier(PLAIN).known  # three networks give no interval
    merged = assess.merging(normed, digits(), own, assess.align(normed, own))
    assert {
        "plain mean, statistics not read anew",
        "merged mean, statistics not read anew",
    } <= merged.error.keys()
    before = normed.params["1.running_mean"].mean(0)
    assert not torch.allclose(merged.merged["1.running_mean"], before)


def test_statistics_that_help_single_networks_are_a_matter_of_preprocessing(normed):
    """Inputs of another scale than in training: new statistics mend every network, and no mean may take the credit."""
    own = find_symmetries(normed.net, digits().example)
    test, held = digits().scoring, digits().calibration
    usual, odd = (
        assess.merging(
            normed,
            Halves(
                "classification",
                Examples(f(held.inputs), held.targets),
                Examples(f(test.inputs), test.targets),
            ),
            own,
            assess.align(normed, own),
        )
        for f in (lambda x: x, lambda x: 40 * x - 20)
    )
    assert not shifted(usual)
    assert shifted(odd)
    found = Report(normed, merging=odd)
    assert found.verdict == OPEN
    actions = [step.action for step in found.advice]
    assert actions[0] == "Check preprocessing"
    assert not {"Merge after alignment", "Average them as they are"} & set(actions)
    assert "unresolved" in found.words("merging")[0]
    assert "can be merged:" not in page(found)


def test_the_joint_order_is_that_of_the_library(symmetries):
    models = models_of(*(network(i) for i in range(5)))
    reference = match_many(models.params, symmetries)
    for ours, theirs in zip(assess.align(models, symmetries).together, reference.perms, strict=True):
        assert torch.equal(ours, theirs)


def test_a_star_of_pairs_gives_every_network_the_first_ones_order(symmetries, copies):
    pairs = torch.tensor([[0, 1], [0, 2], [0, 3], [0, 4]])
    alignment = assess.align(copies, symmetries, pairs, joint=False)
    for i in range(5):
        moved = alignment.aligned(symmetries, i)
        assert torch.allclose(moved["0.weight"], network(0)["0.weight"])
    assert "each to 0.pt" in alignment.method
    assert alignment.mean_before.over == "4 networks, given the first"
    with pytest.raises(ValueError, match=r"no pair joins 3\.pt with 0\.pt"):
        assess.align(copies, symmetries, pairs[:2], joint=False)


def test_scores_are_those_of_the_library():
    models, test = models_of(*(network(i) for i in range(5))), digits().scoring
    found = assess.ensemble(models, digits())
    reference = evaluate(build(), trained(), test.inputs, test.targets)
    assert found.scores["NLL (nats)"][SINGLE].value == pytest.approx(
        float(reference["loss"].mean()), rel=1e-5
    )
    assert torch.allclose(found.alone, 1 - reference["accuracy"].double(), atol=1e-6)
    chances = outputs.everyones(build(), trained(), test.inputs).double().softmax(-1).mean(0)
    for name, measure in (("NLL (nats)", metrics.nll), ("Brier score", metrics.brier), ("ECE", metrics.ece)):
        one = found.scores[name][ENSEMBLE]
        assert one.value == pytest.approx(float(measure(chances, test.targets)), rel=1e-9)
        assert one.low <= one.value <= one.high
        assert one.low < one.high
    assert found.scores["NLL (nats)"][ENSEMBLE].value < found.scores["NLL (nats)"][SINGLE].value


def test_the_best_network_is_chosen_on_the_other_half():
    """By its loss there; its score is that of the scoring half."""
    models = models_of(*(network(i) for i in range(5)))
    held, losses = digits().calibration, []
    for i in range(5):
        put = outputs.outputs(models.net, network(i), held.inputs)
        losses.append(float(outputs.losses("classification", put, held.targets).mean()))
    found = assess.merging(models, digits())
    best = int(np.argmin(losses))
    assert found.best == f"{best}.pt"
    put = outputs.outputs(models.net, network(best), digits().scoring.inputs)
    assert torch.equal(found.error[BEST], outputs.wrong(put, digits().scoring.targets))
    assert found.chosen == MEAN
    assert found.method == ""


def test_rules_decide_by_the_whole_interval():
    assert within(Interval(0.0, -0.01, 0.01), 0.01) == YES
    assert within(Interval(0.02, 0.011, 0.03), 0.01) == NO
    assert within(Interval(0.0, -0.01, 0.011), 0.01) == OPEN
    assert within(Interval(0.0), 0.01) == OPEN


def test_few_examples_that_agree_know_little():
    few, many = difference(torch.zeros(20)), difference(torch.zeros(2000))
    assert few.value == many.value == 0
    assert few.high > 0.1
    assert many.high < 0.01
    assert share(torch.zeros(20)).high > 0.1
    assert share(torch.zeros(20)).low == 0


def test_intervals_of_shares_cover():
    draws = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        found = share(torch.from_numpy(draws.random(60) < 0.05).double())
        held += found.low <= 0.05 <= found.high
    assert held / 400 > 0.93


def test_intervals_over_pairs_need_four_networks():
    values = torch.tensor([1.0, 2.0, 3.0])
    assert not over_pairs(values, torch.combinations(torch.arange(3)), 3).known
    six = torch.arange(6.0)
    found = over_pairs(six, torch.combinations(torch.arange(4)), 4)
    assert found.value == 2.5
    assert found.low < 2.5 < found.high


def test_one_network_has_no_pairs(symmetries):
    one = models_of(network(0))
    for call in (
        lambda: assess.align(one, symmetries),
        lambda: assess.barriers(one, digits()),
        lambda: assess.merging(one, digits()),
    ):
        with pytest.raises(ValueError, match="two networks"):
            call()
    found = assess.ensemble(one, digits())
    assert found.gain is None
    assert not found.diversity
    assert ENSEMBLE not in found.scores["error"]
