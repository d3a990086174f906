"""Nothing half-written: a file or folder appears under its name only when it is complete.

What libraries write for their owner alone (safetensors) gets the mode that the umask gives to any new file.
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
    """A temporary path beside `path` to write to; on leaving it is synced and renamed, on an error removed."""
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
    """A temporary folder beside `path` to fill; on leaving it takes the name `path`, on an error it is removed.

    A folder that already has that name is replaced.
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
    """Sync everything in the folder `part`, then give it the name `path`."""
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
    """Raises UserError when writing a folder here would mix it with something."""
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise UserError(f"--out: {path} is not empty")
    refuse_unless_writable(path)


def refuse_unless_writable(path: Path) -> None:
    """Raises UserError when no folder can be created at this path; leaves nothing behind."""
    place = next(p for p in (path, *path.parents) if p.exists())
    if not place.is_dir():
        raise UserError(f"--out: {place} is a file")
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=".pefttools."):
            pass
    except OSError as error:
        raise UserError(f"--out: nothing can be written to {place} ({error.strerror}); name another folder") from error


def of_disk(error: Exception) -> bool:
    """Whether something could not be written: libraries in Rust and C++ have no type for it."""
    told = ("(os error ", "PytorchStreamWriter", "No space left on device")
    return isinstance(error, OSError) or any(words in str(error) for words in told)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with new_file(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
