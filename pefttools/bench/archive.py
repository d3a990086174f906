"""records.jsonl: the records of all finished trials in one file that is small enough for git.

A line is a record without its predictions on the test rows and its scores by class; scores of 0 or 1 by row become a
text of digits. A folder with this file and without `trials/` continues where it stopped, and can be summarized again;
only the report's tables of single rows and classes need the records in `trials/`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pefttools import atomic
from pefttools.bench import records
from pefttools.errors import UserError

FILE = "records.jsonl"
LEFT_OUT = "rows"
"""The key of a record that is not archived."""
SCORES = ("before", "validation", "test")
"""Keys of scores, of which those by class are not archived."""
MAJORITY = "majority"


def write(folder: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write the records, ordered by digest, so that a new trial changes one line."""
    lines = [json.dumps(_packed(one), separators=(",", ":"), ensure_ascii=False) for one in records]
    atomic.write_text(folder / FILE, "".join(f"{line}\n" for line in sorted(lines)))


def read(folder: Path) -> list[dict[str, Any]]:
    """The archived records; empty without the file. Raises UserError when a line is not a record."""
    file = folder / FILE
    if not file.is_file():
        return []
    found = []
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        try:
            found.append(_unpacked(json.loads(line.decode("utf-8"))))
        except (ValueError, RecursionError) as error:
            raise UserError(f"--out: {file} line {number} is not a record of a trial ({error}); remove it") from error
    return found


def _packed(record: Mapping[str, Any]) -> dict[str, Any]:
    values = {"digest": record["digest"], **{key: value for key, value in record.items() if key != LEFT_OUT}}
    for key in SCORES:
        if values.get(key):
            values[key] = _scalars(values[key])
    units = values.get("units")
    if units and all(unit in (0, 1) for unit in units):
        values["units"] = "".join(str(int(unit)) for unit in units)
    return values


def _scalars(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The scores that are single values, also those of the majority baseline."""
    kept = {name: value for name, value in scores.items() if not isinstance(value, (dict, list))}
    return kept | ({MAJORITY: _scalars(scores[MAJORITY])} if MAJORITY in scores else {})


def _unpacked(values: Any) -> dict[str, Any]:
    """The record in a line. Raises ValueError when it is none."""
    if not isinstance(values, dict):
        raise ValueError(f"it is {type(values).__name__}, not an object")
    units = values.get("units")
    if isinstance(units, str):
        values["units"] = [float(unit) for unit in units]
    records.check(values)
    return values
