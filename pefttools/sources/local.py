"""Files and folders of this machine."""

from __future__ import annotations

from pathlib import Path

import yaml

from pefttools.errors import UserError, nearest


def fetch(source: str) -> Path:
    """The path itself. Raises UserError when nothing is there, with the nearest name beside it."""
    path = Path(source).expanduser().absolute()
    if path.exists():
        return path
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    match = nearest(path.name, siblings)
    hint = f"; did you mean {match!r}?" if match else ""
    raise UserError(f"{source}: there is no such file or folder{hint}")


def licence(card: Path) -> str | None:
    """What the metadata of a model card says, where there is one."""
    from huggingface_hub import ModelCard

    try:
        found = ModelCard.load(card).data.get("license") if card.is_file() else None
    except (ValueError, yaml.YAMLError):  # no metadata, or none that can be read
        return None
    return ", ".join(map(str, found)) if isinstance(found, list) else found
