"""One trial: a recipe trained in a process of its own, and the record of it that everything else is made from.

A record is one JSON file named after the recipe's digest. The process is forked from a server that has imported the
libraries already, so a trial starts at once and its peak memory is its own.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pefttools import atomic, subprocesses
from pefttools.errors import Interrupted, UserError

FORMAT = 1
"""Of records."""
BLOCKS = 100
"""Into how many pieces the test rows are cut where the metric is no mean over rows."""
INTERRUPTED = 130
SAID = ("recipe", "base", "data", "task", "strategy", "regularizers", "seed", "params")
"""Keys that a record shares with `result.json`, in addition to its scores."""


@dataclass(frozen=True)
class Order:
    """The order that a trial's process receives."""

    recipe: str
    words: tuple[str, ...]
    """Overrides."""
    digest: str
    runs: Path
    """Where its run folder goes, under the digest."""
    records: Path
    """Where its record goes."""
    final: bool
    """Whether the trained model is looked at more closely, not only scored."""
    retention: Path | None = None
    """The run that forgetting is measured with."""
    threads: int = 1
    score_test: bool = True
    """Whether its test rows are scored; where not, rows are the validation rows."""

    @property
    def folder(self) -> Path:
        return self.runs / self.digest[:16]

    @property
    def record(self) -> Path:
        return self.records / f"{self.digest[:16]}.json"


def perform(order: Order, beat: Callable[[], None], every: float) -> dict[str, Any]:
    """Train in a fresh process, and return the record, which is also on disk; a failed trial has one too.

    Args:
        beat: called every so many seconds while it runs.

    Raises:
        Interrupted: the trial was stopped, and goes on from its last checkpoint.
    """
    process = subprocesses.started(_work, order)
    try:
        while process.is_alive():
            process.join(every)
            beat()
    except BaseException:
        process.terminate()  # it saves, and goes on when it is asked for again
        process.join()
        raise
    code = process.exitcode
    if code == INTERRUPTED:
        raise Interrupted(f"stopped in the trial {order.digest[:16]}")
    if code or not order.record.is_file():
        died = f"the process was killed by {signal.Signals(-code).name}" if code and code < 0 else f"exit code {code}"
        if code == -signal.SIGKILL:
            died += "; was there not enough memory?"
        _fail(order, died)
    return read(order.record)


def read(file: Path) -> dict[str, Any]:
    """Raises UserError when it is no record of this version."""
    try:
        record = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"--out: {file} is not a record of a trial ({error}); remove it") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise UserError(f"--out: {file} is not a record that this version can read; choose another folder")
    return record


def cores() -> int:
    """How many threads a trial may have when it is alone."""
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)


def versions() -> dict[str, str]:
    """Of what decides what a recipe learns; builds for other devices (`+cpu`) are the same version."""
    names = ("pefttools", "torch", "transformers", "peft")
    return {name: metadata.version(name).partition("+")[0] for name in names}


def _work(order: Order) -> None:
    """The process of a trial."""
    os.environ["OMP_NUM_THREADS"] = str(order.threads)
    import torch

    torch.set_num_threads(order.threads)
    try:
        record = _trained(order)
        atomic.write_json(order.record, record)
    except (Interrupted, KeyboardInterrupt):
        sys.exit(INTERRUPTED)  # which gives back the process's semaphores; os._exit does not
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
    from pefttools.recipe import recipes
    from pefttools.training.driver import train
    from pefttools.training.run import Run

    resolved = recipes.load(order.recipe, order.words).recipe
    assert resolved.digest == order.digest, f"{order.recipe} is not what was ordered"
    started = time.monotonic()
    result = train(resolved, order.folder, resume=True, score_test=order.score_test)
    run, task = Run.open(order.folder), resolved.task
    measured = "test" if result["test"] else "validation"
    record = {
        "format": FORMAT, "digest": order.digest, "status": "done",
        **{key: result[key] for key in SAID}, "settings": resolved.data.model_dump(mode="json"),
        "learning_rate": resolved.train.learning_rate, "metric": task.primary, "lower_is_better": task.lower_is_better,
        "measured_on": measured, "merges": resolved.strategy.mergeable,
        **{key: result[key] for key in ("before", "validation", "test", "train", "files", "hardware")},
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


def _moved(order: Order) -> Any:
    from pefttools.bench.weight_change import moved
    from pefttools.training.run import load

    return moved(load(order.folder))


def _forgotten(order: Order) -> Any:
    from pefttools.bench.forgetting import forgetting
    from pefttools.training.run import load

    return forgetting(load(order.folder), order.retention) if order.retention else None


def _tried(measure: Callable[[Order], Any], order: Order) -> Any:
    """What was measured, or the reason why it could not be: a trial is not lost for it."""
    try:
        return measure(order)
    except UserError as error:
        return {"reason": "; ".join(error.problems)}


def _rows(run: Any, metrics: dict[str, Any]) -> dict[str, Any]:
    """The predictions on the scored rows, and `units`: scores that average to the metric, by row or block of rows."""
    ids, references, predictions = run.predictions()
    task = run.recipe().task
    score = metrics[task.primary]
    right = [float(p["prediction"] == r) for p, r in zip(predictions, references, strict=True)]
    by_row = bool(right) and abs(sum(right) / len(right) - score) < 1e-9
    said = [p["prediction"] for p in predictions]
    return {
        "units": right if by_row else pseudo_values(task, predictions, references, score),
        "unit": "row" if by_row else "block",
        "rows": {"ids": ids, "references": references, "predictions": said},
    }


def pseudo_values(task: Any, predictions: Sequence[Any], references: Sequence[Any], score: float) -> list[float]:
    """Jackknife pseudo-values G·θ − (G−1)·θ₍₋g₎ of blocks of rows, about as many as `BLOCKS` (Tukey 1958): (G,).

    Where a metric is no mean over rows (F1, BLEU, a correlation) their mean is nearly the metric, and they vary like
    the scores of as many rows would.
    """
    number = min(BLOCKS, len(predictions))
    values = []
    for block in range(number):
        kept = [i for i in range(len(predictions)) if i % number != block]
        metrics = task.metrics([predictions[i] for i in kept], [references[i] for i in kept]) if kept else {}
        rest = metrics.get(task.primary, score)
        values.append(number * score - (number - 1) * rest)
    return values
