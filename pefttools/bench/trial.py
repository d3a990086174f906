"""One trial: a recipe trained in a process of its own, and the record of its results.

A record is a JSON file named after the recipe's digest. The process is forked from a server that has already imported
the libraries, so that a trial starts fast and its peak memory is its own.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pefttools import atomic, subprocesses
from pefttools.bench import records
from pefttools.bench.pruning import Pruning
from pefttools.bench.units import pseudo_values, row_scores
from pefttools.errors import Interrupted, Paused, UserError, damage_of

FORMAT = 3
"""Version of the records' format."""
INTERRUPTED = 130
SERVER_ENDED = 255
"""What multiprocessing reports if the server of the trials' processes was ended, as by a signal to the whole group; the
trial did not fail then."""
COPIED = ("recipe", "base", "data", "task", "strategy", "regularizers", "seed", "params")
"""Keys that a record shares with `result.json`, in addition to its scores."""


@dataclass(frozen=True)
class Order:
    """The arguments of a trial's process."""

    recipe: str
    words: tuple[str, ...]
    """Overrides."""
    digest: str
    runs: Path
    """Folder for the run folder, which is named after the digest."""
    records: Path
    """Folder for the record."""
    final: bool
    """Whether to save predictions and measure weight change and forgetting, besides scoring."""
    retention: Path | None = None
    """The run with which forgetting is measured."""
    threads: int = 1
    score_test: bool = True
    """Whether to score the test rows; if not, the record has the predictions on validation rows."""
    stop_after: int | None = None
    """The number of steps after which the trial pauses; its record then has the status `paused`."""
    pruning: Pruning | None = None
    """Stops the trial when it is hopeless; its record then has the status `pruned`."""

    @property
    def folder(self) -> Path:
        return self.runs / self.digest[:16]

    @property
    def record(self) -> Path:
        return self.records / f"{self.digest[:16]}.json"


def perform(order: Order, beat: Callable[[], None], every: float) -> dict[str, Any]:
    """Train in a new process; returns the record, which is also written to disk, even if the trial failed.

    Args:
        beat: called every `every` seconds while the trial runs.

    Raises:
        Interrupted: the trial was stopped; the next call resumes it from its last checkpoint.
    """
    process = subprocesses.started(_work, order)
    try:
        while process.is_alive():
            process.join(every)
            beat()
    except BaseException:
        process.terminate()  # it writes a checkpoint, from which the next call resumes
        process.join()
        raise
    code = process.exitcode
    if code in (INTERRUPTED, SERVER_ENDED):
        raise Interrupted(f"stopped in the trial {order.digest[:16]}")
    if code or not order.record.is_file():
        _fail(order, _how_it_ended(code))
    return read(order.record)


def _how_it_ended(code: int | None) -> str:
    """The reason why a process left no record, from its exit code, which is negative for a signal."""
    if not code or code > 0:
        return f"exit code {code}"
    known = {number.value: number.name for number in signal.Signals}  # Windows has no SIGKILL
    died = f"the process was killed by {known.get(-code, f'signal {-code}')}"
    return f"{died}; perhaps there was not enough memory" if known.get(-code) == "SIGKILL" else died


def read(file: Path) -> dict[str, Any]:
    """Read a record. Raises UserError when the file is not a record of this version."""
    try:
        record = json.loads(file.read_text("utf-8"))
        if isinstance(record, dict) and record.get("format") == FORMAT:
            records.check(record)
            return record
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--out: {file} is not a record of a trial ({error}); remove it") from error
    raise UserError(f"--out: {file} is not a record that this version can read; choose another folder")


def cores() -> int:
    """Number of threads that a trial may have when no other one runs."""
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)


def versions() -> dict[str, str]:
    """Versions of the packages that determine a recipe's result, without the build (`+cpu`)."""
    names = ("pefttools", "torch", "transformers", "peft")
    return {name: metadata.version(name).partition("+")[0] for name in names}


def _work(order: Order) -> None:
    """The main function of a trial's process."""
    os.environ["OMP_NUM_THREADS"] = str(order.threads)
    import torch

    torch.set_num_threads(order.threads)
    try:
        record = _trained(order)
        atomic.write_json(order.record, record)
    except (Interrupted, KeyboardInterrupt):
        sys.exit(INTERRUPTED)  # releases the process's semaphores, which os._exit does not
    except UserError as error:
        _fail(order, "; ".join(error.problems))
    except Exception as error:
        order.folder.mkdir(parents=True, exist_ok=True)
        (order.folder / "error.txt").write_text(traceback.format_exc(), "utf-8")
        where = f"{order.runs.name}/{order.folder.name}/error.txt"
        _fail(order, f"{type(error).__name__}: {error}; the traceback is in {where}")


