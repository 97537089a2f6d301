"""How much a network's outputs change when an element of its symmetry group acts on its weights (claim P1-C1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lib import randomness
from lib.claims import Measurement
from lib.networks import optumnist, perceptron
from lib.params import Params, member, population_size
from lib.population import initial
from lib.symmetry import (
    Symmetries,
    find_symmetries,
    permute,
    random_log_scales,
    random_permutations,
    rescale,
)


@dataclass(frozen=True)
class Exhibit:
    """One network, with random weights, whose symmetries are put to the test.

    ``rescaled_as``: the network whose scale freedoms are applied to this one, by default its own. A network with tanh
    has none; to see it break, it is rescaled as its twin with ReLU would be.
    """

    cell: str
    net: nn.Module
    inputs: Float[Tensor, "n ..."]
    rescaled_as: nn.Module | None = None


def exhibits(seed: int, n: int = 1000) -> list[Exhibit]:
    """The six networks of the claim, in float64: two neurons, digits, grouped convolution, batch norm, tanh, SiLU."""

    def points(*shape: int) -> Tensor:
        return randomness.normal(seed, torch.arange(n), "exhibit inputs", 0, shape, torch.float64)

    digits = (64, 16, 10)
    return [
        Exhibit("two-neuron ReLU", perceptron((2, 2, 1)), points(2)),
        Exhibit("digits ReLU MLP", perceptron(digits), points(64)),
        Exhibit("grouped convolution", optumnist(), points(1, 28, 28)[: n // 10]),
        Exhibit("batch norm, eps 0", perceptron(digits, norm=nn.BatchNorm1d, eps=0.0), points(64)),
        Exhibit("tanh (permutation only)", perceptron(digits, nn.Tanh), points(64), perceptron(digits)),
        Exhibit("SiLU (permutation only)", perceptron(digits, nn.SiLU), points(64), perceptron(digits)),
    ]


def weights(net: nn.Module, seed: int) -> Params:
    """One network with PyTorch's initial distributions in float64, and running statistics that are not trivial."""
    one = torch.arange(1)
    params = {name: tensor[0] for name, tensor in initial(net.double(), one, seed).items()}
    for name, tensor in params.items():
        if name.endswith("running_mean"):
            params[name] = randomness.normal(seed, one, name, 0, tuple(tensor.shape), torch.float64)[0]
        elif name.endswith("running_var"):
            params[name] = 0.5 + randomness.uniform(seed, one, name, 0, tuple(tensor.shape), torch.float64)[0]
    return params


def relative_change(
    net: nn.Module, params: Mapping[str, Tensor], moved: Mapping[str, Tensor], inputs: Float[Tensor, "n ..."]
) -> Float[Tensor, " E"]:
    """max |f - f'| / max |f| over the inputs, for one network ``params`` and E networks ``moved`` (E, ...)."""
    net = net.eval()
    before = functional_call(net, dict(params), (inputs,))
    after = vmap(lambda p: functional_call(net, p, (inputs,)))(dict(moved))
    return (after - before).abs().flatten(1).amax(1) / before.abs().max()


def act(
    params: Params, symmetries: Symmetries, scaled_by: Symmetries, elements: int, generator: torch.Generator
) -> tuple[Params, Params]:
    """E random elements of the group applied to one network: (permuted and rescaled, rescaled alone), each (E, ...)."""
    copies = {name: tensor.expand(elements, *tensor.shape).clone() for name, tensor in params.items()}
    scales = random_log_scales(scaled_by, generator, members=elements)
    rescaled = rescale(copies, scaled_by, scales)
    own = rescaled if scaled_by is symmetries else copies
    return permute(own, symmetries, random_permutations(symmetries, generator, members=elements)), rescaled


def measure(seed: int, *, elements: int, seeds: int) -> list[Measurement]:
    """`invariance` of the six exhibits, and `broken_scaling` of the two whose activation is not homogeneous.

    Value: the largest relative change over ``elements`` random group elements and ``seeds`` networks; the interval
    goes from the smallest to the largest over the seeds (of their largest, for invariance; of their smallest change,
    for broken scaling, whose value is the smallest).
    """
    found = []
    for exhibit in exhibits(seed):
        kept, broken = [], []
        net = exhibit.net.double()
        symmetries = find_symmetries(net, exhibit.inputs[:2])
        twin = exhibit.rescaled_as
        scaled_by = symmetries if twin is None else find_symmetries(twin.double(), exhibit.inputs[:2])
        for s in range(seeds):
            generator = torch.Generator().manual_seed(1_000 * seed + s)
            params = weights(net, 1_000 * seed + s)
            moved, rescaled = act(params, symmetries, scaled_by, elements, generator)
            kept.append(float(relative_change(net, params, moved, exhibit.inputs).max()))
            broken.append(float(relative_change(net, params, rescaled, exhibit.inputs).min()))
        size = {"n": elements * seeds, "seeds": seeds}
        found.append(Measurement("invariance", exhibit.cell, max(kept), min(kept), max(kept), **size))
        if twin is not None:
            name = exhibit.cell.split()[0]
            found.append(Measurement("broken_scaling", name, min(broken), min(broken), max(broken), **size))
    return found


def measure_trained(
    populations: Mapping[str, Params], inputs: Mapping[str, Float[Tensor, "n d"]], *, elements: int, seed: int
) -> list[Measurement]:
    """`invariance_float32` of trained ReLU perceptrons (P, ...) under ``elements`` random group elements a member.

    Value and upper end: the largest relative change over members and elements; lower end: the smallest over members.
    """
    found = []
    for cell, params in populations.items():
        widths = [tensor.shape[-1] for name, tensor in params.items() if name.endswith("weight")]
        net = perceptron([*widths, list(params.values())[-1].shape[-1]])
        symmetries = find_symmetries(net, inputs[cell][:2])
        generator = torch.Generator().manual_seed(seed)
        largest = []
        for i in range(population_size(params)):
            one = {name: tensor.float().cpu() for name, tensor in member(params, i).items()}
            moved, _ = act(one, symmetries, symmetries, elements, generator)
            largest.append(float(relative_change(net, one, moved, inputs[cell]).max()))
        size = {"n": elements * len(largest), "seeds": len(largest)}
        found.append(
            Measurement("invariance_float32", cell, max(largest), min(largest), max(largest), **size)
        )
    return found
