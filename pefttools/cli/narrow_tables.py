"""Wide tables on a narrow terminal: split into several tables, one below the other, so that all columns are shown."""

from __future__ import annotations

from copy import copy
from dataclasses import replace

from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table

ENDLESS = 10_000


def parts(table: Table, console: Console) -> list[Table]:
    """The table itself if it fits; else tables of some of its columns, each with the column that names the rows."""
    if _fits(table, console):
        return [table]
    columns = table.columns
    key = next((i for i, column in enumerate(columns) if column.justify == "left"), 0)
    groups: list[list[int]] = [[key]]
    for i in range(len(columns)):
        if i == key:
            continue
        if len(groups[-1]) > 1 and not _fits(_of(table, [*groups[-1], i]), console):
            groups.append([key])
        groups[-1].append(i)
    found = [_of(table, group) for group in groups]
    for part in found[1:]:
        part.title = None
    return found


def _of(table: Table, columns: list[int]) -> Table:
    """The table with the columns at these indices, in their original order."""
    part = copy(table)
    part.columns = [replace(table.columns[i], _index=place) for place, i in enumerate(sorted(columns))]
    return part


def _fits(table: Table, console: Console) -> bool:
    """Whether the terminal is wide enough for the longest word of each column, or its longest cell if not wrapped."""
    left, right = table.padding[3], table.padding[1]
    needed = sum(_width(column, console) + left + right + 1 for column in table.columns)
    return needed - 1 <= console.width - 2 * table.show_edge


def _width(column: Column, console: Console) -> int:
    options = console.options.update(width=ENDLESS, max_width=ENDLESS)
    sizes = [Measurement.get(console, options, cell) for cell in (column.header, *column.cells)]
    widths = [size.maximum if column.no_wrap else size.minimum for size in sizes]
    return max(*widths, column.min_width or 0)
