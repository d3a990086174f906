"""The one place on disk for what was fetched or computed once: `PEFTTOOLS_CACHE`, else the user's cache folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path


def cache_dir(*parts: str) -> Path:
    """A path inside the cache; nothing is created."""
    root = os.environ.get("PEFTTOOLS_CACHE")
    return (
        Path(root).expanduser().absolute().joinpath(*parts) if root else user_cache_path("pefttools").joinpath(*parts)
    )


@contextmanager
def only_one(entry: Path) -> Iterator[None]:
    """Held by the one process that may make this entry; others wait, and then find it made."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(entry.with_name(f".{entry.name}.lock")):
        yield
