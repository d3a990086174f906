"""Choose one part of a source that has several: splits of a saved data set or a folder, or keys of a JSON file."""

from __future__ import annotations

from collections.abc import Sequence

from pefttools.data.settings import FileSettings
from pefttools.errors import UserError
from pefttools.reporter import Reporter

NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "development"),
    "test": ("test", "testing", "eval"),
}
"""Split -> names of its files."""
SPLITS = {name: split for split, names in NAMES.items() for name in names}


class Implied(str):
    """A split that follows from the source's key in the recipe (`data.test`), not from its settings."""

    __slots__ = ()


def chosen(parts: Sequence[str], settings: FileSettings, reporter: Reporter, what: str = "split") -> str:
    """The part that `split` selects, by its name or by a synonym of the split. Reports the choice if there are others.

    Raises:
        UserError: there is no such part.
    """
    wanted = settings.split or "train"
    found = wanted if wanted in parts else next((p for p in parts if SPLITS.get(p.lower(), p) == wanted), None)
    if found is None and len(parts) == 1 and isinstance(wanted, Implied):
        return parts[0]
    if found is None:
        raise UserError(f"{settings.name}: has no {what} {wanted!r}; set `split` to one of {', '.join(parts)}")
    if others := [part for part in parts if part != found]:
        reporter.note(f"{settings.name}: read its {what} {found!r}, not {', '.join(others)}")
    return found
