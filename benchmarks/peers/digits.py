"""The work: 64-16-10 ReLU networks on 1,257 digits, full batches of 64 in a fresh random order each epoch, plain SGD."""

from __future__ import annotations

import os
from itertools import pairwise

import numpy as np

MEMBERS, BATCH, EPOCHS, RATE, WIDTHS = 256, 64, 10, 0.1, (64, 16, 10)
STEPS = 1257 // BATCH * EPOCHS


def data() -> tuple[np.ndarray, np.ndarray]:
    """Pixels in [0, 1], float32 (1257, 64), and classes."""
    archive = np.load(os.environ["BENCHMARK_DIGITS"])
    return archive["x"], archive["y"]


def initial(members: int = MEMBERS) -> list[np.ndarray]:
    """Weights and biases from uniform(±1/√fan_in): (P, out, in) and (P, out) for both layers."""
    rng = np.random.default_rng(0)
    arrays = []
    for fan_in, out in pairwise(WIDTHS):
        for shape in ((members, out, fan_in), (members, out)):
            arrays.append(rng.uniform(-1, 1, shape).astype(np.float32) / fan_in**0.5)
    return arrays
