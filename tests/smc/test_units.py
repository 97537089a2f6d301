"""Tables of units, found through symmetries, against tables written by hand; exchanges that keep functions; refusals."""

from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import pytest
import torch

from lib import randomness
from lib.free_energy.features import Layers
from lib.smc import units
from lib.smc.units import units_of


def powers(dimension: int, *rows: tuple[list[int], list[int]]) -> torch.Tensor:
    """One row a unit: 1 at the places of what enters, -1 at those of what leaves."""
    table = torch.zeros(len(rows), dimension, dtype=torch.float64)
    for row, (entering, leaving) in zip(table, rows, strict=True):
        row[entering], row[leaving] = 1.0, -1.0
    return table


class TestTables:
    """1-2-1: weights 0, 1, biases 2, 3, output weights 4, 5, its bias 6. 2-3-2-1: the layers begin at 0, 9 and 17."""

    def test_one_hidden_layer_whole(self):
        found = units_of(Layers((1, 2, 1)), collapsed=False)
        assert torch.equal(found.exponents, powers(7, ([0, 2], [4]), ([1, 3], [5])))
        assert found.incoming.tolist() == [[0, 2], [1, 3]]
        assert torch.equal(found.outgoing, found.exponents < 0)
        assert found.exchanges.tolist() == [[1, 0, 3, 2, 5, 4, 6]]
        assert not found.collapsed

    def test_one_hidden_layer_whose_output_layer_is_integrated_out(self):
        found = units_of(Layers((1, 2)), collapsed=True)
        assert torch.equal(found.exponents, powers(4, ([0, 2], []), ([1, 3], [])))
        assert found.incoming.tolist() == [[0, 2], [1, 3]]
        assert not found.outgoing.any()
        assert found.exchanges.tolist() == [[1, 0, 3, 2]]
        assert found.collapsed

    FIRST = tuple(([2 * j, 2 * j + 1, 6 + j], [9 + j, 12 + j]) for j in range(3))

    def second(self, *leaving):
        return [([9 + 3 * k, 10 + 3 * k, 11 + 3 * k, 15 + k], out) for k, out in enumerate(leaving)]

    def exchanges(self, dimension):
        """Units 0-1, 0-2, 1-2 of the first layer and 0-1 of the second, each as the list of new places."""
        tables = []
        for a, b in ((0, 1), (0, 2), (1, 2)):
            table = list(range(dimension))
            for at_a, at_b in zip(chain(*self.FIRST[a]), chain(*self.FIRST[b]), strict=True):
                table[at_a], table[at_b] = at_b, at_a
            tables.append(table)
        swap = [*range(9), 12, 13, 14, 9, 10, 11, 16, 15, 18, 17, 19]
        return [*tables, swap[:dimension]]

    @pytest.mark.parametrize("collapsed", [False, True])
    def test_two_hidden_layers(self, collapsed):
        layers, dimension = (Layers((2, 3, 2)), 17) if collapsed else (Layers((2, 3, 2, 1)), 20)
        found = units_of(layers, collapsed)
        leaving = ([], []) if collapsed else ([17], [18])
        expected = powers(dimension, *self.FIRST, *self.second(*leaving))
        assert torch.equal(found.exponents, expected)
        assert torch.equal(found.outgoing, expected < 0)
        for row, places in zip(expected, found.incoming.tolist(), strict=True):
            assert sorted(set(places)) == (row > 0).nonzero().flatten().tolist()
            assert places[len(set(places)) :] == [places[len(set(places)) - 1]] * (4 - len(set(places)))
        assert sorted(found.exchanges.tolist()) == sorted(self.exchanges(dimension))

    @pytest.mark.parametrize(("layers", "collapsed"), [(Layers((1, 1, 1)), False), (Layers((3, 1, 1)), True)])
    def test_single_units_have_no_partner(self, layers, collapsed):
        assert units_of(layers, collapsed).exchanges.shape == (0, layers.dimension)

    def test_many_threads_at_once_find_the_same(self):
        units._units_of.cache_clear()
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda i: units_of(Layers((1, 2 + i % 2, 1)), False), range(8)))
        for i, one in enumerate(found):
            h = 2 + i % 2
            expected = powers(3 * h + 1, *(([j, h + j], [2 * h + j]) for j in range(h)))
            assert torch.equal(one.exponents, expected)

    def test_another_device_holds_the_same_tables(self):
        found = units_of(Layers((1, 2, 1)), False)
        moved = found.to(torch.device("cpu"))
        assert torch.equal(moved.incoming, found.incoming)
        assert moved.collapsed == found.collapsed


def test_every_unit_is_picked_equally_often():
    found = units_of(Layers((2, 3, 2, 1)), False)
    numbers = randomness.uniform(1, torch.arange(4), "pick", 0, (5_000,), torch.float64)
    counts = found.pick(numbers).flatten().bincount(minlength=5)
    assert len(counts) == 5
    assert ((counts - 4_000).abs() < 5 * 4_000**0.5).all()  # five standard deviations: 3e-6 for all five
    edge = torch.tensor([[0.0, 1 - 2**-53, 1.0]], dtype=torch.float64)
    assert found.pick(edge).tolist() == [[0, 4, 4]]


@pytest.mark.parametrize(
    ("layers", "collapsed"),
    [
        (Layers((1, 2, 1), activation="linear"), False),
        (Layers((1, 2, 1), bias=False), False),
        (Layers((3, 1)), False),
        (Layers((3,)), True),
    ],
)
def test_other_stacks_are_refused_with_the_way_out(layers, collapsed):
    with pytest.raises(ValueError, match=r"only hidden ReLU units with biases .* \(redraws=0, rescales=0"):
        units_of(layers, collapsed)
