"""The interface through which libraries report notes, warnings and progress; `progress.py` shows them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any


class Finding(str):
    """A warning with its parts, so that `doctor` can list it; as a text it is one message."""

    check: str
    """Name of the check that found it, such as `class imbalance`."""
    what: str
    """What is wrong."""
    evidence: str
    """The figures that show it."""
    cure: str
    """A command; `RECIPE` in it stands for the recipe's name, `RUN` for the run folder."""
    is_fault: bool
    """Whether it should be corrected; False for what may be intended."""

    def __new__(cls, check: str, what: str, evidence: str, cure: str, is_fault: bool = True) -> Finding:
        made = super().__new__(cls, f"{what}: {evidence}; to correct it, run `{cure}`")
        made.check, made.what, made.evidence, made.cure, made.is_fault = check, what, evidence, cure, is_fault
        return made

    def as_dict(self) -> dict[str, Any]:
        """The parts, for JSON."""
        names = ("check", "what", "evidence", "cure", "is_fault")
        return {name: getattr(self, name) for name in names}


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
