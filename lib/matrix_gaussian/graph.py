"""One step of small operations replayed as a CUDA graph: launching them costs more than they do."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class NoGraph(UserWarning):
    """A step could not be captured and runs operation by operation."""


def captured(step: Callable[..., Tensor], state: Sequence[Tensor]) -> Callable[..., Tensor]:
    """``step`` on a CUDA device as a graph that is captured at the first call and replayed at each.

    ``step(x, y, factors, noise)`` changes ``state`` in place and reads nothing else that changes; its arguments keep their
    shapes. Capturing runs it a few times, after which ``state`` is put back. Where capturing fails, a warning says
    why, and the step runs as it is.
    """
    replay: list[Callable[..., Tensor]] = []

    def call(x: Tensor, y: Tensor, factors: Tensor, noise: dict) -> Tensor:
        if not replay:
            replay.append(_capture(step, state, (x, y, factors, noise)))
        return replay[0](x, y, factors, noise)

    return call


def _capture(step: Callable[..., Tensor], state: Sequence[Tensor], example: tuple) -> Callable[..., Tensor]:
    before = [tensor.clone() for tensor in state]
    held = [tensor.clone() for tensor in example[:3]]
    noises = {name: tensor.clone() for name, tensor in example[3].items()}
    graph = torch.cuda.CUDAGraph()
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step(*held, noises)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            out = step(*held, noises)
    except RuntimeError as error:
        warnings.warn(
            f"a training step could not be captured as a CUDA graph ({error}): it runs slower.",
            NoGraph,
            stacklevel=2,
        )
        return step
    finally:
        for tensor, old in zip(state, before, strict=True):
            tensor.copy_(old)

    def replay(x: Tensor, y: Tensor, factors: Tensor, noise: dict) -> Tensor:
        for target, source in zip(held, (x, y, factors), strict=True):
            target.copy_(source)
        for name, target in noises.items():
            target.copy_(noise[name])
        graph.replay()
        return out

    return replay
