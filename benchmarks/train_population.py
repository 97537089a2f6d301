"""Training 256 small networks on digits: microseconds per step and network, ours and the peers', in turns.

python -m benchmarks.train_population [ROUNDS]
"""

from __future__ import annotations

import os
import statistics
import sys

import numpy as np

from benchmarks.peers import digits
from benchmarks.work import BUILD, jax_python, report, take_turns

PEERS = {
    "lib.population": "ours",
    "JAX jit(vmap(scan))": "jax_scan",
    "torch, batched products": "batched_products",
    "torch.func.vmap": "func_vmap",
    "torch, module loop": "module_loop",
}


def main(rounds: int = 7) -> None:
    from sklearn.datasets import load_digits

    BUILD.mkdir(parents=True, exist_ok=True)
    os.environ["BENCHMARK_DIGITS"] = str(BUILD / "digits.npz")
    pixels, classes = load_digits(return_X_y=True)
    np.savez(BUILD / "digits.npz", x=pixels[:1257].astype(np.float32) / 16, y=classes[:1257].astype(np.int64))

    pythons = dict.fromkeys(PEERS, sys.executable) | {"JAX jit(vmap(scan))": jax_python()}
    commands = {
        who: [pythons[who], "-m", f"benchmarks.peers.{name}"] for who, name in PEERS.items() if pythons[who]
    }
    seconds = take_turns(commands, rounds)
    for who in PEERS:
        values = seconds.get(who, "its environment could not be made (see benchmarks/README.md)")
        if not isinstance(values, str):
            members = 8 if PEERS[who] == "module_loop" else digits.MEMBERS
            seconds[who] = values = [s / members / digits.STEPS * 1e6 for s in values]
        more = {"reach": "<= 10"} if who == "lib.population" else {}
        report("train 256 nets 64-16-10", who, "us_per_step_net", values, **more)
    ours, jax = seconds["lib.population"], seconds.get("JAX jit(vmap(scan))", "absent")
    if not isinstance(ours, str) and not isinstance(jax, str):
        ratios = [theirs / mine for theirs, mine in zip(jax, ours, strict=True)]
        least = {"of_medians": round(statistics.median(jax) / statistics.median(ours), 3), "reach": ">= 2"}
        report("train 256 nets 64-16-10", "JAX / lib.population", "ratio", ratios, **least)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
