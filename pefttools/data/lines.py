"""Text files: decoded whole, or line by line, so that a file of any size can be gone through."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pefttools.data.settings import FileSettings
from pefttools.errors import UserError


def text(path: Path, settings: FileSettings, source: str = "") -> str:
    """The whole file.

    Args:
        source: what the file is called in messages, where not as in its settings.

    Raises:
        UserError: it is not in the encoding that the settings name, or there is no such encoding.
    """
    source = source or settings.source
    try:
        return path.read_bytes().decode(settings.encoding, settings.decode_errors)
    except LookupError as error:
        raise UserError(f"{source}: {error}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{source}: byte {error.object[error.start]:#04x} at position {error.start} is not"
            f" {error.encoding}; set `encoding` (latin-1, gb18030, …) or `decode_errors: replace` beside its source"
        ) from error


def each(path: Path, settings: FileSettings, source: str = "") -> Iterator[str]:
    """The lines one by one, without their ends. Raises UserError as `text` does, once it is there.

    At line feeds only: other line ends that Unicode knows are characters of parallel texts.
    """
    try:
        with path.open(encoding=settings.encoding, errors=settings.decode_errors, newline="\n") as stream:
            for line in stream:
                yield line.removesuffix("\n").removesuffix("\r")
    except (LookupError, UnicodeDecodeError):
        text(path, settings, source)  # its message knows the place in the file
        raise


def json_object(line: str, where: str) -> dict[str, Any]:
    """The object on one JSON line. Raises UserError when it is none."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{where}: takes one JSON object a line, got {type(value).__name__}")
    return value
