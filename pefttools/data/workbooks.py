"""Read a sheet of a workbook (xlsx, xlsm, xlsb, xls, ods) as rows. Its first filled line has the columns' names.

Numbers without a fraction become integers, dates become texts as ISO 8601 writes them, and empty cells are None, as are
those whose formula has no result (`#N/A`).
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttools.data.fields import listed
from pefttools.data.settings import FileSettings
from pefttools.errors import UserError, unknown
from pefttools.reporter import Reporter

if TYPE_CHECKING:
    from python_calamine import CalamineSheet, CalamineWorkbook


OLD = b"\xd0\xcf\x11\xe0"
"""How files of old office programs begin, and encrypted ones of new programs."""


def rows(path: Path, settings: FileSettings, reporter: Reporter) -> Iterator[dict[str, Any]]:
    """Yield one row per filled line of the sheet.

    Raises:
        UserError: the file is not a workbook, is damaged or has a password, or the sheet does not exist or has no or
            repeated column names.
    """
    from python_calamine import CalamineError, CalamineWorkbook, PasswordError

    try:
        workbook = CalamineWorkbook.from_path(path)
        lines = _lines(_sheet(workbook, settings, reporter))
    except PasswordError as error:
        raise UserError(f"{settings.name}: needs a password; save it without one, or save its table as csv") from error
    except CalamineError as error:
        raise UserError(f"{settings.name}: cannot be read as a workbook: {_reason(path, error)}") from error
    number, cells = next(lines, (0, []))
    if not cells:
        return
    names, first = _names(cells, settings, number), []
    if settings.header and names != [str(cell) for cell in cells]:
        first = [(number, cells)]
    filled = set[str]()
    for number, found in chain(first, lines):
        if extra := [cell for cell in found[len(names) :] if cell is not None]:
            raise UserError(
                f"{settings.name} line {number}: has the value {extra[0]!r} in a column without a name; give the"
                " column a name in the first line, or remove the value"
            )
        row = dict(zip(names, [*found, *[None] * len(names)], strict=False))
        filled.update(name for name, value in row.items() if value is not None)
        yield row
    if empty := [name for name in names if name not in filled]:
        reporter.warn(
            f"{settings.name}: has no value in the column {listed(empty)}. If its cells are formulas, open the workbook"
            " in an office program and save it, which stores their values"
        )


def _reason(path: Path, error: Exception) -> str:
    """What is in the file instead, as far as its first bytes show it, and what to do."""
    with path.open("rb") as stream:
        start = stream.read(4096)
    if not start:
        return "it is empty"
    if 0 not in start:
        return "it is a text file; set `format` to csv, tsv or another format of texts"
    if start.startswith(OLD) and path.suffix.lower() != ".xls":
        return "it has a password, or is an old xls file; save it without a password, or as csv"
    return f"{error}; save its table as csv, or restore the file"


def _sheet(workbook: CalamineWorkbook, settings: FileSettings, reporter: Reporter) -> CalamineSheet:
    """The sheet named in the settings, or the first visible one with more than a line."""
    from python_calamine import SheetVisibleEnum

    names = workbook.sheet_names
    if settings.sheet is not None:
        if settings.sheet not in names:
            raise UserError(f"{settings.name}: {unknown('sheet', settings.sheet, names)}")
        return workbook.get_sheet_by_name(settings.sheet)
    visible = [one.name for one in workbook.sheets_metadata if one.visible == SheetVisibleEnum.Visible]
    sheets = [workbook.get_sheet_by_name(name) for name in visible or names]
    filled = [sheet for sheet in sheets if sheet.height > 1] or [sheet for sheet in sheets if sheet.height]
    if len(filled) > 1:
        reporter.warn(
            f"{settings.name}: has the sheets {listed([sheet.name for sheet in filled])}; {filled[0].name!r} was read;"
            " set `sheet` to read another"
        )
    return (filled or sheets)[0]


def _lines(sheet: CalamineSheet) -> Iterator[tuple[int, list[Any]]]:
    """The number and the cells of every line with a value."""
    for number, cells in enumerate(sheet.iter_rows(), 1):
        values = [_value(cell) for cell in cells]
        if any(value is not None for value in values):
            yield number, values


def _value(cell: Any) -> Any:
    if isinstance(cell, float) and cell.is_integer():
        return int(cell)
    if isinstance(cell, datetime.datetime) and cell.time() == datetime.time():
        cell = cell.date()
    if isinstance(cell, datetime.date | datetime.time):
        return cell.isoformat()
    if isinstance(cell, datetime.timedelta):
        return str(cell)
    return None if cell == "" else cell


def _names(cells: Sequence[Any], settings: FileSettings, number: int) -> list[str]:
    """The columns' names: `header`, or the cells of the first line."""
    if settings.header:
        return list(settings.header)
    found = ["" if cell is None else str(cell).strip() for cell in cells]
    while not found[-1]:
        found.pop()
    names = [name or f"column{i}" for i, name in enumerate(found, 1)]
    if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
        raise UserError(
            f"{settings.name} line {number}: has two columns with the name {twice!r}; rename one of them,"
            " or set `header` if the sheet has no line of names"
        )
    return names
