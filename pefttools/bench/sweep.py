"""Runs the missing trials of a suite: first the learning rates, then every seed at the best one on validation rows.

    OUT/suite.yaml  trials/DIGEST.json  runs/DIGEST/  study.db

A trial that has a record is not run again. A sweep that was killed continues: its trials resume from their last
checkpoints, and their claims become free. No test score is read here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pefttools import atomic, extras
from pefttools.bench import record_folder, trial
from pefttools.bench.job import Job
from pefttools.bench.ledger import Ledger, sqlite
from pefttools.bench.preflight import check
from pefttools.bench.retention import prepared
from pefttools.bench.suite import Cell, Suite
from pefttools.bench.worker import Worker
from pefttools.errors import UserError, damage_of
from pefttools.reporter import SILENT, Reporter

RETENTION = "retention"


@dataclass
class Sweep:
    """A suite in a folder.

    Raises:
        UserError: the folder contains another suite, or results of other versions.
    """

    suite: Suite
    out: Path
    command: str = ""
    """The command line, as it was typed."""
    cells: Sequence[Cell] = field(init=False)
    ran_by: str = field(init=False, default="")
    """The command line of the last run in this folder."""
    records: dict[str, dict[str, Any]] = field(init=False, default_factory=dict)
    jobs: dict[tuple[str, int, float | None, bool], Job] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.out = self.out.absolute()
        self.cells = self.suite.cells()
        self._refuse_another()
        self.records = record_folder.read(self.out)

    def _refuse_another(self) -> None:
        file = self.out / "suite.yaml"
        if not file.is_file():
            atomic.refuse_unless_writable(self.out)
            return
        with damage_of(file, "remove it and its folder, or choose another folder"):
            present = yaml.safe_load(file.read_text("utf-8"))
        if not isinstance(present, dict) or present.get("format") != trial.FORMAT:
            raise UserError(f"--out: {file} is not a suite that this version can read; choose another folder")
        if present.get("digest") != self.suite.digest:
            raise UserError(f"--out: {file} belongs to another suite ({present.get('name')}); choose another folder")
        self.ran_by = str(present.get("command") or "")

    # The trials of the suite ---------------------------------------------------------------------------------------

    def tried(self, cell: Cell) -> list[Job]:
        """The trials of a cell's learning rates."""
        seed = self.suite.tuning.seed
        rates = cell.learning_rates
        return [self._job(cell, seed, lr, False) for lr in rates] if len(rates) > 1 else []

    def chosen(self, cell: Cell) -> tuple[bool, float | None]:
        """Whether a cell's best learning rate on validation rows is known, and its value; ties go to the lower loss."""
        tried = self.tried(cell)
        if not tried:
            return True, cell.learning_rates[0]
        if any(job.digest not in self.records for job in tried):
            return False, None
        found = []
        for job in tried:
            record = self.records[job.digest]
            if record["status"] == "done":
                sign = 1 if record["lower_is_better"] else -1
                score = sign * record["validation"][record["metric"]]
                found.append((score, record["validation"]["loss"], job.learning_rate))
        return bool(found), min(found)[-1] if found else None

    def finals(self, cell: Cell) -> list[Job]:
        """The trials of a cell's seeds; empty until its learning rate is known."""
        known, rate = self.chosen(cell)
        return [self._job(cell, seed, rate, True) for seed in self.suite.seeds] if known else []

    def _job(self, cell: Cell, seed: int, rate: float | None, final: bool) -> Job:
        key = (cell.name, seed, rate, final)
        if key not in self.jobs:
            self.jobs[key] = Job(cell, seed, rate, cell.recipe(seed, rate).digest, final)
        return self.jobs[key]

    @property
    def title(self) -> str:
        return f"{self.suite.name} {self.suite.digest[:12]}"

    def add(self, job: Job, record: dict[str, Any]) -> None:
        self.records[job.digest] = record

    def finished(self, cell: Cell) -> dict[str, dict[str, Any]]:
        finals = self.finals(cell)
        jobs = [*self.tried(cell), *finals]
        return {job.digest: self.records[job.digest] for job in jobs} if finals and all(map(self.has, jobs)) else {}

    def has(self, job: Job) -> bool:
        record = self.records.get(job.digest)
        return record is not None and (record["status"] == "failed" or record["final"] or not job.final)

    def missing(self) -> Iterator[Job]:
        """The trials that can run now: for every cell its learning rates, then its seeds."""
        for cell in self.cells:
            for job in (*self.tried(cell), *self.finals(cell)):
                if not self.has(job):
                    yield job

    def commands(self) -> list[str]:
        """The command of every trial, with a placeholder for a learning rate that is not known yet."""
        found = []
        for cell in self.cells:
            found += [job.command for job in self.tried(cell)]
            known, rate = self.chosen(cell)
            unknown = "" if known else " train.learning_rate=THE-BEST-OF-THESE"
            found += [cell.command(seed, rate) + unknown for seed in self.suite.seeds]
        return found

    @property
    def total(self) -> int:
        """Number of trials; a final trial with the recipe of a tuning trial counts too."""
        return sum(len(self.tried(cell)) + len(self.suite.seeds) for cell in self.cells)

    @property
    def done(self) -> int:
        """Number of finished trials; the seeds of a cell for which no learning rate works count as finished."""
        number = 0
        for cell in self.cells:
            tried = self.tried(cell)
            number += sum(self.has(job) for job in tried)
            finals = self.finals(cell)
            lost = tried and not finals and all(self.has(job) for job in tried)
            number += len(self.suite.seeds) if lost else sum(self.has(job) for job in finals)
        return number

    # Running -------------------------------------------------------------------------------------------------------

    def run(
        self,
        storage: str | None = None,
        workers: int = 1,
        threads: int | None = None,
        reporter: Reporter = SILENT,
        keep_runs: bool = False,
    ) -> None:
        """Run all missing trials.

        Args:
            storage: URL of the database of claims; by default a file in the folder.
            workers: number of trials at once on this machine.
            threads: number of threads of each trial; by default the workers share the cores.
            keep_runs: whether to keep the run folders of finished cells.

        Raises:
            UserError: the extra `tune` is not installed, a cell cannot work, or the storage cannot be reached; raised
                before anything runs.
            Interrupted: the user stopped it; the same command continues.
        """
        if not any(True for _ in self.missing()):
            return
        extras.require("bench", extras.EXTRAS["tune"])
        each = threads or max(1, trial.cores() // workers)
        check(self.cells, self.records, reporter)
        self.out.mkdir(parents=True, exist_ok=True)
        self.ran_by = self.command
        about = {
            "format": trial.FORMAT, "digest": self.suite.digest, "command": self.command,
            **self.suite.model_dump(mode="json"),
        }  # fmt: skip
        atomic.write_text(self.out / "suite.yaml", yaml.safe_dump(about, sort_keys=False, allow_unicode=True))
        ledger = Ledger(storage or sqlite(self.out / "study.db"))
        retention = self._retention_runs(each, reporter)
        worker = Worker(self, ledger, each, retention, reporter, keep_runs)
        worker.run(workers, self.suite.name, self.total, self.out)

    def _retention_runs(self, threads: int, reporter: Reporter) -> dict[str, Path]:
        """Base -> the run with which forgetting is measured."""
        found: dict[str, Path] = {}
        for cell in self.cells if self.suite.retention else ():
            if cell.base not in found:
                assert self.suite.retention is not None
                reporter.note(f"preparing to measure forgetting: a language-model head on {cell.base}")
                found[cell.base] = prepared(self.suite.retention, cell, self.out / RETENTION, threads)
        return found
