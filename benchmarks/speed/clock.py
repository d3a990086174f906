"""Timing a run of pefttools from outside: a reporter that records when each progress bar opens, advances and closes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import memory

from pefttools.reporter import Bar, Reporter

TRAINING, BASELINE = "training", "baseline"
SCORING = ("validation", "test")


class Span(Bar):
    """A bar's times, in seconds of `time.perf_counter`."""

    def __init__(self, title: str, moved: Callable[[], None]) -> None:
        self.title, self.moved = title, moved
        self.begun = time.perf_counter()
        self.ended: float | None = None
        self.last = self.begun
        """Time of its last advance."""

    def advance(self, amount: float) -> None:
        del amount
        self.last = time.perf_counter()
        self.moved()


class Clock(Reporter):
    """Measures time and memory of one training run, without changing the run.

    Training time lasts from the end of the baseline evaluation to the last step, so that work done once before the
    first step (building the optimizer, caching features) counts. Evaluations do not count.
    """

    def __init__(self) -> None:
        self.made = time.perf_counter()
        self.spans: list[Span] = []
        self.loaded_bytes = self.peak_bytes = 0
        self.began: float | None = None
        self.weighing = 0.0
        """Seconds spent measuring memory; they are subtracted from all times."""

    @contextmanager
    def bar(self, title: str, total: float | None, unit: str, done: float = 0) -> Iterator[Bar]:
        del total, unit, done
        if title == TRAINING and self.began is None:  # there was no baseline evaluation
            self.began = time.perf_counter()
        if self.began is not None and not self.loaded_bytes:
            self._weigh()
        span = Span(title, self._moved if title == TRAINING else _nothing)
        self.spans.append(span)
        yield span
        span.ended = time.perf_counter()
        if title.endswith(BASELINE):
            self.began = span.ended

    def _weigh(self) -> None:
        """Measure memory at the first bar after the baseline evaluation, which may have loaded a second model."""
        begun = time.perf_counter()
        self.loaded_bytes = memory.begin()
        self.weighing = time.perf_counter() - begun

    def _moved(self) -> None:
        self.peak_bytes = memory.peak()
        self.stepped()

    def stepped(self) -> None:
        """Called after every step."""

    @property
    def training(self) -> Span:
        return next(span for span in self.spans if span.title == TRAINING)

    @property
    def seconds(self) -> float:
        """Seconds of training."""
        assert self.began is not None, "nothing was trained"
        return self.training.last - self.began - self._scoring(self.began) - self.weighing

    @property
    def wall_seconds(self) -> float:
        """Seconds from the recipe to the last step, including loading data and base and tokenising."""
        return self.training.last - self.made - self.scoring_seconds - self.weighing

    @property
    def scoring_seconds(self) -> float:
        """Seconds of evaluations before the last step."""
        return self._scoring(self.made)

    def _scoring(self, since: float) -> float:
        """Seconds of evaluations from `since` to the last step."""
        spans = [s for s in self.spans if s.title.startswith(SCORING) and since <= s.begun < self.training.last]
        return sum((s.ended or self.training.last) - s.begun for s in spans)


def _nothing() -> None:
    """Callback of bars other than the training's."""
