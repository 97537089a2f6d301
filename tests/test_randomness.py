"""Counter-based randomness: the published generator, independence across counters, and indifference to shards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lib import randomness
from lib.randomness import integers, normal, permutation, philox, uniform

MEMBERS = torch.arange(64)
ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # known-answer vectors of Random123, the authors' library
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_its_authors_known_answers(counter, key, words):
    for convert in (torch.tensor, lambda word: torch.tensor(word).numpy()):
        answer = philox([convert([word]) for word in counter], tuple(key))
        assert " ".join(f"{int(word[0]):08x}" for word in answer) == words


def test_the_cpu_path_is_the_generator_as_written():
    members = torch.tensor([0, 7, 2**40 + 3])
    words = randomness._words(5, members, "test", 9, 10)
    for i, member in enumerate(members.tolist()):
        for position in range(10):
            counter = [torch.tensor(c) for c in (position // 4, 9, member % 2**32, member >> 32)]
            assert words[i, position] == philox(counter, randomness.key_of(5, "test"))[position % 4]


@pytest.mark.parametrize("slab", [1, 16, 1 << 14])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_member_draws_the_same_bits_in_any_shard_and_order(slab, dtype, monkeypatch):
    members = torch.arange(300)
    draws = {
        "uniform": lambda m: uniform(3, m, "test", 2, (3, 5), dtype),
        "normal": lambda m: normal(3, m, "test", 2, (3, 7), dtype),
        "one normal": lambda m: normal(3, m, "test", 2, (), dtype),
        "permutation": lambda m: permutation(3, m, "test", 2, 37),
        "integers": lambda m: integers(3, m, "test", 2, 10, (4,)),
    }
    whole = {name: draw(members) for name, draw in draws.items()}
    monkeypatch.setattr(randomness, "SLAB", slab)
    for shard in (members[17:18], members[[200, 17]], members.flip(0), members[:129], members[::2]):
        for name, draw in draws.items():
            assert torch.equal(draw(shard), whole[name][shard]), name


def test_a_longer_draw_begins_with_the_shorter_one():
    for draw in (uniform, normal):
        assert torch.equal(draw(0, MEMBERS, "test", 0, (50,))[:, :13], draw(0, MEMBERS, "test", 0, (13,)))


def test_draws_are_the_same_in_another_process():
    code = "import torch; from lib.randomness import *; print(uniform(1, torch.arange(3), 'x', 4, (2,)).tolist())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert other.stdout.strip() == str(uniform(1, torch.arange(3), "x", 4, (2,)).tolist())


def test_every_coordinate_of_the_counter_opens_another_stream():
    """Blocks of 128 bits over seeds, purposes, steps, members and positions: none appears twice."""
    blocks = [
        randomness._words(seed, MEMBERS, purpose, step, 64).reshape(-1, 4)
        for seed in (0, 1, -1, 2**70)
        for purpose in ("order", "initial", "0")
        for step in (0, 1, 2**32 - 1)
    ]
    blocks = torch.cat(blocks)
    assert len(torch.unique(blocks, dim=0)) == len(blocks)


def test_bytes_are_uniform():
    """Chi-square over each of the four bytes of a word; a fair generator fails once in 10,000 per byte."""
    words = randomness._words(0, torch.arange(500), "test", 0, 500)
    for shift in (0, 8, 16, 24):
        counts = torch.bincount((words >> shift & 255).flatten(), minlength=256)
        assert stats.chisquare(counts.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("what", ["position", "member", "step", "seed", "purpose"])
def test_neighbouring_draws_are_independent(what):
    """Chi-square of the 16 x 16 table of (draw, the draw one further along one coordinate)."""
    members = torch.arange(2000)

    def high_bits(**change):
        at = {"seed": 0, "member": 0, "purpose": "a", "step": 0, "position": 0} | change
        draw = uniform(at["seed"], members + at["member"], at["purpose"], at["step"], (33,))
        return (draw[:, at["position"] : at["position"] + 32] * 16).long().flatten()

    first, second = high_bits(), high_bits(**{what: "b" if what == "purpose" else 1})
    table = torch.bincount(first * 16 + second, minlength=256)
    assert stats.chisquare(table.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_and_normal_have_their_distributions(dtype):
    u, z = (draw(0, torch.arange(300), "test", 0, (333,), dtype).flatten() for draw in (uniform, normal))
    assert u.dtype == z.dtype == dtype
    assert u.min() >= 0
    assert u.max() < 1
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-4
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-4
    even, odd = z.view(300, 333)[:, :-1].reshape(-1, 2).T  # the two numbers of one Box-Muller pair
    assert abs(torch.corrcoef(torch.stack([even, odd]))[0, 1]) < 4 / len(even) ** 0.5
    assert abs(torch.corrcoef(torch.stack([even**2, odd**2]))[0, 1]) < 4 / len(even) ** 0.5


def test_float64_uniforms_fill_their_low_bits():
    low = (uniform(0, MEMBERS, "test", 0, (100,), torch.float64) * 2**53).long() & 255
    assert stats.chisquare(torch.bincount(low.flatten(), minlength=256).numpy()).pvalue > 1e-4


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 200), step=st.integers(0, 2**32 - 1), seed=st.integers())
def test_permutation_rows_are_permutations(n, step, seed):
    rows = permutation(seed, torch.arange(5), "test", step, n)
    assert torch.equal(rows.sort(dim=1).values, torch.arange(n).expand(5, n))


def test_all_permutations_of_four_are_equally_likely():
    rows = permutation(0, torch.arange(24_000), "test", 0, 4)
    counts = torch.unique(rows, dim=0, return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


@pytest.mark.parametrize(("high", "bins"), [(1, 1), (7, 7), (1000, 50), (2**31, 64)])
def test_integers_are_uniform_below_their_bound(high, bins):
    draw = integers(0, torch.arange(100), "test", 0, high, (500,))
    assert draw.min() >= 0
    assert draw.max() < high
    counts = torch.bincount((draw * bins // high).flatten(), minlength=bins)
    assert bins == 1 or stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_what_does_not_fit_the_counter_is_refused():
    with pytest.raises(ValueError, match="step 4294967296 does not fit"):
        uniform(0, MEMBERS, "test", 2**32, ())
    with pytest.raises(ValueError, match="high = 0"):
        integers(0, MEMBERS, "test", 0, 0, ())
