r"""The same three posteriors by autograd: the formulas of Louizos & Welling (2016) as they stand there.

$$ B = AM + S_{12}^\top S_{11}^{-1} (\tilde B - \tilde A M)
   + \sqrt{s_{22} - \mathrm{diag}(S_{12}^\top S_{11}^{-1} S_{12})}\; t^\top \circ \varepsilon, $$
$$ S_{11} = \tilde A U \tilde A^\top,\quad S_{12} = \tilde A U A^\top,\quad s_{22} = \mathrm{diag}(A U A^\top). $$

At its best: one Cholesky factor for both right-hand sides instead of the authors' inverse, noise from torch's own
generator, the KL in closed form, no module around it, and (``compiled``) the whole loss through torch.compile.

python -m benchmarks.peers.vmg_autograd LAW LAYER [compiled]
"""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor
from torch._inductor.exc import InductorError

from benchmarks.matrix_gaussian import LAWS, SIZE, THREADS, batch, layer, rounds_of
from benchmarks.work import serve

CUBIC = (1.16145124, -1.50204118, 0.58629921)  # of the log-uniform prior's divergence (Kingma et al. 2015)
Parameters = dict[str, Tensor]


def noise_of(law: str, p: Parameters, n: int) -> Parameters:
    """Standard normal numbers of one step."""
    (r, c), like = p["mean"].shape, {"dtype": p["mean"].dtype}
    found = {"output": torch.randn(n, c, **like)}
    if law == "pseudo-data":
        found["pseudo"] = torch.randn(len(p["pseudo_inputs"]), r + c, **like)
    return found


def loss(law: str, p: Parameters, x: Tensor, y: Tensor, noise: Parameters) -> Tensor:
    """Mean squared error of one noisy pass and the divergence over the size of the training set."""
    a = torch.nn.functional.pad(x, (0, 1), value=1.0) * p["mean"].shape[0] ** -0.5
    out, kl = {"factorised": factorised, "row-column": row_column, "pseudo-data": pseudo_data}[law](
        p, a, noise
    )
    return (out - y).square().mean() + kl / SIZE


def factorised(p: Parameters, a: Tensor, noise: Parameters) -> tuple[Tensor, Tensor]:
    spread = (2 * p["log_sd"]).exp()
    out = a @ p["mean"] + noise["output"] * (a.square() @ spread).sqrt()
    return out, 0.5 * (spread + p["mean"].square() - 1 - 2 * p["log_sd"]).sum()


def row_column(p: Parameters, a: Tensor, noise: Parameters) -> tuple[Tensor, Tensor]:
    u, t = (2 * p["log_row"]).exp(), p["log_column"].exp()
    out = a @ p["mean"] + noise["output"] * (a.square() @ u).sqrt()[:, None] * t
    return out, divergence(p)


def divergence(p: Parameters) -> Tensor:
    """KL(MN(M, diag(s²), diag(t²)) || MN(0, I, I))."""
    r, c = p["mean"].shape
    product = (2 * p["log_row"]).exp().sum() * (2 * p["log_column"]).exp().sum()
    log_det = 2 * (c * p["log_row"].sum() + r * p["log_column"].sum())
    return 0.5 * (product + p["mean"].square().sum() - r * c - log_det)


def pseudo_data(p: Parameters, a: Tensor, noise: Parameters) -> tuple[Tensor, Tensor]:
    (m, r), mean, n = p["pseudo_inputs"].shape, p["mean"], len(a)
    bound = LAWS["pseudo-data"].bound
    with torch.no_grad():
        p["log_noise"].clamp_(-4.0, bound)
    of_row, of_inputs, of_outputs = p["log_noise"].exp().split([m, r, mean.shape[1]])
    sigma = torch.outer(of_row, torch.cat([of_inputs, of_outputs]))
    factor = 1 + sigma * noise["pseudo"]
    inputs = p["pseudo_inputs"] * factor[:, :r] * r**-0.5
    u, t = (2 * p["log_row"]).exp(), p["log_column"].exp()

    reach = inputs * u
    s11, s12, s22 = reach @ inputs.T, reach @ a.T, a.square() @ u
    s11 = s11 + 1e-6 * s11.diagonal().mean() * torch.eye(m, dtype=a.dtype)
    missing = p["pseudo_outputs"] * factor[:, r:] - inputs @ mean
    solved = torch.cholesky_solve(torch.cat([s12, missing], 1), torch.linalg.cholesky(s11))
    variance = (s22 - (s12 * solved[:, :n]).sum(0)).clamp_min(1e-8)
    out = a @ mean + s12.T @ solved[:, n:] + noise["output"] * variance.sqrt()[:, None] * t
    alpha, top = sigma.square(), torch.tensor(math.exp(4 * bound), dtype=a.dtype)
    return out, divergence(p) - (minus_kl(alpha) - minus_kl(top)).sum()


def minus_kl(alpha: Tensor) -> Tensor:
    return 0.5 * alpha.log() + alpha * (CUBIC[0] + alpha * (CUBIC[1] + alpha * CUBIC[2]))


def parameters(law: str, name: str, dtype: torch.dtype = torch.float32) -> Parameters:
    """Where our own layer starts."""
    return {
        key: value.detach().clone().requires_grad_()
        for key, value in layer(law, name, dtype).named_parameters()
    }


def steps(law: str, name: str, compiled: bool) -> None:
    p, (x, y) = parameters(law, name), batch(name)
    of = torch.compile(loss) if compiled else loss

    def step() -> None:
        torch.autograd.grad(of(law, p, x, y, noise_of(law, p, len(x))), list(p.values()))

    try:
        step()
    except InductorError as error:
        sys.exit(f"torch.compile does not work here: {str(error).splitlines()[0]}")
    serve(lambda: rounds_of(step, name))


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    steps(sys.argv[1], sys.argv[2], sys.argv[3:] == ["compiled"])
