"""Notes, warnings and progress bars on stderr, by rich, on a terminal, in a log and in a notebook."""

from __future__ import annotations

import html
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from pefttools.reporter import Bar, Reporter

FIRST = os.environ.get("RANK", "0") == "0"
"""Whether this is the first process of a launch, the only one that prints."""

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_UPDATES = 0.2
"""The same for a notebook."""
NARROW, WIDE = 72, 100
"""Terminal widths below which the bar (`NARROW`) and the speed (`WIDE`) are left out."""


class RichReporter(Reporter):
    """Notes, warnings and progress bars on stderr; silent on every process but the first."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, quiet=not FIRST, highlight=False)

    def note(self, message: str) -> None:
        self._print(message, "dim")

    def warn(self, message: str) -> None:
        self._print(f"warning: {message}", "yellow")

    def _print(self, message: str, style: str) -> None:
        in_notebook = self.console.is_jupyter  # which does not wrap lines
        self.console.print(message, style=style, markup=False, soft_wrap=not in_notebook)

    @contextmanager
    def bar(self, title: str, total: float | None, unit: str, done: float = 0) -> Iterator[Bar]:
        if self.console.is_jupyter:
            cell = _InNotebook(self.console, title, total, unit, done)
            try:
                yield cell
            finally:
                cell.clear()
            return
        if not self.console.is_terminal:
            yield _Lines(self.console, title, total, unit, done)
            return
        with Progress(*_columns(self.console.width), console=self.console, transient=True) as progress:
            task = progress.add_task(title, total=total, completed=done, unit=unit, facts="")  # type: ignore[arg-type]
            yield _Moving(progress, task)


def _columns(width: int) -> Iterator[ProgressColumn]:
    """The columns that fit on a terminal of this width; the bar itself is dropped first, then the unit."""
    yield TextColumn("{task.description}")
    if width >= NARROW:
        yield BarColumn(40 if width >= WIDE else 8)
    yield MofNCompleteColumn()
    if width >= NARROW:
        yield TextColumn("{task.fields[unit]}")
    yield TextColumn("{task.fields[facts]}")
    yield TimeRemainingColumn(compact=True)


class _Moving(Bar):
    """A progress bar on a terminal."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self.progress, self.task = progress, task
        self.facts: dict[str, float] = {}

    def advance(self, amount: float) -> None:
        self.progress.advance(self.task, amount)

    def show(self, **fields: float) -> None:
        self.facts |= fields
        shown = self.facts
        if self.progress.console.width < WIDE:
            shown = {name: value for name, value in shown.items() if not name.endswith("_per_second")}
        self.progress.update(self.task, facts=_facts(shown))

    def set_total(self, total: float) -> None:
        self.progress.update(self.task, total=total)


class _Lines(Bar):
    """Progress in a log, as a line every few seconds."""

    def __init__(self, console: Console, title: str, total: float | None, unit: str, done: float) -> None:
        self.console, self.title, self.total, self.unit = console, title, total, unit
        self.first, self.done = done, done
        self.started = self.printed = time.monotonic()
        self.facts: dict[str, float] = {}

    def advance(self, amount: float) -> None:
        self.done += amount
        now = time.monotonic()
        if now - self.printed >= SECONDS_BETWEEN_LINES:
            self.printed = now
            self.console.print(self._line(now), style="dim", markup=False, soft_wrap=True)

    def _line(self, now: float) -> str:
        parts = [f"{self._share()} {self.unit}", _facts(self.facts), self._left(now)]
        return f"{self.title}: {'  '.join(part for part in parts if part)}"

    def show(self, **fields: float) -> None:
        self.facts |= fields

    def _share(self) -> str:
        return f"{self.done:,.0f} of {self.total:,.0f}" if self.total else f"{self.done:,.0f}"

    def _left(self, now: float) -> str:
        """The estimated time left; empty where the total is not known."""
        if not self.total or self.done <= self.first:
            return ""
        seconds = round((now - self.started) / (self.done - self.first) * (self.total - self.done))
        return f"{timedelta(seconds=seconds)} left"

    def set_total(self, total: float) -> None:
        self.total = total


class _InNotebook(_Lines):
    """A bar in the output of a notebook's cell; needs no widgets, and is gone when it is done."""

    handle: Any = None

    def advance(self, amount: float) -> None:
        self.done += amount
        now = time.monotonic()
        if now - self.printed >= SECONDS_BETWEEN_UPDATES:
            self.printed = now
            known = f'value="{self.done:.0f}" max="{self.total:.0f}"' if self.total else ""
            line = self._line(now)
            self._show(line, f"<progress {known}></progress> <small>{html.escape(line)}</small>")

    def clear(self) -> None:
        if self.handle is not None:
            self._show("", "")

    def _show(self, text: str, page: str) -> None:
        from IPython.display import display  # pyright: ignore[reportMissingImports]

        shown = {"text/plain": text, "text/html": page}
        if self.handle is None:
            self.handle = display(shown, raw=True, display_id=True)
        else:
            self.handle.update(shown, raw=True)


def _facts(fields: Mapping[str, float]) -> str:
    facts = {name.replace("_per_second", "/s"): value for name, value in fields.items()}
    return "  ".join(f"{n} {value:,.0f}" if value >= 1000 else f"{n} {value:.4g}" for n, value in facts.items())
