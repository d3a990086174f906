"""Checksums of cached files, by which damage is noticed before anything is read from them.

They are in a hidden file next to a cached file or folder. XXH3 is fast; nobody who wants to deceive writes there.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import xxhash

from pefttools import atomic

CHUNK = 1 << 22


def write(path: Path) -> None:
    """Write the checksums of a complete file or folder."""
    atomic.write_json(_file(path), _checksums(path))


def damage(path: Path) -> str | None:
    """What is wrong with a file or folder, for example `is incomplete`; None if it is as it was written."""
    try:
        known = json.loads(_file(path).read_text("utf-8"))
        found = _checksums(path)
    except FileNotFoundError:
        return "is incomplete, or from an older version of pefttools"
    except (OSError, ValueError):
        return "cannot be read"
    return None if found == known else "has changed since it was written"


def remove(path: Path) -> None:
    """Remove a file or folder and its checksums."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    _file(path).unlink(missing_ok=True)


def _file(path: Path) -> Path:
    return path.with_name(f".{path.name}.checksums.json")


def _checksums(path: Path) -> dict[str, str]:
    """File -> its checksum; the name of a single file is empty, so that nothing depends on where the cache lies."""
    if path.is_file():
        return {"": _checksum(path)}
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(path).as_posix(): _checksum(file) for file in files}


def _checksum(file: Path) -> str:
    digest = xxhash.xxh3_128()
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
