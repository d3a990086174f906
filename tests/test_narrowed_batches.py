"""Batches without training are split where the padding that is saved is more than another batch costs."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from pefttools.data.batching import batches, narrowed, pass_cost


def cost_of(parts: list[list[int]], lengths: list[int], multiple: int, cost: int) -> int:
    """Padded tokens of batches, with what each batch costs besides."""
    return sum(cost + len(part) * -(-max(lengths[row] for row in part) // multiple) * multiple for part in parts)


def least(lengths: list[int], multiple: int, cost: int) -> int:
    """The least cost over all ways to cut sorted rows, by trying all of them."""
    number, found = len(lengths), []
    for places in range(1 << (number - 1)):
        cuts = [0, *(i for i in range(1, number) if places >> (i - 1) & 1), number]
        found.append(cost_of([list(range(a, b)) for a, b in pairwise(cuts)], lengths, multiple, cost))
    return min(found)


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("cost", [0, 5, 40, 400])
def test_no_other_cut_is_cheaper(cost: int, multiple: int) -> None:
    draw = random.Random(f"{cost} {multiple}")
    for _ in range(30):
        lengths = sorted((draw.randint(1, 40) for _ in range(draw.randint(1, 9))), reverse=True)
        rows = list(range(len(lengths)))
        parts = list(narrowed(rows, lengths, multiple, cost))
        assert [row for part in parts for row in part] == rows
        one, best = cost_of([rows], lengths, multiple, cost), least(lengths, multiple, cost)
        # a batch that could save no more than the cost of another is left whole
        assert cost_of(parts, lengths, multiple, cost) == best or (len(parts) == 1 and one - best <= cost)


def test_equal_lengths_and_single_rows_are_left_whole() -> None:
    assert list(narrowed([3, 1, 2], [0, 7, 7, 7], 1, 0)) == [[3, 1, 2]]
    assert list(narrowed([0], [9], 8, 128)) == [[0]]


def test_one_long_row_does_not_widen_the_others() -> None:
    lengths = [200, *[10] * 30]
    (batch,) = batches(range(31), lengths, 256, 10_000, 1)
    assert [len(part) for part in narrowed(batch, lengths, 1, pass_cost("cpu"))] == [1, 30]
    assert [len(part) for part in narrowed(batch, lengths, 1, pass_cost("cuda"))] == [31]
