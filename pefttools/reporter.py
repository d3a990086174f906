"""The interface through which libraries report notes, warnings and progress; `cli/progress.py` shows them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext


class Bar:
    """A progress bar."""

    def advance(self, amount: float) -> None:
        """Advance the bar by `amount` units."""

    def show(self, **fields: float) -> None:
        """Show these numbers by name, besides those shown before under other names."""

    def set_total(self, total: float) -> None:
        """Set the number of units, once it is known."""


class Reporter:
    """Shows nothing. Subclass it to show notes, warnings and progress."""

    def note(self, message: str) -> None:
        """Report something worth knowing."""

    def warn(self, message: str) -> None:
        """Report something that the user may want to change."""

    def bar(self, title: str, total: float | None, unit: str, done: float = 0) -> AbstractContextManager[Bar]:
        """A progress bar over `total` units (None: not known yet), of which `done` are done already."""
        del title, total, unit, done
        return nullcontext(Bar())


SILENT = Reporter()
