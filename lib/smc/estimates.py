r"""The free energy and its coefficient read off a tempered run in other ways than by its own increments.

A run (`lib.smc`) visits temperatures $0 = t_0 < t_1 < \dots$; with $E$ the energy, $-\log Z_t = \int_0^t E_s[E]\, ds$.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from lib.smc.run import Run


def thermodynamic_integration(run: Run) -> Float[Tensor, " R"]:
    r"""The free energy at the last temperature from mean energies (Gelman & Meng 1998) and their variances alone.

    The trapezoid rule with end corrections in $u = \log(t + \tau)$, where $g = (t + \tau) E_t$ is nearly constant at both ends:
    $E_t$ is flat below the scale $\tau = 1 / E_0$ and falls like $\lambda / t$ far above it. The corrections take
    $dE_t/dt = -\mathrm{Var}_t(E)$ (Friel, Hurn & Wyse 2014).
    """
    t = torch.stack([stage.t for stage in run.stages])
    energy = torch.stack([stage.mean for stage in run.stages])
    variance = torch.stack([stage.variance for stage in run.stages])
    shifted = t + 1 / energy[0].abs().clamp_min(1e-6)
    g, step = shifted * energy, shifted.log().diff(dim=0)
    rise = shifted * (energy - shifted * variance)  # dg / du
    return (step * (g[1:] + g[:-1]) / 2 - step.square() * rise.diff(dim=0) / 12).sum(0)


def stepping_stone(run: Run) -> Float[Tensor, " R"]:
    """The free energy at the last temperature by stepping stones walked downwards (Xie et al. 2011).

    Each increment of the evidence is estimated from the particles of its *upper* temperature, after their moves. (Upwards the
    stones of a run that resamples at every stage are the run's own increments.) The gap between the two is a diagnostic: the
    upward estimate of log Z is biased down, this one up.
    """
    return -torch.stack([stage.down for stage in run.stages]).sum(0)


def wbic_temperature(n: int | Tensor) -> float | Tensor:
    """1 / log n, the temperature at which the mean of n L_n is WBIC (Watanabe 2013); refuses n < 3, where it is no use."""
    smallest = n.min().item() if isinstance(n, Tensor) else n
    if smallest < 3:
        raise ValueError(f"n = {smallest}: WBIC's temperature 1 / log n lies below one only from n = 3 on.")
    return 1 / n.double().log() if isinstance(n, Tensor) else 1 / math.log(n)


def two_temperature(energy: tuple[Tensor, Tensor], t: tuple[float | Tensor, float | Tensor]) -> Tensor:
    """lambda from the mean energies at two temperatures, (E_1 - E_2) / (1/t_1 - 1/t_2) (Watanabe 2013, section 5)."""
    return (energy[0] - energy[1]) / (1 / t[0] - 1 / t[1])


def slope(free_energy: Float[Tensor, "C ..."], t: Float[Tensor, "C ..."]) -> Float[Tensor, "C-1 ..."]:
    """The free energy's slope in log t between neighbouring temperatures."""
    return free_energy.diff(dim=0) / t.log().diff(dim=0)
