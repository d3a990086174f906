"""Resolve a source to its files: lists, patterns of paths, folders with the files of one table, and files' names."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pefttools.data import arrow_rows, compression
from pefttools.data.parts import SPLITS, Implied, chosen
from pefttools.data.settings import FileSettings
from pefttools.errors import UserError
from pefttools.reporter import Reporter
from pefttools.sources import exists, expanded, fetch, is_remote

ENDINGS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".conll": "conll",
    ".conllu": "conll",
    ".bio": "conll",
    ".iob": "conll",
    ".iob2": "conll",
    ".bmes": "conll",
    ".txt": "lines",
    ".xlsx": "workbook",
    ".xlsm": "workbook",
    ".xlsb": "workbook",
    ".xls": "workbook",
    ".ods": "workbook",
}


def format_of(path: Path) -> str:
    """The format for a file's ending, compressed or not; empty for unknown endings."""
    return ENDINGS.get(compression.ending(path), "")


def files(settings: FileSettings, reporter: Reporter) -> Iterator[tuple[Path, FileSettings]]:
    """Yield every file of a source with its own settings: its name as `source`, and its `format`.

    Raises:
        UserError: there is no file, or its format is unknown.
    """
    for source in settings.sources:
        one = settings.model_copy(update={"source": source})
        matching = _matching(one, reporter)
        if len(matching) > 1:
            reporter.note(f"{source}: {len(matching)} files, {matching[0].name} … {matching[-1].name}")
        for path in matching:
            name = source if path.name in source else str(path)
            yield from _of_path(path, one.model_copy(update={"source": name}), reporter)


def _matching(settings: FileSettings, reporter: Reporter) -> Sequence[Path]:
    """The source's path, or the paths that its pattern matches."""
    source = settings.name
    if is_remote(source) or not glob.has_magic(source) or exists(source):
        return [fetch(source, settings.sha256, reporter)]
    if settings.sha256:
        raise UserError(f"{source}: `sha256` pins one file or folder, but this is a pattern")
    pattern = str(expanded(source))
    found = [path for one in sorted(glob.glob(pattern, recursive=True)) if (path := Path(one)).is_file()]  # noqa: PTH207
    if not found:
        raise UserError(f"{source}: no file matches this pattern")
    return found


def _of_path(path: Path, settings: FileSettings, reporter: Reporter) -> Iterator[tuple[Path, FileSettings]]:
    kind = settings.format
    if kind == "auto" and (settings.pattern or settings.parallel_files):
        kind = "lines"
    if path.is_dir() and kind != "folders":
        if kind in ("auto", "arrow") and arrow_rows.is_saved(path):
            yield path, settings.model_copy(update={"format": "arrow"})
            return
        if inside := _inside(path, kind, settings, reporter):
            if len(inside) > 1:
                reporter.note(f"{settings.name}: {len(inside)} files, {inside[0].name} … {inside[-1].name}")
            for file in inside:
                yield from _of_path(file, settings.model_copy(update={"source": str(file)}), reporter)
            return
        if kind == "auto":
            if table := next((p for p in sorted(path.glob("*/*")) if _is_table(p, kind)), None):
                raise UserError(
                    f"{settings.name}: its folders contain tables, such as {table.relative_to(path)}; select them by a"
                    f" pattern like {settings.name}/*/*{table.suffix}"
                )
            kind = "folders"
    if kind == "auto":
        kind = format_of(path)
    if not kind:
        raise _of_no_format(path, settings)
    if path.is_dir() != (kind == "folders"):
        raise UserError(f"{settings.name}: is a {'folder' if path.is_dir() else 'file'}, but the format is {kind}")
    if not path.is_dir() and not path.is_file():
        raise UserError(f"{settings.name}: cannot be read twice; write its content to a regular file first")
    yield path, settings.model_copy(update={"format": kind})


def _of_no_format(path: Path, settings: FileSettings) -> UserError:
    if path.suffix.lower() in compression.ENDINGS:
        return UserError(
            f"{settings.name}: its name does not show what was compressed; rename it to NAME.csv{path.suffix}"
            " (or jsonl, parquet …), or set `format`"
        )
    return UserError(
        f"{settings.name}: its format cannot be recognized from the ending {path.suffix!r}; set `format`"
        f" to one of {', '.join(dict.fromkeys([*ENDINGS.values(), 'folders']))}"
    )


def _inside(folder: Path, kind: str, settings: FileSettings, reporter: Reporter) -> list[Path]:
    """The files of one table in a folder; of one split, if the files are named after splits; empty if there are
    none."""
    found = [path for path in sorted(folder.iterdir()) if _is_table(path, kind)]
    if not found:
        named = [f for f in sorted(folder.iterdir()) if f.is_dir() and f.name.lower() in ("data", *SPLITS)]
        found = [path for inner in named for path in sorted(inner.iterdir()) if _is_table(path, kind)]
    splits = {path: _split(path, folder) for path in found}
    names = list(dict.fromkeys(name for name in splits.values() if name))
    if len(names) > 1 or {*names} - {"train"} or (settings.split and not isinstance(settings.split, Implied)):
        if lost := [path.name for path, name in splits.items() if not name]:
            raise UserError(
                f"{settings.name}: has files of the splits {', '.join(names) or 'none'} and {lost[0]}, which belongs"
                " to none of them; list the files of one table"
            )
        taken = chosen(names, settings, reporter)
        found = [path for path, name in splits.items() if name == taken]
    if len(formats := {format_of(path) for path in found}) > 1 and kind == "auto":
        raise UserError(
            f"{settings.name}: contains files of several formats ({', '.join(sorted(formats))}); set `format`,"
            " or select the files by a pattern like data/*.csv"
        )
    return found


def _is_table(path: Path, kind: str) -> bool:
    """Whether a file in a folder belongs to the table; text files belong only if the format is set."""
    if not path.is_file() or path.name.startswith((".", "_")):
        return False
    return format_of(path) == kind if kind != "auto" else format_of(path) not in ("", "lines")


def _split(path: Path, folder: Path) -> str:
    """The split in a file's name (`train-00000-of-00002.parquet`), or in its folder's name; empty if there is none."""
    words = re.split(r"[-_. ]", path.name.lower())
    inner = path.parent.name.lower() if path.parent != folder else ""
    return next((SPLITS[word] for word in (inner, *words) if word in SPLITS), "")
