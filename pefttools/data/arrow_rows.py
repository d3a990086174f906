"""Read parquet and Arrow files, and folders written by `save_to_disk` of datasets, as rows with class names.

Parquet is read by row group and Arrow by batch, so tables may be larger than memory. Errors that the libraries raise
for damaged bytes become one sentence with the position.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttools.data import class_names, compression
from pefttools.data.parts import chosen
from pefttools.data.settings import FileSettings
from pefttools.errors import UserError
from pefttools.reporter import Reporter

if TYPE_CHECKING:
    import pyarrow

Row = dict[str, Any]
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
"""The last bytes of a complete Arrow stream; the library reads a truncated stream as a shorter one without an error."""
BATCH = 4096


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def parquet(path: Path, settings: FileSettings, reporter: Reporter) -> Iterator[Row]:
    """The rows of a parquet file. Raises UserError if it is damaged or not a parquet file."""
    del reporter
    import pyarrow.parquet

    with _as_user_errors(settings.name, "not a parquet file, or a damaged one"):
        file = pyarrow.parquet.ParquetFile(_seekable(path, settings), page_checksum_verification=True)
        groups = file.num_row_groups
    number = 0
    for group in range(groups):
        where = f"its row group {group + 1} of {groups}, which begins at row {number + 1}, is damaged"
        with _as_user_errors(settings.name, where):
            for rows in _named(file.iter_batches(BATCH, row_groups=[group]), file.schema_arrow, settings):
                yield from rows
        number += file.metadata.row_group(group).num_rows


def arrow(path: Path, settings: FileSettings, reporter: Reporter) -> Iterator[Row]:
    """The rows of an Arrow file, or of a folder written by `save_to_disk`. Raises UserError as `parquet` does."""
    if path.is_dir():
        yield from _saved(path, settings, reporter)
        return
    import pyarrow

    with _as_user_errors(settings.name, "not an Arrow file, or a damaged one"), _mapped(path, settings) as source:
        try:
            table: Any = pyarrow.ipc.open_file(source)
        except pyarrow.ArrowInvalid:
            _refuse_truncated(path)
            source.seek(0)
            table = pyarrow.ipc.open_stream(source)
            batches: Iterable[Any] = table
        else:
            batches = (table.get_batch(i) for i in range(table.num_record_batches))
        for rows in _named(batches, table.schema, settings):
            yield from rows


def _saved(folder: Path, settings: FileSettings, reporter: Reporter) -> Iterator[Row]:
    from datasets import load_from_disk

    names = folder / "dataset_dict.json"
    if names.is_file():
        with _as_user_errors(settings.name, "its dataset_dict.json is damaged"):
            splits = [str(split) for split in json.loads(names.read_text("utf-8"))["splits"]]
        _refuse_outside(names, splits)
        folder = folder / chosen(splits, settings, reporter)
    with _as_user_errors(settings.name, "not a folder of `save_to_disk`, or a damaged one"):
        for file in sorted(folder.glob("*.arrow")):
            _refuse_truncated(file)
        state = json.loads((folder / "state.json").read_text("utf-8"))
        _refuse_outside(folder / "state.json", [str(one["filename"]) for one in state["_data_files"]])
        table: Any = load_from_disk(str(folder)).with_format("arrow")
        for rows in _named(table.iter(BATCH), table.features.arrow_schema, settings):
            yield from rows


def _refuse_outside(file: Path, names: Iterable[str]) -> None:
    """Raises UserError if one of the names in a file is not the name of a file or folder next to it."""
    if odd := next((name for name in names if Path(name).name != name or name == ".."), None):
        raise UserError(f"{file}: names {odd!r}, which is not in its folder")


def _named(tables: Iterable[Any], schema: pyarrow.Schema, settings: FileSettings) -> Iterator[list[Row]]:
    """Tables or batches as lists of rows, with class numbers replaced by names."""
    if twice := next((name for i, name in enumerate(schema.names) if name in schema.names[:i]), None):
        raise UserError(f"{settings.name}: has two columns with the name {twice!r}; rename one of them")
    namers = class_names.of_metadata(schema.metadata, settings.name)
    namers = {name: namer for name, namer in namers.items() if name in schema.names}
    for table in tables:
        table.validate(full=True)  # damaged offsets would make the library read foreign memory, or crash
        rows = table.to_pylist()
        for name, namer in namers.items():
            for row in rows:
                row[name] = namer(row[name])
        yield rows


@contextmanager
def _mapped(path: Path, settings: FileSettings) -> Iterator[Any]:
    import pyarrow

    if compression.how(path):
        yield pyarrow.BufferReader(_bytes(path, settings))
    else:
        with pyarrow.memory_map(str(path)) as source:
            yield source


def _seekable(path: Path, settings: FileSettings) -> Any:
    import pyarrow

    return pyarrow.BufferReader(_bytes(path, settings)) if compression.how(path) else path


def _bytes(path: Path, settings: FileSettings) -> bytes:
    with compression.opened(path, settings.name) as stream:
        return stream.read()


def _refuse_truncated(path: Path) -> None:
    if not compression.how(path):
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - len(END_OF_STREAM)))
            if stream.read() != END_OF_STREAM:
                raise UserError(f"{path}: is not an Arrow file, or is truncated: its end marker is missing")


@contextmanager
def _as_user_errors(source: str, what: str) -> Iterator[None]:
    """Turn any error of the libraries into a UserError of one sentence; damaged bytes raise many classes of errors."""
    try:
        yield
    except UserError as error:
        raise UserError(*(p if source in p else f"{source}: {p}" for p in error.problems)) from error
    except Exception as error:
        raise UserError(f"{source}: {what} ({' '.join(str(error).split())[:160] or type(error).__name__})") from error
