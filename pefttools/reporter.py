"""How libraries tell what they are doing without printing: the silent default, which `progress.py` gives a face."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext


class Bar:
    """One running task's progress."""

    def advance(self, amount: float) -> None:
        """`amount` more is done."""

    def show(self, **fields: float) -> None:
        """Show these numbers by their names, and those shown before under other names."""

    def set_total(self, total: float) -> None:
        """How much there is to do, once known."""


class Reporter:
    """Says nothing. Subclass it to show notes, warnings and progress."""

    def note(self, message: str) -> None:
        """Something worth knowing."""

    def warn(self, message: str) -> None:
        """Something the user may want to change."""

    def bar(self, title: str, total: float | None, unit: str, done: float = 0) -> AbstractContextManager[Bar]:
        """A progress bar over `total` units (None: not known yet), of which some are done already."""
        del title, total, unit, done
        return nullcontext(Bar())


SILENT = Reporter()
