"""Each step is called for by its rule, with the number that led to it, and by nothing else."""

from dataclasses import replace

import pytest
import torch
from report_cases import models_of, network

from lib.report.advice import advise
from lib.report.checkpoints import Refused
from lib.report.ensemble import Ensemble
from lib.report.intervals import Interval
from lib.report.merging import BEST, MEAN, MERGED, SINGLE, STALE, Merging
from lib.report.merging import ENSEMBLE as TOGETHER
from lib.report.sentences import say
from lib.report.structure import Alignment, Mass
from lib.report.verdicts import NO, OPEN, margin, mergeable

N = 2000


def actions(**found) -> dict[str, str]:
    models = found.pop("models", models_of(*(network(i) for i in range(4))))
    return {step.action: step.reason for step in advise(models, **found)}


def errors(share: float) -> torch.Tensor:
    """So many wrong of N."""
    return (torch.arange(N) < round(share * N)).double()


def merging(chosen: str = MERGED, examples: int = N, method: str = "jointly", **shares: float) -> Merging:
    error = {SINGLE: errors(0.1), BEST: errors(0.1), TOGETHER: errors(0.05)} | {
        name: errors(share) for name, share in shares.items()
    }
    error = {name: each[:: N // examples] for name, each in error.items()}
    return Merging("classification", ("a", "b", "c", "d"), "a", error, error, chosen, {}, method, 50, 0.9)


def test_merging_is_advised_by_the_margin():
    assert (
        "In one order of units"
        in actions(merging=merging(**{MEAN: 0.8, MERGED: 0.1}))["Merge after alignment"]
    )
    found = actions(merging=merging(MEAN, **{MEAN: 0.1, MERGED: 0.3}))
    assert "no alignment is needed" in found["Average them as they are"]
    assert "20.00 points" in actions(merging=merging(**{MEAN: 0.8, MERGED: 0.3}))["Do not average them"]


def test_an_open_verdict_asks_for_more_examples():
    found = actions(merging=merging(examples=40, **{MEAN: 0.8, MERGED: 0.1}))
    assert "in the scoring half would decide it" in found["Collect more examples"]
    assert "40 examples" in found["Collect more examples"]
    assert "Merge after alignment" not in found


def test_batch_norm_is_recalibrated_where_that_helps():
    helps = merging(**{MEAN: 0.8, MERGED: 0.1, MERGED + STALE: 0.7})
    assert "from 70.00 (" in actions(merging=helps)["Recalibrate BatchNorm wherever you average by hand"]
    idle = merging(**{MEAN: 0.8, MERGED: 0.1, MERGED + STALE: 0.11})
    assert "Recalibrate BatchNorm wherever you average by hand" not in actions(merging=idle)


COOLER = Interval(0.04, 0.03, 0.05)


def ensemble(differ: float, gain: Interval, ece: float = 0.0, cooling: Interval = COOLER) -> Ensemble:
    scores = {"ECE": {"ensemble": Interval(ece)}}
    return Ensemble(
        "classification", ("a", "b"), scores, torch.zeros(2, dtype=torch.float64), Interval(0.0, 0.0, 0.01),
        {"disagreement": Interval(differ)}, gain, 0.9, {"ensemble": 1.7}, cooling, N,
    )  # fmt: skip


def test_an_ensemble_is_kept_where_it_is_better():
    better = Interval(0.02, 0.01, 0.03)
    assert (
        "2.00 (1.00 to 3.00) points less"
        in actions(ensemble=ensemble(0.1, better))["Keep them as an ensemble"]
    )
    both = actions(ensemble=ensemble(0.1, better), merging=merging(**{MEAN: 0.8, MERGED: 0.1}))
    assert "Keep the ensemble where the cost allows" in both
    as_good = merging(**{MEAN: 0.8, MERGED: 0.1, BEST: 0.05})
    weighed = actions(ensemble=ensemble(0.1, better), merging=as_good)[
        "Weigh the ensemble against the best of them"
    ]
    assert "a alone, the best by the calibration half, errs 0.00 points" in weighed
    assert "Keep them as an ensemble" not in actions(ensemble=ensemble(0.1, Interval(0.02, -0.01, 0.03)))
    alike = replace(ensemble(0.001, better), level=Interval(0.02, 0.01, 0.03))
    assert "0.1 % of the examples" in actions(ensemble=alike)["Keep one of them"]
    few_errors = replace(alike, level=Interval(0.002, 0.001, 0.003))
    assert "Keep one of them" not in actions(ensemble=few_errors)


def test_networks_that_guess_are_told():
    found = ensemble(0.1, Interval(0.0))
    assert "Check labels and preprocessing" not in actions(ensemble=found)
    guessing = replace(found, level=Interval(0.85, 0.8, 0.92))
    assert (
        "errs 85.00 (80.00 to 92.00) %, and to answer the same every time would err 90.00 %"
        in actions(ensemble=guessing)["Check labels and preprocessing"]
    )


def test_to_networks_that_guess_nothing_else_is_advised():
    guessing = replace(ensemble(0.001, Interval(0.02, 0.01, 0.03)), level=Interval(0.85, 0.8, 0.92))
    assert set(actions(ensemble=guessing, merging=merging(**{MEAN: 0.8, MERGED: 0.1}))) == {
        "Check labels and preprocessing"
    }


def test_one_broken_network_is_named_first():
    """It spoils the mean single network, to which everything is compared."""
    errors = torch.tensor([0.04, 0.03, 0.88, 0.05], dtype=torch.float64)
    found = replace(
        ensemble(0.1, Interval(0.0)), names=("a", "b", "c", "d"), alone=errors, level=Interval(0.25, 0.2, 0.3)
    )
    steps = advise(
        models_of(*(network(i) for i in range(4))),
        ensemble=found,
        merging=merging(**{MEAN: 0.8, MERGED: 0.1}),
    )
    assert steps[0].action == "Leave them out, and run again"
    assert steps[0].reason.startswith(
        "Next to nothing is known by c (88.00 %), which errs about as much as a constant answer (90.00 %)"
    )


def test_units_that_were_not_matched_leave_the_verdict_open():
    found = merging(MEAN, method="", **{MEAN: 0.8})
    assert mergeable(found) == OPEN
    told = actions(merging=found)
    assert "could not match units" in told["Match their units first"]
    assert "Do not average them" not in told
    assert "their units could not be matched" in say(found)[0]


def test_a_rare_class_has_a_narrow_margin():
    """Of one per cent a point is everything."""
    rare = replace(merging(MEAN, **{MEAN: 0.105}), chance=0.01)
    assert margin(rare) == pytest.approx(0.001)
    assert mergeable(rare) == NO
    assert mergeable(replace(rare, chance=0.9)) != NO


def test_an_average_that_does_is_advised_before_an_alignment():
    told = actions(merging=merging(**{MEAN: 0.1, MERGED: 0.1}))
    assert "no alignment is needed" in told["Average them as they are"]
    assert "Merge after alignment" not in told


def test_one_class_alone_is_no_guessing():
    right = replace(ensemble(0.1, Interval(0.0)), chance=0.0)
    assert "Check labels and preprocessing" not in actions(ensemble=right)


def test_a_calibration_error_alone_calls_for_no_temperature():
    """On few examples it is large for perfectly calibrated networks; what a temperature saves is not."""
    saves_nothing = ensemble(0.1, Interval(0.0), ece=0.2, cooling=Interval(0.001, -0.002, 0.004))
    assert "Fit a temperature" not in actions(ensemble=saves_nothing)


def test_temperatures_masses_and_files():
    assert (
        "1.7, takes 0.040 (0.030 to 0.050) nats"
        in actions(ensemble=ensemble(0.1, Interval(0.0), ece=0.2))["Fit a temperature"]
    )
    assert "Fit a temperature" not in actions(ensemble=ensemble(0.1, Interval(0.0), ece=0.01))
    ones = torch.ones(4, dtype=torch.float64)
    four = models_of(*(network(i) for i in range(4)))
    heavy = Mass(("a", "b", "c", "d"), 1.2 * ones, ones, ("homogeneous",), (), four)
    assert "20 % above" in actions(mass=heavy)["Take scales out before weights are compared"]
    assert actions(mass=replace(heavy, mass=1.01 * ones)) == {
        "Nothing": "No rule of this report calls for a step."
    }
    models = replace(
        models_of(*[network(0)] * 4),
        refused=(Refused("x.pt", "is empty"),),
        notes=("b: holds the same weights as a",),
    )
    found = actions(models=models)
    assert "x.pt" in found["Look at the refused files"]
    assert "1 file holds" in found["Take duplicates out"]


@pytest.mark.parametrize(("n", "told"), [(1, True), (3, True), (4, False)])
def test_few_networks_are_too_few(n, told):
    assert ("Add networks" in actions(models=models_of(*[network(0)] * n))) is told


def test_permuted_copies_are_found():
    pairs = torch.tensor([[0, 1], [0, 2]])
    before, after = torch.tensor([1.2, 1.3]).double(), torch.tensor([1e-9, 0.9]).double()
    found = actions(
        alignment=Alignment(
            models_of(*(network(i) for i in range(3))), pairs, (), (), "jointly", "weights", before, after
        )
    )
    assert "In 1 pair matching brings the distance from 1.200 to" in found["Count permuted copies once"]
