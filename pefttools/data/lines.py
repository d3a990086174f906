"""Text files: decoded whole, or line by line, so that a file of any size can be gone through."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from pefttools.data.compression import opened
from pefttools.data.encodings import bad_byte, encoding_of
from pefttools.data.settings import FileSettings
from pefttools.errors import UserError
from pefttools.reporter import SILENT, Reporter

MARK = "\ufeff"


@contextmanager
def open_text(
    path: Path, settings: FileSettings, reporter: Reporter = SILENT, source: str = "", newline: str = "\n"
) -> Iterator[TextIO]:
    """The file's text, decompressed and decoded, to be read from its start.

    Args:
        source: what the file is called in messages, where not as in its settings.

    Raises:
        UserError: it cannot be read, or is not in the encoding that the settings name.
    """
    source = source or settings.name
    encoding = encoding_of(path, settings, source, reporter)
    try:
        with opened(path, source) as stream:
            yield io.TextIOWrapper(stream, encoding, settings.decode_errors, newline=newline)
    except UnicodeError as error:
        raise _located(path, source, encoding, error) from error


def text(path: Path, settings: FileSettings, source: str = "", reporter: Reporter = SILENT) -> str:
    """The whole file. Raises UserError as `open_text` does."""
    with open_text(path, settings, reporter, source, newline="") as stream:
        return stream.read().removeprefix(MARK)


def each(path: Path, settings: FileSettings, source: str = "", reporter: Reporter = SILENT) -> Iterator[str]:
    """The lines one by one, without their ends. Raises UserError as `open_text` does, once it is there.

    At line feeds only: other line ends that Unicode knows are characters of parallel texts.
    """
    with open_text(path, settings, reporter, source) as stream:
        for number, line in enumerate(stream):
            line = line.removesuffix("\n").removesuffix("\r")
            yield line if number else line.removeprefix(MARK)


def json_object(line: str, where: str) -> dict[str, Any]:
    """The object on one JSON line. Raises UserError when it is none."""
    try:
        value = json.loads(line)
    except ValueError as error:  # not JSON, or an integer of more digits than Python reads
        raise UserError(f"{where}: not JSON: {error}") from error
    except RecursionError as error:
        raise UserError(f"{where}: its lists and objects lie too deep in each other") from error
    if not isinstance(value, dict):
        raise UserError(f"{where}: takes one JSON object a line, got {type(value).__name__}")
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
