"""Chains of the local learning coefficient: chain steps a second, ours all at once, devinterp's one after the other.

Each with one thread: ours uses one whatever it is given, and a second made devinterp slower where this was written.

python -m benchmarks.local_coefficient [ROUNDS]
"""

from __future__ import annotations

import math
import sys

import torch

from benchmarks.work import BUILD, report, serve, take_turns

CHAINS, SIZE, STEPS = 64, 1000, 1000  # full batches; a step is one gradient of all examples
PEER_CHAINS = 2  # of them for the peer: they follow each other, and the time of a step is what counts
GAMMA, BETA, STEP = 1.0, 1 / math.log(SIZE), 0.02
NETS = {"4-8-1": (4, 8, 1), "1-8-1": (1, 8, 1)}
OURS, PEER = "lib.local_coefficient, SGLD", "devinterp 2.0.1, SGLD"
INSTALL = (
    "no devinterp: make it an environment by `python -m venv _build/benchmarks/devinterp` and "
    "`_build/benchmarks/devinterp/bin/pip install devinterp==2.0.1`"
)


def examples(widths: tuple[int, int, int]) -> tuple[torch.Tensor, ...]:
    """Inputs, targets with noise, and the parameters that they come from: weight, bias, weight, bias."""
    generator = torch.Generator().manual_seed(0)
    m, h, o = widths
    shapes = ((SIZE, m), (h, m), (h,), (o, h), (o,), (SIZE, o))
    draws = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    inputs, weight, bias, out, level, noise = draws
    targets = torch.relu(inputs @ weight.T + bias) @ out.T + level + noise
    return inputs, targets, weight, bias, out, level


def ours(widths: tuple[int, int, int], method: str) -> None:
    from lib.free_energy.regression import Regression
    from lib.free_energy.targets import target
    from lib.local_chains import Options
    from lib.local_coefficient import estimate

    inputs, targets, *parameters = examples(widths)
    ones = torch.ones(1, SIZE, dtype=torch.float64)
    problem = Regression(inputs[None], targets[None], ones, ones.new_zeros(1))
    point = torch.cat([parameter.flatten() for parameter in parameters])
    leapfrog = 10 if method == "hmc" else 1
    options = Options(
        method, CHAINS, 0, STEPS // leapfrog, leapfrog=leapfrog, step=STEP, adapt=False, gamma=GAMMA
    )
    found = estimate(target(problem, widths, collapsed=False), point, SIZE, seed=0, options=options)
    assert found.trace.shape == (STEPS // leapfrog, 1, CHAINS)


def main(rounds: int = 5) -> None:
    python = BUILD / "devinterp" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    for net in NETS:
        commands = {
            f"lib.local_coefficient, {method.upper()}": [
                *(sys.executable, "-m", "benchmarks.local_coefficient", "serve"),
                *(net, method),
            ]
            for method in ("sgld", "hmc")
        }
        if python.exists():
            commands[PEER] = [str(python), "-m", "benchmarks.peers.devinterp_chains", net]
        seconds = take_turns(commands, rounds)
        work = f"{CHAINS} chains of {net}, n = {SIZE}"
        for who, values in seconds.items():
            if not isinstance(values, str):
                chains = PEER_CHAINS if who == PEER else CHAINS
                seconds[who] = values = [chains * STEPS / s for s in values]
            report(work, who, "chain_steps_per_s", values)
        if not python.exists():
            report(work, PEER, "chain_steps_per_s", INSTALL)
        theirs = seconds.get(PEER, INSTALL)
        for who in (who for who in seconds if who != PEER):
            if not isinstance(theirs, str) and not isinstance(seconds[who], str):
                ratios = [own / peer for own, peer in zip(seconds[who], theirs, strict=True)]
                report(work, f"{who} / {PEER}", "ratio", ratios)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(lambda: ours(NETS[sys.argv[2]], sys.argv[3]))
    else:
        main(*map(int, sys.argv[1:]))
