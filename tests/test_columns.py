"""`Columns` reads from Arrow the same values as `Dataset`, for every kind of column."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Dataset, concatenate_datasets, load_from_disk
from hypothesis import given
from hypothesis import strategies as st

from pefttools.data.columns import Columns

ROWS = {
    "ids": [[1, 2, 3], [], [4], [5, 6]],
    "label": [0, 1, 2, 1],
    "score": [0.5, -1.0, 2.0, 3.5],
    "weights": [[0.5], [1.5, 2.5], [], [3.0]],
    "word": ["a", "b", "", "d"],
    "words": [["a"], [], ["b", "c"], ["d"]],
    "choices": [[[1], [2, 3]], [[4], []], [[5], [6]], [[], [7]]],
    "missing": [1, None, 3, 4],
    "holes": [[1], None, [2], [3]],
    "sure": [True, False, True, True],
}
DIRECT = {"ids", "label", "score", "weights"}


@pytest.mark.slow
@given(st.lists(st.integers(0, 11), max_size=9))
def test_rows_equal_those_of_the_dataset(indices: list[int]) -> None:
    rows = concatenate_datasets([Dataset.from_dict(ROWS)] * 3)
    columns = Columns(rows)
    assert set(columns.readers) == DIRECT
    found = columns[indices]
    if not indices:
        assert not any(found.values())
        return
    assert found == rows[indices]
    assert all(type(value) is int for value in found["label"])


@pytest.mark.parametrize("kind", ["sliced", "shuffled", "mapped", "only strings"])
def test_rows_equal_the_dataset_after_select_and_map(kind: str, tmp_path: Path) -> None:
    rows = concatenate_datasets([Dataset.from_dict(ROWS)] * 2)
    if kind == "sliced":
        rows = rows.select(range(1, 7))
    elif kind == "shuffled":
        rows = rows.select([5, 0, 3, 2, 1, 1])
    elif kind == "mapped":
        rows.save_to_disk(tmp_path)
        mapped = load_from_disk(str(tmp_path))
        assert isinstance(mapped, Dataset)
        rows = mapped
    else:
        rows = rows.select_columns(["word"])
    assert Columns(rows)[[4, 0, 2, 4]] == rows[[4, 0, 2, 4]]
