"""The trials of a search, as workers get them: each is proposed as soon as the results that it depends on are there.

No test row is scored, and trials are pruned by their validation scores.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pefttools.bench import record_folder
from pefttools.bench.job import Job
from pefttools.bench.ledger import Ledger
from pefttools.bench.proposals import ATTEMPTS, LAG, Proposal, draw
from pefttools.bench.pruning import Earlier, Pruning
from pefttools.bench.space import STUDY, Point, Space
from pefttools.errors import UserError


@dataclass
class Search:
    """The trials of a search in a folder, and their records.

    Raises:
        UserError: the folder has results of other versions.
    """

    space: Space
    out: Path
    title: str
    sampler: str
    pruner: str
    trials: int
    """Upper limit of trials."""
    deadline: float | None = None
    """The time (`time.monotonic`) after which no trial begins."""
    ledger: Ledger | None = None
    running: Callable[[], Collection[str]] = tuple
    """Returns the keys of the jobs that this process runs now."""
    proposals: list[Proposal] = field(init=False, default_factory=list)
    records: dict[str, dict[str, Any]] = field(init=False)
    refused: dict[str, str] = field(init=False, default_factory=dict)
    """Points that were drawn but whose recipe is invalid -> the reason."""
    is_exhausted: bool = field(init=False, default=False)
    """Whether all points of the space have been proposed."""
    closed_at: int | None = field(init=False, default=None)
    """The number of trials after which the time was over."""

    def __post_init__(self) -> None:
        self.records = record_folder.read(self.out)

    # The protocol of workers ---------------------------------------------------------------------------------------

    @property
    def done(self) -> int:
        return sum(one.digest in self.records for one in self.proposals)

    def add(self, job: Job, record: dict[str, Any]) -> None:
        self.records[job.digest] = record

    def finished(self, cell: Any) -> dict[str, dict[str, Any]]:
        found = next((one.digest for one in self.proposals if one.texts == cell.texts), "")
        return {found: self.records[found]} if found in self.records else {}

    def missing(self) -> Iterator[Job]:
        self.extend()
        for one in self.proposals:
            if one.digest not in self.records:
                yield self._job(one)

    # Points --------------------------------------------------------------------------------------------------------

    def extend(self) -> None:
        """Propose all points whose results are known."""
        self._close_in_time()
        limit = self.trials if self.closed_at is None else min(self.trials, self.closed_at)
        del self.proposals[limit:]
        while len(self.proposals) < limit and not self.is_exhausted:
            number = len(self.proposals)
            if any(one.digest not in self.records for one in self.proposals[: max(0, number - LAG + 1)]):
                return
            proposal = self._proposed(number)
            if proposal is None:
                self.is_exhausted = True
                return
            self.proposals.append(proposal)

    def _close_in_time(self) -> None:
        """When the time is over, let no machine begin another trial."""
        if self.ledger is None:
            return
        name, lower = f"{self.title}: {STUDY}", self.space.defaults.task.lower_is_better
        if self.closed_at is None and self.deadline is not None and time.monotonic() >= self.deadline:
            keys = self.running()
            begun = [one.number for one in self.proposals if one.digest in self.records or one.digest in keys]
            self.ledger.close(name, max(begun, default=0) + 1, lower)
        if self.deadline is not None or not self.proposals:
            self.closed_at = self.ledger.closed(name, lower)

    def _proposed(self, number: int) -> Proposal | None:
        """The next point; None if there is no other one."""
        if number == 0 and self.sampler != "grid" and (texts := self.space.default_point) is not None:
            return self._new(number, texts)
        known = {one.digest: self.records[one.digest] for one in self.proposals[: max(0, number - LAG + 1)]}
        if self.sampler != "grid":
            for attempt in range(ATTEMPTS):
                texts = draw(self.space, self.sampler, number, attempt, self.proposals, known)
                if found := self._new(number, texts):
                    return found
        return self._untried(number)

    def _untried(self, number: int) -> Proposal | None:
        """The next point of a grid; a random one that is untried, where the sampler finds no new one."""
        points = list(self._points or [])
        if self.sampler != "grid":
            random.Random(f"{self.space.seed} {number}").shuffle(points)
        return next((found for texts in points if (found := self._new(number, texts))), None)

    @cached_property
    def _points(self) -> list[dict[str, str]] | None:
        return self.space.points()

    def _new(self, number: int, texts: dict[str, str]) -> Proposal | None:
        """The proposal of a point; None if its recipe is invalid, or was proposed before."""
        try:
            digest = self.space.recipe(texts).digest
        except UserError as error:
            self.refused[Point(self.space, texts).name] = "; ".join(error.problems)
            return None
        return None if any(one.digest == digest for one in self.proposals) else Proposal(number, texts, digest)

    def _job(self, one: Proposal) -> Job:
        earlier = [
            Earlier(other.number, record["curve"], record["status"] == "done")
            for other in self.proposals[: max(0, one.number - LAG + 1)]
            if (record := self.records[other.digest])["status"] != "failed"
        ]
        pruner = Pruning(self.pruner, one.number, tuple(earlier), self.space.defaults.task.lower_is_better)
        return Job(
            Point(self.space, one.texts), self.space.seed, None, one.digest, final=False, score_test=False,
            pruning=pruner, params=self.space.params(one.texts),
        )  # fmt: skip

    # Results -------------------------------------------------------------------------------------------------------

    def best(self) -> Proposal | None:
        """The best finished trial on validation rows; ties go to the lower loss, then to the earlier one."""
        sign = 1 if self.space.defaults.task.lower_is_better else -1
        found = []
        for one in self.proposals:
            record = self.records.get(one.digest)
            if record and record["status"] == "done":
                scores = record["validation"]
                found.append((sign * scores[record["metric"]], scores["loss"], one.number))
        return self.proposals[min(found)[-1]] if found else None


@dataclass
class Seeds:
    """The trials of a few points with several seeds, scored on the test rows.

    Raises:
        UserError: the folder has results of other versions.
    """

    points: list[Point]
    seeds: tuple[int, ...]
    out: Path
    title: str
    records: dict[str, dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        self.records = record_folder.read(self.out)

    @cached_property
    def jobs(self) -> list[Job]:
        """Every seed of every point, point after point."""
        return [
            Job(point, seed, None, point.space.recipe(point.texts, seed).digest, final=True)
            for seed in self.seeds
            for point in self.points
        ]

    @property
    def done(self) -> int:
        return sum(job.digest in self.records for job in self.jobs)

    def add(self, job: Job, record: dict[str, Any]) -> None:
        self.records[job.digest] = record

    def finished(self, cell: Any) -> dict[str, dict[str, Any]]:
        jobs = [job for job in self.jobs if job.cell == cell]
        return {job.digest: record for job in jobs if (record := self.records.get(job.digest))}

    def missing(self) -> Iterator[Job]:
        return (job for job in self.jobs if job.digest not in self.records)

    def of(self, point: Point) -> list[dict[str, Any]]:
        """The records of a point, by seed."""
        return [self.records[job.digest] for job in self.jobs if job.cell == point and job.digest in self.records]
