"""torch.func: vmap over members of grad, the whole population at once."""

from __future__ import annotations

import torch
from torch.func import grad, vmap
from torch.nn.functional import cross_entropy

from benchmarks.peers import digits
from benchmarks.work import serve

x, y = map(torch.from_numpy, digits.data())


def loss(params, batch, classes):
    w1, b1, w2, b2 = params
    return cross_entropy(torch.relu(batch @ w1.T + b1) @ w2.T + b2, classes)


def work() -> None:
    params = [torch.from_numpy(array) for array in digits.initial()]
    step = vmap(grad(loss))
    for _ in range(digits.EPOCHS):
        order = torch.rand(digits.MEMBERS, len(x)).argsort(dim=1)
        for rows in order.split(digits.BATCH, dim=1)[: len(x) // digits.BATCH]:
            gradients = step(params, x[rows], y[rows])
            params = [p - digits.RATE * g for p, g in zip(params, gradients, strict=True)]


if __name__ == "__main__":
    serve(work)
