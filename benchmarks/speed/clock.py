"""What a run of pefttools does when, seen from outside: a reporter that notes when each bar opens, moves and closes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import memory

from pefttools.reporter import Bar, Reporter

TRAINING, UNTOUCHED = "training", "untouched"
SCORING = ("validation", "test")


class Span(Bar):
    """A bar's times, in seconds of `time.perf_counter`."""

    def __init__(self, title: str, moved: Callable[[], None]) -> None:
        self.title, self.moved = title, moved
        self.begun = time.perf_counter()
        self.ended: float | None = None
        self.last = self.begun
        """When it last moved."""

    def advance(self, amount: float) -> None:
        del amount
        self.last = time.perf_counter()
        self.moved()


class Clock(Reporter):
    """Times and memory of one training; what it trains is not changed.

    Training lasts from when the untouched model has been scored to the last step, so that whatever is done once before
    the first step (an optimizer, features that are kept) is counted. Scoring is not.
    """

    def __init__(self) -> None:
        self.made = time.perf_counter()
        self.spans: list[Span] = []
        self.loaded_bytes = self.peak_bytes = 0
        self.began: float | None = None
        self.weighing = 0.0
        """Seconds it took to see what memory is held; they are nobody's."""

    @contextmanager
    def bar(self, title: str, total: float | None, unit: str, done: float = 0) -> Iterator[Bar]:
        del total, unit, done
        if title == TRAINING and self.began is None:  # the untouched model was not scored
            self.began = time.perf_counter()
        if self.began is not None and not self.loaded_bytes:
            self._weigh()
        span = Span(title, self._moved if title == TRAINING else _nothing)
        self.spans.append(span)
        yield span
        span.ended = time.perf_counter()
        if title.endswith(UNTOUCHED):
            self.began = span.ended

    def _weigh(self) -> None:
        """When a bar opens after scoring: by then a second model, loaded to be scored untouched, is gone again."""
        begun = time.perf_counter()
        self.loaded_bytes = memory.begin()
        self.weighing = time.perf_counter() - begun

    def _moved(self) -> None:
        self.peak_bytes = memory.peak()
        self.stepped()

    def stepped(self) -> None:
        """Called when the training's bar has moved: after every step."""

    @property
    def training(self) -> Span:
        return next(span for span in self.spans if span.title == TRAINING)

    @property
    def seconds(self) -> float:
        """Of training."""
        assert self.began is not None, "nothing was trained"
        return self.training.last - self.began - self._scoring(self.began) - self.weighing

    @property
    def wall_seconds(self) -> float:
        """From the recipe to the last step: data, base and tokenised rows too."""
        return self.training.last - self.made - self.scoring_seconds - self.weighing

    @property
    def scoring_seconds(self) -> float:
        """Of scoring before the last step."""
        return self._scoring(self.made)

    def _scoring(self, since: float) -> float:
        """Seconds spent scoring from `since` to the last step."""
        spans = [s for s in self.spans if s.title.startswith(SCORING) and since <= s.begun < self.training.last]
        return sum((s.ended or self.training.last) - s.begun for s in spans)


def _nothing() -> None:
    """Other bars than the training's need not tell that they moved."""
