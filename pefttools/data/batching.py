"""Choose the rows of every step, and split a step into batches that fit into memory.

A step is a fixed set of rows that depends only on the seed, the epoch and the lengths. Splitting it into batches and
sharing it between processes changes only rounding, because the loss is summed over the step.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from torch import Tensor

POOL = 50
"""Number of steps whose rows are sorted by length together; the order of steps is shuffled afterwards."""


def token_budget(device_type: str) -> int:
    """Padded tokens of a training batch; on a CPU, so few that they stay in the cache."""
    return 2048 if device_type == "cpu" else 16384


def eval_budget(device_type: str) -> int:
    """Padded tokens of a batch without training, where smaller batches pay off."""
    return 1024 if device_type == "cpu" else 16384


def pass_cost(device_type: str) -> int:
    """The padded tokens that take about as long as the fixed part of one more batch without training.

    On a GPU a pass is bound by its fixed part, so batches are never split to save padding.
    """
    return 128 if device_type == "cpu" else 1 << 30


def pad_multiple(device_type: str) -> int:
    """The multiple that batches without training are padded to.

    On a CPU, padding costs more than shapes that are no multiples of 8.
    """
    return 1 if device_type == "cpu" else 8


def step_multiple(chosen: int | None, device_type: str) -> int:
    """The multiple that training steps are padded to: `chosen`, or a default for the device.

    On a CPU, a multiple of 8 adds more padding than it saves, and a multiple of 1 leads to many different shapes, which
    fragment malloc's heap.
    """
    return chosen or (4 if device_type == "cpu" else 8)


def steps(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> Steps:
    """The rows of every step of one epoch: each row once, rows of similar length together."""
    draw = random.Random(f"{seed} {epoch}")
    order = array("I", range(len(lengths)))
    draw.shuffle(order)
    starts = array("I")
    for start in range(0, len(order), POOL * batch_size):
        pool = sorted(order[start : start + POOL * batch_size], key=lambda i: lengths[i])
        order[start : start + POOL * batch_size] = array("I", pool)
        starts.extend(range(start, start + len(pool), batch_size))
    draw.shuffle(starts)
    return Steps(order, starts, batch_size)


class Steps(Sequence[list[int]]):
    """The rows of every step, in 4 bytes a row."""

    def __init__(self, order: array[int], starts: array[int], batch_size: int) -> None:
        self.order, self.starts, self.batch_size = order, starts, batch_size

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, key: int) -> list[int]: ...
    @overload
    def __getitem__(self, key: slice) -> list[list[int]]: ...
    def __getitem__(self, key: int | slice) -> list[int] | list[list[int]]:
        if isinstance(key, slice):
            return [self[i] for i in range(*key.indices(len(self)))]
        start = self.starts[key]
        return self.order[start : start + self.batch_size].tolist()


def batches(
    rows: Sequence[int], lengths: Sequence[int], max_rows: int, max_tokens: int, multiple: int
) -> Iterator[list[int]]:
    """Yield batches of rows, longest first, with at most `max_rows` rows and `max_tokens` padded tokens.

    A row longer than `max_tokens` gets a batch of its own.
    """
    batch: list[int] = []
    width = 0
    for row in sorted(rows, key=lambda i: -lengths[i]):
        if batch and (len(batch) == max_rows or (len(batch) + 1) * width > max_tokens):
            yield batch
            batch = []
        if not batch:
            width = -(-lengths[row] // multiple) * multiple
        batch.append(row)
    if batch:
        yield batch


def narrowed(batch: Sequence[int], lengths: Sequence[int], multiple: int, cost: int) -> Iterator[list[int]]:
    """Split a batch where that saves time: where the padding that is saved is more than another batch costs.

    Args:
        batch: rows, longest first, as `batches` yields them.
        cost: the padded tokens that take as long as the fixed part of a batch.
    """
    widths = [-(-lengths[row] // multiple) * multiple for row in batch]
    if sum(widths[0] - width for width in widths) <= cost:
        yield list(batch)
        return
    starts = [i for i, width in enumerate(widths) if i == 0 or width != widths[i - 1]] + [len(batch)]
    # cheapest[j]: what rows before starts[j] cost at least, and where their last batch begins
    cheapest = [(0, 0)]
    for j in range(1, len(starts)):
        cheapest.append(min(
            (cheapest[i][0] + cost + widths[starts[i]] * (starts[j] - starts[i]), i) for i in range(j)
        ))  # fmt: skip
    cuts = [len(starts) - 1]
    while cuts[-1]:
        cuts.append(cheapest[cuts[-1]][1])
    for begin, end in pairwise(reversed(cuts)):
        yield list(batch[starts[begin] : starts[end]])


def padded(rows: Sequence[Sequence[int]], width: int, value: int, left: bool = False) -> Tensor:
    """The rows padded with `value` on the right, or on the left; shape (rows, width)."""
    import numpy
    import torch

    lengths = [len(row) for row in rows]
    filled = numpy.full((len(rows), width), value, dtype=numpy.int64)
    places, ends = numpy.arange(width), numpy.array(lengths, dtype=numpy.int64)[:, None]
    inside = places >= width - ends if left else places < ends
    filled[inside] = numpy.fromiter(chain.from_iterable(rows), numpy.int64, sum(lengths))
    return torch.from_numpy(filled)
