"""Workers that run the trials of a sweep, one after another, after claiming each."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pefttools import atomic, subprocesses
from pefttools.bench import trial
from pefttools.bench.job import Job, Trials, Variant
from pefttools.bench.ledger import BEAT, Claim, Ledger
from pefttools.bench.trial import Order
from pefttools.errors import Interrupted
from pefttools.reporter import Reporter

WAIT = 1.0
"""Seconds between checks of what other workers are running."""


@dataclass
class Worker:
    """Runs the trials of a sweep; `work` is called by as many threads as there are trials at once."""

    trials: Trials
    ledger: Ledger
    threads: int
    retention: Mapping[str, Path]
    """Base -> the run with which forgetting is measured."""
    reporter: Reporter
    keep_runs: bool = False
    bar: Any = None
    stopped: threading.Event = field(default_factory=threading.Event)
    lock: Any = field(default_factory=threading.RLock)
    running: set[str] = field(default_factory=set)

    def run(self, number: int, title: str, total: int, folder: Path) -> None:
        """Run all missing trials, `number` at once, with a progress bar.

        Args:
            folder: the one that the same command continues in, for messages.

        Raises:
            Interrupted: the user stopped it.
        """
        # the server of the trials' processes imports its libraries before the first claim, which needs heartbeats
        subprocesses.started(time.sleep, 0).join()
        with (
            self.reporter.bar(title, total, "trials", self.trials.done) as self.bar,
            ThreadPoolExecutor(number) as pool,
        ):
            started = [pool.submit(self.work) for _ in range(number)]
            try:
                for future in started:
                    future.result()
            except (KeyboardInterrupt, Interrupted) as error:
                self.stopped.set()
                raise Interrupted(f"stopped; run the same command again to continue in {folder}") from error
            except BaseException:
                self.stopped.set()
                raise

    def work(self) -> None:
        """Run missing trials until all have records; waits for those that other workers are running."""
        while not self.stopped.is_set():
            with self.lock:
                wanted = [job for job in self.trials.missing() if job.key not in self.running]
                if not wanted and not self.running:
                    return
                taken = self._taken(wanted)
            if taken is None:
                time.sleep(WAIT)
                continue
            job, claim = taken
            try:
                self._run(job, claim)
            except BaseException:
                self.stopped.set()
                self.ledger.release(claim)
                raise
            finally:
                with self.lock:
                    self.running.discard(job.key)

    def _taken(self, wanted: Sequence[Job]) -> tuple[Job, Claim] | None:
        """Claim the first trial that is not claimed; saves the records of trials that other workers have finished."""
        for job in wanted:
            if claim := self.ledger.claim(
                self._study(job), job.key, job.learning_rate, job.seed, job.cell.lower_is_better, job.params
            ):
                self.running.add(job.key)
                return job, claim
            if record := self.ledger.record(self._study(job), job.key):
                self._keep(job, record)
        return None

    def _study(self, job: Job) -> str:
        return f"{self.trials.title}: {job.cell.study}"

    def _run(self, job: Job, claim: Claim) -> None:
        order = Order(
            job.cell.start, tuple(job.cell.words(job.seed, job.learning_rate)), job.digest, self.trials.out / "runs",
            self.trials.out / "trials", job.final, self.retention.get(job.cell.base), self.threads, job.score_test,
            pruning=job.pruning,
        )  # fmt: skip
        record = trial.perform(order, lambda: self._beat(claim), BEAT)
        self.ledger.settle(claim, record)
        self._keep(job, record)
        at = f", seed {job.seed}" + (f", lr {job.learning_rate:g}" if job.learning_rate else "")
        if record["status"] == "failed":
            self.reporter.warn(f"{job.cell.name}{at}: failed: {record['reason']}")
        elif record["status"] == "pruned":
            last = record["curve"][-1]
            self.reporter.note(
                f"{job.cell.name}{at}: pruned after {last['progress']:.0%} of the steps: validation"
                f" {record['metric']} {last['score']:.4f}"
            )
        else:
            score = record["validation"][record["metric"]]
            self.reporter.note(
                f"{job.cell.name}{at}: validation {record['metric']} {score:.4f},"
                f" {record['train']['seconds']:.0f} s{' (final)' if job.final else ''}"
            )

    def _beat(self, claim: Claim) -> None:
        if self.stopped.is_set():
            raise Interrupted("stopped")
        self.ledger.beat(claim)

    def _keep(self, job: Job, record: dict[str, Any]) -> None:
        file = self.trials.out / "trials" / f"{job.digest[:16]}.json"
        if not file.is_file() or record != trial.read(file):
            atomic.write_json(file, record)
        with self.lock:
            before = self.trials.done
            self.trials.add(job, record)
            self.bar.advance(self.trials.done - before)
            if not self.keep_runs:
                self._forget_runs(job.cell)

    def _forget_runs(self, cell: Variant) -> None:
        """Remove the run folders of a finished cell, because those of full fine-tuning have 90 MB and more.

        A failed trial's folder stays, because it contains the traceback.
        """
        for digest, record in self.trials.finished(cell).items():
            if record["status"] != "failed":
                shutil.rmtree(self.trials.out / "runs" / digest[:16], ignore_errors=True)
