"""Linear assignment: which of their units stands at each of our places, so that the sum of worths is largest."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor


def assign(worth: Float[Tensor, "P size size"]) -> Int64[Tensor, "P size"]:
    """For each of P problems the permutation p that maximises the sum over i of worth[i, p[i]]."""
    from scipy.optimize import linear_sum_assignment

    perms = [linear_sum_assignment(one, maximize=True)[1] for one in worth.cpu().numpy()]
    return torch.from_numpy(np.stack(perms)).long().to(worth.device)
