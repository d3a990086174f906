"""Atomic writing: a file or folder appears under its name only when it is complete.

Files that libraries make readable for their owner only (safetensors) get the mode that the umask gives to new files.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pefttools.errors import UserError


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary path next to `path` to write to; it is synced and renamed at the end, and removed on an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.touch()
        mode = part.stat().st_mode
        yield part
        part.chmod(mode)
        _sync(part)
        part.replace(path)
        _sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder next to `path` to fill; it is synced and renamed to `path` at the end, removed on an error.

    It replaces a folder that already has that name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        settle(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def settle(part: Path, path: Path) -> None:
    """Sync everything in the folder `part`, then rename it to `path`."""
    mode = part.stat().st_mode
    for item in [*part.rglob("*"), part]:
        item.chmod(mode if item.is_dir() else mode & 0o666)
        _sync(item)
    if path.exists():
        old = path.with_name(f".{path.name}.{os.getpid()}.old")
        path.rename(old)
        part.rename(path)
        shutil.rmtree(old)
    else:
        part.rename(path)
    _sync(path.parent)


def refuse_unless_empty(path: Path) -> None:
    """Raises UserError when the path is a file or a folder with content, or cannot be written."""
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise UserError(f"--out: {path} is not empty; name a new or empty folder")
    refuse_unless_writable(path)


def refuse_unless_writable(path: Path) -> None:
    """Raises UserError when no folder can be created at this path; creates nothing itself."""
    place = next(p for p in (path, *path.parents) if p.exists())
    if not place.is_dir():
        raise UserError(f"--out: {place} is a file; name a folder")
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=".pefttools."):
            pass
    except OSError as error:
        raise UserError(f"--out: cannot write to {place} ({error.strerror}); name another folder") from error


def of_disk(error: Exception) -> bool:
    """Whether an error comes from writing; libraries in Rust and C++ do not raise OSError, so its text counts too."""
    fragments = ("(os error ", "PytorchStreamWriter", "No space left on device")
    return isinstance(error, OSError) or any(fragment in str(error) for fragment in fragments)


def write_text(path: Path, text: str) -> None:
    """Write a text file completely or not at all."""
    with new_file(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file completely or not at all."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """The text that `write_json` writes."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder, and has nothing to sync there
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
