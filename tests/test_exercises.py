"""An exercise's check tells apart a stub, a right answer, a wrong one and a broken one."""

import torch

from lib.exercises import check
from lib.say import say

CASES = (((2.0,), 4.0), ((torch.tensor([1.0, 3.0]),), torch.tensor([1.0, 9.0])))


def told(capsys, answer, *cases):
    check(answer, *(cases or CASES))
    return capsys.readouterr().out.strip()


def test_the_four_states(capsys):
    assert told(capsys, lambda x: None) == "not attempted"
    assert told(capsys, lambda x: x**2) == "correct"
    assert told(capsys, lambda x: x + 2).startswith("not yet: the largest difference")
    assert told(capsys, lambda x: x / "a").startswith("not yet: your function raised TypeError")
    assert told(capsys, lambda x: torch.zeros(3)).startswith("not yet: the shape")


def test_dicts_are_compared_key_by_key(capsys):
    case = ((), {"w": torch.ones(2), "b": torch.zeros(1)})
    assert told(capsys, lambda: {"w": torch.ones(2), "b": torch.zeros(1)}, case) == "correct"
    assert told(capsys, lambda: {"w": torch.ones(2), "b": torch.ones(1)}, case).startswith("not yet: b:")
    assert told(capsys, lambda: {"w": torch.ones(2)}, case).startswith(
        "not yet: a dict with the keys ['b', 'w']"
    )


def test_prose_is_filled_by_the_run():
    assert repr(say("{share:.1%} of {n:,}\n   pass.", share=0.125, n=10_000)) == "12.5% of 10,000 pass."
