"""PyTorch, one nn.Module after the other (eight of them: the time per step and network is what counts)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.peers import digits
from benchmarks.work import serve

MEMBERS = 8
x, y = map(torch.from_numpy, digits.data())


def work() -> None:
    for _ in range(MEMBERS):
        net = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
        optimiser = torch.optim.SGD(net.parameters(), digits.RATE)
        for _ in range(digits.EPOCHS):
            for rows in torch.randperm(len(x)).split(digits.BATCH)[: len(x) // digits.BATCH]:
                optimiser.zero_grad()
                cross_entropy(net(x[rows]), y[rows]).backward()
                optimiser.step()


if __name__ == "__main__":
    torch.set_num_threads(1)  # faster than two for networks of this size
    serve(work)