def _fail(order: Order, reason: str) -> None:
    about = {"format": FORMAT, "digest": order.digest, "status": "failed", "reason": reason, "versions": versions()}
    atomic.write_json(order.record, about)


def _trained(order: Order) -> dict[str, Any]:
    from pefttools.planning.fit import within_memory
    from pefttools.recipe import recipes
    from pefttools.training.driver import train
    from pefttools.training.run import Run

    resolved = recipes.load(order.recipe, order.words).recipe
    assert resolved.digest == order.digest, f"{order.recipe} has changed since the trial was started"
    started, task = time.monotonic() - _seconds_until_pause(order), resolved.task
    run, pruning = Run(order.folder), order.pruning

    def is_hopeless() -> bool:
        return pruning is not None and pruning.is_hopeless(curve(run, task.primary))

    try:
        if is_hopeless():  # it was killed before its record was written
            raise Paused("", 0.0)
        result = train(
            within_memory(resolved), order.folder, resume=True, score_test=order.score_test,
            stop_after=order.stop_after, stop_when=is_hopeless if pruning else None,
        )  # fmt: skip
    except Paused as paused:
        return {
            "format": FORMAT, "digest": order.digest, "status": "pruned" if is_hopeless() else "paused",
            "seed": resolved.seed, "metric": task.primary, "lower_is_better": task.lower_is_better,
            "curve": curve(run, task.primary), "stopped_after": order.stop_after,
            "step_seconds": paused.step_seconds, "wall": time.monotonic() - started, "versions": versions(),
        }  # fmt: skip
    run = Run.open(order.folder)
    measured = "test" if result["test"] else "validation"
    record = {
        "format": FORMAT, "digest": order.digest, "status": "done",
        **{key: result[key] for key in COPIED}, "data_settings": resolved.data.digest,
        "learning_rate": resolved.train.learning_rate, "metric": task.primary, "lower_is_better": task.lower_is_better,
        "score_range": task.score_range,
        "measured_on": measured, "merges": resolved.strategy.mergeable,
        **{key: result[key] for key in ("before", "validation", "test", "train", "files", "hardware")},
        "curve": curve(run, task.primary),
        "wall": time.monotonic() - started, "versions": versions(), "final": order.final,
    }  # fmt: skip
    if not order.final:
        return record
    record |= _rows(run, result[measured])
    if not order.score_test:
        return record
    record["moved"] = _tried(_moved, order)
    record["forgetting"] = _tried(_forgotten, order)
    return record


def _seconds_until_pause(order: Order) -> float:
    """The time that a paused trial took until now; 0 for a new one."""
    record = read(order.record) if order.record.is_file() else {}
    return record["wall"] if record.get("status") == "paused" else 0.0


def curve(run: Any, metric: str) -> list[dict[str, float]]:
    """The evaluations on validation rows: `step`, `progress` from 0 to 1, `score` and `loss` of each."""
    if not run.metrics_file.is_file():
        return []  # nothing was trained
    with damage_of(run.metrics_file):
        return [
            {
                "step": line["step"], "progress": line["progress"], "score": line["validation"][metric],
                "loss": line["validation"]["loss"],
            }
            for line in run.lines()
            if "validation" in line
        ]  # fmt: skip


def _moved(order: Order) -> Any:
    from pefttools.training.run import load
    from pefttools.training.weight_change import moved

    return moved(load(order.folder))


def _forgotten(order: Order) -> Any:
    from pefttools.bench.forgetting import forgetting
    from pefttools.training.run import load

    return forgetting(load(order.folder), order.retention) if order.retention else None


def _tried(measure: Callable[[Order], Any], order: Order) -> Any:
    """The measurement, or the reason why it failed; the trial does not fail because of it."""
    try:
        return measure(order)
    except UserError as error:
        return {"reason": "; ".join(error.problems)}


def _rows(run: Any, metrics: dict[str, Any]) -> dict[str, Any]:
    """The predictions on the scored rows, and `units`: scores that average to the metric, by row or block of rows."""
    ids, references, predictions = run.predictions()
    task = run.recipe().task
    score = metrics[task.primary]
    by_row = row_scores(predictions, references, score)
    predicted = [p.get("prediction") for p in predictions]  # masked language models have none
    return {
        "units": by_row or pseudo_values(task, predictions, references, score),
        "unit": "row" if by_row else "block",
        "rows": {"ids": ids, "references": references, "predictions": predicted},
    }
