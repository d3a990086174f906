"""Files and folders of this machine."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from pefttools.errors import UserError, nearest, shown

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[\w./-]+)?")
"""`NAME` or `OWNER/NAME`, with or without a revision."""
FILE = re.compile(r"\.[A-Za-z]\w*$")
"""The ending of a file name; versions and sizes (`Qwen2.5-0.5B`) begin with a digit and do not match."""
ADDRESS = re.compile(
    r"/(?:huggingface\.co|hf\.co)/(?:datasets/)?(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:/(?:tree|blob)/(?P<revision>[\w.-]+))?"
)
"""The address of a repository's page."""


def fetch(source: str) -> Path:
    """The absolute path. Raises UserError if it does not exist, with the nearest name in its folder."""
    path = expanded(source)
    try:
        if path.exists():
            return path
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    except OSError as error:  # a name that is too long, a folder without permission
        raise UserError(f"{shown(source)}: cannot be read: {error.strerror}") from error
    match = nearest(path.name, siblings)
    hints = [f"did you mean {match!r}?"] if match else []
    if name := _on_a_hub(path):
        hints.append(f"a repository of the hub is named hf:{name}")
    raise UserError(f"{source}: there is no such file or folder{''.join(f'; {hint}' for hint in hints)}")


def expanded(source: str) -> Path:
    """The absolute path, with `~` as the user's home; like in a shell, `~nobody` is a plain name."""
    try:
        return Path(source).expanduser().absolute()
    except RuntimeError:
        return Path(source).absolute()


def exists(source: str) -> bool:
    """Whether there is a file or folder of this name; False for a name that none can have."""
    try:
        return expanded(source).exists()
    except OSError:
        return False


def is_file(path: Path) -> bool:
    """Whether there is a file of this name; False for a name that no file can have."""
    try:
        return path.is_file()
    except OSError:
        return False


def _on_a_hub(path: Path) -> str | None:
    """`NAME[@REVISION]` if the path looks like a repository of the hub or its address; else None.

    Recipes make their sources absolute; relative to the current folder they are as the user wrote them.
    """
    if address := ADDRESS.search(str(path)):
        return f"{address['name']}@{address['revision']}" if address["revision"] else address["name"]
    source = str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
    is_name = REPOSITORY.fullmatch(source) and not FILE.search(source)
    return source if is_name and not ("/" in source and path.parent.is_dir()) else None


def licence(card: Path) -> str | None:
    """The licence in the metadata of a model card; None if there is none."""
    from huggingface_hub import ModelCard

    try:
        found = ModelCard.load(card).data.get("license") if card.is_file() else None
    except (ValueError, yaml.YAMLError):  # missing or invalid metadata
        return None
    return ", ".join(map(str, found)) if isinstance(found, list) else found
