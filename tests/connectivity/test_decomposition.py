"""The parts of a barrier: a planted cause comes out as itself, and the parts sum to the whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

from lib.connectivity import PARTS, Parts, between, decompose
from lib.networks import perceptron
from lib.params import Params, params_of
from lib.symmetry import find_symmetries, permute, random_permutations, rescale

MEMBERS = 3


def alike(net: nn.Module, size: float, seed: int) -> tuple[Params, torch.Tensor, torch.Tensor]:
    """Three networks near each other, inputs, and the classes in which the first one sorts them."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    one = {k: size * drawn(*t.shape) for k, t in params_of(net).items()}
    inputs = drawn(150, 6)
    targets = functional_call(net, one, (inputs,)).argmax(1)
    return {k: t + 0.02 * size * drawn(MEMBERS, *t.shape) for k, t in one.items()}, inputs, targets


def problem() -> tuple:
    net = perceptron((6, 12, 10, 4)).double()
    first, inputs, targets = alike(net, 1.0, seed=1)
    return net, find_symmetries(net, inputs[:2]), first, inputs, targets


def log_scales(symmetries, generator: torch.Generator) -> list[torch.Tensor]:
    """Factors from 1/10 to 10."""
    return [
        (2 * torch.rand(MEMBERS, s.size, generator=generator, dtype=torch.float64) - 1)
        * torch.tensor(10, dtype=torch.float64).log()
        for s in symmetries.scales
    ]


def sums(found: Parts) -> bool:
    return torch.allclose(
        sum(found.parts.values()), found.plain, rtol=0, atol=1e-14 * (1 + found.plain.max())
    )


def is_all(found: Parts, name: str) -> None:
    """The whole barrier is one part, and there was a barrier."""
    assert found.plain.min() > 0.01
    assert sums(found)
    for part, value in found.parts.items():
        aim = found.plain if part == name else torch.zeros_like(value)
        assert torch.allclose(value, aim, rtol=0, atol=1e-9), part


def test_a_permutation_comes_out_as_one() -> None:
    net, symmetries, first, inputs, targets = problem()
    perms = random_permutations(symmetries, torch.Generator().manual_seed(2), MEMBERS)
    second = permute(first, symmetries, perms)
    is_all(decompose(net, symmetries, first, second, inputs, targets, inputs), "permutation")


def test_scales_come_out_as_scales() -> None:
    net, symmetries, first, inputs, targets = problem()
    second = rescale(first, symmetries, log_scales(symmetries, torch.Generator().manual_seed(3)))
    is_all(decompose(net, symmetries, first, second, inputs, targets, inputs), "rescaling")


def test_scales_do_not_disturb_the_matching() -> None:
    net, symmetries, first, inputs, targets = problem()
    generator = torch.Generator().manual_seed(4)
    second = rescale(first, symmetries, log_scales(symmetries, generator))
    perms = random_permutations(symmetries, generator, MEMBERS)
    found = decompose(net, symmetries, first, permute(second, symmetries, perms), inputs, targets, inputs)
    assert sums(found)
    assert found.rescaled.max() < 1e-9
    only_scaled = between(net, first, second, inputs, targets).barrier()
    assert only_scaled.min() > 0.03
    assert torch.allclose(found.permuted, only_scaled, rtol=1e-9)  # the permutation alone is undone first


def collapsed(
    pairs: int = 128, shift: float = 1.0
) -> tuple[nn.Module, Params, Params, torch.Tensor, torch.Tensor]:
    """w + u and w - u, orthogonal: each hidden unit reads its own noisy copy of the class (w) and loud noise (± u).

    The noise lifts units over their threshold. Halfway it is gone, and under the ends' running variance no unit passes.
    """
    hidden = 2 * pairs
    net = nn.Sequential(
        nn.Linear(2 * hidden, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, 2)
    )
    net, generator = net.double().eval(), torch.Generator().manual_seed(5)
    targets = torch.arange(600) % 2
    sign = 2.0 * targets[:, None] - 1
    normal = torch.randn(600, 2 * hidden, generator=generator, dtype=torch.float64)
    inputs = torch.cat([sign + 0.3 * normal[:, :hidden], 4 * normal[:, hidden:]], 1)
    votes = torch.ones(hidden, dtype=torch.float64)
    votes[pairs:] = -1
    w = torch.cat([votes.diag(), torch.zeros(hidden, hidden, dtype=torch.float64)], 1)
    u = torch.cat(
        [torch.zeros(hidden, hidden, dtype=torch.float64), 0.5 * torch.eye(hidden, dtype=torch.float64)], 1
    )
    ends = []
    for weight in (w + u, w - u):
        own = {k: t.clone() for k, t in params_of(net).items()}
        own |= {"0.weight": weight, "0.bias": own["0.bias"] * 0, "1.bias": own["1.bias"] * 0 - shift}
        out = inputs @ weight.T
        own |= {"1.running_mean": out.mean(0), "1.running_var": out.var(0)}
        own |= {"3.weight": torch.stack([-votes, votes]) * 40 / pairs, "3.bias": own["3.bias"] * 0}
        ends.append({k: t[None] for k, t in own.items()})
    return net, *ends, inputs, targets


