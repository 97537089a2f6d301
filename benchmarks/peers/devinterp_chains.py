"""devinterp, one chain after the other: the only way that it has. Full batches, its SGLD, every loss kept.

`sample_single_chain` is the innermost of its samplers: no Zarr store, no tokens, a loss of one's own.
"""

from __future__ import annotations

import gc
import os
import sys

os.environ["TQDM_DISABLE"] = "1"  # read when it is imported

import torch
from devinterp.optim import SGMCMC
from devinterp.slt.sampler import sample_single_chain
from torch import nn

from benchmarks.local_coefficient import BETA, GAMMA, NETS, PEER_CHAINS, SIZE, STEP, STEPS, examples
from benchmarks.work import serve


class Examples(torch.utils.data.Dataset):
    """One item holds all examples, so that its loader collates nothing."""

    def __init__(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        self.item = {"input_ids": inputs, "targets": targets}

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.item


def evaluate(net: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict]:
    return 0.5 * nn.functional.mse_loss(net(batch["input_ids"][0]), batch["targets"][0]), {}


def work(widths: tuple[int, int, int]) -> None:
    inputs, targets, weight, bias, out, level = (
        x.float() if torch.is_tensor(x) else x for x in examples(widths)
    )
    net = nn.Sequential(nn.Linear(*widths[:2]), nn.ReLU(), nn.Linear(*widths[1:]))
    with torch.no_grad():
        for parameter, value in zip(net.parameters(), (weight, bias, out, level), strict=True):
            parameter.copy_(value)
    data, losses = Examples(inputs, targets), []
    masks = dict.fromkeys((name for name, _ in net.named_parameters()), None)
    for chain in range(PEER_CHAINS):
        sample_single_chain(
            net,
            data,
            evaluate,
            masks,
            num_draws=STEPS,
            batch_size=1,
            sampling_method=SGMCMC.sgld,
            sampling_method_kwargs={"lr": STEP**2, "nbeta": BETA * SIZE, "localization": GAMMA},
            chain=chain,
            seed=chain,
            callbacks=[lambda loss, **_: losses.append(loss)],
        )
    assert len(losses) == PEER_CHAINS * STEPS


if __name__ == "__main__":
    torch.set_num_threads(1)  # a second one made it slower
    gc.freeze()  # it collects garbage twice a chain, through all that it imported
    serve(lambda: work(NETS[sys.argv[1]]))
