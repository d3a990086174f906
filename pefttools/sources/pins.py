"""Pins: hashes of a source's content.

A file's pin is the sha256 of its bytes. A folder's pin is the sha256 of the output of this command, so that anyone can
check it:

    cd FOLDER && find . -type f ! -path '*/.*' | sed 's|^./||' | LC_ALL=C sort | xargs sha256sum

Generated files (byte-code, hidden files) do not count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path


def content_sha256(path: Path, patterns: Sequence[str] = ()) -> str:
    """The pin of a file or folder as 64 hexadecimal digits; with `patterns`, only of the files that match one."""
    if path.is_file():
        return _file_sha256(path)
    lines = [f"{_file_sha256(path / name)}  {name}\n" for name in _files(path, patterns)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _files(folder: Path, patterns: Sequence[str]) -> list[str]:
    names = [f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()]
    hidden = [n for n in names if any(part.startswith(".") or part == "__pycache__" for part in n.split("/"))]
    wanted = [n for n in names if not patterns or any(fnmatch(n, pattern) for pattern in patterns)]
    return sorted(set(wanted) - set(hidden), key=str.encode)


def _file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
