"""Small convolutional networks with redundant layers, with and without skip connections (P2-C13)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from lib import randomness
from lib.claims import Measurement
from lib.free_energy.convolution import CollapsedConvolutions, Convolutions
from lib.free_energy.regression import Regression
from lib.growth.sound import interval, sounded
from lib.smc import Settings, estimates, sample

SIGNALS, LENGTH = 64, 8
TRUTH = (1.0, -0.5, 0.3, 0.1)  # one channel: kernel and bias; then output weight and bias
OUTPUT = (1.5, -0.2)
MOVES = Settings(
    redraws=0, rescales=0, hmc=4, leapfrog=8
)  # a filter is tied to a whole signal: no unit can be redrawn alone


def problem(seed: int) -> Regression:
    """The population of one convolution on signals uniform on [-1, 1]^8."""
    inputs = 2 * randomness.uniform(seed, torch.arange(1), "signals", 0, (SIGNALS, LENGTH), torch.float64) - 1
    position = torch.tensor(TRUTH, dtype=torch.float64)[None, None]
    hidden = Convolutions(1, 0, skip=True).features(position, inputs[0])[0, 0, 0]
    targets = OUTPUT[0] * hidden + OUTPUT[1]
    weights = torch.full((1, SIGNALS), 1 / SIGNALS, dtype=torch.float64)
    return Regression(inputs, targets[None, :, None], weights, torch.zeros(1, dtype=torch.float64))


def slopes(
    redundant: int, *, skip: bool, particles: int, copies: int, seed: int, device: torch.device
) -> Float[np.ndarray, " J"]:
    """The last decade's slope of F0, n from 1e5 to 1e6, of one channel with ``redundant`` further layers."""
    layers = Convolutions(1, redundant, skip)
    scale = torch.ones(layers.dimension, dtype=torch.float64, device=device)
    stream = 2_000_000 + 1_000 * (2 * redundant + skip)
    run = sample(
        CollapsedConvolutions(
            problem(seed)[torch.zeros(copies, dtype=torch.int64)].to(device), layers, scale
        ),
        [1e5, 1e6],
        particles=particles,
        seed=seed,
        settings=MOVES,
        members=stream + torch.arange(copies),
    )
    return estimates.slope(sounded(run), run.t)[0].cpu().numpy()


def measure(
    depths: Sequence[int], *, particles: int, copies: int, seed: int, device: torch.device
) -> tuple[list[Measurement], dict[str, dict[int, Float[np.ndarray, " J"]]]]:
    """P2-C13: slopes with redundant layers minus without, with skip connections; and the slopes of both kinds.

    Nothing is measured where no depth is asked for: the claim is then out of reach in the profile.
    """
    of = {"particles": particles, "copies": copies, "seed": seed, "device": device}
    found = {
        kind: {depth: slopes(depth, skip=skip, **of) for depth in depths}
        for kind, skip in (("with skip connections", True), ("without", False))
    }
    with_skip = found["with skip connections"]
    measured = [
        Measurement(
            "slope_difference", f"{depth} redundant", *interval(with_skip[depth] - with_skip[0]),
            n=particles, seeds=copies,
        )
        for depth in depths
        if depth
    ]  # fmt: skip
    return measured, found
