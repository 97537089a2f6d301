"""Training OptuMNIST-v1 networks by the thousand: microseconds per step and network, ours and the peers', in turns.

python -m benchmarks.convolutions [ROUNDS]

The images are scikit-learn's digits, enlarged to 28 x 28; batches of 64, one epoch of ten steps, plain SGD.  Peers take
two threads, as ours (one each where the environment says OMP_NUM_THREADS=1: on a busy machine the threads of the others
wait for each other); the loop over modules takes one, with which it is faster, and eight networks.
"""

from __future__ import annotations

import statistics
import sys
from functools import cache

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from benchmarks.work import report, serve, take_turns
from lib.networks import optumnist
from lib.population import Recipe, initial, stacked, train

BATCH, STEPS, RATE = 64, 10, 0.04
RECIPE = Recipe(lr=RATE, batch_size=BATCH, epochs=1)
CHUNK = 32  # members at a time for the peers that leave this to their users


@cache
def data() -> tuple[Tensor, Tensor]:
    """Images (640, 1, 28, 28) and classes."""
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels[: BATCH * STEPS]).float().view(-1, 1, 8, 8) / 16
    large = images.repeat_interleave(3, 2).repeat_interleave(3, 3)
    return torch.nn.functional.pad(large, (2, 2, 2, 2)), torch.from_numpy(classes[: BATCH * STEPS]).long()


def ours(members: int) -> None:
    train(optumnist(), *data(), RECIPE, members=members, seed=0)


def autograd(members: int) -> None:
    """Autograd through the stacked layers."""
    net, (x, y) = optumnist(), data()
    for first in range(0, members, CHUNK):
        size = min(CHUNK, members - first)
        params = {name: tensor.requires_grad_() for name, tensor in initial(net, size, first).items()}
        order = torch.rand(size, len(x)).argsort(dim=1)
        for rows in order.split(BATCH, dim=1):
            outputs = stacked.forward(net, params, x[rows], own=True)
            loss = cross_entropy(outputs.flatten(0, 1), y[rows].flatten(), reduction="sum") / BATCH
            gradients = torch.autograd.grad(loss, list(params.values()))
            with torch.no_grad():
                for tensor, gradient in zip(params.values(), gradients, strict=True):
                    tensor.sub_(gradient, alpha=RATE)


def func_vmap(members: int) -> None:
    """torch.func: vmap over members of grad, which makes one convolution with members times as many groups."""
    net, (x, y) = optumnist(), data()
    step = vmap(
        grad(lambda params, batch, classes: cross_entropy(functional_call(net, params, batch), classes))
    )
    for first in range(0, members, CHUNK):
        size = min(CHUNK, members - first)
        params = initial(net, size, first)
        order = torch.rand(size, len(x)).argsort(dim=1)
        for rows in order.split(BATCH, dim=1):
            gradients = step(params, x[rows], y[rows])
            params = {name: tensor - RATE * gradients[name] for name, tensor in params.items()}


def module_loop(members: int) -> None:
    """One nn.Module after the other."""
    torch.set_num_threads(1)
    x, y = data()
    for _ in range(members):
        net = optumnist()
        optimiser = torch.optim.SGD(net.parameters(), RATE)
        for rows in torch.randperm(len(x)).split(BATCH):
            optimiser.zero_grad()
            cross_entropy(net(x[rows]), y[rows]).backward()
            optimiser.step()


PEERS = {
    "lib.population": ours,
    "autograd through stacked layers": autograd,
    "torch.func.vmap": func_vmap,
    "torch, module loop": module_loop,
}


def main(rounds: int = 3) -> None:
    for population in (64, 256):
        counts = dict.fromkeys(PEERS, population) | {"torch, module loop": 8}
        commands = {
            who: [sys.executable, "-m", "benchmarks.convolutions", work.__name__, str(counts[who])]
            for who, work in PEERS.items()
        }
        seconds, name = take_turns(commands, rounds), f"train {population} OptuMNIST networks"
        for who, values in seconds.items():
            if not isinstance(values, str):
                seconds[who] = [s / counts[who] / STEPS * 1e6 for s in values]
            report(name, who, "us_per_step_net", seconds[who])
        mine, peers = seconds.pop("lib.population"), seconds
        for who, theirs in peers.items():
            if isinstance(mine, str) or isinstance(theirs, str):
                continue
            ratios = [their / my for their, my in zip(theirs, mine, strict=True)]
            of_medians = round(statistics.median(theirs) / statistics.median(mine), 3)
            report(name, f"{who} / lib.population", "ratio", ratios, of_medians=of_medians)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        serve(lambda: globals()[sys.argv[1]](int(sys.argv[2])))
    else:
        main(*map(int, sys.argv[1:]))
