"""The one place on disk for what was fetched or computed once: `PEFTTOOLS_CACHE`, else the user's cache folder."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path


def cache_dir(*parts: str) -> Path:
    """A path inside the cache; nothing is created."""
    root = os.environ.get("PEFTTOOLS_CACHE")
    return (
        Path(root).expanduser().absolute().joinpath(*parts) if root else user_cache_path("pefttools").joinpath(*parts)
    )
