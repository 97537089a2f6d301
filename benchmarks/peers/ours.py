"""This package."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.peers import digits
from benchmarks.work import serve
from lib.population import Recipe, train

x, y = map(torch.from_numpy, digits.data())
net = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
recipe = Recipe(lr=digits.RATE, batch_size=digits.BATCH, epochs=digits.EPOCHS, drop_last=True)

if __name__ == "__main__":
    serve(lambda: train(net, x, y, recipe, members=digits.MEMBERS, seed=0))
