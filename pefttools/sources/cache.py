"""The cache folder for downloads and computed files: `PEFTTOOLS_CACHE`, else the user's cache folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock
from platformdirs import user_cache_path

from pefttools.errors import UserError
from pefttools.reporter import SILENT, Reporter
from pefttools.sources import checksums

LIBRARIES = ("pefttools", "torch", "transformers", "tokenizers")
"""Libraries whose version is part of every key, since another version may compute other values."""


def entry(folder: str, depends_on: Any, code: Iterable[Path], suffix: str = "") -> Path:
    """The path in the cache of a computed file, named after a hash of everything that determines its content.

    Args:
        folder: a folder in the cache.
        depends_on: the inputs of the computation, as values that JSON can represent.
        code: the source files that compute it; the versions of `LIBRARIES` are part of the hash as well.
        suffix: suffix of the file's name.
    """
    computed_by = hashlib.sha256(b"".join(file.read_bytes() for file in code)).hexdigest()
    key = [depends_on, computed_by, {name: metadata.version(name) for name in LIBRARIES}]
    return cache_dir(folder, hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest() + suffix)


def cache_dir(*parts: str) -> Path:
    """A path inside the cache. Creates the cache folder if necessary, but nothing inside it.

    Raises:
        UserError: the cache folder cannot be created or is not writable.
    """
    named = os.environ.get("PEFTTOOLS_CACHE")
    root = Path(named).expanduser().absolute() if named else user_cache_path("pefttools")
    _require_writable(root, "PEFTTOOLS_CACHE" if named else "the cache folder")
    return root.joinpath(*parts)


@cache
def _require_writable(root: Path, what: str) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror
    else:
        if os.access(root, os.W_OK | os.X_OK):
            return
        reason = "it is read-only"
    raise UserError(
        f"{what}: {root} is not writable ({reason}); set PEFTTOOLS_CACHE to a folder that is"
        " (the cache contains downloaded models, tokenised rows and features)"
    )


def stored(path: Path, create: Callable[[], None], what: str, reporter: Reporter = SILENT) -> Path:
    """The path, after making sure that an undamaged file or folder is there.

    Processes that need the same one wait for the first. What is damaged or incomplete is created again, with a note.

    Args:
        create: writes the file or folder at `path` completely or not at all, and replaces a damaged one.
        what: the content, for the note.
    """
    with only_one(path):
        problem = checksums.damage(path) if path.exists() else None
        if problem:
            reporter.note(f"cached {what}: {path} {problem}, so it is made again")
        if problem or not path.exists():
            create()
            checksums.write(path)
    return path


@contextmanager
def only_one(entry: Path) -> Iterator[None]:
    """A lock for the process that creates this entry; other processes wait, and then find it in the cache."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(entry.with_name(f".{entry.name}.lock")):
        yield
