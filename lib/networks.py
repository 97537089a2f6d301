"""The small networks that the chapters share, as plain modules."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def perceptron(
    widths: Sequence[int],
    activation: type[nn.Module] = nn.ReLU,
    norm: type[nn.Module] | None = None,
    **norm_options,
) -> nn.Sequential:
    """Linear layers of the given widths, input to output, with an activation (after a norm, if given) between them."""
    if len(widths) < 2:
        raise ValueError(f"widths {list(widths)}: a network needs an input and an output width at least.")
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(before, after))
        if i < len(widths) - 2:
            layers += [norm(after, **norm_options)] if norm else []
            layers.append(activation())
    return nn.Sequential(*layers)


def optumnist() -> nn.Sequential:
    """OptuMNIST-v1 (355 parameters), the public sibling of the first paper's OptuNet; inputs (N, 1, 28, 28)."""
    return nn.Sequential(
        nn.Conv2d(1, 2, 4, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(3),
        nn.Conv2d(2, 10, 5, groups=2, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(10, 3),
        nn.ReLU(),
        nn.Linear(3, 10),
    )
