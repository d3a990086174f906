"""Read and decode text files, as a whole or line by line, so that files may be larger than memory."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from pefttools.data.compression import opened
from pefttools.data.encodings import bad_byte, encoding_of
from pefttools.data.settings import UTF8, FileSettings
from pefttools.errors import UnreadableLine, UserError
from pefttools.reporter import SILENT, Reporter

MARK = "\ufeff"
LINE_BY_LINE = "surrogateescape"
"""A value of `decode_errors`: invalid bytes are reported as an error of their line, by `undecodable`."""


@contextmanager
def open_text(
    path: Path,
    settings: FileSettings,
    reporter: Reporter = SILENT,
    source: str = "",
    newline: str = "\n",
    by_line: bool = False,
) -> Iterator[TextIO]:
    """Open a file as decompressed and decoded text.

    Args:
        source: the file's name in messages, if not the one in the settings.
        by_line: whether the caller checks every line with `undecodable`.

    Raises:
        UserError: the file cannot be read, or has bytes that are invalid in its encoding; an UnreadableLine if the
            caller could skip the line.
    """
    source = source or settings.name
    errors: str = settings.decode_errors
    if errors == LINE_BY_LINE and not by_line:
        errors, settings = "strict", settings.model_copy(update={"decode_errors": "strict"})
    try:
        encoding = encoding_of(path, settings, source, reporter)
    except UnreadableLine as error:
        if errors != LINE_BY_LINE:
            raise error if by_line else UserError(*error.problems) from error
        encoding = UTF8
    if errors == LINE_BY_LINE and encoding.lower().startswith(("utf-16", "utf-32")):
        errors = "strict"  # one lost byte shifts all that follow
    try:
        with opened(path, source) as stream:
            yield io.TextIOWrapper(stream, encoding, errors, newline=newline)
    except UnicodeError as error:
        found = _located(path, source, encoding, error)
        raise found if by_line else UserError(*found.problems) from error


def undecodable(text: str, where: str) -> UnreadableLine | None:
    """The error for a text with bytes that are invalid in its file's encoding; None if all are valid."""
    found = re.search("[\udc80-\udcff]", text)
    if found is None:
        return None
    shown = text[:80].encode("utf-8", LINE_BY_LINE).decode("utf-8", "replace")
    return UnreadableLine(
        f"{where}: byte {ord(found[0]) - 0xDC00:#04x} at position {found.start()} is not in its encoding: {shown!r}"
    )


def text(path: Path, settings: FileSettings, source: str = "", reporter: Reporter = SILENT) -> str:
    """The text of the whole file. Raises UserError as `open_text` does."""
    with open_text(path, settings, reporter, source, newline="") as stream:
        return stream.read().removeprefix(MARK)


def each(
    path: Path, settings: FileSettings, source: str = "", reporter: Reporter = SILENT, by_line: bool = False
) -> Iterator[str]:
    """Yield the lines without their ends. Raises UserError as `open_text` does, when it reaches the line.

    Only line feeds separate lines: Unicode's other line separators may be characters of parallel texts.
    """
    with open_text(path, settings, reporter, source, by_line=by_line) as stream:
        for number, line in enumerate(stream):
            line = line.removesuffix("\n").removesuffix("\r")
            yield line if number else line.removeprefix(MARK)


def json_object(line: str, where: str) -> dict[str, Any]:
    """The object on one JSON line. Raises UnreadableLine if there is none."""
    try:
        value = json.loads(line)
    except ValueError as error:  # not JSON, or an integer of more digits than Python reads
        raise UnreadableLine(f"{where}: not JSON: {error}") from error
    except RecursionError as error:
        raise UnreadableLine(f"{where}: its lists and objects are nested too deeply") from error
    if not isinstance(value, dict):
        raise UnreadableLine(f"{where}: needs one JSON object per line, got {type(value).__name__}")
    return value


def _located(path: Path, source: str, encoding: str, error: UnicodeError) -> UserError:
    """The error for a text that does not decode, with the position."""
    with opened(path, source) as stream:
        data = stream.read()
    try:
        data.decode(encoding)
    except UnicodeDecodeError as found:
        return bad_byte(source, found, found.start, data[: found.start].count(b"\n") + 1)
    except UnicodeError as found:  # UTF-16 without a byte-order mark
        return UserError(f"{source}: {found}; set `encoding`")
    return UserError(f"{source}: {error}; set `encoding`")
