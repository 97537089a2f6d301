"""Hand-written NumPy: tempered SMC of a 1-1-1 ReLU network in all four parameters, HMC moves, 64 inputs on a grid.

The usual recipe: effective sample size 0.9 a step, systematic resampling, eight transitions of six leapfrog steps a stage, log-normal
jitter, the shared step steered between stages.
"""

from __future__ import annotations

import math

import numpy as np

from benchmarks.work import serve

PARTICLES = 800
SIZES = [10.0**k for k in range(1, 7)]
X = (2 * np.arange(64) + 1) / 64 - 1
Y = 1.5 * np.maximum(X - 0.1, 0) - 0.3


def energy(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """K(w) and its gradient, for weight, bias, output weight, output bias."""
    before = w[:, :1] * X + w[:, 1:2]
    hidden = np.maximum(before, 0)
    residual = w[:, 2:3] * hidden + w[:, 3:] - Y
    back = residual * w[:, 2:3] * (before > 0)
    slope = np.stack([(back * X).mean(1), back.mean(1), (residual * hidden).mean(1), residual.mean(1)], 1)
    return 0.5 * (residual**2).mean(1), slope


def run(seed: int = 0) -> list[float]:
    """F0 at each size."""
    rng = np.random.default_rng(seed)
    w, n, log_z, step, found = rng.standard_normal((PARTICLES, 4)), 0.0, 0.0, 0.3, []
    k, slope = energy(w)
    for end in SIZES:
        while n < end:
            low, high = n, end
            for _ in range(40):
                middle = (low + high) / 2
                weight = np.exp(-(middle - n) * (k - k.min()))
                good = weight.sum() ** 2 / (weight**2).sum() > 0.9 * PARTICLES
                low, high = (middle, high) if good else (low, middle)
            after = end if high == end and good else low
            log_weight = -(after - n) * k
            top = log_weight.max()
            weight = np.exp(log_weight - top)
            log_z += top + math.log(weight.mean())
            points = (np.arange(PARTICLES) + rng.random()) / PARTICLES
            chosen = np.searchsorted(np.cumsum(weight) / weight.sum(), points).clip(max=PARTICLES - 1)
            w, k, slope, n = w[chosen], k[chosen], slope[chosen], after
            for _ in range(8):
                h = step * np.exp(0.7 * rng.standard_normal((PARTICLES, 1)) - 0.245)
                p = rng.standard_normal(w.shape)
                v, g = w, slope
                before = n * k + 0.5 * (w**2).sum(1) + 0.5 * (p**2).sum(1)
                p = p - 0.5 * h * (n * g + v)
                for i in range(6):
                    v = v + h * p
                    kv, g = energy(v)
                    p = p - (h if i < 5 else 0.5 * h) * (n * g + v)
                ratio = before - n * kv - 0.5 * (v**2).sum(1) - 0.5 * (p**2).sum(1)
                taken = np.log(rng.random(PARTICLES)) < ratio
                w, slope = np.where(taken[:, None], v, w), np.where(taken[:, None], g, slope)
                k = np.where(taken, kv, k)
                step *= math.exp(0.3 * (np.minimum(1, np.exp(np.minimum(ratio, 0))).mean() - 0.7))
        found.append(-log_z)
    return found


if __name__ == "__main__":
    serve(run)
