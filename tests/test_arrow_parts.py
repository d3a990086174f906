"""Encoded rows in Arrow files: what is read equals what was written, also where types of columns change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow
import pytest

from pefttools.data import arrow_parts


@pytest.mark.parametrize(
    ("chunks", "files"),
    [
        ([{"ids": [[1, 2], [3]], "cut": [True, False], "text": ["a", "ä"]}] * 70, 1),
        ([{"ids": [[], []]}, {"ids": [[1], []]}, {"ids": [[2], [3]]}], 2),  # the type of empty lists is not known
        ([{"ids": [[1], [2]]}, {"ids": [[2**40], [3]]}, {"ids": [[2], [3]]}], 3),  # too large for 4 bytes
        ([{"score": [0.5, 1.0], "row": [0, 1]}], 1),
    ],
)
def test_rows_are_read_as_written(tmp_path: Path, chunks: list[dict[str, Any]], files: int) -> None:
    with arrow_parts.writer(tmp_path) as writer:
        for columns in chunks:
            writer.write(columns)
    found = arrow_parts.read(tmp_path)
    for name in chunks[0]:
        assert found[name][:] == [value for columns in chunks for value in columns[name]]
    assert len([*tmp_path.glob("*.arrow")]) == files


def test_integers_take_4_bytes(tmp_path: Path) -> None:
    with arrow_parts.writer(tmp_path) as writer:
        writer.write({"ids": [[1, 2], [3]], "row": [0, 1]})
    types = arrow_parts.read(tmp_path).data.schema.types
    assert types == [pyarrow.list_(pyarrow.int32()), pyarrow.int32()]
