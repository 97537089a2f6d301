"""Gaussian fits in weight space: moments are recovered, matching helps where it must, predictions cannot change."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lib.gaussian_fit import FITS, accuracies, draw, fit, measure, predictive_changes
from lib.networks import perceptron
from lib.params import select
from lib.population import Recipe, evaluate, train
from lib.symmetry import find_symmetries, permute, random_permutations


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flat(params: dict) -> np.ndarray:
    return torch.cat([t.double().flatten(1) for t in params.values()], dim=1).numpy()


@pytest.mark.parametrize("shrinkage", [1, 0.3, 0])
def test_draws_have_the_mean_and_covariance_of_the_sample(shrinkage: float) -> None:
    mixing = torch.randn(5, 5, generator=generator(1))
    values = torch.randn(8, 5, generator=generator(2)) @ mixing + torch.arange(5)
    params = {"a": values[:, :2], "b": values[:, 2:].reshape(8, 3, 1)}
    drawn = draw(fit(params, shrinkage), 40_000, seed=3)
    assert drawn["b"].shape == (40_000, 3, 1)
    sample = np.cov(flat(params).T)
    wanted = shrinkage * np.diag(np.diag(sample)) + (1 - shrinkage) * sample
    size = np.sqrt(np.outer(np.diag(sample), np.diag(sample)))
    assert np.abs((np.cov(flat(drawn).T) - wanted) / size).max() < 0.03
    assert np.abs((flat(drawn).mean(0) - flat(params).mean(0)) / np.sqrt(np.diag(sample))).max() < 0.03


def test_draws_are_numbered() -> None:
    gaussian = fit({"w": torch.randn(6, 4, generator=generator(4)), "steps": torch.full((6,), 7)}, 0.5)
    ten = draw(gaussian, 10, seed=1)
    assert torch.equal(draw(gaussian, 4, seed=1, first=3)["w"], ten["w"][3:7])
    assert not torch.equal(draw(gaussian, 10, seed=2)["w"], ten["w"])
    assert ten["steps"].tolist() == [7] * 10
    assert draw(gaussian, 2, seed=1, dtype=torch.float64)["w"].dtype == torch.float64


INPUTS = torch.randn(300, 4, generator=generator(5))
LABELS = (INPUTS[:, :2].sign() * torch.tensor([1, 2])).sum(1).add(3).div(2).long()  # the quadrant
NET = perceptron((4, 12, 4))
SYMMETRIES = find_symmetries(NET, INPUTS[:2])
TRAINED = train(NET, INPUTS, LABELS, Recipe(lr=0.5, batch_size=20, epochs=20), members=1, seed=6)


def copies(seed: int, size: int = 30) -> dict:
    """One trained network with a little noise, its units in any order: a Gaussian in disguise."""
    alike = {
        name: tensor + 0.05 * torch.randn(size, *tensor.shape[1:], generator=generator(seed))
        for name, tensor in TRAINED.params.items()
    }
    return permute(alike, SYMMETRIES, random_permutations(SYMMETRIES, generator(seed + 100), size))


def test_a_gaussian_in_disguise_is_found_by_matching_alone() -> None:
    groups = [copies(s) for s in range(3)]
    table = accuracies(NET, groups, SYMMETRIES, INPUTS, LABELS, draws=30, seed=7)
    assert set(table) == {*FITS, "members"}
    assert (table["members"] > 95).all()
    assert (table["matched"] > 95).all(), "a Gaussian is what these networks came from"
    assert (table["raw"] < 60).all()
    unchanged = evaluate(NET, groups[1], INPUTS, LABELS)["accuracy"].mean()
    assert table["members"][1] == pytest.approx(100 * float(unchanged))


def test_the_claim_is_measured() -> None:
    groups = [copies(s) for s in range(4)]
    (gain, change), table = measure(NET, groups, SYMMETRIES, INPUTS, LABELS, draws=20, seed=8)
    assert (gain.name, gain.n, gain.seeds) == ("fit_gain", 30, 4)
    difference = table["matched"] - table["raw"]
    half = 3.182446 * difference.std(ddof=1) / 2  # Student's quantile with three degrees of freedom
    assert gain.value == pytest.approx(difference.mean())
    assert gain.low == pytest.approx(difference.mean() - half)
    assert gain.high == pytest.approx(difference.mean() + half)
    assert gain.low > 20
    assert (change.name, change.n, change.seeds) == ("predictive_change", 30, 4)
    assert 0 < change.low <= change.value == change.high < 1e-11


def test_a_change_of_the_function_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    import lib.gaussian_fit as module

    def wrong(params, *_, **__):
        return params | {"0.bias": params["0.bias"] * (1 + 1e-6)}

    monkeypatch.setattr(module, "canonical_by_matching", wrong)
    assert predictive_changes(NET, [copies(1)], SYMMETRIES, INPUTS).max() > 1e-9


def test_the_network_of_the_caller_keeps_its_type() -> None:
    predictive_changes(NET, [copies(1, 3)], SYMMETRIES, INPUTS[:5])
    assert NET[0].weight.dtype == torch.float32


def test_misuse_is_refused() -> None:
    good = copies(1, 4)
    with pytest.raises(ValueError, match="cannot be fitted to 1 network"):
        fit(select(good, slice(0, 1)))
    with pytest.raises(ValueError, match="shrinkage 2"):
        fit(good, 2)
    broken = {name: tensor.clone() for name, tensor in good.items()}
    broken["2.weight"][2, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"'2\.weight' is not finite"):
        fit(broken)
    options = {"draws": 3, "seed": 1}
    with pytest.raises(ValueError, match=r"group 1 holds diverged networks, at \[2\]"):
        accuracies(NET, [good, broken], SYMMETRIES, INPUTS, LABELS, **options)
    with pytest.raises(ValueError, match="group 0 has 1 network"):
        accuracies(NET, [select(good, slice(0, 1))], SYMMETRIES, INPUTS, LABELS, **options)
    with pytest.raises(ValueError, match="there are 1 groups"):
        measure(NET, [good], SYMMETRIES, INPUTS, LABELS, **options)
    wild = train(NET, INPUTS, LABELS, Recipe(lr=1e30, batch_size=20, epochs=1), members=3, seed=1)
    assert all(bool(t.isfinite().all()) for t in wild.params.values()), (
        "a population keeps the last finite weights"
    )
    with pytest.raises(ValueError, match=r"group 0 holds diverged networks, at \[0, 1, 2\]"):
        predictive_changes(NET, [wild], SYMMETRIES, INPUTS)
