"""Open files as bytes, compressed or not: gzip, bzip2, xz, zstandard, and zip archives of one file.

The compression is recognised by a file's first bytes, not by its name; the inner ending (`rows.csv.gz`) gives the
format of the content.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from pefttools.errors import UserError

MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard",
    b"PK\x03\x04": "zip",
}
ENDINGS = (".gz", ".bz2", ".xz", ".zst", ".zip")
DAMAGE = (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError, RuntimeError)
"""Errors that the libraries raise for bytes that they cannot decompress."""
OFFICE = ("xl/workbook.xml", "content.xml", "word/document.xml")
"""Members that identify a zip archive as a workbook or a document."""


def ending(path: Path) -> str:
    """The ending of a file's content: `.csv` for `rows.csv`, for `rows.csv.gz`, and for a zip with a csv file in it."""
    last = path.suffix.lower()
    if last not in ENDINGS:
        return last
    inner = Path(path.stem).suffix.lower()
    if last == ".zip" and path.is_file():
        with suppress(*DAMAGE), _archive(path) as archive:  # `opened` reports the damage
            inner = next((Path(name).suffix.lower() for name in _members(archive)), inner)
    return inner


def how(path: Path) -> str | None:
    """The name of a file's compression; None for uncompressed files."""
    with path.open("rb") as stream:
        start = stream.read(6)
    return next((name for magic, name in MAGIC.items() if start.startswith(magic)), None)


@contextmanager
def opened(path: Path, source: str) -> Iterator[IO[bytes]]:
    """Open a file and decompress its bytes.

    Args:
        source: the file's name in error messages.

    Raises:
        UserError: the file cannot be read or decompressed, or is an archive of several files.
    """
    try:
        with _stream(path, source) as stream:
            yield stream
    except DAMAGE as error:
        raise UserError(f"{source}: {explained(error)}") from error


def explained(error: Exception) -> str:
    """The reason why a file cannot be read, in one sentence."""
    if isinstance(error, OSError) and error.strerror:  # from the operating system: no permission, a folder
        return f"cannot be read: {error.strerror}"
    if isinstance(error, EOFError):
        return "the file is truncated: its compressed data ends too early"
    if isinstance(error, RuntimeError) and "password" in str(error):
        return "the zip archive has a password; unpack it first"
    return f"the file is damaged: {' '.join(str(error).split()) or type(error).__name__}"


def _stream(path: Path, source: str) -> IO[bytes]:
    match how(path):
        case "gzip":
            return gzip.open(path)  # type: ignore[return-value]
        case "bzip2":
            return bz2.open(path)
        case "xz":
            return lzma.open(path)
        case "zstandard":
            import pyarrow

            return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))  # type: ignore[arg-type]
        case "zip":
            return _only_member(_archive(path), source)
        case _:
            return path.open("rb")


def _only_member(archive: zipfile.ZipFile, source: str) -> IO[bytes]:
    names = _members(archive)
    if set(names) & set(OFFICE):
        raise UserError(
            f"{source}: is a workbook or document of an office program; set `format: workbook`, or save it as csv"
        )
    if len(names) != 1:
        shown = ", ".join(names[:4]) or "none"
        raise UserError(
            f"{source}: a zip archive must contain one file, but this one contains {len(names)} ({shown}); unpack it"
        )
    with _readable_names():
        return archive.open(names[0])


def _archive(path: Path) -> zipfile.ZipFile:
    with _readable_names():
        return zipfile.ZipFile(path)


@contextmanager
def _readable_names() -> Iterator[None]:
    """Names of files in an archive that are not text count as damage."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise zipfile.BadZipFile("the name of a file in the archive is not text") from error


def _members(archive: zipfile.ZipFile) -> list[str]:
    """The names of an archive's files, without folders and files that macOS adds."""
    names = [info.filename for info in archive.infolist() if not info.is_dir()]
    return [n for n in names if not n.startswith("__MACOSX/") and not n.rpartition("/")[2].startswith(".")]
