"""The profiles' learners, and which curve belongs to which claim."""

from __future__ import annotations

import pytest
import torch

from lib import claims, profile
from lib.free_energy import coefficients
from lib.free_energy.truths import T0, T1, T2
from lib.growth import plan
from lib.growth.curves import Curve, Learner

PROFILES = ("quick", "full")


def fake(learner: Learner, last: float) -> Curve:
    n = torch.logspace(
        1, torch.tensor(last).log10().item(), 2 * round(torch.tensor(last).log10().item()) - 1
    ).double()
    energy = n.log()[:, None].expand(-1, 4)
    return Curve(learner, 1_000, n, energy, torch.ones_like(energy), {}, 10)


@pytest.fixture(params=PROFILES)
def sizes(request):
    return profile.get(request.param).free_energy


def test_every_learner_that_counts_for_the_theorem_can_realise_its_truth(sizes):
    learners = plan.learners(sizes)
    last = plan.last(learners, sizes)
    curves = {learner.name: fake(learner, last[learner]) for learner in learners}
    assert len(curves) == len(learners)
    for curve in plan.realising(curves, sizes):
        assert coefficients.can_realise(curve.learner.widths, curve.learner.truth.widths)
        assert not curve.learner.gaussian
        assert float(curve.n[-1]) == pytest.approx(sizes.last)
    assert T0 not in {curve.learner.truth for curve in plan.realising(curves, sizes)}
    assert Learner(T2, (2, 1, 1)) in learners


def test_pairs_differ_in_one_thing(sizes):
    learners = plan.learners(sizes)
    last = plan.last(learners, sizes)
    curves = {learner.name: fake(learner, last[learner]) for learner in learners}
    for deep, shallow in plan.deep_pairs(curves, sizes):
        assert len(deep.learner.widths) > len(shallow.learner.widths) == 3
        assert deep.learner.widths[1] == shallow.learner.widths[1]
        assert torch.equal(deep.n, shallow.n)
    for normal, uniform in plan.input_pairs(curves, sizes):
        assert normal.learner.gaussian
        assert not uniform.learner.gaussian
        assert normal.learner.widths == uniform.learner.widths
        assert float(normal.n[-1]) == pytest.approx(sizes.far)


@pytest.mark.parametrize("name", PROFILES)
def test_the_sizes_meet_the_ledger(name):
    """Each claim's least numbers of particles, copies, data sets and cells are those that its profile brings."""
    sizes, ledger = profile.get(name).free_energy, claims.ledger()

    def least(claim, measure):
        from lib.rules import conditions

        return next(c.sizes[name] for c in conditions(ledger[claim].rule, name) if c.measure == measure)

    assert sizes.particles >= least("P2-C1", "slope_excess").n
    assert sizes.copies >= least("P2-C1", "slope_excess").seeds
    assert sizes.set_copies >= least("P2-C3", "embedding_excess").seeds
    assert sizes.sets * len(sizes.set_sizes) >= least("P2-C3", "embedding_excess").n
    assert sizes.sets >= least("P2-C7", "error_ratio").n
    assert sizes.identity_sets >= least("P2-C8", "identity_gap").n
    assert len(sizes.identity_sizes) >= least("P2-C8", "identity_gap").cells
    assert sizes.known_sets >= least("P2-C11", "evidence_bias").n
    assert sizes.gap_sets >= least("P2-C11", "bidirectional_gap").n
    assert sizes.local_sets >= least("P2-C12", "hmc_error").n
    assert sizes.bridge_sets >= least("X-F1", "gap_growth").n
    assert len(sizes.watched) >= least("P2-C9", "dead_share_growth").cells
    deep = [h for h in sizes.deep if h[0] <= 2]
    assert len(deep) >= least("P2-C5", "slope_difference").cells
    if sizes.convolutions:
        assert sizes.convolution_particles >= least("P2-C13", "slope_difference").n


def test_only_watched_learners_keep_particles_and_from_ten_on(sizes):
    learners = plan.learners(sizes)
    kept = plan.keep(learners, sizes)
    assert {learner.widths for learner in kept} == {plan.widths(T1, h) for h in sizes.watched}
    for decades in kept.values():
        assert decades[0] == 10
        assert decades[-1] == sizes.last
