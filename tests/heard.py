"""A reporter that remembers what it was given, for tests of what a user is shown."""

from __future__ import annotations

from pefttools.reporter import Reporter


class Heard(Reporter):
    """Notes and warnings in the order in which they came."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)
