"""Runs what a suite lacks: learning rates first, chosen on validation rows, then every seed at the chosen one.

    OUT/suite.yaml  trials/DIGEST.json  runs/DIGEST/  study.db

What has a record is not run again. A sweep that was killed goes on where it was: a trial resumes from its last
checkpoint, and what its claim held is free again. Nothing here looks at a test score.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pefttools import atomic
from pefttools.bench import trial
from pefttools.bench.job import Job
from pefttools.bench.ledger import Ledger, sqlite
from pefttools.bench.preflight import check
from pefttools.bench.retention import prepared
from pefttools.bench.suite import Cell, Suite
from pefttools.bench.worker import Worker
from pefttools.errors import Interrupted, UserError
from pefttools.reporter import SILENT, Reporter

RETENTION = "retention"


@dataclass
class Sweep:
    """A suite in a folder.

    Raises:
        UserError: the folder holds another suite or another version's results.
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
        for file in sorted((self.out / "trials").glob("[!.]*.json")):
            record = trial.read(file)
            self._refuse_version(record)
            self.records[record["digest"]] = record

    def _refuse_another(self) -> None:
        file = self.out / "suite.yaml"
        if not file.is_file():
            atomic.refuse_unless_writable(self.out)
            return
        held = yaml.safe_load(file.read_text("utf-8"))
        if not isinstance(held, dict) or held.get("format") != trial.FORMAT:
            raise UserError(f"--out: {self.out} has no suite that this version can read; choose another folder")
        if held["digest"] != self.suite.digest:
            raise UserError(f"--out: {self.out} belongs to another suite ({held['name']}); choose another folder")
        self.ran_by = held.get("command", "")

    def _refuse_version(self, record: Mapping[str, Any]) -> None:
        now = trial.versions()
        if other := [f"{n} {v}" for n, v in record["versions"].items() if now.get(n) != v]:
            raise UserError(
                f"--out: {self.out} holds results of {', '.join(other)}, and this is"
                f" {', '.join(f'{n} {v}' for n, v in now.items())}; their scores cannot be compared;"
                " choose another folder"
            )

    # What is wanted ------------------------------------------------------------------------------------------------

    def tried(self, cell: Cell) -> list[Job]:
        """The learning rates of a cell."""
        seed = self.suite.tuning.seed
        rates = cell.learning_rates
        return [self._job(cell, seed, lr, False) for lr in rates] if len(rates) > 1 else []

    def chosen(self, cell: Cell) -> tuple[bool, float | None]:
        """Whether the learning rate is known, and which; the best on validation rows, of equals the lower loss."""
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
        """The seeds of a cell, once its learning rate is known."""
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
        """The trials that can run now: every cell's learning rates, then its seeds."""
        for cell in self.cells:
            for job in (*self.tried(cell), *self.finals(cell)):
                if not self.has(job):
                    yield job

    def commands(self) -> list[str]:
        """A command a trial; learning rates that are not known yet have a placeholder."""
        found = []
        for cell in self.cells:
            found += [job.command for job in self.tried(cell)]
            known, rate = self.chosen(cell)
            unknown = "" if known else " train.learning_rate=THE-BEST-OF-THESE"
            found += [cell.command(seed, rate) + unknown for seed in self.suite.seeds]
        return found

    @property
    def total(self) -> int:
        """Trials in all, a final one that was tried already counted again."""
        return sum(len(self.tried(cell)) + len(self.suite.seeds) for cell in self.cells)

    @property
    def done(self) -> int:
        """Of these; the seeds of a cell of which no learning rate works count as done."""
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
        """Run everything that is missing.

        Args:
            storage: the database of claims; a file in the folder when not given.
            workers: trials at once on this machine.
            threads: of each trial; the cores shared out when not given.
            keep_runs: whether the run folders of finished cells stay.

        Raises:
            UserError: a cell cannot work, or the storage cannot be reached; told before anything runs.
            Interrupted: stopped; the same command goes on.
        """
        if not any(True for _ in self.missing()):
            return
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
        retention = self._retained(each, reporter)
        worker = Worker(self, ledger, each, retention, reporter, keep_runs)
        with (
            reporter.bar(self.suite.name, self.total, "trials", self.done) as worker.bar,
            ThreadPoolExecutor(workers) as pool,
        ):
            started = [pool.submit(worker.work) for _ in range(workers)]
            try:
                for future in started:
                    future.result()
            except (KeyboardInterrupt, Interrupted) as error:
                worker.stopped.set()
                raise Interrupted(f"stopped; run the same command again to continue in {self.out}") from error
            except BaseException:
                worker.stopped.set()
                raise

    def _retained(self, threads: int, reporter: Reporter) -> dict[str, Path]:
        """By base, the run that forgetting is measured with."""
        found: dict[str, Path] = {}
        for cell in self.cells if self.suite.retention else ():
            if cell.base not in found:
                assert self.suite.retention is not None
                reporter.note(f"the retention text: a head for its words on the untouched {cell.base}")
                found[cell.base] = prepared(self.suite.retention, cell, self.out / RETENTION, threads)
        return found
