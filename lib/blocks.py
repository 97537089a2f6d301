"""Independent blocks of one large array computation, spread over the processor's cores."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from lib.device import one_thread

Block = TypeVar("Block")
Result = TypeVar("Result")


def each(
    work: Callable[[Block], Result], blocks: Iterable[Block], device: torch.device | str = "cpu"
) -> list[Result]:
    """``work`` of every block, in the order of the blocks; on a CPU in as many threads as torch has.

    A thread takes a block whole, and torch's operators use one thread inside it: blocks that fit the cache are too
    small to be divided further, and threads that never wait for each other lose nothing on a busy machine. A block's
    result does not depend on the number of threads. On another device the blocks follow each other.
    """
    threads = torch.get_num_threads()
    if torch.device(device).type != "cpu" or threads == 1:
        return [work(block) for block in blocks]
    with one_thread(), ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, blocks))
