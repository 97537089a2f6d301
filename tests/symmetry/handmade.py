"""Networks with symmetries written out by hand, so that these tests do not depend on the tracer that finds them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lib.params import Params, params_of, stack
from lib.symmetry.structure import PermutationGroup, Place, ScaleFreedom, Symmetries


def units(size: int, block: int = 1, start: int = 0) -> Tensor:
    """(size, block): unit u owns ``block`` consecutive positions."""
    return torch.arange(start, start + size * block).view(size, block)


def both(
    size: int,
    layer: str,
    incoming: list[Place],
    outgoing: list[Place],
    kind: str = "homogeneous",
    exact: bool = True,
) -> tuple[PermutationGroup, ScaleFreedom]:
    """One layer's permutation group and scale freedom, from the same places."""
    scaled = [
        Place(p.name, p.axis, p.index, p.rows, sign)
        for sign, ps in ((1.0, incoming), (-1.0, outgoing))
        for p in ps
    ]
    return (
        PermutationGroup(size, tuple(incoming + outgoing), layer),
        ScaleFreedom(size, kind, exact, tuple(scaled), layer),
    )


def shapes_of(net: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in net.state_dict().items()}


def mlp(
    *widths: int, activation: type[nn.Module] = nn.ReLU, bias: bool = True
) -> tuple[nn.Module, Symmetries]:
    layers: list[nn.Module] = []
    groups, freedoms = [], []
    for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        layers += [nn.Linear(inputs, outputs, bias=bias), activation()]
        if i + 2 < len(widths):
            incoming = [Place(f"{2 * i}.weight", 0, units(outputs))]
            incoming += [Place(f"{2 * i}.bias", 0, units(outputs))] if bias else []
            group, freedom = both(
                outputs, str(2 * i), incoming, [Place(f"{2 * i + 2}.weight", 1, units(outputs))]
            )
            groups.append(group)
            freedoms.append(freedom)
    net = nn.Sequential(*layers[:-1]).double()
    return net, Symmetries(tuple(groups), tuple(freedoms), shapes_of(net))


class OptuMNIST(nn.Module):
    """OptuMNIST-v1: conv 1→2, grouped conv 2→10, dense 10→3→10; 2!·(5!)²·3! = 172,800 permutations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2, 4, bias=False)
        self.conv2 = nn.Conv2d(2, 10, 5, groups=2, bias=False)
        self.fc1 = nn.Linear(10, 3)
        self.fc2 = nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.conv1(x).relu(), 3, 3)
        x = self.conv2(x).relu().mean((2, 3))
        return self.fc2(self.fc1(x).relu())


def optumnist() -> tuple[nn.Module, Symmetries]:
    net = OptuMNIST().double()
    inner = [
        PermutationGroup(
            5,
            (Place("conv2.weight", 0, units(5, start=5 * b)), Place("fc1.weight", 1, units(5, start=5 * b))),
            "conv2",
            inside=(2, b),
        )
        for b in range(2)
    ]
    blocks = PermutationGroup(
        2,
        (
            Place("conv1.weight", 0, units(2)),
            Place("conv2.weight", 0, units(2, 5)),
            Place("fc1.weight", 1, units(2, 5)),
        ),
        "conv1",
    )
    dense, dense_scale = both(
        3,
        "fc1",
        [Place("fc1.weight", 0, units(3)), Place("fc1.bias", 0, units(3))],
        [Place("fc2.weight", 1, units(3))],
    )
    _, first = both(2, "conv1", [Place("conv1.weight", 0, units(2))], [Place("conv2.weight", 0, units(2, 5))])
    _, second = both(10, "conv2", [Place("conv2.weight", 0, units(10))], [Place("fc1.weight", 1, units(10))])
    return net, Symmetries((*inner, blocks, dense), (first, second, dense_scale), shapes_of(net))


class TwoGrouped(nn.Module):
    """Two grouped convolutions in a row: the second reads several channels of its block (places with rows)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(1, 6, 3)
        self.conv2 = nn.Conv1d(6, 8, 3, groups=2)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x).relu()).relu()
        return self.head(nn.functional.adaptive_avg_pool1d(x, 2).flatten(1))


def two_grouped() -> tuple[nn.Module, Symmetries]:
    net = TwoGrouped().double()
    groups, freedoms = [], []
    for b in range(2):
        mine = units(3, start=3 * b)
        group, freedom = both(
            3,
            "conv1",
            [Place("conv1.weight", 0, mine), Place("conv1.bias", 0, mine)],
            [Place("conv2.weight", 1, units(3), torch.arange(4 * b, 4 * b + 4))],
        )
        groups.append(PermutationGroup(3, group.places, "conv1", inside=(4, b)))
        freedoms.append(freedom)
    for b in range(2):
        mine = units(4, start=4 * b)
        group, freedom = both(
            4,
            "conv2",
            [Place("conv2.weight", 0, mine), Place("conv2.bias", 0, mine)],
            [Place("head.weight", 1, units(4, 2, start=8 * b))],
        )
        groups.append(PermutationGroup(4, group.places, "conv2", inside=(4, b)))
        freedoms.append(freedom)
    blocks = [
        Place(name, 0, units(2, size))
        for name, size in (("conv1.weight", 3), ("conv1.bias", 3), ("conv2.weight", 4), ("conv2.bias", 4))
    ]
    groups.append(PermutationGroup(2, (*blocks, Place("head.weight", 1, units(2, 8))), "conv1"))
    return net, Symmetries(tuple(groups), tuple(freedoms), shapes_of(net))


