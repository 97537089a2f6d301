"""Plain batched products in PyTorch, gradients by hand, batch first, as one writes them the first time."""

from __future__ import annotations

import torch

from benchmarks.peers import digits
from benchmarks.work import serve

x, y = map(torch.from_numpy, digits.data())
onehot = torch.eye(10)


def work() -> None:
    w1, b1, w2, b2 = (torch.from_numpy(array) for array in digits.initial())
    for _ in range(digits.EPOCHS):
        order = torch.rand(digits.MEMBERS, len(x)).argsort(dim=1)
        for rows in order.split(digits.BATCH, dim=1)[: len(x) // digits.BATCH]:
            batch = x[rows]
            hidden = torch.baddbmm(b1[:, None], batch, w1.mT).relu_()
            delta = torch.baddbmm(b2[:, None], hidden, w2.mT).softmax(dim=-1)
            delta.sub_(onehot[y[rows]]).div_(digits.BATCH)
            back = torch.bmm(delta, w2).mul_(hidden > 0)
            w2.sub_(torch.bmm(delta.mT, hidden), alpha=digits.RATE)
            b2.sub_(delta.sum(dim=1), alpha=digits.RATE)
            w1.sub_(torch.bmm(back.mT, batch), alpha=digits.RATE)
            b1.sub_(back.sum(dim=1), alpha=digits.RATE)


if __name__ == "__main__":
    serve(work)
