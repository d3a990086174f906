"""A trial to run, and the protocol by which a worker gets trials and stores their records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pefttools.bench.pruning import Pruning

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


class Variant(Protocol):
    """What a trial trains, except for its seed and, in a suite, its learning rate: a cell, or a point of a search."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def study(self) -> str:
        """The name under which workers claim its trials, besides the title."""
        ...

    @cached_property
    def start(self) -> str:
        """The recipe to which `words` apply."""
        ...

    @cached_property
    def base(self) -> str: ...

    @cached_property
    def lower_is_better(self) -> bool: ...

    def words(self, seed: int, learning_rate: float | None) -> list[str]: ...

    def command(self, seed: int, learning_rate: float | None) -> str: ...


@dataclass(frozen=True)
class Job:
    """A trial to run."""

    cell: Variant
    seed: int
    learning_rate: float | None
    digest: str
    """The digest of its recipe."""
    final: bool
    """Whether it is scored on the test rows; other trials only choose what to train."""
    score_test: bool = True
    """Whether anything is scored on the test rows."""
    pruning: Pruning | None = None
    """Stops it when it is hopeless."""
    params: Mapping[str, tuple[Any, BaseDistribution]] = field(default_factory=dict)
    """The values of a search with the distributions that they come from, for Optuna's own tools."""

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

    def finished(self, cell: Any) -> Mapping[str, dict[str, Any]]:
        """Digest -> record of a cell's trials; empty until all of them have ended."""
        ...
