"""hashes.json: the sha256 of a folder's files, by which damage is noticed before anything is read from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from pefttools import atomic
from pefttools.errors import UserError

FILE = "hashes.json"


def write(folder: Path, files: Iterable[Path], texts: Mapping[str, str] = MappingProxyType({})) -> None:
    """Write the hashes of these files, which are in the folder or its subfolders.

    Args:
        texts: file -> its text, for files that will be written afterwards.
    """
    found = {file.relative_to(folder).as_posix(): file_sha256(file) for file in sorted(files)}
    found |= {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    atomic.write_json(folder / FILE, {"sha256": found})


def damage(folder: Path) -> str | None:
    """What is wrong with the folder's files, for example `state.json is missing`; None if their hashes are right."""
    try:
        known = json.loads((folder / FILE).read_text("utf-8"))["sha256"]
        names = [(name, folder / name, sha256) for name, sha256 in known.items()]
    except FileNotFoundError:
        return f"{FILE} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{FILE} cannot be read"
    for name, file, sha256 in names:
        try:
            if file_sha256(file) != sha256:
                return f"{name} has changed since it was written (its sha256 is not that in {FILE})"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def refuse_damaged(folder: Path) -> None:
    """Raises UserError when a file of a finished run or an artifact is not as it was written.

    Folders of older versions have no hashes, and are not checked.
    """
    if (folder / FILE).exists() and (problem := damage(folder)):
        raise UserError(f"{folder}: {problem}; restore it from a copy, or make the folder anew")


def file_sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
