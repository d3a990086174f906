"""A trial to run, and the protocol by which a worker gets trials and stores their records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pefttools.bench.suite import Cell


@dataclass(frozen=True)
class Job:
    """A trial to run."""

    cell: Cell
    seed: int
    learning_rate: float | None
    digest: str
    """The digest of its recipe."""
    final: bool
    """Whether it is scored on the test rows; other trials only choose the learning rate."""

    @property
    def key(self) -> str:
        """The name by which workers claim it."""
        return f"{self.digest}{'+final' if self.final else ''}"

    @property
    def command(self) -> str:
        """The command line that runs it again."""
        return self.cell.command(self.seed, self.learning_rate)


class Trials(Protocol):
    """Trials to run, and the records of those that have ended."""

    out: Path
    """The folder of the records and of the runs."""

    @property
    def title(self) -> str:
        """Name and digest of the suite; workers with the same title share their claims."""
        ...

    @property
    def done(self) -> int:
        """Number of trials with a record."""
        ...

    def missing(self) -> Iterable[Job]:
        """The trials without a record that can run now."""
        ...

    def add(self, job: Job, record: dict[str, Any]) -> None:
        """Store the record of a trial."""
        ...

    def finished(self, cell: Cell) -> Mapping[str, dict[str, Any]]:
        """Digest -> record of a cell's trials; empty until all of them have ended."""
        ...
