"""Counter-based randomness: every draw is a function of (seed, member, purpose, step, position), not of a state.

The generator is Philox4x32-10 (Salmon, Moraes, Dror & Shaw, *Parallel random numbers: as easy as 1, 2, 3*, SC 2011),
chosen over a shorter hash because for one key it is a bijection of its 128-bit counter: member, step and position are
the words of that counter, so two different draws can never share a block.  Seed and purpose make the key.

Everything up to the uniform numbers is integer arithmetic and exact powers of two: the same bits on any device, in any
shard, in any order.  Normal numbers add a logarithm and a cosine, which devices round differently in the last place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)  # what each key word grows by from round to round
SLAB = 1 << 14  # counters worked on at a time on a CPU: the five arrays in flight then stay in the cache


Words = Tensor | np.ndarray | int


def philox(counter: Sequence[Words], key: tuple[int, int]) -> tuple[Words, Words, Words, Words]:
    """Philox4x32-10: four 32-bit words from a counter of four 32-bit words and a key of two.

    Words are held in int64 tensors (or NumPy arrays) that broadcast against each other: the first two rounds then cost
    next to nothing.
    Bits above the 32nd are garbage between rounds, since only the xor that is masked next ever sees them.
    """
    a, b, c, d = counter
    k, l = key  # noqa: E741
    for _ in range(10):
        p, q = MULTIPLIERS[0] * a, MULTIPLIERS[1] * c  # wraps modulo 2^64, which keeps both 32-bit halves
        a, b, c, d = (q >> 32 ^ (b ^ k)) & MASK, q, (p >> 32 ^ (d ^ l)) & MASK, p
        k, l = (k + WEYL[0]) & MASK, (l + WEYL[1]) & MASK  # noqa: E741
    return a, b & MASK, c, d & MASK


@lru_cache(maxsize=1024)
def key_of(seed: int, purpose: str) -> tuple[int, int]:
    """The two key words of a seed and a purpose: a stable 64-bit hash, the same in every process."""
    digest = blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def _words(seed: int, members: Tensor, purpose: str, step: int, n: int) -> Tensor:
    """n random 32-bit words a member, as int64 (P, n)."""
    if not 0 <= step < 1 << 32:
        raise ValueError(f"step {step} does not fit the counter: it must lie in [0, 2^32).")
    blocks = -(-n // 4)
    if blocks > MASK:
        raise ValueError(f"{n} numbers do not fit one draw: use several steps or purposes.")
    key = key_of(seed, purpose)
    position = torch.arange(blocks, device=members.device)
    out = torch.empty(len(members), blocks, 4, dtype=torch.int64, device=members.device)
    low, high = members[:, None] & MASK, members[:, None] >> 32 & MASK
    if members.device.type != "cpu":
        torch.stack(philox((position, step, low, high), key), dim=2, out=out)
    else:  # the same arithmetic on the same memory, by NumPy and slab by slab: half the time of torch's
        position, low, high, view = (tensor.numpy() for tensor in (position, low, high, out))
        rows = max(1, SLAB // max(blocks, 1))
        for slab in (slice(start, start + rows) for start in range(0, len(members), rows)):
            for lane, word in enumerate(philox((position, step, low[slab], high[slab]), key)):
                view[slab, :, lane] = word
    return out.view(len(members), 4 * blocks)[:, :n]


def uniform(
    seed: int,
    members: Int64[Tensor, " P"],
    purpose: str,
    step: int,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "P ..."]:
    """Uniform numbers in [0, 1), shape (P, *shape): multiples of 2^-24 (float32) or 2^-53 (float64)."""
    n = math.prod(shape)
    if dtype == torch.float64:
        high, low = _words(seed, members, purpose, step, 2 * n).view(-1, n, 2).unbind(-1)
        bits, scale = (high >> 5 << 26) + (low >> 6), 2.0**-53
    else:
        bits, scale = _words(seed, members, purpose, step, n) >> 8, 2.0**-24
    return (bits.to(dtype) * scale).view(len(members), *shape)


def normal(
    seed: int,
    members: Int64[Tensor, " P"],
    purpose: str,
    step: int,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "P ..."]:
    """Standard normal numbers, shape (P, *shape), by the transform of Box & Muller (1958): two from two uniforms."""
    n = math.prod(shape)
    pairs = uniform(seed, members, purpose, step, (-(-n // 2), 2), dtype)
    radius, angle = pairs.movedim(
        -1, 0
    ).contiguous()  # one layout, hence one rounding, whatever the population
    radius, angle = torch.sqrt(-2 * torch.log1p(-radius)), 2 * math.pi * angle
    both = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1)
    return both.flatten(1)[:, :n].reshape(len(members), *shape)


def permutation(
    seed: int, members: Int64[Tensor, " P"], purpose: str, step: int, n: int
) -> Int64[Tensor, "P n"]:
    """P independent permutations of range(n): random 32-bit keys with the index in their low bits, sorted.

    Two equal keys (one pair in n²/2^33 draws) fall in order of index, so the result is the same everywhere.
    """
    index = torch.arange(n, device=members.device)
    keys = _words(seed, members, purpose, step, n) << 31 | index
    if keys.device.type == "cpu":
        keys.numpy().sort(axis=1)  # in place, and five times faster than torch.sort
    else:
        keys = keys.sort(dim=1).values
    return keys & (1 << 31) - 1


def integers(
    seed: int, members: Int64[Tensor, " P"], purpose: str, step: int, high: int, shape: tuple[int, ...]
) -> Int64[Tensor, "P ..."]:
    """Integers in [0, high), shape (P, *shape); high is at most 2^31, and the bias below high / 2^32."""
    if not 0 < high <= 1 << 31:
        raise ValueError(f"high = {high}: integers are drawn below a bound in [1, 2^31].")
    words = _words(seed, members, purpose, step, math.prod(shape))
    return (words * high >> 32).view(len(members), *shape)
