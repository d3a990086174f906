"""rich on stderr: notes, warnings and progress bars, on a terminal and in a log."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from pefttools.reporter import Bar, Reporter

FIRST = os.environ.get("RANK", "0") == "0"
"""Whether this is the first process of a launch: the one that speaks."""

SECONDS_BETWEEN_LINES = 10.0


class RichReporter(Reporter):
    """Notes, warnings and progress bars on stderr; silent on every process but the first."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, quiet=not FIRST, highlight=False)

    def note(self, message: str) -> None:
        self.console.print(message, style="dim", markup=False, soft_wrap=True)

    def warn(self, message: str) -> None:
        self.console.print(f"warning: {message}", style="yellow", markup=False, soft_wrap=True)

    @contextmanager
    def bar(self, title: str, total: float | None, unit: str) -> Iterator[Bar]:
        if not self.console.is_terminal:
            yield _Lines(self.console, title, total, unit)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
        )
        facts = TextColumn("{task.fields[facts]}")
        with Progress(*columns, facts, TimeRemainingColumn(), console=self.console, transient=True) as progress:
            yield _Moving(progress, progress.add_task(title, total=total, unit=unit, facts=""))


class _Moving(Bar):
    """On a terminal: a bar."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self.progress, self.task = progress, task

    def advance(self, amount: float, **fields: Any) -> None:
        self.progress.advance(self.task, amount)
        if fields:
            self.progress.update(self.task, facts=_facts(fields))

    def set_total(self, total: float) -> None:
        self.progress.update(self.task, total=total)


class _Lines(Bar):
    """In a log: a line now and then."""

    def __init__(self, console: Console, title: str, total: float | None, unit: str) -> None:
        self.console, self.title, self.total, self.unit = console, title, total, unit
        self.done, self.told = 0.0, time.monotonic()

    def advance(self, amount: float, **fields: Any) -> None:
        self.done += amount
        if time.monotonic() - self.told >= SECONDS_BETWEEN_LINES:
            self.told = time.monotonic()
            share = f"{self.done:,.0f} of {self.total:,.0f}" if self.total else f"{self.done:,.0f}"
            self.console.print(
                f"{self.title}: {share} {self.unit}  {_facts(fields)}".rstrip(), style="dim", markup=False
            )

    def set_total(self, total: float) -> None:
        self.total = total


def _facts(fields: Mapping[str, Any]) -> str:
    facts = {name.replace("_per_second", "/s"): value for name, value in fields.items() if value is not None}
    return "  ".join(f"{n} {value:,.0f}" if value >= 1000 else f"{n} {value:.4g}" for n, value in facts.items())