class Residual(nn.Module):
    """A residual stream: stem and both blocks write the same five units, both blocks and the head read them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 5), nn.Linear(5, 3)
        self.up = nn.ModuleList([nn.Linear(5, 6), nn.Linear(5, 6)])
        self.down = nn.ModuleList([nn.Linear(6, 5), nn.Linear(6, 5)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(up(x.relu()).relu())
        return self.head(x.relu())


def residual() -> tuple[nn.Module, Symmetries]:
    net = Residual().double()
    writers, readers = ["stem", "down.0", "down.1"], ["up.0", "up.1", "head"]
    incoming = [Place(f"{name}.{kind}", 0, units(5)) for name in writers for kind in ("weight", "bias")]
    pairs = [both(5, "stem", incoming, [Place(f"{name}.weight", 1, units(5)) for name in readers])]
    for i in range(2):
        inner = [Place(f"up.{i}.{kind}", 0, units(6)) for kind in ("weight", "bias")]
        pairs.append(both(6, f"up.{i}", inner, [Place(f"down.{i}.weight", 1, units(6))]))
    groups, freedoms = zip(*pairs, strict=True)
    return net, Symmetries(groups, freedoms, shapes_of(net))


class Loop(nn.Module):
    """A residual stream whose block writes to it what it has read from it, in one layer: a freedom feeds itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(4, 5), nn.Linear(5, 5, bias=False), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head((x + self.block(x)).relu())


class TiedBlocks(nn.Module):
    """Grouped convolutions whose blocks a residual stream ties to one another: wreath products inside a wreath product."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.up, self.down = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.short, self.head = nn.Conv2d(8, 12, 1), nn.Linear(48, 5)
        self.wide = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.fine = nn.Conv2d(12, 12, 3, padding=1, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (x + self.down(self.up(x).relu())).relu()
        x = (self.short(x) + self.fine(self.wide(x).relu())).relu()
        return self.head(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


def loop() -> tuple[nn.Module, Symmetries]:
    net = Loop().double()
    incoming = [Place(name, 0, units(5)) for name in ("stem.weight", "stem.bias", "block.weight")]
    group, freedom = both(
        5, "stem", incoming, [Place(f"{name}.weight", 1, units(5)) for name in ("block", "head")]
    )
    return net, Symmetries((group,), (freedom,), shapes_of(net))


def batch_norm(eps: float = 0.0) -> tuple[nn.Module, Symmetries]:
    """Linear → BatchNorm → ReLU → Linear, in evaluation mode: a normalised and an affine freedom."""
    net = (
        nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, eps=eps), nn.ReLU(), nn.Linear(6, 3)).double().eval()
    )
    every = units(6)
    rows = [Place("0.weight", 0, every, None, 1.0), Place("0.bias", 0, every, None, 1.0)]
    statistics = [Place("1.running_mean", 0, every, None, 1.0), Place("1.running_var", 0, every, None, 2.0)]
    affine = [Place("1.weight", 0, every, None, 1.0), Place("1.bias", 0, every, None, 1.0)]
    reading = Place("3.weight", 1, every, None, -1.0)
    group = PermutationGroup(6, (*rows, *affine, *statistics, reading), "0")
    freedoms = (
        ScaleFreedom(6, "normalised", eps == 0, (*rows, *statistics), "0"),
        ScaleFreedom(6, "affine", True, (*affine, reading), "1"),
    )
    return net, Symmetries((group,), freedoms, shapes_of(net))


def nested(blocks: int, parts: int, size: int) -> Symmetries:
    """A wreath product three levels deep, S_size ≀ S_parts ≀ S_blocks, on two vectors that only share the outer two."""
    n = blocks * parts * size
    layout = torch.arange(n).view(blocks, parts, size)
    middle, top = 2 * blocks * parts, 2 * blocks * parts + blocks
    inner = [
        PermutationGroup(size, (Place(name, 0, layout[i, j][:, None]),), name, inside=(middle + i, j))
        for i in range(blocks)
        for j in range(parts)
        for name in ("x", "y")
    ]
    mid = [
        PermutationGroup(parts, tuple(Place(name, 0, layout[i]) for name in "xy"), "middle", inside=(top, i))
        for i in range(blocks)
    ]
    outer = PermutationGroup(blocks, tuple(Place(name, 0, layout.flatten(1)) for name in "xy"), "top")
    return Symmetries((*inner, *mid, outer), (), {"x": torch.Size([n]), "y": torch.Size([n])})


def outputs(net: nn.Module, params: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """(P, N, ...): every member of a population on the same inputs."""
    return torch.func.vmap(lambda p: torch.func.functional_call(net, p, (inputs,)))(dict(params))


def population(net: nn.Module, members: int, seed: int) -> Params:
    """Random float64 members: weights and biases from N(0, 1), variances positive, counters as they are."""
    generator = torch.Generator().manual_seed(seed)
    single = params_of(net)

    def draw(name: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.clone()
        values = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        return values.square() + 0.5 if name.endswith("running_var") else values

    return stack([{name: draw(name, tensor) for name, tensor in single.items()} for _ in range(members)])


INPUTS = {
    "mlp": (6,),
    "optumnist": (1, 28, 28),
    "two_grouped": (1, 12),
    "residual": (4,),
    "loop": (4,),
    "batch_norm": (4,),
}
BUILDERS = {
    "mlp": lambda: mlp(6, 5, 4, 3),
    "optumnist": optumnist,
    "two_grouped": two_grouped,
    "residual": residual,
    "loop": loop,
    "batch_norm": batch_norm,
}


def example(name: str, number: int, seed: int) -> Tensor:
    return torch.randn(
        number, *INPUTS[name], generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
