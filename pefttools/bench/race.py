"""The race behind `advise`: methods are compared at equal numbers of steps, and dropped by where their curves will end.

1. The reference, LoRA with its defaults, is trained to its end: the answer to beat, and the clock of the race.
2. All others are trained to a quarter of the same steps under the same schedule, then paused. `curves.forecast` says
   where each would end, calibrated on the reference's own curve; one that has a chance below `CHANCE` to beat the best
   finished run is dropped. The best two and the reference also race with other learning rates of their ranges.
3. The others go on to a half, and the most promising ones to the end.
4. The finalists, the reference among them, are trained with more seeds, all with equally many.

Every stage reserves the time that the next ones need at least. The race ends when the time is over; what was not tried
is reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pefttools.bench.curves import Forecast, Points, forecast
from pefttools.bench.suite import around
from pefttools.reporter import Reporter

SHARES = (0.25, 0.5)
"""Shares of the steps at which all runs that are still racing are compared."""
CHANCE = 0.05
"""A run that beats the best finished one with a lower probability is dropped."""
RATES = 3
"""Learning rates of a candidate, its default among them."""
TUNED = 2
"""Candidates, besides the reference, that race with other learning rates."""
FINALISTS = 3
MAX_SEEDS = 5
SAFETY = 1.15
"""Factor by which planned times are longer than measured ones."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A strategy to try."""

    label: str
    strategy: Mapping[str, Any]
    """The section `strategy` of a recipe."""
    trainable: int
    default_lr: float
    lr_range: tuple[float, float]

    def other_rates(self) -> list[float]:
        """Learning rates around the default, without it."""
        return [rate for rate in around(self.default_lr, self.lr_range, RATES) if abs(rate / self.default_lr - 1) > 0.1]


@dataclass(eq=False)
class Entry:
    """A candidate with a learning rate, and what is known of it."""

    candidate: Candidate
    learning_rate: float
    curve: Points = ()
    """(progress, badness) of its evaluations with seed 0."""
    seconds: float = 0.0
    """Time that its run took so far, with seed 0."""
    records: list[Mapping[str, Any]] = field(default_factory=list)
    """Records of finished runs, by seed."""
    dropped: str = ""
    """Why it is no longer racing."""

    @property
    def label(self) -> str:
        return f"{self.candidate.label}, lr {self.learning_rate:.2g}"

    @property
    def progress(self) -> float:
        return self.curve[-1][0] if self.curve else 0.0

    @property
    def is_finished(self) -> bool:
        return bool(self.records)

    def seconds_to(self, progress: float, reference: Entry) -> float:
        """Planned time from where it is to this progress; before its first run, the reference's pace counts."""
        known = self if self.progress else reference
        pace = known.seconds / max(known.progress, 1e-9)
        return SAFETY * pace * max(0.0, progress - self.progress)


class Runner(Protocol):
    """Trains entries, and knows the time."""

    reporter: Reporter

    @property
    def seconds_left(self) -> float: ...

    def train(self, entry: Entry, progress: float, seed: int = 0) -> bool:
        """Train until this progress, and update the entry; returns whether it worked. A failed entry is dropped."""
        ...

    def noise(self, badness: float) -> float:
        """The standard deviation of an evaluation's badness, from the number of validation rows."""
        ...


