"""Text files: decoded whole, or line by line, so that a file of any size can be gone through."""

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
"""A value of `decode_errors`: bytes that are not in the encoding are an error of their line, by `undecodable`."""


@contextmanager
def open_text(
    path: Path,
    settings: FileSettings,
    reporter: Reporter = SILENT,
    source: str = "",
    newline: str = "\n",
    by_line: bool = False,
) -> Iterator[TextIO]:
    """The file's text, decompressed and decoded, to be read from its start.

    Args:
        source: what the file is called in messages, where not as in its settings.
        by_line: whether the caller asks `undecodable` of every line.

    Raises:
        UserError: it cannot be read, or is not in the encoding that the settings name; an UnreadableLine where
            the caller could have gone on behind it.
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
        errors = "strict"  # one lost byte moves all that follow
    try:
        with opened(path, source) as stream:
            yield io.TextIOWrapper(stream, encoding, errors, newline=newline)
    except UnicodeError as error:
        found = _located(path, source, encoding, error)
        raise found if by_line else UserError(*found.problems) from error


def undecodable(text: str, where: str) -> UnreadableLine | None:
    """The error of a text with bytes that were not in its file's encoding; None where it has none."""
    found = re.search("[\udc80-\udcff]", text)
    if found is None:
        return None
    shown = text[:80].encode("utf-8", LINE_BY_LINE).decode("utf-8", "replace")
    return UnreadableLine(
        f"{where}: byte {ord(found[0]) - 0xDC00:#04x} at position {found.start()} is not in its encoding: {shown!r}"
    )


def text(path: Path, settings: FileSettings, source: str = "", reporter: Reporter = SILENT) -> str:
    """The whole file. Raises UserError as `open_text` does."""
    with open_text(path, settings, reporter, source, newline="") as stream:
        return stream.read().removeprefix(MARK)


def each(
    path: Path, settings: FileSettings, source: str = "", reporter: Reporter = SILENT, by_line: bool = False
) -> Iterator[str]:
    """The lines one by one, without their ends. Raises UserError as `open_text` does, once it is there.

    At line feeds only: other line ends that Unicode knows are characters of parallel texts.
    """
    with open_text(path, settings, reporter, source, by_line=by_line) as stream:
        for number, line in enumerate(stream):
            line = line.removesuffix("\n").removesuffix("\r")
            yield line if number else line.removeprefix(MARK)


def json_object(line: str, where: str) -> dict[str, Any]:
    """The object on one JSON line. Raises UnreadableLine when it is none."""
    try:
        value = json.loads(line)
    except ValueError as error:  # not JSON, or an integer of more digits than Python reads
        raise UnreadableLine(f"{where}: not JSON: {error}") from error
    except RecursionError as error:
        raise UnreadableLine(f"{where}: its lists and objects lie too deep in each other") from error
    if not isinstance(value, dict):
        raise UnreadableLine(f"{where}: takes one JSON object a line, got {type(value).__name__}")
    return value


def _located(path: Path, source: str, encoding: str, error: UnicodeError) -> UserError:
    """The refusal of a text that does not decode, with the place."""
    with opened(path, source) as stream:
        data = stream.read()
    try:
        data.decode(encoding)
    except UnicodeDecodeError as found:
        return bad_byte(source, found, found.start, data[: found.start].count(b"\n") + 1)
    except UnicodeError as found:  # of UTF-16 without its mark
        return UserError(f"{source}: {found}; set `encoding`")
    return UserError(f"{source}: {error}; set `encoding`")