def test_collapsed_variance_comes_out_as_statistics() -> None:
    net, first, second, inputs, targets = collapsed()
    symmetries = find_symmetries(net, inputs[:2])
    found = decompose(net, symmetries, first, second, inputs, targets, inputs)
    assert found.plain.min() > 0.3
    assert sums(found)
    parts = found.parts
    assert parts["permutation"].abs().max() < 1e-9
    assert parts["rescaling"].abs().max() < 1e-9
    assert (parts["statistics"] > 0.95 * found.plain).all()
    assert (parts["rest"] < 0.05 * found.plain).all()


def test_a_mixed_barrier_is_the_sum_of_its_parts() -> None:
    net, symmetries, first, inputs, targets = problem()
    generator = torch.Generator().manual_seed(6)
    second = {k: t + 0.8 * torch.randn(t.shape, generator=generator, dtype=t.dtype) for k, t in first.items()}
    second = rescale(second, symmetries, log_scales(symmetries, generator))
    second = permute(second, symmetries, random_permutations(symmetries, generator, MEMBERS))
    found = decompose(net, symmetries, first, second, inputs, targets, inputs[:60], 9)
    assert sums(found)
    assert tuple(found.parts) == PARTS
    assert torch.equal(found.plain, between(net, first, second, inputs, targets, 9).barrier())
    assert torch.equal(found.parts["rest"], found.mended)
    for name in ("permutation", "rescaling"):
        assert found.parts[name].abs().max() > 1e-2
    for i in range(MEMBERS):
        alone = [{k: t[i : i + 1] for k, t in x.items()} for x in (first, second)]
        single = decompose(net, symmetries, *alone, inputs, targets, inputs[:60], 9)
        for what in vars(found):
            assert torch.allclose(getattr(single, what)[0], getattr(found, what)[i], rtol=1e-9, atol=1e-12)


def test_all_four_parts_at_once() -> None:
    net, first, second, inputs, targets = collapsed()
    symmetries, generator = find_symmetries(net, inputs[:2]), torch.Generator().manual_seed(9)
    scales = [0.5 * (2 * torch.rand(1, s.size, generator=generator).double() - 1) for s in symmetries.scales]
    second = permute(second, symmetries, random_permutations(symmetries, generator, 1))
    found = decompose(net, symmetries, first, rescale(second, symmetries, scales), inputs, targets, inputs)
    assert sums(found)
    assert all(part.abs().min() > 1e-5 for part in found.parts.values())
    assert found.parts["statistics"].min() > 0.3  # what was planted, whatever came before it


def test_without_scales_the_raw_networks_are_matched() -> None:
    net = perceptron((6, 12, 4), nn.Sigmoid).double()
    first, inputs, targets = alike(net, 3.0, seed=7)
    symmetries = find_symmetries(net, inputs[:2])
    assert not symmetries.scales
    perms = random_permutations(symmetries, torch.Generator().manual_seed(8), MEMBERS)
    second = permute(first, symmetries, perms)
    found = decompose(net, symmetries, first, second, inputs, targets, inputs)
    is_all(found, "permutation")
    assert torch.equal(found.parts["rescaling"], torch.zeros(MEMBERS, dtype=torch.float64))


def test_partners_must_be_as_many() -> None:
    net, symmetries, first, inputs, targets = problem()
    with pytest.raises(ValueError, match="1 references for 3 networks"):
        decompose(net, symmetries, {k: t[:1] for k, t in first.items()}, first, inputs, targets, inputs)