@dataclass
class Race:
    """A race of candidates; the first one is the reference."""

    runner: Runner
    candidates: Sequence[Candidate]
    entries: list[Entry] = field(default_factory=list)

    def run(self) -> list[Entry]:
        """Race until the time is over; returns the finished entries with equally many seeds, the best first."""
        self.entries = [Entry(candidate, candidate.default_lr) for candidate in self.candidates]
        if not self.runner.train(self.reference, 1.0):
            return []
        for share in SHARES:
            self._train_to(share, self.racing)
            if share == SHARES[0]:
                self._train_to(share, self._other_rates())
        for entry in sorted(self.racing, key=lambda one: self.forecast(one).mean):
            if entry.curve and self._fits(entry.seconds_to(1.0, self.reference)):
                self.runner.train(entry, 1.0)
                self._drop_hopeless()
        for entry in self.racing:
            entry.dropped = entry.dropped or self._why_unfinished(entry)
        return self._more_seeds()

    @property
    def reference(self) -> Entry:
        return self.entries[0]

    @property
    def racing(self) -> list[Entry]:
        """Entries that are neither finished nor dropped."""
        return [entry for entry in self.entries if not entry.is_finished and not entry.dropped]

    @property
    def finished(self) -> list[Entry]:
        """Finished entries, the best first by the score of seed 0."""
        return sorted((one for one in self.entries if one.is_finished), key=lambda one: one.curve[-1][1])

    def forecast(self, entry: Entry) -> Forecast:
        """Where the entry will end; before its first evaluation, where the reference ended, with a wide spread."""
        if not entry.curve:
            end = self.reference.curve[-1][1]
            return Forecast(end, max(abs(end), 1e-6))
        return forecast(entry.curve, self.runner.noise(entry.curve[-1][1]), self.reference.curve)

    def _train_to(self, share: float, entries: Sequence[Entry]) -> None:
        """Train these to a share of the steps, as long as one run to the end still fits in, and drop the hopeless."""
        reserve = SAFETY * self.reference.seconds * (1 - share)
        for entry in entries:
            if self._fits(entry.seconds_to(share, self.reference) + reserve):
                self.runner.train(entry, share)
        self._drop_hopeless()

    def _other_rates(self) -> list[Entry]:
        """New entries with other learning rates, of the reference and of the most promising candidates."""
        best = sorted((one for one in self.racing if one.curve), key=lambda one: self.forecast(one).mean)
        new = [
            Entry(one.candidate, rate)
            for one in (self.reference, *best[:TUNED])
            for rate in one.candidate.other_rates()
        ]
        self.entries += new
        return new

    def _drop_hopeless(self) -> None:
        best = self.finished[0].curve[-1][1]
        for entry in (one for one in self.racing if one.curve):
            ahead = self.forecast(entry)
            chance = ahead.probability_below(best, self.runner.noise(best))
            if chance < CHANCE:
                entry.dropped = (
                    f"at {entry.progress:.0%} of the steps, its chance to beat {self.finished[0].label} was"
                    f" {100 * chance:.1f}%"
                )
                self.runner.reporter.note(f"{entry.label}: dropped: {entry.dropped}")

    def _why_unfinished(self, entry: Entry) -> str:
        if not entry.curve:
            return "was not tried: there was no time"
        return f"was stopped at {entry.progress:.0%} of the steps: there was no time to finish it"

    def _fits(self, seconds: float) -> bool:
        return seconds <= self.runner.seconds_left

    def _more_seeds(self) -> list[Entry]:
        """Train the finalists with further seeds, all with equally many."""
        best: list[Entry] = []
        for entry in self.finished:  # one entry for each candidate
            if all(other.candidate is not entry.candidate for other in best):
                best.append(entry)
        finalists = best[:FINALISTS]
        if not any(map(self._is_of_reference, finalists)):
            finalists[-1] = next(filter(self._is_of_reference, best))
        if len(finalists) == 1:
            return finalists  # there is nothing to compare it with
        for seed in range(1, MAX_SEEDS):
            while not self._fits(sum(SAFETY * one.seconds for one in finalists)):
                if seed > 1 or len(finalists) == 2:
                    return finalists  # equally many seeds so far
                finalists.remove(next(one for one in reversed(finalists) if not self._is_of_reference(one)))
            for entry in finalists:
                if not self.runner.train(entry, 1.0, seed):
                    return self._with_equal_seeds(finalists)
        return finalists

    def _is_of_reference(self, entry: Entry) -> bool:
        return entry.candidate is self.reference.candidate

    @staticmethod
    def _with_equal_seeds(finalists: list[Entry]) -> list[Entry]:
        fewest = min(len(one.records) for one in finalists)
        for one in finalists:
            del one.records[fewest:]
        return finalists
