"""The experiments' measurements on made-up results whose verdicts are known, and tiny runs of what makes them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lib import profile
from lib.data import load
from lib.matching import match_many, objective
from lib.three_models import (
    line_figures,
    path_figures,
    pruned,
    several,
    shifted,
    stars,
    together,
    trajectories,
    widths,
)
from lib.three_models.problem import FAST, STANDARD, problem_of, recipe, trained

CPU = torch.device("cpu")


def table_of(value: float, members: int = 6) -> np.ndarray:
    values = np.full((members, members), value)
    np.fill_diagonal(values, np.nan)
    return values


def followed(
    early: list[float], late: list[float], equal: list[float], members: int = 6
) -> trajectories.Followed:
    def over(values: list[float]) -> np.ndarray:
        return np.stack([table_of(v, members) for v in values])

    both = {m: over(early) for m in stars.MATCHINGS}
    return trajectories.Followed(
        (1, 2, 4),
        np.full((3, members), 0.1),
        over([0.3] * 3),
        both,
        {m: over(late) for m in stars.MATCHINGS},
        {m: over(equal) for m in stars.MATCHINGS},
    )


def test_measures_of_trajectories_on_made_up_barriers() -> None:
    found = followed([0.08, 0.04, 0.02], [0.05, 0.02, 0.02], [0.1, 0.3, 1.0])
    late = {m.cell: m.value for m in trajectories.measure_late(found)}
    assert late == {
        "epoch 1": pytest.approx(0.02),
        "epoch 2": pytest.approx(-0.01),
        "epoch 4": pytest.approx(-0.01),
    }
    ratio, trend = trajectories.measure_early(found)
    assert ratio.value == pytest.approx(4)
    assert trend.value == pytest.approx(-1)
    assert trajectories.measure_matchings({STANDARD: found})[0].value == 0
    measured, chosen = trajectories.measure_several(found)
    assert (
        chosen == "activation matching at epoch 2"
    )  # the lowest barrier among those that differ, the first by name
    assert [m.value for m in measured] == [pytest.approx(0.3), pytest.approx(0.02)]
    assert all(m.n == 3 for m in measured)  # judged on one half
    same = followed([0.08, 0.04, 0.02], [0.05, 0.02, 0.02], [0.9, 0.9, 1.0])
    assert trajectories.measure_several(same) == ([], "no permutation that differs on half of the positions")


def test_epochs_near_chance_do_not_count() -> None:
    found = followed([0.1] * 3, [0.1] * 3, [0.1] * 3)
    found.test_error[0] = 0.8
    assert found.knows == [1, 2]


def test_halves_are_joined_without_numbers_across() -> None:
    one = {"test_error": torch.zeros(2, 3), "plain": torch.ones(2, 3, 3)}
    both = trajectories._joined(one, one)
    assert both["test_error"].shape == (2, 6)
    assert torch.isnan(both["plain"][:, :3, 3:]).all()
    assert not torch.isnan(both["plain"][:, 3:, 3:]).any()


def test_dead_units_are_left_out_of_equal_positions() -> None:
    first = (torch.arange(4).expand(2, 2, -1),)
    other = (torch.tensor([0, 1, 3, 2]).expand(2, 2, -1),)
    alive = [torch.tensor([[True, True, False, False], [True, True, False, False]])]
    assert trajectories._equal(first, other, alive)[0, 1] == 1.0
    assert trajectories._equal(first, other, [torch.ones(2, 4, dtype=torch.bool)])[0, 1] == 0.5


def test_pixels_stay_in_range_and_shifts_do_what_they_say() -> None:
    data = load("digits", "train")
    for kind in ("noise", "brightness"):
        moved = shifted.shift(data, kind, 3)
        assert moved.inputs.min() >= 0
        assert moved.inputs.max() <= 1
        assert not torch.equal(moved.inputs, data.inputs)
    rare = shifted.shift(data, "class balance", 3)
    kept = [(rare.targets == c).sum() / (data.targets == c).sum() for c in range(10)]
    assert max(kept[:5]) < 0.35
    assert min(kept[5:]) == 1
    with pytest.raises(ValueError, match="no shift called 'rain'"):
        shifted.shift(data, "rain", 0)


def test_ring_intervals_leave_out_both_pairs_of_a_network() -> None:
    seen = []
    pruned.over_ring(lambda pairs: seen.append(tuple(pairs)) or np.array([0.0]), 4)
    assert seen[0] == (0, 1, 2, 3)
    assert sorted(seen[1:]) == [(0, 1), (0, 3), (1, 2), (2, 3)]


def test_groups_are_disjoint_and_the_joint_one_is_never_worse() -> None:
    problem = problem_of("digits", 12)
    nets = trained(problem, recipe(1), range(7), 3)
    listed = several.groups(nets, (2, 3))
    assert [n for n, _ in listed] == [2, 2, 2, 3, 3]
    parts = [
        (n, several.align_group("digits", 12, own, ("reference", "joint"), 3, seed=1, device=CPU))
        for n, own in listed
    ]
    found = several.gather(parts)
    assert [each.n for each in found] == [2, 3]
    assert set(found[0].pairwise) == {"none", "reference", "joint"}
    for each in found:
        assert (each.objective["joint"] >= each.objective["reference"] - 1e-12).all()
        assert (each.objective["reference"] > each.objective["none"]).all()
    short = [m for m in several.measure_joint(found) if m.name == "objective_shortfall"]
    assert all(m.value <= 1e-12 for m in short)
    alone = match_many(listed[0][1], problem.symmetries, "reference")
    assert found[0].objective["reference"][0] == pytest.approx(objective(alone.params, problem.symmetries))


@pytest.fixture(scope="module")
def everything():
    sizes = replace(
        profile.get("quick").three_models,
        widths=(8, 12),
        networks=5,
        epochs=2,
        alphas=3,
        path_width=8,
        path_epochs=(1, 2),
        chain_width=12,
        many=7,
        sizes_together=(2, 3),
        shift_width=8,
        prune_width=12,
        prune_levels=2,
        prune_epochs=1,
    )
    with pytest.MonkeyPatch.context() as patch:
        for module in (together, widths):
            patch.setattr(module, "side_by_side", lambda pieces, device: [piece() for piece in pieces])
        nets = widths.networks(sizes.images, sizes.widths, sizes.networks, sizes.epochs, seed=5, device=CPU)
        found = widths.look(sizes.images, nets, sizes.alphas, seed=5, device=CPU)
        many = trained(problem_of("digits", 12), recipe(2), range(sizes.many), 5)
        return found, together.run(sizes, many, seed=5, device=CPU)


def test_the_experiments_run_together_and_come_back_in_their_places(everything) -> None:
    _, found = everything
    assert set(found.trajectories) == {STANDARD, FAST}
    assert found.trajectories[STANDARD].members == 10
    assert found.trajectories[FAST].members == 5
    assert found.pruned.density == pytest.approx([1, 0.8, 0.64], abs=0.01)
    assert next(iter(found.chains)) == "1"
    assert set(found.shifted) == set(shifted.SHIFTS)
    assert set(found.pruned.transported) == set(pruned.TRANSPORTS)
    assert sum(part.sum() for part in found.parts.parts.values()) == pytest.approx(
        float(found.parts.plain.sum())
    )
    assert {m.cell for m in pruned.measure_masks(found.pruned)} == {"10 %", "5 %", "2 %"}
    assert all(m.n == 5 for m in shifted.measure_shifts(found.shifted))


def test_every_figure_says_what_it_shows(everything, handed_over) -> None:
    found, rest = everything
    figures = handed_over(line_figures, path_figures)
    line_figures.by_width(found)
    line_figures.by_width(found, "error")
    line_figures.ratios(found)
    line_figures.strengths()
    path_figures.trajectories(rest.trajectories)
    path_figures.agreement(rest.trajectories[STANDARD])
    path_figures.levels(rest.pruned)
    path_figures.masks(rest.pruned)
    path_figures.together(rest.several)
    path_figures.parts(rest.parts)
    path_figures.barriers({"a": (0.1, 0.0, 0.2)}, "points")
    assert len(figures) == 11
    for fig in figures:
        for ax in fig.axes:
            assert ax.get_xlabel() or ax.get_ylabel() or ax.get_title("left") or not ax.get_xticks().size
    bars = next(p for p in figures[9].axes[0].patches)
    assert bars.get_width() == pytest.approx(float(rest.parts.parts["permutation"].mean()))
