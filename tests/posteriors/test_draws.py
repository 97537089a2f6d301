"""Which samples belong to which approximation, and what is refused."""

import pytest
import torch

from lib.posteriors.draws import Draws


def numbered(runs, draws):
    """Networks that carry their own place: run 2, sample 3 is 203."""
    places = (100 * torch.arange(runs)[:, None] + torch.arange(draws)).flatten()
    return Draws(
        {"0.weight": places[:, None, None].double(), "0.bias": places[:, None].double()}, runs, draws
    )


def places(params):
    assert torch.equal(params["0.weight"][:, 0, 0], params["0.bias"][:, 0])
    return params["0.bias"][:, 0].int().tolist()


def test_of_gives_the_samples_of_one_run():
    assert places(numbered(3, 4).of(1)) == [100, 101, 102, 103]


def test_multi_takes_as_many_samples_as_one_run_had_evenly_from_each():
    multi = numbered(5, 4).multi(2)
    assert (multi.runs, multi.draws) == (2, 4)
    assert places(multi.of(0)) == [0, 2, 100, 102]
    assert places(multi.of(1)) == [200, 202, 300, 302]  # the fifth run is left over


def test_multi_of_one_is_the_same():
    assert places(numbered(2, 3).multi(1).params) == places(numbered(2, 3).params)


def test_a_run_that_is_not_there_is_refused():
    for run in (-1, 3):
        with pytest.raises(ValueError, match=f"no run {run}: 3 runs"):
            numbered(3, 4).of(run)


@pytest.mark.parametrize(("runs", "draws", "together"), [(3, 4, 3), (1, 4, 2), (3, 4, 0)])
def test_runs_that_cannot_be_taken_together_are_refused(runs, draws, together):
    with pytest.raises(ValueError, match=f"cannot be taken {together} together"):
        numbered(runs, draws).multi(together)


def test_a_population_of_another_size_is_refused():
    with pytest.raises(ValueError, match="12 networks are not 3 runs of 5 samples"):
        Draws(numbered(3, 4).params, 3, 5)
    with pytest.raises(ValueError, match="0 networks"):
        Draws({"0.bias": torch.zeros(0, 1)}, 0, 4)
